"""What an object is pickled from: its parts, each with the path that leads there, for error texts."""

from __future__ import annotations

import functools
import reprlib
import types
from collections.abc import Iterator
from typing import Any, TypeAlias

__all__ = ["Part", "parts"]

Part: TypeAlias = tuple[str, object]


def parts(path: str, value: Any) -> Iterator[Part]:
    """Yield what would be pickled for a value, each with the path that leads there."""
    kind: Any = type(value)
    if kind is dict:
        yield from _items(path, value)
    elif kind in (list, tuple):
        yield from ((f"{path}[{index}]", item) for index, item in enumerate(value))
    elif kind in (set, frozenset):
        yield from ((f"an element of {path}", item) for item in value)
    elif kind is types.FunctionType:
        yield from _parts_of_function(path, value)
    elif isinstance(value, types.MethodType):
        yield from ((f"{path}.__self__", value.__self__), (f"{path}.__func__", value.__func__))
    elif isinstance(value, functools.partial):
        yield from ((f"{path}.{name}", getattr(value, name)) for name in ("func", "args", "keywords"))
    elif isinstance(value, type):
        yield from ((f"{path}.{name}", item) for name, item in vars(value).items() if not name.startswith("__"))
    elif isinstance(value, BaseException):
        yield from ((f"{path}.args[{index}]", item) for index, item in enumerate(value.args))
        yield from _state(path, vars(value))
    elif kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__:
        yield from _parts_of_instance(path, value)
    else:
        yield from _reduced(path, value.__reduce_ex__(5))


def _items(path: str, mapping: dict[Any, Any]) -> Iterator[Part]:
    for key, item in mapping.items():
        yield f"a key of {path}", key
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


def _parts_of_instance(path: str, value: Any) -> Iterator[Part]:
    yield from _state(path, value.__getstate__())
    if isinstance(value, dict):
        yield from _items(path, value)
    elif isinstance(value, list):
        yield from ((f"{path}[{index}]", item) for index, item in enumerate(value))
    elif isinstance(value, tuple):
        yield from ((f"{path}[{index}]", item) for index, item in enumerate(tuple(value)))


def _state(path: str, state: Any) -> Iterator[Part]:
    if isinstance(state, dict):
        yield from ((f"{path}.{name}", item) for name, item in state.items())
    elif type(state) is tuple and len(state) == 2:
        # The form of classes with __slots__: the instance's dictionary, then its slots.
        yield from _state(path, state[0])
        yield from _state(path, state[1])
    elif state is not None:
        yield f"{path}.__getstate__()", state


def _reduced(path: str, reduced: Any) -> Iterator[Part]:
    if isinstance(reduced, tuple):
        function, arguments, state = *reduced[:2], reduced[2] if len(reduced) > 2 else None
        yield f"{path}.__reduce__()[0]", function
        yield from ((f"{path}.__reduce__()[1][{index}]", item) for index, item in enumerate(arguments))
        yield from _state(path, state)


def _short(value: object) -> str:
    try:
        return reprlib.repr(value)
    except Exception:
        return f"<{type(value).__name__}>"
