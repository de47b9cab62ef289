"""`diff` says what changed, to the pixel, and decodes nothing but what did."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tiny_world
from PIL import Image
from test_bad_input import command

from magc_data import diff as comparison
from magc_data.config import BuildConfig
from magc_data.dataset import MagcDataset
from magc_data.diff import as_json, as_text, difference, flows
from magc_data.diff_picture import GONE, difference_sheet, map_difference
from magc_data.errors import DatasetError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from tiny_world import World

EXTRACTS = {"2013": "osm2pgsql_liechtenstein-2013-08-03.osm.pbf", "2015": "valhalla_liechtenstein-latest.osm.pbf"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """With `before`; with `after`, of which a picture, a house and the area changed; with `maps` and `basic`."""
    folder = tmp_path_factory.mktemp("world")
    os.environ["MAGC_CACHE_DIR"] = str(folder / "cache")
    made = tiny_world.World(folder)
    tiny_world.run(made.config(folder / "before"))
    tiny_world.run(made.config(folder / "maps", imagery="none"))
    tiny_world.run(made.config(folder / "basic", scheme="basic"))
    # The houses of a row become a wood: their ways keep their places.
    lines = made.osm.read_text().splitlines()
    houses = [number for number, line in enumerate(lines) if "Tbuilding=yes" in line][20:26]
    for number in houses:
        lines[number] = lines[number].replace("Tbuilding=yes", "Tnatural=wood")
    changed = folder / "changed.osm.opl"
    changed.write_text("\n".join(lines) + "\n")
    pictures = shutil.copytree(made.pictures, folder / "changed")
    west, south, east, north = tiny_world.BBOX
    narrower = (west, south, east - 0.003, north)
    moved = tiny_world.tiles(narrower)[0]
    darker = (np.asarray(Image.open(made.picture(moved))) // 2).astype(np.uint8)
    Image.fromarray(darker).save(pictures / "17" / str(moved.x) / f"{moved.y}.jpg", quality=95)
    tiny_world.run(made.config(folder / "after", bbox=narrower, osm=str(changed), imagery=str(pictures)))
    return made


@pytest.fixture
def folder(world: World) -> Path:
    return world.pictures.parent


def test_every_pixel_is_counted(folder: Path) -> None:
    """Against all pixels of all tiles, decoded here one by one."""
    before, after = MagcDataset(folder / "before"), MagcDataset(folder / "after")
    common = [key for key in before.keys if key in set(after.keys)]
    found = difference(folder / "before", folder / "after")
    assert found.only_before == tuple(key for key in before.keys if key not in set(common))
    assert len(found.only_before) > 0
    assert found.only_after == ()
    assert found.common == len(common)
    classes = len(before.classes)
    pixels, ground_m2 = np.zeros((classes, classes), np.int64), np.zeros((classes, classes))
    changed, images_changed = {}, 0
    for key in common:
        old, new = before[before.keys.index(key)], after[after.keys.index(key)]
        moved = np.zeros_like(pixels)
        np.add.at(moved, (old.semantic_map.ravel(), new.semantic_map.ravel()), 1)
        pixels += moved
        np.fill_diagonal(moved, 0)
        ground_m2 += moved * old.gsd_m**2
        images_changed += not np.array_equal(old.image, new.image)
        if moved.any() or not np.array_equal(old.image, new.image):
            level = np.abs(old.image.astype(float) - new.image).mean()
            changed[key] = (int(moved.sum()), pytest.approx(level))
    assert np.array_equal(found.pixels, pixels)
    assert found.ground_m2 == pytest.approx(ground_m2)
    assert {change.key: tuple(change[1:]) for change in found.changes} == changed
    assert found.images_changed == images_changed == 1
    assert found.maps_changed == sum(pixels > 0 for pixels, _ in changed.values()) > 0
    names = {(found.class_names[flow.old], found.class_names[flow.new]) for flow in flows(found)}
    assert ("building", "forest") in names


def test_there_and_back_is_the_transpose(folder: Path) -> None:
    there, back = (difference(folder / old, folder / new) for old, new in (("before", "after"), ("after", "before")))
    assert np.array_equal(there.pixels, back.pixels.T)
    assert there.only_before == back.only_after
    assert {change.key for change in there.changes} == {change.key for change in back.changes}


def test_only_what_differs_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read = []
    real = comparison.read_map
    monkeypatch.setattr(comparison, "read_map", lambda data, row: (read.append(row["key"]), real(data, row))[1])
    found = difference(folder / "before", folder / "after")
    assert len(read) == 2 * sum(change.map_pixels > 0 for change in found.changes)
    read.clear()
    copy = shutil.copytree(folder / "before", tmp_path / "copy")
    shutil.rmtree(copy / "shards")  # nothing of them is needed to know that nothing changed
    same = difference(folder / "before", copy)
    assert (same.pixels_changed, same.changes, same.images_changed, read) == (0, (), 0, [])
    assert same.pixels.sum() == same.common * 65536


def test_the_answer_is_for_people_and_for_machines(folder: Path) -> None:
    found = difference(folder / "before", folder / "after")
    text = as_text(found)
    assert f"tiles      {found.common} in both, {len(found.only_before)} only before, 0 only after" in text
    assert f"images     1 of {found.common} changed" in text
    assert "building         forest " in text
    printed = command("diff", folder / "before", folder / "after", "--json").printed
    document = json.loads(printed)
    assert document == json.loads(json.dumps(as_json(found)))
    assert np.array_equal(np.array(document["pixels_from_to"]), found.pixels)
    assert sum(each["pixels_before"] for each in document["classes"]) == found.common * 65536
    assert document["before"]["data"] == str(folder / "before")


def test_maps_alone_are_compared_with_a_dataset_with_images(folder: Path) -> None:
    found = difference(folder / "maps", folder / "before")
    assert found.images_changed is None
    assert found.pixels_changed == 0
    assert f"images     not compared: {folder / 'maps'} without images" in as_text(found)


def test_what_cannot_be_compared_is_one_sentence(folder: Path, world: World, tmp_path: Path) -> None:
    tiny_world.run(
        BuildConfig(bbox=tiny_world.BBOX, zoom=16, imagery="none", osm=str(world.osm), out=tmp_path / "16", workers=1)
    )
    for other, said in (
        ("basic", "has the classes of scheme default and .* those of basic"),
        (tmp_path / "16", "of zoom 17 and .* of zoom 16"),
    ):
        with pytest.raises(UsageError, match=said):
            difference(folder / "before", folder / other)
        ended = command("diff", folder / "before", folder / other, "--quiet")
        assert ended.code == 2
        assert len(ended.complaint.splitlines()) == 1
    with pytest.raises(DatasetError, match="not a magc dataset"):
        difference(folder / "before", tmp_path)


def test_the_difference_is_in_the_colours_of_what_came() -> None:
    palette = np.zeros((256, 3), np.uint8)
    palette[1], palette[2] = (10, 20, 30), (40, 50, 60)
    old, new = np.array([[0, 0, 1, 1]], np.uint8), np.array([[0, 2, 0, 1]], np.uint8)
    drawn = map_difference(old, new, palette)[0].tolist()
    assert drawn[1:3] == [[40, 50, 60], list(GONE)]
    assert len(set(drawn[0])) == len(set(drawn[3])) == 1, "what stayed is grey"
    assert drawn[0] != drawn[3]


def test_the_sheet_shows_each_kind_of_change(folder: Path, tmp_path: Path) -> None:
    found = difference(folder / "before", folder / "after")
    shown = found.most_telling(3)
    largest = flows(found)[0]
    datasets = [MagcDataset(folder / name) for name in ("before", "after")]
    old, new = (each.read_map(each.keys.index(shown[0].key)) for each in datasets)
    there = np.count_nonzero((old == largest.old) & (new == largest.new))
    assert 0 < there <= largest.pixels
    assert difference_sheet(found, tmp_path / "sheet.png", 3) == 3
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    palette = np.zeros((256, 3), np.uint8)
    for each in datasets[0].classes:
        palette[each.id] = each.color
    top, left = 12 + 2 * 22 + 22, 12
    panels = [pixels[top : top + 256, left + 260 * place : left + 260 * place + 256] for place in range(6)]
    assert np.array_equal(panels[0], datasets[0][datasets[0].keys.index(shown[0].key)].image)
    assert np.array_equal(panels[3], palette[old])
    assert np.array_equal(panels[5], map_difference(old, new, palette))


def test_two_years_of_liechtenstein(shared_data: Path, tmp_path: Path) -> None:
    """A corner of it; the figures of the whole are in docs/diff.md."""
    box = (9.50, 47.13, 9.54, 47.16)
    for year, name in EXTRACTS.items():
        out = tmp_path / year
        tiny_world.run(BuildConfig(bbox=box, imagery="none", osm=str(shared_data / "osm" / name), out=out, workers=1))
    found = difference(tmp_path / "2013", tmp_path / "2015")
    assert found.before.osm_timestamp == "2013-08-03T19:00:02Z"
    assert found.after.osm_timestamp == "2015-07-27T21:14:01Z"
    shares = dict(zip(found.class_names, (found.pixels.sum(axis=0) - found.pixels.sum(axis=1)).tolist(), strict=True))
    assert shares["building"] > 0, "two years of mapping add houses"
    assert difference_sheet(found, tmp_path / "sheet.png", 4) == 4
