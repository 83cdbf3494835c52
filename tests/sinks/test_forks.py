"""What a forked child has from its parent is never dropped there, however it goes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

_PROGRAM = """
import gc, os, sys
from stagesink.sinks._forks import never_dropped_in_children
from stagesink.sinks.fsspec.clients import Clients

class Client:
    def __init__(self, name):
        self.name, self.itself = name, self  # only the collector can drop it
    def __eq__(self, other):  # and none has a hash
        return True
    def __del__(self):
        os.write(1, f"{self.name} dropped by {'child' if os.getpid() != parent else 'parent'}\\n".encode())

gc.disable()
parent = os.getpid()
used = never_dropped_in_children(Client("used"))
never_dropped_in_children(Client("garbage"))
clients = Clients(lambda: Client("closed"), shared=True)
clients.take()
clients.close()
child = os.fork()
if child == 0:
    del used
    gc.collect()
    grandchild = os.fork()
    if grandchild:
        os.waitpid(grandchild, 0)
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
os.write(1, b"child gone\\n")
gc.collect()
used.itself = None
del used
"""


def test_no_child_drops_what_its_parent_made_and_the_parent_does() -> None:
    command = [sys.executable, "-W", "ignore", "-c", _PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    dropped = ["child gone", "closed dropped by parent", "garbage dropped by parent", "used dropped by parent"]
    assert [*done.stdout.splitlines()[:1], *sorted(done.stdout.splitlines()[1:])] == dropped, done.stderr
