"""World Imagery as it was: Wayback's releases, the only stable pin of this imagery."""

from __future__ import annotations

import os
import re
from datetime import date
from functools import partial
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from magc_data.errors import SourceError, UsageError
from magc_data.sources.cache import Cache, cache_path
from magc_data.sources.capture_dates import CaptureDates, wayback_layer
from magc_data.sources.http import remove_secrets, service_name
from magc_data.sources.protocols import SourceInfo
from magc_data.sources.tile_service import TileService, live_document, parsed_json, remember_document
from magc_data.sources.world_imagery import LICENCE, TERMS
from magc_data.sources.xyz import fill_template, parse_template

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from magc_data.sources.protocols import ImagerySource, SourceContext

CONFIG_VARIABLE = "MAGC_WAYBACK_CONFIG_URL"
DEFAULT_CONFIG = "https://s3-us-west-2.amazonaws.com/config.maptiles.arcgis.com/waybackconfig.json"

RANGE = ".."
"""Between the two ends of a change."""

_MEAN_TILE_BYTES = 12_900


class Release(NamedTuple):
    """One state of World Imagery. Numbers are in no order of time."""

    published: date
    """Of the release; the pictures are older, each by its own time."""
    number: int
    template: str
    metadata_url: str | None = None
    """Of the service that tells of this release's pictures."""

    def __str__(self) -> str:
        return f"{self.number} ({self.published})"


def open_wayback(argument: str | None, context: SourceContext) -> ImagerySource:
    """Find the release in the live configuration: by number, the newest not after a date, or the newest of all.

    Raises:
        UsageError: no such release, or an argument that is neither a number nor a date.
        FetchError: the configuration cannot be reached and was never seen from this machine.
        SourceError: the configuration or the release's address is not as expected.
    """
    releases = live_releases(context)
    if argument is not None and RANGE in argument:
        from magc_data.sources.wayback_changes import open_changes

        return open_changes(argument, releases, context)
    release = choose_release(releases, argument)
    service = open_release(release, context.cache_dir, context.zoom)
    if argument != str(release.number):
        pin = f" Pin it with --imagery wayback:{release.number}."
        service.info = service.info._replace(terms=service.info.terms + pin)
    return service


def live_releases(context: SourceContext) -> tuple[Release, ...]:
    """All releases that the live configuration lists, oldest first.

    Raises:
        FetchError: the configuration cannot be reached and was never seen from this machine.
        SourceError: it is not as expected.
    """
    url = os.environ.get(CONFIG_VARIABLE, DEFAULT_CONFIG)
    address = remove_secrets(url)
    configurations = Cache(cache_path(context.cache_dir, "wayback-config", address))
    document = live_document(url, address, configurations, context.http)
    releases = read_releases(document, address)
    remember_document(address, 200, document, configurations)
    return releases


def open_release(release: Release, cache_dir: Path, zoom: int) -> TileService:
    """The tiles of one release. Nothing is asked of a network.

    Raises:
        SourceError: the release's address is not as expected.
    """
    _require_mercator(release)
    template = parse_template(release.template)
    info = SourceInfo(
        name=f"wayback:{release.number}",
        address=remove_secrets(release.template),
        licence=LICENCE,
        attribution=(
            f"Esri and the contributors to World Imagery (Wayback release {release.number}, published "
            f"{release.published})"
        ),
        terms=f"{TERMS} Wayback release {release} says when Esri published it, not when it was photographed.",
        redistributable=False,
        version=str(release.number),
        mean_tile_bytes=_MEAN_TILE_BYTES,
    )
    cache = Cache(cache_path(cache_dir, info.name, info.address))
    captures = None
    if release.metadata_url is not None:
        layer = f"{release.metadata_url.rstrip('/')}/{wayback_layer(zoom)}"
        captures = CaptureDates(cache, layer, zoom, is_moving=False)
    # No pre-flight: Wayback's tilemap costs one request a tile, as much as the tile itself.
    return TileService(info, cache, partial(fill_template, template), service_name(release.template), captures)


def read_releases(document: bytes, address: str) -> tuple[Release, ...]:
    """The configuration's releases, oldest first. Both spellings of every name in use are understood.

    Raises:
        SourceError: there is none in it.
    """
    entries = parsed_json(document)
    releases = sorted(_releases(entries.items())) if isinstance(entries, dict) else []
    if not releases:
        raise SourceError(
            f"the Wayback configuration {address} lists no release: expected a JSON object "
            '{"NUMBER": {"itemTitle": "... YYYY-MM-DD", "itemURL": ...}}; check the address'
        )
    return tuple(releases)


def _releases(entries: Iterable[tuple[str, object]]) -> Iterable[Release]:
    for number, entry in entries:
        if not isinstance(entry, dict) or not re.fullmatch("[0-9]{1,12}", number):
            continue
        fields = {name.lower(): value for name, value in entry.items()}
        template = fields.get("itemurl")
        dated = re.search(r"\d{4}-\d{2}-\d{2}", str(fields.get("itemtitle", "")), re.ASCII)
        published = _as_date(dated.group()) if dated else None
        metadata_url = fields.get("metadatalayerurl")
        if isinstance(template, str) and published is not None:
            yield Release(published, int(number), template, metadata_url if isinstance(metadata_url, str) else None)


def _as_date(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def choose_release(releases: tuple[Release, ...], argument: str | None) -> Release:
    """The release meant by `NUMBER`, `YYYY-MM-DD` (newest not after it), or None (newest).

    Args:
        releases: at least one, oldest first.
        argument: what follows `wayback:`.

    Raises:
        UsageError: there is no such release; the nearest ones are named.
    """
    if argument is None:
        return releases[-1]
    if re.fullmatch("[0-9]{1,12}", argument):
        number = int(argument)
        found = next((release for release in releases if release.number == number), None)
        if found is None:
            nearest = sorted(releases, key=lambda release: abs(release.number - number))[:3]
            raise UsageError(
                f"Wayback has no release {number}: the nearest numbers are {', '.join(map(str, nearest))}, "
                f"the newest release is {releases[-1]}"
            )
        return found
    day = _as_date(argument) if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", argument) else None
    if day is None:
        raise UsageError(
            f"'{argument}' is no Wayback release: expected a number as in wayback:{releases[-1].number} "
            f"or a date as in wayback:{releases[-1].published}"
        )
    earlier = [release for release in releases if release.published <= day]
    if not earlier:
        raise UsageError(f"Wayback has no release as early as {day}: the first ones are {releases[0]}")
    return earlier[-1]


def _require_mercator(release: Release) -> None:
    """Refuse the releases that are cut on a grid of degrees: every picture would lie in another place than its map."""
    if urlsplit(release.template).path.upper().startswith("/GCS/"):
        raise SourceError(
            f"Wayback release {release} has its tiles on a geographic grid ({remove_secrets(release.template)}), "
            f"expected web mercator: set {CONFIG_VARIABLE} to the configuration of the web-mercator service"
        )
