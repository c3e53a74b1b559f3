"""The parameters of a flow, and what was typed for them."""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
from typing import TYPE_CHECKING, Any

from ._conversion import convert
from ._problem import UsageProblem

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .. import Flow

__all__ = ["bind"]


def bind(flow: Flow[..., Any], typed: Iterable[str]) -> inspect.BoundArguments:
    """Return the arguments for a flow that ``name=value`` texts give.

    Raises
    ------
    UsageProblem
        If a parameter is unknown, missing, given twice, or its value doesn't fit.
    """
    signature = _signature(flow)
    try:
        values = _values(signature, typed)
        return _bound(signature, values)
    except ValueError as problem:
        raise UsageProblem(f"flow {flow.name!r}: {problem}. {_taken(signature)}") from None


def _signature(flow: Flow[..., Any]) -> inspect.Signature:
    # A flow that is a method knows its first argument.
    signature = inspect.signature(functools.partial(flow.fn, *flow._bound))
    names = getattr(inspect.unwrap(flow.fn), "__globals__", {})
    parameters = [one.replace(annotation=_evaluated(one.annotation, names)) for one in signature.parameters.values()]
    return signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)


def _evaluated(annotation: Any, names: Mapping[str, Any]) -> Any:
    # One by one: a name that is imported for type checkers only must not take the others with it.
    with contextlib.suppress(Exception):
        found = eval(annotation, dict(names)) if isinstance(annotation, str) else annotation
        hash(found)
        return found
    return str(annotation)


def _values(signature: inspect.Signature, typed: Iterable[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for text in typed:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"-p takes name=value, not {text!r}")
        if name in values:
            raise ValueError(f"parameter {name!r} is given twice")
        values[name] = _value(name, value, _annotation(signature, name))
    return values


def _annotation(signature: inspect.Signature, name: str) -> Any:
    parameter = signature.parameters.get(name)
    if parameter and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return parameter.annotation
    others = _keywords(signature)
    if not others:
        near = difflib.get_close_matches(name, signature.parameters, n=1)
        raise ValueError(f"no parameter {name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    return others[0].annotation


def _keywords(signature: inspect.Signature) -> list[inspect.Parameter]:
    return [one for one in signature.parameters.values() if one.kind is one.VAR_KEYWORD]


def _value(name: str, text: str, annotation: Any) -> Any:
    try:
        return convert(text, annotation)
    except (ValueError, RecursionError):
        wanted = _public(inspect.formatannotation(annotation))
        raise ValueError(f"parameter {name!r} is to be {wanted}, which {text!r} is not") from None


def _bound(signature: inspect.Signature, values: dict[str, Any]) -> inspect.BoundArguments:
    missing = [name for name, one in signature.parameters.items() if _is_needed(one) and name not in values]
    if missing:
        raise ValueError(f"give it {' '.join(f'-p {name}=...' for name in missing)}")
    known = {name: value for name, value in values.items() if name in signature.parameters}
    others = {name: value for name, value in values.items() if name not in known}
    bound = signature.bind_partial()
    bound.arguments |= known
    if others:
        bound.arguments[_keywords(signature)[0].name] = others
    bound.apply_defaults()
    return bound


def _is_needed(parameter: inspect.Parameter) -> bool:
    variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and not variadic


def _taken(signature: inspect.Signature) -> str:
    return f"It takes {_public(str(signature)[1:-1])}" if signature.parameters else "It takes no parameters"


def _public(annotation: str) -> str:
    # Python 3.13 says where it keeps the class, which is not where users import it from.
    return annotation.replace("pathlib._local.", "pathlib.")
