"""Random access to a dataset's samples by the offsets of its index: no unpacking, no reading of whole shards."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from magc_data.errors import WAY_OUT, DatasetError
from magc_data.schema.sample import TILE_SIZE_PX
from magc_data.shards import index
from magc_data.shards.storage import Location, read_range
from magc_data.shards.tar import MemberSpan
from magc_data.shards.view_file import read_rows, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
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


def read_members(data: Path | str, row: dict[str, Any]) -> Members:
    """The three members of the sample that an index row of a dataset or view names.

    Raises:
        DatasetError: as `read_some` has them.
    """
    return Members(*read_some(data, row, index.MEMBERS))


def read_member(data: Path | str, row: dict[str, Any], member: str) -> bytes:
    """One member of the sample that an index row names: `image`, `map` or `json`.

    Raises:
        DatasetError: as `read_some` has them.
    """
    return read_some(data, row, (member,))[0]


def read_some(data: Path | str, row: dict[str, Any], members: Sequence[str]) -> list[bytes]:
    """Some members of the sample that an index row of a dataset or view names.

    Raises:
        DatasetError: the shard is absent or shorter than the index says, the row names no place in the dataset, or
            the dataset holds maps alone.
    """
    places = [(row[f"{member}_offset"], row[f"{member}_size"]) for member in members]
    spans = [None if offset is None else MemberSpan(offset, size) for offset, size in places]
    return read_spans(resolve(data).folder, row["shard"], row["key"], members, spans)


def read_spans(
    folder: Location, shard: str, key: str, members: Sequence[str], places: Sequence[MemberSpan | None]
) -> list[bytes]:
    """Parts of a shard, in their order; those that lie one behind another are fetched together.

    Args:
        folder: of the dataset.
        shard: the shard's path in it.
        key: of the sample, for errors.
        members: names of the parts, for errors.
        places: where the parts lie; None for one that there is not.

    Raises:
        DatasetError: the shard is absent or ends before the parts do, or one is not there.
    """
    spans = [span for span in places if span is not None]
    if len(spans) < len(places):
        raise DatasetError(
            f"{folder} has no {members[places.index(None)]} of {key}: a dataset built with --imagery none holds maps "
            "alone"
        )
    begin, end = spans[0].offset, spans[-1].offset + spans[-1].size
    try:
        if 0 <= end - begin <= sum(span.size for span in spans) + MAX_GAP_BYTES * len(spans):
            whole = read_range(folder, shard, begin, end - begin)
            parts = [whole[max(0, span.offset - begin) :][: span.size] for span in spans]
        else:
            parts = [read_range(folder, shard, *span) for span in spans]
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise DatasetError(f"{folder / shard} is missing although the index names it: {WAY_OUT}") from None
    for member, part, span in zip(members, parts, spans, strict=True):
        if len(part) != span.size:
            raise DatasetError(f"{folder / shard} ends inside the {member} of {key}: {WAY_OUT}")
    return parts


class UndecodableError(ValueError):
    """Bytes are no picture as samples have them; the text goes on after the picture's name."""


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """The picture that bytes hold, its size checked before anything is decoded: a few bytes can promise gigabytes."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            _require_size(image)
            yield image
    except UndecodableError:
        raise
    # Pillow's plugins raise whatever they come across in damaged files.
    except Exception as error:  # noqa: BLE001 - see above
        raise UndecodableError(f"cannot be decoded ({type(error).__name__})") from None


def _require_size(image: Image.Image) -> None:
    if image.size != (TILE_SIZE_PX, TILE_SIZE_PX):
        raise UndecodableError(f"is {image.width}x{image.height} pixels, expected {TILE_SIZE_PX}x{TILE_SIZE_PX}")


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """Image bytes to RGB, uint8 [256, 256, 3].

    Raises:
        UndecodableError: not a whole JPEG or PNG of that size.
    """
    with _opened(data) as image:
        # Converting what is RGB already would be a copy.
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def decode_map(data: bytes) -> NDArray[np.uint8]:
    """Map bytes to class ids, uint8 [256, 256].

    Raises:
        UndecodableError: not an 8-bit palette image of that size, so its pixels are not class ids.
    """
    if (class_ids := _plain_class_ids(data)) is not None:
        return class_ids
    with _opened(data) as image:
        if image.mode != "P":
            raise UndecodableError(f"is of mode {image.mode}, expected P (8-bit palette)")
        return np.asarray(image)


_HEADER = struct.Struct(">8sI4sIIBBBBB")
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PLAIN = (_SIGNATURE, 13, b"IHDR", TILE_SIZE_PX, TILE_SIZE_PX, 8, 3)


def _plain_class_ids(data: bytes) -> NDArray[np.uint8] | None:
    """Class ids of a PNG that is as `png.encode_palette_png` writes maps; None where it is any other, or damaged.

    Nothing but inflating is to be done for those, which takes a third of the time that Pillow needs.
    """
    if len(data) < _HEADER.size:
        return None
    *start, _, _, interlaced = _HEADER.unpack_from(data)
    if tuple(start) != _PLAIN or interlaced:
        return None
    names, pixels = [], b""
    place = len(_SIGNATURE)
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
    size = TILE_SIZE_PX * (TILE_SIZE_PX + 1)
    try:
        # One byte more than there should be, so that more of them is noticed.
        lines = inflate.decompress(pixels, size + 1)
    except zlib.error:
        return None
    if len(lines) != size or not inflate.eof:
        return None
    scanlines = np.frombuffer(lines, np.uint8).reshape(TILE_SIZE_PX, TILE_SIZE_PX + 1)
    return np.ascontiguousarray(scanlines[:, 1:]) if not scanlines[:, 0].any() else None


def decode_palette(data: bytes) -> NDArray[np.uint8]:
    """Colours of a map, uint8 [classes, 3].

    Raises:
        UndecodableError: not a picture of a sample's size.
    """
    with _opened(data) as image:
        return np.array(image.getpalette() or [], dtype=np.uint8).reshape(-1, 3)


def decode_member(
    folder: Location, shard: str, key: str, member: str, content: bytes, decode: Callable[[bytes], NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """Pixels of a member of a sample; where it lies is for the error.

    Raises:
        DatasetError: the bytes do not decode.
    """
    try:
        return decode(content)
    except UndecodableError as error:
        raise DatasetError(f"the {member} of {key} in {folder / shard} {error}: {WAY_OUT}") from None


def read_image(data: Path | str, row: dict[str, Any]) -> NDArray[np.uint8]:
    """Image of the sample that an index row names, RGB, uint8 [256, 256, 3].

    Raises:
        DatasetError: it is damaged, or the dataset holds maps alone.
    """
    return _read_pixels(data, row, "image", decode_image)


def read_map(data: Path | str, row: dict[str, Any]) -> NDArray[np.uint8]:
    """Map of the sample that an index row names: class ids, uint8 [256, 256].

    Raises:
        DatasetError: it is damaged.
    """
    return _read_pixels(data, row, "map", decode_map)


def _read_pixels(
    data: Path | str, row: dict[str, Any], member: str, decode: Callable[[bytes], NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    content = read_member(data, row, member)
    return decode_member(resolve(data).folder, row["shard"], row["key"], member, content, decode)


def decode_record(data: bytes) -> dict[str, Any]:
    """The `.json` member."""
    return dict(json.loads(data))
