"""OpenStreetMap features in the files of GIS: GeoPackage, GeoJSON, FlatGeobuf, Shapefile, GeoParquet.

Tags are read from columns named like OSM keys, from a `tags` column (map, struct, JSON or hstore text) or from the
`other_tags` of GDAL's OSM driver; that covers the exports of osmium, ogr2ogr, osmnx, QuackOSM, pyrosm, overpass turbo
and QGIS. Geometry is taken at its word: whoever wrote the file has decided what is a line and what an area. Points
are not features here.

The first `fetch` compiles the file into the same store that OSM files have.
"""

from __future__ import annotations

import functools
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pyproj
import shapely

from magc_data.errors import SourceError
from magc_data.schema.osm_polygons import COAST_KEYS
from magc_data.sources.osm_objects import FEATURE_SCHEMA, FeatureKeys
from magc_data.sources.protocols import FeatureTable, SourceInfo
from magc_data.sources.vector_cache import cached_sha256
from magc_data.sources.vector_store import (
    StoreSummary,
    coastline_folder,
    compile_coastlines,
    compile_store,
    read_store,
    store_folder,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

    from magc_data.grid import BoundsLonLat
    from magc_data.sources.http import HttpClient
    from magc_data.sources.protocols import SourceContext

VECTOR_FILE_SUFFIXES = (".gpkg", ".geojson", ".json", ".geojsonl", ".fgb", ".shp", ".parquet", ".geoparquet")

_TAG_COLUMNS = ("tags", "other_tags")
_SHAPEFILE_COMPANIONS = (".dbf", ".prj", ".cpg")
_BATCH_ROWS = 16_384
_MAX_COLUMNS_NAMED = 12
_LONLAT = pyproj.CRS.from_user_input("OGC:CRS84")

_TYPE = shapely.GeometryType
_LINE_AND_AREA_TYPES = (_TYPE.LINESTRING, _TYPE.LINEARRING, _TYPE.POLYGON, _TYPE.MULTILINESTRING, _TYPE.MULTIPOLYGON)
_POINT_TYPES = (_TYPE.POINT, _TYPE.MULTIPOINT)

_HSTORE_PAIR = re.compile(r'"((?:[^"\\]|\\.)*)"\s*=>\s*(?:"((?:[^"\\]|\\.)*)"|NULL)')
_ESCAPED = re.compile(r"\\(.)")


class _Layer(NamedTuple):
    """A table of features in a file."""

    name: str
    columns: tuple[str, ...]
    crs: str | None
    """WKT or PROJ JSON; None where the file states none."""
    batches: Callable[[Sequence[str]], Iterator[tuple[pa.Table, NDArray[np.object_]]]]
    """Attributes of the columns named, and geometries."""


class VectorFile:
    """One file; see `open_vector_file`."""

    def __init__(self, path: str, info: SourceInfo, context: SourceContext) -> None:
        """Keep what `fetch` and `read` need; nothing is read here."""
        self.info = info
        self._path = path
        self._keys = FeatureKeys.of_scheme(context.tag_keys)
        self._tag_keys = context.tag_keys
        self._folder = store_folder(context.cache_dir, str(info.version), self._keys)

    def extent(self) -> BaseGeometry | None:
        """Unknown: where a file has no features, there may be none."""
        return None

    def fetch(self, bounds: BoundsLonLat, http: HttpClient) -> None:  # noqa: ARG002 - the protocol's arguments
        """Compile the whole file, if nobody has.

        Raises:
            SourceError: the file cannot be read or holds no features with OSM tags, or the cache cannot be written.
        """
        if self._folder.exists():
            return
        layers = _tagged_layers(self._path, self._keys)
        compile_store(self._folder, _batches(self._path, layers, self._keys), lambda rows: StoreSummary(rows, None, {}))

    def read(self, bounds: BoundsLonLat) -> FeatureTable:
        """The features that touch the box."""
        return read_store(self._folder, bounds, self._tag_keys)

    def fetch_coastlines(self, bounds: BoundsLonLat, around: BoundsLonLat, http: HttpClient) -> None:  # noqa: ARG002 - the protocol's arguments
        """Set the coastlines of the whole file apart, if nobody has."""
        if not coastline_folder(self._folder).exists():
            compile_coastlines(self._folder)

    def read_coastlines(self, bounds: BoundsLonLat, around: BoundsLonLat) -> FeatureTable:  # noqa: ARG002 - the protocol's arguments
        """The coastlines that touch the box around the box."""
        return read_store(coastline_folder(self._folder), around, COAST_KEYS)


def open_vector_file(path: str, context: SourceContext) -> VectorFile:
    """Open a file of features with OSM tags, in any coordinate reference system that it states.

    Raises:
        SourceError: there is no such file, or it is of another kind.
    """
    if not path.lower().endswith(VECTOR_FILE_SUFFIXES):
        raise SourceError(
            f"{path} is not a vector file known here: expected a name that ends in one of "
            f"{', '.join(VECTOR_FILE_SUFFIXES)}"
        )
    # A Shapefile's tags and projection stand beside it.
    companions = [Path(path).with_suffix(suffix) for suffix in _SHAPEFILE_COMPANIONS if path.lower().endswith(".shp")]
    digests = [cached_sha256(each, context.cache_dir) for each in (Path(path), *filter(Path.is_file, companions))]
    info = SourceInfo(
        name=Path(path).name,
        address=path,
        licence="not stated",
        attribution="not stated",
        terms="No licence is stated: features from OpenStreetMap are under ODbL-1.0, others under their owner's terms.",
        redistributable=False,
        version="-".join(digest if len(digests) == 1 else digest[:16] for digest in digests),
    )
    return VectorFile(path, info, context)


def _tagged_layers(path: str, keys: FeatureKeys) -> list[_Layer]:
    try:
        layers = _parquet_layers(path) if path.lower().endswith("parquet") else _gdal_layers(path)
    except (OSError, RuntimeError, ValueError) as error:
        raise _unreadable(path, error) from None
    tagged = [layer for layer in layers if not keys.features.union(_TAG_COLUMNS).isdisjoint(layer.columns)]
    if not tagged:
        found = [column for layer in layers for column in layer.columns]
        named = ", ".join(found[:_MAX_COLUMNS_NAMED]) + (", ..." if len(found) > _MAX_COLUMNS_NAMED else "")
        raise SourceError(
            f"{path} has no OpenStreetMap tags among its columns ({named or 'none'}): expected columns named like keys "
            "(building, highway, landuse, ...) or a column 'tags'"
        )
    for layer in tagged:
        if layer.crs is None:
            raise SourceError(
                f"{path} does not state its coordinate reference system (layer '{layer.name}'): assign one, for "
                "example with 'ogr2ogr -a_srs EPSG:4326'"
            )
    return tagged


def _gdal_layers(path: str) -> list[_Layer]:
    layers = []
    for name, geometry_type in pyogrio.list_layers(path):
        if geometry_type is None or "Point" in geometry_type:
            continue
        info = pyogrio.read_info(path, layer=name)
        batches = functools.partial(_gdal_batches, path, name)
        layers.append(_Layer(name, tuple(info["fields"]), info["crs"], batches))
    return layers


def _gdal_batches(path: str, layer: str, columns: Sequence[str]) -> Iterator[tuple[pa.Table, NDArray[np.object_]]]:
    with pyogrio.open_arrow(path, layer=layer, columns=list(columns), batch_size=_BATCH_ROWS, use_pyarrow=True) as (
        meta,
        reader,
    ):
        geometry = meta["geometry_name"] or "wkb_geometry"
        for batch in reader:
            table = pa.Table.from_batches([batch])
            yield table, shapely.from_wkb(table[geometry].to_numpy())


def _parquet_layers(path: str) -> list[_Layer]:
    file = pq.ParquetFile(path)
    metadata = json.loads((file.schema_arrow.metadata or {}).get(b"geo", b"null"))
    if not isinstance(metadata, dict):
        raise ValueError("it is Parquet without the 'geo' metadata of GeoParquet")  # noqa: TRY004 - told as one sentence
    geometry = metadata["primary_column"]
    column = metadata["columns"][geometry]
    if column["encoding"] != "WKB":
        raise ValueError(f"its geometry is encoded as {column['encoding']}, and WKB is expected")
    # GeoParquet 1.0: no `crs` means longitude and latitude, a null one means unknown.
    crs = column.get("crs", "OGC:CRS84")
    columns = tuple(name for name in file.schema_arrow.names if name != geometry)
    batches = functools.partial(_parquet_batches, path, geometry)
    return [_Layer(Path(path).stem, columns, json.dumps(crs) if isinstance(crs, dict) else crs, batches)]


def _parquet_batches(
    path: str, geometry: str, columns: Sequence[str]
) -> Iterator[tuple[pa.Table, NDArray[np.object_]]]:
    for batch in pq.ParquetFile(path).iter_batches(_BATCH_ROWS, columns=[geometry, *columns]):
        table = pa.Table.from_batches([batch])
        yield table, shapely.from_wkb(table[geometry].to_numpy())


def _batches(path: str, layers: Sequence[_Layer], keys: FeatureKeys) -> Iterator[pa.RecordBatch]:
    first_row = 0
    tag_text = functools.lru_cache(maxsize=1 << 16)(functools.partial(_tag_text, keys=keys))
    for layer in layers:
        to_lonlat = _transformation(path, layer)
        key_columns = [column for column in layer.columns if column in keys.kept]
        tag_columns = [column for column in layer.columns if column in _TAG_COLUMNS]
        try:
            for table, geometries in layer.batches([*key_columns, *tag_columns]):
                cells = [
                    *(_key_values(table, column) for column in key_columns),
                    *(_tag_values(table, column) for column in tag_columns),
                ]
                texts = [tag_text(row) for row in zip(*cells, strict=True)]
                yield _feature_batch(path, texts, geometries, first_row, to_lonlat)
                first_row += len(geometries)
        except (OSError, RuntimeError, ValueError, shapely.errors.GEOSException) as error:
            raise _unreadable(path, error) from None


def _key_values(table: pa.Table, column: str) -> list[tuple[str, str] | None]:
    values = (_tag_value(value) for value in table[column].to_pylist())
    return [None if value is None else (column, value) for value in values]


def _tag_value(value: Any) -> str | None:
    """A cell as the text of an OSM tag; None where there is none."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):  # NaN is the null of pandas
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _tag_values(table: pa.Table, column: str) -> list[tuple[tuple[str, str], ...] | None]:
    kind = table.schema.field(column).type
    if isinstance(kind, pa.BaseExtensionType):  # GDAL marks nested GeoJSON as text of JSON
        kind = kind.storage_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return [None if not text else _parse_tag_text(text) for text in table[column].to_pylist()]
    if pa.types.is_map(kind) or pa.types.is_struct(kind):
        return [None if not tags else _pairs(dict(tags)) for tags in table[column].to_pylist()]
    raise ValueError(f"its column '{column}' is {kind}, and text, a map or a struct is expected")


@functools.lru_cache(maxsize=1 << 16)
def _parse_tag_text(text: str) -> tuple[tuple[str, str], ...]:
    if text.lstrip().startswith("{"):
        tags = json.loads(text)
        return _pairs(tags)
    pairs = _HSTORE_PAIR.findall(text)
    if not pairs:
        raise ValueError(f"its tags {text[:60]!r} are neither JSON nor hstore text")
    return tuple((_ESCAPED.sub(r"\1", key), _ESCAPED.sub(r"\1", value)) for key, value in pairs if value)


def _pairs(tags: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    values = ((key, _tag_value(value)) for key, value in tags.items())
    return tuple((key, value) for key, value in values if value is not None)


def _tag_text(row: tuple[tuple[str, str] | tuple[tuple[str, str], ...] | None, ...], keys: FeatureKeys) -> str | None:
    """JSON of a row's kept tags; None where it is no feature."""
    tags: dict[str, str] = {}
    for cell in row:
        match cell:
            case None:
                continue
            case (str(key), str(value)):
                tags[key] = value
            case pairs:
                tags.update((key, value) for key, value in pairs if key in keys.kept)
    if not any(key in keys.features and value != "no" for key, value in tags.items()):
        return None
    return json.dumps(tags, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _transformation(path: str, layer: _Layer) -> pyproj.Transformer | None:
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


def _feature_batch(
    path: str,
    texts: Sequence[str | None],
    geometries: NDArray[np.object_],
    first_row: int,
    to_lonlat: pyproj.Transformer | None,
) -> pa.RecordBatch:
    is_feature = np.array([text is not None for text in texts], dtype=bool) & ~shapely.is_empty(geometries)
    rows = np.flatnonzero(is_feature & ~shapely.is_missing(geometries))
    parts, of_row = geometries[rows], rows
    while (collections := shapely.get_type_id(parts) == _TYPE.GEOMETRYCOLLECTION).any():
        inner, index = shapely.get_parts(parts[collections], return_index=True)
        parts, of_row = (
            np.append(parts[~collections], inner),
            np.append(of_row[~collections], of_row[collections][index]),
        )
    type_ids = shapely.get_type_id(parts)
    kept = np.isin(type_ids, _LINE_AND_AREA_TYPES)
    if not (kept | np.isin(type_ids, _POINT_TYPES)).all():
        raise ValueError("it holds geometries that are neither points, lines nor polygons")
    parts, of_row = parts[kept], of_row[kept]
    if to_lonlat is not None:
        parts = shapely.transform(parts, lambda xy: np.column_stack(to_lonlat.transform(xy[:, 0], xy[:, 1])))
    _check_degrees(path, parts)
    return pa.RecordBatch.from_arrays(
        [
            # Shape at its word: '' keeps the rules of closed ways from being applied to it.
            pa.array([""] * len(parts), pa.string()),
            pa.array(of_row + first_row, pa.int64()),
            pa.array([texts[int(row)] for row in of_row], pa.string()),
            pa.array(shapely.to_wkb(parts), pa.binary()),
        ],
        schema=FEATURE_SCHEMA,
    )


def _check_degrees(path: str, parts: NDArray[np.object_]) -> None:
    coordinates = shapely.get_coordinates(parts)
    # Half a degree of tolerance: features may reach over the antimeridian. A NaN fails the comparison too.
    good = (np.abs(coordinates) <= (180.5, 90.0)).all(axis=1)
    if not good.all():
        x, y = coordinates[~good][0]
        raise SourceError(
            f"{path} holds the coordinates ({x:g}, {y:g}) as longitude and latitude: the coordinate reference system "
            "that it states is not the one that it is in"
        )


def _unreadable(path: str, error: Exception) -> SourceError:
    return SourceError(
        f"{path} cannot be read ({' '.join(str(error).split())}): expected a complete GeoPackage, GeoJSON, FlatGeobuf, "
        "Shapefile or GeoParquet file"
    )
