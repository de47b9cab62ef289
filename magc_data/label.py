"""One block of tiles becomes one shard: read the images, burn the map, measure both, write the tar and the rows."""

from __future__ import annotations

import hashlib
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from magc_data.atomic import atomic_file
from magc_data.features import shapes_in_draw_order
from magc_data.match_dates import source_in_state, state_for
from magc_data.quality.signals import tile_signals
from magc_data.rasterize import RingTable, burn_tiles, ring_table
from magc_data.sample import Provenance, make_sample
from magc_data.schema.sample import Reason, Rejection, TileImage
from magc_data.shards import index
from magc_data.shards.folder import DatasetFolder
from magc_data.shards.reader import decode_image
from magc_data.shards.tar import TarWriter
from magc_data.sources.protocols import captures_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import IO

    from numpy.typing import NDArray

    from magc_data.grid import Block, BoundsLonLat, Tile
    from magc_data.schema.classes import Scheme
    from magc_data.sources.protocols import FeatureTable, ImagerySource, VectorSource


_REPEATED = "the same bytes stand at several places of this dataset"
_OTHER_HALF = ", or those of the other half of the pair, "


class BlockJob(NamedTuple):
    """Everything a worker needs; pickles."""

    data: DatasetFolder
    block: Block
    labelled: tuple[bool, ...]
    """For each tile of the block: the vector source's area covers it."""
    bounds: BoundsLonLat
    """The box whose features are read (the block and a margin)."""
    imagery: ImagerySource | None
    """None: maps alone."""
    vectors: VectorSource
    scheme: Scheme
    repeated_sha256: frozenset[str]
    """Images known to stand at several places of the dataset."""
    match_dates: bool = False
    """Each map is drawn from OpenStreetMap as it was at the capture of its image."""


class BlockResult(NamedTuple):
    """What came of a block."""

    block_name: str
    kept: int
    rejected: int


class Painter(NamedTuple):
    """A block's shapes, ready to burn."""

    rings: RingTable
    class_ids: NDArray[np.uint8]


class _Found(NamedTuple):
    """Rows of a block so far."""

    samples: list[dict[str, Any]]
    rejected: list[dict[str, Any]]


def label_block(job: BlockJob) -> BlockResult:
    """Make a block's shard and sidecar; both appear atomically, the sidecar last."""
    found, shard_size, shard_sha256 = _write_shard(job)
    schema = index.index_schema(job.scheme, with_captures=captures_of(job.imagery) is not None)
    tables = index.BlockTables(
        pa.Table.from_pylist(found.samples, schema),
        pa.Table.from_pylist(found.rejected, index.REJECTED_SCHEMA),
        shard_size,
        shard_sha256,
    )
    index.write_sidecar(job.data.sidecar(job.block.name), tables)
    return BlockResult(job.block.name, len(found.samples), len(found.rejected))


def painter_of(table: FeatureTable, scheme: Scheme, zoom: int) -> Painter:
    """The shapes of some features."""
    shapes = shapes_in_draw_order(table, scheme, zoom)
    return Painter(ring_table(shapes.polygons), shapes.class_ids)


class _Maps:
    """The maps of a block, each from OpenStreetMap as it was at the time that belongs to its image."""

    def __init__(self, job: BlockJob) -> None:
        self._job = job
        self._painters: dict[str | None, tuple[Painter, Provenance]] = {}

    def drawn(self, kept: Sequence[tuple[Tile, TileImage | None]]) -> dict[Tile, tuple[NDArray[np.uint8], Provenance]]:
        """Maps of some tiles, and what each is made of."""
        by_state: dict[str | None, list[Tile]] = {}
        for tile, image in kept:
            by_state.setdefault(self._state(image), []).append(tile)
        maps = {}
        for state, tiles in by_state.items():
            painter, provenance = self._painter(state)
            for tile, semantic_map in burn_tiles(painter.rings, painter.class_ids, tiles):
                maps[tile] = semantic_map, provenance
        return maps

    def _state(self, image: TileImage | None) -> str | None:
        if not self._job.match_dates or image is None:
            return None
        return state_for(self._job.vectors, image.capture_date)

    def _painter(self, state: str | None) -> tuple[Painter, Provenance]:
        if state not in self._painters:
            job = self._job
            vectors = source_in_state(job.vectors, state) if job.match_dates else job.vectors
            table = vectors.read(job.bounds)
            imagery_name = None if job.imagery is None else job.imagery.info.name
            provenance = Provenance(imagery_name, job.vectors.info.name, table.timestamp)
            self._painters[state] = painter_of(table, job.scheme, job.block.z), provenance
        return self._painters[state]


def _write_shard(job: BlockJob) -> tuple[_Found, int, str]:
    """Write the tar; returns the block's rows, the shard's size and digest (0 and '' where nothing was kept)."""
    path = job.data.shard(job.block.name)
    found = _Found([], [])
    with atomic_file(path) as stream:
        size, sha256 = _write_samples(job, stream, found)
    if found.samples:
        return found, size, sha256
    path.unlink()
    return found, 0, ""


def _write_samples(job: BlockJob, stream: IO[bytes], found: _Found) -> tuple[int, str]:
    writer = TarWriter(stream)
    maps = _Maps(job)
    shard = f"shards/{job.block.name}.tar"
    # A row of tiles at a time: memory holds at most 32 images and maps.
    for _, row in groupby(zip(job.block.tiles, job.labelled, strict=True), key=lambda entry: entry[0].y):
        kept: list[tuple[Tile, TileImage | None]] = []
        for tile, is_labelled in row:
            image = _read_image(job, tile, is_labelled=is_labelled)
            if isinstance(image, Rejection):
                found.rejected.append(index.rejected_row(tile, image, job.block.name))
            else:
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


def _read_image(job: BlockJob, tile: Tile, *, is_labelled: bool) -> TileImage | Rejection | None:
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
