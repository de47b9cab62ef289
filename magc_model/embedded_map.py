"""A semantic map inside a stream, losslessly: the VP8L bitstream of a lossless WebP, without its container.

Class ids are the green channel of a picture, for which the format has its best models. Pillow reads and writes it; what
comes from a stranger is given to it only after its size is known to be the expected one, since the library allocates by
what the header says.
"""

import io
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from magc_model.errors import BitstreamError, UsageError

ClassMap = UInt8[np.ndarray[Any, Any], "height width"]

MAX_SIDE_PX = 1 << 14
"""Of the format."""

THOROUGH_PIXELS = 1 << 16
"""Up to this size (a tile) the encoder tries everything: half a second, for 2.5 % fewer bytes. Above, for none."""

_SIGNATURE = 0x2F


def encode_map(class_ids: ClassMap) -> bytes:
    """Bytes of a map.

    Raises:
        UsageError: a side is too long for the format.
    """
    if max(class_ids.shape) > MAX_SIDE_PX or not class_ids.size:
        height, width = class_ids.shape
        raise UsageError(f"a map of {width}x{height} pixels cannot be embedded: expected sides of 1 to {MAX_SIDE_PX}")
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


def decode_map(data: bytes, height_px: int, width_px: int) -> ClassMap:
    """The map of `encode_map`'s bytes.

    Raises:
        BitstreamError: they are none, or of a map of another size.
    """
    header = int.from_bytes(data[1:5], "little")
    found = ((header >> 14 & 0x3FFF) + 1, (header & 0x3FFF) + 1)
    if len(data) < 5 or data[0] != _SIGNATURE or found != (height_px, width_px):
        raise BitstreamError("the embedded map is damaged or of another size than the picture: get the stream again")
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
