"""`build --changes`: a dataset of each end of a change, with the very same tiles, and a table of the pairs.

OUT/before/        a dataset: images of the one release, with their maps
OUT/after/         a dataset of the same tiles, in shards of the same names, in the same order
OUT/pairs.parquet  a row a pair
OUT/pairs.json     what was compared; written last
"""

from __future__ import annotations

import dataclasses
import hashlib
from datetime import date
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from magc_data.atomic import remove_temporary_files, write_atomically
from magc_data.build import build
from magc_data.errors import DatasetError, UsageError
from magc_data.pairs import ENDS, PAIRS_NAME, PAIRS_VERSION, TABLE_NAME
from magc_data.shards import index
from magc_data.shards.capture_counts import captures_as_text
from magc_data.shards.manifest import MANIFEST_NAME, to_json
from magc_data.shards.reader import read_index
from magc_data.sources.http import remove_secrets

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from magc_data.build import BuildResult
    from magc_data.config import BuildConfig

_RANGE = ".."
_ROUNDS = 2
"""A tile that failed at the one end may come while the other is built: then the first is looked at once more."""

PAIR_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("z", pa.uint8()),
        ("x", pa.int32()),
        ("y", pa.int32()),
        ("lon", pa.float64()),
        ("lat", pa.float64()),
        *[(f"{end}_{name}", pa.string()) for end in ENDS for name in ("release", "capture_date", "osm_timestamp")],
        ("capture_days", pa.int32()),
        *[(f"{end}_{name}", pa.string()) for end in ENDS for name in ("image_sha256", "map_sha256")],
    ]
)


class ChangesResult(NamedTuple):
    """What a build of pairs came to."""

    document: dict[str, Any]
    """`pairs.json`."""
    was_complete: bool
    """True if all was there already and nothing was done."""
    manifests: dict[str, dict[str, Any]]
    """`dataset.json` of each end."""


def config_of_end(config: BuildConfig, end: str) -> BuildConfig:
    """What builds one end.

    Raises:
        UsageError: the imagery is no change.
    """
    name, colon, argument = config.imagery.partition(":")
    if not colon or _RANGE not in argument or "@" in argument:
        raise UsageError(
            f"--changes was given with --imagery {remove_secrets(config.imagery)}: expected two releases of one "
            "source, such as wayback:2018..2024"
        )
    if config.gsd is not None:
        raise UsageError(
            f"--changes and --gsd {config.gsd:g} were both given: what changed is known of the service's own tiles, so "
            "use --zoom"
        )
    imagery = f"{name}:{argument}@{end}"
    return dataclasses.replace(config, imagery=imagery, out=_folder(config) / end, changes=False)


def _folder(config: BuildConfig) -> Path:
    if isinstance(config.out, str):
        raise UsageError(
            f"--changes was given with --out {config.out}: pairs are built into a folder; copy it there afterwards"
        )
    return config.out


def build_changes(config: BuildConfig, say: Callable[[str], None], *, quiet: bool = False) -> ChangesResult:
    """Build both ends, or continue them, and the table of the pairs.

    Raises:
        MagcDataError: in one sentence; everything finished so far is kept, and the same command continues.
    """
    configs = {end: config_of_end(config, end) for end in ENDS}
    out = _folder(config)
    _refuse_foreign_folder(out)
    built: dict[str, BuildResult] = {}
    for _ in range(_ROUNDS):
        built = {end: build(each, say, quiet=quiet) for end, each in configs.items()}
        keys = {end: read_index(each.out, ["key"])["key"] for end, each in configs.items()}
        if keys["before"].equals(keys["after"]):
            break
    else:
        raise DatasetError(
            f"{out} holds other tiles at the one end than at the other, as some came late: run the same command again"
        )
    manifests = {end: each.manifest for end, each in built.items()}
    document = _document(manifests, out)
    # A run that was killed before the table may have left the one of other ends.
    was_complete = all(each.was_complete for each in built.values()) and _stored(out) == to_json(document)
    if not was_complete:
        (out / PAIRS_NAME).unlink(missing_ok=True)
        index.write_table(out / TABLE_NAME, PAIR_SCHEMA, [_pairs(out)])
        write_atomically(out / PAIRS_NAME, to_json(document))
    return ChangesResult(document, was_complete, manifests)


def _stored(out: Path) -> bytes | None:
    return (out / PAIRS_NAME).read_bytes() if (out / PAIRS_NAME).is_file() else None


def _refuse_foreign_folder(out: Path) -> None:
    known = {*ENDS, PAIRS_NAME, TABLE_NAME}
    if out.exists() and not out.is_dir():
        raise DatasetError(f"{out} is a file: give --out a folder")
    if out.is_dir():
        remove_temporary_files(out)
    if out.is_dir() and (foreign := sorted(path.name for path in out.iterdir() if path.name not in known)):
        raise DatasetError(f"{out} holds {foreign[0]}, which is not of pairs: give --out an empty or new folder")


def _pairs(out: Path) -> pa.Table:
    columns = ["capture_release", "capture_date", "osm_timestamp", "image_sha256", "map_sha256"]
    places = ["key", "z", "x", "y", "lon", "lat"]
    rows = {end: read_index(out / end) for end in ENDS}
    table = {name: rows["before"][name] for name in places}
    for end in ENDS:
        for name in columns:
            found = rows[end][name] if name in rows[end].column_names else pa.nulls(len(rows[end]), pa.string())
            table[f"{end}_{name.replace('capture_release', 'release')}"] = found
    dates = (rows[end]["capture_date"].to_pylist() for end in ENDS)
    days = [_days(before, after) for before, after in zip(*dates, strict=True)]
    table["capture_days"] = pa.array(days, pa.int32())
    return pa.table({name: table[name] for name in PAIR_SCHEMA.names}).cast(PAIR_SCHEMA)


def _days(before: str | None, after: str | None) -> int | None:
    if before is None or after is None:
        return None
    return (date.fromisoformat(after) - date.fromisoformat(before)).days


def _document(manifests: dict[str, dict[str, Any]], out: Path) -> dict[str, Any]:
    counts = manifests["after"]["counts"]
    digests = {end: hashlib.sha256((out / end / MANIFEST_NAME).read_bytes()).hexdigest() for end in manifests}
    return {
        "pairs_version": PAIRS_VERSION,
        "magc_version": manifests["after"]["magc_version"],
        "ends": {end: manifest["sources"]["imagery"]["name"] for end, manifest in manifests.items()},
        "manifest_sha256": digests,
        "counts": counts | {"transient": max(each["counts"]["transient"] for each in manifests.values())},
    }


def as_text(result: ChangesResult, out: Path | str) -> str:
    """What a build of pairs came to, as a person reads it."""
    counts = result.document["counts"]
    dates = [f"{end}: {line}" for end, manifest in result.manifests.items() for line in captures_as_text(manifest)]
    if result.was_complete:
        return "\n".join([f"{out} is complete already ({counts['kept']} pairs): nothing to do", *dates])
    rejected = ", ".join(f"{count} {reason}" for reason, count in counts["rejected"].items()) or "none"
    lines = [f"{out}: {counts['kept']} of {counts['planned']} tiles are pairs (the others: {rejected})"]
    if counts["transient"]:
        lines.append(f"{counts['transient']} of the others may come yet: run the same command again")
    return "\n".join([*lines, *dates])
