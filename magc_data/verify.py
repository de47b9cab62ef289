"""Check everything that a dataset claims: digests, sizes, keys, pixel grid, class shares, and nothing left over."""

from __future__ import annotations

import hashlib
import tarfile
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from magc_data import grid
from magc_data.errors import DatasetError, UsageError
from magc_data.schema.sample import TILE_SIZE_PX, ImageFormat
from magc_data.shards import index
from magc_data.shards.folder import ATTRIBUTION_NAME, INDEX_NAME, REJECTED_NAME
from magc_data.shards.manifest import MANIFEST_NAME, attribution_text, read_manifest
from magc_data.shards.reader import decode_image, decode_map, decode_record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pyarrow as pa

    from magc_data.progress import Progress

MAX_FINDINGS_PER_SHARD = 20
"""A shard that is wholly wrong is said to be so in this many lines, not thousands."""


class Verification(NamedTuple):
    """What was checked and what is wrong."""

    samples: int
    shards: int
    findings: tuple[str, ...]
    """One sentence each; empty if all is well."""


def verify(data: Path, progress: Progress | None = None) -> Verification:
    """Check a dataset against its own manifest, index and grid.

    Raises:
        DatasetError: the folder is not a finished dataset at all.
    """
    manifest = read_manifest(data)
    findings: list[str] = []
    try:
        shards, counts = manifest["shards"], manifest["counts"]
        planned, kept, rejected = counts["planned"], counts["kept"], counts["rejected"]
        class_names = {each["id"]: each["name"] for each in manifest["classes"]}
        expected_attribution = attribution_text(manifest["sources"]).encode()
        paths = [entry["path"] for entry in shards]
    except (KeyError, TypeError) as error:
        raise DatasetError(
            f"{data / MANIFEST_NAME} is damaged ({error} is missing or of another kind): build the dataset again"
        ) from None

    rows = index.read_table(data / INDEX_NAME)
    rejected_rows = index.read_table(data / REJECTED_NAME)
    missing_columns = {"key", "shard", "gsd_m", *(f"{m}_{w}" for m in index.MEMBERS for w in ("offset", "size"))} - set(
        rows.column_names
    )
    if missing_columns:
        raise DatasetError(f"{data / INDEX_NAME} lacks the column '{min(missing_columns)}': build the dataset again")

    if len(rows) != kept:
        findings.append(f"{INDEX_NAME} has {len(rows)} rows, expected {kept} as in {MANIFEST_NAME}")
    reasons = dict(sorted(Counter(rejected_rows["reason"].to_pylist()).items()))
    if reasons != rejected:
        findings.append(f"{REJECTED_NAME} holds {reasons}, expected {rejected} as in {MANIFEST_NAME}")
    if kept + sum(rejected.values()) != planned:
        findings.append(
            f"{MANIFEST_NAME} counts {kept} kept and {sum(rejected.values())} rejected, expected {planned} in all"
        )
    keys = Counter([*rows["key"].to_pylist(), *rejected_rows["key"].to_pylist()])
    findings += [f"key {key} stands {count} times, expected once" for key, count in keys.items() if count > 1]
    attribution = data / ATTRIBUTION_NAME
    if not attribution.is_file() or attribution.read_bytes() != expected_attribution:
        findings.append(f"{ATTRIBUTION_NAME} is missing or was changed: it must say what {MANIFEST_NAME} says")
    findings += _unexpected_files(data, set(paths))

    runs = _runs_by_shard(rows)
    named = [name for name, _, _ in runs]
    findings += [
        f"index rows name the shard {name}, which {MANIFEST_NAME} does not" for name in named if name not in set(paths)
    ]
    findings += [
        f"the rows of {name} are scattered over {INDEX_NAME}" for name, count in Counter(named).items() if count > 1
    ]
    span_of = {name: (start, length) for name, start, length in runs}
    for entry in shards:
        shard_rows = rows.slice(*span_of.get(entry["path"], (0, 0))).to_pylist()
        wrong = list(_check_shard(data, entry, shard_rows, class_names))
        findings += wrong[:MAX_FINDINGS_PER_SHARD]
        if len(wrong) > MAX_FINDINGS_PER_SHARD:
            findings.append(f"{entry['path']}: {len(wrong) - MAX_FINDINGS_PER_SHARD} more of the kind")
        if progress:
            progress.block_finished(len(shard_rows), 0)
    return Verification(len(rows), len(shards), tuple(findings))


def _runs_by_shard(rows: pa.Table) -> list[tuple[str, int, int]]:
    """Shard, first row and number of rows of each run of rows with the same shard: one run is held at a time."""
    runs = pc.run_end_encode(rows["shard"].combine_chunks()) if len(rows) else None
    if runs is None:
        return []
    ends = runs.run_ends.to_pylist()
    return [
        (name, end - length, length)
        for name, end, length in zip(runs.values.to_pylist(), ends, np.diff([0, *ends]).tolist(), strict=True)
    ]


def _unexpected_files(data: Path, shard_paths: set[str]) -> Iterator[str]:
    known = shard_paths | {MANIFEST_NAME, INDEX_NAME, REJECTED_NAME, ATTRIBUTION_NAME}
    for path in sorted(data.rglob("*")):
        name = path.relative_to(data).as_posix()
        if path.is_file() and name not in known and path.suffix in {".tar", ".part", ".arrow"}:
            yield f"{name} belongs to no sample: a leftover or foreign file"


def _check_shard(
    data: Path, entry: dict[str, Any], rows: list[dict[str, Any]], class_names: dict[int, str]
) -> Iterator[str]:
    name = entry["path"]
    path = data / name
    if ".." in name.split("/") or name.startswith("/"):
        yield f"{name} points outside the dataset"
        return
    if not path.is_file():
        yield f"{name} is missing"
        return
    content = path.read_bytes()
    if len(content) != entry["size"]:
        yield f"{name} has {len(content)} bytes, expected {entry['size']}"
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        yield f"{name} has another sha256 than {MANIFEST_NAME} says: its bytes were changed"
    if len(rows) != entry["samples"]:
        yield f"{name} has {len(rows)} rows in {INDEX_NAME}, expected {entry['samples']}"
    try:
        with tarfile.open(path, "r:") as archive:
            members = [(member.name, member.offset_data, member.size) for member in archive]
    except (tarfile.TarError, EOFError):
        yield f"{name} is not a complete tar file"
        return
    expected = [
        (f"{row['key']}.{suffix}", row[f"{member}_offset"], row[f"{member}_size"])
        for row in rows
        for member, suffix in zip(index.MEMBERS, (f"image.{row['image_format']}", "map.png", "json"), strict=True)
    ]
    if members != expected:
        different = next((pair for pair in zip(members, expected, strict=False) if pair[0] != pair[1]), None)
        what = (
            f"has member {different[0]} where the index expects {different[1]}"
            if different
            else f"has {len(members)} members, expected {len(expected)}"
        )
        yield f"{name} {what}"
        return
    for row in rows:
        yield from (f"{name}, {row['key']}: {finding}" for finding in _check_sample(content, row, class_names))


def _check_sample(content: bytes, row: dict[str, Any], class_names: dict[int, str]) -> Iterator[str]:
    image, semantic_map, record = (
        content[row[f"{member}_offset"] : row[f"{member}_offset"] + row[f"{member}_size"]] for member in index.MEMBERS
    )
    for member, data in (("image", image), ("map", semantic_map)):
        if hashlib.sha256(data).hexdigest() != row[f"{member}_sha256"]:
            yield f"the {member} has another sha256 than {INDEX_NAME} says"
    signature = {ImageFormat.JPEG: b"\xff\xd8\xff", ImageFormat.PNG: b"\x89PNG"}
    if not image.startswith(signature[ImageFormat(row["image_format"])]):
        yield f"the image is no {row['image_format']}"
    try:
        shape = decode_image(image).shape
        if shape != (TILE_SIZE_PX, TILE_SIZE_PX, 3):
            yield f"the image is {shape[1]}x{shape[0]} pixels, expected {TILE_SIZE_PX}x{TILE_SIZE_PX}"
    except (OSError, ValueError, SyntaxError) as error:
        yield f"the image does not decode ({error})"
    yield from _check_map(semantic_map, row, class_names)
    yield from _check_record(record, row)


def _check_map(semantic_map: bytes, row: dict[str, Any], class_names: dict[int, str]) -> Iterator[str]:
    try:
        classes = decode_map(semantic_map)
    except (OSError, ValueError, SyntaxError) as error:
        yield f"the map does not decode ({error})"
        return
    if classes.shape != (TILE_SIZE_PX, TILE_SIZE_PX):
        yield f"the map is {classes.shape[1]}x{classes.shape[0]} pixels, expected {TILE_SIZE_PX}x{TILE_SIZE_PX}"
    counts = np.bincount(classes.ravel(), minlength=256)
    if unknown := sorted(set(np.flatnonzero(counts).tolist()) - class_names.keys()):
        yield f"the map holds class {unknown[0]}, which is not in the class table"
    for class_id, class_name in class_names.items():
        share = row.get(index.FRACTION_PREFIX + class_name)
        if share is None or abs(share - counts[class_id] / classes.size) > 1e-6:
            yield f"the share of {class_name} is {counts[class_id] / classes.size:.6f}, the index says {share}"


def _check_record(record: bytes, row: dict[str, Any]) -> Iterator[str]:
    try:
        fields = decode_record(record)
        tile = grid.parse_key(row["key"])
    except (ValueError, UsageError) as error:
        yield f"the record or key is not readable ({error})"
        return
    lon, lat = grid.tile_centre_lonlat(tile)
    expected = {
        "key": row["key"],
        "z": tile.z,
        "x": tile.x,
        "y": tile.y,
        "lon": lon,
        "lat": lat,
        "bounds_lonlat": list(grid.tile_bounds_lonlat(tile)),
        "bounds_3857": list(grid.tile_bounds_3857(tile)),
        "gsd_m": grid.tile_gsd_m(tile),
    }
    for name, value in expected.items():
        # Another machine's mathematics library may round the last digit differently.
        if name not in fields or not _close(fields[name], value):
            yield f"the record's {name} is {fields.get(name)}, the pixel grid says {value}"
        if name in row and not _close(row[name], value):
            yield f"the index's {name} is {row[name]}, the pixel grid says {value}"
    for name in ("image_sha256", "map_sha256", "capture_date", "osm_timestamp"):
        if fields.get(name) != row[name]:
            yield f"the record's {name} is {fields.get(name)}, the index says {row[name]}"


def _close(found: Any, expected: Any) -> bool:
    try:
        return bool(np.allclose(found, expected, rtol=1e-12, atol=1e-9))
    except (TypeError, ValueError):
        return bool(found == expected)
