"""`MagcCodec` from torch: the streams of `compress_batch`, tensors back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import CLASSES, tiny_model

from magc_model.codec import MagcCodec, Rate
from magc_model.config import PAPER_LAMBDAS, RateConfig, RateMode
from magc_model.errors import BitstreamError, DataError, UsageError
from magc_model.reconstruct import Sampling

GUIDE = Sampling(steps=0)


@pytest.fixture(scope="module")
def codec() -> MagcCodec:
    rate = RateConfig(mode=RateMode.GAINED, lambdas=PAPER_LAMBDAS)
    return MagcCodec(tiny_model(rate=rate), device="cpu", batch_size=2)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (3, 70, 90, 3), np.uint8)


@pytest.fixture(scope="module")
def maps() -> np.ndarray:
    return np.random.default_rng(2).integers(0, len(CLASSES), (3, 7, 9)).repeat(10, 1).repeat(10, 2)


def images_of(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)


def test_the_streams_are_those_of_the_same_pixels(codec: MagcCodec, pictures: np.ndarray, maps: np.ndarray) -> None:
    options = {"rate": Rate(quality=2.0), "seed": 7, "embed_map": True}
    expected = [each.stream for each in codec.compress_batch(list(pictures), list(maps.astype(np.uint8)), **options)]
    images = images_of(pictures)
    for given in (images, images.float() / 255, (images.double() / 255 + 0.4 / 255).clamp(0, 1)):
        for class_ids in (torch.from_numpy(maps), torch.from_numpy(maps.astype(np.uint8))):
            assert codec.compress_tensor(given, class_ids, **options) == expected
    without = [each.stream for each in codec.compress_batch(list(pictures))]
    assert codec.compress_tensor(images.float() / 255) == without


def test_a_tensor_comes_back_with_the_pictures_values(codec: MagcCodec, pictures: np.ndarray, maps: np.ndarray) -> None:
    streams = codec.compress_tensor(images_of(pictures), torch.from_numpy(maps))
    for sampling, seed in ((GUIDE, None), (Sampling(steps=2), 5)):
        images = codec.decompress_tensor(streams, torch.from_numpy(maps), sampling=sampling, seed=seed)
        expected = codec.decompress_batch(streams, list(maps.astype(np.uint8)), sampling=sampling, seed=seed)
        assert images.dtype is torch.float32
        assert images.device == codec.device
        assert torch.equal(images, images_of(np.stack(expected)).float() / 255)
    assert codec.compress_tensor(images) == [each.stream for each in codec.compress_batch(expected)]


def test_no_gradient_goes_through(codec: MagcCodec) -> None:
    images = torch.rand(1, 3, 64, 64, requires_grad=True)
    decoded = codec.decompress_tensor(codec.compress_tensor(images), sampling=GUIDE)
    assert not decoded.requires_grad
    assert images.grad is None


def test_what_cannot_be_is_said(codec: MagcCodec, pictures: np.ndarray) -> None:
    images = images_of(pictures)
    assert codec.compress_tensor(images[:0]) == []
    with pytest.raises(UsageError, match="range from 0 to 255"):
        codec.compress_tensor(images.float())
    with pytest.raises(UsageError, match="of shape 1 x 70 x 90: expected 3 x height x width"):
        codec.compress_tensor(images, torch.zeros(1, 70, 90, dtype=torch.uint8))
    with pytest.raises(DataError, match="the map has 70x90 pixels, the picture 90x70"):
        codec.compress_tensor(images, torch.zeros(3, 90, 70, dtype=torch.uint8))
    with pytest.raises(DataError, match="200"):
        codec.compress_tensor(images, torch.full((3, 70, 90), 200))
    with pytest.raises(UsageError, match="the quality is 9"):
        codec.compress_tensor(images, rate=Rate(quality=9.0))


def test_streams_of_several_sizes_are_no_tensor(codec: MagcCodec, pictures: np.ndarray) -> None:
    streams = [codec.compress(pictures[0]), codec.compress(pictures[0, :64])]
    with pytest.raises(UsageError, match="pictures of 90x64 and 90x70 pixels, which no one tensor holds"):
        codec.decompress_tensor(streams, sampling=GUIDE)
    with pytest.raises(UsageError, match="there are no streams"):
        codec.decompress_tensor([])
    with pytest.raises(BitstreamError, match="damaged"):
        codec.decompress_tensor([streams[0][:-1]])
