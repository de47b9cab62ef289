"""From measurements to results.json: the right figures, the same bytes, one point at a time, and no damaged file read."""

import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from synthetic_measurements import (
    CODECS,
    CONSISTENCY,
    DISTANCES,
    FRECHET,
    Item,
    description,
    frechet_distance,
    items,
    measurements,
)

from magc_model.errors import EvaluationError
from magc_model.evaluate.bootstrap import Estimate
from magc_model.evaluate.curves import Curve, Method, bd_metric
from magc_model.evaluate.measurement import ORIGINAL, Measurement, On
from magc_model.evaluate.results import Results, Statistics, read_results, results_json, write_results
from magc_model.evaluate.summarise import summarise
from magc_model.evaluate.typed_json import as_document

FEW = Statistics(draws=100, distance_draws=20, seed=0)
TWO = (CODECS[0], CODECS[-1])


@pytest.fixture(scope="module")
def world() -> list[Item]:
    return items(tiles=8, scenes=1)


@pytest.fixture(scope="module")
def measured(world: list[Item]) -> list[Measurement]:
    return list(measurements(world, TWO))


@pytest.fixture(scope="module")
def results(measured: list[Measurement]) -> Results:
    return summarise(measured, description(TWO), DISTANCES, FEW)


def test_figures_are_those_of_the_measurements(measured: list[Measurement], results: Results) -> None:
    point = results.curve("vvc", On.TILES)[2]
    mine = [each for each in measured if (each.codec, each.on, each.rate) == ("vvc", On.TILES, point.rate)]
    assert (point.items, point.cuts) == (8, 8)
    assert point.file_bytes == sum(each.cost.bytes for each in mine)
    assert point.bpp.value == pytest.approx(8 * point.file_bytes / (8 * 65536), rel=1e-8)
    assert point.bpp.low < point.bpp.value < point.bpp.high
    assert point.stream_bytes == sum(each.cost.stream_bytes for each in mine)
    assert point.metrics["lpips"].value == pytest.approx(np.mean([each.values["lpips"] for each in mine]), rel=1e-8)
    original = [each for each in measured if (each.codec, each.on) == (ORIGINAL, On.TILES)]
    features = [np.concatenate([each.features[FRECHET] for each in side]) for side in (original, mine)]
    assert point.metrics[FRECHET].value == pytest.approx(frechet_distance(*features), rel=1e-8)
    confusion = sum(each.confusions[CONSISTENCY][0] for each in mine)
    ious = np.diag(confusion) / (confusion.sum(0) + confusion.sum(1) - np.diag(confusion))
    assert [each.value for each in point.classes[CONSISTENCY]] == pytest.approx(ious, rel=1e-8)
    assert point.metrics[CONSISTENCY].value == pytest.approx(ious.mean(), rel=1e-8)
    scene = results.curve("vvc", On.SCENES)[0]
    assert (scene.items, scene.cuts) == (1, 36)
    assert scene.bpp.low is None  # one scene has one rate, which no draw of its cuts changes
    assert scene.metrics["lpips"].low < scene.metrics["lpips"].value
    ceiling = results.originals[0]
    assert ceiling.metrics[CONSISTENCY].value > point.metrics[CONSISTENCY].value
    assert set(ceiling.metrics) == {"musiq", CONSISTENCY}


def test_bjontegaard_differences_are_the_packages_with_an_interval_around(results: Results) -> None:
    found = next(each for each in results.bjontegaard if (each.on, each.metric) == (On.TILES, "lpips"))
    assert found.codec == "magc:tiny"
    curves = [
        Curve(
            np.array([each.bpp.value for each in results.curve(codec, On.TILES)]),
            np.array([each.metrics["lpips"].value for each in results.curve(codec, On.TILES)]),
        )
        for codec in ("vvc", "magc:tiny")
    ]
    for fit in found.metric_deltas:
        assert fit.delta.value == pytest.approx(bd_metric(*curves, fit.method).value, rel=1e-6)
        assert fit.delta.low < fit.delta.value < fit.delta.high
        assert fit.delta.high - fit.delta.low < 0.1
    assert [fit.method for fit in found.rate_deltas] == list(Method)
    gradient = next(each for each in results.bjontegaard if each.metric == "gradient-ratio")
    assert {fit.refused for fit in gradient.rate_deltas} == {"the metric has a best value in the middle"}


def test_pairs_are_compared_where_their_rates_are_nearest(results: Results) -> None:
    pair = results.comparisons[0]
    assert (pair.on, pair.codec, pair.other) == (On.TILES, "magc:tiny", "vvc")
    ratios = {
        abs(np.log(one.bpp.value / other.bpp.value))
        for one in results.curve("magc:tiny", On.TILES)
        for other in results.curve("vvc", On.TILES)
    }
    assert abs(np.log(pair.bpp / pair.other_bpp)) == pytest.approx(min(ratios))
    points = {(each.codec, each.rate): each for each in results.points if each.on is On.TILES}
    one, other = points[pair.codec, pair.rate], points[pair.other, pair.other_rate]
    lpips = pair.differences["lpips"]
    assert lpips.value == pytest.approx(one.metrics["lpips"].value - other.metrics["lpips"].value, abs=1e-7)
    assert lpips.high < 0
    assert lpips.high - lpips.low < one.metrics["lpips"].high - one.metrics["lpips"].low


def test_rates_far_apart_are_not_compared(world: list[Item]) -> None:
    far = (CODECS[0]._replace(bpp=(0.01, 0.02)), CODECS[1])
    found = summarise(measurements(world, far), description(far, anchor=None), DISTANCES, FEW)
    assert not found.comparisons[0].differences
    assert "times apart: at most 1.25" in found.comparisons[0].refused
    assert found.bjontegaard == ()


def test_the_same_measurements_give_the_same_bytes_whatever_their_order_and_times(
    measured: list[Measurement], results: Results
) -> None:
    shuffled = sorted(measured, key=lambda each: (each.on is On.TILES, each.codec != ORIGINAL, -each.rate, each.codec))
    shuffled = [each._replace(cost=each.cost._replace(decode_s=9.0)) for each in shuffled]
    again = summarise(shuffled, description(TWO), DISTANCES, FEW)
    assert again.run != results.run
    assert results_json(again._replace(run=results.run)) == results_json(results)
    other_seed = summarise(measured, description(TWO), DISTANCES, FEW._replace(seed=1))
    assert other_seed.points[0].bpp.value == results.points[0].bpp.value
    assert other_seed.points[0].bpp.low != results.points[0].bpp.low


def test_only_one_points_features_are_in_memory(world: list[Item]) -> None:
    alive: list[weakref.ref] = []

    def watched() -> Iterator[Measurement]:
        place = None
        for each in measurements(world, TWO):
            fresh = each._replace(features={name: array.copy() for name, array in each.features.items()})
            if place != (each.on, each.codec, each.rate):
                place = each.on, each.codec, each.rate
                assert sum(one() is not None for one in alive) <= len(world), "an earlier point is still held"
            alive.append(weakref.ref(fresh.features[FRECHET]))
            yield fresh

    summarise(watched(), description(TWO), DISTANCES, FEW)


def test_what_is_read_is_what_was_written(tmp_path: Path, results: Results) -> None:
    path = write_results(tmp_path, results)
    assert read_results(path) == results
    assert "NaN" not in path.read_text()
    assert path.read_bytes() == results_json(read_results(path))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda d: d.update(format=2), "is of format 2, this build reads 1"),
        (lambda d: d.pop("title"), "has no field 'title': expected the fields format, title,"),
        (lambda d: d.update(more=1), "has an unknown field 'more'"),
        (lambda d: d["points"][3]["bpp"].update(low="x"), "points[3].bpp.low has 'x': expected a number"),
        (lambda d: d["points"][0].update(on="moons"), "points[0].on has 'moons': expected one of tiles, scenes"),
        (lambda d: d["points"][0].update(items=True), "points[0].items has True: expected a whole number"),
        (lambda d: d["points"][0].update(cuts=1.5), "points[0].cuts has '1.5': expected a whole number"),
        (lambda d: d.update(codecs={}), "codecs has '{}': expected a list"),
        (lambda d: d["codecs"][0].update(label=None), "codecs[0].label has nothing: expected text"),
        (lambda d: d.update(classes=[]), "classes has '[]': expected an object"),
    ],
)
def test_a_damaged_file_is_named_with_the_place(tmp_path: Path, results: Results, edit: object, words: str) -> None:
    document = json.loads(results_json(results))
    edit(document)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(document))
    with pytest.raises(EvaluationError) as caught:
        read_results(path)
    assert words in str(caught.value)
    assert "magc evaluate" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"format": 1', b"\xff\xfe"])
def test_what_is_no_results_file_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(EvaluationError):
        read_results(tmp_path / "results.json")
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_results(tmp_path / "none.json")


def changed(measured: list[Measurement], number: int, **fields: object) -> list[Measurement]:
    return [each._replace(**fields) if place == number else each for place, each in enumerate(measured)]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda all_: all_[:20] + all_[21:], "run the same command again, which measures what is missing"),
        (
            lambda all_: changed(all_, 9, key="another"),
            "magc:tiny at 0 was measured on 8 of the tiles, not on 18_193001_110000",
        ),
        (lambda all_: [*all_, all_[8]], "are in two places"),
        (lambda all_: [*all_[:9], all_[8], *all_[9:]], "twice"),
        (lambda all_: all_[8:], "the originals of tiles have no features of 'patch-frechet-rand'"),
        (lambda all_: changed(all_, 8, values={}), "by other metrics than"),
        (
            lambda all_: changed(all_, 9, values={name: np.ones(2) for name in all_[9].values}),
            "has figures of [1, 2] cuts",
        ),
        (lambda all_: changed(all_, 8, features={}), "by other metrics than"),
        (
            lambda all_: [each._replace(codec="who" if each.codec == "vvc" else each.codec) for each in all_],
            "not described",
        ),
        (lambda all_: [each for each in all_ if each.codec == ORIGINAL], "no measurements of any codec"),
    ],
)
def test_measurements_that_are_not_paired_are_refused(measured: list[Measurement], spoil: object, words: str) -> None:
    with pytest.raises(EvaluationError) as caught:
        summarise(spoil(measured), description(TWO), DISTANCES, FEW)
    assert words in str(caught.value)


def test_undefined_figures_are_null_and_counted(measured: list[Measurement]) -> None:
    spoilt = [
        each._replace(values=each.values | {"psnr-y": np.full(len(each.values["psnr-y"]), np.inf)})
        if each.codec != ORIGINAL
        else each
        for each in measured
    ]
    found = summarise(spoilt, description(TWO), DISTANCES, FEW)
    assert found.points[0].metrics["psnr-y"] == (None, None, None, 8)
    assert "points that are no numbers" in found.bjontegaard[0].metric_deltas[0].refused
    results_json(found)


def test_the_text_says_that_cuts_of_a_scene_are_neighbours(results: Results) -> None:
    assert any("36 cuts of scenes are of one scene" in note for note in results.notes)
    assert any("100 draws, 20 for distances" in note for note in results.notes)


def test_estimates_have_no_numbers_that_json_has_not() -> None:
    with pytest.raises(EvaluationError, match="nan cannot be written"):
        as_document(Estimate(float("nan"), None, None))
