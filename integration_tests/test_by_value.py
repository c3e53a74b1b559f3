"""Functions of the test modules here travel by value, for no worker can import test modules."""

from __future__ import annotations

import subprocess
import sys

import cloudpickle  # type: ignore[import-untyped]

LOAD_AND_CALL = "import pickle, sys; function = pickle.load(sys.stdin.buffer); print(function(20))"

ONE = 1


def one_more(x: int) -> int:
    return x + ONE


def test_function_of_a_test_module_runs_where_the_module_is_not() -> None:
    packed = cloudpickle.dumps(one_more)
    command = [sys.executable, "-I", "-c", LOAD_AND_CALL]
    ended = subprocess.run(command, input=packed, capture_output=True, check=True, timeout=30)
    assert ended.stdout.split() == [b"21"]


def test_what_can_be_imported_still_travels_by_reference() -> None:
    assert len(cloudpickle.dumps(cloudpickle.CloudPickler)) < 200
