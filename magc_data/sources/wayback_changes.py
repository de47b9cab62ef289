"""What changed between two Wayback releases: the tiles whose picture is another in the one than in the other.

`wayback:BEFORE..AFTER@before` and `wayback:BEFORE..AFTER@after` are two imagery sources with the very same tiles.

    tile ──► tilemap of AFTER: which release owns its picture
               │ one not younger than BEFORE: unchanged, nothing more is asked
               └ a younger one ──► tilemap of BEFORE ──► both pictures, each from the release that owns it

A release shows the picture of its owner, byte for byte, so pictures are kept under their owners: however many releases
are compared, each is fetched once. What the tilemap answers: vannizhang/wayback-core (`change-detector/index.ts`).
"""

from __future__ import annotations

import calendar
import hashlib
import json
import re
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import TYPE_CHECKING, NamedTuple

from magc_data.errors import FetchError, SourceError, UsageError
from magc_data.schema.sample import Reason, Rejection, TileImage
from magc_data.sources.cache import Answer, Cache, cache_path, now_utc
from magc_data.sources.capture_dates import CaptureDates
from magc_data.sources.http import IMAGERY_POLICY, RequestFailedError, remove_secrets, service_name
from magc_data.sources.tile_service import HOPELESS_TILES, MAX_DOCUMENT_BYTES, parsed_json
from magc_data.sources.wayback import RANGE, Release, choose_release, open_release

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from shapely.geometry.base import BaseGeometry

    from magc_data.grid import Block, Tile
    from magc_data.sources.http import HttpClient
    from magc_data.sources.protocols import BlockAvailability, SourceContext
    from magc_data.sources.tile_service import TileService

BEFORE, AFTER = ENDS = ("before", "after")
_AT = "@"

_NO_TILE_STATUSES = frozenset({404, 410, 422})
_FIRST_YEAR = 2014
_ABSENT = 0
"""In place of an owner: the release has no tile there."""


class Ends(NamedTuple):
    """Two releases that are compared."""

    before: Release
    after: Release

    def __str__(self) -> str:
        return f"{self.before.number}{RANGE}{self.after.number}"


class _Owners(NamedTuple):
    """Whose pictures a tile has at the two ends; None where that is not known yet."""

    before: int | None
    after: int | None


class ChangeEnd:
    """The pictures of one end, of the tiles that changed. Pickles.

    Args:
        end: `before` or `after`.
        ends: the releases.
        releases: all there are, by number: any of them may own a picture.
        cache_dir: as in the context of sources.
        zoom: of the tiles.
    """

    is_half_of_pairs = True

    def __init__(self, end: str, ends: Ends, releases: dict[int, Release], cache_dir: Path, zoom: int) -> None:
        self._end, self._ends, self._releases = end, ends, releases
        self._cache_dir, self._zoom = cache_dir, zoom
        self._services: dict[int, TileService] = {}
        self._tilemap = tilemap_address(ends.after.template)
        self._owners = Cache(cache_path(cache_dir, "wayback-tilemap", remove_secrets(self._tilemap)))
        both = {name: self._service(release.number) for name, release in ends._asdict().items()}
        self._captures = {
            name: service.captures or CaptureDates(service.cache, None, zoom, is_moving=False)
            for name, service in both.items()
        }
        self.captures = self._captures[end]
        info = both[end].info
        self.info = info._replace(name=f"wayback:{ends}{_AT}{end}", version=f"{ends}{_AT}{end}")

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_services": {}}

    def extent(self) -> BaseGeometry | None:
        """None: tile services do not say what they cover."""
        return None

    def availability(self, block: Block, http: HttpClient) -> BlockAvailability | None:  # noqa: ARG002 - the protocol's
        """None: to tell what changed costs a request a tile."""
        return None

    def fetch(self, block: Block, http: HttpClient, on_tile: Callable[[], None]) -> None:
        """Bring both pictures of the block's changed tiles into the cache; what is there is not asked for again.

        Raises:
            FetchError: a service does not work at all.
            SourceError: a service refuses, or the cache cannot be used.
        """
        self._fetch_owners(self._ends.after, block.tiles, http)
        after = self._known_owners(self._ends.after, block.tiles)
        younger = [tile for tile, owner in after.items() if self._is_younger(owner)]
        self._fetch_owners(self._ends.before, younger, http)
        before = self._known_owners(self._ends.before, younger)
        changed = [tile for tile, owner in before.items() if _ABSENT != owner != after[tile]]
        by_owner: dict[int, list[Tile]] = defaultdict(list)
        for tile in changed:
            for release, owner in ((self._ends.before, before[tile]), (self._ends.after, after[tile])):
                by_owner[self._source_of(owner, release)].append(tile)
        for owner, tiles in sorted(by_owner.items()):
            self._service(owner).fetch_tiles(block._replace(tiles=tuple(tiles)), http, lambda: None)
        if changed:
            for captures in self._captures.values():
                captures.fetch(block, http)
        for _ in block.tiles:
            on_tile()

    def read(self, tile: Tile) -> TileImage | Rejection:
        """The picture of this end; a rejection, and the same at both ends, where there is no pair of pictures."""
        owners = self.owners(tile)
        if owners.after is None or (owners.before is None and self._is_younger(owners.after)):
            return Rejection(Reason.FETCH_FAILED, "which release owns the tile is not known yet", transient=True)
        if _ABSENT in owners:
            return Rejection(Reason.NOT_AVAILABLE, "one of the two releases has no tile here")
        if owners.before is None or owners.before == owners.after:
            return Rejection(Reason.UNCHANGED, f"both ends show the picture of release {owners.after}")
        before, after = (self._image(tile, end, owners) for end in ENDS)
        if isinstance(before, Rejection):
            return before._replace(detail=f"{BEFORE}: {before.detail}")
        if isinstance(after, Rejection):
            return after._replace(detail=f"{AFTER}: {after.detail}")
        if before.data == after.data:
            return Rejection(Reason.UNCHANGED, f"releases {owners.before} and {owners.after} have the very same bytes")
        is_before = self._end == BEFORE
        own, other, owner = (before, after, owners.before) if is_before else (after, before, owners.after)
        pair_sha256 = hashlib.sha256(other.data).hexdigest()
        capture = self.captures.at(tile)._replace(release=str(owner), pair_sha256=pair_sha256)
        other_half = self._captures[AFTER if is_before else BEFORE].at(tile)
        return own._replace(capture_date=capture.date, capture=capture, other_half=other_half)

    def owners(self, tile: Tile) -> _Owners:
        """Whose pictures the tile has, as far as that was asked for."""
        found = (self._known_owners(release, [tile]).get(tile) for release in self._ends)
        return _Owners(*found)

    def _image(self, tile: Tile, end: str, owners: _Owners) -> TileImage | Rejection:
        release, owner = (self._ends.before, owners.before) if end == BEFORE else (self._ends.after, owners.after)
        return self._service(self._source_of(owner or _ABSENT, release)).read_undated(tile)

    def _is_younger(self, owner: int) -> bool:
        """Whether a picture may have come after the first end; one of a release that is not listed may."""
        release = self._releases.get(owner)
        return owner != _ABSENT and (release is None or release.published > self._ends.before.published)

    def _source_of(self, owner: int, shown_in: Release) -> int:
        """Where to fetch an owner's picture: a release that is not listed any more has no address."""
        return owner if owner in self._releases else shown_in.number

    def _service(self, number: int) -> TileService:
        if number not in self._services:
            self._services[number] = open_release(self._releases[number], self._cache_dir, self._zoom)
        return self._services[number]

    # --- the tilemap -------------------------------------------------------------------------------------------------

    def _known_owners(self, release: Release, tiles: Iterable[Tile]) -> dict[Tile, int]:
        by_key = {f"{release.number}/{tile.key}": tile for tile in tiles}
        return {by_key[key]: int(json.loads(verdict)) for key, verdict in self._owners.settled([*by_key]).items()}

    def _fetch_owners(self, release: Release, tiles: Iterable[Tile], http: HttpClient) -> None:
        """Ask for the owners that are not known; one that does not come is left out, and asked for by the next run."""
        tiles = tuple(tiles)
        known = self._known_owners(release, tiles)
        wanted = [tile for tile in tiles if tile not in known]
        pool = ThreadPoolExecutor(IMAGERY_POLICY.concurrency, thread_name_prefix="tilemap")
        came, problem = 0, ""
        try:
            for tile, owner in zip(wanted, pool.map(lambda tile: self._ask(release, tile, http), wanted), strict=True):
                if isinstance(owner, str):
                    problem = owner
                    continue
                came += 1
                key = f"{release.number}/{tile.key}"
                self._owners.put(Answer(key, 200, {}, b"", json.dumps(owner), False, now_utc()))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            self._owners.flush()
        if not came and len(wanted) >= HOPELESS_TILES:
            raise FetchError(
                f"the tilemap of Wayback ({remove_secrets(self._tilemap)}) told for none of {len(wanted)} tiles which "
                f"release owns them, but gave {problem}: check the network connection, then run the same command again"
            )

    def _ask(self, release: Release, tile: Tile, http: HttpClient) -> int | str:
        """The owner of a tile's picture in a release, 0 where there is none, or what came instead. Runs in a thread."""
        url = f"{self._tilemap}/{release.number}/{tile.z}/{tile.y}/{tile.x}"
        try:
            response = http.request(
                "GET", url, policy=IMAGERY_POLICY, bucket=service_name(url), max_body_bytes=MAX_DOCUMENT_BYTES
            )
        except RequestFailedError as error:
            return error.seen
        if response.status in _NO_TILE_STATUSES:
            return _ABSENT
        owner = read_owner(response.body, release.number) if response.status == 200 else None
        return f"HTTP {response.status}" if owner is None else owner


def read_owner(body: bytes, asked: int) -> int | None:
    """The owner in a tilemap's answer: `select`, or the release itself where it selects none; 0: no tile there.

    None for an answer that is no tilemap of one tile.
    """
    document = parsed_json(body)
    if not isinstance(document, dict) or not isinstance(document.get("data"), list) or len(document["data"]) != 1:
        return None
    if document["data"][0] != 1:
        return _ABSENT if document["data"][0] == 0 else None
    selected = document.get("select")
    if not isinstance(selected, list) or not selected or selected[0] is None:
        return asked
    return int(selected[0]) if re.fullmatch("[0-9]{1,12}", str(selected[0])) else None


def tilemap_address(template: str) -> str:
    """Where the tilemap of a service with such a tile template is.

    Raises:
        SourceError: the template is not of an ArcGIS service.
    """
    found = re.match(r"(https?://[^?#]*?)(?:/WMTS/[^/]+/[^/]+)?/MapServer/(?:tile/|WMTS/)", template, re.IGNORECASE)
    if found is None:
        raise SourceError(
            f"the address of a Wayback release is {remove_secrets(template)}: expected .../MapServer/tile/..., beside "
            "which its tilemap is"
        )
    return f"{found[1]}/MapServer/tilemap"


# --- what a user types -----------------------------------------------------------------------------------------------


def open_changes(argument: str, releases: tuple[Release, ...], context: SourceContext) -> ChangeEnd:
    """Open one end of `BEFORE..AFTER@END`; the ends as for `wayback:`, or years (2018), or months (2018-06).

    Raises:
        UsageError: no such release, an end missing, or the first not older than the second.
    """
    text, _, end = argument.partition(_AT)
    if end not in ENDS:
        raise UsageError(
            f"wayback:{argument} names two ends: add --changes for pairs of images, or {_AT}{BEFORE} or {_AT}{AFTER} "
            "for the one end alone"
        )
    ends = Ends(*(_release_of(each, releases) for each in text.split(RANGE, 1)))
    if ends.before.published >= ends.after.published:
        raise UsageError(
            f"wayback:{text} stands for the releases {ends.before} and {ends.after}: expected the older one first, and "
            "two of them"
        )
    return ChangeEnd(end, ends, {each.number: each for each in releases}, context.cache_dir, context.zoom)


def _release_of(text: str, releases: tuple[Release, ...]) -> Release:
    """A year or month is its last day."""
    period = re.fullmatch(r"(\d{4})(?:-(\d{2}))?", text, re.ASCII)
    if period and int(period[1]) >= _FIRST_YEAR and not any(text == str(each.number) for each in releases):
        year, month = int(period[1]), int(period[2] or 12)
        if 1 <= month <= 12:
            return choose_release(releases, date(year, month, calendar.monthrange(year, month)[1]).isoformat())
    return choose_release(releases, text)
