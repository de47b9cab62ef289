"""Where a scene lies and what its file said of it, as few bytes as that takes.

flags 1 | [EPSG code, or length and deflated WKT] | [transform 24 or 48] | [nodata value 1] | [deflated notes]

flags: bits 0-1 CRS (0 none, 1 EPSG code, 2 WKT), bits 2-3 transform (0 none, 1 north up with square pixels, 2 any),
bits 4-5 missing pixels (0 none are declared, 1 by a nodata value, 2 by a mask), bit 6 notes follow
"""

import json
import math
import struct
import zlib
from enum import IntEnum
from typing import Any, NamedTuple

from magc_model.wire import Reader, malformed, require, varint

MAX_TEXT_BYTES = 1 << 16
"""Of a CRS as text, and of the notes: what a reader will inflate."""

MAX_TEXTS = 1000
"""In the notes: descriptions, names of tags, and tags."""


class Missing(IntEnum):
    """How a file says which of its pixels are none."""

    NONE = 0
    NODATA = 1
    """By a value."""
    MASK = 2
    """By a mask or an alpha band."""


class Affine(NamedTuple):
    """From pixel column and row (of their upper left corner) to the CRS: x = a c + b r + c0, y = d c + e r + f0."""

    a: float
    b: float
    c: float
    d: float
    e: float
    f: float


class Georeference(NamedTuple):
    """Everything of a raster file that is not its pixels."""

    epsg: int | None = None
    wkt: str | None = None
    """For a CRS without an EPSG code."""
    transform: Affine | None = None
    missing: Missing = Missing.NONE
    nodata: int | None = None
    """With `Missing.NODATA`: 0 to 255, the same in all bands."""
    descriptions: tuple[str | None, ...] = ()
    """Of the bands; empty if there are none."""
    tags: tuple[tuple[str, str], ...] = ()
    """Of the file, sorted."""


def pack_georeference(place: Georeference) -> bytes:
    """Bytes of a georeference; none for one that says nothing.

    Raises:
        ValueError: a field is out of range, or a text too long; a programming error.
    """
    if place == Georeference():
        return b""
    require(place.epsg is None or place.wkt is None, "crs")
    require(fits(place), "text")
    require((place.nodata is not None) == (place.missing is Missing.NODATA), "nodata")
    crs = 1 if place.epsg is not None else 2 if place.wkt is not None else 0
    form = 0
    if place.transform is not None:
        require(all(math.isfinite(each) for each in place.transform), "transform")
        form = 1 if _is_square(place.transform) else 2
    notes = _notes(place)
    out = bytearray([crs | form << 2 | int(place.missing) << 4 | (0x40 if notes else 0)])
    if place.epsg is not None:
        out += varint(place.epsg)
    if place.wkt is not None:
        text = _deflated(place.wkt)
        out += varint(len(text)) + text
    if place.transform is not None:
        a, _, c, _, _, f = place.transform
        out += struct.pack(">3d", a, c, f) if form == 1 else struct.pack(">6d", *place.transform)
    if place.nodata is not None:
        out.append(place.nodata)
    return bytes(out) + notes


def unpack_georeference(data: bytes) -> Georeference:
    """Read what `pack_georeference` wrote.

    Raises:
        BitstreamError: it is damaged.
    """
    if not data:
        return Georeference()
    reader = Reader(data)
    flags = reader.byte()
    crs, form, missing = flags & 3, flags >> 2 & 3, flags >> 4 & 3
    if crs == 3 or form == 3 or missing == 3 or flags & 0x80:
        raise malformed(f"its georeference begins with {flags}")
    epsg = reader.varint() if crs == 1 else None
    wkt = _inflated(reader.take(reader.varint())) if crs == 2 else None
    transform = None
    if form == 1:
        a, c, f = struct.unpack(">3d", reader.take(24))
        transform = Affine(a, 0.0, c, 0.0, -a, f)
    elif form == 2:
        transform = Affine(*struct.unpack(">6d", reader.take(48)))
    if transform is not None and not all(math.isfinite(each) for each in transform):
        raise malformed("its transform is no number")
    nodata = reader.byte() if missing == Missing.NODATA else None
    place = Georeference(epsg, wkt, transform, Missing(missing), nodata)
    if flags & 0x40:
        return _with_notes(place, reader.rest())
    if reader.left:
        raise malformed("bytes are left over behind its georeference")
    return place


def fits(place: Georeference) -> bool:
    """Whether a georeference's texts are short enough to be packed, and whether they are texts at all."""
    notes = _notes_text(place)
    try:
        sizes = [len(each.encode()) for each in (place.wkt or "", notes)]
    except UnicodeEncodeError:
        return False
    return max(sizes) <= MAX_TEXT_BYTES and len(place.descriptions) + 2 * len(place.tags) <= MAX_TEXTS


def _is_square(transform: Affine) -> bool:
    a, b, _, d, e, _ = transform
    return b == 0 and d == 0 and e == -a


def _notes(place: Georeference) -> bytes:
    text = _notes_text(place)
    return _deflated(text) if text else b""


def _notes_text(place: Georeference) -> str:
    notes: dict[str, Any] = {}
    if place.descriptions:
        notes["descriptions"] = place.descriptions
    if place.tags:
        notes["tags"] = dict(place.tags)
    return json.dumps(notes, ensure_ascii=False, separators=(",", ":")) if notes else ""


def _with_notes(place: Georeference, data: bytes) -> Georeference:
    try:
        notes = json.loads(_inflated(data))
        descriptions, tags = notes.get("descriptions", []), notes.get("tags", {})
        # Tags are written into a file: nothing but texts, and not many of them.
        texts = [*(each for each in descriptions if each is not None), *tags, *tags.values()]
        if not all(isinstance(each, str) for each in texts) or len(texts) > MAX_TEXTS:
            raise malformed("its notes are no texts")
        "".join(texts).encode()  # half a surrogate pair can be named in JSON, but is no text
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise malformed("its notes cannot be read") from None
    return place._replace(descriptions=tuple(descriptions), tags=tuple(sorted(tags.items())))


def _deflated(text: str) -> bytes:
    data = text.encode()
    require(len(data) <= MAX_TEXT_BYTES, "text")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def _inflated(data: bytes) -> str:
    unpacker = zlib.decompressobj(-15)
    try:
        text = unpacker.decompress(data, MAX_TEXT_BYTES)
        if not unpacker.eof or unpacker.unused_data:
            raise malformed("a text in its header is cut short or too long")
        return text.decode()
    except (zlib.error, UnicodeDecodeError):
        raise malformed("a text in its header cannot be read") from None
