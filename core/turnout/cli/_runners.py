"""``turnout runners``: what is there, and what to install for the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..registry import known
from ._output import print_json, print_table

if TYPE_CHECKING:
    from ..registry import RunnerInfo

__all__ = ["list_runners"]


def list_runners(*, as_json: bool) -> None:
    """Print all registered runners."""
    runners = known()
    if as_json:
        print_json([_record(runner) for runner in runners])
    else:
        print_table(("word", "class", "version", "installed"), map(_row, runners))


def _row(runner: RunnerInfo) -> tuple[str, str, str, str]:
    own = f"{runner.distribution} {runner.version}"
    found = [f"{library.name} {library.version}" for library in runner.libraries if library.version]
    return runner.word, runner.target, ", ".join(found) or own, runner.install or "yes"


def _record(runner: RunnerInfo) -> dict[str, Any]:
    return {
        "word": runner.word,
        "class": runner.target,
        "distribution": runner.distribution,
        "version": runner.version,
        "libraries": [library._asdict() for library in runner.libraries],
        "installed": runner.installed,
        "install": runner.install,
    }
