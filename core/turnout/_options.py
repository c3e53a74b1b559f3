"""The options that follow a runner's word, as in ``thread?max_workers=4``: from text to settings of a class."""

from __future__ import annotations

import ast
import functools
import inspect
from typing import TYPE_CHECKING

from .errors import RunnerOptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .runner import TaskRunner

__all__ = ["accepted", "settings"]

_CONSTANTS = {"true": True, "false": False, "none": None}
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def settings(cls: type[TaskRunner], word: str, separator: str, options: str) -> dict[str, object]:
    """Return the arguments that ``options``, written behind a ``?`` or ``:``, mean for ``cls``.

    Raises
    ------
    RunnerOptionError
        If ``cls`` has no such parameter, or an option is empty or given twice.
    """
    found: dict[str, object] = {}
    for position, part in enumerate(_split(options, "&" if separator == "?" else ",")):
        name, value = _name_and_value(cls, word, position, part)
        if name in found:
            raise RunnerOptionError(f"Option {name!r} of runner {word!r} is given twice")
        found[name] = _value(_decoded(value) if separator == "?" else value)
    return found


def accepted(cls: type[TaskRunner]) -> str:
    """Return one sentence that names the options of a runner class with their defaults."""
    shown = [_shown(parameter) for parameter in _parameters(cls).values()]
    return f"It takes {', '.join(shown)}." if shown else "It takes no options."


def _name_and_value(cls: type[TaskRunner], word: str, position: int, part: str) -> tuple[str, str]:
    if not part.strip():
        raise RunnerOptionError(f"An option of runner {word!r} is empty. {accepted(cls)}")
    name, equals, value = part.partition("=")
    name = name.strip()
    if not (equals and name.isidentifier()):
        return _first(cls, word, position, part), part
    if not _takes(cls, name):
        raise RunnerOptionError(f"Runner {word!r} has no option {name!r}.{_nearest(cls, name)} {accepted(cls)}")
    return name, value


def _first(cls: type[TaskRunner], word: str, position: int, part: str) -> str:
    names = [name for name, parameter in _parameters(cls).items() if parameter.kind in _NAMED]
    if position or not names:
        raise RunnerOptionError(
            f"Runner {word!r} can't tell which option {part!r} is: write name=value. {accepted(cls)}"
        )
    return names[0]


def _takes(cls: type[TaskRunner], name: str) -> bool:
    parameters = _parameters(cls)
    if name in parameters:
        return parameters[name].kind in _NAMED
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def _nearest(cls: type[TaskRunner], name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, _parameters(cls), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


@functools.cache
def _parameters(cls: type[TaskRunner]) -> Mapping[str, inspect.Parameter]:
    # A class without an __init__ of its own has object's, whose signature claims to take anything.
    if cls.__init__ is object.__init__:
        return {}
    _, *parameters = inspect.signature(cls.__init__).parameters.items()
    return dict(parameters)


def _shown(parameter: inspect.Parameter) -> str:
    if parameter.kind is parameter.VAR_KEYWORD:
        return f"**{parameter.name}"
    return parameter.name if parameter.default is parameter.empty else f"{parameter.name}={parameter.default!r}"


def _split(text: str, separator: str) -> list[str]:
    """Split at separators, save for those inside brackets."""
    parts: list[str] = []
    open_part = None
    for piece in text.split(separator):
        part = piece if open_part is None else f"{open_part}{separator}{piece}"
        open_part = part if _is_open(part) else None
        if open_part is None:
            parts.append(part)
    return parts if open_part is None else [*parts, open_part]


def _is_open(text: str) -> bool:
    return sum(map(text.count, "([{")) > sum(map(text.count, ")]}"))


def _decoded(text: str) -> str:
    from urllib.parse import unquote

    return unquote(text)


def _value(text: str) -> object:
    text = text.strip()
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text
