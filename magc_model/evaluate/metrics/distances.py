"""Distances between two sets of features: Frechet's of their Gaussians, and the kernel distance.

Both can be had for bootstrap resamples of cuts: `feature_moments` takes how often each row counts, `kernel_distance`
takes the rows themselves.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int64

from magc_model.errors import EvaluationError

FeatureRows = Float32[np.ndarray[Any, Any], "_rows dimensions"] | Float64[np.ndarray[Any, Any], "_rows dimensions"]
Counts = Int64[np.ndarray[Any, Any], " _rows"]


class FeatureMoments(NamedTuple):
    """A set of features as the Gaussian that it is taken for."""

    mean: Float64[np.ndarray[Any, Any], " dimensions"]
    factor: Float64[np.ndarray[Any, Any], "dimensions rank"]
    """The covariance is factor @ factor.T."""


class KernelDistance(NamedTuple):
    """An estimate over subsets."""

    mean: float
    deviation: float
    """Between subsets; 0 where there is one."""


def feature_moments(features: FeatureRows, counts: Counts | None = None) -> FeatureMoments:
    """Mean and covariance of rows, with one less than their number below the fraction.

    Args:
        features: one row a patch.
        counts: how often each row counts: a bootstrap resample without copying; once each if not given.

    Raises:
        EvaluationError: fewer than two rows, or a feature is no finite number.
    """
    rows = features.astype(np.float64)
    weights = np.ones(len(rows)) if counts is None else counts.astype(np.float64)
    total = float(weights.sum())
    if total < 2:
        raise EvaluationError(
            f"a distance between sets was asked of {total:.0f} patches: expected two or more, so give more pictures"
        )
    if not np.isfinite(rows).all():
        raise EvaluationError("a feature is no finite number: the weights of its network do not belong together")
    mean = weights @ rows / total
    centred = (rows - mean) * np.sqrt(weights / (total - 1))[:, None]
    # Of as few columns as tell the same covariance; a rank-deficient one is nothing special here.
    root = centred if len(rows) <= rows.shape[1] else np.asarray(np.linalg.qr(centred, mode="r"))
    return FeatureMoments(mean, np.ascontiguousarray(root.T))


def frechet_distance(a: FeatureMoments, b: FeatureMoments) -> float:
    """Squared Frechet distance of two Gaussians: |mean a - mean b|^2 + tr(A + B - 2 (A B)^(1/2)).

    With A = F F^T and B = G G^T the trace of the root is the sum of the singular values of F^T G: no root of a matrix
    is taken, and covariances of less than full rank lose nothing (torch-fidelity and pytorch-fid add 1e-6 to these).
    """
    shift = a.mean - b.mean
    overlap = float(np.linalg.svd(a.factor.T @ b.factor, compute_uv=False).sum())
    spread = float((a.factor**2).sum() + (b.factor**2).sum())
    return max(float(shift @ shift) + spread - 2 * overlap, 0.0)


def kernel_distance(
    a: FeatureRows, b: FeatureRows, *, subset_size: int = 1000, subsets: int = 100, seed: int = 0
) -> KernelDistance:
    """KID (Binkowski et al. 2018): unbiased squared MMD under the kernel (x.y / dimensions + 1)^3; may be below 0.

    Args:
        a: one set.
        b: the other.
        subset_size: rows of either set in a subset; a smaller set is taken whole.
        subsets: how many are drawn; one where both sets are taken whole.
        seed: of the draw.

    Raises:
        EvaluationError: fewer than two rows in a set.
    """
    size_a, size_b = min(subset_size, len(a)), min(subset_size, len(b))
    if min(size_a, size_b) < 2:
        raise EvaluationError(
            f"a distance between sets was asked of {min(size_a, size_b)} patches: expected two or more, so give more "
            "pictures"
        )
    words = np.random.Philox(key=seed)
    whole = size_a == len(a) and size_b == len(b)
    estimates = [
        _squared_discrepancy(a[_drawn(words, len(a), size_a)], b[_drawn(words, len(b), size_b)])
        for _ in range(1 if whole else subsets)
    ]
    return KernelDistance(float(np.mean(estimates)), float(np.std(estimates)))


def _drawn(words: np.random.Philox, count: int, size: int) -> Int64[np.ndarray[Any, Any], " size"]:
    """Rows without repetition; raw words are the same in every version of NumPy, its own choices need not be."""
    return np.argsort(words.random_raw(count), kind="stable")[:size]


def _squared_discrepancy(a: FeatureRows, b: FeatureRows) -> float:
    rows_a, rows_b = a.astype(np.float64), b.astype(np.float64)
    within = _mean_of_others(_kernel(rows_a, rows_a)) + _mean_of_others(_kernel(rows_b, rows_b))
    return within - 2 * float(_kernel(rows_a, rows_b).mean())


def _kernel(a: FeatureRows, b: FeatureRows) -> Float64[np.ndarray[Any, Any], "rows_a rows_b"]:
    return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)


def _mean_of_others(kernel: Float64[np.ndarray[Any, Any], "rows rows"]) -> float:
    return float((kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1)))
