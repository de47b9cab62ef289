"""Measurements of one codec at one rate, brought into arrays over the cuts of all items."""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int64

from magc_model.errors import EvaluationError
from magc_model.evaluate.bootstrap import (
    MOST_KERNEL_PATCHES,
    WIDEST_FRECHET,
    ClassScores,
    FeatureMoments,
    Matrices,
    Resampled,
    Weights,
    class_scores,
    covariance_roots,
    draw_cuts,
    feature_moments,
    frechet_draws,
    kernel_draws,
    mean,
    moved_to,
    ratio_of_sums,
)
from magc_model.evaluate.measurement import CUT_PX, Measurement, On

LEAST_PATCHES = 2
"""One has no covariance."""

PatchFeatures = Float32[np.ndarray[Any, Any], "patches dimensions"]
CutFeatures = Float32[np.ndarray[Any, Any], "cuts patches dimensions"]


class DistanceKind(StrEnum):
    """How a distance is drawn again."""

    FRECHET = "frechet"
    KERNEL = "kernel"


class Distance(NamedTuple):
    """A metric between the features of all originals and those of all decoded pictures."""

    features: str
    """Their name in measurements: several distances may be of the same features."""
    kind: DistanceKind
    compute: Callable[[PatchFeatures, PatchFeatures], float]
    """Of the originals' and the decoded pictures'."""


class Sample(NamedTuple):
    """The cuts that all codecs are measured on, and their draws."""

    on: On
    keys: tuple[str, ...]
    cuts_of_item: tuple[int, ...]
    weights: Weights
    distance_weights: Weights

    @property
    def cuts(self) -> int:
        """All of them."""
        return sum(self.cuts_of_item)


class Reference(NamedTuple):
    """Features of the originals, and what all distances to them need of them."""

    features: CutFeatures
    origin: Float64[np.ndarray[Any, Any], " dimensions"]
    moments: FeatureMoments | None
    """None where the features are too wide to be drawn again."""
    roots: Matrices | None
    """Of their covariances."""


def sample_of(on: On, measurements: Sequence[Measurement], draws: int, distance_draws: int, seed: int) -> Sample:
    """The cuts of some measurements, one an item and sorted by key."""
    cuts = tuple(cuts_of(each) for each in measurements)
    weights = draw_cuts(sum(cuts), draws, seed)
    return Sample(on, tuple(each.key for each in measurements), cuts, weights, weights[:distance_draws])


def cuts_of(measurement: Measurement) -> int:
    """How many cuts a measurement is of: by its size where it has no figures, as an original may have none.

    Raises:
        EvaluationError: its parts do not agree, or it has none.
    """
    lengths = {len(each) for each in (*measurement.values.values(), *measurement.confusions.values())}
    if not lengths:
        columns, rows = (side // CUT_PX for side in (measurement.width_px, measurement.height_px))
        return max(1, columns * rows)
    if len(lengths) != 1 or min(lengths) == 0:
        raise EvaluationError(
            f"the measurement of {measurement.key} by {measurement.codec} has figures of {sorted(lengths)} cuts: "
            "expected one number above 0, measure it again"
        )
    return lengths.pop()


def check_same_cuts(sample: Sample, measurements: Sequence[Measurement]) -> None:
    """Every codec is measured on the same cuts, or nothing is paired.

    Raises:
        EvaluationError: it is not.
    """
    first = measurements[0]
    found = dict.fromkeys(each.key for each in measurements)
    what = f"{first.codec} at {first.rate:g} was measured on"
    way_out = "run the same command again, which measures what is missing"
    if len(found) < len(measurements):
        raise EvaluationError(f"{what} one of the {first.on} twice: expected each once, measure them again")
    if different := sorted(set(found) ^ set(sample.keys)):
        other = "not on" if different[0] in sample.keys else "alone on"
        raise EvaluationError(f"{what} {len(found)} of the {first.on}, {other} {different[0]}: {way_out}")
    for each, cuts in zip(measurements, sample.cuts_of_item, strict=True):
        if cuts_of(each) != cuts:
            raise EvaluationError(f"{what} {cuts_of(each)} cuts of {each.key}, others on {cuts}: {way_out}")


def bits_a_pixel(sample: Sample, measurements: Sequence[Measurement], sizes: Sequence[int]) -> Resampled:
    """Bits of so many bytes an item over its pixels; an item's are spread over its cuts."""
    shares = np.repeat(1 / np.array(sample.cuts_of_item), sample.cuts_of_item)
    bits = np.repeat(8.0 * np.array(sizes, np.float64), sample.cuts_of_item) * shares
    areas = np.array([each.width_px * each.height_px for each in measurements], np.float64)
    return ratio_of_sums(bits, np.repeat(areas, sample.cuts_of_item) * shares, sample.weights)


def values_of(sample: Sample, measurements: Sequence[Measurement], name: str) -> Resampled:
    """A metric that is a mean over cuts."""
    values = np.concatenate([each.values[name] for each in measurements])
    return mean(values, sample.weights)


def scores_of(sample: Sample, measurements: Sequence[Measurement], name: str) -> ClassScores:
    """A score that is of confusions summed over cuts."""
    confusions: Int64[np.ndarray[Any, Any], "cuts classes classes"]
    confusions = np.concatenate([each.confusions[name] for each in measurements])
    return class_scores(confusions, sample.weights)


def cut_features(measurements: Sequence[Measurement], name: str, cuts: int) -> CutFeatures:
    """Features of all patches, by cut.

    Raises:
        EvaluationError: cuts have not the same number of patches.
    """
    features = np.concatenate([each.features[name] for each in measurements])
    if len(features) % cuts or any(
        len(each.features[name]) * cuts != len(features) * cuts_of(each) for each in measurements
    ):
        raise EvaluationError(
            f"{measurements[0].codec} has {len(features)} patches of '{name}' for {cuts} cuts: "
            "expected the same number for each, measure them again"
        )
    return features.reshape(cuts, -1, features.shape[1])


def reference_of(sample: Sample, measurements: Sequence[Measurement], name: str) -> Reference:
    """The originals' side of distances."""
    features = cut_features(measurements, name, sample.cuts)
    origin = features.sum(axis=(0, 1), dtype=np.float64) / max(1, features.shape[0] * features.shape[1])
    if features.shape[2] > WIDEST_FRECHET or not features.shape[1] or sample.cuts == 1:
        return Reference(features, origin, None, None)
    moments = feature_moments(features, sample.distance_weights, origin)
    return Reference(features, origin, moments, covariance_roots(moments))


def distances_of(
    sample: Sample, references: Mapping[str, Reference], found: CutFeatures, distance: Distance
) -> Resampled:
    """A distance with its draws; without them where these would take too long, no number of too few patches."""
    reference = references[distance.features]
    flat = [each.reshape(-1, each.shape[2]) for each in (reference.features, found)]
    if len(flat[0]) < LEAST_PATCHES:
        return Resampled(float("nan"), np.empty(0))
    value = float(distance.compute(flat[0], flat[1]))
    draws = np.empty(0)
    if distance.kind is DistanceKind.FRECHET and reference.moments is not None and reference.roots is not None:
        moments = feature_moments(found, sample.distance_weights, reference.origin)
        draws = frechet_draws(reference.moments, reference.roots, moments)
    if distance.kind is DistanceKind.KERNEL and len(flat[0]) <= MOST_KERNEL_PATCHES and sample.cuts > 1:
        draws = kernel_draws(reference.features, found, sample.distance_weights)
    return moved_to(value, draws)
