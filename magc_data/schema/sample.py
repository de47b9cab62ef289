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
    UNCHANGED = "unchanged"
    """The picture is the same at both ends of a change."""
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


class CaptureUnknown(StrEnum):
    """Why the date of a tile's picture is not known. The values are written to `index.parquet`: append only."""

    NO_LAYER = "no-layer"
    """The service has no layer that tells dates."""
    NOT_ANSWERED = "not-answered"
    """The layer failed although asked again (transient: the next run asks once more)."""
    NOT_COVERED = "not-covered"
    """The layer tells of no picture at the tile's centre at this zoom level."""
    NOT_DATED = "not-dated"
    """The layer tells of the picture there, but not when it was taken."""
    OTHER_TIME = "other-time"
    """The layer was asked long before or after the tile was fetched, and may speak of another picture."""


class Capture(NamedTuple):
    """When and by what the picture at a tile's centre was taken, as its service tells."""

    date: str | None
    """ISO date."""
    share: float | None
    """Of the tile's ground that has a picture of this very date, 0 to 1: below 1, several captures meet in the tile."""
    source: str | None
    """The service's own words: provider and sensor."""
    gsd_m: float | None
    """Metres a pixel of the picture before it was cut into tiles."""
    accuracy_m: float | None
    unknown: CaptureUnknown | None
    """Why there is no date; None where there is one."""
    release: str | None = None
    """The Wayback release that was the first to show the picture, where that was asked for."""
    pair_sha256: str | None = None
    """Digest of the picture that makes a pair with this one, where it is one half of a pair."""

    def details(self) -> dict[str, Any]:
        """What is known beside the date."""
        return {name: value for name, value in self._asdict().items() if name != "date" and value is not None}


class TileImage(NamedTuple):
    """The bytes of one tile's image, checked: complete, 256 x 256, no placeholder, no missing pixels."""

    data: bytes
    format: ImageFormat
    capture_date: str | None = None
    """ISO date, where the source knows it."""
    capture: Capture | None = None
    """What else a source that tells captures knows of this one; None where the source tells of none."""
    other_half: Capture | None = None
    """Of the picture that makes a pair with this one; None where there is no pair."""


def record(fields: dict[str, Any]) -> bytes:
    """Serialise a sample's metadata record (the `.json` member): UTF-8, sorted keys, no spaces."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
