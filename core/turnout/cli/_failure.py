"""What a failed flow shows: the user's frames, and none of Turnout's."""

from __future__ import annotations

from .._tracebacks import printed

__all__ = ["text_of"]


def text_of(error: BaseException) -> str:
    """Return the traceback of an exception, of its causes and of its members, without frames of Turnout.

    Examples
    --------
    >>> print(text_of(ValueError("no rails")), end="")
    ValueError: no rails
    """
    return printed(error)
