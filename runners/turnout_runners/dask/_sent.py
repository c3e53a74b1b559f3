"""What the driver knows of a batch that is on the cluster, and who is to blame when a worker dies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from turnout.runner import Batch, Coming, Outcome, OutcomeKind

from ._wire import News, Stays

__all__ = ["Sent", "verdicts"]


class Sent:
    """A batch on the cluster. Belongs to the thread that takes the news, but for its first fields.

    Parameters
    ----------
    number
        What it goes by.
    batch
        The batch.
    """

    def __init__(self, number: int, batch: Batch) -> None:
        self.number = number
        self.batch = batch
        self.future: Any = None
        """Dask's future, once it is submitted."""
        self.only_on: frozenset[str] = frozenset()
        """The addresses of the workers that it may run on; all, if there is none."""
        self.is_early = any(isinstance(value, Coming) for value in batch.upstream)
        """Whether it waits for values of other batches, in Dask."""
        self.is_several = len(batch.calls) > 1 and not batch.is_async
        """Whether its calls run one after the other."""
        self.is_recalled = False
        """Whether it is asked to stop."""
        self.is_released = False
        """Whether Dask was told that nobody wants its values."""
        self.stops_on: frozenset[str] = frozenset()
        """The worker that has it, and has been asked to stop it."""
        self.serial = 0
        self.is_unpacked = False
        """Whether a worker has said that it has it."""
        self.is_waiting = False
        """Whether it has given its slot away."""
        self.left = set(range(len(batch.calls)))
        """The calls that have no last outcome yet."""
        self.running: set[int] = set()
        self.staying: dict[int, Outcome] = {}
        """Outcomes whose values are on a worker; they count when Dask says that it has them."""
        self.odd_since = 0.0
        """Since when Dask says that it is over, though the news does not."""

    def take(self, news: News) -> list[Outcome]:
        """Return what of the news is to be reported now."""
        if news.serial <= self.serial:
            # The journal of a dead worker repeats what came before.
            return []
        self.serial = news.serial
        self.is_unpacked = True
        self.is_waiting = news.is_waiting
        return [outcome for outcome in news.outcomes if self._noted(outcome)]

    def _noted(self, outcome: Outcome) -> bool:
        index, kind = outcome.index, outcome.kind
        if kind is OutcomeKind.RECORD:
            return True
        if index not in self.left or index in self.staying:
            return False
        if kind is OutcomeKind.STARTED:
            self.running.add(index)
            return True
        self.running.discard(index)
        if isinstance(outcome.data, Stays):
            self.staying[index] = outcome
            return False
        self.left.discard(index)
        return True

    def rest(self, kind: OutcomeKind, cause: str | None = None) -> list[Outcome]:
        """Return an outcome of this kind for each call that has none; they are over then."""
        left, self.left = sorted(self.left), set()
        self.running.clear()
        self.staying.clear()
        return [Outcome(index, kind, cause) for index in left]

    def unkept(self) -> list[Outcome]:
        """Return outcomes for the calls whose values would have stayed, when Dask does not keep them; they are over."""
        lost = sorted(self.staying)
        self.left.difference_update(lost)
        self.staying.clear()
        return [Outcome(index, OutcomeKind.RETURNED) for index in lost]

    def open(self) -> set[int]:
        """Return the calls of which nobody knows what became."""
        return self.left - self.staying.keys()

    def settled(self, kinds: dict[int, OutcomeKind], cause: str) -> list[Outcome]:
        """Return outcomes of these kinds for calls by index; they are over then."""
        self.left -= kinds.keys()
        self.running -= kinds.keys()
        for index in kinds:
            self.staying.pop(index, None)
        return [Outcome(index, kind, cause) for index, kind in sorted(kinds.items())]


def verdicts(held: Sequence[Sent], cause: str, *, told_all: bool) -> list[tuple[Sent, list[Outcome]]]:
    """Return what became of the calls that a worker held when it died.

    Parameters
    ----------
    held
        The batches that Dask had given it.
    cause
        Of what it died.
    told_all
        Whether all that the worker said is known, to the last word. Else what it said in its last moment may be lost,
        but for the word that it has a batch.
    """
    # Which of several calls runs is told now and then only: each of them may have.
    several = [sent for sent in held if sent.is_several and sent.is_unpacked and sent.open()]
    suspects = [(sent, index) for sent in held if not sent.is_several for index in sent.running]
    if not suspects:
        # None had begun, as far as is known; what is unpacked may do harm too. A worker says so before it unpacks.
        unpacked = [sent for sent in held if sent.is_unpacked and not sent.is_several]
        suspects = [(sent, min(open_)) for sent in unpacked if (open_ := sent.open())]
    suspects += [(sent, index) for sent in several for index in sent.open()]
    guilt = OutcomeKind.CRASHED if len(suspects) == 1 else OutcomeKind.LOST
    return [(sent, sent.settled(_kinds(sent, suspects, guilt, told_all), cause)) for sent in held]


def _kinds(
    sent: Sent, suspects: Sequence[tuple[Sent, int]], guilt: OutcomeKind, told_all: bool
) -> dict[int, OutcomeKind]:
    mine = {index for other, index in suspects if other is sent}
    # Calls of a batch run in order: those before the one that runs were over, and their outcomes are lost. If the last
    # words are, too, some of those behind it may have been over as well.
    first = min(mine, default=-1)
    last = len(sent.batch.calls) if mine and not told_all else first
    return {
        index: guilt
        if index in mine
        # It had its result, which the worker took along: that harmed nobody, and costs it an attempt.
        else OutcomeKind.CRASHED
        if index in sent.staying
        else OutcomeKind.LOST
        if index < first or first < index < last
        else OutcomeKind.RETURNED
        for index in sent.left
    }
