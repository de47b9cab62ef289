"""What a lock means for a build: the recorded sources, release and scheme become those of the configuration."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from magc_data.config import BuildConfig
from magc_data.errors import UsageError
from magc_data.ground_grid import grid_text
from magc_data.schema.classes import BUILT_IN_SCHEMES
from magc_data.sea import AUTOMATIC, NO_WATER_POLYGONS
from magc_data.sources.registry import NO_IMAGERY, is_source_name

if TYPE_CHECKING:
    from magc_data.lock_file import Lock, LockedSea, LockedSource

_DEFAULTS = BuildConfig()
_OPTIONS = {"imagery": "--imagery", "vectors": "--osm"}


def config_of_lock(config: BuildConfig, lock: Lock) -> BuildConfig:
    """The configuration that makes a lock's dataset again.

    No path of the lock is used: where the maker had a file, the person here must give theirs.

    Raises:
        UsageError: an option contradicts the lock, or something that the maker had as a file was not given.
    """
    header = lock.header
    if given := [name for name in ("bbox", "aoi", "place", "points") if getattr(config, name) is not None]:
        raise UsageError(f"--{given[0]} was given with --lock, which names its tiles: leave one of them out")
    for option, given_value, recorded in (
        ("zoom", None if config.zoom == _DEFAULTS.zoom else config.zoom, header.zoom),
        ("gsd", config.gsd, header.gsd),
        ("imagery-zoom", config.imagery_zoom, header.imagery_zoom),
    ):
        if given_value not in (None, recorded):
            raise UsageError(
                f"--{option} is {given_value}, the lock's tiles are of {grid_text(header.grid)}: leave --{option} out"
            )
    imagery = config.imagery
    if imagery == _DEFAULTS.imagery:
        imagery = NO_IMAGERY if header.imagery is None else _recorded("imagery", header.imagery)
    osm = _recorded("vectors", header.vectors) if config.osm == _DEFAULTS.osm else config.osm
    osm_date = config.osm_date
    if osm == "overpass" and osm_date is None:
        # The maker's own question. To go back where the maker did not pin would lose areas: a server of Overpass finds
        # those around a whole cell in the present alone, and a forest missing from maps is worse than newer maps.
        osm_date = header.vectors.version
    scheme = config.scheme
    if scheme == _DEFAULTS.scheme:
        scheme = header.scheme_name
        if scheme not in BUILT_IN_SCHEMES:
            raise UsageError(f"the lock's scheme '{scheme}' is the maker's own: give its YAML file with --scheme")
    return dataclasses.replace(
        config,
        zoom=_DEFAULTS.zoom if header.zoom is None else header.zoom,
        gsd=header.gsd,
        imagery_zoom=header.imagery_zoom,
        imagery=imagery,
        osm=osm,
        osm_date=osm_date,
        match_osm_date=config.match_osm_date or header.match_osm_date,
        scheme=scheme,
        water_polygons=config.water_polygons or _recorded_sea(header.sea),
    )


def _recorded_sea(sea: LockedSea | None) -> str | None:
    """What to give --water-polygons.

    Raises:
        UsageError: they were a file.
    """
    if sea is None:
        return None
    if sea.is_file:
        raise UsageError(
            f"the lock's water polygons came from the file '{sea.name}', version {sea.version}: give yours with "
            "--water-polygons PATH, or --water-polygons auto"
        )
    return NO_WATER_POLYGONS if sea.kind == NO_WATER_POLYGONS else AUTOMATIC


def _recorded(kind: str, source: LockedSource) -> str:
    """What to open for a recorded source.

    Raises:
        UsageError: it was a file, or its address had a key in it.
    """
    option = _OPTIONS[kind]
    version = f", version {source.version}" if source.version else ""
    if not source.is_file and is_source_name(kind, source.name):
        return source.name
    if not source.is_file and "://" in source.name:
        if "***" in source.name:
            raise UsageError(f"the lock's {kind} came from {source.name} with a key: give the address with {option}")
        return source.name
    raise UsageError(f"the lock's {kind} came from the file '{source.name}'{version}: give yours with {option} PATH")
