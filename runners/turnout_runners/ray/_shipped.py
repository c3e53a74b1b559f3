"""Code that travelled along with calls: there as long as the worker lives, and gone whichever way that ends."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Final

from turnout._cluster import Shipped, unpack_shipment

__all__ = ["Code"]

# Ends with the worker, however that ends: then the pipe from it breaks. Ray ends workers without letting them tidy up,
# and their children too, so this is the child of nobody.
_TIDY_UP: Final = """exec 3<&0; { cat <&3 >/dev/null; rm -rf "$0"; } &"""


class Code:
    """The code in one worker process, which serves one driver."""

    def __init__(self) -> None:
        self.shipment: bytes | None = None
        """What is there now."""
        self._shipped: Shipped | None = None
        self._folder: str | None = None
        self._tidier: subprocess.Popen[bytes] | None = None

    def replace(self, shipment: bytes | None) -> None:
        """Make code importable, in place of what was there before."""
        if shipment == self.shipment:
            return
        if self._shipped is not None:
            self._shipped.remove()
        self.shipment, self._shipped = shipment, None
        if shipment is not None:
            self._shipped = self._unpacked(shipment)

    def _unpacked(self, shipment: bytes) -> Shipped:
        before, tempfile.tempdir = tempfile.tempdir, self._own_folder()
        try:
            return unpack_shipment(shipment)
        finally:
            tempfile.tempdir = before

    def _own_folder(self) -> str:
        if self._folder is None or not Path(self._folder).exists():
            self._folder = tempfile.mkdtemp(prefix="turnout-ray-code-")
            self._tidier = subprocess.Popen(["sh", "-c", _TIDY_UP, self._folder], stdin=subprocess.PIPE)
            self._tidier.wait()
        return self._folder
