"""What notebooks show of a dataset: the right tiles in the right places, and the notebook itself runs."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from big_dataset import write_big_dataset
from PIL import Image
from run_notebook import executed

from magc_data.dataset import MagcDataset, TileSample
from magc_data.errors import DatasetError, UsageError
from magc_data.explore.table import read_table, split_color
from magc_data.notebook import coverage_png, dataset_card
from magc_data.stats import statistics

TILES = 150


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_big_dataset(tmp_path_factory.mktemp("notebook") / "data<b>set", TILES)


@pytest.fixture(scope="module")
def dataset(data: Path) -> MagcDataset:
    return MagcDataset(data)


def test_a_dataset_shows_itself(dataset: MagcDataset) -> None:
    shown = dataset._repr_html_()
    figures = statistics(dataset.data)
    assert "data&lt;b&gt;set" in shown
    assert "<b>" not in shown
    assert f"{TILES} tiles · {figures.ground_km2:,.1f} km²" in shown
    for each in figures.classes:
        assert (f"{each.name} {each.mean_share:.1%}" in shown) == (each.tiles > 0), each
    for name in ("train", "val", "test"):
        count = len(MagcDataset(dataset.data, split=name))
        assert f"{name} {count:,}" in shown
    assert "Nobody (CC0-1.0)" in shown
    only = MagcDataset(dataset.data, split="val")._repr_html_()
    assert f"{len(MagcDataset(dataset.data, split='val'))} tiles" in only
    assert "train" not in only


def test_coverage_is_where_the_tiles_are(data: Path) -> None:
    table = read_table(data)
    picture = np.asarray(Image.open(io.BytesIO(coverage_png(table))))
    x, y = table.rows["x"].to_numpy(), table.rows["y"].to_numpy()
    scale = 300 // max(x.max() - x.min() + 1, y.max() - y.min() + 1)
    centres = (y - y.min()) * scale + scale // 2, (x - x.min()) * scale + scale // 2
    expected = [(*split_color(name), 255) for name in table.rows["split"].to_pylist()]
    assert [tuple(each) for each in picture[centres].tolist()] == expected
    empty = np.ones(picture.shape[:2], bool)
    for row, column in zip(y - y.min(), x - x.min(), strict=True):
        empty[row * scale : (row + 1) * scale, column * scale : (column + 1) * scale] = False
    assert empty.any()
    assert not picture[empty].any()


def test_coverage_of_a_continent_stays_small(data: Path) -> None:
    table = read_table(data)
    far = np.arange(TILES) * 800
    number = table.rows.column_names.index("x")
    rows = table.rows.set_column(number, "x", [far.astype(np.int32)])
    picture = np.asarray(Image.open(io.BytesIO(coverage_png(table._replace(rows=rows)))))
    assert picture.shape[1] <= 301
    assert (picture[..., 3] > 0).sum() >= TILES // 2  # a lonely tile is seen too


def test_before_a_split_coverage_has_the_colours_of_what_maps_are_of(tmp_path: Path) -> None:
    table = read_table(write_big_dataset(tmp_path / "dataset", 20, with_splits=False))
    colors = {each.name: each.color for each in table.classes}
    rows = table.rows.to_pylist()
    picture = np.asarray(Image.open(io.BytesIO(coverage_png(table))))
    x, y = table.rows["x"].to_numpy(), table.rows["y"].to_numpy()
    scale = 300 // max(x.max() - x.min() + 1, y.max() - y.min() + 1)
    for row, at_x, at_y in zip(rows, x - x.min(), y - y.min(), strict=True):
        shares = {name: row[f"fraction_{name}"] for name in colors if name != "background"}
        main = max(shares, key=shares.get) if max(shares.values()) > 0 else "background"
        assert tuple(picture[at_y * scale + 2, at_x * scale + 2][:3]) == colors[main]


def test_a_sample_draws_image_map_and_overlay(dataset: MagcDataset) -> None:
    sample = dataset[dataset.keys[40]]
    plot = sample.plot()
    drawn = [axis.images[0].get_array() for axis in plot.figure.axes]
    assert np.array_equal(drawn[0], sample.image)
    colors = {each.id: each for each in dataset.classes}
    assert tuple(drawn[1][128, 10]) == colors[int(sample.semantic_map[128, 10])].color
    assert drawn[2].shape == (256, 256, 3)
    legend = [text.get_text().split()[0] for text in plot.figure.legends[0].get_texts()]
    assert set(legend) == {colors[int(each)].name for each in np.unique(sample.semantic_map)}
    assert Image.open(io.BytesIO(plot._repr_png_())).size[0] > 600
    assert dataset.plot(40).figure.get_suptitle() == plot.figure.get_suptitle()
    bare = TileSample(sample.key, sample.image, sample.semantic_map, sample.gsd_m)
    with pytest.raises(UsageError, match="name and colour are not given"):
        bare.plot()


def test_samples_are_found_by_key(dataset: MagcDataset) -> None:
    assert dataset[dataset.keys[7]].key == dataset[7].key
    with pytest.raises(KeyError, match="has no sample 17_0_0"):
        dataset["17_0_0"]


def test_histograms_count_every_tile(dataset: MagcDataset) -> None:
    axes = [axis for axis in dataset.plot_classes().figure.axes if axis.get_title()]
    occurring = [each for each in statistics(dataset.data).classes if each.tiles]
    assert [axis.get_title() for axis in axes] == [f"{each.name}: {each.tiles} of {TILES} tiles" for each in occurring]
    assert [sum(bar.get_height() for bar in axis.patches) for axis in axes] == [each.tiles for each in occurring]


def test_maps_are_framed_and_hold_the_datasets_own_tiles(dataset: MagcDataset) -> None:
    val = MagcDataset(dataset.data, split="val")
    shown = val.map(height_px=400)._repr_html_()
    assert 'sandbox="allow-scripts allow-popups allow-popups-to-escape-sandbox"' in shown
    assert "height: 400px" in shown
    assert shown.count("<iframe") == 1
    assert "<script" not in shown  # only inside the frame, escaped
    assert all(key in shown for key in val.keys)
    other = next(key for key in dataset.keys if key not in set(val.keys))
    assert other not in shown
    one = dataset.flip(other).html
    assert other in one
    assert val.keys[0] not in one
    with pytest.raises(KeyError, match="has no sample 17_0_0"):
        dataset.flip("17_0_0")
    with pytest.raises(DatasetError, match="no tile"):
        dataset_card(dataset.data, [])


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(
    embedded_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = executed("explore_tiles.ipynb", tmp_path, embedded_cache, monkeypatch)
    assert "126 tiles · 2.3 km²" in shown.html[0]
    assert sum("<iframe" in each for each in shown.html) == 2
    assert len(shown.pictures) == 2
    assert all(each.size[0] > 300 for each in shown.pictures)
    assert not re.search(r"src=.?https?:", "".join(shown.html))
