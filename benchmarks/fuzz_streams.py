"""Hostile streams: mutated, cut and spliced tiles and scenes, drawn by the codec: what each ends in, and how fast.

    python benchmarks/fuzz_streams.py [--streams 200000] [--seed 0] [--keep FOLDER] [--json]

Half of them get right checks afterwards, so that they reach what lies behind the checks. Each stream is described as
`magc info` does, opened, and decoded to the last symbol under a window; one of 25 is drawn as well, one of 96 into a
GeoTIFF over an existing one. It must end in pixels, in lost chunks of a scene, or in one of the codec's own errors,
within a second of one core and 256 MB; a file that could not be written must be as it was. Anything else is a failure:
its stream is kept in a folder and printed in hex; one that ends the process is kept as current.magc.
The model is that of tests/golden/streams; tiles of more than 65,536 pixels are refused, as a service would set it.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import json
import os
import re
import signal
import sys
import tempfile
import time
import warnings
import zlib
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from magc_model.bitstream import MAP_BYTES, TILE_MAGIC
from magc_model.codec import MagcCodec, MapMismatchWarning, Rate
from magc_model.embedded_map import encode_map
from magc_model.errors import BitstreamError, DataError, MagcModelError, UsageError
from magc_model.reconstruct import Sampling
from magc_model.scene.compress import MapSource, Pixels, compress_scene
from magc_model.scene.georeference import Affine, Georeference, Missing
from magc_model.scene.grid import Window
from magc_model.scene.open import is_scene, open_stream
from magc_model.scene.raster_files import write_scene
from magc_model.scene.read import DamagedChunkWarning, Drawn
from magc_model.scene.stream import HEADER_CHECK_BYTES, SCENE_MAGIC, chunk_check, unpack_header
from magc_model.stream_info import described
from magc_model.wire import CHECK_BYTES, Reader, check24, varint

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "streams"
MAX_PIXELS = 65_536
SLOW_S = 1.0
STUCK_S = 20.0
LARGE_BYTES = 256_000_000
WINDOW_PX = 16
DRAWN, WRITTEN = 25, 96
"""Of so many streams one is drawn, and one into a file: what draws sees symbols, whatever bytes they came from."""
CLASSES = 4
CHUNKS_PUT_RIGHT = 64

NUMBERS = (0, 1, 63, 64, 127, 128, 255, 1024, 65_535, 1 << 20, 2**20 + 1, 2**31 - 1, 2**31, 2**32, 2**63, 2**64 - 1)
"""Where sizes, counts and codes change their nature."""
FLOATS = (0.0, -0.0, 1.0, 5e-324, 1e308, -1e308, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "", "x", "\0", "EPSG:4326", "GEOGCS[", "A[" * 5000, 'LOCAL_CS["a"]', '{"tags":{"a":"b"}}', '{"tags":{"ns":"a"}}',
    '{"tags":{"self":"a"}}', '{"tags":{"MAGC_MODEL":"a"}}', '{"tags":{"":""}}', '{"tags":{"a=b":"c\\u0000d\\n"}}',
    '{"tags":{"a":"\\ud800"}}', '{"tags":{"TIFFTAG_XRESOLUTION":"x","AREA_OR_POINT":"Point"}}', '{"tags":[]}', "[]",
    '{"descriptions":["a",null,"b","c","d"]}', '{"descriptions":"\\ud800"}', '{"descriptions":1}', "[" * 60_000,
    '{"tags":{"a":' + "9" * 5000 + "}}", "x" * 65_536, "x" * 1_000_000,
)  # fmt: skip


class Scene(NamedTuple):
    """Synthetic pixels, of which some may be missing."""

    width_px: int
    height_px: int
    georeference: Georeference

    def read(self, window: Window) -> Pixels:
        """A window of a smooth pattern under noise; a disc is missing where the georeference says that any are."""
        rows, columns = np.mgrid[window.slices]
        noise = np.random.default_rng(window.x_px * 7919 + window.y_px).integers(0, 60, (*rows.shape, 3))
        rgb = ((rows + columns)[..., None] % 190 + noise).astype(np.uint8)
        is_missing = (rows - 40) ** 2 + (columns - 40) ** 2 < 1000
        return Pixels(rgb, None if self.georeference.missing is Missing.NONE else ~is_missing)


class BlockMap:
    """A map of any place: blocks of 16 pixels."""

    def read(self, window: Window) -> Any:
        """Class ids of a window."""
        rows, columns = np.mgrid[window.slices]
        return np.ascontiguousarray((rows // 16 * 3 + columns // 16) % CLASSES, dtype=np.uint8)


def seed_streams(codec: MagcCodec) -> list[bytes]:
    """Streams that are right: tiles and scenes with everything that a stream can hold."""
    maps, streams = BlockMap(), []
    for width, height, class_map, options in (
        (64, 64, maps, {"embed_map": True}),
        (128, 128, maps, {"rate": Rate(quality=4.0)}),
        (75, 40, maps, {"rate": Rate(quality=6.0), "seed": 5}),
        (130, 64, None, {"rate": Rate(quality=1.0)}),
    ):
        window = Window(0, 0, width, height)
        rgb = Scene(width, height, Georeference()).read(window).rgb
        streams.append(codec.compress(rgb, class_map and class_map.read(window), **options))
    north_up = Affine(0.5, 0.0, 2_600_000.0, 0.0, -0.5, 1_200_000.0)
    turned = Affine(0.3, 0.1, 7e5, 0.1, -0.3, 5e6)
    wkt = 'LOCAL_CS["a field",UNIT["metre",1],AXIS["Easting",EAST],AXIS["Northing",NORTH]]'
    for width, height, chunk_px, place, class_map, embed, rate in (
        (150, 140, 64, Georeference(), maps, False, 3.0),
        (128, 100, 64, Georeference(2056, None, north_up), maps, True, 6.0),
        (100, 130, 128, Georeference(None, wkt, turned, Missing.MASK, None, ("red", None, "blue")), None, False, 1.0),
        (200, 70, 64, Georeference(3857, None, north_up, Missing.NODATA, 0, (), (("a", "b"),)), maps, True, 2.0),
        (256, 64, 256, Georeference(tags=(("a", "b"), ("c", "d"))), maps, False, 4.0),
    ):  # fmt: skip
        scene = Scene(width, height, place)
        streams.append(
            compress_scene(
                codec, scene, class_map, rate=Rate(quality=rate), embed_map=embed, chunk_px=chunk_px, seed=width
            ).stream
        )
    return streams


# --- mutations --------------------------------------------------------------------------------------------------------


def mutated(random: np.random.Generator, streams: list[bytes]) -> bytes:
    """A stream with a few things done to it."""
    data = bytearray(_any(random, streams))
    for _ in range(random.integers(1, 5)):
        # Half of them near the front, where each byte means most.
        place = int(random.integers((len(data) if random.integers(2) else min(len(data), 40)) + 1))
        match random.integers(9):
            case 0 if data:
                data[place % len(data)] ^= 1 << int(random.integers(8))
            case 1 if data:
                data[place % len(data)] = int(random.integers(256))
            case 2:
                del data[place:]
            case 3:
                data[place:place] = random.bytes(int(random.integers(1, 9)))
            case 4:
                other = _any(random, streams)
                data[place:] = other[int(random.integers(len(other))) :]
            case 5:
                end = place + int(random.integers(1, 60))
                data[end:end] = data[place:end]
            case 6:
                number = varint(_any(random, NUMBERS))
                data[place : place + int(random.integers(len(number) + 1))] = number
            case _:
                del data[place : place + int(random.integers(1, 9))]
    return bytes(data)


def rewritten(random: np.random.Generator, streams: list[bytes]) -> bytes:
    """A stream with another value in one of its fields, in the right place; a tile's fields are reached by bytes."""
    scenes = [each for each in streams if is_scene(each)]
    data = _any(random, scenes)
    index = unpack_header(data)
    header, chunks = index.header, [data[a:b] for a, b in pairwise(index.offsets)]
    georeference, width, height, chunk_px = header.georeference, header.width_px, header.height_px, header.chunk_px
    match random.integers(5):
        case 0 | 1:
            georeference = _odd_georeference(random)
        case 2:
            width, height = (int(random.integers(1, 300)) for _ in range(2))
            chunk_px = 64 * int(random.integers(1, 17))
        case 3:
            width = _any(random, NUMBERS)
        case _:
            number = int(random.integers(len(chunks)))
            chunks[number] = _with_odd_chunk(random, chunks[number], streams)
    count = -(-width // chunk_px) * -(-height // chunk_px)
    chunks = [chunks[number % len(chunks)] for number in range(min(count, 1000))]
    head = bytearray(SCENE_MAGIC)
    head.append(data[2] & ~0x02 | (0x02 if georeference else 0))
    head += header.entropy_model + varint(width) + varint(height) + bytes([chunk_px // 64])
    head += varint(header.seed)  # none of the scenes above has seed 0
    head += varint(len(georeference)) + georeference if georeference else b""
    head += b"".join(varint(len(each)) for each in chunks)
    return bytes(head) + bytes(HEADER_CHECK_BYTES) + b"".join(chunks)


def _odd_georeference(random: np.random.Generator) -> bytes:
    crs, form, missing, notes = (int(random.integers(high)) for high in (4, 4, 4, 2))
    out = bytes([crs | form << 2 | missing << 4 | notes << 6])
    if crs == 1:
        out += varint(_any(random, (*NUMBERS, 4326, 4978, 5703, 3857)))
    elif crs == 2:
        text = _deflated(random, _any(random, TEXTS))
        out += varint(len(text)) + text
    count = (0, 3, 6, 0)[form]
    out += np.array([_any(random, FLOATS) for _ in range(count)], ">f8").tobytes()
    out += random.bytes(1) if missing == 1 else b""
    return out + (_deflated(random, _any(random, TEXTS)) if notes else b"")


def _with_odd_chunk(random: np.random.Generator, chunk: bytes, streams: list[bytes]) -> bytes:
    """A chunk with a piece of its front replaced by a map that is none of this scene's, or one of another size."""
    odd = _odd_map(int(_any(random, (1, 36, 40, 64))), int(random.integers(4)))
    place = int(random.integers(min(len(chunk), 8) + 1))
    behind = _any(random, streams) if random.integers(2) else chunk
    return chunk[:place] + varint(len(odd)) + odd + behind[place + MAP_BYTES :]


@functools.cache
def _odd_map(height_px: int, seed: int) -> bytes:
    return encode_map(np.random.default_rng(seed).integers(0, 256, (height_px, 64), dtype=np.uint8))


def _deflated(random: np.random.Generator, text: str) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = packer.compress(text.encode()) + packer.flush()
    return data if random.integers(8) else data[: int(random.integers(len(data) + 1))]


def _any(random: np.random.Generator, values: Any) -> Any:
    return values[int(random.integers(len(values)))]


# --- right checks -----------------------------------------------------------------------------------------------------


def repaired(data: bytes) -> bytes:
    """The stream with its checks put right; as it is if it is too far gone for that."""
    return _repaired_scene(data) if is_scene(data) else with_right_check(data)


def with_right_check(data: bytes) -> bytes:
    """A tile with its magic and check put right."""
    body = TILE_MAGIC + data[len(TILE_MAGIC) : -CHECK_BYTES]
    return body + check24(body)


def _repaired_scene(data: bytes) -> bytes:
    try:
        lengths, end = _index(data)
    except BitstreamError:
        return data
    crc = zlib.crc32(data[:end])
    out = bytearray(data[:end] + crc.to_bytes(HEADER_CHECK_BYTES, "big") + data[end + HEADER_CHECK_BYTES :])
    offsets = list(accumulate(lengths[:CHUNKS_PUT_RIGHT], initial=end + HEADER_CHECK_BYTES))
    for number, (start, stop) in enumerate(pairwise(offsets)):
        if stop - start >= CHECK_BYTES and stop <= len(out):
            body = bytes(out[start : stop - CHECK_BYTES])
            out[stop - CHECK_BYTES : stop] = chunk_check(body, number, crc)
    return bytes(out)


def _index(data: bytes) -> tuple[list[int], int]:
    """Lengths of a scene's chunks and where its header ends, whatever its check says."""
    reader = Reader(data)
    reader.take(len(SCENE_MAGIC))
    flags = reader.byte()
    reader.take(4)
    width, height, chunk_px = reader.varint(), reader.varint(), max(1, reader.byte()) * 64
    if flags & 0x04:
        reader.varint()
    if flags & 0x02:
        reader.take(reader.varint())
    count = -(-width // chunk_px) * -(-height // chunk_px)
    return reader.varints(count), reader.place


# --- reading ----------------------------------------------------------------------------------------------------------


def read(codec: MagcCodec, data: bytes, maps: MapSource, *, draw: bool = True, out: Path | None = None) -> str:
    """What became of a stream."""
    kind = "scene" if is_scene(data) else "tile"
    try:
        described(data)
    except BitstreamError:
        opens = False
    else:
        opens = True
    try:
        reader = open_stream(codec, data, maps, sampling=Sampling(steps=0))
        window = _some_window(reader, data)
        if draw:
            reader.read(window)
        elif kind == "tile":
            codec.symbols(data, maps.read(reader.whole))
        reader.read_valid(window)
        written = _written(reader, window, out) if out is not None else None
    except (BitstreamError, UsageError) as error:
        return f"{kind}: {type(error).__name__}"
    except MagcModelError as error:
        raise AssertionError(f"{type(error).__name__} for a damaged stream: {error}") from error
    if not opens:
        raise AssertionError("a stream that cannot be described was drawn")
    lost = ", chunks lost" if reader.damaged else ""
    return f"{kind}: decoded{lost}{'' if written is None else f', {written}'}"


def _some_window(reader: Drawn, data: bytes) -> Window:
    """A small window, in the same place for the same stream."""
    width, height = min(reader.width_px, WINDOW_PX), min(reader.height_px, WINDOW_PX)
    place = zlib.crc32(data)
    return Window(place % (reader.width_px - width + 1), place % (reader.height_px - height + 1), width, height)


def _written(reader: Drawn, window: Window, out: Path) -> str:
    before = b"an existing file"
    out.write_bytes(before)
    try:
        write_scene(out, reader, window, {"MAGC_MODEL": "x"})
    except DataError:
        if out.read_bytes() != before:
            raise AssertionError("a file was written over that could not be finished") from None
        result = "no file"
    else:
        result = "a file"
    if leftovers := [each.name for each in out.parent.iterdir() if each != out]:
        raise AssertionError(f"left behind: {leftovers}")
    return result


class Memory:
    """The process's memory; Linux can start its maximum anew."""

    def __init__(self) -> None:
        self.baseline = self._field("VmRSS")

    def growth(self) -> int:
        """Bytes by which the maximum since the last call was above the baseline."""
        most = self._field("VmHWM")
        Path("/proc/self/clear_refs").write_text("5")
        return most - self.baseline

    @staticmethod
    def _field(name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) * 1024 if found else 0


def hostile(number: int, seed: int, streams: list[bytes]) -> bytes:
    """Stream `number` of a campaign."""
    random = np.random.default_rng([seed, number])
    if number % 6 == 1:
        return repaired(rewritten(random, streams))
    data = mutated(random, streams)
    return repaired(data) if number % 2 else data


@dataclass
class Tally:
    """What became of the streams so far."""

    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    failures: list[dict[str, Any]] = field(default_factory=list)
    streams: int = 0
    slowest_s: float = 0.0
    growth_bytes: int = 0

    def add(self, data: bytes, outcome: str | Exception, seconds: float, growth: int) -> str | None:
        """Count one; what was wrong about it, if anything was."""
        self.slowest_s, self.growth_bytes = max(self.slowest_s, seconds), max(self.growth_bytes, growth)
        wrong = None
        if isinstance(outcome, Exception):
            wrong = repr(outcome)
        elif seconds > SLOW_S or growth > LARGE_BYTES:
            wrong = f"{outcome} in {seconds:.1f} s and {growth / 1e6:.0f} MB"
        else:
            self.outcomes[outcome] += 1
        if wrong is not None:
            self.failures.append({"number": self.streams, "error": wrong, "stream": data.hex()})
        self.streams += 1
        return wrong


def fuzz(count: int, seed: int, keep: Path) -> dict[str, Any]:
    """Read `count` streams, or as many as there is time for before an interruption."""
    codec = MagcCodec.from_pretrained(str(GOLDEN / "model"), device="cpu", max_pixels=MAX_PIXELS)
    maps = BlockMap()
    streams = seed_streams(codec)
    keep.mkdir(parents=True, exist_ok=True)
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "drawn.tif"
        for each in streams * 2:  # what is compiled and loaded at first use is none of the streams' doing
            if "decoded" not in read(codec, each, maps, out=out):
                raise AssertionError("a stream that is right was refused")
        memory = Memory()
        start = time.perf_counter()
        with contextlib.suppress(KeyboardInterrupt):
            for number in range(count):
                data = hostile(number, seed, streams)
                (keep / "current.magc").write_bytes(data)  # remains if the process does not
                memory.growth()
                began = time.process_time()  # the machine may be busy with something else
                outcome = _outcome(codec, data, maps, number % DRAWN == 1, out if number % WRITTEN == 1 else None)
                seconds = time.process_time() - began
                if tally.add(data, outcome, seconds, memory.growth()) is not None:
                    (keep / f"{number}.magc").write_bytes(data)
                if number % 1000 == 999 or number + 1 == count:
                    _say_progress(tally, count, (number + 1) / (time.perf_counter() - start))
    (keep / "current.magc").unlink()
    return {
        "streams": tally.streams,
        "outcomes": dict(tally.outcomes.most_common()),
        "failures": tally.failures,
        "slowest_s": round(tally.slowest_s, 3),
        "more_memory_mb": round(tally.growth_bytes / 1e6, 1),
        "seconds": round(time.perf_counter() - start, 1),
    }


def _outcome(codec: MagcCodec, data: bytes, maps: MapSource, draw: bool, out: Path | None) -> str | Exception:
    signal.setitimer(signal.ITIMER_REAL, STUCK_S)
    try:
        return read(codec, data, maps, draw=draw, out=out)
    except Exception as error:  # noqa: BLE001  (finding these is what it is for)
        return error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _say_progress(tally: Tally, count: int, rate: float) -> None:
    sys.stderr.write(
        f"{tally.streams} of {count}, {rate:.0f} a second, {(count - tally.streams) / rate:.0f} s left; "
        f"{len(tally.failures)} failed, {tally.slowest_s:.2f} s, {tally.growth_bytes / 1e6:.0f} MB more memory\n"
    )


def _stuck(*_: object) -> None:
    raise TimeoutError(f"not done after {STUCK_S:.0f} s")


def main() -> None:
    """Fuzz and print; exit code 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path(__file__).parent / "results" / "hostile")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", MapMismatchWarning)
    warnings.simplefilter("ignore", DamagedChunkWarning)
    signal.signal(signal.SIGALRM, _stuck)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    result = fuzz(arguments.streams, arguments.seed, arguments.keep)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        print(f"{result['streams']} streams in {result['seconds']} s")
        for name, number in result["outcomes"].items():
            print(f"{number:8} {name}")
        print(f"slowest {result['slowest_s']} s, {result['more_memory_mb']} MB more memory than before")
        for failure in result["failures"][:10]:
            print(f"FAILED {failure['number']}: {failure['error']}: {failure['stream']}")
    sys.exit(1 if result["failures"] else 0)


if __name__ == "__main__":
    main()
