"""The recipe of a dataset: `magc.lock` (lock_file.py), from which `magc-data build --lock` makes it again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from magc_data.atomic import write_atomically
from magc_data.export.job import UNSPLIT, is_file_of_the_maker, rows_of, without_local_path
from magc_data.ground_grid import parse_key
from magc_data.lock_file import LOCK_NAME, LockedSea, LockedSource, LockedTile, LockHeader, lock_bytes
from magc_data.shards.manifest import read_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from magc_data.export.job import ExportJob


def write_recipe(job: ExportJob) -> None:
    """Write the lock; nothing of a shard is read."""
    manifest = job.facts.manifest
    sources = read_manifest(job.data)["sources"]
    scheme = manifest["config"]["scheme"]
    header = LockHeader(
        magc_version=manifest["magc_version"],
        zoom=manifest.get("zoom"),
        imagery=_source("imagery", sources) if "imagery" in sources else None,
        vectors=_source("vectors", sources),
        osm_first=job.facts.osm.first,
        osm_last=job.facts.osm.last,
        scheme_name=scheme["name"],
        scheme_sha256=scheme["sha256"],
        selection=tuple(manifest["view"]["where"]),
        sea=_sea(manifest["config"].get("water_polygons")),
        gsd=manifest.get("gsd"),
        imagery_zoom=(manifest.get("resampling") or {}).get("asked_zoom"),
        match_osm_date=bool(manifest["config"].get("match_osm_date")),
    )
    write_atomically(job.folder / LOCK_NAME, lock_bytes(header, _tiles(job)))


def _tiles(job: ExportJob) -> Iterator[LockedTile]:
    for side in job.sides:
        split = None if side.name == UNSPLIT else side.name
        for row in rows_of(side.rows):
            yield LockedTile(parse_key(row["key"]), row["image_sha256"], row["map_sha256"], split)
            job.sample_done()


def _sea(recorded: Any) -> LockedSea | None:
    if not isinstance(recorded, dict):
        return None
    is_file = "address" in recorded and "://" not in recorded["address"]
    return LockedSea(recorded["from"], recorded.get("name"), recorded.get("version"), is_file)


def _source(role: str, sources: dict[str, dict[str, Any]]) -> LockedSource:
    shown = without_local_path(role, sources[role])
    fields: dict[str, Any] = {name: shown.get(name) for name in LockedSource._fields if name != "is_file"}
    return LockedSource(**fields, is_file=is_file_of_the_maker(role, sources[role]))
