"""Patches of cuts, for distances between sets: a grid, and the same grid shifted by half a patch."""

from typing import Any

import numpy as np
from jaxtyping import UInt8

PATCH_PX = 128
"""Side of a patch: the paper's."""
SHIFT_PX = PATCH_PX // 2

Pictures = UInt8[np.ndarray[Any, Any], "cuts height width 3"]
"""RGB cuts of one size."""
Patches = UInt8[np.ndarray[Any, Any], "patches patch_height patch_width 3"]


def patch_corners(height_px: int, width_px: int) -> tuple[tuple[int, int], ...]:
    """Top left corners (row, column) of the whole patches in a cut, the grid before the shifted one.

    A cut of 256 px has four and one; one smaller than a patch has none.
    """
    return tuple(
        (top, left)
        for first in (0, SHIFT_PX)
        for top in range(first, height_px - PATCH_PX + 1, PATCH_PX)
        for left in range(first, width_px - PATCH_PX + 1, PATCH_PX)
    )


def patches_of(pictures: Pictures) -> Patches:
    """All patches of the first cut, then all of the second, and so on: as many of each."""
    count, height_px, width_px, _ = pictures.shape
    corners = patch_corners(height_px, width_px)
    patches = np.empty((count, len(corners), PATCH_PX, PATCH_PX, 3), dtype=np.uint8)
    for place, (top, left) in enumerate(corners):
        patches[:, place] = pictures[:, top : top + PATCH_PX, left : left + PATCH_PX]
    return patches.reshape(-1, PATCH_PX, PATCH_PX, 3)
