"""Kills workers at any moment, and prints a table of what came of it: python tests/torture [STORE ...]

make torture                                         1,000 kills in each store
make torture ARGS="file s3 --kills 100"              fewer, in two of them
make torture ARGS="--every-call"                     more, until a worker has died at each of its calls
make torture ARGS="--minutes 10"                     as many as there is time for
make torture ARGS="s3 --phase commit --seed 7 --kill after:17:1:obstore"    one of them again
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from torture.harness import Row, torture_phase
from torture.jobs import Kill
from torture.phases import PHASES
from torture.report import table, write_between_marks
from torture.stores import STORES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs="*", default=STORES, metavar="STORE", help=f"of {', '.join(STORES)}")
    parser.add_argument("--phase", action="append", choices=PHASES, help="may be repeated; default: all")
    parser.add_argument("--kills", type=int, default=1_000, help="in each store, over all phases")
    parser.add_argument("--every-call", action="store_true", help="and more, until each call was hit")
    parser.add_argument("--minutes", type=float, help="for each store")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--kill", type=Kill.parse, help="only this one, as a failure prints it")
    parser.add_argument("--at-once", type=int, default=2, help="phases under torture at the same time")
    parser.add_argument("--page", type=Path, help="Markdown file that gets the table, between its marks")
    parser.add_argument("--json", type=Path, help="file that the figures of each phase are added to as it ends")
    given = parser.parse_args()
    if wrong := set(given.stores) - set(STORES):
        parser.error(f"There is no store {wrong.pop()!r}.")
    phases = given.phase or list(PHASES)
    how = {
        "seed": given.seed,
        "kills": -(-given.kills // len(phases)),
        "minutes": given.minutes and given.minutes / len(phases),
        "every_call": given.every_call,
        "kill": given.kill,
    }
    rows = [Row(**row) for row in json.loads(given.json.read_text())] if given.json and given.json.exists() else []
    earlier, broken = len(rows), []
    start = time.monotonic()
    print(f"seed {given.seed}", file=sys.stderr, flush=True)
    # Each in a process of its own, which has its servers and its worker.
    with ProcessPoolExecutor(given.at_once, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(torture_phase, store, phase, **how) for store in given.stores for phase in phases]
        for job in as_completed(jobs):
            try:
                rows.append(job.result())
            except RuntimeError as error:
                broken.append(error)
                print(error, file=sys.stderr, flush=True)
            if given.json:
                given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    print(f"\n{time.monotonic() - start:.0f} s\n\n{table(rows)}")
    if given.page:
        write_between_marks(given.page, table(rows))
    sys.exit(bool(broken) or any(row.failures for row in rows[earlier:]))


if __name__ == "__main__":
    main()
