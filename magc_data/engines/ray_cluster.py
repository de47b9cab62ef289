"""Joining a Ray cluster, and running tasks on it: lost ones again, a bounded number at a time."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING, Any, TypeVar

from magc_data.engines.ray_pace import NAMESPACE
from magc_data.errors import MagcDataError, UsageError
from magc_data.sources.http import remove_secrets

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

ATTEMPTS = 4
"""Of a task whose worker or node is lost each time."""
CONNECT_TIMEOUT_S = 10.0
POLL_S = 0.5
LOOK_AGAIN_S = 5.0
"""How often the size of the cluster, which may grow, is asked for."""

Item = TypeVar("Item")


def join_cluster(address: str) -> bool:
    """Connect this process to a cluster, if it is not connected; returns whether it was this call that did.

    Raises:
        UsageError: ray is not installed, or there is no cluster at the address.
    """
    if address.startswith("ray://"):
        raise UsageError(
            f"--address {address} is one of Ray Client, through which results cannot be written here: run magc-data on "
            "a machine of the cluster and give auto"
        )
    # For clusters that start here; a running one has its own setting.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ModuleNotFoundError:
        raise UsageError('--engine ray needs the package ray, not installed here: pip install "magc[ray]"') from None
    if ray.is_initialized():
        return False
    starting = {"include_dashboard": False} if address == "local" else {}
    try:
        _require_answer(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
        with _keys_hidden_from_the_list_of_jobs():
            ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR", **starting)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()).split(". ", 1)[0]
        raise UsageError(
            f"there is no Ray cluster at the address '{address}' ({reason}): start one with `ray start --head`, or "
            "give --address HOST:PORT, or --address local for one on this machine"
        ) from None
    return True


def _require_answer(address: str) -> None:
    """Ray itself would try for many minutes where nobody listens.

    Raises:
        OSError: nobody does.
    """
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()


@contextlib.contextmanager
def _keys_hidden_from_the_list_of_jobs() -> Iterator[None]:
    """Ray shows each driver's command line to all who see its dashboard, and keys may stand in that."""
    from ray._private import utils

    real = utils.get_entrypoint_name

    def without_secrets() -> str:
        return remove_secrets(real())

    utils.get_entrypoint_name = without_secrets
    try:
        yield
    finally:
        utils.get_entrypoint_name = real


def leave_cluster() -> None:
    """Disconnect; what still runs for this process ends."""
    import ray

    ray.shutdown()


def run_ray(
    submit: Callable[[Item], Any], items: Iterable[Item], at_once: int, wait: Callable[[], None]
) -> Generator[tuple[Item, Any], None, None]:
    """Yield items and what came of them, in the order in which that comes.

    Items are taken only as there is room for them. An end before the last, by an error or an interruption, ends the
    tasks that still run.

    Args:
        submit: starts an item's task and returns its reference.
        items: what there is to do.
        at_once: how many tasks may run or wait; 0: half as many again as the cluster has cores at the time.
        wait: called again and again while nothing comes.

    Raises:
        MagcDataError: a task's worker was lost `ATTEMPTS` times.
    """
    import ray

    running: dict[Any, Item] = {}
    limit, looked_s = at_once, float("-inf")

    def finished(room: int) -> Iterator[tuple[Item, Any]]:
        while len(running) > room:
            done, _ = ray.wait(list(running), num_returns=1, timeout=POLL_S)
            wait()
            for reference in done:
                item = running.pop(reference)
                try:
                    yield item, ray.get(reference)
                except ray.exceptions.RayTaskError:
                    raise  # a fault of ours, with its traceback
                except ray.exceptions.RayError as error:
                    raise MagcDataError(
                        f"a worker was lost {ATTEMPTS} times over the same part of the work ({_first_line(error)}; "
                        "often for lack of memory): run the same command again, with fewer --workers or larger machines"
                    ) from None

    try:
        for item in items:
            if not at_once and time.monotonic() - looked_s > LOOK_AGAIN_S:
                cores = int(ray.cluster_resources().get("CPU", 0))
                limit, looked_s = max(1, cores + (cores + 1) // 2), time.monotonic()
            yield from finished(limit - 1)
            running[submit(item)] = item
        yield from finished(0)
    finally:
        for reference in running:
            with contextlib.suppress(Exception):
                ray.cancel(reference, force=True)


def _first_line(error: Exception) -> str:
    return next((line.strip().rstrip(".:") for line in str(error).splitlines() if line.strip()), type(error).__name__)
