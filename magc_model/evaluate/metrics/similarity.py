"""SSIM and MS-SSIM (Wang, Bovik, Sheikh and Simoncelli 2004; Wang, Simoncelli and Bovik 2003), in two conventions.

Luma as pyiqa, and so the paper, has it: rounded to 8 bit, with the contrast term cut off at 0 in every window. RGB as
pytorch-msssim, and so CompressAI, has it: every channel by itself, cut off at 0 where a whole scale is below it, the
mean of the three. Windows lie inside the picture; scales are halved by means of 2x2 pixels.
"""

from typing import Any, NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float64

from magc_data.compiled import compiled
from magc_model.evaluate.metrics.colour import Plane
from magc_model.evaluate.metrics.windows import gaussian_taps, window_moments

_TAPS = gaussian_taps(11, 1.5)
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_LUMINANCE_FLOOR = (0.01 * 255) ** 2  # C1
_CONTRAST_FLOOR = (0.03 * 255) ** 2  # C2

SSIM_SMALLEST_PX = len(_TAPS)
MS_SSIM_SMALLEST_PX = (len(_TAPS) - 1) * 2 ** (len(_SCALE_WEIGHTS) - 1) + 1
"""Below this the coarsest scale has no room for the window."""


class Similarity(NamedTuple):
    """How alike two planes are."""

    ssim: float
    ms_ssim: float
    """Not a number where the planes are too small."""


class _Scale(NamedTuple):
    ssim: float
    contrast: float


def plane_similarity(a: Plane, b: Plane, *, cut_off_in_windows: bool) -> Similarity:
    """SSIM and MS-SSIM of two planes in 0..255.

    Args:
        a: one plane, of SSIM_SMALLEST_PX or more on either side.
        b: the other.
        cut_off_in_windows: set negative contrast terms to 0 in every window, and not only in the means of scales.
    """
    first = _scale_similarity(a, b, cut_off_in_windows)
    if min(a.shape) < MS_SSIM_SMALLEST_PX:
        return Similarity(first.ssim, float("nan"))
    scale, product = first, 1.0
    for weight in _SCALE_WEIGHTS[:-1]:
        product *= max(scale.contrast, 0.0) ** weight
        a, b = _halved(a), _halved(b)
        scale = _scale_similarity(a, b, cut_off_in_windows)
    return Similarity(first.ssim, product * max(scale.ssim, 0.0) ** _SCALE_WEIGHTS[-1])


def _scale_similarity(a: Plane, b: Plane, cut_off: bool) -> _Scale:
    return _Scale(*_means(window_moments(a, b, _TAPS), _LUMINANCE_FLOOR, _CONTRAST_FLOOR, cut_off))


def _halved(plane: Plane) -> Float64[np.ndarray[Any, Any], "half_height half_width"]:
    """Means of 2x2 pixels; before an odd side there is a row of zeros, as in both references."""
    height, width = plane.shape
    if height % 2 or width % 2:
        plane = np.pad(plane, ((height % 2, 0), (width % 2, 0)))
    return np.asarray((plane[::2, ::2] + plane[1::2, ::2] + plane[::2, 1::2] + plane[1::2, 1::2]) / 4)


# Typed by numba, as in windows.


@no_type_check
@compiled
def _means(moments, luminance_floor, contrast_floor, cut_off):  # noqa: ANN001, ANN202
    mean_a, mean_b, variance_a, variance_b, covariance = moments
    rows, columns = mean_a.shape
    similarity, contrasts = 0.0, 0.0
    for row in range(rows):
        for n in range(columns):
            both = variance_a[row, n] + variance_b[row, n]
            contrast = (2 * covariance[row, n] + contrast_floor) / (both + contrast_floor)
            if cut_off and contrast < 0:
                contrast = 0.0
            product, squares = mean_a[row, n] * mean_b[row, n], mean_a[row, n] ** 2 + mean_b[row, n] ** 2
            similarity += contrast * (2 * product + luminance_floor) / (squares + luminance_floor)
            contrasts += contrast
    return similarity / (rows * columns), contrasts / (rows * columns)
