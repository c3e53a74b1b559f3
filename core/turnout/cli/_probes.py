"""The tasks that the doctor sends to workers."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from typing import Any, Final

from .. import task
from .._cluster import versions

__all__ = ["facts", "length", "noise", "noisy", "nothing", "tell"]

_BLOCK: Final = 2**16


def facts(libraries: Sequence[str]) -> dict[str, Any]:
    """Return which process this is, and the versions on which it depends whether others understand it.

    Parameters
    ----------
    libraries
        Distributions whose versions are asked for, too.

    Examples
    --------
    >>> facts(["cloudpickle"])["versions"].keys() == versions().keys()
    True
    """
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "versions": {**versions(), **{library: _version(library) for library in libraries}},
    }


def noise(size: int) -> bytes:
    """Return bytes that do not get much smaller when they are compressed; other ones each time."""
    return (os.urandom(_BLOCK) * (size // _BLOCK + 1))[:size]


@task
def tell(libraries: Sequence[str]) -> dict[str, Any]:
    """Return the facts of the process that runs this."""
    return facts(libraries)


@task
def nothing(number: int) -> None:
    """Do nothing."""


@task
def length(data: bytes) -> int:
    """Take data."""
    return len(data)


@task
def noisy(size: int) -> bytes:
    """Give data."""
    return noise(size)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
