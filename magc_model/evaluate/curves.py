"""Rate curves and Bjontegaard's differences, by the `bjontegaard` package; refusals are data, with their reasons.

A BD-metric is the mean vertical distance of two curves over the logarithms of the rates that both were measured at; a
BD-rate is the mean horizontal one, in per cent of the anchor's rate. Both are signed test minus anchor. Bjontegaard,
"Calculation of average PSNR differences between RD-curves" (VCEG-M33, 2001) fits cubics, as the paper does; PCHIP and
Akima interpolate (Herglotz et al., "Beyond Bjontegaard", 2022) and need not be trusted where a cubic swings.
"""

import warnings
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

LEAST_OVERLAP = 0.5
"""Share of either curve's range that both must have in common."""


class Method(StrEnum):
    """How a curve is drawn through its points; the values are the package's."""

    CUBIC = "cubic"
    PCHIP = "pchip"
    AKIMA = "akima"


LEAST_POINTS = {Method.CUBIC: 4, Method.PCHIP: 2, Method.AKIMA: 3}
"""A cubic through fewer is not determined; with two points Akima's is a straight line, not Akima's."""


class Curve(NamedTuple):
    """Points of one codec, in any order."""

    bpp: Float64[np.ndarray[Any, Any], " points"]
    """Bits of the files a pixel."""
    metric: Float64[np.ndarray[Any, Any], " points"]


class Overlap(NamedTuple):
    """What two curves have in common on the axis that is averaged over: rate, or metric."""

    low: float
    high: float
    anchor_share: float
    """Of the anchor's range; of a rate's on its logarithmic axis."""
    test_share: float


class Delta(NamedTuple):
    """A difference, or why there is none: exactly one of `value` and `refused` is not None."""

    method: Method
    value: float | None
    refused: str | None
    overlap: Overlap | None
    """None where a curve spans no range at all."""


def bd_metric(anchor: Curve, test: Curve, method: Method, least_overlap: float = LEAST_OVERLAP) -> Delta:
    """Mean difference of a metric, test minus anchor, over the common rates (BD-LPIPS, BD-PSNR ...)."""
    if reason := _unfit(anchor, test, method, "bits a pixel"):
        return Delta(method, None, reason, None)
    overlap = _overlap(np.log(anchor.bpp), np.log(test.bpp))
    overlap = overlap._replace(low=float(np.exp(overlap.low)), high=float(np.exp(overlap.high)))
    if reason := _too_far_apart(overlap, "rates", least_overlap):
        return Delta(method, None, reason, overlap)
    from bjontegaard import bd_psnr

    anchor, test = _sorted(anchor), _sorted(test)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package's own words on overlap and on fits: both are looked at here
        value = bd_psnr(*anchor, *test, method=str(method), require_matching_points=False, min_overlap=0)
    return _checked(method, float(value), overlap)


def bd_rate(anchor: Curve, test: Curve, method: Method, better_is: int, least_overlap: float = LEAST_OVERLAP) -> Delta:
    """Mean difference of the rate, in per cent of the anchor's, over the common values of the metric.

    Args:
        anchor: what is compared with.
        test: what is compared.
        method: how curves are drawn.
        better_is: 1 where a higher value of the metric is better, -1 where a lower one is.
        least_overlap: of either curve's range of values.
    """
    # The package asserts that a metric rises with the rate, so one that falls is given to it with its sign turned.
    anchor, test = (_sorted(Curve(each.bpp, better_is * each.metric)) for each in (anchor, test))
    if reason := _unfit(anchor, test, method, "bits a pixel"):
        return Delta(method, None, reason, None)
    for name, curve in (("the anchor's", anchor), ("its", test)):
        if not (np.diff(curve.metric) > 0).all():
            return Delta(method, None, f"{name} metric does not get better with every step of the rate", None)
    overlap = _overlap(anchor.metric, test.metric)
    reason = _too_far_apart(overlap, "values", least_overlap)
    stated = overlap
    if better_is < 0:
        stated = overlap._replace(low=-overlap.high, high=-overlap.low)
    if reason:
        return Delta(method, None, reason, stated)
    from bjontegaard import bd_rate as package_bd_rate

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = package_bd_rate(*anchor, *test, method=str(method), require_matching_points=False, min_overlap=0)
    return _checked(method, float(value), stated)


def _sorted(curve: Curve) -> Curve:
    order = np.argsort(curve.bpp, kind="stable")
    return Curve(curve.bpp[order], curve.metric[order])


def _unfit(anchor: Curve, test: Curve, method: Method, what: str) -> str | None:
    least = LEAST_POINTS[method]
    for name, curve in (("the anchor", anchor), ("it", test)):
        if not (np.isfinite(curve.bpp).all() and np.isfinite(curve.metric).all()):
            return f"{name} has points that are no numbers"
        if (curve.bpp <= 0).any():
            return f"{name} has points of no {what}"
        if len(curve.bpp) < least:
            return f"{name} has {len(curve.bpp)} points, {method} needs {least}"
        if (np.diff(np.sort(curve.bpp)) <= 0).any():
            return f"{name} has two points of one rate"
    return None


def _overlap(anchor: Float64[np.ndarray[Any, Any], " a"], test: Float64[np.ndarray[Any, Any], " b"]) -> Overlap:
    low, high = float(max(anchor.min(), test.min())), float(min(anchor.max(), test.max()))
    width = max(high - low, 0.0)
    return Overlap(low, high, width / float(np.ptp(anchor)), width / float(np.ptp(test)))


def _too_far_apart(overlap: Overlap, what: str, least_overlap: float) -> str | None:
    if overlap.low >= overlap.high:
        return f"the two have no {what} in common"
    if min(overlap.anchor_share, overlap.test_share) < least_overlap:
        return (
            f"the common {what} are {overlap.anchor_share:.0%} of the anchor's range and {overlap.test_share:.0%} "
            f"of its own: {least_overlap:.0%} of each are needed"
        )
    return None


def _checked(method: Method, value: float, overlap: Overlap) -> Delta:
    if not np.isfinite(value):
        return Delta(method, None, "the fitted curves give no number", overlap)
    return Delta(method, value, None, overlap)
