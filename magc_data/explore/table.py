"""What the page knows of a dataset without its pictures: places, splits, class shares and what else was measured."""

from __future__ import annotations

import base64
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from magc_data.errors import DatasetError, UsageError
from magc_data.grid import TILE_SIZE_PX, lonlat_to_px
from magc_data.ground_grid import GroundGrid, grid_of, parse_key
from magc_data.schema.classes import SemanticClass
from magc_data.shards.index import FRACTION_PREFIX, SAMPLE_COLUMNS
from magc_data.shards.manifest import read_manifest
from magc_data.shards.reader import read_index

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from numpy.typing import DTypeLike

MAX_TILES = 500_000
"""Above this the page itself, without a single picture, is too big for browsers to be pleasant."""

Color = tuple[int, int, int]

_SPLIT_COLORS: dict[str, Color] = {"train": (74, 122, 182), "val": (226, 160, 63), "test": (204, 84, 66)}
OTHER_SPLIT_COLOR: Color = (126, 96, 176)
NO_SPLIT_COLOR: Color = (138, 148, 146)

_NEEDED = ("key", "x", "y", "gsd_m", "shard", "image_format")
_WORDS = ("split", "capture_date", "osm_timestamp", "shard")
_SOURCE_WORDS = ("name", "licence", "attribution", "terms")


def split_color(name: str | None) -> Color:
    """The colour of a split; None is in no split."""
    return NO_SPLIT_COLOR if name is None else _SPLIT_COLORS.get(name, OTHER_SPLIT_COLOR)


class ExploreTable(NamedTuple):
    """The rows of a dataset that are shown, and what is said of the whole."""

    data: Path
    manifest: dict[str, Any]
    classes: tuple[SemanticClass, ...]
    rows: pa.Table
    """Of the index, all columns."""

    @property
    def title(self) -> str:
        """The folder's name."""
        return self.data.resolve().name

    @property
    def measured(self) -> list[str]:
        """Numbers of each tile beyond those that every index has, such as quality signals."""
        return [
            field.name
            for field in self.rows.schema
            if field.name not in SAMPLE_COLUMNS
            and not field.name.startswith(FRACTION_PREFIX)
            and (pa.types.is_integer(field.type) or pa.types.is_floating(field.type) or pa.types.is_boolean(field.type))
            and self.rows[field.name].null_count < len(self.rows)
        ]

    def row(self, number: int) -> dict[str, Any]:
        """One index row."""
        return dict(self.rows.slice(number, 1).to_pylist()[0])

    def fractions(self, name: str) -> pa.ChunkedArray | None:
        """The tiles' shares of a class, or None where the index has no such column."""
        column = FRACTION_PREFIX + name
        return self.rows[column] if column in self.rows.column_names else None


def read_table(data: Path, keys: Collection[str] | None = None) -> ExploreTable:
    """Read what the page shows of a dataset or view: all of it, or the tiles with these keys.

    Raises:
        DatasetError: not a finished dataset, a damaged one, or one without a tile to show.
        UsageError: more tiles than a page can show.
    """
    manifest = read_manifest(data)
    rows = read_index(data)
    if keys is not None:
        rows = rows.filter(pc.is_in(rows["key"], pa.array(list(keys), pa.string())))
    if not len(rows):
        raise DatasetError(f"{data} holds no tile to show: `magc-data stats {data}` says why tiles were rejected")
    if len(rows) > MAX_TILES:
        raise UsageError(
            f"{data} has {len(rows):,} tiles, a page shows up to {MAX_TILES:,}: make a view of a part with "
            "`magc-data filter` and explore that"
        )
    if "imagery" not in manifest["sources"]:
        raise UsageError(f"{data} holds maps alone, and this page is for images beside maps: use `magc-data preview`")
    if empty := [name for name in _NEEDED if rows[name].null_count]:
        raise DatasetError(f"the index of {data} has rows without '{empty[0]}': build the dataset again")
    classes = tuple(SemanticClass(each["id"], each["name"], tuple(each["color"])) for each in manifest["classes"])
    return ExploreTable(data, manifest, classes, rows)


def packed(values: Any, dtype: DTypeLike) -> str:
    """Numbers as base64 of little-endian values; null becomes NaN where the type has it."""
    if isinstance(values, (pa.ChunkedArray, pa.Array)):
        values = values.to_numpy()
    # Python's None and numpy's masked integers both arrive as objects or floats here.
    array = np.asarray(values).astype(np.dtype(dtype).newbyteorder("<"))
    return base64.b64encode(array.tobytes()).decode()


def page_facts(table: ExploreTable) -> dict[str, Any]:
    """Everything that the page's script reads, but for the pictures; ready for JSON."""
    rows, manifest = table.rows, table.manifest
    return {
        "title": table.title,
        "planned": manifest["counts"]["planned"],
        "scheme": manifest["scheme"],
        "magc_version": manifest["magc_version"],
        "sources": [
            {"role": role, "redistributable": source["redistributable"]}
            | {word: source[word] for word in _SOURCE_WORDS}
            for role, source in manifest["sources"].items()
        ],
        "keys": rows["key"].to_pylist(),
        **_places(table),
        "gsd_m": packed(rows["gsd_m"], np.float32),
        "classes": [
            {"name": each.name, "color": list(each.color), "share": packed(shares, np.float32)}
            for each in table.classes
            if (shares := table.fractions(each.name)) is not None
        ],
        "measured": [
            {"name": name, "values": packed(pc.cast(rows[name], pa.float32()), np.float32)} for name in table.measured
        ],
        "split_colors": {name: split_color(name) for name in pc.unique(rows["split"]).to_pylist() if name is not None},
        "no_split_color": NO_SPLIT_COLOR,
        "words": {name: _dictionary(rows[name]) for name in _WORDS},
    }


def _places(table: ExploreTable) -> dict[str, Any]:
    """Where the tiles are on the page's plane, which is web-mercator's."""
    rows, grid = table.rows, grid_of(table.manifest)
    if not isinstance(grid, GroundGrid):
        return {name: packed(rows[name], kind) for name, kind in (("z", np.uint8), ("x", np.int32), ("y", np.int32))}
    boxes = np.array([parse_key(key).bounds_lonlat for key in rows["key"].to_pylist()])
    # The first zoom at which every square is as wide as a tile, or wider: no two have their centres in one tile.
    zoom = math.ceil(math.log2(360 / float((boxes[:, 2] - boxes[:, 0]).min())))
    west, south, east, north = boxes.T
    left, upper = (each / TILE_SIZE_PX for each in lonlat_to_px(west, north, zoom))
    right, lower = (each / TILE_SIZE_PX for each in lonlat_to_px(east, south, zoom))
    side = right - left
    # Squares of one height in degrees are a little higher or lower here: what counts is the middle.
    top = (upper + lower - side) / 2
    return {
        "z": packed(np.full(len(rows), zoom), np.uint8),
        "x": packed(np.floor(left + side / 2), np.int32),
        "y": packed(np.floor(top + side / 2), np.int32),
        "squares": {
            "left": packed(left, np.float64), "top": packed(top, np.float64), "side": packed(side, np.float64),
        },
    }  # fmt: skip


def _dictionary(column: pa.ChunkedArray) -> dict[str, Any]:
    """Texts that repeat: the different ones once, and for each row which (0 is null)."""
    encoded = column.dictionary_encode().combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.chunk(0)
    codes = pc.add(pc.fill_null(pc.cast(encoded.indices, pa.int32()), -1), 1)
    return {"values": encoded.dictionary.to_pylist(), "codes": packed(codes, np.int32)}
