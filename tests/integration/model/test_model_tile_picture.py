"""`docs/tile_picture.py`, which draws the README's picture: fair in bytes, and it runs."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from magc_model.evaluate.codecs.protocol import Encoded
from magc_model.evaluate.codecs.registry import open_codec

if TYPE_CHECKING:
    from types import ModuleType

REPOSITORY = Path(__file__).resolve().parents[3]
SCRIPT = REPOSITORY / "docs" / "tile_picture.py"
PICTURE = np.zeros((8, 8, 3), np.uint8)


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tile_picture", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


tile_picture = script()


class Zeros:
    """A codec whose rates are its sizes."""

    name = label = version = "zeros"
    rates = (1.0,)
    uses_map = False

    def encode(self, picture: np.ndarray, semantic_map: np.ndarray | None, rate: float) -> Encoded:
        return Encoded(bytes(int(rate)))

    def decode(self, data: bytes, semantic_map: np.ndarray | None) -> np.ndarray:
        return PICTURE


@given(st.lists(st.integers(1, 500), min_size=1, max_size=30, unique=True).map(sorted), st.integers(1, 500))
def test_the_largest_file_within_the_budget_is_taken_else_the_smallest(sizes: list[int], budget: int) -> None:
    found = tile_picture.largest_within(Zeros(), [float(each) for each in sizes], PICTURE, budget)
    assert len(found.data) == max((each for each in sizes if each <= budget), default=sizes[0])


def test_a_real_codec_is_brought_just_below_the_budget() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    codec = open_codec("jpeg2000")
    found = tile_picture.largest_within(codec, tile_picture.JPEG2000_RATES, picture, 400)
    assert 300 < len(found.data) <= 400
    assert np.array_equal(codec.decode(found.data, None), found.picture)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_picture_is_drawn_and_nobody_is_given_more_bytes_than_magc_needs(
    embedded_cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tile.webp"
    environment = os.environ | {"MAGC_CACHE_DIR": str(embedded_cache), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(SCRIPT), "--out", str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert out.stat().st_size < 250_000
    with Image.open(out) as picture:
        assert picture.size == Image.open(REPOSITORY / "docs" / "tile.webp").size
    rows = re.split(r"^(?=\S)", done.stdout, flags=re.MULTILINE)[1:3]
    for row in rows:
        sizes = {
            name: int(size.replace(",", "")) for name, size in re.findall(r"^  (.+): ([\d,]+) bytes", row, re.MULTILINE)
        }
        assert {"MAGC", "MAGC, faithful"} <= sizes.keys()
        [ours] = {size for name, size in sizes.items() if name.startswith("MAGC")}
        others = [size for name, size in sizes.items() if not name.startswith(("MAGC", "original"))]
        assert others
        assert all(0.8 * ours < size <= ours for size in others), sizes
