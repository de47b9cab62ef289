"""Spatially-adaptive normalisation: how the map steers a feature map (paper 3.2.2, eq. 8, Fig. 4; Park et al. 2019).

SPADE block        map ───┐
                          ├─► cat ─► basic block ─┬─► conv3x3 ─► gamma
         x ─► norm ───┬───┘                       └─► conv3x3 ─► beta
                      └──────────► norm(x) * (1 + gamma) + beta

SPADE ResBlock     x ─► SPADE ─► basic block ─► SPADE ─► basic block ─► + x
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from magc_model.config import NormKind
from magc_model.nets.blocks import BasicBlock, ChannelNorm
from magc_model.shapes import Features

MapFeatures = Float[Tensor, "batch map_channels feature_height feature_width"]


def _norm(kind: NormKind, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, affine=False) if kind is NormKind.BATCH else ChannelNorm(channels, affine=False)


class SpadeBlock(nn.Module):
    """Normalise features, then scale and shift each pixel by what the map and the features say.

    The paper's equation scales by gamma; 1 + gamma is the published code's form and starts near identity.
    """

    def __init__(self, channels: int, map_channels: int, norm: NormKind) -> None:
        super().__init__()
        self.norm = _norm(norm, channels)
        self.shared = BasicBlock(map_channels + channels, channels)
        self.gamma = nn.Conv2d(channels, channels, 3, padding=1)
        self.beta = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Features, map_features: MapFeatures) -> Features:
        """Steer features by the map."""
        normalised = self.norm(features)
        shared = self.shared(torch.cat((map_features, normalised), dim=1))
        return torch.addcmul(self.beta(shared), normalised, 1 + self.gamma(shared))


class SpadeResBlock(nn.Module):
    """Two SPADE blocks, a basic block after each, plus the input."""

    def __init__(self, channels: int, map_channels: int, norm: NormKind, *, second_reads_input: bool = False) -> None:
        super().__init__()
        self.first_spade = SpadeBlock(channels, map_channels, norm)
        self.first = BasicBlock(channels, channels)
        self.second_spade = SpadeBlock(channels, map_channels, norm)
        self.second = BasicBlock(channels, channels)
        self.second_reads_input = second_reads_input

    def forward(self, features: Features, map_features: MapFeatures) -> Features:
        """Refine features by the map."""
        # Where the second SPADE block reads the input (published code), the first half is dead: not worth running.
        refined = features if self.second_reads_input else self.first(self.first_spade(features, map_features))
        return torch.as_tensor(self.second(self.second_spade(refined, map_features)) + features)
