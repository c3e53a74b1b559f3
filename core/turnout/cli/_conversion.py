"""From the text behind ``-p name=`` to the value that a parameter's annotation asks for."""

from __future__ import annotations

import collections.abc
import datetime as dt
import enum
import json
import types
import typing
from pathlib import Path
from typing import Any, Final

__all__ = ["convert"]

_TRUE: Final = ("true", "yes", "on", "1")
_FALSE: Final = ("false", "no", "off", "0")
_TRUTHS: Final[dict[str, Any]] = {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)}
_NOTHING: Final = ("null", "none")

_LISTS: Final = frozenset(
    {list, tuple, set, frozenset}
    | {collections.abc.Sequence, collections.abc.MutableSequence, collections.abc.Set}
    | {collections.abc.Collection, collections.abc.Iterable}
)
_FORMS: Final = frozenset({typing.Annotated, typing.Literal, typing.Union, types.UnionType})
_DICTS: Final = frozenset({dict, collections.abc.Mapping, collections.abc.MutableMapping})


def convert(text: str, wanted: Any) -> Any:
    """Return the value that ``text`` stands for where ``wanted`` is the annotation.

    Text is taken as it is typed where text is wanted; numbers, truths, paths, dates, members of enums and literals are
    read as such; lists and mappings are read as JSON. Anything else is JSON if it parses, and text if not.

    Raises
    ------
    ValueError
        If ``text`` can't be what is wanted.

    Examples
    --------
    >>> convert("3", str), convert("3", int | None), convert("[1, 2]", tuple[float, ...]), convert("3", Any)
    ('3', 3, (1.0, 2.0), 3)
    """
    if wanted in _READERS:
        return _READERS[wanted](text)
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is typing.Annotated:
        return convert(text, arguments[0])
    if origin in (typing.Union, types.UnionType):
        return _first(text, arguments)
    if origin is typing.Literal:
        return _named(text, {str(choice): choice for choice in arguments})
    if isinstance(wanted, type) and issubclass(wanted, enum.Enum):
        return _named(text, {str(member.value): member for member in wanted} | dict(wanted.__members__))
    return _from_json(text, wanted)


def _first(text: str, wanted: tuple[Any, ...]) -> Any:
    if types.NoneType in wanted and text.lower() in _NOTHING:
        return None
    # Everything can be text, so that comes last.
    for one in sorted(wanted, key=lambda one: one is str):
        try:
            return convert(text, one)
        except ValueError:
            continue
    raise ValueError(text)


def _named(text: str, choices: dict[str, Any]) -> Any:
    if text not in choices:
        raise ValueError(text)
    return choices[text]


def _from_json(text: str, wanted: Any) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        if _kind(wanted) in _LISTS | _DICTS:
            raise
        return text
    return _fit(value, wanted)


def _fit(value: Any, wanted: Any) -> Any:
    """Return a value that was read from JSON as what is wanted, for as far as annotations of collections tell."""
    kind, arguments = _kind(wanted), typing.get_args(wanted)
    if kind in _LISTS:
        return _fit_list(value, kind, arguments)
    if kind in _DICTS:
        return _fit_dict(value, arguments)
    if not _is_told_by_text(wanted):
        return value
    if wanted is str and not isinstance(value, str):
        raise ValueError(value)
    return convert(value if isinstance(value, str) else json.dumps(value), wanted)


def _is_told_by_text(wanted: Any) -> bool:
    if wanted in _READERS or typing.get_origin(wanted) in _FORMS:
        return True
    return isinstance(wanted, type) and issubclass(wanted, enum.Enum)


def _fit_list(value: Any, kind: Any, arguments: tuple[Any, ...]) -> Any:
    if not isinstance(value, list):
        raise ValueError(value)
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        wanted = list(arguments)
    else:
        wanted = [arguments[0] if arguments else Any] * len(value)
    fitted = [_fit(item, one) for item, one in zip(value, wanted, strict=True)]
    return kind(fitted) if kind in (tuple, set, frozenset) else fitted


def _fit_dict(value: Any, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ValueError(value)
    key, item = arguments or (Any, Any)
    return {_fit(name, key): _fit(one, item) for name, one in value.items()}


def _kind(wanted: Any) -> Any:
    return typing.get_origin(wanted) or wanted


def _truth(text: str) -> bool:
    return bool(_named(text.lower(), _TRUTHS))


def _nothing(text: str) -> None:
    if text.lower() not in _NOTHING:
        raise ValueError(text)


_READERS: Final[dict[Any, collections.abc.Callable[[str], Any]]] = {
    str: str,
    int: int,
    float: float,
    bool: _truth,
    None: _nothing,
    types.NoneType: _nothing,
    Path: Path,
    dt.date: dt.date.fromisoformat,
    dt.datetime: dt.datetime.fromisoformat,
}
