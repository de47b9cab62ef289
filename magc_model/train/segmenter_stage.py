"""What trains a segmenter, on what, and how far it has come.

    picture, as it may look in use ─► network ─► cross-entropy with weighted classes + 1 - Dice ◄─ map

Cross-entropy and Dice together as in nnU-Net (Isensee et al. 2021), Dice as in V-Net (Milletari et al. 2016). Classes
are weighted by the inverse square root of their share: halfway to counting all of them alike, which would have the
rarest drawn everywhere.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from magc_model.config import MapClass, SegmenterConfig
from magc_model.data import Batch, Source
from magc_model.errors import DataError
from magc_model.nets.segmenter import SegmenterNetwork
from magc_model.segmenter_model import SegmenterModel
from magc_model.train.loop import AUXILIARY_LEARNING_RATE, Losses, Validation, recompute_activations
from magc_model.train.segmenter_pictures import as_seen_in_use

MAPS_COUNTED = 2000
"""Training maps of which shares are taken: evenly spaced. A class that none of them has is left out."""
VALIDATION_SAMPLES = 64
VALIDATION_PICTURES = 4

_IGNORED = -100
"""Of a pixel whose class is left out; what torch's cross-entropy takes it for."""
_GAP_PX = 4

ClassNumbers = Int[Tensor, "batch height width"]
"""Places in the segmenter's class table; _IGNORED for other classes."""


class ClassShares(NamedTuple):
    """What the training maps hold."""

    classes: tuple[MapClass, ...]
    shares: tuple[float, ...]
    """Of all pixels, above 0."""


def class_shares(source: Source) -> ClassShares:
    """Classes that occur, by their ids.

    Raises:
        DataError: there is nothing to tell apart.
    """
    if not source.classes:
        raise DataError("the pictures have no maps to learn from: give datasets made by `magc-data build`")
    counts = np.zeros(256, np.int64)
    for number in _evenly(len(source), MAPS_COUNTED):
        counts += np.bincount(source.read_map(number).ravel(), minlength=256)
    classes = tuple(MapClass(*each) for each in source.classes if counts[each.id])
    if len(classes) < 2:
        raise DataError(
            f"the training maps hold {classes[0].name if classes else 'no known class'} alone, so there is nothing to "
            "tell apart: train on ground with buildings or roads on its map"
        )
    total = sum(int(counts[each.id]) for each in classes)
    return ClassShares(classes, tuple(int(counts[each.id]) / total for each in classes))


def class_weights(shares: tuple[float, ...]) -> tuple[float, ...]:
    """Inverse square root of the shares, with a mean of 1 over the pixels."""
    mean = sum(share**0.5 for share in shares)
    return tuple(share**-0.5 / mean for share in shares)


class SegmenterLosses(nn.Module):
    """A segmenter under training."""

    def __init__(self, network: SegmenterNetwork, classes: ClassShares) -> None:
        super().__init__()
        self.network = network
        numbers = torch.full((256,), _IGNORED, dtype=torch.long)
        numbers[[each.id for each in classes.classes]] = torch.arange(len(classes.classes))
        self._numbers, self._weights = numbers, torch.tensor(class_weights(classes.shares))

    def forward(self, batch: Batch) -> Losses:
        """Cross-entropy and Dice of a batch of pictures, changed as they may look in use."""
        images = torch.as_tensor(batch.images)
        with torch.autocast(images.device.type, enabled=False):
            images = as_seen_in_use(images).contiguous(memory_format=torch.channels_last)
        logits = self.network(images).float()
        wanted = self._numbers.to(images.device)[batch.class_ids.long()]
        entropy = weighted_cross_entropy(logits, wanted, self._weights.to(images.device))
        dice = dice_loss(logits, wanted)
        return Losses(entropy + dice, {"cross_entropy": entropy.detach(), "dice_loss": dice.detach()})


def weighted_cross_entropy(
    logits: Float[Tensor, "batch classes height width"], wanted: ClassNumbers, weights: Float[Tensor, " classes"]
) -> Float[Tensor, ""]:
    """Mean over the pixels that are not ignored; weights of the classes have a mean of 1 over all data, not here."""
    losses = functional.cross_entropy(logits, wanted, weights, ignore_index=_IGNORED, reduction="none")
    return losses.sum() / (wanted != _IGNORED).sum().clamp(min=1)


def dice_loss(logits: Float[Tensor, "batch classes height width"], wanted: ClassNumbers) -> Float[Tensor, ""]:
    """1 - Dice of the probabilities, over the whole batch: the mean of the classes that occur in it."""
    counted = (wanted != _IGNORED)[:, None]
    truth = functional.one_hot(wanted.clamp(min=0), logits.shape[1]).movedim(-1, 1) * counted
    found = logits.softmax(dim=1) * counted
    axes = (0, 2, 3)
    occurs = truth.sum(axes) > 0
    shared = 2 * (found * truth).sum(axes) / (found.sum(axes) + truth.sum(axes)).clamp(min=1)
    return 1 - shared.sum() / occurs.sum().clamp(min=1)


class SegmenterStage:
    """`magc-train segmenter`, for the training loop."""

    auxiliary: frozenset[str] = frozenset()
    auxiliary_learning_rate = AUXILIARY_LEARNING_RATE

    def __init__(self, network: SegmenterNetwork, config: SegmenterConfig, classes: ClassShares, held: Source) -> None:
        self.network = SegmenterLosses(network.to(memory_format=torch.channels_last), classes)
        self._config = config
        self._samples = [held[number] for number in _evenly(len(held), VALIDATION_SAMPLES)]

    def validate(self) -> Validation:
        """Intersection over union with the map, by class, and with the map of another sample: what chance gives."""
        segmenter = SegmenterModel(self._config, self.network.network)
        ids = segmenter.class_ids
        own, other = (np.zeros((len(ids), len(ids)), np.int64) for _ in range(2))
        seen = [segmenter.predict(each.image[None])[0] for each in self._samples]
        for number, answer in enumerate(seen):
            own += confusion(self._samples[number].semantic_map, answer, ids)
            other += confusion(self._samples[number - 1].semantic_map, answer, ids)
        figures = _named("iou", own, segmenter.classes)
        figures["mean_iou"] = float(np.mean(list(figures.values())))
        if len(seen) > 1:
            figures |= _named("iou_elsewhere", other, segmenter.classes)
        return Validation(figures, self._picture(seen[:VALIDATION_PICTURES]))

    def recompute_activations(self) -> None:
        """Compute the activations of all levels twice instead of keeping them."""
        network = self.network.network
        recompute_activations(network.first, *network.down, *network.up)

    def compile(self) -> None:
        """Compile the network."""
        self.network.network.compile()

    def _picture(self, seen: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """A row a sample: picture, map, and what was seen."""
        palette = np.zeros((256, 3), np.uint8)
        for each in self._samples[0].classes:
            palette[each.id] = each.color
        gap = ((0, _GAP_PX), (0, _GAP_PX), (0, 0))
        rows = [
            np.concatenate(
                [
                    np.pad(cell, gap, constant_values=255)
                    for cell in (sample.image, palette[sample.semantic_map], palette[answer])
                ],
                axis=1,
            )
            for sample, answer in zip(self._samples, seen, strict=False)
        ]
        return np.concatenate(rows)


def confusion(truth: NDArray[np.uint8], seen: NDArray[np.uint8], ids: tuple[int, ...]) -> NDArray[np.int64]:
    """Pixels by their class on the map (rows) and by what is seen, [classes, classes]; others are not counted."""
    numbers = np.full(256, -1, np.int64)
    numbers[list(ids)] = np.arange(len(ids))
    rows, columns = numbers[truth].ravel(), numbers[seen].ravel()
    counted = (rows >= 0) & (columns >= 0)
    counts = np.bincount(rows[counted] * len(ids) + columns[counted], minlength=len(ids) ** 2)
    return counts.reshape(len(ids), len(ids))


def _named(name: str, counts: NDArray[np.int64], classes: tuple[str, ...]) -> dict[str, float]:
    """Intersection over union of those classes that are on the map or seen."""
    shared = np.diag(counts)
    either = counts.sum(axis=0) + counts.sum(axis=1) - shared
    return {f"{name}_{each}": float(shared[n] / either[n]) for n, each in enumerate(classes) if either[n]}


def _evenly(count: int, most: int) -> list[int]:
    return [int(each) for each in np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))]
