"""Place names against a local server that plays Nominatim."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import osmnx
import pytest
import shapely
from werkzeug import Response

from magc_data.errors import FetchError, SourceError
from magc_data.sources.place import place_polygon

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_httpserver import HTTPServer
    from werkzeug import Request

TOWN = shapely.box(85.5, 27.6, 85.6, 27.7)


def match(geometry: shapely.Geometry, importance: float) -> dict[str, Any]:
    west, south, east, north = geometry.bounds
    return {
        "place_id": 1,
        "osm_type": "relation",
        "osm_id": 7,
        "lat": "27.6",
        "lon": "85.5",
        "importance": importance,
        "boundingbox": [str(south), str(north), str(west), str(east)],
        "geojson": shapely.geometry.mapping(geometry),
    }


@pytest.fixture
def nominatim(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> HTTPServer:
    monkeypatch.setattr(osmnx.settings, "nominatim_url", httpserver.url_for("/"))
    monkeypatch.setattr(osmnx.settings, "nominatim_key", "very-secret")
    monkeypatch.setattr("time.sleep", lambda _: None)
    return httpserver


def answer_with(server: HTTPServer, body: object, status: int = 200) -> list[Request]:
    requests: list[Request] = []

    def answer(request: Request) -> Response:
        requests.append(request)
        return Response(body if isinstance(body, str) else json.dumps(body), status, content_type="application/json")

    server.expect_request("/search").respond_with_handler(answer)
    return requests


def test_the_first_outline_among_the_matches(
    nominatim: HTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAGC_CACHE_DIR", str(tmp_path))
    requests = answer_with(nominatim, [match(shapely.Point(85.5, 27.6), 0.9), match(TOWN, 0.5)])
    before = {name: getattr(osmnx.settings, name) for name in ("cache_folder", "requests_kwargs", "http_user_agent")}
    assert place_polygon("Banepa, Nepal").equals(TOWN)
    assert requests[0].args["q"] == "Banepa, Nepal"
    assert requests[0].headers["User-Agent"].startswith("magc/")
    assert before == {name: getattr(osmnx.settings, name) for name in before}
    assert list((tmp_path / "nominatim").glob("*.json"))
    assert place_polygon("Banepa, Nepal").equals(TOWN)
    assert len(requests) == 1


@pytest.mark.parametrize(
    ("body", "status", "error", "message"),
    [
        ([], 200, SourceError, "knows no place 'Nowhere': check the spelling"),
        ([match(shapely.Point(1, 2), 0.5)], 200, SourceError, "no outline for 'Nowhere'"),
        ({"error": "no"}, 200, FetchError, "did not answer properly"),
        ("<html>busy</html>", 200, FetchError, "did not answer properly"),
        ("<html>broken</html>", 500, FetchError, "did not answer properly"),
        ([{"unexpected": 1}], 200, FetchError, "did not answer properly"),
        ("slow down", 429, FetchError, "is busy .HTTP 429"),
        ("timeout", 504, FetchError, "is busy .HTTP 504"),
    ],
)
def test_what_goes_wrong_is_one_sentence(
    nominatim: HTTPServer, body: object, status: int, error: type[Exception], message: str
) -> None:
    requests = answer_with(nominatim, body, status)
    with pytest.raises(error, match=message) as raised:
        place_polygon("Nowhere")
    assert len(requests) == 1
    assert "very-secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(osmnx.settings, "nominatim_url", "http://127.0.0.1:9/")
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(FetchError, match=r"127\.0\.0\.1:9 did not answer .* check the network"):
        place_polygon("Banepa")
