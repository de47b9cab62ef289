"""Shards are plain tar: read back by tarfile, GNU tar's rules and webdataset, and the same bytes for the same members."""

from __future__ import annotations

import hashlib
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magc_data.shards.tar import TarWriter, ustar_header

names = st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters="_."), min_size=1, max_size=100)
members = st.lists(st.tuples(names, st.binary(max_size=2000)), max_size=8)


def write(entries: list[tuple[str, bytes]]) -> tuple[bytes, list, str]:
    stream = io.BytesIO()
    writer = TarWriter(stream)
    spans = [writer.add(name, data) for name, data in entries]
    digest = writer.finish()
    assert writer.size == len(stream.getvalue())
    return stream.getvalue(), spans, digest


@given(members)
def test_tarfile_reads_what_was_written_and_spans_point_at_it(entries: list[tuple[str, bytes]]) -> None:
    content, spans, digest = write(entries)
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
        found = archive.getmembers()
        assert [member.name for member in found] == [name for name, _ in entries]
        for member, span, (_, data) in zip(found, spans, entries, strict=True):
            assert (member.offset_data, member.size) == span
            assert content[span.offset : span.offset + span.size] == data
            assert (member.mode, member.mtime, member.uid, member.uname) == (0o644, 0, 0, "")
    assert digest == hashlib.sha256(content).hexdigest()


@given(st.binary(max_size=100), st.integers(0, 8**11 - 1))
def test_headers_are_those_of_tarfile(name_bytes: bytes, size: int) -> None:
    """Peer: the standard library's ustar header of the same member, byte for byte."""
    name = name_bytes.hex()[:100] or "x"
    info = tarfile.TarInfo(name)
    info.size = size
    assert ustar_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


def test_v1_bytes_never_change() -> None:
    content, _, digest = write([("17_64069_40915.json", b'{"key":"17_64069_40915"}')])
    assert len(content) == 2048
    assert digest == "1b17b758fe7dd8b63185b67f346a24026fa3b3ad703282f914a45adc91e375fd"


@pytest.mark.parametrize(("name", "size"), [("x" * 101, 1), ("", 1), ("x", 8**11), ("x", -1)])
def test_what_does_not_fit_is_refused(name: str, size: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        ustar_header(name, size)
