"""The parsers under coverage-guided fuzzing: bytes that reach new branches are kept and mutated further.

    pip install atheris                    # Linux wheels; not among the extras, since elsewhere it must be built
    python benchmarks/fuzz_atheris.py [CORPUS_FOLDER or INPUT] [-max_total_time=900] [any option of libFuzzer]

The first byte of an input chooses a parser: a tile's fields, a scene's header and chunks, a georeference, an embedded
map, a payload. Checks are put right on the way, so that they keep nothing from what lies behind them. Whatever is
no BitstreamError ends the run, and libFuzzer leaves the input in a file `crash-...`; so do 30 seconds and a gigabyte.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import atheris

with atheris.instrument_imports(include=["magc_model"]):
    from magc_model.bitstream import pack_tile, unpack_tile
    from magc_model.embedded_map import decode_map, encode_map
    from magc_model.errors import BitstreamError
    from magc_model.scene.georeference import Missing, fits, pack_georeference, unpack_georeference
    from magc_model.scene.stream import unpack_chunk, unpack_header
    from magc_model.wire import Reader

import numpy as np
from fuzz_streams import GOLDEN, repaired, seed_streams, with_right_check

from magc_model.codec import MagcCodec
from magc_model.entropy.coder import CodingTables, PayloadDecoder

SYMBOLS = 300
MAX_MAP_SIDE_PX = 256


def tables() -> CodingTables:
    """Three rows: one sharp, one flat, one of a single symbol and its escape."""
    rows = [
        [0, 1, 65_500, 65_535, 65_536],
        [*np.linspace(0, 65_000, 40, dtype=int).tolist(), 65_536],
        [0, 65_535, 65_536],
    ]
    starts = np.cumsum([0, *map(len, rows)])
    return CodingTables(
        np.concatenate(rows).astype(np.int32), starts.astype(np.int32), np.array([-1, -20, 0], np.int32)
    )


TABLES = tables()
ROWS = (np.arange(SYMBOLS) % 3).astype(np.int32)


def tile(data: bytes) -> None:
    """What is read can be written, and is the same then."""
    fields = unpack_tile(with_right_check(data))
    again = unpack_tile(pack_tile(fields))
    if again != fields:
        raise AssertionError(f"{fields} became {again}")


def scene(data: bytes) -> None:
    """Header, georeference and all chunks."""
    stream = repaired(b"\x8fS" + data)
    index = unpack_header(stream)
    place = unpack_georeference(index.header.georeference)
    for number in range(min(64, len(index.offsets) - 1)):
        try:
            unpack_chunk(
                stream[index.offsets[number] : index.offsets[number + 1]],
                number,
                index,
                has_mask=place.missing is not Missing.NONE,
            )
        except BitstreamError:
            continue


def georeference(data: bytes) -> None:
    """What is read can be written, and is the same then."""
    place = unpack_georeference(data)
    if fits(place) and unpack_georeference(pack_georeference(place)) != place:
        raise AssertionError(f"{place} became another")


def embedded_map(data: bytes) -> None:
    """Of the size that its own header says, if that is small."""
    header = int.from_bytes(data[1:5], "little")
    height, width = (header >> 14 & 0x3FFF) + 1, (header & 0x3FFF) + 1
    decode_map(data, min(height, MAX_MAP_SIDE_PX), min(width, MAX_MAP_SIDE_PX))


def payload(data: bytes) -> None:
    """Some symbols of each row."""
    decoder = PayloadDecoder(data, TABLES)
    decoder.decode(ROWS)
    decoder.decode(ROWS[:7])
    decoder.finish()


def numbers(data: bytes) -> None:
    """Varints at once are those one by one."""
    count = data[0] % 16 if data else 0
    one_by_one, at_once = Reader(data[1:]), Reader(data[1:])
    try:
        expected = [one_by_one.varint() for _ in range(count)]
    except BitstreamError:
        expected = None
    try:
        found = at_once.varints(count)
    except BitstreamError:
        found = None
    if found != expected or (found is not None and at_once.place != one_by_one.place):
        raise AssertionError(f"{found} at once, {expected} one by one")


PARSERS = (tile, scene, georeference, embedded_map, payload, numbers)


def one_input(data: bytes) -> None:
    """What libFuzzer calls."""
    if not data:
        return
    try:
        PARSERS[data[0] % len(PARSERS)](data[1:])
    except BitstreamError:
        return


def write_seeds(folder: Path) -> None:
    """Right inputs of each parser, to begin with."""
    folder.mkdir(parents=True, exist_ok=True)
    seeds = []
    for stream in seed_streams(MagcCodec.from_pretrained(str(GOLDEN / "model"), device="cpu")):
        if stream.startswith(b"\x8fS"):
            seeds += [b"\x01" + stream[2:], b"\x02" + unpack_header(stream).header.georeference]
        else:
            seeds += [b"\x00" + stream, b"\x04" + unpack_tile(stream).payload, b"\x05" + b"\x07" + stream]
    random = np.random.default_rng(0)
    for side in (1, 16, 64):
        seeds.append(b"\x03" + encode_map(random.integers(0, 4, (side, side), dtype=np.uint8)))
    for number, each in enumerate(seeds):
        (folder / f"seed-{number:02}").write_bytes(each)


def main() -> None:
    """Seed the corpus and fuzz."""
    arguments = sys.argv[1:]
    corpus = next((each for each in arguments if not each.startswith("-")), None)
    if corpus is None:
        corpus = str(Path(__file__).parent / "results" / "corpus")
        arguments.append(corpus)
    if not Path(corpus).is_file():  # one input is run alone, as libFuzzer does it
        write_seeds(Path(corpus))
    defaults = ["-timeout=30", "-rss_limit_mb=2500", "-malloc_limit_mb=1000", "-max_len=4096"]
    atheris.Setup([sys.argv[0], *defaults, *arguments], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
