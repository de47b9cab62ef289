"""An Overpass server for tests: a real HTTP server that answers the queries of `magc_data.sources.overpass`.

    with FakeOverpass.of_file(pbf) as server:
        monkeypatch.setenv("MAGC_OVERPASS_URL", server.api)
        server.faults.extend(["429", "remark"])      # played by the next requests, then it answers properly

It reads the box, keys, date and `is_in` of a query and answers from its own elements by geometry, so that what a query
forgets to ask for is missing from the answer. Elements come in an order of its own, as `out qt` allows.
"""

from __future__ import annotations

import collections
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs

import shapely
from shapely.ops import polygonize

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

Element = dict[str, Any]

ERROR_PAGE = """<?xml version="1.0" encoding="UTF-8"?>
<html xmlns="http://www.w3.org/1999/xhtml"><head><title>OSM3S Response</title></head>
<body>
<p>The data included in this document is from www.openstreetmap.org. The data is made available under ODbL.</p>
<p><strong style="color:#FF0000">Error</strong>: {} </p>
</body></html>
"""
TOO_BUSY = (
    "runtime error: open64: 0 Success /osm3s Dispatcher_Client::request_read_and_idx::timeout. "
    "The server is probably too busy to handle your request."
)

# What `faults` may hold.
FAULTS = ("429", "504", "504-busy", "500", "400", "remark", "html", "cut-json", "cut-body", "hang", "slow")

_STATEMENT = re.compile(r'^\s*(way|rel)(\.\w+)?((?:\["[^\]]*"\])+)(?:\(([^)]*)\))?;$', re.MULTILINE)
_FILTER = re.compile(r'\["((?:[^"\\]|\\.)*)"(?:~"\^\(([^)]*)\)\$")?\]')


def elements_of_file(path: Path | str) -> list[Element]:
    """All nodes, ways and relations of an OSM file as Overpass JSON has them."""
    import osmium

    elements: list[Element] = []
    for item in osmium.FileProcessor(str(path)):
        tags = {tag.k: tag.v for tag in item.tags}
        if item.is_node():
            element: Element = {"type": "node", "id": item.id, "lat": item.lat, "lon": item.lon}
        elif item.is_way():
            element = {"type": "way", "id": item.id, "nodes": [node.ref for node in item.nodes]}
        else:
            kinds = {"n": "node", "w": "way", "r": "relation"}
            members = [{"type": kinds[each.type], "ref": each.ref, "role": each.role} for each in item.members]
            element = {"type": "relation", "id": item.id, "members": members}
        elements.append(element | ({"tags": tags} if tags else {}))
    return elements


class Database:
    """Elements with their geometry."""

    def __init__(self, elements: Iterable[Element]) -> None:
        self.by_key = {(each["type"], each["id"]): each for each in elements}
        self._lines: dict[int, Any] = {}
        for (kind, number), element in self.by_key.items():
            if kind == "way":
                points = [self.by_key[("node", node)] for node in element["nodes"] if ("node", node) in self.by_key]
                if len(points) > 1:
                    self._lines[number] = shapely.LineString([(each["lon"], each["lat"]) for each in points])
        self._way_ids = list(self._lines)
        self._tree = shapely.STRtree([self._lines[number] for number in self._way_ids])
        self._ring_ids = [number for number, line in self._lines.items() if line.is_ring]
        self._rings = shapely.STRtree([shapely.Polygon(self._lines[number]) for number in self._ring_ids])

    def in_box(self, south: float, west: float, north: float, east: float) -> set[tuple[str, int]]:
        """Ways that touch a box, and relations with a member way that does."""
        ways = {self._way_ids[index] for index in self._tree.query(shapely.box(west, south, east, north), "intersects")}
        found = {("way", number) for number in ways}
        for (kind, number), element in self.by_key.items():
            if kind == "relation" and any(each["type"] == "way" and each["ref"] in ways for each in element["members"]):
                found.add((kind, number))
        return found

    def around(self, lat: float, lon: float) -> set[tuple[str, int]]:
        """What `is_in` and `pivot` give: closed ways and named relations around a point."""
        point = shapely.Point(lon, lat)
        found = {("way", self._ring_ids[index]) for index in self._rings.query(point, "within")}
        for (kind, number), element in self.by_key.items():
            if kind == "relation" and "name" in element.get("tags", {}):
                members = [each["ref"] for each in element["members"] if each["type"] == "way"]
                lines = [self._lines[member] for member in members if member in self._lines]
                if sum(shapely.Polygon(ring.exterior).contains(point) for ring in polygonize(lines)) % 2:
                    found.add((kind, number))
        return found

    def with_members(self, found: set[tuple[str, int]]) -> set[tuple[str, int]]:
        """`(._;>;)`."""
        members = {(each["type"], each["ref"]) for key in found for each in self.by_key[key].get("members", ())}
        members = {key for key in members if key[0] != "relation" and key in self.by_key}
        ways = [self.by_key[key] for key in found | members if key[0] == "way"]
        nodes = {("node", node) for way in ways for node in way["nodes"] if ("node", node) in self.by_key}
        return found | members | nodes


def answer_query(query: str, database: Database) -> set[tuple[str, int]]:
    """Keys of the elements that a query asks for.

    Raises:
        ValueError: it is not a query of the form that this server knows.
    """
    if not re.fullmatch(r"\[out:json\].*\(\._;>;\);\s*out body qt;\s*", query, re.DOTALL):
        raise ValueError("line 1: parse error: Unknown query form")
    # As on the real server, a global box would restrict the statements about areas too.
    if "[bbox:" in query:
        raise ValueError("line 1: this fake server wants a box in each statement")
    point = re.search(r"is_in\(([-\d.]+),([-\d.]+)\)", query)
    around = database.around(float(point[1]), float(point[2])) if point else set()
    boxes: dict[str, set[tuple[str, int]]] = {}
    found = set()
    for kind, of_set, filters, box in _STATEMENT.findall(query):
        if box and box not in boxes:
            boxes[box] = database.in_box(*map(float, box.split(",")))
        if not box and of_set != ".around":
            raise ValueError("line 1: static error: a statement without a box")
        wanted = _FILTER.findall(filters)
        for key in boxes[box] if box else around:
            tags = database.by_key[key].get("tags", {})
            if key[0] == {"way": "way", "rel": "relation"}[kind] and all(
                name in tags and (not values or tags[name] in values.split("|")) for name, values in wanted
            ):
                found.add(key)
    return database.with_members(found)


class FakeOverpass:
    """The server; use as a context manager."""

    def __init__(
        self,
        elements: Sequence[Element] | Database,
        *,
        timestamp: str = "2024-05-01T00:00:00Z",
        history: Mapping[str, Sequence[Element]] | None = None,
    ) -> None:
        """Prepare a server.

        Args:
            elements: what it holds now; a `Database` may serve several servers.
            timestamp: its database time.
            history: what it held from an instant (ISO 8601) on; a query for an earlier one gets nothing.
        """
        self.timestamp = timestamp
        self.faults: collections.deque[str] = collections.deque()
        self.queries: list[str] = []
        self.status_requests = 0
        self.user_agents: set[str] = set()
        self.max_elements: int | None = None
        """Answers with more elements run "out of memory" and end in a remark."""
        self.slot_wait_s = 1
        self.slow_s = 0.5
        self._now = elements if isinstance(elements, Database) else Database(elements)
        self._history = sorted((since, Database(then)) for since, then in (history or {}).items())
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._released = threading.Event()

    @classmethod
    def of_file(cls, path: Path | str, **options: Any) -> Self:
        return cls(elements_of_file(path), **options)

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/api"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def status_text(self) -> str:
        soon = f"Slot available after: 2024-05-01T00:00:09Z, in {self.slot_wait_s} seconds."
        return (
            f"Connected as: 1\nCurrent time: 2024-05-01T00:00:00Z\nRate limit: 2\n{soon}\nCurrently running queries:\n"
        )

    def document(self, query: str) -> dict[str, Any]:
        """The proper answer to a query."""
        date = re.search(r'\[date:"([^"]+)"\]', query)
        database = self._now
        if date is not None and self._history:
            database = max(
                [(since, then) for since, then in self._history if since <= date[1]], default=("", Database([]))
            )[1]
        found = answer_query(query, database)
        # Neither by type nor by id: nobody may rely on an order.
        elements = [
            database.by_key[key] for key in sorted(found, key=lambda key: (key[1] * 2654435761 % 2**32, key[0]))
        ]
        answer: dict[str, Any] = {
            "version": 0.6,
            "generator": "Overpass API",
            "osm3s": {"timestamp_osm_base": self.timestamp, "copyright": "ODbL"},
        }
        if self.max_elements is not None and len(elements) > self.max_elements:
            memory = 'runtime error: Query run out of memory in "query" at line 3 using about 256 MB of RAM.'
            return answer | {"elements": elements[: self.max_elements], "remark": memory}
        return answer | {"elements": elements}


def _handler(fake: FakeOverpass) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if self.path != "/api/status":
                self._send(404, b"not here")
                return
            fake.status_requests += 1
            self._send(200, fake.status_text().encode(), "text/plain")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            query = parse_qs(body).get("data", [""])[0]
            with fake._lock:
                fake.queries.append(query)
                fake.user_agents.add(self.headers.get("User-Agent", ""))
                fault = fake.faults.popleft() if fake.faults else None
            if self.path != "/api/interpreter":
                self._send(404, b"not here")
            elif fault in ("429", "500"):
                self._send(int(fault), ERROR_PAGE.format("busy").encode(), "text/html")
            elif fault == "504":
                self._send(504, ERROR_PAGE.format("runtime error: Query timed out").encode(), "text/html")
            elif fault == "504-busy":
                self._send(504, ERROR_PAGE.format(TOO_BUSY).encode(), "text/html")
            elif fault == "400":
                self._send(
                    400, ERROR_PAGE.format("line 2: parse error: ';' expected - 'out' found.").encode(), "text/html"
                )
            elif fault == "html":
                self._send(200, ERROR_PAGE.format("runtime error: something broke").encode(), "text/html")
            elif fault == "hang":
                fake._released.wait(30)
                self.close_connection = True
            else:
                self._answer(query, fault)

        def _answer(self, query: str, fault: str | None) -> None:
            try:
                document = fake.document(query)
            except ValueError as error:
                self._send(400, ERROR_PAGE.format(error).encode(), "text/html")
                return
            if fault == "remark":
                half = document["elements"][: len(document["elements"]) // 2]
                document |= {
                    "elements": half,
                    "remark": 'runtime error: Query timed out in "query" at line 3 after 91 seconds.',
                }
            if fault == "slow":
                time.sleep(fake.slow_s)
            body = json.dumps(document).encode()
            if fault == "cut-json":
                self._send(200, body[: len(body) * 2 // 3])
            elif fault == "cut-body":
                self._send(200, body[: len(body) * 2 // 3], promised=len(body))
            else:
                self._send(200, body)

        def _send(self, status: int, body: bytes, kind: str = "application/json", promised: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(promised or len(body)))
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = promised is not None

    return Handler
