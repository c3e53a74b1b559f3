"""What a process may use of its machine, told by control groups, variables of SLURM and the system."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from turnout import _machine
from turnout._machine import Memory, Processors, memory, processors, usable_memory, usable_processors

NO_LIMIT = 9223372036854771712  # as version 1 of control groups writes it


class Groups(Protocol):
    def __call__(self, own: str, files: dict[str, str]) -> None: ...


def forget() -> None:
    _machine._cgroup_processors.cache_clear()
    _machine._cgroup_memory.cache_clear()


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Groups:
    """Have this process be in control groups that a test writes: those of its own, and the files of all."""

    def put(own: str, files: dict[str, str]) -> None:
        for name, text in files.items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (tmp_path / "own").write_text(own)
        monkeypatch.setattr(_machine, "_CONTROL_GROUPS", str(tmp_path / "groups"))
        monkeypatch.setattr(_machine, "_OWN_GROUPS", str(tmp_path / "own"))
        forget()

    return put


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    forget()
    yield
    forget()


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/job/step\n", {"job/step/cpu.max": "150000 100000\n", "job/cpu.max": "max 100000\n"}, 1.5),
        ("0::/job/step\n", {"job/step/cpu.max": "max 100000\n", "job/cpu.max": "200000 100000\n"}, 2),
        ("0::/job/step\n", {"job/step/cpu.max": "400000 100000\n", "job/cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 0.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("0::/job\n", {"job/cpu.max": "nonsense\n"}, None),
        (
            "3:cpu,cpuacct:/job\n2:memory:/\n",
            {"cpu/job/cpu.cfs_quota_us": "250000\n", "cpu/job/cpu.cfs_period_us": "100000\n"},
            2.5,
        ),
        ("3:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        # The path is the host's, and in the container its own group is on top.
        (
            "3:cpu,cpuacct:/docker/4711\n",
            {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            3,
        ),
        ("3:cpuset:/job\n", {"cpu/job/cpu.cfs_quota_us": "100000\n", "cpu/job/cpu.cfs_period_us": "100000\n"}, None),
        ("nonsense\n", {}, None),
    ],
)
def test_the_strictest_quota_of_the_groups_counts(
    groups: Groups, own: str, files: dict[str, str], expected: float | None
) -> None:
    groups(own, files)
    assert processors().cgroup == expected


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/job/step\n", {"job/step/memory.max": "max\n", "job/memory.max": "4294967296\n"}, 2**32),
        ("0::/job/step\n", {"job/step/memory.max": "1073741824\n", "job/memory.max": "4294967296\n"}, 2**30),
        ("0::/\n", {"memory.max": "max\n"}, None),
        ("4:memory:/job\n", {"memory/job/memory.limit_in_bytes": f"{2**31}\n"}, 2**31),
        ("4:memory:/job\n", {"memory/job/memory.limit_in_bytes": f"{NO_LIMIT}\n"}, None),
        ("4:memory:/docker/4711\n", {"memory/memory.limit_in_bytes": f"{2**29}\n"}, 2**29),
    ],
)
def test_the_strictest_limit_of_memory_counts(
    groups: Groups, own: str, files: dict[str, str], expected: int | None
) -> None:
    groups(own, files)
    assert memory().cgroup == expected


def test_without_control_groups_there_are_no_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_machine, "_OWN_GROUPS", str(tmp_path / "absent"))
    forget()
    assert (processors().cgroup, memory().cgroup) == (None, None)


@pytest.mark.parametrize(
    ("told", "usable"),
    [
        (Processors(8, None, None, None), 8),
        (Processors(8, 4, None, None), 4),
        (Processors(8, 4, 1.5, None), 2),
        (Processors(8, 4, 0.1, None), 1),
        (Processors(8, 4, 2.0, 3), 2),
        (Processors(8, 8, None, 3), 3),
    ],
)
def test_the_least_of_all_may_be_used(told: Processors, usable: int) -> None:
    assert told.usable == usable


def test_the_address_space_of_one_process_does_not_limit_all_of_them() -> None:
    assert Memory(8, 4, 6, 1).usable == 4
    assert Memory(8, None, 6, None).usable == 6
    assert Memory(None, None, None, 1).usable is None


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"SLURM_CPUS_PER_TASK": "3"}, 3),
        ({"SLURM_CPUS_ON_NODE": "16"}, 16),
        ({"SLURM_CPUS_PER_TASK": "3", "SLURM_CPUS_ON_NODE": "16"}, 3),
        ({"SLURM_CPUS_PER_TASK": "many", "SLURM_CPUS_ON_NODE": ""}, None),
        ({"SLURM_CPUS_PER_TASK": "0"}, None),
    ],
)
def test_processors_of_slurm(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: int | None) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert processors().slurm == expected


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"SLURM_MEM_PER_NODE": "4096"}, 2**32),
        ({"SLURM_MEM_PER_NODE": "0"}, None),
        ({"SLURM_MEM_PER_CPU": "1024"}, None),
        ({"SLURM_MEM_PER_CPU": "1024", "SLURM_CPUS_ON_NODE": "4"}, 2**32),
        ({"SLURM_MEM_PER_CPU": "1024", "SLURM_CPUS_ON_NODE": "4", "SLURM_MEM_PER_NODE": "2048"}, 2**31),
    ],
)
def test_memory_of_slurm(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: int | None) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert memory().slurm == expected


def test_what_slurm_gives_may_be_used(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    groups("0::/\n", {"cpu.max": "max 100000\n", "memory.max": "max\n"})
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1")
    assert (usable_processors(), usable_memory()) == (1, 2**20)


def told_elsewhere(setup: str) -> str:
    """Return what a process of its own says of itself, after some code or under some limit of a shell."""
    shell, _, code = setup.rpartition("&&")
    command = f"{shell or 'true'} && exec {sys.executable} -c '{code.strip()}'"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30, check=True)
    return ended.stdout


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_the_affinity_is_asked_for_each_time() -> None:
    told = told_elsewhere(
        "import os; from turnout._machine import processors, usable_processors; usable_processors(); "
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(processors().affinity, usable_processors())"
    )
    assert told == "1 1\n"


def test_the_address_space_is_that_of_ulimit() -> None:
    told = told_elsewhere("ulimit -v 8000000 && from turnout._machine import memory; print(memory().address_space)")
    assert told == f"{8_000_000 * 1024}\n"
    assert memory().machine == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
