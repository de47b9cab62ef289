"""One pace for a whole Ray cluster: `PaceKeeper` as a named actor, and `HttpClient`'s way to it."""

from __future__ import annotations

import contextlib
import secrets
import threading
from typing import TYPE_CHECKING, Any

from magc_data.engines.shared_pace import BEAT_S, PaceKeeper
from magc_data.sources.cache import cache_dir
from magc_data.sources.pace import ServiceDownError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NAMESPACE = "magc"
KEEPER_NAME = "pace-keeper-1"
"""The number is that of the keeper's methods: versions of magc that call them differently do not share one."""
_HEAD_NODE = "node:__internal_head__"
"""A resource that Ray gives to this one node."""


def start_keeper() -> Any:
    """The cluster's keeper; one for all its builds, and as long as the cluster lives.

    It stands on the head node, with which the cluster ends. The logs of daily budgets are in the cache folder there.
    """
    import ray

    options = {"name": KEEPER_NAME, "namespace": NAMESPACE, "get_if_exists": True, "lifetime": "detached"}
    # Many wait at once: each thread of each worker.
    limits = {"num_cpus": 0, "resources": {_HEAD_NODE: 0.001}, "max_concurrency": 100_000}
    again = {"max_restarts": -1, "max_task_retries": -1}
    return ray.remote(PaceKeeper).options(**options, **limits, **again).remote(cache_dir())


def running_keeper() -> Any:
    """The keeper that a driver has started."""
    import ray

    return ray.get_actor(KEEPER_NAME, namespace=NAMESPACE)


class RayPace:
    """A process' way to the keeper (a `Pace`).

    Args:
        find_keeper: called once, when first something is asked.
    """

    def __init__(self, find_keeper: Callable[[], Any]) -> None:
        self._find_keeper = find_keeper
        self._found: Any = None
        self._lock = threading.Lock()
        self._client = secrets.token_hex(8)
        self._closed = threading.Event()

    def _keeper(self) -> Any:
        with self._lock:
            if self._found is None:
                self._found = self._find_keeper()
                threading.Thread(target=self._beat_forever, args=(self._found,), daemon=True).start()
            return self._found

    def _beat_forever(self, keeper: Any) -> None:
        # Without a cluster there is nobody to tell; whoever asks next hears of it.
        with contextlib.suppress(Exception):
            while not self._closed.wait(BEAT_S):
                keeper.beat.remote(self._client)

    def close(self) -> None:
        """Say nothing any more."""
        self._closed.set()

    @contextlib.contextmanager
    def slot(self, service: str, request: str, requests_per_s: float, concurrency: int) -> Iterator[None]:
        """See `Pace`."""
        keeper, lease = self._keeper(), secrets.token_hex(8)
        try:
            entering = keeper.enter.remote(self._client, lease, service, request, requests_per_s, concurrency)
            # Not ray.get: it would tell Ray that this worker's core is free for another block.
            problem = entering.future().result()
            if problem is not None:
                raise ServiceDownError(problem)
            yield
        finally:
            keeper.leave.remote(lease)

    def pause(self, service: str, seconds: float) -> None:
        """See `Pace`."""
        self._keeper().pause.remote(service, seconds)

    def worked(self, service: str, request: str) -> None:
        """See `Pace`."""
        self._keeper().over.remote(service, request, worked=True)

    def failed(self, service: str, request: str, seen: str) -> None:
        """See `Pace`."""
        self._keeper().over.remote(service, request, failed=seen)

    def abandoned(self, service: str, request: str) -> None:
        """See `Pace`."""
        self._keeper().over.remote(service, request)

    @contextlib.contextmanager
    def turn(self, service: str) -> Iterator[None]:
        """See `Pace`."""
        keeper, lease = self._keeper(), secrets.token_hex(8)
        try:
            keeper.take_turn.remote(self._client, lease, service).future().result()
            yield
        finally:
            keeper.leave.remote(lease)

    def spent(self, log: Path) -> list[int]:
        """See `Pace`; the log is the one in the keeper's cache folder."""
        sizes: list[int] = self._keeper().spent.remote(_in_cache(log)).future().result()
        return sizes

    def spend(self, log: Path, size: int) -> None:
        """See `Pace`."""
        problem = self._keeper().spend.remote(_in_cache(log), size).future().result()
        if problem is not None:
            raise OSError(0, f"{problem}, on the cluster's head node", str(log))


def _in_cache(log: Path) -> str:
    return log.relative_to(cache_dir()).as_posix()
