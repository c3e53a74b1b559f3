"""The actor that takes news from workers while tasks run, keeps them until they are fetched, and cancels tasks."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, NamedTuple

__all__ = ["Mailbox", "Message"]


class Message(NamedTuple):
    """Part of what a batch has to tell."""

    number: int
    """Of the batch."""
    position: int
    """Among the messages about this batch: they may overtake each other."""
    outcomes: bytes
    """The process that tells it, and outcomes, pickled."""


class Mailbox:
    """One box for each channel. An async actor: takers wait in it without holding up those who bring something."""

    def __init__(self) -> None:
        self._boxes: dict[str, _Box] = {}

    async def ready(self) -> None:
        """Answer, which shows that it is there."""

    async def put(self, channel: str, number: int, position: int, outcomes: bytes) -> None:
        """Leave a message."""
        self._box(channel).add(Message(number, position, outcomes))

    async def take(self, channel: str, seconds: float) -> list[tuple[Any, ...]]:
        """Return all messages that are there, or those that come within a time.

        Whoever waited for the same channel before goes home with nothing, so that there is one taker at most.
        """
        return [tuple(message) for message in await self._box(channel).take(seconds)]

    async def cancel(self, references: list[Any], *, force: bool, recursive: bool) -> None:
        """Cancel the Ray tasks of a driver: see :meth:`Post.cancel`, which asks for it."""
        import ray

        for reference in references:
            ray.cancel(reference, force=force, recursive=recursive)

    async def close(self, channel: str) -> None:
        """Forget a channel."""
        box = self._boxes.pop(channel, None)
        if box is not None:
            box.call()

    def _box(self, channel: str) -> _Box:
        return self._boxes.setdefault(channel, _Box())


class _Box:
    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._bell = asyncio.Event()

    def add(self, message: Message) -> None:
        self._messages.append(message)
        self._bell.set()

    def call(self) -> None:
        """Send home whoever waits."""
        self._bell.set()
        self._bell = asyncio.Event()

    async def take(self, seconds: float) -> list[Message]:
        self.call()
        bell = self._bell
        if not self._messages and seconds > 0:
            try:
                async with asyncio.timeout(seconds):
                    await bell.wait()
            except TimeoutError:
                return []
            if bell is not self._bell:
                return []
        messages = list(self._messages)
        self._messages.clear()
        bell.clear()
        return messages
