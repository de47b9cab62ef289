"""`magc evaluate`: every item through every codec at every rate, then the figures and the report.

    items x codecs x rates ─► worker processes ─► measurements.sqlite ─► results.json, report.md, report.html

Whatever ends the run, what is measured stays, and the same command goes on there.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from magc_data.config import usable_cores
from magc_data.engines.local import run_local
from magc_model.config import IN_THE_BOX
from magc_model.errors import EvaluationError, UsageError
from magc_model.evaluate.codecs.registry import STANDARD, open_codec
from magc_model.evaluate.codecs.spec import parse_spec
from magc_model.evaluate.decoded_folder import folder_label, folder_version, is_decoded_folder
from magc_model.evaluate.description import DISTANCES, CodecFacts, description, examples, exhibits, points
from magc_model.evaluate.footprint import footprint, middle_rate
from magc_model.evaluate.items import EvaluationSet, Item
from magc_model.evaluate.measurement import CUT_PX, ORIGINAL, Measurement, On
from magc_model.evaluate.metrics.tile_metrics import METRICS_VERSION, TileMetrics
from magc_model.evaluate.report.write import write_report
from magc_model.evaluate.request import EvaluateOptions
from magc_model.evaluate.results import CodecFootprint, Results, Statistics
from magc_model.evaluate.segmenters import segmenter_digest
from magc_model.evaluate.store import MeasurementStore, Point
from magc_model.evaluate.summarise import summarise
from magc_model.evaluate.worker import (
    Exhibit,
    Setup,
    Task,
    batches,
    evaluation_set,
    forget,
    map_segmenter,
    tile_metrics,
    work,
)

STORE_NAME = "measurements.sqlite"
USUAL_CODECS = (f"magc:{IN_THE_BOX},steps=1", f"magc:{IN_THE_BOX}", *STANDARD)
"""The model in the box at its realistic and its faithful end, beside what everybody has."""
USUAL_ANCHOR = "vvc"
TILES_AT_ONCE = 4
"""A task of a worker: few, so that an end in the middle loses little, and enough to keep them busy."""


def evaluate(data: Path, options: EvaluateOptions) -> Results:
    """Measure, and write the report.

    Args:
        data: a dataset made by `magc-data build`, or a folder of pictures.
        options: what to measure and where to.

    Raises:
        UsageError: the options do not fit each other or the data.
        EvaluationError: a codec is absent or fails, or the report's folder holds something else.
        DataError, DatasetError: there is nothing to measure on, or it cannot be read.
    """
    if options.weights_dir is not None and not options.weights_dir.is_dir():
        raise UsageError(f"--weights-dir is {options.weights_dir}, which is no folder: leave it away, or give one")
    forget()
    setup = Setup(
        data.resolve(),
        options.split,
        tuple(dict.fromkeys(options.on)),
        options.weights_dir,
        options.segmenter,
        options.segmentation_model,
    )
    items = evaluation_set(setup)
    numbers = _chosen(items, options.limit)
    codecs = [_facts(text) for text in dict.fromkeys(options.codecs or USUAL_CODECS)]
    anchor = _anchor(options.anchor, codecs)
    metrics = tile_metrics(setup)
    options.report.mkdir(parents=True, exist_ok=True)
    store = MeasurementStore(options.report / STORE_NAME, _context(setup, metrics), items.digest)
    try:
        _measure(setup, options, store, codecs, numbers)
        _weigh(options, store, codecs, items, numbers)
        results = summarise(
            (each for point in points(codecs, numbers) for each in _chosen_of(store, point, items, numbers)),
            description(setup, options, anchor, codecs, numbers, metrics, _footprints(store, codecs, items, numbers)),
            DISTANCES,
            Statistics(seed=options.seed),
        )
        write_report(options.report, results, examples(items, exhibits(items, numbers), store, codecs))
    finally:
        store.close()
    return results


def _facts(text: str) -> CodecFacts:
    if is_decoded_folder(text):
        return CodecFacts(text, text, folder_label(text), folder_version(text), (0.0,), False)
    codec = open_codec(text)
    return CodecFacts(text, codec.name, codec.label, codec.version, codec.rates, codec.uses_map)


def _anchor(asked: str | None, codecs: Sequence[CodecFacts]) -> str:
    """Name of the codec that the others are set against.

    Raises:
        UsageError: it is none of the codecs, or two of these are the same one.
    """
    names = [each.name for each in codecs]
    if twice := next((each for each in names if names.count(each) > 1), None):
        raise UsageError(f"{twice} is asked for twice: give all of its rates at once, as in {twice},rates=1/2/3")
    if asked is None:
        return USUAL_ANCHOR if USUAL_ANCHOR in names else names[0]
    name = asked if is_decoded_folder(asked) else parse_spec(asked).text
    if name not in names:
        raise UsageError(f"--anchor is {asked}, which is not among the codecs: expected one of {', '.join(names)}")
    return name


def _chosen(items: EvaluationSet, limit: int | None) -> dict[On, list[int]]:
    """Numbers of the items to measure, of each kind; a limited number lies evenly over all."""
    chosen: dict[On, list[int]] = {}
    for on in On:
        numbers = [number for number, item in enumerate(items.items) if item.on is on]
        if limit is not None and len(numbers) > limit:
            numbers = [numbers[place] for place in np.linspace(0, len(numbers) - 1, limit).round().astype(int).tolist()]
        if numbers:
            chosen[on] = numbers
    return chosen


def _context(setup: Setup, metrics: TileMetrics) -> str:
    """What identifies the way of measuring."""
    own = map_segmenter(setup)
    parts = [
        METRICS_VERSION,
        CUT_PX,
        [each.name for each in metrics.table],
        [list(each) for each in metrics.weights],
        None if own is None else own.name,
        [segmenter_digest(each) for each in setup.segmenters],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _chosen_of(
    store: MeasurementStore, point: Point, items: EvaluationSet, numbers: dict[On, list[int]]
) -> Iterator[Measurement]:
    """A point's measurements of the chosen items; others may be there from a run with other limits."""
    keys = {items.items[number].key for number in numbers[point.on]}
    return (each for each in store.read(point) if each.key in keys)


# --- measuring -------------------------------------------------------------------------------------------------------


def _measure(
    setup: Setup,
    options: EvaluateOptions,
    store: MeasurementStore,
    codecs: list[CodecFacts],
    numbers: dict[On, list[int]],
) -> None:
    items = evaluation_set(setup)
    shown = exhibits(items, numbers)
    versions = {ORIGINAL: ""} | {each.name: each.version for each in codecs}
    texts = {ORIGINAL: ORIGINAL} | {each.name: each.text for each in codecs}
    tasks: list[Task] = []
    total = finished = 0
    for point in points(codecs, numbers):
        there = numbers[point.on]
        kept = store.done(point)
        kept -= {key for key in _shown_keys(items, shown, point.on) if store.picture(point, key) is None}
        left = [number for number in there if items.items[number].key not in kept]
        total, finished = total + len(there), finished + len(there) - len(left)
        size = TILES_AT_ONCE if point.on is On.TILES else 1
        for some in batches(left, size):
            parts = tuple(each for each in shown if each.number in some)
            tasks.append(Task(setup, point.codec, texts[point.codec], point.rate, some, parts))
    workers = min(options.workers or usable_cores(), max(1, len(tasks)))
    with _bar(total, finished, quiet=options.quiet) as bar:
        for done in run_local(work, tasks, workers, abandon=True):
            version = versions[done.codec]
            if done.version != version:
                raise EvaluationError(
                    f"{done.codec} was {version} when the evaluation began and is {done.version} now: what it codes "
                    "with was replaced meanwhile, so run the same command again"
                )
            store.add(version, done.measurements)
            on = {each.key: each.on for each in done.measurements}
            for key, png in done.pictures:
                store.add_picture(Point(done.codec, version, done.rate, on[key]), key, png)
            bar.set_postfix(codec=done.codec, refresh=False)
            bar.update(len(done.measurements))


def _shown_keys(items: EvaluationSet, shown: tuple[Exhibit, ...], on: On) -> set[str]:
    return {items.items[each.number].key for each in shown if items.items[each.number].on is on}


def _weigh(
    options: EvaluateOptions,
    store: MeasurementStore,
    codecs: list[CodecFacts],
    items: EvaluationSet,
    numbers: dict[On, list[int]],
) -> None:
    """Time and memory, one codec after the other with nothing else running."""
    wanted = [each for each in _weighed(codecs, items, numbers) if store.footprint(each.point, each.item.key) is None]
    for text, point, item in tqdm(
        wanted, desc="time and memory", unit="codec", disable=options.quiet or not wanted, file=sys.stderr
    ):
        store.add_footprint(point, item.key, footprint(text, point.rate, *items.load(item)))


class _Weighed(NamedTuple):
    """What time and memory of a codec are measured on."""

    text: str
    point: Point
    item: Item


def _weighed(codecs: list[CodecFacts], items: EvaluationSet, numbers: dict[On, list[int]]) -> Iterator[_Weighed]:
    """Every codec that runs here at its middle rate, on the first of the tiles and of the scenes."""
    for codec in codecs:
        for on, there in numbers.items():
            if not is_decoded_folder(codec.name):
                point = Point(codec.name, codec.version, middle_rate(codec.rates), on)
                yield _Weighed(codec.text, point, items.items[there[0]])


def _footprints(
    store: MeasurementStore, codecs: list[CodecFacts], items: EvaluationSet, numbers: dict[On, list[int]]
) -> tuple[CodecFootprint, ...]:
    found = []
    for _, point, item in _weighed(codecs, items, numbers):
        if (each := store.footprint(point, item.key)) is not None:
            found.append(CodecFootprint(point.codec, point.on, item.width_px, item.height_px, *each))
    return tuple(found)


def _bar(total: int, finished: int, *, quiet: bool) -> "tqdm[Any]":
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(
        total=total,
        initial=finished,
        desc="evaluate",
        unit="picture",
        mininterval=interval,
        disable=quiet,
        file=sys.stderr,
        dynamic_ncols=True,
    )
