"""The adapter of `ELIC + map` and `HiFiC + map` (paper, 5.2 and table 3): map -> features for each decoder scale.

    planes ─► conv5x5/2 ─► GELU ─► ResBlocks ─┬─► Downsample ─► ResBlocks ─┬─► ... ─► ResBlocks ─┐
                                              ▼                            ▼                     ▼
                                          1x1 zero                     1x1 zero              1x1 zero
                                              ▼                            ▼                     ▼
                                       1/2 of the image                   1/4        1/8       1/16: the symbols

"Similar to the design of SAM, we utilize an adapter to produce multi-scale features which are then added to the feature
maps at each scale on the decoding side": scales, blocks and the halving convolutions are SAM's, the sum is the paper's.
The paper gives no sizes. SAM starts at 1/8, where its UNet does; these decoders go up to 1/2. The 1x1 convolutions
start at zero, so that a fresh adapter leaves its decoder as it was.
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from magc_model.nets.blocks import Downsample, ResBlock
from magc_model.shapes import MapPlanes

ScaleFeatures = Float[Tensor, "batch _ _ _"]

MAP_CHANNELS = 64
"""Most channels inside of the adapter; its exits have the decoder's."""


class MapAdapter(nn.Module):
    """One feature tensor a scale of the decoder, with its channels and at its resolution.

    Args:
        planes: map planes.
        decoder_channels: of the decoder's features by scale, from 1/16 of the resolution to 1/2.
        blocks: residual blocks a scale.
    """

    def __init__(self, planes: int, decoder_channels: tuple[int, ...], blocks: int) -> None:
        super().__init__()
        widths = [min(MAP_CHANNELS, each) for each in reversed(decoder_channels)]
        self.first = nn.Sequential(
            nn.Conv2d(planes, widths[0], 5, stride=2, padding=2), nn.GELU(), *_blocks(widths[0], blocks)
        )
        self.scales = nn.ModuleList(
            nn.Sequential(Downsample(finer, coarser), *_blocks(coarser, blocks)) for finer, coarser in pairwise(widths)
        )
        self.exits = nn.ModuleList(
            _zero_convolution(width, channels)
            for width, channels in zip(widths, reversed(decoder_channels), strict=True)
        )

    def forward(self, planes: MapPlanes) -> list[ScaleFeatures]:
        """Features by scale, coarsest first, as the decoder meets them."""
        levels = [torch.as_tensor(self.first(planes))]
        for scale in self.scales:
            levels.append(scale(levels[-1]))
        return [exit_(level) for exit_, level in zip(self.exits, levels, strict=True)][::-1]


def _blocks(channels: int, count: int) -> list[nn.Module]:
    return [ResBlock(channels, channels) for _ in range(count)]


def _zero_convolution(before: int, after: int) -> nn.Conv2d:
    convolution = nn.Conv2d(before, after, 1)
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)
    return convolution
