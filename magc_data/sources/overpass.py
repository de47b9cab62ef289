"""Features from an Overpass API server: one query a cell, every answer kept as it came.

    cell ──► query ──► HTTP 200, whole JSON, no remark ──► <digest of the query>.json
               │ 429, "too busy": wait as /api/status says, ask again
               │ 504, remark, HTML, cut short, too large, silence: ask for the four quarters, then <digest>.split
               └ 400, 403 ...: the query or the server is wrong, which no repetition mends

An answer is used whole or not at all: an Overpass server that runs out of time or memory says so in a `remark` under
HTTP 200 and leaves out the rest of the map. `read` follows the same files, so it needs no index of its own.
"""

from __future__ import annotations

import copy
import hashlib
import html
import json
import math
import os
import re
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from magc_data.errors import FetchError, SourceError, UsageError
from magc_data.schema.osm_polygons import COAST_KEYS, MODIFIER_KEYS
from magc_data.sources.http import OVERPASS_POLICY, RequestFailedError, remove_secrets, service_name
from magc_data.sources.osm_file import OSM_ATTRIBUTION, OSM_LICENCE, OSM_TERMS
from magc_data.sources.osm_objects import FEATURE_SCHEMA, FeatureKeys, OsmObjects
from magc_data.sources.protocols import FeatureTable, SourceInfo
from magc_data.sources.vector_cache import cannot_write, put
from magc_data.sources.vector_store import feature_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from shapely.geometry.base import BaseGeometry

    from magc_data.grid import BoundsLonLat
    from magc_data.sources.http import HttpClient
    from magc_data.sources.protocols import SourceContext

    _QueryOf = Callable[["Cell"], str]

PUBLIC_API = "https://overpass-api.de/api"
API_VARIABLE = "MAGC_OVERPASS_URL"

QUERY_TIMEOUT_S = 90
QUERY_MAXSIZE_BYTES = 256 << 20
"""The server reserves what a query declares, and serves the modest first: what needs more is asked in quarters."""
QUERY_POLICY = OVERPASS_POLICY._replace(attempts=3, timeout_s=QUERY_TIMEOUT_S + 60.0)
STATUS_POLICY = OVERPASS_POLICY._replace(attempts=1, timeout_s=30.0)
MAX_ANSWER_BYTES = 128 << 20
"""A larger answer is asked for in quarters too, which bounds the memory of `fetch` and `read`."""
MAX_SPLITS = 5
"""A block of 32 x 32 tiles, quartered so often, is down to single tiles."""

LONGEST_WAIT_S = 1800.0
"""For free slots, in all, before a query is given up."""
PAUSE_S = 15.0
"""Where the server says that it is busy, but not how long."""

_FIRST_DATE = datetime(2012, 9, 12, 6, 55, tzinfo=UTC)
"""The oldest state that Overpass servers can have: the change of OpenStreetMap's licence."""

_FIRST_WHOLE_MONTH = datetime(2012, 10, 1, tzinfo=UTC)

_BUSY = "too busy"
"""In the words with which an overloaded server turns away queries of any size, under HTTP 504."""

_LAND_TAGS = {
    "highway": frozenset({"motorway", "trunk", "primary", "secondary", "tertiary", "residential", "living_street"}),
    "landuse": frozenset({"residential", "farmland", "farmyard", "meadow", "forest", "orchard", "vineyard"}),
    "natural": frozenset({"wood", "scrub", "grassland", "heath"}),
}
_OVER_WATER = frozenset({"bridge", "tunnel", "tidal", "layer"})
COAST_GRID = 5_000_000
"""In 1e-7 degrees: coastlines around boxes are asked for by cells of a grid of half degrees, which neighbours share."""

_DEGREE = 10_000_000
_TYPE_ORDER = {"node": "n", "way": "w", "relation": "r"}


class DailyBudget(NamedTuple):
    """What a server may be asked for in a day (UTC)."""

    requests: int
    bytes: int


PUBLIC_BUDGET = DailyBudget(10_000, 1_000_000_000)
"""The public server's own guideline (https://dev.overpass-api.de/overpass-doc/en/preface/commons.html)."""


class Cell(NamedTuple):
    """A box in units of 1e-7 degrees, the resolution of OpenStreetMap."""

    west: int
    south: int
    east: int
    north: int

    @classmethod
    def around(cls, bounds: BoundsLonLat) -> Cell:
        """The smallest cell that holds the bounds."""
        west, south = (math.floor(value * _DEGREE) for value in bounds[:2])
        east, north = (math.ceil(value * _DEGREE) for value in bounds[2:])
        return cls(west, south, east, north)

    def quarters(self) -> tuple[Cell, Cell, Cell, Cell]:
        """The four parts; they share their edges."""
        west, south, east, north = self
        x, y = (west + east) // 2, (south + north) // 2
        return Cell(west, south, x, y), Cell(x, south, east, y), Cell(west, y, x, north), Cell(x, y, east, north)

    def centre(self) -> str:
        """`lat,lon`."""
        return f"{_degrees((self.south + self.north) // 2)},{_degrees((self.west + self.east) // 2)}"

    def __str__(self) -> str:
        """W,S,E,N in degrees, as the command line takes it."""
        return ",".join(map(_degrees, self))


def _coast_cell(bounds: BoundsLonLat) -> Cell:
    """The cell of whole squares of the coastline grid that holds the bounds."""
    west, south, east, north = Cell.around(bounds)
    return Cell(
        max(west // COAST_GRID * COAST_GRID, -180 * _DEGREE),
        max(south // COAST_GRID * COAST_GRID, -90 * _DEGREE),
        min(-(-east // COAST_GRID) * COAST_GRID, 180 * _DEGREE),
        min(-(-north // COAST_GRID) * COAST_GRID, 90 * _DEGREE),
    )


def _degrees(value: int) -> str:
    return f"{value / _DEGREE:.7f}"


def build_query(cell: Cell, feature_keys: Iterable[str], date: str | None) -> str:
    """The Overpass QL for all areas and lines of a cell.

    Relations are asked for by type: a river or route relation would bring the whole river. Every statement has its own
    box, not the query one `[bbox:]`: that would hold for the areas found by `is_in` as well, and an area whose outline
    lies wholly outside the cell, which no box finds, is what `is_in` is for. The middle of the cell is enough to ask
    about: such an area covers all of it. The server has areas of the present only, so a pinned date goes without. From
    relations it makes areas only where they have a name: an unnamed forest relation around a whole cell is not found.
    """
    south_west_north_east = ",".join(map(_degrees, (cell.south, cell.west, cell.north, cell.east)))
    date_setting = f'[date:"{date}"]' if date else ""
    lines = [
        f"[out:json][timeout:{QUERY_TIMEOUT_S}][maxsize:{QUERY_MAXSIZE_BYTES}]{date_setting};",
        "(",
        *_statements(feature_keys, "", f"({south_west_north_east})"),
        ")->.touching;",
    ]
    if date is None:
        lines += [
            f"is_in({cell.centre()})->.areas;",
            # By way of `pivot` both old servers (areas made of ways too) and new ones (closed ways are areas) answer.
            "wr(pivot.areas)->.around;",
            "(",
            *_statements(feature_keys, ".around", ""),
            ")->.covering;",
            "(.touching;.covering;);",
        ]
    else:
        lines.append(".touching;")
    return "\n".join((*lines, "(._;>;);", "out body qt;", ""))


def _statements(feature_keys: Iterable[str], of_set: str, box: str) -> Iterator[str]:
    for key in sorted(feature_keys):
        quoted = json.dumps(key, ensure_ascii=False)
        yield f"  way{of_set}[{quoted}]{box};"
        yield f'  rel{of_set}["type"~"^(multipolygon|boundary)$"][{quoted}]{box};'


def build_coastline_query(cell: Cell, date: str | None) -> str:
    """The Overpass QL for the coastlines of a cell, and nothing else."""
    south_west_north_east = ",".join(map(_degrees, (cell.south, cell.west, cell.north, cell.east)))
    date_setting = f'[date:"{date}"]' if date else ""
    return "\n".join(
        (
            f"[out:json][timeout:{QUERY_TIMEOUT_S}][maxsize:{QUERY_MAXSIZE_BYTES}]{date_setting};",
            f'  way["natural"~"^(coastline)$"]({south_west_north_east});',
            "(._;>;);",
            "out body qt;",
            "",
        )
    )


def tells_land_from_sea(elements: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a box holds a coastline, or a way that can only lie on land: a street, or land that is used."""
    ways = (element.get("tags", {}) for element in elements if element["type"] == "way")
    return any(
        tags.get("natural") == "coastline"
        or (not _OVER_WATER.intersection(tags) and any(tags.get(key) in of for key, of in _LAND_TAGS.items()))
        for tags in ways
    )


class Answer(NamedTuple):
    """A whole answer, taken apart."""

    elements: list[dict[str, Any]]
    timestamp: str


def parse_answer(body: bytes) -> Answer | str:
    """The answer in a body that came with HTTP 200, or what is wrong with it."""
    try:
        document = json.loads(body)
    except ValueError:
        return _message_in_page(body) or "an answer that is not complete JSON"
    if not isinstance(document, dict):
        return "JSON that is not an Overpass answer"
    if "remark" in document:
        return f"'{document['remark']}'"
    elements = document.get("elements")
    database = document.get("osm3s")
    timestamp = database.get("timestamp_osm_base") if isinstance(database, dict) else None
    if not isinstance(elements, list) or not isinstance(timestamp, str) or not timestamp:
        return "JSON without elements or without a database time"
    return Answer(elements, timestamp)


def _message_in_page(body: bytes) -> str | None:
    """The server's own words in one of its HTML error pages."""
    text = body.decode("utf-8", "replace")
    messages = re.findall(r"<strong[^>]*>\s*Error\s*</strong>\s*:(.*?)</p>", text, re.DOTALL)
    plain = [" ".join(html.unescape(re.sub(r"<[^>]*>", "", message)).split()) for message in messages]
    if plain:
        return f"'{'; '.join(plain)}'"
    return "a web page instead of data" if re.match(r"\s*<", text) else None


def to_opl(answers: Iterable[Answer]) -> bytes:
    """The elements of the answers as OPL text, each once, sorted by type and id as libosmium's assembler expects."""
    lines: dict[str, dict[int, str]] = {"n": {}, "w": {}, "r": {}}
    for answer in answers:
        for element in answer.elements:
            kind = _TYPE_ORDER.get(element["type"])
            if kind is not None and element["id"] not in lines[kind]:
                lines[kind][element["id"]] = _opl_line(kind, element)
    text = "".join(line for of_kind in lines.values() for _, line in sorted(of_kind.items()))
    return text.encode()


def _opl_line(kind: str, element: Mapping[str, Any]) -> str:
    if kind == "n":
        return f"n{element['id']} x{element['lon']:.7f} y{element['lat']:.7f}\n"
    tags = ",".join(f"{_opl_text(key)}={_opl_text(value)}" for key, value in element.get("tags", {}).items())
    if kind == "w":
        references = "N" + ",".join(f"n{node}" for node in element.get("nodes", ()))
    else:
        references = "M" + ",".join(
            f"{_TYPE_ORDER[member['type']]}{member['ref']}@{_opl_text(member['role'])}"
            for member in element.get("members", ())
        )
    return f"{kind}{element['id']} T{tags} {references}\n"


_OPL_SPECIAL = re.compile(r"[^A-Za-z0-9_:.;/-]")


def _opl_text(text: str) -> str:
    return _OPL_SPECIAL.sub(lambda match: f"%{ord(match[0]):x}%", text)


def parse_osm_date(text: str) -> str:
    """`YYYY-MM-DD` or an ISO 8601 instant (UTC where it does not say) in the form that Overpass takes.

    Raises:
        UsageError: it is neither, or no server can have the state of that date.
    """
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"'{text}' is not a date: expected YYYY-MM-DD or an instant such as 2024-06-01T00:00:00Z for --osm-date"
        ) from None
    instant = instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)
    if not _FIRST_DATE <= instant <= datetime.now(UTC):
        raise UsageError(
            f"--osm-date {text} lies outside what Overpass servers hold: expected a date from {_FIRST_DATE:%Y-%m-%d} "
            "to now"
        )
    return f"{instant:%Y-%m-%dT%H:%M:%SZ}"


def seconds_until_slot(status: str) -> float | None:
    """How long `/api/status` says to wait for a free slot: 0 where there is one, None where it does not say."""
    if re.search(r"^[1-9]\d* slots? available now", status, re.MULTILINE):
        return 0.0
    waits = [float(seconds) for seconds in re.findall(r"Slot available after:.*?in (-?\d+) seconds", status)]
    return max(min(waits), 0.0) if waits else None


class Overpass:
    """One server; see `open_overpass`."""

    stands_alone = True

    def __init__(
        self,
        api: str,
        context: SourceContext,
        *,
        budget: DailyBudget | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Prepare queries for the class scheme's keys; nothing is asked yet.

        Args:
            api: address of the API, ending in `/api`.
            context: cache folder, keys and date.
            budget: what the server may be asked for in a day; None: no limit.
            sleep: waits some seconds.

        Raises:
            UsageError: the date is not one, or the scheme looks at no key of a feature.
        """
        self._api = api
        self._host = service_name(api)
        self._date = None if context.osm_date is None else parse_osm_date(context.osm_date)
        self._tag_keys = context.tag_keys
        self._feature_keys = sorted(context.tag_keys - MODIFIER_KEYS)
        if not self._feature_keys:
            raise UsageError("the class scheme has no rule for any OSM key: there is nothing to ask Overpass for")
        folder = re.sub(r"[^A-Za-z0-9.-]+", "_", f"{self._host}{api.partition(self._host)[2]}")
        self._folder = context.cache_dir / "overpass" / folder
        self._budget = budget
        self._sleep = sleep
        self.info = SourceInfo(
            name="overpass",
            address=remove_secrets(api),
            licence=OSM_LICENCE,
            attribution=OSM_ATTRIBUTION,
            terms=OSM_TERMS,
            redistributable=True,
            version=self._date,
        )

    def extent(self) -> BaseGeometry | None:
        """None: the server has the whole world."""
        return None

    def state_of(self, capture_date: str | None) -> str | None:
        """The first instant of the month in which an image was taken; what the build asks for where that is unknown.

        So each block costs a query a month, not a query a day, and the map is never younger than the image, and at most
        30 days older: edits follow what they describe by months. Before the first state that servers have, that one.
        """
        if capture_date is None:
            return self._date
        return max(f"{capture_date[:7]}-01T00:00:00Z", f"{_FIRST_WHOLE_MONTH:%Y-%m-%dT%H:%M:%SZ}")

    def in_state(self, state: str | None) -> Overpass:
        """The server's database as it was then."""
        then = copy.copy(self)
        then._date = state  # noqa: SLF001 - a copy of this very class
        return then

    def fetch(self, bounds: BoundsLonLat, http: HttpClient) -> None:
        """Bring the answer for a box, or the answers for its quarters, into the cache; what is there is not asked for.

        Raises:
            FetchError: the server does not answer, has no slot for us, or the day's budget is used up.
            SourceError: the server refuses the query.
        """
        # One box after another, waits and quarters included, however many processes share the pace: each of them would
        # wait for a slot of its own.
        with http.pace.turn(self._host):
            self._fetch(Cell.around(bounds), 0, http, self._query)

    def read(self, bounds: BoundsLonLat) -> FeatureTable:
        """The features that touch the box; its bounds must be those of a `fetch`.

        Raises:
            SourceError: the box was not fetched, or the cache is damaged.
        """
        answers = [self._cached_answer(path) for path in self._answer_paths(Cell.around(bounds), self._query)]
        return self._table(answers, Cell.around(bounds), self._tag_keys)

    def _table(self, answers: list[Answer], cell: Cell, tag_keys: frozenset[str]) -> FeatureTable:
        try:
            objects = OsmObjects(to_opl(answers), FeatureKeys.of_scheme(tag_keys))
            table = pa.Table.from_batches(objects.batches(), FEATURE_SCHEMA)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise SourceError(
                f"the cached answers for {cell} in {self._folder} hold no proper OpenStreetMap elements "
                f"({error!r}): delete that folder and run the same command again"
            ) from None
        return feature_table(table, tag_keys, self._date or min(answer.timestamp for answer in answers))

    def fetch_coastlines(self, bounds: BoundsLonLat, around: BoundsLonLat, http: HttpClient) -> None:
        """Ask for the coastlines around a box, unless its features show that it is divided by one or lies on land.

        Raises:
            FetchError, SourceError: as `fetch` does.
        """
        if not self._needs_coastlines(bounds):
            return
        with http.pace.turn(self._host):
            self._fetch(_coast_cell(around), 0, http, self._coastline_query)

    def read_coastlines(self, bounds: BoundsLonLat, around: BoundsLonLat) -> FeatureTable | None:
        """The coastlines that touch the box around the box; None where it lies on land.

        Raises:
            SourceError: the coastlines were not fetched, or the cache is damaged.
        """
        if not self._needs_coastlines(bounds):
            return None
        paths = self._answer_paths(_coast_cell(around), self._coastline_query)
        answers = [self._cached_answer(path) for path in paths]
        return self._table(answers, Cell.around(around), COAST_KEYS)

    def _needs_coastlines(self, bounds: BoundsLonLat) -> bool:
        answers = (self._cached_answer(path) for path in self._answer_paths(Cell.around(bounds), self._query))
        return not any(tells_land_from_sea(answer.elements) for answer in answers)

    def _query(self, cell: Cell) -> str:
        return build_query(cell, self._feature_keys, self._date)

    def _coastline_query(self, cell: Cell) -> str:
        return build_coastline_query(cell, self._date)

    def _paths(self, query: str) -> tuple[Path, Path]:
        digest = hashlib.sha256(query.encode()).hexdigest()
        return self._folder / f"{digest}.json", self._folder / f"{digest}.split"

    def _answer_paths(self, cell: Cell, query_of: _QueryOf) -> Iterator[Path]:
        answer, split = self._paths(query_of(cell))
        if answer.exists():
            yield answer
        elif split.exists():
            for quarter in cell.quarters():
                yield from self._answer_paths(quarter, query_of)
        else:
            raise SourceError(
                f"the OpenStreetMap data of {cell} are not in the cache {self._folder}: run the same command again"
            )

    def _cached_answer(self, path: Path) -> Answer:
        answer = parse_answer(path.read_bytes())
        if isinstance(answer, str):
            raise SourceError(
                f"the cached answer {path} is damaged ({answer}): delete it and run the same command again"
            )
        return answer

    def _fetch(self, cell: Cell, splits: int, http: HttpClient, query_of: _QueryOf) -> None:
        query = query_of(cell)
        path, split_path = self._paths(query)
        if path.exists():
            return
        problem = "" if split_path.exists() else self._ask(cell, query, path, http)
        if problem is None:
            return
        if splits == MAX_SPLITS:
            raise FetchError(
                f"{self._host} gave {problem} even for the cell {cell}, a {4**splits:,}th of the whole box: run "
                "the same command again later, or use an OpenStreetMap file (--osm FILE)"
            )
        for quarter in cell.quarters():
            self._fetch(quarter, splits + 1, http, query_of)
        # Only now: a server that is merely overloaded today shall be asked for the whole cell again tomorrow.
        put(split_path, problem.encode())

    def _ask(self, cell: Cell, query: str, path: Path, http: HttpClient) -> str | None:
        """Ask for a cell and keep the answer; returns what came instead, where smaller cells may help."""
        waited_s = 0.0
        while True:
            self._check_budget(http)
            try:
                response = http.request(
                    "POST",
                    f"{self._api}/interpreter",
                    policy=QUERY_POLICY,
                    data={"data": query},
                    max_body_bytes=MAX_ANSWER_BYTES,
                )
            except RequestFailedError as error:
                self._count_request(0, http)
                # A server that answers at all could not bear the query.
                if self._status(http) is None:
                    raise
                return error.seen
            self._count_request(len(response.body), http)
            answer = parse_answer(response.body) if response.status == 200 else None
            if isinstance(answer, Answer):
                put(path, response.body)
                return None
            said = answer or _message_in_page(response.body) or "no reason given"
            if response.status == 429 or _BUSY in said:
                waited_s += self._wait_for_slot(cell, waited_s, said, http)
            elif response.status == 200:
                return said
            elif response.status == 504:
                return f"HTTP 504 ({said})"
            else:
                raise SourceError(
                    f"{self._host} refused the query for the cell {cell} with HTTP {response.status} ({said}): check "
                    f"the address ({self.info.address}) and the keys of the class scheme"
                )

    def _wait_for_slot(self, cell: Cell, waited_s: float, said: str, http: HttpClient) -> float:
        status = self._status(http)
        wait_s = None if status is None else seconds_until_slot(status)
        # A slot that is free now was not a moment ago, or belongs to the other one of the two servers behind the name:
        # some pause is due in any case.
        pause_s = wait_s + 1.0 if wait_s else PAUSE_S
        if waited_s + pause_s > LONGEST_WAIT_S:
            raise FetchError(
                f"{self._host} had no free slot for the cell {cell} in {waited_s:.0f} s ({said}), and the next wait "
                f"would be {pause_s:.0f} s: run the same command again later, or use an OpenStreetMap file (--osm FILE)"
            )
        self._sleep(pause_s)
        return pause_s

    def _status(self, http: HttpClient) -> str | None:
        """The server's own account of our slots; None where it does not answer."""
        try:
            response = http.request("GET", f"{self._api}/status", policy=STATUS_POLICY)
        except FetchError:
            return None
        return response.body.decode("utf-8", "replace") if response.status == 200 else None

    def _budget_path(self, now: datetime) -> Path:
        return self._folder / f"used-{now:%Y-%m-%d}.log"

    def _check_budget(self, http: HttpClient) -> None:
        if self._budget is None:
            return
        now = datetime.now(UTC)
        sizes = http.pace.spent(self._budget_path(now))
        if len(sizes) < self._budget.requests and sum(sizes) < self._budget.bytes:
            return
        anew = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        raise FetchError(
            f"{self._host} was asked {len(sizes):,} times today for {sum(sizes) / 1e6:,.0f} MB, and its guideline is "
            f"{self._budget.requests:,} requests and {self._budget.bytes / 1e6:,.0f} MB a day: run the same command "
            f"again after {anew:%Y-%m-%d %H:%M} UTC, use an OpenStreetMap file (--osm FILE), or set {API_VARIABLE} to "
            "your own server"
        )

    def _count_request(self, size: int, http: HttpClient) -> None:
        if self._budget is None:
            return
        path = self._budget_path(datetime.now(UTC))
        try:
            http.pace.spend(path, size)
        except OSError as error:
            raise cannot_write(path, error) from None


def open_overpass(argument: str | None, context: SourceContext) -> Overpass:
    """Open an Overpass server: the address given, or that of `MAGC_OVERPASS_URL`, or the public one.

    `FeatureTable.timestamp` is the pinned date, else the oldest database time of the answers.

    Raises:
        UsageError: the address or the date is not valid.
    """
    api = (argument or os.environ.get(API_VARIABLE) or PUBLIC_API).rstrip("/")
    if not re.fullmatch(r"https?://[^/]+(/.*)?/api", api):
        raise UsageError(
            f"'{remove_secrets(api)}' is not the address of an Overpass API: expected one that begins with https:// "
            f"and ends in /api, such as {PUBLIC_API}"
        )
    return Overpass(api, context, budget=PUBLIC_BUDGET if is_public_server(api) else None)


def is_public_server(api: str) -> bool:
    """Whether an address is that of the server which everybody shares."""
    host = service_name(api)
    return host == "overpass-api.de" or host.endswith(".overpass-api.de")
