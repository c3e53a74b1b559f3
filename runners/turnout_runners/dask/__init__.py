"""The Dask runner: calls run on the workers of a Dask cluster, on this machine or elsewhere."""

from ._clients import get_dask_client
from ._runner import DaskTaskRunner

__all__ = ["DaskTaskRunner", "get_dask_client"]
