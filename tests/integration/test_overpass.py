"""The Overpass source against a real HTTP server with every fault: the map is whole, or there is none."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import shapely
from fake_overpass import Database, FakeOverpass, elements_of_file
from hypothesis import given, settings
from hypothesis import strategies as st

from magc_data.errors import FetchError, SourceError, UsageError
from magc_data.grid import BoundsLonLat
from magc_data.sources import overpass
from magc_data.sources.http import HttpClient
from magc_data.sources.osm_file import open_osm_file
from magc_data.sources.overpass import (
    Cell,
    DailyBudget,
    Overpass,
    build_query,
    open_overpass,
    parse_answer,
    parse_osm_date,
    seconds_until_slot,
    to_opl,
)
from magc_data.sources.protocols import SourceContext, VectorSource

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from magc_data.sources.protocols import FeatureTable

KEYS = frozenset({"building", "building:part", "highway", "landuse", "natural", "leisure", "layer", "width"})
NYC = BoundsLonLat(-74.008, 40.735, -74.004, 40.738)


@pytest.fixture
def http() -> Iterator[HttpClient]:
    # Retries within the client wait for nobody here.
    with HttpClient(sleep=lambda _: None) as client:
        yield client


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overpass, "QUERY_POLICY", overpass.QUERY_POLICY._replace(requests_per_s=1e6))
    monkeypatch.setattr(overpass, "STATUS_POLICY", overpass.STATUS_POLICY._replace(requests_per_s=1e6))


@pytest.fixture(scope="module")
def nyc_database(shared_data: Path) -> Database:
    return Database(elements_of_file(shared_data / "osm" / "valhalla_nyc.osm.pbf"))


@pytest.fixture
def nyc(nyc_database: Database) -> Iterator[FakeOverpass]:
    with FakeOverpass(nyc_database) as server:
        yield server


def source_of(server: FakeOverpass, cache: Path, **options: Any) -> Overpass:
    context = SourceContext(cache, None, 17, KEYS, options.pop("osm_date", None))
    return Overpass(server.api, context, sleep=options.pop("sleep", lambda _: None), **options)


def content(table: FeatureTable) -> set[tuple[str, int, str, bytes]]:
    return {
        (str(kind), int(number), json.dumps(table.tag_sets[index], sort_keys=True), shapely.to_wkb(geometry))
        for kind, number, index, geometry in zip(
            table.osm_type, table.osm_id, table.tag_index, table.geometry, strict=True
        )
    }


def expected_content(shared_data: Path, cache: Path, bounds: BoundsLonLat) -> set[tuple[str, int, str, bytes]]:
    """What the extract itself has in the box, read the other way."""
    path = shared_data / "osm" / "valhalla_nyc.osm.pbf"
    source = open_osm_file(str(path), SourceContext(cache, None, 17, KEYS))
    source.fetch(bounds, None)
    table = source.read(bounds)
    touches = shapely.intersects(shapely.make_valid(table.geometry), shapely.box(*bounds))
    return {row for row, keep in zip(_in_order(table), touches, strict=True) if keep}


def _in_order(table: FeatureTable) -> list[tuple[str, int, str, bytes]]:
    return [
        (str(kind), int(number), json.dumps(table.tag_sets[index], sort_keys=True), shapely.to_wkb(geometry))
        for kind, number, index, geometry in zip(
            table.osm_type, table.osm_id, table.tag_index, table.geometry, strict=True
        )
    ]


def test_the_answer_is_what_the_extract_has(
    nyc: FakeOverpass, shared_data: Path, tmp_path: Path, http: HttpClient
) -> None:
    source = source_of(nyc, tmp_path)
    assert isinstance(source, VectorSource)
    assert source.extent() is None
    source.fetch(NYC, http)
    table = pickle.loads(pickle.dumps(Overpass(nyc.api, SourceContext(tmp_path, None, 17, KEYS)))).read(NYC)
    expected = expected_content(shared_data, tmp_path, NYC)
    assert len(expected) > 200
    assert expected <= content(table)
    assert table.timestamp == "2024-05-01T00:00:00Z"
    assert len(nyc.queries) == 1
    assert all(agent.startswith("magc/") for agent in nyc.user_agents)


def test_the_same_query_is_never_sent_twice(nyc: FakeOverpass, tmp_path: Path, http: HttpClient) -> None:
    for _ in range(3):
        source_of(nyc, tmp_path).fetch(NYC, http)
    assert len(nyc.queries) == 1
    (answer,) = tmp_path.glob("overpass/127.0.0.1_*/*.json")
    assert answer.stem == hashlib.sha256(nyc.queries[0].encode()).hexdigest()


@pytest.mark.parametrize("fault", ["504", "remark", "html", "cut-json", "cut-body", "hang"])
def test_no_fault_makes_a_smaller_map(
    nyc: FakeOverpass, tmp_path: Path, http: HttpClient, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    if fault == "hang":
        monkeypatch.setattr(overpass, "QUERY_POLICY", overpass.QUERY_POLICY._replace(timeout_s=1.5, attempts=1))
    attempts = overpass.QUERY_POLICY.attempts if fault == "cut-body" else 1
    nyc.faults.extend([fault] * attempts)
    source = source_of(nyc, tmp_path)
    source.fetch(NYC, http)
    assert len(nyc.queries) == attempts + 4
    assert len(list(tmp_path.glob("overpass/*/*.json"))) == 4
    with FakeOverpass(nyc._now) as sound:
        whole = source_of(sound, tmp_path / "sound")
        whole.fetch(NYC, http)
        assert content(source.read(NYC)) == content(whole.read(NYC))
    source.fetch(NYC, http)
    assert len(nyc.queries) == attempts + 4


def test_cells_are_split_as_far_as_it_takes(nyc: FakeOverpass, tmp_path: Path, http: HttpClient) -> None:
    whole = source_of(nyc, tmp_path / "whole")
    whole.fetch(NYC, http)
    nyc.max_elements = 400
    source = source_of(nyc, tmp_path)
    source.fetch(NYC, http)
    assert len(nyc.queries) > 1 + 4 + 4
    assert content(source.read(NYC)) == content(whole.read(NYC))


def test_a_cell_that_stays_too_large_is_named(nyc: FakeOverpass, tmp_path: Path, http: HttpClient) -> None:
    nyc.max_elements = 0
    source = source_of(nyc, tmp_path)
    with pytest.raises(FetchError, match="Query run out of memory") as raised:
        source.fetch(NYC, http)
    assert re.search(r"cell -74\.0080000,40\.7350000,-74\.00[67]\d*,40\.735\d*,", str(raised.value))
    assert len(nyc.queries) == overpass.MAX_SPLITS + 1
    with pytest.raises(SourceError, match="are not in the cache"):
        source.read(NYC)
    # An overloaded server of today is not asked in crumbs tomorrow.
    nyc.max_elements = None
    source.fetch(NYC, http)
    assert len(nyc.queries) == overpass.MAX_SPLITS + 2


@pytest.mark.parametrize("fault", ["429", "504-busy"])
def test_it_waits_as_the_status_page_says(nyc: FakeOverpass, tmp_path: Path, http: HttpClient, fault: str) -> None:
    nyc.faults.extend([fault, fault])
    nyc.slot_wait_s = 37
    waits: list[float] = []
    source_of(nyc, tmp_path, sleep=waits.append).fetch(NYC, http)
    assert waits == [38.0, 38.0]
    assert nyc.status_requests == 2
    assert len(nyc.queries) == 3


def test_it_does_not_wait_for_ever(nyc: FakeOverpass, tmp_path: Path, http: HttpClient) -> None:
    nyc.faults.extend(["429"] * 100)
    nyc.slot_wait_s = 500
    waits: list[float] = []
    with pytest.raises(FetchError, match=r"no free slot for the cell -74\.0080000,40\.7350000"):
        source_of(nyc, tmp_path, sleep=waits.append).fetch(NYC, http)
    assert sum(waits) <= overpass.LONGEST_WAIT_S


def test_a_refused_query_gives_the_servers_words(nyc: FakeOverpass, tmp_path: Path, http: HttpClient) -> None:
    nyc.faults.append("400")
    with pytest.raises(SourceError, match=r"HTTP 400 \('line 2: parse error: ';' expected - 'out' found\.'\)"):
        source_of(nyc, tmp_path).fetch(NYC, http)
    assert len(nyc.queries) == 1


def test_a_server_that_is_not_there_is_not_asked_in_quarters(tmp_path: Path, http: HttpClient) -> None:
    with FakeOverpass([]) as gone:
        source = source_of(gone, tmp_path)
    with pytest.raises(FetchError, match=r"no proper answer from 127\.0\.0\.1:\d+: asked 3 times, it gave a refused"):
        source.fetch(NYC, http)
    assert not list(tmp_path.rglob("*.json"))


def test_an_empty_cell_is_a_valid_answer(nyc: FakeOverpass, tmp_path: Path, http: HttpClient) -> None:
    sea = BoundsLonLat(-30.0, 40.0, -29.9, 40.1)
    source = source_of(nyc, tmp_path)
    source.fetch(sea, http)
    assert len(source.read(sea).geometry) == 0
    assert source.read(sea).timestamp == "2024-05-01T00:00:00Z"


def test_other_bounds_than_those_fetched_are_not_answered(nyc: FakeOverpass, tmp_path: Path, http: HttpClient) -> None:
    source = source_of(nyc, tmp_path)
    source.fetch(NYC, http)
    with pytest.raises(SourceError, match="are not in the cache"):
        source.read(NYC._replace(north=40.7381))


# --- areas around a cell ---------------------------------------------------------------------------------------------

FOREST = [
    *(
        {"type": "node", "id": number, "lat": lat, "lon": lon}
        for number, (lon, lat) in enumerate([(0, 0), (10, 0), (10, 10), (0, 10), (4, 4), (6, 4), (6, 6), (4, 6)], 1)
    ),
    {"type": "way", "id": 1, "nodes": [1, 2, 3, 4, 1], "tags": {"landuse": "forest"}},
    {"type": "way", "id": 2, "nodes": [1, 2, 3, 4, 1]},
    {"type": "way", "id": 3, "nodes": [5, 6, 7, 8, 5]},
    {
        "type": "relation",
        "id": 1,
        "members": [{"type": "way", "ref": 2, "role": "outer"}, {"type": "way", "ref": 3, "role": "inner"}],
        "tags": {"type": "multipolygon", "leisure": "park", "name": "Great % = Park, \u00e4@"},
    },
    {
        "type": "relation",
        "id": 2,
        "members": [{"type": "way", "ref": 2, "role": ""}],
        "tags": {"type": "route", "highway": "x"},
    },
]


def test_an_area_that_covers_the_whole_cell_is_found(tmp_path: Path, http: HttpClient) -> None:
    inside = BoundsLonLat(1.0, 1.0, 1.5, 1.5)
    with FakeOverpass(FOREST) as server:
        source = source_of(server, tmp_path)
        source.fetch(inside, http)
        table = source.read(inside)
        assert {(row[0], row[1]) for row in content(table)} == {("w", 1), ("r", 1)}
        park = table.geometry[table.osm_type == "r"][0]
        assert park.area == pytest.approx(100 - 4)  # the clearing's nodes came with it
        in_clearing = BoundsLonLat(4.5, 4.5, 5.0, 5.0)
        source.fetch(in_clearing, http)
        assert {(row[0], row[1]) for row in content(source.read(in_clearing))} == {("w", 1)}


def test_relations_that_are_no_areas_are_not_asked_for(tmp_path: Path, http: HttpClient) -> None:
    with FakeOverpass(FOREST) as server:
        source = source_of(server, tmp_path)
        bounds = BoundsLonLat(-1.0, -1.0, 1.0, 1.0)
        source.fetch(bounds, http)
        (path,) = tmp_path.rglob("*.json")
        answer = parse_answer(path.read_bytes())
        assert {(each["type"], each["id"]) for each in answer.elements if each["type"] == "relation"} == {
            ("relation", 1)
        }


# --- dates -----------------------------------------------------------------------------------------------------------


def test_a_pinned_date_gets_the_state_of_that_date(tmp_path: Path, http: HttpClient) -> None:
    history = {"2019-01-01T00:00:00Z": FOREST[:9], "2022-01-01T00:00:00Z": FOREST}
    edge = BoundsLonLat(-1.0, -1.0, 1.0, 1.0)
    with FakeOverpass([], history=history) as server:
        found = {}
        for date in ("2018-01-01", "2020-06-01", "2023-06-01T12:00:00+02:00"):
            source = source_of(server, tmp_path, osm_date=date)
            source.fetch(edge, http)
            found[source.info.version] = {(row[0], row[1]) for row in content(source.read(edge))}
            assert source.read(edge).timestamp == source.info.version
        assert found == {
            "2018-01-01T00:00:00Z": set(),
            "2020-06-01T00:00:00Z": {("w", 1)},
            "2023-06-01T10:00:00Z": {("w", 1), ("r", 1)},
        }
        assert not any("is_in" in query for query in server.queries)


@pytest.mark.parametrize("date", ["yesterday", "2024-13-01", "2011-01-01", "2999-01-01", "", '2024-01-01"][out:csv]'])
def test_a_date_that_is_none_is_a_usage_error(tmp_path: Path, date: str) -> None:
    with pytest.raises(UsageError, match="date"):
        Overpass(overpass.PUBLIC_API, SourceContext(tmp_path, None, 17, KEYS, date))


# --- budget, address -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [DailyBudget(3, 10**9), DailyBudget(1000, 1_000)])
def test_the_days_budget_outlives_the_process(
    nyc: FakeOverpass, tmp_path: Path, http: HttpClient, budget: DailyBudget
) -> None:
    cells = [NYC._replace(south=NYC.south + step * 1e-4) for step in range(4)]
    granted = 3 if budget.requests == 3 else 1
    for cell in cells[:granted]:
        source_of(nyc, tmp_path, budget=budget).fetch(cell, http)
    with pytest.raises(FetchError, match=r"again after 20\d\d-\d\d-\d\d 00:00 UTC"):
        source_of(nyc, tmp_path, budget=budget).fetch(cells[granted], http)
    assert len(nyc.queries) == granted
    # Yesterday's use does not count today.
    (log,) = tmp_path.rglob("used-*.log")
    log.rename(log.with_name(f"used-{datetime.now(UTC) - timedelta(days=1):%Y-%m-%d}.log"))
    source_of(nyc, tmp_path, budget=budget).fetch(BoundsLonLat(-74.01, 40.73, -74.0, 40.74), http)


def test_only_the_public_server_has_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = SourceContext(tmp_path, None, 17, KEYS)
    assert open_overpass(None, context)._budget == overpass.PUBLIC_BUDGET
    assert open_overpass("https://z.overpass-api.de/api", context)._budget == overpass.PUBLIC_BUDGET
    monkeypatch.setenv("MAGC_OVERPASS_URL", "http://127.0.0.1:1/api/")
    source = open_overpass(None, context)
    assert (source._budget, source.info.address) == (None, "http://127.0.0.1:1/api")


@pytest.mark.parametrize(
    "address", ["overpass-api.de/api", "https://example.org/api/interpreter", "ftp://a/api", "https:///api"]
)
def test_an_address_that_is_none_is_a_usage_error(tmp_path: Path, address: str) -> None:
    with pytest.raises(UsageError, match="ends in /api"):
        open_overpass(address, SourceContext(tmp_path, None, 17, KEYS))


def test_a_scheme_without_feature_keys_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to ask"):
        open_overpass(None, SourceContext(tmp_path, None, 17, frozenset({"layer", "width"})))


def test_no_secret_is_told(tmp_path: Path, http: HttpClient) -> None:
    source = open_overpass("http://user:hunter2@127.0.0.1:9/api", SourceContext(tmp_path, None, 17, KEYS))
    with pytest.raises(FetchError) as raised:
        source.fetch(NYC, http)
    assert "hunter2" not in f"{raised.value}{source.info}{list(tmp_path.rglob('*'))}"


# --- recorded answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("remark-runtime-error-01.json", "Query timed out"),
        ("remark-runtime-remark-01.json", "runtime remark: Test"),
        ("remark-unknown-01.json", "Test remark"),
        ("bad-request.html", "line 2: parse error: ';' expected - 'out' found."),
        ("bad-request-encoding.html", "line 2: parse error"),
    ],
)
def test_recorded_failures_are_seen(shared_data: Path, name: str, seen: str) -> None:
    answer = parse_answer((shared_data / "overpass" / name).read_bytes())
    assert isinstance(answer, str)
    assert seen in answer


@pytest.mark.parametrize("name", ["overpy_node-01.json", "overpy_way-03.json", "overpy_relation-03.json"])
def test_recorded_answers_are_read_and_every_cut_is_noticed(shared_data: Path, name: str) -> None:
    body = (shared_data / "overpass" / name).read_bytes()
    answer = parse_answer(body)
    assert not isinstance(answer, str)
    assert answer.timestamp.startswith("201")
    assert to_opl([answer])
    whole = len(body.rstrip())
    for end in np.linspace(0, whole - 1, 50, dtype=int):
        assert isinstance(parse_answer(body[:end]), str)


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"null",
        b"{}",
        b'{"elements": []}',
        b'{"elements": {}, "osm3s": {"timestamp_osm_base": "x"}}',
        b'{"elements": [], "osm3s": "x"}',
        b"",
    ],
)
def test_json_that_is_no_answer_is_none(body: bytes) -> None:
    assert isinstance(parse_answer(body), str)


@pytest.mark.parametrize(
    ("status", "seconds"),
    [
        ("Rate limit: 2\n2 slots available now.\nCurrently running queries", 0.0),
        ("Rate limit: 2\n1 slots available now.\nSlot available after: 2024-01-01T00:00:00Z, in 12 seconds.", 0.0),
        ("Rate limit: 2\nSlot available after: x, in 22 seconds.\nSlot available after: y, in 5 seconds.", 5.0),
        ("Slot available after: x, in -3 seconds.", 0.0),
        ("Rate limit: 0\nCurrently running queries (pid, space limit):\n", None),
        ("<html>502</html>", None),
    ],
)
def test_the_status_page(status: str, seconds: float | None) -> None:
    assert seconds_until_slot(status) == seconds


# --- queries ---------------------------------------------------------------------------------------------------------


def test_the_query_never_changes() -> None:
    """Cached answers are found by the query's digest: another query means fetching everything anew."""
    cell = Cell.around(BoundsLonLat(24.9, 60.1, 25.0, 60.2))
    assert build_query(cell, {"highway", "building:part"}, None) == (
        "[out:json][timeout:90][maxsize:268435456];\n"
        "(\n"
        '  way["building:part"](60.1000000,24.9000000,60.2000000,25.0000000);\n'
        '  rel["type"~"^(multipolygon|boundary)$"]["building:part"](60.1000000,24.9000000,60.2000000,25.0000000);\n'
        '  way["highway"](60.1000000,24.9000000,60.2000000,25.0000000);\n'
        '  rel["type"~"^(multipolygon|boundary)$"]["highway"](60.1000000,24.9000000,60.2000000,25.0000000);\n'
        ")->.touching;\n"
        "is_in(60.1500000,24.9500000)->.areas;\n"
        "wr(pivot.areas)->.around;\n"
        "(\n"
        '  way.around["building:part"];\n'
        '  rel.around["type"~"^(multipolygon|boundary)$"]["building:part"];\n'
        '  way.around["highway"];\n'
        '  rel.around["type"~"^(multipolygon|boundary)$"]["highway"];\n'
        ")->.covering;\n"
        "(.touching;.covering;);\n"
        "(._;>;);\n"
        "out body qt;\n"
    )
    dated = build_query(cell, {"highway"}, "2020-01-01T00:00:00Z")
    assert dated.startswith('[out:json][timeout:90][maxsize:268435456][date:"2020-01-01T00:00:00Z"];\n')
    assert "is_in" not in dated


@given(st.floats(-180, 179.9), st.floats(-90, 89.9), st.floats(1e-6, 0.1), st.floats(1e-6, 0.1))
def test_a_cell_holds_its_bounds_and_is_its_quarters(west: float, south: float, width: float, height: float) -> None:
    bounds = BoundsLonLat(west, south, min(west + width, 180.0), min(south + height, 90.0))
    cell = Cell.around(bounds)
    assert cell.west / 1e7 <= bounds.west + 1e-12
    assert cell.east / 1e7 >= bounds.east - 1e-12
    assert cell.east - cell.west <= (bounds.east - bounds.west) * 1e7 + 2.1
    quarters = [shapely.box(*quarter) for quarter in cell.quarters()]
    assert sum(each.area for each in quarters) == shapely.box(*cell).area


# OSM allows every character but the one that ends C strings.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@settings(deadline=None)
@given(st.dictionaries(TEXT.filter(bool), TEXT, max_size=4))
def test_opl_carries_any_tag(tags: dict[str, str]) -> None:
    import osmium

    elements = [{"type": "way", "id": 5, "nodes": [1, 2], "tags": tags}]
    opl = to_opl([overpass.Answer(elements, "2020")])
    found = [{tag.k: tag.v for tag in way.tags} for way in osmium.FileProcessor(osmium.io.FileBuffer(opl, "opl"))]
    assert found == [tags]


def test_dates() -> None:
    assert parse_osm_date("2024-06-01") == "2024-06-01T00:00:00Z"
    assert parse_osm_date("2024-06-01T12:30:00+02:00") == "2024-06-01T10:30:00Z"
