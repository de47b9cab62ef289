"""`.magc` tile streams: bytes around one entropy-coded payload. No torch. docs/bitstream.md has the table.

    magic 2 | version, flags 1 | entropy model 4 | [rate 1] | size 1 or 2 varints | [seed] | [map] | payload | check 3

A 256x256 tile with a map costs its payload and 14 bytes (15 with a rate, from a gained model). Which model the stream
needs is said by the first bytes of its entropy fingerprint: models that share it read each other's streams.
"""

from enum import IntEnum
from typing import NamedTuple

from magc_model.config import IMAGE_STRIDE
from magc_model.errors import BitstreamError
from magc_model.wire import CHECK_BYTES, MAX_VARINT, Reader, check24, malformed, require, varint

TILE_MAGIC = b"\x8fM"
"""Not text, so that a transfer that changes line ends or strips bits is noticed at once."""

VERSION = 1

MODEL_BYTES = 4
MAP_BYTES = 3

RATE_STEPS = 255
"""A rate is stored as a share of the rate axis in this many steps: with six lambdas, 51 from one to the next."""

MAX_SIDE_PX = 1 << 20

_VERSION_SHIFT = 5
_RATE, _LONG_SIZE, _SEED = 0x01, 0x02, 0x04
_MAP_SHIFT = 3


class MapKind(IntEnum):
    """What a stream says of its map."""

    NONE = 0
    """It was compressed without one."""
    DIGEST = 1
    """It needs one, of this digest."""
    EMBEDDED = 2
    """It brings one along."""


class TileStream(NamedTuple):
    """What a tile stream holds."""

    entropy_model: bytes
    """The first four bytes of the model's entropy fingerprint."""
    rate: int | None
    """Share of the rate axis, 0 to 255; none for a model of one rate."""
    width_px: int
    height_px: int
    seed: int
    """Of the noise that the sender thought of; the receiver may take another."""
    map_kind: MapKind
    map_data: bytes
    """Digest (3 bytes), embedded map, or nothing, by `map_kind`."""
    payload: bytes


def pack_tile(stream: TileStream) -> bytes:
    """Bytes of a tile stream.

    Raises:
        ValueError: a field is out of range; a programming error.
    """
    require(len(stream.entropy_model) == MODEL_BYTES, "entropy_model")
    require(stream.rate is None or 0 <= stream.rate <= RATE_STEPS, "rate")
    require(all(1 <= side <= MAX_SIDE_PX for side in (stream.width_px, stream.height_px)), "size")
    require(0 <= stream.seed <= MAX_VARINT, "seed")
    require(stream.map_kind is not MapKind.DIGEST or len(stream.map_data) == MAP_BYTES, "map_data")
    require(stream.map_kind is not MapKind.NONE or not stream.map_data, "map_data")
    short = _short_size(stream.width_px, stream.height_px)
    flags = VERSION << _VERSION_SHIFT | int(stream.map_kind) << _MAP_SHIFT
    flags |= (_RATE if stream.rate is not None else 0) | (_LONG_SIZE if short is None else 0)
    flags |= _SEED if stream.seed else 0
    head = bytearray(TILE_MAGIC)
    head.append(flags)
    head += stream.entropy_model
    if stream.rate is not None:
        head.append(stream.rate)
    head += varint(stream.width_px) + varint(stream.height_px) if short is None else bytes([short])
    if stream.seed:
        head += varint(stream.seed)
    if stream.map_kind is MapKind.EMBEDDED:
        head += varint(len(stream.map_data))
    body = bytes(head) + stream.map_data + stream.payload
    return body + check24(body)


def unpack_tile(data: bytes) -> TileStream:
    """Read a tile stream.

    Raises:
        BitstreamError: it is damaged, cut short, of another version or no tile stream at all.
    """
    if not data.startswith(TILE_MAGIC):
        found = f"it begins with {data[:4].hex(' ')}" if data else "it is empty"
        raise BitstreamError(f"this is no .magc tile stream ({found}): expected bytes that `magc compress` wrote")
    if len(data) < 3 or data[2] >> _VERSION_SHIFT != VERSION:
        version = f"of version {data[2] >> _VERSION_SHIFT}" if len(data) > 2 else "cut short"
        raise BitstreamError(f"the stream is {version}, this magc reads version {VERSION}: use the magc that wrote it")
    body, check = data[:-CHECK_BYTES], data[-CHECK_BYTES:]
    if len(data) <= 3 + CHECK_BYTES or check24(body) != check:
        raise BitstreamError(f"the stream of {len(data)} bytes is damaged or cut short: get it again from its sender")
    return _fields(Reader(body))


def _fields(reader: Reader) -> TileStream:
    reader.take(len(TILE_MAGIC))
    flags = reader.byte()
    entropy_model = reader.take(MODEL_BYTES)
    rate = reader.byte() if flags & _RATE else None
    if flags & _LONG_SIZE:
        width_px, height_px = reader.varint(), reader.varint()
        if not (1 <= width_px <= MAX_SIDE_PX and 1 <= height_px <= MAX_SIDE_PX):
            raise malformed(f"its size is {width_px}x{height_px}")
    else:
        sides = reader.byte()
        width_px, height_px = (((sides >> shift & 15) + 1) * IMAGE_STRIDE for shift in (4, 0))
    seed = reader.varint() if flags & _SEED else 0
    number = flags >> _MAP_SHIFT & 3
    if number not in list(MapKind):
        raise malformed(f"its map is of kind {number}")
    kind = MapKind(number)
    map_data = b""
    if kind is MapKind.DIGEST:
        map_data = reader.take(MAP_BYTES)
    elif kind is MapKind.EMBEDDED:
        map_data = reader.take(reader.varint())
    return TileStream(entropy_model, rate, width_px, height_px, seed, kind, map_data, reader.rest())


def _short_size(width_px: int, height_px: int) -> int | None:
    """A byte for sides of 64, 128, ..., 1024 pixels; none for others."""
    (columns, odd_x), (rows, odd_y) = divmod(width_px, IMAGE_STRIDE), divmod(height_px, IMAGE_STRIDE)
    if odd_x or odd_y or columns > 16 or rows > 16:
        return None
    return (columns - 1) << 4 | (rows - 1)
