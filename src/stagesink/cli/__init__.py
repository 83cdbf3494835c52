"""The command ``stagesink``: the facade and the engine for people and scripts.

Data goes to stdout, as a table or with ``--json`` as one JSON document, also for an error; progress, notices and logs
go to stderr. :data:`stagesink.cli.errors.EXIT_CODES` says what each exit code means.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line of this process."""
    try:
        from stagesink.cli.app import app

        app()
    except KeyboardInterrupt:  # while modules were still being imported; later ones are caught with the other errors
        sys.exit(130)
