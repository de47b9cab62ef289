"""`--match-osm-date`: the map of each image from OpenStreetMap as it was when the image was taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from magc_data.errors import UsageError
from magc_data.schema.sample import TileImage
from magc_data.sources.protocols import DatedVectors, PairedImagery, captures_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from magc_data.grid import BoundsLonLat
    from magc_data.ground_grid import AnyTile
    from magc_data.sea import Sea
    from magc_data.sources.http import HttpClient
    from magc_data.sources.protocols import GridImagery, VectorSource

STATES_A_BLOCK = 1.5
"""Queries that matching costs a block, as `plan` reckons: most blocks show one capture, some a seam of two or three."""


def require_matchable(imagery: GridImagery | None, vectors: VectorSource, *, asked: bool) -> None:
    """Refuse combinations that cannot be matched, and several extracts that are not to be.

    Raises:
        UsageError: says what to give instead.
    """
    if not asked:
        if isinstance(vectors, DatedVectors) and not vectors.stands_alone:
            raise UsageError(
                f"--osm names extracts of several times ({vectors.info.name}): add --match-osm-date to draw each map "
                "from the one nearest to its image, or give one of them"
            )
        return
    if captures_of(imagery) is None:
        name = "none" if imagery is None else imagery.info.name
        raise UsageError(
            f"--match-osm-date was given with --imagery {name}, which tells no capture dates: use world-imagery or "
            "wayback, or --osm-date"
        )
    if not isinstance(vectors, DatedVectors):
        raise UsageError(
            f"--match-osm-date was given with --osm {vectors.info.name}, which is of one time: use overpass, or "
            "several dated extracts (--osm A.osm.pbf --osm B.osm.pbf, or a folder of them)"
        )


def requests_beside_tiles(
    imagery: GridImagery | None, vectors: VectorSource, tiles: int, blocks: int, *, match_dates: bool
) -> dict[str, int]:
    """How many requests a build makes beside those for tiles and tilemaps of blocks, by what they are for."""
    is_half = isinstance(imagery, PairedImagery)
    counts = {
        # Both halves of pairs are dated; so is each block, in one answer as a rule.
        "capture dates": (blocks * (1 + is_half)) if captures_of(imagery) is not None else 0,
        # Of one end; each changed tile costs one more, and two pictures.
        "owners of tiles": tiles if is_half else 0,
        "OpenStreetMap": 0,
    }
    if vectors.info.name == "overpass":
        a_block = STATES_A_BLOCK if match_dates else 1
        counts["OpenStreetMap"] = round(blocks * a_block * (1 + (is_half and match_dates)))
    return {what: count for what, count in counts.items() if count}


def source_in_state(vectors: VectorSource, state: str | None) -> VectorSource:
    """The source as it was; itself if it has one state alone."""
    return vectors.in_state(state) if isinstance(vectors, DatedVectors) else vectors


def state_for(vectors: VectorSource, capture_date: str | None) -> str | None:
    """Name of the state that belongs to an image."""
    return vectors.state_of(capture_date) if isinstance(vectors, DatedVectors) else None


def states_of_pair(vectors: VectorSource, image: TileImage) -> tuple[str | None, ...]:
    """Names of the states that the maps of an image and of its other half are drawn from, its own first."""
    halves = [image.capture_date, *([] if image.other_half is None else [image.other_half.date])]
    return tuple(dict.fromkeys(state_for(vectors, date) for date in halves))


def fetch_states(
    imagery: GridImagery,
    vectors: VectorSource,
    sea: Sea,
    tiles: Iterable[AnyTile],
    bounds: BoundsLonLat,
    http: HttpClient,
) -> None:
    """Bring the features of a box and its sea, as they were at the capture of each of the tiles, onto this machine.

    Of a pair, as they were at both captures: where either has no true map, both halves are refused.

    The tiles must have been fetched: those that have no image need no map. Each state is asked for once, and of the
    whole box: the server leaves out areas whose outline lies outside, so a smaller box would lose more of them.

    Raises:
        FetchError: the server does not answer.
        SourceError: the server refuses the query.
    """
    images = (imagery.read(tile) for tile in tiles)
    states = {state for image in images if isinstance(image, TileImage) for state in states_of_pair(vectors, image)}
    for state in sorted(states, key=lambda state: state or ""):
        source = source_in_state(vectors, state)
        source.fetch(bounds, http)
        sea.of(source).fetch(bounds, http)
