"""A pytest plugin that lets the functions and classes of test modules travel to workers.

With ``--import-mode=importlib`` pytest imports test modules under names that no other process can import, so what they
define has to travel by value, like that of ``__main__``. Ask for it with ``pytest -p turnout.testing.plugin``, or call
:func:`travel_by_value` in a ``conftest.py``; installing Turnout does not switch it on.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType

import cloudpickle  # type: ignore[import-untyped]
import pytest

__all__ = ["pytest_collection_modifyitems", "travel_by_value"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have everything that the collected test modules define travel by value."""
    travel_by_value(items)


def travel_by_value(items: Iterable[pytest.Item]) -> None:
    """Have everything that the modules of some tests define travel by value.

    Parameters
    ----------
    items
        What pytest collected. Doctests are passed over: the modules that they come from can be imported everywhere.
    """
    for module in {item.module for item in items if isinstance(item, pytest.Function)}:
        if isinstance(module, ModuleType):
            cloudpickle.register_pickle_by_value(module)
