"""Constant ground resolution: how far pixels are from the asked size, against other grids; and what a build costs.

The errors are measured on the WGS 84 ellipsoid (pyproj.Geod), 256 pixels at a time, along parallels and meridians from
75 S to 75 N. UTM is sampled over the whole width of a zone. The builds are of the same ground from the same folder of
tiles (synthetic pictures of a real tile's size, of the zoom that 1.07 m needs there) and a real extract; seconds are
of one core's work, as machines are shared.

    python benchmarks/ground_resolution.py [--pbf FILE --bbox W,S,E,N] [--repeats 2] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

for variable in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "GDAL_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np
from pyproj import Geod, Transformer
from scenes import HELSINKI_BBOX, benchmark_cache, marked_jpeg, synthetic_jpeg

from magc_data.build import build
from magc_data.config import BuildConfig
from magc_data.grid import BoundsLonLat, gsd_m, px_to_lonlat, tile_range, widened
from magc_data.ground_grid import GroundGrid
from magc_data.sources.ground_imagery import right_zoom, tile_pixel_m

GEOD = Geod(ellps="WGS84")
GSD_M = 1.07
LATITUDES = np.linspace(-75, 75, 301)


def _errors(ends: list[tuple[float, float, float, float]], pixels: int) -> float:
    """Greatest error in percent of runs of pixels, each from one lon/lat to another."""
    lon0, lat0, lon1, lat1 = np.array(ends).T
    return float(np.abs(GEOD.inv(lon0, lat0, lon1, lat1)[2] / pixels / GSD_M - 1).max() * 100)


def ground_errors() -> dict[str, float]:
    """Of magc's grid: along the edges of every band, and along meridians."""
    grid = GroundGrid.of(GSD_M)
    wide, high = [], []
    for row in range(grid.row_of(75.0), grid.row_of(-75.0), grid.band_rows):
        band = grid.band(row)
        degrees_x, degrees_y = band.degrees_per_px
        wide += [(0.0, lat, 256 * degrees_x, lat) for lat in (band.south, band.north)]
        high += [(0.0, lat, 0.0, lat + 256 * degrees_y) for lat in (band.south, band.north - 256 * degrees_y)]
    return {"across_percent": _errors(wide, 256), "along_percent": _errors(high, 256)}


def utm_errors() -> dict[str, float]:
    """Of pixels of GSD_M in UTM coordinates."""
    to_lonlat = Transformer.from_crs(32631, 4326, always_xy=True)
    to_utm = Transformer.from_crs(4326, 32631, always_xy=True)
    wide, high, turned = [], [], 0.0
    side = 256 * GSD_M
    for lat in LATITUDES:
        for lon in np.linspace(0, 6, 25):
            x, y = to_utm.transform(lon, lat)
            wide.append((*to_lonlat.transform(x - side / 2, y), *to_lonlat.transform(x + side / 2, y)))
            high.append((*to_lonlat.transform(x, y - side / 2), *to_lonlat.transform(x, y + side / 2)))
            azimuth, _, _ = GEOD.inv(*high[-1])
            turned = max(turned, min(abs(azimuth), abs(abs(azimuth) - 360)))
    return {"across_percent": _errors(wide, 256), "along_percent": _errors(high, 256), "turned_degrees": turned}


def mercator_errors() -> dict[str, float]:
    """Of the web-mercator pixels of the zoom that is nearest to GSD_M at each latitude."""
    wide, high = [], []
    for lat in LATITUDES:
        zoom = int(np.argmin([abs(np.log(gsd_m(lat, zoom) / GSD_M)) for zoom in range(22)]))
        y = (0.5 - np.arcsinh(np.tan(np.radians(lat))) / (2 * np.pi)) * 256 * 2.0**zoom
        lon, lats = px_to_lonlat(np.array([0.0, 256.0]), np.array([y - 128, y + 128]), zoom)
        wide.append((lon[0], lat, lon[1], lat))
        high.append((0.0, lats[0], 0.0, lats[1]))
    return {"across_percent": _errors(wide, 256), "along_percent": _errors(high, 256)}


def build_speeds(pbf: Path, bbox: tuple[float, ...], repeats: int) -> dict[str, dict[str, float]]:
    """Samples a second of builds of one ground from one folder."""
    zoom = right_zoom(bbox[1], GSD_M)
    tiles = tile_range(widened(BoundsLonLat(*bbox), 300.0), zoom)
    nearly = round(tile_pixel_m((bbox[1] + bbox[3]) / 2, zoom) * 1.01, 3)
    ways: dict[str, dict[str, Any]] = {
        f"--zoom {zoom}": {"zoom": zoom},
        f"--gsd {GSD_M} (averaged)": {"gsd": GSD_M},
        f"--gsd {nearly} (Lanczos)": {"gsd": nearly, "imagery_zoom": zoom},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["MAGC_CACHE_DIR"] = str(folder / "cache")
        pictures = [synthetic_jpeg(seed) for seed in range(16)]
        for x in range(tiles.x_min, tiles.x_max + 1):
            (folder / "tiles" / str(zoom) / str(x)).mkdir(parents=True)
            for y in range(tiles.y_min, tiles.y_max + 1):
                content = marked_jpeg(pictures[(x * 7 + y) % 16], (x << 24) + y)
                (folder / "tiles" / str(zoom) / str(x) / f"{y}.jpg").write_bytes(content)
        found = {}
        for label, options in ways.items():
            seconds, manifest = [], {}
            for repeat in range(repeats + 1):  # the first one compiles the kernels and the vectors' store
                out = folder / "out"
                config = BuildConfig(
                    bbox=bbox, imagery=str(folder / "tiles"), osm=str(pbf), workers=1, out=out, **options
                )
                began = time.process_time()
                manifest = build(config, lambda _: None, quiet=True).manifest
                seconds += [time.process_time() - began] if repeat else []
                shutil.rmtree(out)
            kept = manifest["counts"]["kept"]
            found[label] = {"samples": kept, "samples_per_core_s": kept / statistics.median(seconds)}
        return found


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pbf", type=Path)
    parser.add_argument("--bbox", default=",".join(map(str, HELSINKI_BBOX)))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.pbf is None:
        from magc_data.sources.helsinki import helsinki_pbf_path

        options.pbf = helsinki_pbf_path(benchmark_cache())
    result = {
        "errors": {"magc --gsd": ground_errors(), "UTM": utm_errors(), "web-mercator, nearest zoom": mercator_errors()},
        "builds": build_speeds(options.pbf, tuple(map(float, options.bbox.split(","))), options.repeats),
    }
    if options.json:
        print(json.dumps(result))
        return
    for name, errors in result["errors"].items():
        print(f"{name:<28}" + ", ".join(f"{what} {value:.4f}" for what, value in errors.items()))
    for name, speed in result["builds"].items():
        print(f"{name:<28}{speed['samples']} samples, {speed['samples_per_core_s']:.1f} samples a second of one core")


if __name__ == "__main__":
    main()
