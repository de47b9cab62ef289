"""Where the sea is, which OpenStreetMap has no polygon for: from water polygons, or from the coastlines of the vectors.

A sea lives twice as a source does: `fetch` in the main process brings what a box needs, `read` answers in the workers.

    water polygons given ──► the pieces that touch the box
    none given ──► coastlines that divide the box ──► what lies on their right (coast.py)
                     └ none divides it: the nearest ones, within REACH_M, say on which side of them the box lies
                         └ none there either: no sea is painted, for nobody has said that there is any

The sea is burnt below everything else, as the scheme's class `water`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import shapely

from magc_data import grid
from magc_data.coast import Unknown, is_sea, sea_in_box
from magc_data.errors import UsageError
from magc_data.features import Shapes, over_the_antimeridian
from magc_data.schema.osm_polygons import COAST_KEYS
from magc_data.sources.protocols import CoastSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

    from magc_data.grid import BoundsLonLat, PixelGrid
    from magc_data.ground_grid import AnyBlock, AnyTile
    from magc_data.schema.classes import Scheme
    from magc_data.sources.http import HttpClient
    from magc_data.sources.protocols import FeatureTable, SourceContext, VectorSource
    from magc_data.sources.water_polygons import WaterPolygons

NO_WATER_POLYGONS = "none"
"""Asked for as water polygons: no sea at all."""
AUTOMATIC = "auto"
"""Asked for as water polygons: those of osmdata."""

WATER_CLASS = "water"
REACH_M = 25_000.0
"""How far from a box without coastline the next one may be to tell its side. Farther out no one takes aerial images."""

FROM_COASTLINES, FROM_WATER_POLYGONS = "coastlines", "water-polygons"


class SeaOfBox(NamedTuple):
    """What is known of the sea in a box."""

    polygons: tuple[BaseGeometry, ...] = ()
    """In lon/lat, each counted even-odd, right inside the box alone."""
    unknown: tuple[Unknown, ...] = ()
    """Where land and sea cannot be told apart."""
    is_settled: bool = False
    """Something said where the sea is, or that there is none. False: there is nothing that could say it."""
    was_sought: bool = False
    """Coastlines were looked for as far as REACH_M."""


NOTHING_KNOWN = SeaOfBox()


class Sea(Protocol):
    """Must pickle; opens files lazily."""

    @property
    def record(self) -> dict[str, Any] | None:
        """What `dataset.json` says under `sea`; None: nothing, but if a coastline is met."""
        ...

    def fetch(self, bounds: BoundsLonLat, http: HttpClient) -> None:
        """Bring what is needed for a box onto this machine; the vectors of the box are there already."""
        ...

    def read(self, bounds: BoundsLonLat, table: FeatureTable) -> SeaOfBox:
        """The sea in a box; `table` holds the vectors' features of it. No network."""
        ...

    def of(self, vectors: VectorSource) -> Sea:
        """The sea by the same vectors in another state, where it is by them."""
        ...


class NoSea:
    """No sea is painted."""

    def __init__(self, record: dict[str, Any] | None = None) -> None:
        self.record = record

    def fetch(self, bounds: BoundsLonLat, http: HttpClient) -> None:
        """Nothing is needed."""

    def read(self, bounds: BoundsLonLat, table: FeatureTable) -> SeaOfBox:  # noqa: ARG002 - the protocol's arguments
        """No sea."""
        return NOTHING_KNOWN

    def of(self, vectors: VectorSource) -> NoSea:  # noqa: ARG002 - the protocol's arguments
        """No sea at any time."""
        return self


class Coastlines:
    """The sea by the coastlines among the vectors."""

    record = None

    def __init__(self, vectors: VectorSource) -> None:
        self._vectors = vectors

    def of(self, vectors: VectorSource) -> Coastlines:
        """The sea by the coastlines of then."""
        return Coastlines(vectors)

    def fetch(self, bounds: BoundsLonLat, http: HttpClient) -> None:
        """Bring the coastlines around a box onto this machine, where the source can."""
        if isinstance(self._vectors, CoastSource):
            self._vectors.fetch_coastlines(bounds, grid.widened(bounds, REACH_M), http)

    def read(self, bounds: BoundsLonLat, table: FeatureTable) -> SeaOfBox:
        """The sea of the box."""
        box = self._inside_extent(bounds)
        if box is None:
            return NOTHING_KNOWN
        sea = sea_in_box(coastlines_of(table), box)
        if sea is not None:
            polygons = () if sea.polygon is None else (sea.polygon,)
            return SeaOfBox(polygons, sea.unknown, is_settled=True)
        return self._by_the_nearest(box)

    def _by_the_nearest(self, box: BoundsLonLat) -> SeaOfBox:
        """A box that no coastline divides is all sea or all land: the coastlines around it know which."""
        around = self._inside_extent(grid.widened(box, REACH_M))
        if around is None or not isinstance(self._vectors, CoastSource):
            return NOTHING_KNOWN
        table = self._vectors.read_coastlines(box, around)
        sea = None if table is None else sea_in_box(coastlines_of(table), around)
        if sea is None:
            return SeaOfBox(was_sought=True)
        ground = shapely.box(*box)
        if unknown := [each for each in sea.unknown if shapely.intersects(each.ground, ground)]:
            return SeaOfBox((), (Unknown(ground, unknown[0].problem),), is_settled=True)
        centre = shapely.centroid(ground)
        # Beyond the box, so that its edge cuts no pixel.
        polygons = (shapely.box(*grid.widened(box, REACH_M)),) if is_sea(sea, centre.x, centre.y) else ()
        return SeaOfBox(polygons, is_settled=True)

    def _inside_extent(self, bounds: BoundsLonLat) -> BoundsLonLat | None:
        """A box cut at what the vectors cover; None where nothing is left."""
        extent = self._vectors.extent()
        if extent is None:
            return bounds
        west, south, east, north = extent.bounds
        cut = grid.BoundsLonLat(
            max(bounds.west, west), max(bounds.south, south), min(bounds.east, east), min(bounds.north, north)
        )
        return cut if cut.west < cut.east and cut.south < cut.north else None


class WaterPolygonsSea:
    """The sea by water polygons that somebody has made of all coastlines of the world."""

    def __init__(self, polygons: WaterPolygons) -> None:
        self._polygons = polygons
        facts = polygons.info._asdict()
        del facts["mean_tile_bytes"]
        self.record = {"from": FROM_WATER_POLYGONS, **facts}

    def fetch(self, bounds: BoundsLonLat, http: HttpClient) -> None:  # noqa: ARG002 - the protocol's arguments
        """Prepare the polygons for reading by area, once."""
        self._polygons.prepare(bounds)

    def read(self, bounds: BoundsLonLat, table: FeatureTable) -> SeaOfBox:  # noqa: ARG002 - the protocol's arguments
        """The pieces of sea that touch the box; where there are none, there is land."""
        return SeaOfBox(tuple(self._polygons.read(bounds)), is_settled=True)

    def of(self, vectors: VectorSource) -> WaterPolygonsSea:  # noqa: ARG002 - the protocol's arguments
        """The same: they are of one time."""
        return self


def coastlines_of(table: FeatureTable) -> Iterator[NDArray[np.float64]]:
    """Vertices of the coastlines among some features, land on their left.

    A polygon can only be an island: whoever made the file closed its shore, and may have turned it round.
    """
    is_coast = np.array([tags.get("natural") == "coastline" for tags in table.tag_sets], dtype=bool)
    rows: NDArray[np.intp] = np.flatnonzero(is_coast[table.tag_index]) if len(is_coast) else np.empty(0, dtype=np.intp)
    for part in shapely.get_parts(over_the_antimeridian(table.geometry[rows])):
        if part.geom_type == "Polygon":
            for ring in (part.exterior, *part.interiors):
                vertices = shapely.get_coordinates(ring)
                is_shell = ring is part.exterior or ring.equals(part.exterior)
                yield vertices if shapely.is_ccw(ring) == is_shell else vertices[::-1]
        else:
            yield shapely.get_coordinates(part)


def with_sea(shapes: Shapes, sea: SeaOfBox, scheme: Scheme, pixels: PixelGrid) -> Shapes:
    """Shapes with the sea below them; as they are where the scheme has no class for water."""
    class_id = water_class_id(scheme)
    if not sea.polygons or class_id is None:
        return shapes
    polygons = np.empty(len(sea.polygons), dtype=np.object_)
    polygons[:] = sea.polygons
    on_grid = shapely.transform(
        polygons, lambda lonlat: np.column_stack(pixels.lonlat_to_px(lonlat[:, 0], lonlat[:, 1]))
    )
    class_ids = np.full(len(on_grid), class_id, dtype=np.uint8)
    return Shapes(np.concatenate([on_grid, shapes.polygons]), np.concatenate([class_ids, shapes.class_ids]))


def water_class_id(scheme: Scheme) -> int | None:
    """Id of the class that the sea has; None where the scheme has none of that name."""
    return next((each.id for each in scheme.classes if each.name == WATER_CLASS), None)


def unknown_tiles(sea: SeaOfBox, block: AnyBlock) -> dict[AnyTile, str]:
    """The tiles of a block that hold ground of which nobody knows whether it is sea, each with the reason."""
    if not sea.unknown:
        return {}
    boxes = shapely.box(*np.array([tile.bounds_lonlat for tile in block.tiles]).T)
    tree = shapely.STRtree([each.ground for each in sea.unknown])
    # The first of several: later entries of a dictionary take the place of earlier ones.
    pairs = sorted(tree.query(boxes, predicate="intersects").T.tolist(), reverse=True)
    return {block.tiles[tile]: sea.unknown[ground].problem for tile, ground in pairs}


def open_sea(
    spec: str | None, vectors: VectorSource, scheme: Scheme, context: SourceContext, *, quiet: bool = True
) -> Sea:
    """The sea as `--water-polygons` asks for it: None (coastlines), `none`, `auto`, or the path of a file.

    Raises:
        UsageError: the scheme has no class for water, or there is no such file.
        SourceError: the file cannot be read.
        FetchError: osmdata's polygons cannot be downloaded now.
    """
    has_class = water_class_id(scheme) is not None
    if spec is None:
        return Coastlines(vectors) if has_class else NoSea()
    if spec == NO_WATER_POLYGONS:
        return NoSea({"from": NO_WATER_POLYGONS})
    if not has_class:
        raise UsageError(
            f"--water-polygons was given and the class scheme {scheme.name} has no class '{WATER_CLASS}': add one, or "
            "leave the option out"
        )
    from magc_data.sources.water_polygons import open_water_polygons

    path = None if spec == AUTOMATIC else spec
    return WaterPolygonsSea(open_water_polygons(path, context, quiet=quiet))


def keys_with_coast(scheme: Scheme) -> frozenset[str]:
    """The keys to ask vectors for: those of the scheme, and that of coastlines if it has a class for the sea."""
    return scheme.tag_keys if water_class_id(scheme) is None else scheme.tag_keys | COAST_KEYS


def bare_blocks(count: int, total: int, vectors_name: str) -> str:
    """What to say of blocks without a single feature."""
    return (
        f"{vectors_name} has nothing in {count} of {total} blocks, and no coastline within {REACH_M / 1000:.0f} km: "
        "their maps are empty; if they lie in the open sea, --water-polygons auto paints it"
    )


def manifest_entry(sea: Sea, *, is_settled_anywhere: bool) -> dict[str, Any]:
    """What `dataset.json` has on top because of the sea: nothing where neither an option nor a coastline spoke."""
    record = sea.record
    if record is None and is_settled_anywhere:
        record = {"from": FROM_COASTLINES, "reach_m": REACH_M}
    return {} if record is None else {"sea": record}


def identity_entry(sea: Sea) -> dict[str, Any]:
    """What tells two builds from each other because of the sea: nothing without an option."""
    fields = ("from", "name", "address", "version")
    record = sea.record
    return {} if record is None else {"water_polygons": {name: record[name] for name in fields if name in record}}


def spec_of_record(recorded: Any) -> str | None:
    """The `--water-polygons` that a build had, from its `config` in `dataset.json`."""
    if not isinstance(recorded, dict):
        return None
    address = str(recorded.get("address", NO_WATER_POLYGONS))
    return AUTOMATIC if "://" in address else address
