"""Calls on Ray: a local one, a cluster by its address, or one behind ``ray://``."""

from ._runner import RayTaskRunner

__all__ = ["RayTaskRunner"]
