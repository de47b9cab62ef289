"""The map encoder against Pillow on real maps: one core, the same run, the same pixels after decoding.

Maps are those of the densest 8x8 tiles of an extract at zoom 17, in the default scheme.

    python benchmarks/png.py [--pbf FILE ...] [--repeats 7] [--json]
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from burn import densest_square, read_shapes
from PIL import Image
from scenes import benchmark_cache

from magc_data.png import encode_palette_png
from magc_data.rasterize import burn_tiles, ring_table
from magc_data.schema.classes import load_scheme
from magc_data.sources.helsinki import helsinki_pbf_path

PALETTE = np.array(load_scheme("default").palette, dtype=np.uint8)


def ours(classes: np.ndarray) -> bytes:
    """The encoder of the build."""
    return encode_palette_png(classes, PALETTE)


def pillow(classes: np.ndarray, **options: int) -> bytes:
    """Pillow, with its own choice of everything that is not given."""
    picture = Image.fromarray(classes)
    picture.putpalette(PALETTE.tobytes())
    stream = io.BytesIO()
    picture.save(stream, "PNG", **options)
    return stream.getvalue()


WAYS = {
    "magc": ours,
    "Pillow": pillow,
    "Pillow, compress_level 1": lambda classes: pillow(classes, compress_level=1),
}


def measure(pbf: Path, repeats: int) -> dict[str, Any]:
    """Encode all maps with each way, interleaved."""
    scene = densest_square(read_shapes(pbf, 17), 17, 8)
    rings = ring_table(scene.shapes.polygons)
    maps = [burnt.copy() for _, burnt in burn_tiles(rings, scene.shapes.class_ids, scene.tiles)]
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    sizes: dict[str, float] = {}
    different = 0
    for name, encode in WAYS.items():
        files = [encode(classes) for classes in maps]  # also numba's compilation, which is not timed
        sizes[name] = statistics.mean(len(each) for each in files)
        for classes, each in zip(maps, files, strict=True):
            with Image.open(io.BytesIO(each)) as picture:
                different += int((np.asarray(picture) != classes).sum())
    for _ in range(repeats):
        for name, encode in WAYS.items():
            start = time.perf_counter()
            for classes in maps:
                encode(classes)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    return {
        "extract": pbf.name,
        "maps": len(maps),
        "repeats": repeats,
        "different_pixels": different,
        "ways": [
            {
                "name": name,
                "maps_per_s": round(len(maps) / medians[name]),
                "mean_bytes": round(sizes[name]),
                "magc_is_faster": round(medians[name] / medians["magc"], 2),
            }
            for name in WAYS
        ],
    }


def main() -> None:
    """Measure every extract."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pbf", type=Path, nargs="+")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = [measure(pbf, arguments.repeats) for pbf in arguments.pbf or [helsinki_pbf_path(benchmark_cache())]]
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    for result in results:
        print(f"{result['extract']}: {result['maps']} maps, {result['repeats']} interleaved repeats, one core")
        for way in result["ways"]:
            print(
                f"  {way['name']:<26} {way['maps_per_s']:>6} maps/s  {way['mean_bytes']:>6} bytes"
                f"   magc is {way['magc_is_faster']} times as fast"
            )
        print(f"  pixels different after decoding: {result['different_pixels']}")


if __name__ == "__main__":
    main()
