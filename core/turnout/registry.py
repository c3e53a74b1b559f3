"""From what a user writes to a runner: an object, a class, a word with options, or a URL.

A *word* is the name of an entry point in the group ``turnout.runners``. Options follow it, as a query or after a
colon, and the first may do without its name::

    thread                                      ThreadPoolTaskRunner()
    thread?max_workers=4&thread_name_prefix=x   ThreadPoolTaskRunner(max_workers=4, thread_name_prefix="x")
    thread:max_workers=4,thread_name_prefix=x   the same
    thread:4                                    ThreadPoolTaskRunner(max_workers=4)

Values are Python literals (``true``, ``false`` and ``none`` in any case), and text where they are not. A separator
inside brackets separates nothing, and a query may write any character as ``%26``.

A *URL* goes whole to the ``from_url`` of the class that claims its scheme in the group ``turnout.schemes``. A class
that nobody registered is named as ``package.module:Class``, with the same options behind it.
"""

from __future__ import annotations

import functools
import re
import sys
from typing import TYPE_CHECKING, NoReturn

from ._installed import Library, RunnerInfo, claimant, known, registered, requirement, target
from ._options import accepted, settings
from ._secrets import secrets_hidden
from .errors import MissingRunnerLibraryError, RunnerError, RunnerOptionError, UnknownRunnerError
from .runner import TaskRunner

if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.metadata import EntryPoint

__all__ = ["Library", "RunnerInfo", "known", "look_up", "resolve", "word_of"]

_NAME = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_WORD = re.compile(r"([^?:]*)(?:([?:])(.*))?", re.DOTALL)
_CLASS = re.compile(rf"({_NAME}:{_NAME})(?:([?:])(.*))?", re.DOTALL)


def resolve(spec: TaskRunner | type[TaskRunner] | str) -> TaskRunner:
    """Return the runner that ``spec`` stands for. The same word gives an equal runner each time; nothing is started.

    Parameters
    ----------
    spec
        A runner, which is returned as it is; a runner class, which is called without arguments; or a word, a URL or
        ``"package.module:Class"``, as told at the top of :mod:`turnout.registry`.

    Raises
    ------
    UnknownRunnerError
        If nothing installed answers to the word or URL.
    MissingRunnerLibraryError
        If the runner is known but what it stands on is not installed; the text ends with the pip command.
    RunnerOptionError
        If the runner lacks an option that was given, or refuses its value.
    RunnerError
        If the runner's class can't be loaded, or several distributions claim the word.
    TypeError
        If ``spec`` is something else.

    Examples
    --------
    >>> from turnout.registry import resolve
    >>> resolve("thread?max_workers=4")
    ThreadPoolTaskRunner(max_workers=4)
    >>> resolve("thread:4") == resolve("thread:max_workers=4")
    True
    """
    if isinstance(spec, TaskRunner):
        return spec
    if isinstance(spec, str):
        with secrets_hidden():
            return _from_text(spec.strip())
    return _from_class(spec)


def look_up(spec: str) -> RunnerInfo | None:
    """Return what is known of the runner that a word or URL names; None if none is registered for it.

    Nothing is imported. If several distributions claim the word, the first is returned.

    Examples
    --------
    >>> from turnout.registry import look_up
    >>> look_up("thread?max_workers=4").target
    'turnout_runners.thread:ThreadPoolTaskRunner'
    >>> look_up("package.module:Class") is None
    True
    """
    word = _word_of(spec.strip())
    return next((info for info in known() if info.word == word), None)


def word_of(runner: TaskRunner) -> str:
    """Return the word by which a runner is registered; the name of its class if it is not.

    Examples
    --------
    >>> from turnout_runners.thread import ThreadPoolTaskRunner
    >>> word_of(ThreadPoolTaskRunner(max_workers=2))
    'thread'
    """
    cls = type(runner)
    words = [
        word
        for word, points in registered().items()
        for point in points
        # What is not loaded is not its class.
        if not word.endswith("://") and getattr(sys.modules.get(point.module), point.attr or "", None) is cls
    ]
    # Of several the one that its module goes by.
    return min(words, key=lambda word: (word not in cls.__module__, word), default=cls.__name__)


def _from_class(spec: object) -> TaskRunner:
    if isinstance(spec, type) and issubclass(spec, TaskRunner):
        return _made(spec, {}, spec.__name__)
    raise TypeError(
        "A task runner is an object or a class derived from turnout.TaskRunner, a word such as 'thread' or "
        f"'thread?max_workers=4', or a URL; not {spec!r}"
    )


def _from_text(text: str) -> TaskRunner:
    url = _URL.match(text)
    if url:
        return _from_url(url.group().lower(), text)
    # Words first: an option may look like a class, as in "thread:auto".
    match = _WORD.fullmatch(text)
    if not match or not claimant(match.group(1)):
        match = _CLASS.fullmatch(text)
    if not match:
        _refuse(text)
    word, separator, options = match.groups("")
    cls = _load(word)
    given = settings(cls, word, separator, options) if separator else {}
    return _made(cls, given, word)


def _from_url(scheme: str, url: str) -> TaskRunner:
    if not claimant(scheme):
        _refuse(url)
    cls = _load(scheme)
    from_url: Callable[[str], TaskRunner] | None = getattr(cls, "from_url", None)
    if from_url is None:
        raise RunnerError(f"{cls.__module__}:{cls.__qualname__} claims {scheme} but has no class method from_url(url)")
    try:
        return from_url(url)
    except RunnerError:
        raise
    except Exception as error:
        raise RunnerOptionError(f"{cls.__name__} can't be made from {url!r}: {_told(error)}") from error


def _made(cls: type[TaskRunner], given: dict[str, object], word: str) -> TaskRunner:
    try:
        return cls(**given)
    except ModuleNotFoundError as error:
        raise _missing(word, error.name or str(error), error.name or "") from error
    except Exception as error:
        if isinstance(error, RunnerError) and not isinstance(error, RunnerOptionError):
            raise
        raise RunnerOptionError(f"Runner {word!r} can't be made: {_told(error)}. {accepted(cls)}") from error


@functools.cache
def _load(word: str) -> type[TaskRunner]:
    point = claimant(word) or _unregistered(word)
    try:
        loaded = point.load()
    except ImportError as error:
        raise _import_failure(word, point, error) from error
    except Exception as error:
        raise RunnerError(f"Runner {word!r} can't be loaded from {target(point)}: {_told(error)}") from error
    if isinstance(loaded, type) and issubclass(loaded, TaskRunner):
        return loaded
    raise RunnerError(f"Runner {word!r} is {loaded!r}, which is not a class derived from turnout.TaskRunner")


def _unregistered(path: str) -> EntryPoint:
    from importlib.metadata import EntryPoint

    return EntryPoint(name=path, value=path, group="")


def _import_failure(word: str, point: EntryPoint, error: ImportError) -> RunnerError:
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        command = f"pip install --upgrade {requirement(point, None)}"
        problem = f"Runner {word!r} can't import what it needs: {error}. Perhaps a version is too old"
        return MissingRunnerLibraryError(f"{problem}: {command}", name=error.name)
    if not f"{point.module}.".startswith(f"{error.name}."):
        return _missing(word, error.name, requirement(point, error.name.partition(".")[0]))
    if point.dist is None:
        return UnknownRunnerError(_unknown(word))
    problem = f"Runner {word!r} is registered as {target(point)}, but there is no module {error.name}"
    return RunnerError(f"{problem}. Install it again with: pip install --force-reinstall {point.dist.name}")


def _missing(word: str, module: str, needed: str) -> MissingRunnerLibraryError:
    problem = f"Runner {word!r} needs {module}, which is not installed"
    return MissingRunnerLibraryError(f"{problem}. Install it with: pip install {needed}", name=module)


def _refuse(text: str) -> NoReturn:
    raise UnknownRunnerError(_unknown(text))


def _unknown(text: str) -> str:
    import difflib

    words = sorted(registered())
    if not words:
        return (
            f"No runner answers to {text!r}: none is registered at all. Runners are found in installed distributions, "
            "not in folders on the path. Install this one with: pip install turnout"
        )
    near = difflib.get_close_matches(_word_of(text).lower(), words, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"No runner answers to {text!r}. Known: {', '.join(words)}.{hint}"


def _word_of(text: str) -> str:
    url = _URL.match(text)
    return url.group().lower() if url else re.split("[?:]", text)[0]


def _told(error: Exception) -> str:
    text = str(error) if isinstance(error, RunnerOptionError) else f"{type(error).__name__}: {error}"
    return text.rstrip(".")
