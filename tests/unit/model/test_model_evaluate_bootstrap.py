"""Intervals: they cover what they should, are paired, and are the same as drawing the cuts one by one."""

import numpy as np
import pytest
from synthetic_measurements import frechet_distance

from magc_model.evaluate.bootstrap import (
    Resampled,
    class_scores,
    covariance_roots,
    difference,
    draw_cuts,
    estimate,
    feature_moments,
    frechet_draws,
    kernel_draws,
    mean,
    moved_to,
    ratio_of_sums,
)

CUTS, PATCHES, DIMENSIONS = 12, 5, 6


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(3)


def features(generator: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    return (generator.normal(size=(CUTS, PATCHES, DIMENSIONS)) * strength + 0.5).astype(np.float32)


def repeated(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The cuts of one draw, as often as they are in it."""
    return np.repeat(values, weights.astype(int), axis=0)


def test_intervals_cover_the_truth_as_often_as_they_say(generator: np.random.Generator) -> None:
    weights = draw_cuts(50, 400, seed=1)
    covered = 0
    for _ in range(400):
        stated = estimate(mean(generator.gamma(3.0, size=50), weights))
        covered += stated.low <= 3.0 <= stated.high
    assert 0.90 <= covered / 400 <= 0.97


def test_draws_are_of_as_many_cuts_and_the_same_for_a_seed() -> None:
    one = draw_cuts(20, 300, seed=4)
    assert (one.sum(axis=1) == 20).all()
    assert (one == draw_cuts(20, 300, seed=4)).all()
    assert (one != draw_cuts(20, 300, seed=5)).any()
    assert one.mean(axis=0) == pytest.approx(np.ones(20), abs=0.25)


def test_what_cuts_have_in_common_cancels_in_differences(generator: np.random.Generator) -> None:
    weights = draw_cuts(40, 1000, seed=0)
    common = generator.normal(30, 5, 40)
    one, other = (mean(common + offset + generator.normal(0, 0.1, 40), weights) for offset in (0.3, 0.0))
    stated, apart = estimate(difference(one, other)), estimate(one)
    assert 0.15 < stated.low < stated.value < stated.high < 0.45
    assert apart.high - apart.low > 2
    assert estimate(difference(one, one)) == (0.0, 0.0, 0.0, 0)


def test_a_mean_leaves_out_what_is_not_defined_and_counts_it() -> None:
    values = np.array([1.0, np.nan, 3.0, np.inf, 5.0, 7.0])
    weights = draw_cuts(6, 500, seed=0)
    stated = estimate(mean(values, weights))
    assert (stated.value, stated.undefined_cuts) == (4.0, 2)
    assert 1.0 <= stated.low < 4.0 < stated.high <= 7.0
    assert estimate(mean(np.full(6, np.nan), weights)) == (None, None, None, 6)
    # Where most draws have nothing to be a mean of, no interval can be trusted.
    few = np.array([1.0, *[np.nan] * 5])
    assert estimate(mean(few, weights)) == (1.0, None, None, 5)


def test_one_cut_has_no_interval() -> None:
    assert estimate(mean(np.array([2.5]), draw_cuts(1, 100, seed=0))) == (2.5, None, None, 0)


def test_a_ratio_is_of_sums_not_of_ratios() -> None:
    bits, pixels = np.array([100.0, 300.0]), np.array([1000.0, 1000.0 / 3])
    assert ratio_of_sums(bits, pixels, draw_cuts(2, 10, seed=0)).value == pytest.approx(400 / (4000 / 3))


def test_frechet_distances_of_all_draws_are_those_of_the_cuts_drawn_one_by_one(generator: np.random.Generator) -> None:
    one, other = features(generator), features(generator, 0.6)
    weights = np.vstack([np.ones(CUTS), draw_cuts(CUTS, 5, seed=2)])
    # Any origin gives the same moments.
    moments = [feature_moments(each, weights, np.full(DIMENSIONS, shift)) for each, shift in ((one, 0.0), (other, 3.0))]
    draws = frechet_draws(moments[0], covariance_roots(moments[0]), moments[1])
    for row, draw in zip(weights, draws, strict=True):
        drawn = [repeated(each, row).reshape(-1, DIMENSIONS) for each in (one, other)]
        assert draw == pytest.approx(frechet_distance(*drawn), rel=1e-6)
    np.testing.assert_allclose(frechet_draws(moments[0], covariance_roots(moments[0]), moments[0]), 0, atol=1e-6)


def test_kernel_distances_leave_out_pairs_of_a_patch_with_itself(generator: np.random.Generator) -> None:
    one, other = features(generator), features(generator, 0.6)
    weights = np.vstack([np.ones(CUTS), draw_cuts(CUTS, 3, seed=2)])
    for row, draw in zip(weights, kernel_draws(one, other, weights), strict=True):
        sides = [repeated(each, row).reshape(-1, DIMENSIONS).astype(np.float64) for each in (one, other)]
        names = repeated(np.arange(CUTS * PATCHES).reshape(CUTS, PATCHES), row).ravel()

        def mean_kernel(a: np.ndarray, b: np.ndarray, same: np.ndarray) -> float:
            values = (a @ b.T / DIMENSIONS + 1) ** 3
            return values[~same].mean()

        same, none = names[:, None] == names[None, :], np.zeros((len(names), len(names)), bool)
        # A patch drawn twice meets itself: these pairs are left out above by weight, here by name.
        expected = mean_kernel(sides[0], sides[0], same) + mean_kernel(sides[1], sides[1], same)
        assert draw == pytest.approx(expected - 2 * mean_kernel(sides[0], sides[1], none), rel=1e-6)


def test_the_interval_of_a_distance_lies_around_its_value_although_its_draws_do_not(
    generator: np.random.Generator,
) -> None:
    one, other = features(generator), features(generator, 0.6)
    weights = draw_cuts(CUTS, 200, seed=0)
    reference, drawn = (feature_moments(each, weights, np.zeros(DIMENSIONS)) for each in (one, other))
    draws = frechet_draws(reference, covariance_roots(reference), drawn)
    value = frechet_distance(one.reshape(-1, DIMENSIONS), other.reshape(-1, DIMENSIONS))
    assert np.quantile(draws, 0.2) > value  # fewer patches: a larger distance
    stated = estimate(moved_to(value, draws))
    assert stated.low < stated.value < stated.high


def test_scores_of_confusions_are_by_hand_and_draw_by_draw() -> None:
    confusions = np.zeros((3, 3, 3), np.int64)
    confusions[0] = [[8, 2, 0], [1, 9, 0], [0, 0, 0]]
    confusions[1] = [[5, 0, 0], [5, 10, 0], [0, 0, 0]]
    confusions[2] = [[0, 4, 0], [0, 6, 0], [0, 0, 0]]
    weights = np.array([[1.0, 1.0, 1.0], [3.0, 0.0, 0.0], [0.0, 1.0, 2.0]])
    scores = class_scores(confusions, weights)
    ious = [13 / 25, 25 / 37]  # 13 of 19 + 19 - 13, 25 of 31 + 31 - 25
    assert [each.value for each in scores.iou[:2]] == pytest.approx(ious)
    assert np.isnan(scores.iou[2].value)
    assert scores.mean_iou.value == pytest.approx(np.mean(ious))
    assert scores.iou[0].draws == pytest.approx([ious[0], 8 / 11, 5 / 18])
    assert scores.mean_iou.draws[0] == pytest.approx(scores.mean_iou.value)
    assert estimate(scores.iou[2]) == (None, None, None, 0)


def test_a_class_that_a_draw_misses_is_no_part_of_its_mean() -> None:
    confusions = np.array([[[10, 0], [0, 0]], [[0, 0], [5, 5]]])
    draws = class_scores(confusions, np.array([[2.0, 0.0], [1.0, 1.0]])).mean_iou.draws
    assert draws == pytest.approx([1.0, (10 / 15 + 0.5) / 2])


def test_differences_use_the_draws_that_both_have() -> None:
    one, other = Resampled(2.0, np.arange(10.0)), Resampled(1.0, np.ones(4))
    assert difference(one, other).draws.tolist() == [-1.0, 0.0, 1.0, 2.0]
