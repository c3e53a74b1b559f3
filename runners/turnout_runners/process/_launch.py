"""The start of a worker's interpreter: its command line, its module path, and what it inherits."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from turnout.errors import RunnerStartError

from . import _memory
from ._memory import Descriptor

__all__ = ["Interpreter", "Launched"]

# Runs in interpreters of any version, so that the wrong one can say what it is.
_BOOT: Final = """
import sys
if sys.version_info[:2] != {version}:
    sys.exit("it is Python %d.%d, and the driver is Python %d.%d" % (sys.version_info[:2] + {version}))
sys.path[:] = {path}
sys.path += [entry for entry in {more} if entry not in sys.path]
from turnout_runners.process._worker_main import main
main({descriptors})
"""
# Options of the driver's interpreter that change what code means, in the order of subprocess.
_FLAGS: Final = {
    "optimize": "-O",
    "dont_write_bytecode": "-B",
    "no_user_site": "-s",
    "ignore_environment": "-E",
    "no_site": "-S",
    "isolated": "-I",
    "bytes_warning": "-b",
}


@dataclass(frozen=True)
class Launched:
    """A started interpreter, and the driver's ends of what connects it. Each is the driver's to close."""

    process: subprocess.Popen[bytes]
    connection: socket.socket
    lifeline: Descriptor
    """The worker ends when this pipe does: when the driver, its only writer, is gone."""
    claims: Descriptor
    log: Descriptor
    """What the interpreter wrote to its standard error before it could speak for itself."""

    def end(self) -> None:
        """End the interpreter at once, and close everything."""
        self.process.kill()
        self.process.wait()
        self.connection.close()
        for descriptor in (self.lifeline, self.claims, self.log):
            descriptor.close()


@dataclass(frozen=True)
class Interpreter:
    """What to start, and how.

    Parameters
    ----------
    python
        Path or name of an interpreter of the driver's minor version; None for the driver's own.
    env
        Environment variables, added to the driver's.
    """

    python: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Look whether there is such an interpreter.

        Raises
        ------
        RunnerStartError
            If there is none.
        """
        if shutil.which(self.path) is None:
            raise RunnerStartError(
                f"The process runner can't start its workers: there is no interpreter at {self.path!r}. Pass "
                f"ProcessPoolTaskRunner(python=...) the path of a Python {_version_text()}, or leave it out."
            )

    @property
    def path(self) -> str:
        """The interpreter's path or name."""
        return self.python or sys.executable

    @property
    def is_own(self) -> bool:
        """Whether the workers run on the driver's own interpreter."""
        # Not the file behind links: those of two virtual environments lead to the same one.
        return Path(shutil.which(self.path) or self.path).absolute() == Path(sys.executable).absolute()

    def launch(self) -> Launched:
        """Start an interpreter that becomes a worker. Does not wait for it.

        Raises
        ------
        OSError
            If the system has no descriptor, process or memory left.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs, contextlib.ExitStack() as failing:
            failing.callback(ours.close)
            reading, writing = map(Descriptor, os.pipe())
            claims, log = _memory.new_file("claims"), _memory.new_file("log")
            stderr = _duplicate(2)
            inherited = theirs.fileno(), reading.number, claims.number, stderr.number
            process = subprocess.Popen(
                self._command(inherited),
                stdin=subprocess.DEVNULL,
                stderr=log.number,
                pass_fds=inherited,
                env={**os.environ, **self.env},
                # A group of its own: Ctrl-C is for the driver, and what a task started can be ended with the worker.
                process_group=0,
            )
            failing.pop_all()
            reading.close()
            stderr.close()
        return Launched(process, ours, writing, claims, log)

    def _command(self, descriptors: tuple[int, ...]) -> list[str]:
        own = self.is_own
        # Programs put path objects there too, which the import system ignores.
        path: Sequence[object] = sys.path
        entries = [entry for entry in path if isinstance(entry, str)]
        boot = _BOOT.format(
            version=tuple(sys.version_info[:2]),
            path=ascii(entries) if own else "sys.path",
            more=[] if own else ascii([entry for entry in entries if entry not in _standard_library()]),
            descriptors=", ".join(map(str, descriptors)),
        )
        return [self.path, *(_options() if own else ()), "-c", boot]


def _duplicate(number: int) -> Descriptor:
    try:
        return Descriptor(os.dup(number))
    except OSError:
        # The driver runs without a standard error of its own.
        return Descriptor(os.open(os.devnull, os.O_WRONLY))


def _options() -> list[str]:
    """Return the options that the driver's interpreter was started with."""
    # Without -P, the modules that the boot needs would be looked for in the working directory first.
    flags = ["-P", *(option for name, option in _FLAGS.items() for _ in range(getattr(sys.flags, name)))]
    warnings = [f"-W{option}" for option in sys.warnoptions]
    extras = [f"-X{name}" if value is True else f"-X{name}={value}" for name, value in sys._xoptions.items()]
    return [*flags, *warnings, *extras]


def _standard_library() -> set[str]:
    """Return the entries of the module path that belong to the driver's interpreter alone."""
    pure, native = Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("platstdlib"))
    archive = "python{}{}.zip".format(*sys.version_info[:2])
    return {str(path) for path in (pure, native, native / "lib-dynload", native.parent / archive)}


def _version_text() -> str:
    return "{}.{}".format(*sys.version_info[:2])
