"""What an object is pickled from: its parts, each with the path that leads there, for error texts."""

from __future__ import annotations

import functools
import reprlib
import types
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

__all__ = ["Part", "parts"]

Part: TypeAlias = tuple[str, object]


def parts(path: str, value: Any) -> Iterator[Part]:
    """Yield what would be pickled for a value.

    May raise whatever the value's own ``__reduce__`` and the like raise.
    """
    kind: Any = type(value)
    if kind is dict:
        yield from _items(path, value.items())
    elif issubclass(kind, list | tuple) and kind.__reduce_ex__ is object.__reduce_ex__:
        yield from _elements(path, value)
        yield from _state(path, getattr(value, "__dict__", None))
    elif kind in (set, frozenset):
        yield from _elements(f"list({path})", value)
    elif kind is types.FunctionType:
        yield from _parts_of_function(path, value)
    elif isinstance(value, types.MethodType):
        yield from ((f"{path}.__self__", value.__self__), (f"{path}.__func__", value.__func__))
    elif isinstance(value, functools.partial):
        yield from ((f"{path}.{name}", getattr(value, name)) for name in ("func", "args", "keywords"))
    elif isinstance(value, type):
        yield from ((f"{path}.{name}", item) for name, item in vars(value).items() if not name.startswith("__"))
    elif isinstance(value, BaseException):
        yield from _elements(f"{path}.args", value.args)
        yield from _state(path, value.__getstate__())
    else:
        yield from _reduced(path, type(value), value.__reduce_ex__(5))


def _elements(path: str, values: Iterable[Any]) -> Iterator[Part]:
    yield from ((f"{path}[{index}]", item) for index, item in enumerate(values))


def _items(path: str, pairs: Iterable[tuple[Any, Any]]) -> Iterator[Part]:
    for index, (key, item) in enumerate(pairs):
        yield f"list({path})[{index}]", key
        yield f"{path}[{_short(key)}]", item


def _parts_of_function(path: str, function: types.FunctionType) -> Iterator[Part]:
    code, closure = function.__code__, function.__closure__ or ()
    for name, cell in zip(code.co_freevars, closure, strict=True):
        # A cell that is still empty has nothing to pickle.
        if cell != types.CellType():
            yield f"{path}.closure[{name!r}]", cell.cell_contents
    for name in sorted(_names(code)):
        if name in function.__globals__:
            yield f"{path}.globals[{name!r}]", function.__globals__[name]
    yield f"{path}.__defaults__", function.__defaults__
    yield f"{path}.__kwdefaults__", function.__kwdefaults__
    yield f"{path}.__dict__", function.__dict__


def _names(code: types.CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _state(path: str, state: Any) -> Iterator[Part]:
    if isinstance(state, dict):
        yield from ((f"{path}.{name}", item) for name, item in state.items())
    elif type(state) is tuple and len(state) == 2:
        # The form of classes with __slots__: the instance's dictionary, then its slots.
        yield from _state(path, state[0])
        yield from _state(path, state[1])
    elif state is not None:
        yield f"{path}.__getstate__()", state


def _reduced(path: str, kind: type, reduced: Any) -> Iterator[Part]:
    if not isinstance(reduced, tuple):
        # The name of a global.
        return
    padded: tuple[Any, ...] = (*reduced, None, None, None)
    function, arguments, state, elements, pairs = padded[:5]
    yield f"{path}.__reduce__()[0]", function
    for index, item in enumerate(arguments):
        yield f"type({path})" if item is kind else f"{path}.__reduce__()[1][{index}]", item
    yield from _state(path, state)
    yield from _elements(path, elements or ())
    yield from _items(path, pairs or ())


def _short(value: object) -> str:
    try:
        return reprlib.repr(value)
    except Exception:
        return f"<{type(value).__name__}>"
