"""Differences between codecs: of whole curves, and where two rates are nearest; with intervals, or with a reason."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from magc_model.evaluate.bootstrap import Resampled, difference, estimate
from magc_model.evaluate.curve_draws import bd_metric_draws, bd_rate_draws
from magc_model.evaluate.curves import LEAST_OVERLAP, LEAST_POINTS, Curve, Delta, Method, bd_metric, bd_rate
from magc_model.evaluate.measurement import On
from magc_model.evaluate.results import Bjontegaard, CodecCost, CodecInfo, Comparison, Fit, MetricInfo, Point

FURTHEST_RATES = 1.25
"""How many times the lower of two rates the higher may be for two codecs to be compared there."""


class Figures(NamedTuple):
    """A point with everything that differences need."""

    point: Point
    bpp: Resampled
    metrics: dict[str, Resampled]
    cost: CodecCost


def bjontegaard_differences(
    figures: Sequence[Figures], metrics: Sequence[MetricInfo], codecs: Sequence[CodecInfo], anchor_name: str | None
) -> Iterator[Bjontegaard]:
    """Of every codec to the anchor, in every metric that both have, on each of tiles and scenes."""
    for on, info, codec in itertools.product(On, metrics, codecs):
        if anchor_name is None or codec.name == anchor_name:
            continue
        anchor, test = (
            [each for each in figures if each.point.on is on and each.point.codec == name and info.name in each.metrics]
            for name in (anchor_name, codec.name)
        )
        if not anchor or not test:
            continue
        anchor, test = _about_each_other(anchor, test), _about_each_other(test, anchor)
        yield Bjontegaard(
            on,
            info.name,
            codec.name,
            tuple(_metric_fit(anchor, test, info, method) for method in Method),
            tuple(_rate_fit(anchor, test, info, method) for method in Method),
        )


def _about_each_other(figures: list[Figures], others: list[Figures]) -> list[Figures]:
    """A curve, or its part about another one's rates where it goes on far beyond them.

    A codec with rates from 0.004 to 0.2 bits a pixel would otherwise not be comparable with one from 0.01 to 0.05, all
    of which it covers. The part is the points between the other's rates and the next one on either side, or the
    nearest ones that make a cubic.
    """
    rates, theirs = (np.array([each.bpp.value for each in side]) for side in (figures, others))
    low, high = max(rates.min(), theirs.min()), min(rates.max(), theirs.max())
    if not 0 < low < high:
        return figures
    own, other = (np.log(high / low) / np.log(each.max() / each.min()) for each in (rates, theirs))
    if own >= LEAST_OVERLAP or other < LEAST_OVERLAP:
        return figures
    is_kept = (rates >= rates[rates <= low].max()) & (rates <= rates[rates >= high].min())
    how_far = np.maximum(np.log(low / rates), np.log(rates / high))
    is_kept[np.argsort(how_far, kind="stable")[: LEAST_POINTS[Method.CUBIC]]] = True
    return [each for each, kept in zip(figures, is_kept, strict=True) if kept]


def _metric_fit(anchor: Sequence[Figures], test: Sequence[Figures], info: MetricInfo, method: Method) -> Fit:
    delta = bd_metric(_curve(anchor, info), _curve(test, info), method)
    if delta.value is None:
        return _refused(delta)
    draws = _drawn_curves(anchor, test, info)
    drawn = bd_metric_draws(*draws, method) if draws[0].size else np.empty(0)
    return Fit(method, estimate(Resampled(delta.value, drawn)), None, delta.overlap)


def _rate_fit(anchor: Sequence[Figures], test: Sequence[Figures], info: MetricInfo, method: Method) -> Fit:
    if not info.better.sign:
        return Fit(method, None, "the metric has a best value in the middle", None)
    delta = bd_rate(_curve(anchor, info), _curve(test, info), method, info.better.sign)
    if delta.value is None:
        return _refused(delta)
    draws = _drawn_curves(anchor, test, info)
    drawn = bd_rate_draws(*draws, method, info.better.sign) if draws[0].size else np.empty(0)
    return Fit(method, estimate(Resampled(delta.value, drawn)), None, delta.overlap)


def _refused(delta: Delta) -> Fit:
    return Fit(delta.method, None, delta.refused, delta.overlap)


def _curve(figures: Sequence[Figures], info: MetricInfo) -> Curve:
    bpp = np.array([each.bpp.value for each in figures])
    return Curve(bpp, np.array([each.metrics[info.name].value for each in figures]))


def _drawn_curves(
    anchor: Sequence[Figures], test: Sequence[Figures], info: MetricInfo
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    common = min(len(each.metrics[info.name].draws) for each in (*anchor, *test))
    anchor_bpp, test_bpp = (np.stack([each.bpp.draws[:common] for each in side], axis=1) for side in (anchor, test))
    anchor_metric, test_metric = (
        np.stack([each.metrics[info.name].draws[:common] for each in side], axis=1) for side in (anchor, test)
    )
    return anchor_bpp, anchor_metric, test_bpp, test_metric


def nearest_comparisons(figures: Sequence[Figures], codecs: Sequence[CodecInfo]) -> Iterator[Comparison]:
    """Of all pairs of codecs where their rates are nearest to each other."""
    for on, (one, other) in itertools.product(On, itertools.combinations(codecs, 2)):
        pairs = [
            (left, right)
            for left in figures
            for right in figures
            if (left.point.on, left.point.codec) == (on, one.name)
            and (right.point.on, right.point.codec) == (on, other.name)
        ]
        if not pairs:
            continue
        left, right = min(pairs, key=_times_apart)
        times = _times_apart((left, right))
        refused = f"the nearest rates are {times:.2f} times apart: at most {FURTHEST_RATES} are compared"
        if np.isinf(times):
            refused = "the sizes of one's files are not known"
        near = times <= FURTHEST_RATES
        yield Comparison(
            on,
            one.name,
            left.point.rate,
            left.point.bpp.value,
            other.name,
            right.point.rate,
            right.point.bpp.value,
            {
                name: estimate(difference(each, right.metrics[name]))
                for name, each in left.metrics.items()
                if name in right.metrics
            }
            if near
            else {},
            None if near else refused,
        )


def _times_apart(pair: tuple[Figures, Figures]) -> float:
    """How many times the lower rate the higher is; infinitely many where one is not known."""
    rates = [each.point.bpp.value for each in pair]
    return max(rates) / min(rates) if all(rates) else float("inf")  # type: ignore[type-var, operator]
