"""The driver's side of the mailbox: requests that wait there for news or sweep it out, and those to cancel tasks."""

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
    """Fetches what workers leave in a mailbox. For one thread only, save for :meth:`cancel`.

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

    def cancel(self, reference: Any, *, force: bool) -> None:
        """Cancel a Ray task of this process: by way of the mailbox, from where Ray asks this process to do it.

        Called here, ``ray.cancel`` ends the process now and then ("Check failed: Tried to complete task that was not
        pending"): it runs beside the thread of Ray's that takes in the ends of tasks, and if the task ends at that
        moment, both end it. Asked from elsewhere, that thread does both. With Ray 2.60, tasks of no length and one
        cancel for each, a driver lived for 2 to 3 s this way; the other way, 53,000 of 94,000 were cancelled in a
        minute, and nothing happened.

        Parameters
        ----------
        reference
            What the task returns.
        force
            Whether to end the worker that runs it, and what it submitted, too.
        """
        from ._library import ray

        if self.is_lost:
            ray.cancel(reference, force=force, recursive=force)
        else:
            self._mailbox.cancel.remote([reference], force=force, recursive=force)

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
