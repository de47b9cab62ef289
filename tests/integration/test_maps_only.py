"""`--imagery none`: the maps are those of a build with images, and everything that reads datasets knows what to do."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_world
import webdataset as wds
from PIL import Image
from test_bad_input import command

from magc_data.config import BuildConfig
from magc_data.dataset import MagcDataset
from magc_data.errors import DatasetError, UsageError
from magc_data.plan import plan
from magc_data.shards.index import MEMBERS, QUALITY_COLUMNS
from magc_data.shards.reader import decode_record, read_index, read_member, read_members
from magc_data.splits.certificate import CERTIFICATE_NAME
from magc_data.verify import verify
from magc_data.view import make_view

if TYPE_CHECKING:
    from pathlib import Path

    from tiny_world import World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """With `images` and `maps`, two datasets of one place."""
    folder = tmp_path_factory.mktemp("world")
    os.environ["MAGC_CACHE_DIR"] = str(folder / "cache")
    made = tiny_world.World(folder)
    tiny_world.run(made.config(folder / "images"))
    tiny_world.run(made.config(folder / "maps", imagery="none"))
    return made


@pytest.fixture
def folder(world: World) -> Path:
    return world.pictures.parent


def test_the_maps_are_those_of_a_build_with_images(folder: Path) -> None:
    with_images, alone = MagcDataset(folder / "images"), MagcDataset(folder / "maps")
    assert with_images.has_images
    assert not alone.has_images
    assert alone.keys == with_images.keys == [tile.key for tile in tiny_world.tiles()]
    for number in range(len(alone)):
        assert np.array_equal(alone.read_map(number), with_images.read_map(number))
    tables = [read_index(folder / name) for name in ("images", "maps")]
    assert tables[0].schema == tables[1].schema
    assert tables[0]["map_sha256"] == tables[1]["map_sha256"]
    for name in ("image_offset", "image_size", "image_sha256", "image_format", "capture_date"):
        assert tables[1][name].null_count == len(alone), name


def test_a_sample_has_two_members(folder: Path) -> None:
    data = folder / "maps"
    rows = read_index(data).to_pylist()
    shard = rows[0]["shard"]
    of_shard = [row for row in rows if row["shard"] == shard]
    with tarfile.open(data / shard) as archive:
        assert archive.getnames() == [f"{row['key']}.{each}" for row in of_shard for each in ("map.png", "json")]
    record = decode_record(read_member(data, rows[0], "json"))
    assert record["imagery"] is None
    assert record["image_sha256"] is None
    assert record["vectors"] == "world.osm.opl"
    samples = list(wds.WebDataset(str(data / shard), shardshuffle=False, empty_check=False))
    assert [each["__key__"] for each in samples] == [row["key"] for row in of_shard]
    assert set(samples[0]) >= {"map.png", "json"}


def test_what_is_said_of_it(folder: Path) -> None:
    data = folder / "maps"
    document = json.loads((data / "dataset.json").read_text())
    assert set(document["sources"]) == {"vectors"}
    assert document["config"]["imagery"] is None
    assert "Imagery" not in (data / "ATTRIBUTION.md").read_text()
    assert verify(data).findings == ()
    assert "no images" in command("stats", data).printed
    assert json.loads(command("stats", data, "--json").printed)["image_bytes_mean"] is None
    assert "imagery" not in command("info", data).printed


def test_the_preview_shows_maps(folder: Path, tmp_path: Path) -> None:
    ended = command("preview", folder / "maps", "--out", tmp_path / "maps.png", "--count", 3)
    assert ended.printed == f"{tmp_path / 'maps.png'}: 3 samples\n"
    with Image.open(tmp_path / "maps.png") as sheet:
        assert sheet.width == 3 * 256 + 4 * 12
        pixels = np.asarray(sheet.convert("RGB"))
    colors = {tuple(each["color"]) for each in json.loads((folder / "maps" / "dataset.json").read_text())["classes"]}
    tile = pixels[12 + 22 : 12 + 22 + 256, 12 : 12 + 256].reshape(-1, 3)
    assert {tuple(each) for each in np.unique(tile, axis=0).tolist()} <= colors
    assert len(np.unique(tile, axis=0)) > 1


def test_who_wants_an_image_gets_a_sentence(folder: Path) -> None:
    dataset = MagcDataset(folder / "maps")
    row = read_index(folder / "maps").to_pylist()[0]
    for read in (lambda: dataset[0], lambda: read_members(folder / "maps", row)):
        with pytest.raises(DatasetError, match=r"has no image of 17_\d+_\d+: a dataset built with --imagery none"):
            read()
    assert [member for member in MEMBERS if row[f"{member}_size"] is None] == ["image"]


def test_training_says_that_there_are_no_images(folder: Path) -> None:
    data = pytest.importorskip("magc_model.data", reason="needs magc[model]")
    with pytest.raises(data.DataError, match="has no images to train on: it was built with --imagery none"):
        data.open_source(folder / "maps")


def test_quality_is_not_measured_where_there_is_no_image(folder: Path, tmp_path: Path) -> None:
    rows = read_index(folder / "maps")
    assert all(rows[name].null_count == len(rows) for name in QUALITY_COLUMNS)
    assert read_index(folder / "images")["blur"].null_count == 0
    shutil.copytree(folder / "maps", tmp_path / "maps")
    place = rows.column_names.index("blur")
    changed = rows.set_column(place, "blur", pa.array([0.5] * len(rows), pa.float32()))
    pq.write_table(changed, tmp_path / "maps" / "index.parquet")
    assert "the index's blur is 0.5, the pixels say None" in verify(tmp_path / "maps").findings[0]


def test_maps_alone_are_split_and_given_back(folder: Path, tmp_path: Path) -> None:
    """To the same sides as with images, with a certificate that looked at no pictures; undone to the byte."""
    before = tiny_world.tree_digests(folder / "maps")
    data = shutil.copytree(folder / "maps", tmp_path / "maps")
    options = ["--block-m", "300", "--ratios", "0.5,0,0.5", "--seed", "4"]
    ended = command("split", data, *options, "--quiet")
    assert "near-duplicate pairs across sides: not looked for, as there are no images" in ended.printed
    assert json.loads((data / CERTIFICATE_NAME).read_text())["near_duplicates"] is None
    assert verify(data).findings == ()
    assert command("split", folder / "images", *options, "--out", tmp_path / "images", "--quiet").code == 0
    alone, with_images = read_index(data), read_index(tmp_path / "images")
    assert alone.select(["key", "split", "map_sha256"]) == with_images.select(["key", "split", "map_sha256"])
    whole = MagcDataset(folder / "maps")
    for side in ("train", "test"):
        dataset = MagcDataset(data, side)
        assert 0 < len(dataset) < len(whole)
        assert all(np.array_equal(dataset.read_map(key), whole.read_map(key)) for key in dataset.keys)
        with tarfile.open(data / side / "000000.tar") as archive:
            assert archive.getnames() == [f"{key}.{each}" for key in dataset.keys for each in ("map.png", "json")]
    divided = tiny_world.tree_digests(data)
    (data / "index.parquet").unlink()
    (data / CERTIFICATE_NAME).unlink()
    assert command("heal", data, "--quiet").code == 0
    assert tiny_world.tree_digests(data) == divided
    assert command("split", data, "--undo", "--quiet").code == 0
    assert tiny_world.tree_digests(data) == before


def test_a_view_of_maps_is_one(folder: Path, tmp_path: Path) -> None:
    make_view(folder / "maps", "water > 0.01 and blur is None", tmp_path / "view")
    dataset = MagcDataset(tmp_path / "view")
    assert 0 < len(dataset) < len(MagcDataset(folder / "maps"))
    assert not dataset.has_images
    assert (dataset.read_map(0) == MagcDataset(folder / "maps").read_map(dataset.keys[0])).all()
    with pytest.raises(DatasetError, match="has no image of"):
        dataset[0]


def test_a_plan_fetches_no_imagery(world: World, tmp_path: Path) -> None:
    figures = plan(world.config(tmp_path, imagery="none"))
    assert (figures.tiles, figures.tiles_to_fetch, figures.fetch_bytes) == (len(tiny_world.tiles()), 0, 0)
    assert figures.imagery is None
    assert figures.dataset_bytes < plan(world.config(tmp_path)).dataset_bytes
    arguments = ["--imagery", "none", "--osm", world.osm, "--bbox", tiny_world.BBOX_TEXT]
    printed = command("plan", *arguments).printed
    assert "imagery         none: maps alone\nvectors         world.osm.opl: ODbL-1.0" in printed
    assert "to fetch" not in printed
    assert json.loads(command("plan", *arguments, "--json").printed)["imagery"] is None


def test_without_an_area_it_is_that_of_the_vectors(world: World, helsinki_pbf: Path, tmp_path: Path) -> None:
    figures = plan(BuildConfig(imagery="none", osm=str(helsinki_pbf), zoom=13, out=tmp_path))
    assert figures.bounds_lonlat == pytest.approx((24.9351, 60.16417, 24.9532, 60.1791), abs=0.02)
    with pytest.raises(UsageError, match=r"no area was given and .*world\.osm\.opl covers the world"):
        plan(BuildConfig(imagery="none", osm=str(world.osm), out=tmp_path))


def test_it_is_not_continued_with_images(world: World, folder: Path) -> None:
    with pytest.raises(DatasetError, match="begun with other options .*imagery was null and is now"):
        tiny_world.run(world.config(folder / "maps"))


def test_tiles_outside_the_vectors_are_rejected_as_ever(tmp_path: Path, helsinki_pbf: Path) -> None:
    data = tmp_path / "helsinki"
    manifest = tiny_world.run(BuildConfig(imagery="none", osm=str(helsinki_pbf), zoom=15, out=data, workers=1))
    assert set(manifest["counts"]["rejected"]) == {"outside-vectors"}
    assert manifest["counts"]["kept"] > 0
    assert verify(data).findings == ()
