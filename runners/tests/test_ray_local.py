"""A Ray of our own: who can reach it, what it leaves alone, and what is left of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from turnout.testing import run_script

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("ray")]

_PREAMBLE = """
import json, os, signal, sys, tempfile, threading, time
from pathlib import Path
from turnout import flow, get_run_logger, task
from turnout._sockets import descendants, listening
from turnout.testing._footprint import Footprint
from turnout_runners.ray import RayTaskRunner

@task
def double(x):
    return 2 * x

def tell(**facts):
    print(json.dumps(facts))
"""


def told_by(script: str, folder: Path, *, quietly: bool = True, **variables: str) -> dict[str, Any]:
    """Run a script in a process of its own, for a process can have one Ray; return what it tells."""
    path = folder / "script.py"
    path.write_text(_PREAMBLE + textwrap.dedent(script))
    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not (quietly and done.stderr), done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def test_own_ray_is_private_and_leaves_nothing(tmp_path: Path) -> None:
    """One script, because each start takes seconds: what is looked at is told by the names of the facts."""
    home, temporary = tmp_path / "home", tmp_path / "t"
    home.mkdir()
    temporary.mkdir()
    script = """
        import ray

        def handler(*_):
            pass

        signal.signal(signal.SIGTERM, handler)
        variables = dict(os.environ)
        during = {}

        @flow(task_runner=RayTaskRunner(num_cpus=2))
        def main():
            result = double.map(range(20)).result()
            during.update(
                reachable=sorted(str(one) for one in listening() if not one.is_local),
                listens=len(listening()) > 3,
                processes=len(descendants(os.getpid())) > 3,
                folder=ray._private.worker._global_node.get_temp_dir_path(),
            )
            return result

        assert main() == list(range(0, 40, 2))
        tell(
            handler_is_kept=signal.getsignal(signal.SIGTERM) is handler,
            token_mode=oct((Path.home() / ".ray" / "auth_token").stat().st_mode & 0o777),
            is_up=ray.is_initialized(),
            processes_left=sorted(descendants(os.getpid())),
            folder_is_left=Path(during.pop("folder")).exists(),
            threads_left=[thread.name for thread in threading.enumerate() if "turnout" in thread.name],
            listening_left=len(listening()),
            variables_changed=sorted(
                name for name in {*variables, *os.environ} if variables.get(name) != os.environ.get(name)
            ),
            **during,
        )
    """
    # Of RAY_ADDRESS nothing is there; a Ray of our own must not look at it.
    facts = told_by(script, tmp_path, HOME=str(home), TMPDIR=str(temporary), RAY_ADDRESS="127.0.0.1:1")
    assert facts == {
        "reachable": [],
        "listens": True,
        "processes": True,
        "handler_is_kept": True,
        "token_mode": "0o600",
        "is_up": False,
        "processes_left": [],
        "folder_is_left": False,
        "threads_left": [],
        "listening_left": 0,
        "variables_changed": [],
    }


def test_ray_of_the_user_is_used_and_left_as_it_was(tmp_path: Path) -> None:
    script = """
        import ray
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
            _node_ip_address="127.0.0.1", object_store_memory=100 * 2**20, namespace="theirs",
        )
        node = ray.get_runtime_context().get_node_id()
        kept = ray.put("kept")

        @task
        def where():
            import ray
            return ray.get_runtime_context().get_node_id()

        @flow(task_runner=RayTaskRunner())
        def main():
            return where.submit().result(), double.submit(4).result()

        @flow(task_runner=RayTaskRunner("127.0.0.1:1"))
        def elsewhere():
            return double.submit(4).result()

        result = main()
        try:
            elsewhere()
        except Exception as error:
            refused = type(error).__name__, "A process can have one connection" in str(error)
        again = main()
        actors = [one for one in ray.util.list_named_actors() if one.startswith("turnout")]
        tell(
            same_node=result == again == (node, 8),
            refused=refused,
            is_up=ray.is_initialized(),
            value=ray.get(kept),
            runs=ray.get(ray.remote(lambda: 5).remote()),
            namespace=ray.get_runtime_context().namespace,
            actors=actors,
        )
        ray.shutdown()
    """
    facts = told_by(script, tmp_path, quietly=False, RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", RAY_AUTH_MODE="disabled")
    assert facts == {
        "same_node": True,
        "refused": ["RunnerStartError", True],
        "is_up": True,
        "value": "kept",
        "runs": 5,
        "namespace": "theirs",
        "actors": [],
    }


def test_losing_ray_ends_the_flow_and_not_the_process(tmp_path: Path) -> None:
    """R5: the head node dies under an open call; the next flow gets a new Ray."""
    script = """
        from turnout.errors import CrashedRun

        begun = Path("begun")

        @task
        def stay():
            begun.touch()
            time.sleep(100)

        runner = RayTaskRunner(num_cpus=1)
        open_calls = {}

        @flow(task_runner=runner)
        def main():
            futures = [stay.submit(), double.submit(1), double.submit(stay.submit())]
            while not begun.exists():
                time.sleep(0.01)
            for pid in descendants(os.getpid()):
                if any(word in Path(f"/proc/{pid}/cmdline").read_text() for word in ("gcs_server", "raylet/raylet")):
                    os.kill(pid, signal.SIGKILL)
            begin = time.monotonic()
            errors = [future.exception() for future in futures]
            open_calls.update(
                in_time=time.monotonic() - begin < 30,
                errors=[type(error).__name__ for error in errors],
                cause=all("Ray is lost: nothing answers at 127.0.0.1" in str(error) for error in errors[:2]),
            )
            return "ended"

        ended = main()

        @flow(task_runner=runner)
        def again():
            return double.submit(4).result()

        tell(**open_calls, ended=ended, again=again(), left=sorted(descendants(os.getpid())))
    """
    facts = told_by(script, tmp_path, quietly=False)
    assert facts == {
        "in_time": True,
        "errors": ["CrashedRun", "CrashedRun", "UpstreamFailed"],
        "cause": True,
        "ended": "ended",
        "again": 8,
        "left": [],
    }


def test_no_workers_are_started_for_batches_that_wait_for_a_processor(tmp_path: Path) -> None:
    """More batches are sent than there are processors; Ray may start a worker for each processor, and no more."""
    script = """
        def workers():
            titles = [Path(f"/proc/{pid}/cmdline").read_text() for pid in descendants(os.getpid())]
            own = ("ray::Mailbox", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
            return sum(title.startswith("ray::") and not title.startswith(own) for title in titles)

        counts = []
        with RayTaskRunner(num_cpus=2):
            for _ in range(8):
                assert double.map(range(3000)).result() == list(range(0, 6000, 2))
                counts.append(workers())
        tell(counts=counts)
    """
    # Some that are about to be there, and some that are free, are counted as if they were neither.
    assert max(told_by(script, tmp_path)["counts"]) <= 4


def test_prints_of_tasks_and_nothing_else_on_standard_output(tmp_path: Path) -> None:
    """Prints of tasks go to what is the driver's standard output, and nothing of Ray's beside them."""
    script = """
        @task
        def say(number):
            print("said", number)
            if number == 2:
                os._exit(1)

        @flow(task_runner=RayTaskRunner(num_cpus=1))
        def main():
            futures = say.with_options(crash_retries=0).map(range(4))
            return [type(future.exception()).__name__ for future in futures]

        import contextlib, io
        with contextlib.redirect_stdout(io.StringIO()) as said:
            kinds = main()
        tell(kinds=kinds, said=said.getvalue())
    """
    facts = told_by(script, tmp_path, quietly=False)
    assert facts["kinds"] == ["NoneType", "NoneType", "CrashedRun", "NoneType"]
    assert sorted(facts["said"].splitlines()) == ["said 0", "said 1", "said 2", "said 3"]


WITHOUT_MAILBOX = """
import logging, sys, time
import ray
from turnout import flow, get_run_logger, task
from turnout_runners.ray import RayTaskRunner

logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s %(message)s")

@task
def talk(number):
    get_run_logger().info("first word of %d", number)
    get_run_logger().info("last word of %d", number)
    return number

@task
def stay():
    time.sleep(600)

@flow(task_runner=(runner := RayTaskRunner(num_cpus=1)))
def main():
    return talk.map(range(3))

@flow(task_runner=runner)
def late():
    future = stay.submit()
    future.cancel()
    return type(future.exception()).__name__

with runner:
    main()
    ray.kill(runner._connection.mailbox)
    print(main())
    print(late())
"""


def test_without_its_mailbox_a_task_is_told_of_at_its_end(tmp_path: Path) -> None:
    done = run_script(WITHOUT_MAILBOX, tmp_path)
    assert done.returncode == 0, done.stderr
    for number in range(3):
        for word in ("first", "last"):
            assert done.stdout.count(f"turnout.task_runs {word} word of {number}\n") == 2
    assert "[0, 1, 2]" in done.stdout
    assert "CancelledRun" in done.stdout


def test_cancels_that_meet_the_ends_of_tasks_do_not_end_the_driver(tmp_path: Path) -> None:
    """``ray.cancel`` called in the driver itself ends it, within two or three seconds of this."""
    script = """
        import ray

        @ray.remote(max_retries=0)
        def nothing(seconds):
            time.sleep(seconds)

        def is_cancelled(reference):
            try:
                ray.get(reference)
            except ray.exceptions.TaskCancelledError:
                return True
            return False

        runner = RayTaskRunner(num_cpus=2)

        @flow(task_runner=runner)
        def main():
            double.submit(1).result()
            cancel = runner._pump._post.cancel
            ends = set()
            end = time.monotonic() + 8
            while time.monotonic() < end:
                # Some are over before they are cancelled, and some behind others are not.
                references = [nothing.remote(0.002 * (number // 20)) for number in range(50)]
                for reference in references:
                    cancel(reference, force=False)
                ends.update(map(is_cancelled, references))
            return sorted(ends)

        tell(ends=main())
    """
    assert told_by(script, tmp_path, quietly=False)["ends"] == [False, True]
