"""Distances on the ground between tiles and rectangles of tiles. Pure, vectorised.

Everything here is on the sphere of EPSG:3857 (radius 6,378,137 m) and in tile coordinates of one zoom level: tile
(x, y) covers [x, x + 1) by [y, y + 1), y down from the north. Tiles of constant ground resolution are rectangles there
whose corners are no whole numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import shapely

from magc_data.grid import EARTH_RADIUS_M

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from magc_data.splits.sides import SideIds

    Coordinates = NDArray[np.floating[Any]] | NDArray[np.int64]


class TileRects(NamedTuple):
    """Rectangles of tiles, ends excluded; each [n]."""

    x0: Coordinates
    y0: Coordinates
    x1: Coordinates
    y1: Coordinates


def latitude_rad(y: Coordinates, zoom: int) -> NDArray[np.float64]:
    """Latitude of tile coordinates."""
    latitude: NDArray[np.float64] = np.arctan(np.sinh(np.pi * (1 - 2 * np.asarray(y, dtype=np.float64) / 2**zoom)))
    return latitude


def row_of_latitude(latitude: NDArray[np.float64], zoom: int) -> NDArray[np.float64]:
    """Tile coordinate of a latitude in radians, inverse of `latitude_rad`."""
    y: NDArray[np.float64] = (1 - np.arcsinh(np.tan(latitude)) / np.pi) / 2 * 2**zoom
    return y


def tile_size_m(y: Coordinates, zoom: int) -> NDArray[np.float64]:
    """Metres on the ground along a tile's side, at its centre."""
    latitude = latitude_rad(np.asarray(y, dtype=np.float64) + 0.5, zoom)
    size: NDArray[np.float64] = 2 * np.pi * EARTH_RADIUS_M * np.cos(latitude) / 2**zoom
    return size


def tile_rects(x: NDArray[np.int64], y: NDArray[np.int64]) -> TileRects:
    """Each tile as a rectangle."""
    return TileRects(x, y, x + 1, y + 1)


def gap_m(a: TileRects, b: TileRects, zoom: int) -> NDArray[np.float64]:
    """Great-circle metres between the nearest edges or corners of pairs of rectangles; 0 where they touch."""
    ax, bx = _facing(a.x0, a.x1, b.x0, b.x1)
    ay, by = _facing(a.y0, a.y1, b.y0, b.y1)
    # Rectangles side by side are nearest where their common rows come nearest to a pole.
    beside = np.minimum(a.y1, b.y1) > np.maximum(a.y0, b.y0)
    north, south = np.maximum(a.y0, b.y0), np.minimum(a.y1, b.y1)
    poleward = np.where(np.abs(north - 2 ** (zoom - 1)) > np.abs(south - 2 ** (zoom - 1)), north, south)
    lat_a = latitude_rad(np.where(beside, poleward, ay), zoom)
    lat_b = latitude_rad(np.where(beside, poleward, by), zoom)
    half_lon = np.pi * (np.asarray(bx, dtype=np.float64) - ax) / 2**zoom
    chord = np.sin((lat_b - lat_a) / 2) ** 2 + np.cos(lat_a) * np.cos(lat_b) * np.sin(half_lon) ** 2
    gaps: NDArray[np.float64] = 2 * EARTH_RADIUS_M * np.arcsin(np.sqrt(np.minimum(chord, 1.0)))
    return gaps


def _facing(a0: Coordinates, a1: Coordinates, b0: Coordinates, b1: Coordinates) -> tuple[Coordinates, Coordinates]:
    """The ends of two intervals that face one another; twice the same where they overlap or touch."""
    common = np.maximum(a0, b0)
    return np.where(a1 < b0, a1, np.where(b1 < a0, a0, common)), np.where(a1 < b0, b0, np.where(b1 < a0, b1, common))


def rects_of_boxes(boxes_lonlat: NDArray[np.float64], zoom: int) -> TileRects:
    """Boxes in degrees, [n, 4] (west, south, east, north), in tile coordinates."""
    west, south, east, north = boxes_lonlat.T
    x0, x1 = ((lon / 360 + 0.5) * 2**zoom for lon in (west, east))
    y0, y1 = (row_of_latitude(np.radians(lat), zoom) for lat in (north, south))
    return TileRects(x0, y0, x1, y1)


def taken(rects: TileRects, chosen: NDArray[Any], shift: float = 0) -> TileRects:
    """Some of the rectangles, moved to the east."""
    x0, y0, x1, y1 = (each[chosen] for each in rects)
    return TileRects(x0 + shift, y0, x1 + shift, y1)


def smallest_gap_m(x: NDArray[np.int64], y: NDArray[np.int64], sides: SideIds, zoom: int) -> float | None:
    """Metres on the ground between the two nearest tiles of different sides; None where there is one side only.

    Args:
        x: columns, [n].
        y: rows, [n].
        sides: [n]; tiles below 0 are on no side.
        zoom: of all tiles.
    """
    return smallest_gap_of_rects_m(tile_rects(x, y), sides, zoom)


def smallest_gap_of_rects_m(rects: TileRects, sides: SideIds, zoom: int) -> float | None:
    """The same of tiles given as rectangles."""
    present = np.unique(sides[sides >= 0])
    gaps = []
    for side in present[:-1]:
        few, rest = sides == side, sides > side
        gaps.append(_gap_between(taken(rects, few), taken(rects, rest), zoom))
    return min(gaps, default=None)


def _gap_between(few: TileRects, rest: TileRects, zoom: int) -> float:
    """Smallest gap between two sets of tiles.

    The nearest in the projection is nearly always nearest on the ground, as the projection's scale hardly changes over
    short ways; whoever it might not be is looked at again, with everything within reach.
    """
    world = 2**zoom
    # The world goes on over the antimeridian: the tree holds it three times.
    thrice = (taken(rest, np.full(len(rest.x0), True), shift) for shift in (-world, 0, world))
    rest = TileRects(*(np.concatenate(each) for each in zip(*thrice, strict=True)))
    tree = shapely.STRtree(shapely.box(*rest))
    boxes = shapely.box(*few)

    def gaps(pairs: NDArray[np.int64]) -> NDArray[np.float64]:
        return gap_m(taken(few, pairs[0]), taken(rest, pairs[1]), zoom)

    pairs, distances = tree.query_nearest(boxes, all_matches=False, return_distance=True)
    smallest = float(gaps(pairs).min())
    if smallest == 0:
        return 0.0
    # No way of that length leads to ground where a tile is smaller than this.
    middle = (few.y0[pairs[0]] + few.y1[pairs[0]]) / 2
    latitude = np.abs(latitude_rad(middle, zoom)) + 2 * smallest / EARTH_RADIUS_M
    least_size_m = 2 * np.pi * EARTH_RADIUS_M * np.cos(np.minimum(latitude, 1.5)) / world
    again = distances * least_size_m < smallest
    reach = smallest / least_size_m[again]
    near = tree.query(boxes[pairs[0][again]], predicate="dwithin", distance=reach)
    return min(smallest, float(gaps(np.stack([pairs[0][again][near[0]], near[1]])).min(initial=np.inf)))
