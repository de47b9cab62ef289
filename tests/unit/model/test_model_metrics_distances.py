"""Patches, features without weights, and distances between sets of them."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magc_model.errors import EvaluationError
from magc_model.evaluate.metrics import random_features as network
from magc_model.evaluate.metrics.distances import feature_moments, frechet_distance, kernel_distance
from magc_model.evaluate.metrics.patches import patch_corners, patches_of
from magc_model.evaluate.metrics.random_features import FEATURE_COUNT, random_features

GOLDEN = [0.3956007, -0.1834199, -0.1266745, -0.3610058, -0.1458147, -0.1413595, -0.06553867]
"""Some features of a striped patch, version 1."""


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return frechet_distance(feature_moments(a), feature_moments(b))


def test_a_tile_has_the_papers_five_patches():
    assert patch_corners(256, 256) == ((0, 0), (0, 128), (128, 0), (128, 128), (64, 64))
    assert len(patch_corners(384, 384)) == 9 + 4
    assert patch_corners(128, 200) == ((0, 0),)
    assert patch_corners(127, 500) == ()


def test_patches_come_cut_by_cut_and_hold_the_pixels_of_their_place():
    cuts = np.random.default_rng(0).integers(0, 256, (3, 256, 256, 3), dtype=np.uint8)
    patches = patches_of(cuts)
    assert patches.shape == (15, 128, 128, 3)
    assert np.array_equal(patches[5 + 2], cuts[1, 128:, :128])
    assert np.array_equal(patches[10 + 4], cuts[2, 64:192, 64:192])
    assert patches_of(cuts[:, :100]).shape == (0, 128, 128, 3)


def test_frechet_distance_is_the_known_one_of_gaussians_with_one_set_of_axes():
    # Rows whose mean and covariance are exactly these: corners of a box, with n - 1 below the fraction.
    corners = np.array([[x, y] for x in (-1.0, 1.0) for y in (-1.0, 1.0)]) * np.sqrt(3 / 4)
    one, other = corners * (2, 5), corners * (3, 1) + (7, -1)
    assert distance(one, other) == pytest.approx(7**2 + 1 + (2 - 3) ** 2 + (5 - 1) ** 2)


def test_frechet_distance_of_a_known_covariance_pair_is_that_of_the_matrix_root():
    from scipy.linalg import sqrtm

    random = np.random.default_rng(2)
    a, b = random.normal(size=(300, 12)) @ random.normal(size=(12, 12)), random.normal(size=(250, 12)) + 0.3
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    shift = a.mean(0) - b.mean(0)
    wanted = shift @ shift + np.trace(cov_a + cov_b - 2 * np.real(sqrtm(cov_a @ cov_b)))
    assert distance(a, b) == pytest.approx(wanted, rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(2, 30), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_frechet_distance_is_symmetric_and_zero_to_itself_whatever_the_rank(rows_a, rows_b, dimensions, seed):
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(rows_a, dimensions)), 3 * random.normal(size=(rows_b, dimensions)) + 1
    a[:, dimensions // 2 :] = 0  # no spread at all in half of the dimensions
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-9, abs=1e-9)
    assert distance(a, a) == pytest.approx(0, abs=1e-9)
    assert distance(a + 2, a) == pytest.approx(4 * dimensions, rel=1e-9)


def test_counted_rows_are_rows_that_often():
    random = np.random.default_rng(4)
    a, b = random.normal(size=(40, 6)), random.normal(size=(40, 6)) * 2
    counts = random.integers(0, 4, 40)
    counted = frechet_distance(feature_moments(a, counts), feature_moments(b, counts))
    assert counted == pytest.approx(distance(np.repeat(a, counts, axis=0), np.repeat(b, counts, axis=0)), rel=1e-9)
    assert counted != pytest.approx(distance(a, b), rel=1e-3)


@pytest.mark.parametrize("measure", [lambda a, b: feature_moments(b), kernel_distance])
def test_a_single_patch_is_no_set(measure):
    with pytest.raises(EvaluationError, match=r"of 1 patches: expected two or more, so give more pictures$"):
        measure(np.zeros((9, 3)), np.zeros((1, 3)))


def test_features_that_are_no_numbers_are_told():
    with pytest.raises(EvaluationError, match="no finite number"):
        feature_moments(np.array([[0.0], [np.nan]]))


def plain_kid(a: np.ndarray, b: np.ndarray) -> float:
    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / len(x) + 1) ** 3)

    def others(rows: np.ndarray) -> float:
        return float(np.mean([kernel(x, y) for n, x in enumerate(rows) for m, y in enumerate(rows) if n != m]))

    return others(a) + others(b) - 2 * float(np.mean([kernel(x, y) for x in a for y in b]))


def test_kernel_distance_is_the_formula_where_sets_are_taken_whole():
    random = np.random.default_rng(5)
    a, b = random.normal(size=(20, 4)), random.normal(size=(17, 4)) + 0.5
    found = kernel_distance(a, b)
    assert found.mean == pytest.approx(plain_kid(a, b), rel=1e-9)
    assert found.deviation == 0


def test_kernel_distance_has_no_bias_and_its_subsets_come_from_the_seed():
    random = np.random.default_rng(6)
    a, b = random.normal(size=(400, 4)), random.normal(size=(400, 4))
    estimates = [kernel_distance(a[n : n + 20], b[n : n + 20]).mean for n in range(0, 400, 20)]
    assert abs(np.mean(estimates)) < 3 * np.std(estimates) / np.sqrt(20)
    assert min(estimates) < 0 < max(estimates)
    drawn = [kernel_distance(a, b, subset_size=50, subsets=10, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert kernel_distance(a, b + 1, subset_size=50, subsets=10).mean > 0.5


def test_distances_are_those_of_torch_fidelity():
    pytest.importorskip("torch_fidelity")
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    random = np.random.default_rng(7)
    a, b = random.normal(size=(300, 32)) @ random.normal(size=(32, 32)), random.normal(size=(300, 32))
    a, b = a.astype(np.float32), b.astype(np.float32)
    statistics = [fid_features_to_statistics(torch.from_numpy(rows)) for rows in (a, b)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert distance(a, b) == pytest.approx(theirs, rel=1e-6)
    whole = kid_features_to_metric(
        torch.from_numpy(a), torch.from_numpy(b), kid_subsets=1, kid_subset_size=300, verbose=False
    )
    assert kernel_distance(a, b).mean == pytest.approx(whole["kernel_inception_distance_mean"], rel=1e-6)


def test_the_random_network_never_changes():
    weights = b"".join(layer.numpy().tobytes() for scale in network._network() for layer in scale)
    assert hashlib.sha256(weights).hexdigest() == "e254dc5ac292679f6a0e289b13bc732196e32711995405ed23792f5fd7e713f1"
    patch = (np.indices((128, 128)).sum(0) * 37 % 251).astype(np.uint8)[None, ..., None].repeat(3, axis=-1)
    found = random_features(patch)
    assert found.shape == (1, FEATURE_COUNT)
    assert found[0, [0, 3, 9, 15, 27, 60, 98]] == pytest.approx(GOLDEN, rel=1e-4)


def test_features_of_a_patch_do_not_depend_on_the_others_and_flat_patches_have_some():
    patches = np.random.default_rng(8).integers(0, 256, (5, 128, 128, 3), dtype=np.uint8)
    patches[2] = 0
    together = random_features(patches)
    assert np.isfinite(together).all()
    assert together == pytest.approx(
        np.concatenate([random_features(one[None]) for one in patches]), rel=1e-4, abs=1e-5
    )
