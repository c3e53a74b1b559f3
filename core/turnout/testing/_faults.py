"""R1 to R4: all that is promised about retries, timeouts, dying workers and cancelling."""

from __future__ import annotations

from ._cancelling import CancelConformance
from ._crashes import CrashConformance
from ._faulty_workers import FaultyWorkerConformance
from ._retries import RetryConformance
from ._timeouts import TimeoutConformance

__all__ = ["FaultConformance"]


class FaultConformance(
    RetryConformance, TimeoutConformance, CrashConformance, CancelConformance, FaultyWorkerConformance
):
    """Everything that is promised about faults: R1 to R4, and what tasks do to their processes."""
