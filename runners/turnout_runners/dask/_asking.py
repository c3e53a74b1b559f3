"""Asks all workers to stop batches, or to give back their calls, in the order in which that is wanted."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from . import _remote

__all__ = ["Answered", "Asking"]

# How long what is wanted next waits for the answer to what was wanted before, in seconds: a worker may stand still.
_PATIENCE: Final = 0.5

Answered: TypeAlias = Callable[[frozenset[str], bool], None]
"""Takes the addresses of the workers that have a batch or had it, and whether any worker has answered."""


class _Wish(NamedTuple):
    number: int
    """Of the batch."""
    what: _remote.What
    answered: Answered


class Asking:
    """What one link asks of all workers.

    Two messages to a worker may overtake each other. If one batch were stopped before the word came not to begin the
    next, that would begin. So there is one message at a time, which holds whatever is wanted by then.

    Parameters
    ----------
    client
        A :class:`distributed.Client`.
    topic
        The topic of the link.
    """

    def __init__(self, client: Any, topic: str) -> None:
        self._client = client
        self._topic = topic
        self._wanted: deque[_Wish] = deque()
        self._is_asking = False

    def ask(self, number: int, what: _remote.What, answered: Answered) -> None:
        """Ask for something, from any thread; ``answered`` is called in the client's loop."""
        self._wanted.append(_Wish(number, what, answered))
        self._client.loop.add_callback(self._go_on)

    async def _go_on(self) -> None:
        import asyncio

        if self._is_asking:
            return
        self._is_asking = True
        try:
            while self._wanted:
                wanted = [self._wanted.popleft() for _ in range(len(self._wanted))]
                await asyncio.wait([asyncio.ensure_future(self._told(wanted))], timeout=_PATIENCE)
        finally:
            self._is_asking = False

    async def _told(self, wanted: list[_Wish]) -> None:
        answers: Mapping[str, list[bool]] = {}
        wishes = [(wish.number, wish.what) for wish in wanted]
        with contextlib.suppress(Exception):
            # In its loop the client waits for no answer, but gives something to await.
            answers = await self._client.run(_remote.ask, self._topic, wishes, on_error="ignore")
        for index, wish in enumerate(wanted):
            wish.answered(frozenset(worker for worker, has in answers.items() if has[index]), bool(answers))
