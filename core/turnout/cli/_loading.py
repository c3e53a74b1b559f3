"""From ``FILE.py:flow`` or ``package.module:flow`` to the flow."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import re
import sys
import traceback
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cloudpickle  # type: ignore[import-untyped]

from .. import Flow
from .._scripts import add_script
from ._problem import UsageProblem, one_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

__all__ = ["load_flow"]


class _Target(NamedTuple):
    place: str
    """A file, or a module's dotted name."""
    name: str
    """Empty for the only flow there is."""


def load_flow(text: str) -> Flow[..., Any]:
    """Return the flow that ``text`` names, by file or module, and by name if there are several.

    Raises
    ------
    UsageProblem
        If the file or module can't be loaded, or has no such flow.
    """
    target = _split(text)
    if _is_file(target.place):
        return _find(_loaded(target.place, lambda: _from_file(Path(target.place))), target)
    # As for `python -m`, and unlike for an installed script, modules of the current folder count.
    sys.path.insert(0, str(Path.cwd()))
    return _find(_loaded(target.place, lambda: importlib.import_module(target.place)), target)


def _split(text: str) -> _Target:
    place, colon, name = text.rpartition(":")
    return _Target(place, name) if colon and "/" not in name and os.sep not in name else _Target(text, "")


def _is_file(place: str) -> bool:
    return place.endswith(".py") or "/" in place or os.sep in place or Path(place).exists()


def _loaded(place: str, load: Callable[[], ModuleType]) -> ModuleType:
    try:
        return load()
    except UsageProblem:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise UsageProblem(one_line(_told(place, error))) from error


# Files


def _from_file(path: Path) -> ModuleType:
    if path.is_dir():
        raise UsageProblem(f"{str(path)!r} is a folder; give the file in it, as in {path / 'FILE.py'}:flow")
    if not path.exists():
        raise UsageProblem(f"{path}: no such file{_similar(path)}")
    folder, name = str(path.parent.resolve()), path.stem
    if not _is_free(name, path):
        # First on the path, the file would hide the module that has the name: from us, and from every worker.
        sys.path.append(folder)
        return _by_value(path)
    sys.path.insert(0, folder)
    if not _leads_to(name, path):
        return _by_value(path)
    module = importlib.import_module(name)
    add_script(module)
    return module


def _similar(path: Path) -> str:
    files = [file.name for file in path.parent.glob("*.py")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, files, n=1)
    return f"; did you mean {path.with_name(near[0])}?" if near else ""


def _is_free(name: str, path: Path) -> bool:
    """Return whether an import of ``name`` finds nothing, or the file itself: then workers can import it too."""
    if not name.isidentifier() or name in sys.modules:
        return False
    found = importlib.util.find_spec(name)
    return found is None or found.origin is None or _leads_to(name, path)


def _leads_to(name: str, path: Path) -> bool:
    importlib.invalidate_caches()
    found = importlib.util.find_spec(name)
    return found is not None and found.has_location and Path(found.origin or "").resolve() == path.resolve()


def _by_value(path: Path) -> ModuleType:
    """Load a file under a name that no worker can import, and have its functions travel with their code."""
    name = "turnout_script_" + re.sub(r"\W", "_", path.stem)
    spec = importlib.util.spec_from_file_location(name, path, loader=SourceFileLoader(name, str(path)))
    assert spec, "a loader is given"
    assert spec.loader, "a loader is given"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    cloudpickle.register_pickle_by_value(module)
    spec.loader.exec_module(module)
    return module


# Flows


def _find(module: ModuleType, target: _Target) -> Flow[..., Any]:
    flows = _flows(module)
    if not target.name:
        return _only(flows, target.place)
    found: Any = module
    for part in target.name.split("."):
        if not hasattr(found, part):
            raise UsageProblem(f"{target.place} has no {target.name!r}. {_offered(flows, target)}")
        found = getattr(found, part)
    if not isinstance(found, Flow):
        problem = f"{target.name!r} in {target.place} is of type {type(found).__name__}, which is no flow"
        raise UsageProblem(f"{problem}. {_offered(flows, target)}")
    return found


def _flows(module: ModuleType) -> dict[str, Flow[..., Any]]:
    """Return the flows that a module defines, or if there are none those that it imports."""
    found = {name: value for name, value in vars(module).items() if isinstance(value, Flow)}
    own = {name: flow for name, flow in found.items() if flow.fn.__module__ == module.__name__}
    return own or found


def _only(flows: dict[str, Flow[..., Any]], place: str) -> Flow[..., Any]:
    if len(flows) == 1:
        return next(iter(flows.values()))
    remedy = f". Name one: {place}:{next(iter(flows))}" if flows else ""
    raise UsageProblem(_offered(flows, _Target(place, "")) + remedy)


def _offered(flows: dict[str, Flow[..., Any]], target: _Target) -> str:
    if not flows:
        return f"There is no flow in {target.place}: decorate a function with @flow"
    near = difflib.get_close_matches(target.name, flows, n=1)
    hint = f". Did you mean {target.place}:{near[0]}?" if near else ""
    return f"The flows in {target.place}: {', '.join(flows)}{hint}"


# What went wrong


def _told(place: str, error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.lineno:
        line = (error.text or "").strip()
        return f"{error.filename}, line {error.lineno}: {error.msg}" + (f": {line}" if line else "")
    if isinstance(error, ModuleNotFoundError) and f"{place}.".startswith(f"{error.name}."):
        file = Path(place.replace(".", "/") + ".py")
        hint = f"; for the file write {file}" if file.exists() else ""
        return f"no module named {error.name!r}{hint}"
    return f"{place} can't be loaded: {type(error).__name__}: {error}{_where(error)}{_remedy(error)}"


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    users = [one for one in frames if one.filename != __file__ and not one.filename.startswith("<frozen")]
    return f" ({users[-1].filename}, line {users[-1].lineno})" if users else ""


def _remedy(error: BaseException) -> str:
    if isinstance(error, ImportError) and "relative import" in str(error):
        return "; a file of a package is named as package.module:flow"
    return ""
