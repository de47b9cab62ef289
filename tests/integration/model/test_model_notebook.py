"""The notebook of the codec runs from top to bottom, offline, with the model in the box."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from run_notebook import executed

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


def test_the_notebook_runs_from_top_to_bottom(
    embedded_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = executed("reconstructions.ipynb", tmp_path, embedded_cache, monkeypatch)
    assert "36 tiles" in shown.html[0]
    assert 6 <= len(shown.pictures) <= 7, "the one with a wrong map may not be readable at all"
    assert all(each.size[0] > 500 for each in shown.pictures)
    [tile_bytes] = re.findall(r"^\((\d+), \(256, 256, 3\)\)$", shown.text, re.MULTILINE)
    assert int(tile_bytes) < 250
    budgets = re.findall(r"^at most (\d+) bytes: (\d+),", shown.text, re.MULTILINE)
    assert len(budgets) == 2
    assert all(0.9 * int(asked) < int(found) <= int(asked) for asked, found in budgets)
    assert "map's digest" in shown.text
    scene = tmp_path / "scene.magc"
    assert 2_000 < scene.stat().st_size < 20_000
    assert f"((1536, 1536, 3), {scene.stat().st_size}, 4)" in shown.text
