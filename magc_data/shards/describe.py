"""The metadata files of a dataset on disk: written when it is complete, and again when something in it has changed."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from magc_data.atomic import write_atomically
from magc_data.errors import DatasetError
from magc_data.metadata.facts import FACT_COLUMNS, facts_of
from magc_data.metadata.files import metadata_files
from magc_data.shards.index import FRACTION_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_INDEX_NAME = "index.parquet"


def write_metadata(data: Path, manifest: dict[str, Any]) -> None:
    """Write `croissant.json`, `collection.json` and `DATASHEET.md` from the manifest and the index beside them.

    Whatever changes the index or the shards calls this last but for the manifest, so that the files never lag behind.

    Raises:
        DatasetError: the index is absent or damaged.
    """
    for name, content in _contents(data, manifest).items():
        write_atomically(data / name, content)


def stale_metadata(data: Path, manifest: dict[str, Any]) -> list[str]:
    """Names of the metadata files that are missing or do not say what the dataset is."""
    return [
        name
        for name, content in _contents(data, manifest).items()
        if not (data / name).is_file() or (data / name).read_bytes() != content
    ]


def _contents(data: Path, manifest: dict[str, Any]) -> dict[str, bytes]:
    path = data / _INDEX_NAME
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        facts = facts_of(manifest, _row_groups(path))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DatasetError(f"{path} is not readable as Parquet ({reason}): build it again") from None
    return metadata_files(facts, digest)


def _row_groups(path: Path) -> Iterator[pa.Table]:
    """What facts need of the index, so many rows at a time that memory does not grow with it."""
    with pq.ParquetFile(path) as file:
        there = file.schema_arrow.names
        if missing := [name for name in FACT_COLUMNS if name not in there]:
            raise DatasetError(f"{path} lacks the column '{missing[0]}': build the dataset again")
        wanted = [*FACT_COLUMNS, *(name for name in there if name.startswith(FRACTION_PREFIX))]
        for number in range(file.num_row_groups):
            yield file.read_row_group(number, wanted)
