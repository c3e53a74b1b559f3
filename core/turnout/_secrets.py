"""Passwords and tokens in what users write about their clusters: hidden where it is shown."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from .errors import RunnerError

__all__ = ["secrets_hidden", "secrets_in", "without_secrets"]

_HIDDEN: Final = "***"
# Not "key" alone: paths of key files help to find what is wrong.
_WORDS: Final = r"passw(?:or)?d|passphrase|secret|token|credential|api_?key|access_?key|account_?key|authorization"
_NAMED: Final = rf"\w*(?:{_WORDS})\w*"
_TEXT: Final = r"""[bfru]*(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_SEVERAL: Final = r"\[[^\]]*\]|\([^)]*\)|\{[^}]*\}"
# Compiled by their first use, for most programs have none. As an option or in a query, as an entry of a dictionary, and
# in a header.
_OPTION: Final = rf"(?i)(?<!\w)({_NAMED}\s*=\s*)({_TEXT}|{_SEVERAL}|[^\s&,;)\]}}'\"]+)"
_ENTRY: Final = rf"""(?i)((['"]){_NAMED}\2\s*:\s*)({_TEXT}|{_SEVERAL}|[^\s,)\]}}]+)"""
_BEARER: Final = r"\b((?:Bearer|Basic)\s+)[\w.~+/=-]{8,}"
# What stands before the host of an address: a name and a password, or a token alone.
_ADDRESS: Final = r"(?i)(\b[a-z][a-z0-9+.-]*://)[^\s/?#'\"@]*(?:@[^\s/?#'\"@]*)*@"
_BARE_ADDRESS: Final = r"(?<![\w/.@:-])[\w.+%-]+:[^\s/:@'\"]+@(?=[\w.\[-])"
_PRIVATE_KEY: Final = r"(?s)(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)"
# Shorter ones are words like any others, and would be hidden everywhere.
_SHORTEST: Final = 4


def without_secrets(text: str, known: Iterable[str] = ()) -> str:
    """Return a text in which passwords, tokens and private keys are hidden.

    They are found by what stands before them: names such as ``password`` and ``api_key``, or the beginning of an
    address. A secret that nothing announces is not.

    Parameters
    ----------
    text
        The text.
    known
        What is secret whatever stands before it.

    Examples
    --------
    >>> without_secrets("tls://user:hunter2@host:8786")
    'tls://***@host:8786'
    >>> without_secrets("Runner(address='head:6379', init_kwargs={'_redis_password': 'hunter2'})")
    "Runner(address='head:6379', init_kwargs={'_redis_password': '***'})"
    >>> without_secrets("ray://head:10001?token=hunter2&num_cpus=4")
    'ray://head:10001?token=***&num_cpus=4'
    """
    for secret in sorted(set(known), key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    text = re.sub(_PRIVATE_KEY, rf"\1{_HIDDEN}\2", text)
    text = re.sub(_ADDRESS, rf"\1{_HIDDEN}@", text)
    text = re.sub(_BARE_ADDRESS, f"{_HIDDEN}@", text)
    text = re.sub(_BEARER, rf"\1{_HIDDEN}", text)
    text = re.sub(_ENTRY, lambda match: match[1] + _masked(match[3]), text)
    return re.sub(_OPTION, lambda match: match[1] + _masked(match[2]), text)


def _masked(value: str) -> str:
    """Return what stands for a value: a text stays one, and what says that there is none stays."""
    if value in ("None", "''", '""', "True", "False", "..."):
        return value
    return f"{value[-1]}{_HIDDEN}{value[-1]}" if value[-1] in "'\"" else _HIDDEN


def secrets_in(settings: object) -> set[str]:
    """Return the texts in settings whose names, or whose place in an address, say that they are secret."""
    found: set[str] = set()
    todo: list[tuple[object, bool]] = [(settings, False)]
    seen: set[int] = set()
    while todo:
        value, is_secret = todo.pop()
        if isinstance(value, str):
            found |= {value} if is_secret else _passwords(value)
        elif id(value) in seen:
            continue
        elif isinstance(value, Mapping):
            seen.add(id(value))
            todo += [(item, is_secret or _is_name(name)) for name, item in value.items()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            seen.add(id(value))
            todo += [(item, is_secret) for item in value]
    return {secret for secret in found if len(secret) >= _SHORTEST}


def _is_name(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(_NAMED, name, re.IGNORECASE) is not None


def _passwords(text: str) -> set[str]:
    return {match[1] for match in re.finditer(r"://[^\s/?#:@]*:?([^\s/?#@]+)@", text)}


@contextlib.contextmanager
def secrets_hidden(settings: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Hide the secrets in errors about runners that leave the block.

    A cause that shows one is left out: its text is part of the error's own, and Python would print it once more.

    Parameters
    ----------
    settings
        Of the runner that the block is about.
    """
    try:
        yield
    except RunnerError as error:
        _hide(error, secrets_in(settings))
        raise


def _hide(error: RunnerError, known: set[str]) -> None:
    error.args = tuple(without_secrets(part, known) if isinstance(part, str) else part for part in error.args)
    if isinstance(error, ImportError) and error.msg:
        error.msg = without_secrets(error.msg, known)
    if any(_tells(cause, known) for cause in _behind(error)):
        error.__cause__ = error.__context__ = None


def _behind(error: BaseException) -> Iterator[BaseException]:
    todo = [error.__cause__, error.__context__]
    seen: set[int] = set()
    while todo:
        other = todo.pop()
        if other is None or id(other) in seen:
            continue
        seen.add(id(other))
        yield other
        todo += [other.__cause__, other.__context__]


def _tells(error: BaseException, known: set[str]) -> bool:
    try:
        text = str(error)
    except Exception:
        return False
    return without_secrets(text, known) != text
