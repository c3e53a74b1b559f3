"""``turnout runners``: what is there, and what to install for the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..registry import known
from ._output import print_json, print_table

if TYPE_CHECKING:
    from ..registry import RunnerInfo

__all__ = ["list_runners", "record_of", "versions_of"]


def list_runners(*, as_json: bool) -> None:
    """Print all registered runners."""
    runners = known()
    if as_json:
        print_json([record_of(runner) for runner in runners])
    else:
        print_table(("word", "class", "version", "installed"), map(_row, runners))


def _row(runner: RunnerInfo) -> tuple[str, str, str, str]:
    return runner.word, runner.target, versions_of(runner), runner.install or "yes"


def versions_of(runner: RunnerInfo) -> str:
    """Return the versions of a runner's libraries that are installed; of its distribution if it has none."""
    found = [f"{library.name} {library.version}" for library in runner.libraries if library.version]
    return ", ".join(found) or f"{runner.distribution} {runner.version}"


def record_of(runner: RunnerInfo) -> dict[str, Any]:
    """Return what is known of a runner, as JSON can hold it."""
    return {
        "word": runner.word,
        "class": runner.target,
        "distribution": runner.distribution,
        "version": runner.version,
        "libraries": [library._asdict() for library in runner.libraries],
        "installed": runner.installed,
        "install": runner.install,
    }
