"""Making maps again from the cache: magc against a straightforward pipeline, one core, the same run, the same pixels.

Tiles (synthetic pictures, real sizes) and a real OSM extract are on disk already; what is timed ends with finished
shards. The straightforward pipeline is what one writes in an afternoon with good libraries: the area's features in
memory with an STRtree, `rasterio.features.rasterize` a tile, Pillow for PNGs, `webdataset.TarWriter`. It is given
magc's own features (read from the compiled store in one go) so that the maps must be equal, which spares it reading
the extract. It is timed twice: with the images as PNG (as the paper's code keeps them) and with the server's JPEG
bytes passed through.

    python benchmarks/relabel.py [--pbf FILE --bbox W,S,E,N] [--zoom 18] [--repeats 3] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

# One core, and one thread on it, for both.
for variable in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "GDAL_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np
import rasterio.features
import shapely
import webdataset
from PIL import Image
from scenes import HELSINKI_BBOX, benchmark_cache, tile_server

from magc_data import area as areas
from magc_data import grid
from magc_data.build import build
from magc_data.config import BuildConfig
from magc_data.features import shapes_in_draw_order
from magc_data.inputs import open_inputs
from magc_data.schema.sample import Rejection
from magc_data.shards.reader import decode_map, read_index, read_members


class Timing(NamedTuple):
    """One way's best and median seconds over the repeats."""

    name: str
    best_s: float
    median_s: float


def straightforward(config: BuildConfig, out: Path, *, images_as_png: bool) -> None:
    """The peer: per tile rasterio, Pillow, TarWriter."""
    with open_inputs(config) as opened:
        inputs = opened
    blocks = list(areas.blocks(inputs.area, inputs.zoom))
    # The whole extract, not the box asked for: tiles stick out of a box, and what lies there is on their maps.
    features = inputs.vectors.read(grid.BoundsLonLat(-180.0, -85.0, 180.0, 85.0))
    shapes = shapes_in_draw_order(features, inputs.scheme, inputs.zoom)
    tree = shapely.STRtree(shapes.polygons)
    palette = np.array(inputs.scheme.palette, dtype=np.uint8).tobytes()
    out.mkdir(parents=True)
    # TarWriter prints nothing, but writes with buffered Python tarfile, as its users get it.
    with webdataset.TarWriter(str(out / "shard.tar")) as writer:
        for block in blocks:
            for tile in block.tiles:
                image = inputs.imagery.read(tile)
                if isinstance(image, Rejection):  # outside the extract: the first build did not fetch it either
                    continue
                x_px, y_px = tile.x * 256.0, tile.y * 256.0
                hits = np.sort(tree.query(shapely.box(x_px, y_px, x_px + 256, y_px + 256)))
                local = shapely.transform(shapes.polygons[hits], lambda xy, x=x_px, y=y_px: xy - [x, y])
                pairs = list(zip(local, shapes.class_ids[hits].tolist(), strict=True))
                burnt = (
                    rasterio.features.rasterize(pairs, out_shape=(256, 256), dtype="uint8")
                    if pairs
                    else np.zeros((256, 256), dtype=np.uint8)
                )
                picture = Image.fromarray(burnt)
                picture.putpalette(palette)
                stream = io.BytesIO()
                picture.save(stream, "PNG")
                if images_as_png:
                    png = io.BytesIO()
                    Image.open(io.BytesIO(image.data)).convert("RGB").save(png, "PNG")
                    member = {"image.png": png.getvalue()}
                else:
                    member = {"image.jpg": image.data}
                writer.write(
                    {"__key__": tile.key, **member, "map.png": stream.getvalue(), "json": json.dumps({"key": tile.key})}
                )


def relabel(config: BuildConfig, out: Path) -> None:
    """Ours: the build command's own function, in this process."""
    build(BuildConfig(**{**config.__dict__, "out": out}), lambda _: None, quiet=True)


def different_pixels(ours: Path, theirs: Path) -> int:
    """How many map pixels differ between the two results."""
    rows = read_index(ours).to_pylist()
    peer = {
        sample["__key__"]: sample["map.png"]
        for sample in webdataset.WebDataset(str(theirs / "shard.tar"), shardshuffle=False)
    }
    assert peer.keys() == {row["key"] for row in rows}
    return sum(
        int((decode_map(read_members(ours, row).semantic_map) != decode_map(peer[row["key"]])).sum()) for row in rows
    )


def measure(config: BuildConfig, repeats: int) -> dict[str, Any]:
    """Time every way `repeats` times, interleaved, so that a slow moment of the machine hits all alike."""
    ways = {
        "magc": lambda out: relabel(config, out),
        "straightforward, images as PNG": lambda out: straightforward(config, out, images_as_png=True),
        "straightforward, images passed through": lambda out: straightforward(config, out, images_as_png=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as scratch:
        different = 0
        for repeat in range(repeats):
            outs = {}
            for number, (name, run) in enumerate(ways.items()):
                outs[name] = Path(scratch) / f"{repeat}-{number}"
                start = time.perf_counter()
                run(outs[name])
                seconds[name].append(time.perf_counter() - start)
            ours, *peers = outs.values()
            different += sum(different_pixels(ours, peer) for peer in peers)
            tiles = len(read_index(ours))
            for out in outs.values():
                shutil.rmtree(out)
    timings = [Timing(name, min(each), statistics.median(each)) for name, each in seconds.items()]
    ours = timings[0]
    return {
        "tiles": tiles,
        "zoom": config.zoom,
        "repeats": repeats,
        "different_pixels": different,
        "ways": [
            {
                **timing._asdict(),
                "tiles_per_s": round(tiles / timing.median_s, 1),
                "magc_is_faster": round(timing.median_s / ours.median_s, 2),
            }
            for timing in timings
        ],
    }


def main() -> None:
    """Fill the cache once, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pbf", default="helsinki")
    parser.add_argument("--bbox", default=",".join(map(str, HELSINKI_BBOX)))
    parser.add_argument("--zoom", type=int, default=18)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.environ["MAGC_CACHE_DIR"] = str(benchmark_cache())
    with tile_server() as template, tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack():
        bbox = tuple(float(part) for part in arguments.bbox.split(","))
        config = BuildConfig(
            bbox=bbox,
            zoom=arguments.zoom,
            imagery=template,
            osm=arguments.pbf,
            workers=1,
            rate=100_000.0,
            out=Path(scratch) / "first",
        )
        start = time.perf_counter()
        relabel(config, Path(scratch) / "first")
        first_s = time.perf_counter() - start
        result = {"osm": arguments.pbf, "first_build_s": round(first_s, 2), **measure(config, arguments.repeats)}
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{result['tiles']} tiles at zoom {result['zoom']} of {result['osm']}, one core")
    print(f"{result['repeats']} interleaved repeats; tiles/s and ratios are of the medians")
    print(f"first build (fetch, compile the extract, numba's first compile): {result['first_build_s']} s")
    for way in result["ways"]:
        print(f"  {way['name']:<40} {way['tiles_per_s']:>8} tiles/s   magc is {way['magc_is_faster']} times as fast")
    print(f"map pixels that differ: {result['different_pixels']}")


if __name__ == "__main__":
    main()
