"""Images and maps as torch has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from magc_model.errors import UsageError
from magc_model.tensors import images_of, maps_of, pictures_of

LEVELS = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_every_level_survives_as_a_float(dtype: torch.dtype) -> None:
    pictures = pictures_of((LEVELS.double() / 255).to(dtype))
    assert pictures.shape == (2, 16, 16, 3)
    assert np.array_equal(pictures, pictures_of(LEVELS))
    assert torch.equal(images_of(list(pictures), torch.device("cpu")), LEVELS.float() / 255)


def test_values_go_to_the_nearest_level() -> None:
    values = torch.tensor([0.0, 0.49, 0.51, 254.4, 254.6, 255.0]) / 255
    assert pictures_of(values.reshape(1, 1, 1, 6).repeat(1, 3, 1, 1))[0, 0, :, 0].tolist() == [0, 0, 1, 254, 255, 255]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 8, 8), "of shape 3 x 8 x 8: expected batch x 3 x height x width"),
        (torch.zeros(1, 8, 8, 3), "of shape 1 x 8 x 8 x 3: expected batch x 3"),
        (torch.zeros(()), "of shape one number: expected batch x 3"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "the images are of torch.int64: expected floats from 0 to 1"),
        (torch.full((1, 3, 8, 8), 255.0), "values range from 255 to 255: expected floats from 0 to 1"),
        (torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8), "values range from -1 to 1: expected floats"),
        (torch.full((1, 3, 8, 8), float("nan")), "values range from nan to nan: expected floats"),
    ],
)
def test_other_tensors_are_no_images(images: torch.Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pictures_of(images)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_maps_become_class_ids(dtype: torch.dtype) -> None:
    ids = torch.arange(256).reshape(2, 8, 16)
    found = maps_of(ids.to(dtype), 2)
    assert found.dtype == np.uint8
    assert np.array_equal(found, ids.numpy())


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (torch.zeros(8, 8, dtype=torch.uint8), "of shape 8 x 8: expected 2 x height x width"),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), "of shape 1 x 8 x 8: expected 2 x height x width"),
        (torch.zeros(2, 8, 8), "the maps are of torch.float32: expected class ids, as uint8 or int64"),
        (torch.full((2, 8, 8), 256), "class ids from 256 to 256: expected 0 to 255"),
        (torch.full((2, 8, 8), -1), "class ids from -1 to -1: expected 0 to 255"),
    ],
)
def test_other_tensors_are_no_maps(maps: torch.Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        maps_of(maps, 2)
