"""The process that works and is killed: python worker.py, with one job a line on its standard input.

It imports everything once and forks for each job, so that a job starts within milliseconds. obstore is the exception:
a process whose parent had loaded it may not use it, so each child loads it for itself.

A job is what :class:`torture.jobs.Job` says, as JSON. The answer is one line of JSON: ``ended`` is ``killed``, ``done``
or ``failed``; with it come the number of boundaries, what it died at, and why it failed.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).parent.parent))

from torture import actions
from torture.boundaries import Boundaries

_LONGEST_SECONDS = 100.0  # of one job; it takes less than one on a machine with nothing else to do
_SETTINGS = ("STAGESINK_", "MLFLOW_", "AZUREML_", "AWS_", "AZURE_")


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the work prints is none of the conversation
    actions.warm_up()
    print(json.dumps({"ready": os.getpid()}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), file=answers, flush=True)


def _run(job: dict[str, Any]) -> dict[str, Any]:
    read, write = os.pipe()
    start = time.monotonic()
    child = os.fork()
    if not child:
        os.close(read)
        _work(job, write)
    os.close(write)
    said = _listen(read, job["seconds"], child)
    status = os.waitpid(child, 0)[1]
    answer: dict[str, Any] = {"at": None, "boundaries": 0, **said, "seconds": time.monotonic() - start}
    if answer.pop("hung", False):
        answer["ended"] = "failed"
    elif os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        answer["ended"] = "killed"
    elif status or "ended" not in answer:
        answer |= {"ended": "failed", "why": answer.get("why", f"The worker ended with {status}.")}
    return answer


def _listen(pipe: int, seconds: float | None, child: int) -> dict[str, Any]:
    """Read what the child says until its end, which is brought about after that time, or when it hangs."""
    data, start = b"", time.monotonic()
    hangs = seconds is None
    end = start + (_LONGEST_SECONDS if seconds is None else seconds)
    while True:
        if not select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
            os.kill(child, signal.SIGKILL)
            if hangs:
                data += b'{"why": "It hung; the log of the worker says where.", "hung": true}\n'
            end, hangs = start + _LONGEST_SECONDS, False
            continue
        if not (more := os.read(pipe, 1 << 16)):
            os.close(pipe)
            break
        data += more
    answer: dict[str, Any] = {}
    for line in data.splitlines(keepends=True):
        if line.endswith(b"\n"):  # the last one of a process that was killed while it spoke is none
            answer |= json.loads(line)
    return answer


def _work(job: dict[str, Any], pipe: int) -> NoReturn:
    """Do the job; in the child."""
    write = os.write

    def tell(**said: Any) -> None:
        write(pipe, json.dumps(said).encode() + b"\n")

    code = 1
    try:
        os.setsid()
        faulthandler.dump_traceback_later(0.9 * _LONGEST_SECONDS)
        logging.basicConfig(stream=sys.stderr, level=logging.ERROR)
        for name in [name for name in os.environ if name.startswith(_SETTINGS)]:
            del os.environ[name]
        os.environ.update(job["environment"])
        os.chdir(job["folder"])
        boundaries = Boundaries(job["at"], job["moment"], lambda name: tell(at=name, boundaries=job["at"]))
        boundaries.install()
        actions.install(job, boundaries)
        actions.run(job)
        tell(ended="done", boundaries=len(boundaries.names), names=boundaries.names)
        code = 0
    except BaseException:
        tell(ended="failed", why=traceback.format_exc())
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
