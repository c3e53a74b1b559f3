"""Waiting until a flow has no open call any more, in threads and in coroutines."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from ._locks import LOCK
from ._waiting import wait_for_gate

if TYPE_CHECKING:
    import asyncio

    from ._call import Call

__all__ = ["Joinable"]


class _LoopGate:
    """A gate for a coroutine to wait at, opened as a lock is: by ``release``, from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        import asyncio

        self.opened = asyncio.Event()
        self._loop = loop

    def locked(self) -> bool:
        """Return True: opening it twice does no harm."""
        return True

    def release(self) -> None:
        """Open the gate."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self.opened.set)


class Joinable:
    """What has open calls, and lets others wait until there are none.

    Whoever takes a call out of ``open`` or ``stopping`` calls :meth:`emptied` afterwards, if anybody waits.
    """

    def __init__(self) -> None:
        # Calls that are not final. Kept in order of submission, so that cancelling goes in order too.
        self.open: dict[Call, None] = {}
        # Final calls whose bodies were stopped, in this process, or are killed; the flow waits for the bodies' end.
        self.stopping: set[Call] = set()
        # What those wait at who join.
        self.gates: list[threading.Lock | _LoopGate] = []

    def join(self, timeout: float | None = None) -> bool:
        """Wait until no call is open and no body runs on; return whether that is so.

        Parameters
        ----------
        timeout
            Seconds, or None to wait for ever.
        """
        gate = threading.Lock()
        gate.acquire()
        # Listed before the look, for `emptied` looks the other way round and without a lock.
        self.gates.append(gate)
        try:
            while self.open or self.stopping:
                if not wait_for_gate(gate, timeout):
                    return False
            return True
        finally:
            self.gates.remove(gate)

    def emptied(self) -> None:
        """Wake those who join, if nothing is open any more."""
        if self.gates and not self.open and not self.stopping:
            with LOCK:
                for gate in list(self.gates):
                    if gate.locked():
                        gate.release()

    async def join_async(self, patience: float | None = None) -> bool:
        """Wait as ``join`` does, at most ``patience`` seconds, without blocking the event loop."""
        import asyncio

        gate = _LoopGate(asyncio.get_running_loop())
        limit = asyncio.timeout(patience)
        self.gates.append(gate)
        try:
            async with limit:
                while self.open or self.stopping:
                    await gate.opened.wait()
                    gate.opened.clear()
        except TimeoutError:
            if limit.expired():
                return False
            raise
        finally:
            self.gates.remove(gate)
        return True
