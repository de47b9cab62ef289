"""Move a dataset's samples into other shards, byte for byte, in a way that may be ended at any instant and done again.

    DATA/.magc-split/plan.json   what is being done; something else begun before is thrown away
    DATA/.magc-split/new/        the shards and files to come; meanwhile the dataset is what it was
    DATA/.magc-split/commit/     the same, complete, by one rename: from now on it takes the old one's place,
                                 whatever happens; `dataset.json` goes first of the old files and comes last of the new

Until the end both copies lie on the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from magc_data.atomic import atomic_file, remove_temporary_files, sync_folder, write_atomically
from magc_data.errors import WAY_OUT, DatasetError
from magc_data.shards import index
from magc_data.shards.describe import write_metadata
from magc_data.shards.folder import INDEX_NAME
from magc_data.shards.manifest import MANIFEST_NAME, REPACK_NAME, to_json
from magc_data.shards.reader import decode_record, read_some
from magc_data.shards.tar import RECORD, TarWriter

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from magc_data.progress import Progress

_PLACES = [f"{member}_{what}" for member in index.MEMBERS for what in ("offset", "size")]
_COPIED = ["key", "z", "x", "y", "shard", "image_format", "image_sha256", "map_sha256", *_PLACES]
_IN_RECORD = ("key", "z", "x", "y", "image_sha256", "map_sha256")


class NewShard(NamedTuple):
    """A shard to be written."""

    path: str
    """Within the dataset."""
    rows: NDArray[np.int64]
    """Which rows of the index, in order."""
    sha256: str | None = None
    """What it must come out as, where that is known."""


class Repacking(NamedTuple):
    """What a dataset is to become."""

    source: Path
    """Dataset or view that the samples are read from."""
    target: Path
    """The same folder, or a new one."""
    rows: pa.Table
    """The source's index with every column as it shall be, but for `shard` and the offsets."""
    shards: Sequence[NewShard]
    manifest: dict[str, Any]
    """As it shall be, but for the list of shards."""
    files: dict[str, bytes]
    """Others to be written."""
    removed: Sequence[str]
    """Others to be removed."""
    folders: Sequence[str]
    """Those of shards, old and new; nothing else may be in them."""


def record_size(size: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bytes that members of so many bytes take in a tar: header, content, filling."""
    filled: NDArray[np.int64] = RECORD + -(-size // RECORD) * RECORD
    return filled


def sample_sizes(rows: pa.Table) -> NDArray[np.int64]:
    """Bytes that each sample takes in a shard, [rows]."""
    total: NDArray[np.int64] = _record_sizes(rows).sum(axis=1)
    return total


def _record_sizes(rows: pa.Table) -> NDArray[np.int64]:
    """Bytes that each member takes in a tar, [rows, members]; 0 where there is none, as in maps alone."""
    sizes = [rows[f"{member}_size"] for member in index.MEMBERS]
    return np.column_stack([np.where(each.is_valid(), record_size(each.fill_null(0).to_numpy()), 0) for each in sizes])


def repack(job: Repacking, progress: Progress | None = None) -> dict[str, Any]:
    """Write the shards, index and manifest, and put them in place; returns the manifest. The target is to be locked.

    Raises:
        DatasetError: a source shard is damaged, or the target holds what does not belong there; nothing was changed.
    """
    new = job.target / REPACK_NAME / "new"
    _begin(job)
    _refuse_foreign_files(job)
    entries, tables = [], []
    for shard in job.shards:
        part = job.rows.take(shard.rows)
        path = new / shard.path
        if not path.exists():
            _write_shard(job.source, part, path)
        entries.append(_checked_entry(path, shard, part))
        tables.append(_placed(part, shard.path))
        if progress:
            progress.block_finished(len(part), 0)
    manifest = job.manifest | {"shards": entries}
    index.write_table(new / INDEX_NAME, job.rows.schema, tables)
    for name, content in {**job.files, MANIFEST_NAME: to_json(manifest)}.items():
        write_atomically(new / name, content)
    write_metadata(new, manifest)
    instructions = {"removed": list(job.removed), "folders": list(job.folders)}
    write_atomically(job.target / REPACK_NAME / "instructions.json", to_json(instructions))
    new.rename(new.with_name("commit"))
    sync_folder(new.parent)
    finish(job.target)
    return manifest


def finish(target: Path) -> None:
    """Bring a repacking that was ended in the middle of its last step to its end, and clear what a done one left.

    To be called with the folder locked, before anything else of the dataset is looked at.
    """
    scratch = target / REPACK_NAME
    commit = scratch / "commit"
    if not commit.is_dir():
        return
    # Without it, all that was to be moved has been.
    if (commit / MANIFEST_NAME).exists():
        instructions = json.loads((scratch / "instructions.json").read_bytes())
        (target / MANIFEST_NAME).unlink(missing_ok=True)
        sync_folder(target)
        for name in instructions["folders"]:
            # Every folder is in `commit`, be it empty, until it has taken its place.
            if (commit / name).is_dir():
                shutil.rmtree(target / name, ignore_errors=True)
                (commit / name).rename(target / name)
            with contextlib.suppress(OSError):
                (target / name).rmdir()
        for name in instructions["removed"]:
            (target / name).unlink(missing_ok=True)
        for path in sorted(path for path in commit.iterdir() if path.name != MANIFEST_NAME):
            path.replace(target / path.name)
        sync_folder(target)
        (commit / MANIFEST_NAME).replace(target / MANIFEST_NAME)
        sync_folder(target)
    shutil.rmtree(scratch)


def discard(target: Path) -> None:
    """Throw away what an unfinished repacking had prepared; the dataset is what it was."""
    shutil.rmtree(target / REPACK_NAME, ignore_errors=True)


def _begin(job: Repacking) -> None:
    """Go on with what was prepared before if it was for the same end."""
    scratch = job.target / REPACK_NAME
    digest = hashlib.sha256(to_json(job.manifest))
    for shard in job.shards:
        keys = job.rows["key"].take(shard.rows).to_pylist()
        digest.update(f"{shard.path} {' '.join(keys)}\n".encode())
    plan = to_json({"becomes_sha256": digest.hexdigest()})
    with contextlib.suppress(FileNotFoundError):
        if (scratch / "plan.json").read_bytes() != plan:
            discard(job.target)
    write_atomically(scratch / "plan.json", plan)
    for name in job.folders:
        (scratch / "new" / name).mkdir(parents=True, exist_ok=True)
        remove_temporary_files(scratch / "new" / name)
    remove_temporary_files(scratch)
    remove_temporary_files(scratch / "new")


def _refuse_foreign_files(job: Repacking) -> None:
    """The old folders are removed whole: nothing may be in them that is not the dataset's."""
    if job.source != job.target:
        return
    known = set(pa.compute.unique(job.rows["shard"]).to_pylist())
    for name in job.folders:
        for path in sorted((job.target / name).rglob("*")):
            inside = path.relative_to(job.target).as_posix()
            if inside not in known and path.suffix != ".part":
                raise DatasetError(f"{path} does not belong to the dataset: move it out of {job.target / name}")


def _write_shard(source: Path, rows: pa.Table, path: Path) -> None:
    with atomic_file(path) as stream:
        writer = TarWriter(stream)
        for batch in rows.select(_COPIED).to_batches(4096):
            for row in batch.to_pylist():
                names = index.member_names(row["key"], row["image_format"])
                contents = dict(zip(names, read_some(source, row, [*names]), strict=True))
                _refuse_other_samples(source, row, contents)
                for member, name in names.items():
                    writer.add(name, contents[member])
        writer.finish()


def _refuse_other_samples(source: Path, row: dict[str, Any], contents: dict[str, bytes]) -> None:
    """An index may name other places than the sample's: what is written now would pass for the sample ever after."""
    digests = {
        f"{member}_sha256": hashlib.sha256(contents[member]).hexdigest() for member in contents.keys() - {"json"}
    }
    try:
        record = decode_record(contents["json"])
    except (ValueError, TypeError, RecursionError):
        record = {}
    if any(row[name] != digest for name, digest in digests.items()) or any(
        record.get(name) != row[name] for name in _IN_RECORD
    ):
        raise DatasetError(f"{source / row['shard']} holds another {row['key']} than the index says: {WAY_OUT}")


def _checked_entry(path: Path, shard: NewShard, rows: pa.Table) -> dict[str, Any]:
    """What the manifest says of a written shard."""
    size = int(sample_sizes(rows).sum()) + 2 * RECORD
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if path.stat().st_size != size or (shard.sha256 and sha256 != shard.sha256):
        path.unlink()
        raise DatasetError(
            f"{shard.path} did not come out as expected, so a shard or the index of the dataset is damaged: {WAY_OUT}"
        )
    return {"path": shard.path, "samples": len(rows), "size": size, "sha256": sha256}


def _placed(rows: pa.Table, path: str) -> pa.Table:
    """The rows with their places in the new shard."""
    sizes = _record_sizes(rows)
    offsets = np.cumsum(sizes.reshape(-1)).reshape(sizes.shape) - sizes + RECORD
    columns = {
        f"{member}_offset": pa.array(offsets[:, number], mask=sizes[:, number] == 0)
        for number, member in enumerate(index.MEMBERS)
    }
    columns["shard"] = pa.array([path] * len(rows), pa.string())
    for name, values in columns.items():
        rows = rows.set_column(rows.column_names.index(name), name, values)
    return rows


def check_shards(folder: Path, entries: Sequence[dict[str, Any]], progress: Progress | None = None) -> None:
    """Refuse to copy from shards that are not what the manifest says: their digests would be sealed anew.

    Raises:
        DatasetError: one is missing or was changed.
    """
    for entry in entries:
        path = folder / entry["path"]
        try:
            with path.open("rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise DatasetError(f"{path} is missing: {WAY_OUT}") from None
        if sha256 != entry["sha256"]:
            raise DatasetError(f"{path} is damaged (another sha256 than {MANIFEST_NAME} says): {WAY_OUT}")
        if progress:
            progress.block_finished(entry["samples"], 0)
