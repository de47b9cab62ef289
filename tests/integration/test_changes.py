"""Pairs of images before and after a change, from a local Wayback that tells which release owns each tile."""

from __future__ import annotations

import json
import re
import tarfile
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
import tiny_world
from fake_arcgis import FakeArcgis, Fault, Picture, picture_of, place_of, running_arcgis
from fake_overpass import FakeOverpass, elements_of_file
from tiny_world import tree_digests
from werkzeug import Response

from magc_data.build import build
from magc_data.changes import build_changes
from magc_data.cli import main
from magc_data.config import BuildConfig, HealConfig
from magc_data.errors import DatasetError, FetchError, SourceError, UsageError
from magc_data.heal import heal
from magc_data.label import label_block
from magc_data.pairs import MagcPairs
from magc_data.plan import plan
from magc_data.shards import index
from magc_data.shards.reader import read_index, read_members
from magc_data.sources.wayback import Release, read_releases
from magc_data.sources.wayback_changes import read_owner, tilemap_address
from magc_data.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from magc_data.changes import ChangesResult
    from magc_data.label import BlockJob, BlockResult

BBOX = tuple(tiny_world.BBOX[i] + (0.0015, 0.0007, -0.0015, -0.0007)[i] for i in range(4))
TILES = tiny_world.tiles(BBOX)
CHANGED = TILES[::3]
WORLD = (-2e7, -2e7, 2e7, 2e7)

RELEASES = {10: "2014-02-20", 31144: "2016-06-11", 645: "2019-06-26", 5359: "2021-03-17", 77: "2023-05-03"}
"""Numbers are in no order of time."""
SPLIT = ("--block-m", "300", "--ratios", "0.5,0.25,0.25", "--seed", "1")
BEFORE, AFTER = 31144, 77  # of 2018..2023


@pytest.fixture
def arcgis(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeArcgis]:
    """A third of the tiles got a new picture in 2021, one of them another one in 2019, and all one in 2016."""
    with running_arcgis() as service:
        service.releases = RELEASES
        service.versions = dict.fromkeys(map(tuple, TILES), (10, 31144))
        service.versions |= dict.fromkeys(map(tuple, CHANGED), (10, 31144, 5359))
        service.versions[tuple(CHANGED[1])] = (10, 645, 5359)
        service.pictures = [
            Picture(WORLD, "2013-07-01", releases=(10, 31144, 645)),
            Picture(WORLD, "2020-08-02", releases=(5359, 77)),
        ]
        monkeypatch.setenv("MAGC_WAYBACK_CONFIG_URL", service.wayback_config_url)
        yield service


@pytest.fixture
def osm(tmp_path: Path) -> Path:
    return tiny_world.write_osm(tmp_path / "world.osm.opl")


def config(out: Path | str, osm: Path | str, **changes: object) -> BuildConfig:
    options = {"bbox": BBOX, "out": out, "osm": str(osm), "workers": 1, "rate": 500.0, "changes": True}
    return BuildConfig(**(options | {"imagery": "wayback:2018..2023"} | changes))  # type: ignore[arg-type]


def run(config: BuildConfig) -> ChangesResult:
    return build_changes(config, lambda _: None, quiet=True)


def exit_code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    return ended.value.code


def reasons(data: Path) -> dict[str, str]:
    return {row["key"]: row["reason"] for row in index.read_table(data / "rejected.parquet").to_pylist()}


def test_only_tiles_whose_owner_changed_become_pairs(arcgis: FakeArcgis, osm: Path, tmp_path: Path) -> None:
    document = run(config(tmp_path / "d", osm)).document
    assert document["counts"]["kept"] == len(CHANGED)
    assert document["counts"]["rejected"] == {"unchanged": len(TILES) - len(CHANGED)}
    assert document["ends"] == {"before": "wayback:31144..77@before", "after": "wayback:31144..77@after"}
    pairs = MagcPairs(tmp_path / "d")
    assert sorted(pairs.keys) == sorted(tile.key for tile in CHANGED)
    rows = {row["key"]: row for row in pairs.table.to_pylist()}
    for tile in CHANGED:
        owners = (10, 5359) if tile == CHANGED[1] else (31144, 5359)
        row = rows[tile.key]
        assert (row["before_release"], row["after_release"]) == tuple(map(str, owners))
        assert (row["before_capture_date"], row["after_capture_date"]) == ("2013-07-01", "2020-08-02")
        assert row["capture_days"] == 2589
        for end, owner in zip(("before", "after"), owners, strict=True):
            (sample,) = (each for each in read_index(tmp_path / "d" / end).to_pylist() if each["key"] == tile.key)
            image = read_members(tmp_path / "d" / end, sample).image
            assert image == picture_of(tuple(tile), owner)
            assert place_of(image) == tuple(tile)
    pair = pairs[CHANGED[0].key]
    assert (pair.before.image != pair.after.image).any()
    assert (pair.before.semantic_map == pair.after.semantic_map).all()
    assert [each.key for each in pairs] == pairs.keys
    for end in ("before", "after"):
        assert verify(tmp_path / "d" / end).findings == ()


def test_each_picture_is_fetched_once_and_unchanged_tiles_cost_one_small_request(
    arcgis: FakeArcgis, osm: Path, tmp_path: Path
) -> None:
    run(config(tmp_path / "d", osm))
    changed = set(map(tuple, CHANGED))
    asked_after = {(AFTER, tuple(tile)): 1 for tile in TILES}
    asked_before = {(BEFORE, place): 1 for place in changed}
    assert arcgis.owner_requests == asked_after | asked_before
    pictures = {(5359, place): 1 for place in changed} | {(31144, place): 1 for place in changed}
    del pictures[31144, tuple(CHANGED[1])]
    assert arcgis.release_tiles == pictures | {(10, tuple(CHANGED[1])): 1}
    assert arcgis.requests["captures"] == 2 * 4  # two ends, four blocks

    # Other releases in which the same pictures are shown: nothing of them is fetched again.
    arcgis.forget()
    run(config(tmp_path / "longer", osm, imagery="wayback:2018..2022"))
    assert not arcgis.release_tiles
    assert arcgis.requests["tile"] == 0
    first = read_index(tmp_path / "d" / "after")["image_sha256"]
    assert read_index(tmp_path / "longer" / "after")["image_sha256"].equals(first)


def test_both_ends_have_the_same_keys_in_the_same_order_in_shards_of_the_same_names(
    arcgis: FakeArcgis, osm: Path, tmp_path: Path
) -> None:
    run(config(tmp_path / "d", osm))
    webdataset = pytest.importorskip("webdataset")
    ends = []
    for end in ("before", "after"):
        urls = getattr(MagcPairs(tmp_path / "d"), end).to_webdataset_urls()
        ends.append([each["__key__"] for each in webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)])
        names = [url.rpartition("/")[2] for url in urls]
        assert sorted(names) == sorted(path.name for path in (tmp_path / "d" / end / "shards").iterdir())
        for url in urls:
            with tarfile.open(url) as tar:
                assert {name.partition(".")[2] for name in tar.getnames()} == {"image.jpg", "map.png", "json"}
    assert ends[0] == ends[1] == MagcPairs(tmp_path / "d").keys


@pytest.mark.slow
def test_the_same_bytes_with_other_workers_and_nothing_to_do_the_second_time(
    arcgis: FakeArcgis, osm: Path, tmp_path: Path
) -> None:
    assert not run(config(tmp_path / "one", osm)).was_complete
    arcgis.forget()
    run(config(tmp_path / "two", osm, workers=2))
    assert arcgis.requests == {"wayback-config": 2}
    before = tree_digests(tmp_path / "one")
    assert tree_digests(tmp_path / "two") == before
    assert run(config(tmp_path / "one", osm)).was_complete
    assert tree_digests(tmp_path / "one") == before


@pytest.mark.parametrize("killed_at", [1, 2, 3])
def test_an_interrupted_build_continues_to_the_same_bytes(
    arcgis: FakeArcgis, osm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    run(config(tmp_path / "clean", osm))
    monkeypatch.setenv("MAGC_CACHE_DIR", str(tmp_path / "new-cache"))
    calls = 0
    real = index.write_table

    def interrupted(*arguments: object) -> int:
        nonlocal calls
        calls += 1
        if calls == (1, 3, 5)[killed_at - 1]:  # of the first end, of the second, of the pairs
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(index, "write_table", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(config(tmp_path / "d", osm))
    with pytest.raises(DatasetError, match="unfinished build of pairs"):
        MagcPairs(tmp_path / "d")
    run(config(tmp_path / "d", osm))
    assert tree_digests(tmp_path / "d") == tree_digests(tmp_path / "clean")


def test_tiles_that_the_older_release_lacks_are_no_pairs(arcgis: FakeArcgis, osm: Path, tmp_path: Path) -> None:
    arcgis.versions[tuple(CHANGED[0])] = (5359,)
    arcgis.absent = {tuple(CHANGED[2])}  # listed, but not there
    document = run(config(tmp_path / "d", osm)).document
    assert document["counts"]["kept"] == len(CHANGED) - 2
    for end in ("before", "after"):
        assert reasons(tmp_path / "d" / end)[CHANGED[0].key] == "not-available"
        assert reasons(tmp_path / "d" / end)[CHANGED[2].key] == "placeholder"


def test_the_same_bytes_from_another_owner_are_no_change(
    arcgis: FakeArcgis, osm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Esri publishes the very same picture again."""
    monkeypatch.setattr("fake_arcgis.picture_of", lambda place, release=0: picture_of(place, 0))
    document = run(config(tmp_path / "d", osm)).document
    assert document["counts"] == {
        "planned": len(TILES),
        "kept": 0,
        "rejected": {"unchanged": len(TILES)},
        "transient": 0,
    }
    rejected = index.read_table(tmp_path / "d" / "after" / "rejected.parquet").to_pylist()
    assert "releases 31144 and 5359 have the very same bytes" in {row["detail"] for row in rejected}
    assert len(MagcPairs(tmp_path / "d")) == 0


def test_a_picture_of_no_place_at_one_end_takes_the_pair_away(
    arcgis: FakeArcgis, osm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown 'no data' picture of the older release: nothing but its repetition gives it away."""
    blank = {tuple(CHANGED[0]), tuple(CHANGED[-1])}

    def picture(place: tuple[int, int, int], release: int = 0) -> bytes:
        return picture_of((1, 1, 1), 1) if place in blank and release == 31144 else picture_of(place, release)

    monkeypatch.setattr("fake_arcgis.picture_of", picture)
    run(config(tmp_path / "d", osm))
    for end in ("before", "after"):
        repeated = {key for key, reason in reasons(tmp_path / "d" / end).items() if reason == "repeated"}
        assert repeated == {CHANGED[0].key, CHANGED[-1].key}
        assert verify(tmp_path / "d" / end).findings == ()
    assert len(MagcPairs(tmp_path / "d")) == len(CHANGED) - 2
    halves = [read_index(tmp_path / "d" / end, ["image_sha256", "capture_pair_sha256"]) for end in ("before", "after")]
    assert halves[0]["capture_pair_sha256"].equals(halves[1]["image_sha256"])
    assert halves[1]["capture_pair_sha256"].equals(halves[0]["image_sha256"])

    # Killed between the two blocks that are done again, in either end: the rest is found all the same.
    for calls_before in (5, 11):
        calls = 0

        def interrupted(job: BlockJob, calls_before: int = calls_before) -> BlockResult:
            nonlocal calls
            calls += 1
            if calls > calls_before:
                raise KeyboardInterrupt
            return label_block(job)

        out = tmp_path / f"killed-{calls_before}"
        with monkeypatch.context() as patched:
            patched.setattr("magc_data.build.label_block", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(config(out, osm))
        run(config(out, osm))
        assert tree_digests(out) == tree_digests(tmp_path / "d")


def test_a_tile_that_fails_at_one_end_comes_later(
    arcgis: FakeArcgis, osm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("magc_data.sources.http.BACKOFF_S", 0.0)
    run(config(tmp_path / "clean", osm))
    monkeypatch.setenv("MAGC_CACHE_DIR", str(tmp_path / "new-cache"))
    arcgis.faults[tuple(CHANGED[0])] = "400"
    arcgis.tilemap_faults[tuple(TILES[1])] = Fault("400")
    arguments = ["build", "--bbox", ",".join(map(str, BBOX)), "--osm", str(osm), "--workers", "1", "--rate", "500"]
    arguments += ["--imagery", "wayback:2018..2023", "--changes", "--quiet", "--out", str(tmp_path / "d")]
    assert exit_code(*arguments) == 0
    printed = capfd.readouterr().out
    assert f"{len(CHANGED) - 1} of {len(TILES)} tiles are pairs" in printed
    assert "2 of the others may come yet: run the same command again" in printed
    arcgis.faults.clear()
    arcgis.tilemap_faults.clear()
    assert exit_code(*arguments) == 0
    assert tree_digests(tmp_path / "d") == tree_digests(tmp_path / "clean")


def test_a_run_killed_before_the_table_leaves_no_table_of_other_ends(
    arcgis: FakeArcgis, osm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("magc_data.sources.http.BACKOFF_S", 0.0)
    arcgis.faults[tuple(CHANGED[0])] = "400"
    run(config(tmp_path / "d", osm))
    assert len(MagcPairs(tmp_path / "d").table) == len(CHANGED) - 1
    arcgis.faults.clear()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("magc_data.changes._document", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config(tmp_path / "d", osm))
    assert not run(config(tmp_path / "d", osm)).was_complete
    pairs = MagcPairs(tmp_path / "d")
    assert sorted(pair.key for pair in pairs) == sorted(tile.key for tile in CHANGED)
    assert run(config(tmp_path / "d", osm)).was_complete


def test_dates_that_are_not_known_are_said_for_each_end(
    arcgis: FakeArcgis, osm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("magc_data.sources.http.BACKOFF_S", 0.0)
    arcgis.capture_answer = Response("", 500)
    arguments = ["build", "--bbox", ",".join(map(str, BBOX)), "--osm", str(osm), "--workers", "1", "--rate", "500"]
    arguments += ["--imagery", "wayback:2018..2023", "--changes", "--quiet", "--out", str(tmp_path / "d")]
    assert exit_code(*arguments) == 0
    printed = capfd.readouterr().out
    for end in ("before", "after"):
        assert f"{end}: {len(CHANGED)} samples without a capture date: the service did not answer" in printed


def test_a_tilemap_that_is_down_stops_the_build(
    arcgis: FakeArcgis, osm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("magc_data.sources.http.BACKOFF_S", 0.0)
    monkeypatch.setattr("magc_data.sources.wayback_changes.HOPELESS_TILES", 1)
    arcgis.tilemap_faults = dict.fromkeys(map(tuple, TILES), Fault("400"))
    with pytest.raises(FetchError, match="told for none of"):
        run(config(tmp_path / "d", osm))
    assert not arcgis.release_tiles


def test_each_end_heals_by_itself(arcgis: FakeArcgis, osm: Path, tmp_path: Path) -> None:
    run(config(tmp_path / "d", osm))
    before = tree_digests(tmp_path / "d")
    for path in (tmp_path / "d" / "before" / "shards").iterdir():
        path.unlink()
    assert heal(HealConfig(data=tmp_path / "d" / "before")).verification.findings == ()
    assert tree_digests(tmp_path / "d") == before


def test_maps_of_both_times(arcgis: FakeArcgis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The point of two datasets: with --match-osm-date the houses that were built are in the one map alone."""
    town = elements_of_file(tiny_world.write_osm(tmp_path / "world.osm.opl"))
    bare = [each for each in town if "building" not in each.get("tags", {})]
    with FakeOverpass([], history={"2012-09-12T06:55:00Z": bare, "2020-01-01T00:00:00Z": town}) as service:
        monkeypatch.setenv("MAGC_OVERPASS_URL", service.api)
        run(config(tmp_path / "d", "overpass", match_osm_date=True))
    rows = {end: read_index(tmp_path / "d" / end).to_pylist() for end in ("before", "after")}
    assert {row["fraction_building"] > 0 for row in rows["before"]} == {False}
    assert {row["fraction_building"] > 0 for row in rows["after"]} == {True}
    table = pq.read_table(tmp_path / "d" / "pairs.parquet")
    assert set(table["before_osm_timestamp"].to_pylist()) == {"2013-07-01T00:00:00Z"}
    assert set(table["after_osm_timestamp"].to_pylist()) == {"2020-08-01T00:00:00Z"}


def write_coast(path: Path, *, is_broken: bool) -> Path:
    """A coast from south to north through the tiles, in two ways; broken, these do not meet."""
    west, south, east, north = BBOX
    steps = [(round((west + east) / 2, 7), round(south - 0.02 + (north - south + 0.04) * n / 60, 7)) for n in range(61)]
    opl = tiny_world.Opl()
    opl.way(steps[:31], "natural=coastline")
    opl.way(steps[31 if is_broken else 30 :], "natural=coastline")
    return opl.write(path)


@pytest.mark.parametrize(("broken_end", "workers"), [("before", 1), ("after", 2)])
def test_a_coast_that_is_broken_at_one_end_takes_the_same_tiles_from_both(
    arcgis: FakeArcgis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken_end: str, workers: int
) -> None:
    then, now = (
        elements_of_file(write_coast(tmp_path / f"{end}.osm.opl", is_broken=end == broken_end))
        for end in ("before", "after")
    )
    with FakeOverpass([], history={"2012-09-12T06:55:00Z": then, "2020-01-01T00:00:00Z": now}) as service:
        monkeypatch.setenv("MAGC_OVERPASS_URL", service.api)
        document = run(config(tmp_path / "d", "overpass", match_osm_date=True, workers=workers)).document
        assert len(service.queries) == len(set(service.queries))  # both ends ask for both states, and each comes once
    rejected = {
        end: {
            row["key"]: row["detail"]
            for row in index.read_table(tmp_path / "d" / end / "rejected.parquet").to_pylist()
            if row["reason"] == "sea-unknown"
        }
        for end in ("before", "after")
    }
    assert 0 < len(rejected["before"]) < len(CHANGED)
    assert document["counts"]["kept"] == len(CHANGED) - len(rejected["before"])
    other_end = "after" if broken_end == "before" else "before"
    assert all(detail.startswith("a coastline ends in the midst") for detail in rejected[broken_end].values())
    assert rejected[other_end] == {
        key: f"in the map of the other half: {detail}" for key, detail in rejected[broken_end].items()
    }
    for end in ("before", "after"):
        assert verify(tmp_path / "d" / end).findings == ()


def test_an_end_by_itself_leaves_out_what_is_no_pair(
    arcgis: FakeArcgis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The map of the other end is looked at also where nothing but this one was ever built."""
    then, now = (
        elements_of_file(write_coast(tmp_path / f"{is_broken}.osm.opl", is_broken=is_broken))
        for is_broken in (True, False)
    )
    with FakeOverpass([], history={"2012-09-12T06:55:00Z": then, "2020-01-01T00:00:00Z": now}) as service:
        monkeypatch.setenv("MAGC_OVERPASS_URL", service.api)
        options = {"imagery": "wayback:2018..2023@after", "changes": False, "match_osm_date": True}
        build(config(tmp_path / "d", "overpass", **options), lambda _: None, quiet=True)
    assert "sea-unknown" in reasons(tmp_path / "d").values()
    assert {row["osm_timestamp"] for row in read_index(tmp_path / "d").to_pylist()} == {"2020-08-01T00:00:00Z"}


def test_ends_that_are_split_alike_are_pairs_of_a_split(arcgis: FakeArcgis, osm: Path, tmp_path: Path) -> None:
    run(config(tmp_path / "d", osm))
    for end in ("before", "after"):
        assert exit_code("split", str(tmp_path / "d" / end), *SPLIT) == 0
    sides = [MagcPairs(tmp_path / "d", split).keys for split in ("train", "val", "test")]
    assert sorted(key for side in sides for key in side) == sorted(tile.key for tile in CHANGED)
    assert exit_code("split", str(tmp_path / "d" / "after"), "--undo") == 0
    with pytest.raises(DatasetError, match="no sample in the split|split both with the same options"):
        MagcPairs(tmp_path / "d", "train")


def test_the_plan_says_what_a_change_costs(
    arcgis: FakeArcgis, osm: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    figures = plan(config(tmp_path / "d", osm))
    assert figures.requests_beside_tiles == {"capture dates": 8, "owners of tiles": len(TILES)}
    assert arcgis.requests["owner"] == arcgis.requests["tile"] == arcgis.requests["captures"] == 0
    of_end = plan(config(tmp_path / "d", osm, imagery="wayback:2018..2023@after", changes=False))
    assert figures.is_of_pairs
    assert figures.tiles_to_fetch == of_end.tiles_to_fetch == 2 * len(TILES)
    assert figures.dataset_bytes == 2 * of_end.dataset_bytes == figures.scale.dataset_bytes.expected
    assert figures.fetch_hours == pytest.approx(4 * len(TILES) / 500 / 3600)
    assert figures.scale.fetch_days == of_end.scale.fetch_days
    assert [each * 86_400 * 500 for each in figures.scale.fetch_days] == pytest.approx(
        [len(TILES), 4 * len(TILES), 4 * len(TILES)]
    )
    arguments = ["--bbox", ",".join(map(str, BBOX)), "--osm", str(osm), "--imagery", "wayback:2018..2023", "--changes"]
    assert exit_code("plan", *arguments) == 0
    assert f"beside tiles    8 requests for capture dates, {len(TILES)} for owners of tiles" in (
        printed := capfd.readouterr().out
    )
    assert "changes         not known beforehand: figures are as if all tiles changed\n" in printed


def test_the_plan_counts_every_state_that_overpass_is_asked_for(
    arcgis: FakeArcgis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MAGC_OVERPASS_URL", raising=False)
    for changes, of_a_block in (({}, 1), ({"match_osm_date": True}, 3)):
        figures = plan(config(tmp_path / "d", "overpass", **changes))
        asked = figures.requests_beside_tiles["OpenStreetMap"]
        assert asked == of_a_block * figures.blocks
        assert figures.scale.vector_query_days == asked / 10_000


# --- what a user types -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("imagery", "ends"),
    [
        ("wayback:2018..2023", "31144..77"),
        ("wayback:2014..2016", "10..31144"),
        ("wayback:2016-05..2016-06", "10..31144"),
        ("wayback:2016-06-10..2016-06-11", "10..31144"),
        ("wayback:645..5359", "645..5359"),
        ("wayback:10..2021", "10..5359"),
    ],
)
def test_ends_in_all_their_forms(arcgis: FakeArcgis, osm: Path, tmp_path: Path, imagery: str, ends: str) -> None:
    assert plan(config(tmp_path / "d", osm, imagery=imagery)).imagery == f"wayback:{ends}@after"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"imagery": "wayback:2023..2018"}, "expected the older one first"),
        ({"imagery": "wayback:2017..2018"}, "expected the older one first, and two of them"),
        ({"imagery": "wayback:2012..2018"}, "Wayback has no release 2012"),
        ({"imagery": "wayback:2018-13..2023"}, "is no Wayback release"),
        ({"imagery": "wayback:..2023"}, "is no Wayback release"),
        ({"imagery": "wayback:2018"}, "expected two releases of one source, such as wayback:2018..2024"),
        ({"imagery": "world-imagery"}, "expected two releases of one source"),
        ({"imagery": "https://a.example/{z}/{x}/{y}.png?api_key=S3CR3T"}, "api_key=***: expected two releases"),
        ({"gsd": 1.07}, "what changed is known of the service's own tiles, so use --zoom"),
        ({"imagery": "wayback:2018..2023@after"}, "expected two releases of one source"),
        (
            {"imagery": "wayback:2018..2023", "changes": False},
            "add --changes for pairs of images, or @before or @after",
        ),
        ({"imagery": "wayback:2018..2023@now", "changes": False}, "add --changes"),
    ],
)
def test_what_is_no_change_is_refused_with_a_way_out(
    arcgis: FakeArcgis, osm: Path, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    wanted = config(tmp_path / "d", osm, **changes)
    with pytest.raises(UsageError, match=re.escape(words)):
        run(wanted) if wanted.changes else build(wanted, lambda _: None, quiet=True)
    assert not (tmp_path / "d").exists()


def test_pairs_are_not_built_into_a_bucket(arcgis: FakeArcgis, osm: Path) -> None:
    with pytest.raises(UsageError, match="pairs are built into a folder"):
        run(config("s3://bucket/prefix", osm))


def test_a_folder_of_something_else_is_left_alone(arcgis: FakeArcgis, osm: Path, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.tex").write_text("years of work")
    with pytest.raises(DatasetError, match=r"holds thesis\.tex, which is not of pairs"):
        run(config(tmp_path / "d", osm))
    with pytest.raises(DatasetError, match="holds no pairs"):
        MagcPairs(tmp_path / "d")


# --- the tilemap -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "owner"),
    [
        ({"data": [1], "select": [645]}, 645),
        ({"data": [1], "select": ["645"]}, 645),
        ({"data": [1]}, 77),
        ({"data": [1], "select": []}, 77),
        ({"data": [1], "select": [None]}, 77),
        ({"data": [0], "select": [645]}, 0),
        ({"data": [0]}, 0),
        ({"data": [1, 1]}, None),
        ({"data": []}, None),
        ({"data": ["x"]}, None),
        ({"data": [1], "select": ["../x"]}, None),
        ({"error": {"code": 500}}, None),
        ([], None),
        (None, None),
    ],
)
def test_answers_of_the_tilemap(answer: object, owner: int | None) -> None:
    assert read_owner(json.dumps(answer).encode(), asked=77) == owner


def test_the_tilemap_is_beside_the_tiles_of_every_real_configuration(shared_data: Path) -> None:
    found = set()
    for name in ("waybackconfig.json", "waybackdevconfig.json"):
        for release in read_releases((shared_data / "arcgis" / name).read_bytes(), name):
            found.add(tilemap_address(release.template))
            assert release.metadata_url is not None
            assert release.metadata_url.endswith("/MapServer")
    assert "https://wayback.maptiles.arcgis.com/arcgis/rest/services/World_Imagery/MapServer/tilemap" in found
    assert all(address.endswith("/World_Imagery/MapServer/tilemap") for address in found)


def test_a_template_without_a_map_server_has_no_tilemap() -> None:
    with pytest.raises(SourceError, match="beside which its tilemap is"):
        tilemap_address("https://example.com/{level}/{row}/{col}.jpg")


def test_releases_sort_by_date_whatever_else_they_hold() -> None:
    first, second = (Release(day, number, "t", url) for day, number, url in ((1, 5, None), (1, 7, "u")))  # type: ignore[arg-type]
    assert sorted([second, first]) == [first, second]
