"""Check everything that a dataset claims: digests, sizes, keys, pixel grid, class shares, and nothing left over."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from magc_data.errors import WAY_OUT, DatasetError, UsageError
from magc_data.ground_grid import GroundGrid, grid_of, grid_text, parse_key
from magc_data.metadata.files import METADATA_NAMES
from magc_data.quality.signals import QUALITY_VERSION, tile_signals
from magc_data.schema.sample import Capture, ImageFormat
from magc_data.shards import index
from magc_data.shards.describe import stale_metadata
from magc_data.shards.fetched import fetched
from magc_data.shards.folder import ATTRIBUTION_NAME, INDEX_NAME, REJECTED_NAME
from magc_data.shards.index_check import index_findings, rejected_findings
from magc_data.shards.manifest import BUILD_NAME, MANIFEST_NAME, REPACK_NAME, attribution_text, read_manifest
from magc_data.shards.reader import UndecodableError, decode_image, decode_map, decode_palette, decode_record
from magc_data.shards.storage import names_in
from magc_data.shards.tar import ForeignTarError, TarMember, walk_tar
from magc_data.shards.view_file import resolve
from magc_data.splits.certificate import CERTIFICATE_NAME, check_certificate

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from magc_data.progress import Progress
    from magc_data.shards.fetched import FetchedDataset

MAX_FINDINGS_PER_SHARD = 20
"""A shard that is wholly wrong is said to be so in this many lines, not thousands."""


class Verification(NamedTuple):
    """What was checked and what is wrong."""

    samples: int
    shards: int
    findings: tuple[str, ...]
    """One sentence each; empty if all is well."""


def verify(data: Path | str, progress: Progress | None = None) -> Verification:
    """Check a dataset against its own manifest, index and grid; of a view, the whole dataset that it is of.

    At an address, shards are fetched one after another (all are kept to the end if the dataset is split, as its
    certificate is of all); files that belong to no sample are found only where the service has lists.

    Raises:
        DatasetError: not a finished dataset at all, or a service refuses.
    """
    origin = resolve(data).folder
    manifest = read_manifest(origin if isinstance(origin, Path) else origin.url)
    # What need not be there is not asked for: some services answer that with a refusal.
    certificate = (CERTIFICATE_NAME,) if "split" in manifest else ()
    with fetched(origin, (ATTRIBUTION_NAME, INDEX_NAME, *METADATA_NAMES, *certificate)) as files:
        return _verified(files, manifest, progress)


def _verified(files: FetchedDataset, manifest: dict[str, Any], progress: Progress | None) -> Verification:
    origin, data = files
    counts = manifest["counts"]
    planned, kept, rejected = counts["planned"], counts["kept"], counts["rejected"]
    shards = manifest["shards"]
    paths = [entry["path"] for entry in shards]
    rows = index.read_table(origin / INDEX_NAME)
    rejected_rows = index.read_table(origin / REJECTED_NAME)
    schemas = {INDEX_NAME: (rows, index.FIXED_SCHEMA), REJECTED_NAME: (rejected_rows, index.REJECTED_SCHEMA)}
    for name, (table, schema) in schemas.items():
        if missing := [column for column in schema.names if column not in table.column_names]:
            raise DatasetError(f"{origin / name} lacks the column '{missing[0]}': {WAY_OUT}")

    # What the index says becomes offsets and names: if it cannot be so, only the shards' own digests are looked at.
    findings = [f"{INDEX_NAME} {finding}" for finding in index_findings(rows)]
    findings += [f"{REJECTED_NAME} {finding}" for finding in rejected_findings(rejected_rows)]
    if findings:
        for entry in shards:
            with files.shard(entry["path"], keep=False):
                findings += _check_file(data, entry)
        return Verification(len(rows), len(shards), tuple(findings))

    findings += _check_manifest(manifest, rows, rejected_rows)
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
    findings += _unexpected_files(names_in(origin) or [], set(paths))

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
        with files.shard(entry["path"], keep="split" in manifest):
            wrong = list(_check_shard(data, entry, shard_rows, manifest))
        findings += wrong[:MAX_FINDINGS_PER_SHARD]
        if len(wrong) > MAX_FINDINGS_PER_SHARD:
            findings.append(f"{entry['path']}: {len(wrong) - MAX_FINDINGS_PER_SHARD} more of the kind")
        if progress:
            progress.block_finished(len(shard_rows), 0)
    findings += check_certificate(data, manifest, rows)
    # What is derived from the rest is looked at only where the rest is sound.
    findings = findings or [
        f"{name} is missing or says something else than the dataset: `magc-data metadata {origin}` writes it again"
        for name in stale_metadata(data, manifest)
    ]
    return Verification(len(rows), len(shards), tuple(findings))


def _check_manifest(manifest: dict[str, Any], rows: pa.Table, rejected_rows: pa.Table) -> Iterator[str]:
    """Does the manifest say what the tables say?"""
    zooms = pc.unique(rows["z"]).to_pylist()
    if zooms and zooms != [manifest.get("zoom")]:
        yield f"{MANIFEST_NAME} says {grid_text(manifest)}, {INDEX_NAME} has the zooms {zooms}"
    if isinstance(grid := grid_of(manifest), GroundGrid):
        foreign = [key for key in rows["key"].to_pylist() if not key.startswith(f"g{grid.gsd_mm}_")]
        if foreign:
            yield f"{MANIFEST_NAME} says {grid_text(manifest)}, {INDEX_NAME} has the key {foreign[0]}"
    gsd_m = pc.min_max(rows["gsd_m"]).as_py()
    if gsd_m != {name: manifest["gsd_m"][name] for name in ("min", "max")}:
        yield f"{MANIFEST_NAME} says gsd_m {manifest['gsd_m']}, {INDEX_NAME} has {gsd_m}"
    transient = pc.sum(rejected_rows["transient"], min_count=0).as_py()
    if transient != manifest["counts"]["transient"]:
        yield f"{MANIFEST_NAME} counts {manifest['counts']['transient']} transient, {REJECTED_NAME} has {transient}"
    if manifest["scheme"] != manifest["config"]["scheme"]["name"]:
        yield f"{MANIFEST_NAME} names two schemes, {manifest['scheme']} and {manifest['config']['scheme']['name']}"
    has_images = "imagery" in manifest["sources"]
    if len(rows) and has_images == bool(rows["image_offset"].null_count):
        yield f"{MANIFEST_NAME} says that there are {'' if has_images else 'no '}images, {INDEX_NAME} says otherwise"


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


def _unexpected_files(names: list[str], shard_paths: set[str]) -> Iterator[str]:
    known = shard_paths | {MANIFEST_NAME, INDEX_NAME, REJECTED_NAME, ATTRIBUTION_NAME}
    for name in names:
        # A retry or split that has not got as far as changing anything leaves its scratch beside a sound dataset.
        if name.startswith((f"{BUILD_NAME}/", f"{REPACK_NAME}/")):
            continue
        if name not in known and PurePosixPath(name).suffix in {".tar", ".part", ".arrow"}:
            yield f"{name} belongs to no sample: a leftover or foreign file"


def _check_shard(
    data: Path, entry: dict[str, Any], rows: list[dict[str, Any]], manifest: dict[str, Any]
) -> Iterator[str]:
    name = entry["path"]
    path = data / name
    yield from _check_file(data, entry)
    if not path.is_file():
        return
    if len(rows) != entry["samples"]:
        yield f"{name} has {len(rows)} rows in {INDEX_NAME}, expected {entry['samples']}"
    with path.open("rb") as stream:
        try:
            members = [*walk_tar(stream)]
        except ForeignTarError as error:
            yield f"{name} {error}"
            return
        yield from _check_members(stream, name, members, rows, manifest)


def _check_file(data: Path, entry: dict[str, Any]) -> Iterator[str]:
    """Is the shard there, and is it the one that the manifest means?"""
    name, path = entry["path"], data / entry["path"]
    if not path.is_file():
        yield f"{name} is missing"
        return
    if (size := path.stat().st_size) != entry["size"]:
        yield f"{name} has {size} bytes, expected {entry['size']}"
    with path.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != entry["sha256"]:
            yield f"{name} has another sha256 than {MANIFEST_NAME} says: its bytes were changed"


def _check_members(
    stream: IO[bytes],
    name: str,
    members: list[TarMember],
    rows: list[dict[str, Any]],
    manifest: dict[str, Any],
) -> Iterator[str]:
    """Does an open shard hold what the index says?"""
    expected = [
        TarMember(file_name, row[f"{member}_offset"], row[f"{member}_size"])
        for row in rows
        for member, file_name in index.member_names(row["key"], row["image_format"]).items()
    ]
    if members != expected:
        different = next((pair for pair in zip(members, expected, strict=False) if pair[0] != pair[1]), None)
        what = (
            f"has member {tuple(different[0])} where the index expects {tuple(different[1])}"
            if different
            else f"has {len(members)} members, expected {len(expected)}"
        )
        yield f"{name} {what}"
        return
    is_measured = manifest["config"].get("quality_version") == QUALITY_VERSION
    for row in rows:
        contents = {}
        for member in index.member_names(row["key"], row["image_format"]):
            stream.seek(row[f"{member}_offset"])
            contents[member] = stream.read(row[f"{member}_size"])
        wrong = [*_check_sample(contents, row, manifest)]
        if is_measured and not wrong:
            wrong = [*_check_quality(contents, row)]
        yield from (f"{name}, {row['key']}: {finding}" for finding in wrong)


def _check_sample(contents: dict[str, bytes], row: dict[str, Any], manifest: dict[str, Any]) -> Iterator[str]:
    for member in contents.keys() - {"json"}:
        if hashlib.sha256(contents[member]).hexdigest() != row[f"{member}_sha256"]:
            yield f"the {member} has another sha256 than {INDEX_NAME} says"
    if "image" in contents:
        yield from _check_image(contents["image"], ImageFormat(row["image_format"]))
    yield from _check_map(contents["map"], row, manifest["classes"])
    yield from record_findings(contents["json"], row, manifest)


def _check_image(image: bytes, image_format: ImageFormat) -> Iterator[str]:
    signature = {ImageFormat.JPEG: b"\xff\xd8\xff", ImageFormat.PNG: b"\x89PNG"}
    if not image.startswith(signature[image_format]):
        yield f"the image is no {image_format}"
    try:
        decode_image(image)
    except UndecodableError as error:
        yield f"the image {error}"


def _check_quality(contents: dict[str, bytes], row: dict[str, Any]) -> Iterator[str]:
    """Is the quality of a sample that is sound otherwise what the index says?"""
    image = decode_image(contents["image"]) if "image" in contents else None
    for name, value in tile_signals(image, decode_map(contents["map"]))._asdict().items():
        # Stored as 32-bit numbers of four decimals.
        same = row.get(name) == value if value is None or row.get(name) is None else _close(row[name], value, 1e-6)
        if not same:
            yield f"the index's {name} is {row.get(name)}, the pixels say {value}"


def _check_map(semantic_map: bytes, row: dict[str, Any], table: list[dict[str, Any]]) -> Iterator[str]:
    class_names = {each["id"]: each["name"] for each in table}
    try:
        classes, palette = decode_map(semantic_map), decode_palette(semantic_map)
    except UndecodableError as error:
        yield f"the map {error}"
        return
    if any(palette[each["id"] : each["id"] + 1].tolist() != [each["color"]] for each in table):
        yield "the map's palette is not that of the class table"
    counts = np.bincount(classes.ravel(), minlength=256)
    if unknown := sorted(set(np.flatnonzero(counts).tolist()) - class_names.keys()):
        yield f"the map holds class {unknown[0]}, which is not in the class table"
    for class_id, class_name in class_names.items():
        share = row.get(index.FRACTION_PREFIX + class_name)
        if share is None or abs(share - counts[class_id] / classes.size) > 1e-6:
            yield f"the share of {class_name} is {counts[class_id] / classes.size:.6f}, the index says {share}"


def record_findings(record: bytes, row: dict[str, Any], manifest: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a sample's `.json` member, a sentence each."""
    try:
        fields = decode_record(record)
        tile = parse_key(row["key"])
    except (ValueError, TypeError, RecursionError, UsageError) as error:
        yield f"the record or key is not readable ({error})"
        return
    for name, value in tile.place_fields().items():
        # Another machine's mathematics library may round the last digit differently.
        if name not in fields or not _close(fields[name], value):
            yield f"the record's {name} is {fields.get(name)}, the pixel grid says {value}"
        if name in row and not _close(row[name], value):
            yield f"the index's {name} is {row[name]}, the pixel grid says {value}"
    stated = {
        "scheme": manifest["scheme"],
        **dict.fromkeys(("imagery", "vectors")),
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
    stated_capture = fields.get("capture")
    capture: dict[str, Any] = stated_capture if isinstance(stated_capture, dict) else {}
    for name in Capture._fields:
        if name != "date" and capture.get(name) != (indexed := row.get(f"capture_{name}")):
            yield f"the record's capture {name} is {capture.get(name)}, the index says {indexed}"


def _close(found: Any, expected: Any, tolerance: float = 1e-9) -> bool:
    try:
        return bool(np.allclose(found, expected, rtol=1e-12, atol=tolerance))
    except (TypeError, ValueError):
        return bool(found == expected)
