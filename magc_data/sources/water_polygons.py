"""Water polygons: the sea of the whole world as osmdata.openstreetmap.de makes it of all coastlines, once a day.

A zip with a shapefile in it (`water-polygons-split-4326.zip` or `-3857`), or any polygons that GDAL reads. The file is
read once, in batches, into an indexed store in the cache folder (vector_store.py); blocks are read from there by area.
The pieces overlap a little on purpose; all of them are burnt, whole.
"""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyogrio
import pyproj
import shapely

from magc_data.errors import SourceError, UsageError
from magc_data.schema.osm_polygons import COAST_KEYS
from magc_data.sources.download import download_once
from magc_data.sources.http import remove_secrets
from magc_data.sources.osm_file import OSM_ATTRIBUTION, OSM_LICENCE, OSM_TERMS
from magc_data.sources.osm_objects import FEATURE_SCHEMA
from magc_data.sources.protocols import SourceInfo
from magc_data.sources.vector_cache import cached_sha256
from magc_data.sources.vector_store import STORE_VERSION, StoreSummary, compile_store, read_store, read_summary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from magc_data.grid import BoundsLonLat
    from magc_data.sources.protocols import SourceContext

PUBLIC_URL = "https://osmdata.openstreetmap.de/download/water-polygons-split-4326.zip"
URL_VARIABLE = "MAGC_WATER_POLYGONS_URL"

_BATCH_ROWS = 1024
_DEGREE = 10_000_000
_WHOLE_WORLD_DEGREES = 350
_NEAR_DEGREES = 1.0
"""A block farther than this from all water polygons of a file is not in the region that the file is of."""
_LONLAT = pyproj.CRS.from_user_input("OGC:CRS84")
_POLYGON_TYPES = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)
_TAGS = '{"natural":"water"}'


class _Layer(NamedTuple):
    dataset: str
    """As GDAL opens it."""
    name: str
    crs: str | None
    date: str | None
    """When the archive's file was made, ISO 8601."""


class WaterPolygons:
    """One file; see `open_water_polygons`."""

    def __init__(self, path: str, layer: _Layer, info: SourceInfo, folder: Path) -> None:
        self.info = info
        self._path, self._layer, self._folder = path, layer, folder

    def prepare(self, bounds: BoundsLonLat) -> None:
        """Compile the whole file, if nobody has, and see that it is of the place.

        Raises:
            SourceError: the file cannot be read, holds no polygons, or the cache folder cannot be written.
            UsageError: the file is of another region.
        """
        if not self._folder.exists():
            reach = _Reach()
            compile_store(self._folder, _batches(self._path, self._layer, reach), reach.summary)
        west, south, east, north = (read_summary(self._folder).counts[name] / _DEGREE for name in _Reach.NAMES)
        if east - west > _WHOLE_WORLD_DEGREES:
            return
        far = (
            max(west - bounds.east, bounds.west - east) > _NEAR_DEGREES
            or max(south - bounds.north, bounds.south - north) > _NEAR_DEGREES
        )
        if far:
            raise UsageError(
                f"the water polygons of {self._path} reach {west:g},{south:g},{east:g},{north:g} (W,S,E,N), far from "
                f"{bounds.west:.4f},{bounds.south:.4f}: give a file that covers the area, or --water-polygons auto"
            )

    def read(self, bounds: BoundsLonLat) -> NDArray[np.object_]:
        """The polygons whose boxes touch the bounds, whole, in lon/lat."""
        return read_store(self._folder, bounds, COAST_KEYS).geometry


def open_water_polygons(path: str | None, context: SourceContext, *, quiet: bool = False) -> WaterPolygons:
    """Open water polygons: a file, or osmdata's, downloaded once into the cache folder.

    Raises:
        UsageError: the address for the download is not one.
        FetchError: they cannot be downloaded now.
        SourceError: there is no such file, or it holds no polygons.
    """
    address = path
    if path is None:
        address = os.environ.get(URL_VARIABLE) or PUBLIC_URL
        if not re.fullmatch(r"https?://[^/]+/(.*/)?[^/?]+(\?.*)?", address):
            raise UsageError(
                f"{URL_VARIABLE} is '{remove_secrets(address)}': expected the address of a file, such as {PUBLIC_URL}"
            )
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", address.partition("?")[0].rpartition("/")[2])
        kept = context.cache_dir / "water-polygons" / name
        path, address = str(download_once(context.http, address, kept, quiet=quiet)), remove_secrets(address)
    digest = cached_sha256(Path(path), context.cache_dir)
    layer = _layer(path)
    info = SourceInfo(
        name=Path(path).name,
        address=str(address),
        licence=OSM_LICENCE,
        attribution=OSM_ATTRIBUTION,
        terms=OSM_TERMS,
        redistributable=True,
        version=f"{layer.date} sha256:{digest}" if layer.date else f"sha256:{digest}",
    )
    return WaterPolygons(path, layer, info, context.cache_dir / "vectors" / f"{digest}-water-{STORE_VERSION}")


def _layer(path: str) -> _Layer:
    dataset, date = path, None
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                shapes = [each for each in archive.infolist() if each.filename.lower().endswith(".shp")]
            if len(shapes) != 1:
                raise SourceError(
                    f"{path} holds {len(shapes)} shapefiles: expected one, as in water-polygons-split-4326.zip"
                )
            dataset = f"/vsizip/{path}/{shapes[0].filename}"
            year, month, day, hour, minute, second = shapes[0].date_time
            date = f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"
        layers = [(str(name), kind) for name, kind in pyogrio.list_layers(dataset) if kind and "Polygon" in kind]
        if len(layers) != 1:
            raise SourceError(f"{path} holds {len(layers)} layers of polygons: expected one, of water")
        crs = pyogrio.read_info(dataset, layer=layers[0][0])["crs"]
    except (OSError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from None
    if crs is None:
        raise SourceError(
            f"{path} does not state its coordinate reference system: assign one, for example with 'ogr2ogr -a_srs "
            "EPSG:4326'"
        )
    return _Layer(dataset, layers[0][0], crs, date)


class _Reach:
    """The box of all polygons, while they go by."""

    NAMES = ("west", "south", "east", "north")

    def __init__(self) -> None:
        self._bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])

    def add(self, polygons: NDArray[np.object_]) -> None:
        west, south, east, north = shapely.total_bounds(polygons)
        self._bounds[:2] = np.minimum(self._bounds[:2], (west, south))
        self._bounds[2:] = np.maximum(self._bounds[2:], (east, north))

    def summary(self, rows: int) -> StoreSummary:
        bounds = (self._bounds * _DEGREE).round().astype(np.int64).tolist()
        return StoreSummary(rows, None, dict(zip(self.NAMES, bounds, strict=True)))


def _batches(path: str, layer: _Layer, reach: _Reach) -> Iterator[pa.RecordBatch]:
    to_lonlat = _to_lonlat(path, layer)
    first_row = 0
    try:
        with pyogrio.open_arrow(
            layer.dataset, layer=layer.name, columns=[], batch_size=_BATCH_ROWS, use_pyarrow=True
        ) as (meta, reader):
            for batch in reader:
                column = meta["geometry_name"] or "wkb_geometry"
                polygons = shapely.from_wkb(pa.Table.from_batches([batch])[column].to_numpy())
                polygons = polygons[~(shapely.is_missing(polygons) | shapely.is_empty(polygons))]
                if not np.isin(shapely.get_type_id(polygons), _POLYGON_TYPES).all():
                    raise SourceError(f"{path} holds other geometries than polygons: expected water polygons")
                if not len(polygons):
                    continue
                if to_lonlat is not None:
                    polygons = shapely.transform(
                        polygons, lambda xy: np.column_stack(to_lonlat.transform(xy[:, 0], xy[:, 1]))
                    )
                _check_degrees(path, polygons)
                reach.add(polygons)
                yield _feature_batch(polygons, first_row)
                first_row += len(polygons)
    except (OSError, RuntimeError, ValueError, shapely.errors.GEOSException) as error:
        raise _unreadable(path, error) from None
    if not first_row:
        raise SourceError(f"{path} holds no polygon: expected water polygons, such as those of {PUBLIC_URL}")


def _feature_batch(polygons: NDArray[np.object_], first_row: int) -> pa.RecordBatch:
    count = len(polygons)
    return pa.RecordBatch.from_arrays(
        [
            pa.array([""] * count, pa.string()),
            pa.array(np.arange(first_row, first_row + count), pa.int64()),
            pa.array([_TAGS] * count, pa.string()),
            pa.array(shapely.to_wkb(polygons), pa.binary()),
        ],
        schema=FEATURE_SCHEMA,
    )


def _to_lonlat(path: str, layer: _Layer) -> pyproj.Transformer | None:
    try:
        crs = pyproj.CRS.from_user_input(layer.crs)
    except pyproj.exceptions.CRSError:
        raise SourceError(
            f"{path} states a coordinate reference system that PROJ does not know ({str(layer.crs)[:60]}): reproject "
            "it to EPSG:4326"
        ) from None
    if crs.equals(_LONLAT, ignore_axis_order=True):
        return None
    return pyproj.Transformer.from_crs(crs, _LONLAT, always_xy=True)


def _check_degrees(path: str, polygons: NDArray[np.object_]) -> None:
    bounds: NDArray[np.float64] = shapely.bounds(polygons)
    # A NaN fails the comparison too.
    if not (np.abs(bounds) <= (180.5, 90.0, 180.5, 90.0)).all():
        raise SourceError(
            f"{path} holds coordinates that are not longitude and latitude: the coordinate reference system that it "
            "states is not the one that it is in"
        )


def _unreadable(path: str, error: Exception) -> SourceError:
    return SourceError(
        f"{path} cannot be read ({' '.join(str(error).split())}): expected water-polygons-split-4326.zip or -3857.zip "
        "of osmdata.openstreetmap.de, whole, or a file of polygons"
    )
