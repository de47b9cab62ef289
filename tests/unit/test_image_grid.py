"""Where pixels lie, and grids that have no place or no map."""

from __future__ import annotations

import numpy as np
import pyproj
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from magc_data.errors import UsageError
from magc_data.grid import HALF_CIRCUMFERENCE_M, MAX_LATITUDE, gsd_m, lonlat_to_px
from magc_data.image_grid import ImageGrid, place, window_bounds_lonlat
from magc_data.rasterize import PixelWindow

UTM = ImageGrid("EPSG:32632", (0.5, 0.0, 540_000.0, 0.0, -0.5, 5_220_000.0), 1000, 800)
LOCAL = 'LOCAL_CS["site grid",UNIT["metre",1]]'
ENGINEERING = (
    'ENGCRS["site grid",EDATUM["a stone"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],LENGTHUNIT["metre",1]]'
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crs": ""}, "the image has no coordinate system, so its place on Earth is unknown: set the right one"),
        ({"crs": "EPSG:999999"}, "coordinate system 'EPSG:999999' is none that PROJ knows"),
        ({"crs": "x" * 100}, f"'{'x' * 60}...' is none that PROJ knows"),
        ({"crs": LOCAL}, "'site grid' is a Engineering CRS, expected a projected or geographic one"),
        ({"crs": ENGINEERING}, "'site grid' is a Engineering CRS, expected a projected or geographic one"),
        ({"crs": "EPSG:4978"}, "is a Geocentric CRS, expected a projected or geographic one"),
        ({"crs": "EPSG:5714"}, "is a Vertical CRS, expected a projected or geographic one"),
        ({"crs": "+proj=utm +zone=30 +ellps=intl"}, "datum of the image's .* no known relation to WGS 84"),
        (
            {"transform": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)},
            r"no usable geotransform \(1, 0, 0, 0, 1, 0\): georeference it",
        ),
        ({"transform": (1.0, 2.0, 0.0, 2.0, 4.0, 0.0)}, "no usable geotransform"),
        ({"transform": (0.5, 0.0, float("nan"), 0.0, -0.5, 0.0)}, "no usable geotransform"),
        ({"width_px": 0}, "the image has 0 x 800 pixels: expected at least one"),
        ({"crs": "EPSG:4326"}, "reaches to 5220000.0000 degrees of latitude"),
        ({"transform": (1e5, 0.0, -5e7, 0.0, -1e5, 5e7)}, "outside the area that its coordinate system covers"),
    ],
)
def test_grids_without_a_place_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        window_bounds_lonlat(UTM._replace(**changes), PixelWindow(0, 0, 1000, 800), 0)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("crs", "transform", "size", "message"),
    [
        # A pole inside, its neighbourhood, and the last pixel rows of the mercator world.
        ("EPSG:3413", (1000.0, 0.0, -5e5, 0.0, -1000.0, 5e5), 1000, "90.0000|over a pole"),
        ("EPSG:3413", (10_000.0, 0.0, -5e6, 0.0, -10_000.0, 5e6), 1000, "over a pole"),
        ("EPSG:3031", (1000.0, 0.0, 2e5, 0.0, -1000.0, 4e5), 100, "where web-mercator ends"),
        ("EPSG:4326", (0.01, 0.0, 10.0, 0.0, -0.01, 85.5), 100, "reaches to 85.5000 degrees of latitude"),
        ("EPSG:4326", (0.01, 0.0, 10.0, 0.0, -0.01, -84.5), 100, "reaches to 85.5000 degrees of latitude"),
        # Over the antimeridian: UTM 60 and 1 as files have them, Fiji, longitudes that go on beyond 180.
        ("EPSG:32760", (10.0, 0.0, 7e5, 0.0, -10.0, 8.2e6), 20_000, "reaches over 180 degrees of longitude"),
        ("EPSG:32601", (10.0, 0.0, 2e5, 0.0, -10.0, 7e6), 20_000, "reaches over 180 degrees of longitude"),
        ("EPSG:3460", (10.0, 0.0, 1.9e6, 0.0, -10.0, 4e6), 40_000, "reaches over 180 degrees of longitude"),
        ("EPSG:4326", (0.01, 0.0, 179.5, 0.0, -0.01, -17.0), 100, "reaches over 180 degrees of longitude"),
        ("EPSG:4326", (0.01, 0.0, 190.0, 0.0, -0.01, -17.0), 100, "reaches over 180 degrees of longitude"),
        ("EPSG:3857", (100.0, 0.0, HALF_CIRCUMFERENCE_M - 5e3, 0.0, -100.0, 0.0), 100, "reaches over 180 degrees"),
        ("EPSG:3832", (100.0, 0.0, 3.3e6, 0.0, -100.0, 0.0), 1000, "reaches over 180 degrees of longitude"),
    ],
)
def test_places_without_a_map_are_refused(crs: str, transform: tuple, size: int, message: str) -> None:
    grid = ImageGrid(crs, transform, size, size)
    with pytest.raises(UsageError, match=message):
        window_bounds_lonlat(grid, PixelWindow(0, 0, size, size), 0)


@pytest.mark.parametrize(
    ("crs", "transform", "east"),
    [
        ("EPSG:4326", (0.01, 0.0, 179.0, 0.0, -0.01, -17.0), 180.0),
        ("EPSG:3857", (1000.0, 0.0, HALF_CIRCUMFERENCE_M - 1e5, 0.0, -1000.0, 0.0), 180.0),
        ("EPSG:3832", (100.0, 0.0, 3.6e6, 0.0, -100.0, 0.0), -177.5700),  # beyond it altogether
    ],
)
def test_places_up_to_180_degrees_have_a_map(crs: str, transform: tuple, east: float) -> None:
    bounds = window_bounds_lonlat(ImageGrid(crs, transform, 100, 100), PixelWindow(0, 0, 100, 100), 500.0)
    assert bounds.east == pytest.approx(east, abs=0.01)
    assert bounds.west < bounds.east


def test_all_of_the_web_mercator_world_has_a_place() -> None:
    grid = ImageGrid(
        "EPSG:3857", (gsd_m(0, 1), 0.0, -HALF_CIRCUMFERENCE_M, 0.0, -gsd_m(0, 1), HALF_CIRCUMFERENCE_M), 512, 512
    )
    assert window_bounds_lonlat(grid, PixelWindow(0, 0, 512, 512), 0) == pytest.approx(
        (-180, -MAX_LATITUDE, 180, MAX_LATITUDE)
    )
    assert place(grid).origin_px == (0, 0)
    assert place(grid).zoom == 1


@settings(deadline=None)  # a CRS is looked up in a database
@given(
    st.sampled_from(["EPSG:32632", "EPSG:2056", "EPSG:4326", "EPSG:3035", "EPSG:3857"]),
    st.floats(0, 360),
    st.tuples(*[st.floats(0.01, 0.99)] * 4),
)
def test_the_bounds_hold_every_pixel_of_the_window(crs: str, degrees: float, shares: tuple) -> None:
    to_crs = pyproj.Transformer.from_crs("OGC:CRS84", crs, always_xy=True)
    x, y = to_crs.transform(9.5, 47.1)
    pixel = 1e-4 if crs == "EPSG:4326" else 10.0
    cos, sin = np.cos(np.radians(degrees)) * pixel, np.sin(np.radians(degrees)) * pixel
    grid = ImageGrid(crs, (cos, sin, x, sin, -cos, y), 1000, 1000)
    window = PixelWindow(*(int(share * 500) for share in shares[:2]), *(int(share * 500) + 1 for share in shares[2:]))
    columns = window.x_px + np.linspace(0, window.width_px, 7)
    rows = window.y_px + np.linspace(0, window.height_px, 7)
    xs = cos * columns[:, None] + sin * rows + x
    ys = sin * columns[:, None] - cos * rows + y
    lon, lat = to_crs.transform(xs, ys, direction="INVERSE")
    bounds = window_bounds_lonlat(grid, window, 1.0)
    assert bounds.west < lon.min()
    assert lon.max() < bounds.east
    assert bounds.south < lat.min()
    assert lat.max() < bounds.north
    # And no more than the margin and what edges bulge.
    assert (bounds.north - lat.max()) * 111_000 < 3


def test_margins_are_metres_on_the_ground() -> None:
    grid = ImageGrid("EPSG:4326", (1e-5, 0.0, 25.0, 0.0, -1e-5, 60.0), 100, 100)
    bounds = window_bounds_lonlat(grid, PixelWindow(0, 0, 100, 100), 100.0)
    geod = pyproj.Geod(ellps="WGS84")
    assert geod.inv(bounds.west, 60.0, 25.0, 60.0)[2] == pytest.approx(100.0, rel=0.01)
    assert geod.inv(25.0, 60.0, 25.0, bounds.north)[2] == pytest.approx(100.0, rel=0.01)


@settings(deadline=None)
@given(st.sampled_from(["EPSG:32632", "EPSG:2056", "EPSG:4326", "EPSG:3857", "EPSG:27700"]), st.floats(0, 360))
def test_mercator_pixels_come_back_from_lonlat(crs: str, degrees: float) -> None:
    to_crs = pyproj.Transformer.from_crs("OGC:CRS84", crs, always_xy=True)
    x, y = to_crs.transform(*((-1.5, 52.4) if crs == "EPSG:27700" else (9.5, 47.1)))
    pixel = 1e-5 if crs == "EPSG:4326" else 1.0
    cos, sin = np.cos(np.radians(degrees)) * pixel, np.sin(np.radians(degrees)) * pixel
    placement = place(ImageGrid(crs, (cos, sin, x, sin, -cos, y), 1000, 1000))
    points = np.array([[0.5, 0.5], [999.5, 0.5], [20.0, 700.0]])
    lon, lat = placement.to_lonlat(points[:, 0], points[:, 1])
    found = placement.from_mercator(np.column_stack(lonlat_to_px(lon, lat, placement.zoom)))
    # Some datum shifts are inverted by iteration, to a millimetre or two.
    np.testing.assert_allclose(found, points, rtol=0, atol=5e-3)


@pytest.mark.parametrize("zoom", [0, 14, 17, 23])
@pytest.mark.parametrize("words", ["EPSG:3857", "WKT1_GDAL", "WKT1_ESRI", "WKT2_2019", "ESRI:102100"])
def test_images_on_the_grid_of_a_zoom_level_are_recognised(zoom: int, words: str) -> None:
    crs = rasterio.crs.CRS.from_epsg(3857).to_wkt(version=words) if words.startswith("WKT") else words
    pixel_m = gsd_m(0.0, zoom)
    x_px, y_px = round(0.53 * 256 * 2**zoom), round(0.35 * 256 * 2**zoom)
    left, top = x_px * pixel_m - HALF_CIRCUMFERENCE_M, HALF_CIRCUMFERENCE_M - y_px * pixel_m
    grid = ImageGrid(crs, (pixel_m, 0.0, left, 0.0, -pixel_m, top), 100, 80)
    placement = place(grid)
    assert (placement.zoom, placement.origin_px, placement.to_crs) == (zoom, (x_px, y_px), None)
    assert placement.in_frame(PixelWindow(1, 2, 3, 4)) == PixelWindow(x_px + 1, y_px + 2, 3, 4)
    for other in (
        (pixel_m, 0.0, left + 0.01 * pixel_m, 0.0, -pixel_m, top),
        (pixel_m * 1.001, 0.0, left, 0.0, -pixel_m, top),
        (pixel_m, 0.0, left, 0.0, -1.001 * pixel_m, top),
        (pixel_m, 0.0, left, 0.0, pixel_m, top),
        (pixel_m, 1e-3 * pixel_m, left, 0.0, -pixel_m, top),
    ):
        assert place(grid._replace(transform=other)).origin_px is None


def test_heights_are_ignored() -> None:
    flat = ImageGrid("EPSG:28992", (0.5, 0.0, 127_000.0, 0.0, -0.5, 428_000.0), 100, 100)
    compound = flat._replace(crs="EPSG:7415")
    window = PixelWindow(0, 0, 100, 100)
    assert window_bounds_lonlat(compound, window, 0) == pytest.approx(window_bounds_lonlat(flat, window, 0), abs=1e-9)
