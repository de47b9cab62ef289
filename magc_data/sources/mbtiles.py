"""Imagery from one file of tiles: MBTiles (SQLite) and PMTiles (version 3). JPEG and PNG bytes pass untouched."""

from __future__ import annotations

import gzip
import json
import mmap
import re
import sqlite3
import zlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shapely
from pmtiles.tile import (
    Compression,
    MagicNumberNotFound,
    SpecVersionUnsupported,
    deserialize_directory,
    deserialize_header,
    find_tile,
    zxy_to_tileid,
)

from magc_data import grid
from magc_data.errors import SourceError, UsageError
from magc_data.grid import MAX_ZOOM, Tile
from magc_data.image_check import check_tile_bytes
from magc_data.schema.sample import Reason, Rejection, TileImage
from magc_data.sources.file_version import files_version
from magc_data.sources.open_once import open_once
from magc_data.sources.protocols import BlockAvailability, SourceInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shapely.geometry.base import BaseGeometry

    from magc_data.grid import Block
    from magc_data.sources.http import HttpClient
    from magc_data.sources.protocols import SourceContext

VECTOR_FORMATS = frozenset({"pbf", "mvt", "mlt", "application/vnd.mapbox-vector-tile", "application/x-protobuf"})

PMTILES_HEADER_BYTES = 127
PMTILES_MAX_DEPTH = 4
"""Directories on the way to a tile, as the specification allows."""

TERMS = "Your own file: magc does not know its licence. Check it before you pass the pixels on."


@dataclass
class TileContainer:
    """A file of tiles; `lookup` and `outline` are how its format finds a tile, and the lon/lat area at a zoom."""

    info: SourceInfo
    path: str
    zoom: int
    lookup: Callable[[str, Tile], bytes | None]
    outline: Callable[[str, int], BaseGeometry | None]

    @cached_property
    def _covered(self) -> BaseGeometry | None:
        return self.outline(self.path, self.zoom)

    def extent(self) -> BaseGeometry | None:
        """The box around the tiles; None where the file claims the whole world."""
        return self._covered

    def availability(self, block: Block, http: HttpClient) -> BlockAvailability | None:  # noqa: ARG002 - the protocol's
        """Looks every tile up."""
        available = sum(self.lookup(self.path, tile) is not None for tile in block.tiles)
        return BlockAvailability(available, len(block.tiles) - available, available)

    def fetch(self, block: Block, http: HttpClient, on_tile: Callable[[], None]) -> None:
        """Nothing to do: the file is here."""

    def read(self, tile: Tile) -> TileImage | Rejection:
        """One tile, checked.

        Raises:
            SourceError: the file is damaged or gone.
        """
        data = self.lookup(self.path, tile)
        if data is None:
            return Rejection(Reason.OUTSIDE_IMAGERY, f"not in {self.info.name}")
        return check_tile_bytes(data, transient=False)


def _info(path: str, attribution: object) -> SourceInfo:
    name = Path(path).name
    # Attributions are HTML more often than not.
    words = " ".join(re.sub(r"<[^>]*>", " ", attribution).split()) if isinstance(attribution, str) else ""
    return SourceInfo(
        name=name,
        address=path,
        licence="not stated",
        attribution=words or f"local imagery: {name}",
        terms=TERMS,
        redistributable=False,
        version=files_version([Path(path)]),
    )


def _require_raster(path: str, tile_format: str) -> None:
    if tile_format in VECTOR_FORMATS:
        raise SourceError(
            f"{path} holds vector tiles ({tile_format}), expected images: render them first, or use another file"
        )


def _require_zoom(path: str, zooms: Sequence[int], zoom: int) -> None:
    if zoom not in zooms:
        there = ", ".join(map(str, zooms)) or "none at all"
        raise UsageError(f"{path} has no tiles of zoom {zoom}: its zooms are {there}")


# --- MBTiles: rows are counted from the south ------------------------------------------------------------------------


def open_mbtiles(path: str, context: SourceContext) -> TileContainer:
    """Open an MBTiles file.

    Raises:
        SourceError: it is no MBTiles file, or holds vector tiles.
        UsageError: it has no tiles of the zoom asked for.
    """
    metadata = {str(name): value for name, value in _query(path, "SELECT name, value FROM metadata")}
    _require_raster(path, str(metadata.get("format", "")).lower())
    one = "SELECT 1 FROM tiles WHERE zoom_level = ? LIMIT 1"
    zooms = [zoom for zoom in range(MAX_ZOOM + 1) if _query(path, one, zoom)]
    _require_zoom(path, zooms, context.zoom)
    return TileContainer(_info(path, metadata.get("attribution")), path, context.zoom, _mbtiles_tile, _mbtiles_outline)


def _query(path: str, statement: str, *values: int) -> list[Any]:
    try:
        return _connection(path).execute(statement, values).fetchall()
    except sqlite3.Error as error:
        raise SourceError(
            f"{path} cannot be read as MBTiles ({error}): it is damaged, gone, or another kind of file"
        ) from None


@open_once(max_open=4)
def _connection(path: str) -> sqlite3.Connection:
    # Whichever thread drops the last reference closes it.
    return sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)


def _mbtiles_tile(path: str, tile: Tile) -> bytes | None:
    rows = _query(
        path,
        "SELECT tile_data FROM tiles WHERE zoom_level = ? AND tile_column = ? AND tile_row = ?",
        tile.z,
        tile.x,
        2**tile.z - 1 - tile.y,
    )
    return bytes(rows[0][0]) if rows and rows[0][0] is not None else None


def _mbtiles_outline(path: str, zoom: int) -> BaseGeometry:
    """Not the stated bounds: those stand for all zooms, and are often left at the whole world."""
    ((x_min, x_max, row_min, row_max),) = _query(
        path,
        "SELECT min(tile_column), max(tile_column), min(tile_row), max(tile_row) FROM tiles WHERE zoom_level = ?",
        zoom,
    )
    last = 2**zoom - 1
    west, _, _, north = grid.tile_bounds_lonlat(Tile(zoom, x_min, last - row_max))
    _, south, east, _ = grid.tile_bounds_lonlat(Tile(zoom, x_max, last - row_min))
    return shapely.box(west, south, east, north)


# --- PMTiles ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Archive:
    """A PMTiles file mapped into memory. One is like no other, so that directories can be kept by archive."""

    mapping: mmap.mmap
    header: Any

    def bytes_at(self, offset: int, length: int) -> bytes:
        """A part of the file; shorter where the file ends before it."""
        return self.mapping[offset : offset + length]


def open_pmtiles(path: str, context: SourceContext) -> TileContainer:
    """Open a PMTiles file of version 3.

    Raises:
        SourceError: it is no such file, holds vector tiles, or is compressed in a way not known here.
        UsageError: it has no tiles of the zoom asked for.
    """
    archive = _archive(path)
    header = archive.header
    tile_type, tile_compression = header["tile_type"], header["tile_compression"]
    _require_raster(path, tile_type.name.lower())
    if tile_compression in (Compression.BROTLI, Compression.ZSTD) or header["internal_compression"] != Compression.GZIP:
        found = f"tiles {tile_compression.name.lower()}, directories {header['internal_compression'].name.lower()}"
        raise SourceError(f"{path} is compressed as {found}, expected gzip or none for tiles and gzip for directories")
    _require_zoom(path, range(header["min_zoom"], header["max_zoom"] + 1), context.zoom)
    try:
        metadata = json.loads(gzip.decompress(archive.bytes_at(header["metadata_offset"], header["metadata_length"])))
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise _not_pmtiles(path, error) from None
    attribution = metadata.get("attribution") if isinstance(metadata, dict) else None
    return TileContainer(_info(path, attribution), path, context.zoom, _pmtiles_tile, _pmtiles_outline)


def _not_pmtiles(path: str, error: Exception) -> SourceError:
    reason = str(error) or type(error).__name__
    return SourceError(
        f"{path} cannot be read as PMTiles version 3 ({reason}): it is damaged, gone, or another kind of file"
    )


@open_once(max_open=4)
def _archive(path: str) -> _Archive:
    try:
        with Path(path).open("rb") as stream:
            mapping = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return _Archive(mapping, deserialize_header(mapping[:PMTILES_HEADER_BYTES]))
    except (MagicNumberNotFound, SpecVersionUnsupported, OSError, ValueError, IndexError) as error:
        raise _not_pmtiles(path, error) from None


@lru_cache(maxsize=64)
def _directory(archive: _Archive, offset: int, length: int) -> Any:
    """The package's own reader decodes the directories again for every tile."""
    return deserialize_directory(archive.bytes_at(offset, length))


def _pmtiles_tile(path: str, tile: Tile) -> bytes | None:
    archive = _archive(path)
    header = archive.header
    tile_id = zxy_to_tileid(*tile)
    offset, length = header["root_offset"], header["root_length"]
    try:
        for _ in range(PMTILES_MAX_DEPTH):
            entry = find_tile(_directory(archive, offset, length), tile_id)
            if entry is None:
                return None
            if entry.run_length > 0:
                data = archive.bytes_at(header["tile_data_offset"] + entry.offset, entry.length)
                return gzip.decompress(data) if header["tile_compression"] == Compression.GZIP else data
            offset, length = header["leaf_directory_offset"] + entry.offset, entry.length
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise _not_pmtiles(path, error) from None
    raise _not_pmtiles(path, ValueError("its directories go in circles"))


def _pmtiles_outline(path: str, zoom: int) -> BaseGeometry | None:  # noqa: ARG001 - one outline for all zooms
    header = _archive(path).header
    west, south, east, north = (header[f"{each}_e7"] / 1e7 for each in ("min_lon", "min_lat", "max_lon", "max_lat"))
    whole_world = west <= -180 and east >= 180
    return None if whole_world or not (west < east and south < north) else shapely.box(west, south, east, north)
