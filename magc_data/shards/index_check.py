"""What an index must be before anybody acts on it: columns of their types, no holes, places and names that can be.

An index may come from anywhere, and what it says becomes offsets, paths and names of files. Whether it is true, too,
takes the shards: that is `magc_data.verify`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from magc_data.schema.sample import ImageFormat
from magc_data.shards import index
from magc_data.shards.storage import SHARD_PATH

if TYPE_CHECKING:
    from collections.abc import Iterator

_IMAGE_COLUMNS = ("image_offset", "image_size", "image_format", "image_sha256")
"""Null in all rows, or in none: a dataset has images or it holds maps alone."""

_ALL_OR_NONE = {*_IMAGE_COLUMNS, "z"}
"""Null in all rows, or in none: images, and the zoom, which tiles of constant ground resolution do not have."""

_OPTIONAL_COLUMNS = (*index.QUALITY_COLUMNS, *index.CAPTURE_COLUMNS)
_MAY_BE_NULL = {*_ALL_OR_NONE, "split", "capture_date", "osm_timestamp", *_OPTIONAL_COLUMNS}

_PATTERNS = {
    "key": r"^([0-9]{1,2}|g[0-9]{2,5})_[0-9]{1,8}_[0-9]{1,8}$",
    "image_sha256": "^[0-9a-f]{64}$",
    "map_sha256": "^[0-9a-f]{64}$",
    "split": "^(train|val|test)$",
    "image_format": f"^({'|'.join(ImageFormat)})$",
}

_SCHEMAS = (index.FIXED_SCHEMA, index.QUALITY_SCHEMA, index.CAPTURE_SCHEMA)
_TYPES = {field.name: field.type for schema in _SCHEMAS for field in schema}


def index_findings(rows: pa.Table) -> Iterator[str]:
    """What is wrong with rows of an index by themselves, a sentence each; columns that are absent are not missed."""
    if wrong_types := [*column_findings(rows.schema)]:
        yield from wrong_types
        return
    for name in rows.column_names:
        nulls = rows[name].null_count
        if name in _TYPES and nulls and (name not in _MAY_BE_NULL or (name in _ALL_OR_NONE and nulls < len(rows))):
            yield f"has {nulls} rows without '{name}'"
        if pa.types.is_floating(rows[name].type) and pc.any(pc.invert(pc.is_finite(rows[name]))).as_py():
            yield f"has a '{name}' that is not finite"
        if name.endswith(("_offset", "_size")) and (pc.min(rows[name]).as_py() or 0) < 0:
            yield f"has a '{name}' below 0"
        if pattern := _PATTERNS.get(name):
            different = rows[name].filter(pc.invert(pc.match_substring_regex(rows[name], pattern)))
            if len(different := different.drop_null()):
                yield f"has the {name} {different[0].as_py()[:80]!r}, which none can be"
    if "shard" in rows.column_names:
        shards = pc.unique(rows["shard"]).drop_null().to_pylist()
        foreign = [name for name in shards if not SHARD_PATH.fullmatch(name)]
        yield from (f"names the shard {name[:80]!r}, which points outside the dataset or is no tar" for name in foreign)
    if "key" in rows.column_names:
        yield from repeated_keys(rows["key"])


def rejected_findings(rows: pa.Table) -> Iterator[str]:
    """What is wrong with the rows of `rejected.parquet` by themselves, a sentence each."""
    if wrong_types := [*_wrong_types(rows.schema, {field.name: field.type for field in index.REJECTED_SCHEMA})]:
        yield from wrong_types
        return
    for name in ("key", "block", "reason", "transient"):
        if nulls := rows[name].null_count:
            yield f"has {nulls} rows without '{name}'"
    yield from repeated_keys(rows["key"])


def column_findings(schema: pa.Schema) -> Iterator[str]:
    """Columns of an index that are of another type than theirs, a sentence each."""
    return _wrong_types(schema, _TYPES)


def _wrong_types(schema: pa.Schema, types: dict[str, pa.DataType]) -> Iterator[str]:
    for field in schema:
        expected = pa.float32() if field.name.startswith(index.FRACTION_PREFIX) else types.get(field.name, field.type)
        if field.type != expected:
            yield f"has '{field.name}' as {field.type}, expected {expected}"


def repeated_keys(keys: pa.ChunkedArray) -> Iterator[str]:
    """Keys that stand more than once, a sentence each."""
    counts = pc.value_counts(keys)
    several = counts.filter(pc.greater(counts.field("counts"), 1))
    yield from (f"has rows of one key: {each['values']} stands {each['counts']} times" for each in several.to_pylist())
