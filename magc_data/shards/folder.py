"""The folder of a dataset while it is built: what is finished, what is left, and the step that publishes it.

    DATA/.build/config.json         what this build is; a different one is refused
    DATA/.build/blocks/NAME.arrow   a finished block's rows (index.py); it appears after the block's shard
    DATA/shards/NAME.tar            the block's samples
    DATA/dataset.json               appears last: from then on the dataset is complete and `.build` goes

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
from magc_data.shards.manifest import MANIFEST_NAME, attribution_text, read_manifest, to_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pyarrow as pa

INDEX_NAME = "index.parquet"
REJECTED_NAME = "rejected.parquet"
ATTRIBUTION_NAME = "ATTRIBUTION.md"


class DatasetFolder(NamedTuple):
    """Paths of a dataset under construction."""

    data: Path

    @property
    def build(self) -> Path:
        """Scratch of an unfinished build."""
        return self.data / ".build"

    @property
    def shards(self) -> Path:
        """One tar a block."""
        return self.data / "shards"

    def shard(self, block_name: str) -> Path:
        """The block's tar."""
        return self.shards / f"{block_name}.tar"

    def sidecar(self, block_name: str) -> Path:
        """The block's rows."""
        return self.build / "blocks" / f"{block_name}.arrow"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one build; the lock ends with the process, however that ends.

        Raises:
            DatasetError: another build holds it, or the folder holds something else.
        """
        if self.data.exists() and not self.data.is_dir():
            raise DatasetError(f"{self.data} is a file: give --out a folder")
        foreign = self.data.is_dir() and not self.build.exists() and not (self.data / MANIFEST_NAME).exists()
        if foreign and any(self.data.iterdir()):
            raise DatasetError(f"{self.data} holds files that are no magc dataset: give --out an empty or new folder")
        self.build.mkdir(parents=True, exist_ok=True)
        with (self.build / "lock").open("a") as lock:
            _lock(lock, self.data)
            try:
                yield
            finally:
                # Refused before anything was begun: leave the folder as it was found.
                if not (self.build / "config.json").exists():
                    shutil.rmtree(self.build, ignore_errors=True)
                    with contextlib.suppress(OSError):
                        self.data.rmdir()

    def begin(self, config: dict[str, Any]) -> bool:
        """Start or continue a build; False if it is complete already and nothing is worth trying again.

        Raises:
            DatasetError: the folder holds a build of another configuration.
        """
        path = self.build / "config.json"
        complete = (self.data / MANIFEST_NAME).exists()
        if complete:
            manifest = read_manifest(self.data)
            refuse_other_config(manifest["config"], config, self.data)
            if not path.exists() and not manifest["counts"]["transient"]:
                return False
        elif path.exists():
            refuse_other_config(json.loads(path.read_bytes()), config, self.data)
        # config.json first: what is in the folder before it appears is not yet a build's.
        write_atomically(path, to_json(config))
        for folder in (self.data, self.build, self.shards, self.build / "blocks"):
            folder.mkdir(parents=True, exist_ok=True)
            remove_temporary_files(folder)
        if complete:
            self._reopen()
        return True

    def _reopen(self) -> None:
        """Give a complete dataset its sidecars back, so that blocks with transient rejections can be done again."""
        manifest = read_manifest(self.data)
        shards = {entry["path"]: entry for entry in manifest["shards"]}
        samples = index.read_table(self.data / INDEX_NAME)
        rejected = index.read_table(self.data / REJECTED_NAME)
        names = set(pc.unique(rejected["block"]).to_pylist()) | {
            path.removeprefix("shards/").removesuffix(".tar") for path in shards
        }
        for name in sorted(names):
            shard = shards.get(f"shards/{name}.tar", {"size": 0, "sha256": ""})
            tables = index.BlockTables(
                samples.filter(pc.equal(samples["shard"], f"shards/{name}.tar")),
                rejected.filter(pc.equal(rejected["block"], name)),
                shard["size"],
                shard["sha256"],
            )
            index.write_sidecar(self.sidecar(name), tables)
        (self.data / MANIFEST_NAME).unlink()

    def is_finished(self, block_name: str) -> bool:
        """True if the block needs no more work in this run."""
        path = self.sidecar(block_name)
        return path.exists() and not pc.any(index.read_sidecar(path).rejected["transient"]).as_py()

    def publish(self, manifest: dict[str, Any], schema: pa.Schema, block_names: list[str]) -> dict[str, Any]:
        """Merge the sidecars and write the files that make the dataset complete; returns the manifest as written."""
        index.write_table(self.data / INDEX_NAME, schema, (self._tables(name).samples for name in block_names))
        index.write_table(
            self.data / REJECTED_NAME, index.REJECTED_SCHEMA, (self._tables(name).rejected for name in block_names)
        )
        write_atomically(self.data / ATTRIBUTION_NAME, attribution_text(manifest["sources"]).encode())
        document = manifest | {"shards": list(self._shard_entries(block_names))}
        write_atomically(self.data / MANIFEST_NAME, to_json(document))
        shutil.rmtree(self.build)
        return document

    def _tables(self, block_name: str) -> index.BlockTables:
        return index.read_sidecar(self.sidecar(block_name))

    def _shard_entries(self, block_names: list[str]) -> Iterator[dict[str, Any]]:
        for name in block_names:
            tables = self._tables(name)
            if tables.shard_size:
                yield {
                    "path": f"shards/{name}.tar",
                    "samples": len(tables.samples),
                    "size": tables.shard_size,
                    "sha256": tables.shard_sha256,
                }


def refuse_other_config(existing: dict[str, Any], wanted: dict[str, Any], data: Path) -> None:
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


def _lock(lock: IO[str], data: Path) -> None:
    if os.name != "posix":
        return
    import fcntl

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DatasetError(f"{data} is being built by another process: wait for it, or give another --out") from None
