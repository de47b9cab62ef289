"""What changed between two datasets of one place: tiles that came and went, images, maps pixel by pixel, classes.

The indexes say which tiles differ; only those are read and decoded, one at a time.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from magc_data.errors import DatasetError, UsageError
from magc_data.ground_grid import grid_text
from magc_data.schema.sample import TILE_SIZE_PX
from magc_data.shards.index import FRACTION_PREFIX
from magc_data.shards.manifest import read_manifest
from magc_data.shards.reader import read_image, read_index, read_map

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray

    from magc_data.progress import Progress

_PLACES = ["key", "shard", "map_offset", "map_size", "image_offset", "image_size"]
_COLUMNS = [*_PLACES, "gsd_m", "map_sha256", "image_sha256", "osm_timestamp"]
_ROWS_AT_ONCE = 1024
_MOST_FLOWS = 15
_TILE_PX = TILE_SIZE_PX * TILE_SIZE_PX


class TileChange(NamedTuple):
    """A tile that is in both datasets and not the same."""

    key: str
    map_pixels: int
    """Pixels of another class; 0 too where only the file differs."""
    image_difference: float
    """Mean absolute difference of the images, in levels of 255; 0 where they are the same or not compared."""

    @property
    def weight(self) -> float:
        """How much of a change it is, to put the most changed first."""
        return self.map_pixels / _TILE_PX + self.image_difference / 255


class Side(NamedTuple):
    """One of the two datasets."""

    data: Path | str
    samples: int
    has_images: bool
    osm_timestamp: str | None
    """The latest of its maps, where known."""


class Difference(NamedTuple):
    """What changed from one dataset (before) to the other (after)."""

    before: Side
    after: Side
    class_names: tuple[str, ...]
    only_before: tuple[str, ...]
    """Keys of tiles that went."""
    only_after: tuple[str, ...]
    """Keys of tiles that came."""
    common: int
    """Tiles in both, which all of the following is about."""
    changes: tuple[TileChange, ...]
    """In the order of the first dataset."""
    images_changed: int | None
    """None where a dataset has no images."""
    maps_changed: int
    """Maps with a pixel of another class."""
    pixels: NDArray[np.int64]
    """From class (row) to class (column), unchanged pixels on the diagonal, shape [classes, classes]."""
    ground_m2: NDArray[np.float64]
    """The same off the diagonal in square metres on the ground."""
    examples: NDArray[np.int64]
    """Where each kind of change is largest: a number of `changes`, shape [classes, classes]."""

    @property
    def pixels_changed(self) -> int:
        """Pixels of another class."""
        return int(self.pixels.sum() - np.trace(self.pixels))

    def most_telling(self, count: int) -> list[TileChange]:
        """Tiles to look at: where each kind of change is largest, the most frequent kind first; then the most changed.

        The most changed alone are often all of one kind, a forest that nobody had drawn before.
        """
        of_flows = (self.changes[self.examples[flow.old, flow.new]] for flow in flows(self))
        most_changed = heapq.nlargest(count, self.changes, key=lambda change: change.weight)
        return list(dict.fromkeys([*of_flows, *most_changed]))[:count]


def difference(before: Path | str, after: Path | str, progress: Progress | None = None) -> Difference:
    """Compare two datasets.

    Args:
        before: one dataset.
        after: the other; zoom and classes must be the same.
        progress: counts the tiles that are in both.

    Raises:
        UsageError: they cannot be compared.
        DatasetError: one is unfinished or damaged.
    """
    manifests = read_manifest(before), read_manifest(after)
    _refuse_incomparable((before, after), manifests)
    ids = [each["id"] for each in manifests[0]["classes"]]
    names = tuple(each["name"] for each in manifests[0]["classes"])
    columns = [*_COLUMNS, *(FRACTION_PREFIX + name for name in names)]
    tables = read_index(before, columns), read_index(after, columns)
    sides = tuple(
        Side(data, len(rows), "imagery" in manifest["sources"], pc.max(rows["osm_timestamp"]).as_py())
        for data, manifest, rows in zip((before, after), manifests, tables, strict=True)
    )
    places = pc.index_in(tables[0]["key"], value_set=tables[1]["key"].combine_chunks())
    old, new = tables[0].filter(pc.is_valid(places)), tables[1].take(places.drop_null())
    went = tables[0]["key"].filter(pc.is_null(places))
    came = tables[1]["key"].filter(pc.invert(pc.is_in(tables[1]["key"], value_set=tables[0]["key"].combine_chunks())))

    maps_differ = pc.not_equal(old["map_sha256"], new["map_sha256"])
    both_have_images = all(side.has_images for side in sides)
    images_differ = pc.not_equal(old["image_sha256"], new["image_sha256"]) if both_have_images else None
    differ = maps_differ if images_differ is None else pc.or_(maps_differ, images_differ)
    # Where the maps are the same, the index says how many pixels of each class stay what they are.
    pixels = np.diag(_pixels_of_classes(old.filter(pc.invert(maps_differ)), names))
    ground_m2 = np.zeros(pixels.shape)
    if progress:
        progress.block_finished(len(old) - pc.sum(differ, min_count=0).as_py(), 0)
    most, examples = np.zeros_like(pixels), np.zeros_like(pixels)
    changes: list[TileChange] = []
    for old_row, new_row in zip(_rows(old.filter(differ)), _rows(new.filter(differ)), strict=True):
        map_pixels = 0
        if old_row["map_sha256"] != new_row["map_sha256"]:
            moved = _moved_pixels(read_map(before, old_row), read_map(after, new_row), ids, old_row["key"])
            map_pixels = int(moved.sum() - np.trace(moved))
            pixels += moved
            examples[moved > most] = len(changes)
            most = np.maximum(most, moved)
            ground_m2 += (moved - np.diag(np.diag(moved))) * old_row["gsd_m"] ** 2
        image_difference = 0.0
        if both_have_images and old_row["image_sha256"] != new_row["image_sha256"]:
            image_difference = _mean_difference(read_image(before, old_row), read_image(after, new_row))
        changes.append(TileChange(old_row["key"], map_pixels, image_difference))
        if progress:
            progress.block_finished(1, 0)
    return Difference(
        before=sides[0],
        after=sides[1],
        class_names=names,
        only_before=tuple(went.to_pylist()),
        only_after=tuple(came.to_pylist()),
        common=len(old),
        changes=tuple(changes),
        images_changed=None if images_differ is None else pc.sum(images_differ, min_count=0).as_py(),
        maps_changed=sum(change.map_pixels > 0 for change in changes),
        pixels=pixels,
        ground_m2=ground_m2,
        examples=examples,
    )


def _refuse_incomparable(data: tuple[Path | str, Path | str], manifests: tuple[dict[str, Any], dict[str, Any]]) -> None:
    grids = [grid_text(manifest) for manifest in manifests]
    if grids[0] != grids[1]:
        raise UsageError(
            f"{data[0]} is of {grids[0]} and {data[1]} of {grids[1]}: only datasets of one zoom (or --gsd) have tiles "
            "in common; build one of them again as the other"
        )
    classes = [[(each["id"], each["name"]) for each in manifest["classes"]] for manifest in manifests]
    if classes[0] != classes[1]:
        raise UsageError(
            f"{data[0]} has the classes of scheme {manifests[0]['scheme']} and {data[1]} those of "
            f"{manifests[1]['scheme']}: only maps of the same classes can be compared; build one of them again with "
            "the other's --scheme"
        )


def _pixels_of_classes(rows: pa.Table, names: tuple[str, ...]) -> NDArray[np.int64]:
    """How many pixels of each class the maps of some rows have, shape [classes]."""
    shares = [pc.sum(rows[FRACTION_PREFIX + name].cast("float64"), min_count=0).as_py() for name in names]
    return np.asarray(np.rint(np.array(shares) * _TILE_PX), np.int64)


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.select(_COLUMNS).to_batches(_ROWS_AT_ONCE):
        yield from batch.to_pylist()


def _moved_pixels(old: NDArray[np.uint8], new: NDArray[np.uint8], ids: list[int], key: str) -> NDArray[np.int64]:
    """How many pixels went from which class to which, shape [classes, classes]."""
    width = max(ids) + 1
    moved = np.zeros((len(ids), len(ids)), np.int64)
    if max(old.max(), new.max()) < width:
        counts = np.bincount((old.astype(np.intp) * width + new).ravel(), minlength=width**2).reshape(width, width)
        moved = counts[np.ix_(ids, ids)]
    if moved.sum() != old.size:
        raise DatasetError(
            f"a map of {key} holds a class that is not in the class table: `magc-data verify` says in which dataset"
        )
    return moved


def _mean_difference(old: NDArray[np.uint8], new: NDArray[np.uint8]) -> float:
    return float(np.abs(old.astype(np.int16) - new).mean())


class Flow(NamedTuple):
    """Pixels that went from one class to another."""

    old: int
    """Place in `class_names`."""
    new: int
    pixels: int
    ground_m2: float


def flows(found: Difference) -> list[Flow]:
    """Every change from one class to another that occurs, the largest first."""
    off_diagonal = found.pixels - np.diag(np.diag(found.pixels))
    moved = [
        Flow(old, new, int(off_diagonal[old, new]), float(found.ground_m2[old, new]))
        for old, new in np.argwhere(off_diagonal).tolist()
    ]
    return sorted(moved, key=lambda flow: -flow.pixels)


def as_text(found: Difference) -> str:
    """The difference as a person reads it."""
    lines = []
    for name, side in (("before", found.before), ("after", found.after)):
        maps_of = f", maps of {side.osm_timestamp}" if side.osm_timestamp else ""
        lines.append(f"{name:<11}{side.data}: {side.samples} samples{maps_of}")
    lines.append(
        f"tiles      {found.common} in both, {len(found.only_before)} only before, {len(found.only_after)} only after"
    )
    if found.images_changed is None:
        without = [str(side.data) for side in (found.before, found.after) if not side.has_images]
        lines.append(f"images     not compared: {' and '.join(without)} without images")
    else:
        lines.append(f"images     {found.images_changed} of {found.common} changed")
    total = int(found.pixels.sum())
    share = f" ({found.pixels_changed / total:.2%})" if total else ""
    lines.append(
        f"maps       {found.maps_changed} of {found.common} changed, in {found.pixels_changed} of {total} pixels{share}"
    )
    if found.pixels_changed:
        lines += ["", "class              before     after     change", *_share_lines(found)]
        moved, names = flows(found), found.class_names
        lines += ["", "from             to                  pixels         ha"]
        lines += [
            f"{names[flow.old]:<16} {names[flow.new]:<16} {flow.pixels:>9} {flow.ground_m2 / 1e4:>10.2f}"
            for flow in moved[:_MOST_FLOWS]
        ]
        if rest := moved[_MOST_FLOWS:]:
            pixels, ground_m2 = sum(flow.pixels for flow in rest), sum(flow.ground_m2 for flow in rest)
            lines.append(f"{f'{len(rest)} others (--json)':<33} {pixels:>9} {ground_m2 / 1e4:>10.2f}")
    return "\n".join(lines)


def _share_lines(found: Difference) -> Iterator[str]:
    total = found.pixels.sum()
    for name, old, new in zip(found.class_names, found.pixels.sum(axis=1), found.pixels.sum(axis=0), strict=True):
        if old or new:
            yield f"{name:<16} {old / total:>8.3%} {new / total:>9.3%} {(new - old) / total:>+10.3%}"


def as_json(found: Difference) -> dict[str, Any]:
    """The difference as a machine reads it."""
    totals = zip(found.class_names, found.pixels.sum(axis=1).tolist(), found.pixels.sum(axis=0).tolist(), strict=True)
    return {
        **{
            name: {**side._asdict(), "data": str(side.data)}
            for name, side in (("before", found.before), ("after", found.after))
        },
        "common": found.common,
        "only_before": found.only_before,
        "only_after": found.only_after,
        "images_changed": found.images_changed,
        "maps_changed": found.maps_changed,
        "pixels_changed": found.pixels_changed,
        "classes": [{"name": name, "pixels_before": old, "pixels_after": new} for name, old, new in totals],
        "pixels_from_to": found.pixels.tolist(),
        "ground_m2_from_to": found.ground_m2.tolist(),
        "changes": [change._asdict() for change in found.changes],
    }
