"""One upload into an Azure ML run by one client, in a process of its own: prints what it took as JSON.

    upload_to_azureml.py stagesink|log_artifacts FOLDER

The environment is that of a job. `log_artifacts` is MLflow's, with Microsoft's own azureml-mlflow behind it. See
`measured.py`.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

from measured import Clock


def main() -> None:
    client, folder = sys.argv[1:]
    run_id = os.environ["MLFLOW_RUN_ID"]
    with Clock() as clock:
        if client == "stagesink":
            from stagesink.sinks import open_sink
            from stagesink.transfer import Transfer, plan_tree

            sink = open_sink("azureml:")
            clock.measure(lambda: Transfer(sink).run(plan_tree(run_id, "checkpoint", folder)))
        else:
            own: Any = import_module("mlflow").MlflowClient()
            clock.measure(lambda: own.log_artifacts(run_id, folder, "checkpoint"))


if __name__ == "__main__":
    main()
