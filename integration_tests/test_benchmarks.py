"""The benchmarks measure, and tell the truth about what they measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import rounds, table
from benchmarks.__main__ import chosen, parse
from benchmarks.measure import Measurement
from benchmarks.systems import LOCAL, SYSTEMS, load
from benchmarks.workloads import GROUPS, WORKLOADS

TOP = Path(__file__).parents[1]


def measured(system: str, workload: str = "fan", **values: Any) -> Measurement:
    return Measurement(system, workload, n=10, workers=2, tasks=10, **values)


def test_ratios_are_taken_round_by_round() -> None:
    # A machine that slows down to a tenth must not change the ratio.
    slow = [(1.0, 2.0), (10.0, 20.0), (1.0, 2.0)]
    raw = [measured("raw-threads", repeat=index, wall_s=wall) for index, (_, wall) in enumerate(slow)]
    ours = [measured("turnout-thread", repeat=index, wall_s=wall) for index, (wall, _) in enumerate(slow)]
    rows = {row.system: row for row in table.rows([*raw, *ours])}
    assert rows["turnout-thread"].ratio == table.Spread(0.5, 0.5, 0.5)
    assert rows["raw-threads"].ratio == table.Spread(1.0, 1.0, 1.0)


def test_rounds_without_the_raw_backend_give_no_ratio() -> None:
    raw = measured("raw-threads", repeat=0, error="not done after 1 s")
    (_, ours) = table.rows([raw, measured("turnout-thread", repeat=0, wall_s=1.0)])
    assert ours.ratio is None


def test_table_shows_failures_and_what_is_left_out() -> None:
    failed = measured("turnout-thread", "nested", error="exit 1: Boom")
    text = table.text(table.rows([failed, measured("raw-threads", wall_s=1.0)]))
    assert "FAILED: exit 1: Boom" in text
    assert "without raw-threads: a call that waits for its own full pool never ends" in text


@pytest.mark.parametrize(
    ("values", "expected"), [([3.0], (3.0, 3.0, 3.0)), ([1.0, 2.0, 3.0, 4.0, 5.0], (2.0, 3.0, 4.0))]
)
def test_spread_is_the_median_between_its_quartiles(values: list[float], expected: tuple[float, ...]) -> None:
    assert table.Spread.of(values) == table.Spread(*expected)


@pytest.mark.parametrize(
    ("value", "expected"), [(1234.5, "1,234"), (12.34, "12.3"), (0.5, "0.50"), (0.00432, "0.0043")]
)
def test_numbers_keep_the_digits_that_count(value: float, expected: str) -> None:
    assert table.number(value) == expected


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
    plan = rounds.Plan(["raw-calls"], ["fan"], repeats=3, workers=2, n=1, seconds=1e-9)
    assert list(rounds.run(plan)) == []


def test_failed_measurements_are_told_with_their_reason() -> None:
    (one,) = rounds.run(rounds.Plan(["raw-calls"], ["tree"], repeats=1, workers=2, n=-1))
    assert one.error == "exit 1: AssertionError"


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
        pytest.param("map", CLUSTERS, marks=pytest.mark.cluster),
    ],
)
def test_workloads_run_on_runners_of_ours(workload: str, systems: list[str]) -> None:
    found = list(rounds.run(rounds.Plan(systems, [workload], repeats=1, workers=2, n=20)))
    assert [(one.system, one.error) for one in found] == [(name, "") for name in systems]


def test_command_writes_lines_table_and_pictures(tmp_path: Path) -> None:
    chosen_ones = ["--workloads", "queued,fan", "--systems", "turnout-thread,raw-threads", "--n", "50"]
    command = [sys.executable, "-m", "benchmarks", *chosen_ones, "--repeats", "1", "--output", str(tmp_path)]
    ended = subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=50, check=False)
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in (tmp_path / "measurements.jsonl").read_text().splitlines()]
    assert [(line["workload"], line["system"]) for line in lines] == [
        (workload, system) for workload in ("queued", "fan") for system in ("turnout-thread", "raw-threads")
    ]
    assert all(line["cpu_s"] >= 0 and line["driver_peak"] > 1e6 and line["versions"]["python"] for line in lines)
    assert "bytes a waiting call" in ended.stdout
    assert (tmp_path / "table.txt").read_text() == ended.stdout
    if "pip install matplotlib" not in ended.stderr:
        assert (tmp_path / "benchmarks.png").stat().st_size
        assert (tmp_path / "benchmarks.svg").stat().st_size
