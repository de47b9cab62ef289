"""Where an image has edges, where a map has outlines, and where a map is empty: kernels over one tile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from magc_data.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray


@compiled
def luma(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Brightness (ITU-R 601) of an RGB image, uint8 [h, w, 3] -> uint8 [h, w]; as Pillow's mode L."""
    height, width, _ = image.shape
    brightness = np.empty((height, width), dtype=np.uint8)
    for row in range(height):
        for column in range(width):
            red, green, blue = image[row, column, 0], image[row, column, 1], image[row, column, 2]
            brightness[row, column] = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    return brightness


@compiled
def edge_strength(brightness: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Sobel gradient's length, rounded down, uint8 [h, w] -> int32 [h, w]; a step of one grey level is 4.

    The picture's border is repeated outwards.
    """
    height, width = brightness.shape
    strength = np.empty((height, width), dtype=np.int32)
    for row in range(height):
        above, below = max(row - 1, 0), min(row + 1, height - 1)
        for column in range(width):
            left, right = max(column - 1, 0), min(column + 1, width - 1)
            corners = np.int64(brightness[below, right]) - brightness[above, left]
            anticorners = np.int64(brightness[above, right]) - brightness[below, left]
            across = corners + anticorners + 2 * (np.int64(brightness[row, right]) - brightness[row, left])
            down = corners - anticorners + 2 * (np.int64(brightness[below, column]) - brightness[above, column])
            strength[row, column] = np.int32(np.sqrt(np.float64(across * across + down * down)))
    return strength


@compiled
def outlines(class_ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """1 on both sides of every line between two classes, uint8 [h, w] -> uint8 [h, w]."""
    height, width = class_ids.shape
    lines = np.zeros((height, width), dtype=np.uint8)
    for row in range(height):
        for column in range(width):
            here = class_ids[row, column]
            if row and class_ids[row - 1, column] != here:
                lines[row, column] = lines[row - 1, column] = 1
            if column and class_ids[row, column - 1] != here:
                lines[row, column] = lines[row, column - 1] = 1
    return lines


@compiled
def empty_ground(class_ids: NDArray[np.uint8], clearance_px: int) -> NDArray[np.uint8]:
    """1 where everything within `clearance_px` rows and columns is class 0 (no map), uint8 [h, w] -> uint8 [h, w]."""
    height, width = class_ids.shape
    empty_across = np.zeros((height, width), dtype=np.uint8)
    empty = np.zeros((height, width), dtype=np.uint8)
    for row in range(height):
        run = 0
        for column in range(width + clearance_px):
            if column < width:
                run = 0 if class_ids[row, column] else run + 1
            else:
                run += 1  # outside the tile nothing is known to be mapped
            centre = column - clearance_px
            if centre >= 0 and run >= min(2 * clearance_px + 1, column + 1):
                empty_across[row, centre] = 1
    for column in range(width):
        run = 0
        for row in range(height + clearance_px):
            if row < height:
                run = run + 1 if empty_across[row, column] else 0
            else:
                run += 1
            centre = row - clearance_px
            if centre >= 0 and run >= min(2 * clearance_px + 1, row + 1):
                empty[centre, column] = 1
    return empty
