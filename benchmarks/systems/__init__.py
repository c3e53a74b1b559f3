"""The systems by name. A module is imported when one of its systems is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import System

SYSTEMS = {
    "turnout-sequential": "ours:Sequential",
    "turnout-thread": "ours:Thread",
    "turnout-process": "ours:Process",
    "turnout-process-alone": "ours:ProcessAlone",
    "turnout-executor": "ours:ExecutorOfThreads",
    "turnout-executor-processes": "ours:ExecutorOfProcesses",
    "raw-calls": "raw:Calls",
    "raw-threads": "raw:Threads",
    "raw-thread-chunks": "raw:ThreadChunks",
    "raw-processes": "raw:Processes",
    "raw-process-chunks": "raw:ProcessChunks",
    "loky": "raw:Loky",
    "turnout-dask": "clusters:OnDask",
    "turnout-dask-alone": "clusters:OnDaskAlone",
    "raw-dask": "clusters:Dask",
    "raw-dask-chunks": "clusters:DaskChunks",
    "turnout-ray": "clusters:OnRay",
    "turnout-ray-alone": "clusters:OnRayAlone",
    "raw-ray": "clusters:Ray",
    "raw-ray-chunks": "clusters:RayChunks",
}

LOCAL = [name for name, place in SYSTEMS.items() if not place.startswith("clusters:")]
"""Those without a cluster: what is measured unless others are asked for."""


def load(name: str) -> type[System]:
    """Return the class of a system."""
    module, _, attribute = SYSTEMS[name].partition(":")
    found: type[System] = getattr(importlib.import_module(f".{module}", __name__), attribute)
    return found
