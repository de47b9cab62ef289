"""What a build would fetch, before it fetches any of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

from magc_data import area as areas
from magc_data import grid
from magc_data.changes import config_of_end
from magc_data.ground_grid import GroundBlock, GroundGrid
from magc_data.inputs import Inputs, open_inputs
from magc_data.match_dates import requests_beside_tiles
from magc_data.scale import LABEL_SAMPLES_PER_S, LABEL_TILES_PER_S, Scale, Span, scale_lines, scale_of, size_text
from magc_data.sources.http import IMAGERY_POLICY
from magc_data.sources.protocols import PairedImagery
from magc_data.sources.rgb_png import MEAN_TILE_BYTES

if TYPE_CHECKING:
    from magc_data.config import BuildConfig
    from magc_data.sources.protocols import GridImagery, GroundImagery, SourceInfo

MAX_BLOCKS_ASKED = 64
"""Blocks whose availability is asked for (one tilemap request each); the rest is estimated from them."""

DEFAULT_TILE_BYTES = 13_000
"""Mean size of a zoom-17 JPEG tile where the source does not know its own (docs/sources.md)."""

MAP_AND_RECORD_BYTES = 5_500
"""Of a sample beside its image: map, record, tar headers and padding; 4.5 kB in Liechtenstein, 7.2 kB in Banepa."""


class Plan(NamedTuple):
    """Figures of a build to come."""

    tiles: int
    blocks: int
    zoom: int | None
    """None: constant ground resolution."""
    gsd_m_min: float
    gsd_m_max: float
    bounds_lonlat: tuple[float, float, float, float]
    blank_share: float | None
    """Of the tiles, how many the service has no imagery for; None where it cannot tell."""
    blocks_asked: int
    tiles_to_fetch: int
    """Estimated: there, and not on this machine yet; of pairs, both pictures of all tiles, as if all had changed."""
    fetch_bytes: int
    fetch_hours: float
    """At the polite rate; of pairs, with the requests that tell what changed."""
    dataset_bytes: int
    """Of both ends, with `--changes`."""
    requests_beside_tiles: dict[str, int]
    """What is asked of services beside imagery tiles, by what it is asked for; estimated where the answers decide."""
    imagery: str | None
    """None: maps alone."""
    vectors: str
    licence: str
    """Of the imagery, or of the vectors where there is none."""
    redistributable: bool
    is_of_pairs: bool
    """What changed is told while it is fetched: figures are as if all tiles had."""
    scale: Scale
    """What it comes to, with how far that may be off."""


def plan(config: BuildConfig) -> Plan:
    """Work out what `build` with the same configuration would do. Fetches no imagery.

    Raises:
        MagcDataError: the configuration cannot be built.
    """
    datasets = 2 if config.changes else 1
    if config.changes:
        config = config_of_end(config, "after")
    with open_inputs(config, with_sea=False) as inputs:
        return plan_of(inputs, config.rate or IMAGERY_POLICY.requests_per_s, datasets)


def plan_of(inputs: Inputs, requests_per_s: float, datasets: int = 1) -> Plan:
    """The plan of a build whose sources are open; of two datasets, if both ends of pairs are built."""
    tiles = areas.count_tiles(inputs.area, inputs.zoom)
    blocks = areas.count_blocks(inputs.area, inputs.zoom)
    fetching = _fetching(inputs, inputs.imagery, tiles) if inputs.imagery else _Fetching(0.0, 0, 0, 0)
    is_of_pairs = isinstance(inputs.imagery, PairedImagery)
    beside_tiles = requests_beside_tiles(
        inputs.imagery, inputs.vectors, tiles, blocks, match_dates=inputs.config.match_osm_date
    )
    # The older owner is asked for where the younger one is another.
    of_imagery = fetching.tiles + (2 * tiles if is_of_pairs else 0)
    west, south, east, north = areas.area_extent(inputs.area).bounds
    nearest, farthest = _latitude_range(south, north)
    is_ground = isinstance(inputs.zoom, GroundGrid)
    if isinstance(inputs.zoom, GroundGrid):
        gsd_m_min = gsd_m_max = inputs.zoom.gsd_m
    else:
        gsd_m_min, gsd_m_max = grid.gsd_m(farthest, inputs.zoom), grid.gsd_m(nearest, inputs.zoom)
    # Samples of constant ground resolution are stored without loss, whatever the service sends.
    image_bytes = MEAN_TILE_BYTES if is_ground and fetching.tile_bytes else fetching.tile_bytes
    infos = inputs.infos
    info = infos.get("imagery", infos["vectors"])
    return Plan(
        tiles=tiles,
        blocks=blocks,
        zoom=None if isinstance(inputs.zoom, GroundGrid) else inputs.zoom,
        gsd_m_min=gsd_m_min,
        gsd_m_max=gsd_m_max,
        bounds_lonlat=(west, south, east, north),
        blank_share=fetching.blank_share,
        blocks_asked=fetching.blocks_asked,
        tiles_to_fetch=fetching.tiles,
        fetch_bytes=fetching.tiles * fetching.tile_bytes,
        fetch_hours=of_imagery / requests_per_s / 3600,
        dataset_bytes=datasets
        * round(tiles * (1 - (fetching.blank_share or 0.0)))
        * (image_bytes + MAP_AND_RECORD_BYTES),
        requests_beside_tiles=beside_tiles,
        imagery=infos["imagery"].name if "imagery" in infos else None,
        vectors=infos["vectors"].name,
        licence=f"{info.licence} ({info.attribution})",
        redistributable=all(each.redistributable for each in infos.values()),
        is_of_pairs=is_of_pairs,
        scale=scale_of(
            tiles=tiles,
            blocks=blocks,
            blocks_asked=fetching.blocks_asked,
            blank_share=fetching.blank_share,
            tiles_to_fetch=fetching.tiles,
            tile_bytes=fetching.tile_bytes,
            image_bytes=image_bytes,
            label_tiles_per_s=LABEL_SAMPLES_PER_S if is_ground and inputs.imagery else LABEL_TILES_PER_S,
            map_bytes=MAP_AND_RECORD_BYTES,
            requests_per_s=requests_per_s,
            workers=inputs.config.worker_count,
            has_imagery=inputs.imagery is not None,
            overpass_queries=(
                beside_tiles.get("OpenStreetMap", 0) if _asks_public_overpass(infos["vectors"]) else None
            ),
            is_half_of_pairs=is_of_pairs,
            datasets=datasets,
        ),
    )


def _asks_public_overpass(vectors: SourceInfo) -> bool:
    if vectors.name != "overpass":
        return False
    from magc_data.sources.overpass import is_public_server

    return is_public_server(vectors.address)


class _Fetching(NamedTuple):
    """What of the imagery is to be fetched, as far as the service can tell."""

    blank_share: float | None
    blocks_asked: int
    tiles: int
    tile_bytes: int


def _fetching(inputs: Inputs, imagery: GridImagery, tiles: int) -> _Fetching:
    available = missing = cached = asked = needed = looked_at = 0
    for block in areas.spread_blocks(inputs.area, inputs.zoom, MAX_BLOCKS_ASKED):
        # A sample of constant ground resolution is made of several of the service's tiles.
        if isinstance(block, GroundBlock):
            needed += cast("GroundImagery", imagery).tiles_needed(block)
        else:
            needed += len(block.tiles)
        looked_at += len(block.tiles)
        known = imagery.availability(block, inputs.http)
        if known is None:
            break
        asked += 1
        available, missing, cached = available + known.available, missing + known.missing, cached + known.cached
    seen = available + missing
    fetch_share = (available - cached) / seen if seen else 1.0
    tiles = round(tiles * needed / looked_at) if looked_at else tiles
    if isinstance(imagery, PairedImagery):
        tiles *= 2
    tile_bytes = imagery.info.mean_tile_bytes or DEFAULT_TILE_BYTES
    return _Fetching(missing / seen if seen else None, asked, round(tiles * fetch_share), tile_bytes)


def _latitude_range(south: float, north: float) -> tuple[float, float]:
    """Latitudes of a range that are nearest to and farthest from the equator."""
    nearest = 0.0 if south <= 0 <= north else min(abs(south), abs(north))
    return nearest, max(abs(south), abs(north))


def as_text(figures: Plan) -> str:
    """The plan as a person reads it."""
    west, south, east, north = figures.bounds_lonlat
    blank = (
        "not known beforehand"
        if figures.blank_share is None
        else f"{figures.blank_share:.1%} of the tiles (from {figures.blocks_asked} of {figures.blocks} blocks)"
    )
    passing_on = (
        "yes" if figures.redistributable else "no: publish the recipe (dataset.json, index.parquet), not the pixels"
    )
    fetching = [
        f"no imagery      {blank}",
        f"to fetch        {figures.tiles_to_fetch} tiles, about {size_text(figures.fetch_bytes)}",
        f"time to fetch   {figures.fetch_hours:.2f} hours at the polite rate",
    ]
    sources = [f"imagery         {figures.imagery}: {figures.licence}", f"vectors         {figures.vectors}"]
    if figures.imagery is None:
        fetching = []
        sources = ["imagery         none: maps alone", f"vectors         {figures.vectors}: {figures.licence}"]
    at = f"{figures.gsd_m_min:g} m/px" if figures.zoom is None else f"zoom {figures.zoom}"
    return "\n".join(
        [
            f"area            {west:.5f},{south:.5f},{east:.5f},{north:.5f}",
            f"tiles           {figures.tiles} at {at}, in {figures.blocks} blocks",
            f"resolution      {figures.gsd_m_min:.4f} to {figures.gsd_m_max:.4f} m/px on the ground",
            *fetching,
            *_beside_tiles(figures),
            *(["changes         not known beforehand: figures are as if all tiles changed"] * figures.is_of_pairs),
            f"dataset         about {size_text(figures.dataset_bytes)}",
            *scale_lines(figures.scale),
            *sources,
            f"redistribution  {passing_on}",
        ]
    )


def _beside_tiles(figures: Plan) -> list[str]:
    (first, *rest) = [f"{count} for {what}" for what, count in figures.requests_beside_tiles.items()] or [""]
    beside = ", ".join([first.replace(" for ", " requests for ", 1), *rest])
    return [f"beside tiles    {beside}"] if beside else []


def as_json(figures: Plan) -> dict[str, Any]:
    """The plan as a machine reads it."""
    scale = {
        name: value._asdict() if isinstance(value, Span) else value for name, value in figures.scale._asdict().items()
    }
    return figures._asdict() | {"scale": scale}
