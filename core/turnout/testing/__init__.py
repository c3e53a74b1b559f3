"""The conformance kit: every guarantee as a test, for whoever writes a runner."""

from ._kit import Conformance, Signals, run_script, runner_expression

__all__ = ["Conformance", "Signals", "run_script", "runner_expression"]
