"""What every source of imagery or vectors is: the two protocols, and the plain values that cross them.

A source lives twice: in the main process, where `fetch` brings what a block needs onto this machine (all network
traffic, one rate limiter), and, pickled, in the workers, where `read` answers from what was brought, without network.
On a cluster each worker opens it for itself and does both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

    from magc_data.grid import Block, BoundsLonLat, Tile
    from magc_data.ground_grid import GroundBlock
    from magc_data.schema.sample import Rejection, TileImage
    from magc_data.sources.capture_dates import CaptureDates
    from magc_data.sources.http import HttpClient


class SourceInfo(NamedTuple):
    """What the manifest says of a source. No field ever holds a key, token or password."""

    name: str
    """As asked for: `world-imagery`, `wayback:45441`, a file name."""
    address: str
    """URL (secrets removed) or path; with `version`, what identifies the source when a build is resumed."""
    licence: str
    """SPDX id where there is one, else the service's own words, or 'not stated'."""
    attribution: str
    terms: str
    """One or two sentences shown once, on first use."""
    redistributable: bool
    version: str | None = None
    """Release, file digest or database date: what pins the content, where anything does."""
    mean_tile_bytes: int | None = None
    """Expected size of one tile, for `plan`."""


class SourceContext(NamedTuple):
    """What a source may use when it is opened."""

    cache_dir: Path
    http: HttpClient
    zoom: int
    tag_keys: frozenset[str]
    """OSM keys that the class scheme looks at."""
    osm_date: str | None = None
    """ISO 8601 instant to which the vector database is pinned."""


class BlockAvailability(NamedTuple):
    """What is known of a block's tiles before any imagery is fetched, for `plan`."""

    available: int
    missing: int
    cached: int
    """Of the available ones, how many are on this machine already."""


@runtime_checkable
class ImagerySource(Protocol):
    """Tiles of 256 x 256 pixels on the web-mercator grid. Must pickle; open files lazily."""

    info: SourceInfo

    def extent(self) -> BaseGeometry | None:
        """The lon/lat area covered, where it is known and bounded; None otherwise. Used when no area is asked for."""
        ...

    def availability(self, block: Block, http: HttpClient) -> BlockAvailability | None:
        """What is there, without fetching imagery; None where the source cannot tell."""
        ...

    def fetch(self, block: Block, http: HttpClient, on_tile: Callable[[], None]) -> None:
        """Bring the block's tiles onto this machine, calling `on_tile` as each is settled. Local sources do nothing.

        A tile that fails is settled too (as a transient rejection that `read` reports); a service that is down
        altogether raises.

        Raises:
            FetchError: the service does not answer at all.
        """
        ...

    def read(self, tile: Tile) -> TileImage | Rejection:
        """One tile from this machine, checked, or the named reason why there is none. No network."""
        ...


def captures_of(imagery: GridImagery | None) -> CaptureDates | None:
    """What tells when the tiles of some imagery were photographed; None where nothing does."""
    found: CaptureDates | None = getattr(imagery, "captures", None)
    return found


@runtime_checkable
class PairedImagery(Protocol):
    """Imagery that is one half of pairs; a tile has a picture in both halves or in none."""

    is_half_of_pairs: bool


class GridImagery(Protocol):
    """Imagery for a build: an ImagerySource, or one of constant ground resolution (ground_imagery.py).

    Each is asked for tiles and blocks of its own grid alone.
    """

    info: SourceInfo

    def extent(self) -> BaseGeometry | None:
        """As of an ImagerySource; so are the others."""
        ...

    def availability(self, block: Any, http: HttpClient) -> BlockAvailability | None:
        """What is there, without fetching imagery."""
        ...

    def fetch(self, block: Any, http: HttpClient, on_tile: Callable[[], None]) -> None:
        """Bring what the block needs onto this machine."""
        ...

    def read(self, tile: Any) -> TileImage | Rejection:
        """One tile from this machine."""
        ...


class GroundImagery(GridImagery, Protocol):
    """Imagery of constant ground resolution: a sample is made of several of the source's tiles."""

    def tiles_needed(self, block: GroundBlock) -> int:
        """How many of the source's tiles a block is made of."""
        ...


class FeatureTable(NamedTuple):
    """OSM features of an area: one row a geometry, tags dictionary-encoded (few tag sets are distinct)."""

    geometry: NDArray[np.object_]
    """shapely (Multi)LineStrings and (Multi)Polygons in lon/lat degrees, shape [n]."""
    tag_index: NDArray[np.int32]
    """Row of `tag_sets` for each geometry, shape [n]."""
    tag_sets: tuple[dict[str, str], ...]
    osm_type: NDArray[np.str_]
    """'w' way, 'r' relation, '' a file feature whose geometry type is to be taken at its word; shape [n], dtype U1."""
    osm_id: NDArray[np.int64]
    """OSM id, or the row number in the file; with type and geometry kind it settles the draw order of equals."""
    timestamp: str | None
    """Database time that the data stand for (ISO 8601), where known."""


NO_FEATURES = FeatureTable(
    geometry=np.empty(0, dtype=object),
    tag_index=np.empty(0, dtype=np.int32),
    tag_sets=(),
    osm_type=np.empty(0, dtype="U1"),
    osm_id=np.empty(0, dtype=np.int64),
    timestamp=None,
)


@runtime_checkable
class DatedVectors(Protocol):
    """A vector source that has OpenStreetMap as it was at several times."""

    stands_alone: bool
    """It is also good for builds that match no dates."""

    def state_of(self, capture_date: str | None) -> str | None:
        """Name of the state that belongs to images of a date (ISO); None: what stands for images of unknown date."""
        ...

    def in_state(self, state: str | None) -> VectorSource:
        """The source in a state: its `fetch` and `read` are then of that time."""
        ...


@runtime_checkable
class VectorSource(Protocol):
    """OSM features by area. Must pickle; open files lazily."""

    info: SourceInfo

    def extent(self) -> BaseGeometry | None:
        """The lon/lat area inside which the labels are complete; None: everywhere or unknown.

        Tiles that are not wholly inside it are rejected as `outside-vectors`.
        """
        ...

    def fetch(self, bounds: BoundsLonLat, http: HttpClient) -> None:
        """Bring the features of a box onto this machine. Local sources prepare their spatial index here, once."""
        ...

    def read(self, bounds: BoundsLonLat) -> FeatureTable:
        """All features that touch the box, whole (never clipped), in no particular order. No network."""
        ...


@runtime_checkable
class CoastSource(Protocol):
    """A vector source that can be asked for coastlines alone, farther around a box than for its features."""

    def fetch_coastlines(self, bounds: BoundsLonLat, around: BoundsLonLat, http: HttpClient) -> None:
        """Bring the coastlines of `around` onto this machine; `bounds`, within it, was fetched before.

        A source for which that means asking a server may leave it, where the features of `bounds` lie on land.
        """
        ...

    def read_coastlines(self, bounds: BoundsLonLat, around: BoundsLonLat) -> FeatureTable | None:
        """The coastlines that touch `around`, whole; None where `fetch_coastlines` saw that it is land. No network."""
        ...
