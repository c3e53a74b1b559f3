"""A pytest plugin that lets the functions of test modules travel to workers.

pytest with ``--import-mode=importlib`` imports test modules under names that no other process can import. So their
functions and classes have to travel by value, like those of ``__main__``. Ask for it with
``pytest -p turnout.testing.plugin``; installing Turnout does not switch it on.
"""

from __future__ import annotations

from types import ModuleType

import cloudpickle
import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have cloudpickle carry what the collected test modules define by value."""
    # Doctests are left out: the modules that they come from are importable everywhere.
    modules = {item.module for item in items if isinstance(item, pytest.Function)}
    for module in modules:
        if isinstance(module, ModuleType):
            cloudpickle.register_pickle_by_value(module)
