"""What is submitted lies in a scope: a flow run, ``with runner:``, or another call."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING

from ._call import Call
from ._context import RunContext, Scope, current_tags, seed_of

if TYPE_CHECKING:
    from ._engine import Engine

__all__ = ["FlowScope", "calls_around", "next_index"]


class FlowScope:
    """A flow run as the scope of what is submitted in it; also the scope of ``with runner:``, then without a name."""

    def __init__(
        self,
        engine: Engine,
        *,
        id: str | None = None,
        name: str | None = None,
        flow_name: str | None = None,
        path: str = "",
        attempt: int = 1,
        log_prints: bool = False,
        parent: Scope | None = None,
    ) -> None:
        self.engine = engine
        self.around = parent
        self.id = id
        self.name = name
        self.flow_name = flow_name
        self.path = path
        self.attempt = attempt
        self.log_prints = log_prints
        self.prefix = ""
        self.number = None
        self.counters: MutableMapping[str, Iterator[int]] | None = {}

    @property
    def described(self) -> str:
        """What messages call it."""
        return "its `with runner:` block" if self.name is None else f"the flow run {self.name!r}"

    def describe(self) -> RunContext:
        """Return what the flow's body may know about itself."""
        return RunContext(
            flow_run_id=self.id,
            flow_run_name=self.name,
            flow_name=self.flow_name,
            task_run_id=None,
            task_run_name=None,
            task_name=None,
            attempt=self.attempt,
            tags=current_tags.get(),
            seed=seed_of(self.path),
        )

    def asked_to_stop(self) -> bool:
        """Return whether the flow's calls are being cancelled."""
        return self.engine.cancelling


def calls_around(scope: Scope | None) -> Iterator[Call]:
    """Yield the calls of this process that a scope is inside of, itself included, from the innermost out."""
    while scope is not None:
        if isinstance(scope, Call):
            yield scope
        scope = scope.around


def next_index(scope: Scope, name: str) -> int:
    """Return how many runs of this name were submitted in a scope before."""
    counters = scope.counters
    if counters is None:
        counters = scope.counters = {}
    counter = counters.get(name)
    if counter is None:
        # setdefault, because two threads of a body may submit at once.
        counter = counters.setdefault(name, itertools.count())
    return next(counter)
