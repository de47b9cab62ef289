"""What the polygons of Esri's layers of captures say of tiles: pure, from the bytes of their answers."""

from __future__ import annotations

import contextlib
import math
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import shapely

from magc_data.grid import HALF_CIRCUMFERENCE_M
from magc_data.schema.sample import Capture, CaptureUnknown
from magc_data.sources.tile_service import parsed_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

    from magc_data.grid import Tile
    from magc_data.sources.cache import Answer

MAX_APART = timedelta(days=7)
"""World Imagery is replaced piece by piece: what it tells holds for tiles fetched so near to that."""

_UNKNOWN_BEFORE = date(1980, 1, 2)
"""Esri writes 1 January 1980 (or 1970) where it knows no date."""


class Window(NamedTuple):
    """A square of tiles: first column and row, tiles a side."""

    z: int
    left: int
    top: int
    side: int

    def quarters(self) -> tuple[Window, ...]:
        """The four squares of half the side, row by row."""
        half = self.side // 2
        corners = [(self.left + x, self.top + y) for y in (0, half) for x in (0, half)]
        return tuple(Window(self.z, left, top, half) for left, top in corners)

    def bounds_3857(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top in metres."""
        tile_m = 2 * HALF_CIRCUMFERENCE_M / 2**self.z
        left, top = self.left * tile_m - HALF_CIRCUMFERENCE_M, HALF_CIRCUMFERENCE_M - self.top * tile_m
        return left, top - self.side * tile_m, left + self.side * tile_m, top


def unknown_capture(reason: CaptureUnknown) -> Capture:
    """A capture of which nothing is known but why."""
    return Capture(None, None, None, None, None, reason)


class CapturePolygon(NamedTuple):
    """One picture of the mosaic."""

    polygon: BaseGeometry
    """EPSG:3857."""
    date: str | None
    source: str | None
    gsd_m: float | None
    accuracy_m: float | None

    def rank(self) -> tuple[Any, ...]:
        """Where several lie over one place, the finest counts, of these the newest; the rest makes it definite."""
        day = date.fromisoformat(self.date).toordinal() if self.date else 0
        return (self.gsd_m or math.inf, -day, self.source or "", self.accuracy_m or math.inf)


def read_features(bodies: Iterable[bytes], level: int | None) -> list[CapturePolygon]:
    """The pictures in some answers, in a definite order.

    Args:
        bodies: ArcGIS JSON.
        level: only rows whose range of zoom levels holds this one; None: all.
    """
    found = {}
    for body in bodies:
        for feature in parsed_json(body)["features"]:
            with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError, shapely.errors.ShapelyError):
                fields = {str(name).lower(): value for name, value in feature["attributes"].items()}
                if level is None or _is_of_level(fields, level):
                    polygon = _polygon(feature["geometry"]["rings"])
                    if not polygon.is_empty:
                        picture = _picture(polygon, fields)
                        # The same row comes with every quarter that it touches, cut to none of them.
                        found[picture.rank(), shapely.to_wkb(polygon)] = picture
    return [found[key] for key in sorted(found)]


def _is_of_level(fields: dict[str, Any], level: int) -> bool:
    return float(fields["minmaplevel"]) <= level <= float(fields["maxmaplevel"])


def _polygon(rings: Any) -> BaseGeometry:
    """Rings of an ArcGIS polygon, in whatever order and direction: what lies in an even number of them is a hole."""
    lines = [shapely.linestrings(np.asarray(ring, dtype=np.float64)[:, :2]) for ring in rings if len(ring) >= 4]
    return shapely.build_area(shapely.node(shapely.multilinestrings(lines))) if lines else shapely.Polygon()


def _picture(polygon: BaseGeometry, fields: dict[str, Any]) -> CapturePolygon:
    words = [str(fields.get(name) or "").strip() for name in ("nice_desc", "src_desc")]
    words = [word for word in words if word] or [str(fields.get("nice_name") or "").strip()]
    return CapturePolygon(
        polygon=polygon,
        date=capture_date(fields),
        source=" ".join(words) or None,
        gsd_m=_positive(fields.get("src_res")) or _positive(fields.get("samp_res")),
        accuracy_m=_positive(fields.get("src_acc")),
    )


def _positive(value: Any) -> float | None:
    with contextlib.suppress(TypeError, ValueError):
        number = float(value)
        if math.isfinite(number) and number > 0:
            return number
    return None


def capture_date(fields: dict[str, Any]) -> str | None:
    """The ISO date in a row: `SRC_DATE2` (milliseconds since 1970, UTC, or ISO text), else `SRC_DATE` (YYYYMMDD)."""
    for name, as_date in (("src_date2", _date_of_instant), ("src_date", _date_of_digits)):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            found = as_date(fields.get(name))
            if found >= _UNKNOWN_BEFORE:
                return found.isoformat()
    return None


def _date_of_instant(value: Any) -> date:
    if isinstance(value, str):
        return date.fromisoformat(value[:10])
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=float(value))).date()


def _date_of_digits(value: Any) -> date:
    return datetime.strptime(str(int(value)), "%Y%m%d").replace(tzinfo=UTC).date()


class BlockCaptures:
    """The pictures around a block, ready to be asked about tiles."""

    def __init__(self, pictures: list[CapturePolygon], told_at: list[datetime]) -> None:
        self._pictures, self._told_at = pictures, told_at
        self._polygons: NDArray[np.object_] = np.array([each.polygon for each in pictures], dtype=object)
        shapely.prepare(self._polygons)  # of thousands of corners, each asked about a thousand tiles
        self._tree = shapely.STRtree(self._polygons)

    @classmethod
    def of_answers(cls, answers: list[Answer], level: int | None) -> Self:
        """What some answers tell together."""
        told_at = [datetime.fromisoformat(each.fetched_at) for each in answers]
        return cls(read_features((each.body for each in answers), level), told_at)

    def is_far_from(self, moment: datetime) -> bool:
        """Whether what is told is of another time."""
        return any(abs(each - moment) > MAX_APART for each in self._told_at)

    def at(self, tile: Tile) -> Capture:
        """The picture at the tile's centre."""
        left, bottom, right, top = Window(tile.z, tile.x, tile.y, 1).bounds_3857()
        box = shapely.box(left, bottom, right, top)
        near = np.sort(self._tree.query(box))
        centre = shapely.Point((left + right) / 2, (bottom + top) / 2)
        there = near[shapely.intersects(self._polygons[near], centre)]
        if not len(there):
            return unknown_capture(CaptureUnknown.NOT_COVERED)
        picture = self._pictures[there[0]]
        if picture.date is None:
            return Capture(None, None, picture.source, picture.gsd_m, picture.accuracy_m, CaptureUnknown.NOT_DATED)
        of_date = list(self._same_date(near, picture.date))
        if any(shapely.covers(polygon, box) for polygon in of_date):
            share = 1.0
        else:
            share = round(float(shapely.union_all([each.intersection(box) for each in of_date]).area / box.area), 4)
        return Capture(picture.date, share, picture.source, picture.gsd_m, picture.accuracy_m, None)

    def _same_date(self, near: NDArray[np.int64], wanted: str) -> Iterator[BaseGeometry]:
        return (self._polygons[number] for number in near if self._pictures[number].date == wanted)
