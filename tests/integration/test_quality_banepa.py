"""On real imagery and real maps: the sample lies as it should, and a map moved on purpose is found."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tiny_world

from magc_data.config import BuildConfig
from magc_data.dataset import MagcDataset
from magc_data.quality.signals import tile_signals
from magc_data.shards.index import QUALITY_COLUMNS
from magc_data.shards.reader import read_index

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module", params=[17, 18])
def banepa(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, embedded_cache: Path) -> Path:
    data = tmp_path_factory.mktemp("banepa") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAGC_CACHE_DIR", str(embedded_cache))
        sources = {"imagery": "sample-banepa", "osm": "sample-banepa"}
        tiny_world.run(BuildConfig(**sources, zoom=request.param, out=data, workers=1))
    return data


def test_the_best_offset_is_none_for_nearly_all_tiles(banepa: Path) -> None:
    rows = read_index(banepa, list(QUALITY_COLUMNS)).to_pylist()
    measured = [row for row in rows if row["alignment"] is not None]
    assert len(measured) >= 0.99 * len(rows)
    offsets = Counter(max(abs(row["alignment_dx_px"]), abs(row["alignment_dy_px"])) for row in measured)
    assert offsets[0] >= 0.92 * len(measured)
    assert offsets[0] + offsets[1] >= 0.99 * len(measured)
    assert np.median([row["alignment"] for row in measured]) > 0.2
    # The exceptions say themselves that they are not to be trusted.
    far = [row for row in measured if max(abs(row["alignment_dx_px"]), abs(row["alignment_dy_px"])) > 1]
    assert all(row["alignment_peak"] < 0.12 for row in far)


def test_labels_moved_by_6_pixels_are_found(banepa: Path) -> None:
    dataset = MagcDataset(banepa)
    found = Counter[bool]()
    for sample in dataset:
        signals = tile_signals(sample.image, np.roll(sample.semantic_map, (6, -6), axis=(0, 1)))
        if signals.alignment_peak is not None and signals.alignment_peak > 0.12:
            found[abs(signals.alignment_dx_px - 6) <= 1 and abs(signals.alignment_dy_px + 6) <= 1] += 1
            assert signals.alignment < signals.alignment_peak
    assert found.total() >= 0.9 * len(dataset)
    assert found[True] >= 0.99 * found.total()


def test_the_index_says_what_the_pixels_say(banepa: Path) -> None:
    rows = read_index(banepa).to_pylist()
    for sample, row in zip(MagcDataset(banepa), rows, strict=True):
        for name, value in tile_signals(sample.image, sample.semantic_map)._asdict().items():
            assert row[name] == (None if value is None else pytest.approx(value, abs=1e-7))
