"""Which points of two curves count in their Bjontegaard difference."""

from __future__ import annotations

import numpy as np
import pytest

from magc_model.evaluate.bootstrap import Estimate, Resampled
from magc_model.evaluate.curves import Curve, Method, bd_metric
from magc_model.evaluate.differences import Figures, bjontegaard_differences
from magc_model.evaluate.measurement import On
from magc_model.evaluate.results import Better, CodecCost, CodecInfo, MetricInfo, Point

PSNR = MetricInfo("psnr", "PSNR", "dB", Better.HIGHER, "fidelity", "")
WIDE = (0.0036, 0.0077, 0.0170, 0.0345, 0.0630, 0.114, 0.214)
NARROW = (0.0111, 0.0171, 0.0236, 0.0310, 0.0394, 0.0507)


def figures(codec: str, rates: tuple[float, ...], offset: float = 0.0) -> list[Figures]:
    def value(rate: float) -> float:
        return 20 + offset + 3 * np.log2(rate / 0.03) - 0.4 * np.log2(rate / 0.03) ** 2

    nothing = np.empty(0)
    return [
        Figures(
            Point(codec, rate, On.TILES, 1, 1, 1, None, Estimate(rate, None, None), None, {}, {}),
            Resampled(rate, nothing),
            {"psnr": Resampled(float(value(rate)), nothing)},
            CodecCost(codec, rate, On.TILES, 0.0, 0.0),
        )
        for rate in rates
    ]


def difference(anchor: list[Figures], test: list[Figures]):
    codecs = [CodecInfo(side[0].point.codec, side[0].point.codec, "1", uses_map=False) for side in (anchor, test)]
    [found] = bjontegaard_differences([*anchor, *test], [PSNR], codecs, anchor[0].point.codec)
    return next(fit for fit in found.metric_deltas if fit.method is Method.CUBIC)


def test_a_curve_that_goes_on_far_beyond_counts_with_its_points_about_the_other() -> None:
    anchor, test = figures("wide", WIDE), figures("narrow", NARROW, offset=0.7)
    fit = difference(anchor, test)
    assert fit.refused is None
    near = anchor[1:5]
    expected = bd_metric(
        *(
            Curve(np.array([each.bpp.value for each in side]), np.array([each.metrics["psnr"].value for each in side]))
            for side in (near, test)
        ),
        Method.CUBIC,
    )
    assert fit.delta.value == expected.value
    assert fit.delta.value == pytest.approx(0.7, abs=0.01)
    assert (fit.overlap.low, fit.overlap.high) == pytest.approx((NARROW[0], NARROW[-1]))
    back = difference(test, anchor)
    assert back.delta.value == pytest.approx(-fit.delta.value)


def test_of_a_curve_that_goes_on_beyond_a_cubic_is_left() -> None:
    narrow = (0.2, 0.21, 0.25, 0.28, 0.3)
    wide = tuple(0.2 * 1.2**number for number in range(12))
    fit = difference(figures("narrow", narrow), figures("wide", wide, offset=0.4))
    assert fit.refused is None
    assert fit.delta.value == pytest.approx(0.4, abs=0.01)
    sparse = tuple(0.2 * 1.6**number for number in range(8))  # two of its points reach over the other
    fit = difference(figures("narrow", narrow), figures("sparse", sparse, offset=0.4))
    assert "range" in str(fit.refused)
    assert "points" not in str(fit.refused)


def test_curves_of_like_ranges_count_whole() -> None:
    anchor, test = figures("a", WIDE), figures("b", WIDE[1:], offset=-0.3)
    fit = difference(anchor, test)
    assert fit.overlap.anchor_share == pytest.approx(np.log(WIDE[-1] / WIDE[1]) / np.log(WIDE[-1] / WIDE[0]))
    assert fit.delta.value == pytest.approx(-0.3, abs=0.01)


@pytest.mark.parametrize("rates", [(0.15, 0.2, 0.4, 0.9), (0.3, 0.4, 0.5, 0.6)])
def test_what_hardly_overlaps_is_still_refused(rates: tuple[float, ...]) -> None:
    assert difference(figures("wide", WIDE), figures("other", rates)).refused is not None
