"""GIS files with OSM tags: every format and way of writing tags, any projection, one sentence where it is none."""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

import geopandas
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from magc_data.errors import SourceError
from magc_data.grid import BoundsLonLat
from magc_data.schema.osm_polygons import RELEVANT_KEYS
from magc_data.sources.http import HttpClient
from magc_data.sources.osm_objects import FeatureKeys
from magc_data.sources.protocols import SourceContext, VectorSource
from magc_data.sources.vector_file import _parse_tag_text, _tag_text, open_vector_file

if TYPE_CHECKING:
    from pathlib import Path

    from magc_data.sources.protocols import FeatureTable

WORLD = BoundsLonLat(-180.0, -90.0, 180.0, 90.0)
HTTP = HttpClient()

HOUSE = shapely.Polygon(
    [(10, 50), (10.1, 50), (10.1, 50.1), (10, 50.1)], [[(10.02, 50.02), (10.04, 50.02), (10.02, 50.04)]]
)
ROAD = shapely.LineString([(10, 50), (11, 51)])
LAKES = shapely.MultiPolygon([shapely.box(12, 50, 12.1, 50.1), shapely.box(13, 50, 13.1, 50.1)])


def context_of(cache: Path, *tag_keys: str) -> SourceContext:
    return SourceContext(cache, HTTP, 17, frozenset(tag_keys) or RELEVANT_KEYS)


def read(path: Path, *tag_keys: str, bounds: BoundsLonLat = WORLD) -> FeatureTable:
    source = open_vector_file(str(path), context_of(path.parent / "cache", *tag_keys))
    assert isinstance(source, VectorSource)
    source.fetch(bounds, HTTP)
    return pickle.loads(pickle.dumps(source)).read(bounds)


def rows_of(table: FeatureTable) -> list[tuple[int, dict[str, str], str]]:
    tags = [table.tag_sets[index] for index in table.tag_index]
    return sorted(
        zip(table.osm_id.tolist(), tags, [each.geom_type for each in table.geometry], strict=True),
        key=lambda row: (row[0], row[2]),
    )


def frame_of(**columns: Any) -> geopandas.GeoDataFrame:
    return geopandas.GeoDataFrame(columns, geometry=[HOUSE, ROAD, LAKES], crs=4326)


COLUMNS = {
    "building": ["yes", None, None],
    "highway": [None, "primary", None],
    "natural": ["", None, "water"],
    "layer": [1.0, None, None],
    "width": [None, 7.5, None],
    "lanes": pd.array([None, 2, None], dtype="Int64"),
    "name": ["A", "B", "C"],
}
EXPECTED = [
    (0, {"building": "yes", "layer": "1"}, "Polygon"),
    (1, {"highway": "primary", "lanes": "2", "width": "7.5"}, "LineString"),
    (2, {"natural": "water"}, "MultiPolygon"),
]


@pytest.mark.parametrize("crs", [4326, 3857, 32632])
@pytest.mark.parametrize("suffix", ["gpkg", "geojson", "fgb", "parquet"])
def test_tags_in_columns_in_every_format_and_projection(tmp_path: Path, suffix: str, crs: int) -> None:
    path = tmp_path / f"a.{suffix}"
    frame = frame_of(**COLUMNS)
    if suffix == "geojson":
        frame.to_file(path)
    else:
        frame = frame.to_crs(crs)
        frame.to_parquet(path) if suffix == "parquet" else frame.to_file(path)
    table = read(path)
    if suffix == "fgb":  # sorts its rows as it writes them
        assert sorted(map(repr, (row[1:] for row in rows_of(table)))) == sorted(
            map(repr, (row[1:] for row in EXPECTED))
        )
    else:
        assert rows_of(table) == EXPECTED
    assert set(table.osm_type) == {""}
    house = next(each for each in table.geometry if each.geom_type == "Polygon")
    assert shapely.normalize(house).equals_exact(shapely.normalize(HOUSE), 1e-9)


def test_a_shapefile_with_its_projection_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.shp"
    frame_of(building=["yes", None, "no"]).iloc[[0, 2]].to_crs(28992).to_file(path)
    before = open_vector_file(str(path), context_of(tmp_path / "cache")).info.version
    assert rows_of(read(path)) == [(0, {"building": "yes"}, "Polygon")]
    (tmp_path / "a.prj").write_text((tmp_path / "a.prj").read_text() + " ")
    assert open_vector_file(str(path), context_of(tmp_path / "cache")).info.version != before


TAGS = [{"building": "yes", "name": 'A "quoted" \\ name'}, {"highway": "primary"}, {"natural": "water"}]
TAG_COLUMNS = {
    "json": [json.dumps(tags) for tags in TAGS],
    "hstore": [
        '"building"=>"yes","name"=>"A \\"quoted\\" \\\\ name"',
        '"highway"=>"primary", "note"=>NULL',
        '"natural"=>"water"',
    ],
}


@pytest.mark.parametrize("kind", TAG_COLUMNS)
@pytest.mark.parametrize("column", ["tags", "other_tags"])
def test_tags_as_text(tmp_path: Path, kind: str, column: str) -> None:
    path = tmp_path / "a.gpkg"
    frame_of(**{column: TAG_COLUMNS[kind]}).to_file(path)
    assert [tags for _, tags, _ in rows_of(read(path))] == [
        {"building": "yes"},
        {"highway": "primary"},
        {"natural": "water"},
    ]


@pytest.mark.parametrize("kind", ["map", "struct"])
def test_tags_as_a_map_or_struct_as_in_quackosm(tmp_path: Path, kind: str) -> None:
    if kind == "map":
        tags = pa.array([list(each.items()) for each in TAGS], pa.map_(pa.string(), pa.string()))
    else:
        tags = pa.array(TAGS)
    geometry = pa.array([each.wkb for each in (HOUSE, ROAD, LAKES)])
    geo = {
        "version": "1.1.0",
        "primary_column": "geometry",
        "columns": {"geometry": {"encoding": "WKB", "geometry_types": []}},
    }
    names = ["feature_id", "tags", "geometry"]
    table = pa.table([pa.array(["way/1", "way/2", "relation/3"]), tags, geometry], names)
    path = tmp_path / "a.parquet"
    pq.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), path)
    assert [tags for _, tags, _ in rows_of(read(path))] == [
        {"building": "yes"},
        {"highway": "primary"},
        {"natural": "water"},
    ]


def test_nested_tags_and_ids_of_geojson(tmp_path: Path) -> None:
    properties = [
        {"@id": "way/5", "building": "yes", "layer": 2},
        {"id": 7, "tags": {"highway": "path", "lanes": 2}},
        {"@id": "node/1", "natural": "tree"},
    ]
    geometries = [HOUSE, ROAD, shapely.Point(1, 2)]
    features = [
        {"type": "Feature", "properties": each, "geometry": shapely.geometry.mapping(geometry)}
        for each, geometry in zip(properties, geometries, strict=True)
    ]
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    assert rows_of(read(path)) == [
        (0, {"building": "yes", "layer": "2"}, "Polygon"),
        (1, {"highway": "path", "lanes": "2"}, "LineString"),
    ]


def test_all_layers_of_a_gdal_export_are_read(shared_data: Path, tmp_path: Path) -> None:
    """As `ogr2ogr out.gpkg in.osm.pbf` writes it: a layer a geometry type, rare keys in `other_tags`."""
    path = tmp_path / "ogr.gpkg"
    source = shared_data / "osm" / "valhalla_nyc.osm.pbf"
    for layer in ("points", "lines", "multipolygons"):
        geopandas.read_file(source, layer=layer).to_file(path, layer=layer)
    table = read(path, "building", "highway", "surface", "lanes")
    tags = [table.tag_sets[index] for index in table.tag_index]
    buildings = geopandas.read_file(path, layer="multipolygons").building.notna().sum()
    assert sum("building" in each for each in tags) == buildings > 1500
    assert any("lanes" in each and "highway" in each for each in tags)


def test_real_buildings_of_banepa(shared_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "buildings.geojson"
    path.symlink_to(shared_data / "banepa_z19" / "osm_buildings.geojson")
    frame = geopandas.read_file(path)
    whole = read(path)
    assert len(whole.geometry) == len(frame) == 1466
    bounds = BoundsLonLat(85.521, 27.629, 85.523, 27.631)
    part = read(path, bounds=bounds)
    expected = frame[frame.intersects(shapely.box(*bounds))]
    assert sorted(part.osm_id.tolist()) == sorted(expected.index)
    assert 0 < len(expected) < 1466


def test_heights_collections_and_empty_geometries(tmp_path: Path) -> None:
    geometries = [
        shapely.force_3d(HOUSE, 5.0),
        shapely.GeometryCollection([ROAD, shapely.Point(0, 0), shapely.GeometryCollection([LAKES])]),
        shapely.Polygon(),
        None,
        shapely.MultiPoint([(1, 1)]),
    ]
    path = tmp_path / "a.geojson"
    features = [
        {
            "type": "Feature",
            "properties": {"landuse": f"forest{number}"},
            "geometry": None if each is None else shapely.geometry.mapping(each),
        }
        for number, each in enumerate(geometries)
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    table = read(path)
    assert rows_of(table) == [
        (0, {"landuse": "forest0"}, "Polygon"),
        (1, {"landuse": "forest1"}, "LineString"),
        (1, {"landuse": "forest1"}, "MultiPolygon"),
    ]
    assert not shapely.has_z(table.geometry).any()


def test_a_key_of_the_scheme_alone_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "a.gpkg"
    frame_of(aerialway=["zip_line", None, None]).to_file(path)
    with pytest.raises(SourceError, match="no OpenStreetMap tags"):
        read(path)
    assert rows_of(read(path, "aerialway")) == [(0, {"aerialway": "zip_line"}, "Polygon")]


def _no_crs(path: Path) -> None:
    frame_of(building=["yes"] * 3).set_crs(None, allow_override=True).to_file(path)


def _wrong_crs(path: Path) -> None:
    frame_of(building=["yes"] * 3).to_crs(3857).set_crs(4326, allow_override=True).to_file(path)


def _no_tags(path: Path) -> None:
    frame_of(zone=["a"] * 3, kind=[1, 2, 3]).to_file(path)


def _plain_parquet(path: Path) -> None:
    pq.write_table(pa.table({"building": ["yes"]}), path)


def _bad_tags(path: Path) -> None:
    frame_of(tags=["building:yes"] * 3).to_file(path)


def _bad_json(path: Path) -> None:
    frame_of(tags=['{"building":'] * 3).to_file(path)


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("absent.gpkg", None, "does not exist"),
        ("a.txt", lambda path: path.write_text("x"), "expected a name that ends in"),
        ("a.gpkg", _no_tags, r"columns \(zone, kind\): expected columns named like keys"),
        ("a.gpkg", _no_crs, "does not state its coordinate reference system"),
        ("a.gpkg", _wrong_crs, "not the one that it is in"),
        ("a.gpkg", lambda path: path.write_bytes(b"not a database"), "cannot be read"),
        ("a.gpkg", _bad_tags, "neither JSON nor hstore"),
        ("a.gpkg", _bad_json, "cannot be read"),
        ("a.geojson", lambda path: path.write_text('{"type": "FeatureCollection", "features": [{'), "cannot be read"),
        ("a.parquet", lambda path: path.write_bytes(b"PAR1 no"), "cannot be read"),
        ("a.parquet", _plain_parquet, "without the 'geo' metadata"),
    ],
)
def test_a_file_that_is_none_gets_one_sentence(tmp_path: Path, name: str, write: Any, message: str) -> None:
    path = tmp_path / name
    if write is not None:
        write(path)
    with pytest.raises(SourceError, match=message) as raised:
        read(path)
    assert "\n" not in str(raised.value)
    assert name in str(raised.value)
    assert not list(tmp_path.glob("cache/vectors/*-*"))


def test_licence_is_not_assumed(tmp_path: Path) -> None:
    path = tmp_path / "a.gpkg"
    frame_of(building=["yes"] * 3).to_file(path)
    info = open_vector_file(str(path), context_of(tmp_path / "cache")).info
    assert (info.licence, info.redistributable) == ("not stated", False)


@given(st.dictionaries(st.text(min_size=1), st.text(min_size=1), min_size=1))
def test_hstore_and_json_give_back_what_was_written(tags: dict[str, str]) -> None:
    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    hstore = ", ".join(f"{quoted(key)}=>{quoted(value)}" for key, value in tags.items())
    assert dict(_parse_tag_text(hstore)) == tags
    assert dict(_parse_tag_text(json.dumps(tags))) == tags


def test_columns_and_tags_together() -> None:
    keys = FeatureKeys.of_scheme(frozenset())
    assert (
        _tag_text((("building", "yes"), None, (("layer", "1"), ("name", "A"))), keys)
        == '{"building":"yes","layer":"1"}'
    )
    assert _tag_text((("building", "no"), (("layer", "1"),)), keys) is None
    assert _tag_text((None, None), keys) is None
