"""Tile and pixel-grid mathematics of the web-mercator scheme (EPSG:3857, 256-pixel tiles). Pure functions.

Frames used here and in names everywhere else:

* `lonlat`: degrees, WGS 84 (EPSG:4326), longitude first.
* `3857`: metres of the spherical web-mercator projection.
* `px`: the global pixel grid of a zoom level, x to the right and y down from 180 W, 85.05 N; tile (z, x, y) covers
  the pixels [256 x, 256 x + 256) by [256 y, 256 y + 256).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from magc_data.errors import UsageError
from magc_data.schema.sample import TILE_SIZE_PX as TILE_SIZE_PX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

BLOCK_TILES = 32
"""A block (the unit of work, one shard) is at most 32 x 32 tiles, aligned: the size of a tilemap request."""

MIN_ZOOM, MAX_ZOOM = 6, 23
"""Below zoom 6 a box over the antimeridian could begin and end in one block; above 23 no service has tiles."""

EARTH_RADIUS_M = 6378137.0
HALF_CIRCUMFERENCE_M = math.pi * EARTH_RADIUS_M
MAX_LATITUDE = math.degrees(2 * math.atan(math.exp(math.pi)) - math.pi / 2)
"""Latitude of the square web-mercator world's edge: 85.0511287798066 degrees."""


Coefficients = tuple[float, float, float, float, float, float]
"""a, b, c, d, e, f: column and row are at a x column + b x row + c, d x column + e x row + f."""

EDGE_SAMPLES = 33
"""Points per edge that stand for it when a rectangle is projected."""


class BoundsLonLat(NamedTuple):
    """A box in degrees; `west > east` never occurs here: boxes over the antimeridian are split first."""

    west: float
    south: float
    east: float
    north: float


class Bounds3857(NamedTuple):
    """A box in web-mercator metres."""

    left_m: float
    bottom_m: float
    right_m: float
    top_m: float


class Tile(NamedTuple):
    """A web-mercator tile: zoom, column from the west, row from the north."""

    z: int
    x: int
    y: int

    @property
    def key(self) -> str:
        """The sample's key, `z_x_y`: no dots, as WebDataset cuts keys at the first one."""
        return f"{self.z}_{self.x}_{self.y}"

    # What a tile of the other grid (ground_grid.py) has as well.

    @property
    def bounds_lonlat(self) -> BoundsLonLat:
        """The tile's box in degrees."""
        return tile_bounds_lonlat(self)

    @property
    def centre_lonlat(self) -> tuple[float, float]:
        """Longitude and latitude of the central pixel corner (128, 128)."""
        return tile_centre_lonlat(self)

    @property
    def gsd_m(self) -> float:
        """Metres on the ground a pixel, at the tile's centre."""
        return tile_gsd_m(self)

    @property
    def block_name(self) -> str:
        """Name of the block that the tile is in."""
        return Block(self.z, self.x // BLOCK_TILES, self.y // BLOCK_TILES, ()).name

    def place_fields(self) -> dict[str, Any]:
        """What a sample's record says of its place."""
        return place_fields(self)


class Block(NamedTuple):
    """An aligned square of up to 32 x 32 tiles, and the tiles of it that are wanted (row by row)."""

    z: int
    column: int
    row: int
    tiles: tuple[Tile, ...]

    @property
    def name(self) -> str:
        """`z_x_y` of the block's north-western tile, whether that tile is wanted or not."""
        return f"{self.z}_{self.column * BLOCK_TILES}_{self.row * BLOCK_TILES}"

    @property
    def pixels(self) -> MercatorPixels:
        """The pixel grid of its tiles."""
        return MercatorPixels(self.z)

    def bounds_lonlat(self, margin_m: float = 0.0) -> BoundsLonLat:
        """The box of the wanted tiles in degrees, widened by metres on the ground, cut at 180 degrees."""
        return block_bounds_lonlat(self, margin_m)


class PixelGrid(Protocol):
    """A pixel grid that tiles are cut from: that of a zoom level, or a band of constant ground resolution."""

    @property
    def crs(self) -> str:
        """Of `transform_at`, as GDAL takes it."""
        ...

    def lonlat_to_px(
        self, lon: NDArray[np.float64], lat: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Degrees to pixels."""
        ...

    def metres_per_px(self, latitude: NDArray[np.float64]) -> NDArray[np.float64]:
        """Metres on the ground a pixel at latitudes in degrees."""
        ...

    def transform_at(self, left_px: int, top_px: int) -> Coefficients:
        """From the pixels of a raster whose upper left corner is there to coordinates in `crs`."""
        ...


class MercatorPixels(NamedTuple):
    """The global pixel grid of a zoom level."""

    zoom: int

    @property
    def crs(self) -> str:
        """Web-mercator."""
        return "EPSG:3857"

    def lonlat_to_px(
        self, lon: NDArray[np.float64], lat: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Degrees to pixels."""
        return lonlat_to_px(lon, lat, self.zoom)

    def metres_per_px(self, latitude: NDArray[np.float64]) -> NDArray[np.float64]:
        """Metres on the ground a pixel, on the sphere of EPSG:3857."""
        return gsd_m(0.0, self.zoom) * np.cos(np.radians(latitude))

    def transform_at(self, left_px: int, top_px: int) -> Coefficients:
        """From the pixels of a raster whose upper left corner is there to web-mercator metres."""
        pixel_m = 2 * HALF_CIRCUMFERENCE_M / (TILE_SIZE_PX << self.zoom)
        left_m, top_m = left_px * pixel_m - HALF_CIRCUMFERENCE_M, HALF_CIRCUMFERENCE_M - top_px * pixel_m
        return (pixel_m, 0.0, left_m, 0.0, -pixel_m, top_m)


def gsd_m(latitude: float, zoom: int) -> float:
    """Ground sample distance: metres on the ground per pixel at a latitude, on the sphere of EPSG:3857."""
    return 2 * math.pi * EARTH_RADIUS_M * math.cos(math.radians(latitude)) / (TILE_SIZE_PX << zoom)


def lonlat_to_px(
    lon: NDArray[np.float64], lat: NDArray[np.float64], zoom: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Project degrees onto the global pixel grid; latitudes are clamped to the projection's square world."""
    world_px = TILE_SIZE_PX * 2.0**zoom
    sin_lat = np.sin(np.radians(np.clip(lat, -MAX_LATITUDE, MAX_LATITUDE)))
    x_px = (np.asarray(lon) + 180.0) / 360.0 * world_px
    y_px = (0.5 - np.log((1 + sin_lat) / (1 - sin_lat)) / (4 * np.pi)) * world_px
    return x_px, y_px


def px_to_lonlat(
    x_px: NDArray[np.float64], y_px: NDArray[np.float64], zoom: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Inverse of `lonlat_to_px`."""
    world_px = TILE_SIZE_PX * 2.0**zoom
    lon = np.asarray(x_px) / world_px * 360.0 - 180.0
    lat = np.degrees(np.arctan(np.sinh(np.pi * (1 - 2 * np.asarray(y_px) / world_px))))
    return lon, lat


def _latitude_of_row(row: int, zoom: int) -> float:
    """Latitude of the northern edge of a tile row."""
    return math.degrees(math.atan(math.sinh(math.pi * (1 - 2 * row / 2**zoom))))


def tile_bounds_lonlat(tile: Tile) -> BoundsLonLat:
    """The tile's box in degrees."""
    count = 2**tile.z
    return BoundsLonLat(
        west=tile.x / count * 360.0 - 180.0,
        south=_latitude_of_row(tile.y + 1, tile.z),
        east=(tile.x + 1) / count * 360.0 - 180.0,
        north=_latitude_of_row(tile.y, tile.z),
    )


def tile_bounds_3857(tile: Tile) -> Bounds3857:
    """The tile's box in web-mercator metres."""
    size_m = 2 * HALF_CIRCUMFERENCE_M / 2**tile.z
    return Bounds3857(
        left_m=tile.x * size_m - HALF_CIRCUMFERENCE_M,
        bottom_m=HALF_CIRCUMFERENCE_M - (tile.y + 1) * size_m,
        right_m=(tile.x + 1) * size_m - HALF_CIRCUMFERENCE_M,
        top_m=HALF_CIRCUMFERENCE_M - tile.y * size_m,
    )


def tile_centre_lonlat(tile: Tile) -> tuple[float, float]:
    """Longitude and latitude of the tile's central pixel corner (128, 128)."""
    count = 2**tile.z
    lon = (tile.x + 0.5) / count * 360.0 - 180.0
    lat = math.degrees(math.atan(math.sinh(math.pi * (1 - 2 * (tile.y + 0.5) / count))))
    return lon, lat


def tile_gsd_m(tile: Tile) -> float:
    """The tile's ground sample distance in metres per pixel, taken at its centre."""
    return gsd_m(tile_centre_lonlat(tile)[1], tile.z)


def place_fields(tile: Tile) -> dict[str, Any]:
    """What a sample's record says of its place: key, z, x, y, centre and bounds in degrees, bounds_3857, gsd_m."""
    lon, lat = tile_centre_lonlat(tile)
    return {
        "key": tile.key,
        "z": tile.z,
        "x": tile.x,
        "y": tile.y,
        "lon": lon,
        "lat": lat,
        "bounds_lonlat": list(tile_bounds_lonlat(tile)),
        "bounds_3857": list(tile_bounds_3857(tile)),
        "gsd_m": tile_gsd_m(tile),
    }


def parse_key(key: str) -> Tile:
    """Read `z_x_y` back into a tile.

    Raises:
        UsageError: the key is not of that form or lies outside the zoom level.
    """
    try:
        z, x, y = (int(part) for part in key.split("_"))
    except ValueError:
        raise UsageError(f"'{key}' is not a tile key: expected three whole numbers as in 17_64069_40915") from None
    if not (0 <= z <= MAX_ZOOM and 0 <= x < 2**z and 0 <= y < 2**z):
        raise UsageError(f"tile key '{key}' lies outside the grid: at zoom {z}, x and y run from 0 to {2**z - 1}")
    return Tile(z, x, y)


class TileRange(NamedTuple):
    """Tile columns and rows of a box at one zoom, both ends included."""

    x_min: int
    y_min: int
    x_max: int
    y_max: int

    @property
    def tile_count(self) -> int:
        """How many tiles the range holds."""
        return (self.x_max - self.x_min + 1) * (self.y_max - self.y_min + 1)


def tile_range(bounds: BoundsLonLat, zoom: int) -> TileRange:
    """The tiles that share ground (more than an edge) with a box, as `mercantile.tiles` counts them.

    Latitudes beyond the projection's world (85.05) are cut off at its edge.
    """
    count = 1 << zoom
    # An edge that lies on a tile's edge belongs to one side only: step back by a fraction of a nanodegree,
    # the epsilon of mercantile.
    epsilon = 1e-14
    sin_north, sin_south = (
        math.sin(math.radians(min(max(lat, -MAX_LATITUDE), MAX_LATITUDE))) for lat in (bounds.north, bounds.south)
    )
    left = bounds.west / 360.0 + 0.5
    right = bounds.east / 360.0 + 0.5
    top = 0.5 - 0.25 * math.log((1 + sin_north) / (1 - sin_north)) / math.pi
    bottom = 0.5 - 0.25 * math.log((1 + sin_south) / (1 - sin_south)) / math.pi

    def index(fraction: float, nudge: float) -> int:
        return min(max(math.floor((fraction + nudge) * count), 0), count - 1)

    x_min, y_min = index(left, epsilon), index(top, epsilon)
    return TileRange(x_min, y_min, max(index(right, -epsilon), x_min), max(index(bottom, -epsilon), y_min))


def block_bounds_lonlat(block: Block, margin_m: float = 0.0) -> BoundsLonLat:
    """The box of a block's wanted tiles in degrees, widened by `margin_m` metres on the ground, cut at 180 degrees."""
    xs = [tile.x for tile in block.tiles]
    ys = [tile.y for tile in block.tiles]
    west, _, _, north = tile_bounds_lonlat(Tile(block.z, min(xs), min(ys)))
    _, south, east, _ = tile_bounds_lonlat(Tile(block.z, max(xs), max(ys)))
    return widened(BoundsLonLat(west, south, east, north), margin_m)


def widened(bounds: BoundsLonLat, margin_m: float) -> BoundsLonLat:
    """A box with `margin_m` metres more on the ground on every side, cut at 180 degrees and at the poles."""
    west, south, east, north = bounds
    margin_lat = math.degrees(margin_m / EARTH_RADIUS_M)
    margin_lon = margin_lat / math.cos(math.radians(max(abs(south), abs(north))))
    return BoundsLonLat(
        max(west - margin_lon, -180.0),
        max(south - margin_lat, -90.0),
        min(east + margin_lon, 180.0),
        min(north + margin_lat, 90.0),
    )


def edge_points(
    left: float, top: float, right: float, bottom: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points along a rectangle's edges, clockwise from the left top, each corner once."""
    steps = np.linspace(0, 1, EDGE_SAMPLES)[:-1]
    ahead, back = steps, 1 - steps
    x = np.concatenate([ahead, np.ones_like(steps), back, np.zeros_like(steps)]) * (right - left) + left
    y = np.concatenate([np.zeros_like(steps), ahead, np.ones_like(steps), back]) * (bottom - top) + top
    return x, y


def block_count(wanted: TileRange) -> int:
    """How many blocks `blocks_of_range` cuts a range into."""
    columns = wanted.x_max // BLOCK_TILES - wanted.x_min // BLOCK_TILES + 1
    rows = wanted.y_max // BLOCK_TILES - wanted.y_min // BLOCK_TILES + 1
    return columns * rows


def block_of_range(wanted: TileRange, zoom: int, number: int) -> Block:
    """The block that `blocks_of_range` gives as the `number`-th, counted from 0."""
    columns = wanted.x_max // BLOCK_TILES - wanted.x_min // BLOCK_TILES + 1
    row, column = divmod(number, columns)
    row, column = row + wanted.y_min // BLOCK_TILES, column + wanted.x_min // BLOCK_TILES
    ys = range(max(row * BLOCK_TILES, wanted.y_min), min((row + 1) * BLOCK_TILES - 1, wanted.y_max) + 1)
    xs = range(max(column * BLOCK_TILES, wanted.x_min), min((column + 1) * BLOCK_TILES - 1, wanted.x_max) + 1)
    return Block(zoom, column, row, tuple(Tile(zoom, x, y) for y in ys for x in xs))


def blocks_of_range(wanted: TileRange, zoom: int) -> Iterator[Block]:
    """Cut a range of tiles into blocks, row by row, without ever holding more than one block."""
    for number in range(block_count(wanted)):
        yield block_of_range(wanted, zoom, number)
