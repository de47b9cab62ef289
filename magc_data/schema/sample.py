"""What a sample is on disk: its members, its record, the reasons for which a tile is not kept."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Any, NamedTuple

FORMAT_VERSION = 1
"""Version of the dataset layout (dataset.json, index.parquet, shards); see docs/shard-format.md."""

TILE_SIZE_PX = 256


class ImageFormat(StrEnum):
    """Extensions an image member may have; the value is the member's last suffix."""

    JPEG = "jpg"
    PNG = "png"


class Reason(StrEnum):
    """Why a tile was not kept. The values are written to `rejected.parquet`: append only."""

    NOT_AVAILABLE = "not-available"
    """The service says that it has no tile here (tilemap, 404, 204)."""
    PLACEHOLDER = "placeholder"
    """The service answered with its 'no data' picture (known digest, length or header)."""
    BLANK = "blank"
    """A single colour all over."""
    MISSING_PIXELS = "missing-pixels"
    """Transparent, masked or nodata pixels."""
    UNDECODABLE = "undecodable"
    """Not a complete image of a known format."""
    WRONG_SIZE = "wrong-size"
    """Not 256 x 256 pixels."""
    REPEATED = "repeated"
    """The very same bytes stand at several places of this dataset: a picture of no place."""
    OUTSIDE_IMAGERY = "outside-imagery"
    """Outside the area that a local imagery source covers."""
    OUTSIDE_VECTORS = "outside-vectors"
    """Not wholly inside the area that the vector source covers: the map would be falsely empty."""
    SEA_UNKNOWN = "sea-unknown"
    """Coastlines that end in the midst or contradict each other leave it open what here is land and what sea."""
    FETCH_FAILED = "fetch-failed"
    """The service failed although asked again (transient: the next run tries once more)."""


class Rejection(NamedTuple):
    """A tile that is not kept, and why."""

    reason: Reason
    detail: str
    """What exactly was seen, e.g. 'HTTP 503 four times'."""
    transient: bool = False
    """True: the next run tries again. False: remembered."""
    image_sha256: str | None = None
    """Digest of the bytes that were refused, where there were any."""


class TileImage(NamedTuple):
    """The bytes of one tile's image, checked: complete, 256 x 256, no placeholder, no missing pixels."""

    data: bytes
    format: ImageFormat
    capture_date: str | None = None
    """ISO date, where the source knows it."""


def record(fields: dict[str, Any]) -> bytes:
    """Serialise a sample's metadata record (the `.json` member): UTF-8, sorted keys, no spaces."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
