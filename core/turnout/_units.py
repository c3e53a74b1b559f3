"""Durations and rates as people write them: three digits and a unit."""

from __future__ import annotations

__all__ = ["shown_rate", "shown_seconds"]


def shown_seconds(seconds: float) -> str:
    """Return a duration as people write it.

    Examples
    --------
    >>> shown_seconds(0.000_012_34), shown_seconds(0.0567), shown_seconds(0.9999), shown_seconds(123.4)
    ('12.3 us', '56.7 ms', '1000 ms', '123 s')
    """
    factor, unit = (1, "s") if seconds >= 1 else (1000, "ms") if seconds >= 0.001 else (1_000_000, "us")
    return f"{_three_digits(factor * seconds)} {unit}"


def shown_rate(bytes_per_second: float) -> str:
    """Return a number of bytes per second as people write it.

    Examples
    --------
    >>> shown_rate(1.234e9), shown_rate(56_700)
    ('1.23 GB/s', '0.06 MB/s')
    """
    factor, unit = (1e-9, "GB") if bytes_per_second >= 1e9 else (1e-6, "MB")
    return f"{_three_digits(factor * bytes_per_second)} {unit}/s"


def _three_digits(number: float) -> str:
    return f"{round(number, 2 if number < 10 else 1 if number < 100 else 0):g}"
