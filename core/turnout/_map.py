"""The elements that a map walks over, all at once or a few ahead of their consumer."""

from __future__ import annotations

import functools
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Generic, TypeVar

from ._arguments import allow_failure, quote, searched, unmapped
from ._future import FuturePart, TaskFuture
from ._signals import calls_flow
from ._waiting import Arrivals, countdown
from .errors import MappingLengthMismatch, MappingMissingIterable

__all__ = ["Arguments", "LazyMap", "column_of", "elements_of"]

R = TypeVar("R")

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

# How many calls of a lazy map are submitted and not consumed: enough for many workers, and little memory.
_AHEAD: Final = 1000


def elements_of(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, lazy: bool) -> Iterator[Arguments]:
    """Yield the arguments of each call of a map.

    Parameters
    ----------
    name
        The task's name, for errors.
    args, kwargs
        What was given to ``map``.
    lazy
        Walk over the elements as they are asked for, and find unequal lengths only then.

    Raises
    ------
    MappingLengthMismatch, MappingMissingIterable
        See :mod:`turnout.errors`.
    """
    columns: dict[int | str, Iterable[Any]] = {}
    for key, value in _numbered(args, kwargs):
        column = column_of(value)
        if column is not None:
            columns[key] = column
    if not columns:
        raise MappingMissingIterable(
            f"{name}.map() got nothing to walk over. Give it a list or the like, or use {name}.submit()."
        )
    if not lazy:
        columns = {key: _listed(column) for key, column in columns.items()}
        _check_lengths(name, columns)
    return _rows(name, args, kwargs, columns)


def _numbered(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[int | str, Any]]:
    return [*enumerate(args), *kwargs.items()]


def column_of(value: Any) -> Iterable[Any] | None:
    """Return what to walk over for one argument, or None for one that each call gets whole."""
    if type(value) is allow_failure:
        inner = column_of(value.value)
        return None if inner is None else (allow_failure(element) for element in inner)
    if type(value) in (unmapped, quote):
        return None
    if isinstance(value, (TaskFuture, FuturePart)):
        # How many elements there are is known only when the result is there.
        value = value.result()
    if isinstance(value, (str, bytes, bytearray, io.IOBase)) or not isinstance(value, Iterable):
        return None
    return value


def _check_lengths(name: str, columns: dict[int | str, Any]) -> None:
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{_parameter(key)} has {length}" for key, length in lengths.items())
        raise MappingLengthMismatch(
            f"{name}.map() walks over its arguments in step, but {told} elements. "
            "Wrap in unmapped(...) what each call shall get whole."
        )


def _parameter(key: int | str) -> str:
    return f"argument {key + 1}" if isinstance(key, int) else f"{key!r}"


def _rows(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], columns: dict[int | str, Iterable[Any]]
) -> Iterator[Arguments]:
    rows = _in_step(name, list(columns.values()))
    if len(columns) == len(args) and not kwargs:  # the usual case, and worth a path of its own
        yield from ((row, {}) for row in rows)
        return
    whole = {key: searched(_unwrapped(value)) for key, value in _numbered(args, kwargs) if key not in columns}
    for row in rows:
        values = whole | dict(zip(columns, row, strict=True))
        yield tuple([values[position] for position in range(len(args))]), {key: values[key] for key in kwargs}


@calls_flow
def _listed(column: Iterable[Any]) -> list[Any]:
    return list(column)


@calls_flow
def _in_step(name: str, columns: list[Iterable[Any]]) -> Iterator[tuple[Any, ...]]:
    """Yield one element of each column at a time, and raise when one ends before the others."""
    try:
        yield from zip(*columns, strict=True)
    except ValueError as error:
        # What a generator of the user's raises is the user's.
        own = error.__traceback__ is not None and error.__traceback__.tb_next is None
        if not (own and str(error).startswith("zip() argument")):
            raise
        raise MappingLengthMismatch(
            f"{name}.map() walks over its arguments in step, but {error.args[0].removeprefix('zip() ')}."
        ) from None


def _unwrapped(value: Any) -> Any:
    return value.value if type(value) is unmapped else value


class LazyMap(Generic[R]):
    """The futures of a map over more elements than shall be in memory: an iterator that submits as it is consumed.

    At most a thousand calls are submitted and not yet consumed.
    """

    def __init__(self, submit: Callable[[Arguments], TaskFuture[R]], calls: Iterator[Arguments]) -> None:
        self._submit = submit
        self._calls = calls
        self._ahead: deque[TaskFuture[R]] = deque()

    def __iter__(self) -> Iterator[TaskFuture[R]]:
        return self

    def __next__(self) -> TaskFuture[R]:
        """Return the next future in order of the elements."""
        while len(self._ahead) < _AHEAD and self._submit_next(self._ahead.append):
            pass
        if not self._ahead:
            raise StopIteration
        # Waiting is what holds the producer back: the consumer gets futures that are over.
        self._ahead[0].wait()
        return self._ahead.popleft()

    def in_order_of_completion(self, timeout: float | None = None) -> Iterator[TaskFuture[R]]:
        """Yield the futures as they come to their end; what :func:`turnout.as_completed` uses.

        Raises
        ------
        TimeoutError
            If they are not all over in time, in seconds.
        """
        remaining = countdown(timeout)
        over = Arrivals[TaskFuture[R]]()
        open_ = 0

        def watch(future: TaskFuture[R]) -> None:
            if not future._listen(functools.partial(over.put, future)):
                over.put(future)

        while True:
            while open_ < _AHEAD and self._submit_next(watch):
                open_ += 1
            if not open_:
                return
            if not over.wait(remaining()):
                raise TimeoutError(f"{open_} of the calls that were submitted are not over after {timeout} s.")
            open_ -= 1
            yield over.take()

    def _submit_next(self, use: Callable[[TaskFuture[R]], object]) -> bool:
        arguments = next(self._calls, None)
        if arguments is not None:
            use(self._submit(arguments))
        return arguments is not None
