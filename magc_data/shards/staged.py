"""Blocks made by processes that do not know of each other, in one folder, maybe on several machines.

    DATA/.magc-build/work/TOKEN/               a process' own: it makes blocks there as if it were alone
    DATA/.magc-build/staged/NAME.SHA256.tar    a block's shard, under the digest that its sidecar states
    DATA/.magc-build/blocks/NAME.arrow         the sidecar: its rename alone finishes a block

Two processes may make the same block, even with different images: whichever sidecar is there at the end names the
shard that belongs to it. The build that publishes puts the shards in place.
"""

from __future__ import annotations

import secrets
import shutil
from typing import TYPE_CHECKING

from magc_data.atomic import sync_folder
from magc_data.shards import index

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from magc_data.shards.folder import DatasetFolder


def own_folder(folder: DatasetFolder) -> DatasetFolder:
    """A new folder inside a build, for one process to work in."""
    own = folder.build / "work" / secrets.token_hex(8)
    own.mkdir(parents=True)
    return folder._replace(data=own)


def hand_in(own: DatasetFolder, folder: DatasetFolder, block_name: str) -> None:
    """Move a block from a process' own folder into the build: from then on it is finished for all."""
    tables = index.read_sidecar(own.sidecar(block_name))
    if tables.shard_size:
        staged = _staged(folder, block_name, tables.shard_sha256)
        staged.parent.mkdir(exist_ok=True)
        own.shard(block_name).replace(staged)
        sync_folder(staged.parent)
    own.sidecar(block_name).replace(folder.sidecar(block_name))
    sync_folder(folder.sidecar(block_name).parent)


def put_in_place(folder: DatasetFolder, block_names: Iterable[str]) -> None:
    """Give the shards that sidecars name their names in the dataset; for the one process that publishes."""
    if (folder.build / "staged").exists():
        for name in block_names:
            tables = index.read_sidecar(folder.sidecar(name))
            staged = _staged(folder, name, tables.shard_sha256)
            if not tables.shard_size:
                folder.shard(name).unlink(missing_ok=True)
            elif staged.exists():
                staged.replace(folder.shard(name))
        sync_folder(folder.shards)


def remove_own(own: DatasetFolder) -> None:
    """Delete a process' own folder; a killed process' goes with the build's scratch."""
    shutil.rmtree(own.data, ignore_errors=True)


def _staged(folder: DatasetFolder, block_name: str, shard_sha256: str) -> Path:
    return folder.build / "staged" / f"{block_name}.{shard_sha256}.tar"
