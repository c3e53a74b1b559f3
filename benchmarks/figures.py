"""Figures, and how they are written."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .measure import Measurement


@dataclass(frozen=True, slots=True)
class Spread:
    """A median between its quartiles."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the quartiles of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))

    @property
    def quartiles(self) -> str:
        """Both, as they are written in tables."""
        return f"{number(self.low)}-{number(self.high)}"


def ratio(
    ones: Iterable[Measurement], others: Iterable[Measurement], figure: Callable[[Measurement], float]
) -> Spread | None:
    """Compare two series of measurements round by round, where there are rounds in which both went well."""
    known = {other.repeat: figure(other) for other in others if other.is_good}
    ratios = [figure(one) / known[one.repeat] for one in ones if one.is_good and one.repeat in known]
    return Spread.of(ratios) if ratios else None


def number(value: float) -> str:
    """Return a number with two or three digits that count."""
    for least, digits in ((100, 0), (10, 1), (0.1, 2)):
        if value >= least:
            return f"{value:,.{digits}f}"
    return f"{value:.2g}"


def duration(microseconds: float) -> str:
    """Return a time in the unit that suits it."""
    for size, unit in ((1e6, "s"), (1e3, "ms")):
        if microseconds >= size:
            return f"{microseconds / size:.3g} {unit}"
    return f"{microseconds:.3g} us"


def aligned(lines: Sequence[Sequence[str]], words: Sequence[int] = (0, -1)) -> list[str]:
    """Return lines of cells as indented text, in columns: those of words start, those of numbers end alike."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = {index % len(widths) for index in words}
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
