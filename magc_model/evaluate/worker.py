"""One process's share of an evaluation: compress, decompress from the bytes alone, measure.

One thread a process, so that the figures do not depend on how many processes there are.
"""

import functools
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from magc_model.errors import EvaluationError
from magc_model.evaluate.codecs.protocol import ImageCodec
from magc_model.evaluate.codecs.registry import open_codec
from magc_model.evaluate.decoded_folder import DecodedFolder, is_decoded_folder
from magc_model.evaluate.items import EvaluationSet, Item, Loaded, cuts
from magc_model.evaluate.measurement import ORIGINAL, UNKNOWN_SIZE, Cost, Measurement, On
from magc_model.evaluate.metrics.semantic import open_segmenters
from magc_model.evaluate.metrics.table import MAP_CONSISTENCY, NO_REFERENCE
from magc_model.evaluate.metrics.tile_metrics import Scores, TileMetrics
from magc_model.evaluate.segmenters import MapSegmenter
from magc_model.segmenter_model import SegmenterModel


class Setup(NamedTuple):
    """What all processes of an evaluation share."""

    data: Path
    split: str | None
    on: tuple[On, ...]
    weights_dir: Path | None
    segmenter: Path | None
    """Of `magc-train segmenter`: for map consistency."""
    segmenters: tuple[str, ...]
    """Any others, for mIoU between the segmentations of original and decoded picture."""


class Exhibit(NamedTuple):
    """Part of an item that the report shows, in its own pixels."""

    number: int
    """Of the item."""
    left_px: int
    top_px: int
    side_px: int


class Task(NamedTuple):
    """Some items for one codec at one rate."""

    setup: Setup
    codec: str
    """Its name in the results."""
    text: str
    """What it is opened by."""
    rate: float
    numbers: tuple[int, ...]
    exhibits: tuple[Exhibit, ...]


class Done(NamedTuple):
    """What came of a task."""

    codec: str
    version: str
    """Of what has coded."""
    rate: float
    measurements: list[Measurement]
    pictures: list[tuple[str, bytes]]
    """Key of the item, PNG of the part that is shown."""


def work(task: Task) -> Done:
    """Do a task; importable, for other processes.

    Raises:
        EvaluationError: the codec fails on an item, or gives back a picture of another size.
        DataError, DatasetError: an item cannot be read.
    """
    items, metrics, segmenter = evaluation_set(task.setup), tile_metrics(task.setup), map_segmenter(task.setup)
    found, pictures = [], []
    for number in task.numbers:
        item = items.items[number]
        loaded = items.load(item)
        decoded, cost = _carried(task, item, loaded)
        maps = None
        if segmenter is not None and loaded.semantic_map is not None:
            maps = segmenter.reference(cuts(loaded.semantic_map))
        scores = metrics.measure(cuts(loaded.picture), cuts(decoded), maps)
        if task.codec == ORIGINAL:
            scores = _of_the_picture_alone(scores)
        found.append(
            Measurement(task.codec, task.rate, item.on, item.key, item.width_px, item.height_px, cost, *scores)
        )
        pictures += [(item.key, _png(decoded, each)) for each in task.exhibits if each.number == number]
    return Done(task.codec, _version(task), task.rate, found, pictures)


@functools.lru_cache(maxsize=1)
def evaluation_set(setup: Setup) -> EvaluationSet:
    """The items."""
    return EvaluationSet(setup.data, setup.split, setup.on)


@functools.lru_cache(maxsize=1)
def tile_metrics(setup: Setup) -> TileMetrics:
    """The metrics, with their networks."""
    torch.set_num_threads(1)
    return TileMetrics(
        weights_dir=setup.weights_dir,
        segmenters=open_segmenters(setup.segmenters),
        map_segmenter=map_segmenter(setup),
    )


@functools.lru_cache(maxsize=1)
def map_segmenter(setup: Setup) -> MapSegmenter | None:
    """What looks for the map in decoded pictures, where there is such a thing."""
    if setup.segmenter is None:
        return None
    return MapSegmenter(SegmenterModel.from_pretrained(setup.segmenter), evaluation_set(setup).classes)


@functools.lru_cache(maxsize=1)
def _codec(text: str) -> ImageCodec:
    torch.set_num_threads(1)
    return open_codec(text)


def _version(task: Task) -> str:
    if task.codec == ORIGINAL:
        return ""
    return _folder(task.text).version if is_decoded_folder(task.codec) else _codec(task.text).version


def forget() -> None:
    """Let go of everything that was opened: another evaluation in this process may find other things in its place."""
    for each in (evaluation_set, tile_metrics, map_segmenter, _codec, _folder):
        each.cache_clear()


@functools.lru_cache(maxsize=1)
def _folder(text: str) -> DecodedFolder:
    return DecodedFolder(text)


def _carried(task: Task, item: Item, loaded: Loaded) -> tuple[np.ndarray, Cost]:
    """The picture as it arrives."""
    if task.codec == ORIGINAL:
        return loaded.picture, Cost(loaded.picture.size, None, 0.0, 0.0)
    if is_decoded_folder(task.codec):
        folder = _folder(task.text)
        decoded, size = folder.picture(item.key), folder.stream_bytes(item.key)
        cost = Cost(UNKNOWN_SIZE if size is None else size, None, 0.0, 0.0)
    else:
        codec = _codec(task.text)
        started = time.perf_counter()
        encoded = codec.encode(loaded.picture, loaded.semantic_map, task.rate)
        coded = time.perf_counter()
        decoded = codec.decode(encoded.data, loaded.semantic_map)
        finished = time.perf_counter()
        cost = Cost(len(encoded.data), encoded.stream_bytes, coded - started, finished - coded)
    if decoded.shape != loaded.picture.shape:
        was, is_ = (f"{shape[1]}x{shape[0]}" for shape in (loaded.picture.shape, decoded.shape))
        raise EvaluationError(
            f"{task.codec} gave back {is_} pixels of {item.key}, which has {was}: it cannot be judged"
        )
    return decoded, cost


def _of_the_picture_alone(scores: Scores) -> Scores:
    """What says something of an original: not that it equals itself."""
    return scores._replace(
        values={name: each for name, each in scores.values.items() if name in NO_REFERENCE},
        confusions={name: each for name, each in scores.confusions.items() if name == MAP_CONSISTENCY},
    )


def _png(picture: np.ndarray, part: Exhibit) -> bytes:
    window = slice(part.top_px, part.top_px + part.side_px), slice(part.left_px, part.left_px + part.side_px)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture[window])).save(buffer, "PNG")
    return buffer.getvalue()


def batches(numbers: list[int], size: int) -> Iterator[tuple[int, ...]]:
    """Numbers in groups."""
    for first in range(0, len(numbers), size):
        yield tuple(numbers[first : first + size])
