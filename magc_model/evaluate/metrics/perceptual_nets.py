"""LPIPS and DISTS: distances of two pictures in the layers of AlexNet and VGG-16, with the published weights.

Written here and not taken from pyiqa or lpips, as these fetch the backbones when they are made, and unpickle them.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

Planes = Float[Tensor, "pictures 3 height width"]
"""RGB in 0..1."""
LayerPlanes = Float[Tensor, "pictures channels rows columns"]

_ALEXNET_CHANNELS = (64, 192, 384, 256, 256)
_VGG16_CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class Lpips(nn.Module):
    """LPIPS v0.1 on AlexNet (Zhang, Isola, Efros, Shechtman and Wang 2018); of two pictures, 0 where they are equal.

    The names of its weights are those of torchvision (`features.*`) and of the package lpips (`lin*`).
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        first, second, third, fourth, fifth = _ALEXNET_CHANNELS
        self.features = nn.Sequential(
            nn.Conv2d(3, first, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2),
            nn.Conv2d(first, second, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2),
            nn.Conv2d(second, third, 3, padding=1), nn.ReLU(),
            nn.Conv2d(third, fourth, 3, padding=1), nn.ReLU(),
            nn.Conv2d(fourth, fifth, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        for layer, channels in enumerate(_ALEXNET_CHANNELS):
            # `model.1` in the published files: the dropout before it is of training alone.
            head = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))
            self.add_module(f"lin{layer}", nn.ModuleDict({"model": head}))
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)

    def forward(self, one: Planes, other: Planes) -> Float[Tensor, " pictures"]:
        """The distance of every pair."""
        total = torch.zeros(len(one))
        layers = zip(self._layers(one), self._layers(other), strict=True)
        for number, (in_one, in_other) in enumerate(layers):
            weights = self.get_parameter(f"lin{number}.model.1.weight")
            difference = (_unit(in_one) - _unit(in_other)).square()
            total = total + nn.functional.conv2d(difference, weights).mean(dim=(1, 2, 3))
        return total

    def _layers(self, pictures: Planes) -> list[LayerPlanes]:
        planes = (2 * pictures - 1 - self.shift) / self.scale
        found = []
        for module in self.features:
            planes = module(planes)
            if isinstance(module, nn.ReLU):
                found.append(planes)
        return found


class _Moments(NamedTuple):
    mean: LayerPlanes
    variance: LayerPlanes


class Dists(nn.Module):
    """DISTS (Ding, Ma, Wang and Simoncelli 2020): structure and texture in VGG-16; 0 where two pictures are equal.

    VGG-16 with a smooth pooling of squares in place of its maxima. The names of its weights are those of torchvision
    (`features.*`) and of the authors (`alpha`, `beta`).
    """

    mean: Tensor
    deviation: Tensor
    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for stage in _VGG16_CHANNELS:
            for channels in stage:
                layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()]
                before = channels
            layers.append(nn.Identity())  # where VGG-16 takes maxima: pooled below
        self.features = nn.Sequential(*layers[:-1])
        self._channels = [3, *(stage[-1] for stage in _VGG16_CHANNELS)]
        self.alpha = nn.Parameter(torch.zeros(1, sum(self._channels), 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, sum(self._channels), 1, 1))
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225])[:, None, None], persistent=False)
        hann = torch.tensor([0.5, 1.0, 0.5])
        self.register_buffer("window", (hann[:, None] * hann / 4)[None, None], persistent=False)

    def forward(self, one: Planes, other: Planes) -> Float[Tensor, " pictures"]:
        """The distance of every pair."""
        total = self.alpha.sum() + self.beta.sum()
        alphas = torch.split(self.alpha / total, self._channels, dim=1)
        betas = torch.split(self.beta / total, self._channels, dim=1)
        similarity = torch.zeros(len(one))
        for in_one, in_other, alpha, beta in zip(self._layers(one), self._layers(other), alphas, betas, strict=True):
            a, b = _moments(in_one), _moments(in_other)
            covariance = (in_one * in_other).mean(dim=(2, 3), keepdim=True) - a.mean * b.mean
            texture = (2 * a.mean * b.mean + 1e-6) / (a.mean.square() + b.mean.square() + 1e-6)
            structure = (2 * covariance + 1e-6) / (a.variance + b.variance + 1e-6)
            similarity = similarity + (alpha * texture + beta * structure).sum(dim=(1, 2, 3))
        return 1 - similarity

    def _layers(self, pictures: Planes) -> list[LayerPlanes]:
        planes = (pictures - self.mean) / self.deviation
        found = [pictures]
        for module in self.features:
            if isinstance(module, nn.Identity):
                found.append(planes)
                planes = self._pooled(planes)
            else:
                planes = module(planes)
        return [*found, planes]

    def _pooled(self, planes: LayerPlanes) -> Float[Tensor, "pictures channels half_rows half_columns"]:
        channels = planes.shape[1]
        window = self.window.expand(channels, -1, -1, -1)
        squares = nn.functional.conv2d(planes.square(), window, stride=2, padding=1, groups=channels)
        return (squares + 1e-12).sqrt()


def _unit(planes: LayerPlanes) -> LayerPlanes:
    return planes / (planes.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


def _moments(planes: LayerPlanes) -> _Moments:
    mean = planes.mean(dim=(2, 3), keepdim=True)
    return _Moments(mean, (planes - mean).square().mean(dim=(2, 3), keepdim=True))
