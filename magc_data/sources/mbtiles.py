"""Imagery from a container of tiles in one file: MBTiles (SQLite) and PMTiles (version 3). Bytes pass untouched."""

from __future__ import annotations

import gzip
import mmap
import sqlite3
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import shapely
from pmtiles.tile import (
    Compression,
    MagicNumberNotFound,
    SpecVersionUnsupported,
    TileType,
    deserialize_directory,
    deserialize_header,
    find_tile,
    zxy_to_tileid,
)

from magc_data import grid
from magc_data.errors import SourceError, UsageError
from magc_data.grid import MAX_LATITUDE, MAX_ZOOM, Tile
from magc_data.image_check import check_tile_bytes
from magc_data.schema.sample import Reason, Rejection, TileImage
from magc_data.sources.file_version import files_version
from magc_data.sources.open_once import open_once
from magc_data.sources.protocols import BlockAvailability, SourceInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pmtiles.tile import HeaderDict
    from shapely.geometry.base import BaseGeometry

    from magc_data.grid import Block
    from magc_data.sources.http import HttpClient
    from magc_data.sources.protocols import SourceContext

VECTOR_FORMATS = frozenset({"pbf", "mvt", "mlt", "application/vnd.mapbox-vector-tile"})

RASTER_TYPES = frozenset({TileType.UNKNOWN, TileType.PNG, TileType.JPEG, TileType.WEBP})
"""Unknown: the bytes themselves are looked at."""

PMTILES_HEADER_BYTES = 127
PMTILES_MAX_DEPTH = 4
"""Directories on the way to a tile, as the specification allows."""


@dataclass
class TileContainer:
    """A file of tiles; `lookup` is how its format finds one."""

    info: SourceInfo
    path: str
    covered: BaseGeometry | None
    lookup: Callable[[str, Tile], bytes | None]
    """A function of a module, so that the source pickles."""

    def extent(self) -> BaseGeometry | None:
        """The bounds that the file states, or those of its tiles."""
        return self.covered

    def availability(self, block: Block, http: HttpClient) -> BlockAvailability | None:  # noqa: ARG002 - the protocol's
        """Looks up every tile."""
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


def open_mbtiles(path: str, context: SourceContext) -> TileContainer:
    """Open an MBTiles file.

    Raises:
        SourceError: it is no MBTiles file, or holds vector tiles.
        UsageError: it has no tiles of the zoom asked for.
    """
    try:
        connection = _connection(path)
        metadata = dict(connection.execute("SELECT name, value FROM metadata").fetchall())
        zooms = [zoom for zoom in range(MAX_ZOOM + 1) if _has_zoom(connection, zoom)]
    except sqlite3.Error as error:
        raise _not_mbtiles(path, error) from None
    _refuse_vector_tiles(path, str(metadata.get("format", "")).lower())
    _require_zoom(path, zooms, context.zoom)
    covered = _stated_bounds(str(metadata.get("bounds", "")))
    if covered is None:
        covered = _tiles_box(connection, context.zoom)
    return TileContainer(_info(path, str(metadata.get("attribution", ""))), path, covered, _mbtiles_lookup)


def open_pmtiles(path: str, context: SourceContext) -> TileContainer:
    """Open a PMTiles file of version 3.

    Raises:
        SourceError: it is no such file, holds vector tiles, or is compressed in a way not known here.
        UsageError: it has no tiles of the zoom asked for.
    """
    header = _pmtiles(path).header
    _refuse_vector_tiles(path, "" if header["tile_type"] in RASTER_TYPES else header["tile_type"].name.lower())
    for compression in (header["internal_compression"], header["tile_compression"]):
        if compression not in (Compression.NONE, Compression.GZIP, Compression.UNKNOWN):
            raise SourceError(f"{path} is compressed with {compression.name.lower()}, expected gzip or none: convert it")
    if header["internal_compression"] != Compression.GZIP:
        raise SourceError(f"{path} has directories that are not gzip-compressed: convert it with 'pmtiles convert'")
    _require_zoom(path, range(header["min_zoom"], header["max_zoom"] + 1), context.zoom)
    degrees = [header[f"{side}_e7"] / 1e7 for side in ("min_lon", "min_lat", "max_lon", "max_lat")]  # type: ignore[literal-required]
    return TileContainer(_info(path, ""), path, _stated_bounds(",".join(map(str, degrees))), _pmtiles_lookup)
