"""Scenes: chunks coded alone, windows drawn alone, and files that keep their place and their missing pixels."""

import subprocess
import sys
import warnings
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio.enums import ColorInterp
from tiny_models import CLASSES, tiny_model

import magc_model
from magc_model.codec import MagcCodec, MapMismatchWarning, Rate
from magc_model.config import PAPER_LAMBDAS, RateConfig, RateMode
from magc_model.embedded_map import encode_map
from magc_model.errors import BitstreamError, DataError, UsageError
from magc_model.reconstruct import Sampling
from magc_model.scene.budget import compress_scene_to_size
from magc_model.scene.compress import MARGIN_PX, SceneEncoder, compress_scene
from magc_model.scene.georeference import Affine, Georeference, Missing
from magc_model.scene.grid import WINDOW_OVERLAP_PX, WINDOW_STEP_PX, Window
from magc_model.scene.open import open_stream
from magc_model.scene.raster_files import ArrayMap, ArrayPixels, RasterMap, RasterPixels, write_scene
from magc_model.scene.read import DamagedChunkWarning, SceneReader
from magc_model.scene.stream import (
    Chunk,
    chunk_check,
    crc_of,
    pack_chunk,
    pack_header,
    unpack_chunk,
    unpack_header,
)

GUIDE = Sampling(steps=0)
FEW = Sampling(sampler="ddim", steps=2)
GAINED = RateConfig(mode=RateMode.GAINED, lambdas=PAPER_LAMBDAS)
UTM = Georeference(32645, None, Affine(0.6, 0.0, 345000.0, 0.0, -0.6, 3057000.0))


@pytest.fixture(scope="module")
def codec() -> MagcCodec:
    return MagcCodec(tiny_model(), device="cpu")


@pytest.fixture(scope="module")
def gained() -> MagcCodec:
    return MagcCodec(tiny_model(rate=GAINED), device="cpu")


def ground(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A synthetic picture of blocks in noise, and the map of the blocks."""
    random = np.random.default_rng(seed)
    class_ids = np.kron(random.integers(0, len(CLASSES), (height // 16 + 1, width // 16 + 1)), np.ones((16, 16)))
    class_ids = class_ids[:height, :width].astype(np.uint8)
    noise = random.integers(0, 60, (height, width, 3))
    return (class_ids[..., None] * 60 + noise).astype(np.uint8), class_ids


HEIGHT, WIDTH = 700, 930


@pytest.fixture(scope="module")
def scene(codec: MagcCodec) -> tuple[bytes, np.ndarray, np.ndarray]:
    """A stream of 3 x 4 chunks, and the picture and map that it is of."""
    image, class_ids = ground(HEIGHT, WIDTH)
    return (
        compress_scene(codec, ArrayPixels(image, UTM), ArrayMap(class_ids), chunk_px=256, seed=5).stream,
        image,
        class_ids,
    )


def test_a_window_alone_is_what_the_whole_has_there(codec: MagcCodec, scene) -> None:
    stream, _, class_ids = scene
    whole = SceneReader(codec, stream, ArrayMap(class_ids), sampling=FEW).read()
    assert whole.shape == (HEIGHT, WIDTH, 3)
    for window in (
        Window(0, 0, 1, 1),
        Window(WIDTH - 50, HEIGHT - 40, 50, 40),
        Window(WINDOW_STEP_PX - 10, 30, WINDOW_OVERLAP_PX + 20, 60),  # across the fading of two windows
        Window(300, 350, 250, 120),
    ):
        alone = SceneReader(codec, stream, ArrayMap(class_ids), sampling=FEW).read(window)
        difference = np.abs(alone.astype(int) - whole[window.slices])
        assert difference.max() <= 1, window


def test_pictures_differ_by_seed_and_by_place(codec: MagcCodec, scene) -> None:
    stream, _, class_ids = scene
    window = Window(0, 0, 64, 64)
    own, same, other = (
        SceneReader(codec, stream, ArrayMap(class_ids), sampling=FEW, seed=seed).read(window) for seed in (None, 5, 6)
    )
    assert np.array_equal(own, same)
    assert not np.array_equal(own, other)


def test_symbols_know_nothing_of_chunks(codec: MagcCodec) -> None:
    """What the analysis gives for cells with a margin is what it gives for the whole, but for what lies far off."""
    image, class_ids = ground(1024, 1088)
    encoder = SceneEncoder(codec, ArrayPixels(image), ArrayMap(class_ids), embed_map=False, chunk_px=512)
    pieces = [encoder.analyse(window).symbols for window in encoder.windows()]
    rows = [torch.cat(pieces[start : start + 3], dim=3) for start in (0, 3)]
    pieced = torch.cat(rows, dim=2)
    whole = codec.reconstructor.analyse(torch.from_numpy(image)[None], torch.from_numpy(class_ids)[None]).symbols
    alone = codec.reconstructor.analyse(
        torch.from_numpy(image[:512, :512].copy())[None], torch.from_numpy(class_ids[:512, :512].copy())[None]
    ).symbols
    seen, unseen = (pieced - whole).abs()[:, :, :16, :16].mean(), (alone - whole[:, :, :16, :16]).abs().mean()
    assert MARGIN_PX == 128
    assert seen < 0.15 * unseen
    assert (pieced - whole).abs().mean() < 0.05 * whole.abs().mean()


@pytest.mark.slow
def test_a_fresh_process_with_other_threads_decodes_the_same(codec: MagcCodec, scene, tmp_path: Path) -> None:
    stream, _, class_ids = scene
    codec.model.save_pretrained(tmp_path / "model")
    (tmp_path / "scene.magc").write_bytes(stream)
    np.save(tmp_path / "map.npy", class_ids)
    program = (
        "import sys, numpy, torch, magc_model; folder = sys.argv[1]; torch.set_num_threads(2);"
        "scene = magc_model.open(f'{folder}/scene.magc', f'{folder}/model', numpy.load(f'{folder}/map.npy'), steps=0);"
        "numpy.save(f'{folder}/out.npy', scene.read(window=(100, 200, 300, 150)))"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    here = magc_model.open(tmp_path / "scene.magc", codec, class_ids, steps=0).read((100, 200, 300, 150))
    assert np.abs(np.load(tmp_path / "out.npy").astype(int) - here).max() <= 1


def test_symbols_do_not_depend_on_the_order_of_chunks_nor_on_threads(codec: MagcCodec, scene) -> None:
    stream, _, class_ids = scene
    keys = [(row, column) for row in range(3) for column in range(4)]
    threads = torch.get_num_threads()
    try:
        found = []
        for order, count in ((keys, 1), (keys[::-1], 2), (keys[5:] + keys[:5], 2)):
            torch.set_num_threads(count)
            reader = SceneReader(codec, stream, ArrayMap(class_ids))
            symbols = {key: reader._ground(key).symbols for key in order}
            found.append(torch.cat([symbols[key].flatten() for key in keys]))
    finally:
        torch.set_num_threads(threads)
    assert found[0].abs().max() > 0
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_borders_of_windows_do_not_show(codec: MagcCodec, scene) -> None:
    """The mean step from pixel to pixel across the borders of windows, and inside overlaps, is that of elsewhere."""
    stream, _, class_ids = scene
    drawn = SceneReader(codec, stream, ArrayMap(class_ids), sampling=FEW).read().astype(float)
    for axis in (0, 1):
        step = np.abs(np.diff(drawn, axis=axis)).mean(axis=(1 - axis, 2))
        place = (np.arange(len(step)) + 1) % WINDOW_STEP_PX
        later = np.arange(len(step)) + 1 >= WINDOW_STEP_PX
        elsewhere = step[~later | (place > WINDOW_OVERLAP_PX)]
        for at in (np.isin(place, (0, WINDOW_OVERLAP_PX)), place < WINDOW_OVERLAP_PX):
            assert abs(step[later & at].mean() - elsewhere.mean()) < 2 * elsewhere.std()


def test_a_damaged_chunk_loses_its_pixels_and_no_others(codec: MagcCodec, scene) -> None:
    stream, _, class_ids = scene
    index = unpack_header(stream)
    damaged = bytearray(stream)
    damaged[(index.offsets[5] + index.offsets[6]) // 2] ^= 0x10  # row 1, column 1
    reader = SceneReader(codec, bytes(damaged), ArrayMap(class_ids), sampling=GUIDE)
    with pytest.warns(DamagedChunkWarning, match="256x256 pixels at column 256, row 256 are lost"):
        picture, valid = reader.read(), reader.read_valid()
    assert list(reader.damaged) == [5]
    expected = np.ones((HEIGHT, WIDTH), bool)
    expected[256:512, 256:512] = False
    assert np.array_equal(valid, expected)
    whole = SceneReader(codec, stream, ArrayMap(class_ids), sampling=GUIDE).read()
    assert np.array_equal(picture[:, 832:], whole[:, 832:])  # what no network sees of it is the same to the last bit
    with pytest.raises(BitstreamError, match="chunk 5 is damaged"):
        SceneReader(codec, bytes(damaged), ArrayMap(class_ids), sampling=GUIDE, strict=True).read()


def test_a_scene_cut_short_decodes_what_is_there(codec: MagcCodec, scene) -> None:
    stream, _, class_ids = scene
    index = unpack_header(stream)
    cut = stream[: index.offsets[8]]  # the last of three rows is missing
    reader = SceneReader(codec, cut, ArrayMap(class_ids), sampling=GUIDE)
    with pytest.warns(DamagedChunkWarning):
        reader.check_chunks()
    assert sorted(reader.damaged) == [8, 9, 10, 11]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing more is said: these were named
        top = reader.read(Window(0, 0, WIDTH, 100))
    assert np.array_equal(
        top, SceneReader(codec, stream, ArrayMap(class_ids), sampling=GUIDE).read(Window(0, 0, WIDTH, 100))
    )


def test_another_map_is_named_by_both_digests(codec: MagcCodec, scene) -> None:
    stream, _, class_ids = scene
    other = class_ids.copy()
    other[10, 10] ^= 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reader = SceneReader(codec, stream, ArrayMap(other), sampling=GUIDE)
        reader.read(Window(0, 0, 300, 300))
    messages = [str(each.message) for each in caught if issubclass(each.category, MapMismatchWarning)]
    assert len(messages) == 1  # one chunk's map differs
    assert "at column 0, row 0, the sender's was" in messages[0]
    with pytest.raises(BitstreamError, match="the map's digest is"):
        SceneReader(codec, stream, ArrayMap(other), sampling=GUIDE, strict=True).read(Window(0, 0, 9, 9))
    with pytest.raises(UsageError, match="needs its sender's map"):
        SceneReader(codec, stream)


def test_an_embedded_map_comes_along(codec: MagcCodec, scene) -> None:
    _, image, class_ids = scene
    pixels, maps = ArrayPixels(image), ArrayMap(class_ids)
    result = compress_scene(codec, pixels, maps, chunk_px=512, embed_map=True)
    assert result.cost.embedded_map > 0
    reader = SceneReader(codec, result.stream, sampling=GUIDE)
    assert np.array_equal(reader.read_map(), class_ids)
    given = SceneReader(codec, compress_scene(codec, pixels, maps, chunk_px=512).stream, maps, sampling=GUIDE)
    assert np.array_equal(reader.read(Window(40, 50, 200, 100)), given.read(Window(40, 50, 200, 100)))


def test_without_a_map(codec: MagcCodec, scene) -> None:
    _, image, _ = scene
    reader = SceneReader(codec, compress_scene(codec, ArrayPixels(image), chunk_px=512).stream, sampling=GUIDE)
    assert reader.read().shape == image.shape
    assert reader.read_map() is None


@pytest.mark.slow
def test_a_scene_of_64_tiles_costs_little_more_than_its_symbols(codec: MagcCodec, gained: MagcCodec) -> None:
    """2 % of 64 tiles at the paper's lowest rate, 105 bytes a tile, are 134 bytes."""
    image, class_ids = ground(2048, 2048)
    for each in (codec, gained):
        cost = compress_scene(each, ArrayPixels(image, UTM), ArrayMap(class_ids)).cost
        assert cost.chunks == 4
        assert cost.total - cost.ideal <= 0.02 * 64 * 105


def test_disagreement_of_several_draws(codec: MagcCodec, scene) -> None:
    stream, _, class_ids = scene
    window = Window(350, 300, 120, 80)
    draws = [
        SceneReader(codec, stream, ArrayMap(class_ids), sampling=FEW, seed=seed).read(window) for seed in (7, 8, 9)
    ]
    several = SceneReader(codec, stream, ArrayMap(class_ids), sampling=FEW, seed=7, draws=3).read(window)
    assert several.shape == (80, 120, 4)
    assert np.array_equal(several[..., :3], draws[0])
    expected = np.sqrt(np.stack(draws).astype(float).var(axis=0).mean(axis=2))
    assert expected.max() > 1
    # Deviations are faded between windows as the pixels are, which is not the deviation of the faded pixels there.
    inner = np.s_[:, : WINDOW_STEP_PX - window.x_px]
    assert np.abs(several[..., 3][inner] - expected[inner]).max() <= 0.51


@pytest.mark.parametrize(
    "window", [Window(-1, 0, 10, 10), Window(0, 0, WIDTH + 1, 10), Window(0, 0, 0, 5), Window(0, HEIGHT, 1, 1)]
)
def test_a_window_outside_is_refused(codec: MagcCodec, scene, window: Window) -> None:
    with pytest.raises(UsageError, match="does not lie inside"):
        SceneReader(codec, scene[0], ArrayMap(scene[2])).read(window)


def test_a_tile_is_opened_like_a_scene(codec: MagcCodec) -> None:
    image, class_ids = ground(100, 120)
    stream = codec.compress(image, class_ids)
    reader = open_stream(codec, stream, ArrayMap(class_ids), sampling=GUIDE)
    assert (reader.width_px, reader.height_px) == (120, 100)
    whole = codec.decompress(stream, class_ids, sampling=GUIDE)
    assert np.array_equal(reader.read(Window(10, 20, 30, 40)), whole[20:60, 10:40])
    assert reader.read_valid(Window(0, 0, 5, 4)).all()


# --- rates ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_budget_is_met_from_below_and_beats_one_rate_for_all(gained: MagcCodec) -> None:
    image, class_ids = ground(512, 768)
    image[:, :256] = 128  # nothing to tell there
    pixels, maps = ArrayPixels(image, UTM), ArrayMap(class_ids)
    low, middle, high = (
        compress_scene(gained, pixels, maps, rate=Rate(quality=quality), chunk_px=256).cost.total
        for quality in (1.0, 3.5, 6.0)
    )
    assert low < middle < high
    for budget in (low + (middle - low) // 3, middle, middle + (high - middle) // 2):
        result = compress_scene_to_size(gained, pixels, maps, max_bytes=budget, chunk_px=256)
        assert 0.95 * budget <= len(result.stream) <= budget
        SceneReader(gained, result.stream, maps, sampling=GUIDE).read(Window(200, 200, 200, 200))
    assert len(compress_scene_to_size(gained, pixels, maps, max_bytes=10**6, chunk_px=256).stream) == high
    with pytest.raises(UsageError, match=f"the smallest stream of this scene has {low} bytes"):
        compress_scene_to_size(gained, pixels, maps, max_bytes=low - 1, chunk_px=256)


def test_one_rate_cannot_aim(codec: MagcCodec) -> None:
    image, class_ids = ground(64, 64)
    with pytest.raises(UsageError, match="cannot aim at a size"):
        compress_scene_to_size(codec, ArrayPixels(image), ArrayMap(class_ids), max_bytes=100)


# --- files ------------------------------------------------------------------------------------------------------------


def write_geotiff(path: Path, bands: np.ndarray, mask: np.ndarray | None = None, **profile: object) -> Path:
    options = {"crs": "EPSG:32645", "transform": rasterio.Affine(*UTM.transform), **profile}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path, "w", driver="GTiff", dtype=bands.dtype, count=bands.shape[2], width=bands.shape[1],
            height=bands.shape[0], tiled=True, **options,
        ) as dataset,
    ):  # fmt: skip
        dataset.write(bands.transpose(2, 0, 1))
        if mask is not None:
            dataset.write_mask(mask)
    return path


def round_trip(codec: MagcCodec, path: Path, class_ids: np.ndarray, out: Path, window: Window | None = None):
    with closing(RasterPixels(path)) as pixels:
        stream = compress_scene(codec, pixels, ArrayMap(class_ids), chunk_px=256).stream
    reader = SceneReader(codec, stream, ArrayMap(class_ids), sampling=GUIDE)
    write_scene(out, reader, window or reader.whole, {"MAGC_STEPS": "0"})
    return reader


@pytest.mark.parametrize("kind", ["mask", "alpha", "nodata", "none"])
def test_a_geotiff_comes_back_in_its_place_with_its_missing_pixels(codec: MagcCodec, tmp_path: Path, kind: str) -> None:
    image, class_ids = ground(600, 620)
    valid = np.ones((600, 620), bool)
    valid[:300, :280] = False  # a whole chunk, and parts of three
    valid[400:410, 500:505] = False
    image[valid] = np.maximum(image[valid], 1)
    path = tmp_path / "in.tif"
    if kind == "mask":
        write_geotiff(path, image, valid)
    elif kind == "alpha":
        write_geotiff(path, np.dstack([image, valid * np.uint8(255)]), photometric="RGB", alpha="YES")
    elif kind == "nodata":
        write_geotiff(path, np.where(valid[..., None], image, 0).astype(np.uint8), nodata=0)
    else:
        write_geotiff(path, image)
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(SENSOR="test camera", TIFFTAG_DATETIME="2026:01:02 03:04:05")
        dataset.set_band_description(1, "rot")
    out = tmp_path / "out.tif"
    reader = round_trip(codec, path, class_ids, out)
    with rasterio.open(path) as before, rasterio.open(out) as after:
        assert after.crs == before.crs
        assert after.transform == before.transform
        assert after.shape == before.shape
        assert after.count == 3
        assert after.nodata == before.nodata
        assert after.colorinterp == (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
        assert after.descriptions == ("rot", None, None)
        assert after.tags()["SENSOR"] == "test camera"
        assert after.tags()["TIFFTAG_DATETIME"] == "2026:01:02 03:04:05"
        assert after.tags()["MAGC_STEPS"] == "0"
        assert after.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert after.overviews(1)
        assert np.array_equal(after.dataset_mask() != 0, valid if kind != "none" else np.ones_like(valid))
        pixels = after.read().transpose(1, 2, 0)
        expected = reader.read()
        shown = after.dataset_mask() != 0
        assert np.abs(pixels[shown].astype(int) - expected[shown]).max() <= (1 if kind == "nodata" else 0)
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


def test_a_window_in_a_file_lies_where_it_is(codec: MagcCodec, tmp_path: Path) -> None:
    image, class_ids = ground(300, 400)
    path = write_geotiff(tmp_path / "in.tif", image, transform=rasterio.Affine(0.5, 0.1, 345000, 0.2, -0.6, 3057000))
    reader = round_trip(codec, path, class_ids, tmp_path / "out.tif", Window(40, 70, 200, 100))
    with rasterio.open(path) as before, rasterio.open(tmp_path / "out.tif") as after:
        assert after.shape == (100, 200)
        assert after.xy(4, 3) == pytest.approx(before.xy(74, 43))
        assert np.array_equal(after.read().transpose(1, 2, 0), reader.read(Window(40, 70, 200, 100)))


def test_a_crs_without_a_code_and_grey_pixels(codec: MagcCodec, tmp_path: Path) -> None:
    image, class_ids = ground(100, 90)
    crs = rasterio.CRS.from_proj4("+proj=laea +lat_0=27.6 +lon_0=85.5 +datum=WGS84 +units=m")
    path = write_geotiff(tmp_path / "in.tif", image[..., :1], crs=crs)
    round_trip(codec, path, class_ids, tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as after:
        assert after.crs == crs
        assert after.count == 3


def test_a_damaged_chunk_is_missing_in_the_file(codec: MagcCodec, scene, tmp_path: Path) -> None:
    stream, _, class_ids = scene
    damaged = bytearray(stream)
    damaged[unpack_header(stream).offsets[6] + 1] ^= 1
    reader = SceneReader(codec, bytes(damaged), ArrayMap(class_ids), sampling=GUIDE)
    with pytest.warns(DamagedChunkWarning):
        write_scene(tmp_path / "out.tif", reader, reader.whole, {})
    with rasterio.open(tmp_path / "out.tif") as after:
        lost = after.dataset_mask() == 0
    assert lost[256:512, 512:768].all()
    assert lost.sum() == 256 * 256


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dtype": "uint16"}, "holds uint16 pixels"),
        ({"bands": 5}, "has 5 bands"),
        ({"text": True}, "cannot be read as a raster"),
    ],
)
def test_a_raster_of_another_kind_is_named(tmp_path: Path, change: dict, said: str) -> None:
    path = tmp_path / "in.tif"
    if "text" in change:
        path.write_bytes(b"II*\0 no tiff at all")
    else:
        bands = np.zeros((64, 64, change.get("bands", 3)), change.get("dtype", "uint8"))
        write_geotiff(path, bands, photometric="MINISBLACK")
    from magc_data.errors import MagcDataError

    with pytest.raises((DataError, MagcDataError), match=said):
        RasterPixels(path)


def test_a_map_off_the_grid_is_refused(tmp_path: Path) -> None:
    ids = np.zeros((64, 64, 1), np.uint8)
    good = write_geotiff(tmp_path / "good.tif", ids)
    off = write_geotiff(tmp_path / "off.tif", ids, transform=rasterio.Affine(0.6, 0, 345000.3, 0, -0.6, 3057000))
    with closing(RasterMap(good, 64, 64, UTM)) as maps:
        assert maps.read(Window(1, 2, 3, 4)).shape == (4, 3)
    with pytest.raises(DataError, match="the map's geotransform"):
        RasterMap(off, 64, 64, UTM)
    with pytest.raises(DataError, match="the map has 64x64 pixels, the scene 64x65"):
        RasterMap(good, 64, 65, UTM)


def test_a_scene_of_nothing_is_refused(codec: MagcCodec, tmp_path: Path) -> None:
    path = write_geotiff(tmp_path / "in.tif", np.zeros((64, 64, 3), np.uint8), nodata=0)
    with closing(RasterPixels(path)) as pixels, pytest.raises(DataError, match="no valid pixel"):
        compress_scene(codec, pixels)
    assert RasterPixels(path).georeference.missing is Missing.NODATA


# --- streams of strangers ---------------------------------------------------------------------------------------------


def altered(stream: bytes, chunk: Chunk | None = None, **fields: object) -> bytes:
    """A scene of one chunk with other fields, every check right."""
    index = unpack_header(stream)
    header = index.header._replace(**fields)
    body = stream[index.offsets[0] : -3] if chunk is None else pack_chunk(chunk, header.map_kind)
    packed = pack_header(header, [len(body) + 3])
    return packed + body + chunk_check(body, 0, crc_of(packed))


def test_a_chunk_whose_map_has_unknown_classes_is_lost(codec: MagcCodec) -> None:
    image, class_ids = ground(100, 90)
    stream = compress_scene(codec, ArrayPixels(image, UTM), ArrayMap(class_ids), embed_map=True).stream
    index = unpack_header(stream)
    chunk = unpack_chunk(stream[index.offsets[0] :], 0, index, has_mask=False)
    foreign = altered(stream, chunk._replace(map_data=encode_map(np.full((100, 90), 77, np.uint8))))
    reader = SceneReader(codec, foreign, sampling=GUIDE)
    with pytest.warns(DamagedChunkWarning, match="holds class 77"):
        assert not reader.read_valid().any()
    with pytest.raises(BitstreamError, match="holds class 77"):
        SceneReader(codec, foreign, sampling=GUIDE, strict=True).read_valid()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (UTM._replace(epsg=2**63), "EPSG:9223372036854775808 is unknown"),
        (UTM._replace(epsg=None, wkt="GEOGCS["), "coordinate system that it was given is unknown"),
        (UTM._replace(epsg=None, wkt="A[" * 30_000), "coordinate system that it was given is unknown"),
        (UTM._replace(transform=Affine(1e308, 0.0, 1e308, 0.0, -1e308, 1e308)), "the scene's geotransform"),
    ],
)
def test_a_place_that_is_none_leaves_an_old_file_alone(
    codec: MagcCodec, tmp_path: Path, place: Georeference, message: str
) -> None:
    image, _ = ground(100, 90)
    stream = compress_scene(codec, ArrayPixels(image, place)).stream
    out = tmp_path / "out.tif"
    out.write_bytes(b"precious")
    with pytest.raises(DataError, match=message):
        write_scene(out, SceneReader(codec, stream, sampling=GUIDE), Window(10, 10, 50, 50), {})
    assert out.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [out]


def test_tags_of_a_stream_do_not_say_what_made_the_pixels(codec: MagcCodec, tmp_path: Path) -> None:
    """A stranger's word, or that of a picture that was decompressed before and compressed again."""
    image, _ = ground(100, 90)
    names = ("MAGC_MODEL", "MAGC_DRAWS", "bidx", "ns", "owner", "self")
    place = UTM._replace(tags=tuple((name, "theirs") for name in names))
    stream = compress_scene(codec, ArrayPixels(image, place)).stream
    out = tmp_path / "out.tif"
    write_scene(out, SceneReader(codec, stream, sampling=GUIDE), Window(0, 0, 90, 100), {"MAGC_MODEL": "ours"})
    with rasterio.open(out) as dataset:
        tags = dataset.tags()
    assert {name: tags.get(name) for name in names} == {
        "MAGC_MODEL": "ours", "MAGC_DRAWS": None, "bidx": None, "ns": None, "owner": "theirs", "self": "theirs",
    }  # fmt: skip
    with closing(RasterPixels(out)) as pixels:
        assert dict(pixels.georeference.tags) == {"owner": "theirs", "self": "theirs"}


@pytest.mark.parametrize("tags", [{"a": "x" * 70_000}, {f"name {number}": "x" for number in range(600)}])
def test_more_text_than_a_scene_carries_is_said_when_it_is_opened(tmp_path: Path, tags: dict[str, str]) -> None:
    path = tmp_path / "scene.tif"
    with rasterio.open(
        path, "w", driver="GTiff", dtype="uint8", count=3, width=9, height=9, crs="EPSG:3857", transform=rasterio.Affine(1, 0, 5, 0, -1, 5)
    ) as dataset:  # fmt: skip
        dataset.update_tags(**tags)
    with pytest.raises(DataError, match="a scene carries 65536 bytes"):
        RasterPixels(path)
