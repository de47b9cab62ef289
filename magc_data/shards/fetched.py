"""A dataset's files as files of this machine: those of a folder as they are, those at an address as copies."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from magc_data.shards.storage import Location, RemoteFolder, fetch_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class FetchedDataset(NamedTuple):
    """Where to find a dataset's files on this machine."""

    origin: Location
    folder: Path
    """Holds the documents that there are, and shards while they are asked for."""

    @contextlib.contextmanager
    def shard(self, name: str, *, keep: bool) -> Iterator[None]:
        """Have a shard there, if there is one.

        Args:
            name: its path in the dataset, which is checked already.
            keep: leave a copy until the end; else no more than one shard lies there at a time.
        """
        self.fetch(name)
        try:
            yield
        finally:
            if isinstance(self.origin, RemoteFolder) and not keep:
                (self.folder / name).unlink(missing_ok=True)

    def fetch(self, name: str) -> None:
        """Bring a file from an address; where there is none, have none."""
        if isinstance(self.origin, RemoteFolder):
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                fetch_file(self.origin / name, path)
            except FileNotFoundError:
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def fetched(origin: Location, documents: Iterable[str]) -> Iterator[FetchedDataset]:
    """Have a dataset's documents on this machine until the block ends.

    Raises:
        DatasetError: the service refuses.
    """
    if isinstance(origin, Path):
        yield FetchedDataset(origin, origin)
        return
    with tempfile.TemporaryDirectory(prefix="magc-") as folder:
        copy = FetchedDataset(origin, Path(folder))
        for name in documents:
            copy.fetch(name)
        yield copy
