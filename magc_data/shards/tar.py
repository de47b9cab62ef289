"""Byte-reproducible tar: plain ustar members, nothing in a header but name, size and a fixed mode; offsets known."""

from __future__ import annotations

import hashlib
import os
import re
from typing import IO, TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

RECORD = 512

_MEMBER_NAME = re.compile(rb"[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""Letters, digits and points: no folders, nothing hidden, no `..`."""


class MemberSpan(NamedTuple):
    """Where a member's bytes lie in the tar."""

    offset: int
    size: int


def ustar_header(name: str, size: int) -> bytes:
    """The 512-byte POSIX.1-1988 header of a regular file, mode 0644, owner 0, time 0.

    Raises:
        ValueError: the name or size does not fit the format.
    """
    encoded = name.encode("ascii")
    if not 0 < len(encoded) <= 100 or not 0 <= size < 8**11:
        raise ValueError(
            f"member {name!r} of {size} bytes does not fit a ustar header: at most 100 characters and 8 GiB"
        )
    fields = b"".join(
        [
            encoded.ljust(100, b"\0"),
            b"0000644\0",
            b"0000000\0" * 2,
            b"%011o\0" % size,
            b"00000000000\0",
            b" " * 8,  # the checksum counts itself as spaces
            b"0",
            b"\0" * 100,
            b"ustar\x0000",
        ]
    ).ljust(RECORD, b"\0")
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


class ForeignTarError(ValueError):
    """Bytes are no tar as `TarWriter` writes them; the text goes on after the file's name."""


class TarMember(NamedTuple):
    """A member's name and where its bytes lie."""

    name: str
    offset: int
    size: int


def walk_tar(stream: IO[bytes]) -> Iterator[TarMember]:
    """The members of a tar as `TarWriter` writes them, in order; nothing is unpacked and no more than headers is read.

    Other kinds of tar (links, long names, sparse files) are refused, as are names that lead out of a folder: what is
    read here is always a list of plain files side by side, and every step goes on by at least a record.

    Raises:
        ForeignTarError: it is none, or it is cut short.
    """
    end = stream.seek(0, os.SEEK_END)
    position = 0
    while True:
        stream.seek(position)
        header = stream.read(RECORD)
        if len(header) < RECORD:
            raise ForeignTarError(f"is cut short: it ends at byte {end} without the end mark of a tar")
        if header == b"\0" * RECORD:
            break
        member = _member(header, position)
        if member.offset + member.size > end:
            raise ForeignTarError(f"is cut short: it ends at byte {end}, inside {member.name}")
        yield member
        position = member.offset + member.size + -member.size % RECORD
    while chunk := stream.read(1 << 20):
        if chunk.strip(b"\0"):
            raise ForeignTarError(f"holds something behind its end mark at byte {position}")
    if end < position + 2 * RECORD:
        raise ForeignTarError(f"is cut short: it ends at byte {end}, inside its end mark")


def _member(header: bytes, position: int) -> TarMember:
    """Read a header; what is not exactly as a plain file's is, is refused."""
    name_bytes = header[:100].rstrip(b"\0")
    size_bytes = header[124:135]
    if not _MEMBER_NAME.fullmatch(name_bytes) or not re.fullmatch(rb"[0-7]{11}", size_bytes):
        shown = name_bytes.decode("ascii", "backslashreplace")[:60]
        raise ForeignTarError(f"is no tar of samples: at byte {position} stands {shown!r}, expected a sample's member")
    member = TarMember(name_bytes.decode("ascii"), position + RECORD, int(size_bytes, 8))
    if header != ustar_header(member.name, member.size):
        raise ForeignTarError(f"is damaged: the header of {member.name} at byte {position} is not that of a plain file")
    return member


class TarWriter:
    """Appends members to a stream; says where each lies and what the whole digests to."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self.size = 0

    def add(self, name: str, data: bytes) -> MemberSpan:
        """Append one member."""
        self._write(ustar_header(name, len(data)))
        span = MemberSpan(self.size, len(data))
        self._write(data)
        self._write(b"\0" * (-len(data) % RECORD))
        return span

    def finish(self) -> str:
        """Write the end mark (two zero records); returns the whole tar's sha256."""
        self._write(b"\0" * (2 * RECORD))
        return self._digest.hexdigest()

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._digest.update(data)
        self.size += len(data)
