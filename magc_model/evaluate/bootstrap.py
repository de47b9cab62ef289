"""Paired bootstrap over cuts: every figure keeps what it would have been on other draws of the same cuts.

Cuts of 256 px are what is drawn, with replacement, and one draw serves all codecs and rates alike: what the cuts have
in common cancels in differences. Intervals are percentile ones (Efron and Tibshirani, "An Introduction to the
Bootstrap", 1993, chapter 13).

A distance between two sets grows when patches are drawn twice (its covariance is of fewer patches), so its draws lie
above its value. They are moved by the difference of their median and the value: the interval says how much the distance
varies, not how it is biased.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64

CONFIDENCE = 0.95
LEAST_FINITE = 0.95
"""Share of the draws that must give a number for an interval to be stated."""

WIDEST_FRECHET = 256
"""Dimensions; each draw takes an eigenvalue decomposition of such a matrix, 15 ms at 256 and seconds at 2,048."""

MOST_KERNEL_PATCHES = 4096
"""Three matrices of that side are held: 400 MB."""

Draws = Float64[np.ndarray[Any, Any], " _draws"]
Weights = Float64[np.ndarray[Any, Any], "draws cuts"]
"""How many times each cut is in each draw."""


class Resampled(NamedTuple):
    """A figure, and the same of every draw of the cuts."""

    value: float
    """NaN where it is not defined."""
    draws: Draws
    """Empty where it was not drawn again."""
    undefined_cuts: int = 0
    """Cuts that have no such figure and are left out of the mean."""


class Estimate(NamedTuple):
    """A figure with its interval, as it is stated."""

    value: float | None
    low: float | None
    high: float | None
    undefined_cuts: int = 0


def draw_cuts(cuts: int, draws: int, seed: int) -> Weights:
    """The draws of a set of cuts."""
    generator = np.random.default_rng([seed, cuts])
    return generator.multinomial(cuts, np.full(cuts, 1 / cuts), size=draws).astype(np.float64)


def estimate(resampled: Resampled) -> Estimate:
    """A figure's percentile interval; none where too many draws give no number, or all come from one cut."""
    value, draws, undefined = resampled
    if not np.isfinite(value):
        return Estimate(None, None, None, undefined)
    finite = draws[np.isfinite(draws)]
    if not len(draws) or len(finite) < LEAST_FINITE * len(draws):
        return Estimate(float(value), None, None, undefined)
    low, high = np.quantile(finite, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(value), float(low), float(high), undefined)


def difference(one: Resampled, other: Resampled) -> Resampled:
    """One figure minus another, draw by draw: paired, as both are of the same draws."""
    common = min(len(one.draws), len(other.draws))
    return Resampled(one.value - other.value, one.draws[:common] - other.draws[:common])


def mean(values: Float64[np.ndarray[Any, Any], " cuts"], weights: Weights) -> Resampled:
    """Mean of a metric over the cuts that have it."""
    finite = np.isfinite(values)
    undefined = int(np.count_nonzero(~finite))
    ratio = ratio_of_sums(np.where(finite, values, 0.0), finite.astype(np.float64), weights)
    return ratio._replace(undefined_cuts=undefined)


def ratio_of_sums(
    numerator: Float64[np.ndarray[Any, Any], " cuts"],
    denominator: Float64[np.ndarray[Any, Any], " cuts"],
    weights: Weights,
) -> Resampled:
    """A sum over cuts in parts of another, as bits a pixel are."""
    with np.errstate(invalid="ignore", divide="ignore"):
        value = numerator.sum() / denominator.sum()
        draws = (weights @ numerator) / (weights @ denominator)
    return Resampled(float(value), _if_several(draws, weights))


def _if_several(draws: Draws, weights: Weights) -> Draws:
    """Draws of one cut say nothing."""
    return draws if weights.shape[1] > 1 else draws[:0]


class ClassScores(NamedTuple):
    """What confusions come to."""

    mean_iou: Resampled
    """Over the classes that the reference or the decoded pictures have."""
    iou: tuple[Resampled, ...]
    """By class; NaN where neither has it."""


def class_scores(confusions: Int64[np.ndarray[Any, Any], "cuts classes classes"], weights: Weights) -> ClassScores:
    """Intersection over union of confusions summed over cuts; classes in neither side are no part of the mean."""
    cuts, classes, _ = confusions.shape
    flat = confusions.reshape(cuts, -1).astype(np.float64)
    total = flat.sum(axis=0).reshape(1, classes, classes)
    drawn = (weights @ flat).reshape(-1, classes, classes)
    values, draws = _ious(total), _ious(drawn)
    present = np.isfinite(values[0])
    if present.any():
        # A class that a draw happens to miss is no part of that draw's mean, as of any sample without it.
        counted = np.isfinite(draws[:, present])
        sums = np.where(counted, draws[:, present], 0.0).sum(axis=1)
        mean_draws = np.divide(sums, counted.sum(axis=1), out=np.full(len(sums), np.nan), where=counted.any(axis=1))
        mean_iou = Resampled(float(values[0, present].mean()), _if_several(mean_draws, weights))
    else:
        mean_iou = Resampled(float("nan"), np.empty(0))
    return ClassScores(
        mean_iou,
        tuple(
            Resampled(float(values[0, each]), _if_several(np.ascontiguousarray(draws[:, each]), weights))
            for each in range(classes)
        ),
    )


def _ious(
    confusions: Float64[np.ndarray[Any, Any], "draws classes classes"],
) -> Float64[np.ndarray[Any, Any], "draws classes"]:
    both = np.diagonal(confusions, axis1=1, axis2=2)
    either = confusions.sum(axis=1) + confusions.sum(axis=2) - both
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(both / either)


class FeatureMoments(NamedTuple):
    """Mean and covariance of patches' features in every draw of the cuts."""

    means: Float64[np.ndarray[Any, Any], "draws dimensions"]
    covariances: Float64[np.ndarray[Any, Any], "draws dimensions dimensions"]


CutFeatures = Float[np.ndarray[Any, Any], "cuts patches dimensions"]


def feature_moments(
    features: CutFeatures, weights: Weights, origin: Float64[np.ndarray[Any, Any], " dimensions"]
) -> FeatureMoments:
    """Moments of all draws at once, from the sums of each cut.

    Args:
        features: of the patches of each cut.
        weights: the draws.
        origin: what features are taken from before they are squared: anything near their mean, for precision.
    """
    cuts, patches, dimensions = features.shape
    sums = np.zeros((len(weights), dimensions))
    squares = np.zeros((len(weights), dimensions * dimensions))
    step = max(1, 8_000_000 // dimensions**2)  # cuts whose squares are held at a time: 64 MB
    for first in range(0, cuts, step):
        chunk = features[first : first + step].astype(np.float64) - origin
        chosen = weights[:, first : first + step]
        sums += chosen @ chunk.sum(axis=1)
        squares += chosen @ np.einsum("cpi,cpj->cij", chunk, chunk, optimize=True).reshape(len(chunk), -1)
    count = cuts * patches
    means = sums / count
    centred = squares.reshape(-1, dimensions, dimensions) / count - means[:, :, None] * means[:, None, :]
    return FeatureMoments(means + origin, centred * (count / max(count - 1, 1)))


Matrices = Float64[np.ndarray[Any, Any], "draws dimensions dimensions"]


def covariance_roots(moments: FeatureMoments) -> Matrices:
    """Symmetric roots of the covariances: the slow part of a distance, and one side's alone."""
    values, vectors = np.linalg.eigh(moments.covariances)
    return np.asarray((vectors * np.sqrt(np.clip(values, 0, None))[:, None, :]) @ vectors.transpose(0, 2, 1))


def frechet_draws(
    reference: FeatureMoments,
    roots: Float64[np.ndarray[Any, Any], "draws dimensions dimensions"],
    other: FeatureMoments,
) -> Draws:
    """Frechet distance of normal distributions, of every draw: |m - n|^2 + tr(C + D - 2 (C D)^(1/2)).

    Args:
        reference: one side.
        roots: its `covariance_roots`.
        other: the other side.
    """
    # The trace of the root of C D is that of C^(1/2) D C^(1/2), which is symmetric.
    product = np.linalg.eigvalsh(roots @ other.covariances @ roots)
    traces = [np.trace(each.covariances, axis1=1, axis2=2) for each in (reference, other)]
    distances = np.square(reference.means - other.means).sum(axis=1) + traces[0] + traces[1]
    return np.asarray(distances - 2 * np.sqrt(np.clip(product, 0, None)).sum(axis=1))


def kernel_draws(reference: CutFeatures, other: CutFeatures, weights: Weights) -> Draws:
    """Squared maximum mean discrepancy of every draw, under KID's kernel (x.y / dimensions + 1)^3.

    Pairs of a patch with itself are left out, drawn twice or not: Binkowski et al., "Demystifying MMD GANs" (2018).
    """
    patches, dimensions = reference.shape[1:]
    one, two = (each.reshape(-1, dimensions).astype(np.float64) for each in (reference, other))
    repeated = np.repeat(weights, patches, axis=1)
    total = repeated.sum(axis=1)
    pairs = total**2 - np.square(repeated).sum(axis=1)

    def kernel(a: Any, b: Any) -> Any:
        return (a @ b.T / dimensions + 1) ** 3

    def within(features: Any) -> Any:
        matrix = kernel(features, features)
        np.fill_diagonal(matrix, 0.0)
        return np.einsum("dp,dp->d", repeated @ matrix, repeated) / pairs

    across = np.einsum("dp,dp->d", repeated @ kernel(one, two), repeated) / total**2
    return np.asarray(within(one) + within(two) - 2 * across)


def moved_to(value: float, draws: Draws) -> Resampled:
    """A distance with its draws around it: see the head of this file."""
    return Resampled(value, draws - np.median(draws) + value if len(draws) else draws)
