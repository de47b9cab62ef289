"""Random access to a dataset's samples by the offsets of its index: no unpacking, no reading of whole shards."""

from __future__ import annotations

import contextlib
import io
import json
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from magc_data.errors import DatasetError
from magc_data.schema.sample import TILE_SIZE_PX
from magc_data.shards import index
from magc_data.shards.folder import INDEX_NAME
from magc_data.shards.index_check import index_findings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray


WAY_OUT = "`magc-data verify` lists what is damaged, `magc-data heal` repairs it"
"""What to do about damage, to end a sentence with."""


class Members(NamedTuple):
    """A sample's bytes as they lie in the shard."""

    image: bytes
    semantic_map: bytes
    record: bytes


def read_index(data: Path, columns: list[str] | None = None) -> pa.Table:
    """The dataset's index.

    Raises:
        DatasetError: there is none, or it is damaged.
    """
    table = index.read_table(data / INDEX_NAME, columns)
    expected = index.SAMPLE_COLUMNS if columns is None else columns
    if missing := [name for name in expected if name not in table.column_names]:
        raise DatasetError(f"{data / INDEX_NAME} lacks the column '{missing[0]}': {WAY_OUT}")
    if finding := next(index_findings(table), None):
        raise DatasetError(f"{data / INDEX_NAME} {finding}: {WAY_OUT}")
    return table


def read_member(data: Path, row: dict[str, Any], member: str) -> bytes:
    """One member of the sample that an index row names: `image`, `map` or `json`.

    Raises:
        DatasetError: the shard is absent or shorter than the index says, or the dataset holds maps alone.
    """
    shard: Path = data / row["shard"]
    offset: int | None = row[f"{member}_offset"]
    size: int = row[f"{member}_size"]
    if offset is None:
        raise DatasetError(
            f"{data} has no {member} of {row['key']}: a dataset built with --imagery none holds maps alone"
        )
    try:
        with shard.open("rb") as stream:
            # Asked first: what a damaged index says may be more than memory.
            if offset + size > os.fstat(stream.fileno()).st_size:
                raise DatasetError(f"{shard} ends inside the {member} of {row['key']}: {WAY_OUT}")
            stream.seek(offset)
            return stream.read(size)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise DatasetError(f"{shard} is missing although the index names it: {WAY_OUT}") from None


def read_members(data: Path, row: dict[str, Any]) -> Members:
    """The three members of the sample that an index row names.

    Raises:
        DatasetError: the shard is absent or shorter than the index says, or the dataset holds maps alone.
    """
    return Members(*(read_member(data, row, member) for member in index.MEMBERS))


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
        return np.asarray(image.convert("RGB"))


def decode_map(data: bytes) -> NDArray[np.uint8]:
    """Map bytes to class ids, uint8 [256, 256].

    Raises:
        UndecodableError: not an 8-bit palette image of that size, so its pixels are not class ids.
    """
    with _opened(data) as image:
        if image.mode != "P":
            raise UndecodableError(f"is of mode {image.mode}, expected P (8-bit palette)")
        return np.asarray(image)


def decode_palette(data: bytes) -> NDArray[np.uint8]:
    """Colours of a map, uint8 [classes, 3].

    Raises:
        UndecodableError: not a picture of a sample's size.
    """
    with _opened(data) as image:
        return np.array(image.getpalette() or [], dtype=np.uint8).reshape(-1, 3)


def decode_member(
    data: Path, row: dict[str, Any], member: str, content: bytes, decode: Callable[[bytes], NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """Pixels of the member of the sample that an index row names.

    Raises:
        DatasetError: the bytes do not decode.
    """
    try:
        return decode(content)
    except UndecodableError as error:
        raise DatasetError(f"the {member} of {row['key']} in {data / row['shard']} {error}: {WAY_OUT}") from None


def read_image(data: Path, row: dict[str, Any]) -> NDArray[np.uint8]:
    """Image of the sample that an index row names, RGB, uint8 [256, 256, 3].

    Raises:
        DatasetError: it is damaged, or the dataset holds maps alone.
    """
    return decode_member(data, row, "image", read_member(data, row, "image"), decode_image)


def read_map(data: Path, row: dict[str, Any]) -> NDArray[np.uint8]:
    """Map of the sample that an index row names: class ids, uint8 [256, 256].

    Raises:
        DatasetError: it is damaged.
    """
    return decode_member(data, row, "map", read_member(data, row, "map"), decode_map)


def decode_record(data: bytes) -> dict[str, Any]:
    """The `.json` member."""
    return dict(json.loads(data))
