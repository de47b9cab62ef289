"""A configuration with everything in it opened: sources, area, scheme, grid."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import shapely

from magc_data import area as areas
from magc_data import grid
from magc_data.config import DEFAULT_ZOOM
from magc_data.errors import UsageError
from magc_data.ground_grid import CRS, GroundGrid
from magc_data.lock_config import config_of_lock
from magc_data.lock_file import read_lock
from magc_data.match_dates import require_matchable
from magc_data.quality.signals import QUALITY_VERSION
from magc_data.schema.classes import load_scheme, scheme_sha256
from magc_data.schema.sample import FORMAT_VERSION
from magc_data.sea import NoSea, identity_entry, keys_with_coast, open_sea
from magc_data.sources.cache import cache_dir
from magc_data.sources.http import HttpClient
from magc_data.sources.protocols import SourceContext, captures_of
from magc_data.sources.registry import open_imagery, open_vectors
from magc_data.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shapely.geometry.base import BaseGeometry

    from magc_data.area import Area
    from magc_data.config import BuildConfig
    from magc_data.schema.classes import Scheme
    from magc_data.sea import Sea
    from magc_data.sources.ground_imagery import Resampled
    from magc_data.sources.pace import Pace
    from magc_data.sources.protocols import GridImagery, SourceInfo, VectorSource


class Inputs(NamedTuple):
    """A configuration with everything in it opened."""

    config: BuildConfig
    """With what a lock says put in."""
    area: Area
    zoom: int | GroundGrid
    """Of the web-mercator tiles; or the grid of constant ground resolution."""
    imagery: GridImagery | None
    """None: maps alone."""
    vectors: VectorSource
    scheme: Scheme
    http: HttpClient
    sea: Sea
    resampled: Resampled | None = None
    """How the imagery comes onto a grid of constant ground resolution."""

    @property
    def infos(self) -> dict[str, SourceInfo]:
        """What is known of each source, by its role."""
        imagery = {} if self.imagery is None else {"imagery": self.imagery.info}
        return imagery | {"vectors": self.vectors.info}


@contextlib.contextmanager
def open_inputs(
    config: BuildConfig, *, pace: Pace | None = None, share: float = 1.0, with_sea: bool = True, quiet: bool = True
) -> Iterator[Inputs]:
    """Open the sources, scheme and area of a configuration; connections close with the block.

    Args:
        config: of a build.
        pace: kept by all requests instead of this process' own.
        share: of the polite rates, where several processes fetch without knowing of each other.
        with_sea: False: nothing is going to be painted, so water polygons need not be there.
        quiet: no bar where water polygons are downloaded.

    Raises:
        UsageError: something asked for does not exist or does not fit together.
        SourceError: a source cannot be read.
    """
    area = None
    if config.lock is not None:
        lock = read_lock(config.lock)
        config = config_of_lock(config, lock)
        area = areas.area_from_tiles([each.tile for each in lock.tiles], {"lock_sha256": lock.sha256})
    if not grid.MIN_ZOOM <= config.zoom <= grid.MAX_ZOOM:
        raise UsageError(f"zoom {config.zoom} is out of range: expected {grid.MIN_ZOOM} to {grid.MAX_ZOOM}")
    if config.workers < 0:
        raise UsageError(f"--workers is {config.workers}: expected 1 or more, or 0 for one a core")
    if config.rate is not None and not 0 < config.rate < math.inf:
        raise UsageError(f"--rate is {config.rate:g}: expected a number of requests a second, above 0")
    if config.osm_date is not None and config.osm.partition(":")[0] != "overpass":
        raise UsageError(
            f"--osm-date was given with --osm {config.osm}: only overpass can go back; take an extract of then"
        )
    level = _level_of(config)
    scheme = load_scheme(config.scheme)
    # The area first: a typing error in it should not cost a request.
    given = any((config.bbox, config.aoi, config.place, config.points))
    area = areas.area_of(config, None) if given else area
    with HttpClient(requests_per_s=config.rate, share=share, pace=pace) as http:
        context = source_context(config, scheme, http)
        vectors = open_vectors(config.osm, context)
        place, labelled = (None, vectors.extent()) if area is None else (areas.area_extent(area), None)
        imagery, resampled = open_imagery_on(level, config, context, place, labelled)
        require_matchable(imagery, vectors, asked=config.match_osm_date)
        area = area or areas.area_of(config, _common_extent(imagery, vectors))
        sea = open_sea(config.water_polygons, vectors, scheme, context, quiet=quiet) if with_sea else NoSea()
        yield Inputs(config, area, level, imagery, vectors, scheme, http, sea, resampled)


def source_context(config: BuildConfig, scheme: Scheme, http: HttpClient) -> SourceContext:
    """What sources are opened with, here and on each machine of a cluster."""
    return SourceContext(cache_dir(), http, config.zoom, keys_with_coast(scheme), config.osm_date)


def open_imagery_on(
    level: int | GroundGrid,
    config: BuildConfig,
    context: SourceContext,
    place: BaseGeometry | None,
    labelled: BaseGeometry | None = None,
) -> tuple[GridImagery | None, Resampled | None]:
    """Open the imagery for tiles of a zoom, or for those of a grid of constant ground resolution.

    Args:
        level: the zoom, or the grid.
        config: says which imagery.
        context: of all sources.
        place: where it is going to be read, in lon/lat; None where no area was asked for.
        labelled: what the vectors cover, where no area was asked for: it is read where it lies in this.

    Returns:
        The imagery (None: maps alone), and how it comes onto a grid.
    """
    if not isinstance(level, GroundGrid):
        return open_imagery(config.imagery, context), None
    from magc_data.sources.ground_imagery import open_ground_imagery

    latitudes = None if place is None else (place.bounds[1], place.bounds[3])
    return open_ground_imagery(config.imagery, context, level, config.imagery_zoom, latitudes, labelled)


def _level_of(config: BuildConfig) -> int | GroundGrid:
    """The zoom or the ground resolution that is asked for.

    Raises:
        UsageError: both are, or one means nothing.
    """
    if config.gsd is None:
        if config.imagery_zoom is not None:
            raise UsageError(f"--imagery-zoom is {config.imagery_zoom} without --gsd: leave it out, or use --zoom")
        return config.zoom
    if config.match_osm_date:
        raise UsageError(
            f"--match-osm-date and --gsd {config.gsd:g} were both given: a sample is resampled of several tiles, which "
            "may be of several dates, so use --zoom"
        )
    if config.zoom != DEFAULT_ZOOM:
        raise UsageError(
            f"--gsd {config.gsd:g} and --zoom {config.zoom} were both given: expected one of them "
            "(--imagery-zoom says what imagery is read)"
        )
    if config.imagery_zoom is not None and not grid.MIN_ZOOM <= config.imagery_zoom <= grid.MAX_ZOOM:
        raise UsageError(
            f"--imagery-zoom {config.imagery_zoom} is out of range: expected {grid.MIN_ZOOM} to {grid.MAX_ZOOM}"
        )
    return GroundGrid.of(config.gsd)


def _common_extent(imagery: GridImagery | None, vectors: VectorSource) -> BaseGeometry | None:
    labelled = vectors.extent()
    if imagery is None:
        return labelled
    extent = imagery.extent()
    if extent is None or labelled is None:
        return extent
    # Where the two only touch, the intersection has lines and points as well, which are no ground to build on.
    common = shapely.intersection(shapely.make_valid(extent), shapely.make_valid(labelled))
    polygons = [part for part in shapely.get_parts(common) if part.area > 0]
    if not polygons:
        raise UsageError(
            f"{imagery.info.name} and {vectors.info.name} have no place in common: "
            "give imagery and vectors of the same area"
        )
    return shapely.MultiPolygon(polygons)


def resolved_config(inputs: Inputs) -> dict[str, Any]:
    """What identifies a build: two builds with the same may be mixed, others not."""

    def identity(info: SourceInfo) -> dict[str, Any]:
        return {"name": info.name, "address": info.address, "version": info.version}

    return {
        "area": inputs.area.description,
        **grid_fields(inputs),
        "imagery": None,
        **{role: identity(info) for role, info in inputs.infos.items()},
        "scheme": {"name": inputs.scheme.name, "sha256": scheme_sha256(inputs.scheme)},
        "magc_version": __version__,
        "format_version": FORMAT_VERSION,
        "quality_version": QUALITY_VERSION,
        **identity_entry(inputs.sea),
        **({"match_osm_date": True} if inputs.config.match_osm_date else {}),
        **({"capture_dates": True} if captures_of(inputs.imagery) is not None else {}),
    }


def grid_fields(inputs: Inputs) -> dict[str, Any]:
    """The zoom; or the ground resolution, and how the imagery comes onto it."""
    if not isinstance(inputs.zoom, GroundGrid):
        return {"zoom": inputs.zoom}
    resampled = None if inputs.resampled is None else inputs.resampled.as_json()
    return {"gsd": inputs.zoom.gsd_m, "crs": CRS, "resampling": resampled}
