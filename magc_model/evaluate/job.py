"""`magc evaluate`: every item through every codec at every rate, then the figures and the report.

    items x codecs x rates ─► worker processes ─► measurements.sqlite ─► results.json, report.md, report.html

Whatever ends the run, what is measured stays, and the same command goes on there.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from magc_data.config import usable_cores
from magc_data.engines.local import run_local
from magc_model.config import IN_THE_BOX
from magc_model.errors import UsageError
from magc_model.evaluate.codecs.registry import STANDARD, open_codec
from magc_model.evaluate.decoded_folder import folder_version, is_decoded_folder
from magc_model.evaluate.footprint import footprint
from magc_model.evaluate.items import EvaluationSet
from magc_model.evaluate.measurement import CUT_PX, ORIGINAL, On
from magc_model.evaluate.request import EvaluateOptions
from magc_model.evaluate.store import MeasurementStore, Point
from magc_model.evaluate.worker import Exhibit, Setup, Task, batches, evaluation_set, tile_metrics, work

STORE_NAME = "measurements.sqlite"
TILES_AT_ONCE = 4
"""A task of a worker: few, so that an end in the middle loses little, and enough to keep them busy."""
SHOWN_TILES, SHOWN_SCENES = 4, 2
SHOWN_SIDE_PX = 512
"""Of a scene: its middle."""
MEASURED_BY = 1
"""Number of the way of measuring; to be raised when a metric's meaning changes, so that no old figures mix in."""


class CodecFacts(NamedTuple):
    """What a codec says of itself."""

    name: str
    label: str
    version: str
    rates: tuple[float, ...]
    uses_map: bool


def evaluate(data: Path, options: EvaluateOptions) -> Any:
    """Measure, and write the report.

    Args:
        data: a dataset made by `magc-data build`, or a folder of pictures.
        options: what to measure and where to.

    Raises:
        UsageError: the options do not fit each other or the data.
        EvaluationError: a codec is absent or fails, or the report's folder holds something else.
        DataError, DatasetError: there is nothing to measure on, or it cannot be read.
    """
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
    codecs = [_facts(text) for text in dict.fromkeys(options.codecs or (f"magc:{IN_THE_BOX}", *STANDARD))]
    if options.anchor not in {each.name for each in codecs}:
        raise UsageError(
            f"--anchor is {options.anchor}, which is not among the codecs: expected one of "
            f"{', '.join(each.name for each in codecs)}"
        )
    metrics = tile_metrics(setup)
    options.report.mkdir(parents=True, exist_ok=True)
    store = MeasurementStore(options.report / STORE_NAME, _context(metrics), items.digest)
    try:
        _measure(setup, options, store, codecs, numbers)
        _weigh(options, store, codecs, items, numbers)
        return _report(setup, options, store, codecs, numbers)
    finally:
        store.close()


def _facts(text: str) -> CodecFacts:
    if is_decoded_folder(text):
        return CodecFacts(text, Path(text).name, folder_version(text), (0.0,), False)
    codec = open_codec(text)
    return CodecFacts(codec.name, codec.label, codec.version, codec.rates, codec.uses_map)


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


def _context(metrics: Any) -> str:
    """What identifies the way of measuring."""
    parts = [MEASURED_BY, CUT_PX, metrics.identity]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def exhibits(items: EvaluationSet, numbers: dict[On, list[int]]) -> tuple[Exhibit, ...]:
    """What people are shown: some tiles from all over, and the middles of the first scenes."""
    shown = []
    tiles = numbers.get(On.TILES, [])
    places = np.linspace(0, len(tiles) - 1, SHOWN_TILES + 2).round().astype(int)[1:-1] if tiles else []
    for number in dict.fromkeys(tiles[place] for place in places):
        item = items.items[number]
        shown.append(Exhibit(number, 0, 0, max(item.width_px, item.height_px)))
    for number in numbers.get(On.SCENES, [])[:SHOWN_SCENES]:
        item = items.items[number]
        left_px, top_px = (max(0, (side - SHOWN_SIDE_PX) // 2) for side in (item.width_px, item.height_px))
        shown.append(Exhibit(number, left_px, top_px, SHOWN_SIDE_PX))
    return tuple(shown)


# --- measuring -------------------------------------------------------------------------------------------------------


def points(codecs: Iterable[CodecFacts], kinds: Iterable[On]) -> Iterator[Point]:
    """All points of the plots; the originals first, which everything is set against."""
    for on in kinds:
        yield Point(ORIGINAL, "", 0.0, on)
    for codec in codecs:
        for on in kinds:
            for rate in codec.rates:
                yield Point(codec.name, codec.version, rate, on)


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
            tasks.append(Task(setup, point.codec, point.rate, some, parts))
    workers = min(options.workers or usable_cores(), max(1, len(tasks)))
    with _bar(total, finished, quiet=options.quiet) as bar:
        for done in run_local(work, tasks, workers):
            version = versions[done.codec]
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
    wanted = [
        (codec, on)
        for codec in codecs
        for on in numbers
        if not is_decoded_folder(codec.name) and store.footprint(codec.name, codec.version, on) is None
    ]
    for codec, on in tqdm(
        wanted, desc="time and memory", unit="codec", disable=options.quiet or not wanted, file=sys.stderr
    ):
        loaded = items.load(items.items[numbers[on][0]])
        store.add_footprint(codec.name, codec.version, on, footprint(codec.name, *loaded))


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
