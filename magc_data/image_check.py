"""Is this a picture of a place? Complete, 256 x 256, 8 bits, no placeholder, not one colour, no missing pixels.

Bytes in, verdict out; no network and no files.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple, cast

from PIL import JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from magc_data.schema.sample import TILE_SIZE_PX, ImageFormat, Reason, Rejection, TileImage

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

PLACEHOLDERS = frozenset({(2521, "f27d9de7f80c13501f470595e327aa6d")})
"""Length and MD5 digest of pictures that say 'no data here': that of Esri's World Imagery."""

SINGLE_COLOUR_RANGE = 2
"""A picture whose channels vary by no more than this is a single colour: JPEG may move a flat one that far."""

_READABLE_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA"})


class _Damage(NamedTuple):
    """Why bytes are not a whole image."""

    detail: str


class _Header(NamedTuple):
    """What the first bytes of an image say, before anything is decoded."""

    width_px: int
    height_px: int
    bits: int = 8


def check_tile_bytes(data: bytes, *, transient: bool) -> TileImage | Rejection:
    """Decide whether bytes are a tile's image, and if not, say why.

    JPEG and PNG bytes pass untouched. WebP is turned into PNG without loss, as samples hold JPEG and PNG only.

    Args:
        data: a file's or a server's bytes.
        transient: whether bytes that cannot be decoded may be whole the next time they are asked for.
    """
    sha256 = hashlib.sha256(data).hexdigest()

    def undecodable(detail: str, *, again: bool = transient) -> Rejection:
        return Rejection(Reason.UNDECODABLE, detail, again, sha256)

    if not data:
        return undecodable("empty: 0 bytes")
    if (len(data), hashlib.md5(data, usedforsecurity=False).hexdigest()) in PLACEHOLDERS:
        return Rejection(Reason.PLACEHOLDER, "the service's 'no data' picture (known digest)", False, sha256)
    kind = next((kind for kind in _KINDS if kind.start.match(data)), None)
    if kind is None:
        return undecodable(f"not JPEG, PNG or WebP but {_what_else(data)}")
    header = kind.header(data)
    if isinstance(header, _Damage):
        return undecodable(f"{kind.name}: {header.detail}")
    # Before decoding: a few bytes can promise gigabytes of pixels.
    if (header.width_px, header.height_px) != (TILE_SIZE_PX, TILE_SIZE_PX):
        detail = f"{header.width_px} x {header.height_px} pixels, not {TILE_SIZE_PX} x {TILE_SIZE_PX}"
        return Rejection(Reason.WRONG_SIZE, detail, False, sha256)
    if header.bits > 8:
        return undecodable(f"{kind.name} of {header.bits} bits a channel, expected 8", again=False)
    image = _decode(kind, data)
    if isinstance(image, _Damage):
        return undecodable(f"{kind.name}: {image.detail}")
    if image.mode not in _READABLE_MODES:
        # CMYK above all: how it becomes RGB depends on a profile, so readers of the same bytes would see other colours.
        return undecodable(f"{kind.name} of mode {image.mode}, expected grey or RGB", again=False)
    reason, detail = _pixel_fault(image)
    if reason is not None:
        return Rejection(reason, detail, False, sha256)
    if kind.format is None:
        return TileImage(_as_png(image), ImageFormat.PNG)
    return TileImage(data, kind.format)


def _pixel_fault(image: Image) -> tuple[Reason | None, str]:
    """What is wrong with the pixels: transparency first, for what lies under it means nothing."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        opaque = image.getchannel("A").histogram()[255]
        if opaque < TILE_SIZE_PX * TILE_SIZE_PX:
            return Reason.MISSING_PIXELS, f"{TILE_SIZE_PX * TILE_SIZE_PX - opaque} of 65536 pixels transparent"
    extremes = cast("tuple[tuple[int, int], ...]", image.convert("RGB").getextrema())
    if all(high - low <= SINGLE_COLOUR_RANGE for low, high in extremes):
        return Reason.BLANK, "a single colour, about #" + "".join(f"{low:02x}" for low, _ in extremes)
    return None, ""


def _as_png(image: Image) -> bytes:
    """Lossless copy, without the (fully opaque) alpha channel and the metadata."""
    stream = io.BytesIO()
    image.convert("RGB").save(stream, format="PNG")
    return stream.getvalue()


# --- formats ---------------------------------------------------------------------------------------------------------


def _jpeg_header(data: bytes) -> _Header | _Damage:
    position = 2
    while position + 9 < len(data):
        marker, length = struct.unpack_from(">HH", data, position)
        if marker == 0xFFFF:  # fill byte
            position += 1
        elif 0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC):  # start of frame
            bits, height_px, width_px = struct.unpack_from(">BHH", data, position + 4)
            return _Header(width_px, height_px, bits)
        elif marker < 0xFF00 or marker == 0xFFDA:
            break
        else:
            position += 2 + length
    return _Damage("damaged, there is no frame header")


def _png_header(data: bytes) -> _Header | _Damage:
    # Pillow reads on over a wrong checksum and a missing end.
    position, seen_end = 8, False
    while position + 12 <= len(data) and not seen_end:
        length = int.from_bytes(data[position : position + 4])
        chunk = data[position + 4 : position + 8 + length]
        checksum = data[position + 8 + length : position + 12 + length]
        if len(checksum) < 4:
            return _Damage("cut short within a chunk")
        if zlib.crc32(chunk) != int.from_bytes(checksum):
            return _Damage("damaged, a checksum is wrong")
        seen_end = chunk[:4] == b"IEND"
        position += 12 + length
    if not seen_end:
        return _Damage("cut short, the end chunk is missing")
    if data[12:16] != b"IHDR" or data[8:12] != b"\0\0\0\r":
        return _Damage("damaged, it does not begin with its header chunk")
    width_px, height_px, bits = struct.unpack_from(">IIB", data, 16)
    return _Header(width_px, height_px, bits)


def _webp_header(data: bytes) -> _Header | _Damage:
    if len(data) < 30 or len(data) < 8 + int.from_bytes(data[4:8], "little"):
        return _Damage("cut short")
    if data[12:16] == b"VP8X":
        return _Header(1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little"))
    if data[12:16] == b"VP8L":
        sizes = int.from_bytes(data[21:25], "little")
        return _Header(1 + (sizes & 0x3FFF), 1 + (sizes >> 14 & 0x3FFF))
    if data[12:16] == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return _Header(width & 0x3FFF, height & 0x3FFF)
    return _Damage("damaged, its first chunk is unknown")


class _Kind(NamedTuple):
    """An image format that services send."""

    name: str
    start: re.Pattern[bytes]
    format: ImageFormat | None
    """None: not one that a sample may hold."""
    header: Callable[[bytes], _Header | _Damage]
    plugin: type[ImageFile]


_KINDS = (
    _Kind("JPEG", re.compile(rb"\xff\xd8\xff"), ImageFormat.JPEG, _jpeg_header, JpegImagePlugin.JpegImageFile),
    _Kind("PNG", re.compile(rb"\x89PNG\r\n\x1a\n"), ImageFormat.PNG, _png_header, PngImagePlugin.PngImageFile),
    _Kind("WebP", re.compile(rb"(?s)RIFF.{4}WEBP"), None, _webp_header, WebPImagePlugin.WebPImageFile),
)


def _decode(kind: _Kind, data: bytes) -> Image | _Damage:
    try:
        image = kind.plugin(io.BytesIO(data))
        if getattr(image, "n_frames", 1) != 1:
            return _Damage("an animation")
        image.load()
    # Pillow's plugins raise whatever they come across in damaged files; none of it may end a build.
    except Exception as error:  # noqa: BLE001 - see above
        return _Damage(f"cannot be decoded ({type(error).__name__})")
    if image.size != (TILE_SIZE_PX, TILE_SIZE_PX):
        return _Damage("damaged, its headers disagree")
    return image


# --- what servers send instead of an image ---------------------------------------------------------------------------


def _what_else(data: bytes) -> str:
    """Name a body that is no image, with its own words where it has some."""
    start = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    text = start.decode("utf-8", "replace")
    if re.match(r"(?is)<!doctype html|<html|<head|<body", text):
        return "an HTML page" + _quoted(re.search(r"(?is)<title[^>]*>(.*?)</title>", text))
    if text.startswith(("{", "[")):
        return "JSON" + _quoted_message(data)
    if text.startswith("<"):
        return "XML" + _quoted(
            re.search(r"(?is)<(?:\w+:)?(?:message|exceptiontext|serviceexception)\b[^>]*>(.*?)<", text)
        )
    if text.startswith("GIF8"):
        return "GIF"
    if start and all(byte >= 32 or byte in b"\t\r\n" for byte in start) and b"\x7f" not in start:
        return "text" + _quoted(re.match(r"(?s)(.*)", text))
    return f"{len(data)} bytes that begin with {data[:4].hex()}"


def _quoted(found: re.Match[str] | None) -> str:
    words = " ".join(found.group(1).split()) if found else ""
    return f" saying '{words[:80]}'" if words else ""


def _quoted_message(data: bytes) -> str:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return ""
    while isinstance(document, dict):
        document = next((document[key] for key in ("error", "message", "detail", "msg") if key in document), None)
    return _quoted(re.match(r"(?s)(.*)", document)) if isinstance(document, str) else ""
