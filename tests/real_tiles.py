"""Real ground for tests that measure: tiles of the sample's held-out half, built once a process."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tiny_world

from magc_data.config import BuildConfig
from magc_data.dataset import MagcDataset, TileSample

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


def psnr(drawn: np.ndarray, original: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(drawn.astype(float) - original).mean()))
