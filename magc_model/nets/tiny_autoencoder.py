"""The tiny autoencoder: TAESD of O. B. Bohan, with the names of diffusers' AutoencoderTiny, whose weights fit.

    image ─► /2 + 1/2 ─► conv ─► block ─► [ conv/2 ─► blocks ] x 3 ─► conv ─► latent

    latent ─► 3 tanh(x/3) ─► conv ─► ReLU ─► [ blocks ─► up ─► conv ] x 3 ─► block ─► conv ─► x2 - 1 ─► image

    block: conv ─► ReLU ─► conv ─► ReLU ─► conv ─► + input ─► ReLU          all convolutions 3x3

An own network for what it does not import: diffusers takes seconds of every command (docs/decisions/0020).
"""

import itertools
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from magc_model.shapes import Features, Image, Latent

LATENT_REACH = 3
"""The decoder bends what is beyond +- this."""


class TinyBlock(nn.Module):
    """Three convolutions plus the input.

    Rectifiers and sum take the place of what a convolution gave, which nothing else reads: at full resolution memory
    that is new costs as much as what is computed in it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, features: Features) -> Features:
        """Refine features."""
        return functional.relu_(self.conv(features).add_(features))


class UpConvolution(nn.Conv2d):
    """Up-sampling by 2, each value four times, and a 3x3 convolution without bias, in one.

    Of the nine values under the 3x3 window four at most differ: as a transposed convolution, whose 4x4 weights are sums
    of the 3x3 ones, it has four ninths of the arithmetic.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1, bias=False)

    def forward(self, features: Features) -> Float[Tensor, "batch channels 2*feature_height 2*feature_width"]:
        """Twice as many rows and columns."""
        taps = functional.pad(self.weight.flip(2, 3), (1, 1, 1, 1))
        sums = functional.avg_pool2d(taps, 2, stride=1, divisor_override=1)
        return functional.conv_transpose2d(features, sums.transpose(0, 1), stride=2, padding=1)


class ImageConvolution(nn.Conv2d):
    """The last 3x3 convolution, with even sides: four pixels at a time.

    It is one of 4x4 that goes two pixels a step, with zeros around: its 12 numbers make use of a processor's vectors,
    of which 3 leave most idle.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 3, 3, padding=1)

    def forward(self, features: Features) -> Float[Tensor, "batch 3 feature_height feature_width"]:
        """Red, green and blue, about in [0, 1]."""
        weights = [
            functional.pad(self.weight, (column, 1 - column, row, 1 - row)) for row in range(2) for column in range(2)
        ]
        bias = torch.as_tensor(self.bias).repeat_interleave(4)
        pixels = functional.conv2d(features, torch.stack(weights, dim=1).flatten(0, 1), bias, stride=2, padding=1)
        return functional.pixel_shuffle(pixels, 2)


class TinyEncoder(nn.Module):
    """Image to latent.

    Args:
        channels: of every level.
        latent_channels: of the latent.
        blocks: on each level, full resolution first.
    """

    def __init__(self, channels: int, latent_channels: int, blocks: tuple[int, ...]) -> None:
        super().__init__()
        first, *rest = blocks
        self.layers = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1),
            *_blocks(first, channels),
            *itertools.chain.from_iterable(
                (nn.Conv2d(channels, channels, 3, padding=1, stride=2, bias=False), *_blocks(count, channels))
                for count in rest
            ),
            nn.Conv2d(channels, latent_channels, 3, padding=1),
        )

    def forward(self, image: Image) -> Latent:
        """Encode an image in [-1, 1]."""
        return torch.as_tensor(self.layers(image.add(1).div(2)))


class TinyDecoder(nn.Module):
    """Latent to image.

    Args:
        channels: of every level.
        latent_channels: of the latent.
        blocks: on each level, the coarsest first.
    """

    def __init__(self, channels: int, latent_channels: int, blocks: tuple[int, ...]) -> None:
        super().__init__()
        *rest, last = blocks
        self.layers = nn.Sequential(
            nn.Conv2d(latent_channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            *itertools.chain.from_iterable(
                # Up-sampling has a place of its own in the numbers of stored weights.
                (*_blocks(count, channels), nn.Identity(), UpConvolution(channels))
                for count in rest
            ),
            *_blocks(last, channels),
            ImageConvolution(channels),
        )
        self._cuts = (*itertools.accumulate((count + 2 for count in rest), initial=2), len(self.layers) - 1)

    def head(self, latent: Latent) -> Features:
        """What enters the first level."""
        return torch.as_tensor(self.layers[:2](LATENT_REACH * torch.tanh(latent / LATENT_REACH)))

    def levels(self) -> tuple[nn.Sequential, ...]:
        """The layers of each level, the coarsest first."""
        return tuple(self.layers[start:end] for start, end in itertools.pairwise(self._cuts))

    def tail(self, features: Features) -> Image:
        """The image, about in [-1, 1], of what leaves the last level."""
        return torch.as_tensor(self.layers[-1](features)) * 2 - 1


class TinyAutoencoder(nn.Module):
    """Both halves.

    Args:
        channels: of every level.
        latent_channels: of the latent.
        blocks: on each level, full resolution first.
    """

    def __init__(self, channels: int, latent_channels: int, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder = TinyEncoder(channels, latent_channels, blocks)
        self.decoder = TinyDecoder(channels, latent_channels, blocks[::-1])


def _blocks(count: int, channels: int) -> Iterator[TinyBlock]:
    return (TinyBlock(channels) for _ in range(count))
