"""The rasteriser against `rasterio.features.rasterize` on real city centres: one core, the same run, the same pixels.

The scene is the densest square of tiles of an extract, its features drawn as the build draws them. Three ways:

* rasterio, a tile at a time, with only that tile's shapes (already found and moved to the tile's pixels);
* `burn`, with the very same arguments, the taking apart of the shapely objects included;
* `burn_tiles`, as the build calls it: all shapes taken apart once, then row by row of tiles. Included: `ring_table`.

    python benchmarks/burn.py [--pbf FILE ...] [--zoom 17] [--side 8] [--repeats 7] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

# One core, and one thread on it, for both.
for variable in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "GDAL_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np
import rasterio.features
import shapely
from scenes import benchmark_cache

from magc_data.features import Shapes, shapes_in_draw_order
from magc_data.grid import BoundsLonLat, Tile
from magc_data.rasterize import burn, burn_tiles, ring_table
from magc_data.schema.classes import load_scheme
from magc_data.sources.helsinki import helsinki_pbf_path
from magc_data.sources.http import HttpClient
from magc_data.sources.osm_file import open_osm_file
from magc_data.sources.protocols import SourceContext

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


class Scene(NamedTuple):
    """The tiles of a square and what lies on them."""

    tiles: list[Tile]
    shapes: Shapes
    """Those that touch the square, on the global pixel grid, in draw order."""
    tile_shapes: list[Shapes]
    """For each tile, those that touch it, in the tile's own pixels."""


def read_shapes(pbf: Path, zoom: int) -> Shapes:
    """All features of an extract, as the default scheme draws them."""
    scheme = load_scheme("default")
    with HttpClient() as http:
        context = SourceContext(benchmark_cache(), http, zoom, scheme.tag_keys)
        source = open_osm_file(str(pbf), context)
        world = BoundsLonLat(-180.0, -85.0, 180.0, 85.0)
        source.fetch(world, http)
        return shapes_in_draw_order(source.read(world), scheme, zoom)


def densest_square(shapes: Shapes, zoom: int, side: int) -> Scene:
    """The square of side x side tiles in which most shapes lie."""
    centres = np.floor(shapely.get_coordinates(shapely.centroid(shapes.polygons)) / 256).astype(int)
    x_min, y_min = centres.min(axis=0)
    counts = np.zeros(centres.max(axis=0) - centres.min(axis=0) + 1 + side, dtype=int)
    np.add.at(counts, tuple((centres - [x_min, y_min]).T), 1)
    sums = np.lib.stride_tricks.sliding_window_view(counts, (side, side)).sum(axis=(2, 3))
    column, row = np.unravel_index(sums.argmax(), sums.shape)
    tiles = [Tile(zoom, int(x_min + column + x), int(y_min + row + y)) for y in range(side) for x in range(side)]
    tree = shapely.STRtree(shapes.polygons)

    def touching(left: float, top: float, size: float) -> NDArray[np.int64]:
        return np.sort(tree.query(shapely.box(left, top, left + size, top + size)))

    tile_shapes = []
    for tile in tiles:
        corner = np.array([tile.x * 256.0, tile.y * 256.0])
        hits = touching(*corner, 256.0)
        local = shapely.transform(shapes.polygons[hits], lambda coords, corner=corner: coords - corner)
        tile_shapes.append(Shapes(local, shapes.class_ids[hits]))
    hits = touching(tiles[0].x * 256.0, tiles[0].y * 256.0, side * 256.0)
    return Scene(tiles, Shapes(shapes.polygons[hits], shapes.class_ids[hits]), tile_shapes)


def by_rasterio(scene: Scene) -> list[NDArray[np.uint8]]:
    """The peer."""
    return [
        rasterio.features.rasterize(
            zip(polygons, class_ids.tolist(), strict=True), out_shape=(256, 256), fill=0, dtype="uint8"
        )
        for polygons, class_ids in scene.tile_shapes
    ]


def by_burn(scene: Scene) -> list[NDArray[np.uint8]]:
    """Ours, asked as the peer is asked."""
    return [burn(polygons, class_ids, 256, 256) for polygons, class_ids in scene.tile_shapes]


def by_burn_tiles(scene: Scene) -> list[NDArray[np.uint8]]:
    """Ours, as the build asks."""
    table = ring_table(scene.shapes.polygons)
    return [classes for _, classes in burn_tiles(table, scene.shapes.class_ids, scene.tiles)]


WAYS: dict[str, Callable[[Scene], list[NDArray[np.uint8]]]] = {
    "rasterio per tile": by_rasterio,
    "burn per tile": by_burn,
    "burn_tiles": by_burn_tiles,
}


def measure(name: str, scene: Scene, repeats: int) -> dict[str, Any]:
    """Time every way `repeats` times, interleaved, so that a slow moment of the machine hits all alike."""
    expected, *ours = [way(scene) for way in WAYS.values()]  # compiles, too
    different = [sum(int((a != b).sum()) for a, b in zip(expected, maps, strict=True)) for maps in ours]
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way, run in WAYS.items():
            start = time.perf_counter()
            run(scene)
            seconds[way].append(time.perf_counter() - start)
    peer = statistics.median(seconds["rasterio per tile"])
    return {
        "scene": name,
        "tiles": len(scene.tiles),
        "shapes_per_tile": round(float(np.mean([len(each.class_ids) for each in scene.tile_shapes])), 1),
        "vertices_per_tile": round(
            float(np.mean([shapely.get_num_coordinates(each.polygons).sum() for each in scene.tile_shapes]))
        ),
        "repeats": repeats,
        "ways": [
            {
                "name": way,
                "median_tiles_per_s": round(len(scene.tiles) / statistics.median(taken), 1),
                "best_tiles_per_s": round(len(scene.tiles) / min(taken), 1),
                "times_rasterio": round(peer / statistics.median(taken), 2),
                "pixels_different": pixels,
            }
            for (way, taken), pixels in zip(seconds.items(), [0, *different], strict=True)
        ],
    }


def main() -> None:
    """Measure each extract; Helsinki where none is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pbf", type=Path, nargs="+", help="extracts; default: Helsinki, downloaded once")
    parser.add_argument("--zoom", type=int, default=17)
    parser.add_argument("--side", type=int, default=8, help="of the square, in tiles")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = [
        measure(
            pbf.name,
            densest_square(read_shapes(pbf, arguments.zoom), arguments.zoom, arguments.side),
            arguments.repeats,
        )
        for pbf in arguments.pbf or [helsinki_pbf_path(benchmark_cache())]
    ]
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    for result in results:
        print(
            f"{result['scene']}, zoom {arguments.zoom}: {result['tiles']} tiles of {result['shapes_per_tile']} shapes "
            f"({result['vertices_per_tile']} vertices), {result['repeats']} interleaved repeats, one core"
        )
        for way in result["ways"]:
            print(
                f"  {way['name']:<18} {way['median_tiles_per_s']:>8} tiles/s (best {way['best_tiles_per_s']})   "
                f"{way['times_rasterio']:>6} times rasterio   {way['pixels_different']} pixels different"
            )


if __name__ == "__main__":
    main()
