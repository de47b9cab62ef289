"""The VQ-VAE whose codes label the places of a picture for MS-ILLM's discriminator.

    image ─► encoder, 1/8 ─► 8 dimensions, length 1 ─► nearest code ─► decoder ─► image
                                                            └─► label

Sizes are those published (NeuralCompression, vqvae_xcit_p8_ch64_cb1024_h8): codes of 8 dimensions on the sphere, at 1/8
of the resolution. Its XCiT attention is left out. The codes are learnt by the VQ-VAE's own loss (van den Oord et al.
2017, equation 3).
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from magc_model.baselines.config import LabelsConfig
from magc_model.nets.blocks import Downsample, ResBlock, Upsample
from magc_model.shapes import Image

COMMITMENT = 0.25
"""Weight of the encoder's part of the loss of the codes (van den Oord et al. 2017)."""

LEVELS = (1, 2, 2, 4)
"""Channels a level, in units of the first."""


class Labelled(NamedTuple):
    """What the VQ-VAE makes of images."""

    decoded: Image
    labels: Int64[Tensor, "batch rows columns"]
    code_loss: Float[Tensor, ""]


class LabelNetwork(nn.Module):
    """The VQ-VAE, freshly initialised."""

    def __init__(self, config: LabelsConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels * each for each in LEVELS]
        down: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1), *_blocks(widths[0], config.blocks)]
        up: list[nn.Module] = []
        for before, after in pairwise(widths):
            down += [Downsample(before, after), *_blocks(after, config.blocks)]
            up = [*_blocks(after, config.blocks), Upsample(after), nn.Conv2d(after, before, 3, padding=1), *up]
        self.encoder = nn.Sequential(*down, nn.Conv2d(widths[-1], config.code_dimensions, 1))
        self.codes = nn.Parameter(functional.normalize(torch.randn(config.codes, config.code_dimensions), dim=1))
        self.decoder = nn.Sequential(
            nn.Conv2d(config.code_dimensions, widths[-1], 3, padding=1),
            *up,
            *_blocks(widths[0], config.blocks),
            nn.Conv2d(widths[0], 3, 3, padding=1),
        )

    def labels(self, images: Image) -> Int64[Tensor, "batch rows columns"]:
        """Of images in [-1, 1], one a square of 8 px."""
        return self._nearest(self._encode(images))

    def forward(self, images: Image) -> Labelled:
        """Encode, round to codes, decode; gradients pass the rounding as if it were none."""
        encoded = self._encode(images)
        labels = self._nearest(encoded)
        codes = functional.normalize(self.codes, dim=1)[labels].movedim(-1, 1)
        code_loss = (codes - encoded.detach()).square().mean() + COMMITMENT * (encoded - codes.detach()).square().mean()
        decoded = self.decoder(encoded + (codes - encoded).detach())
        return Labelled(decoded, labels, code_loss)

    def _encode(self, images: Image) -> Tensor:
        return functional.normalize(self.encoder(images), dim=1)

    def _nearest(self, encoded: Tensor) -> Tensor:
        return torch.einsum("bdhw,nd->bnhw", encoded, functional.normalize(self.codes, dim=1)).argmax(dim=1)


def _blocks(channels: int, count: int) -> list[nn.Module]:
    return [ResBlock(channels, channels) for _ in range(count)]
