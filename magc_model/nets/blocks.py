"""The blocks that all of MAGC's own networks are made of (paper, Fig. 4)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from magc_model.shapes import Features

NORM_EPSILON = 1e-5
LEAKY_SLOPE = 0.01


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel, with a gain and a bias a channel unless `affine` is off."""

    def __init__(self, channels: int, *, affine: bool = True) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, channels, 1, 1)) if affine else None
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1)) if affine else None

    def forward(self, features: Features) -> Features:
        """Normalise."""
        # Channels last for the library's fused kernel, forward and backward: the same on its own axis is twice as slow.
        gain, bias = (None if each is None else each.flatten() for each in (self.gain, self.bias))
        normalised = functional.layer_norm(features.movedim(1, -1), (features.shape[1],), gain, bias, NORM_EPSILON)
        return normalised.movedim(-1, 1)


class BasicBlock(nn.Sequential):
    """conv3x3 -> ChannelNorm -> LeakyReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            ChannelNorm(out_channels),
            nn.LeakyReLU(LEAKY_SLOPE),
        )


class ResBlock(nn.Module):
    """Two basic blocks plus the input (through a 1x1 convolution where the channels change)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.first = BasicBlock(in_channels, out_channels)
        self.second = BasicBlock(out_channels, out_channels)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(
        self, features: Float[Tensor, "batch in_channels feature_height feature_width"]
    ) -> Float[Tensor, "batch out_channels feature_height feature_width"]:
        """Refine features."""
        return torch.as_tensor(self.second(self.first(features)) + self.skip(features))


class Downsample(nn.Conv2d):
    """conv3x3 with stride 2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, stride=2, padding=1)


class Upsample(nn.Sequential):
    """conv1x1 to four times the channels -> pixel shuffle."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.Conv2d(channels, 4 * channels, 1), nn.PixelShuffle(2))
