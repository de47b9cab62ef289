"""Hostile streams: mutated, cut and spliced ones, read by the codec; what they end in, how fast, in how much memory.

    python benchmarks/fuzz_streams.py [--streams 200000] [--seed 0] [--json]

Half of them get a right check afterwards, so that they reach the decoder. Every stream must end in a picture's symbols
or in one of the codec's own errors, within a second; anything else is a failure, printed with the stream in hex.
The model is that of tests/golden/streams; pictures of more than 65,536 pixels are refused, as a service would set it.
"""

from __future__ import annotations

import argparse
import collections
import json
import resource
import sys
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from magc_model.bitstream import CHECK_BYTES, TILE_MAGIC, unpack_tile
from magc_model.codec import MagcCodec, MapMismatchWarning
from magc_model.errors import BitstreamError, MagcModelError, UsageError

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "streams"
MAX_PIXELS = 65_536
SLOW_S = 1.0


def mutated(random: np.random.Generator, streams: list[bytes]) -> bytes:
    """A stream with a few things done to it."""
    data = bytearray(streams[random.integers(len(streams))])
    for _ in range(random.integers(1, 5)):
        place = int(random.integers(len(data) + 1))
        match random.integers(6):
            case 0 if data:
                data[place % len(data)] ^= 1 << int(random.integers(8))
            case 1 if data:
                data[place % len(data)] = int(random.integers(256))
            case 2:
                del data[place:]
            case 3:
                data[place:place] = random.bytes(int(random.integers(1, 9)))
            case 4:
                other = streams[random.integers(len(streams))]
                data[place:] = other[int(random.integers(len(other))) :]
            case _:
                del data[place : place + int(random.integers(1, 9))]
    return bytes(data)


def with_right_check(data: bytes) -> bytes:
    """The stream with its magic and check put right."""
    body = TILE_MAGIC + data[len(TILE_MAGIC) : -CHECK_BYTES]
    return body + (zlib.crc32(body) & 0xFFFFFF).to_bytes(CHECK_BYTES, "big")


def read(codec: MagcCodec, data: bytes) -> str:
    """What became of a stream."""
    try:
        tile = unpack_tile(data)
        # The right map for whatever size the stream says, so that no stream ends for want of one.
        fits = tile.width_px * tile.height_px <= MAX_PIXELS
        class_ids = np.zeros((tile.height_px, tile.width_px), np.uint8) if fits else None
        codec.symbols(data, class_ids)
    except BitstreamError:
        return "BitstreamError"
    except UsageError:
        return "UsageError"
    except MagcModelError as error:
        return type(error).__name__
    return "decoded"


def fuzz(count: int, seed: int) -> dict[str, Any]:
    """Read `count` streams."""
    codec = MagcCodec.from_pretrained(str(GOLDEN / "model"), device="cpu", max_pixels=MAX_PIXELS)
    streams = [path.read_bytes() for path in sorted(GOLDEN.glob("*.magc"))]
    random = np.random.default_rng(seed)
    outcomes: collections.Counter[str] = collections.Counter()
    slowest, failures = 0.0, []
    for each in streams:  # what is compiled at first use is none of the streams' doing
        read(codec, each)
    before_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.perf_counter()
    for number in range(count):
        data = mutated(random, streams)
        if number % 2:
            data = with_right_check(data)
        began = time.perf_counter()
        try:
            outcomes[read(codec, data)] += 1
        except Exception as error:  # noqa: BLE001  (finding these is what it is for)
            failures.append({"error": repr(error), "stream": data.hex()})
        slowest = max(slowest, time.perf_counter() - began)
        if sys.stderr.isatty() and number % 1000 == 0:
            rate = (number + 1) / (time.perf_counter() - start)
            sys.stderr.write(f"\r{number} of {count}, {rate:.0f} a second, {(count - number) / rate:.0f} s left ")
    return {
        "streams": count,
        "outcomes": dict(outcomes.most_common()),
        "failures": failures,
        "slowest_s": round(slowest, 3),
        "more_memory_mb": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before_bytes) / 1e6, 1),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    """Fuzz and print; exit code 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", MapMismatchWarning)
    result = fuzz(arguments.streams, arguments.seed)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        print(f"{result['streams']} streams in {result['seconds']} s: {result['outcomes']}")
        print(f"slowest {result['slowest_s']} s, {result['more_memory_mb']} MB more memory than before")
        for failure in result["failures"][:10]:
            print(f"FAILED: {failure['error']}: {failure['stream']}")
    sys.exit(1 if result["failures"] or result["slowest_s"] > SLOW_S else 0)


if __name__ == "__main__":
    main()
