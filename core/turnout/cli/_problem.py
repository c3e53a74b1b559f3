"""What the user has typed wrong."""

import click

__all__ = ["UsageProblem", "one_line"]


class UsageProblem(click.ClickException):
    """The command can't be carried out as it was typed: shown as one line, and the exit status is 2."""


def one_line(text: str) -> str:
    r"""Return a text without line breaks.

    Examples
    --------
    >>> one_line("No such\n  thing.\n")
    'No such thing.'
    """
    return " ".join(filter(None, map(str.strip, text.splitlines())))
