"""Rasters of all kinds as tiles: places checked against pyproj and published points, pixels against plain numpy."""

from __future__ import annotations

import io
import math
import pickle
import warnings
from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from rasterio.enums import ColorInterp

from magc_data import grid
from magc_data.errors import SourceError, UsageError
from magc_data.grid import Tile
from magc_data.schema.sample import ImageFormat, Reason, TileImage
from magc_data.sources import raster
from magc_data.sources.protocols import ImagerySource, SourceContext
from magc_data.sources.raster import collar, open_raster, warp

RD_NEW = "weecology_DeepForest__test_tiled.tif"
LV95 = "martibosch_detectree__1091-322_00.tif"
WORLD_MERCATOR = "weecology_DeepForest__5b90f92da0d7280005fab355_4310.tif"

TILE = Tile(17, 70000, 43000)
"""Where the rasters made here lie."""


def context(zoom=17):
    return SourceContext(Path(), None, zoom, frozenset())


def grid_transform(zoom, left_px, top_px, pixel=1.0):
    """Geotransform of a raster in EPSG:3857 whose corner is a corner of the pixel grid; `pixel` in target pixels."""
    resolution = 2 * grid.HALF_CIRCUMFERENCE_M / (256 * 2**zoom)
    return rasterio.Affine(
        resolution * pixel,
        0,
        left_px * resolution - grid.HALF_CIRCUMFERENCE_M,
        0,
        -resolution * pixel,
        grid.HALF_CIRCUMFERENCE_M - top_px * resolution,
    )


def write(path, bands, transform=None, crs="EPSG:3857", roles=None, mask=None, **profile):
    """A GeoTIFF of bands [bands, height, width]."""
    count, height, width = bands.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    transform = transform or grid_transform(TILE.z, TILE.x * 256, TILE.y * 256)
    with (
        warnings.catch_warnings(action="ignore"),
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path,
            "w",
            driver="GTiff",
            count=count,
            height=height,
            width=width,
            dtype=bands.dtype,
            crs=crs,
            transform=transform,
            **profile,
        ) as dataset,
    ):
        dataset.write(bands)
        if roles:
            dataset.colorinterp = roles
        if mask is not None:
            dataset.write_mask(mask)
    return str(path)


def noise(height=256, width=256, count=3, seed=0, low=1):
    return np.random.default_rng(seed).integers(low, 256, (count, height, width), np.uint8)


def pixels_of(image):
    assert isinstance(image, TileImage), image
    assert image.format is ImageFormat.PNG
    return np.asarray(Image.open(io.BytesIO(image.data)))


def open_file(path, zoom):
    (file,) = open_raster(str(path), context(zoom)).files
    return file


# --- where pixels go -------------------------------------------------------------------------------------------------


def test_a_raster_on_the_grid_is_copied(tmp_path):
    bands = noise(low=0)
    source = open_raster(write(tmp_path / "a.tif", bands), context())
    assert isinstance(source, ImagerySource)
    np.testing.assert_array_equal(pixels_of(source.read(TILE)), bands.transpose(1, 2, 0))


def test_a_raster_stored_from_the_south_is_copied_too(tmp_path):
    bands = noise()
    transform = grid_transform(17, TILE.x * 256, TILE.y * 256) * rasterio.Affine(1, 0, 0, 0, -1, 256)
    source = open_raster(write(tmp_path / "a.tif", bands[:, ::-1], transform), context())
    np.testing.assert_array_equal(pixels_of(source.read(TILE)), bands.transpose(1, 2, 0))


@pytest.mark.parametrize("factor", [2, 4])
def test_a_finer_raster_is_averaged_halves_up(tmp_path, factor):
    bands = noise(256 * factor, 256 * factor)
    transform = grid_transform(17, TILE.x * 256, TILE.y * 256, 1 / factor)
    source = open_raster(write(tmp_path / "a.tif", bands, transform), context())
    mean = bands.reshape(3, 256, factor, 256, factor).mean(axis=(2, 4))
    np.testing.assert_array_equal(pixels_of(source.read(TILE)).transpose(2, 0, 1), np.floor(mean + 0.5))


def test_a_coarser_raster_is_interpolated_without_a_shift(tmp_path):
    # A plane survives cubic convolution exactly, so every pixel tells where it was taken.
    size, pixel, slope = 84, 4.0, 3
    rows, columns = np.mgrid[0:size, 0:size] * slope + 1
    plane = np.stack([columns, rows, (columns + rows) / 2]).astype(np.uint8)
    margin = (size * pixel - 256) / 2
    path = write(tmp_path / "a.tif", plane, grid_transform(17, TILE.x * 256 - margin, TILE.y * 256 - margin, pixel))
    found = pixels_of(open_raster(path, context()).read(TILE)).astype(float)
    expected = ((np.arange(256) + 0.5 + margin) / pixel - 0.5) * slope + 1
    assert np.abs(found[:, :, 0] - expected[np.newaxis, :]).max() <= 0.51
    assert np.abs(found[:, :, 1] - expected[:, np.newaxis]).max() <= 0.51


def world_mercator(lon, lat):
    """EPSG:3395 by its formula on the ellipsoid."""
    e = math.sqrt(2 / 298.257223563 - 1 / 298.257223563**2)
    sin = math.sin(math.radians(lat))
    stretch = math.tan(math.pi / 4 + math.radians(lat) / 2) * ((1 - e * sin) / (1 + e * sin)) ** (e / 2)
    return 6378137 * math.radians(lon), 6378137 * math.log(stretch)


PUBLISHED_POINTS = {
    # Our Lady's tower in Amersfoort, the origin of RD New.
    "EPSG:28992": ((155000, 463000), (5.38720621, 52.15517440)),
    # The old observatory in Bern, the origin of LV95.
    "EPSG:2056": ((2600000, 1200000), (7.438632495, 46.951082877)),
    "EPSG:3395": (world_mercator(121, 60), (121, 60)),
    "EPSG:32631": ((500000, 0), (3, 0)),
    "EPSG:4326": ((-70.25, -33.5), (-70.25, -33.5)),
}


@pytest.mark.parametrize("crs", PUBLISHED_POINTS)
def test_published_points_land_within_half_a_pixel(tmp_path, crs):
    (x, y), (lon, lat) = PUBLISHED_POINTS[crs]
    pixel = 0.25 / 111320 if crs == "EPSG:4326" else 0.25
    bands = np.full((3, 400, 400), 10, np.uint8)
    bands[:, 194:206, 194:206] = 255
    transform = rasterio.Affine(pixel, 0, x - 200 * pixel, 0, -pixel, y + 200 * pixel)
    file = open_file(write(tmp_path / "a.tif", bands, transform, crs), 17)
    px, py = (float(each) for each in grid.lonlat_to_px(np.array(lon), np.array(lat), 17))
    left, top = round(px) - 16, round(py) - 16
    warped = warp(file, 17, left, top, 32, 32)
    assert warped.present.all()
    light = warped.pixels[:, :, 0].astype(float) - 10
    rows, columns = np.mgrid[0:32, 0:32] + 0.5
    assert abs(left + (columns * light).sum() / light.sum() - px) < 0.5
    assert abs(top + (rows * light).sum() / light.sum() - py) < 0.5


@pytest.mark.parametrize(
    ("name", "zoom"), [(RD_NEW, 18), (RD_NEW, 19), (LV95, 18), (WORLD_MERCATOR, 20), (WORLD_MERCATOR, 21)]
)
def test_real_rasters_lie_where_pyproj_says(shared_data, name, zoom):
    path = shared_data / "imagery" / name
    with rasterio.open(path) as dataset:
        source_pixels = dataset.read()
        to_source = pyproj.Transformer.from_crs("EPSG:3857", dataset.crs.to_epsg(), always_xy=True)
        to_pixel = ~dataset.transform
    file = open_file(path, zoom)
    # A piece from the middle; in the Manila scene, south-east of its black wedge.
    left, top = (
        int(low + (high - low) * (0.7 if name == WORLD_MERCATOR else 0.4))
        for low, high in (file.px_bounds[::2], file.px_bounds[1::2])
    )
    warped = warp(file, zoom, left, top, 64, 64)
    assert warped.present.all()
    resolution = 2 * grid.HALF_CIRCUMFERENCE_M / (256 * 2**zoom)

    def sampled(dx, dy):
        """The piece, moved by a part of a pixel: the mean of 4 x 4 nearest source pixels in each."""
        steps = (np.arange(64 * 4) + 0.5) / 4
        px, py = np.meshgrid(left + dx + steps, top + dy + steps)
        x, y = to_source.transform(
            px * resolution - grid.HALF_CIRCUMFERENCE_M, grid.HALF_CIRCUMFERENCE_M - py * resolution
        )
        columns, rows = to_pixel.a * x + to_pixel.c, to_pixel.e * y + to_pixel.f
        return source_pixels[:, rows.astype(int), columns.astype(int)].reshape(3, 64, 4, 64, 4).mean(axis=(2, 4))

    found = warped.pixels.transpose(2, 0, 1).astype(float)
    shifts = [(dx, dy) for dx in (-0.4, 0, 0.4) for dy in (-0.4, 0, 0.4)]
    errors = {shift: np.abs(sampled(*shift) - found).mean() for shift in shifts}
    assert min(errors, key=errors.__getitem__) == (0, 0), errors


def test_world_mercator_is_not_web_mercator(shared_data):
    south = open_raster(str(shared_data / "imagery" / WORLD_MERCATOR), context(20)).extent().bounds[1]
    as_if_web = math.degrees(math.atan(math.sinh(1631815.125 / 6378137)))
    assert 0.08 < south - as_if_web < 0.12
    assert world_mercator(120.98, south)[1] == pytest.approx(1631815.125, abs=0.01)


def test_extent_follows_bent_edges(shared_data):
    source = open_raster(str(shared_data / "imagery" / LV95), context(18))
    points = pyproj.Transformer.from_crs(2056, 4326, always_xy=True).transform(
        [2679062.5, 2679281, 2679500, 2679281], [1248000, 1248000, 1247700, 1247700]
    )
    outline = source.extent().boundary
    assert max(outline.distance(shapely.Point(point)) for point in zip(*points, strict=True)) < 1e-9


# --- independence of tiling ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "zoom"), [(RD_NEW, 18), (LV95, 18), (WORLD_MERCATOR, 20)])
def test_tiles_equal_the_parts_of_a_metatile(shared_data, name, zoom):
    file = open_file(shared_data / "imagery" / name, zoom)
    left, top = (int((low + high) / 2) - 256 for low, high in (file.px_bounds[::2], file.px_bounds[1::2]))
    whole = warp(file, zoom, left, top, 512, 512)
    differing = total = 0
    for dx, dy in [(256, 256), (0, 0), (256, 0), (0, 256)]:
        one = warp(file, zoom, left + dx, top + dy, 256, 256)
        part = (slice(dy, dy + 256), slice(dx, dx + 256))
        np.testing.assert_array_equal(one.present, whole.present[part])
        np.testing.assert_array_equal(one.inside, whole.inside[part])
        seen = one.present
        difference = np.abs(one.pixels[seen].astype(int) - whole.pixels[part][seen])
        assert difference.max(initial=0) <= 1
        differing, total = differing + np.count_nonzero(difference), total + difference.size
    # What is left comes from halves that round either way within a 0.00001th of a pixel.
    assert total > 100_000
    assert differing <= total / 20_000


def test_reading_order_and_process_change_nothing(shared_data):
    source = open_raster(str(shared_data / "imagery" / LV95), context(18))
    tiles = [Tile(18, x, y) for x in range(137250, 137254) for y in range(91798, 91800)]
    first = {tile: source.read(tile) for tile in tiles}
    copy = pickle.loads(pickle.dumps(source))
    assert {tile: copy.read(tile) for tile in reversed(tiles)} == first
    assert sum(isinstance(each, TileImage) for each in first.values()) == 6


def test_the_kernel_does_not_depend_on_the_window(tmp_path):
    transform = grid_transform(17, TILE.x * 256 - 9.7, TILE.y * 256 - 9.2, 1.03)
    file = open_file(write(tmp_path / "a.tif", noise(300, 300), transform), 17)
    whole = warp(file, 17, TILE.x * 256, TILE.y * 256, 256, 256)
    piece = warp(file, 17, TILE.x * 256 + 100, TILE.y * 256 + 40, 8, 8)
    assert np.abs(piece.pixels.astype(int) - whole.pixels[40:48, 100:108]).max() <= 1


def test_large_windows_are_read_in_parts(shared_data):
    file = open_file(shared_data / "imagery" / WORLD_MERCATOR, 19)
    left, top = int(file.px_bounds[0]), int(file.px_bounds[1])
    whole = warp(file, 19, left, top, 256, 200)
    parts = warp(file, 19, left, top, 256, 200, max_window_px=100_000)
    assert 0 < np.count_nonzero(whole.present) < whole.present.size
    np.testing.assert_array_equal(parts.present, whole.present)
    np.testing.assert_array_equal(parts.inside, whole.inside)
    assert (parts.pixels[whole.present] != whole.pixels[whole.present]).mean() < 1e-4


# --- missing pixels --------------------------------------------------------------------------------------------------


def holed(tmp_path, how, factor):
    """A raster over one tile that says in one of three ways that a single source pixel is missing."""
    size = int(256 * factor)
    bands = noise(size, size)
    transform = grid_transform(17, TILE.x * 256, TILE.y * 256, 1 / factor)
    row, column = int(100 * factor) + 1, int(30 * factor) + 1
    bands[:, row, 10] = (0, 7, 9)  # black in one colour only: no nodata
    valid = np.full((size, size), 255, np.uint8)
    valid[row, column] = 0
    match how:
        case "nodata":
            bands[:, row, column] = 0
            return write(tmp_path / "a.tif", bands, transform, nodata=0)
        case "alpha":
            roles = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
            return write(tmp_path / "a.tif", np.concatenate([bands, valid[np.newaxis]]), transform, roles=roles)
        case "mask":
            return write(tmp_path / "a.tif", bands, transform, mask=valid)


@pytest.mark.parametrize("how", ["nodata", "alpha", "mask"])
@pytest.mark.parametrize(("factor", "counts"), [(0.5, range(100, 145)), (4, range(1, 5))])
def test_one_missing_source_pixel_rejects_the_tile(tmp_path, how, factor, counts):
    source = open_raster(holed(tmp_path, how, factor), context())
    rejection = source.read(TILE)
    assert rejection.reason is Reason.MISSING_PIXELS
    # Interpolation reaches two source pixels to every side: 5 x 5 of them, each 2 x 2 target pixels. Averaging none.
    # Where source and target edges coincide, it is a matter of rounding whether one more row is touched.
    count, _, words = rejection.detail.partition(" ")
    assert int(count) in counts
    assert words == "of 65536 pixels are nodata or outside the raster"
    assert not rejection.transient


def test_a_faint_alpha_is_not_missing(tmp_path):
    # GDAL marks the fourth band of any 8-bit file as alpha, near infrared included.
    bands = np.concatenate([noise(), np.full((1, 256, 256), 3, np.uint8)])
    roles = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    source = open_raster(write(tmp_path / "a.tif", bands, roles=roles), context())
    np.testing.assert_array_equal(pixels_of(source.read(TILE)), bands[:3].transpose(1, 2, 0))


def test_the_edge_of_a_raster_is_counted_by_pixel_centres(tmp_path):
    transform = grid_transform(17, TILE.x * 256 + 10.4, TILE.y * 256 - 20)
    source = open_raster(write(tmp_path / "a.tif", noise(300, 300), transform), context())
    assert source.read(TILE).detail.startswith(f"{10 * 256} of 65536 pixels")
    assert source.read(Tile(17, TILE.x + 5, TILE.y)).reason is Reason.OUTSIDE_IMAGERY
    # The box of pixels ends in the next tile, but no pixel centre of that lies inside.
    transform = grid_transform(17, TILE.x * 256, TILE.y * 256 - 20)
    touching = open_raster(write(tmp_path / "b.tif", noise(300, 257)[:, :, :256], transform), context())
    assert touching.read(Tile(17, TILE.x + 1, TILE.y)).reason is Reason.OUTSIDE_IMAGERY


def test_one_colour_is_blank(tmp_path):
    source = open_raster(write(tmp_path / "a.tif", np.full((3, 256, 256), 77, np.uint8)), context())
    assert source.read(TILE)[:2] == (Reason.BLANK, "a single colour, about #4d4d4d")


def test_undeclared_black_wedge_of_a_real_scene(shared_data):
    path = shared_data / "imagery" / WORLD_MERCATOR
    source = open_raster(str(path), context(21))
    wanted = grid.tile_range(grid.BoundsLonLat(*source.extent().bounds), 21)
    tiles = [tile for block in grid.blocks_of_range(wanted, 21) for tile in block.tiles][::3]
    read = {tile: source.read(tile) for tile in tiles}
    kept = [pixels_of(each) for each in read.values() if isinstance(each, TileImage)]
    assert len(kept) >= 15
    # No black square as large as a paving stone is left, nor the smear that JPEG draws along the wedge.
    for pixels in kept:
        dark = (pixels <= 6).all(axis=-1)
        assert not np.lib.stride_tricks.sliding_window_view(dark, (12, 12)).all(axis=(2, 3)).any()
    north_west = Tile(21, wanted.x_min + 1, wanted.y_min + 1)
    assert source.read(north_west)[:2] == (
        Reason.MISSING_PIXELS,
        "65536 of 65536 pixels are nodata or outside the raster",
    )


@pytest.mark.parametrize(("side", "kept"), [(15, True), (16, False)])
def test_small_black_things_are_kept_where_nothing_is_declared(tmp_path, side, kept):
    bands = noise()
    bands[:, 100 : 100 + side, 60 : 60 + side] = 0
    source = open_raster(write(tmp_path / "a.tif", bands), context())
    assert isinstance(source.read(TILE), TileImage) is kept
    valid = np.full((256, 256), 255, np.uint8)
    declared = open_raster(write(tmp_path / "b.tif", bands, mask=valid, nbits=8), context())
    if declared.files[0].declares_missing:
        assert isinstance(declared.read(TILE), TileImage)
    else:
        pytest.fail("an internal mask is a declaration")


@pytest.mark.parametrize(("distance", "kept"), [(11, False), (12, True)])
def test_the_smear_around_a_wedge_is_missing_too(tmp_path, distance, kept):
    bands = noise(256, 400)
    bands[:, 90:130, : 72 - distance] = 0
    transform = grid_transform(17, TILE.x * 256 - 72, TILE.y * 256)
    source = open_raster(write(tmp_path / "a.tif", bands, transform), context())
    assert isinstance(source.read(TILE), TileImage) is kept


def test_thin_wedges_at_the_edge_are_found(tmp_path):
    # A scene turned by a fraction of a degree: black slivers a few pixels wide along its edge.
    bands = noise(600, 600)
    for row in range(600):
        bands[:, row, : row // 60] = 0
    transform = grid_transform(17, TILE.x * 256, TILE.y * 256)
    source = open_raster(write(tmp_path / "a.tif", bands, transform), context())
    for dy in (0, 1):
        assert source.read(Tile(17, TILE.x, TILE.y + dy)).reason is Reason.MISSING_PIXELS
        assert isinstance(source.read(Tile(17, TILE.x + 1, TILE.y + dy)), TileImage)


@given(arrays(np.bool_, (24, 30), elements=st.booleans(), fill=st.just(True)), st.integers(0, 6), st.integers(0, 6))
def test_collar_is_found_as_by_trying_every_square(black, left, top):
    size, ring = raster.COLLAR_SQUARE_PX, raster.COLLAR_RING_PX
    window = raster._Window(0, 0, 30 + left, 24 + top)
    part = raster._Window(left, top, 30 + left, 24 + top)
    dark = np.ones((24 + top, 30 + left), bool)
    dark[top:, left:] = black
    found = np.zeros_like(dark)
    for row in range(dark.shape[0] - size + 1):
        for column in range(dark.shape[1] - size + 1):
            square = (slice(row, row + size), slice(column, column + size))
            found[square] |= dark[square].all()
    found[:top] = found[:, :left] = False
    expected = np.zeros_like(found)
    for row, column in zip(*np.nonzero(found), strict=True):
        expected[max(row - ring, 0) : row + ring + 1, max(column - ring, 0) : column + ring + 1] = True
    if not black.any():
        expected[:] = False
    np.testing.assert_array_equal(collar(black, window, part), expected[top:, left:])


# --- bands -----------------------------------------------------------------------------------------------------------


def test_colours_are_found_by_their_marks(tmp_path):
    bands = noise(count=5)
    roles = [ColorInterp.undefined, ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined]
    source = open_raster(write(tmp_path / "a.tif", bands, roles=roles, photometric="minisblack"), context())
    np.testing.assert_array_equal(pixels_of(source.read(TILE)), bands[[3, 2, 1]].transpose(1, 2, 0))


def test_grey_is_repeated(tmp_path):
    bands = noise(count=1)
    pixels = pixels_of(open_raster(write(tmp_path / "a.tif", bands), context()).read(TILE))
    np.testing.assert_array_equal(pixels, np.repeat(bands.transpose(1, 2, 0), 3, axis=2))


def test_the_picture_is_plain_rgb_png(tmp_path):
    image = open_raster(write(tmp_path / "a.tif", noise()), context()).read(TILE)
    chunks, position = [], 8
    while position < len(image.data):
        length = int.from_bytes(image.data[position : position + 4])
        chunks.append(image.data[position + 4 : position + 8])
        position += 12 + length
    assert set(chunks) == {b"IHDR", b"IDAT", b"IEND"}
    assert image.data[16:26] == (256).to_bytes(4) * 2 + b"\x08\x02"


# --- mosaics ---------------------------------------------------------------------------------------------------------


def test_the_first_file_wins_and_the_next_fills(tmp_path):
    first, second = noise(seed=1), noise(seed=2)
    write(tmp_path / "m" / "b.tif", first[:, :, :100])
    write(tmp_path / "m" / "a.tif", second)
    (tmp_path / "m" / "a.tif.txt").write_text("not a raster")
    by_list = open_raster(f"{tmp_path}/m/b.tif, {tmp_path}/m/a.tif", context())
    expected = np.concatenate([first[:, :, :100], second[:, :, 100:]], axis=2).transpose(1, 2, 0)
    # Interpolation at the first file's edge uses what it has: at whole pixels that is the pixel itself.
    np.testing.assert_array_equal(pixels_of(by_list.read(TILE)), expected)
    for spec in (f"{tmp_path}/m", f"{tmp_path}/m/*.tif"):
        by_name = open_raster(spec, context())
        assert [Path(file.path).name for file in by_name.files] == ["a.tif", "b.tif"]
        np.testing.assert_array_equal(pixels_of(by_name.read(TILE)), second.transpose(1, 2, 0))


@pytest.mark.parametrize("factor", [1, 2.7])
def test_abutting_sheets_leave_no_seam(tmp_path, factor):
    size = int(300 * factor)
    bands = np.kron(noise(size // 10, size // 10, low=60), np.ones((1, 10, 10), np.uint8)).astype(np.uint8)
    size = bands.shape[1]
    transform = grid_transform(17, TILE.x * 256 - 20.3, TILE.y * 256 - 20.6, 1 / factor)
    whole = open_raster(write(tmp_path / "whole.tif", bands, transform), context())
    cut = size // 2
    write(tmp_path / "m" / "west.tif", bands[:, :, :cut], transform)
    write(tmp_path / "m" / "east.tif", bands[:, :, cut:], transform * rasterio.Affine.translation(cut, 0))
    expected = pixels_of(whole.read(TILE)).astype(int)
    found = pixels_of(open_raster(str(tmp_path / "m"), context()).read(TILE)).astype(int)
    differing = np.nonzero(np.abs(found - expected).max(axis=(0, 2)) > 1)[0]
    assert len(differing) <= 4
    assert np.ptp(differing) <= 4 if len(differing) else True


def test_a_vrt_counts_as_the_files_it_names(tmp_path):
    bands = noise()
    write(tmp_path / "a.tif", bands)
    with rasterio.open(tmp_path / "a.tif") as dataset:
        transform, wkt = dataset.transform.to_gdal(), dataset.crs.to_wkt().replace('"', "&quot;")
    colours = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><ColorInterp>{colour}</ColorInterp><SimpleSource>'
        f'<SourceFilename relativeToVRT="1">a.tif</SourceFilename><SourceBand>{band}</SourceBand>'
        "</SimpleSource></VRTRasterBand>"
        for band, colour in ((1, "Red"), (2, "Green"), (3, "Blue"))
    )
    (tmp_path / "a.vrt").write_text(
        f'<VRTDataset rasterXSize="256" rasterYSize="256"><SRS>{wkt}</SRS>'
        f"<GeoTransform>{', '.join(map(repr, transform))}</GeoTransform>{colours}</VRTDataset>"
    )
    before = open_raster(str(tmp_path / "a.vrt"), context())
    np.testing.assert_array_equal(pixels_of(before.read(TILE)), bands.transpose(1, 2, 0))
    write(tmp_path / "a.tif", noise(seed=3))
    assert open_raster(str(tmp_path / "a.vrt"), context()).info.version != before.info.version


def test_version_is_of_names_and_contents(tmp_path):
    write(tmp_path / "1" / "a.tif", noise())
    write(tmp_path / "2" / "a.tif", noise())
    write(tmp_path / "3" / "a.tif", noise(seed=1))
    write(tmp_path / "4" / "b.tif", noise())
    versions = [open_raster(f"{tmp_path}/{number}", context()).info.version for number in (1, 2, 3, 4)]
    assert versions[0] == versions[1]
    assert len(set(versions)) == 3


# --- refusals --------------------------------------------------------------------------------------------------------

LOCAL_DATUM = pyproj.CRS.from_wkt(
    'PROJCS["Site grid",GEOGCS["Site",DATUM["Site datum",SPHEROID["Bessel",6377397.155,299.15]],PRIMEM["Greenwich",0],'
    'UNIT["degree",0.0174532925199433]],PROJECTION["Transverse_Mercator"],PARAMETER["latitude_of_origin",0],'
    'PARAMETER["central_meridian",9],PARAMETER["scale_factor",1],PARAMETER["false_easting",0],'
    'PARAMETER["false_northing",0],UNIT["metre",1]]'
).to_wkt("WKT1_GDAL")


def palette(path):
    write(path, noise(count=1), photometric="palette")
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {number: (number, 0, 0, 255) for number in range(256)})


def truncated(path):
    write(path, noise(), compress="deflate", blockysize=16)
    path.write_bytes(path.read_bytes()[:-3000])


REFUSED = {
    "holds uint16 pixels, expected 8-bit .* gdal_translate -scale -ot Byte": lambda path: write(
        path, noise().astype(np.uint16)
    ),
    "holds float32 pixels, expected 8-bit": lambda path: write(path, noise().astype(np.float32)),
    "holds palette indices, not colours: .*-expand rgb": palette,
    "has no coordinate system: set the right one": lambda path: write(path, noise(), crs=None),
    "no geotransform: georeference it": lambda path: write(path, noise(), rasterio.Affine.identity()),
    "datum has no known relation to WGS 84": lambda path: write(path, noise(), crs=LOCAL_DATUM),
    "has 5 bands and none is marked red, green or blue": lambda path: write(
        path, noise(count=5), photometric="minisblack"
    ),
    "cannot be read as a raster .*damaged, incomplete": truncated,
    "cannot be read as a raster": lambda path: path.write_bytes(b"no raster\n" * 50),
}


@pytest.mark.parametrize("message", REFUSED)
def test_unfit_files_are_refused_in_one_sentence(tmp_path, message, recwarn, capfd):
    REFUSED[message](tmp_path / "a.tif")
    with pytest.raises(SourceError, match=message) as caught:
        open_raster(str(tmp_path / "a.tif"), context())
    assert str(caught.value).startswith(str(tmp_path / "a.tif"))
    assert "\n" not in str(caught.value)
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


def test_damage_found_while_reading_is_one_sentence(tmp_path):
    path = Path(write(tmp_path / "a.tif", noise(), compress="deflate", blockysize=16))
    source = open_raster(str(path), context())
    content = bytearray(path.read_bytes())
    content[20_000:21_000] = bytes(1000)
    path.write_bytes(content)
    with pytest.raises(SourceError, match="cannot be read as a raster"):
        source.read(TILE)


def test_nothing_there(tmp_path):
    with pytest.raises(UsageError, match=r"no raster at .*missing\.tif"):
        open_raster(str(tmp_path / "missing.tif"), context())
    with pytest.raises(UsageError, match=r"no raster at .*\*\.jp2"):
        open_raster(str(tmp_path / "*.jp2"), context())
    with pytest.raises(UsageError, match=r"holds no raster: expected files ending in .*\.tif"):
        open_raster(str(tmp_path), context())
