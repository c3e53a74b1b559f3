"""What runners on other machines share: comparing versions, showing names, and taking code along that is not there."""

from __future__ import annotations

import contextlib
import importlib
import io
import platform
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Final

from ._serialization import forget_functions
from ._version import __version__
from .errors import RunnerOptionError, RunnerStartError

__all__ = [
    "Shipped",
    "check_versions",
    "shipment_of",
    "shipped_paths",
    "shown_name",
    "unpack_shipment",
    "versions",
]

_LONGEST_NAME: Final = 200
_LEFT_OUT: Final = frozenset({"__pycache__", ".git", ".mypy_cache", ".pytest_cache", ".ruff_cache"})


def shown_name(name: str) -> str:
    """Return the name of a task as a backend can show it: in one line, not too long, and in UTF-8.

    What can't be encoded would have Dask close its connection, and Ray refuse the task.

    Examples
    --------
    >>> shown_name("load"), shown_name("load " + chr(0xDCFF))[:4], len(shown_name(10_000 * "x"))
    ('load', 'load', 200)
    """
    if len(name) <= _LONGEST_NAME and name.isprintable():
        return name
    return ascii(name)[1:-1][:_LONGEST_NAME]


def versions() -> dict[str, str]:
    """Return the versions in this process on which it depends whether driver and workers understand each other.

    Examples
    --------
    >>> sorted(versions())
    ['cloudpickle', 'python', 'turnout']
    """
    import cloudpickle  # type: ignore[import-untyped]

    return {
        "python": platform.python_version(),
        "turnout": __version__,
        "cloudpickle": str(cloudpickle.__version__),
    }


def check_versions(driver: Mapping[str, str | None], others: Mapping[str, Mapping[str, str | None]]) -> None:
    """Compare the versions of the driver with those of other processes.

    Parameters
    ----------
    driver
        What :func:`versions` gives here.
    others
        What it gives there, by the name of the process, such as ``"worker tcp://10.0.0.7:4711"``. A value of None says
        that the package is not installed.

    Raises
    ------
    RunnerStartError
        If Turnout is missing somewhere, or Python differs in its minor version, or Turnout at all: functions and
        messages of one can't be read by the other.

    Warns
    -----
    RuntimeWarning
        If cloudpickle differs in its major version, or Python in its last number: some values may not survive.

    Examples
    --------
    >>> check_versions({"python": "3.11.7"}, {"worker 1": {"python": "3.12.1"}})
    Traceback (most recent call last):
        ...
    turnout.errors.RunnerStartError: The driver has Python 3.11.7, and worker 1 has Python 3.12.1. Functions can't \
travel between them: start both with the same minor version of Python.
    """
    for name, there in others.items():
        for package, (digits, what) in _BREAKING.items():
            _refuse_difference(package, digits, what, driver.get(package), name, there)
    for package, digits in _RISKY.items():
        _warn_of_differences(package, digits, driver.get(package), others)


# How many numbers of a version must agree, and what to say if they don't.
_BREAKING: Final[Mapping[str, tuple[int, str]]] = {
    "python": (2, "Functions can't travel between them: start both with the same minor version of Python."),
    "turnout": (3, "They may not understand each other: install the same version on both sides."),
}
_RISKY: Final[Mapping[str, int]] = {"python": 3, "cloudpickle": 1}
_NAMES: Final = {"python": "Python", "turnout": "Turnout"}


def _refuse_difference(
    package: str, digits: int, what: str, here: str | None, name: str, there: Mapping[str, str | None]
) -> None:
    if here is None or package not in there:
        return
    other = there[package]
    shown = _NAMES[package]
    if other is None:
        raise RunnerStartError(
            f"{shown} is not installed for {name}. Install there what is here: pip install {package}=={here}."
        )
    if _numbers(here, digits) != _numbers(other, digits):
        raise RunnerStartError(f"The driver has {shown} {here}, and {name} has {shown} {other}. {what}")


def _warn_of_differences(
    package: str, digits: int, here: str | None, others: Mapping[str, Mapping[str, str | None]]
) -> None:
    if here is None:
        return
    differing = [
        f"{name} has {there[package]}"
        for name, there in others.items()
        if there.get(package) and _numbers(here, digits) != _numbers(str(there[package]), digits)
    ]
    if differing:
        shown = ", ".join(differing[:3]) + ", ..." * (len(differing) > 3)
        warnings.warn(
            f"The driver has {_NAMES.get(package, package)} {here}; {shown}. Most things will work; for those that "
            "don't, install the same version on both sides.",
            RuntimeWarning,
            stacklevel=3,
        )


def _numbers(version: str, digits: int) -> tuple[str, ...]:
    return tuple(version.split(".")[:digits])


def shipped_paths(ship: Sequence[ModuleType | str]) -> list[Path]:
    """Return the files and folders of code that shall travel to the workers.

    Parameters
    ----------
    ship
        Modules, of which the top package travels whole, and paths to packages (folders) or modules (``.py`` files).

    Raises
    ------
    RunnerOptionError
        If a module has no Python source of its own, or a path leads to nothing that can be imported.

    Examples
    --------
    >>> import json
    >>> [path.name for path in shipped_paths([json])]
    ['json']
    """
    return [_module_path(item) if isinstance(item, ModuleType) else _checked_path(item) for item in ship]


def _module_path(module: ModuleType) -> Path:
    top = importlib.import_module(module.__name__.partition(".")[0])
    file = getattr(top, "__file__", None)
    if file is None and len(folders := list(getattr(top, "__path__", ()))) == 1:
        return Path(folders[0])  # a package without an __init__.py
    path = None if file is None else Path(file)
    if path is None or path.suffix != ".py" or top.__name__ == "__main__":
        raise RunnerOptionError(
            f"ship={module.__name__}: it has no Python source of its own. Ship modules and packages in files; what is "
            "defined in __main__ travels by itself."
        )
    return path.parent if path.name == "__init__.py" else path


def _checked_path(item: str) -> Path:
    path = Path(item).expanduser().resolve()
    if not (path.is_dir() or (path.is_file() and path.suffix == ".py")) or not path.stem.isidentifier():
        raise RunnerOptionError(f"ship={item!r}: give modules, or paths to packages (folders) or modules (.py files).")
    return path


def shipment_of(ship: Sequence[ModuleType | str]) -> bytes | None:
    """Return the code that shall travel, as the bytes of a zip file; None if there is none.

    Parameters and errors as for :func:`shipped_paths`.
    """
    if not ship:
        return None
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in shipped_paths(ship):
            for file in _files(path):
                archive.write(file, file.relative_to(path.parent))
    return stream.getvalue()


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for file in sorted(path.rglob("*")):
        if file.is_file() and not _LEFT_OUT.intersection(file.relative_to(path).parts):
            yield file


class Shipped:
    """Code that has arrived in a worker: its modules can be imported until it is removed."""

    def __init__(self, data: bytes) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="turnout-shipped-"))
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            archive.extractall(self._folder)
        self._tops = {Path(name).parts[0].removesuffix(".py") for name in archive.namelist()}
        # First, so that it wins over an older version that is installed.
        sys.path.insert(0, str(self._folder))
        self._forget()

    def remove(self) -> None:
        """Forget the modules and delete the files. Twice is fine."""
        with contextlib.suppress(ValueError):
            sys.path.remove(str(self._folder))
            self._forget()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _forget(self) -> None:
        importlib.invalidate_caches()
        # Their pickles name modules, and are the same bytes for any version of those.
        forget_functions()
        for name in list(sys.modules):
            if name.partition(".")[0] in self._tops:
                del sys.modules[name]


def unpack_shipment(data: bytes) -> Shipped:
    """Make code that travelled importable in this process.

    Parameters
    ----------
    data
        What :func:`shipment_of` returned.
    """
    return Shipped(data)
