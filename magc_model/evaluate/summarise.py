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
from magc_model.evaluate.bootstrap import CONFIDENCE, Estimate, Resampled, estimate
from magc_model.evaluate.differences import Figures, bjontegaard_differences, nearest_comparisons
from magc_model.evaluate.measurement import ORIGINAL, UNKNOWN_SIZE, Measurement, On
from magc_model.evaluate.results import (
    FORMAT,
    ClassInfo,
    CodecCost,
    CodecFootprint,
    CodecInfo,
    Fact,
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
    figures.sort(key=lambda each: (kinds.index(each.point.on), order[each.point.codec], each.point.bpp.value or 0.0))
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
        bjontegaard=tuple(
            bjontegaard_differences(figures, description.metrics, description.codecs, description.anchor)
        ),
        comparisons=tuple(nearest_comparisons(figures, description.codecs)),
        run=Run(
            description.run,
            tuple(each.cost for each in figures if each.cost.decode_s_per_megapixel),
            description.footprints,
        ),
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
    sized = UNKNOWN_SIZE not in sizes
    bpp = samples.bits_a_pixel(sample, chosen, sizes) if sized else Resampled(float("nan"), np.empty(0))
    point = Point(
        codec=first.codec,
        rate=first.rate,
        on=first.on,
        items=len(chosen),
        cuts=sample.cuts,
        file_bytes=sum(sizes) if sized else None,
        stream_bytes=sum(streams) if known else None,
        bpp=_rate_estimate(bpp, sample),
        stream_bpp=_rate_estimate(samples.bits_a_pixel(sample, chosen, streams), sample) if known else None,
        metrics={name: estimate(each) for name, each in metrics.items()},
        classes={name: tuple(estimate(iou) for iou in each) for name, each in classes.items()},
    )
    return Figures(point, bpp, metrics, _cost(chosen))


def _rate_estimate(bpp: Resampled, sample: Sample) -> Estimate:
    """Cuts of one scene have its rate in common, so it does not vary between draws: that is no interval of no width."""
    stated = estimate(bpp)
    return stated if len(sample.keys) > 1 else Estimate(stated.value, None, None)


def _cost(chosen: Sequence[Measurement]) -> CodecCost:
    first = chosen[0]
    megapixels = np.array([each.width_px * each.height_px / 1e6 for each in chosen])
    encode, decode = (
        float(np.median(np.array(seconds) / megapixels))
        for seconds in ([each.cost.encode_s for each in chosen], [each.cost.decode_s for each in chosen])
    )
    return CodecCost(first.codec, first.rate, first.on, encode, decode)


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
    parts = (
        "Where one codec's rates go on far beyond another's, their Bjontegaard difference is of its points between the "
        "other's rates and the next one on either side."
    )
    notes = [intervals, moved, rates, parts]
    for on, state in states.items():
        sample = state.sample
        if on is On.SCENES:
            scenes = "one scene" if len(sample.keys) == 1 else f"{len(sample.keys)} scenes"
            neighbours = (
                f"The {sample.cuts} cuts of scenes are of {scenes}: cuts of one scene are neighbours and resemble each "
                "other, so intervals on scenes are narrower than those of as many independent places would be."
            )
            spread = "The bits of a scene are spread evenly over its cuts, so rates of scenes add little to intervals."
            notes += [neighbours, spread]
        if sample.cuts == 1:
            notes.append(f"There is one cut of {on} only: nothing measured on it has an interval.")
    drawn = [pair for each in figures for pair in each.metrics.items() if np.isfinite(pair[1].value)]
    without = sorted({name for name, one in drawn if not len(one.draws)})
    if without and any(state.sample.cuts > 1 for state in states.values()):
        notes.append(
            f"No interval is stated for {', '.join(without)}: its features are too wide or too many to be drawn again."
        )
    return tuple(notes)
