"""R1 to R4: all that is promised about retries, timeouts, dying workers and cancelling."""

from __future__ import annotations

from ._cancel_races import CancelRaceConformance
from ._cancelling import CancelConformance
from ._crashes import CrashConformance
from ._retries import RetryConformance
from ._timeouts import TimeoutConformance

__all__ = ["FaultConformance"]


class FaultConformance(
    RetryConformance, TimeoutConformance, CrashConformance, CancelConformance, CancelRaceConformance
):
    """Everything that is promised about faults: R1 to R4."""
