"""Repair a dataset: what is damaged is made again from what is whole, from the cache or from the sources.

The manifest is what is believed. A shard whose digest is the manifest's is whole, and the index follows from the whole
shards; of a damaged shard, members whose digest is the index's are kept and the others made again. What was measured,
the quality of a tile or a split's certificate, is measured again. Every file is
replaced by a rename or not at all, and only where it comes out better, so a kill at any instant costs nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from magc_data.atomic import atomic_file, remove_temporary_files, write_atomically
from magc_data.errors import DatasetError, UsageError
from magc_data.ground_grid import parse_key
from magc_data.metadata.files import METADATA_NAMES
from magc_data.quality.signals import QUALITY_VERSION, tile_signals
from magc_data.recover import Recovery
from magc_data.shards import index, reindex
from magc_data.shards.describe import stale_metadata, write_metadata
from magc_data.shards.folder import ATTRIBUTION_NAME, INDEX_NAME, REJECTED_NAME, DatasetFolder
from magc_data.shards.manifest import MANIFEST_NAME, attribution_text, read_manifest, to_json
from magc_data.shards.reader import read_image, read_index, read_map
from magc_data.shards.tar import ForeignTarError, TarWriter
from magc_data.shards.view_file import follow_views
from magc_data.splits.certificate import CERTIFICATE_NAME, check_certificate, measure
from magc_data.splits.sides import SIDES
from magc_data.verify import Verification, record_findings, verify

if TYPE_CHECKING:
    from collections.abc import Callable

    from magc_data.config import HealConfig
    from magc_data.ground_grid import AnyTile
    from magc_data.progress import Progress


class Healing(NamedTuple):
    """What was done and what is left."""

    rewritten: tuple[str, ...]
    """Files that were made anew, within the dataset."""
    members_recovered: int
    """Images, maps and records that came from the cache, a source or the index."""
    not_healed: tuple[str, ...]
    """One sentence for each thing that could not be made again."""
    verification: Verification
    """Of the dataset as it is now."""


class _Notes(NamedTuple):
    """What a healing came to so far."""

    rewritten: list[str]
    recovered: list[int]
    """Members, by shard."""
    not_healed: list[str]


def heal(config: HealConfig, progress: Progress | None = None) -> Healing:
    """Repair a dataset, of a view the dataset that it is of, as far as that can be done; says what could not.

    Raises:
        DatasetError: `dataset.json` cannot be read, so nothing is known of the dataset, or another process works on it.
    """
    data, _ = follow_views(config.data)
    read_manifest(data)  # before anything is written where there is no dataset
    notes = _Notes([], [], [])
    with DatasetFolder(data).locked():
        manifest = read_manifest(data)  # again, as until now somebody else may have worked on it
        for folder in {data, *((data / entry["path"]).parent for entry in manifest["shards"])}:
            remove_temporary_files(folder)
        whole = {entry["path"] for entry in manifest["shards"] if _sha256(data / entry["path"]) == entry["sha256"]}
        rows = _heal_index(data, manifest, whole, notes)
        _heal_rejected(data, manifest, notes)
        if rows is not None:
            with Recovery(manifest, config, _planned_tiles(data, rows), _capture_dates(rows)) as recovery:
                for entry in manifest["shards"]:
                    if entry["path"] not in whole:
                        _heal_shard(data, manifest, entry, _rows_of(rows, entry["path"]), recovery, notes)
        _heal_attribution(data, manifest, notes)
        _heal_certificate(data, manifest, notes)
        try:
            verification = _heal_metadata(data, manifest, verify(data, progress), notes)
        except DatasetError as error:
            verification = Verification(0, len(manifest["shards"]), (str(error),))
    return Healing(tuple(notes.rewritten), sum(notes.recovered), tuple(notes.not_healed), verification)


def _sha256(path: Path) -> str | None:
    """A file's digest; None where there is no file."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


def _rows_of(rows: pa.Table, shard: str) -> pa.Table:
    return rows.filter(pc.equal(rows["shard"], shard))


# --- tables ----------------------------------------------------------------------------------------------------------


def _heal_index(data: Path, manifest: dict[str, Any], whole: set[str], notes: _Notes) -> pa.Table | None:
    """The index as it must be, written if it was not so; None where it is lost.

    Rows of whole shards follow from them, rows of damaged ones are taken from the index that is there.
    """
    old, lost = _old_index(data)
    version = manifest["config"].get("quality_version")
    classes = [each["name"] for each in manifest["classes"]]
    told = index.CAPTURE_COLUMNS if manifest["config"].get("capture_dates") else ()
    schema = index.schema_of_classes(classes, with_quality=version is not None, with_captures=bool(told))
    measured = index.QUALITY_COLUMNS if version == QUALITY_VERSION else ()
    derived = [*reindex.COLUMNS, *measured, *told, *_shares(schema)]
    if old is not None and (unknown := [each for each in _shares(old.schema) if each not in schema.names]):
        notes.not_healed.append(
            f"{INDEX_NAME} has '{unknown[0]}' and {MANIFEST_NAME} has no such class: "
            "put back a copy of the one that was changed"
        )
        return old
    parts = []
    for entry in manifest["shards"]:
        path = entry["path"]
        if path in whole:
            part = _rows_of_whole_shard(data, path, schema, notes, with_quality=bool(measured))
        else:
            part = None if old is None else _rows_of(old, path)
            if part is not None and (len(part) != entry["samples"] or not {*derived} <= {*part.column_names}):
                part, lost = None, f"{INDEX_NAME} does not have the {entry['samples']} samples of {path}"
            if part is None:
                notes.not_healed.append(f"{lost} - no: {path} is damaged too, and they cannot be told from one another")
        if part is None:
            return None
        parts.append(part.select(derived))
    rebuilt = pa.concat_tables([schema.empty_table().select(derived), *parts])
    if len(rebuilt) != manifest["counts"]["kept"]:
        notes.not_healed.append(
            f"the shards hold {len(rebuilt)} samples and {MANIFEST_NAME} counts {manifest['counts']['kept']}: "
            f"put back a copy of {MANIFEST_NAME}, or build the dataset again into another folder"
        )
        return old
    if "split" in manifest:
        rebuilt = rebuilt.append_column("split", _sides(rebuilt["shard"]))
    kept = rebuilt.column_names
    if old is not None and {*kept} <= {*old.column_names} and old.select(kept).equals(rebuilt):
        return old
    healed = _with_the_rest(rebuilt, old, schema)
    if old is None and version not in (None, QUALITY_VERSION):
        notes.not_healed.append(
            f"quality signals of version {version!r} cannot be measured here, where they are of version "
            f"{QUALITY_VERSION}: heal with the magc that made the dataset"
        )
    index.write_table(data / INDEX_NAME, healed.schema, [healed])
    notes.rewritten.append(INDEX_NAME)
    return healed


def _sides(shards: pa.ChunkedArray) -> pa.Array:
    """The side of a split that the samples of each shard are on: their folder says."""
    folders = [path.partition("/")[0] for path in shards.to_pylist()]
    return pa.array([folder if folder in SIDES else None for folder in folders], pa.string())


def _shares(schema: pa.Schema) -> list[str]:
    return [name for name in schema.names if name.startswith(index.FRACTION_PREFIX)]


def _old_index(data: Path) -> tuple[pa.Table | None, str]:
    """The index that is there, or why it is of no use."""
    try:
        return read_index(data), ""
    except DatasetError as error:
        return None, str(error)


def _with_the_rest(rebuilt: pa.Table, old: pa.Table | None, schema: pa.Schema) -> pa.Table:
    """The columns that do not follow from the shards, too: from the index that was, by key, or else null."""
    places = pc.index_in(rebuilt["key"], value_set=old["key"].combine_chunks()) if old is not None else None
    columns = {}
    for field in schema if old is None else pa.unify_schemas([schema, old.schema]):
        if field.name in rebuilt.column_names:
            columns[field] = rebuilt[field.name]
        elif old is not None and field.name in old.column_names:
            columns[field] = old[field.name].take(places)
        else:
            columns[field] = pa.nulls(len(rebuilt), field.type)
    return pa.table([*columns.values()], schema=pa.schema([*columns]))


def _rows_of_whole_shard(
    data: Path, path: str, schema: pa.Schema, notes: _Notes, *, with_quality: bool
) -> pa.Table | None:
    try:
        with (data / path).open("rb") as stream:
            rows = reindex.rows_of_shard(stream, path)
        if unknown := sorted({name for row in rows for name in row} - {*schema.names}):
            notes.not_healed.append(
                f"{path} has '{unknown[0]}' and {MANIFEST_NAME} has no such class: put back a copy of {MANIFEST_NAME}"
            )
            return None
        quality = [_quality(data, row) if with_quality else {} for row in rows]
        absent = dict.fromkeys(_shares(schema), 0.0)
        return pa.Table.from_pylist(
            [absent | row | signals for row, signals in zip(rows, quality, strict=True)], schema
        )
    except (ForeignTarError, pa.ArrowException) as error:
        notes.not_healed.append(f"{path} {error}, although its sha256 is the one that {MANIFEST_NAME} says")
        return None


def _quality(data: Path, row: dict[str, Any]) -> dict[str, float | None]:
    """The signals of a sample; none of a picture that does not decode, which is for `verify` to say."""
    try:
        image = None if row["image_offset"] is None else read_image(data, row)
        return tile_signals(image, read_map(data, row))._asdict()
    except DatasetError:
        return {}


def _heal_rejected(data: Path, manifest: dict[str, Any], notes: _Notes) -> None:
    try:
        index.read_table(data / REJECTED_NAME)
    except DatasetError as error:
        if count := sum(manifest["counts"]["rejected"].values()):
            notes.not_healed.append(
                f"{error} - no: why {count} tiles were rejected stands nowhere else; put back a copy, or build the "
                "dataset again into another folder"
            )
            return
        index.write_table(data / REJECTED_NAME, index.REJECTED_SCHEMA, [])
        notes.rewritten.append(REJECTED_NAME)


def _heal_attribution(data: Path, manifest: dict[str, Any], notes: _Notes) -> None:
    text = attribution_text(manifest["sources"]).encode()
    if _sha256(data / ATTRIBUTION_NAME) != hashlib.sha256(text).hexdigest():
        write_atomically(data / ATTRIBUTION_NAME, text)
        notes.rewritten.append(ATTRIBUTION_NAME)


def _heal_certificate(data: Path, manifest: dict[str, Any], notes: _Notes) -> None:
    """Measure a split again where its certificate says something else, if its tiles are where they belong."""
    # What keeps it from being measured is wrong elsewhere, and said there.
    with contextlib.suppress(DatasetError):
        rows = read_index(data)
        if "split" not in manifest or not any(check_certificate(data, manifest, rows)):
            return
        measured = measure(data, manifest, rows)
        if not measured.misplaced:
            write_atomically(data / CERTIFICATE_NAME, to_json(measured.certificate))
            notes.rewritten.append(CERTIFICATE_NAME)


def _heal_metadata(data: Path, manifest: dict[str, Any], found: Verification, notes: _Notes) -> Verification:
    """Write the metadata files again where they alone are wrong: they are made of the rest."""
    if not all(finding.split()[0] in METADATA_NAMES for finding in found.findings):
        return found
    if stale := stale_metadata(data, manifest):
        write_metadata(data, manifest)
        notes.rewritten.extend(stale)
    return found._replace(findings=())


def _planned_tiles(data: Path, rows: pa.Table) -> Callable[[AnyTile], tuple[AnyTile, ...]]:
    """For a tile, all tiles of its block that were to be built, row by row."""
    tables = [rows.select(["key"])]
    # Where this table is lost, which is said elsewhere, the source is asked for a smaller box than the build asked for.
    with contextlib.suppress(DatasetError, pa.ArrowException):
        tables.append(index.read_table(data / REJECTED_NAME, ["key"]).cast(tables[0].schema))
    by_block: dict[str, set[AnyTile]] = defaultdict(set)
    # A key that is none is said elsewhere.
    for key in pa.concat_tables(tables)["key"].drop_null().to_pylist():
        with contextlib.suppress(UsageError):
            tile = parse_key(key)
            by_block[tile.block_name].add(tile)

    def of_block(tile: AnyTile) -> tuple[AnyTile, ...]:
        return tuple(sorted(by_block[tile.block_name], key=lambda each: (each.y, each.x)))

    return of_block


def _capture_dates(rows: pa.Table) -> Callable[[str], str | None]:
    def of_key(key: str) -> str | None:
        found: str | None = rows["capture_date"][pc.index(rows["key"], key).as_py()].as_py()
        return found

    return of_key


# --- shards ----------------------------------------------------------------------------------------------------------

Found = dict[tuple[str, str], bytes]
"""Members by key and kind."""


def _heal_shard(
    data: Path, manifest: dict[str, Any], entry: dict[str, Any], rows: pa.Table, recovery: Recovery, notes: _Notes
) -> None:
    """Write a damaged shard anew, if anything of it comes out better; holds one shard in memory."""
    path = data / entry["path"]
    table = rows.to_pylist()
    there = path.read_bytes() if path.is_file() else b""
    found = _sound_members(there, table, manifest)
    records = _records(table, manifest)
    remade = {name: content for name, content in records.items() if name not in found}
    lacking = {
        member: [row["key"] for row in table if row[f"{member}_size"] is not None and (row["key"], member) not in found]
        for member in ("image", "map")
    }
    recovered, reasons = _recovered(recovery, lacking, {row["key"]: row for row in table})
    found |= remade | recovered
    made = len(remade) + len(recovered)
    if not reasons:
        # A record may be damaged so little that it passes for one of a machine that rounds another way.
        for candidate in (found, found | records):
            with Path(os.devnull).open("wb") as nowhere:
                if _write(nowhere, table, there, candidate) == entry["sha256"]:
                    _replace(path, table, there, candidate)
                    notes.rewritten.append(entry["path"])
                    notes.recovered.append(made)
                    return
        reasons[f"nothing that {INDEX_NAME} says, but {MANIFEST_NAME} says another sha256: put back a copy of it"] = 0
    if made:
        _replace(path, table, there, found)
        notes.rewritten.append(entry["path"])
        notes.recovered.append(made)
    notes.not_healed.extend(
        f"{entry['path']} lacks {count or ''} {reason}" for reason, count in sorted(reasons.items())
    )


def _recovered(
    recovery: Recovery, lacking: dict[str, list[str]], rows: dict[str, dict[str, Any]]
) -> tuple[Found, Counter[str]]:
    """Members from the sources, those alone that are what they were; and why how many others are not to be had."""
    found: Found = {}
    reasons: Counter[str] = Counter()
    for key, member, content, reason in recovery.members(lacking):
        if content is None:
            reasons[f"{member}s: {reason}"] += 1
        elif hashlib.sha256(content).hexdigest() == rows[key][f"{member}_sha256"]:
            found[key, member] = content
        else:
            reasons[f"{member}s: the source has others today than when the dataset was built"] += 1
    return found, reasons


def _records(rows: list[dict[str, Any]], manifest: dict[str, Any]) -> Found:
    """Every record, made from the index."""
    names = {role: source["name"] for role, source in manifest["sources"].items()}
    return {
        (row["key"], "json"): reindex.record_of_row(row, names.get("imagery"), names["vectors"], manifest["scheme"])
        for row in rows
    }


def _sound_members(there: bytes, rows: list[dict[str, Any]], manifest: dict[str, Any]) -> Found:
    """The members of a damaged shard that are what they were."""
    found = {}
    for row in rows:
        for member in index.member_names(row["key"], row["image_format"]):
            content = _at(there, row, member)
            if member == "json":
                is_sound = not any(record_findings(content, row, manifest))
            else:
                is_sound = hashlib.sha256(content).hexdigest() == row[f"{member}_sha256"]
            if is_sound:
                found[row["key"], member] = content
    return found


def _at(there: bytes, row: dict[str, Any], member: str) -> bytes:
    return there[row[f"{member}_offset"] : row[f"{member}_offset"] + row[f"{member}_size"]]


def _replace(path: Path, rows: list[dict[str, Any]], there: bytes, found: Found) -> None:
    with atomic_file(path) as stream:
        _write(stream, rows, there, found)


def _write(stream: IO[bytes], rows: list[dict[str, Any]], there: bytes, found: Found) -> str:
    """Write a shard; returns its sha256. What is lost stays what it was, or zeros: all others keep their places."""
    writer = TarWriter(stream)
    for row in rows:
        for member, name in index.member_names(row["key"], row["image_format"]).items():
            content = found.get((row["key"], member))
            writer.add(
                name, _at(there, row, member).ljust(row[f"{member}_size"], b"\0") if content is None else content
            )
    return writer.finish()
