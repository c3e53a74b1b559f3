from __future__ import annotations

import ctypes
from collections import deque
from typing import Any

import pytest

from turnout import _copies
from turnout._copies import private_copy

SOURCE = bytes(range(256)) * (8 << 10)


@pytest.fixture(autouse=True)
def _nothing_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_copies, "_free", deque())


def test_large_copies_are_private() -> None:
    one, two = private_copy(SOURCE), private_copy(SOURCE)
    assert isinstance(one, memoryview)
    one[0] = 9
    assert (two[0], SOURCE[0]) == (0, 0)


def test_memory_is_used_again_when_no_part_of_it_is_in_use() -> None:
    copy = private_copy(SOURCE)
    part = copy[10:]
    address = address_of(copy)
    del copy
    assert address_of(other := private_copy(SOURCE)) != address
    assert bytes(part) == SOURCE[10:]
    del part
    again = private_copy(SOURCE[::-1])
    assert address_of(again) == address
    assert bytes(again) == SOURCE[::-1]
    assert bytes(other) == SOURCE


def test_blocks_that_are_much_too_large_are_left_for_others() -> None:
    copy = private_copy(SOURCE * 3)
    address = address_of(copy)
    del copy
    assert address_of(private_copy(SOURCE)) != address
    assert address_of(private_copy(SOURCE * 2)) == address


def test_only_so_much_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_copies, "_MOST_KEPT", 2 * len(SOURCE))
    copies = [private_copy(SOURCE) for _ in range(5)]
    copies.clear()
    assert sum(map(len, _copies._free)) == 2 * len(SOURCE)


def address_of(view: Any) -> int:
    return ctypes.addressof(ctypes.c_ubyte.from_buffer(view))
