"""What a user gets from pip: built once from this checkout, then looked at and tried without the checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Final

import pytest

import turnout

ROOT: Final = Path(__file__).resolve().parents[1]
WORDS: Final = {"sequential", "thread", "concurrent", "process", "executor"}

pytestmark = [pytest.mark.xdist_group("packaging"), pytest.mark.timeout(120)]

HELLO: Final = """
from turnout import flow, task

@task
def double(x):
    return 2 * x

@flow
def doubled(n):
    return double.map(range(n)).result()

print(doubled.with_options(task_runner={word!r})(4))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source archive."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(folder)],
        cwd=ROOT, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    (path,) = built.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    return Parser().parsestr(read(wheel, "METADATA"))


@pytest.fixture(scope="module")
def unpacked(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as pip would lay it down, away from the checkout."""
    folder = tmp_path_factory.mktemp("site")
    wheel.extractall(folder)
    return folder


def read(wheel: zipfile.ZipFile, name: str) -> str:
    return wheel.read(f"turnout-{turnout.__version__}.dist-info/{name}").decode()


def run_unpacked(unpacked: Path, *command: str) -> str:
    # Without `site` no .pth file is read, so an editable install can't stand in for what the wheel lacks.
    libraries = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(unpacked), *libraries])}
    ended = subprocess.run(
        [sys.executable, "-S", *command], env=environment, cwd=unpacked,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def test_wheel_holds_the_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    expected = {
        path.relative_to(root).as_posix()
        for root, package in ((ROOT / "core", "turnout"), (ROOT / "runners", "turnout_runners"))
        for path in (root / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == expected


def test_both_packages_are_marked_as_typed(wheel: zipfile.ZipFile) -> None:
    assert {"turnout/py.typed", "turnout/history/page.html", "turnout_runners/py.typed"} <= set(wheel.namelist())


def test_metadata_tells_name_version_licence_and_pythons(metadata: Message) -> None:
    assert metadata["Name"] == "turnout"
    assert metadata["Version"] == turnout.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Summary"]
    assert metadata["Description-Content-Type"] == "text/markdown"


def test_base_needs_three_libraries_only(metadata: Message) -> None:
    needs = [need for need in metadata.get_all("Requires-Dist", []) if "extra ==" not in need]
    assert {re.split(r"[^\w-]", need)[0] for need in needs} == {"click", "cloudpickle", "rich"}


def test_extras_bring_their_libraries(metadata: Message) -> None:
    needs = metadata.get_all("Requires-Dist", [])
    assert {"all", "dask", "dev", "otel", "ray", "report", "testing"} == set(metadata.get_all("Provides-Extra", []))
    assert any(re.match(r"dask\[distributed\].*extra == 'dask'", need) for need in needs)
    assert any(re.match(r"ray.*extra == 'ray'", need) for need in needs)
    assert any(re.match(r"bokeh.*extra == 'report'", need) for need in needs)
    assert any(re.match(r"opentelemetry-api.*extra == 'otel'", need) for need in needs)
    assert {re.split(r"[^\w-]", need)[0] for need in needs if "extra == 'all'" in need} == {
        "bokeh",
        "dask",
        "networkx",
        "ray",
    }


def test_licence_is_inside(wheel: zipfile.ZipFile) -> None:
    assert read(wheel, "licenses/LICENSE") == (ROOT / "LICENSE").read_text()


def entry_points(wheel: zipfile.ZipFile) -> EntryPoints:
    sections = re.split(r"^\[(.+)\]$", read(wheel, "entry_points.txt"), flags=re.MULTILINE)[1:]
    points = []
    for group, body in zip(sections[::2], sections[1::2], strict=True):
        for line in filter(None, body.split("\n")):
            name, value = re.split(r"\s*=\s*", line, maxsplit=1)
            points.append(EntryPoint(name, value, group))
    return EntryPoints(points)


def test_every_runner_word_leads_to_a_runner(wheel: zipfile.ZipFile) -> None:
    points = entry_points(wheel).select(group="turnout.runners")
    assert points.names >= WORDS
    for point in points:
        assert point.extras or issubclass(point.load(), turnout.TaskRunner)


def test_the_command_is_there(wheel: zipfile.ZipFile) -> None:
    (point,) = entry_points(wheel).select(group="console_scripts")
    assert point.name == "turnout"
    assert callable(point.load())


def test_installed_metadata_is_that_of_the_checkout(wheel: zipfile.ZipFile) -> None:
    """An old editable install lacks new words; then `ci/setup`, or `pip install -e .`, has to be run again."""
    from importlib.metadata import entry_points as installed

    here = {(point.name, point.value) for point in installed(group="turnout.runners")}
    assert {(p.name, p.value) for p in entry_points(wheel).select(group="turnout.runners")} <= here


@pytest.mark.parametrize("word", ["sequential", "thread", "process", "executor"])
def test_unpacked_wheel_runs_a_flow(unpacked: Path, word: str) -> None:
    script = unpacked / f"hello_{word}.py"
    script.write_text(HELLO.format(word=word))
    assert run_unpacked(unpacked, str(script)) == "[0, 2, 4, 6]"


def test_unpacked_wheel_is_what_runs(unpacked: Path) -> None:
    where = run_unpacked(
        unpacked, "-c", "import turnout, turnout_runners; print(turnout.__file__, turnout_runners.__file__)"
    )
    assert [Path(path).is_relative_to(unpacked) for path in where.split()] == [True, True]


def test_source_archive_can_be_tested_and_built_again(built: Path, tmp_path: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    top = {entry.name for entry in source.iterdir()}
    assert {"LICENSE", "README.md", "ci", "core", "examples", "integration_tests", "runners", "pyproject.toml"} <= top
    assert not [found for found in source.rglob("*") if found.suffix == ".pyc" or found.name == "demo-output"]
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "again")],
        cwd=source, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    (again,), (wheel,) = (tmp_path / "again").glob("*.whl"), built.glob("*.whl")
    assert zipfile.ZipFile(again).namelist() == zipfile.ZipFile(wheel).namelist()
