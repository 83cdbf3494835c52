"""Kills workers at any moment, and prints a table of what came of it: python tests/torture [STORE ...]

make torture                                         1,000 kills in each store
make torture ARGS="file s3 --kills 100"              fewer, in two of them
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
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from torture.harness import torture_store
from torture.jobs import Kill
from torture.phases import PHASES
from torture.report import table, write_between_marks
from torture.stores import STORES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs="*", default=STORES, metavar="STORE", help=f"of {', '.join(STORES)}")
    parser.add_argument("--phase", action="append", choices=PHASES, help="may be repeated; default: all")
    parser.add_argument("--kills", type=int, default=1_000, help="in each store, over all phases")
    parser.add_argument("--minutes", type=float, help="for each store")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--kill", type=Kill.parse, help="only this one, as a failure prints it")
    parser.add_argument("--at-once", type=int, default=2, help="stores under torture at the same time")
    parser.add_argument("--page", type=Path, help="Markdown file that gets the table, between its marks")
    parser.add_argument("--json", type=Path, help="file that gets the figures")
    given = parser.parse_args()
    if wrong := set(given.stores) - set(STORES):
        parser.error(f"There is no store {wrong.pop()!r}.")
    phases = given.phase or list(PHASES)
    start = time.monotonic()
    # Each in a process of its own, which has its servers and its worker.
    with ProcessPoolExecutor(given.at_once, mp_context=multiprocessing.get_context("spawn")) as pool:
        how = {"seed": given.seed, "kills": given.kills, "minutes": given.minutes, "kill": given.kill}
        jobs = [pool.submit(torture_store, name, phases, **how) for name in given.stores]
        rows = [row for job in jobs for row in job.result()]
    print(f"\nseed {given.seed}, {time.monotonic() - start:.0f} s\n\n{table(rows)}")
    if given.page:
        write_between_marks(given.page, table(rows))
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    sys.exit(any(row.failures for row in rows))


if __name__ == "__main__":
    main()
