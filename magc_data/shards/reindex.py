"""What the index says, read back from the shards: their records and the places of their members."""

from __future__ import annotations

import json
from typing import IO, TYPE_CHECKING, Any

from magc_data.errors import UsageError
from magc_data.ground_grid import parse_key
from magc_data.sample import Provenance, sample_fields
from magc_data.schema.sample import Capture, ImageFormat, record
from magc_data.shards import index
from magc_data.shards.tar import ForeignTarError, TarMember, walk_tar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from magc_data.shards.tar import MemberSpan

_PLACE = ("key", "z", "x", "y", "lon", "lat", "gsd_m")
_FROM_RECORD = ("image_sha256", "map_sha256", "capture_date", "osm_timestamp")
_SPANS = tuple(f"{member}_{what}" for member in index.MEMBERS for what in ("offset", "size"))

COLUMNS = (*_PLACE, "shard", *_SPANS, "image_format", *_FROM_RECORD)
"""Columns that follow from a shard's bytes, beside the shares of the classes."""


def rows_of_shard(stream: IO[bytes], path: str) -> list[dict[str, Any]]:
    """The index rows of a shard, as far as they follow from its bytes: `COLUMNS`, and the classes that occur.

    Args:
        stream: the shard.
        path: its place within the dataset.

    Raises:
        ForeignTarError: not a shard, or its records are not of the samples they stand with.
    """
    return [_row(stream, members, path) for members in _samples(walk_tar(stream))]


def _samples(members: Iterator[TarMember]) -> Iterator[dict[str, TarMember]]:
    """Members of each sample by kind: a sample ends with its record."""
    sample: dict[str, TarMember] = {}
    for member in members:
        key, _, suffix = member.name.partition(".")
        kind = suffix.partition(".")[0]
        image_format = suffix.removeprefix("image.") if kind == "image" else None
        if index.member_names(key, image_format).get(kind) != member.name or kind in sample:
            raise ForeignTarError(f"holds {member.name}, which is no member of a sample or out of place")
        sample[kind] = member
        if kind == "json":
            yield sample
            sample = {}
    if sample:
        raise ForeignTarError("ends with a sample that has no record")


def _row(stream: IO[bytes], members: dict[str, TarMember], path: str) -> dict[str, Any]:
    name = members["json"].name
    stream.seek(members["json"].offset)
    try:
        fields = json.loads(stream.read(members["json"].size))
        tile = parse_key(name.removesuffix(".json"))
        place = {column: fields[column] for column in _PLACE}
        shares = {index.FRACTION_PREFIX + each: float(share) for each, share in fields["class_fractions"].items()}
        rest = {column: fields[column] for column in _FROM_RECORD} | _capture(fields)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, UsageError):
        raise ForeignTarError(f"holds the record {name}, which is damaged") from None
    if fields["key"] != tile.key or {member.name.partition(".")[0] for member in members.values()} != {tile.key}:
        raise ForeignTarError(f"holds the record {name} beside members of another sample")
    image = members.get("image")
    return (
        place
        | {"shard": path}
        | {"image_format": None if image is None else str(ImageFormat(image.name.rpartition(".")[2]))}
        | _spans(members)
        | rest
        | shares
    )


def _capture(fields: dict[str, Any]) -> dict[str, Any]:
    """What a record says of its image's capture beside the date; nothing where its imagery tells none."""
    details = {f"capture_{name}": value for name, value in fields.get("capture", {}).items()}
    days = index.osm_days(fields["capture_date"], fields["osm_timestamp"]) if details else None
    return details if days is None else details | {"osm_days": days}


def _spans(members: dict[str, TarMember] | dict[str, MemberSpan]) -> dict[str, int | None]:
    return {
        f"{kind}_{what}": getattr(members[kind], what) if kind in members else None
        for kind in index.MEMBERS
        for what in ("offset", "size")
    }


def record_of_row(row: dict[str, Any], imagery: str | None, vectors: str, scheme_name: str) -> bytes:
    """The `.json` member that belongs to an index row: the inverse of reading rows from records.

    Args:
        row: all columns of the index.
        imagery: name of the source, None for maps alone.
        vectors: name of the source.
        scheme_name: of the classes.
    """
    fractions = {
        name.removeprefix(index.FRACTION_PREFIX): share
        for name, share in row.items()
        if name.startswith(index.FRACTION_PREFIX)
    }
    provenance = Provenance(imagery, vectors, row["osm_timestamp"])
    tile = parse_key(row["key"])
    digests = row["image_sha256"], row["map_sha256"]
    columns = {name: row.get(f"capture_{name}") for name in Capture._fields if name != "date"}
    capture = {name: value for name, value in columns.items() if value is not None}
    return record(sample_fields(tile, row["capture_date"], capture, fractions, *digests, scheme_name, provenance))
