"""What a dry run has in the place of a result: it can be handed on, and says so when somebody looks into it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, NoReturn

from .errors import VisualizationError

__all__ = ["Origin", "Unknown", "parts_label"]


class Origin(NamedTuple):
    """The call whose result is not known."""

    number: int
    """In the record of the dry run."""
    run: str
    """The name of the task run."""
    task: str
    is_many: bool
    """It stands for any number of calls."""
    problems: list[VisualizationError]
    """Of the dry run: the body might catch what is raised here, and go on as it never would."""


class Unknown:
    """The result, or a part of it, of a call that was not run.

    Parameters
    ----------
    origin
        The call.
    keys
        The keys and attributes that lead to the part.
    is_many
        It stands for any number of results.
    """

    __slots__ = ("_is_many", "_keys", "_origin")

    def __init__(self, origin: Origin, keys: tuple[Any, ...] = (), *, is_many: bool = False) -> None:
        self._origin = origin
        self._keys = keys
        self._is_many = is_many

    def __getitem__(self, key: Any) -> Unknown:
        return Unknown(self._origin, (*self._keys, key), is_many=self._is_many)

    def __getattr__(self, name: str) -> Unknown:
        # Python and libraries ask by such names what an object can do, and take no for an answer.
        if name.startswith("_"):
            raise AttributeError(name)
        return self[name]

    def __format__(self, spec: str) -> str:
        # Many bodies print results, which leads nowhere else.
        return repr(self)

    def __repr__(self) -> str:
        return f"<result of {self._origin.run}{f': {parts_label(self._keys)}' if self._keys else ''}>"


def parts_label(keys: tuple[Any, ...]) -> str:
    """Return what a part of a result is called.

    Examples
    --------
    >>> parts_label(("stops", 0)), parts_label((slice(1, 3),))
    ('stops.0', 'slice(1, 3, None)')
    """
    import reprlib

    return ".".join(key if isinstance(key, str) else reprlib.repr(key) for key in keys)


def _refusing(what: str) -> Callable[..., NoReturn]:
    """Return a method for what a body does with results and can't do here."""

    def refuse(self: Unknown, *args: object, **kwargs: object) -> NoReturn:
        origin = self._origin
        problem = VisualizationError(
            f"The flow's body {what} the result of {origin.run!r}, which is not there: no task runs when a flow is "
            f"visualized. Say what the result shall be then: @task(viz_return_value=...) on {origin.task!r}."
        )
        origin.problems.append(problem)
        raise problem

    return refuse


_OPERATORS: Final = (
    *("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "divmod", "pow"),
    *("lshift", "rshift", "and", "or", "xor"),
)
_REFUSED: Final = {
    "walks over": ["iter", "reversed", "aiter"],
    "measures": ["len"],
    "searches": ["contains"],
    "asks for the truth of": ["bool"],
    "compares": ["eq", "ne", "lt", "le", "gt", "ge"],
    "computes with": [
        *_OPERATORS,
        *(f"r{operator}" for operator in _OPERATORS),
        *["neg", "pos", "abs", "invert", "round", "trunc", "floor", "ceil", "int", "float", "complex", "index"],
    ],
    "calls": ["call"],
    "enters": ["enter", "aenter", "exit", "aexit"],
    "changes": ["setitem", "delitem"],
    "reads": ["bytes", "fspath"],
}

for _what, _names in _REFUSED.items():
    for _name in _names:
        setattr(Unknown, f"__{_name}__", _refusing(_what))
