"""`build --lock`: make a recorded dataset again, and prove it sample by sample or say what has changed since.

A recorded tile is *same* if its image and map have the recorded digests, *changed* if one of them has another, *gone*
if it was rejected now. Whatever has changed, the dataset that results is complete and consistent in itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow.compute as pc

from magc_data.build import BuildResult, build
from magc_data.lock_file import read_lock
from magc_data.sea import FROM_COASTLINES
from magc_data.shards import index
from magc_data.shards.destination import destination
from magc_data.shards.folder import REJECTED_NAME
from magc_data.shards.manifest import read_manifest, to_json
from magc_data.shards.reader import read_index
from magc_data.shards.storage import location
from magc_data.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from magc_data.config import BuildConfig
    from magc_data.lock_file import Lock

REPORT_NAME = "lock-report.json"
_SHOWN = 3


class GoneTile(NamedTuple):
    """A recorded tile that was rejected now."""

    key: str
    reason: str
    detail: str
    transient: bool
    """The same command may bring it yet."""


class Changed(NamedTuple):
    """An input that is not what it was."""

    name: str
    recorded: str | None
    found: str | None


class Comparison(NamedTuple):
    """How a dataset made again compares with its lock."""

    same: int
    images_changed: tuple[str, ...]
    """Keys."""
    maps_changed: tuple[str, ...]
    gone: tuple[GoneTile, ...]
    inputs_changed: tuple[Changed, ...]
    """Possible causes; alone they are no difference."""
    recorded_splits: dict[str, int]
    """Tiles by split, where the recorded dataset was split."""

    @property
    def is_same(self) -> bool:
        """Whether every recorded image and map was made again, to the byte."""
        return not (self.images_changed or self.maps_changed or self.gone)


class RebuildResult(NamedTuple):
    """What came of it."""

    built: BuildResult
    comparison: Comparison


def rebuild(config: BuildConfig, lock_path: Path, say: Callable[[str], None], *, quiet: bool = False) -> RebuildResult:
    """Build what a lock records into `config.out`, compare, and write `lock-report.json` beside it.

    Raises:
        MagcDataError: the lock or an option is wrong, or the build failed; the same command continues it.
    """
    lock = read_lock(lock_path)
    built = build(config, say, quiet=quiet)
    comparison = compare(lock, config.out)
    document = {"lock_sha256": lock.sha256, "is_same": comparison.is_same, **as_json(comparison)}
    destination(config.out).write_file(REPORT_NAME, to_json(document))
    return RebuildResult(built, comparison)


def compare(lock: Lock, data: Path | str) -> Comparison:
    """Compare a finished dataset with a lock; only the index is read, whose digests the build has just computed."""
    columns = ["key", "image_sha256", "map_sha256"]
    rows = read_index(data, [*columns, "osm_timestamp"])
    found = {key: digests for key, *digests in zip(*(rows[name].to_pylist() for name in columns), strict=True)}
    rejected = {row["key"]: row for row in index.read_table(location(data) / REJECTED_NAME).to_pylist()}
    images_changed, maps_changed, gone = [], [], []
    same = 0
    splits: dict[str, int] = {}
    for recorded in lock.tiles:
        key = recorded.tile.key
        if recorded.split is not None:
            splits[recorded.split] = splits.get(recorded.split, 0) + 1
        if key not in found:
            row = rejected[key]  # Every planned tile has a row in one of the two tables.
            gone.append(GoneTile(key, row["reason"], row["detail"], row["transient"]))
            continue
        image_sha256, map_sha256 = found[key]
        images_changed += [key] if image_sha256 != recorded.image_sha256 else []
        maps_changed += [key] if map_sha256 != recorded.map_sha256 else []
        same += (image_sha256, map_sha256) == (recorded.image_sha256, recorded.map_sha256)
    return Comparison(
        same,
        tuple(images_changed),
        tuple(maps_changed),
        tuple(gone),
        _inputs_changed(lock, read_manifest(data), pc.max(rows["osm_timestamp"]).as_py()),
        splits,
    )


def _inputs_changed(lock: Lock, manifest: dict[str, Any], osm_last: str | None) -> tuple[Changed, ...]:
    header, sources = lock.header, manifest["sources"]
    recorded = {"imagery": header.imagery, "vectors": header.vectors}
    pairs = [
        *(
            Changed(f"{role} {what}", source and getattr(source, what), sources.get(role, {}).get(what))
            for role, source in recorded.items()
            for what in ("name", "version")
        ),
        Changed("OpenStreetMap's time", header.osm_last, osm_last),
        Changed("scheme", header.scheme_sha256, manifest["config"]["scheme"]["sha256"]),
        Changed("magc", header.magc_version, __version__),
    ]
    found = manifest["config"].get("water_polygons", {})
    kind, version = (FROM_COASTLINES, None) if header.sea is None else (header.sea.kind, header.sea.version)
    pairs += (
        Changed("sea", kind, found.get("from", FROM_COASTLINES)),
        Changed("water polygons version", version, found.get("version")),
    )
    return tuple(pair for pair in pairs if pair.recorded != pair.found)


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as a machine reads it."""
    return comparison._asdict() | {
        "gone": [each._asdict() for each in comparison.gone],
        "inputs_changed": [each._asdict() for each in comparison.inputs_changed],
    }


def as_text(comparison: Comparison, out: Path | str) -> str:
    """The comparison as a person reads it."""
    total = comparison.same + len(comparison.gone) + len({*comparison.images_changed, *comparison.maps_changed})
    if comparison.is_same:
        lines = [f"{out}: all {total} images and maps have the recorded digests"]
    else:
        lines = [f"{out}: {comparison.same} of {total} tiles have the recorded digests, the others changed upstream:"]
        lines += [
            f"  {what}: {len(keys)} ({_some(keys)})"
            for what, keys in (("image changed", comparison.images_changed), ("map changed", comparison.maps_changed))
            if keys
        ]
        reasons = sorted({each.reason for each in comparison.gone})
        for reason in reasons:
            keys = tuple(each.key for each in comparison.gone if each.reason == reason)
            lines.append(f"  gone, {reason}: {len(keys)} ({_some(keys)})")
        lines += [
            f"  {each.name} was {each.recorded or 'not stated'}, is {each.found or 'not stated'}"
            for each in comparison.inputs_changed
        ]
        if any(each.transient for each in comparison.gone):
            lines.append("  some may come yet: run the same command again to try them once more")
        lines.append(
            f"  every key is in {location(out) / REPORT_NAME}; the dataset is complete and can be used as it is"
        )
    if comparison.recorded_splits:
        sides = ", ".join(f"{name} {count}" for name, count in sorted(comparison.recorded_splits.items()))
        lines.append(f"the recorded dataset was split ({sides}): `magc-data split` with its options does it again")
    return "\n".join(lines)


def _some(keys: tuple[str, ...]) -> str:
    shown = ", ".join(keys[:_SHOWN])
    return shown if len(keys) <= _SHOWN else f"{shown}, ..."
