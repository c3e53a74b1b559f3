"""Dask's client as it is lent to users: they may leave its ``with`` block, and even close it, and nothing is closed."""

from __future__ import annotations

import contextlib
from typing import Any

from distributed import Client

__all__ = ["LentClient"]


class LentClient(Client):
    """A client that is another one, save that it is closed by whoever lent it.

    Habit has people write ``with get_dask_client() as client:``, which would close the client by which the runner, or
    the worker, does its work. Inside of such a block it is the current client, which Dask's collections use.

    Parameters
    ----------
    client
        The other one, which stays open at least as long.
    """

    __slots__ = ("_blocks",)

    def __init__(self, client: Client) -> None:
        # All that there is to know of a client is here.
        self.__dict__ = client.__dict__
        self._blocks: list[contextlib.AbstractContextManager[Any]] = []

    def __enter__(self) -> LentClient:
        block = self.as_current()
        block.__enter__()
        self._blocks.append(block)
        return self

    def __exit__(self, *details: Any) -> None:
        self._blocks.pop().__exit__(*details)

    async def __aenter__(self) -> LentClient:
        return self.__enter__()

    async def __aexit__(self, *details: Any) -> None:
        self.__exit__(*details)

    def __del__(self) -> None:
        """Leave the other one open."""

    def close(self, timeout: Any = None) -> None:
        """Leave the other one open."""
