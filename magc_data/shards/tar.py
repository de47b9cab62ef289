"""Byte-reproducible tar: plain ustar members, nothing in a header but name, size and a fixed mode; offsets known."""

from __future__ import annotations

import hashlib
from typing import IO, NamedTuple

RECORD = 512


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
