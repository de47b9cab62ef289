"""The file of a learned baseline: what has to be in it, and nothing else.

    2 bytes  "mB"
    2 bytes  of the digest of the encoder and entropy model: which of several models reads it
    varint   height - 1
    varint   width - 1
    varint   bytes of the first string, where there are two
    string, string
    3 bytes  low 24 bits of the CRC-32 of all before

CompressAI's examples write 12 bytes and 4 a string. The check keeps damaged strings from their decoder, which is C++
and has none.
"""

from typing import NamedTuple

from magc_model.baselines.coder import Strings
from magc_model.errors import BitstreamError
from magc_model.wire import CHECK_BYTES, Reader, check24, malformed, varint

MAGIC = b"mB"
TAG_BYTES = 2
LARGEST_SIDE_PX = 1 << 20


class BaselineStream(NamedTuple):
    """A compressed picture."""

    tag: bytes
    height_px: int
    width_px: int
    strings: Strings


def pack(stream: BaselineStream) -> bytes:
    """The file's bytes."""
    *measured, last = stream.strings.parts
    lengths = b"".join(varint(len(each)) for each in measured)
    sides = varint(stream.height_px - 1) + varint(stream.width_px - 1)
    body = MAGIC + stream.tag + sides + lengths + b"".join(measured) + last
    return body + check24(body)


def tag_of(data: bytes) -> bytes:
    """Which model wrote a file.

    Raises:
        BitstreamError: it is no file of a learned baseline, or damaged.
    """
    if not data.startswith(MAGIC):
        raise BitstreamError(f"the file begins with {data[:2].hex() or 'nothing'}: expected a learned baseline's, 6d42")
    if len(data) < len(MAGIC) + TAG_BYTES + CHECK_BYTES or check24(data[:-CHECK_BYTES]) != data[-CHECK_BYTES:]:
        raise BitstreamError("the file is damaged or was cut (its check differs): encode the picture again")
    return data[len(MAGIC) : len(MAGIC) + TAG_BYTES]


def unpack(data: bytes, parts: int) -> BaselineStream:
    """What `pack` wrote.

    Args:
        data: the file's bytes.
        parts: strings that the model writes.

    Raises:
        BitstreamError: it is no file of a learned baseline, or damaged.
    """
    tag = tag_of(data)
    reader = Reader(data[:-CHECK_BYTES])
    reader.take(len(MAGIC) + TAG_BYTES)
    height_px, width_px = reader.varint() + 1, reader.varint() + 1
    if max(height_px, width_px) > LARGEST_SIDE_PX:
        raise malformed(f"it is {width_px}x{height_px} pixels")
    lengths = reader.varints(parts - 1)
    strings = [reader.take(each) for each in lengths]
    return BaselineStream(tag, height_px, width_px, Strings((*strings, reader.rest())))
