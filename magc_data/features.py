"""OSM features to shapes in draw order: tags decide class, width and order; geometry goes to the pixel grid.

Nothing here depends on a tile or block: a feature's pixels are a function of the feature, the scheme and the grid.
That, and burning without clipping, is why every tiling of an area gives the same map.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import shapely

from magc_data import grid
from magc_data.schema.classes import matching_keys
from magc_data.schema.osm_polygons import closed_way_is_area

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from magc_data.grid import PixelGrid
    from magc_data.schema.classes import LineWidth, Rule, Scheme
    from magc_data.sources.protocols import FeatureTable

BRIDGE_DRAW_ORDER = 1000
"""Added to the draw order of bridges: they lie over everything that is not a bridge."""

BUFFER_QUARTER_SEGMENTS = 4
"""Round line ends are 16-gons: 2 % of the half-width inside the circle, 0.1 px for a 10 m road at 1 m/px."""


class Shapes(NamedTuple):
    """What to burn, lowest first."""

    polygons: NDArray[np.object_]
    """shapely (Multi)Polygons on the pixel grid (x right, y down), shape [n]."""
    class_ids: NDArray[np.uint8]
    """Class of each polygon, shape [n]."""


class Paint(NamedTuple):
    """One rule's verdict on one tag set."""

    class_id: int
    draw_order: int
    layer: int
    width_m: float
    """0 for areas."""


_METRES_PER_UNIT = {
    "": 1.0,
    "m": 1.0,
    "metre": 1.0,
    "metres": 1.0,
    "cm": 0.01,
    "km": 1000.0,
    "mi": 1609.344,
    "ft": 0.3048,
    "'": 0.3048,
}
_NUMBER_WITH_UNIT = re.compile(r"(\d+(?:\.\d+)?)\s*(m|metres?|cm|km|mi|ft|')?")
_FEET_AND_INCHES = re.compile(r"(\d+(?:\.\d+)?)'\s*(\d+(?:\.\d+)?)\"")


def parse_length_m(text: str | None) -> float | None:
    """Metres of an OSM length (`7`, `7.5 m`, `0.6 mi`, `16'3"`); None where it is absent, malformed or not positive.

    OSM forbids a decimal comma, so `3,5` is malformed rather than guessed at (OSM wiki, Key:width).
    """
    if text is None:
        return None
    text = text.strip().lower()
    if match := _FEET_AND_INCHES.fullmatch(text):
        length_m = float(match[1]) * 0.3048 + float(match[2]) * 0.0254
    elif match := _NUMBER_WITH_UNIT.fullmatch(text):
        length_m = float(match[1]) * _METRES_PER_UNIT[match[2] or ""]
    else:
        return None
    return length_m if length_m > 0 else None


def line_width_m(tags: Mapping[str, str], width: LineWidth) -> float:
    """Width on the ground: `width:carriageway`, else `width`, else `est_width`, else lanes, else the rule's default."""
    for key in ("width:carriageway", "width", "est_width"):
        if (tagged_m := parse_length_m(tags.get(key))) is not None:
            return min(tagged_m, width.max_m)
    if width.lane_width_m is not None:
        lanes = _whole_number(tags.get("lanes"))
        if lanes:
            return min(lanes * width.lane_width_m + width.shoulder_m, width.max_m)
        if width.default_m is None:
            lanes = width.oneway_lanes if _is_oneway(tags, width) else 2 * width.lanes_per_direction
            return min(lanes * width.lane_width_m + width.shoulder_m, width.max_m)
    # A line rule has a default or a lane width: parse_scheme refuses one without either.
    return min(width.default_m or 0.0, width.max_m)


def _is_oneway(tags: Mapping[str, str], width: LineWidth) -> bool:
    oneway = tags.get("oneway")
    if oneway is not None:
        return oneway in {"yes", "true", "1", "-1"}
    return width.implied_oneway or tags.get("junction") == "roundabout"


def _whole_number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"\d{1,2}", text) else None


def _layer(tags: Mapping[str, str]) -> int:
    text = tags.get("layer", "")
    return int(text) if re.fullmatch(r"[+-]?\d{1,2}", text) else 0


def _applies(rule: Rule, tags: Mapping[str, str], keys: list[str]) -> bool:
    return (
        bool(keys)
        and len(matching_keys(rule.where, tags)) == len(rule.where)
        and not matching_keys(rule.unless, tags)
        and not (rule.hide_negative_layer and _layer(tags) < 0)
    )


def paints(tags: Mapping[str, str], scheme: Scheme, *, is_area: bool, is_closed_way: bool) -> list[Paint]:
    """What the scheme paints for a geometry with these tags.

    Args:
        tags: the feature's tags.
        scheme: the class table.
        is_area: the geometry is a polygon (else a line).
        is_closed_way: it comes from a closed OSM way, so each key says whether it means the area or the outline.
    """
    if matching_keys(scheme.hidden, tags):
        return []
    is_bridge = bool(matching_keys({"bridge": frozenset("*")}, tags))
    result = []
    for rule in scheme.rules:
        if rule.is_area != is_area:
            continue
        keys = matching_keys(rule.tags, tags)
        if is_closed_way:
            keys = [key for key in keys if closed_way_is_area(tags, key) == is_area]
        if not _applies(rule, tags, keys):
            continue
        draw_order = rule.draw_order + (BRIDGE_DRAW_ORDER if is_bridge else 0)
        if rule.width is None:
            # Land cover is ordered by size alone; only ways and bridges pass over one another.
            result.append(Paint(rule.class_id, draw_order, _layer(tags) if is_bridge else 0, 0.0))
        else:
            result.append(Paint(rule.class_id, draw_order, _layer(tags), line_width_m(tags, rule.width)))
    return result


def shapes_in_draw_order(table: FeatureTable, scheme: Scheme, pixels: PixelGrid | int) -> Shapes:
    """Turn features into polygons on a pixel grid (a number is the zoom of a global one), lowest first.

    Order: draw order (bridges last), then layer, then size (big areas under small ones), then type and id of the OSM
    object, so that equals are settled the same way in every tiling. Line widths are metres on the ground at the
    feature's own latitude (the middle of its box).
    """
    type_ids = shapely.get_type_id(table.geometry)
    is_area = np.isin(type_ids, (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON))
    is_way = table.osm_type == "w"
    is_closed_way = is_way & (
        is_area | ((type_ids == shapely.GeometryType.LINESTRING) & shapely.is_closed(table.geometry))
    )

    # Few tag sets are distinct, so rules are evaluated once for each and role, not once a feature.
    roles = table.tag_index.astype(np.int64) * 4 + is_area * 2 + is_closed_way
    distinct, role_index = np.unique(roles, return_inverse=True)
    painted = [
        paints(table.tag_sets[role // 4], scheme, is_area=bool(role & 2), is_closed_way=bool(role & 1))
        for role in distinct
    ]
    paint_count = np.array([len(each) for each in painted], dtype=np.int64)
    paint_start = np.concatenate([[0], np.cumsum(paint_count)])
    all_paints = np.array([paint for each in painted for paint in each], dtype=np.float64).reshape(-1, 4)

    repeats = paint_count[role_index]
    feature = np.repeat(np.arange(len(table.geometry)), repeats)
    within = np.arange(len(feature)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    class_id, draw_order, layer, width_m = all_paints[np.repeat(paint_start[role_index], repeats) + within].T

    to = grid.MercatorPixels(pixels) if isinstance(pixels, int) else pixels
    on_earth = over_the_antimeridian(table.geometry[feature])
    geometry = shapely.transform(on_earth, lambda lonlat: _project(lonlat, to))
    lines = width_m > 0
    geometry[lines] = _buffer(on_earth[lines], geometry[lines], width_m[lines], to)
    area_px = np.where(lines, 0.0, shapely.area(geometry))

    order = np.lexsort((table.osm_id[feature], table.osm_type[feature], -area_px, layer, draw_order))
    return Shapes(geometry[order], class_id[order].astype(np.uint8))


def over_the_antimeridian(geometry: NDArray[np.object_]) -> NDArray[np.object_]:
    """Geometries of which those that cross the antimeridian stand on both sides of the map.

    A way from 179.9 to -179.9 degrees is short: taken at its numbers, it would run around the world. It becomes two
    copies, the one beyond 180 degrees, the other beyond -180. What is wide either way stays as it is.
    """
    west, _, east, _ = shapely.bounds(geometry).T
    wide = np.flatnonzero(east - west > 180.0)
    if not len(wide):
        return geometry
    geometry = geometry.copy()
    for row in wide:
        eastern = shapely.transform(geometry[row], lambda lonlat: lonlat + (lonlat[:, :1] < 0) * (360.0, 0.0))
        if np.ptp(shapely.bounds(eastern)[[0, 2]]) < 180.0:
            western = shapely.transform(eastern, lambda lonlat: lonlat - (360.0, 0.0))
            parts = [*shapely.get_parts(eastern), *shapely.get_parts(western)]
            is_area = shapely.get_dimensions(eastern) == 2
            geometry[row] = shapely.multipolygons(parts) if is_area else shapely.multilinestrings(parts)
    return geometry


def _project(lonlat: NDArray[np.float64], pixels: PixelGrid) -> NDArray[np.float64]:
    return np.column_stack(pixels.lonlat_to_px(lonlat[:, 0], lonlat[:, 1]))


def _buffer(
    lonlat_lines: NDArray[np.object_], px_lines: NDArray[np.object_], width_m: NDArray[np.float64], pixels: PixelGrid
) -> NDArray[np.object_]:
    bounds = shapely.bounds(lonlat_lines)
    half_width_px = width_m / 2 / pixels.metres_per_px((bounds[:, 1] + bounds[:, 3]) / 2)
    buffered: NDArray[np.object_] = shapely.buffer(px_lines, half_width_px, quad_segs=BUFFER_QUARTER_SEGMENTS)
    return buffered
