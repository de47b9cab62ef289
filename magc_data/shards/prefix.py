"""A dataset under construction in object storage: blocks are made on this machine and put there one by one.

    s3://BUCKET/PREFIX/...          the same names as in a folder (folder.py), in the same order: a block's shard, then
                                    its sidecar, from which on the block is done; `dataset.json` last of all
    CACHE/staging/DIGEST/...        on this machine: rows of the blocks, and the shards that are being made or put

What is finished is known from one listing. Rows that this machine has lost, or another one made, are fetched.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from magc_data.atomic import remove_temporary_files, write_atomically
from magc_data.errors import DatasetError
from magc_data.shards import index
from magc_data.shards.folder import (
    INDEX_NAME,
    KNOWN_NAMES,
    REJECTED_NAME,
    DatasetFolder,
    has_more_to_ask,
    lock_or_refuse,
    manifest_has_more_to_ask,
    parse_config,
    refuse_copies,
    refuse_other_config,
)
from magc_data.shards.manifest import BUILD_NAME, MANIFEST_NAME, REPACK_NAME, read_manifest, to_json
from magc_data.shards.object_store import ReplacedError, Stored, open_store
from magc_data.shards.storage import location
from magc_data.sources.cache import cache_dir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    import pyarrow as pa

    from magc_data.shards.object_store import ObjectStore

CONFIG_NAME = f"{BUILD_NAME}/config.json"
_SIDECAR = re.compile(rf"{re.escape(BUILD_NAME)}/blocks/[A-Za-z0-9_-]+\.arrow")
"""Whoever may write to the prefix names the objects there: no other name becomes a path on this machine."""
REQUESTS_AT_ONCE = 8
"""For many small objects: each takes a round trip, whatever it holds."""


def shard_name(block_name: str) -> str:
    """The shard's path in the dataset."""
    return f"shards/{block_name}.tar"


def sidecar_name(block_name: str) -> str:
    """The sidecar's path in the dataset."""
    return f"{BUILD_NAME}/blocks/{block_name}.arrow"


class StagedBlock(NamedTuple):
    """One block on its way from a worker to the store; pickles."""

    staging: DatasetFolder
    store: ObjectStore
    replaced_shard: Stored | None
    replaced_sidecar: Stored | None
    """What is in the store so far; None: nothing."""

    def shard(self, block_name: str) -> Path:
        """Where to make the block's tar."""
        return self.staging.shard(block_name)

    def sidecar(self, block_name: str) -> Path:
        """Where to write the block's rows."""
        return self.staging.sidecar(block_name)

    def commit(self, block_name: str) -> None:
        """Put the shard, then the sidecar: from then on the block is done."""
        shard = self.shard(block_name)
        if shard.exists():
            self.store.put(shard_name(block_name), shard, self.replaced_shard)
        elif self.replaced_shard is not None:
            self.store.delete([shard_name(block_name)])
        self.store.put(sidecar_name(block_name), self.sidecar(block_name), self.replaced_sidecar)
        # The rows stay: the end of the build needs them.
        shard.unlink(missing_ok=True)


class DatasetPrefix:
    """A dataset under construction at an address: does for it what DatasetFolder does for a folder."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self.store = open_store(self.address)
        name = hashlib.sha256(self.address.encode()).hexdigest()[:32]
        self.staging = DatasetFolder(cache_dir() / "staging" / name)
        self._found: dict[str, Stored] = {}
        self._manifest: dict[str, Any] = {}
        self._given: set[str] = set()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes of this machine away; those of others are noticed when they put something.

        Raises:
            DatasetError: another build of this machine is at work there, or something else is there.
        """
        if self._found and not any(name.partition("/")[0] in KNOWN_NAMES for name in self._found):
            raise DatasetError(f"{self.address} holds objects that are no magc dataset: give --out an unused prefix")
        self.staging.build.mkdir(parents=True, exist_ok=True)
        with (self.staging.build / "lock").open("a") as lock:
            lock_or_refuse(lock, self.address)
            try:
                yield
            finally:
                # Refused before anything was begun.
                if not self.staging.blocks.exists():
                    shutil.rmtree(self.staging.data, ignore_errors=True)

    def is_complete(self, config: dict[str, Any]) -> bool:
        """True if the dataset is there, of this configuration, and nothing in it is worth trying again.

        Raises:
            DatasetError: the dataset is of another configuration.
        """
        self._found = self.store.listing()
        if MANIFEST_NAME not in self._found:
            return False
        self._manifest = read_manifest(self.address)
        refuse_other_config(self._manifest["config"], config, self.address)
        if manifest_has_more_to_ask(self._manifest):
            return False
        # What a build that was killed behind its last step did not get to.
        self._delete_scratch()
        return True

    def begin(self, config: dict[str, Any]) -> None:
        """Start a build, or continue one, from the listing that `is_complete` has made.

        Raises:
            DatasetError: the prefix holds a build of another configuration.
        """
        is_amid_split = any(name.startswith(f"{REPACK_NAME}/") for name in self._found)
        refuse_copies(self._manifest, self.address, is_amid_split=is_amid_split)
        if CONFIG_NAME in self._found or not self._claim(config):
            begun_with = parse_config(self.store.get(CONFIG_NAME), location(f"{self.address}/{CONFIG_NAME}"))
            refuse_other_config(begun_with, config, self.address)
        self.store.abort_uploads()
        self._clean_staging()
        if self._manifest:
            self._reopen()
        else:
            self._bring(filter(_SIDECAR.fullmatch, self._found))

    def _claim(self, config: dict[str, Any]) -> bool:
        """Say what is built here; False if another build has said so meanwhile."""
        try:
            self.store.put(CONFIG_NAME, to_json(config), None)
        except ReplacedError:
            return False
        return True

    def unseal(self) -> None:
        """The dataset is about to change: from now on, until `publish`, it is unfinished."""
        if self._found.pop(MANIFEST_NAME, None):
            self.store.delete([MANIFEST_NAME])

    def is_finished(self, block_name: str) -> bool:
        """True if the block needs no more work in this run."""
        if sidecar_name(block_name) not in self._found:
            return False
        tables = self.tables(block_name)
        shard = self._found.get(shard_name(block_name))
        return not has_more_to_ask(tables) and tables.shard_size == (shard.size if shard else 0)

    def tables(self, block_name: str) -> index.BlockTables:
        """The rows of a finished block."""
        self._bring([sidecar_name(block_name)])
        return self.staging.tables(block_name)

    def of_block(self, block_name: str) -> StagedBlock:
        """Where a worker puts a block."""
        if block_name in self._given:
            # A block is done a second time in this run: what the first time put is what the second replaces.
            self._found = self.store.listing()
            self._given.clear()
        self._given.add(block_name)
        # A worker of another machine leaves its rows there: what lies here would be those from before.
        self.staging.sidecar(block_name).unlink(missing_ok=True)
        replaced = self._found.get(shard_name(block_name)), self._found.get(sidecar_name(block_name))
        return StagedBlock(self.staging, self.store, *replaced)

    def publish(self, manifest: dict[str, Any], schema: pa.Schema, block_names: list[str]) -> dict[str, Any]:
        """Write the files that make the dataset complete; returns the manifest as written."""
        self._bring(map(sidecar_name, block_names))
        document = self.staging.write_documents(manifest, schema, block_names)
        self._found = self.store.listing()
        self._refuse_missing_shards(document["shards"])
        for path in sorted(each for each in self.staging.data.iterdir() if each.is_file()):
            self.store.put(path.name, path, self._found.get(path.name))
        self.store.put(MANIFEST_NAME, to_json(document), self._found.get(MANIFEST_NAME))
        self._delete_scratch()
        shutil.rmtree(self.staging.data)
        return document

    def write_file(self, name: str, content: bytes) -> None:
        """Put an object beside a finished dataset's own."""
        self.store.put(name, content, self.store.listing().get(name))

    def _reopen(self) -> None:
        """Give a complete dataset its sidecars back, here and there; see DatasetFolder.reopen."""
        documents = (MANIFEST_NAME, INDEX_NAME, REJECTED_NAME)
        self._at_once(self._fetch, documents)
        self.staging.reopen()
        sidecars = (f"{BUILD_NAME}/blocks/{path.name}" for path in self.staging.blocks.glob("*.arrow"))

        def put_back(name: str) -> None:
            self.store.put(name, self._staged(name), None)

        self._at_once(put_back, [name for name in sidecars if name not in self._found])
        for name in documents:
            self._staged(name).unlink()
        self._found = self.store.listing()

    def _clean_staging(self) -> None:
        """Leave of an earlier run on this machine only rows that are those in the store."""
        shutil.rmtree(self.staging.shards, ignore_errors=True)
        for folder in (self.staging.data, self.staging.shards, self.staging.blocks):
            folder.mkdir(parents=True, exist_ok=True)
            remove_temporary_files(folder)
        for path in (each for each in self.staging.data.iterdir() if each.is_file()):
            path.unlink()
        for path in self.staging.blocks.iterdir():
            there = self._found.get(f"{BUILD_NAME}/blocks/{path.name}", Stored(0, ""))
            # Of an object put whole and not encrypted with a key of one's own, the version is the MD5.
            md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
            if there.version.strip('"') != md5:
                path.unlink()

    def _bring(self, names: Iterable[str]) -> None:
        """Fetch what of these is not on this machine."""
        self._at_once(self._fetch, [name for name in names if not self._staged(name).exists()])

    def _fetch(self, name: str) -> None:
        write_atomically(self._staged(name), self.store.get(name))

    def _staged(self, name: str) -> Path:
        return self.staging.data / name

    def _at_once(self, work: Callable[[str], None], names: Iterable[str]) -> None:
        if wanted := list(names):
            with ThreadPoolExecutor(min(REQUESTS_AT_ONCE, len(wanted))) as pool:
                for _ in pool.map(work, wanted):
                    pass

    def _refuse_missing_shards(self, shards: list[dict[str, Any]]) -> None:
        for entry in shards:
            if (there := self._found.get(entry["path"])) is None or there.size != entry["size"]:
                what = "has gone" if there is None else f"has {there.size} bytes, expected {entry['size']}"
                raise DatasetError(
                    f"{self.address}/{entry['path']} {what}: something else writes or deletes there; put an end to "
                    "that and run the same command again"
                )

    def _delete_scratch(self) -> None:
        self.store.delete(sorted((name for name in self._found if name.startswith(f"{BUILD_NAME}/")), reverse=True))
