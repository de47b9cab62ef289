"""`.magc` scene streams: a header with an index, then chunks that are decoded each alone. No torch.

    magic 2 | version, flags 1 | entropy model 4 | width | height | chunk side 1 | [seed] | [georeference] |
    length of each chunk | check 4 || chunk | chunk | ...

    chunk: [rate 1] | [map digest 3, or length and map] | [length and mask] | payload | check 3

A chunk's check goes on from the header's and covers its number, so that a chunk of another place or of another scene is
no chunk of this one. A scene that is cut short, or of which a chunk is damaged, loses those chunks. docs/bitstream.md
has the table.
"""

import zlib
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from magc_model.bitstream import MAP_BYTES, MAX_SIDE_PX, MODEL_BYTES, RATE_STEPS, VERSION, MapKind
from magc_model.config import IMAGE_STRIDE
from magc_model.errors import BitstreamError
from magc_model.wire import CHECK_BYTES, MAX_VARINT, Reader, check24, malformed, require, varint

SCENE_MAGIC = b"\x8fS"

MAX_CHUNK_PX = 16 * IMAGE_STRIDE
"""1024: what a reader must be able to hold at once."""

HEADER_CHECK_BYTES = 4
MAX_GEOREFERENCE_BYTES = 1 << 20

MAX_CHUNKS = 1 << 20
"""Of the largest picture in the largest chunks: an index that takes seconds and gigabytes to read is no index."""

MAX_HEADER_BYTES = 1 << 24
"""Header and index never have more: what a reader of a large file looks at first."""

_VERSION_SHIFT = 5
_MAP_SHIFT = 3
_RATE, _GEOREFERENCE, _SEED = 0x01, 0x02, 0x04


class SceneHeader(NamedTuple):
    """What holds for the whole scene."""

    entropy_model: bytes
    """The first four bytes of the model's entropy fingerprint."""
    has_rates: bool
    """Each chunk says its rate: a gained model's."""
    width_px: int
    height_px: int
    chunk_px: int
    """Side of a chunk: a multiple of 64, at most 1024."""
    seed: int
    map_kind: MapKind
    georeference: bytes
    """As `magc_model.scene.georeference` packs it; empty for a picture without a place."""

    @property
    def chunk_rows(self) -> int:
        """Rows of chunks."""
        return -(-self.height_px // self.chunk_px)

    @property
    def chunk_columns(self) -> int:
        """Columns of chunks."""
        return -(-self.width_px // self.chunk_px)


class Chunk(NamedTuple):
    """What a chunk that has any valid pixel holds."""

    rate: int | None
    """Share of the rate axis, 0 to 255; none for a model of one rate."""
    map_data: bytes
    """Digest, embedded map or nothing, by the scene's `map_kind`."""
    mask: bytes | None
    """Valid pixels, packed like an embedded map; empty where all are. None: the scene has no mask at all."""
    payload: bytes


class SceneIndex(NamedTuple):
    """A header as read, and where its chunks lie."""

    header: SceneHeader
    header_crc: int
    offsets: tuple[int, ...]
    """Where each chunk begins, row by row, and where the last one ends: number of chunks + 1."""


def pack_header(header: SceneHeader, lengths: Sequence[int]) -> bytes:
    """Header and index, with their check.

    Raises:
        ValueError: a field is out of range; a programming error.
    """
    require(len(header.entropy_model) == MODEL_BYTES, "entropy_model")
    require(all(1 <= side <= MAX_SIDE_PX for side in (header.width_px, header.height_px)), "size")
    require(header.chunk_px % IMAGE_STRIDE == 0 and 0 < header.chunk_px <= MAX_CHUNK_PX, "chunk_px")
    require(0 <= header.seed <= MAX_VARINT, "seed")
    require(len(header.georeference) <= MAX_GEOREFERENCE_BYTES, "georeference")
    require(len(lengths) <= MAX_CHUNKS, "chunk_px")
    require(len(lengths) == header.chunk_rows * header.chunk_columns, "lengths")
    flags = VERSION << _VERSION_SHIFT | int(header.map_kind) << _MAP_SHIFT
    flags |= (_RATE if header.has_rates else 0) | (_GEOREFERENCE if header.georeference else 0)
    flags |= _SEED if header.seed else 0
    head = bytearray(SCENE_MAGIC)
    head.append(flags)
    head += header.entropy_model + varint(header.width_px) + varint(header.height_px)
    head.append(header.chunk_px // IMAGE_STRIDE)
    if header.seed:
        head += varint(header.seed)
    if header.georeference:
        head += varint(len(header.georeference)) + header.georeference
    for length in lengths:
        head += varint(length)
    return bytes(head) + zlib.crc32(head).to_bytes(HEADER_CHECK_BYTES, "big")


def crc_of(header: bytes) -> int:
    """What the checks of chunks go on from: the check at the end of a packed header."""
    return int.from_bytes(header[-HEADER_CHECK_BYTES:], "big")


def unpack_header(data: bytes) -> SceneIndex:
    """Read the header and index at the beginning of a scene stream; `data` may end behind them, or go on.

    Of a large file the first `MAX_HEADER_BYTES` are enough.

    Raises:
        BitstreamError: they are damaged, cut short, of another version, or those of no scene stream.
    """
    if not data.startswith(SCENE_MAGIC):
        found = f"it begins with {data[:4].hex(' ')}" if data else "it is empty"
        raise BitstreamError(f"this is no .magc scene stream ({found}): expected bytes that `magc compress` wrote")
    if len(data) < 3 or data[2] >> _VERSION_SHIFT != VERSION:
        version = f"of version {data[2] >> _VERSION_SHIFT}" if len(data) > 2 else "cut short"
        raise BitstreamError(f"the stream is {version}, this magc reads version {VERSION}: use the magc that wrote it")
    reader = Reader(data)
    header = _header(reader)
    count = header.chunk_rows * header.chunk_columns
    if count > MAX_CHUNKS:
        raise malformed(f"it has {count} chunks, more than {MAX_CHUNKS}")
    lengths = reader.varints(count)
    end = reader.place
    crc = zlib.crc32(data[:end])
    if reader.take(HEADER_CHECK_BYTES) != crc.to_bytes(HEADER_CHECK_BYTES, "big"):
        raise BitstreamError("the scene's header is damaged, and with it all is lost: get the file again")
    return SceneIndex(header, crc, tuple(accumulate(lengths, initial=reader.place)))


def _header(reader: Reader) -> SceneHeader:
    reader.take(len(SCENE_MAGIC))
    flags = reader.byte()
    entropy_model = reader.take(MODEL_BYTES)
    width_px, height_px = reader.varint(), reader.varint()
    chunk_px = reader.byte() * IMAGE_STRIDE
    if not (1 <= width_px <= MAX_SIDE_PX and 1 <= height_px <= MAX_SIDE_PX and 0 < chunk_px <= MAX_CHUNK_PX):
        raise malformed(f"its size is {width_px}x{height_px}, in chunks of {chunk_px}")
    seed = reader.varint() if flags & _SEED else 0
    number = flags >> _MAP_SHIFT & 3
    if number not in list(MapKind):
        raise malformed(f"its map is of kind {number}")
    georeference = b""
    if flags & _GEOREFERENCE:
        length = reader.varint()
        if length > MAX_GEOREFERENCE_BYTES:
            raise malformed(f"its georeference has {length} bytes")
        georeference = reader.take(length)
    return SceneHeader(
        entropy_model, bool(flags & _RATE), width_px, height_px, chunk_px, seed, MapKind(number), georeference
    )


def pack_chunk(chunk: Chunk, map_kind: MapKind) -> bytes:
    """A chunk without its check, which depends on the header.

    Raises:
        ValueError: a field is out of range; a programming error.
    """
    require(chunk.rate is None or 0 <= chunk.rate <= RATE_STEPS, "rate")
    require(map_kind is not MapKind.DIGEST or len(chunk.map_data) == MAP_BYTES, "map_data")
    require(map_kind is not MapKind.NONE or not chunk.map_data, "map_data")
    body = bytearray()
    if chunk.rate is not None:
        body.append(chunk.rate)
    if map_kind is MapKind.EMBEDDED:
        body += varint(len(chunk.map_data))
    body += chunk.map_data
    if chunk.mask is not None:
        body += varint(len(chunk.mask)) + chunk.mask
    return bytes(body) + chunk.payload


def chunk_check(body: bytes, number: int, header_crc: int) -> bytes:
    """The check of a chunk, by its number (row by row) and the header's CRC-32."""
    return check24(body, zlib.crc32(number.to_bytes(4, "big"), header_crc))


def unpack_chunk(data: bytes, number: int, index: SceneIndex, *, has_mask: bool) -> Chunk:
    """Read a chunk with its check.

    Raises:
        BitstreamError: it is damaged, cut short, or of another place or scene.
    """
    body, check = data[:-CHECK_BYTES], data[-CHECK_BYTES:]
    if len(data) < CHECK_BYTES or chunk_check(body, number, index.header_crc) != check:
        raise BitstreamError(f"chunk {number} is damaged, cut short or of another scene: get the file again")
    header, reader = index.header, Reader(body)
    rate = reader.byte() if header.has_rates else None
    map_data = b""
    if header.map_kind is MapKind.DIGEST:
        map_data = reader.take(MAP_BYTES)
    elif header.map_kind is MapKind.EMBEDDED:
        map_data = reader.take(reader.varint())
    mask = reader.take(reader.varint()) if has_mask else None
    return Chunk(rate, map_data, mask, reader.rest())
