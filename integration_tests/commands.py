"""The ``turnout`` command as tests run it: in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

__all__ = ["Ended", "turnout_command"]


class Ended(NamedTuple):
    """What became of a command."""

    status: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line that standard error holds."""
        assert self.err.endswith("\n")
        (line,) = self.err.splitlines()
        return line


def turnout_command(
    *arguments: str | Path, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> Ended:
    """Run the command, with variables added to those of this process."""
    clean = {name: value for name, value in os.environ.items() if name != "TURNOUT_TASK_RUNNER"}
    ended = subprocess.run(
        [sys.executable, "-m", "turnout", *map(str, arguments)],
        capture_output=True, text=True, cwd=cwd, env={**clean, **(environment or {})}, timeout=50, check=False,
    )  # fmt: skip
    return Ended(ended.returncode, ended.stdout, ended.stderr)
