"""The benchmarks measure, and tell the truth about what they measured."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks import figures, granularity, growth, plans, report, results, rounds, table, targets
from benchmarks.__main__ import chosen, parse
from benchmarks.granularity import Point
from benchmarks.measure import Measurement
from benchmarks.rounds import Plan
from benchmarks.systems import LOCAL, SYSTEMS, load
from benchmarks.systems.raw import in_chunks
from benchmarks.targets import TARGETS, Target
from benchmarks.workloads import GROUPS, USUAL, WORKLOADS, uneven

TOP = Path(__file__).parents[1]


def measured(system: str, workload: str = "fan", **values: Any) -> Measurement:
    return Measurement(system, workload, n=10, workers=2, **{"tasks": 10, **values})


def run(plan: Plan) -> list[Measurement]:
    return list(rounds.run(plan, time.monotonic()))


def test_ratios_are_taken_round_by_round() -> None:
    # A machine that slows down to a tenth must not change the ratio.
    slow = [(1.0, 2.0), (10.0, 20.0), (1.0, 2.0)]
    raw = [measured("raw-threads", repeat=index, per_task_us=took) for index, (_, took) in enumerate(slow)]
    ours = [measured("turnout-thread", repeat=index, per_task_us=took) for index, (took, _) in enumerate(slow)]
    rows = {row.system: row for row in table.rows([*raw, *ours])}
    assert rows["turnout-thread"].ratio == figures.Spread(0.5, 0.5, 0.5)
    assert rows["raw-threads"].ratio == figures.Spread(1.0, 1.0, 1.0)


def test_rounds_without_the_raw_backend_give_no_ratio() -> None:
    raw = measured("raw-threads", repeat=0, error="not done after 1 s")
    (_, ours) = table.rows([raw, measured("turnout-thread", repeat=0, per_task_us=1.0)])
    assert ours.ratio is None


def test_page_of_results_is_made_of_measurements(tmp_path: Path) -> None:
    versions = {"python": "3.12.1", "platform": "Linux", "turnout": "1.0"}
    ones = [
        measured("turnout-thread", repeat=0, per_task_us=2.0, cpu_s=0.5, versions=versions),
        measured("raw-threads", repeat=0, per_task_us=8.0),
        measured("raw-threads", "tree", error="not done after 1 s"),
    ]
    path = tmp_path / "measurements.jsonl"
    path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in ones))
    page = results.page(results.read([str(path)]))
    assert "Linux, Python 3.12.1, turnout 1.0; 2 workers" in page
    assert "| `turnout-thread` | 10 | 2.00 (2.00-2.00) | 0.50 | 0.25 (0.25-0.25) | 1 |" in page
    assert "| `raw-threads` | | failed: not done after 1 s | | | |" in page
    assert "turnout-thread  fan" in page


def test_table_shows_failures_and_what_is_left_out() -> None:
    failed = measured("turnout-thread", "nested", error="exit 1: Boom")
    text = table.text(table.rows([failed, measured("raw-threads", per_task_us=1.0)]))
    assert "FAILED: exit 1: Boom" in text
    assert "without raw-threads: a call that waits for its own full pool never ends" in text


@pytest.mark.parametrize(
    ("values", "expected"), [([3.0], (3.0, 3.0, 3.0)), ([1.0, 2.0, 3.0, 4.0, 5.0], (2.0, 3.0, 4.0))]
)
def test_spread_is_the_median_between_its_quartiles(values: list[float], expected: tuple[float, ...]) -> None:
    assert figures.Spread.of(values) == figures.Spread(*expected)


@pytest.mark.parametrize(
    ("value", "expected"), [(1234.5, "1,234"), (12.34, "12.3"), (0.5, "0.50"), (0.00432, "0.0043")]
)
def test_numbers_keep_the_digits_that_count(value: float, expected: str) -> None:
    assert figures.number(value) == expected


def test_groups_of_workloads_are_spelt_out() -> None:
    assert chosen("fan,sleep", WORKLOADS, "workload") == ["fan", *GROUPS["sleep"]]


def test_unknown_names_list_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--systems", "raw-thread"])
    assert caught.value.code == 2
    assert "no system 'raw-thread'; there are turnout-sequential, " in capsys.readouterr().err


@pytest.mark.parametrize("system", SYSTEMS)
def test_systems_say_what_they_lack(system: str) -> None:
    kind = load(system)
    assert kind.baseline in SYSTEMS
    assert set(kind.lacks) <= set(WORKLOADS)


def test_time_that_is_up_leaves_the_rest_out() -> None:
    plan = Plan(["raw-calls"], ["fan"], repeats=3, workers=2, n=1, seconds=1e-9)
    assert run(plan) == []
    assert list(report.lack_of_time([], [plan])) == ["  left out for lack of time: raw-calls fan"]
    assert list(report.lack_of_time([measured("raw-calls")], [plan])) == []


def test_failed_measurements_are_told_with_their_reason() -> None:
    (one,) = run(Plan(["raw-calls"], ["tree"], repeats=1, workers=2, n=-1))
    assert one.error == "exit 1: AssertionError"


# METG(50 %)


@pytest.mark.parametrize(
    ("curve", "expected", "beyond"),
    [
        ([(1e-2, 0.75), (1e-4, 0.25)], 1e-3, ""),  # half of the way by logarithms
        ([(1e-2, 0.9), (1e-3, 0.5), (1e-4, 0.1)], 1e-3, ""),
        ([(1e-1, 0.4), (1e-2, 0.9), (1e-3, 0.75), (1e-5, 0.25)], 1e-4, ""),  # a dip among long ones counts for nothing
        ([(1e-2, 0.9), (1e-3, 0.6)], 1e-3, "or shorter"),
        ([(1e-2, 0.4), (1e-3, 0.1)], 1e-2, "or longer"),
    ],
)
def test_metg_is_the_shortest_length_at_half_speed(
    curve: Sequence[tuple[float, float]], expected: float, beyond: str
) -> None:
    points = [Point(*pair) for pair in curve]
    assert granularity.shortest(points) == pytest.approx(expected)
    assert granularity.is_beyond(points) == beyond


@pytest.mark.parametrize(
    ("length", "workers", "seconds", "expected"),
    [(0.001, 2, 0.5, 1000), (0.1, 2, 0.5, 10), (0.1, 3, 0.01, 12), (0.00001, 4, 1.0, 400_000)],
)
def test_each_length_is_given_the_same_time(length: float, workers: int, seconds: float, expected: int) -> None:
    assert granularity.amount(length, workers, seconds) == expected


def system_that_takes(
    monkeypatch: pytest.MonkeyPatch, overhead: float, workers: int
) -> tuple[Callable[[float, int], int], list[float]]:
    """Return what takes so long for each task besides its length, by a clock of its own, and what it was given."""
    now, lengths = [0.0], []
    monkeypatch.setattr("benchmarks.granularity.time.perf_counter", lambda: now[0])

    def run(length: float, tasks: int) -> int:
        lengths.append(length)
        now[0] += tasks * (length + overhead) / workers
        return tasks

    return run, lengths


def test_the_curve_ends_where_efficiency_does(monkeypatch: pytest.MonkeyPatch) -> None:
    run, given = system_that_takes(monkeypatch, overhead=0.001, workers=2)
    total, curve = granularity.sweep([0.01, 0.001, 0.0001, 0.00001], 2, 1.0, run)
    assert given == [0.01, 0.001, 0.0001]
    assert [point.efficiency for point in curve] == pytest.approx([10 / 11, 1 / 2, 1 / 11])
    assert total == 200 + 2_000 + 20_000
    assert granularity.shortest(curve) == pytest.approx(0.001)


def test_the_table_compares_metg_round_by_round() -> None:
    def curve(half: float) -> list[Point]:
        return [Point(half * 10, 0.75), Point(half / 10, 0.25)]

    raw = [measured("raw-processes", "metg-fan", repeat=one, curve=curve(2e-4 * 10**one)) for one in range(3)]
    ours = [measured("turnout-process", "metg-fan", repeat=one, curve=curve(1e-4 * 10**one)) for one in range(3)]
    rows = {row.system: row for row in table.rows([*raw, *ours])}
    compared = rows["turnout-process"].ratio
    assert compared is not None
    assert (compared.low, compared.high) == pytest.approx((0.5, 0.5))
    assert rows["turnout-process"].microseconds.median == pytest.approx(1000)
    assert "METG us" in table.text(list(rows.values()))


def test_the_table_tells_where_metg_is_beyond_the_lengths() -> None:
    (row,) = table.rows([measured("raw-processes", "metg-fan", curve=[Point(0.01, 0.9), Point(0.001, 0.625)])])
    assert table.notes(row) == "0.90 at 10 ms; 0.62 at 1 ms; or shorter in 1 rounds"


def test_measurements_come_back_from_json_as_they_were() -> None:
    one = measured("raw-processes", "metg-fan", curve=[Point(0.01, 0.9)], seen={"ideal_s": 1.0})
    again = Measurement.read(json.loads(json.dumps(asdict(one))))
    assert again == one
    assert again.curve[0].efficiency == 0.9


# Growth


def grown(size: int, repeat: int = 0, system: str = "turnout-thread", **values: Any) -> Measurement:
    return measured(system, growth.name(size), repeat=repeat, **{"tasks": size, **values})


def test_growth_is_compared_round_by_round() -> None:
    # The second round was ten times as slow; the third has nothing to compare with.
    fewer = [grown(10_000, 0, per_task_us=4.0), grown(10_000, 1, per_task_us=40.0)]
    more = [grown(100_000, repeat, per_task_us=took) for repeat, took in enumerate([5.0, 50.0, 1.0])]
    assert growth.ratio([*fewer, *more], 100_000) == figures.Spread(1.25, 1.25, 1.25)
    assert growth.ratio(more, 100_000) is None


def test_memory_of_a_task_is_what_the_driver_needed_more() -> None:
    assert growth.bytes_at_peak(grown(1_000, driver_before=5_000, driver_peak=505_000)) == 500


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (None, ""),
        (grown(10_000, per_task_us=100.0), ""),
        (grown(10_000, per_task_us=10_000.0), "would take about 1,000 s"),
        (grown(10_000, left_out="would take about 300 s"), "would take about 300 s"),
        (grown(10_000, error="exit 1: Boom"), "fewer: exit 1: Boom"),
        (grown(1_000_000, error="exit 1: Boom"), ""),  # it is the smaller one's turn after the larger one's
    ],
)
def test_sizes_that_would_take_too_long_are_left_out(before: Measurement | None, expected: str) -> None:
    assert growth.reason_against(growth.name(100_000), before) == expected


def test_the_table_of_growth_tells_what_is_missing() -> None:
    ours = [grown(size, per_task_us=4.0, driver_peak=2_000_000) for size in (10_000, 100_000)]
    raw = [grown(10_000, system="raw-dask", per_task_us=9_000.0), grown(100_000, system="raw-dask", left_out="slow")]
    text = growth.text([*ours, *raw])
    assert re.search(r"turnout-thread +4.00 +4.00 +1.00 +1.00-1.00 +1\n", text)
    assert re.search(r"raw-dask +9,000 +- +1  100,000 left out: slow\n", text)
    assert re.search(r"turnout-thread +2.0 / 0.0 +2.0 / 0.0 +20$", text, re.MULTILINE)


def test_growth_without_results_says_so() -> None:
    assert growth.text([grown(1_000, error="exit 1: Boom")]) == "growth: nothing could be measured"


# Targets

SHARE = Target("turnout-thread", "fan", "x the time of raw-threads", 0.5, table.microseconds, ("raw-threads", "fan"))
MOST = Target("turnout-thread", "fan", "us a task", 20, table.microseconds)


def judged(target: Target, *measurements: Measurement) -> list[tuple[float | None, bool]]:
    found = targets.verdicts(measurements, [target])
    return [(one.measured.median if one.measured else None, one.is_met) for one in found]


def test_targets_are_met_or_missed() -> None:
    assert judged(MOST, measured("turnout-thread", per_task_us=20.0)) == [(20.0, True)]
    assert judged(MOST, measured("turnout-thread", per_task_us=21.0)) == [(21.0, False)]


def test_the_median_decides() -> None:
    rounds_ = [measured("turnout-thread", repeat=repeat, per_task_us=took) for repeat, took in enumerate([1, 2, 300])]
    assert judged(MOST, *rounds_) == [(2.0, True)]


def test_ratios_to_targets_are_taken_round_by_round() -> None:
    ours = [measured("turnout-thread", repeat=repeat, per_task_us=took) for repeat, took in enumerate([4.0, 40.0])]
    raw = [measured("raw-threads", repeat=repeat, per_task_us=took) for repeat, took in enumerate([10.0, 100.0])]
    assert judged(SHARE, *ours, *raw) == [(0.4, True)]


@pytest.mark.parametrize(
    "measurements",
    [
        [],
        [measured("raw-threads", per_task_us=1.0)],
        [measured("turnout-thread", per_task_us=1.0)],
        [measured("turnout-thread", per_task_us=1.0), measured("raw-threads", error="exit 1: Boom")],
        [measured("turnout-thread", per_task_us=1.0, repeat=0), measured("raw-threads", per_task_us=1.0, repeat=1)],
        [measured("turnout-thread", left_out="would take about 300 s"), measured("raw-threads", per_task_us=1.0)],
    ],
)
def test_targets_without_measurements_are_not_judged_but_named(measurements: list[Measurement]) -> None:
    assert judged(SHARE, *measurements) == []
    text = targets.text(targets.verdicts(measurements, [SHARE]), [SHARE])
    assert text == "targets: 0 of 0 met, 0 missed\n  not measured: turnout-thread fan"


def test_a_system_that_fails_misses_its_targets() -> None:
    failed = [measured("turnout-thread", error="exit 1: Boom"), measured("raw-threads", per_task_us=1.0)]
    assert judged(SHARE, *failed) == [(None, False)]
    assert "MISSED: failed each time" in targets.text(targets.verdicts(failed, [SHARE]), [SHARE])


def test_losses_are_told_beside_wins() -> None:
    text = targets.text(targets.verdicts([measured("turnout-thread", per_task_us=15.0)], [MOST]), [MOST])
    assert re.search(r"turnout-thread  fan +us a task +20.0 +15.0 +15.0-15.0  met$", text)
    text = targets.text(targets.verdicts([measured("turnout-thread", per_task_us=25.0)], [MOST]), [MOST])
    assert re.search(r"turnout-thread  fan +us a task +20.0 +25.0 +25.0-25.0  MISSED$", text)
    assert text.startswith("targets: 0 of 1 met, 1 missed\n")


@pytest.mark.parametrize(
    "series",
    [*((target.system, target.workload) for target in TARGETS), *(one.beside for one in TARGETS if one.beside)],
)
def test_targets_are_for_what_can_be_measured(series: tuple[str, str]) -> None:
    system, workload = series
    assert workload in WORKLOADS
    assert workload not in load(system).lacks


# What is measured


def test_uneven_times_are_the_same_each_time_and_add_up() -> None:
    seconds = uneven(200)
    assert seconds == uneven(200)
    assert sum(seconds) == pytest.approx(2.0)
    assert min(seconds) < 0.003 < 0.03 < max(seconds)


@pytest.mark.parametrize(
    ("items", "workers", "lengths"), [(2_500, 2, [1000, 1000, 500]), (5, 2, [3, 2]), (1, 2, [1]), (0, 2, [])]
)
def test_chunks_are_no_larger_than_the_share_of_a_worker(items: int, workers: int, lengths: list[int]) -> None:
    assert [len(chunk) for chunk in in_chunks(range(items), workers)] == lengths


def test_growth_goes_as_far_as_is_said() -> None:
    (plan,) = plans.plans(parse(["--workloads", "fan,growth", "--largest", "10000", "--systems", "raw-calls"]))
    assert plan.workloads == ["fan", "growth-1000", "growth-10000"]
    (usual,) = plans.plans(parse(["--systems", "raw-calls"]))
    assert usual.workloads == USUAL
    assert set(WORKLOADS) - set(USUAL) == set(GROUPS["growth"])


def test_a_hurry_ends_in_time_and_goes_for_the_targets() -> None:
    hurried = plans.plans(parse(["--quick"]))
    longest = max(plan.seconds or float("inf") for plan in hurried)
    assert longest + rounds.GRACE < 120
    measurable = {(system, workload) for plan in hurried for _, workload, system in plan.turns()}
    judged_systems = {target.system for target in TARGETS if (target.system, target.workload) in measurable}
    assert judged_systems >= {"turnout-thread", "turnout-process"}


OURS = [name for name in SYSTEMS if name.startswith("turnout")]
HERE = [name for name in OURS if name in LOCAL]
CLUSTERS = [name for name in OURS if name not in LOCAL]


# Each measurement is a process of its own, and takes a second for that.
@pytest.mark.parametrize(
    ("workload", "systems"),
    [
        ("map", HERE),
        ("stencil", ["turnout-thread"]),
        ("nested", ["turnout-process"]),
        ("imbalance", ["turnout-process", "raw-process-chunks"]),
        ("metg-stencil", ["turnout-process"]),
        pytest.param("map", CLUSTERS, marks=pytest.mark.cluster),
    ],
)
def test_workloads_run_on_runners_of_ours(workload: str, systems: list[str]) -> None:
    found = run(Plan(systems, [workload], repeats=1, workers=2, n=20))
    assert [(one.system, one.error) for one in found] == [(name, "") for name in systems]


def test_command_writes_lines_table_and_pictures(tmp_path: Path) -> None:
    systems = ["turnout-process", "raw-processes"]
    chosen_ones = ["--workloads", "fan,growth,metg-fan", "--systems", ",".join(systems), "--largest", "1000"]
    limits = ["--n", "5", "--repeats", "1", "--output", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks", *chosen_ones, *limits]
    ended = subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=50, check=False)
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in (tmp_path / "measurements.jsonl").read_text().splitlines()]
    assert [(line["workload"], line["system"]) for line in lines] == [
        (workload, system) for workload in ("fan", "growth-1000", "metg-fan") for system in systems
    ]
    assert all(line["cpu_s"] >= 0 and line["driver_peak"] > 1e6 and line["versions"]["python"] for line in lines)
    assert all((line["curve"] != []) == (line["workload"] == "metg-fan") for line in lines)
    assert re.search(r"^targets: \d+ of \d+ met, \d+ missed$", ended.stdout, re.MULTILINE)
    assert re.search(r"^  turnout-process +metg-fan +METG\(50 %\), us +50.0 ", ended.stdout, re.MULTILINE)
    assert (tmp_path / "table.txt").read_text() == ended.stdout
    if "pip install matplotlib" not in ended.stderr:
        for name in ("benchmarks", "metg", "growth"):
            assert (tmp_path / f"{name}.png").stat().st_size
            assert (tmp_path / f"{name}.svg").stat().st_size
