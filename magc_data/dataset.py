"""A finished dataset as a sequence of samples: numpy arrays by number or key, from the shards, without torch."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from magc_data.errors import WAY_OUT, DatasetError, UsageError
from magc_data.schema.classes import SemanticClass
from magc_data.schema.sample import TILE_SIZE_PX
from magc_data.shards.index import MEMBERS
from magc_data.shards.manifest import BUILD_NAME, MANIFEST_NAME, read_manifest
from magc_data.shards.reader import decode_image, decode_map, decode_member, read_spans
from magc_data.shards.tar import MemberSpan
from magc_data.shards.view_file import Condition, is_view, read_rows, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from magc_data.notebook import HtmlView, Plot
    from magc_data.shards.storage import Location

_PLACES = ("image_offset", "image_size", "map_offset", "map_size")
_READ = ["key", "shard", "gsd_m", *_PLACES]
_CONTENT = ["key", "image_sha256", "map_sha256"]
_NOWHERE = -1
"""Place of an image that there is not."""
_ROWS_AT_ONCE = 65536
_ORDER = 1
"""Names the stream of random numbers that orders samples."""


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
    """Whether a folder is a dataset, be it finished or not, or a view of one."""
    return (folder / MANIFEST_NAME).is_file() or (folder / BUILD_NAME).is_dir() or is_view(folder)


@functools.lru_cache(maxsize=4)
def sample_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Permutation of `count` samples in an epoch, the same on every machine; read-only."""
    # Raw words are the same in every version of NumPy; its own permutations need not be.
    words = np.random.Philox(np.random.SeedSequence((seed, _ORDER, epoch))).random_raw(count)
    order = np.argsort(words, kind="stable")
    order.setflags(write=False)
    return order


class MagcDataset:
    """Samples of a dataset or view, or of some of its rows, by number or key.

    A dataset of maps alone (`has_images` is False) has no whole samples: `read_map` is what can be asked of it.

    Holds columns of the index and neither an open file nor a connection, so it can be pickled and used in forked and
    spawned workers.

    Args:
        data: a folder, or an address that fsspec understands (`https://`, `s3://` ...; needs `magc[remote]`).
        split: `train`, `val` or `test`; None for all samples, whatever their split.
        where: a condition on the index's columns, as `magc-data filter` takes it (see magc_data.where).
        bbox_lonlat: west, south, east, north in degrees; the samples whose centre lies inside. Across the 180th
            meridian where west is greater than east.

    Raises:
        DatasetError: not a finished dataset, a damaged one, or one without the split; also when a sample is read.
        UsageError: the condition cannot be read, or the box is none.
    """

    def __init__(
        self,
        data: Path | str,
        split: str | None = None,
        *,
        where: str | None = None,
        bbox_lonlat: tuple[float, float, float, float] | None = None,
    ) -> None:
        self.data = data if isinstance(data, str) and "://" in data else Path(data)
        self.split, self.where, self.bbox_lonlat = split, where, bbox_lonlat
        manifest = read_manifest(self.data)
        self.classes = tuple(
            SemanticClass(each["id"], each["name"], tuple(each["color"])) for each in manifest["classes"]
        )
        self.has_images = "imagery" in manifest["sources"]
        self._resolved = resolve(self.data)
        if where is not None:
            conditions = (Condition(None, where), *self._resolved.conditions)
            self._resolved = self._resolved._replace(conditions=conditions)
        self._shard_samples = {entry["path"]: int(entry["samples"]) for entry in manifest["shards"]}
        rows = self._index(_READ)
        if self.has_images and rows["image_offset"].null_count:
            raise DatasetError(f"the index of {data} has rows without 'image_offset': {WAY_OUT}")
        # Plain arrays: a row of an Arrow table takes as long to look up as its bytes take to read.
        shards = rows["shard"].combine_chunks().dictionary_encode()
        self._shards: list[str] = shards.dictionary.to_pylist()
        self._shard_of: NDArray[np.int32] = np.array(shards.indices)
        self._places: NDArray[np.int64] = np.stack(
            [rows[name].fill_null(_NOWHERE).to_numpy() for name in _PLACES], axis=1
        )
        self._gsd_m: NDArray[np.float64] = rows["gsd_m"].to_numpy()
        self._keys = pa.array(rows["key"].combine_chunks())

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, sample: int | str) -> TileSample:
        """The sample of a number, from either end, or of a key.

        Raises:
            IndexError: no such number.
            KeyError: no such key.
            DatasetError: the sample cannot be read or decoded.
        """
        number = self._number(sample)
        image, semantic_map = self._read(number, 0, 2)
        return TileSample(
            str(self._keys[number]),
            self._decoded(number, "image", image, decode_image),
            self._decoded(number, "map", semantic_map, decode_map),
            float(self._gsd_m[number]),
            self.classes,
        )

    def __iter__(self) -> Iterator[TileSample]:
        return (self[number] for number in range(len(self)))

    def read_map(self, sample: int | str) -> NDArray[np.uint8]:
        """The sample's map alone: where its image is not needed, nothing of it is read."""
        number = self._number(sample)
        (semantic_map,) = self._read(number, 1, 2)
        return self._decoded(number, "map", semantic_map, decode_map)

    @property
    def keys(self) -> list[str]:
        """The samples' keys, in order."""
        return list(self._keys.to_pylist())

    @property
    def sizes_px(self) -> NDArray[np.int64]:
        """Height and width of every image, [samples, 2]: the format has one size only."""
        return np.broadcast_to(np.int64(TILE_SIZE_PX), (len(self), 2))

    def order(self, seed: int, epoch: int = 0) -> NDArray[np.int64]:
        """The samples' numbers in an order of chance, [samples]; the same on every machine.

        Any order of samples is read as fast as any other, so this is a perfect shuffle of the whole dataset: nothing is
        shuffled shard by shard or within a buffer.
        """
        return sample_order(seed, epoch, len(self))

    def to_webdataset_urls(self) -> list[str]:
        """Paths or addresses of the shards, for `webdataset.WebDataset`.

        Raises:
            DatasetError: the shards hold other samples as well, which a reader of whole shards could not leave out.
        """
        for number, count in enumerate(np.bincount(self._shard_of, minlength=len(self._shards)).tolist()):
            name = self._shards[number]
            if others := self._shard_samples.get(name, count) - count:
                raise DatasetError(
                    f"{self._resolved.folder / name} holds {others} samples besides those asked for, and WebDataset "
                    "reads shards whole: iterate over MagcDataset, or export the samples to a dataset of their own"
                )
        return [str(self._resolved.folder / name) for name in self._shards]

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

        return plot_class_histograms(self._folder(), self.keys)

    def map(self, height_px: int = 640) -> HtmlView:
        """A map to pan and zoom, with pictures, filters and what each tile holds, below a notebook's cell."""
        from magc_data.notebook import framed_page

        return framed_page(self._folder(), self.keys, height_px)

    def flip(self, key: str | int) -> HtmlView:
        """One sample with a divider to pull between its image and its map, below a notebook's cell."""
        from magc_data.notebook import flip_view

        return flip_view(self._folder(), str(self._keys[self._number(key)]))

    def _repr_html_(self) -> str | None:
        from magc_data.notebook import dataset_card

        # None: notebooks then show the plain text.
        return None if isinstance(self.data, str) else dataset_card(self.data, self.keys)

    def _folder(self) -> Path:
        """Where the data lie on this machine, for what reads more of them than a sample."""
        if isinstance(self.data, str):
            raise UsageError(f"{self.data} is an address: notebooks show datasets in a folder, so get a copy of it")
        return self.data

    def _index(self, columns: list[str]) -> pa.Table:
        """These columns of the rows that were asked for."""
        chosen = None if self.bbox_lonlat is None else _inside(self.bbox_lonlat)
        if self.split is None:
            return read_rows(self._resolved, columns, chosen)
        in_split = pc.field("split") == self.split
        rows = read_rows(self._resolved, columns, in_split if chosen is None else in_split & chosen)
        if not len(rows):
            self._refuse_empty_split(chosen)
        return rows

    def _refuse_empty_split(self, chosen: pc.Expression | None) -> None:
        found = pc.unique(read_rows(self._resolved, ["split"], chosen)["split"]).to_pylist()
        splits = sorted(each for each in found if each is not None)
        there = f"expected one of {', '.join(splits)}" if splits else "it is not divided into splits"
        raise DatasetError(f"{self.data} has no sample in the split '{self.split}': {there}")

    def _number(self, sample: int | str) -> int:
        if isinstance(sample, str):
            number = int(pc.index(self._keys, sample).as_py())
            if number < 0:
                raise KeyError(f"{self.data} has no sample {sample}")
            return number
        if not -len(self) <= sample < len(self):
            raise IndexError(f"sample {sample} of {len(self)}")
        return int(sample) % len(self)

    def _read(self, number: int, first: int, end: int) -> list[bytes]:
        """Bytes of the image (0), the map (1) or both."""
        places = self._places[number].tolist()
        spans = [
            None if places[2 * each] == _NOWHERE else MemberSpan(*places[2 * each : 2 * each + 2])
            for each in range(first, end)
        ]
        return read_spans(*self._place(number), MEMBERS[first:end], spans)

    def _decoded(
        self, number: int, member: str, content: bytes, decode: Callable[[bytes], NDArray[np.uint8]]
    ) -> NDArray[np.uint8]:
        return decode_member(*self._place(number), member, content, decode)

    def _place(self, number: int) -> tuple[Location, str, str]:
        """Folder, shard and key of a sample."""
        return self._resolved.folder, self._shards[self._shard_of[number]], str(self._keys[number])


def _inside(bbox_lonlat: tuple[float, float, float, float]) -> pc.Expression:
    """Whether a tile's centre is in the box; neighbouring boxes never share a tile."""
    west, south, east, north = bbox_lonlat
    if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south < north <= 90) or west == east:
        raise UsageError(
            f"bbox_lonlat is {bbox_lonlat}: expected west, south, east, north in degrees, south below north"
        )
    lon, lat = pc.field("lon"), pc.field("lat")
    across = (lon >= west) & (lon < east) if west < east else (lon >= west) | (lon < east)
    return across & (lat >= south) & (lat < north)
