"""The whole pipeline on one screen: area -> blocks -> fetch -> label -> publish."""

from __future__ import annotations

import contextlib
from array import array
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
import shapely

from magc_data import area as areas
from magc_data.engines.blocks import Failures, open_engine
from magc_data.engines.local import run_local
from magc_data.errors import FetchError, UsageError
from magc_data.ground_grid import block_of_tiles
from magc_data.inputs import Inputs, grid_fields, open_inputs, resolved_config
from magc_data.label import BlockJob, halves_of_repeated, label_block
from magc_data.match_dates import fetch_states
from magc_data.progress import Progress
from magc_data.schema.sample import FORMAT_VERSION, Reason
from magc_data.sea import bare_blocks, manifest_entry
from magc_data.shards import capture_counts, index
from magc_data.shards.destination import destination
from magc_data.shards.manifest import Counts, read_manifest, source_entry
from magc_data.sources.cache import cache_dir, terms_shown_once
from magc_data.sources.protocols import captures_of
from magc_data.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    import pyarrow as pa

    from magc_data.config import BuildConfig
    from magc_data.engines.blocks import Engine
    from magc_data.ground_grid import AnyBlock, AnyTile
    from magc_data.label import BlockResult
    from magc_data.shards.destination import Destination
    from magc_data.sources.protocols import VectorSource


class BuildResult(NamedTuple):
    """What a build came to."""

    manifest: dict[str, Any]
    was_complete: bool
    """True if the dataset was there already and nothing was done."""


def build(config: BuildConfig, say: Callable[[str], None], *, quiet: bool = False) -> BuildResult:
    """Build a dataset, or continue one.

    Args:
        config: where, from what, into what.
        say: gets the lines that a person should see beside the bar (terms of the sources).
        quiet: no bar.

    Raises:
        MagcDataError: in one sentence; everything finished so far is kept, and the same command continues.
    """
    if config.task is not None:
        raise UsageError("--task makes a part of the blocks and no dataset: use magc_data.array_job.build_task")
    if config.changes:
        raise UsageError("--changes makes two datasets: leave --lock out; from Python, call changes.build_changes")
    folder = destination(config.out)
    with open_engine(config) as engine, open_inputs(config, pace=engine.pace, quiet=quiet) as inputs:
        identity = resolved_config(inputs)
        if folder.is_complete(identity):
            return BuildResult(read_manifest(config.out), was_complete=True)
        with folder.locked():
            folder.begin(identity)
            return BuildResult(_build(inputs, folder, engine, say, quiet=quiet), was_complete=False)


def _build(
    inputs: Inputs, folder: Destination, engine: Engine, say: Callable[[str], None], *, quiet: bool
) -> dict[str, Any]:
    """Fetch, label, publish; returns the manifest."""
    say_terms(inputs, say)
    with Progress(areas.count_tiles(inputs.area, inputs.zoom), "build", quiet=quiet) as progress:
        block_names = _label_all(inputs, folder, engine, progress, say)
        _drop_repeated(inputs, folder, block_names, engine, progress)
    manifest = _manifest(inputs, folder, block_names)
    schema = index.index_schema(inputs.scheme, with_captures=captures_of(inputs.imagery) is not None)
    return folder.publish(manifest, schema, block_names)


def say_terms(inputs: Inputs, say: Callable[[str], None]) -> None:
    """Show the terms of sources that are used for the first time on this machine."""
    for info in inputs.infos.values():
        if terms_shown_once(cache_dir(), info):
            say(f"{info.name}: {info.attribution}. Licence: {info.licence}. {info.terms}")


def _label_all(
    inputs: Inputs, folder: Destination, engine: Engine, progress: Progress, say: Callable[[str], None]
) -> list[str]:
    """Bring every block that is not finished to its end; returns the blocks' names in the area's order."""
    names: list[str] = []
    failures = Failures()

    def unfinished() -> Iterator[AnyBlock]:
        for block in areas.blocks(inputs.area, inputs.zoom):
            names.append(block.name)
            if folder.is_finished(block.name):
                tables = folder.tables(block.name)
                progress.block_resumed(len(tables.samples), len(tables.rejected))
            else:
                yield block

    made = bare = 0

    def finished(result: BlockResult) -> None:
        nonlocal made, bare
        made += 1
        progress.block_finished(result.kept, result.rejected)
        bare += result.is_bare

    engine.make(inputs, folder, unfinished(), frozenset(), progress, failures, finished)
    if bare:
        say(bare_blocks(bare, made, inputs.vectors.info.name))
    failures.raise_if_any(len(names))
    return names


class LocalEngine(NamedTuple):
    """Fetches in this process and labels in others."""

    workers: int

    @property
    def pace(self) -> None:
        """This process' own."""

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

        def jobs() -> Iterator[BlockJob]:
            for block in blocks:
                job = block_job(inputs, folder, block, repeated_sha256)
                try:
                    # Blocks that are done again were maybe made on another machine: what is here is not asked for.
                    fetch_block(inputs, job, (lambda: None) if repeated_sha256 else progress.tile_fetched)
                except FetchError as error:
                    failures.failed(str(error))
                    continue
                failures.fetched()
                folder.unseal()
                yield job

        for result in run_local(label_block, jobs(), self.workers):
            finished(result)


def local_engine(config: BuildConfig) -> AbstractContextManager[LocalEngine]:
    """The engine of one machine."""
    return contextlib.nullcontext(LocalEngine(config.worker_count))


def fetch_block(inputs: Inputs, job: BlockJob, on_tile: Callable[[], None]) -> None:
    """Bring what a block needs onto this machine."""
    tiles: Sequence[AnyTile] = job.block.tiles
    wanted = [tile for tile, inside in zip(tiles, job.labelled, strict=True) if inside]
    # A block that lies wholly outside the labels needs no imagery.
    if wanted:
        match_dates = inputs.config.match_osm_date
        if not match_dates:
            inputs.vectors.fetch(job.bounds, inputs.http)
            inputs.sea.fetch(job.bounds, inputs.http)
        if inputs.imagery is not None:
            inputs.imagery.fetch(block_of_tiles(wanted), inputs.http, on_tile)
            if match_dates:
                fetch_states(inputs.imagery, inputs.vectors, inputs.sea, wanted, job.bounds, inputs.http)


def block_job(inputs: Inputs, folder: Destination, block: AnyBlock, repeated_sha256: frozenset[str]) -> BlockJob:
    """What there is to do for a block."""
    return BlockJob(
        data=folder.of_block(block.name),
        block=block,
        labelled=tuple(bool(each) for each in _labelled_tiles(inputs.vectors, block)),
        bounds=block.bounds_lonlat(inputs.scheme.margin_m),
        imagery=inputs.imagery,
        vectors=inputs.vectors,
        scheme=inputs.scheme,
        repeated_sha256=repeated_sha256,
        sea=inputs.sea,
        match_dates=inputs.config.match_osm_date,
    )


def _labelled_tiles(vectors: VectorSource, block: AnyBlock) -> np.ndarray:
    """Which tiles lie wholly inside the area that the vector source covers, bool [tiles]."""
    extent = vectors.extent()
    if extent is None:
        return np.ones(len(block.tiles), dtype=bool)
    bounds = np.array([tile.bounds_lonlat for tile in block.tiles])
    # An extract's header rounds its box to 1e-7 degrees (1 cm): a tile that ends on the edge is inside.
    inside: np.ndarray = shapely.covers(extent, shapely.box(*(bounds + np.array([1e-7, 1e-7, -1e-7, -1e-7])).T))
    return inside


def _drop_repeated(
    inputs: Inputs, folder: Destination, block_names: list[str], engine: Engine, progress: Progress
) -> None:
    """Do the blocks again that hold an image which stands at several places: a picture of no place."""
    repeated = repeated_images(lambda: (_image_digests(folder, name) for name in block_names))
    if not repeated:
        return

    def affected() -> Iterator[AnyBlock]:
        for block in areas.blocks(inputs.area, inputs.zoom):
            if not repeated.isdisjoint(_kept_digests(folder.tables(block.name).samples)):
                yield block

    failures = Failures()
    engine.make(inputs, folder, affected(), repeated, progress, failures, lambda _: None)
    failures.raise_if_any(len(block_names))


def _image_digests(folder: Destination, block_name: str) -> list[str]:
    """Digests of a block's images, those already found to be repeated included; none where there are maps alone."""
    tables = folder.tables(block_name)
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


def _manifest(inputs: Inputs, folder: Destination, block_names: list[str]) -> dict[str, Any]:
    """`dataset.json`, but for the list of shards, which `publish` adds."""
    counts = Counter[str]()
    transient = 0
    gsd_m: list[float] = []
    sea_is_settled = False
    for name in block_names:
        tables = folder.tables(name)
        counts["kept"] += len(tables.samples)
        sea_is_settled |= tables.sea_is_settled
        counts.update(tables.rejected["reason"].to_pylist())
        transient += pc.sum(tables.rejected["transient"], min_count=0).as_py()
        gsd_m += [bound for bound in pc.min_max(tables.samples["gsd_m"]).as_py().values() if bound is not None]
    kept = counts.pop("kept", 0)
    captures = {}
    if captures_of(inputs.imagery) is not None:
        samples = (folder.tables(name).samples for name in block_names)
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
        **grid_fields(inputs),
        "gsd_m": {"min": min(gsd_m, default=None), "max": max(gsd_m, default=None)},
        **manifest_entry(inputs.sea, is_settled_anywhere=sea_is_settled),
        **captures,
    }
