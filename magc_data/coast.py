"""Coastlines to sea, inside a box: which ground lies on the right of `natural=coastline`, and which nobody can say.

    lines ──► chains (joined end to start) ──► rings, closed far outside the box ──► one polygon, counted even-odd
                 │ ends inside the box: joined to the nearest ground, and the place marked as unknown
                 └► faces of the box ──► winding number of each: the sea has one number, land the next

* No line is ever cut. Inside the box the polygon has the vertices of the coastline and no others, so that any box
  around a pixel gives that pixel the same class, bit for bit.
* Land is on the left of a coastline. Crossing it from right to left raises the winding number by one, so sound
  coastlines give two numbers, whatever lies outside the box. A face with another one (an island drawn the wrong way
  round, a line that stands twice) is unknown; if such faces are many, all of the box is.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import shapely

from magc_data.grid import EARTH_RADIUS_M

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

    from magc_data.grid import BoundsLonLat

    Line = NDArray[np.float64]

_METRES_PER_DEGREE = math.radians(EARTH_RADIUS_M)
SAME_PLACE_M = 0.05
"""Ends so near to each other are one node, moved by the rounding of a projection."""
MAX_LOOSE_ENDS = 512
"""A box with more of them has no coastline that could be made sense of."""
SOUND_SHARE = 0.9
"""Of the box: faces with a winding number that is neither the sea's nor the land's cover less than the rest."""
_SLIVER_DEGREES2 = 1e-15
"""Faces smaller than this (some square millimetres) come of rounding where lines cross."""
_AROUND_DEGREES = 0.01


class Unknown(NamedTuple):
    """Ground on which land and sea cannot be told apart."""

    ground: BaseGeometry
    problem: str
    """Why, in words, with a place."""


class Sea(NamedTuple):
    """The sea in a box."""

    polygon: shapely.Polygon | None
    """To be counted even-odd over all rings, and right inside the box alone; None where the box has no sea."""
    unknown: tuple[Unknown, ...] = ()
    """Where nobody can say it."""


def sea_in_box(lines: Iterable[Line], bounds: BoundsLonLat) -> Sea | None:
    """The sea in a box, from all the coastlines that touch it; None where no coastline divides the box.

    Args:
        lines: lon/lat vertices `[n, 2]`, land on the left, whole beyond the box's edges.
        bounds: the box; lines that end on its edge or outside are not loose.
    """
    chains = [_Chain(line) for line in _joined(_distinct(lines), bounds)]
    box = shapely.box(*bounds)
    if not any(chain.reaches_into(box) for chain in chains):
        return None
    ends = [end for chain in chains for end in chain.loose_ends(bounds)]
    if len(ends) > MAX_LOOSE_ENDS:
        return _all_unknown(box, f"{len(ends)} coastlines end in the midst, one at {_place(ends[0].place)}")
    doubtful = _tie(ends, bounds)
    rings = _rings(chains)
    frame = _frame(rings, bounds)
    closed = [_closed(ring, bounds, frame) for ring in rings]
    faces, numbers = _faces(rings, closed, box)
    if len(faces) < 2:
        return None
    if numbers.min() == numbers.max():
        return _all_unknown(box, f"a coastline has land on both sides at {_place(_first_inside(chains, box))}")
    sea_number, share = _sea_number(faces, numbers)
    strange = faces[(numbers != sea_number) & (numbers != sea_number + 1)]
    contradictions = [
        Unknown(face, f"coastlines contradict each other at {_place(shapely.get_coordinates(inside)[0])}")
        for face, inside in zip(strange, shapely.point_on_surface(strange), strict=True)
    ]
    if share < SOUND_SHARE:
        return _all_unknown(box, max(contradictions, key=lambda each: each.ground.area).problem)
    shells = [*([frame] if sea_number % 2 == 0 else []), *closed]
    return Sea(shapely.Polygon(shells[0], shells[1:]), (*doubtful, *contradictions))


def _all_unknown(box: BaseGeometry, problem: str) -> Sea:
    return Sea(None, (Unknown(box, problem),))


def _first_inside(chains: list[_Chain], box: BaseGeometry) -> NDArray[np.float64]:
    lines = [shapely.intersection(shapely.LineString(chain.line), box) for chain in chains]
    inside: NDArray[np.float64] = shapely.get_coordinates(lines)
    return np.asarray(inside[0])


def is_sea(sea: Sea, lon: float, lat: float) -> bool:
    """Whether a place inside the box lies in the sea: the number of edges to the west of it is odd."""
    if sea.polygon is None:
        return False
    rings = [np.asarray(ring.coords) for ring in (sea.polygon.exterior, *sea.polygon.interiors)]
    return bool(_crossings(rings, np.array([[lon, lat]]), signed=False)[0] % 2)


def _place(lonlat: Sequence[float] | NDArray[np.float64]) -> str:
    return f"{lonlat[0]:.5f},{lonlat[1]:.5f}"


def _distinct(lines: Iterable[Line]) -> list[Line]:
    """Each line once, without repeated vertices, and none without an extent."""
    kept: dict[bytes, Line] = {}
    for line in lines:
        moved = np.concatenate([[True], (np.diff(line, axis=0) != 0).any(axis=1)])
        plain = np.ascontiguousarray(line[moved], dtype=np.float64)
        if len(plain) > 1:
            kept.setdefault(plain.tobytes(), plain)
    return list(kept.values())


def _joined(lines: list[Line], bounds: BoundsLonLat) -> list[Line]:
    """Join lines where one ends and another begins, inside the box; outside it does not matter."""
    starting: dict[tuple[float, float], list[int]] = {}
    for number, line in enumerate(lines):
        if not _is_ring(line):
            starting.setdefault(_key(line[0]), []).append(number)
    next_of: dict[int, int] = {}
    for number, line in enumerate(lines):
        if not _is_ring(line) and _is_inside(line[-1], bounds) and starting.get(_key(line[-1])):
            next_of[number] = starting[_key(line[-1])].pop(0)
    result = [line for line in lines if _is_ring(line)]
    left = {number for number, line in enumerate(lines) if not _is_ring(line)}
    followers = set(next_of.values())
    # Chains from their beginnings, then what goes round in circles.
    for first in [*sorted(left - followers), *sorted(left & followers)]:
        pieces: list[Line] = []
        number = first
        while number in left:
            left.remove(number)
            pieces.append(lines[number] if not pieces else lines[number][1:])
            number = next_of.get(number, -1)
        if pieces:
            result.append(np.concatenate(pieces))
    return result


def _key(place: NDArray[np.float64]) -> tuple[float, float]:
    return float(place[0]), float(place[1])


def _is_ring(line: Line) -> bool:
    return len(line) > 2 and bool((line[0] == line[-1]).all())


def _is_inside(place: Sequence[float] | NDArray[np.float64], bounds: BoundsLonLat) -> bool:
    west, south, east, north = bounds
    return bool(west < place[0] < east and south < place[1] < north)


class _Chain:
    """A coastline that is being put together: its ends may be tied to others."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.before: Line | None = None
        """What was put in front of its beginning."""
        self.after: Line | None = None
        self.next: _Chain | None = None
        self.has_previous = False

    def reaches_into(self, box: BaseGeometry) -> bool:
        line = shapely.LineString(self.line)
        return bool(shapely.intersects(line, box) and not shapely.touches(line, box))

    def loose_ends(self, bounds: BoundsLonLat) -> list[_End]:
        if _is_ring(self.line):
            return []
        ends = [_End(self, self.line[0], is_start=True), _End(self, self.line[-1], is_start=False)]
        return [end for end in ends if _is_inside(end.place, bounds)]


class _End(NamedTuple):
    """A beginning or an end of a coastline inside the box."""

    chain: _Chain
    place: NDArray[np.float64]
    is_start: bool


class _Tie(NamedTuple):
    """A way to tie a loose end: to another one, or to the nearest edge of the box."""

    distance_m: float
    end: int
    other: int
    """-1: the edge."""


def _tie(ends: list[_End], bounds: BoundsLonLat) -> list[Unknown]:
    """Tie every loose end, the shortest ties first; returns the ground of which they leave nobody sure."""
    if not ends:
        return []
    scale = np.array([math.cos(math.radians((bounds.south + bounds.north) / 2)), 1.0]) * _METRES_PER_DEGREE
    places = np.array([end.place for end in ends])
    ties = [_Tie(_to_edge(place, bounds, scale)[0], number, -1) for number, place in enumerate(places)]
    starts = np.array([end.is_start for end in ends])
    for number in np.flatnonzero(~starts).tolist():
        distances = np.hypot(*((places[starts] - places[number]) * scale).T)
        ties += [
            _Tie(float(distance), number, other)
            for distance, other in zip(distances, np.flatnonzero(starts).tolist(), strict=True)
        ]
    doubtful: list[Unknown] = []
    tied: set[int] = set()
    for distance_m, number, other in sorted(ties):
        if number in tied or other in tied:
            continue
        end = ends[number]
        if other < 0:
            tied.add(number)
            target = _to_edge(end.place, bounds, scale)[1]
            if end.is_start:
                end.chain.before = target[np.newaxis]
            else:
                end.chain.after = target[np.newaxis]
        else:
            tied |= {number, other}
            target = places[other]
            end.chain.next, ends[other].chain.has_previous = ends[other].chain, True
        if distance_m > SAME_PLACE_M:
            # The true coastline takes some way between the two, and hardly a detour longer than itself.
            tie = shapely.buffer(shapely.LineString([end.place * scale, target * scale]), distance_m)
            ground = shapely.transform(tie, lambda metres: metres / scale)
            doubtful.append(Unknown(ground, f"a coastline ends in the midst at {_place(end.place)}"))
    return doubtful


def _to_edge(
    place: NDArray[np.float64], bounds: BoundsLonLat, scale: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """Distance in metres to the nearest edge of the box, and a place just beyond it."""
    west, south, east, north = bounds
    targets = np.array([[west, place[1]], [place[0], south], [east, place[1]], [place[0], north]])
    distances = np.hypot(*((targets - place) * scale).T)
    nearest = int(np.argmin(distances))
    return float(distances[nearest]), targets[nearest]


def _rings(chains: list[_Chain]) -> list[Line]:
    """The tied chains as lines that are rings, or begin and end on the box's edge or outside."""
    result = []
    done: set[int] = set()
    for first in sorted(chains, key=lambda chain: chain.has_previous):
        pieces: list[Line] = []
        chain: _Chain | None = first
        while chain is not None and id(chain) not in done:
            done.add(id(chain))
            pieces += [part for part in (chain.before, chain.line, chain.after) if part is not None]
            chain = chain.next
        if not pieces:
            continue
        line = np.concatenate(pieces)
        # Tied to its own beginning: a ring.
        result.append(np.concatenate([line, line[:1]]) if first.has_previous and not _is_ring(line) else line)
    return [line for line in result if len(line) > 1]


def _frame(rings: list[Line], bounds: BoundsLonLat) -> Line:
    """A ring around the box and every line, anticlockwise from the south-west."""
    everything = np.concatenate([*rings, np.array(bounds).reshape(2, 2)])
    (west, south), (east, north) = everything.min(axis=0) - _AROUND_DEGREES, everything.max(axis=0) + _AROUND_DEGREES
    return np.array([[west, south], [east, south], [east, north], [west, north], [west, south]])


def _closed(line: Line, bounds: BoundsLonLat, frame: Line) -> Line:
    """A line made a ring by a way round the box: straight out to the frame, along it, and straight back."""
    if _is_ring(line):
        return line if len(line) > 3 else np.concatenate([line[:1], line])
    leave, come_back = (_on_frame(place, bounds, frame) for place in (line[-1], line[0]))
    corners = [frame[number % 4] for number in range(math.floor(leave.position) + 1, math.floor(leave.position) + 5)]
    ahead = (come_back.position - leave.position) % 4.0
    passed = (1.0 - leave.position % 1.0) + np.arange(4)
    along = [corner for corner, distance in zip(corners, passed, strict=True) if distance < ahead]
    return np.array([*line, leave.place, *along, come_back.place, line[0]])


class _OnFrame(NamedTuple):
    place: NDArray[np.float64]
    position: float
    """0 to 4: the side, counted from the south, and how far along it."""


def _on_frame(place: NDArray[np.float64], bounds: BoundsLonLat, frame: Line) -> _OnFrame:
    """Where the frame is met going straight away from the box, from a place that is not inside it."""
    lon, lat = float(place[0]), float(place[1])
    west, south, east, north = float(frame[0][0]), float(frame[0][1]), float(frame[2][0]), float(frame[2][1])
    along_lon, along_lat = (lon - west) / (east - west), (lat - south) / (north - south)
    if lat <= bounds.south:
        return _OnFrame(np.array([lon, south]), along_lon)
    if lon >= bounds.east:
        return _OnFrame(np.array([east, lat]), 1 + along_lat)
    if lat >= bounds.north:
        return _OnFrame(np.array([lon, north]), 2 + (1 - along_lon))
    return _OnFrame(np.array([west, lat]), 3 + (1 - along_lat))


def _faces(rings: list[Line], closed: list[Line], box: BaseGeometry) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    """The parts into which the coastlines cut the box, and the winding number of each."""
    inside = shapely.intersection(shapely.MultiLineString(rings), box)
    noded = shapely.union_all([inside, box.exterior])
    faces = shapely.get_parts(shapely.polygonize(shapely.get_parts(noded)))
    faces = faces[shapely.area(faces) > _SLIVER_DEGREES2]
    points = shapely.get_coordinates(shapely.point_on_surface(faces))
    return faces, _crossings(closed, points, signed=True)


def _crossings(rings: list[Line], points: NDArray[np.float64], *, signed: bool) -> NDArray[np.int64]:
    """Edges of the rings to the west of each point: how many, or (signed) the winding number that they make."""
    start = np.concatenate([ring[:-1] for ring in rings])
    end = np.concatenate([ring[1:] for ring in rings])
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    order = np.argsort(low, kind="stable")
    start, end, low, high = start[order], end[order], low[order], high[order]
    result = np.zeros(len(points), dtype=np.int64)
    for number, (x, y) in enumerate(points):
        rows = slice(0, int(np.searchsorted(low, y, side="right")))
        met = np.flatnonzero(high[rows] > y)
        a, b = start[met], end[met]
        west = a[:, 0] + (y - a[:, 1]) / (b[:, 1] - a[:, 1]) * (b[:, 0] - a[:, 0]) < x
        # Anticlockwise rings go down on the west of what they hold.
        down = np.where(a[:, 1] > b[:, 1], 1, -1) if signed else np.ones(len(met), dtype=np.int64)
        result[number] = int(down[west].sum())
    return result


def _sea_number(faces: NDArray[np.object_], numbers: NDArray[np.int64]) -> tuple[int, float]:
    """The winding number of the sea: of two neighbouring numbers that cover most of the box; and how much they do."""
    values, of_face = np.unique(numbers, return_inverse=True)
    areas = np.bincount(of_face, weights=shapely.area(faces))
    covered = {int(value): float(area) for value, area in zip(values, areas, strict=True)}
    numbers_of_sea = range(min(covered), max(covered))
    shares = {number: covered.get(number, 0.0) + covered.get(number + 1, 0.0) for number in numbers_of_sea}
    best = max(shares, key=lambda number: shares[number])
    return best, shares[best] / sum(covered.values())
