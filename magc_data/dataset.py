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
from magc_data.shards.reader import decode_image, decode_map, read_index, read_members

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    import pyarrow as pa
    from numpy.typing import NDArray

    from magc_data.notebook import HtmlView, Plot

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
    classes: tuple[SemanticClass, ...] = ()
    """What the ids of the map mean."""

    def plot(self) -> Plot:
        """Image, map and overlay over a legend, for notebooks; needs `magc[notebook]`."""
        from magc_data.notebook import plot_tile

        return plot_tile(*self)


def is_dataset(folder: Path) -> bool:
    """Whether a folder is a dataset, be it finished or not."""
    return (folder / MANIFEST_NAME).is_file() or (folder / BUILD_NAME).is_dir()


class MagcDataset:
    """Samples of a dataset, or of one split of it, by number.

    Holds the index's columns and no open file, so it can be pickled and used in forked and spawned workers.

    Raises:
        DatasetError: not a finished dataset, a damaged one, or one without the split; also when a sample is read.
    """

    def __init__(self, data: Path | str, split: str | None = None) -> None:
        data = Path(data)
        self.data = data
        self.split = split
        self.classes = tuple(
            SemanticClass(each["id"], each["name"], tuple(each["color"])) for each in read_manifest(data)["classes"]
        )
        rows = self._index(_READ)
        if incomplete := [name for name in _READ if rows[name].null_count]:
            raise DatasetError(f"the index of {data} has rows without '{incomplete[0]}': build the dataset again")
        # Shards have thousands of rows each: their names are kept once.
        shards = rows["shard"].dictionary_encode()
        self._rows = rows.set_column(rows.column_names.index("shard"), "shard", shards).combine_chunks()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int | str) -> TileSample:
        row = self._row(self._number_of_key(number) if isinstance(number, str) else number)
        members = read_members(self.data, row)
        image = self._decoded(row, "image", decode_image, members.image)
        semantic_map = self._decoded(row, "map", decode_map, members.semantic_map)
        return TileSample(row["key"], image, semantic_map, row["gsd_m"], self.classes)

    def read_map(self, number: int) -> NDArray[np.uint8]:
        """The sample's map alone: where its image is not needed, nothing of it is decoded."""
        row = self._row(number)
        return self._decoded(row, "map", decode_map, read_members(self.data, row).semantic_map)

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

    def plot(self, key: str | int) -> Plot:
        """Image, map and overlay of a sample; needs `magc[notebook]`."""
        return self[key].plot()

    def plot_classes(self) -> Plot:
        """A histogram of the shares of each class that occurs; needs `magc[notebook]`."""
        from magc_data.notebook import plot_class_histograms

        return plot_class_histograms(self.data, self.keys)

    def map(self, height_px: int = 640) -> HtmlView:
        """A map to pan and zoom, with pictures, filters and what each tile holds, below a notebook's cell."""
        from magc_data.notebook import framed_page

        return framed_page(self.data, self.keys, height_px)

    def flip(self, key: str | int) -> HtmlView:
        """One sample with a divider to pull between its image and its map, below a notebook's cell."""
        from magc_data.notebook import flip_view

        return flip_view(self.data, key if isinstance(key, str) else self._row(key)["key"])

    def _repr_html_(self) -> str:
        from magc_data.notebook import dataset_card

        return dataset_card(self.data, self.keys)

    def _number_of_key(self, key: str) -> int:
        number = int(pc.index(self._rows["key"], key).as_py())
        if number < 0:
            raise KeyError(f"{key}: no sample of {self.data} has this key")
        return number

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

    def _decoded(
        self, row: dict[str, Any], member: str, decode: Callable[[bytes], NDArray[np.uint8]], content: bytes
    ) -> NDArray[np.uint8]:
        where = f"the {member} of {row['key']} in {self.data / row['shard']}"
        try:
            pixels = decode(content)
        # Pillow's plugins raise whatever they come across in damaged files.
        except Exception as error:  # noqa: BLE001 - see above
            raise DatasetError(
                f"{where} cannot be decoded ({type(error).__name__}): `magc-data verify` lists what is damaged"
            ) from None
        if pixels.shape[:2] != (TILE_SIZE_PX, TILE_SIZE_PX):
            raise DatasetError(
                f"{where} is {pixels.shape[1]}x{pixels.shape[0]} pixels, expected {TILE_SIZE_PX}x{TILE_SIZE_PX}: "
                "`magc-data verify` lists what is damaged"
            )
        return pixels
