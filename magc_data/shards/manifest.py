"""`dataset.json` and `ATTRIBUTION.md`: what a dataset is, from what it was made, and what one may do with it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow.compute as pc

from magc_data.errors import DatasetError
from magc_data.ground_grid import is_grid
from magc_data.schema.sample import FORMAT_VERSION
from magc_data.shards.storage import SHARD_PATH, Location, read_bytes
from magc_data.shards.view_file import DATASET_NAME, Resolved, read_rows, resolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from magc_data.sources.protocols import SourceInfo

MANIFEST_NAME = DATASET_NAME
BUILD_NAME = ".magc-build"
"""Scratch folder of an unfinished build."""
REPACK_NAME = ".magc-split"
"""Scratch folder of an unfinished split (repack.py)."""
PART_FIELD = "rows_where"
"""In the manifest of a dataset that was copied from a view: the conditions that its rows fulfil."""

_WAY_OUT = "put back a copy of this file, or build the dataset again into another folder"

_FIELDS: dict[str, type] = {
    "magc_version": str,
    "config": dict,
    "sources": dict,
    "scheme": str,
    "classes": list,
    "counts": dict,
    "bounds_lonlat": list,
    "gsd_m": dict,
    "shards": list,
}
"""What every manifest has besides `format_version`."""


class Counts(NamedTuple):
    """How many tiles were wanted, kept, and rejected for which reason."""

    planned: int
    kept: int
    rejected: dict[str, int]
    """By reason."""
    transient: int
    """Rejections that the next run would try again."""


def source_entry(info: SourceInfo) -> dict[str, Any]:
    """What the manifest says of a source."""
    fields = info._asdict()
    del fields["mean_tile_bytes"]
    return fields


def to_json(document: dict[str, Any]) -> bytes:
    """Readable JSON that is the same for the same content."""
    return (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_manifest(data: Path | str) -> dict[str, Any]:
    """Read the manifest of a finished dataset in a folder or at an address.

    A view has that of the dataset which it is a view of, with its own counts, shards and resolution, and `view`.

    Raises:
        DatasetError: the folder is no dataset, its build has not ended, or the format is of another version.
    """
    resolved = resolve(data)
    document = _read_document(resolved.folder)
    return _of_view(document, resolved) if resolved.conditions else document


def _of_view(document: dict[str, Any], resolved: Resolved) -> dict[str, Any]:
    """The manifest with what a view changes: what is kept, in which shards, and its resolution."""
    rows = read_rows(resolved, ["shard", "gsd_m"])
    shards = set(pc.unique(rows["shard"]).to_pylist())
    conditions = [condition.where for condition in resolved.conditions]
    return document | {
        "counts": document["counts"] | {"kept": len(rows)},
        "gsd_m": pc.min_max(rows["gsd_m"]).as_py(),
        "shards": [entry for entry in document["shards"] if entry["path"] in shards],
        "view": {"folder": str(resolved.folder), "where": conditions},
    }


def _read_document(data: Location) -> dict[str, Any]:
    path = data / MANIFEST_NAME
    try:
        document = json.loads(read_bytes(path))
        version = document["format_version"]
    except FileNotFoundError:
        unfinished = "is an unfinished build: run the same build command again"
        foreign = f"is not a magc dataset: it has no {MANIFEST_NAME}"
        if isinstance(data, Path) and (data / REPACK_NAME).is_dir():
            raise DatasetError(f"{data} is amid a split: run the same `magc-data split` command again") from None
        is_unfinished = isinstance(data, Path) and (data / BUILD_NAME).is_dir()
        raise DatasetError(f"{data} {unfinished if is_unfinished else foreign}") from None
    except NotADirectoryError:
        raise DatasetError(f"{data} is a file: expected the folder of a dataset") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DatasetError(f"{path} is damaged (no JSON with a format_version): {_WAY_OUT}") from None
    if version != FORMAT_VERSION:
        raise DatasetError(
            f"{path} is format {version!r}, this build of magc reads {FORMAT_VERSION}: use the magc that made it"
        )
    if wrong := _first_wrong_field(document):
        raise DatasetError(f"{path} is damaged ('{wrong}' is missing or not what it can be): {_WAY_OUT}")
    return dict(document)


def _first_wrong_field(document: dict[str, Any]) -> str | None:
    """The first field that a reader could stumble over, or None."""
    if wrong := _first_wrong(document, _FIELDS):
        return wrong
    parts: list[tuple[str, Any, dict[str, type]]] = [
        ("counts", document["counts"], {"planned": int, "kept": int, "rejected": dict, "transient": int}),
        *(
            (f"shards[{n}]", each, {"path": str, "samples": int, "size": int, "sha256": str})
            for n, each in enumerate(document["shards"])
        ),
        *(
            (f"classes[{n}]", each, {"id": int, "name": str, "color": list})
            for n, each in enumerate(document["classes"])
        ),
        *((f"sources.{role}", each, _SOURCE_FIELDS) for role, each in document["sources"].items()),
    ]
    for name, part, kinds in parts:
        if not isinstance(part, dict):
            return name
        if wrong := _first_wrong(part, kinds):
            return f"{name}.{wrong}"
    return next((name for name, is_right in _VALUES.items() if not is_right(document)), None)


def _flat(counts: dict[str, Any]) -> list[Any]:
    return [counts["planned"], counts["kept"], counts["transient"], *counts["rejected"].values()]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _are_classes(classes: list[dict[str, Any]]) -> bool:
    ids, names = [each["id"] for each in classes], [each["name"] for each in classes]
    colors = [value for each in classes for value in each["color"]]
    return (
        bool(classes)
        and len({*ids}) == len({*names}) == len(classes)
        and all(len(each["color"]) == 3 for each in classes)
        and all(_is_count(value) and value < 256 for value in [*ids, *colors])
    )


def _are_shards(shards: list[dict[str, Any]]) -> bool:
    return len({each["path"] for each in shards}) == len(shards) and all(
        SHARD_PATH.fullmatch(each["path"])
        and _is_count(each["samples"])
        and _is_count(each["size"])
        and re.fullmatch("[0-9a-f]{64}", each["sha256"])
        for each in shards
    )


def _is_split(split: Any) -> bool:
    """Whether an undo finds what it needs; the settings are looked at by those who use them."""
    return (
        isinstance(split, dict)
        and isinstance(split.get("blocks"), list)
        and all(
            isinstance(each, dict)
            and isinstance(each.get("path"), str)
            and SHARD_PATH.fullmatch(each["path"])
            and _is_count(each.get("samples"))
            and (each.get("sha256") is None or isinstance(each["sha256"], str))
            for each in split["blocks"]
        )
    )


_VALUES: dict[str, Callable[[dict[str, Any]], bool]] = {
    "zoom": is_grid,
    "bounds_lonlat": lambda document: (
        len(document["bounds_lonlat"]) == 4 and all(map(_is_number, document["bounds_lonlat"]))
    ),
    "gsd_m": lambda document: all(
        name in document["gsd_m"] and (document["gsd_m"][name] is None or _is_number(document["gsd_m"][name]))
        for name in ("min", "max")
    ),
    "counts": lambda document: all(map(_is_count, _flat(document["counts"]))),
    "classes": lambda document: _are_classes(document["classes"]),
    "config": lambda document: (
        isinstance(document["config"].get("scheme"), dict) and isinstance(document["config"]["scheme"].get("name"), str)
    ),
    "sources": lambda document: "vectors" in document["sources"],
    "shards": lambda document: _are_shards(document["shards"]),
    "split": lambda document: "split" not in document or _is_split(document["split"]),
    PART_FIELD: lambda document: (
        isinstance(document.get(PART_FIELD, []), list)
        and all(isinstance(each, str) for each in document.get(PART_FIELD, []))
    ),
    "view": lambda document: "view" not in document,  # a view says so itself, not the dataset that it is of
}
"""What the fields must be beside their kinds, so that no reader has to ask: offsets, paths and numbers that can be."""


_SOURCE_FIELDS: dict[str, type] = {
    **dict.fromkeys(("name", "address", "licence", "attribution", "terms"), str),
    "redistributable": bool,
}


def _first_wrong(fields: dict[str, Any], kinds: dict[str, type]) -> str | None:
    return next((name for name, kind in kinds.items() if not isinstance(fields.get(name), kind)), None)


def attribution_text(sources: dict[str, dict[str, Any]]) -> str:
    """`ATTRIBUTION.md`: whom to name, and whether the pixels may be passed on."""
    parts = ["# Attribution and terms\n"]
    for role, source in sources.items():
        parts.append(f"## {role.capitalize()}: {source['name']}\n")
        parts.append(f"- Address: {source['address']}")
        if source.get("version"):
            parts.append(f"- Version: {source['version']}")
        parts += [
            f"- Licence: {source['licence']}",
            f"- Attribution: {source['attribution']}",
            f"- Terms: {source['terms']}",
        ]
        passing_on = (
            "yes, under the licence and with the attribution above."
            if source["redistributable"]
            else "**no, unless you hold a licence that allows it.** What may be published is how to make it again: "
            "dataset.json and index.parquet name the place, source and digest of every sample and hold no pixel."
        )
        parts.append(f"- May it be redistributed: {passing_on}\n")
    if "vectors" in sources:
        parts.append(
            "The maps are produced from OpenStreetMap data, © OpenStreetMap contributors, available under the Open "
            "Database Licence (https://www.openstreetmap.org/copyright): whoever publishes them must say so.\n"
        )
    return "\n".join(parts)
