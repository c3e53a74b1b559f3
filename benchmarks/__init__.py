"""Turnout beside the raw backends, in one run, on the same work: ``python -m benchmarks``."""
