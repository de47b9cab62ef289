"""OSM files to features: tiny OPL texts for each rule, and every real extract against GDAL's or osmnx's own reading."""

from __future__ import annotations

import collections
import gzip
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from magc_data.errors import SourceError
from magc_data.grid import BoundsLonLat
from magc_data.schema.osm_polygons import RELEVANT_KEYS
from magc_data.sources import osm_file, vector_store
from magc_data.sources.http import HttpClient
from magc_data.sources.osm_file import open_osm_file
from magc_data.sources.osm_objects import FeatureKeys, OsmObjects, ReadReport
from magc_data.sources.protocols import SourceContext, VectorSource

if TYPE_CHECKING:
    from pathlib import Path

    from magc_data.sources.protocols import FeatureTable

WORLD = BoundsLonLat(-180.0, -90.0, 180.0, 90.0)

# A square (1-4), a smaller one inside (5-8), a far one (11-14); in degrees.
NODES = """
n1 v1 x0 y0
n2 v1 x10 y0
n3 v1 x10 y10
n4 v1 x0 y10
n5 v1 x2 y2
n6 v1 x8 y2
n7 v1 x8 y8
n8 v1 x2 y8
n11 v1 x20 y0
n12 v1 x30 y0
n13 v1 x30 y10
n14 v1 x20 y10
"""
OUTER, INNER, FAR = "Nn1,n2,n3,n4,n1", "Nn5,n6,n7,n8,n5", "Nn11,n12,n13,n14,n11"


class Row(NamedTuple):
    object: str
    wkt: str


def read(opl: str, *, report: ReadReport | None = None, tag_keys: frozenset[str] = frozenset()) -> list[Row]:
    objects = OsmObjects(f"{NODES}{opl}\n".encode(), FeatureKeys.of_scheme(tag_keys))
    rows = [row for batch in objects.batches() for row in batch.to_pylist()]
    if report is not None:
        assert objects.report == report
    return sorted(
        Row(f"{row['osm_type']}{row['osm_id']}", shapely.normalize(shapely.from_wkb(row["geometry"])).wkt)
        for row in rows
    )


def same(wkt: str) -> str:
    return shapely.normalize(shapely.from_wkt(wkt)).wkt


SQUARE = same("POLYGON ((0 0, 10 0, 10 10, 0 10, 0 0))")
HOLLOW = same("MULTIPOLYGON (((0 0, 10 0, 10 10, 0 10, 0 0), (2 2, 8 2, 8 8, 2 8, 2 2)))")


def test_a_courtyard_is_a_hole() -> None:
    opl = f"w1 v1 T {OUTER}\nw2 v1 T {INNER}\nr1 v1 Ttype=multipolygon,building=yes Mw1@outer,w2@inner"
    assert read(opl, report=ReadReport(polygons=1)) == [Row("r1", HOLLOW)]


def test_an_outer_ring_of_several_ways_and_inner_rings_that_touch() -> None:
    opl = (
        "w1 v1 T Nn1,n2,n3\nw2 v1 T Nn1,n4,n3\nw3 v1 T Nn5,n6,n7,n5\nw4 v1 T Nn5,n7,n8,n5\n"
        "r1 v1 Ttype=multipolygon,landuse=forest Mw1@outer,w2@outer,w3@inner,w4@inner"
    )
    assert read(opl) == [Row("r1", HOLLOW)]


def test_roles_are_not_believed() -> None:
    opl = f"w1 v1 T {OUTER}\nw2 v1 T {INNER}\nr1 v1 Ttype=multipolygon,building=yes Mw1@,w2@outer"
    assert read(opl) == [Row("r1", HOLLOW)]


@pytest.mark.parametrize(
    ("tags", "kinds"),
    [
        ("building=yes", ["Polygon"]),
        ("highway=residential", ["LineString"]),
        ("highway=primary,junction=roundabout", ["LineString"]),
        ("highway=pedestrian,area=yes", ["Polygon"]),
        ("landuse=grass,barrier=fence", ["LineString", "Polygon"]),
        ("building=yes,area=no", ["LineString"]),
        ("natural=coastline", ["LineString"]),
        ("building=no", []),
        ("building=no,barrier=fence", ["LineString"]),
        ("name=Nowhere", []),
        ("boundary=administrative,admin_level=4", []),
        ("layer=1,tunnel=yes", []),
    ],
)
def test_a_closed_way_is_what_its_keys_say(tags: str, kinds: list[str]) -> None:
    rows = read(f"w1 v1 T{tags} {OUTER}")
    assert sorted(shapely.from_wkt(row.wkt).geom_type for row in rows) == kinds
    assert {row.object for row in rows} <= {"w1"}


def test_keys_of_the_scheme_beyond_the_wide_set_are_kept() -> None:
    opl = f"w1 v1 Taerialway=gondola Nn1,n2\nw2 v1 Tboundary=administrative {OUTER}"
    assert read(opl) == []
    assert [row.object for row in read(opl, tag_keys=frozenset({"aerialway", "boundary"}))] == ["w1"]


def test_tags_are_json_with_sorted_keys_and_without_names() -> None:
    opl = f"w1 v1 Twidth=3,name=Main%20%Street,highway=path,surface=ground%2c%mud Nn1,n2\n{NODES}"
    objects = OsmObjects(f"{NODES}{opl.split(NODES)[0]}".encode(), FeatureKeys.of_scheme(frozenset()))
    (batch,) = objects.batches()
    assert batch["tags"].to_pylist() == ['{"highway":"path","surface":"ground,mud","width":"3"}']


def test_a_line_with_missing_nodes_keeps_its_runs_and_no_bridge() -> None:
    rows = read("w1 v1 Thighway=path Nn1,n2,n98,n3,n99,n11,n12,n13", report=ReadReport(lines=1, ways_cut=1))
    assert rows == [Row("w1", same("MULTILINESTRING ((0 0, 10 0), (20 0, 30 0, 30 10))"))]


@pytest.mark.parametrize("nodes", ["Nn1,n2,n99,n3,n4,n1", "Nn99,n2,n3,n4,n99", "Nn1,n2,n1", "Nn1,n1", "Nn98,n99,n98"])
def test_an_area_way_that_is_not_whole_is_dropped_and_counted(nodes: str) -> None:
    assert read(f"w1 v1 Tbuilding=yes {nodes}", report=ReadReport(ways_dropped=1)) == []


def test_a_roundabout_with_a_missing_node_stays_a_line() -> None:
    rows = read("w1 v1 Thighway=primary Nn1,n2,n99,n3,n4,n1", report=ReadReport(lines=1, ways_cut=1))
    assert rows == [Row("w1", same("MULTILINESTRING ((0 0, 10 0), (10 10, 0 10, 0 0))"))]


def test_a_relation_with_missing_members_keeps_the_rings_that_close() -> None:
    # Outer: one whole square, one of which half is missing. Inner: one whole in the square, one cut, one elsewhere.
    opl = (
        f"w1 v1 T {OUTER}\nw2 v1 T {INNER}\nw3 v1 T Nn11,n12,n13\nw5 v1 T Nn5,n6,n99,n5\n"
        "w6 v1 T Nn11,n13,n14,n11\n"
        "r1 v1 Ttype=multipolygon,natural=water Mw1@outer,w2@inner,w3@outer,w4@outer,w5@inner,w6@inner"
    )
    assert read(opl, report=ReadReport(polygons=1, relations_incomplete=1)) == [Row("r1", HOLLOW)]


def test_a_relation_is_never_closed_by_an_invented_edge() -> None:
    opl = "w1 v1 T Nn1,n2,n3,n4\nr1 v1 Ttype=multipolygon,natural=water Mw1@outer,w9@outer"
    assert read(opl, report=ReadReport(relations_dropped=1)) == []


def test_a_ring_survives_a_dead_end_that_touches_it() -> None:
    opl = (
        "w1 v1 T Nn1,n2,n3\nw2 v1 T Nn3,n4,n1\nw3 v1 T Nn3,n13\nw4 v1 T Nn13,n14\n"
        "r1 v1 Ttype=multipolygon,natural=water Mw1@outer,w3@outer,w4@outer,w2@outer,w9@outer"
    )
    assert read(opl) == [Row("r1", same("MULTIPOLYGON (((0 0, 10 0, 10 10, 0 10, 0 0)))"))]


def test_what_is_left_over_of_a_ring_is_not_closed() -> None:
    opl = (
        "w1 v1 T Nn1,n2,n3\nw2 v1 T Nn3,n4,n1\nw3 v1 T Nn1,n6,n7,n3\n"
        "r1 v1 Ttype=multipolygon,natural=water Mw1@outer,w2@outer,w3@outer,w9@outer"
    )
    assert read(opl) == [Row("r1", same("MULTIPOLYGON (((0 0, 10 0, 10 10, 0 10, 0 0)))"))]


def test_member_nodes_missing_make_a_member_missing() -> None:
    opl = f"w1 v1 T Nn1,n2,n99,n3,n4,n1\nw2 v1 T {FAR}\nr1 v1 Ttype=multipolygon,natural=water Mw1@outer,w2@outer"
    far = same("MULTIPOLYGON (((20 0, 30 0, 30 10, 20 10, 20 0)))")
    assert read(opl, report=ReadReport(polygons=1, relations_incomplete=1)) == [Row("r1", far)]


def test_a_ring_that_crosses_itself_is_kept_as_it_is() -> None:
    rows = read("w1 v1 Tbuilding=yes Nn1,n3,n2,n4,n1")
    assert rows == [Row("w1", same("POLYGON ((0 0, 10 10, 10 0, 0 10, 0 0))"))]


@pytest.mark.parametrize(
    ("tags", "count"),
    [
        ("type=boundary,boundary=administrative", 0),
        ("type=boundary,leisure=nature_reserve", 1),
        ("type=site,building=yes", 0),
        ("type=route,highway=primary", 0),
        ("type=multipolygon", 0),
    ],
)
def test_which_relations_are_areas(tags: str, count: int) -> None:
    assert len(read(f"w1 v1 T {OUTER}\nr1 v1 T{tags} Mw1@outer")) == count


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rings_of_cut_relations_equal_the_assemblers(data: st.DataObject) -> None:
    """Rings cut into ways at random, shuffled and reversed: the fallback must make of them what libosmium does."""
    rings, roles, nodes, next_node = [], [], [], 1
    for index in range(data.draw(st.integers(1, 3))):
        for role, size in (("outer", 10.0), *([("inner", 4.0)] if data.draw(st.booleans()) else [])):
            count = data.draw(st.integers(3, 9))
            angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
            ids = list(range(next_node, next_node + count))
            next_node += count
            nodes += [
                f"n{node} v1 x{index * 30 + size * np.cos(angle):.7f} y{size * np.sin(angle):.7f}"
                for node, angle in zip(ids, angles, strict=True)
            ]
            rings.append([*ids, ids[0]])
            roles.append(role)
    ways, members, way_id = [], [], 1
    for ring, role in zip(rings, roles, strict=True):
        cuts = sorted(data.draw(st.sets(st.integers(1, len(ring) - 2), max_size=3)))
        for start, end in zip([0, *cuts], [*cuts, len(ring) - 1], strict=True):
            piece = ring[start : end + 1]
            if data.draw(st.booleans()):
                piece = piece[::-1]
            ways.append(f"w{way_id} v1 T N" + ",".join(f"n{node}" for node in piece))
            members.append(f"w{way_id}@{role}")
            way_id += 1
    members = data.draw(st.permutations(members))

    def area_of(extra: str) -> shapely.Geometry:
        opl = "\n".join([*nodes, *ways, f"r1 v1 Ttype=multipolygon,natural=wood M{','.join(members)}{extra}\n"])
        (batch,) = OsmObjects(opl.encode(), FeatureKeys.of_scheme(frozenset())).batches()
        return shapely.normalize(shapely.from_wkb(batch["geometry"][0].as_py()))

    assert area_of(",w999@outer").equals_exact(area_of(""), 0)


# --- files -----------------------------------------------------------------------------------------------------------

HTTP = HttpClient()


def context_of(cache: Path, *tag_keys: str) -> SourceContext:
    return SourceContext(cache, HTTP, 17, frozenset(tag_keys) or RELEVANT_KEYS)


def whole_table(path: Path, cache: Path, *tag_keys: str, bounds: BoundsLonLat = WORLD) -> FeatureTable:
    source = open_osm_file(str(path), context_of(cache, *tag_keys))
    source.fetch(bounds, HTTP)
    return source.read(bounds)


def by_object(table: FeatureTable, key: str) -> dict[tuple[str, int], shapely.Geometry]:
    """Polygons of a key by type and id."""
    polygon = np.isin(shapely.get_type_id(table.geometry), (3, 6))
    tagged = np.array([tags.get(key, "no") != "no" for tags in table.tag_sets] or [False])[table.tag_index]
    rows = np.flatnonzero(polygon & tagged)
    return {(str(table.osm_type[row]), int(table.osm_id[row])): table.geometry[row] for row in rows}


@pytest.fixture
def small_osm(tmp_path: Path) -> Path:
    path = tmp_path / "small.osm.opl"
    path.write_text(
        f"{NODES}w1 v1 t2020-01-02T03:04:05Z Tbuilding=yes {OUTER}\n"
        "w2 v1 t2019-01-01T00:00:00Z Thighway=path,layer=1 Nn11,n13\n"
        "r9 v1 Ttype=multipolygon,landuse=forest Mw3@outer\n"
    )
    return path


PBF_EXTRACTS = (
    # name, ways of which GDAL makes an old-style multipolygon (tags on the outer way; holes that nobody cuts today)
    ("osm2pgsql_liechtenstein-2013-08-03.osm.pbf", 1),
    ("valhalla_liechtenstein-latest.osm.pbf", 7),
    ("valhalla_baltimore.osm.pbf", 0),
    ("valhalla_nyc.osm.pbf", 0),
    ("valhalla_bayfront_singapore.osm.pbf", 0),
    ("osmnx_planet_10.068,48.135_10.071,48.137.osm", 0),
)


@pytest.mark.parametrize(("name", "old_style"), PBF_EXTRACTS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_buildings_of_real_extracts_are_those_of_gdal(
    shared_data: Path, tmp_path: Path, name: str, old_style: int
) -> None:
    import pyogrio

    path = shared_data / "osm" / name
    ours = by_object(whole_table(path, tmp_path), "building")
    frame = pyogrio.read_dataframe(path, layer="multipolygons", columns=["osm_id", "osm_way_id", "building"])
    frame = frame[frame.building.notna() & (frame.building != "no")]
    theirs = {
        ("r", int(relation)) if way is None or way != way else ("w", int(way)): geometry
        for way, relation, geometry in zip(frame.osm_way_id, frame.osm_id, frame.geometry, strict=True)
    }
    missing = theirs.keys() - ours.keys()
    assert len(missing) == old_style
    assert all(kind == "r" for kind, _ in missing)
    for key in ours.keys() & theirs.keys():
        assert ours[key].area == pytest.approx(theirs[key].area, rel=1e-9), key
    # GDAL, read layer by layer, leaves out a few relations whose members it has already passed.
    surplus = collections.Counter(kind for kind, _ in ours.keys() - theirs.keys())
    assert surplus["w"] <= old_style + 1
    assert surplus["r"] <= 0.005 * len(ours)


@pytest.mark.parametrize("name", ["osmnx_West-Oakland.osm.bz2", "osmnx_planet_10.068,48.135_10.071,48.137.osm"])
def test_buildings_of_osm_xml_are_those_of_osmnx(shared_data: Path, tmp_path: Path, name: str) -> None:
    import osmnx

    path = shared_data / "osm" / name
    frame = osmnx.features_from_xml(path, tags={"building": True})
    frame = frame[frame.geom_type.isin(["Polygon", "MultiPolygon"])]
    theirs = {({"way": "w", "relation": "r"}[kind], number): row for (kind, number), row in frame.geometry.items()}
    ours = by_object(whole_table(path, tmp_path), "building")
    # Where nodes are missing, osmnx leaves them out of the ring and closes it over the gap.
    cut = {key for key in theirs if key not in ours}
    assert len(cut) <= (7 if "planet" in name else 0)
    assert ours.keys() <= theirs.keys()
    for key, polygon in ours.items():
        # osmnx mends rings that cross themselves; here they are kept, and burnt even-odd.
        assert shapely.make_valid(polygon).area == pytest.approx(theirs[key].area, rel=1e-9), key


def test_a_cut_of_ways_without_all_their_nodes_makes_no_area(shared_data: Path, tmp_path: Path) -> None:
    table = whole_table(shared_data / "osm" / "valhalla_melborne.osm.pbf", tmp_path)
    assert len(table.geometry) == 1153
    assert table.timestamp is None  # its objects say 1970


def test_helsinki_has_its_buildings(helsinki_pbf: Path, tmp_path: Path) -> None:
    source = open_osm_file(str(helsinki_pbf), context_of(tmp_path))
    assert source.extent().bounds == pytest.approx((24.9351762, 60.164155, 24.9534145, 60.179113))
    source.fetch(WORLD, HTTP)
    table = source.read(WORLD)
    assert len(by_object(table, "building")) > 400
    assert table.timestamp == "2019-04-21T09:50:14Z"


def test_every_header_of_the_real_extracts(shared_data: Path, tmp_path: Path) -> None:
    boxes = {
        path.name: open_osm_file(str(path), context_of(tmp_path)).extent() for path in (shared_data / "osm").iterdir()
    }
    assert [name for name, box in boxes.items() if box is None] == ["valhalla_melborne.osm.pbf"]
    assert boxes["valhalla_baltimore.osm.pbf"].bounds == pytest.approx((-76.6081, 39.2586, -76.5288, 39.3065))


def test_the_timestamp_of_the_header_goes_first(shared_data: Path, tmp_path: Path) -> None:
    table = whole_table(shared_data / "osm" / "osm2pgsql_liechtenstein-2013-08-03.osm.pbf", tmp_path)
    assert table.timestamp == "2013-08-03T19:00:02Z"


def test_reading_by_box_gives_what_touches_it_whole(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "osm" / "valhalla_baltimore.osm.pbf"
    whole = whole_table(path, tmp_path)
    bounds = BoundsLonLat(-76.60, 39.27, -76.59, 39.28)
    part = open_osm_file(str(path), context_of(tmp_path)).read(bounds)

    def identities(table: FeatureTable, rows: np.ndarray) -> set[tuple[str, int, bytes]]:
        return {(str(table.osm_type[row]), int(table.osm_id[row]), shapely.to_wkb(table.geometry[row])) for row in rows}

    touching = np.flatnonzero(shapely.intersects(shapely.make_valid(whole.geometry), shapely.box(*bounds)))
    in_part = identities(part, np.arange(len(part.geometry)))
    assert 200 < len(touching) < len(whole.geometry) / 4
    assert identities(whole, touching) <= in_part <= identities(whole, np.arange(len(whole.geometry)))
    assert len(in_part) < 1.1 * len(touching)


def test_the_table_is_as_the_protocol_says(small_osm: Path, tmp_path: Path) -> None:
    source = open_osm_file(str(small_osm), context_of(tmp_path / "cache"))
    assert isinstance(source, VectorSource)
    source.fetch(WORLD, HTTP)
    table = source.read(WORLD)
    assert table.osm_type.dtype == np.dtype("U1")
    assert (table.tag_index.dtype, table.osm_id.dtype) == (np.int32, np.int64)
    rows = sorted(
        zip(table.osm_id, (table.tag_sets[index] for index in table.tag_index), strict=True), key=lambda row: row[0]
    )
    assert rows == [(1, {"building": "yes"}), (2, {"highway": "path", "layer": "1"})]
    assert table.timestamp == "2020-01-02T03:04:05Z"
    assert source.info.licence == "ODbL-1.0"
    assert source.info.redistributable


def test_what_the_scheme_does_not_look_at_is_not_read(small_osm: Path, tmp_path: Path) -> None:
    table = whole_table(small_osm, tmp_path, "building", "layer")
    assert (table.tag_sets, table.tag_index.tolist()) == (({"building": "yes"},), [0])
    table = whole_table(small_osm, tmp_path, "highway")
    assert (table.tag_sets, table.tag_index.tolist()) == (({"highway": "path", "layer": "1"},), [0])
    nothing = whole_table(small_osm, tmp_path, "aeroway")
    assert (len(nothing.geometry), nothing.tag_sets, nothing.geometry.dtype) == (0, (), np.dtype(object))


def test_an_empty_place_is_an_empty_table(small_osm: Path, tmp_path: Path) -> None:
    source = open_osm_file(str(small_osm), context_of(tmp_path))
    source.fetch(WORLD, HTTP)
    assert len(source.read(BoundsLonLat(50, 50, 51, 51)).geometry) == 0


def test_another_scheme_needs_no_new_parse(small_osm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_table(small_osm, tmp_path, "building")
    monkeypatch.setattr(osm_file, "OsmObjects", None)
    assert len(whole_table(small_osm, tmp_path, "highway").geometry) == 1


def test_reading_works_in_another_process(small_osm: Path, tmp_path: Path) -> None:
    source = open_osm_file(str(small_osm), context_of(tmp_path))
    source.fetch(WORLD, HTTP)
    code = (
        "import pickle, sys; from magc_data.grid import BoundsLonLat; "
        "print(len(pickle.load(sys.stdin.buffer).read(BoundsLonLat(-180, -90, 180, 90)).geometry))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(source), capture_output=True, check=True)
    assert done.stdout.strip() == b"2"


def test_two_compilations_at_once_both_end_well(shared_data: Path, tmp_path: Path) -> None:
    path = str(shared_data / "osm" / "valhalla_nyc.osm.pbf")
    sources = [open_osm_file(path, context_of(tmp_path)) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda source: source.fetch(WORLD, HTTP), sources))
    assert {len(source.read(WORLD).geometry) for source in sources} == {1688}
    assert not list((tmp_path / "vectors").glob(".*"))


def test_an_interrupted_compilation_leaves_nothing_that_counts(
    small_osm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_osm_file(str(small_osm), context_of(tmp_path))
    abandoned = tmp_path / "vectors" / ".unfinished-killed"
    abandoned.mkdir(parents=True)
    (abandoned / "part-000.fgb").write_bytes(b"half")
    young = tmp_path / "vectors" / ".unfinished-at-work"
    monkeypatch.setattr(vector_store, "_ABANDONED_AFTER_S", -1.0)
    source.fetch(WORLD, HTTP)
    assert not abandoned.exists()
    assert len(source.read(WORLD).geometry) == 2
    monkeypatch.undo()
    young.mkdir()
    shutil.rmtree(source._folder)
    source.fetch(WORLD, HTTP)
    assert young.exists()

    def stopped(self: OsmObjects) -> None:
        yield from ()
        raise KeyboardInterrupt

    shutil.rmtree(source._folder)
    monkeypatch.setattr(OsmObjects, "batches", stopped)
    with pytest.raises(KeyboardInterrupt):
        source.fetch(WORLD, HTTP)
    assert not source._folder.exists()
    with pytest.raises(SourceError, match="delete that folder and run the same command again"):
        source.read(WORLD)


def test_many_parts_read_as_one(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shared_data / "osm" / "valhalla_baltimore.osm.pbf"
    monkeypatch.setattr(vector_store, "ROWS_PER_PART", 4096)
    table = whole_table(path, tmp_path)
    assert len(list(tmp_path.glob("vectors/*/part-*.fgb"))) == 2
    assert len(table.geometry) == 7197
    assert len(set(map(repr, table.tag_sets))) == len(table.tag_sets)


def test_the_index_on_disk_gives_the_same(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shared_data / "osm" / "valhalla_nyc.osm.pbf"
    in_memory = whole_table(path, tmp_path / "a")
    monkeypatch.setattr(osm_file, "_MEMORY_INDEX_LIMIT_BYTES", 0)
    on_disk = whole_table(path, tmp_path / "b")
    assert shapely.to_wkb(on_disk.geometry).tolist() == shapely.to_wkb(in_memory.geometry).tolist()
    assert not list((tmp_path / "b" / "vectors").glob(".*"))


def test_a_changed_file_is_another_version(small_osm: Path, tmp_path: Path) -> None:
    before = open_osm_file(str(small_osm), context_of(tmp_path)).info.version
    assert before == open_osm_file(str(small_osm), context_of(tmp_path)).info.version
    small_osm.write_text(small_osm.read_text() + "w5 v1 Tbuilding=yes Nn1,n2,n3,n1\n")
    source = open_osm_file(str(small_osm), context_of(tmp_path))
    assert source.info.version != before


def test_gzip_and_xml_are_read_too(tmp_path: Path) -> None:
    xml = (
        '<osm version="0.6"><bounds minlat="-90" minlon="-180" maxlat="90" maxlon="180"/>'
        '<node id="1" version="1" lat="0" lon="0"/><node id="2" version="1" lat="1" lon="1"/>'
        '<way id="1" version="1"><nd ref="1"/><nd ref="2"/><tag k="highway" v="path"/></way></osm>'
    )
    path = tmp_path / "a.osm.gz"
    path.write_bytes(gzip.compress(xml.encode()))
    assert len(whole_table(path, tmp_path).geometry) == 1
    assert open_osm_file(str(path), context_of(tmp_path)).extent() is None  # the whole world says nothing


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.osm.pbf", None, "does not exist"),
        ("notes.txt", b"hello", "expected a name that ends in"),
        ("empty.osm.pbf", b"", "cannot be read as OpenStreetMap data"),
        ("garbage.osm.pbf", b"\x00\x00\x10\x00garbage" * 100, "cannot be read as OpenStreetMap data"),
        ("page.osm", b"<!DOCTYPE html><html><body>busy</body></html>", "cannot be read as OpenStreetMap data"),
        ("cut.osm", b'<osm version="0.6"><node id="1" version="1" lat="0" lon="0"/>', "cannot be read as Open"),
        ("unsorted.opl", b"w1 v1 Tbuilding=yes Nn1,n2,n3,n1\nn1 v1 x0 y0\n", "osmium sort"),
        ("twice.opl", b"n1 v1 x0 y0\nn2 v1 x1 y0\nw1 v1 Thighway=path Nn1,n2\nw1 v2 Thighway=path Nn2,n1\n", "twice"),
    ],
)
def test_a_file_that_is_no_osm_file_gets_one_sentence(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message) as raised:
        whole_table(tmp_path / name, tmp_path / "cache")
    assert "\n" not in str(raised.value)
    assert name in str(raised.value)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
def test_a_truncated_pbf_is_noticed(shared_data: Path, tmp_path: Path, share: float) -> None:
    whole = (shared_data / "osm" / "valhalla_nyc.osm.pbf").read_bytes()
    path = tmp_path / "cut.osm.pbf"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(SourceError, match="expected a complete"):
        whole_table(path, tmp_path)


def test_a_full_disk_is_said_in_one_sentence(shared_data: Path, tmp_path: Path) -> None:
    path = str(shared_data / "osm" / "valhalla_nyc.osm.pbf")
    code = f"""
import resource, signal, sys
from pathlib import Path
from magc_data.errors import SourceError
from magc_data.sources.osm_file import open_osm_file
from magc_data.sources.protocols import SourceContext
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
source = open_osm_file({path!r}, SourceContext(Path({str(tmp_path)!r}), None, 17, frozenset()))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    source.fetch(None, None)
except SourceError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "free some space" in done.stdout
    assert not list((tmp_path / "vectors").glob("*-*"))
