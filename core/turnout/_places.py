"""Where a body runs, as events tell it: host, process, and which of the things that go on there side by side."""

from __future__ import annotations

import heapq
import os
import threading
from typing import Final, TypeAlias

from . import _forks
from ._locks import free_in_forks

__all__ = ["NOWHERE", "Place", "give_place", "here", "host_and_process", "take_place"]


Place: TypeAlias = tuple[str, str, int, int]
"""A worker, as its host and process, such as ``"node7:4242"``; the host; the process; and the slot, which is the lowest
number that nothing else in the process had when it began, from 0."""

NOWHERE: Final[Place] = ("", "", 0, 0)
"""Stands for a place that nobody knows."""


def host_and_process() -> tuple[str, int]:
    """Return the name of this host, and the id of this process."""
    return os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", ""), os.getpid()


_making: Final = free_in_forks(threading.Lock())
# Operations on lists and counters are atomic, so there is no lock.
_free: Final[list[int]] = []
_all: Final[list[Place]] = []


def _begin() -> None:
    _free.clear()
    _all.clear()


_forks.call_in_child(_begin)


def take_place() -> Place:
    """Return a place in this process that nobody has, until it is given back."""
    try:
        return _all[heapq.heappop(_free)]
    except IndexError:
        return _new_place()


def give_place(place: Place) -> None:
    """Give a place back."""
    heapq.heappush(_free, place[3])


def here(slot: int = 0) -> Place:
    """Return a place in this process that somebody may have."""
    host, pid = host_and_process()
    return f"{host}:{pid}", host, pid, slot


def _new_place() -> Place:
    with _making:
        place = here(len(_all))
        _all.append(place)
    return place
