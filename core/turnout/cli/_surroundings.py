"""What is here: Python, the machine and what this process may use of it, and what each registered runner would do."""

from __future__ import annotations

import os
import platform
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from .._choice import ENVIRONMENT_VARIABLE
from .._cluster import versions
from .._machine import memory, processors, usable_processors
from .._options import accepted
from ..errors import MissingRunnerLibraryError, RunnerError, RunnerOptionError
from ..registry import known, resolve
from ..runner import Plan
from ._findings import Finding
from ._problem import one_line

if TYPE_CHECKING:
    from .._installed import RunnerInfo
    from ..runner import TaskRunner

__all__ = ["Prospect", "facts_of_machine", "limit_findings", "prospects"]


class Prospect(NamedTuple):
    """A registered runner, and what it would do here."""

    info: RunnerInfo
    plan: Plan = Plan()
    finding: Finding | None = None


def facts_of_machine() -> dict[str, Any]:
    """Return what is here, as JSON can hold it.

    Examples
    --------
    >>> facts_of_machine()["processors"]["usable"] >= 1
    True
    """
    there, room = processors(), memory()
    return {
        "versions": versions(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "processors": {**there._asdict(), "usable": there.usable},
        "memory": {**room._asdict(), "usable": room.usable},
    }


def prospects() -> list[Prospect]:
    """Return all registered runners. The classes of those that are installed are imported, and nothing is started."""
    return [_prospect(info) for info in known()]


def limit_findings() -> list[Finding]:
    """Return what is worth knowing about the limits of this process, and about its environment."""
    return [finding for finding in (_slurm_finding(), _environment_finding()) if finding]


def _prospect(info: RunnerInfo) -> Prospect:
    if info.install is not None:
        return Prospect(info, finding=Finding("note", info.word, f"It is not installed. Install it: {info.install}"))
    if info.word.endswith("://"):
        # What is there, only the address tells.
        return Prospect(info)
    try:
        runner = resolve(info.word)
        plan = runner.plan()
    except (RunnerOptionError, MissingRunnerLibraryError) as error:
        return Prospect(info, finding=Finding("note", info.word, one_line(str(error))))
    except RunnerError as error:
        return Prospect(info, finding=Finding("problem", info.word, one_line(str(error))))
    except Exception as error:
        told = one_line(f"Its plan can't be had: {type(error).__name__}: {error}. Tell those who wrote it.")
        return Prospect(info, finding=Finding("problem", info.word, told))
    return Prospect(info, plan, _judged(info.word, runner, plan))


def _judged(word: str, runner: TaskRunner, plan: Plan) -> Finding | None:
    usable = usable_processors()
    # On threads, more calls than processors are fine: they wait for other things.
    if runner.capabilities.in_process or plan.slots is None or plan.slots <= usable:
        return None
    return Finding(
        "note",
        word,
        f"It would run {plan.slots} calls at once, and this process may use {usable} processor{'s' * (usable > 1)}. "
        f"Say how many it is to run. {accepted(type(runner))}",
    )


def _slurm_finding() -> Finding | None:
    there = processors()
    without = there._replace(slurm=None).usable
    if there.usable == without:
        return None
    return Finding(
        "note",
        "SLURM",
        f"It gives this task {there.usable} of the {without} processors on which it may run, so runners start no more "
        "workers. Ask for more with --cpus-per-task, or say how many workers the runner is to start.",
    )


def _environment_finding() -> Finding | None:
    word = os.environ.get(ENVIRONMENT_VARIABLE)
    if not word:
        return None
    try:
        return Finding(
            "ok", ENVIRONMENT_VARIABLE, f"Flows run on {resolve(word)!r}, save where they are told otherwise"
        )
    except RunnerError as error:
        return Finding("problem", ENVIRONMENT_VARIABLE, one_line(str(error)))
