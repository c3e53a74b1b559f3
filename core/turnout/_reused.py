"""Large objects that ``read_only`` calls unpacked, kept in this process for a moment for the next of them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from ._serialization import Parcel
from ._timers import after
from .runner import Stored

__all__ = ["is_costly", "key_if_used_before", "let_go", "take"]

# Unpacking less than this is not worth the care. Buffers don't count: objects are made over them.
_COSTLY: Final = 64 * 1024
# How long an object stays when nobody uses it, in seconds, and how many such there are at most.
_SECONDS: Final = 1.0
_MOST_IDLE: Final = 4

_SEEN: Final = b""


def key_if_used_before(value: Parcel | Stored) -> bytes | None:
    """Return what a value goes by on workers, from its second use on: what is used once shall not be kept.

    In the driver. If two threads pack at once, a key may get lost; then its value is unpacked once more.
    """
    if value.key is None:
        value.key = _SEEN
        return None
    if value.key == _SEEN:
        value.key = os.urandom(16)
    return value.key


def is_costly(parcel: Parcel) -> bool:
    """Return whether it takes long to unpack a parcel."""
    return memoryview(parcel.data).nbytes > _COSTLY


class _Entry:
    __slots__ = ("idle_since", "users", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        self.users = 0
        self.idle_since = 0.0


class _Reused:
    """The objects of this process, by key: those in use, and those that were a moment ago, the latest last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[bytes, _Entry] = {}
        self._is_sweeping = False

    def take(self, key: bytes, load: Callable[[], Any]) -> Any:
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                entry.users += 1
                return entry.value
        # Without the lock, for it takes long, and user code may run. Another thread may do the same meanwhile.
        value = load()
        with self._lock:
            entry = self._entries.setdefault(key, _Entry(value))
            entry.users += 1
            return entry.value

    def let_go(self, keys: Iterable[bytes]) -> None:
        now = time.monotonic()
        with self._lock:
            for key in keys:
                entry = self._entries.pop(key)
                entry.users -= 1
                entry.idle_since = now
                self._entries[key] = entry
        self._drop(now)

    def _sweep(self) -> None:
        with self._lock:
            self._is_sweeping = False
        self._drop(time.monotonic())

    def _drop(self, now: float) -> None:
        with self._lock:
            idle = [key for key, entry in self._entries.items() if not entry.users]
            old = [key for key in idle if now - self._entries[key].idle_since >= _SECONDS]
            # Their destructors run when the lock is free.
            dropped = [self._entries.pop(key) for key in {*idle[:-_MOST_IDLE], *old}]
            must_sweep = len(idle) > len(dropped) and not self._is_sweeping
            self._is_sweeping = self._is_sweeping or must_sweep
        if must_sweep:
            after(_SECONDS, self._sweep)
        del dropped


_reused: Final = _Reused()
if hasattr(os, "register_at_fork"):
    # The parent's calls use them, and its timers drop them.
    os.register_at_fork(after_in_child=_reused.__init__)  # type: ignore[misc]  # all of it is made anew

take = _reused.take
"""Return the object of a key, which ``load`` makes if it is not there. It stays until it was let go as often."""
let_go = _reused.let_go
"""Take note that a batch is over, which took the objects of these keys."""
