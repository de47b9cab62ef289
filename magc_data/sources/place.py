"""Place names to polygons, through osmnx and Nominatim."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from magc_data.errors import FetchError, SourceError
from magc_data.sources.cache import cache_dir
from magc_data.sources.http import USER_AGENT, service_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    import requests
    from shapely.geometry.base import BaseGeometry

REQUEST_TIMEOUT_S = 30.0
_BUSY_STATUSES = (429, 504)


def place_polygon(name: str) -> BaseGeometry:
    """The lon/lat (Multi)Polygon that OpenStreetMap has for a place: the first one among Nominatim's matches.

    Answers are kept in the cache folder.

    Args:
        name: as one would type it, e.g. `Banepa, Nepal`.

    Raises:
        SourceError: nothing has that name, or nothing of that name has an outline.
        FetchError: Nominatim does not answer properly.
    """
    import osmnx
    from requests import RequestException

    host = service_name(osmnx.settings.nominatim_url)
    try:
        with _settings(osmnx.settings):
            frame = osmnx.geocode_to_gdf(name)
    except TypeError:
        raise SourceError(
            f"OpenStreetMap has no outline for '{name}', only points or lines: give --bbox, or the name of an "
            "administrative area"
        ) from None
    except (RequestException, ValueError, LookupError) as error:
        # osmnx has one kind of error for an empty list of matches and for an answer that is no list.
        if "0 results" in str(error):
            raise SourceError(
                f"{host} knows no place '{name}': check the spelling, add the country, or give --bbox"
            ) from None
        # Their own words hold whole addresses, and with them a Nominatim key.
        raise FetchError(
            f"{host} did not answer properly when asked for '{name}' ({type(error).__name__}): check the network "
            "connection and run the same command again, or give --bbox"
        ) from None
    polygon: BaseGeometry = frame.geometry.iloc[0]
    return polygon


@contextlib.contextmanager
def _settings(settings: Any) -> Iterator[None]:
    """Use osmnx with our cache, timeout and user agent; whoever uses it beside us finds its own settings afterwards."""
    ours = {
        "use_cache": True,
        "cache_folder": str(cache_dir() / "nominatim"),
        "http_user_agent": USER_AGENT,
        "requests_timeout": REQUEST_TIMEOUT_S,
        "requests_kwargs": {**settings.requests_kwargs, "hooks": {"response": _refuse_when_busy}},
    }
    before = {name: getattr(settings, name) for name in ours}
    try:
        for name, value in ours.items():
            setattr(settings, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(settings, name, value)


def _refuse_when_busy(response: requests.Response, *_: object, **__: object) -> None:
    """Without this, osmnx asks a busy Nominatim again every 55 seconds, for ever."""
    if response.status_code in _BUSY_STATUSES:
        raise FetchError(
            f"{service_name(response.url)} is busy (HTTP {response.status_code}): run the same command again in some "
            "minutes, or give --bbox"
        )
