"""What a segmenter sees in pictures: confusion matrices against the originals or the maps, and what follows of them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int64, Integer, UInt8

from magc_model.errors import EvaluationError, UsageError
from magc_model.evaluate.metrics.patches import Pictures

ClassIdMaps = Integer[np.ndarray[Any, Any], "cuts height width"]
"""What is seen, by the place in the segmenter's classes."""
SemanticMaps = UInt8[np.ndarray[Any, Any], "cuts height width"]
Confusions = Int64[np.ndarray[Any, Any], "cuts classes classes"]
"""Pixels of each cut by reference class (rows) and seen class (columns)."""


@runtime_checkable
class Segmenter(Protocol):
    """Anything that tells what is where in a picture."""

    @property
    def name(self) -> str:
        """What tells it from others in the results."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """What its ids mean."""
        ...

    def predict(self, pictures: Pictures) -> ClassIdMaps:
        """The class of every pixel: its place in `classes`."""
        ...


class SegmentationScores(NamedTuple):
    """What a sum of confusion matrices comes to."""

    classes: tuple[str, ...]
    iou: Float64[np.ndarray[Any, Any], " classes"]
    """Intersection over union of each class; not a number for one that is neither in the reference nor seen."""
    mean_iou: float
    """Over the classes that are in the reference or seen; not a number where there is none."""
    accuracy: float
    """Share of the pixels that are seen as what they are."""
    left_out: tuple[str, ...]
    """Classes that are neither in the reference nor seen: the mean is without them."""


def seen_in(segmenter: Segmenter, pictures: Pictures) -> ClassIdMaps:
    """Let a segmenter look at cuts, at one at a time, so that what it sees does not depend on the others.

    Raises:
        EvaluationError: it answers with another size, or with classes that it does not have.
    """
    seen = [segmenter.predict(pictures[n : n + 1]) for n in range(len(pictures))]
    maps = np.concatenate(seen) if seen else np.empty(pictures.shape[:3], dtype=np.int64)
    if maps.shape != pictures.shape[:3]:
        raise EvaluationError(
            f"segmenter {segmenter.name} answers {pictures.shape[:3]} pixels with {maps.shape} classes: expected one a "
            "pixel"
        )
    if maps.size and not 0 <= int(maps.min()) <= int(maps.max()) < len(segmenter.classes):
        raise EvaluationError(
            f"segmenter {segmenter.name} sees classes {maps.min()} to {maps.max()} and names {len(segmenter.classes)}: "
            "name all of its classes"
        )
    return maps


def confusions(reference: ClassIdMaps, seen: ClassIdMaps, class_count: int) -> Confusions:
    """One matrix a cut; pixels whose reference is outside of the classes are not counted.

    Args:
        reference: the map, or what is seen in the original.
        seen: what is seen in the decoded picture, all of it inside the classes.
        class_count: how many classes there are.
    """
    matrices = np.zeros((len(reference), class_count, class_count), dtype=np.int64)
    for matrix, wanted, found in zip(matrices, reference, seen, strict=True):
        known = wanted < class_count
        pairs = wanted[known].astype(np.int64) * class_count + found[known]
        matrix += np.bincount(pairs, minlength=class_count**2).reshape(class_count, class_count)
    return matrices


def segmentation_scores(
    summed: Int64[np.ndarray[Any, Any], "classes classes"], classes: tuple[str, ...]
) -> SegmentationScores:
    """IoU of each class, their mean and the accuracy, of confusions summed over cuts."""
    right = summed.diagonal().astype(np.float64)
    union = summed.sum(axis=0) + summed.sum(axis=1) - right
    iou = np.full(len(classes), np.nan)
    np.divide(right, union, out=iou, where=union > 0)
    there = union > 0
    total = int(summed.sum())
    return SegmentationScores(
        classes,
        iou,
        float(iou[there].mean()) if there.any() else float("nan"),
        float(right.sum()) / total if total else float("nan"),
        tuple(name for name, is_there in zip(classes, there, strict=True) if not is_there),
    )


def open_segmenters(texts: Sequence[str]) -> list[Segmenter]:
    """Open what a user names: `torchvision:NAME=weights.pth`, `transformers:FOLDER`, `torchscript:FILE`.

    Raises:
        UsageError: a text is none of these, or two have one name.
        EvaluationError: a file is absent, damaged, or of another model.
    """
    from magc_model.evaluate.metrics import segmenters

    kinds: dict[str, Callable[[str], Segmenter]] = {
        "torchvision": segmenters.TorchvisionSegmenter,
        "transformers": segmenters.TransformersSegmenter,
        "torchscript": segmenters.TorchscriptSegmenter,
    }
    opened = []
    for text in texts:
        kind, _, argument = text.partition(":")
        if kind not in kinds or not argument:
            raise UsageError(
                f"segmenter '{text}' is unknown: expected torchvision:NAME=weights.pth, transformers:FOLDER or "
                "torchscript:FILE"
            )
        opened.append(kinds[kind](argument))
    names = [segmenter.name for segmenter in opened]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two segmenters are called {name}: rename one of the files")
    return opened
