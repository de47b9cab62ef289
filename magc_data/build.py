"""The whole pipeline on one screen: area -> blocks -> fetch -> label -> publish."""

from __future__ import annotations

import contextlib
import math
from array import array
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
import shapely

from magc_data import area as areas
from magc_data import grid
from magc_data.engines.local import run_local
from magc_data.errors import FetchError, UsageError
from magc_data.label import BlockJob, halves_of_repeated, label_block
from magc_data.lock_config import config_of_lock
from magc_data.lock_file import read_lock
from magc_data.match_dates import fetch_states, require_matchable
from magc_data.progress import Progress
from magc_data.quality.signals import QUALITY_VERSION
from magc_data.schema.classes import load_scheme, scheme_sha256
from magc_data.schema.sample import FORMAT_VERSION, Reason
from magc_data.shards import capture_counts, index
from magc_data.shards.folder import DatasetFolder
from magc_data.shards.manifest import Counts, read_manifest, source_entry
from magc_data.sources.cache import cache_dir, terms_shown_once
from magc_data.sources.http import HttpClient
from magc_data.sources.protocols import SourceContext, captures_of
from magc_data.sources.registry import open_imagery, open_vectors
from magc_data.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa
    from shapely.geometry.base import BaseGeometry

    from magc_data.area import Area
    from magc_data.config import BuildConfig
    from magc_data.grid import Block
    from magc_data.schema.classes import Scheme
    from magc_data.sources.protocols import ImagerySource, SourceInfo, VectorSource

MAX_FAILED_BLOCKS_IN_A_ROW = 3
"""A vector server that fails so many blocks in a row is down: the build stops rather than asking on."""


class Inputs(NamedTuple):
    """A configuration with everything in it opened."""

    area: Area
    zoom: int
    imagery: ImagerySource | None
    """None: maps alone."""
    vectors: VectorSource
    scheme: Scheme
    http: HttpClient
    match_dates: bool = False
    """Each map is of the time of its image."""

    @property
    def infos(self) -> dict[str, SourceInfo]:
        """What is known of each source, by its role."""
        imagery = {} if self.imagery is None else {"imagery": self.imagery.info}
        return imagery | {"vectors": self.vectors.info}


class BuildResult(NamedTuple):
    """What a build came to."""

    manifest: dict[str, Any]
    was_complete: bool
    """True if the dataset was there already and nothing was done."""


@contextlib.contextmanager
def open_inputs(config: BuildConfig) -> Iterator[Inputs]:
    """Open the sources, scheme and area of a configuration; connections close with the block.

    Raises:
        UsageError: something asked for does not exist or does not fit together.
        SourceError: a source cannot be read.
    """
    area = None
    if config.lock is not None:
        lock = read_lock(config.lock)
        config = config_of_lock(config, lock)
        area = areas.area_from_tiles([each.tile for each in lock.tiles], {"lock_sha256": lock.sha256})
    if not grid.MIN_ZOOM <= config.zoom <= grid.MAX_ZOOM:
        raise UsageError(f"zoom {config.zoom} is out of range: expected {grid.MIN_ZOOM} to {grid.MAX_ZOOM}")
    if config.workers < 0:
        raise UsageError(f"--workers is {config.workers}: expected 1 or more, or 0 for one a core")
    if config.rate is not None and not 0 < config.rate < math.inf:
        raise UsageError(f"--rate is {config.rate:g}: expected a number of requests a second, above 0")
    if config.osm_date is not None and config.osm.partition(":")[0] != "overpass":
        raise UsageError(
            f"--osm-date was given with --osm {config.osm}: only overpass can go back; take an extract of then"
        )
    scheme = load_scheme(config.scheme)
    # The area first: a typing error in it should not cost a request.
    given = any((config.bbox, config.aoi, config.place, config.points))
    area = areas.area_of(config, None) if given else area
    with HttpClient(requests_per_s=config.rate) as http:
        context = SourceContext(cache_dir(), http, config.zoom, scheme.tag_keys, config.osm_date)
        imagery = open_imagery(config.imagery, context)
        vectors = open_vectors(config.osm, context)
        require_matchable(imagery, vectors, asked=config.match_osm_date)
        area = area or areas.area_of(config, _common_extent(imagery, vectors))
        yield Inputs(area, config.zoom, imagery, vectors, scheme, http, config.match_osm_date)


def _common_extent(imagery: ImagerySource | None, vectors: VectorSource) -> BaseGeometry | None:
    labelled = vectors.extent()
    if imagery is None:
        return labelled
    extent = imagery.extent()
    if extent is None or labelled is None:
        return extent
    # Where the two only touch, the intersection has lines and points as well, which are no ground to build on.
    common = shapely.intersection(shapely.make_valid(extent), shapely.make_valid(labelled))
    polygons = [part for part in shapely.get_parts(common) if part.area > 0]
    if not polygons:
        raise UsageError(
            f"{imagery.info.name} and {vectors.info.name} have no place in common: "
            "give imagery and vectors of the same area"
        )
    return shapely.MultiPolygon(polygons)


def build(config: BuildConfig, say: Callable[[str], None], *, quiet: bool = False) -> BuildResult:
    """Build a dataset, or continue one.

    Args:
        config: where, from what, into what.
        say: gets the lines that a person should see beside the bar (terms of the sources).
        quiet: no bar.

    Raises:
        MagcDataError: in one sentence; everything finished so far is kept, and the same command continues.
    """
    if config.changes:
        raise UsageError("--changes makes two datasets: leave --lock out; from Python, call changes.build_changes")
    folder = DatasetFolder(config.out)
    with open_inputs(config) as inputs:
        identity = resolved_config(inputs)
        if folder.is_complete(identity):
            return BuildResult(read_manifest(config.out), was_complete=True)
        with folder.locked():
            folder.begin(identity)
            return BuildResult(_build(inputs, folder, config.worker_count, say, quiet=quiet), was_complete=False)


def _build(
    inputs: Inputs, folder: DatasetFolder, workers: int, say: Callable[[str], None], *, quiet: bool
) -> dict[str, Any]:
    """Fetch, label, publish; returns the manifest."""
    for info in inputs.infos.values():
        if terms_shown_once(cache_dir(), info):
            say(f"{info.name}: {info.attribution}. Licence: {info.licence}. {info.terms}")
    with Progress(areas.count_tiles(inputs.area, inputs.zoom), "build", quiet=quiet) as progress:
        block_names = _label_all(inputs, folder, workers, progress)
        _drop_repeated(inputs, folder, block_names, workers)
    manifest = _manifest(inputs, folder, block_names)
    schema = index.index_schema(inputs.scheme, with_captures=captures_of(inputs.imagery) is not None)
    return folder.publish(manifest, schema, block_names)


def _label_all(inputs: Inputs, folder: DatasetFolder, workers: int, progress: Progress) -> list[str]:
    """Bring every block that is not finished to its end; returns the blocks' names in the area's order."""
    names: list[str] = []
    failures: list[str] = []

    def jobs() -> Iterator[BlockJob]:
        in_a_row = 0
        for block in areas.blocks(inputs.area, inputs.zoom):
            names.append(block.name)
            if folder.is_finished(block.name):
                tables = index.read_sidecar(folder.sidecar(block.name))
                progress.block_resumed(len(tables.samples), len(tables.rejected))
                continue
            try:
                job = _fetch_block(inputs, folder, block, progress)
            except FetchError as error:
                failures.append(str(error))
                in_a_row += 1
                if in_a_row >= MAX_FAILED_BLOCKS_IN_A_ROW:
                    raise FetchError(f"{in_a_row} blocks in a row failed, the last because {error}") from None
                continue
            in_a_row = 0
            folder.unseal()
            yield job

    for result in run_local(label_block, jobs(), workers):
        progress.block_finished(result.kept, result.rejected)
    if failures:
        raise FetchError(
            f"{len(failures)} of {len(names)} blocks could not be fetched, the others are done; "
            f"the first failed because {failures[0]}"
        )
    return names


def _fetch_block(inputs: Inputs, folder: DatasetFolder, block: Block, progress: Progress) -> BlockJob:
    """Bring what a block needs onto this machine."""
    job = _job(inputs, folder, block, frozenset())
    wanted = tuple(tile for tile, inside in zip(block.tiles, job.labelled, strict=True) if inside)
    # A block that lies wholly outside the labels needs no imagery.
    if wanted:
        if not inputs.match_dates:
            inputs.vectors.fetch(job.bounds, inputs.http)
        if inputs.imagery is not None:
            inputs.imagery.fetch(block._replace(tiles=wanted), inputs.http, progress.tile_fetched)
            if inputs.match_dates:
                fetch_states(inputs.imagery, inputs.vectors, wanted, job.bounds, inputs.http)
    return job


def _job(inputs: Inputs, folder: DatasetFolder, block: Block, repeated_sha256: frozenset[str]) -> BlockJob:
    return BlockJob(
        data=folder,
        block=block,
        labelled=tuple(bool(each) for each in _labelled_tiles(inputs.vectors, block)),
        bounds=grid.block_bounds_lonlat(block, inputs.scheme.margin_m),
        imagery=inputs.imagery,
        vectors=inputs.vectors,
        scheme=inputs.scheme,
        repeated_sha256=repeated_sha256,
        match_dates=inputs.match_dates,
    )


def _labelled_tiles(vectors: VectorSource, block: Block) -> np.ndarray:
    """Which tiles lie wholly inside the area that the vector source covers, bool [tiles]."""
    extent = vectors.extent()
    if extent is None:
        return np.ones(len(block.tiles), dtype=bool)
    bounds = np.array([grid.tile_bounds_lonlat(tile) for tile in block.tiles])
    # An extract's header rounds its box to 1e-7 degrees (1 cm): a tile that ends on the edge is inside.
    inside: np.ndarray = shapely.covers(extent, shapely.box(*(bounds + np.array([1e-7, 1e-7, -1e-7, -1e-7])).T))
    return inside


def _drop_repeated(inputs: Inputs, folder: DatasetFolder, block_names: list[str], workers: int) -> None:
    """Do the blocks again that hold an image which stands at several places: a picture of no place."""
    repeated = repeated_images(lambda: (_image_digests(folder, name) for name in block_names))
    if not repeated:
        return

    def jobs() -> Iterator[BlockJob]:
        for block in areas.blocks(inputs.area, inputs.zoom):
            if not repeated.isdisjoint(_kept_digests(index.read_sidecar(folder.sidecar(block.name)).samples)):
                folder.unseal()
                yield _job(inputs, folder, block, repeated)

    for _ in run_local(label_block, jobs(), workers):
        pass


def _image_digests(folder: DatasetFolder, block_name: str) -> list[str]:
    """Digests of a block's images, those already found to be repeated included; none where there are maps alone."""
    tables = index.read_sidecar(folder.sidecar(block_name))
    repeated_rows = tables.rejected.filter(pc.equal(tables.rejected["reason"], str(Reason.REPEATED)))
    found = [*repeated_rows["image_sha256"].to_pylist(), *halves_of_repeated(repeated_rows)]
    return _kept_digests(tables.samples) + found


def _kept_digests(samples: pa.Table) -> list[str]:
    """Digests of the images of some rows, and of those that make pairs with them."""
    columns = [name for name in ("image_sha256", "capture_pair_sha256") if name in samples.column_names]
    return [digest for name in columns for digest in samples[name].drop_null().to_pylist()]


def repeated_images(digests_of_blocks: Callable[[], Iterator[list[str]]]) -> frozenset[str]:
    """Digests that occur more than once in all blocks together; holds eight bytes an image."""
    prefixes = array("Q", (int(digest[:16], 16) for digests in digests_of_blocks() for digest in digests))
    values, counts = np.unique(np.frombuffer(prefixes, dtype=np.uint64), return_counts=True)
    suspects = set(values[counts > 1].tolist())
    if not suspects:
        return frozenset()
    places = Counter(
        digest for digests in digests_of_blocks() for digest in digests if int(digest[:16], 16) in suspects
    )
    return frozenset(digest for digest, count in places.items() if count > 1)


def resolved_config(inputs: Inputs) -> dict[str, Any]:
    """What identifies a build: two builds with the same may be mixed, others not."""

    def identity(info: SourceInfo) -> dict[str, Any]:
        return {"name": info.name, "address": info.address, "version": info.version}

    return {
        "area": inputs.area.description,
        "zoom": inputs.zoom,
        "imagery": None,
        **{role: identity(info) for role, info in inputs.infos.items()},
        "scheme": {"name": inputs.scheme.name, "sha256": scheme_sha256(inputs.scheme)},
        "magc_version": __version__,
        "format_version": FORMAT_VERSION,
        "quality_version": QUALITY_VERSION,
        **({"match_osm_date": True} if inputs.match_dates else {}),
        **({"capture_dates": True} if captures_of(inputs.imagery) is not None else {}),
    }


def _manifest(inputs: Inputs, folder: DatasetFolder, block_names: list[str]) -> dict[str, Any]:
    """`dataset.json`, but for the list of shards, which `publish` adds."""
    counts = Counter[str]()
    transient = 0
    gsd_m: list[float] = []
    for name in block_names:
        tables = index.read_sidecar(folder.sidecar(name))
        counts["kept"] += len(tables.samples)
        counts.update(tables.rejected["reason"].to_pylist())
        transient += pc.sum(tables.rejected["transient"], min_count=0).as_py()
        gsd_m += [bound for bound in pc.min_max(tables.samples["gsd_m"]).as_py().values() if bound is not None]
    kept = counts.pop("kept", 0)
    captures = {}
    if captures_of(inputs.imagery) is not None:
        samples = (index.read_sidecar(folder.sidecar(name)).samples for name in block_names)
        captures = {capture_counts.FIELD: capture_counts.count_captures(samples)}
    bounds = areas.area_extent(inputs.area).bounds
    return {
        "format_version": FORMAT_VERSION,
        "magc_version": __version__,
        "config": resolved_config(inputs),
        "sources": {role: source_entry(info) for role, info in inputs.infos.items()},
        "scheme": inputs.scheme.name,
        "classes": [{**each._asdict(), "color": list(each.color)} for each in inputs.scheme.classes],
        "counts": Counts(kept + counts.total(), kept, dict(sorted(counts.items())), transient)._asdict(),
        "bounds_lonlat": list(bounds),
        "zoom": inputs.zoom,
        "gsd_m": {"min": min(gsd_m, default=None), "max": max(gsd_m, default=None)},
        **captures,
    }
