"""A script with a module beside it, which it ships to workers that would not find it."""

from __future__ import annotations

import textwrap
from pathlib import Path

from turnout.testing import run_script

__all__ = ["ship_a_module"]

_BESIDE = "class Marker:\n    pass\n\ndef double(x):\n    return 2 * x\n"
_SCRIPT = """
    import beside
    from turnout import flow, task
    from turnout_runners.{place} import {runner}

    @task
    def double(x):
        import beside
        return beside.double(x), beside.Marker()

    @flow(task_runner={runner}(**{arguments!r}, ship=[beside]))
    def main():
        value, marker = double.submit(4).result()
        return value, type(marker) is beside.Marker, task(beside.double).submit(5).result()

    print(main())
"""


def ship_a_module(folder: Path, place: str, runner: str, arguments: dict[str, object]) -> None:
    """Run the script, and see that its tasks can import the module.

    Parameters
    ----------
    folder
        Where script and module are written.
    place, runner, arguments
        The subpackage and the class of the runner, and what it is made with.
    """
    (folder / "beside.py").write_text(_BESIDE)
    script = textwrap.dedent(_SCRIPT).format(place=place, runner=runner, arguments=arguments)
    done = run_script(script, folder)
    assert (done.returncode, done.stdout) == (0, "(8, True, 10)\n"), done.stderr
