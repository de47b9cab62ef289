"""`split-certificate.json`: what a split kept apart, measured on the dataset as it is, and the check of it.

The certificate is measured, not derived: it looks at the index's `split` column and at the pictures, whatever put them
there. The check measures again, and besides derives each tile's side anew from the settings.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from magc_data.errors import WAY_OUT, DatasetError, UsageError
from magc_data.ground_grid import GroundGrid, GroundTile, grid_of
from magc_data.shards.index import FRACTION_PREFIX, INDEX_NAME
from magc_data.shards.reader import read_member
from magc_data.splits.ground import rects_of_boxes, smallest_gap_of_rects_m
from magc_data.splits.near_duplicates import MAX_BITS_APART, METHOD, near_duplicates, perceptual_hash
from magc_data.splits.sides import LEFT_OUT, SIDES, Ground, Settings, Tiles, almost_empty, assign, divergence_bits

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray

    from magc_data.progress import Progress
    from magc_data.splits.sides import SideIds

CERTIFICATE_NAME = "split-certificate.json"
LEFT_OUT_FOLDER = "left-out"
GROUND_ZOOM = 17
"""Tiles of constant ground resolution are measured in tile coordinates of this zoom."""


class Facts(NamedTuple):
    """What of a dataset a split and its certificate need."""

    tiles: Tiles
    class_names: tuple[str, ...]
    keys: NDArray[np.object_]


def read_facts(data: Path, rows: pa.Table, manifest: dict[str, Any]) -> Facts:
    """Take them from a dataset's index and manifest; tiles keep the index's order.

    Raises:
        DatasetError: the two do not know the same classes.
    """
    names = tuple(each["name"] for each in manifest["classes"])
    if missing := [name for name in names if FRACTION_PREFIX + name not in rows.column_names]:
        raise DatasetError(f"{data / INDEX_NAME} lacks the column '{FRACTION_PREFIX}{missing[0]}': {WAY_OUT}")
    shares = np.column_stack([rows[FRACTION_PREFIX + name].to_numpy() for name in names]).astype(np.float64)
    colors = np.array([each["color"] for each in manifest["classes"]], dtype=np.float64)
    x, y = (rows[name].to_numpy().astype(np.int64) for name in ("x", "y"))
    keys = rows["key"].to_pylist()
    grid = grid_of(manifest)
    zoom, ground = grid if isinstance(grid, int) else GROUND_ZOOM, None
    if isinstance(grid, GroundGrid):
        places = zip(x.tolist(), y.tolist(), strict=True)
        boxes = np.array([GroundTile(grid.gsd_mm, *place).bounds_lonlat for place in places])
        ground = Ground(grid.tile_m, rects_of_boxes(boxes.reshape(-1, 4), GROUND_ZOOM))
    tiles = Tiles(zoom, x, y, shares, almost_empty(shares, colors), ground)
    return Facts(tiles, names, np.array(keys, dtype=object))


def sides_of_column(splits: list[str | None]) -> SideIds:
    """The index's `split` column as numbers.

    Raises:
        DatasetError: it names a side that there is not.
    """
    numbers = {None: LEFT_OUT} | {name: number for number, name in enumerate(SIDES)}
    try:
        return np.array([numbers[each] for each in splits], dtype=np.int8)
    except KeyError as error:
        raise DatasetError(f"the index names the split {error}: expected {', '.join(SIDES)} or none") from None


def read_hashes(
    data: Path, manifest: dict[str, Any], rows: pa.Table, progress: Progress | None = None
) -> NDArray[np.uint64] | None:
    """Perceptual hash of each tile's picture; None where there are maps alone.

    Raises:
        DatasetError: a picture cannot be read.
    """
    if "imagery" not in manifest["sources"]:
        return None
    hashes = np.zeros(len(rows), dtype=np.uint64)
    number = 0
    for batch in rows.to_batches(4096):
        for row in batch.to_pylist():
            image = read_member(data, row, "image")
            try:
                hashes[number] = perceptual_hash(image)
            # Pillow's plugins raise whatever they come across in damaged files.
            except Exception as error:  # noqa: BLE001 - see above
                raise DatasetError(
                    f"the image of {row['key']} in {data / row['shard']} cannot be decoded "
                    f"({type(error).__name__}): {WAY_OUT}"
                ) from None
            number += 1
            if progress:
                progress.tile_fetched()
    return hashes


def certificate(
    facts: Facts, sides: SideIds, hashes: NDArray[np.uint64] | None, settings: Settings, left_out: dict[str, int]
) -> dict[str, Any]:
    """Measure a split; without pictures (`hashes` is None) near-duplicates are not looked for."""
    # One order whatever the shards': sums and examples come out the same before the tiles are moved and after.
    order = np.lexsort([facts.tiles.x, facts.tiles.y])
    tiles = facts.tiles.chosen(order)
    keys, sides = facts.keys[order], sides[order]
    totals = np.stack([tiles.class_shares[sides == side].sum(axis=0) for side in range(len(SIDES))])
    weights = totals.sum(axis=1) / max(totals.sum(), 1e-300)
    distance_m = smallest_gap_of_rects_m(tiles.rects, sides, tiles.zoom)
    return {
        "settings": settings.as_json(),
        "sides": {
            name: _side(facts, sides == side, tiles, totals.sum(axis=0), settings)
            for side, name in enumerate(SIDES)
            if (sides == side).any()
        },
        "left_out": {"tiles": int(np.count_nonzero(sides == LEFT_OUT)), **left_out},
        "divergence_bits": round(divergence_bits(totals, weights), 6),
        "smallest_distance_m": None if distance_m is None else round(distance_m, 2),
        "near_duplicates": None if hashes is None else _near_duplicates(hashes[order], sides, keys),
    }


def _near_duplicates(hashes: NDArray[np.uint64], sides: SideIds, keys: NDArray[np.object_]) -> dict[str, Any]:
    found = near_duplicates(hashes, sides)
    return {
        "method": METHOD,
        "at_most_bits_apart": MAX_BITS_APART,
        "pairs": found.pairs,
        "examples": [{"tiles": [str(keys[a]), str(keys[b])], "bits_apart": bits} for a, b, bits in found.examples],
    }


def _side(
    facts: Facts,
    chosen: NDArray[np.bool_],
    tiles: Tiles,
    all_sides: NDArray[np.float64],
    settings: Settings,
) -> dict[str, Any]:
    total = tiles.class_shares[chosen].sum(axis=0)
    mixes = np.stack([total, all_sides])
    places = np.unique(tiles.chosen(chosen).places(settings.block_m), axis=1)
    return {
        "tiles": int(np.count_nonzero(chosen)),
        "blocks": int(places.shape[1]),
        "almost_empty_share": round(float(tiles.almost_empty[chosen].mean()), 6),
        "divergence_bits": round(divergence_bits(mixes, np.array([0.5, 0.5])), 6),
        "class_shares": {
            name: round(float(share), 6)
            for name, share in zip(facts.class_names, total / total.sum(), strict=True)
            if share
        },
    }


class Measured(NamedTuple):
    """A split as it is on disk."""

    certificate: dict[str, Any]
    misplaced: tuple[str, ...]
    """Keys of tiles that are on another side than the settings put them."""


def measure(data: Path, manifest: dict[str, Any], rows: pa.Table, progress: Progress | None = None) -> Measured:
    """Measure the split of a dataset that is split.

    Raises:
        DatasetError: the settings are damaged, or a picture is.
    """
    try:
        settings = Settings.from_json(manifest["split"]["settings"])
    except (ValueError, KeyError, TypeError, UsageError) as error:
        raise DatasetError(f"the split's settings are damaged ({error}): undo the split and split again") from None
    facts = read_facts(data, rows, manifest)
    sides = sides_of_column(rows["split"].to_pylist())
    derived = assign(facts.tiles, settings)
    hashes = read_hashes(data, manifest, rows, progress)
    return Measured(
        certificate(facts, sides, hashes, settings, derived.left_out),
        tuple(facts.keys[np.flatnonzero(derived.sides != sides)].tolist()),
    )


def check_certificate(
    data: Path, manifest: dict[str, Any], rows: pa.Table, progress: Progress | None = None
) -> Iterator[str]:
    """What is wrong with a dataset's split and its certificate, a sentence each; a view is left to its base."""
    if "view" in manifest:
        return
    path = data / CERTIFICATE_NAME
    if "split" not in manifest:
        if rows["split"].null_count < len(rows):
            yield "the index has rows with a split, although the manifest knows of none"
        if path.exists():
            yield f"{CERTIFICATE_NAME} is there, although the dataset is not split"
        return
    for shard, split in sorted(set(zip(rows["shard"].to_pylist(), rows["split"].to_pylist(), strict=True)), key=str):
        if str(shard).partition("/")[0] != folder_of(split):
            yield f"rows of {shard} are of the split {split}: expected the folder {folder_of(split)}"
    try:
        measured = measure(data, manifest, rows, progress)
    except DatasetError as error:
        yield f"{CERTIFICATE_NAME} cannot be checked, as {error}"
        return
    if measured.misplaced:
        yield (
            f"{len(measured.misplaced)} tiles are on another side than the settings put them, "
            f"{measured.misplaced[0]} the first of them"
        )
    try:
        stated = json.loads(path.read_bytes())
    except OSError:
        yield f"{CERTIFICATE_NAME} is missing although the dataset is split: `magc-data heal` measures it again"
    except (ValueError, RecursionError) as error:
        yield f"{CERTIFICATE_NAME} is damaged ({error}): `magc-data heal` measures it again"
    else:
        differences = _differences("", stated, measured.certificate)
        yield from (f"{CERTIFICATE_NAME} {difference}" for difference in differences)


def folder_of(split: str | None) -> str:
    """The folder of a side's shards; tiles on no side have one too, so that a split can be undone."""
    return LEFT_OUT_FOLDER if split is None else split


def _differences(name: str, stated: Any, measured: Any) -> Iterator[str]:
    """Where two documents differ by more than the last digit."""
    if isinstance(stated, dict) and isinstance(measured, dict):
        for key in sorted(stated.keys() | measured.keys()):
            yield from _differences(f"{name}.{key}" if name else key, stated.get(key), measured.get(key))
    elif isinstance(stated, float | int) and isinstance(measured, float | int):
        if abs(stated - measured) > (0 if isinstance(measured, int) else 2e-6 + 1e-6 * abs(measured)):
            yield f"says {name} is {stated}, measured {measured}"
    elif stated != measured:
        yield f"says {name} is {_short(stated)}, measured {_short(measured)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:97] + "..."
