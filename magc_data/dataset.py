"""A finished dataset as a sequence of samples: numpy arrays by number, straight from the shards, without torch."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow.compute as pc

from magc_data.errors import DatasetError
from magc_data.schema.classes import SemanticClass
from magc_data.schema.sample import TILE_SIZE_PX
from magc_data.shards.index import MEMBERS
from magc_data.shards.manifest import BUILD_NAME, MANIFEST_NAME, read_manifest
from magc_data.shards.reader import WAY_OUT, decode_image, decode_map, decode_member, read_index, read_map, read_members

if TYPE_CHECKING:
    from typing import Any

    import pyarrow as pa
    from numpy.typing import NDArray

_PLACES = [f"{member}_{what}" for member in MEMBERS for what in ("offset", "size")]
_READ = ["key", "shard", "gsd_m", *_PLACES]
_CONTENT = ["key", "image_sha256", "map_sha256"]
_ROWS_AT_ONCE = 65536


class TileSample(NamedTuple):
    """One tile: image and map on the same pixel grid."""

    key: str
    image: NDArray[np.uint8]
    """RGB, [height, width, 3]."""
    semantic_map: NDArray[np.uint8]
    """Class ids, [height, width]."""
    gsd_m: float
    """Metres on the ground a pixel, at the tile's centre."""


def is_dataset(folder: Path) -> bool:
    """Whether a folder is a dataset, be it finished or not."""
    return (folder / MANIFEST_NAME).is_file() or (folder / BUILD_NAME).is_dir()


class MagcDataset:
    """Samples of a dataset, or of one split of it, by number.

    A dataset of maps alone (`has_images` is False) has no whole samples: `read_map` is what can be asked of it.

    Holds the index's columns and no open file, so it can be pickled and used in forked and spawned workers.

    Raises:
        DatasetError: not a finished dataset, a damaged one, or one without the split; also when a sample is read.
    """

    def __init__(self, data: Path | str, split: str | None = None) -> None:
        data = Path(data)
        self.data = data
        self.split = split
        manifest = read_manifest(data)
        self.classes = tuple(
            SemanticClass(each["id"], each["name"], tuple(each["color"])) for each in manifest["classes"]
        )
        self.has_images = "imagery" in manifest["sources"]
        rows = self._index(_READ)
        if self.has_images and rows["image_offset"].null_count:
            raise DatasetError(f"the index of {data} has rows without 'image_offset': {WAY_OUT}")
        # Shards have thousands of rows each: their names are kept once.
        shards = rows["shard"].dictionary_encode()
        self._rows = rows.set_column(rows.column_names.index("shard"), "shard", shards).combine_chunks()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> TileSample:
        row = self._row(number)
        members = read_members(self.data, row)
        image = decode_member(self.data, row, "image", members.image, decode_image)
        semantic_map = decode_member(self.data, row, "map", members.semantic_map, decode_map)
        return TileSample(row["key"], image, semantic_map, row["gsd_m"])

    def read_map(self, number: int) -> NDArray[np.uint8]:
        """The sample's map alone: where its image is not needed, nothing of it is decoded."""
        row = self._row(number)
        return read_map(self.data, row)

    @property
    def keys(self) -> list[str]:
        """The samples' keys, in order."""
        return list(self._rows["key"].to_pylist())

    @property
    def sizes_px(self) -> NDArray[np.int64]:
        """Height and width of every image, [samples, 2]: the format has one size only."""
        return np.broadcast_to(np.int64(TILE_SIZE_PX), (len(self), 2))

    @functools.cached_property
    def digest(self) -> str:
        """Sha256 of the samples' keys and digests: equal where the same samples stand in the same order."""
        sha256 = hashlib.sha256()
        for batch in self._index(_CONTENT).to_batches(_ROWS_AT_ONCE):
            columns = (batch[name].to_pylist() for name in _CONTENT)
            sha256.update("".join(f"{' '.join(map(str, row))}\n" for row in zip(*columns, strict=True)).encode())
        return sha256.hexdigest()

    def _index(self, columns: list[str]) -> pa.Table:
        """These columns of the split's rows."""
        if self.split is None:
            return read_index(self.data, columns)
        table = read_index(self.data, [*columns, "split"])
        rows = table.filter(pc.equal(table["split"], self.split)).drop_columns("split")
        if not len(rows):
            splits = sorted(each for each in pc.unique(table["split"]).to_pylist() if each is not None)
            there = f"expected one of {', '.join(splits)}" if splits else "it is not divided into splits"
            raise DatasetError(f"{self.data} has no sample in the split '{self.split}': {there}")
        return rows

    def _row(self, number: int) -> dict[str, Any]:
        if not -len(self) <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        return dict(self._rows.slice(number % len(self), 1).to_pylist()[0])
