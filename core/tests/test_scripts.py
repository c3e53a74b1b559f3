"""Files that only this machine has."""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from turnout import _scripts
from turnout._scripts import add_script, are_scripts_by_value, scripts_by_value
from turnout._serialization import pack_function


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "a_script_here.py").write_text("def double(x):\n    return 2 * x\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(_scripts, "_scripts", [])
    module = importlib.import_module("a_script_here")
    add_script(module)
    yield module
    sys.modules.pop("a_script_here", None)


def test_they_go_by_value_while_a_runner_elsewhere_is_up(script: Any) -> None:
    assert pickle.loads(pack_function(script.double)[1]) is script.double
    with scripts_by_value():
        with scripts_by_value():
            assert are_scripts_by_value()
        packed = pack_function(script.double)[1]
        assert pickle.loads(packed) is not script.double
        assert pickle.loads(packed)(4) == 8
    assert not are_scripts_by_value()
    assert pickle.loads(pack_function(script.double)[1]) is script.double
