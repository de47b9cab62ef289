"""Features of a fixed random network, to compare sets of patches by where no trained weights are at hand. Not FID.

    patch ─► halved 0, 1, 2, 3 times ─► 6 filters of 5x5 ─► | | ─┬─► log of mean, mean of log
                                                                 └─► halved ─► 6 filters of 3x3 ─► | | ─► the same two
    patch ─► mean colour

The first layer sees fine to coarse contrast, the second how it is arranged; the two means, how evenly. Filters add up
to 0 in every channel, so that contrast and colour are told apart; logarithms make a halved contrast the same step
everywhere. Weights come from the raw words of Philox, which are the same on every platform and in every version;
FEATURES_VERSION belongs to every figure that is kept.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from magc_model.evaluate.metrics.patches import Patches

FEATURES_VERSION = 1
"""Raised with every change of what the features are; part of the Philox key, so that the weights change too."""

_SCALES = 4
_FILTERS = 6
_FIRST_PX, _SECOND_PX = 5, 3
_FLOOR = 0.5 / 255  # contrast below half a grey level is none
_EVENNESS_GAIN = 4.0  # natural patches then vary as much in it as in their log contrasts
_COLOUR_GAIN = 8.0  # likewise
FEATURE_COUNT = 4 * _SCALES * _FILTERS + 3

Features = Float32[np.ndarray[Any, Any], "patches dimensions"]
_Filters = Float[Tensor, "filters channels filter_px filter_px"]


class _Layer(NamedTuple):
    first: _Filters
    second: _Filters


def random_features(patches: Patches) -> Features:
    """Features of patches, [patches, FEATURE_COUNT].

    They are divided by the root of their number: a distance of 1 is a step of e in every contrast at once.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(patches)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        found = [_COLOUR_GAIN * pixels.mean(dim=(2, 3))]
        for layer in _network():
            response = nn.functional.conv2d(pixels, layer.first).abs()
            found += _described(response)
            found += _described(nn.functional.conv2d(_halved(response), layer.second).abs())
            pixels = _halved(pixels)
        return np.asarray((torch.cat(found, dim=1) / FEATURE_COUNT**0.5).numpy())


def _described(response: Float[Tensor, "patches filters rows columns"]) -> list[Float[Tensor, "patches filters"]]:
    """How strong the responses are, and how evenly that is shared out: blocks of nothing lie between strong edges."""
    raised = response + _FLOOR
    contrast = raised.mean(dim=(2, 3)).log()
    return [contrast, _EVENNESS_GAIN * (raised.log().mean(dim=(2, 3)) - contrast)]


def _halved(planes: Float[Tensor, "patches channels rows columns"]) -> Float[Tensor, "patches channels _ _"]:
    return nn.functional.avg_pool2d(planes, 2)


@functools.cache
def _network() -> tuple[_Layer, ...]:
    words = np.random.Philox(key=FEATURES_VERSION)
    return tuple(
        _Layer(_filters(words, channels=3, size_px=_FIRST_PX), _filters(words, channels=_FILTERS, size_px=_SECOND_PX))
        for _ in range(_SCALES)
    )


def _filters(words: np.random.Philox, *, channels: int, size_px: int) -> _Filters:
    """Uniform weights without a mean in any channel, of length 1."""
    drawn = words.random_raw(_FILTERS * channels * size_px**2) >> np.uint64(40)
    weights = drawn.astype(np.float64).reshape(_FILTERS, channels, size_px, size_px) / 2**24 - 0.5
    weights -= weights.mean(axis=(2, 3), keepdims=True)
    weights /= np.sqrt((weights**2).sum(axis=(1, 2, 3), keepdims=True))
    return torch.from_numpy(weights.astype(np.float32))
