"""The Ray runner as a recipe: addresses, words, options, and what it says before any Ray is there."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from turnout import flow, task
from turnout.errors import RunnerOptionError, RunnerStartError, RunnerStoppedError
from turnout.registry import resolve
from turnout.runner import Plan
from turnout_runners.ray import RayTaskRunner
from turnout_runners.ray._addresses import host_and_port, same_place
from turnout_runners.ray._local import _private_token, _store_size


@task
def double(x: int) -> int:
    return 2 * x


@pytest.mark.parametrize(
    ("word", "runner"),
    [
        ("ray", RayTaskRunner()),
        ("ray?num_cpus=2", RayTaskRunner(num_cpus=2)),
        ("ray?address=head:6379", RayTaskRunner("head:6379")),
        ("ray://head:10001", RayTaskRunner("ray://head:10001")),
        ("ray://head:10001?num_cpus=4&namespace=mine", RayTaskRunner("ray://head:10001", num_cpus=4, namespace="mine")),
    ],
)
def test_words(word: str, runner: RayTaskRunner) -> None:
    assert resolve(word) == runner


@pytest.mark.parametrize("url", ["ray://head", "ray://head:port", "ray://head:10001?num_cpus=many", "ray://h:1?a=b"])
def test_urls_that_make_no_sense(url: str) -> None:
    with pytest.raises(RunnerOptionError, match="ray://h"):
        resolve(url)


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "head:port", "", "ray://", 6379])
def test_addresses_that_make_no_sense(address: str) -> None:
    with pytest.raises(RunnerOptionError, match="auto"):
        RayTaskRunner(address)


@pytest.mark.parametrize("settings", [{"num_cpus": 0}, {"num_cpus": 1.5}, {"connect_timeout": 0}])
def test_numbers_that_make_no_sense(settings: dict[str, int]) -> None:
    with pytest.raises(RunnerOptionError, match=next(iter(settings))):
        RayTaskRunner(**settings)  # type: ignore[arg-type]


def test_recipe() -> None:
    runner = RayTaskRunner("head:6379", num_cpus=2, runtime_env={"env_vars": {"A": "1"}})
    assert pickle.loads(pickle.dumps(runner)) == runner
    assert eval(repr(runner)) == runner
    assert runner != RayTaskRunner("head:6379", num_cpus=2)
    assert runner.slots() == 2


def test_making_a_recipe_does_not_load_ray() -> None:
    script = (
        "import sys; from turnout.registry import resolve; resolve('ray?num_cpus=2'); "
        "assert not {'ray', 'grpc'} & set(sys.modules), 'loaded'"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_submitting_where_nothing_was_started_is_an_error() -> None:
    with pytest.raises(RunnerStoppedError, match="not running"):
        RayTaskRunner().submit(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_nobody_answers(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    address = f"{scheme}127.0.0.1:{port}"

    @flow(task_runner=RayTaskRunner(address, connect_timeout=1))
    def main() -> int:
        return double.submit(1).result()

    begin = time.monotonic()
    with pytest.raises(RunnerStartError, match=rf"No Ray answers at {address}: .* 1 s .*ray start --head"):
        main()
    assert time.monotonic() - begin < 5


def test_hosts_and_ports() -> None:
    assert host_and_port("head:6379") == ("head", 6379)
    assert host_and_port("ray://head:10001") == ("head", 10001)
    assert host_and_port("[fe80::1]:6379") == ("fe80::1", 6379)
    with pytest.raises(ValueError, match="host:port"):
        host_and_port("head")


def test_same_places() -> None:
    assert same_place("127.0.0.1:1", "localhost:1")
    assert not same_place("127.0.0.1:1", "127.0.0.1:2")
    assert not same_place("ray://127.0.0.1:1", "127.0.0.1:1")
    assert not same_place(None, "127.0.0.1:1")


@pytest.mark.parametrize(
    ("runner", "plan"),
    [
        (RayTaskRunner(), Plan(1)),
        (RayTaskRunner(num_cpus=3), Plan(3)),
        (RayTaskRunner(num_cpus=3, init_kwargs={"num_cpus": 4}), Plan(4)),
        (RayTaskRunner("ray://head:10001", num_cpus=3), Plan()),
        (RayTaskRunner("auto"), Plan()),
    ],
)
def test_what_a_ray_of_its_own_would_be(monkeypatch: pytest.MonkeyPatch, runner: RayTaskRunner, plan: Plan) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert runner.plan() == plan


def test_the_object_store_is_a_part_of_what_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    without = _store_size()
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1000")
    assert _store_size() == min(without, int(0.3 * 1000 * 2**20))
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1")
    assert _store_size() == 100 * 2**20, "Ray wants so much"


def test_the_token_of_a_local_ray_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token that opens it, and its folder, are the owner's alone, whatever the umask; one that is there stays."""
    monkeypatch.setenv("HOME", str(tmp_path))
    before = os.umask(0)
    try:
        _private_token()
    finally:
        os.umask(before)
    token = tmp_path / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.parent.stat().st_mode & 0o777 == 0o700
    text = token.read_text()
    assert len(text) > 20
    token.chmod(0o644)
    _private_token()
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.read_text() == text


@pytest.mark.parametrize(
    "make",
    [
        lambda secret: RayTaskRunner.from_url(f"ray://head:10001?token={secret}"),
        lambda secret: RayTaskRunner.from_url(f"ray://user:{secret}@head:10001?token=1"),
        lambda secret: RayTaskRunner(f"user:{secret}@head"),
    ],
    ids=["option", "address", "no port"],
)
def test_errors_about_addresses_hide_secrets(make: Callable[[str], RayTaskRunner]) -> None:
    with pytest.raises(RunnerOptionError) as caught:
        make("open-sesame")
    assert "open-sesame" not in str(caught.value)


def test_repr_hides_secrets() -> None:
    runner = RayTaskRunner("ray://user:open-sesame@head:10001", init_kwargs={"_redis_password": "hunter2", "n": 1})
    assert repr(runner) == (
        "RayTaskRunner(address='ray://***@head:10001', init_kwargs={'_redis_password': '***', 'n': 1})"
    )
    assert pickle.loads(pickle.dumps(runner)) == runner


def test_a_ray_that_does_not_start_hides_secrets() -> None:
    """Also in what Python prints of the causes."""

    @flow(task_runner=RayTaskRunner("ray://user:open-sesame@127.0.0.1:9", connect_timeout=0.5))
    def main() -> int:
        return double.submit(1).result()

    with pytest.raises(RunnerStartError, match=r"ray://\*\*\*@127.0.0.1:9") as caught:
        main()
    assert "open-sesame" not in "".join(traceback.format_exception(caught.value))
