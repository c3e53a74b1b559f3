"""One batch that Ray has: what is known of it, in which order that is told, and when it is over."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from turnout.runner import Batch, Outcome, OutcomeKind, Stored, TaskRunner

from ._causes import is_cancellation, is_death, outcomes_for
from ._orders import Left, outcome_of

if TYPE_CHECKING:
    from ._calls import Sent
    from ._mailbox import Message
    from ._post import Post

__all__ = ["Entry", "for_each"]

# From this age of a batch on, in seconds, there may be news of it in the mailbox.
_NEWSWORTHY: Final = 0.04
# How long an end waits for the news before it, in seconds.
_PATIENCE: Final = 5.0


class Entry:
    """A batch under way, seen by the one thread that waits for Ray.

    Its news come on two ways, by the mailbox and with its end, and are told as if it were one.
    """

    __slots__ = (
        "_early",
        "_expected",
        "_may_not_have_begun",
        "_outcomes",
        "_parts",
        "_since",
        "_was_taken_back",
        "ask_no_more",
        "batch",
        "is_asked_for_rest",
        "is_cancelled",
        "is_recalled",
        "left",
        "number",
        "process",
        "sent",
        "sent_at",
    )

    def __init__(self, batch: Batch, number: int, sent: Sent) -> None:
        self.batch = batch
        self.number = number
        self.sent = sent
        self.is_cancelled = False
        # Ends the timer that would have its worker's end asked for once more.
        self.ask_no_more: Callable[[], object] = _nothing
        # Which one runs it, on its host; 0 while nothing was told of it.
        self.process = 0
        # Asked back, because a node was lost, and it may be on its way to that node.
        self.is_recalled = False
        # Asked for what has not begun of it; all of it, if Ray says that it was cancelled.
        self.is_asked_for_rest = False
        # Cancelled by Ray before it began.
        self._was_taken_back = False
        # Which calls have no last outcome yet.
        self.left = set(range(len(batch.calls)))
        # Since when it is under way, or its end is waited for.
        self.sent_at = self._since = time.monotonic()
        # How many messages have been told, and those that came before their turn.
        self._parts = 0
        self._early: dict[int, bytes] = {}
        # Whether an end without an outcome leaves it open whether it had begun.
        self._may_not_have_begun = False
        # With what it ends, and after how many messages, or after which request to the mailbox.
        self._outcomes: Sequence[Outcome] | None = None
        self._expected: int | Any = None

    @property
    def is_over(self) -> bool:
        """Whether its Ray task has ended."""
        return self._outcomes is not None

    @property
    def is_newsworthy(self) -> bool:
        """Whether there may be news of it in the mailbox."""
        return self.is_over or time.monotonic() - self._since > _NEWSWORTHY

    @property
    def is_silent(self) -> bool:
        """Whether nothing has come of it, neither news nor an end."""
        return not (self.is_over or self._parts)

    @property
    def never_began(self) -> bool:
        """Whether it may be sent again free of charge.

        It has not begun, for its worker was dead already: those whose calls must not begin twice tell that they begin.
        Or it was asked back, and had at most just begun.
        """
        if self._was_taken_back:
            return not self.is_cancelled
        can_tell = self.is_recalled or not self.batch.may_stay
        return self._may_not_have_begun and can_tell and not self.is_cancelled and not self._parts

    def accept(self, message: Message) -> Iterator[list[Outcome]]:
        """Take a message; yield what it says, and what those say that came before their turn and follow it."""
        self._early[message.position] = message.outcomes
        while (packed := self._early.pop(self._parts, None)) is not None:
            self._parts += 1
            self.process, items = pickle.loads(packed)
            yield [outcome_of(item) for item in items]

    def end(self, result: bytes | BaseException, post: Post) -> None:
        """Take what the Ray task returned, or why it did not."""
        self._since = time.monotonic()
        if isinstance(result, BaseException):
            self._may_not_have_begun = is_death(result) or (self.is_recalled and is_cancellation(result))
            # A batch that has begun ends as it does otherwise, see _remote, or with its worker. Ray's signal may come
            # too late, and hit one that nobody asked for.
            self._was_taken_back = is_cancellation(result) and not self._parts
            self._outcomes = outcomes_for(self.batch, self.left, result, cancelled=self.is_cancelled)
            # Its last words may have reached the mailbox: whatever is there is brought first.
            self._expected = 0 if self.is_cancelled else post.sweep()
        else:
            parts, items = pickle.loads(result)
            self._outcomes, self._expected = [outcome_of(item) for item in items], parts

    def may_be_told(self, post: Post) -> bool:
        """Return whether its end is known, and nothing of what was before it is still to come."""
        if self._outcomes is None:
            return False
        if self._expected is None or time.monotonic() - self._since > _PATIENCE or post.is_lost:
            return True
        return self._parts >= self._expected if isinstance(self._expected, int) else not post.has(self._expected)

    def last_outcomes(self, runner: TaskRunner) -> list[Outcome]:
        """Return the outcomes with which it ends; values that stayed are stored by ``runner``."""
        assert self._outcomes is not None, "it has not ended"
        # A message may have told the end of a call whose worker died afterwards.
        wanted = (one for one in self._outcomes if one.kind < OutcomeKind.VALUE or one.index in self.left)
        return [self._with_value(outcome, runner) for outcome in wanted]

    def _with_value(self, outcome: Outcome, runner: TaskRunner) -> Outcome:
        if not isinstance(outcome.data, Left):
            return outcome
        return outcome._replace(data=Stored(runner, (self.sent.values, outcome.index), outcome.data.nbytes))


def _nothing() -> None:
    """Do nothing."""


def for_each(batch: Batch, kind: OutcomeKind, data: Any = None) -> list[Outcome]:
    """Return the same outcome for each call of a batch."""
    return [Outcome(index, kind, data) for index in range(len(batch.calls))]
