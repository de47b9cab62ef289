"""GMSD, HaarPSI and VIF of two pictures: what the gradients, the Haar coefficients and the local statistics share."""

from typing import Any, no_type_check

import numpy as np
from jaxtyping import Float64

from magc_data.compiled import compiled
from magc_model.evaluate.metrics.colour import Plane
from magc_model.evaluate.metrics.windows import gaussian_taps, smoothed, window_moments

HAARPSI_SMALLEST_PX = 16
VIF_SMALLEST_PX = 41

_GMSD_FLOOR = 170.0  # of gradients of luma in 0..255
_HAAR_FLOOR, _HAAR_STEEPNESS, _HAAR_SCALES = 30.0, 4.2, 3  # C, alpha
_VIF_NOISE = 2.0  # variance of the visual noise
_VIF_TINY = 1e-8


def gradient_similarity_deviation(a: Plane, b: Plane) -> float:
    """GMSD (Xue et al. 2013) of two luma planes in 0..255: 0 where gradients are equal.

    Luma is halved by means of 2x2 pixels, gradients are Prewitt's, with zeros around the picture, as in `piq.gmsd`.
    """
    gradient_a, gradient_b = (_prewitt(_halved(plane)) for plane in (a, b))
    return float(_alike(gradient_a, gradient_b, _GMSD_FLOOR).std())


def haar_similarity(a: tuple[Plane, Plane, Plane], b: tuple[Plane, Plane, Plane]) -> float:
    """HaarPSI (Reisenhofer, Bosse, Kutyniok and Wiegand 2018) of the YIQ planes of two pictures: 1 where equal.

    With colour and with halving, as in `piq.haarpsi`.
    """
    halved_a, halved_b = [_halved(plane) for plane in a], [_halved(plane) for plane in b]
    alike, weights = [], []
    for axis in (0, 1):
        haar_a = [np.abs(_haar(halved_a[0], 2 ** (scale + 1), axis)) for scale in range(_HAAR_SCALES)]
        haar_b = [np.abs(_haar(halved_b[0], 2 ** (scale + 1), axis)) for scale in range(_HAAR_SCALES)]
        fine = [_alike(haar_a[scale], haar_b[scale], _HAAR_FLOOR) for scale in range(_HAAR_SCALES - 1)]
        alike.append(sum(fine) / len(fine))
        weights.append(np.maximum(haar_a[-1], haar_b[-1]))
    pairs = zip(halved_a[1:], halved_b[1:], strict=True)
    colour = [_alike(_mean_of_four(in_a), _mean_of_four(in_b), _HAAR_FLOOR) for in_a, in_b in pairs]
    alike.append(sum(colour) / len(colour))
    weights.append((weights[0] + weights[1]) / 2)
    squashed = sum(
        float((weight / (1 + np.exp(-_HAAR_STEEPNESS * part))).sum())
        for part, weight in zip(alike, weights, strict=True)
    )
    tiny = float(np.finfo(np.float64).eps)
    score = (squashed + tiny) / (sum(float(weight.sum()) for weight in weights) + tiny)
    # A picture without any edges weighs nothing: nothing differs.
    return float((np.log(score / (1 - score)) / _HAAR_STEEPNESS) ** 2) if score < 1 else 1.0


def information_fidelity(decoded: Plane, original: Plane) -> float:
    """VIF in the pixel domain (Sheikh and Bovik 2006, the authors' VIFp) of two luma planes in 0..255.

    1 where equal, less where information is lost, more where contrast is raised; as `piq.vif_p`.
    """
    kept, there = 0.0, 0.0
    for scale in range(4):
        count = 2 ** (4 - scale) + 1
        taps = gaussian_taps(count, count / 5)
        if scale:
            decoded, original = smoothed(decoded, taps)[::2, ::2], smoothed(original, taps)[::2, ::2]
        moments = window_moments(np.ascontiguousarray(decoded), np.ascontiguousarray(original), taps)
        kept_here, there_here = _information(
            moments.variance_a, moments.variance_b, moments.covariance, _VIF_NOISE, _VIF_TINY
        )
        kept, there = kept + kept_here, there + there_here
    return (kept + _VIF_TINY) / (there + _VIF_TINY)


def _alike(a: Plane, b: Plane, floor: float) -> Plane:
    return np.asarray((2 * a * b + floor) / (a * a + b * b + floor))


def _halved(plane: Plane) -> Float64[np.ndarray[Any, Any], "half_height half_width"]:
    """Means of 2x2 pixels; a picture with an odd side has zeros behind it."""
    odd = max(plane.shape[0] % 2, plane.shape[1] % 2)
    plane = np.pad(plane, ((0, odd), (0, odd)))
    height, width = plane.shape[0] // 2 * 2, plane.shape[1] // 2 * 2
    plane = plane[:height, :width]
    return np.asarray((plane[::2, ::2] + plane[1::2, ::2] + plane[::2, 1::2] + plane[1::2, 1::2]) / 4)


def _prewitt(plane: Plane) -> Plane:
    """Length of the gradient in one difference of means of three, with zeros around the plane."""
    around = np.pad(plane, 1)
    over = (around[:, :-2] + around[:, 1:-1] + around[:, 2:]) / 3
    along = (around[:-2] + around[1:-1] + around[2:]) / 3
    return np.asarray(np.sqrt((over[:-2] - over[2:]) ** 2 + (along[:, :-2] - along[:, 2:]) ** 2))


def _haar(plane: Plane, size: int, axis: int) -> Plane:
    """Half a window's sum less the other half's, over its side, for the window about every pixel; zeros around."""
    before, after = size // 2 - 1, size // 2
    around = np.pad(plane, ((before + 1, after), (before + 1, after)))
    sums = around.cumsum(axis=0).cumsum(axis=1)  # of all pixels above and left, this one included
    if axis:
        sums = sums.T
    wide = sums[:, size:] - sums[:, :-size]
    half = size // 2
    middle = wide[half:-half]
    filtered = ((middle - wide[:-size]) - (wide[size:] - middle)) / size
    return np.asarray(filtered.T if axis else filtered)


def _mean_of_four(plane: Plane) -> Plane:
    """Of each pixel with its right and lower neighbours, as a length; zeros behind the plane."""
    behind = np.pad(plane, ((0, 1), (0, 1)))
    return np.asarray(np.abs(behind[:-1, :-1] + behind[1:, :-1] + behind[:-1, 1:] + behind[1:, 1:]) / 4)


# Typed by numba, as in windows.


@no_type_check
@compiled
def _information(decoded, original, covariance, visual_noise, tiny):  # noqa: ANN001, ANN202
    """Sums over windows of what the decoded picture tells of the original, and of what there is to tell."""
    kept, there = 0.0, 0.0
    for row in range(original.shape[0]):
        for n in range(original.shape[1]):
            seen, source = max(decoded[row, n], 0.0), max(original[row, n], 0.0)
            there += np.log10(1 + source / visual_noise) if source >= tiny else 0.0
            if source < tiny or seen < tiny or covariance[row, n] <= 0:
                continue  # nothing there, or nothing of it seen
            gain = covariance[row, n] / (source + tiny)
            noise = max(seen - gain * covariance[row, n], tiny)
            kept += np.log10(1 + gain * gain * source / (noise + visual_noise))
    return kept, there
