"""Scenes: bytes against information content, memory against size, whether windows show, what a spread budget gains.

    python benchmarks/scene_codec.py bytes  --model MODEL --scene SCENE.tif --osm OSM
    python benchmarks/scene_codec.py memory [--side-px 1024 20480] [--model MODEL]
    python benchmarks/scene_codec.py seams  --model MODEL --scene SCENE.tif --osm OSM [--steps 20] [--side-px 1600]
    python benchmarks/scene_codec.py budget --model MODEL --scene SCENE.tif --osm OSM [--chunk-px 256]

`memory` compresses and decompresses a synthetic GeoTIFF of each size, without diffusion, each in a process of its own;
without --model with random weights of the smallest preset of the tests, which matter for no figure but the time.
`seams` compares gradients across the borders of the windows that pixels are drawn in with those one window further in.
`budget` compares a budget spread over the chunks by rate-distortion with one rate for all of them, at the same bytes,
by the picture's PSNR without diffusion; the model must be a gained one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
import rasterio.windows

from magc_model.codec import MagcCodec, Rate
from magc_model.compress_job import MapChoice, open_maps
from magc_model.host_memory import keep_memory
from magc_model.reconstruct import Sampling
from magc_model.scene.budget import compress_scene_to_size
from magc_model.scene.compress import CompressedScene, compress_scene
from magc_model.scene.grid import WINDOW_OVERLAP_PX, WINDOW_STEP_PX, Window
from magc_model.scene.raster_files import RasterPixels, write_scene
from magc_model.scene.read import SceneReader

ROWS_AT_ONCE = 512


def write_synthetic(path: Path, side_px: int) -> None:
    """A GeoTIFF of blocks in noise, written by strips."""
    random = np.random.default_rng(0)
    with rasterio.open(
        path, "w", driver="GTiff", dtype="uint8", count=3, width=side_px, height=side_px, crs="EPSG:32645", tiled=True,
        transform=rasterio.Affine(1.0, 0, 345000, 0, -1.0, 3057000), compress="deflate", BIGTIFF="IF_SAFER",
    ) as dataset:  # fmt: skip
        for row in range(0, side_px, ROWS_AT_ONCE):
            height = min(ROWS_AT_ONCE, side_px - row)
            blocks = np.kron(random.integers(0, 200, (height // 16 + 1, side_px // 16 + 1)), np.ones((16, 16)))
            strip = blocks[:height, :side_px] + random.integers(0, 40, (3, height, side_px))
            dataset.write(strip.astype(np.uint8), window=rasterio.windows.Window(0, row, side_px, height))


def codec_of(model: str | None) -> MagcCodec:
    """The model's, or one of random weights."""
    if model is not None:
        return MagcCodec.from_pretrained(model)
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from tiny_models import tiny_model

    return MagcCodec(tiny_model())


def peak_mb() -> int:
    """High-water mark of this process; `ru_maxrss` begins at the memory of the process that started it."""
    [line] = [each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmHWM")]
    return round(int(line.split()[1]) / 1e3)


def one_size(path: Path, model: str | None, out: Path) -> dict[str, Any]:
    """Compress and decompress one file in this process; peak memory is that of all of it."""
    keep_memory()
    codec = codec_of(model)
    start = time.perf_counter()
    pixels = RasterPixels(path)
    result = compress_scene(codec, pixels)
    compressed = time.perf_counter()
    peak_compress = peak_mb()
    reader = SceneReader(codec, result.stream, sampling=Sampling(steps=0))
    write_scene(out, reader, reader.whole, {})
    return {
        "side_px": pixels.width_px,
        "bytes": result.cost.total,
        "compress_s": round(compressed - start, 1),
        "decompress_s": round(time.perf_counter() - compressed, 1),
        "peak_compress_mb": peak_compress,
        "peak_mb": peak_mb(),
    }


def memory(sides_px: list[int], model: str | None) -> dict[str, Any]:
    """Peak memory at each size."""
    found = []
    for side_px in sides_px:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "scene.tif"
            write_synthetic(path, side_px)
            arguments = [
                sys.executable,
                __file__,
                "one-size",
                "--scene",
                str(path),
                *(["--model", model] if model else []),
            ]
            done = subprocess.run(arguments, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout))
    return {"sizes": found, "times_the_smallest": round(found[-1]["peak_mb"] / found[0]["peak_mb"], 2)}


def scene_bytes(model: str, scene: Path, osm: str) -> dict[str, Any]:
    """What a real scene costs beyond its information content."""
    codec = MagcCodec.from_pretrained(model)
    with ExitStack() as stack:
        pixels = RasterPixels(scene)
        maps = open_maps(stack, codec, MapChoice(osm=osm), pixels, quiet=True)
        cost = compress_scene(codec, pixels, maps).cost
    tiles = pixels.width_px * pixels.height_px / 256**2
    return {
        **cost._asdict(),
        "tiles": round(tiles, 1),
        "bytes_a_tile": round(cost.total / tiles, 1),
        "overhead_percent": round(100 * (cost.total / cost.ideal - 1), 2),
    }


def seams(model: str, scene: Path, osm: str, steps: int, side_px: int) -> dict[str, Any]:
    """Gradients across window borders against those elsewhere; 1 is none to be seen."""
    codec = MagcCodec.from_pretrained(model)
    with ExitStack() as stack:
        pixels = RasterPixels(scene)
        maps = open_maps(stack, codec, MapChoice(osm=osm), pixels, quiet=True)
        stream = compress_scene(codec, pixels, maps).stream
        window = Window(0, 0, min(side_px, pixels.width_px), min(side_px, pixels.height_px))
        reader = SceneReader(codec, stream, maps, sampling=Sampling(sampler="dpm-solver++", steps=steps))
        drawn, valid = reader.read(window).astype(np.float64), reader.read_valid(window)
    figures: dict[str, Any] = {"steps": steps}
    for name, axis in (("columns", 1), ("rows", 0)):
        step = np.abs(np.diff(drawn, axis=axis)).mean(axis=2)
        both = np.logical_and(*(np.take(valid, np.arange(n, valid.shape[axis] - 1 + n), axis=axis) for n in (0, 1)))
        step = np.where(both, step, np.nan)
        mean = np.nanmean(step, axis=1 - axis)
        number = np.arange(len(mean))
        place = (number + 1) % WINDOW_STEP_PX  # 0: from the last pixel before a window to its first
        later = number + 1 >= WINDOW_STEP_PX
        at_border = later & np.isin(place, (0, WINDOW_OVERLAP_PX))
        in_overlap = later & (place > 0) & (place < WINDOW_OVERLAP_PX)
        elsewhere = ~at_border & ~in_overlap
        base = np.nanmean(mean[elsewhere])
        figures[name] = {
            "border_against_elsewhere": round(float(np.nanmean(mean[at_border]) / base), 3),
            "overlap_against_elsewhere": round(float(np.nanmean(mean[in_overlap]) / base), 3),
            "spread_elsewhere": round(float(np.nanstd(mean[elsewhere]) / base), 3),
        }
    return figures


class RatePoint(NamedTuple):
    """A stream and what it shows."""

    total_bytes: int
    psnr_db: float


def budget(model: str, scene: Path, osm: str, chunk_px: int) -> dict[str, Any]:
    """PSNR of a spread budget above that of one rate for all chunks, interpolated to the same bytes."""
    codec = MagcCodec.from_pretrained(model)
    with ExitStack() as stack:
        pixels = RasterPixels(scene)
        maps = open_maps(stack, codec, MapChoice(osm=osm), pixels, quiet=True)
        whole = Window(0, 0, pixels.width_px, pixels.height_px)
        original = pixels.read(whole).rgb.astype(np.float64)

        def point(found: CompressedScene) -> RatePoint:
            drawn = SceneReader(codec, found.stream, maps, sampling=Sampling(steps=0)).read(whole)
            error = np.square(drawn - original).mean()
            return RatePoint(found.cost.total, float(10 * np.log10(255**2 / error)))

        positions = np.linspace(0, len(codec.model.config.rate.lambdas) - 1, 18)
        uniform = [
            point(compress_scene(codec, pixels, maps, rate=Rate(position=float(each)), chunk_px=chunk_px))
            for each in positions
        ]
        logs = np.log([each.total_bytes for each in uniform])
        rows = []
        for share in (0.15, 0.3, 0.5, 0.7):
            wanted = int(np.exp(logs[0] + share * (logs[-1] - logs[0])))
            spread = point(compress_scene_to_size(codec, pixels, maps, max_bytes=wanted, chunk_px=chunk_px))
            alike = float(np.interp(np.log(spread.total_bytes), logs, [each.psnr_db for each in uniform]))
            same = float(np.exp(np.interp(spread.psnr_db, [each.psnr_db for each in uniform], logs)))
            rows.append({
                "asked_bytes": wanted, "bytes": spread.total_bytes, "psnr_db": round(spread.psnr_db, 3),
                "one_rate_psnr_db": round(alike, 3), "one_rate_bytes_for_same_psnr": round(same),
            })  # fmt: skip
    return {"chunk_px": chunk_px, "one_rate": [each._asdict() for each in uniform], "spread": rows}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["bytes", "memory", "seams", "budget", "one-size"])
    parser.add_argument("--model")
    parser.add_argument("--scene", type=Path)
    parser.add_argument("--osm")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--chunk-px", type=int, default=256)
    parser.add_argument("--side-px", type=int, nargs="+")
    arguments = parser.parse_args()
    if arguments.what == "one-size":
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(one_size(arguments.scene, arguments.model, Path(folder) / "out.tif")))
        return
    if arguments.what == "memory":
        result = memory(arguments.side_px or [1024, 20480], arguments.model)
    else:
        if not (arguments.model and arguments.scene and arguments.osm):
            parser.error(f"{arguments.what} needs --model, --scene and --osm")
        if arguments.what == "bytes":
            result = scene_bytes(arguments.model, arguments.scene, arguments.osm)
        elif arguments.what == "budget":
            result = budget(arguments.model, arguments.scene, arguments.osm, arguments.chunk_px)
        else:
            side_px = (arguments.side_px or [1600])[0]
            result = seams(arguments.model, arguments.scene, arguments.osm, arguments.steps, side_px)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
