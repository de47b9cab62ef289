"""Shards are plain tar: read back by tarfile, GNU tar's rules and webdataset, and the same bytes for the same members."""

from __future__ import annotations

import contextlib
import hashlib
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magc_data.shards.tar import RECORD, ForeignTarError, TarWriter, ustar_header, walk_tar

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


def tar_of_two() -> bytes:
    return write([("17_1_1.map.png", b"map" * 300), ("17_1_1.json", b"{}")])[0]


@given(
    st.lists(
        st.tuples(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", fullmatch=True), st.binary(max_size=2000)),
        max_size=8,
    )
)
def test_walking_inverts_writing(entries: list[tuple[str, bytes]]) -> None:
    content, spans, _ = write(entries)
    names = [name for name, _ in entries]
    assert [tuple(each) for each in walk_tar(io.BytesIO(content))] == [
        (name, *span) for name, span in zip(names, spans, strict=True)
    ]


@pytest.mark.parametrize("start", [0, 3 * RECORD])
def test_every_flipped_byte_of_a_header_is_refused(start: int) -> None:
    content = tar_of_two()
    assert content[start : start + 4] == b"17_1"
    for place in range(start, start + RECORD):
        changed = bytearray(content)
        changed[place] ^= 0x01
        with pytest.raises(ForeignTarError):
            list(walk_tar(io.BytesIO(bytes(changed))))


def test_every_truncation_is_named() -> None:
    content = tar_of_two()
    for size in range(len(content)):
        with pytest.raises(ForeignTarError, match=f"is cut short: it ends at byte {size}"):
            list(walk_tar(io.BytesIO(content[:size])))


def test_something_behind_the_end_is_found_however_far() -> None:
    content = tar_of_two()
    assert len(list(walk_tar(io.BytesIO(content + bytes(3 << 20))))) == 2, "tar pads with zeros"
    with pytest.raises(ForeignTarError, match="behind its end mark"):
        list(walk_tar(io.BytesIO(content + bytes(3 << 20) + b"x")))


@given(st.binary(max_size=4096))
def test_any_bytes_end(content: bytes) -> None:
    with contextlib.suppress(ForeignTarError):
        list(walk_tar(io.BytesIO(content)))
