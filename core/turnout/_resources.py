"""What calls need of a worker: ``resources={"cpu": 2, "memory": "4GiB"}``, as plain numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["bytes_of", "described", "normalized", "shown_size"]

_SIZE: Final = r"\s*(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?)b?\s*"
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


def normalized(resources: Mapping[str, Any], owner: str) -> dict[str, float]:
    """Return resources as numbers, memory in bytes.

    Parameters
    ----------
    resources
        Amounts by name. ``cpu``, ``memory`` and ``gpu`` mean the same on all runners; other names are the cluster's.
    owner
        Whose they are; for the text of the errors.

    Raises
    ------
    TypeError
        If a name is no text, or an amount neither a number nor, for memory, a text.
    ValueError
        If an amount is not greater than 0, or a text is no size.

    Examples
    --------
    >>> normalized({"cpu": 2, "memory": "4GiB", "licence": 1}, "task 'solve'")
    {'cpu': 2.0, 'memory': 4294967296.0, 'licence': 1.0}
    """
    return {_name(name, owner): _amount(name, amount, owner) for name, amount in resources.items()}


def bytes_of(size: str) -> int:
    """Return how many bytes a text such as ``"4GiB"``, ``"500 MB"`` or ``"1e9"`` means.

    Raises
    ------
    ValueError
        If it is no size.

    Examples
    --------
    >>> bytes_of("4GiB"), bytes_of("500 MB"), bytes_of("64k")
    (4294967296, 500000000, 64000)
    """
    match = re.fullmatch(_SIZE, size, re.IGNORECASE)
    if match is None:
        return int(float(size))
    number, prefix, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** _POWERS[prefix.lower()])


def described(resources: Mapping[str, float]) -> str:
    """Return resources as people write them.

    Examples
    --------
    >>> described({"cpu": 2.0, "memory": 4294967296.0})
    'cpu=2, memory=4 GiB'
    """
    return ", ".join(
        f"{name}={shown_size(amount) if name == 'memory' else format(amount, 'g')}"
        for name, amount in resources.items()
    )


def _name(name: object, owner: str) -> str:
    if not isinstance(name, str) or not name:
        raise TypeError(f"resources of {owner}: {name!r} is no name of a resource. Give texts, such as 'cpu'.")
    return name


def _amount(name: str, amount: Any, owner: str) -> float:
    what = f"resources[{name!r}]={amount!r} of {owner}"
    if name == "memory" and isinstance(amount, str):
        try:
            amount = bytes_of(amount)
        except ValueError:
            raise ValueError(f"{what} is no size. Write bytes, or a text such as '4GiB' or '500MB'.") from None
    if isinstance(amount, bool) or not isinstance(amount, (int, float)):
        raise TypeError(f"{what}: give a number{', or a size' * (name == 'memory')}.")
    if not (amount > 0 and math.isfinite(amount)):
        raise ValueError(f"{what}: give a number greater than 0, or leave it out.")
    return float(amount)


def shown_size(amount: float) -> str:
    """Return a number of bytes as people write it.

    Examples
    --------
    >>> shown_size(4294967296)
    '4 GiB'
    """
    power = 0
    while amount >= 1024 and power < len(_UNITS) - 1:
        amount, power = amount / 1024, power + 1
    return f"{amount:.4g} {_UNITS[power]}"
