"""What a class of exceptions keeps and where, and how to read and write it past the class's own methods."""

from __future__ import annotations

import contextlib
import functools
import traceback
import types
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

__all__ = ["Shape", "get", "members_of", "notes_of", "put", "put_member", "report", "shape_of", "text_of"]


class Shape(NamedTuple):
    """What there is to know about a class of exceptions."""

    members: dict[str, Any]
    """Descriptors of what is kept outside of ``__dict__``: by C code, or in ``__slots__``."""
    new: Callable[..., Any]
    """The ``__new__`` of its C base, which takes any class below it and no arguments."""
    reduces: bool
    """The class says by itself how it is pickled."""


def _studied(cls: Any) -> Shape:
    members: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        members |= {name: found for name, found in vars(base).items() if _is_member(name, found)}
    makers = (vars(base).get("__new__") for base in cls.__mro__)
    new = next(maker for maker in makers if isinstance(maker, types.BuiltinMethodType))
    return Shape(members, new, any(_says(cls, name) for name in ("__reduce__", "__reduce_ex__", "__setstate__")))


shape_of: Callable[[Any], Shape] = functools.lru_cache(maxsize=256)(_studied)
"""Return what there is to know about a class of exceptions."""


def _is_member(name: str, found: object) -> bool:
    if name == "args" or (name.startswith("__") and name.endswith("__")):
        return False
    return isinstance(found, types.MemberDescriptorType | types.GetSetDescriptorType)


def _says(cls: type, name: str) -> bool:
    """Return whether the class has such a method of its own, not older than its ``__init__``.

    One that was inherited knows nothing of what a younger ``__init__`` adds, and would lose it in silence.
    """
    owner = _owner(cls, name)
    return owner.__module__ != "builtins" and issubclass(owner, _owner(cls, "__init__"))


def _owner(cls: type, name: str) -> type:
    return next((base for base in cls.__mro__ if name in vars(base)), object)


def members_of(error: BaseException, shape: Shape) -> Iterator[tuple[str, Any]]:
    """Yield name and value of what the exception keeps outside of ``args`` and ``__dict__``."""
    for name, descriptor in shape.members.items():
        # The object whose attribute is missing may be anything, of any size; Python's own pickling leaves it out too.
        if descriptor is _ATTRIBUTE_OWNER or descriptor.__objclass__ is BaseExceptionGroup:
            continue
        value = _member(descriptor, error)
        if value is not _UNSET:
            yield name, value


def _member(descriptor: Any, error: BaseException) -> Any:
    try:
        return descriptor.__get__(error)
    except Exception:
        return _UNSET


_UNSET: Final = object()
_ATTRIBUTE_OWNER: Final = vars(AttributeError)["obj"]


def put_member(descriptor: Any, error: BaseException, value: Any) -> None:
    """Set a member, if its class still has it."""
    # OSError tells a file name that is None from one that is not there, which reads as None too.
    if _member(descriptor, error) is value:
        return
    # Read-only, or gone in this version of the class: its other parts matter more.
    with contextlib.suppress(Exception):
        descriptor.__set__(error, value)


def get(error: BaseException, name: str) -> Any:
    """Read ``args``, ``__cause__`` and the like, whatever the class itself makes of the name."""
    return vars(BaseException)[name].__get__(error)


def put(error: BaseException, name: str, value: Any) -> None:
    """Set ``args``, ``__cause__`` and the like, past ``__setattr__``, which frozen dataclasses forbid."""
    vars(BaseException)[name].__set__(error, value)


def notes_of(error: BaseException) -> tuple[str, ...] | None:
    """Return the exception's notes, if it has any."""
    notes = vars(error).get("__notes__")
    if not isinstance(notes, list | tuple):
        return None
    return tuple(note for note in notes if type(note) is str)


def text_of(error: BaseException) -> str:
    """Return ``str(error)``, which its class may have broken."""
    try:
        return str(error)
    except Exception:
        return "<its text can't be had>"


def report(error: BaseException) -> str:
    """Return what Python prints of the exception, with its traceback."""
    try:
        return "".join(traceback.format_exception(error))
    except Exception:
        return f"{type(error).__qualname__}: {text_of(error)}"
