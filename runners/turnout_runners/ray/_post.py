"""The driver's side of the mailbox: one request that waits there for news, and one that sweeps it out."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any, Final

from ._mailbox import Message

__all__ = ["Post"]

logger = logging.getLogger("turnout")

# How long a request waits in the mailbox, in seconds.
_LONG: Final = 20.0


class Post:
    """Fetches what workers leave in a mailbox. For one thread only.

    Parameters
    ----------
    mailbox
        A handle of the actor.
    name
        By which workers find it.
    channel
        Under which the messages of this runner are kept.
    """

    def __init__(self, mailbox: Any, name: str, channel: str) -> None:
        self.name = name
        self.channel = channel
        self._mailbox = mailbox
        # In the order in which they were sent, which is that of the messages that they bring.
        self._requests: deque[Any] = deque()
        self.is_lost = False

    @property
    def requests(self) -> list[Any]:
        """What to wait for."""
        return list(self._requests)

    def ask(self) -> None:
        """Have news brought when there are any."""
        if not self._requests and not self.is_lost:
            self._request(_LONG)

    def sweep(self) -> Any:
        """Have brought what is there; return the request, after which nothing from before it is still to come."""
        self._request(0)
        return self._requests[-1] if self._requests else None

    def has(self, request: Any) -> bool:
        """Return whether a request has not been answered."""
        return request in self._requests

    def take(self) -> list[Message]:
        """Return what the answered requests brought."""
        from ._library import ray

        messages: list[Message] = []
        while self._requests:
            ready, _ = ray.wait([self._requests[0]], timeout=0)
            if not ready:
                break
            try:
                messages += [Message(*item) for item in ray.get(self._requests.popleft())]
            except Exception as error:
                self._lose(error)
        return messages

    def close(self) -> None:
        """Leave the mailbox, which may serve others."""
        self._requests.clear()
        if not self.is_lost:
            self._mailbox.close.remote(self.channel)

    def _request(self, seconds: float) -> None:
        if self.is_lost:
            return
        try:
            self._requests.append(self._mailbox.take.remote(self.channel, seconds))
        except Exception as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        self._requests.clear()
        if not self.is_lost:
            self.is_lost = True
            logger.warning(
                "The actor that brings news of running tasks is gone (%s): from now on their logs come when they end.",
                " ".join(f"{type(error).__name__}: {error}".split()),
            )
