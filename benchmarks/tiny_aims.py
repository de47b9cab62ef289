"""What the model in the box was to reach on ground that it has never seen, and what it does, with paired intervals.

Scenes of a dataset, whole files; cuts of 256 px are drawn again and again, the same for all codecs (bootstrap.py).

    magc-train segmenter --data west18 south18 --out segmenter      # whose view of the houses is compared with the map
    python benchmarks/tiny_aims.py --data heldout18 --segmenter segmenter/model
"""

from __future__ import annotations

import argparse
import json
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tiny_model import HOUSE, Bench, decoded_cuts

from magc_model.evaluate.bootstrap import (
    Resampled,
    class_scores,
    covariance_roots,
    difference,
    draw_cuts,
    estimate,
    feature_moments,
    frechet_draws,
    mean,
    moved_to,
)
from magc_model.evaluate.codecs.registry import open_codec
from magc_model.evaluate.metrics import distances
from magc_model.evaluate.metrics.table import MAP_CONSISTENCY, RANDOM_FEATURES

if TYPE_CHECKING:
    from magc_model.evaluate.metrics.tile_metrics import Scores

DRAWS, SEED = 1000, 0
QUALITY, LOWEST, HIGHEST = 2.0, 1.0, 6.0
VVC_SAME, VVC_TWICE = 57.0, 54.0
"""QPs whose files are as large as the model's at that quality, and twice as large: the sizes are printed."""


class Figures(NamedTuple):
    """A codec at one rate."""

    bpp: float
    psnr_db: Resampled
    gmsd: Resampled
    gradient_energy: Resampled
    """Of the original's."""
    houses_iou: Resampled
    patch_frechet: Resampled


class Aim(NamedTuple):
    """One line of the table."""

    what: str
    aim: str
    found: Resampled
    least: float
    most: float

    def reached(self) -> str:
        """An aim is reached only if the whole interval is."""
        _, low, high, _ = estimate(self.found)
        if low is None or high is None:
            return "undecided"
        verdicts = ((self.least <= low and high <= self.most, "yes"), (high < self.least or self.most < low, "no"))
        return next((word for holds, word in verdicts if holds), "undecided")

    def line(self) -> str:
        """As Markdown."""
        value, low, high, _ = estimate(self.found)
        figures = "undefined" if value is None else f"{value:.3f}"
        figures += "" if low is None else f" ({low:.3f} to {high:.3f})"
        return f"| {self.what} | {self.aim} | {figures} | {self.reached()} |"


class Measured:
    """Figures of any codec on the same scenes, drawn alike."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._weights = draw_cuts(len(bench.originals), DRAWS, SEED)
        features = self._by_cut(bench.scores(bench.originals))
        self._origin = features.reshape(-1, features.shape[-1]).mean(0).astype(np.float64)
        self._reference = feature_moments(features, self._weights, self._origin)
        self._roots = covariance_roots(self._reference)
        self._original = distances.feature_moments(features.reshape(-1, features.shape[-1]))

    def _by_cut(self, scores: Scores) -> np.ndarray:
        features = scores.features[RANDOM_FEATURES]
        return features.reshape(len(self._bench.originals), -1, features.shape[-1])

    def of(self, codec_name: str, rate: float) -> Figures:
        """Compress and decompress all scenes."""
        codec, scenes = open_codec(codec_name), self._bench.scenes
        streams = [codec.encode(each.picture, each.semantic_map, rate).data for each in scenes]
        scores = self._bench.scores(decoded_cuts(codec, streams, scenes))
        features = scores.features[RANDOM_FEATURES]
        distance = distances.frechet_distance(self._original, distances.feature_moments(features))
        moments = feature_moments(self._by_cut(scores), self._weights, self._origin)
        by_class = class_scores(scores.confusions[MAP_CONSISTENCY].astype(np.int64), self._weights).iou
        return Figures(
            8 * sum(map(len, streams)) / self._bench.pixels,
            *(
                mean(scores.values[name].astype(np.float64), self._weights)
                for name in ("psnr-rgb", "gmsd", "gradient-ratio")
            ),
            by_class[self._bench.segmenter.classes.index(HOUSE)],
            moved_to(float(distance), frechet_draws(self._reference, self._roots, moments)),
        )


def ratio(one: Resampled, other: Resampled) -> Resampled:
    """One figure in parts of another, draw by draw."""
    return Resampled(one.value / other.value, one.draws / other.draws)


def aims(measured: Measured, model: str) -> list[Aim]:
    """All of them."""
    realistic, faithful = (measured.of(f"magc:{model},fidelity={fidelity}", QUALITY) for fidelity in (0, 1))
    vvc, vvc_twice = (measured.of("vvc", qp) for qp in (VVC_SAME, VVC_TWICE))
    jpeg2000 = measured.of("jpeg2000", realistic.bpp)
    at = f"at {realistic.bpp:.4f} bpp"
    same, twice, jpeg = f"VVC's at {vvc.bpp:.4f}", f"VVC's at {vvc_twice.bpp:.4f}", f"JPEG 2000's at {jpeg2000.bpp:.4f}"
    found = [
        Aim(
            f"realistic end {at}: gradient energy, of the original's",
            "0.85 to 1.15", realistic.gradient_energy, 0.85, 1.15,
        ),
        Aim(
            f"its patch-Fréchet over {same}",
            "at most 0.5", ratio(realistic.patch_frechet, vvc.patch_frechet), -inf, 0.5,
        ),
        Aim(f"its houses' IoU less {twice}", "above 0", difference(realistic.houses_iou, vvc_twice.houses_iou), 0, inf),
        Aim(f"its GMSD less {jpeg}", "at most 0", difference(realistic.gmsd, jpeg2000.gmsd), -inf, 0),
        Aim(
            f"faithful end {at}: PSNR in dB less {same}",
            "-0.3 or more", difference(faithful.psnr_db, vvc.psnr_db), -0.3, inf,
        ),
    ]  # fmt: skip
    for end, fidelity in (("realistic", 0), ("faithful", 1)):
        known = measured.of(f"magc:{model},fidelity={fidelity}", LOWEST)
        unknown = measured.of(f"magc:{model},fidelity={fidelity},map=off", HIGHEST)
        words = f"{end}, houses' IoU at {known.bpp:.4f} bpp with the map less at {unknown.bpp:.4f} bpp without it"
        worth = 1 - known.bpp / unknown.bpp
        found.append(Aim(words, f"above 0: the map is worth more than {worth:.0%} of the rate",
                         difference(known.houses_iou, unknown.houses_iou), 0, inf))  # fmt: skip
    return found


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--segmenter", type=Path, required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = aims(Measured(Bench(options.data, options.segmenter)), options.model)
    if options.json:
        documents = [{"what": each.what, **estimate(each.found)._asdict(), "reached": each.reached()} for each in found]
        print(json.dumps(documents, indent=2))
        return
    print("| what | aim | found | reached |\n|---|---|---|---|")
    print("\n".join(each.line() for each in found))


if __name__ == "__main__":
    main()
