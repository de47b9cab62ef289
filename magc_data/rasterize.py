"""Polygons to class maps: GDAL's pixel-centre rule, bit for bit, on the global pixel grid.

The rule, as `rasterio.features.rasterize` applies it to polygons:

* A polygon is burnt whole, a multipolygon part by part, later ones over earlier ones; the rings of one polygon count
  together (even-odd).
* A row is sampled at the height of its centres, y + 0.5. An edge meets it if `low y <= y + 0.5 < high y`, at the
  column `floor(x + 0.5)`; between the 1st and 2nd, 3rd and 4th ... of the sorted columns the row is filled.
* An edge that lies along a row of centres is filled on its own, if it runs towards smaller x on its ring walked
  clockwise (what 'clockwise' is for a degenerate ring, OGR decides: see `_is_clockwise`).

Every decision is taken in the frame of the coordinates (the global pixel grid, in the build) and the window's whole
offset is subtracted afterwards: a tile, a block, any window shows the same pixels.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import shapely

from magc_data.compiled import compiled
from magc_data.errors import MagcDataError
from magc_data.schema.sample import TILE_SIZE_PX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

    from magc_data.ground_grid import AnyTile


MAX_COORDINATE_PX = 2.0**51
"""Coordinates are smaller than this: beyond it a float64 cannot tell a pixel's edge from its centre."""

# shapely.GeometryType, as plain numbers: an enumeration is slow to compare with an array.
_NONE, _POLYGON, _MULTIPOLYGON = -1, 3, 6

# Indices are unsigned where it is hot: numba then need not look whether one counts from the end, and a span's loop
# becomes a memset. That halves the time.
_U0, _U1 = np.uint64(0), np.uint64(1)
_FIRST_CROSSINGS_PER_ROW = 16
_INSERTION_SORT_MAX = 48
_SOFT_STRIP_ROWS = 64


class GeometryError(MagcDataError, ValueError):
    """What was given cannot be burnt: not a polygon, a coordinate that is no number, a value out of range."""


class PixelWindow(NamedTuple):
    """A rectangle of the pixel grid: its upper left pixel and its size."""

    x_px: int
    y_px: int
    width_px: int
    height_px: int


class RingTable(NamedTuple):
    """Polygons as flat arrays, in draw order: made once, burnt into any number of windows.

    A shape is one of the polygons or multipolygons given (None and empty ones have no parts), a part one polygon.
    """

    coords: NDArray[np.float64]
    """All vertices, x and y in pixels, shape [vertices, 2]."""
    ring_offsets: NDArray[np.int64]
    """Ring r has the vertices `ring_offsets[r]:ring_offsets[r + 1]`, the last equal to the first; shape [rings + 1]."""
    ring_bounds: NDArray[np.float64]
    """min x, min y, max x, max y; shape [rings, 4]."""
    part_offsets: NDArray[np.int64]
    """Part p has the rings `part_offsets[p]:part_offsets[p + 1]`; shape [parts + 1]."""
    part_bounds: NDArray[np.float64]
    """min x, min y, max x, max y over all rings of the part; shape [parts, 4]."""
    part_shape: NDArray[np.int64]
    """Which shape the part belongs to, never decreasing; shape [parts]."""
    shape_count: int


def ring_table(polygons: Sequence[BaseGeometry | None] | NDArray[np.object_]) -> RingTable:
    """Flatten (multi)polygons, given in pixel coordinates (x right, y down) and in draw order.

    Raises:
        GeometryError: one of them is no polygon or multipolygon, or has a coordinate that is not finite.
    """
    if isinstance(polygons, np.ndarray):
        shapes = polygons
    else:
        shapes = np.empty(len(polygons), dtype=np.object_)
        shapes[:] = polygons
    type_ids = shapely.get_type_id(shapes)
    is_multi = type_ids == _MULTIPOLYGON
    allowed = is_multi | (type_ids == _POLYGON) | (type_ids == _NONE)
    if not allowed.all():
        row = int(np.argmin(allowed))
        raise GeometryError(
            f"shape {row} is a {shapely.GeometryType(type_ids[row]).name.lower()}: only polygons and multipolygons can "
            "be burnt; buffer lines and points first, and take collections apart"
        )
    # Taking a part or a ring out of a geometry copies it, which is most of the cost: done where there are several.
    part_shape = np.repeat(np.arange(len(shapes)), shapely.get_num_geometries(shapes))
    parts = shapes[part_shape]
    parts[is_multi[part_shape]] = shapely.get_parts(shapes[is_multi])
    hole_counts = shapely.get_num_interior_rings(parts)
    holed_rings = shapely.get_rings(parts[hole_counts > 0])
    coords = shapely.get_coordinates(shapes)
    ring_offsets, ring_bounds, part_offsets, part_bounds, bad_vertex = _lay_out(
        coords, shapely.get_num_coordinates(parts), hole_counts, shapely.get_num_coordinates(holed_rings)
    )
    if bad_vertex >= 0:
        ring = int(np.searchsorted(ring_offsets, bad_vertex, side="right")) - 1
        part = int(np.searchsorted(part_offsets, ring, side="right")) - 1
        x, y = coords[bad_vertex]
        raise GeometryError(
            f"shape {part_shape[part]} has a vertex at ({x}, {y}): pixel coordinates must be numbers below 2^51; "
            "the geometry was damaged before it came here, most often by a projection outside its area"
        )
    return RingTable(coords, ring_offsets, ring_bounds, part_offsets, part_bounds, part_shape, len(shapes))


def moved_rings(
    rings: RingTable,
    move: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    longest_edge_px: float = np.inf,
) -> RingTable:
    """The same polygons with their vertices elsewhere: in another projection, say.

    Args:
        rings: the polygons.
        move: takes and gives vertices, shape [vertices, 2]; what it gives is not checked.
        longest_edge_px: edges longer than this, before they move, are first cut into equal pieces that are not, for
            where straight lines do not stay straight.
    """
    coords, ring_offsets = _cut_edges(rings.coords, rings.ring_offsets, longest_edge_px)
    coords = np.ascontiguousarray(move(coords), dtype=np.float64)
    ring_bounds = np.tile([np.inf, np.inf, -np.inf, -np.inf], (len(ring_offsets) - 1, 1))
    part_bounds = np.empty_like(rings.part_bounds)
    occupied = ring_offsets[1:] > ring_offsets[:-1]  # reduceat takes no empty run
    for reduce, columns in ((np.minimum, slice(0, 2)), (np.maximum, slice(2, 4))):
        if occupied.any():
            ring_bounds[occupied, columns] = reduce.reduceat(coords, ring_offsets[:-1][occupied])
        if len(part_bounds):
            part_bounds[:, columns] = reduce.reduceat(ring_bounds[:, columns], rings.part_offsets[:-1])
    return rings._replace(coords=coords, ring_offsets=ring_offsets, ring_bounds=ring_bounds, part_bounds=part_bounds)


def _cut_edges(
    coords: NDArray[np.float64], ring_offsets: NDArray[np.int64], longest_px: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Rings without edges longer than `longest_px`, their own vertices untouched."""
    if not len(coords):
        return coords, ring_offsets
    steps = np.diff(coords, axis=0, append=coords[-1:])
    steps[ring_offsets[1:] - 1] = 0  # from the end of a ring no edge leads on
    pieces = np.maximum(np.ceil(np.hypot(steps[:, 0], steps[:, 1]) / longest_px), 1).astype(np.int64)
    first = np.concatenate([[0], np.cumsum(pieces)])
    if first[-1] == len(coords):
        return coords, ring_offsets
    number = np.arange(first[-1]) - np.repeat(first[:-1], pieces)
    share = number / np.repeat(pieces, pieces)
    return np.repeat(coords, pieces, axis=0) + np.repeat(steps, pieces, axis=0) * share[:, None], first[ring_offsets]


def burn(
    polygons: Sequence[BaseGeometry | None] | NDArray[np.object_],
    values: Sequence[int] | NDArray[np.integer[Any]],
    height: int,
    width: int,
) -> NDArray[np.uint8]:
    """Burn (multi)polygons in pixel coordinates (x right, y down) into a map, later ones over earlier ones.

    Equal pixel for pixel to `rasterio.features.rasterize(zip(polygons, values), out_shape=(height, width), fill=0,
    dtype="uint8")` for coordinates that GDAL holds, those within 2^31 of the map.

    Args:
        polygons: shapely polygons and multipolygons; None and empty ones are skipped.
        values: one number from 0 to 255 for each polygon.
        height: rows of the map.
        width: columns of the map.

    Returns:
        Shape [height, width]; 0 where no polygon lies.

    Raises:
        GeometryError: something other than a polygon, a coordinate that is not finite, a value outside 0 to 255,
            values and polygons of different number.
    """
    return burn_window(ring_table(polygons), values, PixelWindow(0, 0, width, height))


def burn_window(
    rings: RingTable, values: Sequence[int] | NDArray[np.integer[Any]], window: PixelWindow
) -> NDArray[np.uint8]:
    """Burn one window of the pixel grid; where windows overlap, they show the same pixels.

    Returns:
        Shape [height_px, width_px]; 0 where no polygon lies.

    Raises:
        GeometryError: a value outside 0 to 255, values and shapes of different number.
    """
    image = np.zeros((window.height_px, window.width_px), dtype=np.uint8)
    _burn_window(image, window.x_px, window.y_px, _part_values(rings, values), *_kernel_arrays(rings))
    return image


def burn_tiles(
    rings: RingTable, values: Sequence[int] | NDArray[np.integer[Any]], tiles: Sequence[AnyTile]
) -> Iterator[tuple[AnyTile, NDArray[np.uint8]]]:
    """Burn the tiles of a block, a row of tiles at a time: no shape is walked more often than it has rows of tiles.

    Args:
        rings: the shapes on the pixel grid of the tiles, in draw order.
        values: one number from 0 to 255 for each shape.
        tiles: the wanted tiles of one block, row by row as `Block.tiles` has them.

    Yields:
        Each tile in the order given, with its map: shape [256, 256], 0 where no polygon lies; a view of the row's map.

    Raises:
        GeometryError: a value outside 0 to 255, values and shapes of different number.
    """
    for y, row in itertools.groupby(tiles, key=lambda tile: tile.y):
        row_tiles = list(row)
        first = min(tile.x for tile in row_tiles)
        count = max(tile.x for tile in row_tiles) - first + 1
        window = PixelWindow(first * TILE_SIZE_PX, y * TILE_SIZE_PX, count * TILE_SIZE_PX, TILE_SIZE_PX)
        strip = burn_window(rings, values, window)
        for tile in row_tiles:
            left = (tile.x - first) * TILE_SIZE_PX
            yield tile, strip[:, left : left + TILE_SIZE_PX]


def burn_soft(
    polygons: Sequence[BaseGeometry | None] | NDArray[np.object_],
    values: Sequence[int] | NDArray[np.integer[Any]],
    height: int,
    width: int,
    n_classes: int,
    supersampling: int = 8,
) -> NDArray[np.float32]:
    """Share of each pixel's area that each class covers, later polygons hiding earlier ones.

    Each pixel is sampled at `supersampling`^2 points by the rule of `burn`. Where one straight edge crosses a pixel,
    its shares are off by at most 1 / (2 x supersampling): with 8, by 0.06 at most and by 0.008 on average.

    Args:
        polygons: shapely polygons and multipolygons in pixel coordinates; None and empty ones are skipped.
        values: the class of each polygon, from 0 to n_classes - 1.
        height: rows of the map.
        width: columns of the map.
        n_classes: how many classes there are, 1 to 256, background included.
        supersampling: samples along each side of a pixel, 1 to 255.

    Returns:
        Shape [n_classes, height, width], summing to 1 over the classes; class 0 has what is not covered.

    Raises:
        GeometryError: as `burn`, and for a class that is not below n_classes.
    """
    rings = ring_table(polygons)
    part_values = _part_values(rings, values)
    if len(part_values) and part_values.max() >= n_classes:
        raise GeometryError(
            f"a polygon has the class {part_values.max()}, but there are {n_classes} classes: give a larger n_classes"
        )
    scaled = rings._replace(
        coords=rings.coords * supersampling,
        ring_bounds=rings.ring_bounds * supersampling,
        part_bounds=rings.part_bounds * supersampling,
    )
    shares = np.zeros((n_classes, height, width), dtype=np.float32)
    for top in range(0, height, _SOFT_STRIP_ROWS):  # strips, as a whole map at 8 x 8 samples is 64 times its size
        rows = min(_SOFT_STRIP_ROWS, height - top)
        samples = np.zeros((rows * supersampling, width * supersampling), dtype=np.uint8)
        _burn_window(samples, 0, top * supersampling, part_values, *_kernel_arrays(scaled))
        _average(samples, supersampling, shares[:, top : top + rows])
    return shares


def _kernel_arrays(
    rings: RingTable,
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """What a kernel needs of a table, in its order."""
    return rings.coords, rings.ring_offsets, rings.ring_bounds, rings.part_offsets, rings.part_bounds


def _part_values(rings: RingTable, values: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
    """The value of each part, checked."""
    given = np.asarray(values)
    if given.shape != (rings.shape_count,):
        raise GeometryError(f"{rings.shape_count} shapes came with {given.size} values: each shape needs one")
    if given.size and (given.dtype.kind not in "iu" or given.min() < 0 or given.max() > 255):
        raise GeometryError(f"values from {given.min()} to {given.max()} were given: expected whole numbers, 0 to 255")
    return given.astype(np.uint8)[rings.part_shape]


@compiled
def _lay_out(
    coords: NDArray[np.float64],
    vertex_counts: NDArray[np.int32],
    hole_counts: NDArray[np.int32],
    holed_ring_lengths: NDArray[np.int32],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], int]:
    """Where each part's rings and each ring's vertices lie in `coords`, and their bounds.

    vertex_counts and hole_counts are of the parts, holed_ring_lengths of the rings of those parts that have holes.
    The last value is the first vertex that is not a usable number, or -1.
    """
    parts = len(vertex_counts)
    ring_count = parts + hole_counts.sum()
    ring_offsets = np.zeros(ring_count + 1, dtype=np.int64)
    ring_bounds = np.empty((ring_count, 4))
    part_offsets = np.zeros(parts + 1, dtype=np.int64)
    part_bounds = np.empty((parts, 4))
    bad_vertex = -1
    ring = holed_ring = vertex = 0
    for part in range(parts):
        part_bounds[part, 0] = part_bounds[part, 1] = np.inf
        part_bounds[part, 2] = part_bounds[part, 3] = -np.inf
        for _ in range(hole_counts[part] + 1):
            length = vertex_counts[part]
            if hole_counts[part] > 0:
                length = holed_ring_lengths[holed_ring]
                holed_ring += 1
            x_min = y_min = np.inf
            x_max = y_max = -np.inf
            for i in range(vertex, vertex + length):
                x = coords[i, 0]
                y = coords[i, 1]
                if not (abs(x) < MAX_COORDINATE_PX and abs(y) < MAX_COORDINATE_PX) and bad_vertex < 0:  # or NaN
                    bad_vertex = i
                x_min = min(x_min, x)
                x_max = max(x_max, x)
                y_min = min(y_min, y)
                y_max = max(y_max, y)
            ring_bounds[ring, 0] = x_min
            ring_bounds[ring, 1] = y_min
            ring_bounds[ring, 2] = x_max
            ring_bounds[ring, 3] = y_max
            part_bounds[part, 0] = min(part_bounds[part, 0], x_min)
            part_bounds[part, 1] = min(part_bounds[part, 1], y_min)
            part_bounds[part, 2] = max(part_bounds[part, 2], x_max)
            part_bounds[part, 3] = max(part_bounds[part, 3], y_max)
            vertex += length
            ring += 1
            ring_offsets[ring] = vertex
        part_offsets[part + 1] = ring
    return ring_offsets, ring_bounds, part_offsets, part_bounds, bad_vertex


@compiled
def _touches(bounds: NDArray[np.float64], row: int, x_px: int, y_px: int, width_px: int, height_px: int) -> bool:
    """Whether a box may paint into a window. A pixel of margin outweighs any rounding of a crossing."""
    return bool(
        bounds[row, 0] < x_px + width_px + 1
        and bounds[row, 2] > x_px - 1
        and bounds[row, 1] < y_px + height_px + 1
        and bounds[row, 3] > y_px - 1
    )


@compiled
def _burn_window(
    image: NDArray[np.uint8],
    x_px: int,
    y_px: int,
    part_values: NDArray[np.uint8],
    coords: NDArray[np.float64],
    ring_offsets: NDArray[np.int64],
    ring_bounds: NDArray[np.float64],
    part_offsets: NDArray[np.int64],
    part_bounds: NDArray[np.float64],
) -> None:
    """Burn all parts that touch it into one window, whose upper left pixel is (x_px, y_px)."""
    height_px, width_px = image.shape
    crossing_counts = np.zeros(height_px, dtype=np.uint32)
    crossings = np.empty((height_px, _FIRST_CROSSINGS_PER_ROW), dtype=np.int32)
    for part in range(len(part_values)):
        if not _touches(part_bounds, part, x_px, y_px, width_px, height_px):
            continue
        first, end, value = part_offsets[part], part_offsets[part + 1], part_values[part]
        while not _burn_part(
            image, x_px, y_px, value, first, end, coords, ring_offsets, ring_bounds, crossing_counts, crossings
        ):
            crossings = np.empty((height_px, 4 * crossings.shape[1]), dtype=np.int32)


@compiled
def _burn_part(
    image: NDArray[np.uint8],
    x_px: int,
    y_px: int,
    value: int,
    first_ring: int,
    end_ring: int,
    coords: NDArray[np.float64],
    ring_offsets: NDArray[np.int64],
    ring_bounds: NDArray[np.float64],
    crossing_counts: NDArray[np.uint32],
    crossings: NDArray[np.int32],
) -> bool:
    """Burn one polygon into one window; False: a row has more crossings than there is room for, try again with more.

    crossing_counts [height] is all zero before and after; crossings [height, room] is scratch.
    """
    height_px, width_px = image.shape
    room = crossings.shape[1]
    first_row, end_row = height_px, 0
    fits = True
    for ring in range(first_ring, end_ring):
        # A closed ring meets every row an even number of times: one that lies beside the window changes nothing in it.
        if not _touches(ring_bounds, ring, x_px, y_px, width_px, height_px):
            continue
        begin, end = ring_offsets[ring], ring_offsets[ring + 1]
        x_b = coords[begin, 0]
        y_b = coords[begin, 1]
        for i in range(np.uint64(begin + 1), np.uint64(end)):
            x_a = x_b
            y_a = y_b
            x_b = coords[i, _U0]
            y_b = coords[i, _U1]
            if y_a < y_b:
                x_low, y_low, x_high, y_high = x_a, y_a, x_b, y_b
            else:
                x_low, y_low, x_high, y_high = x_b, y_b, x_a, y_a
            # Rows r of the window with y_low <= y_px + r + 0.5 < y_high.
            row = int(max(np.ceil(y_low - 0.5) - y_px, 0.0))
            edge_end_row = int(min(np.ceil(y_high - 0.5) - y_px, float(height_px)))
            if row >= edge_end_row:
                if y_a == y_b and np.floor(y_a) + 0.5 == y_a and x_a != x_b:
                    line = int(max(min(np.floor(y_a) - y_px, float(height_px)), -1.0))
                    if 0 <= line < height_px and (x_a > x_b) == _is_clockwise(coords[begin:end]):
                        left = _column(min(x_a, x_b), x_px, width_px)
                        _fill(image, line, left, _column(max(x_a, x_b), x_px, width_px), value)
                continue
            first_row = min(first_row, row)
            end_row = max(end_row, edge_end_row)
            for r in range(np.uint64(row), np.uint64(edge_end_row)):
                count = crossing_counts[r]
                if count == room:
                    fits = False
                    break
                # GDAL's order of operations, term by term.
                x = (np.float64(y_px + np.int64(r)) + 0.5 - y_low) * (x_high - x_low) / (y_high - y_low) + x_low
                crossings[r, count] = _column(x, x_px, width_px)
                crossing_counts[r] = count + np.uint32(1)
    for r in range(np.uint64(first_row), np.uint64(end_row)):
        count = crossing_counts[r]
        crossing_counts[r] = 0
        if not fits:
            continue
        if count == 2:
            a, b = crossings[r, _U0], crossings[r, _U1]
            _fill(image, r, min(a, b), max(a, b), value)
            continue
        if count > _INSERTION_SORT_MAX:
            crossings[r, :count].sort()
        else:
            for i in range(1, count):
                column = crossings[r, i]
                j = i
                while j > 0 and crossings[r, j - 1] > column:
                    crossings[r, j] = crossings[r, j - 1]
                    j -= 1
                crossings[r, j] = column
        for i in range(0, np.int64(count) - 1, 2):
            _fill(image, r, crossings[r, i], crossings[r, i + 1], value)
    return fits


@compiled
def _fill(image: NDArray[np.uint8], row: int, left: int, end: int, value: int) -> None:
    """Set `image[row, left:end]`."""
    for column in range(np.uint64(left), np.uint64(end)):
        image[row, column] = value


@compiled
def _column(x: float, x_px: int, width_px: int) -> int:
    """First column of the window whose centre is right of x; 0 and width_px stand for all beyond the window."""
    return int(max(min(np.floor(x + 0.5) - x_px, float(width_px)), 0.0))


@compiled
def _is_clockwise(ring: NDArray[np.float64]) -> bool:
    """Orientation of a closed ring as OGR finds it: by the turn at its lowest, rightmost vertex.

    Where that vertex occurs twice, has a neighbour within 1e-5 or no turn, the sign of the area decides. For a ring
    that crosses itself or has no area the answer is arbitrary, but it is OGR's.
    """
    distinct = len(ring) - 1
    corner = 0
    ambiguous = False
    for i in range(1, distinct):
        if ring[i, 1] < ring[corner, 1] or (ring[i, 1] == ring[corner, 1] and ring[i, 0] > ring[corner, 0]):
            corner = i
            ambiguous = False
        elif ring[i, 1] == ring[corner, 1] and ring[i, 0] == ring[corner, 0]:
            ambiguous = True
    x, y = ring[corner]
    before_x, before_y = ring[corner - 1 if corner > 0 else distinct - 1]
    after_x, after_y = ring[corner + 1 if corner + 1 < distinct else 0]
    ambiguous |= abs(before_x - x) < 1e-5 and abs(before_y - y) < 1e-5
    ambiguous |= abs(after_x - x) < 1e-5 and abs(after_y - y) < 1e-5
    turn = (after_x - x) * (before_y - y) - (before_x - x) * (after_y - y)
    if not ambiguous and turn != 0:
        return bool(turn < 0)
    twice_area = ring[0, 0] * (ring[1, 1] - ring[distinct, 1])
    for i in range(1, distinct):
        twice_area += ring[i, 0] * (ring[i + 1, 1] - ring[i - 1, 1])
    twice_area += ring[distinct, 0] * (ring[0, 1] - ring[distinct - 1, 1])
    return bool(twice_area < 0)


@compiled
def _average(samples: NDArray[np.uint8], supersampling: int, shares: NDArray[np.float32]) -> None:
    """Add each sample's weight to its class: samples [rows x s, columns x s], shares [classes, rows, columns]."""
    counts = np.zeros(shares.shape[0], dtype=np.int64)
    for row in range(shares.shape[1]):
        for column in range(shares.shape[2]):
            counts[:] = 0
            for y in range(row * supersampling, (row + 1) * supersampling):
                for x in range(column * supersampling, (column + 1) * supersampling):
                    counts[samples[y, x]] += 1
            for class_id in range(shares.shape[0]):
                shares[class_id, row, column] = counts[class_id] / (supersampling * supersampling)
