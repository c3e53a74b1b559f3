"""The pytest fixture that makes runners with faults."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

pytest_plugins = ["pytester"]

TESTS = """
    import pytest
    from turnout import flow, task

    @task(crash_retries=50)
    def double(x):
        return 2 * x

    @flow
    def main():
        return double.map(range(40))

    @pytest.mark.parametrize("word", ["thread?max_workers=2", "process?max_workers=2"])
    def test_survives(chaos, word):
        runner = chaos(word, crashes=0.2)
        assert main.with_options(task_runner=runner)() == [2 * x for x in range(40)]
        print(f"seed {runner.seed}")

    def test_fails(chaos):
        main.with_options(task_runner=chaos("process?max_workers=2", crashes=0.5, losses=0))()
        assert False
"""


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    pytester.makepyfile(test_flows=TESTS)
    return pytester.runpytest_subprocess("-p", "turnout.testing.plugin", "-rP", *arguments)


def test_faults_are_told_of_when_a_test_fails(pytester: pytest.Pytester) -> None:
    result = run(pytester)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.re_match_lines_random(
        [r"-+ chaos -+", r"ChaosTaskRunner\(inner=.*", r"chaos with seed \d+: .*\d+ x crash.*"]
    )
    assert result.stdout.str().count("- chaos -") == 1


def test_seeds_come_from_the_tests_and_the_command_line(pytester: pytest.Pytester) -> None:
    def seeds(*arguments: str) -> list[str]:
        return [line for line in run(pytester, "-k", "survives", *arguments).outlines if line.startswith("seed ")]

    first = seeds()
    assert len(set(first)) == 2
    assert seeds() == first
    assert not set(seeds("--chaos-seed", "7")) & set(first)
