"""The semantic adapter (SAM): map and noisy latent -> features added to the denoising UNet's encoder (paper, Fig. 5).

    planes ─► SemanticEncoder ─┐
                               cat ─► ResBlock ─┬─► Downsample ─► ResBlocks ─┬─► Downsample ─► ResBlocks ─┬─► ...
    noisy latent ──────────────┘                ▼                            ▼                            ▼
                                             1x1 zero                     1x1 zero                     1x1 zero
                                                ▼                            ▼                            ▼
                                        1/8 of the image                   1/16                         1/32

The map is encoded once a picture; the rest runs at every step, since it sees the noisy latent. The zero-initialised 1x1
convolutions leave a pre-trained UNet as it was when training starts. The published adapter has none of them: with
`quirks.adapter_overlaps_scales` neither has this one, and its scales run each other's modules as the published ones do.
"""

import typing
from itertools import chain, pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from magc_model.config import LATENT_CHANNELS, DenoiserConfig, PublishedQuirks
from magc_model.nets.blocks import Downsample, ResBlock
from magc_model.nets.semantic_encoder import MapFeatures, SemanticEncoder
from magc_model.shapes import Latent, MapPlanes

ScaleFeatures = Float[Tensor, "batch _ _ _"]
"""Features of one of several scales: channels and sides differ from scale to scale."""


class SemanticAdapter(nn.Module):
    """One feature tensor a level of the UNet, with its channels and at its resolution."""

    def __init__(self, config: DenoiserConfig, planes: int, quirks: PublishedQuirks) -> None:
        super().__init__()
        self.scale_factor = quirks.adapter_scale
        self.encoder = SemanticEncoder(planes, config.map_channels)
        self.first = ResBlock(config.map_channels[-1] + LATENT_CHANNELS, config.channels[0])
        self.scales = nn.ModuleList(
            nn.Sequential(
                Downsample(finer, coarser), *(ResBlock(coarser, coarser) for _ in range(config.adapter_blocks))
            )
            for finer, coarser in pairwise(config.channels)
        )
        self.exits = nn.ModuleList(
            nn.Identity() if quirks.adapter_overlaps_scales else _zero_convolution(channels)
            for channels in config.channels
        )
        self.overlaps_scales = quirks.adapter_overlaps_scales

    def encode_map(self, planes: MapPlanes) -> MapFeatures:
        """What the map gives to every step of a picture."""
        return torch.as_tensor(self.encoder(planes))

    def forward(self, map_features: MapFeatures, noisy_latent: Latent) -> list[ScaleFeatures]:
        """Features by level, finest first; a new list each time, because the UNet empties it."""
        features = self.first(torch.cat([map_features, noisy_latent], dim=1))
        levels = [features]
        for modules in self._modules_by_scale():
            for module in modules:
                features = module(features)
            levels.append(features)
        return [exit_(level) * self.scale_factor for exit_, level in zip(self.exits, levels, strict=True)]

    def _modules_by_scale(self) -> list[list[nn.Module]]:
        scales = [list(typing.cast("nn.Sequential", scale)) for scale in self.scales]
        if not self.overlaps_scales:
            return scales
        # The published code counts a scale's modules without its convolution, and so begins each scale one too early.
        flat = list(chain.from_iterable(scales))
        run = len(scales[0])
        return [flat[start : start + run] for start in range(0, len(scales) * (run - 1), run - 1)]


def _zero_convolution(channels: int) -> nn.Conv2d:
    convolution = nn.Conv2d(channels, channels, 1)
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)
    return convolution
