"""The semantic encoder: map planes -> features on the latent's grid. The LCM and the adapter have one each.

    planes ─► conv5x5/2 ─► GELU ─► conv3x3/2 ─► GELU ─► conv3x3/2 ─► features, 1/8 of the map's size

The published code's LCM has another one, with a full-resolution first convolution and no activation between its four
convolutions (in effect one linear map); `LinearSemanticEncoder` is that one, for converted checkpoints.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from magc_model.shapes import MapPlanes

MapFeatures = Float[Tensor, "batch map_channels latent_height latent_width"]


class SemanticEncoder(nn.Module):
    """Paper, Fig. 5: the first convolution already halves the map, so that no layer runs at full resolution."""

    def __init__(self, planes: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        first, second, third = channels
        self.layers = nn.Sequential(
            nn.Conv2d(planes, first, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(second, third, 3, stride=2, padding=1),
        )

    def forward(self, planes: MapPlanes) -> MapFeatures:
        """Encode a map."""
        return torch.as_tensor(self.layers(planes))


class LinearSemanticEncoder(nn.Module):
    """The published LCM's encoder."""

    def __init__(self, planes: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        first, second, third = channels
        self.layers = nn.Sequential(
            nn.Conv2d(planes, first, 5, padding=2),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            nn.Conv2d(second, third, 3, stride=2, padding=1),
            nn.Conv2d(third, third, 3, stride=2, padding=1),
        )

    def forward(self, planes: MapPlanes) -> MapFeatures:
        """Encode a map."""
        return torch.as_tensor(self.layers(planes))
