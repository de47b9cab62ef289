"""Peak memory of a build of 50,000 tiles against one of 5,000, from local sources.

Pictures are synthetic, the OSM extract is real.

Each build is a process of its own, with one worker, so that its peak resident set is the whole story.

    python benchmarks/memory.py [--osm FILE --bbox W,S,E,N] [--small 5000] [--large 50000] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scenes import HELSINKI_BBOX, benchmark_cache, marked_jpeg, synthetic_jpeg

from magc_data import area as areas
from magc_data.build import build
from magc_data.config import BuildConfig


def tiles_mbtiles(path: Path, bbox: tuple[float, ...], zoom: int, count: int) -> int:
    """Write an MBTiles of the first `count` tiles of an area (synthetic pictures); returns how many it holds."""
    pictures = [synthetic_jpeg(seed) for seed in range(16)]
    written = 0
    with sqlite3.connect(path) as database:
        database.execute("create table metadata (name text, value text)")
        database.executemany(
            "insert into metadata values (?, ?)",
            [("format", "jpg"), ("minzoom", str(zoom)), ("maxzoom", str(zoom)), ("name", "synthetic")],
        )
        database.execute(
            "create table tiles (zoom_level integer, tile_column integer, tile_row integer, tile_data blob)"
        )
        for block in areas.blocks(areas.area_from_bbox(tuple(bbox)), zoom):
            tiles = block.tiles[: count - written]
            database.executemany(
                "insert into tiles values (?, ?, ?, ?)",
                [
                    (zoom, t.x, 2**zoom - 1 - t.y, marked_jpeg(pictures[(t.x * 7 + t.y) % 16], written + n))
                    for n, t in enumerate(tiles)
                ],
            )
            written += len(tiles)
        database.execute("create unique index tile_index on tiles (zoom_level, tile_column, tile_row)")
    database.close()
    return written


def build_in_this_process(imagery: str, osm: str, bbox: str, zoom: int, out: str) -> None:
    """What the child process does; prints its figures as JSON."""
    start = time.perf_counter()
    box = tuple(float(part) for part in bbox.split(","))
    result = build(
        BuildConfig(bbox=box, zoom=zoom, imagery=imagery, osm=osm, workers=1, out=Path(out)), lambda _: None, quiet=True
    )
    print(
        json.dumps(
            {
                "kept": result.manifest["counts"]["kept"],
                "seconds": round(time.perf_counter() - start, 1),
                "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            }
        )
    )


def sized_box(bbox: tuple[float, ...], zoom: int, count: int) -> tuple[float, ...]:
    """A box with the same south-western corner that holds about `count` tiles."""
    west, south, east, north = bbox
    whole = areas.count_tiles(areas.area_from_bbox((west, south, east, north)), zoom)
    share = min(1.0, (count / whole) ** 0.5)
    return (west, south, west + (east - west) * share, south + (north - south) * share)


def main() -> None:
    """Build twice, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--osm", default="helsinki")
    parser.add_argument("--bbox", default=",".join(map(str, HELSINKI_BBOX)))
    parser.add_argument("--zoom", type=int, default=22)
    parser.add_argument("--small", type=int, default=5000)
    parser.add_argument("--large", type=int, default=50000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ["MAGC_CACHE_DIR"] = str(benchmark_cache())
    if arguments.child:
        imagery, osm, bbox, zoom, out = arguments.child
        build_in_this_process(imagery, osm, bbox, int(zoom), out)
        return
    bbox = tuple(float(part) for part in arguments.bbox.split(","))
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for count in (arguments.small, arguments.large):
            box = sized_box(bbox, arguments.zoom, count)
            imagery = Path(scratch) / f"{count}.mbtiles"
            tiles_mbtiles(imagery, box, arguments.zoom, 10**9)
            command = [
                str(imagery),
                arguments.osm,
                ",".join(map(str, box)),
                str(arguments.zoom),
                str(Path(scratch) / str(count)),
            ]
            child = subprocess.run(
                [sys.executable, __file__, "--child", *command], check=True, capture_output=True, text=True
            )
            results.append(json.loads(child.stdout.splitlines()[-1]))
    ratio = results[1]["peak_mb"] / results[0]["peak_mb"]
    if arguments.json:
        print(json.dumps({"small": results[0], "large": results[1], "ratio": round(ratio, 3)}, indent=2))
        return
    for each in results:
        print(f"{each['kept']:>7} samples kept   peak {each['peak_mb']:>7} MB   {each['seconds']} s")
    print(f"ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
