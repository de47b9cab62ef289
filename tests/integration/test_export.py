"""Exports are read back with the libraries that they are for: every pixel, place, class and split must be there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import tiny_world
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.warp import transform_bounds
from tiny_world import World, tree_digests

from magc_data import cli, grid
from magc_data.errors import DatasetError, UsageError
from magc_data.export import geotiff, huggingface
from magc_data.export.coco import instances
from magc_data.export.job import export
from magc_data.shards.manifest import read_manifest
from magc_data.shards.reader import decode_image, decode_map, read_index, read_members

if TYPE_CHECKING:
    from collections.abc import Callable

FORMATS = ("folders", "huggingface", "geotiff", "coco", "recipe")
PIXELS = ("folders", "huggingface", "geotiff", "coco")
MIDDLE = 2176 * 32  # column of the tiles just east of the corner of four blocks


def edit_index(data: Path, change: Callable[[dict], None]) -> None:
    table = pq.read_table(data / "index.parquet")
    rows = table.to_pylist()
    for row in rows:
        change(row)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), data / "index.parquet")


def side_of(x: int) -> str | None:
    """West to train, east to test, one column to val, one to none."""
    return {MIDDLE: "val", MIDDLE - 1: None}.get(x, "train" if x < MIDDLE else "test")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    os.environ["MAGC_CACHE_DIR"] = str(folder / "cache")
    return World(folder)


@pytest.fixture(scope="module")
def unsplit(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("unsplit") / "data"
    tiny_world.run(world.config(data))
    return data


@pytest.fixture(scope="module")
def split(unsplit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with its rows divided; the bytes stay where they are."""
    data = tmp_path_factory.mktemp("split") / "data"
    shutil.copytree(unsplit, data)
    edit_index(data, lambda row: row.update(split=side_of(row["x"])))
    return data


@pytest.fixture(scope="module")
def exports(unsplit: Path, split: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`FORMAT` of the divided dataset and `FORMAT-unsplit` of the other."""
    folder = tmp_path_factory.mktemp("exports")
    for name in FORMATS:
        export(split, name, folder / name, holds_licence=True, quiet=True)
    for name in ("folders", "huggingface"):
        export(unsplit, name, folder / f"{name}-unsplit", holds_licence=True, quiet=True)
    return folder


def rows_of(data: Path, side: str | None) -> list[dict]:
    return [row for row in read_index(data).to_pylist() if row["split"] == side]


# --- folders -----------------------------------------------------------------------------------------------------------


def as_the_papers_inference_reads(folder: Path) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Two folders, `ref_256` and the other one, sorted and paired by position, opened as RGB."""
    first, second = (each for each in folder.iterdir() if each.is_dir())
    maps, images = (first, second) if first.name == "ref_256" else (second, first)
    pairs = zip(sorted(images.iterdir()), sorted(maps.iterdir()), strict=True)
    return [
        (
            image.name.split(".")[0],
            np.asarray(Image.open(image).convert("RGB")),
            np.asarray(Image.open(each).convert("RGB")),
        )
        for image, each in pairs
    ]


def test_folders_are_what_the_papers_code_reads(split: Path, exports: Path) -> None:
    classes = read_manifest(split)["classes"]
    colours = np.zeros((256, 3), np.uint8)
    for each in classes:
        colours[each["id"]] = each["color"]
    for side in ("train", "val", "test"):
        rows = {row["key"]: row for row in rows_of(split, side)}
        read = as_the_papers_inference_reads(exports / "folders" / side)
        assert {key for key, _, _ in read} == rows.keys()
        for key, image, semantic_map in read:
            members = read_members(split, rows[key])
            assert np.array_equal(image, decode_image(members.image))
            assert np.array_equal(semantic_map, colours[decode_map(members.semantic_map)])
        lists = [(exports / "folders" / side / f"{side}_{name}.txt").read_text().splitlines() for name in ("hr", "ref")]
        assert [Path(path).stem for path in lists[0]] == [Path(path).stem for path in lists[1]]
        for path in lists[0] + lists[1]:
            assert (exports / "folders" / path).is_file()
        assert len(lists[0]) == len(rows)


def test_images_and_maps_keep_their_bytes(unsplit: Path, exports: Path) -> None:
    for row in read_index(unsplit).to_pylist():
        members = read_members(unsplit, row)
        folder = exports / "folders-unsplit" / "all"
        assert (folder / "hr_256" / f"{row['key']}.jpg").read_bytes() == members.image
        assert (folder / "ref_256" / f"{row['key']}.png").read_bytes() == members.semantic_map


# --- huggingface -------------------------------------------------------------------------------------------------------


def load(folder: Path, cache: Path) -> datasets.DatasetDict:
    return datasets.load_dataset(str(folder), cache_dir=str(cache))


def test_the_datasets_library_loads_every_split(split: Path, exports: Path, tmp_path: Path) -> None:
    loaded = load(exports / "huggingface", tmp_path)
    assert set(loaded) == {"train", "validation", "test"}
    for hub_name, side in (("train", "train"), ("validation", "val"), ("test", "test")):
        rows = {row["key"]: row for row in rows_of(split, side)}
        assert loaded[hub_name]["key"][:] == list(rows)
        for sample in loaded[hub_name]:
            row = rows[sample["key"]]
            members = read_members(split, row)
            assert sample["image"].mode == "RGB"
            assert np.array_equal(np.asarray(sample["image"]), decode_image(members.image))
            assert np.array_equal(np.asarray(sample["map"]), decode_map(members.semantic_map))  # ids, not colours
            assert sample["fraction_building"] == pytest.approx(row["fraction_building"])
            assert (sample["lon"], sample["x"], sample["gsd_m"]) == (row["lon"], row["x"], row["gsd_m"])


def test_pictures_keep_their_bytes_in_parquet(split: Path, exports: Path, tmp_path: Path) -> None:
    raw = load(exports / "huggingface", tmp_path)["test"].cast_column("image", datasets.Image(decode=False))
    row = rows_of(split, "test")[0]
    assert raw[0]["image"]["bytes"] == read_members(split, row).image
    assert raw[0]["image"]["path"] == f"{row['key']}.jpg"


def test_files_are_cut_by_size(unsplit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = read_index(unsplit)
    monkeypatch.setattr(huggingface, "FILE_BYTES", 60_000)
    export(unsplit, "huggingface", tmp_path / "out", holds_licence=True, quiet=True)
    files = sorted((tmp_path / "out" / "data").iterdir())
    assert len(files) > 2
    assert files[0].name == f"train-00000-of-{len(files):05d}.parquet"
    keys = [key for file in files for key in pq.read_table(file)["key"].to_pylist()]
    assert keys == rows["key"].to_pylist()
    loaded = load(tmp_path / "out", tmp_path / "cache")
    assert set(loaded) == {"train"}  # what the hub calls a dataset without splits
    assert len(loaded["train"]) == len(rows)


# --- geotiff -----------------------------------------------------------------------------------------------------------


def test_every_tile_is_a_cog_in_its_place(split: Path, exports: Path) -> None:
    classes = read_manifest(split)["classes"]
    for side in ("train", "val", "test"):
        for row in rows_of(split, side):
            members = read_members(split, row)
            tile = grid.parse_key(row["key"])
            with rasterio.open(exports / "geotiff" / side / "images" / f"{row['key']}.tif") as image:
                assert image.crs.to_epsg() == 3857
                assert tuple(image.bounds) == pytest.approx(grid.tile_bounds_3857(tile), abs=1e-6)
                assert np.array_equal(np.moveaxis(image.read(), 0, -1), decode_image(members.image))
                assert image.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
                assert "OpenStreetMap" in image.tags()["TIFFTAG_COPYRIGHT"]
                lonlat = transform_bounds(image.crs, "EPSG:4326", *image.bounds)
                assert lonlat == pytest.approx(grid.tile_bounds_lonlat(tile), abs=1e-9)
            with rasterio.open(exports / "geotiff" / side / "maps" / f"{row['key']}.tif") as semantic_map:
                assert np.array_equal(semantic_map.read(1), decode_map(members.semantic_map))
                assert semantic_map.colorinterp == (ColorInterp.palette,)
                for each in classes:
                    assert semantic_map.colormap(1)[each["id"]] == (*each["color"], 255)
                    assert semantic_map.tags()[f"CLASS_{each['id']}"] == each["name"]


def test_mosaics_hold_every_tile_and_nothing_elsewhere(split: Path, exports: Path) -> None:
    rows = [row for side in ("train", "val", "test") for row in rows_of(split, side)]
    wanted = {(row["x"], row["y"]): row for row in rows}
    folder = exports / "geotiff" / "mosaics"
    files = sorted((folder / "images").glob("*.tif"))
    assert len(files) == 4  # one for each block
    for path in files:
        with rasterio.open(path) as mosaic:
            assert mosaic.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
            assert max(mosaic.width, mosaic.height) <= 512 or mosaic.overviews(1)
    with rasterio.open(folder / "images.vrt") as images, rasterio.open(folder / "maps.vrt") as maps:
        assert images.colorinterp[3] == ColorInterp.alpha
        assert maps.colormap(1)[9] == (178, 62, 50, 255)
        z, size_px = 17, grid.TILE_SIZE_PX
        west, north = min(x for x, _ in wanted), min(y for _, y in wanted)
        for column in range(images.width // size_px):
            for line in range(images.height // size_px):
                window = ((line * size_px, (line + 1) * size_px), (column * size_px, (column + 1) * size_px))
                pixels, classes = images.read(window=window), maps.read(1, window=window)
                row = wanted.pop((west + column, north + line), None)
                if row is None:
                    assert not pixels[3].any()
                    assert (classes == maps.nodata).all()
                    continue
                members = read_members(split, row)
                assert (pixels[3] == 255).all()
                assert np.array_equal(np.moveaxis(pixels[:3], 0, -1), decode_image(members.image))
                assert np.array_equal(classes, decode_map(members.semantic_map))
                corner = images.xy(line * size_px, column * size_px, offset="ul")
                bounds = grid.tile_bounds_3857(grid.Tile(z, row["x"], row["y"]))
                assert corner == pytest.approx((bounds.left_m, bounds.top_m), abs=1e-6)
    assert not wanted
    assert not list(folder.rglob("*.part.tif"))


def test_overviews_of_maps_hold_classes_alone(exports: Path) -> None:
    """An average of ids 0 and 10 would be 5, another class."""
    seen = 0
    for path in (exports / "geotiff" / "mosaics" / "maps").glob("*.tif"):
        with rasterio.open(path) as mosaic:
            ids = {*np.unique(mosaic.read(1)).tolist()}
            for level in range(len(mosaic.overviews(1))):
                with rasterio.open(path, overview_level=level) as overview:
                    assert {*np.unique(overview.read(1)).tolist()} <= ids
                    seen += 1
    assert seen


def test_no_tile_is_a_value_that_is_no_class() -> None:
    look = geotiff.map_look(
        [{"id": 255, "name": "last", "color": [1, 2, 3]}, {"id": 0, "name": "b", "color": [0, 0, 0]}]
    )
    assert look.nodata == 254
    with pytest.raises(UsageError, match="256 classes"):
        geotiff.map_look([{"id": number, "name": str(number), "color": [0, 0, 0]} for number in range(256)])


# --- coco --------------------------------------------------------------------------------------------------------------


def decoded(segmentation: list | dict, size_px: int) -> np.ndarray:
    parts = coco_mask.frPyObjects(segmentation, size_px, size_px)
    return coco_mask.decode(coco_mask.merge(parts) if isinstance(parts, list) else parts).astype(bool)


def test_instances_give_every_building_pixel_back_once(split: Path, exports: Path) -> None:
    building = next(each["id"] for each in read_manifest(split)["classes"] if each["name"] == "building")
    found = 0
    for side in ("train", "val", "test"):
        coco = COCO(str(exports / "coco" / "annotations" / f"instances_{side}.json"))
        assert [each["name"] for each in coco.cats.values()] == ["building"]
        rows = {row["key"]: row for row in rows_of(split, side)}
        assert {image["key"] for image in coco.imgs.values()} == rows.keys()
        for image in coco.imgs.values():
            members = read_members(split, rows[image["key"]])
            assert (exports / "coco" / side / "images" / image["file_name"]).read_bytes() == members.image
            covered = np.zeros((256, 256), int)
            for annotation in coco.imgToAnns[image["id"]]:
                mask = coco.annToMask(annotation).astype(bool)
                assert annotation["area"] == mask.sum()
                rows_, columns = np.nonzero(mask)
                left, top, width, height = annotation["bbox"]
                assert (left, top) == (columns.min(), rows_.min())
                assert (left + width, top + height) == (columns.max() + 1, rows_.max() + 1)
                assert annotation["iscrowd"] == 0
                covered += mask
                found += 1
            assert np.array_equal(covered, decode_map(members.semantic_map) == building)
    assert found > 50


def test_a_courtyard_is_a_hole() -> None:
    mask = np.zeros((16, 16), bool)
    mask[2:9, 3:12] = True
    mask[4:6, 5:8] = False
    (courtyard,) = instances(mask)
    assert courtyard["area"] == 7 * 9 - 2 * 3
    assert np.array_equal(decoded(courtyard["segmentation"], 16), mask)


def test_houses_that_touch_at_a_corner_are_two() -> None:
    mask = np.zeros((16, 16), bool)
    mask[0:4, 0:4] = mask[4:8, 4:8] = True
    assert [each["area"] for each in instances(mask)] == [16, 16]


@pytest.mark.parametrize("density", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_any_mask_at_all_is_given_back(density: float) -> None:
    mask = np.random.default_rng(7).random((48, 48)) < density
    covered = np.zeros(mask.shape, int)
    for each in instances(mask):
        piece = decoded(each["segmentation"], 48)
        assert piece.sum() == each["area"]
        covered += piece
    assert np.array_equal(covered, mask)


def test_a_scheme_without_buildings_has_no_coco(unsplit: Path, tmp_path: Path) -> None:
    shutil.copytree(unsplit, tmp_path / "data")
    manifest = json.loads((tmp_path / "data" / "dataset.json").read_text())
    for each in manifest["classes"]:
        each["name"] = each["name"].replace("building", "house")
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="no class 'building'"):
        export(tmp_path / "data", "coco", tmp_path / "out", holds_licence=True, quiet=True)
    assert not (tmp_path / "out").exists()


# --- what all have in common -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_dataset_gives_the_same_bytes(name: str, split: Path, exports: Path, tmp_path: Path) -> None:
    shutil.copytree(split, tmp_path / "elsewhere")
    export(tmp_path / "elsewhere", name, tmp_path / "again", holds_licence=True, quiet=True)
    assert tree_digests(tmp_path / "again") == tree_digests(exports / name)
    for path in exports.joinpath(name).rglob("*"):
        assert (
            not path.is_file() or str(split.parent.parent).encode() not in path.read_bytes()
        )  # no path of this machine


@pytest.mark.parametrize("name", PIXELS)
def test_what_may_not_be_passed_on_is_refused_with_the_way_out(name: str, unsplit: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--format recipe.*--i-hold-a-licence"):
        export(unsplit, name, tmp_path / "out", quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_holds_no_pixel_and_needs_no_licence(unsplit: Path, tmp_path: Path) -> None:
    export(unsplit, "recipe", tmp_path / "out", quiet=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("magc.lock", "export.json", "ATTRIBUTION.md", "DATASHEET.md")
    }
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert about["exported_under_a_licence_of_the_exporter"] is False


def test_the_exporters_word_is_recorded(exports: Path) -> None:
    about = json.loads((exports / "folders" / "export.json").read_text())
    assert about["exported_under_a_licence_of_the_exporter"] is True
    assert about["left_out"] > 0
    assert set(about["samples"]) == {"train", "val", "test"}
    assert "**no, unless you hold a licence" in (exports / "folders" / "ATTRIBUTION.md").read_text()


def test_one_split_alone(split: Path, tmp_path: Path) -> None:
    result = export(split, "folders", tmp_path / "out", "val", holds_licence=True, quiet=True)
    assert result.samples == {"val": len(rows_of(split, "val"))}
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {"val"}
    assert "split = 'val'" in (tmp_path / "out" / "DATASHEET.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--format", "zip"], 2, "expected one of folders, huggingface, geotiff, coco, recipe"),
        (["--format", "recipe", "--split", "dev"], 2, "it has test, train, val"),
        (["--format", "folders"], 2, "may not be redistributed"),
    ],
)
def test_bad_usage_is_one_sentence(
    arguments: list[str], code: int, said: str, split: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["export", str(split), "--out", str(tmp_path / "out"), *arguments])
    printed = capfd.readouterr()
    assert stopped.value.code == code
    assert said in printed.err
    assert "Traceback" not in printed.err
    assert printed.err.strip().count("\n") == 0
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_it_did(split: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", str(split), "--format", "folders", "--i-hold-a-licence", "--json", "--out"]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*arguments, str(tmp_path / "out")])
    assert stopped.value.code == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["samples"].keys() == {"train", "val", "test"}
    assert answer["left_out"] == len(rows_of(split, None))
    with pytest.raises(SystemExit) as stopped:
        cli.main([*arguments, str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert "exists already" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"key": "../../../escaped"}, "the key .*, which none can be"),
        ({"key": "/tmp/escaped"}, "the key .*, which none can be"),
        ({"image_format": "jpg/../../x"}, "the image_format .*, which none can be"),
        ({"shard": "../data/shards/x.tar"}, "outside the dataset"),
        ({"shard": "/etc/passwd"}, "outside the dataset"),
        ({"split": "../up"}, "the split .*, which none can be"),
    ],
)
@pytest.mark.parametrize("name", ["folders", "recipe"])
def test_a_forged_index_writes_nothing_anywhere(
    change: dict, said: str, name: str, unsplit: Path, tmp_path: Path
) -> None:
    shutil.copytree(unsplit, tmp_path / "data")
    edit_index(tmp_path / "data", lambda row: row.update(change))
    with pytest.raises(DatasetError, match=said):
        export(tmp_path / "data", name, tmp_path / "out", holds_licence=True, quiet=True)
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


def test_a_damaged_shard_leaves_no_half_export(unsplit: Path, tmp_path: Path) -> None:
    shutil.copytree(unsplit, tmp_path / "data")
    shard = tmp_path / "data" / read_manifest(unsplit)["shards"][-1]["path"]
    shard.write_bytes(shard.read_bytes()[:5000])
    for name in PIXELS:
        with pytest.raises(DatasetError, match="magc-data verify"):
            export(tmp_path / "data", name, tmp_path / "out", holds_licence=True, quiet=True)
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


@pytest.mark.parametrize("name", ["geotiff", "coco"])
def test_a_picture_that_does_not_decode_is_one_sentence(name: str, unsplit: Path, tmp_path: Path) -> None:
    shutil.copytree(unsplit, tmp_path / "data")
    row = read_index(unsplit).to_pylist()[3]
    shard = tmp_path / "data" / row["shard"]
    content = bytearray(shard.read_bytes())
    content[row["map_offset"] + 40 : row["map_offset"] + row["map_size"]] = bytes(row["map_size"] - 40)
    shard.write_bytes(content)
    damaged = bytes(content[row["map_offset"] :][: row["map_size"]])
    with pytest.raises(DatasetError, match=f"the map of {row['key']} in .* has another sha256"):
        export(tmp_path / "data", name, tmp_path / "out", holds_licence=True, quiet=True)
    table = read_index(unsplit)
    digests = table["map_sha256"].to_pylist()
    digests[3] = hashlib.sha256(damaged).hexdigest()
    place = table.column_names.index("map_sha256")
    pq.write_table(table.set_column(place, "map_sha256", pa.array(digests)), tmp_path / "data" / "index.parquet")
    with pytest.raises(DatasetError, match=f"the map of {row['key']} in .* cannot be decoded"):
        export(tmp_path / "data", name, tmp_path / "out", holds_licence=True, quiet=True)
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


def test_mask_flags_tell_where_there_is_no_tile(exports: Path) -> None:
    with rasterio.open(exports / "geotiff" / "mosaics" / "images.vrt") as images:
        assert MaskFlags.alpha in images.mask_flag_enums[0]
