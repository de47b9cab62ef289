"""Real aerial tiles: those of the embedded sample, straight from where it keeps them."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from magc_data.sources.embedded import wheel_path
from magc_data.sources.sample_banepa import FAIR_PY_OPS


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
