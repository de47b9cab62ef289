"""Builds on a Ray cluster: a block is a task, fetched and labelled on one machine and written by the driver.

    driver ── block ──► worker: fetch (cluster's pace, this machine's cache) ─► label into a scratch folder
       ▲                                                                             │
       └──── shard and sidecar, or one sentence why not ◄────────────────────────────┘
       └► the dataset's folder: shard first, then sidecar, as a build on one machine does

Every process of a worker opens the sources for itself, and refuses to go on with others than the driver's.
"""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from magc_data import area as areas
from magc_data.area import Area
from magc_data.atomic import atomic_file
from magc_data.build import block_job, fetch_block
from magc_data.engines.ray_cluster import ATTEMPTS, join_cluster, leave_cluster, run_ray
from magc_data.engines.ray_pace import RayPace, running_keeper, start_keeper
from magc_data.errors import FetchError, MagcDataError, SourceError
from magc_data.inputs import Inputs, open_imagery_on, source_context
from magc_data.label import BlockResult, label_block
from magc_data.sea import open_sea
from magc_data.shards.folder import DatasetFolder
from magc_data.sources.cache import cache_dir
from magc_data.sources.http import HttpClient
from magc_data.sources.registry import open_vectors
from magc_data.sources.shared_disk import refuse_shared_cache
from magc_data.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

    from magc_data.config import BuildConfig
    from magc_data.engines.blocks import Failures
    from magc_data.ground_grid import AnyBlock, GroundGrid
    from magc_data.progress import Progress
    from magc_data.schema.classes import Scheme
    from magc_data.shards.destination import Destination
    from magc_data.sources.protocols import SourceInfo

REPORT_EVERY_S = 0.5
_ENVIRONMENT = (
    "MAGC_WORLD_IMAGERY_URL",
    "MAGC_WAYBACK_CONFIG_URL",
    "MAGC_OVERPASS_URL",
    "MAGC_WATER_POLYGONS_URL",
)
"""What says where sources are. The cache folder is each machine's own."""


class _Order(NamedTuple):
    """What workers need for all blocks of a build. Holds keys of addresses: it travels as data, never in a name."""

    number: str
    """Tells builds apart."""
    config: BuildConfig
    level: int | GroundGrid
    """Zoom, or grid of constant ground resolution."""
    place: BaseGeometry
    """Extent of the area, in lon/lat."""
    scheme: Scheme
    identities: dict[str, tuple[str, str, str | None]]
    """By role, what the driver's sources are."""
    environment: dict[str, str]
    folder: str
    """Where the driver runs, which relative paths start from."""
    magc_version: str
    board: Any


class _Files(NamedTuple):
    """A block as its worker made it."""

    result: BlockResult
    shard: NDArray[np.uint8] | None
    """None where nothing was kept."""
    sidecar: NDArray[np.uint8]
    node: str
    """Ray's id of the machine."""


class _NotMade(NamedTuple):
    """Why a block was not made."""

    kind: type[MagcDataError]
    sentence: str


class Board:
    """Where workers write down how far they are (an actor of a build)."""

    def __init__(self) -> None:
        self._fetched: dict[str, int] = {}

    def write(self, block_name: str, fetched: int) -> None:
        """So many tiles of a block are settled; a block that is done again starts from 0."""
        self._fetched[block_name] = fetched

    def wipe(self, block_name: str) -> None:
        """The block is finished."""
        self._fetched.pop(block_name, None)

    def fetched(self) -> int:
        """Tiles of blocks that are not finished."""
        return sum(self._fetched.values())


class RayEngine:
    """See `Engine`. Joins the cluster when first something is to be asked or made."""

    def __init__(self, config: BuildConfig) -> None:
        self._address = config.address
        self._at_once = max(0, config.workers)
        self._joined = False
        self._nodes: dict[str, str] = {}
        self._board: Any = None
        self._order: Any = None
        self.pace = RayPace(self._keeper)

    def _keeper(self) -> Any:
        self._joined |= join_cluster(self._address)
        return start_keeper()

    def make(
        self,
        inputs: Inputs,
        folder: Destination,
        blocks: Iterable[AnyBlock],
        repeated_sha256: frozenset[str],
        progress: Progress,
        failures: Failures,
        finished: Callable[[BlockResult], None],
    ) -> None:
        """See `Engine`."""
        self._keeper()
        import ray

        if self._board is None:
            # With the driver, which reads it; it ends with the driver.
            here = _node(_this_node(), soft=False)
            self._board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()
            self._order = ray.put(_order_of(inputs, self._board))
        board, order = self._board, self._order
        task = ray.remote(num_cpus=1, max_retries=ATTEMPTS - 1)(_make_block)

        def submit(block: AnyBlock) -> Any:
            # What a block needs is in the cache of the machine that made it.
            where = {"scheduling_strategy": _node(self._nodes[block.name])} if block.name in self._nodes else {}
            return task.options(name=f"block {block.name}", **where).remote(order, block, repeated_sha256)

        def look() -> None:
            progress.fetched_elsewhere(0 if repeated_sha256 else ray.get(board.fetched.remote()))

        with contextlib.closing(run_ray(submit, blocks, self._at_once, look)) as results:
            for block, made in results:
                ray.get(board.wipe.remote(block.name))
                if isinstance(made, _NotMade):
                    if not issubclass(made.kind, FetchError):
                        raise made.kind(made.sentence)
                    failures.failed(made.sentence)
                    continue
                failures.fetched()
                self._nodes[block.name] = made.node
                folder.unseal()
                _write(folder, block.name, made)
                look()
                finished(made.result)

    def close(self) -> None:
        """Leave the cluster, if this engine joined it."""
        self.pace.close()
        if self._joined:
            leave_cluster()


@contextlib.contextmanager
def ray_engine(config: BuildConfig) -> Iterator[RayEngine]:
    """The engine of a cluster."""
    engine = RayEngine(config)
    try:
        yield engine
    finally:
        engine.close()


def _this_node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def _node(node: str, *, soft: bool = True) -> Any:
    """That machine, or, if soft, maybe another."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=soft)


def _order_of(inputs: Inputs, board: Any) -> _Order:
    config = inputs.config
    if inputs.imagery is not None:
        config = _pinned(config, inputs.imagery.info)
    return _Order(
        number=secrets.token_hex(8),
        config=config,
        level=inputs.zoom,
        place=areas.area_extent(inputs.area),
        scheme=inputs.scheme,
        identities=_identities(inputs),
        environment={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        folder=str(Path.cwd()),
        magc_version=__version__,
        board=board,
    )


def _pinned(config: BuildConfig, imagery: SourceInfo) -> BuildConfig:
    """`wayback` or `wayback:DATE` as `wayback:NUMBER`: a release may appear while the build runs."""
    import dataclasses

    name, colon, _ = imagery.name.partition(":")
    is_choice = colon and config.imagery.partition(":")[0] == name
    return dataclasses.replace(config, imagery=imagery.name) if is_choice and "://" not in imagery.name else config


def _identities(inputs: Inputs) -> dict[str, tuple[str, str, str | None]]:
    found = {role: (info.name, info.address, info.version) for role, info in inputs.infos.items()}
    record = inputs.sea.record
    if record is not None and "name" in record:
        found["water polygons"] = (record["name"], record["address"], record["version"])
    return found


def _write(folder: Destination, block_name: str, files: _Files) -> None:
    """Put a block where a build on this machine would have put it, in the same order."""
    place = folder.of_block(block_name)
    if files.shard is None:
        place.shard(block_name).unlink(missing_ok=True)
    else:
        _write_array(place.shard(block_name), files.shard)
    _write_array(place.sidecar(block_name), files.sidecar)
    place.commit(block_name)


def _write_array(path: Path, data: NDArray[np.uint8]) -> None:
    with atomic_file(path) as stream:
        stream.write(data.data)


# --- in a worker -----------------------------------------------------------------------------------------------------


class _Bench:
    """What a process of a worker has open for a build."""

    def __init__(self, order: _Order) -> None:
        if order.magc_version != __version__:
            raise SourceError(
                f"magc {__version__} is installed here, and {order.magc_version} where the build was started: install "
                "the same version on all machines of the cluster"
            )
        os.environ.update(order.environment)
        # Where there is no such folder, relative paths are not found, and the sources say so.
        with contextlib.suppress(OSError):
            os.chdir(order.folder)
        refuse_shared_cache(cache_dir())
        http = HttpClient(requests_per_s=order.config.rate, pace=RayPace(running_keeper))
        with _one_process_a_machine():
            context = source_context(order.config, order.scheme, http)
            vectors = open_vectors(order.config.osm, context)
            imagery, _ = open_imagery_on(order.level, order.config, context, order.place)
            sea = open_sea(order.config.water_polygons, vectors, order.scheme, context)
        self.inputs = Inputs(order.config, Area({}), order.level, imagery, vectors, order.scheme, http, sea)
        self._is_used = False
        found = _identities(self.inputs)
        for role, wanted in order.identities.items():
            if found.get(role) != wanted:
                raise SourceError(
                    f"the {role} here are {_shown(found.get(role))}, and {_shown(wanted)} where the build was started: "
                    "give all machines the same files, at the same path"
                )

    def fetch(self, block: AnyBlock, repeated_sha256: frozenset[str], scratch: Path, report: _Report) -> Any:
        """Bring what a block needs onto this machine."""
        job = block_job(self.inputs, DatasetFolder(scratch), block, repeated_sha256)
        # The first fetch may compile a file of vectors, which the others on this machine then find.
        with contextlib.nullcontext() if self._is_used else _one_process_a_machine():
            fetch_block(self.inputs, job, report.tile_fetched)
        self._is_used = True
        return job


_benches: dict[str, _Bench] = {}


class _Report:
    """Tells the board of a block's progress, now and then."""

    def __init__(self, board: Any, block_name: str) -> None:
        self._board, self._block_name = board, block_name
        self._fetched, self._said_s = 0, float("-inf")

    def tile_fetched(self) -> None:
        self._fetched += 1
        if time.monotonic() - self._said_s >= REPORT_EVERY_S:
            self._said_s = time.monotonic()
            self._board.write.remote(self._block_name, self._fetched)


def _make_block(order: _Order, block: AnyBlock, repeated_sha256: frozenset[str]) -> _Files | _NotMade:
    """Fetch and label a block. What can be expected to fail comes back as a sentence, not as a traceback of Ray's."""
    import ray

    try:
        if order.number not in _benches:
            _benches[order.number] = _Bench(order)
        with tempfile.TemporaryDirectory(prefix="magc-block-") as folder:
            scratch = DatasetFolder(Path(folder))
            report = _Report(order.board, block.name)
            result = label_block(_benches[order.number].fetch(block, repeated_sha256, scratch.data, report))
            shard, sidecar = scratch.shard(block.name), scratch.sidecar(block.name)
            return _Files(
                result,
                np.fromfile(shard, np.uint8) if shard.exists() else None,
                np.fromfile(sidecar, np.uint8),
                str(ray.get_runtime_context().get_node_id()),
            )
    except MagcDataError as error:
        kind: type[MagcDataError] = FetchError if isinstance(error, FetchError) else type(error)
        return _NotMade(kind, f"{error} (on {platform.node()})")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _NotMade(SourceError, f"{where}{error.strerror or error} (on {platform.node()}): put this right there")


@contextlib.contextmanager
def _one_process_a_machine() -> Iterator[None]:
    """One process of this machine at a time."""
    if os.name != "posix":
        yield
        return
    import fcntl

    path = cache_dir() / "one-at-a-time.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _shown(identity: tuple[str, str, str | None] | None) -> str:
    if identity is None:
        return "none"
    name, address, version = identity
    return f"{name} at {address}" + (f", version {version}" if version else "")
