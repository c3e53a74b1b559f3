"""Dask's notices of what goes well, kept out of the user's log."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Final

import dask.config
import distributed  # sets the levels of its loggers

__all__ = ["only_warnings"]

_notices: Final = logging.getLogger(distributed.__name__)
_lock: Final = threading.Lock()
_users = 0
_is_raised = False


@contextlib.contextmanager
def only_warnings() -> Iterator[None]:
    """Have Dask log warnings and errors only, while at least one runner is up.

    It logs some thirty lines for each cluster, in the process of whoever starts it. Levels that the user has chosen,
    in Dask's configuration or in ``logging``, stay as they are.
    """
    _count(1)
    try:
        yield
    finally:
        _count(-1)


def _count(by: int) -> None:
    global _users, _is_raised
    with _lock:
        _users += by
        if _users and not _is_raised and _is_default():
            _notices.setLevel(logging.WARNING)
            _is_raised = True
        elif not _users and _is_raised:
            _is_raised = False
            if _notices.level == logging.WARNING:
                _notices.setLevel(logging.INFO)


def _is_default() -> bool:
    return _notices.level == logging.INFO and dask.config.get("logging", None) is None
