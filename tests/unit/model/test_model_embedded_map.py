"""Maps inside of streams."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from magc_model.embedded_map import PIECE_PX, decode_map, encode_map
from magc_model.errors import BitstreamError, UsageError

MAPS = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))


@given(MAPS)
def test_a_map_comes_back(class_ids: np.ndarray) -> None:
    assert np.array_equal(decode_map(encode_map(class_ids), *class_ids.shape), class_ids)


def test_a_map_of_large_areas_is_small() -> None:
    class_ids = np.zeros((256, 256), np.uint8)
    class_ids[40:90, 30:200], class_ids[100:, 128:140] = 5, 9
    assert len(encode_map(class_ids)) < 100


@given(MAPS, st.data())
def test_any_damage_is_another_map_or_refused(class_ids: np.ndarray, data: st.DataObject) -> None:
    bad = bytearray(encode_map(class_ids))
    place = data.draw(st.integers(0, len(bad) - 1))
    if data.draw(st.booleans(), label="cut short"):
        del bad[place:]
    else:
        bad[place] ^= data.draw(st.integers(1, 255))
    try:
        found = decode_map(bytes(bad), *class_ids.shape)
    except BitstreamError:
        return
    assert found.shape == class_ids.shape


def test_a_size_that_is_not_the_pictures_is_refused_before_anything_is_made() -> None:
    huge = b"\x2f" + ((1 << 28) - 1).to_bytes(4, "little") + bytes(40)  # 16384 x 16384
    with pytest.raises(BitstreamError, match="of another size"):
        decode_map(huge, 256, 256)
    with pytest.raises(BitstreamError, match="damaged"):
        decode_map(b"", 256, 256)


@pytest.mark.parametrize("shape", [(513, 5), (3, 1030), (700, 900), (512, 512)])
def test_large_maps_travel_in_pieces(shape: tuple[int, int]) -> None:
    class_ids = np.kron(np.random.default_rng(1).integers(0, 7, (30, 35), dtype=np.uint8), np.ones((35, 35), np.uint8))
    class_ids = class_ids[: shape[0], : shape[1]]
    data = encode_map(class_ids)
    assert np.array_equal(decode_map(data, *class_ids.shape), class_ids)
    with pytest.raises(BitstreamError):
        decode_map(data[:-1], *class_ids.shape)
    if max(class_ids.shape) > PIECE_PX:
        with pytest.raises(BitstreamError, match="left over"):
            decode_map(data + b"\0", *class_ids.shape)


def test_noise_is_the_most_that_a_map_takes() -> None:
    for side in (1, 7, 64, 512):
        noise = np.random.default_rng(side).integers(0, 256, (side, side), dtype=np.uint8)
        assert np.array_equal(decode_map(encode_map(noise), side, side), noise)


def test_more_bytes_than_noise_takes_are_refused() -> None:
    data = encode_map(np.zeros((64, 64), np.uint8))
    with pytest.raises(BitstreamError, match="takes 5121 bytes for 64x64 pixels"):
        decode_map(data + bytes(5121 - len(data)), 64, 64)


def test_a_map_without_pixels() -> None:
    with pytest.raises(UsageError, match="a map of 5x0 pixels cannot be embedded"):
        encode_map(np.zeros((0, 5), np.uint8))


# --- a bitstream that asks for as many Huffman tables as there are blocks ---------------------------------------------


class Bits:
    """Numbers of any count of bits, the lowest first (the WebP lossless bitstream specification, section 2)."""

    def __init__(self) -> None:
        self.bits: list[int] = []

    def add(self, *fields: tuple[int, int]) -> None:
        for value, count in fields:
            self.bits += [value >> place & 1 for place in range(count)]

    def bytes(self) -> bytes:
        return np.packbits(np.array(self.bits, np.uint8), bitorder="little").tobytes()


ONE_SYMBOL = ((1, 1), (0, 1), (0, 1), (0, 1))
"""A code of symbol 0 alone: four bits, for which the library makes a table of 256 entries."""
ORDER_TO_8 = (17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8)


def bytes_of_eight_bits(unused: int) -> list[tuple[int, int]]:
    """A code that gives every byte eight bits; `unused` symbols follow in its alphabet."""
    lengths = [(int(each in (0, 8)), 3) for each in ORDER_TO_8]
    return [(0, 1), (len(ORDER_TO_8) - 4, 4), *lengths, (0, 1), *[(1, 1)] * 256, *[(0, 1)] * unused]


def many_tables(side_px: int) -> bytes:
    """A map of class 0 whose every 4 x 4 block has five Huffman codes of its own."""
    out = Bits()
    out.add((0x2F, 8), (side_px - 1, 14), (side_px - 1, 14), (0, 1), (0, 3))
    out.add((0, 1), (0, 1), (1, 1), (0, 3))  # no transform, no colour cache, codes a block: 4 x 4 pixels
    out.add((0, 1), *bytes_of_eight_bits(24), *bytes_of_eight_bits(0), *ONE_SYMBOL, *ONE_SYMBOL, *ONE_SYMBOL)
    groups = min(((side_px + 3) // 4) ** 2, 1 << 16)
    for group in range(groups):
        out.add(*((int(f"{byte:08b}"[::-1], 2), 8) for byte in (group & 255, group >> 8)))
    out.bits += [value for value, _ in ONE_SYMBOL] * 5 * groups
    return out.bytes()


MEASURE = """
import re, sys
from pathlib import Path
from magc_model.embedded_map import PIECE_PX, decode_map, encode_map
from magc_model.errors import BitstreamError

def megabytes(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

decode_map(Path(sys.argv[1]).read_bytes(), 16, 16)
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = megabytes("VmRSS")
print(int(decode_map(Path(sys.argv[2]).read_bytes(), 512, 512).max()))
print(megabytes("VmHWM") - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux, which tells a process's peak memory"
)
def test_a_map_of_as_many_huffman_tables_as_the_format_allows(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(many_tables(16))
    (tmp_path / "bomb").write_bytes(many_tables(PIECE_PX))
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "small"), str(tmp_path / "bomb")]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert found[0] == "0"
    assert 50 < float(found[1]) < 200, "megabytes; 50: the tables are really made"

    whole = many_tables(1024)
    with pytest.raises(BitstreamError):
        decode_map(whole, 1024, 1024)
