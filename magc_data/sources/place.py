"""Place names to polygons, through osmnx and Nominatim."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from magc_data.errors import FetchError, SourceError
from magc_data.sources.http import USER_AGENT, remove_secrets, service_name

if TYPE_CHECKING:
    from pathlib import Path

    from shapely.geometry.base import BaseGeometry

REQUEST_TIMEOUT_S = 30


def place_polygon(name: str, cache_dir: Path) -> BaseGeometry:
    """The lon/lat (multi)polygon that OpenStreetMap has for a place.

    The first polygon among the matches is taken, as osmnx does; answers are kept in the cache folder.

    Args:
        name: e.g. `Banepa, Nepal`.
        cache_dir: root of the cache.

    Raises:
        SourceError: nothing of that name, or nothing with an outline.
        FetchError: Nominatim does not answer.
    """
    import osmnx
    import requests

    settings = osmnx.settings
    settings.use_cache = True
    settings.cache_folder = str(cache_dir / "nominatim")
    settings.http_user_agent = USER_AGENT
    settings.requests_timeout = REQUEST_TIMEOUT_S
    ...
