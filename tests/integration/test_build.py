"""The whole pipeline: what a dataset holds, that it is always the same, that it survives being killed."""

from __future__ import annotations

import io
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny_world
from PIL import Image
from tiny_world import World, run
from webdataset import WebDataset

from magc_data import area as areas
from magc_data import grid
from magc_data.build import build, repeated_images
from magc_data.config import BuildConfig
from magc_data.errors import DatasetError, FetchError
from magc_data.plan import plan
from magc_data.preview import CAPTION_PX, MAP_OPACITY, MARGIN_PX, contact_sheet, panel
from magc_data.schema.classes import load_scheme, scheme_text
from magc_data.shards import index
from magc_data.shards.manifest import read_manifest
from magc_data.shards.reader import decode_image, decode_map, decode_record, read_index, read_members
from magc_data.stats import statistics
from magc_data.verify import verify


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Path]:
    folder = tmp_path_factory.mktemp("built")
    world = World(folder)
    os.environ["MAGC_CACHE_DIR"] = str(folder / "cache")
    run(world.config(folder / "dataset"))
    return world, folder / "dataset"


def test_a_dataset_is_what_the_contract_says(built: tuple[World, Path]) -> None:
    world, data = built
    tiles = tiny_world.tiles()
    manifest = read_manifest(data)
    assert manifest["counts"] == {"planned": len(tiles), "kept": len(tiles), "rejected": {}, "transient": 0}
    resolutions = [grid.tile_gsd_m(tile) for tile in tiles]
    assert manifest["gsd_m"] == {"min": min(resolutions), "max": max(resolutions)}
    assert {path.name for path in data.iterdir()} == {
        *("dataset.json", "index.parquet", "rejected.parquet", "ATTRIBUTION.md", "shards"),
        *("croissant.json", "collection.json", "DATASHEET.md"),
    }
    rows = read_index(data).to_pylist()
    assert [row["key"] for row in rows] == [tile.key for tile in tiles]
    assert len({row["shard"] for row in rows}) == 4 == len(manifest["shards"])
    for row, tile in zip(rows, tiles, strict=True):
        members = read_members(data, row)
        assert members.image == world.picture(tile).read_bytes()  # the server's bytes, untouched
        record = decode_record(members.record)
        assert record["key"] == row["key"] == tile.key
        assert (
            record["gsd_m"]
            == row["gsd_m"]
            == pytest.approx(156543.0339 * np.cos(np.radians(row["lat"])) / 2**17, rel=1e-6)
        )
        classes = decode_map(members.semantic_map)
        for each in manifest["classes"]:
            assert row[f"fraction_{each['name']}"] == pytest.approx((classes == each["id"]).mean(), abs=1e-6)
    assert rows[0]["osm_timestamp"] == "2024-05-01T00:00:00Z"
    present = {each["name"] for each in manifest["classes"] if any(row[f"fraction_{each['name']}"] for row in rows)}
    assert {"residential", "water", "building", "road_major", "road_minor", "path", "grass"} <= present
    assert verify(data).findings == ()


def test_webdataset_reads_it_back(built: tuple[World, Path]) -> None:
    _, data = built
    urls = [str(data / entry["path"]) for entry in read_manifest(data)["shards"]]
    samples = list(WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == [tile.key for tile in tiny_world.tiles()]
    for sample in samples:
        assert sample["image.jpg"].shape == (256, 256, 3)
        assert sample["json"]["key"] == sample["__key__"]
        assert sample["map.png"].shape == (256, 256, 3)  # the palette's colours, as webdataset decodes


def test_the_lake_lies_where_it_is(built: tuple[World, Path]) -> None:
    """The lake's centre is the corner of four blocks: water around an island, in the right pixels of four shards."""
    _, data = built
    names = {each["name"]: each["id"] for each in read_manifest(data)["classes"]}

    def class_at(lon: float, lat: float) -> int:
        x_px, y_px = (int(each[0]) for each in grid.lonlat_to_px(np.array([lon]), np.array([lat]), tiny_world.ZOOM))
        key = f"17_{x_px // 256}_{y_px // 256}"
        row = next(row for row in read_index(data).to_pylist() if row["key"] == key)
        return int(decode_map(read_members(data, row).semantic_map)[y_px % 256, x_px % 256])

    lon, lat = tiny_world.CORNER_LON, tiny_world.CORNER_LAT
    for east, north in [(1, 1), (1, -1), (-1, 1), (-1, -1)]:
        assert class_at(lon + east * 0.0005, lat + north * 0.0003) == names["water"]
        # On the park around it, between its streets and houses.
        free_lon, free_lat = (0.00165 if east > 0 else -0.0013), (0.0009 if north > 0 else -0.0008)
        assert class_at(lon + free_lon, lat + free_lat) == names["grass"]


def test_the_number_of_workers_does_not_show(built: tuple[World, Path], tmp_path: Path) -> None:
    world, data = built
    run(world.config(tmp_path / "two", workers=2))
    assert tiny_world.tree_digests(tmp_path / "two") == tiny_world.tree_digests(data)


def test_a_second_run_does_nothing_and_says_so(world: World, tmp_path: Path) -> None:
    config = world.config(tmp_path / "d")
    run(config)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "d").rglob("*")}
    assert build(config, lambda _: None, quiet=True).was_complete
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "d").rglob("*")} == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scheme": "basic"}, "scheme was"),
        ({"zoom": 16}, "zoom was 17 and is now 16"),
        ({"bbox": (8.0, 50.0, 8.01, 50.01)}, "area was"),
    ],
)
def test_other_options_are_refused_with_the_difference(built: tuple[World, Path], changes: dict, said: str) -> None:
    world, data = built
    before = tiny_world.tree_digests(data)
    if "zoom" in changes:
        tile_16 = world.pictures / "16" / "1" / "1.jpg"
        tile_16.parent.mkdir(parents=True, exist_ok=True)
        tile_16.write_bytes(b"only so that the folder has the zoom")
    with pytest.raises(DatasetError, match=said):
        run(world.config(data, **changes))
    assert tiny_world.tree_digests(data) == before


def test_a_changed_file_of_the_same_name_is_refused(tmp_path: Path) -> None:
    """Scheme, area and points are given as files: their content counts, not their name."""
    world = World(tmp_path, tiny_world.FOUR_TILES)
    west, south, east, north = world.bbox
    scheme, aoi, points = (tmp_path / name for name in ("mine.yaml", "town.geojson", "places.csv"))
    basic = scheme_text("basic")

    def polygon(east: float) -> str:
        ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
        return json.dumps({"type": "Polygon", "coordinates": [ring]})

    cases = [
        ("scheme", scheme, {"scheme": str(scheme)}, basic, basic.replace("width_m: 2.5", "width_m: 2.6")),
        ("area", aoi, {"bbox": None, "aoi": aoi}, polygon(east), polygon(east - 1e-5)),
        (
            "area",
            points,
            {"bbox": None, "points": points},
            f"lon,lat\n{west},{south}",
            f"lon,lat\n{west + 1e-5},{south}",
        ),
    ]
    for name, path, options, first, second in cases:
        out = tmp_path / f"of-{path.stem}"
        assert first != second
        path.write_text(first)
        run(world.config(out, **options))
        before = tiny_world.tree_digests(out)
        path.write_text(second)
        with pytest.raises(DatasetError, match=f"{name} was"):
            run(world.config(out, **options))
        assert tiny_world.tree_digests(out) == before
        path.write_text(first)
        assert build(world.config(out, **options), lambda _: None, quiet=True).was_complete


def test_one_failing_block_does_not_hold_up_the_others(
    built: tuple[World, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, whole = built
    out = tmp_path / "d"
    with monkeypatch.context() as patch:
        vectors = tiny_world.fail_vectors(patch, 2)
        with pytest.raises(FetchError, match="1 of 4 blocks could not be fetched, the others are done.*is asleep"):
            run(world.config(out))
        assert len(vectors[0].fetched) == 4
    assert not (out / "dataset.json").exists()
    assert len(list((out / "shards").iterdir())) == 3

    # Unfinished, it belongs to its configuration, and what is finished stays.
    before = tiny_world.tree_digests(out)
    with pytest.raises(DatasetError, match="scheme was"):
        run(world.config(out, scheme="basic"))
    assert tiny_world.tree_digests(out) == before

    leftovers = [out / "shards", out, *(path.parent for path in out.rglob("*.arrow"))]
    for folder in leftovers:
        (folder / ".17_0_0.tar.1-ab.part").write_bytes(b"half")
    vectors = tiny_world.fail_vectors(monkeypatch)
    run(world.config(out))
    assert vectors[0].fetched == [whole_block_bounds(1)]  # the one that failed, and no other
    assert tiny_world.tree_digests(out) == tiny_world.tree_digests(whole)


def whole_block_bounds(number: int) -> grid.BoundsLonLat:
    """What is asked for of a block of the world."""
    block = list(areas.blocks(areas.area_from_bbox(tiny_world.BBOX), 17))[number]
    return grid.block_bounds_lonlat(block, load_scheme("default").margin_m)


def test_a_server_that_is_down_is_not_asked_on(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        vectors = tiny_world.fail_vectors(patch, 1, 2, 3)
        with pytest.raises(FetchError, match="3 blocks in a row failed, the last because the server is asleep"):
            run(world.config(tmp_path / "down"))
        assert len(vectors[0].fetched) == 3
    vectors = tiny_world.fail_vectors(monkeypatch, 1, 2, 4)
    with pytest.raises(FetchError, match="3 of 4 blocks could not be fetched"):
        run(world.config(tmp_path / "in-between"))
    assert len(vectors[0].fetched) == 4


def test_what_lies_beside_an_area_paints_into_it(tmp_path: Path) -> None:
    """Half of a wide river or road reaches into the tile, though its line in the data lies far outside of it."""
    tile = tiny_world.tiles(tiny_world.FOUR_TILES)[0]
    west, south, east, north = grid.tile_bounds_lonlat(tile)
    metre_lat = 1 / 111319.49  # degrees
    metre_lon = metre_lat / math.cos(math.radians(north))
    opl = tiny_world.Opl()
    river_lon, road_lat = east + 140 * metre_lon, north + 24 * metre_lat
    opl.way([(river_lon, south - 0.004), (river_lon, north + 0.004)], "waterway=river,width=300")
    opl.way([(west - 0.004, road_lat), (east + 0.0004, road_lat)], "highway=primary,width=58")
    osm = opl.write(tmp_path / "wide.opl")
    names = {each.name: each.id for each in load_scheme("default").classes}
    neighbours = [grid.Tile(17, tile.x + x, tile.y + y) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    pictures = tiny_world.write_pictures(tmp_path / "tiles", neighbours)
    inset = 1e-5
    around = tuple(bound + sign * 0.001 for bound, sign in zip((west, south, east, north), (-1, -1, 1, 1), strict=True))
    maps = []
    for name, bbox in [
        ("alone", (west + inset, south + inset, east - inset, north - inset)),
        ("among-others", around),
    ]:
        run(BuildConfig(bbox=bbox, imagery=str(pictures), osm=str(osm), workers=1, out=tmp_path / name))
        rows = {row["key"]: row for row in read_index(tmp_path / name).to_pylist()}
        maps.append(decode_map(read_members(tmp_path / name, rows[tile.key]).semantic_map))
    alone, among_others = maps
    m_per_px = grid.tile_gsd_m(tile)
    water_px, road_px = 10 / m_per_px, 5 / m_per_px
    assert (alone[128] == names["water"]).sum() == pytest.approx(water_px, abs=1)
    assert (alone[:, 64] == names["road_major"]).sum() == pytest.approx(road_px, abs=1)
    assert np.array_equal(alone, among_others)


def test_a_retry_still_knows_which_pictures_were_repeated(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block that is done again meets only its own half of a pair; the other half is a rejected row by now."""
    tiles = tiny_world.tiles()
    here, elsewhere = tiles[1], tiles[-1]
    assert (here.x // 32, here.y // 32) != (elsewhere.x // 32, elsewhere.y // 32)
    for tile in (here, elsewhere):
        world.picture(tile).write_bytes(tiny_world.picture(grid.Tile(17, 1, 1)))
    with monkeypatch.context() as patch:
        tiny_world.fail_imagery(patch, tiles[0])
        manifest = run(world.config(tmp_path / "d"))
    assert manifest["counts"]["rejected"] == {"fetch-failed": 1, "repeated": 2}
    assert manifest["counts"]["transient"] == 1
    assert run(world.config(tmp_path / "d"))["counts"]["rejected"] == {"repeated": 2}
    run(world.config(tmp_path / "whole"))
    assert tiny_world.tree_digests(tmp_path / "d") == tiny_world.tree_digests(tmp_path / "whole")


@pytest.mark.slow
def test_killed_at_random_it_ends_in_the_same_bytes(built: tuple[World, Path], tmp_path: Path) -> None:
    """kill -9 the real program, its workers with it or not, and run it again."""
    world, data = built
    expected = tiny_world.tree_digests(data)
    out = tmp_path / "killed"
    rng = random.Random(20260901)
    environment = os.environ | {"MAGC_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "magc_data", *world.arguments(out, workers=2)]
    kills = 0
    for finished_blocks in (0, 1, 2):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if (out / "shards").is_dir() and len(list((out / "shards").iterdir())) > finished_blocks:
                break
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        if process.poll() is None:
            # Once the parent alone, as an out-of-memory killer does: its workers must not go on writing for long.
            (os.kill if finished_blocks == 1 else os.killpg)(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 2, "the build was too quick to be killed: make the world larger"
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert tiny_world.tree_digests(out) == expected


def test_repeated_pictures_are_rejected_within_and_across_blocks(world: World, tmp_path: Path) -> None:
    tiles = tiny_world.tiles()
    by_block: dict[tuple[int, int], list[grid.Tile]] = {}
    for tile in tiles:
        by_block.setdefault((tile.x // 32, tile.y // 32), []).append(tile)
    first, second, *_ = by_block.values()
    same_block = [first[0], first[3]]
    across = [first[1], second[2]]
    for group in (same_block, across):
        for tile in group:
            world.picture(tile).write_bytes(tiny_world.picture(grid.Tile(17, 1, group[0].x)))
    run(world.config(tmp_path / "d"))
    rejected = index.read_table(tmp_path / "d" / "rejected.parquet").to_pylist()
    assert {row["key"] for row in rejected} == {tile.key for tile in same_block + across}
    assert {row["reason"] for row in rejected} == {"repeated"}
    assert verify(tmp_path / "d").findings == ()
    run(world.config(tmp_path / "two", workers=2))
    assert tiny_world.tree_digests(tmp_path / "two") == tiny_world.tree_digests(tmp_path / "d")


def test_repeats_are_counted_on_the_whole_digest() -> None:
    """Two digests that share their first 64 bits are not the same picture."""
    blocks = [["ab" * 32, "cd" * 32], ["ab" * 8 + "00" * 24], ["cd" * 32]]
    assert repeated_images(lambda: iter(blocks)) == {"cd" * 32}
    assert repeated_images(lambda: iter([])) == frozenset()


def jpeg(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "JPEG")
    return stream.getvalue()


def test_no_poisoned_sample_is_kept(world: World, tmp_path: Path) -> None:
    tiles = tiny_world.tiles()
    good = tiny_world.picture(tiles[1])
    rng = np.random.default_rng(1)
    poison = {
        tiles[0]: (jpeg(np.full((256, 256, 3), 40, dtype=np.uint8)), "blank"),
        tiles[1]: (good[: len(good) // 2], "undecodable"),
        tiles[2]: (b"<html><body>please log in</body></html>", "undecodable"),
        tiles[3]: (jpeg(rng.integers(0, 255, (512, 512, 3), dtype=np.uint8)), "wrong-size"),
    }
    for tile, (data, _) in poison.items():
        world.picture(tile).write_bytes(data)
    missing = tiles[5]
    world.picture(missing).unlink()
    manifest = run(world.config(tmp_path / "d"))
    rows = index.read_table(tmp_path / "d" / "rejected.parquet").to_pylist()
    found = {row["key"]: row["reason"] for row in rows}
    expected = {tile.key: reason for tile, (_, reason) in poison.items()}
    assert found.pop(missing.key) in {"outside-imagery", "not-available"}
    assert found == expected
    assert all(row["detail"] for row in rows)
    assert sum(Counter(manifest["counts"]["rejected"]).values()) == 5
    assert verify(tmp_path / "d").findings == ()


def test_an_area_without_any_sample_is_still_a_dataset(world: World, tmp_path: Path) -> None:
    for tile in tiny_world.tiles():
        world.picture(tile).write_bytes(b"no picture")
    manifest = run(world.config(tmp_path / "d"))
    assert manifest["counts"]["kept"] == 0
    assert verify(tmp_path / "d").findings == ()
    assert read_index(tmp_path / "d").num_rows == 0


@pytest.mark.parametrize(
    "files",
    [
        ["holiday.jpg"],
        [".build/debug/app.o", "Package.swift"],
        [".build/config.json", ".build/blocks/17_0_0.arrow"],
        ["shards/17_0_0.tar"],
    ],
)
def test_a_foreign_folder_is_refused_and_left_alone(world: World, tmp_path: Path, files: list[str]) -> None:
    foreign = tmp_path / "foreign"
    for name in files:
        (foreign / name).parent.mkdir(parents=True, exist_ok=True)
        (foreign / name).write_bytes(b"mine")
    before = tiny_world.tree_digests(foreign)
    with pytest.raises(DatasetError, match="no magc dataset"):
        run(world.config(foreign))
    assert tiny_world.tree_digests(foreign) == before


def test_a_file_is_no_folder_to_build_in(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(DatasetError, match="is a file"):
        run(world.config(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_two_builds_at_once_are_refused(world: World, tmp_path: Path) -> None:
    from magc_data.shards.folder import DatasetFolder

    out = tmp_path / "d"
    with DatasetFolder(out).locked(), pytest.raises(DatasetError, match="being built by another process"):
        run(world.config(out))


def test_the_manifest_names_sources_and_terms(built: tuple[World, Path]) -> None:
    _, data = built
    manifest = json.loads((data / "dataset.json").read_text())
    assert set(manifest["sources"]) == {"imagery", "vectors"}
    assert manifest["sources"]["vectors"]["licence"] == "ODbL-1.0"
    text = (data / "ATTRIBUTION.md").read_text()
    assert "OpenStreetMap contributors" in text
    assert "Licence" in text


def test_tiles_outside_the_labels_are_rejected_unfetched(world: World, tmp_path: Path, helsinki_pbf: Path) -> None:
    """The extract of Helsinki has nothing to say about this town: no falsely empty maps."""
    manifest = run(world.config(tmp_path / "d", osm=str(helsinki_pbf)))
    assert manifest["counts"]["rejected"] == {"outside-vectors": len(tiny_world.tiles())}
    assert verify(tmp_path / "d").findings == ()


def test_tiles_across_the_edge_of_the_labels_are_rejected(tmp_path: Path, helsinki_pbf: Path) -> None:
    import osmium

    box = osmium.io.Reader(str(helsinki_pbf)).header().box()
    west, south, east, north = box.bottom_left.lon, box.bottom_left.lat, box.top_right.lon, box.top_right.lat
    wide = (west - 0.004, south - 0.002, east + 0.004, north + 0.002)
    for block in areas.blocks(areas.area_from_bbox(wide), 17):
        for tile in block.tiles:
            path = tmp_path / "tiles" / "17" / str(tile.x) / f"{tile.y}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tiny_world.picture(tile))
    run(
        BuildConfig(
            bbox=wide,
            imagery=str(tmp_path / "tiles"),
            osm=str(helsinki_pbf),
            water_polygons="none",  # its coastline is cut off, which rejects tiles of its own (test_sea_real.py)
            workers=1,
            out=tmp_path / "d",
        )
    )
    inside = {
        tile.key
        for block in areas.blocks(areas.area_from_bbox(wide), 17)
        for tile in block.tiles
        if grid.tile_bounds_lonlat(tile).west >= west
        and grid.tile_bounds_lonlat(tile).east <= east
        and grid.tile_bounds_lonlat(tile).south >= south
        and grid.tile_bounds_lonlat(tile).north <= north
    }
    assert len(inside) > 20
    assert set(read_index(tmp_path / "d")["key"].to_pylist()) == inside


def test_a_disk_that_fills_up_is_one_sentence_and_loses_nothing(built: tuple[World, Path], tmp_path: Path) -> None:
    """A file-size limit of the system stands for the full disk: writing fails in the middle of a shard, in a worker."""
    world, data = built
    largest = max(path.stat().st_size for path in (data / "shards").iterdir())
    environment = os.environ | {"MAGC_CACHE_DIR": str(tmp_path / "cache")}
    program = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({largest - 1000}, {largest - 1000}))\n"
        f"from magc_data.cli import main; main({world.arguments(tmp_path / 'd', workers=2)!r})"
    )
    failed = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    *terms, sentence = failed.stderr.strip().splitlines()
    assert len(terms) == 2
    assert re.fullmatch(r"magc-data: .*\.tar: File too large \(.*\)", sentence)
    run(world.config(tmp_path / "d"))
    assert tiny_world.tree_digests(tmp_path / "d") == tiny_world.tree_digests(data)


def test_the_ground_is_measured_on_the_sphere(built: tuple[World, Path]) -> None:
    """Area between meridians and parallels: R^2 x difference of longitude x difference of the latitudes' sines."""
    _, data = built
    expected_m2 = 0.0
    for tile in tiny_world.tiles():
        west, south, east, north = np.radians(grid.tile_bounds_lonlat(tile))
        expected_m2 += grid.EARTH_RADIUS_M**2 * (east - west) * (np.sin(north) - np.sin(south))
    figures = statistics(data)
    assert figures.ground_km2 == pytest.approx(expected_m2 / 1e6, rel=1e-6)
    assert figures.gsd_m_min < figures.gsd_m_mean < figures.gsd_m_max


@pytest.mark.parametrize(
    ("south", "north", "nearest", "farthest"),
    [(-0.4, 1.0, 0.0, 1.0), (-1.0, 0.4, 0.0, 1.0), (-1.5, -1.0, 1.0, 1.5), (1.0, 1.5, 1.0, 1.5)],
)
def test_the_plan_knows_where_pixels_are_largest(
    built: tuple[World, Path], south: float, north: float, nearest: float, farthest: float
) -> None:
    world, _ = built
    figures = plan(world.config(Path("unused"), bbox=(10.0, south, 10.001, north)))
    assert figures.gsd_m_max == pytest.approx(40075016.686 * math.cos(math.radians(nearest)) / 256 / 2**17)
    assert figures.gsd_m_min == pytest.approx(40075016.686 * math.cos(math.radians(farthest)) / 256 / 2**17)


def test_the_preview_shows_image_map_and_overlay(built: tuple[World, Path], tmp_path: Path) -> None:
    _, data = built
    assert contact_sheet(data, tmp_path / "sheet.png", count=1) == 1
    with Image.open(tmp_path / "sheet.png") as picture:
        sheet = np.asarray(picture.convert("RGB"))
    top = MARGIN_PX + CAPTION_PX
    image, colored, overlay = (
        sheet[top : top + 256, MARGIN_PX + place * 260 : MARGIN_PX + place * 260 + 256].astype(int)
        for place in range(3)
    )
    shown = [
        decode_map(members.semantic_map)
        for row in read_index(data).to_pylist()
        if np.array_equal(decode_image((members := read_members(data, row)).image), image)
    ]
    (classes,) = shown
    assert len(np.unique(classes)) > 3
    colors = {each["id"]: each["color"] for each in read_manifest(data)["classes"]}
    palette = np.array([colors.get(class_id, [0, 0, 0]) for class_id in range(256)], dtype=np.uint8)
    assert np.array_equal(colored, palette[classes])
    assert np.array_equal(overlay, panel(image, classes, palette).overlay)


def test_the_overlay_tints_outlines_and_leaves_background_clear() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    palette = rng.integers(0, 256, (4, 3), dtype=np.uint8)
    classes = rng.integers(0, 4, (32, 32), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    shown = panel(image, classes, palette)
    assert np.array_equal(shown.image, image)
    assert np.array_equal(shown.semantic_map, palette[classes])
    # A pixel is on an outline if the one above it or to its left is another.
    above, left = np.vstack([classes[:1], classes[:-1]]), np.hstack([classes[:, :1], classes[:, :-1]])
    outline = ((classes != above) | (classes != left)) & (classes > 0)
    inside = ~outline & (classes > 0)
    assert np.array_equal(shown.overlay[outline], palette[classes][outline])
    assert np.array_equal(shown.overlay[classes == 0], image[classes == 0])
    mixed = image[inside] * (1 - MAP_OPACITY) + palette[classes][inside] * MAP_OPACITY
    assert np.abs(shown.overlay[inside] - mixed).max() <= 1
