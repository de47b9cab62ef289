"""From measurements to results: one codec and rate at a time in memory, everything after that from figures and draws.

measurements ── by (on, codec, rate) ──► figures of all metrics, each with its draws
                                                ├──► points, with intervals
                                                ├──► Bjontegaard differences to the anchor
                                                └──► differences of all pairs where their rates are nearest
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from magc_model.errors import EvaluationError
from magc_model.evaluate import samples
from magc_model.evaluate.bootstrap import CONFIDENCE, Resampled, difference, estimate
from magc_model.evaluate.curve_draws import bd_metric_draws, bd_rate_draws
from magc_model.evaluate.curves import Curve, Delta, Method, bd_metric, bd_rate
from magc_model.evaluate.measurement import ORIGINAL, Measurement, On
from magc_model.evaluate.results import (
    FORMAT,
    Bjontegaard,
    ClassInfo,
    CodecCost,
    CodecFootprint,
    CodecInfo,
    Comparison,
    Fact,
    Fit,
    MetricInfo,
    MissingMetric,
    Original,
    Point,
    Results,
    Run,
    Statistics,
)
from magc_model.evaluate.samples import Distance, Reference, Sample
from magc_model.evaluate.typed_json import rounded

FURTHEST_RATES = 1.25
"""How many times the lower of two rates the higher may be for two codecs to be compared there."""


class Description(NamedTuple):
    """What measurements do not say of themselves."""

    title: str
    data: tuple[Fact, ...]
    settings: tuple[Fact, ...]
    metrics: tuple[MetricInfo, ...]
    """In the order that they are shown in. Names are those of values, of `distances`, or of confusions."""
    missing: tuple[MissingMetric, ...]
    codecs: tuple[CodecInfo, ...]
    """In the order that they are shown in."""
    classes: dict[str, tuple[ClassInfo, ...]]
    """By score: what its confusions' rows and columns are."""
    anchor: str | None
    run: tuple[Fact, ...]
    """Date, command, hardware: what another run may have otherwise."""
    footprints: tuple[CodecFootprint, ...] = ()


class Figures(NamedTuple):
    """A point with everything that differences need."""

    point: Point
    bpp: Resampled
    metrics: dict[str, Resampled]
    cost: CodecCost


def summarise(
    measurements: Iterable[Measurement],
    description: Description,
    distances: Mapping[str, Distance] | None = None,
    statistics: Statistics = Statistics(),  # noqa: B008 - it cannot be changed
) -> Results:
    """Everything that can be said of some measurements.

    Args:
        measurements: those of one (on, codec, rate) behind one another, and those of `ORIGINAL` before all others of
            their `on`; one such group is held in memory at a time, besides the originals' features.
        description: what they do not say of themselves.
        distances: by the metric's name.
        statistics: how intervals are made.

    Raises:
        EvaluationError: the measurements are not of the same cuts, in another order, or of things not described.
    """
    distances = distances or {}
    states: dict[On, _State] = {}
    figures: list[Figures] = []
    originals: list[Original] = []
    seen: set[tuple[On, str, float]] = set()
    for place, group in itertools.groupby(measurements, key=lambda each: (each.on, each.codec, each.rate)):
        on, codec, rate = place
        if place in seen:
            raise EvaluationError(f"measurements of {codec} at {rate:g} on {on} are in two places: expected in one")
        seen.add(place)
        chosen = sorted(group, key=lambda each: each.key)
        _check_described(chosen, description, distances)
        if on not in states:
            sample = samples.sample_of(on, chosen, *statistics)
            states[on] = _State(sample, {})
        state = states[on]
        samples.check_same_cuts(state.sample, chosen)
        if codec == ORIGINAL:
            if any(each.point.on is on for each in figures):
                raise EvaluationError(f"the originals of {on} come after codecs: expected before, as references")
            state.references.update(_references(state.sample, chosen, distances))
            originals.append(_original(state.sample, chosen, description))
        else:
            figures.append(_figures(state, chosen, description, distances))
        del chosen  # before the next ones are read
    if not figures:
        raise EvaluationError("there are no measurements of any codec: measure some first")
    order = {each.name: number for number, each in enumerate(description.codecs)}
    kinds = list(On)
    figures.sort(key=lambda each: (kinds.index(each.point.on), order[each.point.codec], each.bpp.value))
    originals.sort(key=lambda each: kinds.index(each.on))
    results = Results(
        format=FORMAT,
        title=description.title,
        data=description.data,
        settings=description.settings,
        statistics=statistics,
        anchor=description.anchor,
        metrics=description.metrics,
        missing=description.missing,
        codecs=description.codecs,
        classes=description.classes,
        notes=_notes(states, figures, statistics),
        originals=tuple(originals),
        points=tuple(each.point for each in figures),
        bjontegaard=tuple(_bjontegaard(figures, description)),
        comparisons=tuple(_comparisons(figures, description)),
        run=Run(description.run, tuple(each.cost for each in figures), description.footprints),
    )
    return rounded(results)  # type: ignore[no-any-return]


class _State(NamedTuple):
    """What is kept of tiles, and of scenes."""

    sample: Sample
    references: dict[str, Reference]


def _check_described(
    chosen: Sequence[Measurement], description: Description, distances: Mapping[str, Distance]
) -> None:
    first = chosen[0]
    if first.codec not in {ORIGINAL, *(each.name for each in description.codecs)}:
        raise EvaluationError(f"there are measurements of {first.codec}, which is not described: expected all to be")
    described = {each.name for each in description.metrics}
    for names in (first.values, first.confusions):
        if strange := sorted(names.keys() - described):
            raise EvaluationError(f"{first.codec} was measured by '{strange[0]}', which is not described")
    features = {each.features for each in distances.values()}
    if strange := sorted(first.features.keys() - features):
        raise EvaluationError(f"{first.codec} has features of '{strange[0]}', which no distance is of")
    for each in chosen:
        for name, confusions in each.confusions.items():
            expected = len(description.classes.get(name, ()))
            if confusions.shape[1] != expected:
                raise EvaluationError(
                    f"confusions of '{name}' have {confusions.shape[1]} classes, {expected} are described"
                )
        for one, other in ((each.values, first.values), (each.features, first.features)):
            if one.keys() != other.keys():
                raise EvaluationError(
                    f"{each.codec} was measured on {each.key} by other metrics than on {first.key}: measure it again"
                )


def _references(
    sample: Sample, chosen: Sequence[Measurement], distances: Mapping[str, Distance]
) -> dict[str, Reference]:
    names = {each.features for each in distances.values()} & chosen[0].features.keys()
    return {name: samples.reference_of(sample, chosen, name) for name in sorted(names)}


def _original(sample: Sample, chosen: Sequence[Measurement], description: Description) -> Original:
    metrics, classes = _means_and_scores(sample, chosen, description)
    pixels = sum(each.width_px * each.height_px for each in chosen)
    return Original(
        sample.on,
        len(chosen),
        sample.cuts,
        pixels,
        {name: estimate(each) for name, each in metrics.items()},
        {name: tuple(estimate(iou) for iou in each) for name, each in classes.items()},
    )


def _means_and_scores(
    sample: Sample, chosen: Sequence[Measurement], description: Description
) -> tuple[dict[str, Resampled], dict[str, tuple[Resampled, ...]]]:
    metrics, classes = {}, {}
    for info in description.metrics:
        if info.name in chosen[0].values:
            metrics[info.name] = samples.values_of(sample, chosen, info.name)
        elif info.name in chosen[0].confusions:
            scores = samples.scores_of(sample, chosen, info.name)
            metrics[info.name] = scores.mean_iou
            classes[info.name] = scores.iou
    return metrics, classes


def _figures(
    state: _State, chosen: Sequence[Measurement], description: Description, distances: Mapping[str, Distance]
) -> Figures:
    sample, first = state.sample, chosen[0]
    metrics, classes = _means_and_scores(sample, chosen, description)
    features = {}
    for name in sorted(first.features):
        if name not in state.references:
            raise EvaluationError(f"the originals of {sample.on} have no features of '{name}': measure these too")
        features[name] = samples.cut_features(chosen, name, sample.cuts)
    for name, distance in distances.items():
        if distance.features in features:
            metrics[name] = samples.distances_of(sample, state.references, features[distance.features], distance)
    metrics = {info.name: metrics[info.name] for info in description.metrics if info.name in metrics}
    sizes = [each.cost.bytes for each in chosen]
    streams = [each.cost.stream_bytes for each in chosen if each.cost.stream_bytes is not None]
    known = len(streams) == len(chosen)
    bpp = samples.bits_a_pixel(sample, chosen, sizes)
    point = Point(
        codec=first.codec,
        rate=first.rate,
        on=first.on,
        items=len(chosen),
        cuts=sample.cuts,
        file_bytes=sum(sizes),
        stream_bytes=sum(streams) if known else None,
        bpp=estimate(bpp),
        stream_bpp=estimate(samples.bits_a_pixel(sample, chosen, streams)) if known else None,
        metrics={name: estimate(each) for name, each in metrics.items()},
        classes={name: tuple(estimate(iou) for iou in each) for name, each in classes.items()},
    )
    return Figures(point, bpp, metrics, _cost(chosen))


def _cost(chosen: Sequence[Measurement]) -> CodecCost:
    first = chosen[0]
    megapixels = np.array([each.width_px * each.height_px / 1e6 for each in chosen])
    encode, decode = (
        float(np.median(np.array(seconds) / megapixels))
        for seconds in ([each.cost.encode_s for each in chosen], [each.cost.decode_s for each in chosen])
    )
    return CodecCost(first.codec, first.rate, first.on, encode, decode)


def _bjontegaard(figures: Sequence[Figures], description: Description) -> Iterable[Bjontegaard]:
    for on, info, codec in itertools.product(On, description.metrics, description.codecs):
        if description.anchor is None or codec.name == description.anchor:
            continue
        anchor, test = (
            [each for each in figures if each.point.on is on and each.point.codec == name and info.name in each.metrics]
            for name in (description.anchor, codec.name)
        )
        if not anchor or not test:
            continue
        yield Bjontegaard(
            on,
            info.name,
            codec.name,
            tuple(_metric_fit(anchor, test, info, method) for method in Method),
            tuple(_rate_fit(anchor, test, info, method) for method in Method),
        )


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


def _comparisons(figures: Sequence[Figures], description: Description) -> Iterable[Comparison]:
    for on, (one, other) in itertools.product(On, itertools.combinations(description.codecs, 2)):
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
        near = times <= FURTHEST_RATES
        yield Comparison(
            on,
            one.name,
            left.point.rate,
            left.bpp.value,
            other.name,
            right.point.rate,
            right.bpp.value,
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
    rates = [each.bpp.value for each in pair]
    return max(rates) / min(rates)


def _notes(states: Mapping[On, _State], figures: Sequence[Figures], statistics: Statistics) -> tuple[str, ...]:
    draws, distance_draws, seed = statistics
    intervals = (
        f"Intervals are {CONFIDENCE:.0%} percentile ones of a paired bootstrap over cuts of 256 px: {draws} draws, "
        f"{distance_draws} for distances between sets, seed {seed}, the same draws for every codec."
    )
    moved = (
        "Draws of a distance between sets are moved so that their median is its value: drawing patches twice makes "
        "such distances grow."
    )
    rates = "Rates are bytes of whole files over pixels; a map that a codec uses is not counted: the receiver has it."
    notes = [intervals, moved, rates]
    for on, state in states.items():
        sample = state.sample
        if on is On.SCENES:
            scenes = "one scene" if len(sample.keys) == 1 else f"{len(sample.keys)} scenes"
            notes.append(
                f"The {sample.cuts} cuts of scenes are of {scenes}: cuts of one scene are neighbours and resemble each "
                "other, so intervals on scenes are narrower than those of as many independent places would be."
            )
        if sample.cuts == 1:
            notes.append(f"There is one cut of {on} only: nothing measured on it has an interval.")
    drawn = [pair for each in figures for pair in each.metrics.items() if np.isfinite(pair[1].value)]
    without = sorted({name for name, one in drawn if not len(one.draws)})
    if without and any(state.sample.cuts > 1 for state in states.values()):
        notes.append(
            f"No interval is stated for {', '.join(without)}: its features are too wide or too many to be drawn again."
        )
    return tuple(notes)
