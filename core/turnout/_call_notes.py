"""What a failed call says of itself on its exception, where somebody asks for that: ``turnout run`` does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ._decorated import signature_of
from ._secrets import without_secrets

if TYPE_CHECKING:
    from ._call import Call

__all__ = ["NOTES", "in_brief"]

# How many characters a value has at most, and all arguments of a call; how many items of a collection are shown.
_LONGEST_VALUE: Final = 60
_LONGEST: Final = 300
_MOST_ITEMS: Final = 4
_DEEPEST: Final = 2
# So much of a text is searched for secrets: only its beginning is shown.
_SEARCHED: Final = 2000
_BRACKETS: Final[dict[type, str]] = {list: "[]", tuple: "()", set: "{}", frozenset: "{}"}


class _Notes:
    """Whether exceptions of calls that fail say which call that was."""

    def __init__(self) -> None:
        self.are_wanted = False

    def add(self, call: Call, error: BaseException) -> None:
        """Note on an exception which call raised it, at which attempt, and where."""
        call_text = in_brief(call.task.name, call.task.fn, call.args, call.kwargs)
        worker = "" if call.trouble is None else call.trouble.worker
        place = f", on {worker}" if worker else ""
        error.add_note(f"In task run {call.future.name!r}: {call_text}, attempt {max(1, call.attempt)}{place}.")


NOTES: Final = _Notes()


def in_brief(name: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Return a call as text: short, whatever its arguments are, and without passwords.

    Examples
    --------
    >>> def load(path, *, password, sizes=()): ...
    >>> in_brief("load", load, ("a.csv",), {"password": "hunter2", "sizes": [1, 2, 3, 4, 5]})
    "load(path='a.csv', password='***', sizes=[1, 2, 3, 4, ...])"
    >>> in_brief("load", load, (b"x" * 1_000_000,), {})
    'load(path=<1000000 bytes>)'
    """
    told = ", ".join(_argument(key, value) for key, value in _named(function, args, kwargs))
    return f"{name}({told if len(told) <= _LONGEST else told[: _LONGEST - 3] + '...'})"


def _named(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return arguments with the names of their parameters, which may tell that they are secret."""
    signature = signature_of(function)
    names: list[str] = []
    for parameter in () if signature is None else signature.parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            break
        names.append(parameter.name)
    names += [""] * (len(args) - len(names))
    return [*zip(names, args, strict=False), *kwargs.items()]


def _argument(name: str, value: Any) -> str:
    text = _value(value, 0)
    return without_secrets(f"{name}={text}") if name else without_secrets(text)


def _value(value: Any, depth: int) -> str:
    kind = type(value)
    try:
        if kind is str:
            # Before it is cut, or what tells a secret might be cut off.
            return _cut(repr(without_secrets(value[:_SEARCHED])))
        if kind in (bytes, bytearray, memoryview):
            return f"<{len(value)} bytes>"
        if kind is dict or kind in _BRACKETS:
            return _items(value, depth)
        return _cut(without_secrets(repr(value)[:_SEARCHED]))
    except Exception as error:  # a __repr__ of the user's may raise
        return f"<{kind.__name__} whose repr raised {type(error).__name__}>"


def _items(value: Any, depth: int) -> str:
    brackets = _BRACKETS.get(type(value), "{}")
    opening, closing = brackets[0], brackets[1]
    if depth >= _DEEPEST:
        return f"{opening}...{closing}"
    shown: list[str] = []
    for item in value:
        if len(shown) == _MOST_ITEMS:
            shown.append("...")
            break
        told = _value(item, depth + 1)
        shown.append(f"{told}: {_value(value[item], depth + 1)}" if isinstance(value, dict) else told)
    return f"{opening}{', '.join(shown)}{',' if type(value) is tuple and len(value) == 1 else ''}{closing}"


def _cut(text: str) -> str:
    line = text.partition("\n")[0]
    return line if line == text and len(line) <= _LONGEST_VALUE else f"{line[: _LONGEST_VALUE - 3]}..."
