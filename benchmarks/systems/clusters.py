"""Dask and Ray, driven by hand and by Turnout: with their own futures as arguments, as users do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, TypeVar

from ..functions import each
from .base import System
from .ours import Process, Turnout
from .raw import ProcessChunks, in_chunks

T = TypeVar("T")


class Dask(System):
    """One worker process with one thread for each of ``workers``."""

    baseline = "raw-dask"
    distributions = ("distributed",)
    lacks: ClassVar = {**Process.lacks, "nested": "get_client, secede and rejoin by hand are another program"}
    cold = (
        "import distributed",
        """
if __name__ == "__main__":
    options = dict(n_workers={workers}, threads_per_worker=1, dashboard_address="127.0.0.1:0")
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        assert client.submit(abs, -1).result() == 1
""",
    )

    client: Any

    def run(self, body: Callable[[], T]) -> T:
        import distributed

        options: dict[str, Any] = {"dashboard_address": "127.0.0.1:0", "host": "127.0.0.1", "protocol": "tcp://"}
        with (
            distributed.LocalCluster(n_workers=self.workers, threads_per_worker=1, **options) as cluster,  # type: ignore[no-untyped-call]
            distributed.Client(cluster) as self.client,  # type: ignore[no-untyped-call]
        ):
            return body()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.client.submit(function, *arguments, pure=False)

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        return list(self.client.gather(list(handles)))

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return self.gather(self.client.map(function, items, pure=False))


class Ray(System):
    """A local Ray with ``workers`` processors."""

    baseline = "raw-ray"
    distributions = ("ray",)
    lacks: ClassVar = Process.lacks
    cold = (
        "import ray",
        """
ray.init(address="local", num_cpus={workers}, include_dashboard=False, log_to_driver=False)
assert ray.get(ray.remote(abs).remote(-1)) == 1
ray.shutdown()
""",
    )

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self._remote: dict[Callable[..., Any], Any] = {}

    def run(self, body: Callable[[], T]) -> T:
        import ray

        ray.init(address="local", num_cpus=self.workers, include_dashboard=False, log_to_driver=False)
        try:
            return body()
        finally:
            ray.shutdown()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        import ray

        if function not in self._remote:
            self._remote[function] = ray.remote(function)
        return self._remote[function].remote(*arguments)

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        import ray

        return list(ray.get(list(handles)))

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return self.gather([self.submit(function, item) for item in items])

    def nest(self, depth: int, width: int) -> Any:
        return self.submit(grow, depth, width)


def grow(depth: int, width: int) -> int:
    """Start further calls from within a call, and count them all."""
    import ray

    again = ray.remote(grow)
    return 1 + sum(ray.get([again.remote(depth - 1, width) for _ in range(width if depth > 1 else 0)]))


class Chunked(System):
    """A thousand calls at a time, for those workloads of which chunks can be made by hand."""

    lacks: ClassVar = ProcessChunks.lacks

    def fan(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        handles = [self.submit(each, function, chunk) for chunk in in_chunks(items, self.workers)]
        return [value for values in self.gather(handles) for value in values]

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return self.fan(function, items)


class DaskChunks(Chunked, Dask):
    pass


class RayChunks(Chunked, Ray):
    pass


class OnDask(Turnout):
    runner = "dask?n_workers={workers}"
    baseline = "raw-dask"
    distributions = ("turnout", "distributed")
    lacks = Process.lacks


class OnDaskAlone(OnDask):
    runner = "dask?n_workers={workers}&max_batch_seconds=0"


class OnRay(Turnout):
    runner = "ray?num_cpus={workers}"
    baseline = "raw-ray"
    distributions = ("turnout", "ray")
    lacks = Process.lacks


class OnRayAlone(OnRay):
    runner = "ray?num_cpus={workers}&max_batch_seconds=0"
