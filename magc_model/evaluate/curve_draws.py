"""Bjontegaard's differences of thousands of draws at once: what `curves` takes from the package, in arrays.

The package fits one pair of curves a call, a fifth of a millisecond; a report has some hundred pairs of two thousand
draws each. The test of this file is the package: the two agree to the ninth digit.
"""

from typing import Any

import numpy as np
from jaxtyping import Float64

from magc_model.evaluate.bootstrap import Draws
from magc_model.evaluate.curves import Method

Points = Float64[np.ndarray[Any, Any], "draws points"]
TestPoints = Float64[np.ndarray[Any, Any], "draws test_points"]


def bd_metric_draws(
    anchor_bpp: Points, anchor_metric: Points, test_bpp: TestPoints, test_metric: TestPoints, method: Method
) -> Draws:
    """BD-metric of every draw; NaN where a draw allows none."""
    return _delta(np.log10(anchor_bpp), anchor_metric, np.log10(test_bpp), test_metric, method)


def bd_rate_draws(
    anchor_bpp: Points,
    anchor_metric: Points,
    test_bpp: TestPoints,
    test_metric: TestPoints,
    method: Method,
    better_is: int,
) -> Draws:
    """BD-rate of every draw, in per cent; NaN where the metric does not rise with the rate in that draw."""
    one, two = better_is * anchor_metric, better_is * test_metric
    rising = _rises(anchor_bpp, one) & _rises(test_bpp, two)
    with np.errstate(over="ignore"):
        percent = (10 ** _delta(one, np.log10(anchor_bpp), two, np.log10(test_bpp), method) - 1) * 100
    return np.where(rising, percent, np.nan)


def _rises(bpp: Any, metric: Any) -> Any:
    return (np.diff(_by_x(bpp, metric)[1], axis=1) > 0).all(axis=1)


def _delta(anchor_x: Points, anchor_y: Points, test_x: TestPoints, test_y: TestPoints, method: Method) -> Draws:
    low = np.maximum(anchor_x.min(axis=1), test_x.min(axis=1))
    high = np.minimum(anchor_x.max(axis=1), test_x.max(axis=1))
    with np.errstate(all="ignore"):
        areas = [_integral(*_by_x(x, y), low, high, method) for x, y in ((anchor_x, anchor_y), (test_x, test_y))]
        delta = (areas[1] - areas[0]) / (high - low)
    return np.where((high > low) & np.isfinite(delta), delta, np.nan)


def _by_x(x: Any, y: Any) -> tuple[Any, Any]:
    order = np.argsort(x, axis=1)
    return np.take_along_axis(x, order, 1), np.take_along_axis(y, order, 1)


def _integral(x: Any, y: Any, low: Draws, high: Draws, method: Method) -> Draws:
    if method is Method.CUBIC:
        return _cubic_integral(x, y, low, high)
    if x.shape[1] == 2:
        slopes = np.repeat(np.diff(y) / np.diff(x), 2, axis=1)
    else:
        slopes = (_akima_slopes if method is Method.AKIMA else _pchip_slopes)(np.diff(x), np.diff(y) / np.diff(x))
    return _hermite_integral(x, y, slopes, low, high)


def _cubic_integral(x: Any, y: Any, low: Draws, high: Draws) -> Draws:
    """Of the least-squares cubic; x is brought to [-1, 1] so that the normal equations are well conditioned."""
    centre, half = (x[:, :1] + x[:, -1:]) / 2, (x[:, -1:] - x[:, :1]) / 2
    powers = ((x - centre) / half)[:, :, None] ** np.arange(4)
    usable = np.isfinite(powers).all(axis=(1, 2)) & (np.diff(x) > 0).all(axis=1) & np.isfinite(y).all(axis=1)
    coefficients = np.full((len(x), 4), np.nan)
    orthogonal, triangular = np.linalg.qr(powers[usable])
    projected = orthogonal.transpose(0, 2, 1) @ y[usable][:, :, None]
    coefficients[usable] = np.linalg.solve(triangular, projected)[:, :, 0]
    ends = [((each[:, None] - centre) / half) ** np.arange(1, 5) / np.arange(1, 5) for each in (low, high)]
    return np.asarray(((ends[1] - ends[0]) * coefficients).sum(axis=1) * half[:, 0])


def _hermite_integral(x: Any, y: Any, slopes: Any, low: Draws, high: Draws) -> Draws:
    """Of the piecewise cubic with these slopes; Simpson's rule is exact for cubics."""
    left, right = x[:, :-1], x[:, 1:]
    start, end = (np.clip(each[:, None], left, right) for each in (low, high))
    step = right - left

    def value(place: Any) -> Any:
        t = (place - left) / step
        return (
            (1 + 2 * t) * (1 - t) ** 2 * y[:, :-1]
            + t * (1 - t) ** 2 * step * slopes[:, :-1]
            + t**2 * (3 - 2 * t) * y[:, 1:]
            + t**2 * (t - 1) * step * slopes[:, 1:]
        )

    return np.asarray(((end - start) / 6 * (value(start) + 4 * value((start + end) / 2) + value(end))).sum(axis=1))


def _pchip_slopes(steps: Any, secants: Any) -> Any:
    """Weighted harmonic means inside, three-point formula at the ends: Fritsch and Butland (1984), as in SciPy."""
    before, after = secants[:, :-1], secants[:, 1:]
    weights = 2 * steps[:, 1:] + steps[:, :-1], steps[:, 1:] + 2 * steps[:, :-1]
    inner = (weights[0] + weights[1]) / (weights[0] / before + weights[1] / after)
    inner = np.where(before * after > 0, inner, 0.0)
    first = _pchip_end(steps[:, 0], steps[:, 1], secants[:, 0], secants[:, 1])
    last = _pchip_end(steps[:, -1], steps[:, -2], secants[:, -1], secants[:, -2])
    return np.column_stack([first, inner, last])


def _pchip_end(step: Any, next_step: Any, secant: Any, next_secant: Any) -> Any:
    slope = ((2 * step + next_step) * secant - step * next_secant) / (step + next_step)
    slope = np.where(np.sign(slope) != np.sign(secant), 0.0, slope)
    too_steep = (np.sign(secant) != np.sign(next_secant)) & (np.abs(slope) > 3 * np.abs(secant))
    return np.where(too_steep, 3 * secant, slope)


def _akima_slopes(steps: Any, secants: Any) -> Any:  # noqa: ARG001 - one shape for both kinds of slopes
    """Akima, "A new method of interpolation" (1970); two secants are extrapolated at either end."""
    m = np.empty((secants.shape[0], secants.shape[1] + 4))
    m[:, 2:-2] = secants
    m[:, 1] = 2 * m[:, 2] - m[:, 3]
    m[:, 0] = 2 * m[:, 1] - m[:, 2]
    m[:, -2] = 2 * m[:, -3] - m[:, -4]
    m[:, -1] = 2 * m[:, -2] - m[:, -3]
    changes = np.abs(np.diff(m))
    after, before = changes[:, 2:], changes[:, :-2]
    weight = after + before
    # SciPy's bound: where the secants on both sides hardly change, their mean is taken.
    flat = weight <= 1e-9 * weight.max(axis=1, keepdims=True)
    mixed = (after * m[:, 1:-2] + before * m[:, 2:-1]) / np.where(flat, 1.0, weight)
    return np.where(flat, (m[:, 3:] + m[:, :-3]) / 2, mixed)
