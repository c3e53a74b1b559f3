"""The one walk over arguments: what users write around values, and how futures among them become their results."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, Generic, TypeVar

from ._future import FutureList, FuturePart, TaskFuture
from ._serialization import PLAIN_TYPES
from ._state import StateType

__all__ = [
    "PLAIN",
    "Placeholder",
    "allow_failure",
    "arriving",
    "awaited_futures",
    "find_futures",
    "parts_of",
    "quote",
    "replace",
    "replace_arguments",
    "searched",
    "unmapped",
    "unwrapped",
]

T = TypeVar("T")

PLAIN: Final = PLAIN_TYPES

# A guess: containers with fewer plain parts are searched so quickly that marking them is not worth the detour.
_WORTH_QUOTING: Final = 50


class unmapped(Generic[T]):  # noqa: N801  (the name that users know)
    """Pass a value to every call of a map whole, instead of walking over it.

    Examples
    --------
    >>> from turnout import flow, task, unmapped
    >>> @task
    ... def scale(x, factors):
    ...     return x * sum(factors)
    >>> @flow
    ... def scaled():
    ...     return scale.map([1, 2], unmapped([10, 20]))
    >>> scaled()
    [30, 60]
    """

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.value!r})"


class allow_failure(unmapped[T]):  # noqa: N801
    """Let a call run even if the future has no result, and pass it the exception then.

    It works inside of containers and in ``wait_for``. A cancelled future still cancels the call.

    Examples
    --------
    >>> from turnout import allow_failure, flow, task
    >>> @task
    ... def fail():
    ...     raise ValueError("no")
    >>> @task
    ... def report(outcome):
    ...     return repr(outcome)
    >>> @flow
    ... def careful():
    ...     return report.submit(allow_failure(fail.submit()))
    >>> careful()
    "ValueError('no')"
    """

    __slots__ = ()


class quote(unmapped[T]):  # noqa: N801
    """Pass a value as it is: no search for futures in it. Worth it for huge containers.

    Examples
    --------
    >>> from turnout import flow, quote, task
    >>> @task
    ... def size(table):
    ...     return len(table)
    >>> @flow
    ... def measure():
    ...     return size.submit(quote(list(range(1000))))
    >>> measure()
    1000
    """

    __slots__ = ()


def find_futures(values: tuple[Any, ...] | list[Any]) -> dict[TaskFuture[Any], bool] | None:
    """Return the futures in some values, and whether their failure is allowed; None if there is nothing to replace.

    A future that stands once inside of ``allow_failure`` and once outside is not allowed to fail. ``quote`` gives an
    entry to the answer only by making it not None.
    """
    found: dict[TaskFuture[Any], bool] = {}
    special = False
    # A container may stand inside of allow_failure and outside. Kept, so that its id stays its own.
    seen: dict[tuple[int, bool], Any] = {}
    # A list, not recursion: arguments may be nested deeper than Python's stack.
    todo: list[tuple[Any, bool]] = [(value, False) for value in values]
    while todo:
        value, allowed = todo.pop()
        cls = type(value)
        if cls in PLAIN:
            continue
        if cls is TaskFuture:
            found[value] = found.get(value, True) and allowed
        elif cls is FuturePart:
            found[value.future] = found.get(value.future, True) and allowed
        elif cls is quote:
            special = True
        elif cls is allow_failure or cls is unmapped:
            special = True
            todo.append((value.value, allowed or cls is allow_failure))
        else:
            parts = parts_of(value)
            if parts and (id(value), allowed) not in seen:
                seen[id(value), allowed] = value
                todo.extend((part, allowed) for part in parts if type(part) not in PLAIN)
    return found if found or special else None


def awaited_futures(given: Any, name: str) -> dict[TaskFuture[Any], bool]:
    """Return the futures in what was given as ``wait_for``, and whether their failure is allowed.

    Parameters
    ----------
    given
        A future, or futures in containers. ``None`` stands for no future, there too.
    name
        The task's name, for errors.

    Raises
    ------
    TypeError
        If something is there that is no future: a call that waits for it would not wait at all.
    """
    if type(given) in (list, tuple, set, FutureList) and all(type(value) is TaskFuture for value in given):
        return dict.fromkeys(given, False)
    stranger = _stranger(given)
    if stranger is not None:
        raise TypeError(
            f"wait_for of {name!r} holds a value of type {_type_name(stranger)}, which is no future. Give it futures, "
            "alone or in lists, tuples, sets, dicts and dataclasses."
        )
    return find_futures([given]) or {}


def _stranger(given: Any) -> Any:
    """Return something that stands where a future could be waited for, and is none; or None."""
    todo = [given]
    seen: dict[int, Any] = {}
    while todo:
        value, _ = unwrapped(todo.pop(), False)
        if value is None or type(value) is TaskFuture or type(value) is FuturePart or id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, dict):
            todo.extend(item for key, item in value.items() if type(key) is not TaskFuture)
        elif isinstance(value, (list, tuple, set, frozenset)):
            todo.extend(value)
        elif parts_of(value) is None or find_futures([value]) is None:
            # Of a dataclass, some fields may be anything.
            return value
    return None


def searched(value: Any) -> Any:
    """Return what to pass to many calls in place of a value, so that only this one search for futures walks over it.

    In a dictionary of 300,000 entries a search takes 17 ms.
    """
    parts = parts_of(value)
    is_worth_it = parts and (len(parts) > _WORTH_QUOTING or any(type(part) not in PLAIN for part in parts))
    return quote(value) if is_worth_it and find_futures([value]) is None else value


def parts_of(value: Any) -> list[Any] | None:
    """Return what a container holds, or None for anything else."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, name) for name in _names(value)]
    return None


def _names(value: Any) -> list[str]:
    """Return the names of a dataclass's fields that are set."""
    names = [field.name for field in dataclasses.fields(value)]
    if isinstance(value, BaseException):
        names.append("args")  # what it was made with
    return [name for name in names if hasattr(value, name)]


def replace(value: Any, resolve: Callable[[TaskFuture[Any], bool], Any]) -> Any:
    """Return a value with every future in it replaced by ``resolve(future, failure_allowed)``.

    Containers in which nothing changes are returned as they are. The others are copied: once each, however often they
    stand in the value, or in themselves.

    Raises
    ------
    TypeError
        If a container can't be copied, or can't hold what stands for a future.
    """
    return _Replacement(resolve).of(value)


def replace_arguments(
    args: tuple[Any, ...], kwargs: dict[str, Any], resolve: Callable[[TaskFuture[Any], bool], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments with every future in them replaced, as :func:`replace` does for a value that holds them all."""
    # Hot path: most futures stand alone as arguments, and need no walk.
    placed = []
    replacement: _Replacement | None = None
    for value in args:
        cls = type(value)
        if cls is TaskFuture:
            placed.append(resolve(value, False))
        elif cls in PLAIN:
            placed.append(value)
        else:
            replacement = replacement or _Replacement(resolve)
            placed.append(replacement.of(value))
    if not kwargs:
        return tuple(placed), kwargs
    replacement = replacement or _Replacement(resolve)
    return tuple(placed), {name: replacement.of(value) for name, value in kwargs.items()}


_WRAPPERS: Final = frozenset({unmapped, allow_failure})
_REPLACED: Final = _WRAPPERS | {TaskFuture, FuturePart, quote}


class _Container:
    """A container that a walk has come to."""

    __slots__ = ("allowed", "changes", "copy", "holders", "missing", "parts", "value")

    def __init__(self, value: Any, allowed: bool, parts: list[Any]) -> None:
        self.value = value
        self.allowed = allowed
        self.parts = parts
        # What stands in its place: itself, unless something in it changes.
        self.copy = value
        self.changes = False
        # Those that wait for its copy, each as often as it holds this one.
        self.holders: list[_Container] = []
        # For how many copies its own one waits.
        self.missing = 0


class _Replacement:
    """Builds values anew where futures stand in them.

    In three steps, without recursion and linear in the size of the values: find the containers, mark those in which
    something changes, and copy these from the inside out. Of those that contain each other, one is put into the next
    while it is still empty.
    """

    def __init__(self, resolve: Callable[[TaskFuture[Any], bool], Any]) -> None:
        self.resolve = resolve
        # A container may stand inside of allow_failure and outside.
        self.known: dict[tuple[int, bool], _Container] = {}

    def of(self, value: Any) -> Any:
        cls = type(value)
        if cls in PLAIN:
            return value
        if cls is TaskFuture:
            return self.resolve(value, False)
        whole = _Container([value], False, [value])
        self.copy(self.mark(self.find(whole)))
        return whole.copy[0]

    def find(self, whole: _Container) -> list[_Container]:
        """Return the containers that have something to replace among their own parts."""
        changed = []
        todo = [whole]
        while todo:
            holder = todo.pop()
            replaced = False
            for part in holder.parts:
                cls = type(part)
                if cls in PLAIN:
                    continue
                if cls in _REPLACED:
                    replaced = True
                    if cls not in _WRAPPERS:
                        continue
                value, allowed = unwrapped(part, holder.allowed)
                inner = self.known.get((id(value), allowed))
                if inner is None:
                    parts = parts_of(value)
                    if not parts:
                        continue
                    inner = self.known[id(value), allowed] = _Container(value, allowed, parts)
                    todo.append(inner)
                if inner.copy is not inner.value:
                    replaced = True  # in an argument before this one
                inner.holders.append(holder)
            if replaced:
                holder.changes = True
                changed.append(holder)
        return changed

    def mark(self, changed: list[_Container]) -> list[_Container]:
        """Add the containers that hold one of these, however far inside."""
        for container in changed:
            for holder in container.holders:
                holder.missing += 1
                if not holder.changes:
                    holder.changes = True
                    changed.append(holder)
        return changed

    def copy(self, changed: list[_Container]) -> None:
        for container in changed:
            container.copy = _emptied(container.value)
        self.fill([container for container in changed if not container.missing])
        rings = [container for container in changed if container.missing and container.copy is not None]
        # A dataclass may be hashed by its fields, so that it should not be put anywhere without them.
        for container in sorted(rings, key=lambda ring: dataclasses.is_dataclass(ring.value)):
            self.fill(_handed_out(container))

    def fill(self, ready: list[_Container]) -> None:
        while ready:
            container = ready.pop()
            parts = [self.part(part, container.allowed) for part in container.parts]
            container.copy = _filled(container.copy, container.value, parts)
            ready.extend(_handed_out(container))

    def part(self, part: Any, allowed: bool) -> Any:
        """Return what stands in the place of a container's part."""
        cls = type(part)
        if cls in PLAIN:
            return part
        if cls is TaskFuture:
            return self.resolve(part, allowed)
        value, allowed = unwrapped(part, allowed)
        cls = type(value)
        if cls is TaskFuture:
            return self.resolve(value, allowed)
        if cls is FuturePart:
            return self.part_of_future(value, allowed)
        if cls is quote:
            return value.value
        container = self.known.get((id(value), allowed))
        return value if container is None else container.copy

    def part_of_future(self, part: FuturePart, allowed: bool) -> Any:
        whole = self.resolve(part.future, allowed)
        if part.future._type > StateType.CACHED:
            return whole  # an exception, which has no parts
        return Placeholder(whole.index, part.keys) if type(whole) is Placeholder else part.take(whole)


def unwrapped(value: Any, allowed: bool) -> tuple[Any, bool]:
    """Return a value without ``unmapped`` and ``allow_failure`` around it, and whether its failure is allowed."""
    while (cls := type(value)) is allow_failure or cls is unmapped:
        value, allowed = value.value, allowed or cls is allow_failure
    return value, allowed


def _handed_out(container: _Container) -> list[_Container]:
    """Return the containers whose last missing part this one was."""
    ready = []
    for holder in container.holders:
        holder.missing -= 1
        if not holder.missing:
            ready.append(holder)
    container.holders = []
    return ready


def _emptied(value: Any) -> Any:
    """Return a copy of a container without its parts, or None for those that can't be filled later."""
    cls = type(value)
    if isinstance(value, (tuple, frozenset)):
        return None
    if cls in (list, dict, set):
        return cls()
    if isinstance(value, FutureList):
        return []  # what a FutureList can do, it can do with futures
    try:
        if isinstance(value, (list, dict, set)):
            made = copy.copy(value)
            if made is value:
                raise TypeError("its copy is itself")
            made.clear()
        else:
            # Not dataclasses.replace: __init__ and __post_init__ may check or compute, and did so once already.
            made = cls.__new__(cls)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
            _give_attributes(made, value)
    except Exception as error:
        raise _refused(value, error) from error
    return made


def _filled(made: Any, value: Any, parts: list[Any]) -> Any:
    """Return the copy of a container with new parts, which are in the order of :func:`parts_of`."""
    try:
        if isinstance(value, list):
            made.extend(parts)
        elif isinstance(value, dict):
            half = len(parts) // 2
            for key, item in zip(parts[:half], parts[half:], strict=True):
                made[key] = item
        elif isinstance(value, (tuple, frozenset)):
            base: Any = tuple if isinstance(value, tuple) else frozenset
            # Not by its own __new__, which may take other arguments, as that of a named tuple does.
            made = base.__new__(type(value), parts)
            _give_attributes(made, value)
        elif isinstance(value, set):
            made.update(parts)
        else:
            for name, part in zip(_names(value), parts, strict=True):
                object.__setattr__(made, name, part)
    except Exception as error:
        raise _refused(value, error) from error
    return made


def _refused(value: Any, error: Exception) -> TypeError:
    return TypeError(
        f"Can't put results in the place of the futures in a {_type_name(value)}: {type(error).__name__}: {error}. "
        "Give the call the futures in a list, or wait for them first."
    )


def _type_name(value: Any) -> str:
    cls = type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _give_attributes(made: Any, value: Any) -> None:
    """Give a copy what an object has in its ``__dict__`` and in slots, also in those of its bases."""
    state: Any = object.__getstate__(value)
    attributes, slots = state if isinstance(state, tuple) else (state, None)
    if attributes:
        made.__dict__.update(attributes)
    for name, attribute in (slots or {}).items():
        object.__setattr__(made, name, attribute)


class Placeholder:
    """Stands in packed arguments for a value, or part of one, that travels beside them.

    Unpickling gives the value itself, taken from what :func:`arriving` was told; so no walk is needed on the worker.
    """

    __slots__ = ("index", "keys")

    def __init__(self, index: int, keys: tuple[Any, ...] = ()) -> None:
        self.index = index
        self.keys = keys

    def __reduce__(self) -> tuple[Callable[[int, tuple[Any, ...]], Any], tuple[int, tuple[Any, ...]]]:
        return _arrived, (self.index, self.keys)


class _Arriving(threading.local):
    value_of: Callable[[int], Any] | None = None


_arriving: Final = _Arriving()


@contextlib.contextmanager
def arriving(value_of: Callable[[int], Any]) -> Iterator[None]:
    """Let placeholders that are unpickled in this thread become ``value_of(index)``."""
    before = _arriving.value_of
    _arriving.value_of = value_of
    try:
        yield
    finally:
        _arriving.value_of = before


def _arrived(index: int, keys: tuple[Any, ...]) -> Any:
    assert _arriving.value_of is not None, "placeholders are unpickled inside of arriving() only"
    value = _arriving.value_of(index)
    for key in keys:
        value = value[key]
    return value
