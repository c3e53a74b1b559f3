"""Which modules only this machine has, and how their functions get to others."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Final

import cloudpickle  # type: ignore[import-untyped]

from ._locks import free_in_forks

__all__ = ["add_script", "are_scripts_by_value", "scripts_by_value"]

_scripts: Final[list[ModuleType]] = []
_lock: Final = free_in_forks(threading.Lock())
_users = 0


def add_script(module: ModuleType) -> None:
    """Remember a module that was loaded from a file which the user named."""
    _scripts.append(module)


@contextlib.contextmanager
def scripts_by_value() -> Iterator[None]:
    """Have the functions and classes of scripts travel with their code meanwhile, as those of ``__main__`` always do.

    For runners whose workers may be on other machines. Others can import the script, which is better: its globals may
    be what no pickler takes, such as a lock. It isn't shipped: two people's scripts on one cluster may well have the
    same name.
    """
    _count(1)
    try:
        yield
    finally:
        _count(-1)


def are_scripts_by_value() -> bool:
    """Return whether :func:`scripts_by_value` is in force."""
    return _users > 0


def _count(by: int) -> None:
    global _users
    with _lock:
        before, _users = _users, _users + by
        if not (before and _users):
            for module in _scripts:
                change = cloudpickle.register_pickle_by_value if _users else cloudpickle.unregister_pickle_by_value
                change(module)
