"""How well a map lies on its image: edges of the image along the map's outlines, at every offset of up to 8 pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from magc_data.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

REACH_PX = 8
"""Offsets from -8 to 8 pixels in each direction are tried."""

MIN_OUTLINE_PX = 300
"""With fewer pixels on outlines (about four houses) chance decides which offset is best, so none is given."""


class Alignment(NamedTuple):
    """How image and map lie to each other."""

    score: float
    """Correlation of outlines and edge strength as they lie, -1 to 1."""
    peak: float
    """The same at the best offset."""
    dx_px: int
    """The map fits best this far to the right of where it is ..."""
    dy_px: int
    """... and this far below."""


def alignment(strength: NDArray[np.int16], lines: NDArray[np.uint8]) -> Alignment | None:
    """Find the offset at which the map's outlines lie on the image's edges.

    Args:
        strength: of the image's edges, [h, w].
        lines: 1 on the map's outlines, [h, w].

    Returns:
        None where there is too little to go by: hardly an outline, or an image without any edge.
    """
    correlation = correlations(strength, lines)
    if correlation is None:
        return None
    # Of equals the one nearest to where the map is, so that an image of stripes is not said to be off.
    rows, columns = np.indices(correlation.shape) - REACH_PX
    nearest_first = np.argsort((rows**2 + columns**2).ravel(), kind="stable")
    best = nearest_first[np.argmax(correlation.ravel()[nearest_first])]
    dy_px, dx_px = (int(each) - REACH_PX for each in np.unravel_index(best, correlation.shape))
    return Alignment(float(correlation[REACH_PX, REACH_PX]), float(correlation.ravel()[best]), dx_px, dy_px)


def correlations(strength: NDArray[np.int16], lines: NDArray[np.uint8]) -> NDArray[np.float64] | None:
    """Pearson's correlation of outlines and edge strength with the map moved by (dy, dx), [17, 17], dy first.

    The outer 8 pixels of the map are left out, so that all offsets compare the same outlines.
    """
    places = _places(lines, REACH_PX)
    outline_px = len(places)
    if outline_px < MIN_OUTLINE_PX:
        return None
    # Three more at the end, which the kernel reads and nobody sees.
    along_lines = _sums_along(np.append(strength, np.zeros(3, np.int16)), places, strength.shape[1], 2 * REACH_PX + 1)
    total, squares = _window_sums(strength, REACH_PX)
    area_px = (strength.shape[0] - 2 * REACH_PX) * (strength.shape[1] - 2 * REACH_PX)
    variance_lines = outline_px * (area_px - outline_px)
    variance_strength = area_px * squares - total**2
    if not variance_lines or not variance_strength.all():
        return None
    covariance = area_px * along_lines - outline_px * total
    quotients: NDArray[np.float64] = covariance / np.sqrt(float(variance_lines) * variance_strength.astype(np.float64))
    return quotients


@compiled
def _places(lines: NDArray[np.uint8], reach_px: int) -> NDArray[np.uint32]:
    """Flat places of the outlines inside the margin, seen from the window's corner at the first offset."""
    height, width = lines.shape
    places = np.empty(height * width, dtype=np.uint32)
    count = 0
    for row in range(height - 2 * reach_px):
        for column in range(width - 2 * reach_px):
            places[count] = row * width + column
            count += lines[row + reach_px, column + reach_px]
    return places[:count]


@compiled
def _sums_along(strength: NDArray[np.int16], places: NDArray[np.uint32], width: int, offsets: int) -> NDArray[np.int64]:
    """Sums of the values at the places, moved by every offset: the cross-correlation with a mask of those places.

    Outlines are few pixels, so that this is quicker than Fourier transforms of the whole tile, and exact as it is.
    """
    sums = np.zeros((offsets, offsets + 3), dtype=np.int64)
    for dy in range(offsets):
        for dx in range(0, offsets, 4):
            # Unsigned, as numba would look for negative places at every step; four at a time, as they lie side by side.
            shift = np.uint32(dy * width + dx)
            first = second = third = fourth = np.int64(0)
            for number in range(places.size):
                place = places[number] + shift
                first += strength[place]
                second += strength[place + np.uint32(1)]
                third += strength[place + np.uint32(2)]
                fourth += strength[place + np.uint32(3)]
            sums[dy, dx], sums[dy, dx + 1], sums[dy, dx + 2], sums[dy, dx + 3] = first, second, third, fourth
    return sums[:, :offsets]


@compiled
def _window_sums(strength: NDArray[np.int16], reach_px: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sums of values and of squares in the picture less a margin, with that window moved by up to the margin."""
    height, width = strength.shape
    offsets = 2 * reach_px + 1
    inner_height, inner_width = height - 2 * reach_px, width - 2 * reach_px
    total = np.zeros((offsets, offsets), dtype=np.int64)
    squares = np.zeros((offsets, offsets), dtype=np.int64)
    for row in range(height):
        value_sum = np.int64(0)
        square_sum = np.int64(0)
        for column in range(width):
            value = np.int64(strength[row, column])
            value_sum += value
            square_sum += value * value
            start = column - inner_width + 1
            if start < 0:
                continue
            if start > 0:
                gone = np.int64(strength[row, start - 1])
                value_sum -= gone
                square_sum -= gone * gone
            for dy in range(max(0, row - inner_height + 1), min(offsets - 1, row) + 1):
                total[dy, start] += value_sum
                squares[dy, start] += square_sum
    return total, squares
