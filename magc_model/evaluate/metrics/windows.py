"""Local means, variances and covariances of two planes under a Gaussian window: what SSIM and VIF are made of."""

from typing import Any, NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float64

from magc_data.compiled import compiled
from magc_model.evaluate.metrics.colour import Plane

Taps = Float64[np.ndarray[Any, Any], " taps"]
"""One side of a separable window; they add up to 1."""
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
    sums = np.empty((5, rows, columns))
    _weighted_sums(a, b, taps, sums)
    return WindowMoments(*sums)


def smoothed(plane: Plane, taps: Taps) -> Windows:
    """The weighted mean under every window that lies inside the plane."""
    out = np.empty((plane.shape[0] - len(taps) + 1, plane.shape[1] - len(taps) + 1))
    _smooth(plane, taps, out)
    return out


# Loops over a row inside of loops over taps: sums of each place in one order, and several places at a time. Typed by
# numba; a checker of arguments around them, as the tests put it, is nothing that numba can compile.


@no_type_check
@compiled
def _weighted_sums(a, b, taps, sums):  # noqa: ANN001, ANN202
    height, width = a.shape
    _, rows, columns = sums.shape
    across = np.empty((5, height, columns))
    products = np.empty((5, width))
    for row in range(height):
        for n in range(width):
            products[0, n] = a[row, n]
            products[1, n] = b[row, n]
            products[2, n] = a[row, n] * a[row, n]
            products[3, n] = b[row, n] * b[row, n]
            products[4, n] = a[row, n] * b[row, n]
        for field in range(5):
            for n in range(columns):
                across[field, row, n] = 0.0
            for tap in range(len(taps)):
                for n in range(columns):
                    across[field, row, n] += taps[tap] * products[field, n + tap]
    for field in range(5):
        for row in range(rows):
            for n in range(columns):
                sums[field, row, n] = 0.0
            for tap in range(len(taps)):
                for n in range(columns):
                    sums[field, row, n] += taps[tap] * across[field, row + tap, n]
    for row in range(rows):
        for n in range(columns):
            sums[2, row, n] -= sums[0, row, n] * sums[0, row, n]
            sums[3, row, n] -= sums[1, row, n] * sums[1, row, n]
            sums[4, row, n] -= sums[0, row, n] * sums[1, row, n]


@no_type_check
@compiled
def _smooth(plane, taps, out):  # noqa: ANN001, ANN202
    rows, columns = out.shape
    across = np.zeros((plane.shape[0], columns))
    for row in range(plane.shape[0]):
        for tap in range(len(taps)):
            for n in range(columns):
                across[row, n] += taps[tap] * plane[row, n + tap]
    for row in range(rows):
        for n in range(columns):
            out[row, n] = 0.0
        for tap in range(len(taps)):
            for n in range(columns):
                out[row, n] += taps[tap] * across[row + tap, n]
