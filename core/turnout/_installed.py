"""Which runners are installed: found through entry points, and told without importing any of them."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from .errors import RunnerError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.metadata import Distribution, EntryPoint

__all__ = ["Library", "RunnerInfo", "claimant", "known", "registered", "requirement", "target"]

_OWN = "turnout"
_RUNNERS = "turnout.runners"
_SCHEMES = "turnout.schemes"

_NAME = r"\s*([\w.-]+)\s*(?:\[([^]]*)])?"
_EXTRA = r"\(?\s*extra\s*==\s*['\"]([^'\"]+)['\"]\s*\)?"


class Library(NamedTuple):
    """A distribution that a runner stands on."""

    name: str
    version: str | None
    """None if it is not installed."""


@dataclass(frozen=True, slots=True)
class RunnerInfo:
    """What is known about a runner before it is imported.

    Parameters
    ----------
    word
        What to type to get it: a word such as ``"thread"``, or the beginning of a URL such as ``"tcp://"``.
    target
        Its class, as ``"package.module:Class"``.
    distribution
        The name of the distribution that registers it, as pip knows it.
    version
        The version of that distribution.
    libraries
        What it needs beside that distribution, with versions.
    installed
        Whether all that it needs is there.
    install
        The command that installs what is missing, or None if nothing is.
    """

    word: str
    target: str
    distribution: str
    version: str
    libraries: tuple[Library, ...]
    installed: bool
    install: str | None


def known() -> list[RunnerInfo]:
    """Return what is registered, sorted by word. Nothing of it is imported.

    Examples
    --------
    >>> from turnout.registry import known
    >>> [runner.target for runner in known() if runner.word == "thread"]
    ['turnout_runners.thread:ThreadPoolTaskRunner']
    """
    return [_info(word, point) for word, points in sorted(registered().items()) for point in points]


@functools.cache
def registered() -> dict[str, list[EntryPoint]]:
    """Return who claims which word. URL schemes are words that end with ``://``.

    Read once in a process: a scan takes about 10 ms, and the import that it needs takes 40 ms more.
    """
    from importlib.metadata import entry_points

    found = entry_points()
    claims: dict[str, list[EntryPoint]] = {}
    for group, suffix in ((_RUNNERS, ""), (_SCHEMES, "://")):
        for point in found.select(group=group):
            claims.setdefault(point.name + suffix, []).append(point)
    return claims


def claimant(word: str) -> EntryPoint | None:
    """Return the one entry point that a word stands for, or None. Nobody can take a word from Turnout itself.

    Raises
    ------
    RunnerError
        If several distributions claim it.
    """
    points = registered().get(word, [])
    if len(points) > 1:
        points = [point for point in points if _distribution(point)[0] == _OWN] or points
    if len(points) > 1:
        rivals = ", ".join(f"{target(point)} of {_distribution(point)[0]}" for point in points)
        raise RunnerError(
            f"More than one runner answers to {word!r}: {rivals}. "
            f"Uninstall all but one, or name the class: {target(points[0])!r}"
        )
    return points[0] if points else None


def target(point: EntryPoint) -> str:
    """Return the class behind an entry point as ``"package.module:Class"``, without extras."""
    return f"{point.module}:{point.attr}"


def requirement(point: EntryPoint, missing: str | None) -> str:
    """Return what to give to pip when a runner's library, say the module ``missing``, is not there."""
    name, _ = _distribution(point)
    if point.extras and name:
        return f"'{name}[{','.join(point.extras)}]'"
    return missing or name or _top(point)


def _info(word: str, point: EntryPoint) -> RunnerInfo:
    name, version = _distribution(point)
    needs = [need for extra in point.extras for need in _needs(point.dist, extra)]
    there, needed = _is_importable(_top(point)), all(_is_installed(need) for need in needs)
    return RunnerInfo(
        word=word,
        target=target(point),
        distribution=name,
        version=version,
        libraries=tuple(Library(library, _version(library)) for library, _ in needs),
        installed=there and needed,
        install=_install_command(point, there, needed),
    )


def _install_command(point: EntryPoint, there: bool, needed: bool) -> str | None:
    if there and needed:
        return None
    # What pip believes to be installed, it does not install again by itself.
    return f"pip install {'' if there else '--force-reinstall '}{requirement(point, None)}"


def _distribution(point: EntryPoint) -> tuple[str, str]:
    return (point.dist.name, point.dist.version) if point.dist else ("", "")


def _top(point: EntryPoint) -> str:
    return point.module.partition(".")[0]


def _is_importable(top: str) -> bool:
    from importlib.util import find_spec

    # For a name without dots this looks for the file and runs nothing.
    return find_spec(top) is not None


def _is_installed(need: tuple[str, tuple[str, ...]]) -> bool:
    found = _find(need[0])
    return found is not None and all(_is_installed(more) for extra in need[1] for more in _needs(found, extra))


def _needs(distribution: Distribution | None, extra: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return the requirements that an extra adds, each as a name and the extras that it names in turn."""
    requirements = (distribution.requires if distribution else None) or []
    found = [need for need in map(_parse, requirements) if _normal(extra) in need.extras]
    # Whether a requirement for some platforms holds here takes more than the standard library to tell. Those are asked
    # only where an extra has no other ones.
    plain = [need for need in found if not need.conditional]
    return [(need.name, need.wanted) for need in plain or found]


class _Requirement(NamedTuple):
    name: str
    wanted: tuple[str, ...]
    extras: frozenset[str]
    conditional: bool


def _parse(requirement: str) -> _Requirement:
    specifier, _, marker = requirement.partition(";")
    match = re.match(_NAME, specifier)
    name, wanted = match.groups("") if match else (specifier, "")
    extras = frozenset(map(_normal, re.findall(_EXTRA, marker)))
    return _Requirement(name, tuple(_listed(wanted)), extras, re.fullmatch(_EXTRA, marker.strip()) is None)


def _listed(text: str) -> Iterator[str]:
    return (part.strip() for part in text.split(",") if part.strip())


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _version(name: str) -> str | None:
    found = _find(name)
    return found.version if found else None


def _find(name: str) -> Distribution | None:
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        return distribution(name)
    except PackageNotFoundError:
        return None
