"""Where the names of curves stand: beside their curves, on as little as possible."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

XY = tuple[float, float]
Numbers = np.ndarray[Any, np.dtype[np.float64]]

WIDTH_A_CHARACTER = 0.56
"""Of the font's size, in the sans-serif fonts that pages are shown in."""

_STEP_PX = 4.0
_ON_A_LABEL = 60.0
_ON_ITSELF = 0.4
_AWAY_FROM_END = 2.5  # a name belongs to a curve's end, where nothing else is
_HIDDEN_ABOVE = 55.0


class Box(NamedTuple):
    """A rectangle, y downwards."""

    left: float
    top: float
    right: float
    bottom: float


def place_labels(
    labels: Sequence[str],
    curves: Sequence[Sequence[XY]],
    sizes_px: Sequence[int],
    inside: Box,
    taken: Sequence[Box] = (),
) -> list[XY | None]:
    """The left end of every label's baseline; None where it would only stand on others.

    Args:
        labels: placed in this order: the first have the choice.
        curves: what they name, in the picture's pixels.
        sizes_px: of their fonts.
        inside: what they must not leave.
        taken: what they must not cover.
    """
    dots = [_along(curve) for curve in curves]
    everything = np.concatenate(dots) if dots else np.empty((0, 2))
    owners = np.repeat(np.arange(len(dots)), [len(each) for each in dots])
    boxes = list(taken)
    places: list[XY | None] = []
    for number, (label, curve, size) in enumerate(zip(labels, curves, sizes_px, strict=True)):
        width = WIDTH_A_CHARACTER * size * len(label) + 2
        tried, costs = _candidates(curve, width, size)
        fits = (tried[:, :2] >= inside[:2]).all(axis=1) & (tried[:, 2:] <= inside[2:]).all(axis=1)
        if not fits.any():
            places.append(None)
            continue
        tried, costs = tried[fits], costs[fits]
        # A name may stand on its own curve rather than on another's.
        costs += _covered(tried, everything, np.where(owners == number, _ON_ITSELF, 1.0))
        for each in boxes:
            costs += _ON_A_LABEL * _overlaps(tried, each)
        best = int(costs.argmin())
        if costs[best] > _HIDDEN_ABOVE:
            places.append(None)
            continue
        box = Box(*tried[best].tolist())
        boxes.append(box)
        places.append((box.left + 1, box.bottom - 0.24 * size))
    return places


def _candidates(curve: Sequence[XY], width: float, size: int) -> tuple[Numbers, Numbers]:
    """Boxes beside every point of a curve, and how much each is disliked of itself."""
    boxes, costs = [], []
    for index, (x, y) in enumerate(curve):
        from_end = 0.0 if index in (0, len(curve) - 1) else _AWAY_FROM_END
        for box, dislike in _around(x, y, width, size):
            boxes.append(box)
            costs.append(from_end + dislike)
    return np.array(boxes), np.array(costs)


def _around(x: float, y: float, width: float, size: int) -> list[tuple[Box, float]]:
    """Places beside a point, and how much they are disliked."""
    half, gap = size * 0.62, 7.0
    corners = [
        (x + gap, y - half, 0.0),
        (x - gap - width, y - half, 0.0),
        (x - width / 2, y - gap - 2 * half, 0.5),
        (x - width / 2, y + gap, 0.5),
        (x + gap * 0.6, y - gap * 0.5 - 2 * half, 0.5),
        (x + gap * 0.6, y + gap * 0.5, 0.5),
        (x - gap * 0.6 - width, y - gap * 0.5 - 2 * half, 0.5),
        (x - gap * 0.6 - width, y + gap * 0.5, 0.5),
        (x - width, y - 2 * gap - 2 * half, 2.0),
        (x, y - 2 * gap - 2 * half, 2.0),
        (x - width, y + 2 * gap, 2.0),
        (x, y + 2 * gap, 2.0),
    ]
    return [(Box(left, top, left + width, top + 2 * half), dislike) for left, top, dislike in corners]


def _along(curve: Sequence[XY]) -> Numbers:
    """Dots on a curve, its points counting more than its lines."""
    dots = [np.repeat(np.array(curve, np.float64), 3, axis=0)]
    for start, end in itertools.pairwise(curve):
        length = max(2, int(np.hypot(end[0] - start[0], end[1] - start[1]) / _STEP_PX))
        dots.append(np.linspace(start, end, length))
    return np.concatenate(dots)


def _covered(boxes: Numbers, dots: Numbers, weights: Numbers) -> Numbers:
    """Weight of the dots under each box."""
    x, y = dots[:, 0], dots[:, 1]
    left, top, right, bottom = (boxes[:, [side]] for side in range(4))
    under = (x > left - 2) & (x < right + 2) & (y > top) & (y < bottom)
    return np.asarray(under @ weights)


def _overlaps(boxes: Numbers, other: Box) -> Numbers:
    """Share of each box that another covers, and something more; 0 where it covers none."""
    width = np.minimum(boxes[:, 2], other.right) - np.maximum(boxes[:, 0], other.left)
    height = np.minimum(boxes[:, 3], other.bottom) - np.maximum(boxes[:, 1], other.top)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return np.where((width > 0) & (height > 0), 0.3 + width * height / area, 0.0)
