"""The report: one page with everything in it, its scripts too, so that it can be kept, sent and opened anywhere."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from .._units import shown_seconds
from ..errors import VisualizationError
from ._colours import PHASE_COLOURS, STATE_COLOURS, task_colours
from ._critical_path import Step, critical_path
from ._records import History, Log
from ._summary import Summary

__all__ = ["require_libraries", "save_report"]

# How many lines there are in a table.
_MOST_STEPS: Final = 100
_MOST_FAILURES: Final = 100
_MOST_LOGS: Final = 2_000
_MOST_WORKERS: Final = 200
# Of calls that failed alike.
_NAMES_SHOWN: Final = 5


class Share(NamedTuple):
    """A part of a whole that is drawn as a bar."""

    name: str
    seconds: str
    percent: float
    colour: str


class Failure(NamedTuple):
    """Calls of one task that ended alike."""

    task: str
    state: str
    message: str
    traceback: str
    names: list[str]
    """Of some of them."""
    calls: int


def require_libraries() -> None:
    """Find out whether reports can be written.

    Raises
    ------
    VisualizationError
        If Bokeh or networkx is not installed.
    """
    import importlib.util

    missing = [name for name in ("bokeh", "networkx") if importlib.util.find_spec(name) is None]
    if missing:
        raise VisualizationError(
            f"Reports are drawn by Bokeh and networkx, and {' and '.join(missing)} can't be imported. "
            "Install them: pip install 'turnout[report]'"
        )


def save_report(history: History, path: Path) -> None:
    """Write the report on some flow runs to a file.

    Parameters
    ----------
    history
        What became of them.
    path
        The file, of HTML.

    Raises
    ------
    VisualizationError
        If Bokeh or networkx is not installed.
    OSError
        If the file can't be written.
    """
    path.write_text(_html(history), encoding="utf-8")


def _html(history: History) -> str:
    require_libraries()
    import jinja2
    from bokeh.document import Document
    from bokeh.embed import file_html
    from bokeh.resources import INLINE

    from ._graph_figure import graph_figure, text_colours
    from ._timeline import timeline

    summary = Summary(history)
    path = critical_path(history)
    source = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    # All that tasks and users have written goes through this, and is escaped by it.
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    document = Document()
    for root in (timeline(summary, path), graph_figure(summary)):
        document.add_root(root)
    document.js_on_event("document_ready", text_colours(document))
    variables = {"page": _Page(summary, path)}
    return file_html(document, INLINE, title=_title(history), template=template, template_variables=variables)


def _title(history: History) -> str:
    names = dict.fromkeys(flow.flow_name for flow in history.roots)
    return ", ".join(names) or "No flow"


class _Page:
    """What stands on the page, beside the figures."""

    def __init__(self, summary: Summary, path: Sequence[Step]) -> None:
        self._summary = summary
        self._history = summary.history
        self._path = path
        self.colours = task_colours([task.task for task in summary.tasks])

    @property
    def title(self) -> str:
        return _title(self._history)

    @property
    def state(self) -> str:
        states = dict.fromkeys(flow.state for flow in self._history.roots)
        return ", ".join(states) or "Nothing ran"

    @property
    def state_colour(self) -> str:
        return STATE_COLOURS.get(self.state, STATE_COLOURS["Failed"])

    @property
    def messages(self) -> list[str]:
        cut = "The events end before the flow does: it is still running, or was killed. What was open then ends there."
        told = [flow.message for flow in self._history.roots if flow.message]
        return [*told, *[cut] * self._history.is_cut]

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What stands at the top: names and values."""
        history, summary = self._history, self._summary
        begin = dt.datetime.fromtimestamp(history.begin, dt.UTC)
        roots = history.roots
        workers = {lane.worker for lane in summary.lanes}
        return [
            ("run", ", ".join(flow.name for flow in roots[:3]) + ", ..." * (len(roots) > 3)),
            ("runner", ", ".join(dict.fromkeys(flow.runner for flow in roots))),
            ("began", f"{begin:%Y-%m-%d %H:%M:%S} UTC"),
            ("took", shown_seconds(history.seconds)),
            ("calls", f"{len(history.calls):,}"),
            *((_spaced(state), f"{count:,}") for state, count in summary.states.most_common()),
            ("attempts made again", f"{sum(task.retries for task in summary.tasks):,}"),
            ("workers", f"{len(workers):,}"),
            ("slots", f"{summary.slots:,}"),
            ("slots busy", f"{summary.utilisation:.0%}"),
        ]

    @property
    def states(self) -> list[tuple[str, str]]:
        """The states that are in the timeline, with their colours."""
        shown = {attempt.state for call in self._history.calls for attempt in call.attempts}
        again = any(len(call.attempts) > 1 for call in self._history.calls)
        named = ((state, colour) for state, colour in STATE_COLOURS.items() if state in shown)
        return [*named, *[("Retrying", STATE_COLOURS["Retrying"])] * (again and "Retrying" not in shown)]

    # The critical path

    @property
    def path_shares(self) -> list[Share]:
        """What the path is made of."""
        seconds: defaultdict[str, float] = defaultdict(float)
        for step in self._path:
            seconds[step.name] += step.seconds
        return _shares(_largest_first(seconds), PHASE_COLOURS)

    @property
    def path_tasks(self) -> list[Share]:
        """Which tasks ran on the path."""
        seconds: defaultdict[str, float] = defaultdict(float)
        for step in self._path:
            if step.name == "running" and step.call is not None:
                seconds[self._history.calls[step.call].task] += step.seconds
        return _shares(_largest_first(seconds), self.colours)

    @property
    def path_advice(self) -> str:
        """What would make the flow shorter, in a sentence."""
        shares = self.path_shares
        if not shares:
            return ""
        return _ONE_SLOT if self._summary.slots == 1 else _ADVICE[shares[0].name]

    @property
    def steps(self) -> list[dict[str, str]]:
        """The longest pieces of the path, in order of time."""
        longest = sorted(self._path, key=lambda step: -step.seconds)[:_MOST_STEPS]
        return [self._step(step) for step in sorted(longest, key=lambda step: step.begin)]

    @property
    def steps_left_out(self) -> int:
        return max(0, len(self._path) - _MOST_STEPS)

    def _step(self, step: Step) -> dict[str, str]:
        flow = self._history.flows[step.flow]
        who = f"body of {flow.flow_name}" if step.call is None else self._history.calls[step.call].name
        return {
            "begin": shown_seconds(step.begin - self._history.begin),
            "seconds": shown_seconds(step.seconds),
            "name": step.name,
            "colour": PHASE_COLOURS[step.name],
            "who": who,
            "percent": f"{100 * step.seconds / (self._history.seconds or 1):.1f}",
        }

    # Where the time went

    @property
    def tasks(self) -> list[dict[str, Any]]:
        total = sum(task.seconds["running"] for task in self._summary.tasks) or 1.0
        return [
            {
                "task": task.task,
                "colour": self.colours[task.task],
                "calls": f"{task.calls:,}",
                "failures": f"{task.failures:,}" if task.failures else "",
                "retries": f"{task.retries:,}" if task.retries else "",
                "median": shown_seconds(task.median),
                "longest": shown_seconds(task.longest),
                "running": shown_seconds(task.seconds["running"]),
                "percent": 100 * task.seconds["running"] / total,
                "phases": [shown_seconds(task.per_call(phase)) for phase in ("waiting", "queued", "sending")],
                "bytes_in": _shown_bytes(task.bytes_in),
                "bytes_out": _shown_bytes(task.bytes_out),
            }
            for task in self._summary.tasks
        ]

    @property
    def slot_shares(self) -> list[Share]:
        """What slots did: the bodies of which tasks ran in them, and how long they were idle."""
        seconds: defaultdict[str, float] = defaultdict(float)
        for lane in self._summary.lanes:
            for bar in lane.bars:
                if not bar.depth:
                    seconds[bar.call.task] += bar.end - bar.begin
        shares = [*_largest_first(seconds), ("idle", self._summary.idle)]
        return _shares(shares, {**self.colours, "idle": STATE_COLOURS["Pending"]})

    # Workers

    @property
    def workers(self) -> list[dict[str, Any]]:
        lanes = defaultdict(list)
        for lane in self._summary.lanes:
            lanes[lane.worker].append(lane)
        return [self._worker(name, lanes[name]) for name in list(lanes)[:_MOST_WORKERS]]

    @property
    def workers_left_out(self) -> int:
        return max(0, len({lane.worker for lane in self._summary.lanes}) - _MOST_WORKERS)

    def _worker(self, name: str, lanes: Sequence[Any]) -> dict[str, Any]:
        worker = self._history.workers.get(name)
        seconds = self._history.seconds * len(lanes) or 1.0
        busy = sum(lane.busy for lane in lanes)
        came = None if worker is None or worker.up is None else worker.up - self._history.begin
        return {
            "name": name or "not told",
            "runner": worker.runner if worker else "",
            "slots": f"{len(lanes):,}",
            "calls": f"{sum(len(lane.bars) for lane in lanes):,}",
            "percent": min(100.0, 100 * busy / seconds),
            "up": "" if came is None else f"{shown_seconds(max(came, 0))}",
            "down": "" if worker is None or worker.down is None else worker.reason,
        }

    # Failures and logs

    @property
    def failures(self) -> list[Failure]:
        ended = [(call.task, call.state, call.message, call.traceback, call.name) for call in _failed(self._history)]
        return _alike(ended)

    @property
    def failures_left_out(self) -> int:
        kinds = {(call.task, call.state, call.message, call.traceback) for call in _failed(self._history)}
        return max(0, len(kinds) - _MOST_FAILURES)

    @property
    def retried(self) -> list[Failure]:
        """Attempts that failed, and were made again."""
        return _alike(
            (call.task, attempt.state, attempt.message, "", call.name)
            for call in self._history.calls
            for attempt in call.attempts[:-1]
        )

    @property
    def logs(self) -> list[dict[str, str]]:
        logs = self._history.logs
        if len(logs) > _MOST_LOGS:
            # What is worse is rarer, and is looked for.
            logs = sorted(logs, key=lambda log: (log.level in ("INFO", "DEBUG"), log.time))[:_MOST_LOGS]
        return [self._log(log) for log in sorted(logs, key=lambda log: log.time)]

    @property
    def logs_left_out(self) -> int:
        return max(0, len(self._history.logs) - _MOST_LOGS)

    def _log(self, log: Log) -> dict[str, str]:
        who = self._history.calls[log.call].name if log.call is not None else ""
        if not who and log.flow is not None:
            who = self._history.flows[log.flow].name
        time = f"{log.time - self._history.begin:.3f}"
        return {"time": time, "level": log.level, "who": who, "message": log.message}


_ONE_SLOT: Final = "One call ran at a time: a runner with more slots might make this flow shorter."
_ADVICE: Final = {
    "body": "Most of it is the body of the flow itself: what it does between calls is not shared among workers.",
    "waiting": "Most of it is between the end of a call and the moment in which others that need it were ready.",
    "queued": "Most of it is waiting for room at the runner: more workers would make this flow shorter.",
    "sending": "Most of it is on the way to workers, or behind other calls of a batch.",
    "running": "Most of it is bodies of calls, one of which led to the next: more workers would change little.",
    "retrying": "Most of it is waiting before calls are run again.",
}


def _largest_first(seconds: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(seconds.items(), key=lambda item: -item[1])


def _shares(named: Iterable[tuple[str, float]], colours: dict[str, str]) -> list[Share]:
    parts = [(name, seconds) for name, seconds in named if seconds > 0]
    whole = sum(seconds for _, seconds in parts) or 1.0
    return [Share(name, shown_seconds(seconds), 100 * seconds / whole, colours[name]) for name, seconds in parts]


def _failed(history: History) -> list[Any]:
    return [call for call in history.calls if call.has_failed]


def _alike(ended: Iterable[tuple[str, str, str, str, str]]) -> list[Failure]:
    """Put together what ended alike, first what did so for itself and most often."""
    names: defaultdict[tuple[str, str, str, str], list[str]] = defaultdict(list)
    for *kind, name in ended:
        names[tuple(kind)].append(name)  # type: ignore[index]
    found = [Failure(*kind, these[:_NAMES_SHOWN], len(these)) for kind, these in names.items()]
    return sorted(found, key=lambda one: (one.state == "UpstreamFailed", -one.calls))[:_MOST_FAILURES]


def _spaced(state: str) -> str:
    return {"UpstreamFailed": "upstream failed", "TimedOut": "timed out"}.get(state, state.lower())


def _shown_bytes(count: float) -> str:
    if not count:
        return ""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} GB"
