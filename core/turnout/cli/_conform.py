"""``turnout conform``: the conformance kit over one runner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._secrets import without_secrets
from ..errors import RunnerError
from ..registry import resolve
from ._output import claim_standard_output, print_json, print_table
from ._problem import UsageProblem

if TYPE_CHECKING:
    from ..testing._conform import Report

__all__ = ["conform"]

COLUMNS = ("guarantee", "behaviour", "outcome", "detail")


def conform(word: str, select: str | None, *, as_json: bool) -> int:
    """Run the kit over the runner that ``word`` names, print what came of it, and return the exit status."""
    try:
        resolve(word)
    except RunnerError as error:
        raise UsageProblem(str(error)) from error
    own = claim_standard_output() if as_json else None
    report = _tested(word, select)
    rows = [(row.guarantee, row.behaviour, row.outcome, row.detail) for row in report.rows]
    if own:
        records = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
        print_json({"runner": without_secrets(word), "counts": _counts(report), "rows": records}, own)
    else:
        print_table(COLUMNS, rows)
        print(", ".join(f"{count} {outcome}" for outcome, count in _counts(report).items()))
    return 1 if "failed" in _counts(report) else 0


def _tested(word: str, select: str | None) -> Report:
    try:
        from ..testing._conform import run
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] not in ("pytest", "pytest_timeout"):
            raise
        raise UsageProblem(f"turnout conform needs {error.name}: pip install 'turnout[testing]'") from error
    try:
        report = run(word, select)
    except RuntimeError as error:
        # Mostly a wrong expression; pytest says so.
        raise UsageProblem(str(error)) from error
    if not report.rows:
        raise UsageProblem(f"no test of the conformance kit fits {select!r}")
    return report


def _counts(report: Report) -> dict[str, int]:
    outcomes = [row.outcome for row in report.rows]
    return {outcome: outcomes.count(outcome) for outcome in dict.fromkeys(outcomes)}
