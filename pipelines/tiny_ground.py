"""What the model in the box learns from: crops of ground with maps, and other aerial pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from magc_data.dataset import MagcDataset

if TYPE_CHECKING:
    from pathlib import Path

CROP_PX, PICTURE_PX = 256, 128
MAP_DROPOUT = 0.1


class Ground:
    """Datasets laid out as they lie on the ground, so that a crop may begin anywhere and cross from tile to tile."""

    def __init__(self, folders: list[Path], device: torch.device, count: int) -> None:
        self.classes = MagcDataset(folders[0]).classes
        self._device, self._random, self._count = device, np.random.default_rng(0), count
        self._images: list[Tensor] = []
        self._maps: list[Tensor] = []
        self._starts: list[np.ndarray] = []
        for folder in folders:
            image, semantic_map, covered = _mosaic(MagcDataset(folder))
            summed = np.pad(covered.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
            inside = (
                summed[CROP_PX:, CROP_PX:]
                - summed[:-CROP_PX, CROP_PX:]
                - summed[CROP_PX:, :-CROP_PX]
                + summed[:-CROP_PX, :-CROP_PX]
            )
            self._starts.append(np.argwhere(inside == CROP_PX**2))
            self._images.append(torch.from_numpy(image).to(device))
            self._maps.append(torch.from_numpy(semantic_map).to(device))
        counts = np.array([len(each) for each in self._starts], float)
        self._shares = counts / counts.sum()

    def batch(self) -> tuple[Tensor, Tensor]:
        """Crops in [-1, 1] and their class planes, under the square's symmetries and changes of colour."""
        images, maps = [], []
        for number in self._random.choice(len(self._starts), self._count, p=self._shares):
            row, column = self._starts[number][self._random.integers(len(self._starts[number]))]
            window = slice(row, row + CROP_PX), slice(column, column + CROP_PX)
            image, semantic_map = self._images[number][window], self._maps[number][window]
            symmetry = int(self._random.integers(8))
            for bit in (0, 1):
                if symmetry >> bit & 1:
                    image, semantic_map = image.flip(bit), semantic_map.flip(bit)
            if symmetry & 4:
                image, semantic_map = image.transpose(0, 1), semantic_map.transpose(0, 1)
            images.append(image)
            maps.append(semantic_map)
        crops = torch.stack(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        planes = functional.one_hot(torch.stack(maps).long(), 1 + max(each.id for each in self.classes))
        has_map = torch.rand(self._count, 1, 1, 1, device=self._device) > MAP_DROPOUT
        return _recoloured(crops), planes.permute(0, 3, 1, 2).float() * has_map


def _mosaic(dataset: MagcDataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, map and which pixels there are, over the rectangle that the tiles span."""
    places = np.array([[int(part) for part in key.split("_")[1:]] for key in dataset.keys])
    places -= places.min(axis=0)
    width, height = (places.max(axis=0) + 1) * 256
    image, semantic_map = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
    covered = np.zeros((height, width), np.int64)
    for sample, (x, y) in zip(dataset, places * 256, strict=True):
        window = slice(y, y + 256), slice(x, x + 256)
        image[window], semantic_map[window], covered[window] = sample.image, sample.semantic_map, 1
    return image, semantic_map, covered


def _recoloured(crops: Tensor) -> Tensor:
    """Three in five crops with other contrast, brightness and tint."""

    def drawn(spread: float, channels: int) -> Tensor:
        return spread * torch.randn(len(crops), channels, 1, 1, device=crops.device)

    changed = crops * (1 + drawn(0.12, 1) + drawn(0.05, 3)) + drawn(0.1, 1) + drawn(0.04, 3)
    kept = torch.rand(len(crops), 1, 1, 1, device=crops.device) < 0.4
    return torch.where(kept, crops, changed).clamp(-1, 1)


def load_pictures(folder: Path, device: torch.device) -> Tensor:
    """All pictures below a folder, brought to 128x128 pixels: uint8 [count, 3, 128, 128]."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".png", ".tif"))
    pixels = [
        np.asarray(Image.open(path).convert("RGB").resize((PICTURE_PX,) * 2, Image.Resampling.BOX)) for path in paths
    ]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).to(device)
