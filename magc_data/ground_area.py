"""The tiles of constant ground resolution of an area, block by block: what `area.py` does for web-mercator tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import shapely

from magc_data.errors import UsageError
from magc_data.grid import BLOCK_TILES, BoundsLonLat, TileRange
from magc_data.ground_grid import MAX_GROUND_LATITUDE, GroundBlock, GroundGrid, GroundTile, bands, tile_range

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

    from magc_data.area import Area
    from magc_data.ground_grid import Band


class _Place(NamedTuple):
    """A block, and the columns and rows of it that are wanted."""

    column: int
    row: int
    tiles: TileRange


def blocks(area: Area, grid: GroundGrid) -> Iterator[GroundBlock]:
    """The area's tiles, block by block (row by row), each tile once; holds one row of blocks at a time.

    Raises:
        UsageError: the area reaches beyond the latitudes of the grid.
    """
    check(area)
    if area.points_lonlat:
        yield from _blocks_of_points(area.points_lonlat, grid)
    elif area.polygons is not None:
        yield from _blocks_of_polygons(area.polygons, grid)
    else:
        yield from (_block(place, grid) for box in area.boxes for place in _places(box, grid))


def check(area: Area) -> None:
    """Refuse an area that reaches too near to a pole.

    Raises:
        UsageError: it does.
    """
    points = np.array(area.points_lonlat or [(box.west, lat) for box in area.boxes for lat in (box.south, box.north)])
    south, north = (
        (area.polygons.bounds[1], area.polygons.bounds[3])
        if area.polygons is not None
        else (points[:, 1].min(), points[:, 1].max())
    )
    if max(-south, north) > MAX_GROUND_LATITUDE:
        raise UsageError(
            f"the area reaches from {south:g} to {north:g} degrees of latitude: --gsd goes up to "
            f"{MAX_GROUND_LATITUDE:g} (cut the area there, or use --zoom)"
        )


def count_tiles(area: Area, grid: GroundGrid) -> int:
    """How many tiles `blocks` will yield."""
    if area.boxes:
        check(area)
        return sum(place.tiles.tile_count for box in area.boxes for place in _places(box, grid))
    return sum(len(block.tiles) for block in blocks(area, grid))


def count_blocks(area: Area, grid: GroundGrid) -> int:
    """How many blocks `blocks` will yield."""
    if area.boxes:
        check(area)
        return sum(1 for box in area.boxes for _ in _places(box, grid))
    return sum(1 for _ in blocks(area, grid))


def spread_blocks(area: Area, grid: GroundGrid, count: int) -> list[GroundBlock]:
    """Up to `count` blocks from all over the area, evenly spaced in its order."""
    total = count_blocks(area, grid)
    chosen = {number * total // min(count, total) for number in range(min(count, total))}
    if not area.boxes:
        return [block for number, block in enumerate(blocks(area, grid)) if number in chosen]
    places = (place for box in area.boxes for place in _places(box, grid))
    return [_block(place, grid) for number, place in enumerate(places) if number in chosen]


def _places(box: BoundsLonLat, grid: GroundGrid) -> Iterator[_Place]:
    """The blocks that share ground with a box."""
    high = grid.block_rows
    for band in bands(box, grid):
        wanted = tile_range(box, grid, band)
        if wanted is None:
            continue
        for row in range(wanted.y_min // high, wanted.y_max // high + 1):
            top, bottom = max(row * high, wanted.y_min), min((row + 1) * high - 1, wanted.y_max)
            for column in range(wanted.x_min // BLOCK_TILES, wanted.x_max // BLOCK_TILES + 1):
                left = max(column * BLOCK_TILES, wanted.x_min)
                right = min((column + 1) * BLOCK_TILES - 1, wanted.x_max)
                yield _Place(column, row, TileRange(left, top, right, bottom))


def _block(place: _Place, grid: GroundGrid) -> GroundBlock:
    x_min, y_min, x_max, y_max = place.tiles
    tiles = tuple(GroundTile(grid.gsd_mm, x, y) for y in range(y_min, y_max + 1) for x in range(x_min, x_max + 1))
    return GroundBlock(grid.gsd_mm, place.column, place.row, tiles)


def _blocks_of_points(points_lonlat: tuple[tuple[float, float], ...], grid: GroundGrid) -> Iterator[GroundBlock]:
    by_block: dict[tuple[int, int], set[GroundTile]] = {}
    for lon, lat in points_lonlat:
        y = grid.row_of(lat)
        x = grid.column_of(lon, grid.band(y))
        by_block.setdefault((y // grid.block_rows, x // BLOCK_TILES), set()).add(GroundTile(grid.gsd_mm, x, y))
    for (row, column), tiles in sorted(by_block.items()):
        yield GroundBlock(grid.gsd_mm, column, row, tuple(sorted(tiles, key=lambda tile: (tile.y, tile.x))))


def _blocks_of_polygons(polygons: BaseGeometry, grid: GroundGrid) -> Iterator[GroundBlock]:
    shapely.prepare(polygons)
    for place in _places(BoundsLonLat(*polygons.bounds), grid):
        x_min, y_min, x_max, y_max = place.tiles
        band = grid.band(y_min)
        whole = _share_ground(polygons, band, *(np.array([each]) for each in (x_min, y_min, x_max + 1, y_max + 1)))
        if not whole[0]:
            continue
        y, x = (each.ravel() for each in np.mgrid[y_min : y_max + 1, x_min : x_max + 1])
        wanted = _share_ground(polygons, band, x, y, x + 1, y + 1)
        tiles = tuple(GroundTile(grid.gsd_mm, int(x), int(y)) for x, y in zip(x[wanted], y[wanted], strict=True))
        if tiles:
            yield GroundBlock(grid.gsd_mm, place.column, place.row, tiles)


def _share_ground(
    polygons: BaseGeometry,
    band: Band,
    x0: NDArray[np.int64],
    y0: NDArray[np.int64],
    x1: NDArray[np.int64],
    y1: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Which rectangles of tiles of a band overlap the polygons in more than an edge; ends excluded."""
    high = (band.north - band.south) / band.rows
    west, east = (each / band.columns * 360.0 - 180.0 for each in (x0, x1))
    north, south = (band.north - (each - band.first_row) * high for each in (y0, y1))
    squares = shapely.box(west, south, east, north)
    overlap: NDArray[np.bool_] = shapely.intersects(polygons, squares) & ~shapely.touches(polygons, squares)
    return overlap
