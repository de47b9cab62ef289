"""Tiles of constant ground resolution: one grid of rows and columns over the whole Earth. Pure functions.

    band      rows of tiles, 4.5 to 9 km high, that share one pixel grid; the equator is an edge between two
    row       256 pixels, each `gsd_m` metres of meridian high; counted from the north
    column    256 pixels, each `gsd_m` metres of the band's middle parallel wide; counted from 180 W

Within a band, pixels are equal steps of longitude and latitude, so its pixel grid is a plain EPSG:4326 raster with
north up. A band has a whole number of columns around the Earth, so every place up to 80 degrees of latitude is in
exactly one tile, also at the antimeridian. Why so, and not UTM: docs/decisions/0017-constant-ground-resolution.md.

Metres are metres on the WGS 84 ellipsoid. `px` is a band's pixel grid: x from 180 W, y from the grid's northern end.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from magc_data.errors import UsageError
from magc_data.grid import BLOCK_TILES, MAX_ZOOM, Block, BoundsLonLat, Tile, TileRange, widened
from magc_data.grid import parse_key as parse_mercator_key
from magc_data.schema.sample import TILE_SIZE_PX

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from magc_data.grid import Coefficients

CRS = "EPSG:4326"
MAX_GROUND_LATITUDE = 80.0
"""Further out a band's edges would be more than 0.5 % wider or narrower than its middle."""
MAX_BAND_M = 9000.0
"""A pixel is wider than meant by up to tan(latitude) * half the band's height / the Earth's radius: 0.27 % at 75."""
MIN_GSD_M, MAX_GSD_M = 0.02, 35.0
"""Finer, and columns have more than eight digits; coarser, and a single row of tiles is higher than a band."""

SEMI_MAJOR_M = 6378137.0
FLATTENING = 1 / 298.257223563
_ECCENTRICITY_2 = FLATTENING * (2 - FLATTENING)
_N = FLATTENING / (2 - FLATTENING)
_RECTIFYING_RADIUS_M = SEMI_MAJOR_M / (1 + _N) * (1 + _N**2 / 4 + _N**4 / 64)
_TO_ARC = (-3 / 2 * _N + 9 / 16 * _N**3, 15 / 16 * _N**2 - 15 / 32 * _N**4, -35 / 48 * _N**3, 315 / 512 * _N**4)
_TO_LATITUDE = (
    3 / 2 * _N - 27 / 32 * _N**3, 21 / 16 * _N**2 - 55 / 32 * _N**4, 151 / 96 * _N**3, 1097 / 512 * _N**4,
)  # fmt: skip
_KEY = re.compile("g([1-9][0-9]{1,4})_(0|[1-9][0-9]{0,7})_(0|[1-9][0-9]{0,7})")
_QUADRANT_M = _RECTIFYING_RADIUS_M * math.pi / 2


def meridian_arc_m(latitude: float) -> float:
    """Metres along a meridian from the equator, to the micrometre (Helmert's series, 1880)."""
    phi = math.radians(latitude)
    return _RECTIFYING_RADIUS_M * (phi + sum(c * math.sin(2 * k * phi) for k, c in enumerate(_TO_ARC, 1)))


def latitude_of_arc(arc_m: float) -> float:
    """Inverse of `meridian_arc_m`."""
    mu = arc_m / _RECTIFYING_RADIUS_M
    return math.degrees(mu + sum(c * math.sin(2 * k * mu) for k, c in enumerate(_TO_LATITUDE, 1)))


def metres_per_degree(latitude: float) -> tuple[float, float]:
    """Metres that a degree of longitude and one of latitude are long at a place."""
    phi = math.radians(latitude)
    w2 = 1 - _ECCENTRICITY_2 * math.sin(phi) ** 2
    east = SEMI_MAJOR_M / math.sqrt(w2) * math.cos(phi)
    north = SEMI_MAJOR_M * (1 - _ECCENTRICITY_2) / w2**1.5
    return math.radians(east), math.radians(north)


class Band(NamedTuple):
    """Rows of tiles that share one pixel grid, and that grid."""

    gsd_m: float
    first_row: int
    rows: int
    columns: int
    """Of tiles, around the Earth."""
    north: float
    south: float

    @property
    def crs(self) -> str:
        """Of the pixel grid."""
        return CRS

    @property
    def degrees_per_px(self) -> tuple[float, float]:
        """Longitude and latitude of a pixel."""
        return 360.0 / (self.columns * TILE_SIZE_PX), (self.north - self.south) / (self.rows * TILE_SIZE_PX)

    def lonlat_to_px(
        self, lon: NDArray[np.float64], lat: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Degrees to the band's pixels, which go on beyond its rows in equal steps."""
        degrees_x, degrees_y = self.degrees_per_px
        x_px = (np.asarray(lon) + 180.0) / degrees_x
        y_px = self.first_row * TILE_SIZE_PX + (self.north - np.asarray(lat)) / degrees_y
        return x_px, y_px

    def metres_per_px(self, latitude: NDArray[np.float64]) -> NDArray[np.float64]:
        """What a length on the ground is divided by; the same at all latitudes: that is what the grid is for."""
        return np.full(np.shape(latitude), self.gsd_m)

    def transform_at(self, left_px: int, top_px: int) -> Coefficients:
        """From the pixels of a raster whose upper left corner is there to degrees, as rasterio and GDAL have it."""
        degrees_x, degrees_y = self.degrees_per_px
        return (
            degrees_x,
            0.0,
            left_px * degrees_x - 180.0,
            0.0,
            -degrees_y,
            self.north - (top_px - self.first_row * TILE_SIZE_PX) * degrees_y,
        )


class GroundGrid(NamedTuple):
    """The tiles of one ground resolution."""

    gsd_mm: int

    @classmethod
    def of(cls, gsd_m: float) -> GroundGrid:
        """The grid of a resolution.

        Raises:
            UsageError: it is out of range, or no whole number of millimetres.
        """
        if not MIN_GSD_M <= gsd_m <= MAX_GSD_M:
            raise UsageError(f"--gsd is {gsd_m:g}: expected {MIN_GSD_M:g} to {MAX_GSD_M:g} metres a pixel")
        gsd_mm = round(gsd_m * 1000)
        if abs(gsd_mm / 1000 - gsd_m) > 1e-9:
            raise UsageError(f"--gsd is {gsd_m!r}: expected whole millimetres, as in {gsd_mm / 1000:g}")
        return cls(gsd_mm)

    @property
    def gsd_m(self) -> float:
        """Metres a pixel."""
        return self.gsd_mm / 1000

    @property
    def tile_m(self) -> float:
        """Side of a tile in metres."""
        return TILE_SIZE_PX * self.gsd_mm / 1000

    @property
    def band_rows(self) -> int:
        """Rows of a band: the largest power of two of them that is no higher than MAX_BAND_M."""
        return 1 << math.floor(math.log2(MAX_BAND_M / self.tile_m))

    @property
    def block_rows(self) -> int:
        """Rows of a block, which never reaches over a band's edge."""
        return min(BLOCK_TILES, self.band_rows)

    @property
    def rows_north(self) -> int:
        """Rows north of the equator: whole bands, of which the first reaches over the pole."""
        return math.ceil(_QUADRANT_M / self.tile_m / self.band_rows) * self.band_rows

    @property
    def row_range(self) -> range:
        """Rows that hold ground up to MAX_GROUND_LATITUDE."""
        polar = math.ceil(meridian_arc_m(MAX_GROUND_LATITUDE) / self.tile_m)
        return range(self.rows_north - polar, self.rows_north + polar)

    def band(self, row: int) -> Band:
        """The band of a row of tiles."""
        return _band(self, row // self.band_rows)

    def row_of(self, lat: float, nudge: float = 0.0) -> int:
        """The row that holds a latitude; `nudge` (in rows) decides where it lies on an edge."""
        rows = self.row_range
        # The row by the meridian, then by the band's equal steps of latitude, which differ by nanometres at an edge.
        row = math.floor(self.rows_north - meridian_arc_m(lat) / self.tile_m)
        band = self.band(min(max(row, rows.start), rows.stop - 1))
        _, degrees_y = band.degrees_per_px
        exact = band.first_row + (band.north - lat) / (degrees_y * TILE_SIZE_PX)
        return min(max(math.floor(exact + nudge), rows.start), rows.stop - 1)

    def column_of(self, lon: float, band: Band, nudge: float = 0.0) -> int:
        """The column of a band that holds a longitude."""
        column = math.floor((lon + 180.0) / 360.0 * band.columns + nudge)
        return min(max(column, 0), band.columns - 1)


@lru_cache(maxsize=1024)
def _band(grid: GroundGrid, number: int) -> Band:
    first_row = number * grid.band_rows
    rows_north = (grid.rows_north - first_row, grid.rows_north - first_row - grid.band_rows)
    north, south = (latitude_of_arc(rows * grid.tile_m) for rows in rows_north)
    east_m, _ = metres_per_degree((north + south) / 2)
    return Band(grid.gsd_m, first_row, grid.band_rows, max(round(360 * east_m / grid.tile_m), 1), north, south)


class GroundTile(NamedTuple):
    """A tile of a ground grid: resolution in millimetres, column from 180 W, row from the north."""

    gsd_mm: int
    x: int
    y: int

    @property
    def key(self) -> str:
        """The sample's key, `gMILLIMETRES_x_y`."""
        return f"g{self.gsd_mm}_{self.x}_{self.y}"

    @property
    def z(self) -> None:
        """No zoom level."""
        return None

    @property
    def band(self) -> Band:
        """The tile's pixel grid."""
        return GroundGrid(self.gsd_mm).band(self.y)

    @property
    def bounds_lonlat(self) -> BoundsLonLat:
        """The tile's box in degrees."""
        band = self.band
        height = (band.north - band.south) / band.rows
        row = self.y - band.first_row
        return BoundsLonLat(
            west=self.x / band.columns * 360.0 - 180.0,
            south=band.north - (row + 1) * height,
            east=(self.x + 1) / band.columns * 360.0 - 180.0,
            north=band.north - row * height,
        )

    @property
    def centre_lonlat(self) -> tuple[float, float]:
        """Longitude and latitude of the central pixel corner (128, 128)."""
        west, south, east, north = self.bounds_lonlat
        return (west + east) / 2, (south + north) / 2

    @property
    def gsd_xy_m(self) -> tuple[float, float]:
        """Metres on the ellipsoid that a pixel is wide and high at the tile's centre."""
        degrees_x, degrees_y = self.band.degrees_per_px
        east_m, north_m = metres_per_degree(self.centre_lonlat[1])
        return degrees_x * east_m, degrees_y * north_m

    @property
    def gsd_m(self) -> float:
        """Side in metres of a square of a pixel's area, at the tile's centre."""
        return math.sqrt(math.prod(self.gsd_xy_m))

    @property
    def block_name(self) -> str:
        """Name of the block that the tile is in."""
        grid = GroundGrid(self.gsd_mm)
        return GroundBlock(self.gsd_mm, self.x // BLOCK_TILES, self.y // grid.block_rows, ()).name

    def place_fields(self) -> dict[str, Any]:
        """What a sample's record says of its place; there is no zoom, and no box in web-mercator."""
        lon, lat = self.centre_lonlat
        gsd_x_m, gsd_y_m = self.gsd_xy_m
        return {
            "key": self.key,
            "z": None,
            "x": self.x,
            "y": self.y,
            "lon": lon,
            "lat": lat,
            "bounds_lonlat": list(self.bounds_lonlat),
            "bounds_3857": None,
            "crs": CRS,
            "gsd_m": self.gsd_m,
            "gsd_x_m": gsd_x_m,
            "gsd_y_m": gsd_y_m,
        }


class GroundBlock(NamedTuple):
    """Up to 32 columns and `block_rows` rows, aligned, and the tiles of it that are wanted (row by row)."""

    gsd_mm: int
    column: int
    row: int
    tiles: tuple[GroundTile, ...]

    @property
    def name(self) -> str:
        """Key of the block's north-western tile, whether that tile is wanted or not."""
        rows = GroundGrid(self.gsd_mm).block_rows
        return GroundTile(self.gsd_mm, self.column * BLOCK_TILES, self.row * rows).key

    @property
    def pixels(self) -> Band:
        """The pixel grid of all of its tiles."""
        grid = GroundGrid(self.gsd_mm)
        return grid.band(self.row * grid.block_rows)

    def bounds_lonlat(self, margin_m: float = 0.0) -> BoundsLonLat:
        """The box of the wanted tiles in degrees, widened by metres on the ground, cut at 180 degrees."""
        xs, ys = [tile.x for tile in self.tiles], [tile.y for tile in self.tiles]
        west, _, _, north = GroundTile(self.gsd_mm, min(xs), min(ys)).bounds_lonlat
        _, south, east, _ = GroundTile(self.gsd_mm, max(xs), max(ys)).bounds_lonlat
        return widened(BoundsLonLat(west, south, east, north), margin_m)


AnyTile = Tile | GroundTile
AnyBlock = Block | GroundBlock


def block_of_tiles(tiles: Sequence[AnyTile]) -> AnyBlock:
    """Tiles of one block, row by row, as that block."""
    first = tiles[0]
    if isinstance(first, Tile):
        return Block(first.z, first.x // BLOCK_TILES, first.y // BLOCK_TILES, cast("tuple[Tile, ...]", tuple(tiles)))
    rows = GroundGrid(first.gsd_mm).block_rows
    of_ground = cast("tuple[GroundTile, ...]", tuple(tiles))
    return GroundBlock(first.gsd_mm, first.x // BLOCK_TILES, first.y // rows, of_ground)


def parse_key(key: str) -> AnyTile:
    """Read a sample's key back into its tile, of either kind.

    Raises:
        UsageError: the key is of neither form or lies outside its grid.
    """
    if not key.startswith("g"):
        return parse_mercator_key(key)
    wrong = UsageError(f"'{key}' is not a tile key: expected millimetres, column and row as in g1070_100123_20456")
    match = _KEY.fullmatch(key)
    if match is None:
        raise wrong
    gsd_mm, x, y = (int(part) for part in match.groups())
    tile = GroundTile(gsd_mm, x, y)
    try:
        grid = GroundGrid.of(gsd_mm / 1000)
    except UsageError:
        raise wrong from None
    if y not in grid.row_range or not 0 <= x < tile.band.columns:
        raise UsageError(f"tile key '{key}' lies outside the grid of {gsd_mm / 1000:g} m/px")
    return tile


def tile_range(bounds: BoundsLonLat, grid: GroundGrid, band: Band) -> TileRange | None:
    """Columns and rows of one band that share ground (more than an edge) with a box; None where there are none."""
    epsilon = 1e-9
    first = max(grid.row_of(bounds.north, epsilon), band.first_row)
    last = min(grid.row_of(bounds.south, -epsilon), band.first_row + band.rows - 1)
    if first > last:
        return None
    west, east = grid.column_of(bounds.west, band, epsilon), grid.column_of(bounds.east, band, -epsilon)
    return TileRange(west, first, max(east, west), last)


def bands(bounds: BoundsLonLat, grid: GroundGrid) -> Iterator[Band]:
    """The bands that a box touches, from the north."""
    first, last = (grid.row_of(lat) // grid.band_rows for lat in (bounds.north, bounds.south))
    yield from (_band(grid, number) for number in range(first, last + 1))


def grid_of(manifest: dict[str, Any]) -> int | GroundGrid:
    """A dataset's zoom, or its grid of constant ground resolution."""
    return manifest["zoom"] if "zoom" in manifest else GroundGrid.of(manifest["gsd"])


def grid_text(manifest: dict[str, Any]) -> str:
    """The same in words: `zoom 17` or `1.07 m/px`."""
    return f"zoom {manifest['zoom']}" if "zoom" in manifest else f"{manifest['gsd']:g} m/px"


def is_grid(manifest: dict[str, Any]) -> bool:
    """Whether a manifest that may come from anywhere names one zoom or one ground resolution."""
    zoom, gsd = manifest.get("zoom"), manifest.get("gsd")
    if gsd is None:
        return type(zoom) is int and 0 <= zoom <= MAX_ZOOM
    try:
        return "zoom" not in manifest and type(gsd) is float and GroundGrid.of(gsd).gsd_m == gsd
    except UsageError:
        return False


def plane_columns(grid: int | GroundGrid, x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.int64]:
    """Columns of tiles for a picture of where they are: those of bands, which differ, put under one another.

    No two tiles of a row come together; here and there a column stays empty.
    """
    if isinstance(grid, int) or not len(x):
        return x
    columns = np.array([grid.band(row).columns for row in y.tolist()])
    plane: NDArray[np.int64] = np.floor((x + 0.5) / columns * columns.max()).astype(np.int64)
    return plane
