"""The two discriminators that fine-tunes are trained against, and their losses.

Both see the picture in [0, 1] beside the symbols that it was decoded from, enlarged to its size.
"""

from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from magc_model.shapes import Features, Image

SLOPE = 0.2

Logits = Float[Tensor, "batch outputs rows columns"]
Labels = Int64[Tensor, "batch rows columns"]


class PatchDiscriminator(nn.Module):
    """HiFiC's: four convolutions, three of which halve, and one to a logit a patch; spectral norm on each.

        symbols ─► conv3x3 to 12 ─► enlarge ─┐
        picture ─────────────────────────────cat ─► conv4x4/2 ─► conv4x4/2 ─► conv4x4/2 ─► conv4x4 ─► conv4x4 ─► logits

    Mentzer et al. 2020 (arXiv 2006.09965), appendix A.2, and tensorflow/compression models/hific/archs.py.

    Args:
        symbol_channels: of the symbols.
        channels: of the first layer; 64 as published, doubled by each up to 8 times as many.
    """

    SYMBOL_FEATURES = 12

    def __init__(self, symbol_channels: int, channels: int) -> None:
        super().__init__()
        self.look = spectral_norm(nn.Conv2d(symbol_channels, self.SYMBOL_FEATURES, 3, padding=1))
        widths = (3 + self.SYMBOL_FEATURES, channels, 2 * channels, 4 * channels)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [spectral_norm(nn.Conv2d(before, after, 4, stride=2, padding=1)), nn.LeakyReLU(SLOPE)]
        layers += [_same(4 * channels, 8 * channels), nn.LeakyReLU(SLOPE), _same(8 * channels, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, picture: Image, symbols: Features) -> Logits:
        """A logit a patch: is it real?"""
        seen = functional.leaky_relu(self.look(symbols), SLOPE)
        return torch.as_tensor(self.layers(_beside(picture, seen)))


def _same(before: int, after: int) -> nn.Sequential:
    """A convolution of 4x4 that keeps the size."""
    return nn.Sequential(nn.ZeroPad2d((1, 2, 1, 2)), spectral_norm(nn.Conv2d(before, after, 4)))


def _beside(picture: Tensor, features: Tensor) -> Tensor:
    larger = functional.interpolate(features, size=picture.shape[-2:], mode="nearest")
    return torch.cat([picture, larger], dim=1)


def patch_losses(real: Logits, fake: Logits) -> Float[Tensor, ""]:
    """What the patch discriminator minimises: the non-saturating GAN loss's half of it (Goodfellow et al. 2014)."""
    return functional.softplus(-real).mean() + functional.softplus(fake).mean()


def patch_deceit(fake: Logits) -> Float[Tensor, ""]:
    """What the decoder minimises against it."""
    return functional.softplus(-fake).mean()


class _Level(nn.Module):
    """A residual block that halves or doubles the features."""

    def __init__(self, before: int, after: int, resize: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(before, after, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(after, after, 3, padding=1),
        )
        self.skip = nn.Conv2d(before, after, 1)
        self.resize = resize

    def forward(self, features: Tensor) -> Tensor:
        """Refine, then resize."""
        return torch.as_tensor(self.resize(self.layers(features) + self.skip(features)))


class LocalDiscriminator(nn.Module):
    """MS-ILLM's: a U-Net down to 1/64 and up to 1/8, where it says of each place its label, or that it is fake.

    Muckley et al. 2023 (arXiv 2301.11189); the U-Net is OASIS's (Sushko et al. 2021), with its skips.

    Args:
        symbol_channels: of the symbols.
        channels: of the first level; 128 as published, twice and four times as many further down.
        labels: N; there are N + 1 outputs, of which the first is "fake".
    """

    SYMBOL_FEATURES = 16
    UP_TO = 3
    """Halvings at which the outputs are: 1/8, the labels' resolution."""

    def __init__(self, symbol_channels: int, channels: int, labels: int) -> None:
        super().__init__()
        self.look = nn.Conv2d(symbol_channels, self.SYMBOL_FEATURES, 3, padding=1)
        first = 3 + self.SYMBOL_FEATURES
        widths = (first, channels, channels, 2 * channels, 2 * channels, 4 * channels, 4 * channels)
        self.down = nn.ModuleList(_Level(before, after, nn.AvgPool2d(2)) for before, after in pairwise(widths))
        up = widths[: self.UP_TO - 1 : -1]
        self.up = nn.ModuleList(
            _Level(before if number == 0 else 2 * before, after, nn.Upsample(scale_factor=2))
            for number, (before, after) in enumerate(pairwise(up))
        )
        self.exit = nn.Conv2d(2 * up[-1], labels + 1, 1)

    def forward(self, picture: Image, symbols: Features) -> Logits:
        """Logits [batch, labels + 1, height / 8, width / 8]."""
        features = _beside(picture, functional.leaky_relu(self.look(symbols), SLOPE))
        levels: list[Tensor] = []
        for level in self.down:
            features = level(features)
            levels.append(features)
        skips = levels[self.UP_TO - 1 : -1]
        for level in self.up:
            features = torch.cat([level(features), skips.pop()], dim=1)
        return torch.as_tensor(self.exit(features))


def local_losses(real: Logits, fake: Logits, labels: Labels) -> Float[Tensor, ""]:
    """What the local discriminator minimises: half the cross-entropies of real places' labels and of fakes."""
    fakes = torch.zeros_like(labels)
    return (functional.cross_entropy(real, labels + 1) + functional.cross_entropy(fake, fakes)) / 2


def local_deceit(fake: Logits, labels: Labels) -> Float[Tensor, ""]:
    """What the decoder minimises against it: its places should be taken for the original's labels."""
    return functional.cross_entropy(fake, labels + 1)


def held_still(network: nn.Module, *inputs: Any) -> Tensor:
    """A network's answer through which gradients flow, but not into its weights."""
    still = {name: each.detach() for name, each in network.named_parameters()}
    return torch.as_tensor(torch.func.functional_call(network, still, inputs))
