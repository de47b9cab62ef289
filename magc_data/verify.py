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
from magc_data.quality.signals import QUALITY_VERSION, tile_signals
from magc_data.schema.sample import TILE_SIZE_PX, ImageFormat
from magc_data.shards import index
from magc_data.shards.describe import stale_metadata
from magc_data.shards.folder import ATTRIBUTION_NAME, INDEX_NAME, REJECTED_NAME
from magc_data.shards.manifest import BUILD_NAME, MANIFEST_NAME, REPACK_NAME, attribution_text, read_manifest
from magc_data.shards.reader import decode_image, decode_map, decode_palette, decode_record, read_index
from magc_data.shards.view_file import follow_views
from magc_data.splits.certificate import check_certificate

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
    """Check a dataset against its own manifest, index and grid; of a view, the whole dataset that it is of.

    Raises:
        DatasetError: the folder is not a finished dataset at all.
    """
    data, _ = follow_views(data)
    manifest = read_manifest(data)
    counts = manifest["counts"]
    planned, kept, rejected = counts["planned"], counts["kept"], counts["rejected"]
    shards = manifest["shards"]
    paths = [entry["path"] for entry in shards]
    rows = read_index(data)
    rejected_rows = index.read_table(data / REJECTED_NAME)
    if missing := [name for name in index.REJECTED_SCHEMA.names if name not in rejected_rows.column_names]:
        raise DatasetError(f"{data / REJECTED_NAME} lacks the column '{missing[0]}': build the dataset again")

    findings = list(_check_manifest(manifest, rows, rejected_rows))
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
    if not attribution.is_file() or attribution.read_bytes() != attribution_text(manifest["sources"]).encode():
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
        wrong = list(_check_shard(data, entry, shard_rows, manifest))
        findings += wrong[:MAX_FINDINGS_PER_SHARD]
        if len(wrong) > MAX_FINDINGS_PER_SHARD:
            findings.append(f"{entry['path']}: {len(wrong) - MAX_FINDINGS_PER_SHARD} more of the kind")
        if progress:
            progress.block_finished(len(shard_rows), 0)
    findings += check_certificate(data, manifest, rows)
    # What is derived from the rest is looked at only where the rest is sound.
    findings = findings or [
        f"{name} is missing or says something else than the dataset: `magc-data metadata {data}` writes it again"
        for name in stale_metadata(data, manifest)
    ]
    return Verification(len(rows), len(shards), tuple(findings))


def _check_manifest(manifest: dict[str, Any], rows: pa.Table, rejected_rows: pa.Table) -> Iterator[str]:
    """Does the manifest say what the tables say?"""
    zooms = pc.unique(rows["z"]).to_pylist()
    if zooms and zooms != [manifest["zoom"]]:
        yield f"{MANIFEST_NAME} says zoom {manifest['zoom']}, {INDEX_NAME} has {zooms}"
    gsd_m = pc.min_max(rows["gsd_m"]).as_py()
    if gsd_m != {name: manifest["gsd_m"][name] for name in ("min", "max")}:
        yield f"{MANIFEST_NAME} says gsd_m {manifest['gsd_m']}, {INDEX_NAME} has {gsd_m}"
    transient = pc.sum(rejected_rows["transient"], min_count=0).as_py()
    if transient != manifest["counts"]["transient"]:
        yield f"{MANIFEST_NAME} counts {manifest['counts']['transient']} transient, {REJECTED_NAME} has {transient}"
    if manifest["scheme"] != manifest["config"].get("scheme", {}).get("name"):
        yield f"{MANIFEST_NAME} names two schemes, {manifest['scheme']} and {manifest['config'].get('scheme')}"
    if rows["shard"].null_count:
        yield f"{INDEX_NAME} has {rows['shard'].null_count} rows without a shard"


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
        # A retry or split that has not got as far as changing anything leaves its scratch beside a sound dataset.
        if name.startswith((f"{BUILD_NAME}/", f"{REPACK_NAME}/")):
            continue
        if path.is_file() and name not in known and path.suffix in {".tar", ".part", ".arrow"}:
            yield f"{name} belongs to no sample: a leftover or foreign file"


def _check_shard(
    data: Path, entry: dict[str, Any], rows: list[dict[str, Any]], manifest: dict[str, Any]
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
    is_measured = manifest["config"].get("quality_version") == QUALITY_VERSION
    for row in rows:
        wrong = list(_check_sample(content, row, manifest))
        if is_measured and not wrong:
            wrong = list(_check_quality(content, row))
        yield from (f"{name}, {row['key']}: {finding}" for finding in wrong)


def _check_sample(content: bytes, row: dict[str, Any], manifest: dict[str, Any]) -> Iterator[str]:
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
    yield from _check_map(semantic_map, row, manifest["classes"])
    yield from _check_record(record, row, manifest)


def _check_quality(content: bytes, row: dict[str, Any]) -> Iterator[str]:
    """Is the quality of a sample that is sound otherwise what the index says?"""
    image, semantic_map = (
        content[row[f"{member}_offset"] : row[f"{member}_offset"] + row[f"{member}_size"]]
        for member in ("image", "map")
    )
    for name, value in tile_signals(decode_image(image), decode_map(semantic_map))._asdict().items():
        # Stored as 32-bit numbers of four decimals.
        same = row.get(name) == value if value is None or row.get(name) is None else _close(row[name], value, 1e-6)
        if not same:
            yield f"the index's {name} is {row.get(name)}, the pixels say {value}"


def _check_map(semantic_map: bytes, row: dict[str, Any], table: list[dict[str, Any]]) -> Iterator[str]:
    class_names = {each["id"]: each["name"] for each in table}
    try:
        classes, palette = decode_map(semantic_map), decode_palette(semantic_map)
    except (OSError, ValueError, SyntaxError) as error:
        yield f"the map does not decode ({error})"
        return
    if classes.shape != (TILE_SIZE_PX, TILE_SIZE_PX):
        yield f"the map is {classes.shape[1]}x{classes.shape[0]} pixels, expected {TILE_SIZE_PX}x{TILE_SIZE_PX}"
    if any(palette[each["id"] : each["id"] + 1].tolist() != [each["color"]] for each in table):
        yield "the map's palette is not that of the class table"
    counts = np.bincount(classes.ravel(), minlength=256)
    if unknown := sorted(set(np.flatnonzero(counts).tolist()) - class_names.keys()):
        yield f"the map holds class {unknown[0]}, which is not in the class table"
    for class_id, class_name in class_names.items():
        share = row.get(index.FRACTION_PREFIX + class_name)
        if share is None or abs(share - counts[class_id] / classes.size) > 1e-6:
            yield f"the share of {class_name} is {counts[class_id] / classes.size:.6f}, the index says {share}"


def _check_record(record: bytes, row: dict[str, Any], manifest: dict[str, Any]) -> Iterator[str]:
    try:
        fields = decode_record(record)
        tile = grid.parse_key(row["key"])
    except (ValueError, TypeError, UsageError) as error:
        yield f"the record or key is not readable ({error})"
        return
    for name, value in grid.place_fields(tile).items():
        # Another machine's mathematics library may round the last digit differently.
        if name not in fields or not _close(fields[name], value):
            yield f"the record's {name} is {fields.get(name)}, the pixel grid says {value}"
        if name in row and not _close(row[name], value):
            yield f"the index's {name} is {row[name]}, the pixel grid says {value}"
    stated = {
        "scheme": manifest["scheme"],
        **{role: source["name"] for role, source in manifest["sources"].items()},
    }
    for name, value in stated.items():
        if fields.get(name) != value:
            yield f"the record's {name} is {fields.get(name)}, {MANIFEST_NAME} says {value}"
    shares = {each["name"]: row.get(index.FRACTION_PREFIX + each["name"]) for each in manifest["classes"]}
    present = {name: share for name, share in shares.items() if share}
    stated_shares = fields.get("class_fractions")
    fractions: dict[str, Any] = stated_shares if isinstance(stated_shares, dict) else {}
    same_classes = fractions.keys() == present.keys()
    if not same_classes or not _close([fractions[name] for name in present], list(present.values()), tolerance=1e-6):
        yield "the record's class_fractions are not those of the index"
    for name in ("image_sha256", "map_sha256", "capture_date", "osm_timestamp"):
        if fields.get(name) != row[name]:
            yield f"the record's {name} is {fields.get(name)}, the index says {row[name]}"


def _close(found: Any, expected: Any, tolerance: float = 1e-9) -> bool:
    try:
        return bool(np.allclose(found, expected, rtol=1e-12, atol=tolerance))
    except (TypeError, ValueError):
        return bool(found == expected)
