"""A runner that a stranger wrote, installed as a stranger's package is, held to the same promises."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from turnout.testing import RunnerConformance

if TYPE_CHECKING:
    from turnout import TaskRunner

PACKAGE: Final = Path(__file__).parent / "third_party"

pytestmark = pytest.mark.xdist_group("third party")


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder into which pip installed the package, on the path of this process and of its children."""
    source = tmp_path_factory.mktemp("source") / "crew"
    shutil.copytree(PACKAGE, source)
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "--no-deps", "--no-build-isolation", "--no-index", "--target", str(folder), str(source)],
        check=True,
        timeout=50,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])))
        yield folder
    sys.modules.pop("turnout_crew", None)


class TestThirdParty(RunnerConformance):
    """The whole kit over the installed package."""

    def make_runner(self, slots: int) -> TaskRunner:
        runner: TaskRunner = importlib.import_module("turnout_crew").CrewTaskRunner(slots)
        return runner


def turnout(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "turnout", *arguments]
    # Longer than the kit gives one behaviour: then that one's stacks are in what it says.
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_the_word_is_known() -> None:
    done = turnout("runners")
    assert "crew" in done.stdout, done.stderr
    assert done.returncode == 0


@pytest.mark.timeout(120)
def test_conform_prints_a_table() -> None:
    done = turnout("conform", "crew", "-k", "test_D3")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if "D3" in line]
    assert len(rows) >= 10
    assert all("passed" in row or "declared" in row for row in rows)


def test_the_package_is_as_short_as_promised() -> None:
    lines = (PACKAGE / "src" / "turnout_crew" / "__init__.py").read_text().splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 35
