"""Runs calls on any ``concurrent.futures.Executor``, handed in or built by a factory."""

from ._runner import ExecutorTaskRunner

__all__ = ["ExecutorTaskRunner"]
