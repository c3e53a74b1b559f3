"""The thread on which a link takes its news, one after the other."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Final

__all__ = ["Reporter"]

logger = logging.getLogger("turnout")

_LOOK_SECONDS: Final = 0.25


class Reporter:
    """Calls what it is given, in order, and looks around in between. Users' hooks run in here.

    Parameters
    ----------
    after_each
        Called after each action, and now and then if there is none.
    look_around
        Called some times a second.
    """

    def __init__(self, after_each: Callable[[], None], look_around: Callable[[], None]) -> None:
        self._after_each = after_each
        self._look_around = look_around
        self._looked = 0.0
        self._actions: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="turnout-dask-news", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._looked = time.monotonic()
        self._thread.start()

    def put(self, action: Callable[[], None]) -> None:
        """Have something called, from any thread."""
        self._actions.put(action)

    def stop(self) -> None:
        """Call what was put before, and end."""
        self._actions.put(None)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                action = self._actions.get(timeout=_LOOK_SECONDS)
                if action is None:
                    return
                action()
                # What it held must not live until the next one comes.
                action = None
            except queue.Empty:
                pass
            except Exception:
                action = None
                logger.exception("News of a Dask cluster could not be taken.")
            self._after_each()
            if time.monotonic() - self._looked > _LOOK_SECONDS:
                self._looked = time.monotonic()
                try:
                    self._look_around()
                except Exception:
                    logger.exception("The state of a Dask cluster could not be seen.")
