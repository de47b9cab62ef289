"""What a report says beside figures: of which data, by which codecs and metrics, on which machine; and its pictures."""

import platform
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from io import BytesIO
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from magc_data.schema.classes import SemanticClass
from magc_data.version import __version__
from magc_model.evaluate.codecs.protocol import ClassMap, Picture
from magc_model.evaluate.items import EvaluationSet
from magc_model.evaluate.measurement import CUT_PX, ORIGINAL, UNKNOWN_SIZE, On
from magc_model.evaluate.metrics.distances import feature_moments, frechet_distance, kernel_distance
from magc_model.evaluate.metrics.table import (
    INCEPTION_DISTANCES,
    MAP_CONSISTENCY,
    RANDOM_DISTANCE,
    Made,
    Metric,
)
from magc_model.evaluate.metrics.tile_metrics import TileMetrics
from magc_model.evaluate.report.pictures import Decoded, Example
from magc_model.evaluate.request import EvaluateOptions
from magc_model.evaluate.results import (
    Better,
    ClassInfo,
    CodecFootprint,
    CodecInfo,
    Fact,
    MetricInfo,
    MissingMetric,
)
from magc_model.evaluate.samples import Distance, DistanceKind
from magc_model.evaluate.segmenters import segmenter_digest
from magc_model.evaluate.store import MeasurementStore, Point
from magc_model.evaluate.summarise import Description
from magc_model.evaluate.worker import Exhibit, Setup, evaluation_set, map_segmenter

SHOWN_TILES, SHOWN_SCENES = 4, 2
SHOWN_SIDE_PX = 512
"""Of a scene: its middle."""

_DECIMALS = {"dB": 2, "of 100": 1, "ΔE": 2}
"""By unit; 3 for all others."""


class CodecFacts(NamedTuple):
    """What a codec says of itself."""

    text: str
    """What it is opened by, with its rates."""
    name: str
    label: str
    version: str
    rates: tuple[float, ...]
    uses_map: bool


def points(codecs: Iterable[CodecFacts], kinds: Iterable[On]) -> Iterator[Point]:
    """All points of the plots; the originals first, which everything is set against."""
    for on in kinds:
        yield Point(ORIGINAL, "", 0.0, on)
    for codec in codecs:
        for on in kinds:
            for rate in codec.rates:
                yield Point(codec.name, codec.version, rate, on)


# --- words -----------------------------------------------------------------------------------------------------------


def description(
    setup: Setup,
    options: EvaluateOptions,
    anchor: str,
    codecs: Sequence[CodecFacts],
    numbers: dict[On, list[int]],
    metrics: TileMetrics,
    footprints: tuple[CodecFootprint, ...],
) -> Description:
    """What measurements do not say of themselves."""
    items, segmenter = evaluation_set(setup), map_segmenter(setup)
    counts = ", ".join(f"{len(there)} {on if len(there) > 1 else on[:-1]}" for on, there in numbers.items())
    labels = [each.label for each in codecs]
    infos = tuple(
        # Two of one label are told apart by how they were asked for.
        CodecInfo(
            each.name,
            each.label if labels.count(each.label) == 1 else f"{each.label} ({each.name})",
            each.version,
            each.uses_map,
        )
        for each in codecs
    )
    return Description(
        title=f"{setup.data.name}: {counts}",
        data=(
            Fact("data", setup.data.name if setup.split is None else f"{setup.data.name}, split {setup.split}"),
            Fact("samples", f"sha256 {items.digest}"),
            Fact("measured on", f"{counts}, in squares of {CUT_PX} px"),
        ),
        settings=(
            Fact("seed", str(options.seed)),
            *([] if segmenter is None else [Fact("segmenter of the map", segmenter.name)]),
            *(Fact("segmentation model", f"{each}, sha256 {segmenter_digest(each)}") for each in setup.segmenters),
            *(Fact("weights", f"{each.metric}: {each.file}, sha256 {each.sha256}") for each in metrics.weights),
        ),
        metrics=tuple(_info(each) for each in metrics.table),
        missing=tuple(MissingMetric(*each) for each in metrics.missing),
        codecs=infos,
        classes={each.name: _classes(each, items.classes) for each in metrics.table if each.made is Made.MEAN_IOU},
        anchor=anchor,
        run=(
            Fact("date", datetime.now(UTC).isoformat(timespec="seconds")),
            Fact("command", shlex.join(("magc", *sys.argv[1:]))),
            Fact("magc", __version__),
            Fact("torch", torch.__version__),
            Fact("python", platform.python_version()),
            Fact("machine", _machine()),
            Fact("worker processes", "one for each core" if not options.workers else str(options.workers)),
        ),
        footprints=footprints,
    )


def _info(metric: Metric) -> MetricInfo:
    decimals = _DECIMALS.get(metric.unit, 3)
    return MetricInfo(
        metric.name, metric.label, metric.unit, Better(metric.better.value), metric.group.value, metric.about, decimals
    )


def _classes(metric: Metric, classes: tuple[SemanticClass, ...]) -> tuple[ClassInfo, ...]:
    """With the map's own colours for the map's classes, and any that can be told apart for others."""
    colors = {each.name: each.color for each in classes} if metric.name == MAP_CONSISTENCY else {}
    found = []
    for number, name in enumerate(metric.classes):
        color = colors.get(name, tuple(int(255 * part) for part in _hue(number / len(metric.classes))))
        found.append(ClassInfo(name, "#" + "".join(f"{each:02x}" for each in color)))
    return tuple(found)


def _hue(share: float) -> tuple[float, float, float]:
    import colorsys

    return colorsys.hls_to_rgb(share, 0.45, 0.6)


def _machine() -> str:
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:  # noqa: PTH123  (a device, not a path of ours)
            name = next(line.partition(":")[2].strip() for line in stream if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {torch.get_num_threads()} thread a process, {platform.system()}"


def _frechet(originals: np.ndarray, decoded: np.ndarray) -> float:
    return frechet_distance(feature_moments(originals), feature_moments(decoded))


def _kernel(originals: np.ndarray, decoded: np.ndarray) -> float:
    return kernel_distance(originals, decoded).mean


_COMPUTED = {Made.FRECHET: (DistanceKind.FRECHET, _frechet), Made.KERNEL: (DistanceKind.KERNEL, _kernel)}
DISTANCES = {
    each.name: Distance(each.features, *_COMPUTED[each.made]) for each in (RANDOM_DISTANCE, *INCEPTION_DISTANCES)
}


# --- pictures --------------------------------------------------------------------------------------------------------


def exhibits(items: EvaluationSet, numbers: dict[On, list[int]]) -> tuple[Exhibit, ...]:
    """What people are shown: the middles of the first scenes, and some tiles from all over."""
    shown = []
    for number in numbers.get(On.SCENES, [])[:SHOWN_SCENES]:
        item = items.items[number]
        left_px, top_px = (max(0, (side - SHOWN_SIDE_PX) // 2) for side in (item.width_px, item.height_px))
        shown.append(Exhibit(number, left_px, top_px, SHOWN_SIDE_PX))
    tiles = numbers.get(On.TILES, [])
    places = np.linspace(0, len(tiles) - 1, SHOWN_TILES + 2).round().astype(int)[1:-1].tolist() if tiles else []
    for number in dict.fromkeys(tiles[place] for place in places):
        item = items.items[number]
        shown.append(Exhibit(number, 0, 0, max(item.width_px, item.height_px)))
    return tuple(shown)


def examples(
    items: EvaluationSet, shown: Sequence[Exhibit], store: MeasurementStore, codecs: Sequence[CodecFacts]
) -> Iterator[Example]:
    """The same parts as all codecs at all rates have them."""
    for part in shown:
        item = items.items[part.number]
        loaded = items.load(item)
        window = (
            slice(part.top_px, part.top_px + part.side_px),
            slice(part.left_px, part.left_px + part.side_px),
        )
        decoded = []
        for point in points(codecs, [item.on]):
            png, size = store.picture(point, item.key), store.file_bytes(point, item.key)
            if point.codec != ORIGINAL and png is not None and size is not None:
                picture = np.asarray(Image.open(BytesIO(png)))
                known = None if size == UNKNOWN_SIZE else size
                decoded.append(Decoded(point.codec, point.rate, picture, known, item.width_px * item.height_px))
        place = "" if item.on is On.TILES else f", from column {part.left_px} and row {part.top_px}"
        colored = None if loaded.semantic_map is None else _colored(loaded.semantic_map[window], items.classes)
        original = np.ascontiguousarray(loaded.picture[window])
        yield Example(item.key, item.on, f"{item.key}{place}", original, colored, tuple(decoded))


def _colored(class_ids: ClassMap, classes: tuple[SemanticClass, ...]) -> Picture:
    palette = np.zeros((256, 3), np.uint8)
    for each in classes:
        palette[each.id] = each.color
    return palette[class_ids]
