"""``python -m stagesink.testing.azureml``: run the fake service until Ctrl-C, and print how to reach it."""

from __future__ import annotations

import argparse
import shlex
import signal
import tempfile
from pathlib import Path

from stagesink.testing.azureml.service import FakeAzureML


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stagesink.testing.azureml", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--https", action="store_true", help="with a throw-away certificate authority (needs trustme)")
    parser.add_argument("--folder", type=Path, help="keep the blobs here; default: in memory")
    parser.add_argument("--experiment", default="experiment")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            _serve(given.folder or Path(temporary), given)
    except KeyboardInterrupt:
        pass


def _serve(folder: Path, given: argparse.Namespace) -> None:
    kept = given.folder is not None
    with FakeAzureML.start(
        folder, port=given.port, plain=not given.https, on_disk=kept, token_seconds=86400
    ) as service:
        run_id = service.new_run(given.experiment)
        for name, value in service.environment(run_id).items():
            print(f"export {name}={shlex.quote(value)}")
        print("# Ready. Ctrl-C ends it.", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
