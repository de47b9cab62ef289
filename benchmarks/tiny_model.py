"""The model in the box between its two ends, beside VVC and JPEG 2000: the table of docs/models/tiny.md.

Scenes of a dataset that the model has never seen, as one stream each, whole files. The model's streams are the same for
every fidelity: it is the receiver's to choose.

    magc-train segmenter --data west18 south18 --out segmenter      # whose view of the houses is compared with the map
    python benchmarks/tiny_model.py --data heldout18 --segmenter segmenter/model [--sheet sheet.png] [--json]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from magc_model.evaluate.codecs.registry import open_codec
from magc_model.evaluate.items import EvaluationSet
from magc_model.evaluate.measurement import CUT_PX, On
from magc_model.evaluate.metrics.distances import feature_moments, frechet_distance
from magc_model.evaluate.metrics.table import MAP_CONSISTENCY, RANDOM_FEATURES
from magc_model.evaluate.metrics.tile_metrics import Scores, TileMetrics
from magc_model.evaluate.segmenters import MapSegmenter
from magc_model.segmenter_model import SegmenterModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from magc_model.evaluate.items import Loaded

FIDELITIES = (1.0, 0.5, 0.0)
QUALITIES = (1.0, 2.0, 3.0, 4.0)
STANDARD = {"vvc": (60.0, 57.0, 54.0, 51.0), "jpeg2000": (0.015, 0.03, 0.06)}
HOUSE = "building"
VALUES = ("psnr-rgb", "gmsd", "gradient-ratio")
SHOWN_CUTS, SHOWN_QUALITY = 6, 2.0


class Row(NamedTuple):
    """A codec at one rate, over all cuts of 256 px."""

    codec: str
    fidelity: float | None
    rate: float
    bytes: int
    bpp: float
    psnr_db: float
    gmsd: float
    gradient_energy: float
    """Of the original's: squared differences."""
    gradient: float
    """Of the original's: absolute differences."""
    patch_frechet: float
    houses_iou: float


class Bench:
    """Scenes, and what is measured of pictures of them."""

    def __init__(self, data: Path, segmenter: Path) -> None:
        ground = EvaluationSet(data, on=(On.SCENES,))
        self.scenes = [ground.load(item) for item in ground.items]
        self.segmenter = MapSegmenter(SegmenterModel.from_pretrained(segmenter), ground.classes)
        self._metrics = TileMetrics(map_segmenter=self.segmenter, only=(*VALUES, RANDOM_FEATURES, MAP_CONSISTENCY))
        self.originals = _cuts([each.picture for each in self.scenes])
        maps = _cuts([each.semantic_map for each in self.scenes])
        self._reference = self.segmenter.reference(maps)
        self._original_features = feature_moments(self.scores(self.originals).features[RANDOM_FEATURES])
        self.pixels = sum(each.picture[..., 0].size for each in self.scenes)

    def row(self, codec: str, fidelity: float | None, rate: float, streams: list[bytes], drawn: np.ndarray) -> Row:
        """Figures of all cuts."""
        scores, size = self.scores(drawn), sum(map(len, streams))
        confusion = scores.confusions[MAP_CONSISTENCY].sum(0)
        hits = np.diag(confusion)
        iou = hits / (confusion.sum(0) + confusion.sum(1) - hits)
        return Row(
            codec,
            fidelity,
            rate,
            size,
            8 * size / self.pixels,
            *(float(np.nanmean(scores.values[name])) for name in VALUES),
            _gradient(drawn) / _gradient(self.originals),
            float(frechet_distance(self._original_features, feature_moments(scores.features[RANDOM_FEATURES]))),
            float(iou[self.segmenter.classes.index(HOUSE)]),
        )

    def scores(self, cuts: np.ndarray) -> Scores:
        """Everything that is measured of decoded cuts."""
        return self._metrics.measure(self.originals, cuts, self._reference)


def _cuts(pictures: list[Any]) -> np.ndarray:
    """Squares of 256 px."""
    return np.stack(
        [
            picture[row : row + CUT_PX, column : column + CUT_PX]
            for picture in pictures
            for row in range(0, picture.shape[0], CUT_PX)
            for column in range(0, picture.shape[1], CUT_PX)
        ]
    )


def _gradient(cuts: np.ndarray) -> float:
    grey = cuts.astype(np.float32).mean(-1)
    return float(sum(np.abs(np.diff(grey, axis=axis)).mean() for axis in (-1, -2)))


def decoded_cuts(codec: Any, streams: list[bytes], scenes: list[Loaded]) -> np.ndarray:
    """What comes back of streams, in squares of 256 px."""
    drawn = [codec.decode(stream, each.semantic_map) for stream, each in zip(streams, scenes, strict=True)]
    return _cuts(drawn)


def measured(bench: Bench, options: argparse.Namespace) -> Iterator[Row]:
    """All rows; some of the model's cuts side by side on a sheet."""
    yield bench.row("original", None, 0.0, [], bench.originals)
    ends = {fidelity: open_codec(f"magc:{options.model},fidelity={fidelity:g}") for fidelity in FIDELITIES}
    shown = [bench.originals]
    for quality in options.qualities:
        streams = [ends[0.0].encode(each.picture, each.semantic_map, quality).data for each in bench.scenes]
        for fidelity, codec in ends.items():
            drawn = decoded_cuts(codec, streams, bench.scenes)
            yield bench.row(options.model, fidelity, quality, streams, drawn)
            if quality == SHOWN_QUALITY:
                shown.append(drawn)
    if options.sheet:
        numbers = np.linspace(0, len(bench.originals) - 1, SHOWN_CUTS).round().astype(int)
        Image.fromarray(np.vstack([np.hstack(cuts[numbers]) for cuts in shown])).save(options.sheet)
    for name in options.standard:
        codec = open_codec(name)
        for rate in STANDARD[name]:
            streams = [codec.encode(each.picture, each.semantic_map, rate).data for each in bench.scenes]
            yield bench.row(name, None, rate, streams, decoded_cuts(codec, streams, bench.scenes))


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--segmenter", type=Path, required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--qualities", type=float, nargs="+", default=QUALITIES)
    parser.add_argument("--standard", choices=STANDARD, nargs="*", default=list(STANDARD), help="codecs beside it")
    parser.add_argument("--sheet", type=Path, help="picture to write: originals, then faithful, half and realistic")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = measured(Bench(options.data, options.segmenter), options)
    if options.json:
        print(json.dumps([row._asdict() for row in rows], indent=2))
        return
    print(
        "| codec | fidelity | bytes | bpp | PSNR | GMSD | gradients squared | absolute | patch-Frechet | houses IoU |"
    )
    print("|" + "---|" * 10)
    for row in rows:
        fidelity = "" if row.fidelity is None else f"{row.fidelity:g}"
        figures = f"{row.psnr_db:.2f} | {row.gmsd:.3f} | {row.gradient_energy:.2f} | {row.gradient:.2f}"
        meaning = f"{row.patch_frechet:.4f} | {row.houses_iou:.3f}"
        print(f"| {row.codec} | {fidelity} | {row.bytes:,} | {row.bpp:.4f} | {figures} | {meaning} |", flush=True)


if __name__ == "__main__":
    main()
