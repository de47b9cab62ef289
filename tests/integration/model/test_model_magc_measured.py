"""MAGC as one of the codecs under evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from real_tiles import held_out_tiles, psnr

from magc_model.bitstream import unpack_tile
from magc_model.codec import MagcCodec, Rate
from magc_model.config import RateConfig, RateMode
from magc_model.entropy.tables import build_tables
from magc_model.errors import BitstreamError, UsageError
from magc_model.evaluate.codecs.protocol import ImageCodec
from magc_model.evaluate.codecs.registry import open_codec
from magc_model.reconstruct import Sampling
from magc_model.scene.compress import compress_scene
from magc_model.scene.raster_files import ArrayMap, ArrayPixels
from magc_model.stream_info import described


@pytest.fixture(scope="module")
def magc() -> ImageCodec:
    return open_codec("magc")


@pytest.fixture(scope="module")
def ground(embedded_cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """A scene of 512x768 pixels of the four tiles, with its map."""
    a, b, c, d = held_out_tiles(embedded_cache)

    def joined(field: str) -> np.ndarray:
        rows = [[getattr(each, field) for each in row] for row in ((a, c), (b, d), (c, a))]
        return np.ascontiguousarray(np.concatenate([np.concatenate(row, axis=1) for row in rows]))

    return joined("image"), joined("semantic_map")


def test_a_tile_is_the_stream_of_the_codec(magc: ImageCodec, ground: tuple[np.ndarray, np.ndarray]) -> None:
    picture, class_ids = (np.ascontiguousarray(each[:256, :256]) for each in ground)
    assert isinstance(magc, ImageCodec)
    assert magc.uses_map
    assert magc.rates == (1, 2, 3, 4, 5, 6)
    encoded = magc.encode(picture, class_ids, 2.0)
    codec = MagcCodec.from_pretrained("tiny", device="cpu")
    assert encoded.data == codec.compress(picture, class_ids, rate=Rate(quality=2.0))
    assert encoded.stream_bytes == len(unpack_tile(encoded.data).payload) < len(encoded.data)
    assert np.array_equal(magc.decode(encoded.data, class_ids), codec.decompress(encoded.data, class_ids))


def test_more_bytes_are_a_better_picture(ground: tuple[np.ndarray, np.ndarray]) -> None:
    magc = open_codec("magc,steps=0")
    picture, class_ids = (np.ascontiguousarray(each[:256, :256]) for each in ground)
    sizes, found = [], []
    for rate in (1.0, 3.0, 5.0):
        data = magc.encode(picture, class_ids, rate).data
        assert data == magc.encode(picture, class_ids, rate).data
        sizes.append(len(data))
        found.append(psnr(magc.decode(data, class_ids), picture))
    assert sizes == sorted(set(sizes))
    assert found == sorted(set(found))


@pytest.mark.slow
def test_a_scene_is_what_compress_writes(magc: ImageCodec, ground: tuple[np.ndarray, np.ndarray]) -> None:
    picture, class_ids = ground
    encoded = magc.encode(picture, class_ids, 2.0)
    codec = MagcCodec.from_pretrained("tiny", device="cpu")
    scene = compress_scene(codec, ArrayPixels(picture), ArrayMap(class_ids), rate=Rate(quality=2.0))
    assert encoded.data == scene.stream
    assert encoded.stream_bytes == described(encoded.data)["payload_bytes"]
    assert described(encoded.data)["kind"] == "scene"
    drawn = magc.decode(encoded.data, class_ids)
    assert drawn.shape == picture.shape
    assert psnr(drawn, picture) > 14
    assert described(open_codec("magc,chunk=256").encode(picture, class_ids, 2.0).data)["chunks"] == 6


def test_without_its_map_it_is_another_codec(magc: ImageCodec, ground: tuple[np.ndarray, np.ndarray]) -> None:
    picture, class_ids = (np.ascontiguousarray(each[:256, :256]) for each in ground)
    without = open_codec("magc,map=off")
    assert not without.uses_map
    assert (without.name, without.label) == ("magc,map=off", "MAGC, no map, faithful")
    assert open_codec("magc,map=off,steps=1").label == "MAGC, no map"
    assert (open_codec("magc,fidelity=0.5").label, magc.label) == ("MAGC", "MAGC, faithful")
    data = without.encode(picture, class_ids, 2.0).data
    assert data == without.encode(picture, None, 2.0).data
    assert np.array_equal(without.decode(data, class_ids), without.decode(data, None))
    with_map = magc.encode(picture, class_ids, 2.0).data
    faithful, blind = open_codec("magc,steps=0"), open_codec("magc,map=off,steps=0")
    assert psnr(faithful.decode(with_map, class_ids), picture) > psnr(blind.decode(data, None), picture)


def test_another_map_at_the_receiver_is_an_error(magc: ImageCodec, ground: tuple[np.ndarray, np.ndarray]) -> None:
    picture, class_ids = (np.ascontiguousarray(each[:256, :256]) for each in ground)
    data = magc.encode(picture, class_ids, 2.0).data
    with pytest.raises(BitstreamError, match="the map's digest"):
        magc.decode(data, class_ids[::-1].copy())


@pytest.mark.parametrize(("text", "sentence"), [
    ("magc,steps=5", "5 steps: this model draws in one step"),
    ("magc,start_t=300", "a timestep to start from: this model draws in one step"),
    ("magc,chunk=100", "a multiple of 64"),
    ("magc,rates=0/3", "quality 0: expected a number from 1 to 6"),
    ("magc,map=no", "expected one of on, off"),
    ("magc:tiny+tiny", "tiny has many rates and is one of 2 models"),
    ("magc:tiny+", "names no model beside a '\\+'"),
])  # fmt: skip
def test_a_wrong_wish_is_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        open_codec(text)


@pytest.mark.parametrize("wish", ["steps=5", "fidelity=0.5"])
def test_a_model_without_a_denoiser_is_not_told_how_to_draw(wish: str, tmp_path: Path) -> None:
    model = tiny_models.tiny_model()
    model.denoiser = None
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UsageError, match=f"has no denoiser, so that {wish.split('=')[0]} means nothing"):
        open_codec(f"magc:{tmp_path / 'model'},{wish}")


@pytest.mark.slow
def test_models_of_one_rate_make_a_curve(tmp_path: Path) -> None:
    paths = []
    for lambda_ in (4.0, 1.0):
        model = tiny_models.tiny_model(rate=RateConfig(mode=RateMode.FIXED, lambdas=(lambda_,)))
        assert model.latent_compression is not None
        with torch.no_grad():
            for parameter in model.latent_compression.parameters():
                parameter.mul_(1 + lambda_ / 100)
        model.tables = build_tables(model.latent_compression)
        paths.append(tmp_path / f"{lambda_:g}")
        model.save_pretrained(paths[-1])
    text = "+".join(map(str, paths))
    codec = open_codec(f"magc:{text},steps=2,sampler=ddim,seed=9")
    assert codec.rates == (1.0, 4.0)
    picture = np.random.default_rng(0).integers(0, 256, (64, 70, 3), np.uint8)
    class_ids = np.zeros((64, 70), np.uint8)
    sampling = Sampling(sampler="ddim", steps=2)
    for path, lambda_ in zip(paths, (4.0, 1.0), strict=True):
        data = codec.encode(picture, class_ids, lambda_).data
        alone = MagcCodec.from_pretrained(str(path), device="cpu")
        assert data == alone.compress(picture, class_ids)
        drawn = alone.decompress(data, class_ids, sampling=sampling, seed=9)
        assert np.array_equal(codec.decode(data, class_ids), drawn)
    with pytest.raises(UsageError, match="expected one of its rates"):
        codec.encode(picture, class_ids, 2.0)
    with pytest.raises(UsageError, match="no model in .* has lambda 2: there are 1, 4"):
        open_codec(f"magc:{text},rates=2")
    with pytest.raises(UsageError, match="two models in .* have one entropy model"):
        open_codec(f"magc:{paths[0]}+{paths[0]}")
