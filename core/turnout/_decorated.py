"""What flows and tasks have in common: a function under a name, how it is tried again, and where it is found."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeAlias

from ._serialization import found_at, reference_of

__all__ = ["Decorated", "Delays", "exponential_backoff", "name_from", "not_negative", "signature_of"]

Delays: TypeAlias = float | Sequence[float] | Callable[[int], float | Sequence[float]]


class Decorated:
    """A function that was made a flow or a task. Its subclasses' parameters are those of their decorators.

    Parameters
    ----------
    fn
        A function or other callable, a class method, or a static method.
    name, description, version, retries, retry_delay_seconds, retry_jitter_factor, timeout_seconds, log_prints, run_name
        As for :func:`flow` and :func:`task`.
    """

    kind: ClassVar[str]
    """``"flow"`` or ``"task"``."""
    _attributes: ClassVar[dict[str, str]] = {}
    """The attributes that hold parameters of the decorator, where they have other names."""

    def __init__(
        self,
        fn: Any,
        *,
        name: str | None,
        description: str | None,
        version: str | None,
        retries: int,
        retry_delay_seconds: Delays,
        retry_jitter_factor: float | None,
        timeout_seconds: float | None,
        log_prints: bool | None,
        run_name: str | Callable[..., str] | None,
    ) -> None:
        self._binds: type | None = type(fn) if isinstance(fn, (classmethod, staticmethod)) else None
        function: Any = fn if self._binds is None else fn.__func__
        if not callable(function):
            raise TypeError(f"@{self.kind} needs a function, not {function!r}.")
        self.fn: Callable[..., Any] = function
        # Sets __wrapped__, which is what inspect and the like follow to the signature.
        this: Any = self
        functools.update_wrapper(this, function, updated=())
        self.name = name or str(getattr(function, "__name__", type(function).__name__))
        self.description = description if description is not None else inspect.getdoc(function)
        self.version = version
        self.retries = not_negative("retries", retries)
        self.retry_delay_seconds = _delays(retry_delay_seconds, retries)
        self.retry_jitter_factor = retry_jitter_factor
        self.timeout_seconds = None if timeout_seconds is None else float(timeout_seconds)
        self.log_prints = log_prints
        self.run_name = run_name
        # What comes before the arguments: the instance or class of a method.
        self._bound: tuple[Any, ...] = ()

    def retry_delay(self, retries_before: int) -> float:
        """Return how many seconds to wait before the next attempt; the last delay serves for all that follow."""
        delays = self.retry_delay_seconds
        delay = delays if isinstance(delays, (int, float)) else delays[min(retries_before, len(delays) - 1)]
        if not self.retry_jitter_factor:
            return float(delay)
        import random  # takes a while to load, and few ask for it

        return float(delay) * (1 + random.uniform(0, self.retry_jitter_factor))

    def _options(self) -> dict[str, Any]:
        """Return the parameters of the decorator, as they are now."""
        return {name: getattr(self, self._attributes.get(name, name)) for name in _options_of(type(self))}

    def _changed(self, options: dict[str, Any]) -> Any:
        """Return a copy with other options."""
        make: Callable[..., Any] = type(self)
        changed = make(self.fn, **{**self._options(), **options})
        changed._binds, changed._bound = self._binds, self._bound
        return changed

    def _of(self, instance: object, owner: type | None) -> Any:
        """Return what an attribute lookup on an instance or its class finds: this, or a copy that is bound to it."""
        if self._binds is staticmethod or (instance is None and self._binds is None):
            return self
        # Not copy.copy: that asks __reduce__, which answers with where this object is found.
        bound = _restored(type(self), vars(self))
        bound._bound = (owner if self._binds is classmethod else instance,)
        return bound

    def __reduce__(self) -> Any:
        reference = None if self._bound else reference_of(self)
        if reference is not None:
            return found_at, reference
        return _restored, (type(self), self._travelling())

    def _travelling(self) -> dict[str, Any]:
        """Return the attributes that a copy elsewhere has."""
        return vars(self)

    def __repr__(self) -> str:
        return f"<{self.kind.capitalize()} {self.name}>"

    def _repr_html_(self) -> str:
        from ._html import Row, card, first_line

        rows = [Row(name, first_line(value)) for name, value in self._told().items()]
        return card(self.kind.capitalize(), self.name, rows)

    def _told(self) -> dict[str, str]:
        """Return what notebooks show beside the name; what is empty is left out."""
        return {
            "description": self.description or "",
            "parameters": str(signature_of(self.fn) or ""),
            "retries": str(self.retries or ""),
            "timeout": "" if self.timeout_seconds is None else f"{self.timeout_seconds:g} s",
        }


def _restored(cls: type[Any], state: dict[str, Any]) -> Any:
    made = object.__new__(cls)
    vars(made).update(state)
    return made


def _options_of(cls: type[Any]) -> tuple[str, ...]:
    parameters = inspect.signature(cls.__init__).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


def not_negative(name: str, value: object) -> int:
    """Return a number of times.

    Raises
    ------
    ValueError
        If it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name}={value!r}: give a whole number, 0 or more.")
    return value


def _delays(delays: Delays, retries: int) -> float | list[float]:
    given = delays(retries) if callable(delays) else delays
    if isinstance(given, (int, float)):
        return given
    return [float(delay) for delay in given] or 0.0


def exponential_backoff(backoff_factor: float) -> Callable[[int], list[float]]:
    """Return delays for ``retry_delay_seconds`` that double with each retry.

    Parameters
    ----------
    backoff_factor
        The first delay, in seconds.

    Examples
    --------
    >>> from turnout import exponential_backoff
    >>> exponential_backoff(backoff_factor=10)(4)
    [10, 20, 40, 80]
    """

    def delays(retries: int) -> list[float]:
        return [backoff_factor * 2**retry for retry in range(retries)]

    return delays


def name_from(template: str | Callable[..., str] | None, parameters: dict[str, Any]) -> str:
    """Return a run's name: from a template such as ``"load {path}"``, or from a function."""
    if not callable(template):
        return str(template).format(**parameters)
    takes = signature_of(template)
    if takes is not None and "parameters" in takes.parameters:
        return str(template(parameters=parameters))
    return str(template())


def signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    """Return a callable's signature, or None if it has none, as some builtins."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None
