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
def edge_strength(brightness: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Sobel gradient's length, rounded down, uint8 [h, w] -> int16 [h, w]; a step of one grey level is 4.

    The picture's border is repeated outwards.
    """
    height, width = brightness.shape
    padded = np.empty((height + 2, width + 2), dtype=np.int32)
    for row in range(height + 2):
        inside = brightness[min(max(row - 1, 0), height - 1)]
        padded[row, 0], padded[row, width + 1] = inside[0], inside[width - 1]
        for column in range(width):
            padded[row, column + 1] = inside[column]
    strength = np.empty((height, width), dtype=np.int16)
    for row in range(height):
        above, middle, below = padded[row], padded[row + 1], padded[row + 2]
        for left in range(width):
            diagonal, antidiagonal = below[left + 2] - above[left], above[left + 2] - below[left]
            across = diagonal + antidiagonal + 2 * (middle[left + 2] - middle[left])
            down = diagonal - antidiagonal + 2 * (below[left + 1] - above[left + 1])
            strength[row, left] = np.int16(np.sqrt(np.float64(across * across + down * down)))
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
    """1 where everything within `clearance_px` rows and columns is class 0 (no map), uint8 [h, w] -> uint8 [h, w].

    Outside the tile nothing is known to be mapped.
    """
    height, width = class_ids.shape
    clear_across = np.empty((height, width), dtype=np.uint8)
    for row in range(height):
        run = clearance_px  # of empty pixels up to here, the unknown ones outside the tile included
        for column in range(width + clearance_px):
            run = 0 if column < width and class_ids[row, column] else run + 1
            if column >= clearance_px:
                clear_across[row, column - clearance_px] = run > 2 * clearance_px
    empty = np.empty((height, width), dtype=np.uint8)
    runs = np.full(width, clearance_px, dtype=np.int32)
    for row in range(height + clearance_px):
        for column in range(width):
            runs[column] = 0 if row < height and not clear_across[row, column] else runs[column] + 1
        if row >= clearance_px:
            for column in range(width):
                empty[row - clearance_px, column] = runs[column] > 2 * clearance_px
    return empty
