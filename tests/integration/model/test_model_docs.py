"""The examples of docs/codec.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from tiny_models import CLASSES, tiny_model

PAGE = Path(__file__).parents[3] / "docs" / "codec.md"


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("zarr", reason="needs Zarr: pip install 'magc[zarr]'")
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(examples) == 4
    random = np.random.default_rng(1)
    PIL.Image.fromarray(random.integers(0, 256, (256, 256, 3), np.uint8)).save(tmp_path / "tile.png")
    PIL.Image.fromarray(random.integers(0, len(CLASSES), (256, 256), np.uint8)).save(tmp_path / "map.png")
    tiny_model().save_pretrained(tmp_path / "runs" / "stage2" / "model")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for example in examples:
        exec(example, names)
    decoded, array, scene = names["decoded"], names["array"], names["scene"]
    assert decoded.shape == (1, 3, 256, 256)
    assert array.shape == scene.shape == (512, 512, 3)
    assert array[:].std() > 1
    assert np.array_equal(array[:256, :256], array[256:, 256:])
