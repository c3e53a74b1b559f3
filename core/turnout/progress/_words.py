"""Counts in words: what all displays say, and how they write numbers and times."""

from __future__ import annotations

from collections.abc import Iterator

from ._counts import Counts, TaskCounts

__all__ = ["clock", "ending", "number", "pace", "rate", "sums", "tail", "told"]


def number(count: int) -> str:
    """Return a count with commas."""
    return f"{count:,}"


def rate(per_second: float) -> str:
    """Return a rate, in calls a second or, if it is low, in calls a minute or an hour.

    Examples
    --------
    >>> rate(51_234.5), rate(7.25), rate(0.5), rate(0.001)
    ('51,234/s', '7.2/s', '30/min', '3.6/h')
    """
    units = ((1, "s"), (60, "min"), (3600, "h"))
    seconds, unit = next((each for each in units if per_second * each[0] >= 1), units[-1])
    count = per_second * seconds
    return f"{count:,.0f}/{unit}" if count >= 10 else f"{count:.1f}/{unit}".replace(".0/", "/")


def clock(seconds: float) -> str:
    """Return a duration as a clock shows it, to the second.

    Examples
    --------
    >>> clock(8.4), clock(83), clock(3_723), clock(200_000)
    ('0:08', '1:23', '1:02:03', '2 d 7 h')
    """
    whole = round(seconds)
    if whole >= 86_400:
        return f"{whole // 86_400} d {whole % 86_400 // 3600} h"
    minutes, rest = divmod(whole, 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def pace(counts: Counts) -> list[str]:
    """Return slots in use, rate, time that has passed and time left, as far as they are known.

    Examples
    --------
    >>> pace(Counts("flow", "", (TaskCounts("load", 10, 4, running=2),), 8.0, slots=4, rate=0.5, left=12.0))
    ['2 of 4 slots in use', '30/min', '0:08', 'about 0:12 left']
    """
    return [*_pace(counts)]


def _pace(counts: Counts) -> Iterator[str]:
    every = counts.all
    if counts.slots is None:
        yield f"{number(every.running)} running"
    else:
        # Clusters grow, and runners may run more than they said when the flow began.
        yield f"{number(every.running)} of {number(max(counts.slots, every.running))} slots in use"
    if counts.rate:
        yield rate(counts.rate)
    yield clock(counts.seconds)
    if counts.left is not None and every.done < every.total:
        yield f"about {clock(counts.left)} left"


def ending(counts: Counts) -> str:
    """Return what became of the flow, in a line.

    Examples
    --------
    >>> ending(Counts("census", "", (), 12.34, state="Failed", message="ValueError: no"))
    'Failed after 12.3 s: ValueError: no'
    """
    seconds = f"{counts.seconds:.3g} s" if counts.seconds < 100 else clock(counts.seconds)
    how = "in" if counts.state == "Completed" else "after"
    line = counts.message.strip().partition("\n")[0]
    return f"{counts.state or 'Not over'} {how} {seconds}" + (f": {line}" if line else "")


def sums(counts: Counts) -> list[str]:
    """Return how many calls there were, and how many in a second, as far as there were any.

    Examples
    --------
    >>> sums(Counts("census", "", (TaskCounts("load", 10, 10),), 5.0, rate=2.0, state="Completed"))
    ['10 calls', '2/s']
    """
    done = counts.all.done
    calls = [f"{number(done)} call{'s' * (done != 1)}"] if done else []
    return calls + ([rate(counts.rate)] if counts.rate else [])


def tail(task: TaskCounts) -> list[str]:
    """Return what there is to say of some calls beside how many are done.

    Examples
    --------
    >>> tail(TaskCounts("load", 10, 4, failed=1, running=2, retried=3))
    ['2 running', '1 failed', '3 retried']
    """
    names = ("running", "failed", "retried", "cached", "cancelled")
    return [f"{number(getattr(task, name))} {name}" for name in names if getattr(task, name)]


def told(counts: Counts) -> str:
    """Return everything in one line, for where there is no terminal.

    Examples
    --------
    >>> told(Counts("census", "", (TaskCounts("load", 10, 4, failed=1, running=2),), 8.0, slots=2))
    'census: 5 of 10 calls done, 1 failed; 2 of 2 slots in use, 0:08'
    >>> told(Counts("census", "", (TaskCounts("load", 10, 10),), 8.0, state="Completed"))
    'census: Completed in 8 s; 10 of 10 calls done'
    """
    every = counts.all
    about = [text for text in tail(every) if "running" not in text]
    done = ", ".join([f"{number(every.done)} of {number(every.total)} calls done", *about])
    name = counts.flow or "calls"
    if counts.state:
        return f"{name}: {ending(counts)}; {done}"
    return f"{name}: {done}; {', '.join(pace(counts))}"
