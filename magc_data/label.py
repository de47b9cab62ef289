"""One block of tiles becomes one shard: read the images, burn the map, measure both, write the tar and the rows."""

from __future__ import annotations

import hashlib
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from magc_data.atomic import atomic_file
from magc_data.features import shapes_in_draw_order
from magc_data.match_dates import source_in_state, state_for, states_of_pair
from magc_data.quality.signals import tile_signals
from magc_data.rasterize import RingTable, burn_tiles, ring_table
from magc_data.sample import Provenance, make_sample
from magc_data.schema.sample import Reason, Rejection, TileImage
from magc_data.sea import unknown_tiles, with_sea
from magc_data.shards import index
from magc_data.shards.reader import decode_image
from magc_data.shards.tar import TarWriter
from magc_data.sources.protocols import captures_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import IO

    from numpy.typing import NDArray

    from magc_data.grid import BoundsLonLat, PixelGrid
    from magc_data.ground_grid import AnyBlock, AnyTile
    from magc_data.schema.classes import Scheme
    from magc_data.sea import Sea, SeaOfBox
    from magc_data.shards.destination import BlockPlace
    from magc_data.sources.protocols import FeatureTable, GridImagery, VectorSource


_REPEATED = "the same bytes stand at several places of this dataset"
_OTHER_HALF = ", or those of the other half of the pair, "


class BlockJob(NamedTuple):
    """Everything a worker needs; pickles."""

    data: BlockPlace
    block: AnyBlock
    labelled: tuple[bool, ...]
    """For each tile of the block: the vector source's area covers it."""
    bounds: BoundsLonLat
    """The box whose features are read (the block and a margin)."""
    imagery: GridImagery | None
    """None: maps alone."""
    vectors: VectorSource
    scheme: Scheme
    repeated_sha256: frozenset[str]
    """Images known to stand at several places of the dataset."""
    sea: Sea
    match_dates: bool = False
    """Each map is drawn from OpenStreetMap as it was at the capture of its image."""


class BlockResult(NamedTuple):
    """What came of a block."""

    block_name: str
    kept: int
    rejected: int
    is_bare: bool
    """The vectors hold nothing of it, and nothing says whether it is land or sea."""


class Painter(NamedTuple):
    """A block's shapes, ready to burn."""

    rings: RingTable
    class_ids: NDArray[np.uint8]


class _Found(NamedTuple):
    """Rows of a block so far."""

    samples: list[dict[str, Any]]
    rejected: list[dict[str, Any]]


def label_block(job: BlockJob) -> BlockResult:
    """Make a block's shard and sidecar; both appear whole or not at all, the sidecar last."""
    maps = _Maps(job)
    found, shard_size, shard_sha256 = _write_shard(job, maps)
    schema = index.index_schema(job.scheme, with_captures=captures_of(job.imagery) is not None)
    tables = index.BlockTables(
        pa.Table.from_pylist(found.samples, schema),
        pa.Table.from_pylist(found.rejected, index.REJECTED_SCHEMA),
        shard_size,
        shard_sha256,
        maps.is_settled,
    )
    index.write_sidecar(job.data.sidecar(job.block.name), tables)
    job.data.commit(job.block.name)
    return BlockResult(job.block.name, len(found.samples), len(found.rejected), maps.is_bare)


def painter_of(table: FeatureTable, scheme: Scheme, pixels: PixelGrid, sea: SeaOfBox) -> Painter:
    """The shapes of some features, and the sea below them."""
    shapes = with_sea(shapes_in_draw_order(table, scheme, pixels), sea, scheme, pixels)
    return Painter(ring_table(shapes.polygons), shapes.class_ids)


class _Then(NamedTuple):
    """What a block's map is drawn from, as it was at a time."""

    painter: Painter
    provenance: Provenance
    unclear: dict[AnyTile, str]
    """Tiles that can have no true map, each with the reason."""
    is_settled: bool
    """Something said where the sea is, or that there is none."""
    is_bare: bool
    """The vectors hold nothing of the block, and no coastline far around it."""


class _Maps:
    """The maps of a block, each from OpenStreetMap as it was at the time that belongs to its image."""

    def __init__(self, job: BlockJob) -> None:
        self._job = job
        self._states: dict[str | None, _Then] = {}
        self._unclear_in_other_maps: dict[str | None, dict[AnyTile, str]] = {}
        """By the states that maps of the other halves of pairs are drawn from, and none of these."""

    @property
    def is_settled(self) -> bool:
        """Something said where the sea is, at one of the times at least."""
        return any(each.is_settled for each in self._states.values())

    @property
    def is_bare(self) -> bool:
        """Maps were wanted, the vectors hold nothing, and nothing says whether it is land or sea."""
        return bool(self._states) and all(each.is_bare for each in self._states.values())

    def refusal(self, tile: AnyTile, image: TileImage | None) -> Rejection | None:
        """Why a tile, or the other half of its pair, can have no true map; None where both can."""
        problem = self._then(self._state(image)).unclear.get(tile)
        if problem is None and self._job.match_dates and image is not None:
            _, *others = states_of_pair(self._job.vectors, image)
            found = (self._unclear_in_other_map(state).get(tile) for state in others)
            problem = next((f"in the map of the other half: {each}" for each in found if each is not None), None)
        return None if problem is None else Rejection(Reason.SEA_UNKNOWN, problem)

    def drawn(
        self, kept: Sequence[tuple[AnyTile, TileImage | None]]
    ) -> dict[AnyTile, tuple[NDArray[np.uint8], Provenance]]:
        """Maps of some tiles, and what each is made of."""
        by_state: dict[str | None, list[AnyTile]] = {}
        for tile, image in kept:
            by_state.setdefault(self._state(image), []).append(tile)
        maps = {}
        for state, tiles in by_state.items():
            then = self._then(state)
            for tile, semantic_map in burn_tiles(then.painter.rings, then.painter.class_ids, tiles):
                maps[tile] = semantic_map, then.provenance
        return maps

    def _state(self, image: TileImage | None) -> str | None:
        if not self._job.match_dates or image is None:
            return None
        return state_for(self._job.vectors, image.capture_date)

    def _unclear_in_other_map(self, state: str | None) -> dict[AnyTile, str]:
        """What a map of a time leaves open, which this end of the change has no need to draw."""
        if state in self._states:
            return self._states[state].unclear
        if state not in self._unclear_in_other_maps:
            job = self._job
            vectors = source_in_state(job.vectors, state)
            sea = job.sea.of(vectors).read(job.bounds, vectors.read(job.bounds))
            self._unclear_in_other_maps[state] = unknown_tiles(sea, job.block)
        return self._unclear_in_other_maps[state]

    def _then(self, state: str | None) -> _Then:
        if state not in self._states:
            job = self._job
            vectors = source_in_state(job.vectors, state) if job.match_dates else job.vectors
            table = vectors.read(job.bounds)
            sea = job.sea.of(vectors).read(job.bounds, table)
            imagery_name = None if job.imagery is None else job.imagery.info.name
            self._states[state] = _Then(
                painter_of(table, job.scheme, job.block.pixels, sea),
                Provenance(imagery_name, job.vectors.info.name, table.timestamp),
                unknown_tiles(sea, job.block),
                sea.is_settled,
                sea.was_sought and not len(table.geometry),
            )
        return self._states[state]


def _write_shard(job: BlockJob, maps: _Maps) -> tuple[_Found, int, str]:
    """Write the tar; returns the block's rows, the shard's size and digest (0 and '' where nothing was kept)."""
    path = job.data.shard(job.block.name)
    found = _Found([], [])
    with atomic_file(path) as stream:
        size, sha256 = _write_samples(job, maps, stream, found)
    if found.samples:
        return found, size, sha256
    path.unlink()
    return found, 0, ""


def _write_samples(job: BlockJob, maps: _Maps, stream: IO[bytes], found: _Found) -> tuple[int, str]:
    writer = TarWriter(stream)
    shard = f"shards/{job.block.name}.tar"
    # A row of tiles at a time: memory holds at most 32 images and maps.
    tiles: Sequence[AnyTile] = job.block.tiles
    for _, row in groupby(zip(tiles, job.labelled, strict=True), key=lambda entry: entry[0].y):
        kept: list[tuple[AnyTile, TileImage | None]] = []
        for tile, is_labelled in row:
            image = _read_image(job, tile, is_labelled=is_labelled)
            refusal = image if isinstance(image, Rejection) else maps.refusal(tile, image)
            if refusal is not None:
                found.rejected.append(index.rejected_row(tile, refusal, job.block.name))
            elif not isinstance(image, Rejection):
                kept.append((tile, image))
        drawn = maps.drawn(kept)
        for tile, image in kept:
            semantic_map, provenance = drawn[tile]
            sample = make_sample(tile, image, semantic_map, job.scheme, provenance)
            signals = tile_signals(None if image is None else decode_image(image.data), semantic_map)
            names = index.member_names(sample.key, sample.image_extension)
            spans = {member: writer.add(names[member], content) for member, content in sample.members.items()}
            found.samples.append(index.sample_row(tile, image, sample, signals, spans, shard, provenance))
    sha256 = writer.finish()
    return writer.size, sha256


def halves_of_repeated(rejected: pa.Table) -> list[str]:
    """Digests of the images that would have made pairs with those of some rows, which were rejected as repeated."""
    return [detail.rpartition(_OTHER_HALF)[2] for detail in rejected["detail"].to_pylist() if _OTHER_HALF in detail]


def _read_image(job: BlockJob, tile: AnyTile, *, is_labelled: bool) -> TileImage | Rejection | None:
    """The tile's image; None where there is to be none."""
    if not is_labelled:
        return Rejection(Reason.OUTSIDE_VECTORS, f"not wholly inside the area that {job.vectors.info.name} covers")
    if job.imagery is None:
        return None
    image = job.imagery.read(tile)
    if isinstance(image, TileImage) and job.repeated_sha256:
        digest = hashlib.sha256(image.data).hexdigest()
        other_half = None if image.capture is None else image.capture.pair_sha256
        if not job.repeated_sha256.isdisjoint((digest, other_half)):
            detail = _REPEATED if other_half is None else f"{_REPEATED}{_OTHER_HALF}{other_half}"
            return Rejection(Reason.REPEATED, detail, image_sha256=digest)
    return image
