"""MBTiles, PMTiles and folders of tiles, made here with their own tools and read back."""

from __future__ import annotations

import contextlib
import gzip
import io
import pickle
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pmtiles.tile import Compression, TileType, deserialize_header, zxy_to_tileid
from pmtiles.writer import Writer

from magc_data import grid
from magc_data.errors import MagcDataError, SourceError, UsageError
from magc_data.grid import Tile
from magc_data.schema.sample import ImageFormat, Reason, TileImage
from magc_data.sources.mbtiles import open_mbtiles, open_pmtiles
from magc_data.sources.protocols import ImagerySource, SourceContext
from magc_data.sources.tile_folder import is_tile_folder, open_tile_folder

ZOOM = 12
# Not symmetric about the equator: a flipped row lies far away.
PLACES = [(2100, 1300), (2101, 1300), (2100, 1301), (2103, 1305)]


def context(tmp_path, zoom=ZOOM):
    return SourceContext(tmp_path, None, zoom, frozenset())


def picture(seed, image_format="JPEG", size=(256, 256)):
    """Noise that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, image_format, **({"lossless": True} if image_format == "WEBP" else {}))
    return stream.getvalue()


@pytest.fixture(scope="module")
def pictures():
    return {place: picture(number) for number, place in enumerate(PLACES)}


def make_mbtiles(path, tiles, zoom=ZOOM, **metadata):
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE metadata (name text, value text)")
        db.execute("CREATE TABLE tiles (zoom_level integer, tile_column integer, tile_row integer, tile_data blob)")
        db.execute("CREATE UNIQUE INDEX i ON tiles (zoom_level, tile_column, tile_row)")
        db.executemany("INSERT INTO metadata VALUES (?, ?)", metadata.items())
        rows = [(zoom, x, 2**zoom - 1 - y, data) for (x, y), data in tiles.items()]
        db.executemany("INSERT INTO tiles VALUES (?, ?, ?, ?)", rows)
    db.close()
    return str(path)


def make_pmtiles(
    path, tiles, tile_type=TileType.JPEG, compression=Compression.NONE, zoom=ZOOM, metadata=None, **header
):
    with path.open("wb") as stream:
        writer = Writer(stream)
        for (x, y), data in sorted(tiles.items(), key=lambda each: zxy_to_tileid(zoom, *each[0])):
            writer.write_tile(zxy_to_tileid(zoom, x, y), data)
        writer.finalize({"tile_type": tile_type, "tile_compression": compression, **header}, metadata or {})
    return str(path)


def make_folder(path, tiles, name="{z}/{x}/{y}.jpg", zoom=ZOOM):
    for (x, y), data in tiles.items():
        file = path / name.format(z=zoom, x=x, y=y)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return str(path)


@pytest.fixture(params=["mbtiles", "pmtiles", "pmtiles-gzip", "z/x/y", "z_x_y", "tif-named"])
def source(request, tmp_path, pictures):
    """The same four tiles in every container."""
    box = {"min_lon_e7": 45000000, "min_lat_e7": 544000000, "max_lon_e7": 49500000, "max_lat_e7": 548000000}
    match request.param:
        case "mbtiles":
            return open_mbtiles(make_mbtiles(tmp_path / "t.mbtiles", pictures, format="jpg"), context(tmp_path))
        case "pmtiles":
            return open_pmtiles(make_pmtiles(tmp_path / "t.pmtiles", pictures, **box), context(tmp_path))
        case "pmtiles-gzip":
            packed = {place: gzip.compress(data) for place, data in pictures.items()}
            path = make_pmtiles(tmp_path / "t.pmtiles", packed, compression=Compression.GZIP, **box)
            return open_pmtiles(path, context(tmp_path))
    name = {"z/x/y": "{z}/{x}/{y}.jpg", "z_x_y": "{z}_{x}_{y}.JPG", "tif-named": "{z}_{x}_{y}.tif"}[request.param]
    return open_tile_folder(make_folder(tmp_path / "tiles", pictures, name), context(tmp_path))


def test_every_tile_is_where_it_was_put(source, pictures):
    assert isinstance(source, ImagerySource)
    for place, data in pictures.items():
        assert source.read(Tile(ZOOM, *place)) == TileImage(data, ImageFormat.JPEG)
    for x, y in [(2101, 1301), (2100, 2**ZOOM - 1 - 1300), (0, 0)]:
        assert source.read(Tile(ZOOM, x, y)).reason is Reason.OUTSIDE_IMAGERY


def test_sources_pickle(source, pictures):
    copy = pickle.loads(pickle.dumps(source))
    assert copy.read(Tile(ZOOM, *PLACES[3])).data == pictures[PLACES[3]]
    assert copy.extent().equals(source.extent())


def test_extent_holds_the_tiles_and_little_else(source):
    tiles = [shapely.box(*grid.tile_bounds_lonlat(Tile(ZOOM, *place))) for place in PLACES]
    assert source.extent().buffer(1e-9).covers(shapely.union_all(tiles))
    assert source.extent().area < 1


def test_availability_counts(source):
    blocks = grid.blocks_of_range(grid.TileRange(2099, 1300, 2104, 1305), ZOOM)
    counts = [source.availability(block, None) for block in blocks]
    assert sum(each.available for each in counts) == 4
    assert sum(each.missing for each in counts) == 32


def test_extent_of_mbtiles_is_that_of_the_zoom_and_not_what_metadata_claim(tmp_path, pictures):
    path = make_mbtiles(tmp_path / "t.mbtiles", pictures, bounds="-180,-85,180,85")
    north_west, south_east = Tile(ZOOM, 2100, 1300), Tile(ZOOM, 2103, 1305)
    west, _, _, north = grid.tile_bounds_lonlat(north_west)
    _, south, east, _ = grid.tile_bounds_lonlat(south_east)
    assert open_mbtiles(path, context(tmp_path)).extent().bounds == pytest.approx((west, south, east, north))


def test_pmtiles_that_claim_the_world_have_no_extent(tmp_path, pictures):
    assert open_pmtiles(make_pmtiles(tmp_path / "t.pmtiles", pictures), context(tmp_path)).extent() is None


def test_pmtiles_with_leaf_directories(tmp_path):
    # So many entries, of lengths that do not compress, that the root directory holds leaves only.
    random = np.random.default_rng(0)
    tiles = {(x, y): random.bytes(random.integers(8, 64)) for x in range(256) for y in range(0, 256, 2)}
    path = make_pmtiles(tmp_path / "t.pmtiles", tiles, TileType.PNG, zoom=9)
    assert deserialize_header(Path(path).read_bytes()[:127])["leaf_directory_length"] > 0
    source = open_pmtiles(path, context(tmp_path, 9))
    for place in [(0, 0), (255, 254), (100, 100), (17, 200)]:
        assert source.lookup(path, Tile(9, *place)) == tiles[place]
    assert source.lookup(path, Tile(9, 3, 3)) is None


def test_webp_becomes_png_without_loss(tmp_path):
    data = picture(5, "WEBP")
    path = make_mbtiles(tmp_path / "t.mbtiles", {(1, 2): data}, format="webp")
    image = open_mbtiles(path, context(tmp_path)).read(Tile(ZOOM, 1, 2))
    assert image.format is ImageFormat.PNG
    before, after = (np.asarray(Image.open(io.BytesIO(each)).convert("RGB")) for each in (data, image.data))
    np.testing.assert_array_equal(before, after)


def test_what_is_no_tile_is_rejected_for_good(tmp_path):
    tiles = {(0, 0): b"<html>no</html>", (1, 0): picture(1, size=(512, 512)), (2, 0): picture(2)[:2000]}
    source = open_tile_folder(make_folder(tmp_path / "t", tiles), context(tmp_path))
    found = [source.read(Tile(ZOOM, x, 0)) for x in range(3)]
    assert [each.reason for each in found] == [Reason.UNDECODABLE, Reason.WRONG_SIZE, Reason.UNDECODABLE]
    assert not any(each.transient for each in found)


@pytest.mark.parametrize("kind", ["mbtiles", "pmtiles", "folder"])
def test_another_zoom_names_the_zooms_there(tmp_path, pictures, kind):
    make, opener = {
        "mbtiles": (make_mbtiles, open_mbtiles),
        "pmtiles": (make_pmtiles, open_pmtiles),
        "folder": (make_folder, open_tile_folder),
    }[kind]
    path = make(tmp_path / f"t.{kind}", pictures)
    with pytest.raises(UsageError, match=r"has no tiles of zoom 17: its zooms are 12$"):
        opener(path, context(tmp_path, 17))


def test_vector_tiles_are_refused(tmp_path, pictures):
    with pytest.raises(SourceError, match=r"holds vector tiles \(pbf\), expected images"):
        open_mbtiles(make_mbtiles(tmp_path / "t.mbtiles", pictures, format="pbf"), context(tmp_path))
    with pytest.raises(SourceError, match=r"holds vector tiles \(mvt\), expected images"):
        open_pmtiles(make_pmtiles(tmp_path / "t.pmtiles", pictures, TileType.MVT), context(tmp_path))


def test_pmtiles_of_unknown_compression_are_refused(tmp_path, pictures):
    path = make_pmtiles(tmp_path / "t.pmtiles", pictures, compression=Compression.BROTLI)
    with pytest.raises(SourceError, match="compressed as tiles brotli, directories gzip, expected gzip or none"):
        open_pmtiles(path, context(tmp_path))


def test_attribution_is_taken_over_as_text(tmp_path, pictures):
    words = "<a href='https://example.org'>City of\nExample</a> 2024"
    containers = [
        open_mbtiles(make_mbtiles(tmp_path / "t.mbtiles", pictures, attribution=words), context(tmp_path)),
        open_pmtiles(
            make_pmtiles(tmp_path / "t.pmtiles", pictures, metadata={"attribution": words}), context(tmp_path)
        ),
    ]
    assert [each.info.attribution for each in containers] == ["City of Example 2024"] * 2


@pytest.mark.parametrize("opener", [open_mbtiles, open_pmtiles])
@pytest.mark.parametrize(
    "content", [None, b"", b"PMTiles", b"PMTiles\x03" + bytes(200), b"\xff" * 400, b"SQLite format 3\0"]
)
def test_other_files_are_refused_in_one_sentence(tmp_path, opener, content):
    path = tmp_path / "t.bin"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceError, match=r"cannot be read as|is compressed as tiles unknown") as caught:
        opener(str(path), context(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def containers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    tiles = {(x, y): picture(x, "PNG", (16, 16)) for x in range(4) for y in range(4)}
    return {
        open_mbtiles: make_mbtiles(folder / "t.mbtiles", tiles, 5, format="png"),
        open_pmtiles: make_pmtiles(folder / "t.pmtiles", tiles, TileType.PNG, zoom=5),
    }


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_cut_or_altered_files_are_named_never_a_crash(containers, tmp_path_factory, data):
    opener = data.draw(st.sampled_from([open_mbtiles, open_pmtiles]))
    content = bytearray(Path(containers[opener]).read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, min(len(content), 2000) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "t.bin"
    path.write_bytes(content)
    # Anything but an error of our own fails the test.
    with contextlib.suppress(MagcDataError):
        source = opener(str(path), context(path.parent, 5))
        source.extent()
        for x in range(4):
            source.read(Tile(5, x, x))


def test_folder_errors(tmp_path, pictures):
    with pytest.raises(SourceError, match=r"holds no tiles: expected z/x/y\.jpg"):
        open_tile_folder(str(tmp_path), context(tmp_path))
    make_folder(tmp_path / "t", pictures)
    make_folder(tmp_path / "t", pictures, "{z}_{x}_{y}.png")
    with pytest.raises(SourceError, match="in two ways"):
        open_tile_folder(str(tmp_path / "t"), context(tmp_path))


def test_other_files_in_a_folder_are_ignored(tmp_path, pictures):
    folder = tmp_path / "t"
    make_folder(folder, pictures)
    before = open_tile_folder(str(folder), context(tmp_path))
    make_folder(folder, {(99999999, 1): b"x"})
    for name in ("12/2100/1300.txt", "12/notes.jpg", "README.md", "12_1_1.json", "99/1/1.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    assert open_tile_folder(str(folder), context(tmp_path)) == before


def test_version_follows_the_content(tmp_path, pictures):
    def versions():
        return [
            open_mbtiles(str(tmp_path / "t.mbtiles"), context(tmp_path)).info.version,
            open_tile_folder(str(tmp_path / "t"), context(tmp_path)).info.version,
        ]

    make_folder(tmp_path / "t", pictures)
    make_mbtiles(tmp_path / "t.mbtiles", pictures)
    before = versions()
    assert versions() == before
    changed = {**pictures, PLACES[2]: picture(9)}
    make_folder(tmp_path / "t", changed)
    (tmp_path / "t.mbtiles").unlink()
    path = make_mbtiles(tmp_path / "t.mbtiles", changed)
    # A file that was replaced is opened anew.
    assert open_mbtiles(path, context(tmp_path)).read(Tile(ZOOM, *PLACES[2])).data == changed[PLACES[2]]
    assert all(new != old for new, old in zip(versions(), before, strict=True))


def test_geotiffs_named_like_tiles_are_no_tile_folder(tmp_path, pictures):
    (tmp_path / "17_1_2.tif").write_bytes(b"II*\0" + bytes(100))
    assert not is_tile_folder(tmp_path)
    make_folder(tmp_path / "t", pictures, "{z}_{x}_{y}.tif")
    assert is_tile_folder(tmp_path / "t")
