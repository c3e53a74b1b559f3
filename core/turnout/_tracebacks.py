"""Tracebacks that travel, and tracebacks without Turnout's own frames."""

from __future__ import annotations

import functools
import os
import sys
import traceback
import types
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

from ._exceptions import put
from .errors import TurnoutError

__all__ = ["Frame", "frames_of", "is_own", "listing", "printed", "rebuilt", "without_own_frames"]

Frame: TypeAlias = tuple[str, str, int]
"""File name, name of the function, line."""

_OWN_PACKAGES: Final = frozenset({"turnout", "turnout_runners"})


def frames_of(walked: types.TracebackType | None) -> Iterator[Frame]:
    """Yield what is worth keeping of each frame, the outermost first."""
    while walked is not None:
        code = walked.tb_frame.f_code
        # Code that was not made from source may have no lines.
        yield code.co_filename, code.co_name, walked.tb_lineno or 0
        walked = walked.tb_next


def rebuilt(frames: tuple[Frame, ...]) -> types.TracebackType | None:
    """Return a real traceback over frames that never ran, the way of tblib and jinja.

    Python prints it as it prints any other, with source lines where the files can be read.
    """
    made = None
    for filename, name, line in reversed(frames):
        # Instruction -1 is none at all: printing then takes the line that is given, and no columns.
        made = types.TracebackType(made, _frame(filename, name, line), -1, line)
    return made


def listing(frames: tuple[Frame, ...]) -> str:
    """Return the frames as Python prints them, with source lines where the files can be read."""
    return "".join(traceback.format_list([traceback.FrameSummary(file, line, name) for file, name, line in frames]))


def _template() -> Iterator[None]:
    yield


@functools.lru_cache(maxsize=1024)
def _frame(filename: str, name: str, line: int) -> types.FrameType:
    code = _template.__code__.replace(co_filename=filename, co_name=name, co_qualname=name, co_firstlineno=line)
    # The frame of a generator that never began has no caller, so it keeps nothing of this process alive.
    generator: Any = types.FunctionType(code, {"__builtins__": __builtins__})()
    frame: types.FrameType = generator.gi_frame
    return frame


def without_own_frames(error: BaseException) -> BaseException:
    """Take Turnout's own leading frames off an exception, and off those that it refers to; return it.

    Frames further down stay: there a user's code called Turnout. An error that never left Turnout keeps its frames,
    unless Turnout raised it on purpose.
    """
    seen, waiting = set[int](), [error]
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        _strip(found)
        waiting += [other for other in (found.__cause__, found.__context__) if other is not None]
        if isinstance(found, BaseExceptionGroup):
            waiting += found.exceptions
    return error


def _strip(error: BaseException) -> None:
    first = kept = error.__traceback__
    while kept is not None and is_own(kept.tb_frame):
        kept = kept.tb_next
    if kept is not first and (kept is not None or isinstance(error, TurnoutError)):
        put(error, "__traceback__", kept)


def is_own(frame: types.FrameType) -> bool:
    """Return whether a frame is Turnout's own, and not its user's."""
    module = frame.f_globals.get("__name__")
    if not isinstance(module, str) or module.partition(".")[0] not in _OWN_PACKAGES:
        return False
    return module != "turnout.testing" and not module.startswith("turnout.testing.")


def printed(error: BaseException) -> str:
    """Return the traceback of an exception, of its causes and of its members, without frames of Turnout.

    Examples
    --------
    >>> print(printed(ValueError("no rails")), end="")
    ValueError: no rails
    """
    shown = traceback.TracebackException.from_exception(error, compact=True)
    _strip_shown(shown)
    return "".join(shown.format())


def _strip_shown(top: traceback.TracebackException) -> None:
    hidden, outer = _folders(*_OWN_PACKAGES), _folders("asyncio")
    waiting: list[traceback.TracebackException | None] = [top]
    while waiting:
        shown = waiting.pop()
        if shown is None:
            continue
        frames = [frame for frame in shown.stack if not _is_hidden(frame.filename, hidden)]
        # An async flow begins in asyncio's own frames; further down they are the user's business.
        while frames and frames[0].filename.startswith(outer):
            del frames[0]
        shown.stack[:] = frames
        if not frames:
            shown.stack = None  # type: ignore[assignment]  # then Python prints no header either
        waiting += [shown.__cause__, shown.__context__, *(shown.exceptions or ())]


def _is_hidden(filename: str, hidden: tuple[str, ...]) -> bool:
    # The bodies of the conformance kit are users of ours.
    return filename.startswith(hidden) and f"{os.sep}turnout{os.sep}testing{os.sep}" not in filename


def _folders(*packages: str) -> tuple[str, ...]:
    modules = [sys.modules.get(package) for package in packages]
    return tuple(f"{os.path.normpath(folder)}{os.sep}" for module in modules if module for folder in module.__path__)
