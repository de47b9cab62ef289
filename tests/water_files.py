"""Water polygons for tests, as osmdata packs them: split into overlapping pieces, a shapefile in a zip."""

from __future__ import annotations

import itertools
import zipfile
from typing import TYPE_CHECKING

import geopandas
import numpy as np
import shapely

from magc_data.coast import is_sea, sea_in_box

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from shapely.geometry.base import BaseGeometry

    from magc_data.grid import BoundsLonLat

OVERLAP_DEGREES = 5e-5


def sea_polygons(lines: Iterable[np.ndarray], bounds: BoundsLonLat) -> BaseGeometry:
    """The sea of a box as valid polygons cut at its edges."""
    lines = list(lines)
    sea = sea_in_box(lines, bounds)
    assert sea is not None
    box = shapely.box(*bounds)
    inside = shapely.intersection(shapely.MultiLineString(lines), box)
    faces = shapely.get_parts(shapely.polygonize(shapely.get_parts(shapely.union_all([inside, box.exterior]))))
    places = shapely.get_coordinates(shapely.point_on_surface(faces))
    return shapely.union_all([face for face, place in zip(faces, places, strict=True) if is_sea(sea, *place)])


def write_water_polygons(path: Path, water: BaseGeometry, *, epsg: int = 4326, pieces: int = 4) -> Path:
    """Write `water-polygons-split-EPSG.zip`."""
    west, south, east, north = water.bounds
    xs, ys = np.linspace(west, east, pieces + 1), np.linspace(south, north, pieces + 1)
    cells = [
        shapely.box(x0 - OVERLAP_DEGREES, y0 - OVERLAP_DEGREES, x1 + OVERLAP_DEGREES, y1 + OVERLAP_DEGREES)
        for x0, x1 in itertools.pairwise(xs)
        for y0, y1 in itertools.pairwise(ys)
    ]
    parts = shapely.get_parts(shapely.intersection(water, cells))
    polygons = [part for part in parts if part.geom_type == "Polygon" and part.area]
    folder = path.parent / path.stem
    folder.mkdir(parents=True)
    frame = geopandas.GeoDataFrame({"x": range(len(polygons))}, geometry=polygons, crs=4326).to_crs(epsg)
    frame.to_file(folder / "water_polygons.shp")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for each in sorted(folder.iterdir()):
            entry = zipfile.ZipInfo(f"{path.stem}/{each.name}", (2024, 5, 1, 3, 4, 6))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, each.read_bytes())
    return path
