"""What codecs are given: single tiles of a dataset, scenes put together of neighbours, or pictures of a folder."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from magc_data.dataset import MagcDataset, is_dataset
from magc_data.errors import DatasetError
from magc_data.grid import Tile
from magc_data.ground_grid import parse_key
from magc_data.schema.classes import SemanticClass
from magc_data.schema.sample import TILE_SIZE_PX
from magc_model.data import ImageFolder
from magc_model.errors import DataError, UsageError
from magc_model.evaluate.measurement import CUT_PX, On
from magc_model.evaluate.metrics.patches import patch_corners

SCENE_LEAST_TILES, SCENE_MOST_TILES = 4, 8
"""Tiles a side of a scene: 1024 px and more, as file formats of a few hundred bytes' overhead need it; 2048 at most."""
_GROUND_TILES = 64
"""Scenes are looked for in squares of so many tiles, so that an area of any shape fits in memory."""


class Item(NamedTuple):
    """One picture that codecs are given, not yet read."""

    on: On
    key: str
    width_px: int
    height_px: int
    samples: tuple[int, ...]
    """Numbers in the source, row by row; one for a tile."""


class Loaded(NamedTuple):
    """An item's pixels."""

    picture: UInt8[np.ndarray[Any, Any], "height width 3"]
    semantic_map: UInt8[np.ndarray[Any, Any], "height width"] | None


class SceneGrid(NamedTuple):
    """A rectangle of tiles without a gap."""

    z: int
    x: int
    y: int
    columns: int
    rows: int

    @property
    def key(self) -> str:
        """As a tile's key, and how many tiles it is wide and high."""
        return f"{self.z}_{self.x}_{self.y}_{self.columns}x{self.rows}"

    def places(self) -> Iterator[Tile]:
        """Its tiles, row by row."""
        for row, column in itertools.product(range(self.rows), range(self.columns)):
            yield Tile(self.z, self.x + column, self.y + row)


class EvaluationSet:
    """The items of a dataset or of a folder of pictures.

    Args:
        data: dataset made by `magc-data build`, or a folder of pictures (which have no maps; those of 1024 px and
            more on both sides are scenes).
        split: of the dataset; none for all samples.
        on: what to take.

    Raises:
        DataError: there is nothing of the kind.
        DatasetError: the dataset is unfinished or damaged, or has no such split.
    """

    def __init__(self, data: Path, split: str | None = None, on: tuple[On, ...] = (On.TILES, On.SCENES)) -> None:
        self.data, self.split = data, split
        self._source: MagcDataset | ImageFolder
        if is_dataset(data):
            self._source = MagcDataset(data, split)
            if not self._source.has_images:
                raise DataError(f"{data} was built with --imagery none: there are no pictures to evaluate on")
            found = {On.TILES: list(_tiles(self._source)), On.SCENES: list(_scenes(self._source))}
        else:
            if split is not None:
                raise UsageError(f"{data} is a folder of pictures, which has no split: leave --split away")
            self._source = ImageFolder(data)
            found = _pictures(data, self._source)
        self.items = tuple(item for kind in dict.fromkeys(on) for item in found[kind])
        if not self.items:
            raise DataError(
                f"{data} holds none of {' and '.join(on)}"
                + (f" in its split {split}" if split else "")
                + f": scenes are {SCENE_LEAST_TILES}x{SCENE_LEAST_TILES} neighbouring tiles or more, or pictures of "
                f"{SCENE_LEAST_TILES * TILE_SIZE_PX} px and more on both sides"
            )
        _check_alike(data, self.items)

    @property
    def classes(self) -> tuple[SemanticClass, ...]:
        """Of the maps; none where there are no maps."""
        return self._source.classes

    @property
    def digest(self) -> str:
        """Sha256 of what the samples are, whatever is taken of them."""
        return hashlib.sha256(f"{self._source.digest} {self.split}".encode()).hexdigest()

    def load(self, item: Item) -> Loaded:
        """The item's pixels and map.

        Raises:
            DataError, DatasetError: a sample cannot be read.
        """
        first = self._source[item.samples[0]]
        has_maps = bool(self._source.classes)
        if len(item.samples) == 1:
            return Loaded(first.image, first.semantic_map if has_maps else None)
        picture = np.empty((item.height_px, item.width_px, 3), np.uint8)
        semantic_map = np.empty((item.height_px, item.width_px), np.uint8)
        columns = item.width_px // TILE_SIZE_PX
        for place, number in enumerate(item.samples):
            sample = self._source[number]
            if sample.image.shape != (TILE_SIZE_PX, TILE_SIZE_PX, 3):
                raise DatasetError(f"tile {sample.key} is of shape {sample.image.shape}: expected 256x256 pixels")
            row, column = divmod(place, columns)
            window = (
                slice(row * TILE_SIZE_PX, (row + 1) * TILE_SIZE_PX),
                slice(column * TILE_SIZE_PX, (column + 1) * TILE_SIZE_PX),
            )
            picture[window], semantic_map[window] = sample.image, sample.semantic_map
        return Loaded(picture, semantic_map if has_maps else None)


def cuts(picture: UInt8[np.ndarray[Any, Any], "_height _width *_bands"]) -> UInt8[np.ndarray[Any, Any], "..."]:
    """The squares of 256 px that figures are taken of, row by row: [cuts, height, width, ...].

    A picture that is no larger is its own only cut; what is left over at the right and at the bottom of a larger one
    is not measured.
    """
    height, width = picture.shape[:2]
    if height < CUT_PX or width < CUT_PX:
        return picture[None, :CUT_PX, :CUT_PX]
    rows, columns = height // CUT_PX, width // CUT_PX
    whole = picture[: rows * CUT_PX, : columns * CUT_PX]
    parts = whole.reshape(rows, CUT_PX, columns, CUT_PX, *picture.shape[2:]).swapaxes(1, 2)
    return np.ascontiguousarray(parts.reshape(rows * columns, CUT_PX, CUT_PX, *picture.shape[2:]))


# --- which scenes there are ------------------------------------------------------------------------------------------


def scene_grids(places: set[Tile]) -> list[SceneGrid]:
    """Rectangles of at least 4x4 and at most 8x8 tiles, none in two of them: the largest first, then the northernmost.

    Greedy, in each coherent area by itself; large areas square by square of 64 tiles, which a scene never crosses.
    """
    grounds: dict[Tile, list[Tile]] = {}
    for area in _areas(places):
        corner = Tile(area[0].z, min(each.x for each in area), min(each.y for each in area))
        for place in area:
            x, y = (
                start + (at - start) // _GROUND_TILES * _GROUND_TILES
                for start, at in zip(corner[1:], place[1:], strict=True)
            )
            grounds.setdefault(Tile(place.z, x, y), []).append(place)
    found = []
    for corner, there in sorted(grounds.items()):
        free = np.zeros((_GROUND_TILES, _GROUND_TILES), bool)
        for place in there:
            free[place.y - corner.y, place.x - corner.x] = True
        found += [
            SceneGrid(corner.z, corner.x + column, corner.y + row, columns, rows)
            for row, column, rows, columns in _rectangles(free)
        ]
    return found


def _areas(places: set[Tile]) -> Iterator[list[Tile]]:
    """Tiles that touch side by side, area by area."""
    left = set(places)
    for first in sorted(places):
        if first not in left:
            continue
        left.remove(first)
        area = [first]
        for z, x, y in area:  # which grows meanwhile
            for near in (Tile(z, x - 1, y), Tile(z, x + 1, y), Tile(z, x, y - 1), Tile(z, x, y + 1)):
                if near in left:
                    left.remove(near)
                    area.append(near)
        yield area


def _rectangles(free: Bool[np.ndarray[Any, Any], "rows columns"]) -> Iterator[tuple[int, int, int, int]]:
    """Row, column, rows and columns of full rectangles, largest first; takes them out of `free`."""
    sides = range(SCENE_LEAST_TILES, SCENE_MOST_TILES + 1)
    for rows, columns in sorted(itertools.product(sides, sides), key=lambda size: (-size[0] * size[1], size)):
        while free.sum() >= rows * columns:
            summed = np.pad(free.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
            filled = (
                summed[rows:, columns:]
                - summed[:-rows, columns:]
                - summed[rows:, :-columns]
                + summed[:-rows, :-columns]
            )
            corners = np.argwhere(filled == rows * columns)
            if not len(corners):
                break
            row, column = corners[0].tolist()
            free[row : row + rows, column : column + columns] = False
            yield row, column, rows, columns


def _tiles(dataset: MagcDataset) -> Iterator[Item]:
    for number, (key, (height_px, width_px)) in enumerate(zip(dataset.keys, dataset.sizes_px.tolist(), strict=True)):
        yield Item(On.TILES, key, width_px, height_px, (number,))


def _scenes(dataset: MagcDataset) -> Iterator[Item]:
    numbers = {neighbourhood(key): number for number, key in enumerate(dataset.keys)}
    for grid in scene_grids(set(numbers)):
        samples = tuple(numbers[place] for place in grid.places())
        key = f"{dataset.keys[samples[0]]}_{grid.columns}x{grid.rows}"
        yield Item(On.SCENES, key, grid.columns * TILE_SIZE_PX, grid.rows * TILE_SIZE_PX, samples)


def neighbourhood(key: str) -> Tile:
    """A place whose neighbours lie on one pixel grid: with constant ground resolution, only rows of one band do."""
    tile = parse_key(key)
    return tile if isinstance(tile, Tile) else Tile(tile.band.first_row, tile.x, tile.y)


def _check_alike(data: Path, items: Sequence[Item]) -> None:
    """Refuse pictures of which some have more patches a cut than others: distances between sets are of all alike."""
    first = {each.on: each for each in reversed(items)}
    for each in items:
        if len(_patches_of_a_cut(each)) != len(_patches_of_a_cut(first[each.on])):
            sizes = " and ".join(f"{one.key} of {one.width_px}x{one.height_px}" for one in (first[each.on], each))
            raise DataError(
                f"{data} holds {sizes} pixels, which are not measured alike: put pictures of at least {CUT_PX} px a "
                "side and smaller ones into folders of their own"
            )


def _patches_of_a_cut(item: Item) -> tuple[tuple[int, int], ...]:
    return patch_corners(min(item.height_px, CUT_PX), min(item.width_px, CUT_PX))


def _pictures(folder: Path, source: ImageFolder) -> dict[On, list[Item]]:
    names: set[str] = set()
    found: dict[On, list[Item]] = {On.TILES: [], On.SCENES: []}
    for number, (key, (height_px, width_px)) in enumerate(zip(source.keys, source.sizes_px.tolist(), strict=True)):
        on = On.SCENES if min(height_px, width_px) >= SCENE_LEAST_TILES * TILE_SIZE_PX else On.TILES
        name = Path(key).with_suffix("").as_posix()
        if name in names:
            raise DataError(f"two pictures of {folder} are called {name}: names without their suffix tell them apart")
        names.add(name)
        found[on].append(Item(on, name, width_px, height_px, (number,)))
    return found
