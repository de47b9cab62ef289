"""Divide a dataset into train, val and test by squares of ground; undo it; do it again otherwise.

    index -> sides -> refuse? -> certificate -> repacked shards, index, manifest

A tile's side depends on where the tile is and on the settings, and on nothing else (splits/blocks.py): when a dataset
grows, no block changes sides.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from magc_data.errors import WAY_OUT, DatasetError, UsageError
from magc_data.ground_grid import grid_text, parse_key
from magc_data.progress import Progress
from magc_data.shards.folder import ATTRIBUTION_NAME, REJECTED_NAME, DatasetFolder
from magc_data.shards.manifest import MANIFEST_NAME, PART_FIELD, REPACK_NAME, attribution_text, read_manifest, to_json
from magc_data.shards.reader import read_index
from magc_data.shards.repack import NewShard, Repacking, check_shards, discard, finish, repack, sample_sizes
from magc_data.splits.blocks import hashed
from magc_data.splits.certificate import (
    CERTIFICATE_NAME,
    Facts,
    certificate,
    folder_of,
    read_facts,
    read_hashes,
)
from magc_data.splits.sides import (
    LEFT_OUT,
    SIDES,
    Settings,
    assign,
    check_settings,
    refuse_if_too_small,
    stratified_seed,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from magc_data.config import SplitConfig
    from magc_data.splits.sides import SideIds

DEFAULT_RATIOS = "0.8,0.1,0.1"
BLOCK_FOLDER = "shards"
FOLDERS = (BLOCK_FOLDER, *SIDES, folder_of(None))
_SHUFFLE_SALT = 0x73687566
"""Keeps the order within shards apart from other draws."""


class SplitResult(NamedTuple):
    """What a split came to."""

    certificate: dict[str, Any]
    was_split: bool
    """True if the dataset was split so already and nothing was done."""


def settings_of(config: SplitConfig) -> Settings:
    """Read a configuration's texts.

    Raises:
        UsageError: one cannot be read, or means nothing.
    """
    if config.shard_mb < 1:
        raise UsageError(f"--shard-mb is {config.shard_mb}: expected 1 or more")
    sizes = None if config.sizes is None else _read_sizes(config.sizes)
    ratios = _read_ratios(config.ratios or DEFAULT_RATIOS) if config.ratios or sizes is None else None
    balance = {} if config.balance is None else _read_named("--balance", config.balance, {"empty": float})
    settings = Settings(float(config.block_m), ratios, sizes, config.seed, float(config.buffer_m), balance.get("empty"))
    check_settings(settings)
    return settings


def _read_ratios(text: str) -> tuple[float, float, float]:
    try:
        train, val, test = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--ratios is '{text}': expected three numbers, as in {DEFAULT_RATIOS}") from None
    if not all(map(math.isfinite, (train, val, test))):
        raise UsageError(f"--ratios is '{text}': expected shares of train, val and test that add up to 1")
    return train, val, test


def _read_sizes(text: str) -> tuple[int, int, int]:
    values = _read_named("--sizes", text, dict.fromkeys(SIDES, int))
    train, val, test = (int(values.get(name, 0)) for name in SIDES)
    return train, val, test


def _read_named(option: str, text: str, kinds: dict[str, type]) -> dict[str, Any]:
    """Read `name=number,name=number`."""
    values: dict[str, Any] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        wrong = UsageError(f"{option} is '{text}': expected {', '.join(f'{each}=NUMBER' for each in kinds)}, each once")
        if name in values:
            raise wrong
        try:
            values[name] = kinds[name](value)
        except (KeyError, ValueError):
            raise wrong from None
    return values


def split(data: Path, config: SplitConfig, *, quiet: bool = False) -> SplitResult:
    """Divide a dataset in place, or into a new folder.

    Ended at any instant, the same command goes on and ends in the same bytes.

    Raises:
        UsageError: the settings mean nothing, or the dataset is too small for them.
        DatasetError: the dataset is damaged or unfinished, or a shard of it is.
    """
    settings = settings_of(config)
    if config.out is None:
        _refuse_no_dataset(data)
        target = data
    else:
        read_manifest(data)
        target = config.out
        if target.resolve() == data.resolve():
            raise UsageError(f"--out is {target} itself: leave it away to split in place")
    folder = DatasetFolder(target)
    with folder.locked():
        finish(target)
        _refuse_unfinished_build(folder)
        manifest = read_manifest(data)
        asked: dict[str, Any] = {
            "options": settings.as_json() | {"stratify": config.stratify, "shard_mb": config.shard_mb}
        }
        if target != data:
            asked["source_sha256"] = _source_sha256(manifest)
        if (target / MANIFEST_NAME).exists():
            existing = read_manifest(target).get("split", {})
            if all(existing.get(name) == value for name, value in asked.items()):
                discard(target)
                return SplitResult(_read_certificate(target), was_split=True)
            if target != data:
                raise DatasetError(
                    f"{target} holds another dataset: give --out a new folder, or split {target} itself without --out"
                )
        return SplitResult(_split(data, target, manifest, settings, config, asked, quiet=quiet), was_split=False)


def _split(
    data: Path,
    target: Path,
    manifest: dict[str, Any],
    settings: Settings,
    config: SplitConfig,
    asked: dict[str, Any],
    *,
    quiet: bool,
) -> dict[str, Any]:
    rows = read_index(data)
    if not len(rows):
        raise DatasetError(f"{data} holds no sample to split: `magc-data stats {data}` says why tiles were rejected")
    facts = read_facts(data, rows, manifest)
    least_m = facts.tiles.least_block_m
    if settings.block_m < least_m:
        raise UsageError(
            f"--block-m is {settings.block_m:g}, smaller than a tile: expected {math.ceil(least_m)} or more, "
            f"as a tile of {grid_text(manifest)} is {least_m:.1f} m wide here"
        )
    if config.stratify:
        settings = settings._replace(seed=stratified_seed(facts.tiles, settings))
    assignment = assign(facts.tiles, settings)
    refuse_if_too_small(facts.tiles, settings, assignment)
    source = Path(manifest["view"]["folder"]) if "view" in manifest else data
    with Progress(len(rows), "check", quiet=quiet) as progress:
        check_shards(source, manifest["shards"], progress)
    with Progress(len(rows), "compare", quiet=quiet) as progress:
        hashes = read_hashes(data, manifest, rows, progress)
    document = certificate(facts, assignment.sides, hashes, settings, assignment.left_out)
    names = pa.array([SIDES[side] if side != LEFT_OUT else None for side in assignment.sides.tolist()], pa.string())
    job = Repacking(
        source=data,
        target=target,
        rows=rows.set_column(rows.column_names.index("split"), "split", names),
        shards=_side_shards(rows, facts, assignment.sides, settings.seed, config.shard_mb * 1_000_000),
        manifest=_manifest(
            manifest, rows, {**asked, "settings": settings.as_json(), "blocks": _blocks(manifest, rows)}
        ),
        files={CERTIFICATE_NAME: to_json(document)},
        removed=(),
        folders=FOLDERS,
    )
    if target != data:
        copied = {REJECTED_NAME: (source / REJECTED_NAME).read_bytes()}
        job.files.update(copied | {ATTRIBUTION_NAME: attribution_text(manifest["sources"]).encode()})
    with Progress(len(rows), "split", quiet=quiet) as progress:
        repack(job, progress)
    return document


def _side_shards(rows: pa.Table, facts: Facts, sides: SideIds, seed: int, shard_bytes: int) -> list[NewShard]:
    """Fill shards side by side, in an order that mixes places, for those who read a shard from its start."""
    order = np.argsort(hashed(seed ^ _SHUFFLE_SALT, facts.tiles.x, facts.tiles.y), kind="stable")
    sizes = sample_sizes(rows)
    shards = []
    for side, name in [*enumerate(SIDES), (LEFT_OUT, folder_of(None))]:
        of_side = order[sides[order] == side]
        # A sample belongs to the shard in which its first byte would lie.
        starts = np.cumsum(sizes[of_side]) - sizes[of_side]
        parts = np.split(of_side, np.flatnonzero(np.diff(starts // shard_bytes)) + 1) if len(of_side) else []
        shards += [NewShard(f"{name}/{number:06d}.tar", part) for number, part in enumerate(parts)]
    return shards


def _manifest(manifest: dict[str, Any], rows: pa.Table, split_entry: dict[str, Any]) -> dict[str, Any]:
    """The manifest with its split; that of a view becomes that of a dataset with the view's rows only."""
    document = {name: value for name, value in manifest.items() if name not in ("view", "split", "shards")}
    if "view" in manifest:
        kept, rejected = len(rows), manifest["counts"]["rejected"]
        document["counts"] = manifest["counts"] | {"kept": kept, "planned": kept + sum(rejected.values())}
        document[PART_FIELD] = [*manifest.get(PART_FIELD, []), *manifest["view"]["where"]]
    return document | {"split": split_entry}


def _source_sha256(manifest: dict[str, Any]) -> str:
    """Digest of what a dataset or view holds, wherever it lies."""
    where = manifest.get("view", {}).get("where")
    return hashlib.sha256(to_json(manifest | {"view": where})).hexdigest()


def _block_names(rows: pa.Table) -> list[str]:
    """Name of each tile's block shard."""
    return [f"{BLOCK_FOLDER}/{parse_key(key).block_name}.tar" for key in rows["key"].to_pylist()]


def _blocks(manifest: dict[str, Any], rows: pa.Table) -> list[dict[str, Any]]:
    """The block shards in the order of the build; with their digests where all of their samples are here."""
    before = manifest["split"]["blocks"] if "split" in manifest else manifest["shards"]
    samples = pc.value_counts(pa.array(_block_names(rows)))
    counts = {each["values"]: each["counts"] for each in samples.to_pylist()}
    return [
        {
            "path": entry["path"],
            "samples": counts[entry["path"]],
            "sha256": entry["sha256"] if counts[entry["path"]] == entry["samples"] else None,
        }
        for entry in before
        if entry["path"] in counts
    ]


def as_text(data: Path, result: SplitResult) -> str:
    """What a person wants to know of a split."""
    document = result.certificate
    total = sum(each["tiles"] for each in document["sides"].values())
    lines = [f"{data}: " + ("is split so already, nothing to do" if result.was_split else "split")]
    lines += [
        f"{name:<9} {each['tiles']:>7} tiles ({each['tiles'] / total:.1%}) in {each['blocks']} blocks"
        for name in SIDES
        if (each := document["sides"].get(name))
    ]
    left_out = document["left_out"]
    if left_out["tiles"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if reason != "tiles" and count)
        lines.append(f"left out  {left_out['tiles']:>7} tiles ({reasons})")
    distance_m, duplicates = document["smallest_distance_m"], document["near_duplicates"]
    pairs = "not looked for, as there are no images" if duplicates is None else duplicates["pairs"]
    lines += [
        f"seed {document['settings']['seed']}, blocks of {document['settings']['block_m']:g} m",
        f"smallest distance between tiles of different sides: {'-' if distance_m is None else f'{distance_m:.1f} m'}",
        f"near-duplicate pairs across sides: {pairs}",
        f"divergence of the sides' classes: {document['divergence_bits']:.4f} bits",
    ]
    return "\n".join(lines)


def undo(data: Path, *, quiet: bool = False) -> bool:
    """Give a dataset its block shards back, byte for byte as they were; returns False where it was not split.

    Raises:
        DatasetError: it is damaged, or a view.
    """
    _refuse_no_dataset(data)
    folder = DatasetFolder(data)
    with folder.locked():
        finish(data)
        _refuse_unfinished_build(folder)
        manifest = read_manifest(data)
        if "split" not in manifest:
            discard(data)
            return False
        rows = read_index(data)
        with Progress(len(rows), "check", quiet=quiet) as progress:
            check_shards(data, manifest["shards"], progress)
        names = pa.nulls(len(rows), pa.string())
        job = Repacking(
            source=data,
            target=data,
            rows=rows.set_column(rows.column_names.index("split"), "split", names),
            shards=_block_shards(manifest["split"]["blocks"], rows),
            manifest={name: value for name, value in manifest.items() if name not in ("split", "shards")},
            files={},
            removed=(CERTIFICATE_NAME,),
            folders=FOLDERS,
        )
        with Progress(len(rows), "undo", quiet=quiet) as progress:
            repack(job, progress)
        return True


def _block_shards(blocks: list[dict[str, Any]], rows: pa.Table) -> list[NewShard]:
    """A build writes a block's tiles row by row."""
    names = np.array(_block_names(rows), dtype=object)
    order = np.lexsort([rows["x"].to_numpy(), rows["y"].to_numpy()])
    by_block: dict[str, NDArray[np.int64]] = {}
    starts = np.argsort(names[order], kind="stable")
    for part in np.split(order[starts], np.flatnonzero(names[order[starts]][1:] != names[order[starts]][:-1]) + 1):
        by_block[str(names[part[0]])] = part
    try:
        shards = [NewShard(entry["path"], by_block.pop(entry["path"]), entry["sha256"]) for entry in blocks]
    except KeyError as error:
        raise DatasetError(f"the index has no tile of the block {error}: {WAY_OUT}") from None
    if by_block:
        raise DatasetError(
            f"{MANIFEST_NAME} does not name the block {min(by_block)} that the index has a tile of: {WAY_OUT}"
        )
    return shards


def _refuse_no_dataset(data: Path) -> None:
    """Before anything is written: a split is of a finished dataset, or goes on with an interrupted one."""
    if not (data / REPACK_NAME).is_dir() and "view" in read_manifest(data):
        raise UsageError(f"{data} is a view, which holds no samples of its own: give --out a new folder for the split")


def _refuse_unfinished_build(folder: DatasetFolder) -> None:
    if (folder.build / "config.json").exists():
        raise DatasetError(f"{folder.data} has an unfinished build: run the same build command again, then split")


def _read_certificate(data: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((data / CERTIFICATE_NAME).read_bytes()))
    except (OSError, ValueError):
        raise DatasetError(f"{data / CERTIFICATE_NAME} is missing or damaged: undo the split and split again") from None
