"""Which tasks a display has room for."""

from __future__ import annotations

from collections.abc import Sequence

from ._counts import TaskCounts

__all__ = ["folded"]


def folded(tasks: Sequence[TaskCounts], room: int) -> tuple[list[TaskCounts], list[TaskCounts]]:
    """Return the tasks that are shown, in their order, and the rest of them, for which one line is kept.

    What runs comes first, then what is yet to come, then what failed.

    Parameters
    ----------
    tasks
        All of them, in the order in which they are shown.
    room
        How many lines there are.

    Examples
    --------
    >>> tasks = [TaskCounts("load", 2, 2), TaskCounts("clean", 2, 1, running=1), TaskCounts("save", 1)]
    >>> shown, rest = folded(tasks, 2)
    >>> [task.name for task in shown], [task.name for task in rest]
    (['clean'], ['load', 'save'])
    """
    if len(tasks) <= room:
        return [*tasks], []
    chosen = sorted(range(len(tasks)), key=lambda place: (_rank(tasks[place]), place))[: max(room - 1, 0)]
    shown = {*chosen}
    return [tasks[place] for place in sorted(shown)], [each for place, each in enumerate(tasks) if place not in shown]


def _rank(task: TaskCounts) -> int:
    if task.running:
        return 0
    if task.done < task.total:
        return 1
    return 2 if task.failed else 3
