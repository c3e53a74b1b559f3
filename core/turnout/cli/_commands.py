"""The commands, their options, and the exit status."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

import click

from .. import __version__
from ._problem import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["run"]

INTERRUPTED = 130
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def run(arguments: Sequence[str] | None) -> int:
    """Carry out one command line and return its exit status; a wrong one is told in one line."""
    try:
        status = commands.main(arguments, prog_name="turnout", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as problem:
        print(f"turnout: error: {one_line(problem.format_message())}{_help_for(problem)}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output, say `head`, has seen enough. Python would complain once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    return status if isinstance(status, int) else 0


def _help_for(problem: click.ClickException) -> str:
    context = problem.ctx if isinstance(problem, click.UsageError) else None
    return f" Try: {context.command_path} --help" if context else ""


@click.group(invoke_without_command=True)
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.pass_context
def commands(context: click.Context) -> None:
    """Run flows of tasks on threads, processes, or any executor."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@commands.command("run")
@click.argument("target", metavar="FILE.py:FLOW")
@click.option("--runner", metavar="WORD", help="Where tasks run, such as process or thread:4. See `turnout runners`.")
@click.option("-p", "--parameter", "parameters", metavar="NAME=VALUE", multiple=True, help="A parameter of the flow.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; all other output goes to stderr.")
@click.option("--events", metavar="FILE", help="Write what happens there, a line of JSON for each event.")
@click.option(
    "--log-level",
    metavar="LEVEL",
    type=click.Choice(LEVELS, case_sensitive=False),
    default="INFO",
    show_default=True,
    help=f"The least that is logged: {', '.join(LEVELS)}.",
)
@click.option("--progress/--no-progress", default=None, help="Show on stderr how far the flow is; on in a terminal.")
@click.option("--report", metavar="FILE", help="Write a report on the run there, as HTML; needs turnout[report].")
@click.option("--trace", metavar="FILE", help="Write a trace of the run there, as JSON that Perfetto opens.")
def run_command(
    target: str,
    runner: str | None,
    parameters: tuple[str, ...],
    as_json: bool,
    events: str | None,
    log_level: str,
    progress: bool | None,
    report: str | None,
    trace: str | None,
) -> int:
    """Run a flow and print what it returns.

    FILE.py:FLOW names a file and a flow in it; package.module:FLOW does for what is installed. FLOW may be left out
    where there is only one.

    A parameter's VALUE is read as its annotation says; without one, as JSON if it is JSON, else as text.

    \b
    Exit status:
      0    the flow completed
      1    the flow failed; the traceback is on stderr
      2    the command can't be carried out as typed
      130  interrupted
    """  # noqa: D301 - click looks for the character itself
    from ._run import run_flow

    with contextlib.ExitStack() as stack:
        if report or trace:
            from ._after import kept

            stack.enter_context(kept(report, trace))
        return run_flow(
            target, runner, parameters, json=as_json, events=events, log_level=log_level, shows_progress=progress
        )


@commands.command("graph")
@click.argument("target", metavar="FILE.py:FLOW|EVENTS.jsonl")
@click.option("-p", "--parameter", "parameters", metavar="NAME=VALUE", multiple=True, help="A parameter of the flow.")
@click.option("-o", "--output", metavar="FILE", help="Save the graph there: as .mmd, .dot or .svg (needs Graphviz).")
def graph_command(target: str, parameters: tuple[str, ...], output: str | None) -> int:
    """Show what a flow submits, and what waits for what.

    Runs the flow's body, but no task. Prints the text of a mermaid flowchart. Flow and parameters are given as for
    `turnout run`.

    Given the events of a run, shows what that has submitted, with times and failures, and runs nothing.
    """
    from ._graph import draw_flow

    return draw_flow(target, parameters, output)


@commands.command("report")
@click.argument("path", metavar="EVENTS.jsonl")
@click.option("-o", "--output", metavar="FILE", help="Where to write it; by default EVENTS.html.")
def report_command(path: str, output: str | None) -> None:
    """Write a report on a run: one page of HTML that needs no network.

    It has a timeline, the critical path, where the time went, the graph of calls, failures and logs. Prints the name of
    the file. Needs turnout[report].
    """
    from ._after import write_report

    write_report(path, output)


@commands.command("trace")
@click.argument("path", metavar="EVENTS.jsonl")
@click.option("-o", "--output", metavar="FILE", help="Where to write it; by default EVENTS.trace.json.")
def trace_command(path: str, output: str | None) -> None:
    """Write a trace of a run, in the format of Chrome, which https://ui.perfetto.dev opens.

    Prints the name of the file.
    """
    from ._after import write_trace

    write_trace(path, output)


@commands.command("compare")
@click.argument("first", metavar="A.jsonl")
@click.argument("second", metavar="B.jsonl")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def compare_command(first: str, second: str, as_json: bool) -> None:
    """Show two runs side by side: of a flow on two runners, say.

    In the table of tasks, `A > B` stands for what is not the same. The task that differs most comes first.
    """
    from ._after import compare_runs

    compare_runs(first, second, as_json=as_json)


@commands.command("runners")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
def runners_command(as_json: bool) -> None:
    """List where flows can run, and what to install for the rest."""
    from ._runners import list_runners

    list_runners(as_json=as_json)


@commands.command("doctor")
@click.argument("word", metavar="[WORD]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--timeout",
    "seconds",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    default=30,
    show_default=True,
    help="How long each step with a runner may take.",
)
def doctor_command(word: str | None, as_json: bool, seconds: float) -> int:
    """Look for what is wrong, here or with one runner.

    Without WORD: what is installed, how many processors and how much memory may be used, and what each runner would do.

    With a word or address: start it or connect to it, compare versions, send calls and measure them, and list the
    sockets that listen.

    \b
    Exit status:
      0    all is well
      1    a problem was found
      2    the command can't be carried out as typed
    """  # noqa: D301 - click looks for the character itself
    from ._doctor import doctor

    return doctor(word, as_json=as_json, seconds=seconds)


@commands.command("conform")
@click.argument("word", metavar="WORD")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("-k", "select", metavar="EXPRESSION", help="Only tests whose names fit, as in pytest.")
def conform_command(word: str, as_json: bool, select: str | None) -> int:
    """Test whether a runner keeps its promises.

    Exits with status 1 if it breaks one. Needs pytest.
    """
    from ._conform import conform

    return conform(word, select, as_json=as_json)
