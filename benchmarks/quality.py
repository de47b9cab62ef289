"""What the quality signals find on the Banepa sample, and what they cost: offsets, moved and foreign maps, build time.

Offsets: of every tile as it is built. Moved: of the same maps moved by 6 px to the left and down, on purpose. Foreign:
the peaks of maps laid over other tiles' images, which is what a peak is worth that means nothing. Cost: builds from
the cache with and without the signals, in turn.

    python benchmarks/quality.py [--zoom 18] [--repeats 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

for variable in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "GDAL_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np

from magc_data import label
from magc_data.build import build
from magc_data.config import BuildConfig
from magc_data.dataset import MagcDataset, TileSample
from magc_data.quality.signals import TileSignals, tile_signals

MOVED_PX = 6
NOTHING = TileSignals(*(None,) * len(TileSignals._fields))


def timed_build(out: Path, zoom: int) -> float:
    """Processor seconds of a build of the sample in one process; after the first, all of it comes from the cache."""
    started = time.process_time()
    build(
        BuildConfig(imagery="sample-banepa", osm="sample-banepa", zoom=zoom, workers=1, out=out),
        lambda _: None,
        quiet=True,
    )
    return time.process_time() - started


def cost(folder: Path, zoom: int, repeats: int) -> dict[str, Any]:
    """Build time with the signals over build time without, and the signals' own time a tile."""
    timed_build(folder / "dataset", zoom)  # compiles, downloads
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    for number in range(repeats):
        for name, measure in (("with", tile_signals), ("without", lambda *_: NOTHING)):
            label.tile_signals = measure
            seconds[name].append(timed_build(folder / f"{name}{number}", zoom))
    label.tile_signals = tile_signals
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    return {"seconds": medians, "ratio": medians["with"] / medians["without"]}


def offset_px(signals: TileSignals, dx_px: int = 0, dy_px: int = 0) -> int:
    """The larger of how far the best offset is from the true one, across and down."""
    return max(abs(signals.alignment_dx_px - dx_px), abs(signals.alignment_dy_px - dy_px))


def found(samples: list[TileSample]) -> dict[str, Any]:
    """What the signals say of the sample as it is, moved, and mixed up."""
    plain = [tile_signals(each.image, each.semantic_map) for each in samples]
    moved = [
        tile_signals(each.image, np.roll(each.semantic_map, (MOVED_PX, -MOVED_PX), axis=(0, 1))) for each in samples
    ]
    foreign = [
        tile_signals(one.image, other.semantic_map)
        for step in (1, 7, 13)
        for one, other in zip(samples, samples[step:] + samples[:step], strict=True)
    ]
    plain, moved, foreign = ([each for each in some if each.alignment is not None] for some in (plain, moved, foreign))
    return {
        "tiles": len(samples),
        "measured": len(plain),
        "histogram": dict(sorted(Counter(map(offset_px, plain)).items())),
        "histogram_moved": dict(sorted(Counter(offset_px(each, MOVED_PX, -MOVED_PX) for each in moved).items())),
        "alignment": percentiles([each.alignment for each in plain]),
        "alignment_moved": percentiles([each.alignment for each in moved]),
        "peak_foreign": percentiles([each.alignment_peak for each in foreign]),
    }


def percentiles(values: list[float]) -> dict[str, float]:
    """1, 10, 50, 90 and 99 of a hundred."""
    return {f"{each}": round(float(np.percentile(values, each)), 3) for each in (1, 10, 50, 90, 99)}


def milliseconds_a_tile(samples: list[TileSample]) -> float:
    """Median time of one tile's signals, decoded pixels in hand."""
    times = []
    for each in samples:
        started = time.process_time()
        tile_signals(each.image, each.semantic_map)
        times.append(time.process_time() - started)
    return 1000 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoom", type=int, default=18)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        times = cost(Path(folder), options.zoom, options.repeats)
        samples = list(MagcDataset(Path(folder) / "dataset"))
    result = {**found(samples), "ms_a_tile": milliseconds_a_tile(samples), "build": times}
    if options.json:
        print(json.dumps(result))
        return
    print(f"zoom {options.zoom}: {result['tiles']} tiles, {result['measured']} with enough outlines")
    print(f"offset found, px: tiles            {result['histogram']}")
    print(f"  the same, maps moved by {MOVED_PX} px      {result['histogram_moved']} px from the truth")
    for name in ("alignment", "alignment_moved", "peak_foreign"):
        print(f"{name:<16} percentiles  {result[name]}")
    seconds = times["seconds"]
    print(f"build {seconds['with']:.2f} s with, {seconds['without']:.2f} s without: ratio {times['ratio']:.2f}")
    print(f"signals alone {result['ms_a_tile']:.2f} ms a tile")


if __name__ == "__main__":
    main()
