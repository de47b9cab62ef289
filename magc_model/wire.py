"""What both kinds of stream are written with: varints, checks, and a reader that never takes more than there is."""

import zlib

import numpy as np

from magc_model.errors import BitstreamError

CHECK_BYTES = 3
MAX_VARINT = 2**64 - 1
_LONGEST_VARINT = 10


class Reader:
    """Takes bytes from the front."""

    def __init__(self, data: bytes) -> None:
        self._data, self.place = data, 0

    @property
    def left(self) -> int:
        """How many bytes there still are."""
        return len(self._data) - self.place

    def take(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            BitstreamError: there are not so many.
        """
        end = self.place + count
        if end > len(self._data):
            raise malformed("its header is longer than the stream")
        self.place, taken = end, self._data[self.place : end]
        return taken

    def byte(self) -> int:
        """The next byte."""
        return self.take(1)[0]

    def varint(self) -> int:
        """The next LEB128 number of at most 64 bits."""
        value = 0
        for index in range(_LONGEST_VARINT):
            byte = self.byte()
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                if value > MAX_VARINT:
                    break
                return value
        raise malformed("a number in its header is too long")

    def varints(self, count: int) -> list[int]:
        """The next LEB128 numbers, each as `varint` reads it; a million in a tenth of a second."""
        if count > self.left:
            raise malformed("its header is longer than the stream")
        data = np.frombuffer(self._data, np.uint8, offset=self.place)[: count * _LONGEST_VARINT]
        stops = np.flatnonzero(data < 0x80)[:count] + 1
        if len(stops) < count:
            raise malformed("its header is longer than the stream, or a number in it too long")
        starts = np.concatenate(([0], stops[:-1])) if count else stops
        sizes = stops - starts
        if (sizes > _LONGEST_VARINT).any() or (data[stops[sizes == _LONGEST_VARINT] - 1] > 1).any():
            raise malformed("a number in its header is too long")
        values = np.zeros(count, np.uint64)
        for index in range(int(sizes.max(initial=0))):
            there = sizes > index
            values[there] |= (data[starts[there] + index].astype(np.uint64) & 0x7F) << np.uint64(7 * index)
        self.place += int(stops[-1]) if count else 0
        return list(values.tolist())

    def rest(self) -> bytes:
        """Everything that is left."""
        return self.take(self.left)


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that there is more (LEB128)."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def check24(body: bytes, before: int = 0) -> bytes:
    """The low 24 bits of the CRC-32, continued from the CRC-32 of what came before."""
    return (zlib.crc32(body, before) & 0xFFFFFF).to_bytes(CHECK_BYTES, "big")


def malformed(what: str) -> BitstreamError:
    """The error for bytes whose check is right and which no version of magc writes."""
    return BitstreamError(f"the stream cannot have been written by magc ({what}): get it again from its sender")


def require(holds: bool, field: str) -> None:
    """Refuse a field that cannot be stored: a programming error."""
    if not holds:
        raise ValueError(f"{field} is out of range")
