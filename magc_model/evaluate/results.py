"""`results.json`: everything that a report says, as figures with intervals. Format 1.

The same measurements give the same bytes, but for the section `run`, which holds what depends on the day and the
machine: date, hardware, times and memory.
"""

import json
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from magc_data.atomic import write_atomically
from magc_model.errors import EvaluationError
from magc_model.evaluate.bootstrap import Estimate
from magc_model.evaluate.curves import Method, Overlap
from magc_model.evaluate.measurement import On
from magc_model.evaluate.typed_json import as_document, from_document

FORMAT = 1
RESULTS_NAME = "results.json"


class Better(StrEnum):
    """Which values of a metric are wanted."""

    HIGHER = "higher"
    LOWER = "lower"
    ONE = "nearest to 1"

    @property
    def sign(self) -> int:
        """1 where a difference above zero is an improvement, -1 where one below zero is, 0 where neither is."""
        return {"higher": 1, "lower": -1}.get(self.value, 0)

    @property
    def arrow(self) -> str:
        """As tables have it behind a metric's name."""
        return {"higher": "↑", "lower": "↓"}.get(self.value, "→1")


class MetricInfo(NamedTuple):
    """What a metric is called and how it is read."""

    name: str
    label: str
    unit: str
    """Empty where it has none."""
    better: Better
    group: str
    """Heading that it stands under, such as "fidelity"."""
    about: str
    """One line: the convention."""
    decimals: int = 3


class MissingMetric(NamedTuple):
    """A metric that could not be had here."""

    name: str
    label: str
    reason: str
    way_out: str


class CodecInfo(NamedTuple):
    """A codec as it was measured."""

    name: str
    label: str
    version: str
    uses_map: bool


class ClassInfo(NamedTuple):
    """A class of a score's confusions."""

    name: str
    color: str
    """#rrggbb."""


class Fact(NamedTuple):
    """A line of the provenance."""

    name: str
    value: str


class Point(NamedTuple):
    """One codec at one of its rates."""

    codec: str
    rate: float
    """The codec's own setting."""
    on: On
    items: int
    """Tiles or scenes."""
    cuts: int
    file_bytes: int | None
    """None where pictures were decoded elsewhere and their files were not given; then there is no rate either."""
    stream_bytes: int | None
    """Of all elementary streams, where they are known."""
    bpp: Estimate
    """Bits of the files a pixel, all files over all pixels."""
    stream_bpp: Estimate | None
    metrics: dict[str, Estimate]
    classes: dict[str, tuple[Estimate, ...]]
    """Intersection over union of each class, by score."""


class Original(NamedTuple):
    """The pictures themselves, whose scores are the ceiling."""

    on: On
    items: int
    cuts: int
    pixels: int
    metrics: dict[str, Estimate]
    classes: dict[str, tuple[Estimate, ...]]


class Fit(NamedTuple):
    """A Bjontegaard difference by one way of drawing curves, or why there is none."""

    method: Method
    delta: Estimate | None
    refused: str | None
    overlap: Overlap | None


class Bjontegaard(NamedTuple):
    """One codec's curve against the anchor's, in one metric."""

    on: On
    metric: str
    codec: str
    metric_deltas: tuple[Fit, ...]
    """Test minus anchor, in the metric's unit."""
    rate_deltas: tuple[Fit, ...]
    """In per cent of the anchor's rate."""


class Comparison(NamedTuple):
    """Two codecs where their rates are nearest to each other."""

    on: On
    codec: str
    rate: float
    bpp: float | None
    other: str
    other_rate: float
    other_bpp: float | None
    differences: dict[str, Estimate]
    """The codec's metric minus the other's, paired; empty where the comparison is refused."""
    refused: str | None


class CodecCost(NamedTuple):
    """What a codec took at one rate, on one thread beside the other processes of the evaluation."""

    codec: str
    rate: float
    on: On
    encode_s_per_megapixel: float
    """Median over the items."""
    decode_s_per_megapixel: float


class CodecFootprint(NamedTuple):
    """What a codec took alone in a process, on one item at its middle rate."""

    codec: str
    on: On
    width_px: int
    height_px: int
    encode_s: float
    decode_s: float
    peak_mb: float
    """Largest resident memory of the process and of the largest program that it ran, together."""


class Statistics(NamedTuple):
    """How intervals are made."""

    draws: int = 2000
    distance_draws: int = 200
    """For distances between sets, each draw of which takes a matrix decomposition."""
    seed: int = 0


class Run(NamedTuple):
    """What another run of the same evaluation may give otherwise."""

    facts: tuple[Fact, ...]
    """Date, command, hardware."""
    costs: tuple[CodecCost, ...]
    footprints: tuple[CodecFootprint, ...]


class Results(NamedTuple):
    """A whole evaluation."""

    format: int
    title: str
    data: tuple[Fact, ...]
    settings: tuple[Fact, ...]
    statistics: Statistics
    anchor: str | None
    """Name of the codec that Bjontegaard differences are against."""
    metrics: tuple[MetricInfo, ...]
    missing: tuple[MissingMetric, ...]
    codecs: tuple[CodecInfo, ...]
    classes: dict[str, tuple[ClassInfo, ...]]
    notes: tuple[str, ...]
    """What a reader must know of the figures, a sentence each."""
    originals: tuple[Original, ...]
    points: tuple[Point, ...]
    bjontegaard: tuple[Bjontegaard, ...]
    comparisons: tuple[Comparison, ...]
    run: Run

    def codec(self, name: str) -> CodecInfo:
        """One of the codecs."""
        return next(each for each in self.codecs if each.name == name)

    def curve(self, codec: str, on: On) -> tuple[Point, ...]:
        """A codec's points, from the smallest files to the largest."""
        found = [each for each in self.points if each.codec == codec and each.on is on]
        return tuple(sorted(found, key=lambda each: each.bpp.value or 0.0))

    def measured_on(self) -> tuple[On, ...]:
        """Tiles, scenes or both."""
        return tuple(on for on in On if any(each.on is on for each in self.points))


def results_json(results: Results) -> bytes:
    """The file's bytes."""
    return (json.dumps(as_document(results), ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode()


def write_results(folder: Path, results: Results) -> Path:
    """Write `results.json`, whole or not at all."""
    path = folder / RESULTS_NAME
    write_atomically(path, results_json(results))
    return path


def read_results(path: Path) -> Results:
    """Read a `results.json`.

    Raises:
        EvaluationError: there is none, or it is damaged or of another format.
    """
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read ({error.strerror}): run `magc evaluate` first") from None
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{path} is damaged ({error}): run `magc evaluate` again, which writes it anew") from None
    found = document.get("format") if isinstance(document, dict) else None
    if found != FORMAT:
        raise EvaluationError(f"{path} is of format {found}, this build reads {FORMAT}: run `magc evaluate` again")
    try:
        results: Results = from_document(Results, document)
    except EvaluationError as error:
        raise EvaluationError(f"{path} is damaged ({error}): run `magc evaluate` again, which writes it anew") from None
    return results
