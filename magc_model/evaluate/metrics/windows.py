"""Local means, variances and covariances of two planes under a Gaussian window: what SSIM and VIF are made of."""

from typing import Any, NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float64

from magc_data.compiled import compiled
from magc_model.evaluate.metrics.colour import Plane

Taps = Float64[np.ndarray[Any, Any], " taps"]
"""One side of a separable window: an odd number, the same from both ends, of sum 1."""
Windows = Float64[np.ndarray[Any, Any], "window_rows window_columns"]
"""One figure for each window that lies inside the plane."""


class WindowMoments(NamedTuple):
    """What two planes are like under each window."""

    mean_a: Windows
    mean_b: Windows
    variance_a: Windows
    variance_b: Windows
    covariance: Windows


def gaussian_taps(count: int, sigma: float) -> Taps:
    """A normalised Gaussian."""
    place = np.arange(count) - (count - 1) / 2
    taps = np.exp(-(place**2) / (2 * sigma**2))
    return np.asarray(taps / taps.sum())


def window_moments(a: Plane, b: Plane, taps: Taps) -> WindowMoments:
    """Moments of two planes under every window that lies inside them."""
    rows, columns = a.shape[0] - len(taps) + 1, a.shape[1] - len(taps) + 1
    moments = np.empty((5, rows, columns))
    _local_moments(a, b, taps, moments)
    return WindowMoments(*moments)


def smoothed(plane: Plane, taps: Taps) -> Windows:
    """The weighted mean under every window that lies inside the plane."""
    out = np.empty((plane.shape[0] - len(taps) + 1, plane.shape[1] - len(taps) + 1))
    _smooth(plane, taps, out)
    return out


# Loops over a row inside of loops over taps: sums of each place in one order, and several places at a time. Typed by
# numba; a checker of arguments around them, as the tests put it, is nothing that numba can compile.


@no_type_check
@compiled
def _local_moments(a, b, taps, moments):  # noqa: ANN001, ANN202
    height, width = a.shape
    _, rows, columns = moments.shape
    across = np.empty((height, columns))
    product = np.empty(width)
    for field in range(5):
        for row in range(height):
            in_a, in_b = a[row], b[row]
            if field == 0:
                for n in range(width):
                    product[n] = in_a[n]
            elif field == 1:
                for n in range(width):
                    product[n] = in_b[n]
            elif field == 2:
                for n in range(width):
                    product[n] = in_a[n] * in_a[n]
            elif field == 3:
                for n in range(width):
                    product[n] = in_b[n] * in_b[n]
            else:
                for n in range(width):
                    product[n] = in_a[n] * in_b[n]
            _across(product, taps, across[row])
        _down(across, taps, moments[field])
    for row in range(rows):
        for n in range(columns):
            moments[2, row, n] -= moments[0, row, n] * moments[0, row, n]
            moments[3, row, n] -= moments[1, row, n] * moments[1, row, n]
            moments[4, row, n] -= moments[0, row, n] * moments[1, row, n]


@no_type_check
@compiled
def _smooth(plane, taps, out):  # noqa: ANN001, ANN202
    across = np.empty((plane.shape[0], out.shape[1]))
    for row in range(plane.shape[0]):
        _across(plane[row], taps, across[row])
    _down(across, taps, out)


@no_type_check
@compiled
def _across(line, taps, out):  # noqa: ANN001, ANN202
    count, last, half = len(out), len(taps) - 1, len(taps) // 2
    middle = line[half : half + count]
    for n in range(count):
        out[n] = taps[half] * middle[n]
    for tap in range(half):
        weight, left, right = taps[tap], line[tap : tap + count], line[last - tap : last - tap + count]
        for n in range(count):
            out[n] += weight * (left[n] + right[n])


@no_type_check
@compiled
def _down(lines, taps, out):  # noqa: ANN001, ANN202
    rows, count = out.shape
    last, half = len(taps) - 1, len(taps) // 2
    for row in range(rows):
        target, middle = out[row], lines[row + half]
        for n in range(count):
            target[n] = taps[half] * middle[n]
        for tap in range(half):
            weight, above, below = taps[tap], lines[row + tap], lines[row + last - tap]
            for n in range(count):
                target[n] += weight * (above[n] + below[n])
