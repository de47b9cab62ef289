"""The pictures that a page holds: whole tiles where they fit, thumbnails where not, of a part where these do not."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
from PIL import Image

from magc_data.errors import DatasetError
from magc_data.schema.sample import TILE_SIZE_PX
from magc_data.shards.reader import read_members

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from magc_data.explore.table import ExploreTable

THUMBNAIL_SIZES_PX = (128, 96, 64)
"""Tried in this order for what fits."""

SERVED_THUMBNAIL_PX = 128
MIME_TYPES = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}

_PROBES = 48
_BASE64_GROWTH = 4 / 3
_WEBP_QUALITY = 55  # 1.9 kB an aerial picture of 96 pixels
_WEBP_EFFORT = 2  # the slower ones save 4 % in twice the time


class TilePictures(NamedTuple):
    """Image and map of a tile as a browser shows them."""

    image: bytes
    image_format: str
    semantic_map: bytes
    map_format: str


class PicturePlan(NamedTuple):
    """Which pictures a page holds."""

    size_px: int
    """Side of each; TILE_SIZE_PX: the tiles' own bytes."""
    rows: list[int]
    """Rows of the table with a picture in the page."""


def plan_pictures(table: ExploreTable, limit_bytes: int) -> PicturePlan:
    """The best pictures of which base64 stays near the limit; estimated from a few tiles of all over the dataset.

    Raises:
        DatasetError: a tile cannot be read.
    """
    rows = range(len(table.rows))
    whole = sum(pc.sum(table.rows[f"{member}_size"]).as_py() for member in ("image", "map"))
    if whole * _BASE64_GROWTH <= limit_bytes:
        return PicturePlan(TILE_SIZE_PX, list(rows))
    fitting = 0
    for size_px in THUMBNAIL_SIZES_PX:
        probes = [pictures_of_row(table, row, size_px) for row in _spread(len(rows), _PROBES)]
        mean = sum(len(each.image) + len(each.semantic_map) for each in probes) / len(probes)
        fitting = int(limit_bytes / _BASE64_GROWTH / mean)
        if fitting >= len(rows):
            return PicturePlan(size_px, list(rows))
    return PicturePlan(THUMBNAIL_SIZES_PX[-1], _spread(len(rows), fitting))


def _spread(total: int, count: int) -> list[int]:
    """Up to `count` numbers below `total`, evenly spread."""
    return [int(each) for each in np.linspace(0, total, min(count, total), endpoint=False)]


def planned_pictures(table: ExploreTable, plan: PicturePlan) -> Iterator[TilePictures]:
    """The pictures of a plan, in its order."""
    return (pictures_of_row(table, row, plan.size_px) for row in plan.rows)


def pictures_of_row(table: ExploreTable, number: int, size_px: int) -> TilePictures:
    """Image and map of one tile, `size_px` a side; at TILE_SIZE_PX the bytes are the shard's.

    Raises:
        DatasetError: the shard is missing or damaged.
    """
    row = table.row(number)
    members = read_members(table.data, row)
    if size_px == TILE_SIZE_PX:
        return TilePictures(members.image, _format(row, table.data), members.semantic_map, "png")
    try:
        image, semantic_map = _small_image(members.image, size_px), _small_map(members.semantic_map, size_px)
    # Pillow's plugins raise whatever they come across in damaged files.
    except Exception as error:  # noqa: BLE001 - see above
        raise DatasetError(
            f"{row['key']} in {table.data / row['shard']} cannot be decoded ({type(error).__name__}): "
            "`magc-data verify` lists what is damaged"
        ) from None
    return TilePictures(image, "webp", semantic_map, "webp")


def _format(row: dict[str, Any], data: Path) -> str:
    if row["image_format"] not in MIME_TYPES:
        raise DatasetError(
            f"the index of {data} names the image format {row['image_format']!r}, expected jpg or png: build it again"
        )
    return str(row["image_format"])


def _small_image(content: bytes, size_px: int) -> bytes:
    with Image.open(io.BytesIO(content)) as image:
        image.draft("RGB", (size_px, size_px))
        small = image.convert("RGB").resize((size_px, size_px), Image.Resampling.BILINEAR, reducing_gap=2.0)
    stream = io.BytesIO()
    small.save(stream, "WEBP", quality=_WEBP_QUALITY, method=_WEBP_EFFORT)
    return stream.getvalue()


def _small_map(content: bytes, size_px: int) -> bytes:
    with Image.open(io.BytesIO(content)) as image:
        small = image.resize((size_px, size_px), Image.Resampling.NEAREST).convert("RGB")
    stream = io.BytesIO()
    small.save(stream, "WEBP", lossless=True, method=0)
    return stream.getvalue()
