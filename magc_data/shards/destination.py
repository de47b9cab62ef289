"""Where a build puts its dataset: a folder, or a prefix in object storage; what it asks of either is the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from magc_data.shards.folder import DatasetFolder

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import pyarrow as pa

    from magc_data.shards.index import BlockTables


class BlockPlace(Protocol):
    """Where a worker puts one block; pickles."""

    def shard(self, block_name: str) -> Path:
        """Where to make the block's tar."""

    def sidecar(self, block_name: str) -> Path:
        """Where to write the block's rows, after the tar."""

    def commit(self, block_name: str) -> None:
        """To be called when both are there: from then on the block is done."""


class Destination(Protocol):
    """A dataset under construction; see DatasetFolder for what each step means."""

    def locked(self) -> AbstractContextManager[None]:
        """Hold it for one build."""

    def is_complete(self, config: dict[str, Any]) -> bool:
        """True if there is nothing left to do."""

    def begin(self, config: dict[str, Any]) -> None:
        """Start a build, or continue one."""

    def unseal(self) -> None:
        """The dataset is about to change."""

    def is_finished(self, block_name: str) -> bool:
        """True if the block needs no more work in this run."""

    def tables(self, block_name: str) -> BlockTables:
        """The rows of a finished block."""

    def of_block(self, block_name: str) -> BlockPlace:
        """Where a worker puts a block."""

    def publish(self, manifest: dict[str, Any], schema: pa.Schema, block_names: list[str]) -> dict[str, Any]:
        """Complete the dataset; returns the manifest as written."""

    def write_file(self, name: str, content: bytes) -> None:
        """Put a file beside a finished dataset's own."""


def destination(out: Path | str) -> Destination:
    """The dataset that `--out` names, be there something yet or not.

    Raises:
        UsageError: an address that cannot be built into.
    """
    if isinstance(out, Path):
        return DatasetFolder(out)
    from magc_data.shards.prefix import DatasetPrefix

    return DatasetPrefix(out)
