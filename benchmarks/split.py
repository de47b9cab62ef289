"""What a split by blocks keeps apart, against shuffling the tiles as the dataset's authors do, and how long it takes.

    python benchmarks/split.py [--tiles 50000] [--images FOLDER] [--json]

The tiles are those of square towns scattered over a country at zoom 17, in no dataset: sides, distances and the search
for near-duplicates (over random hashes) need no pixel. With a folder of pictures (*.jpg, different ones), also how many
bits their perceptual hashes are apart, and those of the same pictures encoded again, brightened, or made from half the
pixels.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from PIL import Image, ImageEnhance

from magc_data.splits.ground import smallest_gap_m
from magc_data.splits.near_duplicates import MAX_BITS_APART, near_duplicates, perceptual_hash
from magc_data.splits.sides import Settings, Tiles, assign, stratified_seed

TOWN_TILES = 30
SPLITS = {
    "blocks of 2000 m": Settings(2000.0, (0.8, 0.1, 0.1), None, 0, 0.0, None),
    "blocks of 2000 m, buffer of 300 m": Settings(2000.0, (0.8, 0.1, 0.1), None, 0, 300.0, None),
}


def towns(count: int) -> Tiles:
    """Square towns, each with a class mix of its own."""
    rng = np.random.default_rng(0)
    number = -(-count // TOWN_TILES**2)
    corners = rng.choice(40 * 40, number, replace=False)
    y, x = np.divmod(np.arange(TOWN_TILES**2), TOWN_TILES)
    xs = (96000 + corners % 40 * 50)[:, None] + x
    ys = (45000 + corners // 40 * 50)[:, None] + y
    mixes = rng.dirichlet(np.ones(6), number)
    shares = np.repeat(mixes, TOWN_TILES**2, axis=0)[:count]
    return Tiles(17, xs.reshape(-1)[:count], ys.reshape(-1)[:count], shares, rng.random(count) < 0.3)


def touched_share(tiles: Tiles, sides: np.ndarray) -> float:
    """Share of the test tiles that have a train tile among their eight neighbours."""
    train = set(zip(tiles.x[sides == 0].tolist(), tiles.y[sides == 0].tolist(), strict=True))
    around = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
    test = list(zip(tiles.x[sides == 2].tolist(), tiles.y[sides == 2].tolist(), strict=True))
    return sum(any((x + dx, y + dy) in train for dx, dy in around) for x, y in test) / len(test)


def apart(tiles: Tiles) -> list[dict[str, Any]]:
    """Each way to split: what it keeps apart, and its seconds."""
    shuffled = np.random.default_rng(0).choice(3, len(tiles.x), p=(0.8, 0.1, 0.1)).astype(np.int8)
    results = []
    for name, settings in [("shuffled", None), *SPLITS.items()]:
        start = time.perf_counter()
        sides = shuffled if settings is None else assign(tiles, settings).sides
        results.append(
            {
                "split": name,
                "seconds": round(time.perf_counter() - start, 3),
                "smallest_distance_m": round(smallest_gap_m(tiles.x, tiles.y, sides, tiles.zoom) or 0.0, 1),
                "test_tiles_that_touch_train": round(touched_share(tiles, sides), 4),
                "kept": round(float((sides >= 0).mean()), 4),
            }
        )
    return results


def seconds(tiles: Tiles) -> dict[str, float]:
    """Of the other parts."""
    sides = assign(tiles, SPLITS["blocks of 2000 m"]).sides
    hashes = np.random.default_rng(0).integers(0, 2**64, len(tiles.x), dtype=np.uint64)
    near_duplicates(hashes[:10], sides[:10])  # compile
    parts = {
        "smallest distance": lambda: smallest_gap_m(tiles.x, tiles.y, sides, tiles.zoom),
        "stratify, 1,000 seeds": lambda: stratified_seed(tiles, SPLITS["blocks of 2000 m"]),
        "near-duplicates, all pairs across sides": lambda: near_duplicates(hashes, sides),
    }
    measured = {}
    for name, part in parts.items():
        start = time.perf_counter()
        part()
        measured[name] = round(time.perf_counter() - start, 3)
    return measured


def variants(raw: bytes) -> dict[str, bytes]:
    """The same picture otherwise."""
    with Image.open(io.BytesIO(raw)) as opened:
        picture = opened.convert("RGB")
    changed = {
        "quality 50": (picture, 50),
        "quality 20": (picture, 20),
        "a fifth brighter": (ImageEnhance.Brightness(picture).enhance(1.2), 75),
        "from half the pixels": (picture.resize((128, 128)).resize(picture.size), 75),
    }
    encoded = {}
    for name, (each, quality) in changed.items():
        stream = io.BytesIO()
        each.save(stream, "JPEG", quality=quality)
        encoded[name] = stream.getvalue()
    return encoded


def hashes_of(folder: Path) -> dict[str, Any]:
    """Bits between different pictures, and between each and its variants."""
    raws = [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))]
    start = time.perf_counter()
    hashes = [perceptual_hash(raw) for raw in raws]
    per_picture_ms = (time.perf_counter() - start) / len(raws) * 1000
    histogram = np.zeros(65, dtype=int)
    for number, each in enumerate(hashes):
        for other in hashes[:number]:
            histogram[(each ^ other).bit_count()] += 1
    to_variants: dict[str, list[int]] = {}
    for raw, each in list(zip(raws, hashes, strict=True))[:: max(1, len(raws) // 200)]:
        for name, changed in variants(raw).items():
            to_variants.setdefault(name, []).append((each ^ perceptual_hash(changed)).bit_count())
    return {
        "pictures": len(raws),
        "pairs": int(histogram.sum()),
        "pairs_by_bits_apart": {str(bits): int(count) for bits, count in enumerate(histogram[:17]) if count},
        "near_duplicates": int(histogram[: MAX_BITS_APART + 1].sum()),
        "found_of_variants": {
            name: round(float(np.mean(np.array(bits) <= MAX_BITS_APART)), 3) for name, bits in to_variants.items()
        },
        "ms_a_picture": round(per_picture_ms, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=50_000)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tiles = towns(options.tiles)
    results: dict[str, Any] = {"tiles": options.tiles, "apart": apart(tiles), "seconds": seconds(tiles)}
    if options.images:
        results["images"] = hashes_of(options.images)
    print(json.dumps(results, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
