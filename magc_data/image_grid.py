"""Where the pixels of a georeferenced image lie: any CRS, any affine transform, to and from lon/lat.

Frames besides those of `grid.py`: an image's own pixels (column to the right, row down, from the upper left pixel's
outer corner), and its CRS, x (east) before y (north) whatever the CRS itself says.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyproj

from magc_data.errors import UsageError
from magc_data.grid import (
    HALF_CIRCUMFERENCE_M,
    MAX_LATITUDE,
    BoundsLonLat,
    Coefficients,
    edge_points,
    gsd_m,
    px_to_lonlat,
    widened,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from magc_data.rasterize import PixelWindow

Points = tuple["NDArray[np.float64]", "NDArray[np.float64]"]

SHAPES_ZOOM = 17
"""Zoom on whose grid shapes are made before they are moved onto the image. It scales numbers, not shapes."""

LONGEST_EDGE_M = 1000.0
"""Web-mercator metres. An edge is straight in web-mercator, and a straight line of the image is drawn in its place. The
two part by some L^2 tan(latitude) / 8R for L metres on the ground: 1 cm at most for this length, anywhere, but metres
for 10 km. Longer edges, which are few, are cut into pieces no longer than this; all others stay as they are."""

ALIGNED_PX = 1e-3
"""An image is on the grid of a zoom level if none of its pixels is further off it than this."""

_WGS84 = "OGC:CRS84"
_WEB_MERCATOR = "EPSG:3857"
_EDGE_DEGREES = 1e-6
"""An edge of the world may be passed by so much: by rounding, not by ground."""

_FINEST_ZOOM = 30
"""Finer images (0.15 mm a pixel) are on no grid."""

_LONGEST_SHOWN = 60
"""Characters of a coordinate system in a message."""


class ImageGrid(NamedTuple):
    """Where an image's pixels lie."""

    crs: str
    """WKT, or any other text that `pyproj.CRS` takes (`EPSG:28992`, a PROJ string); empty where the image has none.
    Heights are ignored."""
    transform: Coefficients
    """a, b, c, d, e, f: column and row (0, 0 is the upper left pixel's outer corner) are at a x column + b x row + c,
    d x column + e x row + f in the CRS, east before north. `dataset.transform[:6]` of rasterio."""
    width_px: int
    height_px: int


def window_bounds_lonlat(grid: ImageGrid, window: PixelWindow, margin_m: float) -> BoundsLonLat:
    """The lon/lat box of a window of an image, widened by `margin_m` metres on the ground, cut at 180 degrees.

    The window's edges are followed at `EDGE_SAMPLES` points each. Between two points s metres apart an edge may reach
    s^2 tan(latitude) / 8R further: under 2 cm for windows of 8 km.

    Raises:
        UsageError: the grid is not placed on Earth; or the window reaches over 180 degrees of longitude, over a pole,
            or beyond the latitudes of web-mercator (85.05).
    """
    lon, lat = outline_lonlat(place(grid), window)
    return widened(BoundsLonLat(*(float(each) for each in (lon.min(), lat.min(), lon.max(), lat.max()))), margin_m)


class Placement(NamedTuple):
    """A checked grid, and where its pixels are.

    Shapes are burnt in its frame: image pixels, or, for an image on the grid of a zoom level, that zoom's global pixel
    grid, where rounding is the same as for tiles.
    """

    grid: ImageGrid
    to_crs: pyproj.Transformer | None
    """From lon/lat; None for web-mercator itself."""
    zoom: int
    """Of the mercator grid on which shapes are made."""
    origin_px: tuple[int, int] | None
    """The image's upper left pixel on that grid, where the image is on it."""

    @property
    def longest_edge_px(self) -> float:
        """Length of edge on the mercator grid up to which straight lines stay straight in the image."""
        return math.inf if self.to_crs is None else LONGEST_EDGE_M / gsd_m(0.0, self.zoom)

    def in_frame(self, window: PixelWindow) -> PixelWindow:
        """A window of the image in the frame."""
        x_px, y_px = self.origin_px or (0, 0)
        return window._replace(x_px=window.x_px + x_px, y_px=window.y_px + y_px)

    def to_lonlat(self, x_px: NDArray[np.float64], y_px: NDArray[np.float64]) -> Points:
        """Image pixels to degrees; infinite where the CRS has no place."""
        a, b, c, d, e, f = self.grid.transform
        x, y = a * x_px + b * y_px + c, d * x_px + e * y_px + f
        if self.to_crs is None:
            pixel_m = gsd_m(0.0, self.zoom)
            return px_to_lonlat((x + HALF_CIRCUMFERENCE_M) / pixel_m, (HALF_CIRCUMFERENCE_M - y) / pixel_m, self.zoom)
        lon, lat = self.to_crs.transform(x, y, direction="INVERSE")
        return np.asarray(lon), np.asarray(lat)

    def from_mercator(self, coords: NDArray[np.float64]) -> NDArray[np.float64]:
        """Pixels of the mercator grid to the frame, shape [n, 2]; infinite where the CRS has no place."""
        if self.origin_px is not None:
            return coords
        if self.to_crs is None:
            pixel_m = gsd_m(0.0, self.zoom)
            x, y = coords[:, 0] * pixel_m - HALF_CIRCUMFERENCE_M, HALF_CIRCUMFERENCE_M - coords[:, 1] * pixel_m
        else:
            x, y = self.to_crs.transform(*px_to_lonlat(coords[:, 0], coords[:, 1], self.zoom))
        a, b, c, d, e, f = self.grid.transform
        # The offset goes first: after it, numbers are small and nothing cancels.
        x, y = x - c, y - f
        with np.errstate(invalid="ignore"):
            return np.column_stack([e * x - b * y, a * y - d * x]) / (a * e - b * d)


def place(grid: ImageGrid) -> Placement:
    """Check a grid.

    Raises:
        UsageError: it has no size, no coordinate system, none that is known on Earth, or no transform.
    """
    a, b, _, d, e, _ = grid.transform
    if grid.width_px < 1 or grid.height_px < 1:
        raise UsageError(f"the image has {grid.width_px} x {grid.height_px} pixels: expected at least one")
    to_crs = _from_lonlat(grid.crs)
    if tuple(grid.transform) == (1, 0, 0, 0, 1, 0) or not a * e - b * d or not np.isfinite(grid.transform).all():
        found = ", ".join(f"{each:g}" for each in grid.transform)
        raise UsageError(
            f"the image has a coordinate system but no usable geotransform ({found}): georeference it (gdalwarp) first"
        )
    if to_crs is None and (zoom_and_origin := _zoom_and_origin(grid)):
        return Placement(grid, None, *zoom_and_origin)
    return Placement(grid, to_crs, SHAPES_ZOOM, None)


@functools.lru_cache(maxsize=8)
def _from_lonlat(crs_text: str) -> pyproj.Transformer | None:
    """From lon/lat to a CRS, x before y whatever the CRS says; None for web-mercator."""
    way_out = "set the right one with gdal_edit.py -a_srs EPSG:CODE"
    if not crs_text.strip():
        raise UsageError(f"the image has no coordinate system, so its place on Earth is unknown: {way_out}")
    try:
        crs = pyproj.CRS.from_user_input(crs_text)
    except pyproj.exceptions.CRSError:
        shown = crs_text if len(crs_text) <= _LONGEST_SHOWN else crs_text[:_LONGEST_SHOWN] + "..."
        raise UsageError(f"the image's coordinate system '{shown}' is none that PROJ knows: {way_out}") from None
    if not (crs.is_projected or crs.is_geographic):
        raise UsageError(
            f"the image's coordinate system '{crs.name}' is a {crs.type_name}, expected a projected or geographic one, "
            f"whose relation to longitude and latitude is known: {way_out}"
        )
    flat = crs.to_2d()
    if flat.equals(pyproj.CRS.from_user_input(_WEB_MERCATOR), ignore_axis_order=True):
        return None
    try:
        return pyproj.Transformer.from_crs(_WGS84, flat, always_xy=True, allow_ballpark=False)
    except pyproj.exceptions.ProjError:
        raise UsageError(
            f"the datum of the image's coordinate system '{crs.name}' has no known relation to WGS 84, so the map "
            f"could be off by hundreds of metres: {way_out}"
        ) from None


def _zoom_and_origin(grid: ImageGrid) -> tuple[int, tuple[int, int]] | None:
    """Zoom level, and upper left pixel on its grid, of an image in EPSG:3857; None if it is on no such grid."""
    a, b, c, d, e, f = grid.transform
    if a <= 0 or e >= 0 or b or d:
        return None
    zoom = min(max(round(math.log2(gsd_m(0.0, 0) / a)), 0), _FINEST_ZOOM)
    pixel_m = gsd_m(0.0, zoom)
    left_px, top_px = (c + HALF_CIRCUMFERENCE_M) / pixel_m, (HALF_CIRCUMFERENCE_M - f) / pixel_m
    right_px, bottom_px = left_px + grid.width_px * a / pixel_m, top_px - grid.height_px * e / pixel_m
    x_px, y_px = round(left_px), round(top_px)
    off_px = (left_px - x_px, top_px - y_px, right_px - x_px - grid.width_px, bottom_px - y_px - grid.height_px)
    return (zoom, (x_px, y_px)) if max(map(abs, off_px)) <= ALIGNED_PX else None


def outline_lonlat(placement: Placement, window: PixelWindow) -> Points:
    """Longitudes and latitudes along a window's edges.

    Raises:
        UsageError: it is no part of Earth that can have a map; see `window_bounds_lonlat`.
    """
    lon, lat = placement.to_lonlat(
        *edge_points(window.x_px, window.y_px, window.x_px + window.width_px, window.y_px + window.height_px)
    )
    if not (np.isfinite(lon).all() and np.isfinite(lat).all()):
        raise off_earth()
    steps = np.diff(lon, append=lon[:1])
    # Around a pole the longitudes of an outline go once around the world.
    if np.abs(lat).max() > MAX_LATITUDE + _EDGE_DEGREES or abs(np.sum((steps + 180) % 360 - 180)) > 180:
        raise UsageError(
            f"the image reaches to {np.abs(lat).max():.4f} degrees of latitude or over a pole, and maps are made up to "
            f"{MAX_LATITUDE:.4f}, where web-mercator ends: cut the image there (gdal_translate -projwin)"
        )
    if np.abs(lon).max() > 180 + _EDGE_DEGREES or np.abs(steps).max() > 180:
        raise UsageError(
            "the image reaches over 180 degrees of longitude, where OpenStreetMap ends in the east and begins in the "
            "west: cut the image there (gdal_translate -projwin) and map both parts"
        )
    return np.clip(lon, -180.0, 180.0), np.clip(lat, -MAX_LATITUDE, MAX_LATITUDE)


def off_earth() -> UsageError:
    """For pixels that their coordinate system has no place for."""
    return UsageError(
        "the image reaches outside the area that its coordinate system covers: check its georeferencing, or cut it to "
        "where it shows the Earth"
    )
