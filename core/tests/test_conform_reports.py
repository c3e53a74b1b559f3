"""Reports of the conformance kit, read back from the file that the plugin writes."""

from __future__ import annotations

import json
from pathlib import Path

from turnout.testing._conform import Row, read_reports


def written(folder: Path, *lines: tuple[str, str, str, str]) -> Path:
    path = folder / "report.jsonl"
    names = ("class", "test", "outcome", "detail")
    path.write_text("".join(json.dumps(dict(zip(names, line, strict=True))) + "\n" for line in lines))
    return path


def test_no_file_is_no_report(tmp_path: Path) -> None:
    assert read_reports(tmp_path / "none") == {}


def test_equal_words_under_different_guarantees_are_different_behaviours(tmp_path: Path) -> None:
    path = written(
        tmp_path, ("TestA", "test_R2_in_time", "passed", ""), ("TestA", "test_E2_in_time", "failed", "too late")
    )
    assert read_reports(path)["TestA"].rows == [
        Row("E2", "in time", "failed", "too late"),
        Row("R2", "in time", "passed", ""),
    ]


def test_of_the_cases_of_one_behaviour_the_worst_counts(tmp_path: Path) -> None:
    cases = [("passed", ""), ("failed", "broken"), ("declared", "inline")]
    path = written(tmp_path, *(("TestA", "test_F1_names", outcome, detail) for outcome, detail in cases))
    assert read_reports(path)["TestA"].rows == [Row("F1", "names", "failed", "broken")]


def test_each_class_has_a_report(tmp_path: Path) -> None:
    path = written(tmp_path, ("TestA", "test_F1_names", "passed", ""), ("TestB", "test_F1_names", "declared", "inline"))
    assert {name: report.rows[0].outcome for name, report in read_reports(path).items()} == {
        "TestA": "passed",
        "TestB": "declared",
    }
