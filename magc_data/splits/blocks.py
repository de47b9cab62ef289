"""Squares of ground that are drawn as a whole: which one a tile is in, what a block draws, and the ring between sides.

The squares cover the Earth whatever the dataset: bands of latitude as high as a block, each cut into columns as wide as
a block in the band's middle. What a block draws is a hash of its place and the seed. So a tile's side depends on where
it is and on nothing else, and no block changes sides when others come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from magc_data.grid import EARTH_RADIUS_M, MAX_LATITUDE
from magc_data.splits.ground import TileRects, gap_m, latitude_rad, row_of_latitude, taken, tile_size_m

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from magc_data.splits.ground import Coordinates
    from magc_data.splits.sides import SideIds

    Whole = NDArray[np.int64]

RING_BANDS = 2
"""A buffer is no wider than a block, and two bands are never lower than a block: further bands are out of reach."""


def hashed(seed: int, first: Whole, second: Whole) -> NDArray[np.uint64]:
    """64 bits that depend on all three and look random (SplitMix64, Steele et al. 2014): the same on every machine."""
    state = np.full(np.shape(first), seed, dtype=np.uint64)
    for part in (first, second):
        state = _mixed(state ^ np.asarray(part, dtype=np.int64).view(np.uint64))
    return state


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def drawn(seed: int, bands: Whole, columns: Whole) -> NDArray[np.float64]:
    """A number in [0, 1) for each block."""
    numbers: NDArray[np.float64] = (hashed(seed, bands, columns) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


class GroundBlocks(NamedTuple):
    """The squares of one size, on the tiles of one zoom level; a tile is in the block that holds its centre."""

    zoom: int
    block_m: float
    tile_m: float | None = None
    """Side of tiles of constant ground resolution, whose corners are no whole tile coordinates; None: of the zoom."""

    def bands(self, y: Whole) -> Whole:
        """Band of each tile row, counted from the equator to the north."""
        return self.bands_at(y + 0.5)

    def bands_at(self, y: Coordinates) -> Whole:
        """Band that holds a tile coordinate."""
        return np.floor(latitude_rad(y, self.zoom) * EARTH_RADIUS_M / self.block_m).astype(np.int64)

    def columns(self, x: Whole, bands: Whole) -> Whole:
        """Column of each tile within its band, counted from Greenwich to the east."""
        return self.columns_at(x + 0.5, bands)

    def columns_at(self, x: Coordinates, bands: Whole) -> Whole:
        """Column of a band that holds a tile coordinate."""
        lon = np.pi * (2 * x / 2**self.zoom - 1)
        columns: Whole = np.floor(lon / self._width_rad(bands)).astype(np.int64)
        return columns

    def _width_rad(self, bands: Whole) -> NDArray[np.float64]:
        limit = np.radians(MAX_LATITUDE)
        middle = np.clip((bands + 0.5) * self.block_m / EARTH_RADIUS_M, -limit, limit)
        width: NDArray[np.float64] = self.block_m / (EARTH_RADIUS_M * np.cos(middle))
        return width

    def rects(self, bands: Whole, columns: Whole) -> TileRects:
        """The tiles of each block, those that a dataset lacks included.

        Tiles of constant ground resolution: the block and half a tile around it, which none with its centre inside
        reaches over.
        """
        limit = np.radians(MAX_LATITUDE)
        south, north = (np.clip(edge * self.block_m / EARTH_RADIUS_M, -limit, limit) for edge in (bands, bands + 1))
        width = self._width_rad(bands)
        if self.tile_m is not None:
            half = 0.5 * self.tile_m * 2**self.zoom / (2 * np.pi * EARTH_RADIUS_M)
            high, wide = half / np.cos(south), half / np.minimum(np.cos(south), np.cos(north))
            high = np.maximum(high, half / np.cos(north))
            x0, x1 = (
                (np.clip(edge, -np.pi, np.pi) / np.pi + 1) / 2 * 2**self.zoom
                for edge in (columns * width, (columns + 1) * width)
            )
            y0, y1 = (row_of_latitude(edge, self.zoom) for edge in (north, south))
            return TileRects(x0 - wide, y0 - high, x1 + wide, y1 + high)
        # A centre on an edge belongs to the block north or east of it.
        y0, y1 = (np.floor(row_of_latitude(edge, self.zoom) - 0.5) + 1 for edge in (north, south))
        x0, x1 = (
            np.ceil((np.clip(edge, -np.pi, np.pi) / np.pi + 1) / 2 * 2**self.zoom - 0.5)
            for edge in (columns * width, (columns + 1) * width)
        )
        return TileRects(x0, y0, x1, y1)

    def in_ring(
        self,
        places: TileRects,
        sides: SideIds,
        side_of: Callable[[Whole, Whole], SideIds],
        buffer_m: float,
    ) -> NDArray[np.bool_]:
        """Which tiles lie nearer than `buffer_m` to the ground of a block of a side that goes before theirs.

        It is the ground that counts, not the tiles on it: so the ring, too, stays as it is when a dataset grows.

        Args:
            places: of the tiles, [n].
            sides: of the tiles, [n]; a side goes before those with smaller numbers.
            side_of: side of blocks by band and column.
            buffer_m: at most a block's size.
        """
        world = 2**self.zoom
        ring = np.zeros(len(places.x0), dtype=bool)
        x, y = (places.x0 + places.x1) / 2, (places.y0 + places.y1) / 2
        # Of the blocks too, tiles of constant ground resolution stick out by half of one.
        more_m = self.tile_m or 0.0
        reach = np.ceil((buffer_m + more_m) / tile_size_m(y - 0.5, self.zoom) * 1.5).astype(np.int64) + 1
        bands = self.bands_at(y)
        for shift in (0, world, -world):  # the world goes on over the antimeridian
            at = x + shift
            west, east = (np.clip(each, 0.5, world - 0.5) for each in (at - reach, at + reach))
            some = (at + reach >= 0.5) & (at - reach < world + 0.5)
            if not some.any():
                continue
            tiles = taken(places, some, shift)
            for step in range(-RING_BANDS, RING_BANDS + 1):
                band = bands[some] + step
                first, last = self.columns_at(west[some], band), self.columns_at(east[some], band)
                for number in range(int((last - first).max()) + 1):
                    column = np.minimum(first + number, last)
                    rects = self.rects(band, column)
                    there = (rects.x1 > rects.x0) & (rects.y1 > rects.y0)
                    near = there & (gap_m(tiles, rects, self.zoom) < buffer_m)
                    ring[some] |= near & (side_of(band, column) > sides[some])
        return ring
