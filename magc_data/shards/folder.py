"""The folder of a dataset while it is built: what is finished, what is left, and the step that publishes it.

    DATA/.magc-build/config.json         what this build is; a different one is refused
    DATA/.magc-build/blocks/NAME.arrow   a finished block's rows (index.py); it appears after the block's shard
    DATA/shards/NAME.tar            the block's samples (of an array job only at the end: staged.py)
    DATA/dataset.json               appears last: from then on the dataset is complete and `.magc-build` goes

Every step is a rename, so a build killed at any instant continues from the last finished block. A block whose rows
hold a transient rejection is done again by the next run.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import pyarrow.compute as pc

from magc_data.atomic import remove_temporary_files, write_atomically
from magc_data.errors import DatasetError
from magc_data.shards import index
from magc_data.shards.capture_counts import captures_to_ask_again, has_captures_to_ask_again
from magc_data.shards.describe import write_metadata
from magc_data.shards.manifest import (
    BUILD_NAME,
    MANIFEST_NAME,
    PART_FIELD,
    REPACK_NAME,
    attribution_text,
    read_manifest,
    to_json,
)
from magc_data.shards.staged import put_in_place

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pyarrow as pa

    from magc_data.shards.storage import Location

INDEX_NAME = index.INDEX_NAME
REJECTED_NAME = "rejected.parquet"
ATTRIBUTION_NAME = "ATTRIBUTION.md"
KNOWN_NAMES = (BUILD_NAME, MANIFEST_NAME, REPACK_NAME)
"""What tells a dataset, be it finished or not, from somebody's files."""


class DatasetFolder(NamedTuple):
    """Paths of a dataset under construction."""

    data: Path

    @property
    def build(self) -> Path:
        """Scratch of an unfinished build."""
        return self.data / BUILD_NAME

    @property
    def shards(self) -> Path:
        """One tar a block."""
        return self.data / "shards"

    @property
    def blocks(self) -> Path:
        """Sidecars of an unfinished build."""
        return self.build / "blocks"

    def shard(self, block_name: str) -> Path:
        """The block's tar."""
        return self.shards / f"{block_name}.tar"

    def sidecar(self, block_name: str) -> Path:
        """The block's rows."""
        return self.blocks / f"{block_name}.arrow"

    @contextlib.contextmanager
    def locked(self, *, shared: bool = False) -> Iterator[None]:
        """Hold the folder for one build; the lock ends with the process, however that ends.

        Args:
            shared: among the tasks of an array job, which keep a build out.

        Raises:
            DatasetError: another build holds it, or the folder holds something else.
        """
        if self.data.exists() and not self.data.is_dir():
            raise DatasetError(f"{self.data} is a file: give --out a folder")
        foreign = self.data.is_dir() and not any((self.data / name).exists() for name in KNOWN_NAMES)
        if foreign and any(self.data.iterdir()):
            raise DatasetError(f"{self.data} holds files that are no magc dataset: give --out an empty or new folder")
        self.build.mkdir(parents=True, exist_ok=True)
        with (self.build / "lock").open("a+") as lock:
            lock_or_refuse(lock, self.data, shared=shared)
            try:
                yield
            finally:
                # Refused before anything was begun: leave the folder as it was found.
                if not shared and not (self.build / "config.json").exists():
                    shutil.rmtree(self.build, ignore_errors=True)
                    with contextlib.suppress(OSError):
                        self.data.rmdir()

    def is_complete(self, config: dict[str, Any]) -> bool:
        """True if the dataset is there, of this configuration, and nothing in it is worth trying again.

        Raises:
            DatasetError: the dataset is of another configuration.
        """
        if not (self.data / MANIFEST_NAME).is_file():
            return False
        manifest = read_manifest(self.data)
        refuse_other_config(manifest["config"], config, self.data)
        return not manifest_has_more_to_ask(manifest) and not self.build.exists()

    def begin(self, config: dict[str, Any]) -> None:
        """Start a build, or continue one; to be called with the folder locked.

        Raises:
            DatasetError: the folder holds a build of another configuration.
        """
        path = self.build / "config.json"
        self._refuse_copies()
        if (self.data / MANIFEST_NAME).is_file():
            refuse_other_config(read_manifest(self.data)["config"], config, self.data)
        elif path.exists():
            refuse_other_config(read_config(path), config, self.data)
        # config.json first: what is in the folder before it appears is not yet a build's.
        write_atomically(path, to_json(config))
        for folder in (self.data, self.build, self.shards, self.blocks):
            folder.mkdir(parents=True, exist_ok=True)
            remove_temporary_files(folder)
        if (self.data / MANIFEST_NAME).is_file():
            self.reopen()

    def _refuse_copies(self) -> None:
        manifest = read_manifest(self.data) if (self.data / MANIFEST_NAME).is_file() else {}
        refuse_copies(manifest, self.data, is_amid_split=(self.data / REPACK_NAME).is_dir())

    def reopen(self) -> None:
        """Give a complete dataset its sidecars back, so that blocks with transient rejections can be done again.

        A block at a time, from the row groups that hold it: memory does not grow with the dataset.
        """
        manifest = read_manifest(self.data)
        shards = {entry["path"]: entry for entry in manifest["shards"]}
        rejected_blocks = pc.unique(index.read_table(self.data / REJECTED_NAME, ["block"])["block"]).to_pylist()
        for name in sorted({*rejected_blocks, *(_block_name(path) for path in shards)}):
            path = f"shards/{name}.tar"
            shard = shards.get(path, {"size": 0, "sha256": ""})
            tables = index.BlockTables(
                index.read_table(self.data / INDEX_NAME, filters=[("shard", "==", path)]),
                index.read_table(self.data / REJECTED_NAME, filters=[("block", "==", name)]),
                shard["size"],
                shard["sha256"],
                sea_is_settled="sea" in manifest,
            )
            index.write_sidecar(self.sidecar(name), tables)

    def unseal(self) -> None:
        """The dataset is about to change: from now on, until `publish`, it is unfinished."""
        (self.data / MANIFEST_NAME).unlink(missing_ok=True)

    def is_finished(self, block_name: str) -> bool:
        """True if the block needs no more work in this run."""
        path = self.sidecar(block_name)
        return path.exists() and not has_more_to_ask(self.tables(block_name))

    def tables(self, block_name: str) -> index.BlockTables:
        """The rows of a finished block."""
        return index.read_sidecar(self.sidecar(block_name))

    def of_block(self, block_name: str) -> DatasetFolder:  # noqa: ARG002 - another destination needs it
        """Where a worker puts a block."""
        return self

    def commit(self, block_name: str) -> None:
        """A block is done as soon as its sidecar has its name: there is nothing left to do."""

    def publish(self, manifest: dict[str, Any], schema: pa.Schema, block_names: list[str]) -> dict[str, Any]:
        """Merge the sidecars and write the files that make the dataset complete; returns the manifest as written."""
        put_in_place(self, block_names)
        document = self.write_documents(manifest, schema, block_names)
        write_atomically(self.data / MANIFEST_NAME, to_json(document))
        shutil.rmtree(self.build)
        return document

    def write_file(self, name: str, content: bytes) -> None:
        """Put a file beside a finished dataset's own."""
        write_atomically(self.data / name, content)

    def write_documents(self, manifest: dict[str, Any], schema: pa.Schema, block_names: list[str]) -> dict[str, Any]:
        """Write all that a dataset has besides shards and `dataset.json`, which it returns."""
        index.write_table(self.data / INDEX_NAME, schema, (self.tables(name).samples for name in block_names))
        index.write_table(
            self.data / REJECTED_NAME, index.REJECTED_SCHEMA, (self.tables(name).rejected for name in block_names)
        )
        write_atomically(self.data / ATTRIBUTION_NAME, attribution_text(manifest["sources"]).encode())
        document = manifest | {"shards": list(self._shard_entries(block_names))}
        write_metadata(self.data, document)
        return document

    def _shard_entries(self, block_names: list[str]) -> Iterator[dict[str, Any]]:
        for name in block_names:
            tables = self.tables(name)
            if tables.shard_size:
                yield {
                    "path": f"shards/{name}.tar",
                    "samples": len(tables.samples),
                    "size": tables.shard_size,
                    "sha256": tables.shard_sha256,
                }


def has_more_to_ask(tables: index.BlockTables) -> bool:
    """Whether a block has a rejection, or lacks a capture date, that the next run would ask for again."""
    return bool(pc.any(tables.rejected["transient"]).as_py()) or has_captures_to_ask_again(tables.samples)


def manifest_has_more_to_ask(manifest: dict[str, Any]) -> bool:
    """The same of a whole dataset."""
    return bool(manifest["counts"]["transient"] or captures_to_ask_again(manifest))


def _block_name(shard_path: str) -> str:
    return shard_path.removeprefix("shards/").removesuffix(".tar")


def read_config(path: Path) -> dict[str, Any]:
    """What a build was begun with.

    Raises:
        DatasetError: the file is damaged.
    """
    return parse_config(path.read_bytes(), path)


def parse_config(content: bytes, path: Location) -> dict[str, Any]:
    """What a build was begun with, from its `config.json`."""
    try:
        config = json.loads(content)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise DatasetError(
            f"{path} is damaged: delete {BUILD_NAME}, the folder that it is in, and run the build again"
        ) from None
    return config


def refuse_copies(manifest: dict[str, Any], data: Path | str, *, is_amid_split: bool) -> None:
    """A build works on the block shards of all of its area: split datasets and copies of views have others."""
    if PART_FIELD in manifest:
        raise DatasetError(f"{data} is a copy of some rows of a dataset: build that one again, or another --out")
    if "split" in manifest or is_amid_split:
        raise DatasetError(
            f"{data} is split and its build has something left to do: run `magc-data split {data} --undo`, "
            "then the same build command, then the same split (no tile changes sides)"
        )


def refuse_other_config(existing: dict[str, Any], wanted: dict[str, Any], data: Path | str) -> None:
    """Refuse to go on with a build under other options than it was begun with."""
    differences = [
        f"{name} was {_short(existing.get(name))} and is now {_short(wanted.get(name))}"
        for name in sorted(existing.keys() | wanted.keys())
        if existing.get(name) != wanted.get(name)
    ]
    if differences:
        raise DatasetError(
            f"{data} was begun with other options ({'; '.join(differences)}): "
            "give the old options to continue it, or another --out for a new dataset"
        )


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_short(each)}" for key, each in value.items()) + "}"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 70 else text[:67] + "..."


def lock_or_refuse(lock: IO[str], data: Path | str, *, shared: bool = False) -> None:
    """Take a lock that ends with this process, or say that a build into `data` holds it."""
    if os.name != "posix":
        return
    import fcntl

    busy = DatasetError(f"{data} is being built by another process: wait for it, or give another --out")
    try:
        fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise busy from None
    # A build that ended between our open and our lock took the file away: what we hold is locked, but no lock.
    if not os.path.exists(lock.name) or os.fstat(lock.fileno()).st_ino != os.stat(lock.name).st_ino:  # noqa: PTH110, PTH116 - a stream's name
        raise busy
