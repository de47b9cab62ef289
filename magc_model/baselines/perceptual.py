"""LPIPS as a loss: AlexNet's features, version 0.1 (Zhang et al. 2018), from weights that the user has.

Read from a folder: torchvision's `alexnet-owt-7be5be79.pth`, and the linear heads as the lpips package brings them
(`alex.pth`) or as pyiqa calls the same file (`LPIPS_v0.1_alex-df73285e.pth`).
"""

import hashlib
import pickle
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from magc_model.errors import EvaluationError
from magc_model.shapes import Image

BACKBONE = ("alexnet-owt-7be5be79.pth",)
HEADS = ("alex.pth", "LPIPS_v0.1_alex-df73285e.pth", "lpips_alex.pth")

CHANNELS = (64, 192, 384, 256, 256)
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
"""The backbone's mean and deviation of colours, for images in [-1, 1]."""
_EPSILON = 1e-10


class PerceptualFiles(NamedTuple):
    """Where the weights are."""

    backbone: Path
    heads: Path

    def digest(self) -> str:
        """Sha256 of both."""
        return hashlib.sha256(self.backbone.read_bytes() + self.heads.read_bytes()).hexdigest()


def find_weights(folder: Path | None) -> PerceptualFiles | None:
    """LPIPS's weights in a folder; nothing where one of the files is not there."""
    if folder is None:
        return None
    found = [next((folder / each for each in names if (folder / each).is_file()), None) for names in (BACKBONE, HEADS)]
    backbone, heads = found
    return None if backbone is None or heads is None else PerceptualFiles(backbone, heads)


class PerceptualDistance(nn.Module):
    """LPIPS of images in [-1, 1], frozen.

    Raises:
        EvaluationError: a file holds other weights.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, files: PerceptualFiles) -> None:
        super().__init__()
        pool = nn.MaxPool2d(3, stride=2)
        self.slices = nn.ModuleList(
            (
                nn.Sequential(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU()),
                nn.Sequential(pool, nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()),
                nn.Sequential(pool, nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
                nn.Sequential(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
                nn.Sequential(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
            )
        )
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))
        self.heads = nn.ParameterList(nn.Parameter(torch.zeros(1, each, 1, 1)) for each in CHANNELS)
        convolutions = [each for each in self.slices.modules() if isinstance(each, nn.Conv2d)]
        backbone, heads = _read(files.backbone), _read(files.heads)
        for layer, place in zip(convolutions, (0, 3, 6, 8, 10), strict=True):
            _fill(files.backbone, backbone, f"features.{place}.weight", layer.weight)
            _fill(files.backbone, backbone, f"features.{place}.bias", torch.as_tensor(layer.bias))
        for number, head in enumerate(self.heads):
            _fill(files.heads, heads, f"lin{number}.model.1.weight", head)
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Image, originals: Image) -> Float[Tensor, ""]:
        """Mean over the batch."""
        left, right = ((each - self.shift) / self.scale for each in (images, originals))
        total = images.new_zeros(())
        for layers, head in zip(self.slices, self.heads, strict=True):
            left, right = layers(left), layers(right)
            total = total + ((_unit(left) - _unit(right)).square() * head).sum(dim=1).mean()
        return total


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + _EPSILON)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, EOFError) as error:
        reason = " ".join(str(error).split())[:150]
        raise EvaluationError(
            f"{path} holds no weights that can be read safely ({reason}): get the file again"
        ) from None
    return contents if isinstance(contents, dict) else {}


def _fill(path: Path, contents: dict[str, Tensor], name: str, place: Tensor) -> None:
    value = contents.get(name)
    if not isinstance(value, Tensor) or value.shape != place.shape:
        found = "no such entry" if value is None else f"one of shape {tuple(getattr(value, 'shape', ()))}"
        raise EvaluationError(
            f"{path} should hold '{name}' of shape {tuple(place.shape)}, but has {found}: it is another file than its "
            "name says"
        )
    with torch.no_grad():
        place.copy_(value)
