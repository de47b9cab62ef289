"""What the realistic end of the model in the box learns from: a discriminator at two scales, and the losses of both.

    picture ─┐
    faithful picture ─cat ─► [ conv4x4/2 ] x 3 ─► conv3x3 ─► conv3x3 ─► a logit a patch, at full and at half the size
    map planes ─┘

It sees the faithful picture and the map, so that it judges what was made of them, and not pictures at large.
Patches after Isola et al. 2017 (arXiv 1611.07004), two scales and matching of features after Wang et al. 2018
(arXiv 1711.11585), the hinge after Lim and Ye 2017 (arXiv 1705.02894), spectral norm after Miyato et al. 2018.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

CHANNELS = 64
ADVERSARIAL, MATCHING, PIXELS, BLOCKS = 0.5, 10.0, 4.0, 8.0
"""Weights of what the generator learns by: the adversary, its features, L1 of pixels, and L1 of means of 8x8 pixels."""
BLOCK_PX = 8


class Judged(NamedTuple):
    """What the discriminator says of a picture at one scale."""

    logits: Tensor
    features: list[Tensor]
    """Of each layer."""


class _PatchJudge(nn.Module):
    """Sees 54 px around each patch."""

    def __init__(self, seen: int) -> None:
        super().__init__()
        widths = (seen, CHANNELS, 2 * CHANNELS, 4 * CHANNELS)
        halving = [nn.Conv2d(before, after, 4, 2, 1) for before, after in pairwise(widths)]
        last = nn.Conv2d(4 * CHANNELS, 4 * CHANNELS, 3, 1, 1)
        self.layers = nn.ModuleList(nn.Sequential(spectral_norm(each), nn.LeakyReLU(0.2)) for each in (*halving, last))
        self.exit = spectral_norm(nn.Conv2d(4 * CHANNELS, 1, 3, 1, 1))

    def forward(self, seen: Tensor) -> Judged:
        """Judge."""
        features: list[Tensor] = []
        for layer in self.layers:
            seen = layer(seen)
            features.append(seen)
        return Judged(self.exit(seen), features)


class Discriminator(nn.Module):
    """The same at two scales.

    Args:
        planes: of the map.
    """

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(_PatchJudge(6 + planes) for _ in range(2))

    def forward(self, picture: Tensor, faithful: Tensor, planes: Tensor) -> list[Judged]:
        """Judge pictures in [-1, 1] beside their faithful ones."""
        seen = torch.cat((picture, faithful, planes), 1)
        return [
            scale(seen if number == 0 else functional.avg_pool2d(seen, 2)) for number, scale in enumerate(self.scales)
        ]


def discriminator_loss(real: list[Judged], fake: list[Judged]) -> Tensor:
    """The hinge."""
    losses = [
        functional.relu(1 - one.logits.float()).mean() + functional.relu(1 + other.logits.float()).mean()
        for one, other in zip(real, fake, strict=True)
    ]
    return torch.stack(losses).sum()


def deceit(real: list[Judged], fake: list[Judged]) -> Tensor:
    """What a generator learns from the discriminator: to be taken for real, and to be seen as the original is."""
    taken_for_real = torch.stack([-each.logits.float().mean() for each in fake]).sum()
    distances = [
        (mine.float() - theirs.detach().float()).abs().mean()
        for one, other in zip(fake, real, strict=True)
        for mine, theirs in zip(one.features, other.features, strict=True)
    ]
    return ADVERSARIAL * taken_for_real + MATCHING * torch.stack(distances).mean()


def closeness(drawn: Tensor, original: Tensor) -> Tensor:
    """What a generator learns from the original itself."""
    blocks = functional.avg_pool2d(drawn - original, BLOCK_PX)
    return PIXELS * (drawn - original).abs().mean() + BLOCKS * blocks.abs().mean()
