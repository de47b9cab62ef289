"""The embedded sample, from the real package that pip downloads."""

from __future__ import annotations

import hashlib
import io
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from magc_data import grid
from magc_data.errors import FetchError, SourceError, UsageError
from magc_data.grid import Tile
from magc_data.schema.sample import ImageFormat, Reason, Rejection, TileImage
from magc_data.sources import embedded, sample_banepa
from magc_data.sources.embedded import extracted_member, wheel_path
from magc_data.sources.protocols import ImagerySource, SourceContext, VectorSource
from magc_data.sources.sample_banepa import FAIR_PY_OPS, halve, open_sample_imagery, open_sample_vectors

CLEAN_ZOOM_17 = (
    {(x, y) for x in (96669, 96670, 96672, 96673) for y in (55059, 55060)}
    | {(x, y) for x in range(96671, 96678) for y in (55062, 55063)}
)  # fmt: skip
WHITE_ZOOM_18 = {(193349, 110123), (193350, 110123), (193355, 110123), (193356, 110123)}


def context(cache_dir, zoom):
    return SourceContext(cache_dir, None, zoom, frozenset({"building"}))


@pytest.fixture(scope="session")
def wheel(embedded_cache):
    return wheel_path(FAIR_PY_OPS, embedded_cache)


def read_all(source, zoom):
    wanted = grid.tile_range(grid.BoundsLonLat(*source.extent().bounds), zoom)
    tiles = [tile for block in grid.blocks_of_range(wanted, zoom) for tile in block.tiles]
    return {(tile.x, tile.y): source.read(tile) for tile in tiles}


def inside(extent, tile):
    west, south, east, north = grid.tile_bounds_lonlat(tile)
    return bool(extent.covers(shapely.box(west + 1e-9, south + 1e-9, east - 1e-9, north - 1e-9)))


def test_zoom_17_has_22_complete_clean_labelled_tiles(embedded_cache):
    imagery = open_sample_imagery(None, context(embedded_cache, 17))
    labelled = open_sample_vectors(None, context(embedded_cache, 17)).extent()
    read = read_all(imagery, 17)
    complete = {place for place, result in read.items() if isinstance(result, TileImage)}
    # Row 55061 is whole in the imagery too, but its southern half is outside the labelled areas.
    assert complete == CLEAN_ZOOM_17 | {(96672, 55061), (96673, 55061)}
    assert {place for place in complete if inside(labelled, Tile(17, *place))} == CLEAN_ZOOM_17
    assert all(read[place].format is ImageFormat.PNG for place in complete)
    assert {result.reason for result in read.values() if isinstance(result, Rejection)} == {Reason.OUTSIDE_IMAGERY}


def test_zoom_17_pixels_are_means_of_four(embedded_cache, wheel):
    image = open_sample_imagery(None, context(embedded_cache, 17)).read(Tile(17, 96671, 55062))
    pixels = np.asarray(Image.open(io.BytesIO(image.data)))
    with zipfile.ZipFile(wheel) as archive:
        name = "fair/infra/data/sample/train/oam/OAM-{}-{}-18.tif"
        parts = {
            (dx, dy): np.asarray(Image.open(archive.open(name.format(193342 + dx, 110124 + dy)))).astype(float)
            for dx in (0, 1)
            for dy in (0, 1)
        }
    for (dx, dy), part in parts.items():
        mean = part.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
        quarter = pixels[dy * 128 : dy * 128 + 128, dx * 128 : dx * 128 + 128]
        np.testing.assert_array_equal(quarter, np.floor(mean + 0.5))


@given(arrays(np.uint8, (4, 6, 3), elements=st.integers(0, 255)))
def test_halving_rounds_halves_up(pixels):
    expected = np.floor(pixels.reshape(2, 2, 3, 2, 3).astype(float).mean(axis=(1, 3)) + 0.5)
    np.testing.assert_array_equal(halve(pixels), expected)


def test_zoom_18_gives_the_servers_bytes_but_for_four_white_tiles(embedded_cache, wheel):
    read = read_all(open_sample_imagery(None, context(embedded_cache, 18)), 18)
    images = {place: result for place, result in read.items() if isinstance(result, TileImage)}
    assert len(images) == 152
    with zipfile.ZipFile(wheel) as archive:
        raw = {hashlib.sha256(archive.read(name)).digest() for name in archive.namelist() if name.endswith("-18.tif")}
    assert {hashlib.sha256(image.data).digest() for image in images.values()} <= raw
    assert {image.format for image in images.values()} == {ImageFormat.JPEG}
    missing = {place for place, result in read.items() if result[0] is Reason.MISSING_PIXELS}
    assert missing == WHITE_ZOOM_18


def test_bright_roofs_are_not_missing():
    pixels = np.full((256, 256, 3), 255, np.uint8)
    pixels[::4] = 254
    assert sample_banepa.missing_pixels(pixels) == 0
    pixels[40:48, 80:88] = 255
    assert sample_banepa.missing_pixels(pixels) == (pixels == 255).all(axis=-1).sum()


def test_buildings_are_osm_features_with_ids_tags_and_holes(embedded_cache):
    vectors = open_sample_vectors(None, context(embedded_cache, 17))
    table = vectors.read(grid.BoundsLonLat(85.5, 27.6, 85.6, 27.7))
    assert len(table.geometry) == len(table.osm_id) == len(table.tag_index) == len(table.osm_type) == 6959
    assert len({*zip(table.osm_type.tolist(), table.osm_id.tolist(), strict=True)}) == 6959
    assert all("building" in table.tag_sets[row] for row in table.tag_index)
    assert len(table.tag_sets) == len({frozenset(tags.items()) for tags in table.tag_sets}) < 6959
    (courtyard,) = table.geometry[(table.osm_type == "r") & (table.osm_id == 14486641)]
    assert len(courtyard.interiors) == 1
    assert vectors.extent().buffer(1e-9).covers(shapely.union_all(table.geometry))


def test_reading_a_box_gives_what_touches_it_whole(embedded_cache):
    vectors = open_sample_vectors(None, context(embedded_cache, 17))
    everything = vectors.read(grid.BoundsLonLat(85.5, 27.6, 85.6, 27.7))
    bounds = grid.tile_bounds_lonlat(Tile(17, 96672, 55060))
    part = vectors.read(bounds)
    touching = shapely.intersects(everything.geometry, shapely.box(*bounds))
    assert 0 < touching.sum() < 6959
    assert set(part.osm_id.tolist()) == set(everything.osm_id[touching].tolist())
    assert not shapely.box(*bounds).covers(shapely.union_all(part.geometry))
    assert len(vectors.read(grid.BoundsLonLat(0, 0, 1, 1)).geometry) == 0


def test_sources_pickle_and_know_their_licences(embedded_cache):
    imagery = open_sample_imagery(None, context(embedded_cache, 17))
    vectors = open_sample_vectors(None, context(embedded_cache, 17))
    assert isinstance(imagery, ImagerySource)
    assert isinstance(vectors, VectorSource)
    tile = Tile(17, 96677, 55063)
    assert pickle.loads(pickle.dumps(imagery)).read(tile) == imagery.read(tile)
    copy = pickle.loads(pickle.dumps(vectors))
    bounds = grid.tile_bounds_lonlat(tile)
    np.testing.assert_array_equal(copy.read(bounds).osm_id, vectors.read(bounds).osm_id)
    assert (imagery.info.licence, vectors.info.licence) == ("CC-BY-4.0", "ODbL-1.0")
    blocks = grid.blocks_of_range(grid.TileRange(96669, 55059, 96677, 55063), 17)
    assert sum(imagery.availability(block, None).available for block in blocks) == 24


@pytest.mark.parametrize("zoom", [16, 19])
def test_other_zooms_are_refused(embedded_cache, zoom):
    with pytest.raises(UsageError, match=f"zooms 17 and 18, found --zoom {zoom}"):
        open_sample_imagery(None, context(embedded_cache, zoom))


@pytest.mark.parametrize("opener", [open_sample_imagery, open_sample_vectors])
def test_arguments_are_refused(embedded_cache, opener):
    with pytest.raises(UsageError, match="takes no argument, found 'x'"):
        opener("x", context(embedded_cache, 17))


def test_small_extract_of_the_other_package(embedded_cache):
    from magc_data.sources.helsinki import small_pbf_path

    path = small_pbf_path(embedded_cache)
    assert path.name == "test.osm.pbf"
    assert path.stat().st_size == 137273


def test_helsinki_answers_by_its_name(embedded_cache, tmp_path):
    from magc_data.sources.helsinki import open_helsinki

    source = open_helsinki(None, context(embedded_cache, 17)._replace(cache_dir=embedded_cache))
    assert isinstance(source, VectorSource)
    assert (source.info.name, source.info.licence) == ("helsinki", "ODbL-1.0")
    assert str(embedded_cache) not in source.info.address
    assert source.extent().contains(shapely.Point(24.945, 60.17))
    with pytest.raises(UsageError, match="takes no argument"):
        open_helsinki("now", context(embedded_cache, 17))


# --- the download ----------------------------------------------------------------------------------------------------


def make_index(folder: Path, content: bytes = b"data\n"):
    """A package index of one tiny wheel, in a folder, as pip's --find-links takes it; and its pin."""
    folder.mkdir(exist_ok=True)
    path = folder / "tinydata-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("tinydata/a.txt"), content)
        metadata = "Metadata-Version: 2.1\nName: tinydata\nVersion: 1.0\n"
        archive.writestr(zipfile.ZipInfo("tinydata-1.0.dist-info/METADATA"), metadata)
        archive.writestr(
            zipfile.ZipInfo("tinydata-1.0.dist-info/WHEEL"),
            "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(zipfile.ZipInfo("tinydata-1.0.dist-info/RECORD"), "")
    return embedded.Wheel(
        "tinydata",
        "1.0",
        path.name,
        hashlib.sha256(path.read_bytes()).hexdigest(),
        ("--no-index", "--find-links", str(folder)),
    )


def test_download_keeps_and_repairs(tmp_path):
    wheel = make_index(tmp_path / "index")
    cache = tmp_path / "cache"
    path = wheel_path(wheel, cache)
    assert embedded.read_member(path, "tinydata/a.txt") == b"data\n"
    assert [each.name for each in path.parent.iterdir()] == [wheel.file_name]
    path.write_bytes(b"damaged")
    wheel_path(wheel, cache)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == wheel.sha256
    # Once there, it is not asked for again.
    assert wheel_path(wheel._replace(pip_options=("--no-index",)), cache) == path


def test_extracted_member_is_repaired_too(tmp_path):
    wheel = make_index(tmp_path / "index")
    digest = hashlib.sha256(b"data\n").hexdigest()
    path = extracted_member(wheel, "tinydata/a.txt", digest, tmp_path / "cache")
    assert path == tmp_path / "cache" / "embedded" / "a.txt"
    path.write_bytes(b"dat")
    assert extracted_member(wheel, "tinydata/a.txt", digest, tmp_path / "cache").read_bytes() == b"data\n"
    with pytest.raises(SourceError, match=r"no readable tinydata/b.txt"):
        extracted_member(wheel, "tinydata/b.txt", digest, tmp_path / "cache")


def test_a_file_placed_by_hand_is_taken(tmp_path):
    wheel = make_index(tmp_path / "index")
    placed = tmp_path / "cache" / "embedded" / wheel.file_name
    placed.parent.mkdir(parents=True)
    placed.write_bytes((tmp_path / "index" / wheel.file_name).read_bytes())
    assert wheel_path(wheel._replace(pip_options=("--no-index",)), tmp_path / "cache") == placed


def test_another_file_than_the_pinned_one_is_refused(tmp_path):
    wheel = make_index(tmp_path / "index")
    make_index(tmp_path / "index", b"other\n")
    with pytest.raises(SourceError, match=r"another tinydata==1.0 than the pinned one") as caught:
        wheel_path(wheel, tmp_path / "cache")
    assert f"place {wheel.file_name}" in str(caught.value)
    assert list((tmp_path / "cache" / "embedded").iterdir()) == []


def test_no_network_is_one_sentence_without_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    options = ("--retries", "0", "--index-url", "http://me:geheim@127.0.0.1:9/simple")
    wheel = make_index(tmp_path / "index")._replace(pip_options=options)
    with pytest.raises(FetchError, match=r"pip could not download tinydata==1.0") as caught:
        wheel_path(wheel, tmp_path / "cache")
    message = str(caught.value)
    assert "geheim" not in message
    assert "127.0.0.1" not in message
    assert "\n" not in message
    assert str(tmp_path / "cache" / "embedded") in message


def test_pips_reason_loses_addresses():
    stderr = "WARNING: x\nERROR: Could not fetch https://u:geheim@host/simple for u:geheim@host, stop\nnoise"
    assert embedded._reason(stderr) == "Could not fetch ... for ... stop"


def test_without_pip_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SourceError, match=r"this Python has no pip: install pip, or place tinydata"):
        wheel_path(make_index(tmp_path / "index"), tmp_path / "cache")


def test_unwritable_cache_is_one_sentence(tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(SourceError, match=r"cannot be used .*MAGC_CACHE_DIR"):
        wheel_path(make_index(tmp_path / "index"), tmp_path / "cache")


def test_two_processes_may_download_at_once(tmp_path):
    wheel = make_index(tmp_path / "index")
    code = (
        "import sys; from pathlib import Path; from magc_data.sources.embedded import Wheel, wheel_path; "
        f"wheel_path(Wheel(*{tuple(wheel)!r}), Path({str(tmp_path / 'cache')!r}))"
    )
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [each.wait(60) for each in running] == [0, 0, 0]
    (only,) = (tmp_path / "cache" / "embedded").iterdir()
    assert hashlib.sha256(only.read_bytes()).hexdigest() == wheel.sha256
