"""OpenStreetMap files (`.osm.pbf`, `.osm`, `.osm.bz2`, `.osm.gz`, `.opl`) as a source of features.

The first `fetch` reads the file once into a feature store in the cache folder; the store's name is the file's digest
and the set of keys, so that later builds and other class schemes use it again.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import osmium
import shapely

from magc_data.errors import SourceError
from magc_data.schema.osm_polygons import COAST_KEYS
from magc_data.sources.osm_objects import FeatureKeys, OsmObjects
from magc_data.sources.protocols import FeatureTable, SourceInfo
from magc_data.sources.vector_cache import cached_sha256, cannot_write
from magc_data.sources.vector_store import (
    TEMPORARY_PREFIX,
    StoreSummary,
    coastline_folder,
    compile_coastlines,
    compile_store,
    read_store,
    store_folder,
)

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

    from magc_data.grid import BoundsLonLat
    from magc_data.sources.http import HttpClient
    from magc_data.sources.protocols import SourceContext

OSM_FILE_SUFFIXES = (".osm.pbf", ".pbf", ".osm", ".osm.bz2", ".osm.gz", ".opl", ".osm.opl")

OSM_LICENCE = "ODbL-1.0"
OSM_ATTRIBUTION = "© OpenStreetMap contributors"
OSM_TERMS = (
    "OpenStreetMap data may be used by anyone under the Open Database License: name '© OpenStreetMap contributors', "
    "and share databases made of it under the same licence."
)

_MEMORY_INDEX_LIMIT_BYTES = 256 << 20
"""A PBF of this size has some 30 million nodes: 0.5 GB of locations in memory. Larger files get an index on disk."""


class _Header(NamedTuple):
    extent: tuple[float, float, float, float] | None
    timestamp: str | None


class OsmFile:
    """One file; see `open_osm_file`."""

    def __init__(self, path: str, info: SourceInfo, context: SourceContext) -> None:
        """Keep what `fetch` and `read` need; nothing is read here."""
        self.info = info
        self._path = path
        self._header = _read_header(path)
        self._keys = FeatureKeys.of_scheme(context.tag_keys)
        self._tag_keys = context.tag_keys
        self._folder = store_folder(context.cache_dir, str(info.version), self._keys)

    def extent(self) -> BaseGeometry | None:
        """The box that the file's header states; None where it states none, or the whole world."""
        return None if self._header.extent is None else shapely.box(*self._header.extent)

    @property
    def timestamp(self) -> str | None:
        """The time that the file's header states."""
        return self._header.timestamp

    def fetch(self, bounds: BoundsLonLat, http: HttpClient) -> None:  # noqa: ARG002 - the protocol's arguments
        """Compile the whole file, if nobody has.

        Raises:
            SourceError: the file cannot be read as OpenStreetMap data, or the cache folder cannot be written.
        """
        if self._folder.exists():
            return
        try:
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            scratch_folder = tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=self._folder.parent)
        except OSError as error:
            raise cannot_write(self._folder, error) from None
        with scratch_folder as scratch:
            large = Path(self._path).stat().st_size > _MEMORY_INDEX_LIMIT_BYTES
            objects = OsmObjects(self._path, self._keys, f"sparse_file_array,{scratch}/nodes" if large else "flex_mem")

            def summarise(rows: int) -> StoreSummary:
                report = objects.report
                if report.ways_dropped > 0 and rows == 0:
                    raise SourceError(
                        f"{self._path} has ways but no node of theirs before them: sort it with 'osmium sort', or "
                        "extract it again with complete ways"
                    )
                counts = {name: value for name, value in report._asdict().items() if isinstance(value, int)}
                return StoreSummary(rows, self._header.timestamp or report.newest_object, counts)

            try:
                compile_store(self._folder, objects.batches(), summarise)
            except RuntimeError as error:
                raise _unreadable(self._path, error) from None

    def read(self, bounds: BoundsLonLat) -> FeatureTable:
        """The features that touch the box."""
        return read_store(self._folder, bounds, self._tag_keys)

    def fetch_coastlines(self, bounds: BoundsLonLat, around: BoundsLonLat, http: HttpClient) -> None:  # noqa: ARG002 - the protocol's arguments
        """Set the coastlines of the whole file apart, if nobody has."""
        if not coastline_folder(self._folder).exists():
            compile_coastlines(self._folder)

    def read_coastlines(self, bounds: BoundsLonLat, around: BoundsLonLat) -> FeatureTable:  # noqa: ARG002 - the protocol's arguments
        """The coastlines that touch the box around the box."""
        return read_store(coastline_folder(self._folder), around, COAST_KEYS)


def open_osm_file(path: str, context: SourceContext) -> OsmFile:
    """Open an OpenStreetMap file.

    Its extent is the header's box. `FeatureTable.timestamp` is the header's `osmosis_replication_timestamp`, else the
    time of the newest edit among its features.

    Raises:
        SourceError: there is no such file, or it is not a readable OpenStreetMap file.
    """
    if not path.endswith(OSM_FILE_SUFFIXES):
        raise SourceError(
            f"{path} does not look like an OpenStreetMap file: expected a name that ends in one of "
            f"{', '.join(OSM_FILE_SUFFIXES)}"
        )
    digest = cached_sha256(Path(path), context.cache_dir)
    info = SourceInfo(
        name=Path(path).name,
        address=path,
        licence=OSM_LICENCE,
        attribution=OSM_ATTRIBUTION,
        terms=OSM_TERMS,
        redistributable=True,
        version=digest,
    )
    return OsmFile(path, info, context)


def _read_header(path: str) -> _Header:
    try:
        with osmium.io.Reader(path, osmium.osm.NOTHING) as reader:
            header = reader.header()
            box = header.box()
            history = header.has_multiple_object_versions
            timestamp = header.get("osmosis_replication_timestamp", "") or header.get("timestamp", "")
    except RuntimeError as error:
        raise _unreadable(path, error) from None
    if history:
        raise SourceError(
            f"{path} is a history or change file with several versions of each object: expected a plain extract, as "
            "'osmium time-filter' makes of it"
        )
    extent = None
    if box.valid():
        low, high = box.bottom_left, box.top_right
        west, south, east, north = low.lon, low.lat, high.lon, high.lat
        # Some writers put the whole world, or an empty box, where they know no better.
        if west < east and south < north and not (east - west >= 360 and north - south >= 170):
            extent = (west, south, east, north)
    return _Header(extent, timestamp or None)


def _unreadable(path: str, error: RuntimeError) -> SourceError:
    return SourceError(
        f"{path} cannot be read as OpenStreetMap data ({str(error).strip()}): expected a complete PBF, XML or OPL "
        "extract; download it again"
    )
