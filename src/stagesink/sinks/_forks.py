"""What a forked child has from its parent and must never drop.

Dropping a client does something: it wakes a thread that the child does not have, under a lock which that thread may
have held at the fork (so obstore's stores hang the child, seen with 0.12), takes the parent's connections out of an
epoll instance that both share (aiohttp), or takes leave on the parent's connection (paramiko). Not even the cycle
collector may do it, so a child holds such things until it is gone: by one reference more, since whatever a module holds
is dropped at the end too.
"""

from __future__ import annotations

import ctypes
import os
from typing import TypeVar
from weakref import WeakValueDictionary

Thing = TypeVar("Thing")

_things: WeakValueDictionary[int, object] = WeakValueDictionary()  # by id: clients may be equal, or have no hash
_held: list[list[object]] = []  # over a fork: the collector runs between it and us as well


def never_dropped_in_children(thing: Thing) -> Thing:
    """Note that children of this process must keep ``thing``, and what it refers to, for as long as they live.

    Parameters
    ----------
    thing : object
        Open to weak references. What its owner drops may still be garbage in a cycle, so this is the client itself
        rather than who uses it.

    Returns
    -------
    object
        ``thing``.
    """
    _things[id(thing)] = thing
    return thing


def _before() -> None:
    _held.append(list(_things.values()))


def _in_parent() -> None:
    _held.pop()


def _in_child() -> None:
    while _held:
        for thing in _held.pop():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
    _things.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
