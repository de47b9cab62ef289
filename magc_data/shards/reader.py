"""Random access to a dataset's samples by the offsets of its index: no unpacking, no reading of whole shards."""

from __future__ import annotations

import io
import json
import struct
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from magc_data.errors import DatasetError
from magc_data.shards import index
from magc_data.shards.storage import Location, read_range
from magc_data.shards.tar import MemberSpan
from magc_data.shards.view_file import read_rows, resolve

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray


MAX_GAP_BYTES = 4096
"""Between the members of a sample there are a tar header and padding."""


class Members(NamedTuple):
    """A sample's bytes as they lie in the shard."""

    image: bytes
    semantic_map: bytes
    record: bytes


def read_index(data: Path | str, columns: list[str] | None = None) -> pa.Table:
    """The index of a dataset in a folder or at an address, or a view's rows of it.

    Raises:
        DatasetError: there is none, or it is damaged.
    """
    return read_rows(resolve(data), columns)


def read_member(data: Path | str, row: dict[str, Any], member: str) -> bytes:
    """One member of the sample that an index row of a dataset or view names: `image`, `map` or `json`.

    Raises:
        DatasetError: the shard is absent or shorter than the index says, or the row names no place in the dataset.
    """
    span = MemberSpan(row[f"{member}_offset"], row[f"{member}_size"])
    [content] = read_spans(resolve(data).folder, row["shard"], row["key"], (member,), [span])
    return content


def read_members(data: Path | str, row: dict[str, Any]) -> Members:
    """The three members of the sample that an index row of a dataset or view names.

    Raises:
        DatasetError: the shard is absent or shorter than the index says, or the row names no place in the dataset.
    """
    folder = resolve(data).folder
    spans = [MemberSpan(row[f"{member}_offset"], row[f"{member}_size"]) for member in index.MEMBERS]
    return Members(*read_spans(folder, row["shard"], row["key"], index.MEMBERS, spans))


def read_spans(
    folder: Location, shard: str, key: str, members: tuple[str, ...], spans: list[MemberSpan]
) -> list[bytes]:
    """Parts of a shard, in their order; those that lie one behind another are fetched together.

    Args:
        folder: of the dataset.
        shard: the shard's path in it.
        key: of the sample, for errors.
        members: names of the parts, for errors.
        spans: where the parts lie.

    Raises:
        DatasetError: the shard is absent or ends before the parts do.
    """
    begin, end = spans[0].offset, spans[-1].offset + spans[-1].size
    try:
        if 0 <= end - begin <= sum(span.size for span in spans) + MAX_GAP_BYTES * len(spans):
            whole = read_range(folder, shard, begin, end - begin)
            parts = [whole[max(0, span.offset - begin) :][: span.size] for span in spans]
        else:
            parts = [read_range(folder, shard, *span) for span in spans]
    except FileNotFoundError:
        raise DatasetError(
            f"{folder / shard} is missing although the index names it: `magc-data verify` lists what is damaged"
        ) from None
    for member, part, span in zip(members, parts, spans, strict=True):
        if len(part) != span.size:
            raise DatasetError(
                f"{folder / shard} ends inside the {member} of {key}: `magc-data verify` lists what is damaged"
            )
    return parts


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """Image bytes to RGB, uint8 [height, width, 3]."""
    with Image.open(io.BytesIO(data)) as image:
        # Converting what is RGB already would be a copy.
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def decode_map(data: bytes) -> NDArray[np.uint8]:
    """Map bytes to class ids, uint8 [height, width].

    Raises:
        ValueError: not an 8-bit palette image, so its pixels are not class ids.
    """
    if (class_ids := _plain_class_ids(data)) is not None:
        return class_ids
    with Image.open(io.BytesIO(data)) as image:
        if image.mode != "P":
            raise ValueError(f"the map is of mode {image.mode}, expected P (8-bit palette)")
        return np.asarray(image)


_HEADER = struct.Struct(">8sI4sIIBBBBB")
_PLAIN = (b"\x89PNG\r\n\x1a\n", 13, b"IHDR")
_MAX_PLAIN_PX = 1 << 20


def _plain_class_ids(data: bytes) -> NDArray[np.uint8] | None:
    """Class ids of a PNG that is as `png.encode_palette_png` writes them; None where it is any other, or damaged.

    Nothing but inflating is to be done for those, which takes a third of the time that Pillow needs.
    """
    if len(data) < _HEADER.size:
        return None
    *start, width, height, bits, colour_type, _, _, interlaced = _HEADER.unpack_from(data)
    is_plain = tuple(start) == _PLAIN and (bits, colour_type, interlaced) == (8, 3, 0)
    if not is_plain or not 0 < width * height <= _MAX_PLAIN_PX:
        return None
    names, pixels = [], b""
    place = len(_PLAIN[0])
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        name = data[place + 4 : place + 8]
        if zlib.crc32(data[place + 4 : end]).to_bytes(4, "big") != data[end : end + 4]:
            return None
        names.append(name)
        if name == b"IDAT":
            pixels = data[place + 8 : end]
        place = end + 4
    if names != [b"IHDR", b"PLTE", b"IDAT", b"IEND"] or place != len(data):
        return None
    inflate = zlib.decompressobj()
    size = height * (width + 1)
    try:
        # One byte more than there should be, so that more of them is noticed.
        lines = inflate.decompress(pixels, size + 1)
    except zlib.error:
        return None
    if len(lines) != size or not inflate.eof:
        return None
    scanlines = np.frombuffer(lines, np.uint8).reshape(height, width + 1)
    return np.ascontiguousarray(scanlines[:, 1:]) if not scanlines[:, 0].any() else None


def decode_palette(data: bytes) -> NDArray[np.uint8]:
    """Colours of a map, uint8 [classes, 3]."""
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.getpalette() or [], dtype=np.uint8).reshape(-1, 3)


def decode_record(data: bytes) -> dict[str, Any]:
    """The `.json` member."""
    return dict(json.loads(data))
