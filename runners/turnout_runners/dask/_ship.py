"""Code that workers lack, on its way to them, and away again."""

from __future__ import annotations

from typing import Any

from distributed.diagnostics.plugin import WorkerPlugin

from turnout._cluster import Shipped, unpack_shipment
from turnout.worker import this_process

__all__ = ["ShippedCode"]


class ShippedCode(WorkerPlugin):
    """Makes code importable on each worker, also on those that come later.

    Parameters
    ----------
    name
        Under which it can be taken away again.
    data
        What :func:`turnout._cluster.shipment_of` packed.
    """

    def __init__(self, name: str, data: bytes) -> None:
        self.name = name
        self._data = data
        self._origin = this_process()
        self._shipped: Shipped | None = None

    def setup(self, worker: Any) -> None:
        """Unpack it, in a process that is not the driver's."""
        if self._origin != this_process():
            self._shipped = unpack_shipment(self._data)

    def teardown(self, worker: Any) -> None:
        """Remove it."""
        shipped, self._shipped = self._shipped, None
        if shipped is not None:
            shipped.remove()
