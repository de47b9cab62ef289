"""What an image shows little of: blocks of one colour, clouds, and sharp detail."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from magc_data.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK_PX = 16
"""Blank and cloud are found block by block: a small white roof is no cloud."""

BLANK_RANGE = 6
"""A block is blank if its brightest and darkest pixel differ by at most so much."""

CLOUD_MIN, CLOUD_TINT, CLOUD_PERCENT = 190, 30, 90
"""A block is cloud if in so many of its pixels all channels are so bright and differ by at most so much."""


class BlockShares(NamedTuple):
    """Shares of a tile's blocks, 0 to 1."""

    blank: float
    cloud: float


def block_shares(image: NDArray[np.uint8], brightness: NDArray[np.uint8]) -> BlockShares:
    """Shares of the blocks of 16x16 pixels that are of one colour, and that are white like a cloud.

    Args:
        image: RGB, [h, w, 3].
        brightness: of the same, [h, w].
    """
    blocks = (image.shape[0] // BLOCK_PX) * (image.shape[1] // BLOCK_PX)
    blank, cloud = _count_blocks(image, brightness)
    return BlockShares(blank / blocks, cloud / blocks)


@compiled
def _count_blocks(image: NDArray[np.uint8], brightness: NDArray[np.uint8]) -> tuple[int, int]:
    blank = cloud = 0
    for top in range(0, image.shape[0] - BLOCK_PX + 1, BLOCK_PX):
        for left in range(0, image.shape[1] - BLOCK_PX + 1, BLOCK_PX):
            darkest, brightest, white = 255, 0, 0
            for row in range(top, top + BLOCK_PX):
                for column in range(left, left + BLOCK_PX):
                    darkest = min(darkest, brightness[row, column])
                    brightest = max(brightest, brightness[row, column])
                    red, green, blue = image[row, column, 0], image[row, column, 1], image[row, column, 2]
                    lowest, highest = min(red, green, blue), max(red, green, blue)
                    white += lowest >= CLOUD_MIN and highest - lowest <= CLOUD_TINT
            blank += brightest - darkest <= BLANK_RANGE
            cloud += 100 * white >= CLOUD_PERCENT * BLOCK_PX * BLOCK_PX
    return blank, cloud


def blur(brightness: NDArray[np.uint8]) -> float | None:
    """How little of the detail goes when the picture is blurred, 0 (sharp) to 1 (blurred), across or down.

    The larger of the two, after Crete et al., "The blur effect: perception and estimation with a new no-reference
    perceptual blur metric" (2007).

    Args:
        brightness: [h, w].

    Returns:
        None where there is no detail at all, across or down.
    """
    values = brightness.astype(np.int16)
    sums = [_detail(values), _detail(values.T)]
    if not all(detail for detail, _ in sums):
        return None
    return max((detail - lost) / detail for detail, lost in sums)


def _detail(values: NDArray[np.int16]) -> tuple[int, int]:
    """Nine times the differences of neighbours in the rows, and how much of that a mean over 9 pixels takes away."""
    sharp = 9 * np.abs(values[:, 5:-4] - values[:, 4:-5])
    # Neighbouring means share 8 of their pixels.
    blurred = np.abs(values[:, 9:] - values[:, :-9])
    return int(sharp.sum(dtype=np.int64)), int(np.maximum(sharp - blurred, 0).sum(dtype=np.int64))
