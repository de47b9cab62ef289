"""Pairs of tiles before and after a change, as `build --changes` makes them: both images, both maps, both dates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from magc_data.dataset import MagcDataset, TileSample
from magc_data.errors import DatasetError
from magc_data.shards import index

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

ENDS = ("before", "after")
PAIRS_NAME = "pairs.json"
PAIRS_VERSION = 1
TABLE_NAME = "pairs.parquet"


class TilePair(NamedTuple):
    """One place, twice: images and maps on one pixel grid."""

    key: str
    before: TileSample
    after: TileSample
    before_capture_date: str | None
    after_capture_date: str | None


class MagcPairs:
    """Pairs of a folder, by number or key. `before` and `after` are datasets of their own with the same samples.

    Args:
        data: a folder that `magc-data build --changes` made.
        split: `train`, `val` or `test`, of ends that were split alike; None for all.

    Raises:
        DatasetError: no such folder, an unfinished or damaged one, or one whose ends were split differently.
    """

    def __init__(self, data: Path | str, split: str | None = None) -> None:
        self.data = Path(data)
        _require_pairs(self.data)
        self.before, self.after = (MagcDataset(self.data / end, split) for end in ENDS)
        if self.before.keys != self.after.keys:
            raise DatasetError(
                f"{self.data} has other samples at the one end than at the other: split both with the same options"
            )
        table = index.read_table(self.data / TABLE_NAME)
        dates = zip(*(table[f"{end}_capture_date"].to_pylist() for end in ENDS), strict=True)
        self._dates = dict(zip(table["key"].to_pylist(), dates, strict=True))

    def __len__(self) -> int:
        return len(self.before)

    def __getitem__(self, pair: int | str) -> TilePair:
        """The pair of a number, from either end, or of a key.

        Raises:
            IndexError: no such number.
            KeyError: no such key.
            DatasetError: a sample cannot be read or decoded.
        """
        before, after = self.before[pair], self.after[pair]
        return TilePair(before.key, before, after, *self._dates[before.key])

    def __iter__(self) -> Iterator[TilePair]:
        return (self[number] for number in range(len(self)))

    @property
    def keys(self) -> list[str]:
        """The pairs' keys, in order."""
        return self.before.keys

    @property
    def table(self) -> pa.Table:
        """`pairs.parquet`: releases, dates and digests of every pair."""
        return index.read_table(self.data / TABLE_NAME)


def _require_pairs(data: Path) -> None:
    try:
        version = json.loads((data / PAIRS_NAME).read_bytes())["pairs_version"]
    except FileNotFoundError:
        unfinished = any((data / end).is_dir() for end in ENDS)
        raise DatasetError(
            f"{data} is an unfinished build of pairs: run the same build command again"
            if unfinished
            else f"{data} holds no pairs: it has no {PAIRS_NAME}; expected a folder of `magc-data build --changes`"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DatasetError(f"{data / PAIRS_NAME} is damaged: run the same build command again") from None
    if version != PAIRS_VERSION:
        raise DatasetError(
            f"{data / PAIRS_NAME} is version {version!r}, this build of magc reads {PAIRS_VERSION}: use the magc that "
            "made it"
        )
