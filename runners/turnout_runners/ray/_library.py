"""Ray itself, imported only when a runner starts; much of it has no types, and the rest is stricter than it is."""

from typing import Any

import ray as _ray

__all__ = ["ray"]

ray: Any = _ray
