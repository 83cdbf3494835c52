"""One trial of the sweep, in a process of its own: the training code as it is, with settings from the command line.

    MLFLOW_SKIP_ARTIFACT_LOGGING=true python -m stagesink.pipeline.trial OUT_DIR '{"hidden_units": 32}'

It hands over its artifacts like any training; the variable, which the sweep sets, makes that skip.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from stagesink.pipeline.training import Settings, train
from stagesink.trackers import MLflowTrainingTracker

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    # With the sink left out it would join the trial's run, which MLFLOW_RUN_ID names, and log each epoch there. The
    # sweep logs what counts, and importing mlflow takes as long as this whole training.
    with MLflowTrainingTracker(sink="memory:") as tracker:
        train(Settings(**json.loads(sys.argv[2])), Path(sys.argv[1]), tracker)
