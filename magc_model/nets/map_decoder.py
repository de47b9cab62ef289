"""The map-aware image decoder: brings the full-resolution map into the autoencoder's decoder.

    planes ─► look ──────┬──► look/2 ──────┬──► look/2 ──────┬──► look/2 ──────┐
                         │ full            │ 1/2             │ 1/4             │ 1/8
                    modulation        modulation        modulation        modulation
                         ▼                 ▼                 ▼                 ▼
    image ◄── tail ◄── up block ◄─────── up block ◄─────── up block ◄─────── up block ◄── head ◄── latent

    look: conv3x3 (look/2: stride 2) ─► GELU ─► conv3x3 ─► GELU
    modulation: gain, shift = conv1x1(map features);  features ─► features * (1 + gain) + shift

The paper's map enters at 1/8 of the resolution and below, where a house is about one latent pixel; here every up block
sees it at its own resolution. The convolutions that make gain and shift start at zero, so a fresh map decoder changes
nothing, and a pre-trained autoencoder keeps what it can do.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from magc_model.shapes import Features, MapPlanes

MapLevel = Float[Tensor, "batch _ _ _"]
"""Features of the map at one resolution of the pyramid."""


class DecoderLevel(NamedTuple):
    """What the modulation of a decoder level needs to know."""

    map_channels: int
    decoder_channels: int
    """Of what enters the level's up block."""


class Modulation(nn.Module):
    """Gain and shift a pixel and channel, from map features (SPADE without its normalisation); nothing at first."""

    def __init__(self, level: DecoderLevel) -> None:
        super().__init__()
        # 1x1: the pyramid has looked around already, and a 3x3 would cost nine times as much at full resolution.
        self.gain_and_shift = nn.Conv2d(level.map_channels, 2 * level.decoder_channels, 1)
        nn.init.zeros_(self.gain_and_shift.weight)
        nn.init.zeros_(torch.as_tensor(self.gain_and_shift.bias))

    def forward(
        self, features: Features, map_features: Float[Tensor, "batch map_channels feature_height feature_width"]
    ) -> Features:
        """Modulate features by the map of the same size."""
        layer = self.gain_and_shift
        gain_weight, shift_weight = layer.weight.chunk(2)
        gain_bias, shift_bias = torch.as_tensor(layer.bias).chunk(2)
        # One by one, 1 + gain by its bias, and the result in the shift's place: at full resolution, memory that is new
        # costs more than the arithmetic.
        factor = functional.conv2d(map_features, gain_weight, 1 + gain_bias)
        shift = functional.conv2d(map_features, shift_weight, shift_bias)
        return shift.addcmul_(features, factor)


class MapDecoder(nn.Module):
    """The map's pyramid and a modulation a decoder level. Levels are ordered as the decoder runs: 1/8 first, full last.

    Args:
        planes: map planes.
        levels: one a decoder level; each is twice as large as the one before it.
    """

    def __init__(self, planes: int, levels: tuple[DecoderLevel, ...]) -> None:
        super().__init__()
        widths = [each.map_channels for each in reversed(levels)]
        self.pyramid = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, width, 3, stride=1 if index == 0 else 2, padding=1),
                nn.GELU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.GELU(),
            )
            for index, (before, width) in enumerate(zip([planes, *widths], widths, strict=False))
        )
        self.modulations = nn.ModuleList(Modulation(each) for each in levels)

    def encode_map(self, planes: MapPlanes) -> tuple[MapLevel, ...]:
        """Features of the map for each decoder level."""
        levels: list[Tensor] = []
        features: Tensor = planes
        for layers in self.pyramid:
            features = layers(features)
            levels.append(features)
        return tuple(reversed(levels))
