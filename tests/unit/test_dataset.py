"""A dataset is read sample by sample: the right pixels, in any process, and a sentence where files are damaged."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import operator
import os
import shutil
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_world
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from magc_data.dataset import MagcDataset, is_dataset
from magc_data.errors import DatasetError, UsageError
from magc_data.grid import parse_key, tile_gsd_m
from magc_data.png import encode_palette_png
from magc_data.schema.classes import load_scheme
from magc_data.shards.reader import UndecodableError, decode_map, decode_record, read_index, read_members
from magc_data.where import WhereError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tiny_world.World:
    folder = tmp_path_factory.mktemp("world")
    os.environ["MAGC_CACHE_DIR"] = str(folder / "cache")
    made = tiny_world.World(folder, tiny_world.FOUR_TILES)
    tiny_world.run(made.config(folder / "dataset"))
    return made


@pytest.fixture
def data(world: tiny_world.World, tmp_path: Path) -> Path:
    return shutil.copytree(world.pictures.parent / "dataset", tmp_path / "dataset")


def edit_index(data: Path, change: Callable[[list[dict]], None]) -> None:
    table = pq.read_table(data / "index.parquet")
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), data / "index.parquet")


def divide(rows: list[dict]) -> None:
    for row, split in zip(rows, ["train", "val", "train", None], strict=True):
        row["split"] = split


def test_samples_are_the_pictures_and_maps_that_went_in(data: Path, world: tiny_world.World) -> None:
    dataset = MagcDataset(str(data))
    assert len(dataset) == 4
    assert dataset.classes == load_scheme("default").classes
    rows = read_index(data).to_pylist()
    assert dataset.keys == [sample.key for sample in dataset] == [row["key"] for row in rows]
    for sample, row, map_alone in zip(dataset, rows, map(dataset.read_map, range(4)), strict=True):
        tile = parse_key(sample.key)
        with Image.open(world.picture(tile)) as picture:
            assert np.array_equal(sample.image, np.asarray(picture))
        assert sample.semantic_map.dtype == np.uint8
        assert np.array_equal(sample.semantic_map, map_alone)
        counts = np.bincount(sample.semantic_map.ravel(), minlength=256) / sample.semantic_map.size
        shares = {each.name: counts[each.id] for each in dataset.classes if counts[each.id]}
        assert shares == pytest.approx(decode_record(read_members(data, row).record)["class_fractions"])
        assert sample.gsd_m == tile_gsd_m(tile)
    assert dataset.sizes_px.tolist() == [[256, 256]] * 4


def test_numbers_count_from_either_end_and_stop(data: Path) -> None:
    dataset = MagcDataset(data)
    assert dataset[-1].key == dataset[3].key
    for number in (4, -5):
        with pytest.raises(IndexError, match="of 4"):
            dataset[number]


def test_a_spawned_process_reads_the_same(data: Path) -> None:
    """A real process that inherits nothing: the dataset travels by pickle."""
    dataset = MagcDataset(data)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(operator.getitem, (dataset, 2))
    assert there.key == dataset[2].key
    assert np.array_equal(there.image, dataset[2].image)
    assert np.array_equal(there.semantic_map, dataset[2].semantic_map)


def test_a_split_is_its_rows_in_order(data: Path) -> None:
    edit_index(data, divide)
    keys = MagcDataset(data).keys
    assert MagcDataset(data, "train").keys == [keys[0], keys[2]]
    assert MagcDataset(data, "val")[0].key == keys[1]
    with pytest.raises(DatasetError, match="'test': expected one of train, val$"):
        MagcDataset(data, "test")


def test_an_undivided_dataset_says_so(data: Path) -> None:
    with pytest.raises(DatasetError, match="not divided"):
        MagcDataset(data, "train")


def test_the_digest_is_of_what_the_rows_say(data: Path) -> None:
    digest = MagcDataset(data).digest
    rows = read_index(data).to_pylist()
    lines = [f"{row['key']} {row['image_sha256']} {row['map_sha256']}\n" for row in rows]
    assert digest == hashlib.sha256("".join(lines).encode()).hexdigest()
    edit_index(data, divide)
    assert MagcDataset(data).digest == digest, "the split is no pixel"
    assert len({digest, MagcDataset(data, "train").digest, MagcDataset(data, "val").digest}) == 3
    edit_index(data, lambda rows: rows[0].update(map_sha256="0" * 64))
    assert MagcDataset(data).digest != digest


def first_shard(data: Path) -> Path:
    return data / read_index(data)["shard"][0].as_py()


def cut_first_shard(data: Path) -> None:
    with first_shard(data).open("r+b") as stream:
        stream.truncate(1000)


def overwrite(data: Path, member: str, content: bytes) -> None:
    """The beginning of the first sample's member becomes something else."""
    row = read_index(data).to_pylist()[0]
    assert len(content) <= row[f"{member}_size"]
    with first_shard(data).open("r+b") as stream:
        stream.seek(row[f"{member}_offset"])
        stream.write(content)


def swap_members(data: Path) -> None:
    edit_index(data, lambda rows: rows[0].update(map_offset=rows[0]["image_offset"], map_size=rows[0]["image_size"]))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: first_shard(data).unlink(), "is missing"),
        (cut_first_shard, "ends inside"),
        (lambda data: overwrite(data, "image", b"what is this"), "the image of .* cannot be decoded"),
        (lambda data: overwrite(data, "map", b"what is this"), "the map of .* cannot be decoded"),
        (swap_members, "the map of .* is of mode RGB"),
    ],
)
def test_damage_is_named_where_it_is_read(data: Path, damage: Callable[[Path], None], said: str) -> None:
    good = MagcDataset(data)[3]
    damage(data)
    dataset = MagcDataset(data)
    with pytest.raises(DatasetError, match=said) as caught:
        dataset[0]
    assert "magc-data verify" in str(caught.value)
    assert np.array_equal(dataset[3].image, good.image), "the other shard is whole"


def test_another_size_is_damage(data: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (128, 64)).save(stream, "JPEG")
    overwrite(data, "image", stream.getvalue())
    with pytest.raises(DatasetError, match="is 128x64 pixels, expected 256x256"):
        MagcDataset(data)[0]


def test_an_index_with_holes_is_refused(data: Path) -> None:
    edit_index(data, lambda rows: rows[0].update(map_offset=None))
    with pytest.raises(DatasetError, match="'map_offset'"):
        MagcDataset(data)


def test_what_is_no_dataset_is_refused(data: Path, tmp_path: Path) -> None:
    assert is_dataset(data)
    assert not is_dataset(tmp_path)
    with pytest.raises(DatasetError, match="not a magc dataset"):
        MagcDataset(tmp_path)
    (data / "dataset.json").unlink()
    (data / ".magc-build").mkdir()
    assert is_dataset(data)
    with pytest.raises(DatasetError, match="unfinished build"):
        MagcDataset(data)


def test_samples_are_found_by_key(data: Path) -> None:
    dataset = MagcDataset(data)
    for number, key in enumerate(dataset.keys):
        assert np.array_equal(dataset[key].image, dataset[number].image)
        assert np.array_equal(dataset.read_map(key), dataset[number].semantic_map)
    with pytest.raises(KeyError, match="no sample 17_0_0"):
        dataset["17_0_0"]


def test_conditions_split_and_box_hold_together(data: Path) -> None:
    edit_index(data, divide)
    rows = read_index(data).to_pylist()
    where = f"x > {rows[0]['x']}"
    assert MagcDataset(data, where=where).keys == [row["key"] for row in rows[1:]]
    assert MagcDataset(data, "train", where=where).keys == [rows[2]["key"]]
    assert MagcDataset(data, where="split is None").keys == [rows[3]["key"]]
    with pytest.raises(DatasetError, match="'val': expected one of train"):
        MagcDataset(data, "val", where=f"x == {rows[0]['x']}")
    with pytest.raises(WhereError, match="did you mean building"):
        MagcDataset(data, where="bilding > 0")
    west, east = rows[1]["lon"], rows[3]["lon"]
    box = (west, -90, east, 90)
    assert MagcDataset(data, bbox_lonlat=box).keys == [row["key"] for row in rows[1:3]], "without the eastern edge"
    assert MagcDataset(data, "train", bbox_lonlat=box).keys == [rows[2]["key"]]
    assert MagcDataset(data, bbox_lonlat=(east, -90, west, 90)).keys == [rows[0]["key"], rows[3]["key"]], (
        "round the back"
    )
    assert len(MagcDataset(data, bbox_lonlat=(0, 0, 1, 1))) == 0
    assert MagcDataset(data, where=where).digest == MagcDataset(data, bbox_lonlat=(rows[1]["lon"], -90, 180, 90)).digest
    for wrong in ((0, 1, 1, 0), (0, 0, 0, 1), (0, -91, 1, 1), (-181, 0, 1, 1), (float("nan"), 0, 1, 1)):
        with pytest.raises(UsageError, match="expected west, south, east, north"):
            MagcDataset(data, bbox_lonlat=wrong)


def test_every_order_is_a_shuffle_of_the_whole(data: Path) -> None:
    dataset = MagcDataset(data)
    orders = [dataset.order(seed, epoch) for seed in range(20) for epoch in range(20)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert len({order.tobytes() for order in orders}) == 24, "all that four samples have"
    assert np.array_equal(dataset.order(3, 1), MagcDataset(data).order(3, 1))
    assert [dataset[number].key for number in dataset.order(0)] == [dataset.keys[number] for number in dataset.order(0)]


def test_shards_that_hold_what_is_asked_for_are_webdatasets(data: Path) -> None:
    dataset = MagcDataset(data)
    samples = list(webdataset.WebDataset(dataset.to_webdataset_urls(), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == dataset.keys
    rows = read_index(data).to_pylist()
    by_shard = {row["shard"]: [each["key"] for each in rows if each["shard"] == row["shard"]] for row in rows}
    assert len(by_shard) == 2
    west, keys = next(iter(by_shard.items()))
    assert MagcDataset(data, where=f"shard == '{west}'").to_webdataset_urls() == [str(data / west)]
    with pytest.raises(DatasetError, match=f"holds {len(keys) - 1} samples besides those asked for"):
        MagcDataset(data, where=f"key == '{keys[0]}'").to_webdataset_urls()


def test_a_forked_process_reads_the_same(data: Path) -> None:
    dataset = MagcDataset(data)
    expected = dataset[2]
    with multiprocessing.get_context("fork").Pool(1) as pool:
        there = pool.apply(operator.getitem, (dataset, 2))
    assert np.array_equal(there.image, expected.image)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 8, 64]), st.data())
def test_maps_decode_as_pillow_says(seed: int, patch_px: int, draw: st.DataObject) -> None:
    """Those of our encoder and of others, whole and damaged: the same pixels, or refused where Pillow has an error."""
    patches = np.random.default_rng(seed).integers(0, 5, (256 // patch_px, 256 // patch_px), dtype=np.uint8)
    class_ids = patches.repeat(patch_px, axis=0).repeat(patch_px, axis=1)
    picture = Image.fromarray(class_ids)
    picture.putpalette(bytes(range(15)))
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=seed % 2 == 0)
    ours = encode_palette_png(class_ids, np.arange(15, dtype=np.uint8).reshape(5, 3))
    for content in (ours, stream.getvalue(), with_filters(ours, class_ids)):
        assert np.array_equal(decode_map(content), class_ids)
    place = draw.draw(st.integers(0, len(ours) - 1) | st.integers(0, 60) | st.integers(1, 20).map(len(ours).__sub__))
    damaged = bytearray(ours)
    damaged[place] ^= draw.draw(st.integers(1, 255))
    for content in (bytes(damaged), ours[:place]):
        found = what_comes(lambda content: np.asarray(Image.open(io.BytesIO(content))), content, Exception)
        assert np.array_equal(what_comes(decode_map, content, UndecodableError), found)


@pytest.mark.parametrize("size", [(255, 256), (256, 257), (1, 1), (40_000, 40_000)])
def test_maps_of_another_size_are_refused(size: tuple[int, int]) -> None:
    """Before they are decoded: a few bytes can promise gigabytes."""
    ours = bytearray(encode_palette_png(np.zeros((256, 256), np.uint8), np.zeros((1, 3), np.uint8)))
    ours[16:24] = struct.pack(">II", *size)
    ours[29:33] = struct.pack(">I", zlib.crc32(ours[12:29]))
    with pytest.raises(UndecodableError, match=f"is {size[0]}x{size[1]} pixels, expected 256x256|DecompressionBomb"):
        decode_map(bytes(ours))


def with_filters(content: bytes, class_ids: np.ndarray) -> bytes:
    """The same PNG with each line as differences from pixel to pixel (filter 1)."""
    differences = np.diff(class_ids, axis=1, prepend=np.uint8(0))
    body = b"IDAT" + zlib.compress(np.insert(differences, 0, 1, axis=1).tobytes())
    start = content.index(b"IDAT") - 4
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return content[:start] + chunk + content[-12:]


def what_comes(decode: Callable[[bytes], np.ndarray], content: bytes, refusal: type[Exception]) -> np.ndarray | str:
    try:
        return decode(content)
    except refusal:
        return "refused"
