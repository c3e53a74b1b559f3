"""``turnout doctor``: what is here, how a runner does here, and what to do about what is found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from .._resources import shown_size
from .._secrets import secrets_in, without_secrets
from ..errors import MissingRunnerLibraryError, RunnerError
from ..registry import look_up, resolve
from ._findings import Finding
from ._output import claim_standard_output, print_json, print_table
from ._problem import UsageProblem, one_line
from ._reach import reached
from ._runners import record_of, versions_of
from ._supervised import Examined, examined
from ._surroundings import facts_of_machine, limit_findings, prospects

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ..runner import TaskRunner
    from ._surroundings import Prospect

__all__ = ["doctor"]

_MEASURED: Final = (
    "start_seconds",
    "slots",
    "first_call_seconds",
    "driver",
    "worker",
    "latency_seconds",
    "bandwidth",
    "cost_seconds",
    "sockets",
)


def doctor(word: str | None, *, as_json: bool, seconds: float) -> int:
    """Look at this machine, or at the runner that ``word`` names; print what is found, and return the exit status.

    Raises
    ------
    UsageProblem
        If the word names no runner, or one with options that it lacks.
    """
    own = claim_standard_output() if as_json else None
    facts = facts_of_machine()
    runners = prospects() if word is None else []
    runner, findings = _examined(word, seconds) if word is not None else (None, _found_here(runners))
    if own:
        shown = [_record_of(one) for one in runners] if word is None else None
        print_json({**facts, "runners": shown, "runner": runner, "findings": [one._asdict() for one in findings]}, own)
    else:
        if word is None:
            _show_here(facts, runners)
        _show(findings)
    return 1 if any(finding.level == "problem" for finding in findings) else 0


def _found_here(runners: Sequence[Prospect]) -> list[Finding]:
    # Those who claim one word have the same finding.
    of_runners = dict.fromkeys(runner.finding for runner in runners if runner.finding)
    return [*limit_findings(), *of_runners]


# One runner


def _examined(word: str, seconds: float) -> tuple[dict[str, Any], list[Finding]]:
    info = look_up(word)
    if info is not None and info.install is not None:
        missing = Finding("problem", "installed", f"What it needs is not installed. Install it: {info.install}")
        return _runner_record(word, None, {}), [missing]
    try:
        runner = resolve(word)
    except MissingRunnerLibraryError as error:
        return _runner_record(word, None, {}), [Finding("problem", "installed", one_line(str(error)))]
    except RunnerError as error:
        raise UsageProblem(str(error)) from error
    found = _tried(word, runner, [library.name for library in info.libraries] if info else [], seconds)
    return _runner_record(word, runner, found.measured), found.findings


def _tried(word: str, runner: TaskRunner, libraries: Sequence[str], seconds: float) -> Examined:
    """Start and measure a runner, unless it is clear that nobody is where it connects to."""
    address = runner._settings.get("address")
    at_address = reached(address) if isinstance(address, str) else None
    before = [at_address] if at_address else []
    if at_address and at_address.level == "problem":
        return Examined({}, before)
    found = examined(word, libraries, seconds)
    secrets = secrets_in(runner._settings)
    shown = [finding._replace(text=without_secrets(finding.text, secrets)) for finding in found.findings]
    return Examined(found.measured, [*before, *shown])


def _runner_record(word: str, runner: TaskRunner | None, measured: Mapping[str, Any]) -> dict[str, Any]:
    shown = None if runner is None else repr(runner)
    return {"word": without_secrets(word), "runner": shown, **dict.fromkeys(_MEASURED), **measured}


# What is shown


def _record_of(prospect: Prospect) -> dict[str, Any]:
    return {**record_of(prospect.info), **prospect.plan._asdict()}


def _show_here(facts: Mapping[str, Any], runners: Sequence[Prospect]) -> None:
    print_table(("here", ""), _rows_of_facts(facts))
    print()
    columns = ("word", "version", "calls at once", "memory of a worker", "installed")
    print_table(columns, [_row_of(runner) for runner in runners])
    print()


def _rows_of_facts(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    versions = facts["versions"]
    yield "turnout", versions["turnout"]
    yield "Python", f"{versions['python']}, {facts['executable']}"
    yield "cloudpickle", versions["cloudpickle"]
    yield "platform", facts["platform"]
    yield "processors", _limits({name: f"{amount:g}" for name, amount in facts["processors"].items() if amount})
    yield "memory", _limits({name: shown_size(amount) for name, amount in facts["memory"].items() if amount})


def _limits(amounts: dict[str, str]) -> str:
    """Return what may be used, and behind it what says so."""
    usable = amounts.pop("usable", "?")
    told = ", ".join(f"{name.replace('_', ' ')} {amount}" for name, amount in amounts.items())
    return f"{usable} ({told})"


def _row_of(prospect: Prospect) -> tuple[str, ...]:
    slots, worker_memory = prospect.plan
    size = "" if worker_memory is None else shown_size(worker_memory)
    info = prospect.info
    return info.word, versions_of(info), "" if slots is None else str(slots), size, info.install or "yes"


def _show(findings: Sequence[Finding]) -> None:
    if findings:
        print_table(("", "check", "finding"), findings)
    count = sum(finding.level == "problem" for finding in findings)
    print(f"{count} problem{'s' * (count > 1)}." if count else "No problems.")
