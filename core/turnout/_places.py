"""Where a body runs, as events tell it: host, process, and which of the things that go on there side by side."""

from __future__ import annotations

import heapq
import itertools
import os
from typing import Final, TypeAlias

from . import _forks

__all__ = ["NOWHERE", "Place", "give_place", "host_and_process", "take_place"]


Place: TypeAlias = tuple[str, str, int, int]
"""A worker, as its host and process, such as ``"node7:4242"``; the host; the process; and the slot, which is the lowest
number that nothing else in the process had when it began, from 0."""

NOWHERE: Final[Place] = ("", "", 0, 0)
"""Stands for a place that nobody knows."""


def host_and_process() -> tuple[str, int]:
    """Return the name of this host, and the id of this process."""
    return os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", ""), os.getpid()


class _Places:
    """The places of this process. Operations on lists and counters are atomic, so there is no lock."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.free: list[int] = []
        self.all: dict[int, Place] = {}
        self.numbers = itertools.count()

    def take(self) -> Place:
        try:
            return self.all[heapq.heappop(self.free)]
        except IndexError:
            host, pid = host_and_process()
            slot = next(self.numbers)
            place = self.all[slot] = (f"{host}:{pid}", host, pid, slot)
            return place


_PLACES: Final = _Places()
_forks.call_in_child(_PLACES.begin)


def take_place() -> Place:
    """Return a place in this process that nobody has, until it is given back."""
    return _PLACES.take()


def give_place(place: Place) -> None:
    """Give a place back."""
    heapq.heappush(_PLACES.free, place[3])
