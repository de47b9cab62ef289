"""The front of all metrics: what it measures, what it lacks, and that cuts do not depend on one another."""

import pickle

import numpy as np
import pytest
from PIL import Image

from magc_model.errors import DataError, UsageError
from magc_model.evaluate.metrics import tile_metrics
from magc_model.evaluate.metrics.full_reference import FULL_REFERENCE_NAMES
from magc_model.evaluate.metrics.random_features import FEATURE_COUNT
from magc_model.evaluate.metrics.semantic import segmentation_scores
from magc_model.evaluate.metrics.table import Made
from magc_model.evaluate.metrics.tile_metrics import Scores, TileMetrics

RANDOM = np.random.default_rng(0)
COARSE = RANDOM.integers(0, 256, (3, 9, 9, 3), dtype=np.uint8)
ORIGINALS = np.stack([np.asarray(Image.fromarray(one).resize((256, 256))) for one in COARSE])
DECODED = np.clip(ORIGINALS + RANDOM.normal(0, 25, ORIGINALS.shape), 0, 255).astype(np.uint8)
MAPS = ORIGINALS[..., 0] // 86


class Brightness:
    """Three classes by the red channel; counts what it is shown."""

    classes = ("dark", "middle", "bright")

    def __init__(self, name: str = "brightness") -> None:
        self.name, self.shown = name, 0

    def predict(self, pictures: np.ndarray) -> np.ndarray:
        self.shown += len(pictures)
        return pictures[..., 0] // 86


@pytest.fixture(scope="module")
def metrics() -> TileMetrics:
    return TileMetrics(segmenters=(Brightness(),), map_segmenter=Brightness())


@pytest.fixture(scope="module")
def scores(metrics: TileMetrics) -> Scores:
    return metrics.measure(ORIGINALS, DECODED, MAPS)


def test_the_table_is_what_is_measured(metrics, scores):
    made = {metric.name: metric for metric in metrics.table}
    assert set(made) == {*FULL_REFERENCE_NAMES, "patch-frechet-rand", "map-consistency", "miou:brightness"}
    for name, metric in made.items():
        if metric.made is Made.MEAN:
            assert scores.values[name].shape == (3,)
        elif metric.made is Made.MEAN_IOU:
            assert scores.confusions[name].shape == (3, 3, 3)
            assert metric.classes == ("dark", "middle", "bright")
        else:
            assert scores.features[metric.features].shape == (15, FEATURE_COUNT)
    assert sum(map(len, scores)) == len(made)


def test_what_is_not_there_is_named_with_a_way_out(metrics):
    assert {one.name for one in metrics.missing} == {"lpips", "dists", "musiq", "clip-iqa", "fid", "kid"}
    assert all(one.label and one.reason and one.way_out for one in metrics.missing)
    without = TileMetrics()
    assert "map-consistency" in {one.name for one in without.missing}
    assert without.measure(ORIGINALS[:1], DECODED[:1], MAPS[:1]).confusions == {}


def test_a_cut_does_not_depend_on_those_it_is_measured_with(metrics, scores):
    alone = metrics.measure(ORIGINALS[1:2], DECODED[1:2], MAPS[1:2])
    for name, values in scores.values.items():
        assert alone.values[name][0] == values[1], name
    for name, features in scores.features.items():
        assert np.array_equal(alone.features[name], features[5:10])
    for name, matrices in scores.confusions.items():
        assert np.array_equal(alone.confusions[name][0], matrices[1])


def test_another_object_of_the_same_arguments_gives_the_same_bits(scores):
    again = TileMetrics(segmenters=(Brightness(),), map_segmenter=Brightness()).measure(ORIGINALS, DECODED, MAPS)
    assert pickle.dumps(again) == pickle.dumps(scores)


def test_the_original_has_perfect_figures_and_its_map_consistency_is_the_ceiling(metrics, scores):
    best = metrics.measure(ORIGINALS, ORIGINALS, MAPS)
    assert best.values["ssim-y"] == pytest.approx([1, 1, 1])
    for name in ("map-consistency", "miou:brightness"):
        ceiling, found = (
            segmentation_scores(one.confusions[name].sum(axis=0), Brightness.classes).mean_iou for one in (best, scores)
        )
        assert ceiling == 1
        assert 0.3 < found < 1


def test_without_maps_there_is_no_map_consistency(metrics):
    assert set(metrics.measure(ORIGINALS[:1], DECODED[:1]).confusions) == {"miou:brightness"}


def test_only_what_is_asked_for_is_measured(scores):
    metrics = TileMetrics(
        segmenters=(Brightness(),), map_segmenter=Brightness(), only=["vif", "map-consistency", "lpips"]
    )
    assert [metric.name for metric in metrics.table] == ["vif", "map-consistency"]
    assert [one.name for one in metrics.missing] == ["lpips"]
    found = metrics.measure(ORIGINALS, DECODED, MAPS)
    assert np.array_equal(found.values.pop("vif"), scores.values["vif"])
    assert (found.values, found.features, set(found.confusions)) == ({}, {}, {"map-consistency"})


def test_an_original_is_segmented_once(monkeypatch):
    one, other = Brightness("one"), Brightness("other")
    metrics = TileMetrics(segmenters=(one, other), only=["miou:one", "miou:other"])
    first = metrics.measure(ORIGINALS, DECODED)
    assert (one.shown, other.shown) == (6, 6)
    second = metrics.measure(ORIGINALS, DECODED)
    assert (one.shown, other.shown) == (9, 9)
    assert pickle.dumps(first) == pickle.dumps(second)
    monkeypatch.setattr(tile_metrics, "_REMEMBERED_CUTS", 2)
    metrics.measure(ORIGINALS[::-1].copy(), DECODED)
    assert len(metrics._remembered._seen) <= 6


def test_no_cuts_and_cuts_without_patches_are_no_error(metrics):
    none = metrics.measure(ORIGINALS[:0], DECODED[:0], MAPS[:0])
    assert {values.shape for values in none.values.values()} == {(0,)}
    assert {matrices.shape for matrices in none.confusions.values()} == {(0, 3, 3)}
    small = metrics.measure(ORIGINALS[:, :100, :100], DECODED[:, :100, :100], MAPS[:, :100, :100])
    assert {features.shape for features in (*small.features.values(), *none.features.values())} == {(0, FEATURE_COUNT)}
    assert np.isnan(small.values["ms-ssim-y"]).all()


def test_what_does_not_fit_is_a_sentence(metrics):
    with pytest.raises(UsageError, match=r"metric 'psnr' is unknown: expected one of psnr-y, psnr-rgb, .*, kid$"):
        TileMetrics(only=["psnr"])
    with pytest.raises(DataError, match="expected as many"):
        metrics.measure(ORIGINALS, DECODED[:2])
    with pytest.raises(DataError, match="expected one a cut"):
        metrics.measure(ORIGINALS, DECODED, MAPS[:, :128])
