"""L4 and L5: scripts as people write them, and who can reach them."""

# ruff: noqa: N802 - tests are named after their guarantees

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Any, Literal

import pytest

from turnout import flow

from .._sockets import Socket, listening
from ._bodies import add, gate
from ._kit import Conformance, Signals, run_script, runner_expression

if TYPE_CHECKING:
    from pathlib import Path

    from turnout.runner import TaskRunner

__all__ = ["ScriptConformance"]

_How = Literal["file", "stdin", "-c"]
_WAYS: tuple[_How, ...] = ("file", "stdin", "-c")

_PREAMBLE = """
import json
from turnout import flow, task
runner = {runner}
"""


# Those in a private folder are private, whatever their own bits say. Where the name of the temporary folder is too long
# for sockets, runners may take /tmp, and call theirs after themselves.
_PUBLIC = """
import os, pathlib, tempfile
os.umask(0)

def public_ones():
    top = pathlib.Path(tempfile.gettempdir())
    todo = [*top.iterdir(), *(set(pathlib.Path("/tmp").glob("turnout-*")) - before)]
    while todo:
        path = todo.pop()
        try:
            told = path.lstat()
            mode = told.st_mode
            if told.st_uid == os.getuid() and mode & 0o077 and not path.is_symlink():
                yield path
            if mode & 0o005 and path.is_dir():
                todo.extend(path.iterdir())
        except FileNotFoundError:
            pass

before = set(pathlib.Path("/tmp").glob("turnout-*"))
# The look is not blind.
pathlib.Path(tempfile.gettempdir(), "control").touch()

@task
def large():
    return b"x" * 300_000

@task
def size(value):
    return len(value)

@flow(task_runner=runner)
def main():
    assert size.submit(large.submit()).result() == 300_000
    for path in public_ones():
        print(path)

main()
"""


class ScriptConformance(Conformance):
    """L4 and L5."""

    @pytest.mark.parametrize("how", _WAYS)
    def test_L4_no_guard_is_needed(self, fresh_runner: TaskRunner, tmp_path: Path, how: _How) -> None:
        """A script runs its flow at the top level, as a file, from standard input and after `-c`, and runs once."""
        script = """
            print("top level")

            @task
            def double(x):
                return 2 * x

            @flow(task_runner=runner)
            def main():
                return sum(double.map(range(10)).result())

            print(main())
        """
        assert _output(fresh_runner, script, tmp_path, how) == "top level\n90\n"

    @pytest.mark.parametrize("how", _WAYS)
    def test_L4_functions_and_globals_of_main(self, fresh_runner: TaskRunner, tmp_path: Path, how: _How) -> None:
        """Tasks may call other functions of the script, in circles too, and use its imports and globals."""
        script = """
            import math
            FACTOR = 10

            def even(n):
                return n == 0 or odd(n - 1)

            def odd(n):
                return n != 0 and even(n - 1)

            @task
            def judge(n):
                return [math.floor(n * 1.5) * FACTOR, even(n), odd(n)]

            @flow(task_runner=runner)
            def main():
                return judge.map([3, 4]).result()

            print(json.dumps(main()))
        """
        assert json.loads(_output(fresh_runner, script, tmp_path, how)) == [[40, False, True], [60, True, False]]

    @pytest.mark.parametrize("how", _WAYS)
    def test_L4_classes_of_main(self, fresh_runner: TaskRunner, tmp_path: Path, how: _How) -> None:
        """Objects of the script's classes go to tasks and come back as objects of the same class."""
        script = """
            import dataclasses, enum

            class Colour(enum.Enum):
                RED = 1
                BLUE = 2

            @dataclasses.dataclass
            class Point:
                x: int
                colour: Colour = Colour.RED

                def moved(self, by):
                    return dataclasses.replace(self, x=self.x + by)

            class Special(Point):
                def moved(self, by):
                    return super().moved(2 * by)

            @task
            def move(point, by):
                assert isinstance(point, Point)
                return point.moved(by)

            @flow(task_runner=runner)
            def main():
                return [move.submit(Point(1), 5).result(), move.submit(Special(1, Colour.BLUE), 5).result()]

            point, special = main()
            print(point == Point(6), type(point) is Point, point.colour is Colour.RED)
            print(special == Special(11, Colour.BLUE), type(special) is Special, special.colour is Colour.BLUE)
        """
        assert _output(fresh_runner, script, tmp_path, how) == "True True True\nTrue True True\n"

    @pytest.mark.parametrize("how", _WAYS)
    def test_L4_lambdas_and_closures_of_main(self, fresh_runner: TaskRunner, tmp_path: Path, how: _How) -> None:
        """Lambdas, closures, partials and methods of the script are tasks like any others."""
        script = """
            import functools

            def times(factor):
                def multiply(x):
                    return factor * x
                return multiply

            class Scale:
                def __init__(self, factor):
                    self.factor = factor

                def apply(self, x):
                    return self.factor * x

            @flow(task_runner=runner)
            def main():
                offset = 100
                bodies = [lambda x: x + offset, times(3), functools.partial(pow, 2), Scale(7).apply]
                return [task(name="body")(body).submit(5).result() for body in bodies]

            print(json.dumps(main()))
        """
        assert json.loads(_output(fresh_runner, script, tmp_path, how)) == [105, 15, 32, 35]

    @pytest.mark.parametrize("how", _WAYS)
    def test_L4_exceptions_of_main(self, fresh_runner: TaskRunner, tmp_path: Path, how: _How) -> None:
        """Exceptions of the script's classes can be caught by these classes."""
        script = """
            class Refused(Exception):
                def __init__(self, code, *, reason):
                    super().__init__(reason)
                    self.code = code

            @task
            def refuse():
                raise Refused(4, reason="closed")

            @flow(task_runner=runner)
            def main():
                try:
                    refuse.submit().result()
                except Refused as error:
                    return f"{error} {error.code}"

            print(main())
        """
        assert _output(fresh_runner, script, tmp_path, how) == "closed 4\n"

    def test_L4_generators_and_async_of_main(self, fresh_runner: TaskRunner, tmp_path: Path) -> None:
        """Generators and async functions of the script are tasks too, and async flows run in `asyncio.run`."""
        script = """
            import asyncio

            @task
            def count(n):
                yield from range(n)

            @task
            async def double(x):
                await asyncio.sleep(0)
                return 2 * x

            @flow(task_runner=runner)
            async def main():
                counted = await count.submit(3)
                return [await double.submit(x) for x in counted]

            print(json.dumps(asyncio.run(main())))
        """
        assert json.loads(_output(fresh_runner, script, tmp_path, "file")) == [0, 2, 4]

    def test_L4_guarded_script(self, fresh_runner: TaskRunner, tmp_path: Path) -> None:
        """A script with a guard works just the same."""
        script = """
            @task
            def name():
                return __name__

            @flow(task_runner=runner)
            def main():
                return name.submit().result()

            if __name__ == "__main__":
                print(main())
        """
        assert _output(fresh_runner, script, tmp_path, "file") == "__main__\n"

    def test_L4_functions_redefined(self, fresh_runner: TaskRunner, tmp_path: Path) -> None:
        """A function that is defined anew, as in a notebook's cell that runs twice, is the new one to workers too."""
        script = """
            results = []
            with runner:
                for number in range(3):
                    exec(f"def body(): return {number}", globals())
                    results.append(task(body).submit().result())
            print(json.dumps(results))
        """
        assert json.loads(_output(fresh_runner, script, tmp_path, "file")) == [0, 1, 2]

    def test_L4_module_beside_the_script(self, fresh_runner: TaskRunner, tmp_path: Path) -> None:
        """A module that lies beside the script can be imported by tasks."""
        (tmp_path / "beside.py").write_text("class Marker:\n    pass\n\ndef double(x):\n    return 2 * x\n")
        script = """
            import beside

            @task
            def double(x):
                import beside
                return beside.double(x), beside.Marker()

            @flow(task_runner=runner)
            def main():
                value, marker = double.submit(4).result()
                return value, type(marker) is beside.Marker, task(beside.double).submit(5).result()

            print(main())
        """
        assert _output(fresh_runner, script, tmp_path, "file") == "(8, True, 10)\n"

    def test_L4_arguments_and_directory(self, fresh_runner: TaskRunner, tmp_path: Path) -> None:
        """Tasks run in the script's directory and see its environment and arguments."""
        script = """
            import os, sys

            @task
            def look():
                return [os.getcwd(), sys.argv[1:], os.environ["TURNOUT_TEST_WORD"]]

            @flow(task_runner=runner)
            def main():
                return look.submit().result()

            print(json.dumps(main()))
        """
        done = run_script(
            _whole(fresh_runner, script),
            tmp_path,
            arguments=["--fast", "x y"],
            environment={"TURNOUT_TEST_WORD": "word"},
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == [str(tmp_path), ["--fast", "x y"], "word"]

    def test_L4_nothing_on_standard_error(self, fresh_runner: TaskRunner, tmp_path: Path) -> None:
        """A script that goes well leaves standard error empty, at its end too."""
        script = """
            @task
            def double(x):
                return 2 * x

            @flow(task_runner=runner)
            def main():
                return sum(double.map(range(10)).result())

            main()
            main()
        """
        done = run_script(_whole(fresh_runner, script), tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_L5_only_loopback(self, fresh_runner: TaskRunner, signals: Signals) -> None:
        """While a flow runs, nothing of driver and workers listens where other machines could reach it."""
        before = _reachable()
        seen: set[Socket] = set()

        @flow(task_runner=fresh_runner)
        def main() -> Any:
            if fresh_runner.capabilities.inline:
                signals.set("go")
            future = gate.submit(signals)
            signals.wait("begun")
            seen.update(_reachable())
            signals.set("go")
            return future.result()

        main()
        assert seen - before == set()

    def test_L5_nothing_listens_afterwards(self, fresh_runner: TaskRunner) -> None:
        """After a flow nothing listens that did not before."""
        before = listening()

        @flow(task_runner=fresh_runner)
        def main() -> list[int]:
            return add.map(range(10), 1).result()

        main()
        assert listening() - before == set()

    def test_L5_files_are_private(self, fresh_runner: TaskRunner, tmp_path: Path) -> None:
        """What is written to temporary folders can be read and changed by nobody else, even with a umask of 0."""
        folder = tmp_path / "t"
        folder.mkdir(mode=0o755)
        done = run_script(_whole(fresh_runner, _PUBLIC), tmp_path, environment={"TMPDIR": str(folder)})
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [str(folder / "control")]

    def test_L5_the_look_is_not_blind(self) -> None:
        """A socket that listens on all addresses is seen by these tests."""
        import socket

        with socket.create_server(("0.0.0.0", 0)) as server, socket.create_server(("127.0.0.1", 0)) as harmless:
            ports = {found.port for found in _reachable()}
            assert server.getsockname()[1] in ports
            assert harmless.getsockname()[1] not in ports


def _reachable() -> set[Socket]:
    return {found for found in listening() if not found.is_local}


def _whole(runner: TaskRunner, script: str) -> str:
    return _PREAMBLE.format(runner=runner_expression(runner)) + textwrap.dedent(script)


def _output(runner: TaskRunner, script: str, directory: Path, how: _How) -> str:
    done = run_script(_whole(runner, script), directory, how=how)
    assert done.returncode == 0, done.stderr
    return done.stdout
