"""The process runner: calls run in worker processes of this machine, which it starts, watches and ends itself."""

from ._runner import ProcessPoolTaskRunner

__all__ = ["ProcessPoolTaskRunner"]
