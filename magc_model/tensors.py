"""Images and maps as torch has them, and as the codec takes them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from magc_model.errors import UsageError

_MAP_DTYPES = (torch.uint8, torch.int64)


def pictures_of(images: Tensor) -> UInt8[np.ndarray[Any, Any], "batch height width 3"]:
    """Pictures of 8 bits of images [batch, 3, height, width], on any device.

    Args:
        images: floats in [0, 1], rounded to the nearest of 256 levels; or uint8, taken as they are.

    Raises:
        UsageError: they are of another shape or type, or a value is outside of [0, 1].
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise UsageError(f"the images are of shape {_shape(images)}: expected batch x 3 x height x width")
    if images.is_floating_point():
        levels = images.detach().float()
        if not bool(((levels >= 0) & (levels <= 1)).all()):
            raise UsageError(
                f"the images' values range from {levels.min():g} to {levels.max():g}: expected floats from 0 to 1, or "
                "uint8"
            )
        images = (levels * 255).round().to(torch.uint8)
    elif images.dtype is not torch.uint8:
        raise UsageError(f"the images are of {images.dtype}: expected floats from 0 to 1, or uint8")
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).cpu().numpy())


def maps_of(semantic_maps: Tensor, count: int) -> UInt8[np.ndarray[Any, Any], "batch height width"]:
    """Class ids of 8 bits of maps [batch, height, width], on any device.

    Args:
        semantic_maps: class ids, as uint8 or int64.
        count: how many there have to be.

    Raises:
        UsageError: they are of another shape or type, or a number is no class id.
    """
    if semantic_maps.ndim != 3 or len(semantic_maps) != count:
        raise UsageError(f"the maps are of shape {_shape(semantic_maps)}: expected {count} x height x width")
    if semantic_maps.dtype not in _MAP_DTYPES:
        raise UsageError(f"the maps are of {semantic_maps.dtype}: expected class ids, as uint8 or int64")
    if not bool(((semantic_maps >= 0) & (semantic_maps <= 255)).all()):
        raise UsageError(
            f"the maps hold class ids from {semantic_maps.min()} to {semantic_maps.max()}: expected 0 to 255"
        )
    return np.ascontiguousarray(semantic_maps.to(torch.uint8).cpu().numpy())


def images_of(
    pictures: Sequence[UInt8[np.ndarray[Any, Any], "height width 3"]], device: torch.device
) -> Float32[Tensor, "batch 3 height width"]:
    """Images in [0, 1], on a device, of pictures of one size; the inverse of `pictures_of`."""
    stacked = torch.from_numpy(np.stack(pictures)).to(device)
    return stacked.permute(0, 3, 1, 2).contiguous().float() / 255


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"
