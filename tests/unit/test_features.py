"""From tags and geometry to shapes in draw order: widths in metres, what lies on top, what cannot be seen."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Geod

from magc_data import grid
from magc_data.features import line_width_m, parse_length_m, shapes_in_draw_order
from magc_data.rasterize import PixelWindow, burn_window, ring_table
from magc_data.schema.classes import LineWidth, load_scheme, parse_scheme
from magc_data.sources.protocols import FeatureTable

DEFAULT = load_scheme("default")
ID = {each.name: each.id for each in DEFAULT.classes}
ZOOM = 17


def table(*features: tuple[shapely.Geometry, dict[str, str]], osm_type: str = "w") -> FeatureTable:
    geometry = np.empty(len(features), dtype=object)
    geometry[:] = [each[0] for each in features]
    count = len(features)
    return FeatureTable(
        geometry=geometry,
        tag_index=np.arange(count, dtype=np.int32),
        tag_sets=tuple(each[1] for each in features),
        osm_type=np.full(count, osm_type, dtype="U1"),
        osm_id=np.arange(count, dtype=np.int64),
        timestamp=None,
    )


def class_at(lon: float, lat: float, *features: tuple[shapely.Geometry, dict[str, str]], osm_type: str = "w") -> str:
    """The class of the pixel at a place, burnt the way the build burns it."""
    shapes = shapes_in_draw_order(table(*features, osm_type=osm_type), DEFAULT, ZOOM)
    x_px, y_px = (int(each[0]) for each in grid.lonlat_to_px(np.array([lon]), np.array([lat]), ZOOM))
    pixel = burn_window(ring_table(shapes.polygons), shapes.class_ids, PixelWindow(x_px, y_px, 1, 1))[0, 0]
    return next(name for name, class_id in ID.items() if class_id == pixel)


@pytest.mark.parametrize(
    ("text", "metres"),
    [
        ("7", 7.0), ("7.5 m", 7.5), ("7m", 7.0), ("0.6 mi", 965.6064), ("16'3\"", 4.953), ("16'", 4.8768), ("12 ft", 3.6576),
        ("250 cm", 2.5), ("0.01 km", 10.0), (" 4 ", 4.0),
        ("3,5", None), ("narrow", None), ("", None), ("0", None), ("-3", None), ("3;4", None), ("1e3", None), (None, None),
    ],
)  # fmt: skip
def test_lengths_of_osm(text: str | None, metres: float | None) -> None:
    assert parse_length_m(text) == (pytest.approx(metres) if metres else None)


@given(st.text(max_size=20))
def test_no_text_breaks_the_length(text: str) -> None:
    length_m = parse_length_m(text)
    assert length_m is None or length_m > 0


ROAD = LineWidth(
    default_m=None,
    lane_width_m=3.5,
    lanes_per_direction=1,
    oneway_lanes=1,
    shoulder_m=0.0,
    implied_oneway=False,
    max_m=60,
)
CARRIAGEWAY = ROAD._replace(oneway_lanes=2)
MOTORWAY = ROAD._replace(lane_width_m=3.75, lanes_per_direction=2, oneway_lanes=2, shoulder_m=3.75, implied_oneway=True)
STREAM = ROAD._replace(default_m=2.0, lane_width_m=None, max_m=30)


@pytest.mark.parametrize(
    ("tags", "rule", "width_m"),
    [
        ({"width:carriageway": "9", "width": "12", "est_width": "3", "lanes": "2"}, ROAD, 9.0),
        ({"width": "12", "est_width": "3", "lanes": "2"}, ROAD, 12.0),
        ({"width": "wide", "est_width": "3", "lanes": "2"}, ROAD, 3.0),
        ({"lanes": "3"}, ROAD, 10.5),
        ({"lanes": "2; 3"}, ROAD, 7.0),
        ({}, ROAD, 7.0),
        ({"oneway": "yes"}, ROAD, 3.5),
        ({"oneway": "-1"}, ROAD, 3.5),
        ({"oneway": "true"}, ROAD, 3.5),
        ({"oneway": "1"}, ROAD, 3.5),
        ({"oneway": "reversible"}, ROAD, 7.0),
        ({"oneway": "no", "junction": "roundabout"}, ROAD, 7.0),
        ({"oneway": "yes"}, CARRIAGEWAY, 7.0),
        ({}, CARRIAGEWAY, 7.0),
        ({"lanes": "30"}, ROAD, 60.0),
        ({"lanes": "0"}, ROAD, 7.0),
        ({}, MOTORWAY._replace(max_m=10.0), 10.0),
        ({"junction": "roundabout"}, ROAD, 3.5),
        ({"width": "900"}, ROAD, 60.0),
        ({}, MOTORWAY, 11.25),
        ({"oneway": "no"}, MOTORWAY, 18.75),
        ({"lanes": "3"}, MOTORWAY, 15.0),
        ({"lanes": "3"}, STREAM, 2.0),
        ({"width": "5"}, STREAM, 5.0),
        ({}, STREAM._replace(max_m=1.5), 1.5),
    ],
)
def test_width_precedence(tags: dict[str, str], rule: LineWidth, width_m: float) -> None:
    assert line_width_m(tags, rule) == pytest.approx(width_m)


@pytest.mark.parametrize("latitude", [0.0, 27.6, 51.5, 60.0, -70.0])
@pytest.mark.parametrize("direction", ["east", "north"])
def test_a_road_is_as_wide_on_the_ground_wherever_it_lies(latitude: float, direction: str) -> None:
    """A peer buffers in degrees, which halves north-south roads at 60 N: the width is measured here by geodesics."""
    lon, step = 10.0, 0.001
    ends = (
        [(lon - step, latitude), (lon + step, latitude)]
        if direction == "east"
        else [(lon, latitude - step), (lon, latitude + step)]
    )
    shapes = shapes_in_draw_order(
        table((shapely.LineString(ends), {"highway": "residential", "width": "20"})), DEFAULT, ZOOM
    )
    centre_x, centre_y = (each[0] for each in grid.lonlat_to_px(np.array([lon]), np.array([latitude]), ZOOM))
    across = (
        shapely.LineString([(centre_x, centre_y - 500), (centre_x, centre_y + 500)])
        if direction == "east"
        else shapely.LineString([(centre_x - 500, centre_y), (centre_x + 500, centre_y)])
    )
    inside = shapely.get_coordinates(shapely.intersection(shapes.polygons[0], across))
    lons, lats = grid.px_to_lonlat(inside[:, 0], inside[:, 1], ZOOM)
    sphere = Geod(a=grid.EARTH_RADIUS_M, b=grid.EARTH_RADIUS_M)
    assert sphere.inv(lons[0], lats[0], lons[1], lats[1])[2] == pytest.approx(20.0, rel=1e-3)


def test_a_long_road_is_as_wide_as_at_its_middle() -> None:
    """Two degrees of latitude: 3 % of difference between its middle and either end."""
    road = shapely.LineString([(10.0, 59.0), (10.0, 61.0)])
    shapes = shapes_in_draw_order(table((road, {"highway": "residential", "width": "20"})), DEFAULT, ZOOM)
    west, _, east, _ = shapes.polygons[0].bounds
    assert east - west == pytest.approx(20.0 / grid.gsd_m(60.0, ZOOM), rel=1e-4)


BIG = shapely.box(10.000, 50.000, 10.004, 50.004)
SMALL = shapely.box(10.001, 50.001, 10.003, 50.003)
ROAD_LINE = shapely.LineString([(9.99, 50.002), (10.01, 50.002)])
CROSSING = shapely.LineString([(10.002, 49.99), (10.002, 50.01)])


def test_small_areas_lie_on_big_ones_in_either_order() -> None:
    park, wood = (SMALL, {"leisure": "park"}), (BIG, {"natural": "wood"})
    for features in ((park, wood), (wood, park)):
        assert class_at(10.002, 50.002, *features) == "grass"
        assert class_at(10.0005, 50.0005, *features) == "forest"


def test_the_layer_of_land_means_nothing() -> None:
    """Only what passes over something has a layer; a wood tagged layer=5 still lies under the park inside it."""
    park, wood = (SMALL, {"leisure": "park"}), (BIG, {"natural": "wood", "layer": "5"})
    for features in ((park, wood), (wood, park)):
        assert class_at(10.002, 50.002, *features) == "grass"


def test_the_layer_of_a_bridge_that_is_an_area_counts() -> None:
    low = (BIG, {"highway": "pedestrian", "area": "yes", "bridge": "yes", "layer": "2"})
    high = (SMALL, {"highway": "pedestrian", "area": "yes", "bridge": "yes", "layer": "1"})
    for features in ((low, high), (high, low)):
        shapes = shapes_in_draw_order(table(*features), DEFAULT, ZOOM)
        areas = shapely.area(shapes.polygons)
        assert areas[0] < areas[1]  # by size alone the small one would be on top


@pytest.mark.parametrize(
    ("below", "above", "name"),
    [
        ((BIG, {"landuse": "residential"}), (SMALL, {"natural": "water"}), "water"),
        ((SMALL, {"natural": "wood"}), (BIG, {"natural": "water"}), "water"),
        ((BIG, {"natural": "water"}), (BIG, {"building": "yes"}), "building"),
        ((BIG, {"building": "yes"}), (ROAD_LINE, {"highway": "residential"}), "road_minor"),
        ((ROAD_LINE, {"highway": "footway"}), (CROSSING, {"highway": "residential"}), "road_minor"),
        ((ROAD_LINE, {"highway": "residential"}), (CROSSING, {"highway": "primary"}), "road_major"),
        ((CROSSING, {"highway": "motorway"}), (ROAD_LINE, {"highway": "footway", "bridge": "yes"}), "path"),
        ((CROSSING, {"highway": "primary", "bridge": "yes"}), (ROAD_LINE, {"railway": "rail", "bridge": "viaduct", "layer": "2"}), "road_major"),
        ((CROSSING, {"highway": "primary", "bridge": "no"}), (ROAD_LINE, {"waterway": "river", "bridge": "aqueduct"}), "water"),
    ],
)  # fmt: skip
def test_what_lies_on_top(below: tuple, above: tuple, name: str) -> None:
    for features in ((below, above), (above, below)):
        assert class_at(10.002, 50.002, *features) == name


def test_layers_settle_equals() -> None:
    """Of two bridges of one draw order the higher layer is on top, whatever their order in the file."""
    scheme = load_scheme("default")
    low = (CROSSING, {"highway": "primary", "bridge": "yes", "layer": "1"})
    high = (ROAD_LINE, {"highway": "primary", "bridge": "yes", "layer": "2"})
    for features in ((low, high), (high, low)):
        shapes = shapes_in_draw_order(table(*features), scheme, ZOOM)
        tallest = [polygon.bounds[3] - polygon.bounds[1] for polygon in shapes.polygons]
        assert tallest[0] > tallest[1]  # the north-south one, layer 1, comes first


@pytest.mark.parametrize(
    ("geometry", "tags"),
    [
        (ROAD_LINE, {"highway": "primary", "tunnel": "yes"}),
        (ROAD_LINE, {"highway": "primary", "layer": "-1"}),
        (ROAD_LINE, {"highway": "primary", "covered": "yes"}),
        (ROAD_LINE, {"highway": "construction"}),
        (ROAD_LINE, {"highway": "proposed"}),
        (ROAD_LINE, {"waterway": "stream", "tunnel": "culvert"}),
        (ROAD_LINE, {"waterway": "stream", "intermittent": "yes"}),
        (ROAD_LINE, {"railway": "abandoned"}),
        (BIG, {"building": "no"}),
        (BIG, {"building": "yes", "location": "underground"}),
        (BIG, {"building": "yes", "layer": "-2"}),
        (BIG, {"natural": "bay"}),
        (BIG, {}),
    ],
)  # fmt: skip
def test_what_cannot_be_seen_from_above_is_not_painted(geometry: shapely.Geometry, tags: dict[str, str]) -> None:
    assert class_at(10.002, 50.002, (geometry, tags)) == "background"


@pytest.mark.parametrize(
    "tags",
    [
        {"highway": "primary", "tunnel": "no"},
        {"highway": "primary", "layer": "+1"},
        {"highway": "primary", "layer": "x"},
    ],
)
def test_what_can_be_seen_is(tags: dict[str, str]) -> None:
    assert class_at(10.002, 50.002, (ROAD_LINE, tags)) == "road_major"


def test_a_river_below_ground_level_is_still_seen() -> None:
    """Old data tag rivers layer=-1 to pass under bridges; they are no less visible for it."""
    assert class_at(10.002, 50.002, (ROAD_LINE, {"waterway": "river", "layer": "-1"})) == "water"


def test_a_closed_way_is_an_area_or_a_line_key_by_key() -> None:
    ring = shapely.LinearRing(SMALL.exterior.coords)
    outline, area = shapely.LineString(ring.coords), SMALL
    roundabout = {"highway": "primary", "junction": "roundabout"}
    assert class_at(10.002, 50.002, (outline, roundabout), (area, roundabout)) == "background"
    assert class_at(10.001, 50.002, (outline, roundabout), (area, roundabout)) == "road_major"
    square = {"highway": "pedestrian", "area": "yes"}
    assert class_at(10.002, 50.002, (outline, square), (area, square)) == "path"
    # Were its rim painted as a street as well, it would reach five metres out.
    plaza = square | {"width": "10"}
    assert class_at(10.003 + 4e-5, 50.002, (outline, plaza), (area, plaza)) == "background"
    assert class_at(10.003 - 4e-5, 50.002, (outline, plaza), (area, plaza)) == "path"
    # A park whose rim is a footway: grass inside, path on the rim.
    park = {"leisure": "park", "highway": "footway"}
    assert class_at(10.002, 50.002, (outline, park), (area, park)) == "grass"
    assert class_at(10.001, 50.002, (outline, park), (area, park)) == "path"


CONDITIONS = """
name: conditions
classes: [{id: 0, name: nothing, color: [0, 0, 0]}, {id: 1, name: something, color: [255, 0, 0]}]
rules:
  - class: something
    draw_order: 10
    areas: {building: "*"}
    where: {material: brick, height: ["2", "3"]}
    unless: {ruins: "yes", roof: flat}
"""


@pytest.mark.parametrize(
    ("tags", "painted"),
    [
        ({"material": "brick", "height": "3"}, True),
        ({"material": "brick"}, False),
        ({"height": "3"}, False),
        ({"material": "brick", "height": "4"}, False),
        ({}, False),
        ({"material": "brick", "height": "2", "roof": "flat"}, False),
        ({"material": "brick", "height": "2", "ruins": "yes"}, False),
        ({"material": "brick", "height": "2", "roof": "gabled"}, True),
    ],
)
def test_every_condition_must_hold_and_no_exception(tags: dict[str, str], painted: bool) -> None:
    scheme = parse_scheme(CONDITIONS, "conditions")
    shapes = shapes_in_draw_order(table((BIG, {"building": "yes"} | tags)), scheme, ZOOM)
    assert shapes.class_ids.tolist() == ([1] if painted else [])


def test_geometry_from_a_file_is_taken_at_its_word() -> None:
    assert class_at(10.002, 50.002, (SMALL, {"highway": "pedestrian", "area": "yes"}), osm_type="") == "path"


def test_courtyards_stay_open() -> None:
    ring = shapely.Polygon(BIG.exterior.coords, [SMALL.exterior.coords])
    assert class_at(10.002, 50.002, (ring, {"building": "yes"}), osm_type="r") == "background"
    assert class_at(10.0005, 50.0005, (ring, {"building": "yes"}), osm_type="r") == "building"


def test_nothing_gives_nothing() -> None:
    shapes = shapes_in_draw_order(table(), DEFAULT, ZOOM)
    assert len(shapes.polygons) == len(shapes.class_ids) == 0
    assert not burn_window(ring_table(shapes.polygons), shapes.class_ids, PixelWindow(0, 0, 256, 256)).any()


def test_the_order_does_not_depend_on_the_order_of_rows() -> None:
    rng = np.random.default_rng(0)
    kinds = [
        {"building": "yes"},
        {"natural": "wood"},
        {"highway": "primary"},
        {"highway": "footway", "layer": "1"},
        {"natural": "water"},
    ]
    features = []
    for number in range(60):
        x, y = rng.uniform(10, 10.02), rng.uniform(50, 50.02)
        tags = kinds[number % len(kinds)]
        geometry = (
            shapely.box(x, y, x + 0.002, y + 0.002)
            if "highway" not in tags
            else shapely.LineString([(x, y), (x + 0.004, y + 0.003)])
        )
        features.append((geometry, tags))
    first = table(*features)
    shuffle = rng.permutation(60)
    second = first._replace(
        geometry=first.geometry[shuffle], tag_index=first.tag_index[shuffle], osm_id=first.osm_id[shuffle]
    )
    a, b = (shapes_in_draw_order(each, DEFAULT, ZOOM) for each in (first, second))
    assert a.class_ids.tolist() == b.class_ids.tolist()
    assert shapely.equals_exact(a.polygons, b.polygons).all()
