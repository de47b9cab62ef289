"""The segmenter: which class of the map each pixel of a picture looks like. A small U-Net (Ronneberger et al. 2015).

    image ─► stem ─► block ──────────────────────────► + ─► block ─► head ─► x2, x2 ─► logits
             /4        │                               ▲
                       └─► /2, block ──────────► + ─► block, x2
                                 │               ▲
                                 └─► /2, block, x2

It is small on purpose, in what it computes (a picture of 256 px in some 25 ms on one core) and in what it sees: a
pixel's class is decided within 104 px of it, so that houses are found where there is something to see, and not where a
town would have some.
"""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from magc_model.nets.blocks import Downsample, ResBlock
from magc_model.shapes import Features, Image

STEM_STRIDE = 4

Logits = Float[Tensor, "batch classes height width"]


class SegmenterNetwork(nn.Module):
    """Image of any size -> logits of the classes at each pixel.

    Args:
        channels: by level, from a quarter of the resolution down, each at half the one before.
        class_count: how many classes it tells apart.
    """

    def __init__(self, channels: tuple[int, ...], class_count: int) -> None:
        super().__init__()
        first = channels[0]
        self.stem = nn.Sequential(Downsample(3, first), nn.LeakyReLU(), Downsample(first, first), nn.LeakyReLU())
        self.down = nn.ModuleList(_Down(above, here) for above, here in itertools.pairwise(channels))
        self.first = ResBlock(first, first)
        self.up = nn.ModuleList(_Up(here, above) for above, here in itertools.pairwise(channels))
        self.head = nn.Sequential(nn.Conv2d(first, 4 * class_count, 1), nn.PixelShuffle(2))
        self.stride = STEM_STRIDE * 2 ** (len(channels) - 1)

    def forward(self, image: Image) -> Logits:
        """Logits, of the image's size."""
        height, width = image.shape[-2:]
        # Repeated at the lower and right edges up to a multiple of the stride.
        room = (0, -width % self.stride, 0, -height % self.stride)
        features = self.first(self.stem(functional.pad(image, room, mode="replicate")))
        levels = [features]
        for down in self.down:
            levels.append(down(levels[-1]))
        features = levels.pop()
        for up in reversed(self.up):
            features = up(features, levels.pop())
        logits = functional.interpolate(self.head(features), scale_factor=2.0, mode="bilinear")
        return torch.as_tensor(logits[..., :height, :width])


class _Down(nn.Sequential):
    """Half the resolution, and a block there."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(Downsample(in_channels, out_channels), ResBlock(out_channels, out_channels))


class _Up(nn.Module):
    """Twice the resolution, onto what was there on the way down."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(in_channels, out_channels, 1)
        self.block = ResBlock(out_channels, out_channels)

    def forward(self, deep: Features, skip: Float[Tensor, "batch out_channels skip_height skip_width"]) -> Tensor:
        """Features of the level above."""
        raised = functional.interpolate(self.project(deep), scale_factor=2.0, mode="nearest")
        return torch.as_tensor(self.block(raised + skip))
