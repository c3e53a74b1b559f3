"""Versions of driver and workers, and code that travels."""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from pathlib import Path

import pytest

from turnout._cluster import check_versions, shipment_of, shipped_paths, unpack_shipment, versions
from turnout._serialization import load_function, pack_function
from turnout.errors import RunnerOptionError, RunnerStartError

HERE = {"python": "3.11.7", "turnout": "0.1.0", "cloudpickle": "3.1.0"}


def test_equal_versions_are_fine() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_versions(versions(), {"worker 1": versions(), "worker 2": versions()})


@pytest.mark.parametrize(
    ("package", "other", "text"),
    [
        ("python", "3.12.7", "The driver has Python 3.11.7, and worker 1 has Python 3.12.7"),
        ("turnout", "0.2.0", "The driver has Turnout 0.1.0, and worker 1 has Turnout 0.2.0"),
        ("turnout", None, "Turnout is not installed for worker 1.* pip install turnout==0.1.0"),
    ],
)
def test_a_difference_that_breaks_is_an_error_that_names_both_sides(package: str, other: str | None, text: str) -> None:
    with pytest.raises(RunnerStartError, match=text):
        check_versions(HERE, {"worker 0": HERE, "worker 1": {**HERE, package: other}})


@pytest.mark.parametrize(
    ("package", "other", "text"),
    [
        ("python", "3.11.9", "The driver has Python 3.11.7; worker 1 has 3.11.9"),
        ("cloudpickle", "2.2.1", "The driver has cloudpickle 3.1.0; worker 1 has 2.2.1"),
    ],
)
def test_a_difference_that_may_matter_is_one_warning(package: str, other: str, text: str) -> None:
    with pytest.warns(RuntimeWarning, match=text) as caught:
        check_versions(HERE, {"worker 0": HERE, "worker 1": {**HERE, package: other}})
    assert len(caught) == 1


def test_what_one_side_does_not_tell_is_not_compared() -> None:
    check_versions(HERE, {"scheduler": {"python": "3.11.7"}})


def package(folder: Path, name: str, text: str) -> Path:
    inner = folder / name / "inner"
    inner.mkdir(parents=True)
    (folder / name / "__init__.py").write_text(f"TEXT = {text!r}\n")
    (inner / "__init__.py").write_text("from .. import TEXT\n")
    (folder / name / "data.txt").write_text("data")
    (folder / name / "__pycache__").mkdir()
    (folder / name / "__pycache__" / "old.pyc").write_bytes(b"old")
    return folder / name


def test_a_package_travels_with_its_data_and_is_gone_when_it_is_removed(tmp_path: Path) -> None:
    data = shipment_of([str(package(tmp_path, "shipped_package", "travelled"))])
    assert data is not None
    path = list(sys.path)
    shipped = unpack_shipment(data)
    try:
        inner = importlib.import_module("shipped_package.inner")
        assert inner.TEXT == "travelled"
        home = Path(str(inner.__file__)).parents[1]
        assert (home / "data.txt").read_text() == "data"
        assert not (home / "__pycache__" / "old.pyc").exists()
        assert home.parent != tmp_path
    finally:
        shipped.remove()
    shipped.remove()
    assert sys.path == path
    assert not home.exists()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("shipped_package")


def test_a_new_version_wins_over_one_that_was_imported(tmp_path: Path) -> None:
    first = shipment_of([str(package(tmp_path / "one", "shipped_twice", "first"))])
    second = shipment_of([str(package(tmp_path / "two", "shipped_twice", "second"))])
    assert first is not None
    assert second is not None
    one = unpack_shipment(first)
    assert importlib.import_module("shipped_twice").TEXT == "first"
    one.remove()
    two = unpack_shipment(second)
    assert importlib.import_module("shipped_twice").TEXT == "second"
    two.remove()


def test_a_function_that_was_loaded_before_is_that_of_the_new_version(tmp_path: Path) -> None:
    module = tmp_path / "shipped_function.py"
    results = []
    for version in ("first", "second"):
        module.write_text(f"def told():\n    return {version!r}\n")
        data = shipment_of([str(module)])
        assert data is not None
        shipped = unpack_shipment(data)
        digest, blob = pack_function(importlib.import_module("shipped_function").told)
        results.append((digest, load_function(digest, blob)()))
        shipped.remove()
    assert results == [(digest, "first"), (digest, "second")]


def test_modules_lead_to_their_top_packages(tmp_path: Path) -> None:
    import json.decoder
    import textwrap

    assert [path.name for path in shipped_paths([json.decoder, textwrap])] == ["json", "textwrap.py"]
    single = tmp_path / "single_module.py"
    single.write_text("VALUE = 1\n")
    assert shipped_paths([str(single)]) == [single]
    assert shipment_of([]) is None


def test_a_package_without_an_init_file_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "shipped_namespace"
    folder.mkdir()
    (folder / "inner.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert shipped_paths([importlib.import_module("shipped_namespace.inner")]) == [folder]


@pytest.mark.parametrize("item", ["/nowhere/at/all", "README.md", types.ModuleType("made_by_hand")])
def test_what_cannot_travel_is_refused(item: str | types.ModuleType) -> None:
    with pytest.raises((RunnerOptionError, ModuleNotFoundError)):
        shipped_paths([item])
