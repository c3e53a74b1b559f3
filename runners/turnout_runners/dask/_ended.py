"""Dask's futures of batches that are over, kept until Dask knows that, too."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from typing import Any, Final

__all__ = ["Ended"]

_PATIENCE: Final = 2.0


class Ended:
    """Futures that nobody needs any more, each with the time of its end.

    Dask keeps its part for as long as somebody holds a future. It shall hear of the end before, and show it; but an
    outcome overtakes that word.
    """

    def __init__(self) -> None:
        self._futures: deque[tuple[float, Any]] = deque()

    def add(self, future: Any) -> None:
        """Take a future whose batch is over."""
        if future is not None:
            self._futures.append((time.monotonic(), future))

    def let_go(self) -> None:
        """Let go of those that Dask knows to be over, or should by now."""
        while self._futures:
            since, future = self._futures[0]
            if future.status == "pending" and time.monotonic() - since < _PATIENCE:
                return
            self._futures.popleft()

    def wait(self, client: Any) -> None:
        """Wait until Dask knows that all are over, but not long."""
        import distributed

        futures = [future for _, future in list(self._futures)]
        with client.as_current(), contextlib.suppress(TimeoutError):
            distributed.wait(futures, timeout=_PATIENCE)  # type: ignore[no-untyped-call]

    def clear(self) -> None:
        """Let go of all."""
        self._futures.clear()
