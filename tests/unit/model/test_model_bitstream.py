"""Tile streams: what is written is read, at the promised price, and nothing else is."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from magc_model.bitstream import MAX_SIDE_PX, TILE_MAGIC, MapKind, TileStream, pack_tile, unpack_tile
from magc_model.errors import BitstreamError

TILE = TileStream(b"\x01\x02\x03\x04", None, 256, 256, 0, MapKind.DIGEST, b"abc", b"payload")

MAPS = st.one_of(
    st.tuples(st.just(MapKind.NONE), st.just(b"")),
    st.tuples(st.just(MapKind.DIGEST), st.binary(min_size=3, max_size=3)),
    st.tuples(st.just(MapKind.EMBEDDED), st.binary(max_size=300)),
)
SIDES = st.one_of(st.integers(1, MAX_SIDE_PX), st.integers(1, 17).map(lambda count: count * 64))
STREAMS = st.builds(
    lambda model, rate, width, height, seed, the_map, payload: TileStream(
        model, rate, width, height, seed, *the_map, payload
    ),
    st.binary(min_size=4, max_size=4),
    st.none() | st.integers(0, 255),
    SIDES,
    SIDES,
    st.just(0) | st.integers(0, 2**64 - 1),
    MAPS,
    st.binary(max_size=200),
)


@given(STREAMS)
@example(TILE)
def test_what_is_written_is_read(stream: TileStream) -> None:
    assert unpack_tile(pack_tile(stream)) == stream


@pytest.mark.parametrize(
    ("fields", "overhead_bytes"),
    [
        ({}, 14),
        ({"rate": 7}, 15),
        ({"map_kind": MapKind.NONE, "map_data": b""}, 11),
        ({"rate": 7, "width_px": 1024, "height_px": 64}, 15),
        ({"rate": 7, "width_px": 250}, 18),
        ({"rate": 7, "seed": 5}, 16),
    ],
)
def test_the_price_around_a_payload(fields: dict, overhead_bytes: int) -> None:
    stream = TILE._replace(**fields)
    assert len(pack_tile(stream)) - len(stream.payload) == overhead_bytes


def test_the_byte_table() -> None:
    """docs/bitstream.md, by hand."""
    body = bytes.fromhex("8f4d29010203040733616263") + b"payload"
    check = (zlib.crc32(body) & 0xFFFFFF).to_bytes(3, "big")
    assert pack_tile(TILE._replace(rate=7)) == body + check
    long = bytes.fromhex("8f4d2601020304ac02408008") + b"payload"
    found = pack_tile(TILE._replace(width_px=300, height_px=64, seed=1024, map_kind=MapKind.NONE, map_data=b""))
    assert found[:-3] == long


@given(STREAMS, st.data())
def test_a_changed_or_missing_byte_is_noticed(stream: TileStream, data: st.DataObject) -> None:
    good = pack_tile(stream)
    place = data.draw(st.integers(0, len(good) - 1))
    if data.draw(st.booleans(), label="cut short"):
        bad = good[:place]
    else:
        bad = bytearray(good)
        bad[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BitstreamError):
        unpack_tile(bytes(bad))


def test_every_error_of_one_byte_changes_the_check() -> None:
    """The CRC is linear: what an error changes depends on its bits and on how many bytes come after it alone."""
    table = np.array([zlib.crc32(bytes([byte])) ^ zlib.crc32(b"\0") for byte in range(256)], np.uint32)
    changes = table[1:].copy()
    for _ in range(20_000):
        assert np.all(changes & 0xFFFFFF)
        changes = table[changes & 255] ^ (changes >> np.uint32(8))


@given(st.binary(max_size=60))
@example(b"\xff" * 40)
@example(b"\x2e" + b"\0" * 4 + b"\xff" * 40)
def test_any_bytes_with_a_right_check_are_a_stream_or_refused(body: bytes) -> None:
    body = TILE_MAGIC + body
    data = body + (zlib.crc32(body) & 0xFFFFFF).to_bytes(3, "big")
    try:
        stream = unpack_tile(data)
    except BitstreamError:
        return
    assert len(stream.payload) + len(stream.map_data) < len(data)
    assert unpack_tile(pack_tile(stream)) == stream


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"\x89PNG\r\n\x1a\n", "begins with 89 50 4e 47"),
        (TILE_MAGIC, "cut short"),
        (TILE_MAGIC + b"\x49" + bytes(30), "of version 2, this magc reads version 1"),
        (pack_tile(TILE)[:-1], "damaged or cut short"),
    ],
)
def test_what_is_no_stream_is_named(data: bytes, message: str) -> None:
    with pytest.raises(BitstreamError, match=message):
        unpack_tile(data)


@pytest.mark.parametrize(
    "fields",
    [
        {"entropy_model": b"123"},
        {"rate": 256},
        {"width_px": 0},
        {"height_px": MAX_SIDE_PX + 1},
        {"seed": 2**64},
        {"map_data": b"ab"},
        {"map_kind": MapKind.NONE},
    ],
)
def test_fields_out_of_range_are_no_stream(fields: dict) -> None:
    with pytest.raises(ValueError, match="is out of range"):
        pack_tile(TILE._replace(**fields))
