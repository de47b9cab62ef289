"""What a chunk of a Zarr array is stored as."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magc_model.bitstream import TILE_MAGIC
from magc_model.chunk_stream import CHUNK_MAGIC, pack_chunk, unpack_chunk
from magc_model.errors import BitstreamError

STREAMS = st.lists(st.binary(max_size=300).map(TILE_MAGIC.__add__), min_size=1, max_size=5)


@given(STREAMS)
def test_unpack_inverts_pack(streams: list[bytes]) -> None:
    assert unpack_chunk(pack_chunk(streams)) == streams


@given(STREAMS.filter(lambda streams: len(streams) > 1), st.data())
def test_what_is_cut_short_or_too_long_is_refused(streams: list[bytes], data: st.DataObject) -> None:
    chunk = pack_chunk(streams)
    with pytest.raises(BitstreamError):
        unpack_chunk(chunk[: data.draw(st.integers(len(CHUNK_MAGIC), len(chunk) - 1))])
    with pytest.raises(BitstreamError, match="1 bytes are left over"):
        unpack_chunk(chunk + b"\0")


def test_version_1_never_changes() -> None:
    assert pack_chunk([b"\x8fMone"]) == b"\x8fMone"
    assert pack_chunk([b"\x8fMone", b"\x8fMthree"]).hex() == "8f5a01" + "02" + "0507" + b"\x8fMone\x8fMthree".hex()


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (CHUNK_MAGIC + b"\2", "the chunk is of version 2, this magc reads version 1"),
        (CHUNK_MAGIC + b"\1\1\0", "a chunk of 1 pictures has no header of its own"),
        (CHUNK_MAGIC + b"\1" + b"\xff" * 9 + b"\1", "its header is longer than the stream"),
        (CHUNK_MAGIC + b"\1" + b"\xff" * 11, "a number in its header is too long"),
    ],
)
def test_what_no_version_writes_is_refused(chunk: bytes, message: str) -> None:
    with pytest.raises(BitstreamError, match=message):
        unpack_chunk(chunk)


def test_no_streams_are_no_chunk() -> None:
    with pytest.raises(ValueError, match="count"):
        pack_chunk([])
