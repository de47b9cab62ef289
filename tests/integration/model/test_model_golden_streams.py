"""Streams that were written once decode for ever, to the same bits."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from magc_model.bitstream import pack_tile, unpack_tile
from magc_model.codec import MagcCodec

GOLDEN = Path(__file__).parents[2] / "golden" / "streams"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())


@pytest.fixture(scope="module")
def codec() -> MagcCodec:
    return MagcCodec.from_pretrained(str(GOLDEN / "model"), device="cpu")


def class_map(expected: dict) -> np.ndarray | None:
    if expected["blocks"] is None:
        return None
    height, width = expected["size"]
    blocks = np.array([[int(digit) for digit in row] for row in expected["blocks"]], np.uint8)
    return np.ascontiguousarray(blocks.repeat(16, 0).repeat(16, 1)[:height, :width])


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_golden_stream_decodes_to_the_same_bits(codec: MagcCodec, name: str, threads: int) -> None:
    expected, stream = EXPECTED[name], (GOLDEN / f"{name}.magc").read_bytes()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        symbols = codec.symbols(stream, None if name == "embedded-map" else class_map(expected))
    finally:
        torch.set_num_threads(before)
    assert list(symbols.shape) == expected["symbols"]
    assert len(np.unique(symbols.round())) > 3
    assert hashlib.sha256(symbols.astype("<f8").tobytes()).hexdigest() == expected["sha256"]
    assert pack_tile(unpack_tile(stream)) == stream


@pytest.mark.parametrize("name", EXPECTED)
def test_a_golden_stream_becomes_a_picture(codec: MagcCodec, name: str) -> None:
    expected, stream = EXPECTED[name], (GOLDEN / f"{name}.magc").read_bytes()
    given = None if name == "embedded-map" else class_map(expected)
    assert codec.decompress(stream, given, strict=True).shape == (*expected["size"], 3)
