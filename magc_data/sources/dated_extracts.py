"""Several extracts of one place, each of another time: for each image the one that is nearest to its capture.

An extract's time is what its header states (`osmosis_replication_timestamp`), never its file's name.
"""

from __future__ import annotations

import hashlib
import itertools
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import shapely

from magc_data.errors import SourceError, UsageError
from magc_data.sources.osm_file import OSM_FILE_SUFFIXES, OsmFile, open_osm_file

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

    from magc_data.grid import BoundsLonLat
    from magc_data.sources.http import HttpClient
    from magc_data.sources.protocols import FeatureTable, SourceContext


class Extract(NamedTuple):
    """An extract and the time it is of."""

    instant: datetime
    file: OsmFile

    @property
    def name(self) -> str:
        """Of its state."""
        return f"{self.instant:%Y-%m-%dT%H:%M:%SZ}"


class DatedExtracts:
    """Extracts, oldest first; see `open_dated_extracts`."""

    stands_alone = False

    def __init__(self, extracts: tuple[Extract, ...]) -> None:
        self._extracts = extracts
        files = [each.file for each in extracts]
        pairs = "".join(f"{each.name} {each.file.info.version}\n" for each in extracts)
        self.info = files[-1].info._replace(
            name=",".join(each.info.name for each in files),
            address=",".join(each.info.address for each in files),
            version=hashlib.sha256(pairs.encode()).hexdigest(),
        )

    def extent(self) -> BaseGeometry | None:
        """What all of them cover; None where none states its box."""
        boxes = [box for box in (each.file.extent() for each in self._extracts) if box is not None]
        return shapely.intersection_all(boxes) if boxes else None

    def state_of(self, capture_date: str | None) -> str | None:
        """Time of the extract nearest to an image; the younger of two as near, the youngest where nothing is known."""
        if capture_date is None:
            return self._extracts[-1].name
        taken = datetime.fromisoformat(capture_date).replace(tzinfo=UTC)
        return min(reversed(self._extracts), key=lambda each: abs(each.instant - taken)).name

    def in_state(self, state: str | None) -> OsmFile:
        """The extract of a time."""
        return next(each.file for each in self._extracts if each.name == state)

    def fetch(self, bounds: BoundsLonLat, http: HttpClient) -> None:
        """As the youngest extract does."""
        self._extracts[-1].file.fetch(bounds, http)

    def read(self, bounds: BoundsLonLat) -> FeatureTable:
        """The features of the youngest extract that touch the box."""
        return self._extracts[-1].file.read(bounds)


def extract_paths(spec: str) -> list[Path]:
    """The extracts that paths with commas between them, or a folder, mean."""
    folder = Path(spec).expanduser()
    if folder.is_dir():
        return sorted(path for path in folder.iterdir() if path.name.endswith(OSM_FILE_SUFFIXES))
    return [Path(each.strip()).expanduser() for each in spec.split(",") if each.strip()]


def open_dated_extracts(spec: str, context: SourceContext) -> DatedExtracts:
    """Open extracts of several times.

    Args:
        spec: a folder of them, or their paths with commas between.
        context: cache folder and keys.

    Raises:
        UsageError: there is none, one states no time, two are of the same time, or they have no place in common.
        SourceError: one cannot be read.
    """
    paths = extract_paths(spec)
    if not paths:
        raise UsageError(
            f"{spec} holds no OpenStreetMap extract: expected files that end in one of {', '.join(OSM_FILE_SUFFIXES)}"
        )
    extracts = sorted((_open(path, context) for path in paths), key=lambda each: each.instant)
    for older, younger in itertools.pairwise(extracts):
        if older.name == younger.name:
            raise UsageError(
                f"{older.file.info.name} and {younger.file.info.name} are both of {older.name}: leave one of them out"
            )
    found = DatedExtracts(tuple(extracts))
    extent = found.extent()
    if extent is not None and extent.area == 0:
        raise UsageError(f"the extracts {found.info.name} have no place in common: give extracts of one place")
    return found


def _open(path: Path, context: SourceContext) -> Extract:
    file = open_osm_file(str(path), context)
    stated = file.timestamp
    try:
        instant = datetime.fromisoformat(stated or "")
    except ValueError:
        found = f"the time '{stated}'" if stated else "no time"
        raise SourceError(
            f"{path} states {found} in its header (osmosis_replication_timestamp): take an extract that states one, or "
            "write it with 'osmium cat --output-header=osmosis_replication_timestamp=YYYY-MM-DDThh:mm:ssZ'"
        ) from None
    return Extract(instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC), file)
