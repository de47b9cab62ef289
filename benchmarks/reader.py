"""Reading a dataset: MagcDataset in random order against `webdataset` on the same shards, one core, the same run.

Both end with the same numpy arrays, the image [256, 256, 3] and the class ids [256, 256]: checked first. `webdataset`
reads the shards in order, which is its best case; to be shuffled it would need a buffer besides. It is timed twice:
decoding as its documentation says (`decode`), and with the very functions that
MagcDataset decodes with, which leaves the difference in finding and reading samples alone. Runs take turns, and what is
counted is the time that the processor worked for them: the files are in memory, and other programs may be running.

    python benchmarks/reader.py [--data DIR] [--repeats 9] [--json]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

# One core, and one thread on it, for both.
for variable in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ[variable] = "1"
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import numpy as np
import webdataset
from PIL import Image

from magc_data.build import build
from magc_data.config import BuildConfig
from magc_data.dataset import MagcDataset
from magc_data.shards.reader import decode_image, decode_map

if TYPE_CHECKING:
    from collections.abc import Iterator

Pair = tuple[str, np.ndarray, np.ndarray]
IMAGES = ("image.jpg", "image.png")


def ours(dataset: MagcDataset) -> Iterator[Pair]:
    """Every sample once, in an order of chance."""
    for number in dataset.order(seed=0).tolist():
        sample = dataset[number]
        yield sample.key, sample.image, sample.semantic_map


def pillow_class_ids(data: bytes) -> np.ndarray:
    """A palette picture's pixels as anyone would read them."""
    return np.asarray(Image.open(io.BytesIO(data)))


def webdataset_as_documented(dataset: MagcDataset) -> Iterator[Pair]:
    """`decode("rgb8")`, with a handler of its own for maps, whose class ids it would turn into colours."""
    shards = webdataset.WebDataset(dataset.to_webdataset_urls(), shardshuffle=False)
    for sample in shards.decode(webdataset.handle_extension("map.png", pillow_class_ids), "rgb8"):
        image = next(sample[name] for name in IMAGES if name in sample)
        yield sample["__key__"], image, sample["map.png"]


def webdataset_with_our_decoding(dataset: MagcDataset) -> Iterator[Pair]:
    """The bytes as they are, decoded as MagcDataset does."""
    for sample in webdataset.WebDataset(dataset.to_webdataset_urls(), shardshuffle=False):
        image = next(sample[name] for name in IMAGES if name in sample)
        yield sample["__key__"], decode_image(image), decode_map(sample["map.png"])


WAYS = {
    "MagcDataset": ours,
    "webdataset": webdataset_as_documented,
    "webdataset, our decoding": webdataset_with_our_decoding,
}


def different(dataset: MagcDataset) -> int:
    """Samples on which any two ways differ."""
    expected = {key: (image, semantic_map) for key, image, semantic_map in ours(dataset)}
    wrong = 0
    for name in list(WAYS)[1:]:
        found = {key: (image, semantic_map) for key, image, semantic_map in WAYS[name](dataset)}
        wrong += len(found.keys() ^ expected.keys())
        wrong += sum(not all(map(np.array_equal, found[key], expected[key])) for key in found.keys() & expected.keys())
    return wrong


def rates(dataset: MagcDataset, repeats: int) -> dict[str, list[float]]:
    """Samples a second of each way in every round; rounds alternate, so that all meet the same disturbances."""
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(repeats):
        for name, read in WAYS.items():
            started = time.process_time()
            count = sum(1 for _ in read(dataset))
            found[name].append(count / (time.process_time() - started))
    return found


def measured(data: Path, repeats: int) -> dict[str, Any]:
    """Everything that is reported."""
    dataset = MagcDataset(data)
    wrong = different(dataset)
    found = rates(dataset, repeats)
    ratios = {
        name: [one / other for one, other in zip(found["MagcDataset"], found[name], strict=True)]
        for name in list(WAYS)[1:]
    }
    return {
        "samples": len(dataset),
        "different_samples": wrong,
        "samples_per_s": {name: statistics.median(each) for name, each in found.items()},
        "times_as_fast": {name: statistics.median(each) for name, each in ratios.items()},
        "times_as_fast_range": {name: [min(each), max(each)] for name, each in ratios.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a dataset; the Banepa sample at zoom 18 where none is given")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or Path(folder) / "banepa"
        if options.data is None:
            sources = {"imagery": "sample-banepa", "osm": "sample-banepa"}
            build(BuildConfig(**sources, zoom=18, out=data, workers=1), lambda _: None, quiet=True)
        result = measured(data, options.repeats)
    if options.json:
        print(json.dumps(result))
        return
    print(f"{result['samples']} samples, {result['different_samples']} that differ")
    for name, rate in result["samples_per_s"].items():
        line = f"{name:<26} {rate:7.0f} samples/s"
        if name in result["times_as_fast"]:
            low, high = result["times_as_fast_range"][name]
            line += f"   MagcDataset is {result['times_as_fast'][name]:.2f} times as fast ({low:.2f} to {high:.2f})"
        print(line)


if __name__ == "__main__":
    main()
