"""Random access to a dataset's samples by the offsets of its index: no unpacking, no reading of whole shards."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from magc_data.errors import DatasetError
from magc_data.shards import index
from magc_data.shards.folder import INDEX_NAME

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray


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
        raise DatasetError(f"{data / INDEX_NAME} lacks the column '{missing[0]}': build the dataset again")
    return table


def read_member(data: Path, row: dict[str, Any], member: str) -> bytes:
    """One member of the sample that an index row names: `image`, `map` or `json`.

    Raises:
        DatasetError: the shard is absent or shorter than the index says.
    """
    shard: Path = data / row["shard"]
    size: int = row[f"{member}_size"]
    try:
        with shard.open("rb") as stream:
            stream.seek(row[f"{member}_offset"])
            content = stream.read(size)
    except FileNotFoundError:
        raise DatasetError(
            f"{shard} is missing although the index names it: `magc-data verify` lists what is damaged"
        ) from None
    if len(content) != size:
        raise DatasetError(
            f"{shard} ends inside the {member} of {row['key']}: `magc-data verify` lists what is damaged"
        )
    return content


def read_members(data: Path, row: dict[str, Any]) -> Members:
    """The three members of the sample that an index row names.

    Raises:
        DatasetError: the shard is absent or shorter than the index says.
    """
    return Members(*(read_member(data, row, member) for member in index.MEMBERS))


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """Image bytes to RGB, uint8 [height, width, 3]."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def decode_map(data: bytes) -> NDArray[np.uint8]:
    """Map bytes to class ids, uint8 [height, width].

    Raises:
        ValueError: not an 8-bit palette image, so its pixels are not class ids.
    """
    with Image.open(io.BytesIO(data)) as image:
        if image.mode != "P":
            raise ValueError(f"the map is of mode {image.mode}, expected P (8-bit palette)")
        return np.asarray(image)


def decode_palette(data: bytes) -> NDArray[np.uint8]:
    """Colours of a map, uint8 [classes, 3]."""
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.getpalette() or [], dtype=np.uint8).reshape(-1, 3)


def decode_record(data: bytes) -> dict[str, Any]:
    """The `.json` member."""
    return dict(json.loads(data))
