"""One block of tiles becomes one shard: read the images, burn the map, measure both, write the tar and the rows."""

from __future__ import annotations

import hashlib
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from magc_data.atomic import atomic_file
from magc_data.features import shapes_in_draw_order
from magc_data.quality.signals import tile_signals
from magc_data.rasterize import RingTable, burn_tiles, ring_table
from magc_data.sample import Provenance, make_sample
from magc_data.schema.sample import Reason, Rejection, TileImage
from magc_data.sea import NOTHING_KNOWN, unknown_tiles, with_sea
from magc_data.shards import index
from magc_data.shards.reader import decode_image
from magc_data.shards.tar import TarWriter
from magc_data.sources.protocols import NO_FEATURES

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
    # A block wholly outside the labels was not fetched, so there is nothing to read; its tiles are all rejected.
    table = job.vectors.read(job.bounds) if any(job.labelled) else NO_FEATURES
    sea = job.sea.read(job.bounds, table) if any(job.labelled) else NOTHING_KNOWN
    imagery_name = None if job.imagery is None else job.imagery.info.name
    provenance = Provenance(imagery_name, job.vectors.info.name, table.timestamp)
    painter = painter_of(table, job.scheme, job.block.pixels, sea)
    found, shard_size, shard_sha256 = _write_shard(job, sea, painter, provenance)
    schema = index.index_schema(job.scheme)
    tables = index.BlockTables(
        pa.Table.from_pylist(found.samples, schema),
        pa.Table.from_pylist(found.rejected, index.REJECTED_SCHEMA),
        shard_size,
        shard_sha256,
        sea.is_settled,
    )
    index.write_sidecar(job.data.sidecar(job.block.name), tables)
    job.data.commit(job.block.name)
    is_bare = any(job.labelled) and not len(table.geometry) and not sea.is_settled
    return BlockResult(job.block.name, len(found.samples), len(found.rejected), is_bare)


def painter_of(table: FeatureTable, scheme: Scheme, pixels: PixelGrid, sea: SeaOfBox) -> Painter:
    """The shapes of some features, and the sea below them."""
    shapes = with_sea(shapes_in_draw_order(table, scheme, pixels), sea, scheme, pixels)
    return Painter(ring_table(shapes.polygons), shapes.class_ids)


def _write_shard(
    job: BlockJob,
    sea: SeaOfBox,
    painter: Painter,
    provenance: Provenance,
) -> tuple[_Found, int, str]:
    """Write the tar; returns the block's rows, the shard's size and digest (0 and '' where nothing was kept)."""
    path = job.data.shard(job.block.name)
    found = _Found([], [])
    with atomic_file(path) as stream:
        size, sha256 = _write_samples(job, stream, sea, painter, provenance, found)
    if found.samples:
        return found, size, sha256
    path.unlink()
    return found, 0, ""


def _write_samples(
    job: BlockJob,
    stream: IO[bytes],
    sea: SeaOfBox,
    painter: Painter,
    provenance: Provenance,
    found: _Found,
) -> tuple[int, str]:
    writer = TarWriter(stream)
    shard = f"shards/{job.block.name}.tar"
    refused = _refused_for_their_maps(job, sea)
    # A row of tiles at a time: memory holds at most 32 images and maps.
    tiles: Sequence[AnyTile] = job.block.tiles
    for _, row in groupby(tiles, key=lambda tile: tile.y):
        kept: list[tuple[AnyTile, TileImage | None]] = []
        for tile in row:
            image = refused.get(tile) or _read_image(job, tile)
            if isinstance(image, Rejection):
                found.rejected.append(index.rejected_row(tile, image, job.block.name))
            else:
                kept.append((tile, image))
        maps = burn_tiles(painter.rings, painter.class_ids, [tile for tile, _ in kept])
        for (tile, image), (_, semantic_map) in zip(kept, maps, strict=True):
            sample = make_sample(tile, image, semantic_map, job.scheme, provenance)
            signals = tile_signals(None if image is None else decode_image(image.data), semantic_map)
            names = index.member_names(sample.key, sample.image_extension)
            spans = {member: writer.add(names[member], content) for member, content in sample.members.items()}
            found.samples.append(index.sample_row(tile, image, sample, signals, spans, shard, provenance))
    sha256 = writer.finish()
    return writer.size, sha256


def _refused_for_their_maps(job: BlockJob, sea: SeaOfBox) -> dict[AnyTile, Rejection]:
    """The tiles that cannot have a true map."""
    outside = Rejection(Reason.OUTSIDE_VECTORS, f"not wholly inside the area that {job.vectors.info.name} covers")
    unclear = {tile: Rejection(Reason.SEA_UNKNOWN, problem) for tile, problem in unknown_tiles(sea, job.block).items()}
    tiles: Sequence[AnyTile] = job.block.tiles
    return unclear | {tile: outside for tile, inside in zip(tiles, job.labelled, strict=True) if not inside}


def _read_image(job: BlockJob, tile: AnyTile) -> TileImage | Rejection | None:
    """The tile's image; None where there is to be none."""
    if job.imagery is None:
        return None
    image = job.imagery.read(tile)
    if isinstance(image, TileImage) and job.repeated_sha256:
        digest = hashlib.sha256(image.data).hexdigest()
        if digest in job.repeated_sha256:
            return Rejection(
                Reason.REPEATED, "the same bytes stand at several places of this dataset", image_sha256=digest
            )
    return image
