"""The one front of all metrics: originals and decoded cuts in, figures, features and confusions out."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8

from magc_model.errors import DataError, UsageError
from magc_model.evaluate.metrics.full_reference import FULL_REFERENCE_NAMES, full_reference
from magc_model.evaluate.metrics.patches import Pictures, patch_corners, patches_of
from magc_model.evaluate.metrics.perceptual import PatchFeatures, open_perceptual
from magc_model.evaluate.metrics.random_features import FEATURE_COUNT, FEATURES_VERSION, random_features
from magc_model.evaluate.metrics.semantic import ClassIdMaps, Segmenter, confusions, seen_in
from magc_model.evaluate.metrics.table import (
    FULL_REFERENCE,
    INCEPTION_DISTANCES,
    INCEPTION_FEATURES,
    MAP_CONSISTENCY,
    PERCEPTUAL,
    RANDOM_DISTANCE,
    RANDOM_FEATURES,
    Missing,
    map_consistency,
    segmentation_agreement,
)

METRICS_VERSION = f"1.{FEATURES_VERSION}"
"""Part of what a kept measurement belongs to: raised when a figure of the same pictures changes."""

# What belongs together is checked below, with sentences.
AnyPictures = UInt8[np.ndarray[Any, Any], "_cuts _height _width 3"]
AnyMaps = UInt8[np.ndarray[Any, Any], "_cuts _height _width"]

_REMEMBERED_CUTS = 256
_INCEPTION_DIMENSIONS = 2048


class Scores(NamedTuple):
    """What is known of a batch of cuts, as `measurement.Measurement` keeps it."""

    values: dict[str, Float64[np.ndarray[Any, Any], " cuts"]]
    features: dict[str, Float32[np.ndarray[Any, Any], "_patches _dimensions"]]
    """All patches of the first cut, then all of the second."""
    confusions: dict[str, Int64[np.ndarray[Any, Any], "cuts _classes _classes"]]


class TileMetrics:
    """The metrics of one evaluation; one object a process, made there from arguments that can be pickled.

    What it says of a cut does not depend on the other cuts that it is given with.

    Args:
        weights_dir: where published weights lie, if anywhere.
        segmenters: whose view of decoded pictures is compared with their view of the originals.
        map_segmenter: whose view of decoded pictures is compared with the map; its ids are those of maps.
        only: names of the metrics wanted; all if not given.

    Raises:
        UsageError: a name is unknown.
        EvaluationError: a file of weights is damaged, or of another network.
    """

    def __init__(
        self,
        weights_dir: Path | None = None,
        segmenters: Sequence[Segmenter] = (),
        map_segmenter: Segmenter | None = None,
        only: Sequence[str] | None = None,
    ) -> None:
        agreements = [segmentation_agreement(one.name, one.classes) for one in segmenters]
        consistency = [] if map_segmenter is None else [map_consistency(map_segmenter.classes)]
        known = (*FULL_REFERENCE, *PERCEPTUAL, RANDOM_DISTANCE, *INCEPTION_DISTANCES, *consistency, *agreements)
        wanted = {metric.name for metric in known} if only is None else set(only)
        unknown = wanted - {metric.name for metric in known} - {MAP_CONSISTENCY}
        if unknown:
            raise UsageError(
                f"metric '{min(unknown)}' is unknown: expected one of {', '.join(metric.name for metric in known)}"
            )
        perceptual = open_perceptual(weights_dir, sorted(wanted))
        lacking = list(perceptual.missing)
        if map_segmenter is None and (only is None or MAP_CONSISTENCY in wanted):
            lacking.append(
                Missing(
                    MAP_CONSISTENCY, map_consistency(()).label, "no segmenter of maps was given",
                    "train one with magc-train segmenter",
                )
            )  # fmt: skip
        absent = {one.name for one in lacking}
        self.table = tuple(metric for metric in known if metric.name in wanted - absent)
        """What `measure` measures, in the order of reports."""
        self.missing = tuple(lacking)
        """What was wanted and is not here."""
        self.weights = perceptual.weights
        """The files that figures come from."""
        self._full_reference = tuple(name for name in FULL_REFERENCE_NAMES if name in wanted)
        self._pairs = perceptual.pairs
        self._features: dict[str, tuple[PatchFeatures, int]] = {}
        if RANDOM_FEATURES in wanted:
            self._features[RANDOM_FEATURES] = (random_features, FEATURE_COUNT)
        if perceptual.inception is not None:
            self._features[INCEPTION_FEATURES] = (perceptual.inception, _INCEPTION_DIMENSIONS)
        self._segmenters = {
            metric.name: segmenter
            for metric, segmenter in zip(agreements, segmenters, strict=True)
            if metric.name in wanted
        }
        self._map_segmenter = map_segmenter if MAP_CONSISTENCY in wanted else None
        self._remembered = _Remembered()

    def measure(self, originals: AnyPictures, decoded: AnyPictures, semantic_maps: AnyMaps | None = None) -> Scores:
        """Measure cuts of one size.

        Args:
            originals: the cuts as they were.
            decoded: the same cuts as they came back.
            semantic_maps: their maps; without them there is no map consistency.

        Returns:
            the figures of `table`; those of a cut that is too small for a metric are not numbers.

        Raises:
            DataError: the pictures or maps are not of one size.
            EvaluationError: a segmenter does not answer as it should.
        """
        if originals.shape != decoded.shape:
            raise DataError(
                f"the originals are {originals.shape} and the decoded cuts {decoded.shape}: expected as many"
            )
        if semantic_maps is not None and semantic_maps.shape != originals.shape[:3]:
            raise DataError(f"the maps are {semantic_maps.shape} for cuts of {originals.shape[:3]}: expected one a cut")
        values = full_reference(originals, decoded, self._full_reference)
        for name, measure in self._pairs.items():
            values[name] = np.array([measure(*cut) for cut in zip(originals, decoded, strict=True)], dtype=np.float64)
        features = {
            name: _features_of(decoded, network, dimensions) for name, (network, dimensions) in self._features.items()
        }
        matrices = {
            name: confusions(
                self._remembered.look(name, originals, segmenter), seen_in(segmenter, decoded), len(segmenter.classes)
            )
            for name, segmenter in self._segmenters.items()
        }
        if self._map_segmenter is not None and semantic_maps is not None:
            seen = seen_in(self._map_segmenter, decoded)
            matrices[MAP_CONSISTENCY] = confusions(semantic_maps, seen, len(self._map_segmenter.classes))
        return Scores(values, features, matrices)


class _Remembered:
    """What segmenters saw in the last originals: these come again with every codec and rate."""

    def __init__(self) -> None:
        self._seen: OrderedDict[bytes, ClassIdMaps] = OrderedDict()

    def look(self, name: str, pictures: Pictures, segmenter: Segmenter) -> ClassIdMaps:
        if not len(pictures):
            return seen_in(segmenter, pictures)
        return np.concatenate([self._one(name, pictures[n : n + 1], segmenter) for n in range(len(pictures))])

    def _one(self, name: str, picture: Pictures, segmenter: Segmenter) -> ClassIdMaps:
        key = hashlib.blake2b(picture.tobytes(), salt=hashlib.blake2b(name.encode(), digest_size=16).digest()).digest()
        if key not in self._seen:
            self._seen[key] = seen_in(segmenter, picture).astype(np.uint16)
            if len(self._seen) > _REMEMBERED_CUTS:
                self._seen.popitem(last=False)
        self._seen.move_to_end(key)
        return self._seen[key]


def _features_of(
    pictures: Pictures, network: Callable[[Any], Any], dimensions: int
) -> Float32[np.ndarray[Any, Any], "_patches _dimensions"]:
    """Features of the patches of cuts, one cut at a time."""
    if not len(pictures) or not patch_corners(*pictures.shape[1:3]):
        return np.empty((0, dimensions), dtype=np.float32)
    return np.concatenate([network(patches_of(pictures[n : n + 1])) for n in range(len(pictures))])
