"""Real ground for tests that measure: tiles of the embedded sample, with and without their maps."""

from __future__ import annotations

import functools
import io
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tiny_world
from PIL import Image

from magc_data.config import BuildConfig
from magc_data.dataset import MagcDataset, TileSample
from magc_data.sources.embedded import wheel_path
from magc_data.sources.sample_banepa import FAIR_PY_OPS

FOUR_TILES = (85.5187, 27.6337, 85.5208, 27.6357)
"""Inside of the sample's test half."""


@functools.cache
def held_out_tiles(cache: Path) -> list[TileSample]:
    """Four tiles with their maps; built once a process.

    Args:
        cache: where the sample is kept: the fixture `embedded_cache`.
    """
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        patch.setenv("MAGC_CACHE_DIR", str(cache))
        sources = {"imagery": "sample-banepa", "osm": "sample-banepa"}
        tiny_world.run(BuildConfig(**sources, bbox=FOUR_TILES, zoom=18, out=folder / "dataset", workers=1))
        return sorted(MagcDataset(folder / "dataset"), key=lambda each: each.key)[:4]


def real_tiles(cache: Path, count: int) -> np.ndarray:
    """Tiles of zoom 18, [count, 256, 256, 3], evenly out of all by name; those with missing pixels left out."""
    with zipfile.ZipFile(wheel_path(FAIR_PY_OPS, cache)) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith("-18.tif"))
        found = []
        for name in names[:: len(names) // (2 * count)]:
            tile = np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))
            if (tile == 255).all(axis=-1).mean() < 0.01 and tile.shape == (256, 256, 3):
                found.append(tile)
    assert len(found) >= count
    return np.stack(found[:count])


def psnr(drawn: np.ndarray, original: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(drawn.astype(float) - original).mean()))
