"""What a run can ask about itself: ids, attempt, tags, seed, logger, and whether it should stop."""

from __future__ import annotations

import contextlib
import contextvars
import copyreg
import logging
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from .errors import MissingContextError, SerializationError

if TYPE_CHECKING:
    from ._engine import Engine

__all__ = [
    "RunContext",
    "Scope",
    "cancelled",
    "current_scope",
    "get_run_context",
    "get_run_logger",
    "register_context_variable",
    "registered_values",
    "seed_of",
    "set_registered",
    "tags",
    "within",
]

FLOW_RUNS = logging.getLogger("turnout.flow_runs")
TASK_RUNS = logging.getLogger("turnout.task_runs")


@dataclass(frozen=True, slots=True)
class RunContext:
    """What is known about the run that asks.

    In the body of a flow the three ``task`` fields are None. Outside of a flow the three ``flow`` fields are.
    """

    flow_run_id: str | None
    flow_run_name: str | None
    flow_name: str | None
    task_run_id: str | None
    task_run_name: str | None
    task_name: str | None
    attempt: int
    """Which try this is, from 1."""
    tags: frozenset[str]
    seed: int
    """64 bits for random number generators: the same for the same call of the same flow, wherever it runs."""


class Scope(Protocol):
    """A running flow or call, as the things submitted inside of it see it."""

    counters: MutableMapping[str, Iterator[int]] | None

    @property
    def engine(self) -> Engine:
        """The engine that takes what is submitted here."""
        ...

    @property
    def prefix(self) -> str:
        """What the names of runs inside begin with."""
        ...

    @property
    def path(self) -> str:
        """The place of this run below its root flow: what seeds and ids are made of."""
        ...

    @property
    def log_prints(self) -> bool:
        """Whether prints go to the run's logger."""
        ...

    @property
    def around(self) -> Scope | None:
        """What this run was submitted in, as far as that is in this process."""
        ...

    @property
    def number(self) -> int | None:
        """What a call goes by in events; None for a flow. Those of another process are below zero: -1 for 0."""
        ...

    def describe(self) -> RunContext:
        """Return what the run may know about itself."""
        ...

    def asked_to_stop(self) -> bool:
        """Return whether the run has been cancelled, or is out of time."""
        ...


current_scope: contextvars.ContextVar[Scope | None] = contextvars.ContextVar("turnout_scope", default=None)
current_tags: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar("turnout_tags", default=frozenset())


@contextlib.contextmanager
def within(scope: Scope | None) -> Iterator[None]:
    """Have what happens in the block be of a run: what is submitted, and what is logged."""
    token = current_scope.set(scope)
    try:
        yield
    finally:
        current_scope.reset(token)


def get_run_context() -> RunContext:
    """Return what is known about the flow run or task run that calls this.

    Raises
    ------
    MissingContextError
        If no flow or task is running here.

    Examples
    --------
    >>> from turnout import flow, get_run_context, task
    >>> @task
    ... def who():
    ...     return get_run_context().task_run_name
    >>> @flow
    ... def ask():
    ...     return who.submit()
    >>> ask()
    'who-0'
    """
    scope = current_scope.get()
    if scope is None:
        raise MissingContextError(
            "There is no run here. Call get_run_context() in the body of a flow or a task, "
            "or in a thread started with contextvars.copy_context().run."
        )
    return scope.describe()


def get_run_logger() -> logging.LoggerAdapter[logging.Logger]:
    """Return a logger whose records carry the ids and names of the run, and reach the driver's logging.

    The records have the attributes ``flow_run_id``, ``flow_run_name``, ``task_run_id`` and ``task_run_name``.

    Raises
    ------
    MissingContextError
        If no flow or task is running here.
    """
    context = get_run_context()
    logger = FLOW_RUNS if context.task_run_id is None else TASK_RUNS
    return logging.LoggerAdapter(logger, run_ids(context))


def run_ids(context: RunContext) -> dict[str, object]:
    """Return the attributes that the log records of a run carry."""
    return {
        "flow_run_id": context.flow_run_id,
        "flow_run_name": context.flow_run_name,
        "task_run_id": context.task_run_id,
        "task_run_name": context.task_run_name,
    }


def cancelled() -> bool:
    """Return whether the task that asks has been cancelled or is out of time, so that its body can end early.

    Examples
    --------
    >>> from turnout import cancelled, task
    >>> @task
    ... def count(limit):
    ...     done = 0
    ...     while done < limit and not cancelled():
    ...         done += 1
    ...     return done
    >>> count(3)
    3
    """
    scope = current_scope.get()
    return scope is not None and scope.asked_to_stop()


@contextlib.contextmanager
def tags(*names: str) -> Iterator[frozenset[str]]:
    """Add tags to every call that is submitted inside of the block.

    Examples
    --------
    >>> from turnout import tags
    >>> with tags("nightly", "europe") as all_tags:
    ...     sorted(all_tags)
    ['europe', 'nightly']
    """
    token = current_tags.set(current_tags.get() | frozenset(names))
    try:
        yield current_tags.get()
    finally:
        current_tags.reset(token)


def seed_of(path: str) -> int:
    """Return the seed that belongs to a place in a flow."""
    import hashlib  # takes 10 ms, and most flows ask for no seed

    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "big")


_registered: dict[str, contextvars.ContextVar[Any]] = {}


def register_context_variable(variable: contextvars.ContextVar[Any]) -> None:
    """Let a context variable travel with calls to workers in other processes.

    Threads see the submitter's context variables anyhow. Other workers see those that were registered, by name: so
    names must be unlike each other. Register where the variable is made, at the top of a module. The values must
    pickle.

    Raises
    ------
    ValueError
        If another variable of the same name is registered.
    """
    if _registered.setdefault(variable.name, variable) is not variable:
        raise ValueError(
            f"Another context variable named {variable.name!r} is registered. Give this one a name of its own."
        )


def registered_values(context: contextvars.Context) -> dict[str, Any]:
    """Return the values that a context holds for the registered variables."""
    return {name: context[variable] for name, variable in _registered.items() if variable in context}


def set_registered(values: dict[str, Any]) -> None:
    """Set registered variables in the current context."""
    for name, value in values.items():
        _variable_named(name).set(value)


def _variable_named(name: str) -> contextvars.ContextVar[Any]:
    return _registered.get(name) or _registered.setdefault(name, contextvars.ContextVar(name))


def _reduce_variable(variable: contextvars.ContextVar[Any]) -> tuple[Any, tuple[str]]:
    if _registered.get(variable.name) is not variable:
        raise SerializationError(
            f"The context variable {variable.name!r} can't travel to a worker. "
            "Call turnout.register_context_variable(variable) once where it is made."
        )
    return _variable_named, (variable.name,)


# Python can't pickle context variables at all, but a function of __main__ that uses a registered one must travel.
copyreg.pickle(contextvars.ContextVar, _reduce_variable)
