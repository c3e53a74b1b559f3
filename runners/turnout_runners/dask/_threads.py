"""Threads for bodies, apart from Dask's own: one that can't be stopped must not keep a slot, nor the worker's end."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

__all__ = ["Permits", "run_in_thread"]

_IDLE_SECONDS: Final = 10.0

_idle: Final[list[queue.SimpleQueue[Callable[[], None] | None]]] = []
_idle_lock: Final = threading.Lock()


def run_in_thread(function: Callable[[], None]) -> None:
    """Run a function, which raises nothing, in a thread that has nothing to do, or in a new one."""
    with _idle_lock:
        # The last one first: what libraries keep per thread is warm there.
        box = _idle.pop() if _idle else None
    if box is not None:
        box.put(function)
    else:
        threading.Thread(target=_serve, args=(function,), name="turnout-dask-body", daemon=True).start()


def _serve(function: Callable[[], None] | None) -> None:
    box: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
    while function is not None:
        function()
        # What it held must not live until the next one comes.
        function = None
        with _idle_lock:
            _idle.append(box)
        try:
            function = box.get(timeout=_IDLE_SECONDS)
        except queue.Empty:
            with _idle_lock:
                if box in _idle:
                    _idle.remove(box)
                    return
            # Taken out in this moment: something is coming.
            function = box.get()


class Permits:
    """How many bodies may run at once on a worker. Those that waited for others, and go on, come first.

    Dask counts its tasks itself, but not one that seceded and comes back.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._lock = threading.Lock()
        self._returning: deque[threading.Lock] = deque()
        self._waiting: deque[threading.Lock] = deque()

    def acquire(self, *, returning: bool = False) -> None:
        """Wait for a permit."""
        with self._lock:
            if self._free > 0:
                self._free -= 1
                return
            gate = threading.Lock()
            gate.acquire()
            (self._returning if returning else self._waiting).append(gate)
        # In short steps, so that a Stop that is sent to this thread arrives.
        while not self._passed(gate):
            pass

    def _passed(self, gate: threading.Lock) -> bool:
        try:
            return gate.acquire(timeout=0.1)
        except BaseException:
            self._leave(gate)
            raise

    def _leave(self, gate: threading.Lock) -> None:
        with self._lock:
            for line in (self._returning, self._waiting):
                if gate in line:
                    line.remove(gate)
                    return
        # It was let through in this moment, and the permit is ours to give.
        self.release()

    def release(self) -> None:
        """Give a permit to the next one."""
        with self._lock:
            line = self._returning or self._waiting
            if line:
                line.popleft().release()
            else:
                self._free += 1
