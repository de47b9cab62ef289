"""A semantic map inside a stream, losslessly: the VP8L bitstream of a lossless WebP, without its container.

Class ids are the green channel of a picture, for which the format has its best models. Pillow reads and writes it; what
comes from a stranger is given to it only after its size is known to be the expected one, since the library allocates by
what the header says, and in pieces: a bitstream may ask for as many sets of Huffman tables as it has 4 x 4 blocks, each
of 5 kB and more, so the side of a piece bounds what the library takes. On real maps of 1024 x 1024 pixels the pieces
have 1.2 % more bytes than the whole.
"""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from magc_model.errors import BitstreamError, UsageError
from magc_model.wire import Reader, varint

ClassMap = UInt8[np.ndarray[Any, Any], "height width"]

PIECE_PX = 512
"""Largest side of a bitstream; larger maps are cut into pieces from the upper left, row by row."""

_SPARE_BYTES = 1024
"""What a piece of noise may take besides a byte for every pixel."""

THOROUGH_PIXELS = 1 << 16
"""Up to this size (a tile) the encoder tries everything: half a second, for 2.5 % fewer bytes. Above, for none."""

_SIGNATURE = 0x2F


def encode_map(class_ids: ClassMap) -> bytes:
    """Bytes of a map: of one piece its bitstream, of several each with its length before it.

    Raises:
        UsageError: it has no pixel.
    """
    if not class_ids.size:
        height, width = class_ids.shape
        raise UsageError(f"a map of {width}x{height} pixels cannot be embedded: expected at least one pixel")
    pieces = [_encode_piece(class_ids[piece]) for piece in _pieces(*class_ids.shape)]
    return pieces[0] if len(pieces) == 1 else b"".join(varint(len(piece)) + piece for piece in pieces)


def decode_map(data: bytes, height_px: int, width_px: int) -> ClassMap:
    """The map of `encode_map`'s bytes.

    Raises:
        BitstreamError: they are none, or of a map of another size.
    """
    if max(height_px, width_px) <= PIECE_PX:
        return _decode_piece(data, height_px, width_px)
    class_ids, reader = np.empty((height_px, width_px), np.uint8), Reader(data)
    for piece in _pieces(height_px, width_px):
        class_ids[piece] = _decode_piece(reader.take(reader.varint()), *class_ids[piece].shape)
    if reader.left:
        raise BitstreamError("the embedded map is damaged (it has bytes left over): get the stream again")
    return class_ids


def _pieces(height_px: int, width_px: int) -> Iterator[tuple[slice, slice]]:
    for top in range(0, height_px, PIECE_PX):
        for left in range(0, width_px, PIECE_PX):
            yield slice(top, min(top + PIECE_PX, height_px)), slice(left, min(left + PIECE_PX, width_px))


def _encode_piece(class_ids: ClassMap) -> bytes:
    pixels = np.zeros((*class_ids.shape, 3), np.uint8)
    pixels[..., 1] = class_ids
    stream = io.BytesIO()
    quality = 100 if class_ids.size <= THOROUGH_PIXELS else 90
    PIL.Image.fromarray(pixels).save(stream, "WEBP", lossless=True, quality=quality, method=6)
    webp = stream.getvalue()
    # RIFF size WEBP, then the only chunk: VP8L size data.
    if webp[:4] != b"RIFF" or webp[8:16] != b"WEBPVP8L":
        raise AssertionError(f"the WebP encoder wrote {webp[:16]!r}: expected one VP8L chunk")
    return webp[20 : 20 + int.from_bytes(webp[16:20], "little")]


def _decode_piece(data: bytes, height_px: int, width_px: int) -> ClassMap:
    header = int.from_bytes(data[1:5], "little")
    found = ((header >> 14 & 0x3FFF) + 1, (header & 0x3FFF) + 1)
    if len(data) < 5 or data[0] != _SIGNATURE or found != (height_px, width_px):
        raise BitstreamError("the embedded map is damaged or of another size than the picture: get the stream again")
    if len(data) > height_px * width_px + _SPARE_BYTES:
        raise BitstreamError(
            f"the embedded map takes {len(data)} bytes for {width_px}x{height_px} pixels, more than noise would: get "
            "the stream again"
        )
    padded = data + b"\0" * (len(data) % 2)
    chunk = b"WEBPVP8L" + len(data).to_bytes(4, "little") + padded
    try:
        with PIL.Image.open(
            io.BytesIO(b"RIFF" + len(chunk).to_bytes(4, "little") + chunk), formats=["WEBP"]
        ) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, MemoryError, PIL.Image.DecompressionBombError):
        raise BitstreamError("the embedded map is damaged: get the stream again") from None
    if pixels.shape[:2] != (height_px, width_px):
        raise BitstreamError("the embedded map is of another size than the picture: get the stream again")
    return np.ascontiguousarray(pixels[..., 1])
