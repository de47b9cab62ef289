"""Maps by location: the class map of a georeferenced image in any CRS, burnt on the image's own pixel grid.

    features of a cell ──► shapes on the mercator grid, in draw order
                             └─► their vertices: mercator px ──► lon/lat ──► CRS ──► image px ──► burn

* Lines are buffered in web-mercator, which keeps angles, so a road is as wide on the ground in every direction
  whatever the image's CRS does to distances; only vertices are projected, never pixels.
* An image on the web-mercator grid of a zoom level is burnt in that grid's own coordinates: its map is the tiles' map.
  In EPSG:3857 with other pixels, the step over lon/lat is left out.
* Features are read a cell at a time. Cells are aligned squares of the image's pixels; features are read whole, with a
  margin, and burnt without clipping, so no pixel depends on the cells, nor on the window that is read.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import shapely

from magc_data.errors import UsageError
from magc_data.features import shapes_in_draw_order
from magc_data.grid import EARTH_RADIUS_M, gsd_m, lonlat_to_px
from magc_data.image_grid import LONGEST_EDGE_M, Placement, off_earth, outline_lonlat, place, window_bounds_lonlat
from magc_data.rasterize import MAX_COORDINATE_PX, PixelWindow, RingTable, burn_window, moved_rings, ring_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

    from magc_data.grid import BoundsLonLat
    from magc_data.image_grid import ImageGrid
    from magc_data.schema.classes import Scheme
    from magc_data.sources.http import HttpClient
    from magc_data.sources.protocols import VectorSource

CELL_M = 10_000.0
MIN_CELL_PX, MAX_CELL_PX = 64, 8192
"""A cell is the largest power of two of pixels up to MAX_CELL_PX whose side is no longer than CELL_M: at most about as
much ground as a block of the build at zoom 17, which bounds memory, and few queries to a server."""

MAX_HELD_VERTICES = 4_000_000
"""Of the cells read last, kept for the next window: 64 MB of coordinates. The very last one is kept in any case."""

MARGIN_EXTRA_M = 5.0
"""On top of the scheme's margin: what a cell's edges bulge between the points that stand for them, and what a line of
hundreds of kilometres, as wide as at its middle latitude, is wider elsewhere."""

_EXTENT_ROUNDING_DEGREES = 1e-7
"""An extract's header rounds its box so (1 cm): an image that ends on the edge is inside."""


class ImageMap:
    """The class map of one image: `fetch` once, then `read` any windows."""

    def __init__(self, grid: ImageGrid, vectors: VectorSource, scheme: Scheme) -> None:
        """Place the image; nothing is read or fetched yet.

        Raises:
            UsageError: the grid is not placed on Earth or cannot have a map (see `window_bounds_lonlat`), or none of it
                lies inside the area that the vectors cover.
        """
        self._grid = grid
        self._vectors = vectors
        self._scheme = scheme
        self._placement = place(grid)
        self._whole = PixelWindow(0, 0, grid.width_px, grid.height_px)
        self._outline = outline_lonlat(self._placement, self._whole)
        self._cell_px = _cell_px(self._placement)
        self._held: dict[PixelWindow, _Cell] = {}
        extent = vectors.extent()
        self._extent = None if extent is None else self._placed_extent(extent)
        self._extent_rings = ring_table([self._extent])

    @property
    def share_outside(self) -> float:
        """Share of the image, 0 to below 1, that the vectors' extent leaves out: class 0 there, whatever is mapped."""
        if self._extent is None:
            return 0.0
        image = _box(self._placement.in_frame(self._whole))
        share = 1 - shapely.area(shapely.intersection(self._extent, image)) / shapely.area(image)
        return float(max(share, 0.0))

    @property
    def cell_count(self) -> int:
        """How many cells `fetch` settles."""
        return sum(1 for _ in self._cells(self._whole))

    def fetch(self, http: HttpClient, on_cell: Callable[[], None]) -> None:
        """Bring the features of all cells onto this machine, calling `on_cell` as each is settled.

        Raises:
            FetchError: the service does not answer; what was brought is kept.
            SourceError: the source cannot be read.
        """
        for cell in self._cells(self._whole):
            self._vectors.fetch(self._bounds(cell), http)
            on_cell()

    def read(self, window: PixelWindow) -> NDArray[np.uint8]:
        """Class ids of a window, shape [height_px, width_px]; 0 where nothing is mapped. No network.

        Reading a window and cutting it out of the whole map are the same.

        Raises:
            UsageError: the window is not inside the image.
            SourceError: the features were not fetched, or cannot be read.
        """
        _check_inside(self._grid, window)
        classes = np.zeros((window.height_px, window.width_px), np.uint8)
        for cell in self._cells(window):
            part = _overlap(cell, window)
            top, left = part.y_px - window.y_px, part.x_px - window.x_px
            classes[top : top + part.height_px, left : left + part.width_px] = self._burn(cell, part)
        return classes

    def _cells(self, window: PixelWindow) -> Iterator[PixelWindow]:
        """The cells that share pixels with a window, row by row, less those wholly outside the vectors' extent."""
        side = self._cell_px
        for y in range(window.y_px // side * side, window.y_px + window.height_px, side):
            for x in range(window.x_px // side * side, window.x_px + window.width_px, side):
                cell = _overlap(PixelWindow(x, y, side, side), self._whole)
                if self._extent is None or shapely.intersects(self._extent, _box(self._placement.in_frame(cell))):
                    yield cell

    def _bounds(self, cell: PixelWindow) -> BoundsLonLat:
        return window_bounds_lonlat(self._grid, cell, self._scheme.margin_m + MARGIN_EXTRA_M)

    def _burn(self, cell: PixelWindow, part: PixelWindow) -> NDArray[np.uint8]:
        """Burn a part of a cell."""
        content = self._content(cell)
        window = self._placement.in_frame(part)
        classes = burn_window(content.rings, content.class_ids, window)
        if content.is_cut:
            classes *= burn_window(self._extent_rings, [1], window)
        return classes

    def _content(self, cell: PixelWindow) -> _Cell:
        """A cell's shapes, from memory if it was among the last."""
        content = self._held.pop(cell, None) or self._read_cell(cell)
        room = MAX_HELD_VERTICES - len(content.rings.coords)
        for held in reversed(list(self._held)):
            room -= len(self._held[held].rings.coords)
            if room < 0:
                del self._held[held]
        self._held[cell] = content
        return content

    def _read_cell(self, cell: PixelWindow) -> _Cell:
        table = self._vectors.read(self._bounds(cell))
        shapes = shapes_in_draw_order(table, self._scheme, self._placement.zoom)
        is_cut = self._extent is not None and not shapely.covers(self._extent, _box(self._placement.in_frame(cell)))
        return _Cell(self._placed_rings(shapes.polygons), shapes.class_ids, is_cut)

    def _placed_rings(self, polygons: NDArray[np.object_]) -> RingTable:
        """Polygons of the mercator grid in the image's frame."""
        rings = ring_table(polygons)
        placed = moved_rings(rings, self._placement.from_mercator, self._placement.longest_edge_px)
        lost = ~_is_placed(placed.coords)
        if not lost.any():
            return placed
        # The image's CRS has no place for some vertices, as a satellite's view has none for the far side of the Earth.
        # The parts of those polygons that lie around the image have one.
        ring = np.searchsorted(placed.ring_offsets, np.flatnonzero(lost), side="right") - 1
        part = np.searchsorted(placed.part_offsets, ring, side="right") - 1
        polygons = polygons.copy()
        for row in np.unique(placed.part_shape[part]):
            polygons[row] = self._cut_to_image(polygons[row])
        return moved_rings(ring_table(polygons), self._placement.from_mercator, self._placement.longest_edge_px)

    def _cut_to_image(self, polygon: BaseGeometry) -> BaseGeometry:
        """The part of a polygon of the mercator grid in a box around the image."""
        x_px, y_px = lonlat_to_px(*self._outline, self._placement.zoom)
        # Far enough for the cut edges to lie outside the image.
        beyond = 0.01 * max(np.ptp(x_px), np.ptp(y_px)) + LONGEST_EDGE_M / gsd_m(0.0, self._placement.zoom)
        box = shapely.box(x_px.min() - beyond, y_px.min() - beyond, x_px.max() + beyond, y_px.max() + beyond)
        parts = shapely.get_parts(shapely.intersection(shapely.make_valid(polygon), box))
        return shapely.multipolygons(parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON])

    def _placed_extent(self, extent: BaseGeometry) -> BaseGeometry:
        """The vectors' extent in the image's frame."""
        zoom = self._placement.zoom
        roomy = shapely.buffer(extent, _EXTENT_ROUNDING_DEGREES, join_style="mitre")
        mercator = shapely.transform(
            roomy, lambda lonlat: np.column_stack(lonlat_to_px(lonlat[:, 0], lonlat[:, 1], zoom))
        )
        mercator = self._cut_to_image(mercator)
        if mercator.is_empty:
            raise self._outside(extent)
        if math.isfinite(self._placement.longest_edge_px):
            mercator = shapely.segmentize(mercator, self._placement.longest_edge_px)
        placed = shapely.transform(mercator, self._placement.from_mercator)
        if not shapely.area(shapely.intersection(placed, _box(self._placement.in_frame(self._whole)))):
            raise self._outside(extent)
        return placed

    def _outside(self, extent: BaseGeometry) -> UsageError:
        lon, lat = self._outline
        image = ",".join(f"{each:.5f}" for each in (lon.min(), lat.min(), lon.max(), lat.max()))
        covered = ",".join(f"{each:.5f}" for each in extent.bounds)
        return UsageError(
            f"the image lies at {image} (W,S,E,N), outside what {self._vectors.info.name} covers ({covered}): give "
            "OpenStreetMap data of the image's place"
        )


class _Cell(NamedTuple):
    """What to burn in a cell, in the image's frame."""

    rings: RingTable
    class_ids: NDArray[np.uint8]
    is_cut: bool
    """Not wholly inside the vectors' extent."""


def _cell_px(placement: Placement) -> int:
    """Side of a cell in pixels, by the ground that the image's middle pixel covers."""
    x, y = placement.grid.width_px / 2, placement.grid.height_px / 2
    lon, lat = np.radians(placement.to_lonlat(x + np.array([0.0, 1.0, 0.0]), y + np.array([0.0, 0.0, 1.0])))
    east, north = (lon[1:] - lon[0]) * np.cos(lat[0]), lat[1:] - lat[0]
    pixel_m = float(np.hypot(east, north).max()) * EARTH_RADIUS_M
    if not math.isfinite(pixel_m):
        raise off_earth()
    return min(max(1 << max(int(CELL_M / pixel_m).bit_length() - 1, 0), MIN_CELL_PX), MAX_CELL_PX)


def _check_inside(grid: ImageGrid, window: PixelWindow) -> None:
    x, y, width, height = window
    if min(x, y) < 0 or min(width, height) < 1 or x + width > grid.width_px or y + height > grid.height_px:
        raise UsageError(
            f"the window of {width} x {height} pixels at {x},{y} is not inside the image: expected one within "
            f"{grid.width_px} x {grid.height_px}"
        )


def _overlap(one: PixelWindow, other: PixelWindow) -> PixelWindow:
    """The pixels that two windows share, which must be some."""
    left, top = max(one.x_px, other.x_px), max(one.y_px, other.y_px)
    right = min(one.x_px + one.width_px, other.x_px + other.width_px)
    bottom = min(one.y_px + one.height_px, other.y_px + other.height_px)
    return PixelWindow(left, top, right - left, bottom - top)


def _box(window: PixelWindow) -> BaseGeometry:
    return shapely.box(window.x_px, window.y_px, window.x_px + window.width_px, window.y_px + window.height_px)


def _is_placed(coords: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which vertices have numbers that can be burnt, bool [vertices]."""
    return np.asarray((np.abs(coords) < MAX_COORDINATE_PX).all(axis=1))
