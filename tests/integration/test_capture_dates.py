"""Capture dates of tiles from the layers of a local ArcGIS service: World Imagery's and Wayback's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
import tiny_world
from fake_arcgis import FakeArcgis, Picture, running_arcgis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_world import run, tree_digests
from werkzeug import Response

from magc_data import grid
from magc_data.cli import main
from magc_data.config import BuildConfig, HealConfig
from magc_data.grid import Tile, parse_key
from magc_data.heal import heal
from magc_data.schema.sample import Capture, CaptureUnknown
from magc_data.shards.reader import read_index, read_members
from magc_data.sources import capture_dates
from magc_data.sources.capture_polygons import capture_date, read_features
from magc_data.sources.http import HttpClient
from magc_data.sources.protocols import SourceContext
from magc_data.sources.world_imagery import open_world_imagery
from magc_data.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Z = tiny_world.ZOOM
BBOX = tiny_world.FOUR_TILES
TILES = tiny_world.tiles(BBOX)
SIDE_M = 2 * grid.HALF_CIRCUMFERENCE_M / 2**Z


def box_3857(first: Tile, last: Tile, *, shift_tiles: float = 0.0) -> tuple[float, float, float, float]:
    """Of a rectangle of tiles; its eastern edge may be moved."""
    left, top = first.x * SIDE_M - grid.HALF_CIRCUMFERENCE_M, grid.HALF_CIRCUMFERENCE_M - first.y * SIDE_M
    right = (last.x + 1 + shift_tiles) * SIDE_M - grid.HALF_CIRCUMFERENCE_M
    return left, grid.HALF_CIRCUMFERENCE_M - (last.y + 1) * SIDE_M, right, top


WORLD = (-2e7, -2e7, 2e7, 2e7)
OLD = Picture(WORLD, "2016-05-14", resolution_m=0.5, source="WV02")
NEW = Picture(box_3857(TILES[0], TILES[1], shift_tiles=0.25), "2021-09-05")
"""Lies over two whole tiles and a quarter of the third."""


@pytest.fixture
def arcgis(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeArcgis]:
    with running_arcgis() as service:
        service.pictures = [OLD, NEW]
        monkeypatch.setenv("MAGC_WORLD_IMAGERY_URL", service.url)
        monkeypatch.setenv("MAGC_WAYBACK_CONFIG_URL", service.wayback_config_url)
        yield service


@pytest.fixture
def osm(tmp_path: Path) -> Path:
    return tiny_world.write_osm(tmp_path / "world.osm.opl")


def config(out: Path, osm: Path, **changes: object) -> BuildConfig:
    return BuildConfig(**({"bbox": BBOX, "out": out, "osm": str(osm), "workers": 1, "rate": 500.0} | changes))


def test_each_tile_has_the_date_of_the_picture_at_its_centre(arcgis: FakeArcgis, osm: Path, tmp_path: Path) -> None:
    manifest = run(config(tmp_path / "d", osm))
    rows = {row["x"]: row for row in read_index(tmp_path / "d").to_pylist()}
    dates = [rows[tile.x]["capture_date"] for tile in TILES]
    assert dates == ["2021-09-05", "2021-09-05", "2016-05-14", "2016-05-14"]
    assert [rows[tile.x]["capture_source"] for tile in TILES] == ["Vantor WV03"] * 2 + ["Vantor WV02"] * 2
    assert [rows[tile.x]["capture_gsd_m"] for tile in TILES] == [0.3, 0.3, 0.5, 0.5]
    assert all(row["capture_accuracy_m"] == 5.0 and row["capture_unknown"] is None for row in rows.values())
    assert [row["osm_days"] for row in rows.values()] == [969, 969, 2909, 2909]  # to 2024-05-01, which the file states
    assert manifest["capture_dates"] == {"known": 4, "unknown": {}}
    records = [json.loads(read_members(tmp_path / "d", row).record) for row in rows.values()]
    assert records[0]["capture"] == {"accuracy_m": 5.0, "gsd_m": 0.3, "share": 1.0, "source": "Vantor WV03"}
    assert arcgis.requests["captures"] == 2  # a block each
    assert verify(tmp_path / "d").findings == ()


def test_a_tile_where_captures_meet_says_how_much_is_of_its_date(arcgis: FakeArcgis, osm: Path, tmp_path: Path) -> None:
    edge = NEW.box_3857[2]
    arcgis.pictures = [NEW, Picture((edge, *WORLD[1:]), "2016-05-14")]
    run(config(tmp_path / "d", osm))
    rows = {row["x"]: row for row in read_index(tmp_path / "d").to_pylist()}
    assert [rows[tile.x]["capture_share"] for tile in TILES] == [1.0, 1.0, 0.75, 1.0]
    assert rows[TILES[2].x]["capture_date"] == "2016-05-14"


@pytest.mark.slow
def test_the_same_bytes_with_other_workers_and_nothing_asked_twice(
    arcgis: FakeArcgis, osm: Path, tmp_path: Path
) -> None:
    run(config(tmp_path / "one", osm))
    arcgis.forget()
    run(config(tmp_path / "two", osm, workers=2))
    assert arcgis.requests == {"service": 1}
    assert tree_digests(tmp_path / "one") == tree_digests(tmp_path / "two")


FAILURES = {
    "500": Response("", 500),
    "404": Response("", 404),
    "error": Response(json.dumps({"error": {"code": 400, "message": "Invalid query"}})),
    "html": Response("<html>"),
    "a list": Response("[]"),
}


@pytest.mark.parametrize("answer", FAILURES.values(), ids=FAILURES.keys())
def test_a_layer_that_fails_costs_the_dates_and_nothing_else(
    answer: Response,
    arcgis: FakeArcgis,
    osm: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("magc_data.sources.http.BACKOFF_S", 0.0)
    run(config(tmp_path / "clean", osm))
    monkeypatch.setenv("MAGC_CACHE_DIR", str(tmp_path / "new-cache"))
    arcgis.capture_answer = answer
    arguments = ["build", "--bbox", ",".join(map(str, BBOX)), "--osm", str(osm), "--workers", "1", "--rate", "500"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--quiet", "--out", str(tmp_path / "d")])
    assert ended.value.code == 0
    assert "4 samples without a capture date: the service did not answer" in capfd.readouterr().out
    assert "told no capture dates for the block" in caplog.text
    rows = read_index(tmp_path / "d").to_pylist()
    assert {row["capture_unknown"] for row in rows} == {"not-answered"}
    assert {row["capture_date"] for row in rows} == {None}
    assert verify(tmp_path / "d").findings == ()

    # The next run asks again, and what comes of it is what a build without the failure makes.
    arcgis.capture_answer = None
    arcgis.forget()
    manifest = run(config(tmp_path / "d", osm))
    assert manifest["capture_dates"] == {"known": 4, "unknown": {}}
    assert arcgis.requests == {"service": 1, "captures": 2}
    assert tree_digests(tmp_path / "d") == tree_digests(tmp_path / "clean")


def test_a_layer_that_is_down_is_left_alone_after_a_few_blocks(
    arcgis: FakeArcgis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("magc_data.sources.http.BACKOFF_S", 0.0)
    arcgis.capture_answer = Response("", 503)
    with HttpClient(float("inf")) as http:
        source = open_world_imagery(None, SourceContext(tmp_path / "cache", http, Z, frozenset()))
        for column in range(8):
            tile = Tile(Z, 64000 + 32 * column, 40896)
            source.fetch(grid.Block(Z, tile.x // 32, tile.y // 32, (tile,)), http, lambda: None)
            assert source.read(tile).capture == Capture(None, None, None, None, None, CaptureUnknown.NOT_ANSWERED)
    asked = capture_dates.MAX_FAILED_IN_A_ROW * capture_dates.CAPTURE_POLICY.attempts
    assert arcgis.requests["captures"] == asked
    assert "nothing more is asked of it in this run" in caplog.text


def test_a_list_that_is_cut_off_is_asked_for_in_quarters(
    arcgis: FakeArcgis, osm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block_left = TILES[0].x // 32 * 32
    strips = [Tile(Z, block_left + 4 * number, TILES[0].y // 32 * 32) for number in range(16)]
    arcgis.pictures = [
        Picture(box_3857(strip, Tile(Z, strip.x + 3, strip.y + 31)), f"2020-01-{number + 2:02}")
        for number, strip in enumerate(strips)
    ]
    run(config(tmp_path / "whole", osm))
    assert arcgis.requests["captures"] == 2
    dates = read_index(tmp_path / "whole")["capture_date"].to_pylist()
    assert dates == [f"2020-01-{(tile.x - block_left) // 4 + 2:02}" for tile in TILES]

    monkeypatch.setenv("MAGC_CACHE_DIR", str(tmp_path / "new-cache"))
    arcgis.forget()
    arcgis.max_pictures = 6
    run(config(tmp_path / "quarters", osm))
    assert arcgis.requests["captures"] == 2 + 8
    assert tree_digests(tmp_path / "quarters") == tree_digests(tmp_path / "whole")


def test_more_pictures_in_one_tile_than_an_answer_holds_is_no_date(
    arcgis: FakeArcgis, osm: Path, tmp_path: Path
) -> None:
    arcgis.pictures = [Picture(WORLD, f"2020-01-{day:02}") for day in (2, 3, 4)]
    arcgis.max_pictures = 2
    manifest = run(config(tmp_path / "d", osm))
    assert manifest["capture_dates"] == {"known": 0, "unknown": {"not-answered": 4}}


def test_rows_of_other_zoom_levels_and_outside_their_holes_do_not_count(
    arcgis: FakeArcgis, osm: Path, tmp_path: Path
) -> None:
    arcgis.pictures = [
        Picture(WORLD, "1999-01-05", max_level=16, resolution_m=0.1),
        Picture(WORLD, "2022-02-02", min_level=18, resolution_m=0.1),
        Picture(WORLD, "2018-03-04", resolution_m=0.2, hole_3857=box_3857(TILES[1], TILES[1])),
        Picture(box_3857(TILES[1], TILES[1]), None),
    ]
    manifest = run(config(tmp_path / "d", osm))
    dates = read_index(tmp_path / "d")["capture_date"].to_pylist()
    assert dates == ["2018-03-04", None, "2018-03-04", "2018-03-04"]
    assert manifest["capture_dates"] == {"known": 3, "unknown": {"not-dated": 1}}


def test_where_no_picture_is_listed_there_is_no_date(
    arcgis: FakeArcgis, osm: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arcgis.pictures = [Picture(box_3857(TILES[0], TILES[0]), "2018-03-04")]
    manifest = run(config(tmp_path / "d", osm))
    assert manifest["capture_dates"] == {"known": 1, "unknown": {"not-covered": 3}}
    assert main_exit("info", str(tmp_path / "d")) == 0
    printed = capfd.readouterr().out
    assert "3 samples without a capture date: the service tells of no picture there" in printed


def main_exit(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    return ended.value.code


def test_a_service_that_lists_other_layers_only_says_so(arcgis: FakeArcgis, osm: Path, tmp_path: Path) -> None:
    arcgis.pictures = None
    arcgis.description |= {"layers": [{"id": 0, "name": "World Imagery"}]}
    manifest = run(config(tmp_path / "d", osm))
    assert manifest["capture_dates"] == {"known": 0, "unknown": {"no-layer": 4}}
    assert arcgis.requests["captures"] == 0


def test_tiles_of_an_older_cache_are_not_given_the_dates_of_today(
    arcgis: FakeArcgis, osm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """World Imagery may have been replaced since: what its layer tells now is of another picture."""
    arcgis.capture_answer = Response("", 404)
    with monkeypatch.context() as then:
        then.setattr("magc_data.sources.tile_service.now_utc", lambda: "2024-01-01T00:00:00Z")
        run(config(tmp_path / "then", osm))
    arcgis.capture_answer = None
    arcgis.forget()
    manifest = run(config(tmp_path / "now", osm))
    assert not arcgis.tiles
    assert manifest["capture_dates"] == {"known": 0, "unknown": {"other-time": 4}}


def test_wayback_asks_the_layer_of_its_release_and_zoom(arcgis: FakeArcgis, osm: Path, tmp_path: Path) -> None:
    arcgis.releases = {645: "2019-06-26", 5359: "2021-03-17"}
    arcgis.pictures = [
        Picture(WORLD, "2016-05-14", releases=(645,), max_level=17),
        Picture(WORLD, "2020-09-05", releases=(5359,)),
        Picture(WORLD, "2018-02-02", min_level=18, resolution_m=0.1),
    ]
    for release, expected in ((645, "2016-05-14"), (5359, "2020-09-05")):
        run(config(tmp_path / str(release), osm, imagery=f"wayback:{release}"))
        assert set(read_index(tmp_path / str(release))["capture_date"].to_pylist()) == {expected}
    assert arcgis.requests["captures"] == 4


def test_a_lost_index_comes_back_with_its_captures(arcgis: FakeArcgis, osm: Path, tmp_path: Path) -> None:
    arcgis.pictures = [NEW, Picture(box_3857(TILES[2], TILES[2]), None)]
    run(config(tmp_path / "d", osm))
    before = tree_digests(tmp_path / "d")
    (tmp_path / "d" / "index.parquet").unlink()
    assert heal(HealConfig(data=tmp_path / "d")).verification.findings == ()
    assert tree_digests(tmp_path / "d") == before


def test_a_damaged_record_comes_back_with_its_capture(arcgis: FakeArcgis, osm: Path, tmp_path: Path) -> None:
    run(config(tmp_path / "d", osm))
    before = tree_digests(tmp_path / "d")
    row = read_index(tmp_path / "d").to_pylist()[0]
    shard = tmp_path / "d" / row["shard"]
    content = bytearray(shard.read_bytes())
    content[row["json_offset"] : row["json_offset"] + 40] = bytes(40)
    shard.write_bytes(content)
    assert heal(HealConfig(data=tmp_path / "d")).verification.findings == ()
    assert tree_digests(tmp_path / "d") == before


def test_an_index_that_contradicts_its_record_is_found(arcgis: FakeArcgis, osm: Path, tmp_path: Path) -> None:
    run(config(tmp_path / "d", osm))
    table = pq.read_table(tmp_path / "d" / "index.parquet")
    place = table.column_names.index("capture_source")
    changed = table.set_column(place, "capture_source", [["Vantor WV01"] * len(table)])
    pq.write_table(changed, tmp_path / "d" / "index.parquet", write_page_checksum=True)
    findings = verify(tmp_path / "d").findings
    assert any("the record's capture source is Vantor WV03, the index says Vantor WV01" in each for each in findings)


def test_sources_that_tell_no_captures_have_no_columns_of_them(tmp_path: Path) -> None:
    world = tiny_world.World(tmp_path, BBOX)
    manifest = run(world.config(tmp_path / "d"))
    assert "capture_dates" not in manifest
    assert "capture_share" not in read_index(tmp_path / "d").column_names


# --- what rows say ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"src_date2": 1557792000000}, "2019-05-14"),
        ({"src_date2": 1557792000000, "src_date": 20180101}, "2019-05-14"),
        ({"src_date2": "2019-05-14T00:00:00Z"}, "2019-05-14"),
        ({"src_date2": None, "src_date": 20190514}, "2019-05-14"),
        ({"src_date": "20190514"}, "2019-05-14"),
        ({"src_date2": 315532800000}, None),
        ({"src_date2": 0, "src_date": 99999999}, None),
        ({"src_date2": 1e300}, None),
        ({"src_date2": float("nan")}, None),
        ({"src_date2": [], "src_date": {}}, None),
        ({}, None),
    ],
)
def test_dates_in_all_their_forms(fields: dict, expected: str | None) -> None:
    assert capture_date(fields) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["rings", "SRC_DATE2", "x"]), inner),
    max_leaves=4,
)
RELAXED = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Geometry is measured on machines that do other things as well."""


@RELAXED
@given(
    st.lists(
        st.fixed_dictionaries({"attributes": JSON, "geometry": st.fixed_dictionaries({"rings": JSON})}) | JSON,
        max_size=3,
    )
)
def test_rows_of_any_form_are_read_or_passed_over(features: list) -> None:
    for each in read_features([json.dumps({"features": features}).encode()], None):
        assert not each.polygon.is_empty


@RELAXED
@given(
    st.lists(st.tuples(*[st.integers(0, 9)] * 2, st.integers(2, 6)), min_size=1, max_size=4, unique=True), st.randoms()
)
def test_rings_in_any_order_and_direction_make_the_same_polygon(squares: list[tuple[int, int, int]], random) -> None:  # type: ignore[no-untyped-def]
    """Apart and nested squares: those that lie in an odd number of rings are filled."""
    rings, expected = [], shapely.Polygon()
    for number, (x, y, side) in enumerate(squares):
        outer = shapely.box(20 * number + x, y, 20 * number + x + side, y + side)
        inner = shapely.box(20 * number + x + 0.5, y + 0.5, 20 * number + x + side - 0.5, y + side - 0.5)
        rings += [np.array(each.exterior.coords)[:: random.choice((1, -1))].tolist() for each in (outer, inner)]
        expected = expected.union(outer.difference(inner))
    random.shuffle(rings)
    body = json.dumps({"features": [{"attributes": {}, "geometry": {"rings": rings}}]}).encode()
    (found,) = read_features([body], None)
    assert found.polygon.equals(expected)


def test_keys_of_a_service_are_asked_with_and_not_kept(
    arcgis: FakeArcgis, osm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAGC_WORLD_IMAGERY_URL", f"{arcgis.url}?token=s3cret")
    monkeypatch.setenv("MAGC_CACHE_DIR", str(tmp_path / "cache"))
    run(config(tmp_path / "d", osm))
    assert {query["token"] for query in arcgis.capture_queries} == {"s3cret"}
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in kept if b"s3cret" in path.read_bytes()]
    assert parse_key(read_index(tmp_path / "d")["key"][0].as_py()) == TILES[0]
