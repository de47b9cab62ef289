"""OSM objects (a file, or OPL text in memory) to features: rows of type, id, tags and lon/lat geometry.

    relations ──► ids of the candidates ──────────────────────────────────────┐
    nodes ──► location index                                                   │ those that gave no area:
    ways  ──► lines, closed ways' rings ─────────────► batches of rows ◄── rings from the member ways that are there
    relations + their ways ──► libosmium's area assembler ──► ▲

* A closed way gives a polygon if any of its keys makes it an area, and a line if any of them does not: both, where it
  is both (`closed_way_is_area` says which for a key). Its ring is taken as it is. That is what the assembler makes of
  a simple ring, and it keeps the self-crossing ones that the assembler gives up.
* A relation (`multipolygon`, or `boundary` with a key of its own) is assembled by libosmium: courtyards are holes,
  touching inner rings are joined, roles are not believed. Relations that carry no tags of their own (multipolygons of
  before 2017, tagged on the outer way) give nothing, as there; the outer way stands for itself.
* Objects cut by the edge of an extract: a line keeps each run of two or more consecutive located nodes, and the gap
  stays a gap; an area way with a missing node is dropped; a relation keeps the outer rings that close without any
  member that is missing, with the inner rings inside them that do. No edge is ever invented.
* Polygons may be invalid in the OGC sense. The rasteriser counts all rings of a geometry together (even-odd), which
  needs no validity; who measures areas must take care.
"""

from __future__ import annotations

import functools
import json
import struct
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import osmium
import pyarrow as pa
import shapely
from osmium.filter import EntityFilter, IdFilter, KeyFilter

from magc_data.schema.osm_polygons import MODIFIER_KEYS, RELEVANT_KEYS, closed_way_is_area

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from numpy.typing import NDArray

FEATURE_SCHEMA = pa.schema(
    [
        pa.field("osm_type", pa.string(), nullable=False),
        pa.field("osm_id", pa.int64(), nullable=False),
        pa.field("tags", pa.string(), nullable=False),
        pa.field("geometry", pa.binary(), nullable=False, metadata={"ARROW:extension:name": "geoarrow.wkb"}),
    ]
)
"""One feature a row; `tags` is JSON with sorted keys, so that equal tags are equal text."""

BATCH_ROWS = 4096

_AREA_RELATION_TYPES = frozenset({"multipolygon", "boundary"})
_WKB_LINE_HEADER = struct.pack("<BI", 1, 2)
_WKB_POLYGON_OF_ONE_RING = struct.pack("<BII", 1, 3, 1)
_MIN_RING_POINTS = 4


class FeatureKeys(NamedTuple):
    """Which objects become features, and which of their tags are kept."""

    features: frozenset[str]
    kept: frozenset[str]

    @classmethod
    def of_scheme(cls, tag_keys: frozenset[str]) -> FeatureKeys:
        """The wide set of the product, and whatever a class scheme looks at beyond it."""
        features = RELEVANT_KEYS | (tag_keys - MODIFIER_KEYS)
        return cls(features, features | MODIFIER_KEYS)


class ReadReport(NamedTuple):
    """What a reading made of the objects, for the log and for tests."""

    lines: int = 0
    polygons: int = 0
    ways_cut: int = 0
    """Lines with missing nodes, of which the located runs are kept."""
    ways_dropped: int = 0
    """Area ways with missing nodes, and ways with fewer than two different located nodes."""
    relations_incomplete: int = 0
    """Relations of which only the rings that close are kept (members missing or not closing)."""
    relations_dropped: int = 0
    """Relations of which no outer ring closes."""
    newest_object: str | None = None
    """ISO 8601 time of the newest feature's last edit, where the objects carry any."""


class TagSet(NamedTuple):
    """A set of kept tags, and what a closed way with it is."""

    text: str
    is_area: bool
    is_line: bool


class OsmObjects:
    """One reading of a file or an OPL buffer: iterate over `batches()`, then look at `report`."""

    def __init__(self, data: str | bytes, keys: FeatureKeys, node_index: str = "flex_mem") -> None:
        """Prepare a reading; nothing is read yet.

        Args:
            data: path of an OSM file, or the bytes of OPL text.
            keys: which objects and tags to keep.
            node_index: libosmium's location index, e.g. `flex_mem` or `sparse_file_array,PATH`.
        """
        self._counts: Counter[str] = Counter()
        self._newest: datetime | None = None
        self._data = data
        self._feature_filter = KeyFilter(*sorted(keys.features))
        self._node_index = node_index
        # Kept tags exclude names and addresses, so few sets are distinct; the bound keeps odd files from growing it.
        self._tag_set = functools.lru_cache(maxsize=1 << 16)(functools.partial(_tag_set, keys=keys))
        self._kept = keys.kept
        self._line_wkb = osmium.geom.WKBFactory()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Read everything once, in batches of `FEATURE_SCHEMA` rows.

        Raises:
            RuntimeError: libosmium cannot read the data (its message says why).
        """
        rows: list[tuple[str, int, str, bytes]] = []
        for row in self._rows():
            rows.append(row)
            if len(rows) == BATCH_ROWS:
                yield _batch(rows)
                rows = []
        if rows:
            yield _batch(rows)

    @property
    def report(self) -> ReadReport:
        """Counts so far; complete once `batches()` is exhausted."""
        # OSM began in 2004; writers that know no time write the epoch.
        known = self._newest is not None and self._newest.year >= 2004
        return ReadReport(**self._counts, newest_object=f"{self._newest:%Y-%m-%dT%H:%M:%SZ}" if known else None)

    def _open(self) -> osmium.io.FileBuffer | str:
        return osmium.io.FileBuffer(self._data, "opl") if isinstance(self._data, bytes) else self._data

    def _rows(self) -> Iterator[tuple[str, int, str, bytes]]:
        pending = self._area_relations()
        locations = osmium.index.create_map(self._node_index)
        processor = (
            osmium.FileProcessor(self._open())
            .with_locations(locations)
            .with_areas(self._feature_filter)
            .with_filter(EntityFilter(osmium.osm.WAY | osmium.osm.AREA))
            .with_filter(self._feature_filter)
        )
        multipolygon_wkb = osmium.geom.WKBFactory()
        for item in processor:
            if item.is_way():
                yield from self._way_rows(item)
            elif not item.from_way() and item.num_rings()[0] > 0:
                tags = self._tags_of(item)
                pending.unset(item.orig_id())
                if tags.is_area or tags.is_line:
                    self._counts["polygons"] += 1
                    yield "r", item.orig_id(), tags.text, bytes.fromhex(multipolygon_wkb.create_multipolygon(item))
        if not pending.empty():
            yield from self._partial_relation_rows(pending, locations)

    def _area_relations(self) -> osmium.index.IdSet:
        ids = osmium.index.IdSet()
        for relation in osmium.FileProcessor(self._open(), osmium.osm.RELATION).with_filter(self._feature_filter):
            if relation.tags.get("type") in _AREA_RELATION_TYPES:
                ids.set(relation.id)
        return ids

    def _tags_of(self, item: osmium.osm.OSMObject) -> TagSet:
        if self._newest is None or item.timestamp > self._newest:
            self._newest = item.timestamp
        return self._tag_set(tuple([(tag.k, tag.v) for tag in item.tags if tag.k in self._kept]))

    def _way_rows(self, way: osmium.osm.Way) -> Iterator[tuple[str, int, str, bytes]]:
        tags = self._tags_of(way)
        if not (tags.is_area or tags.is_line):
            return
        try:
            wkb = bytes.fromhex(self._line_wkb.create_linestring(way))
        except osmium.InvalidLocationError:
            yield from self._cut_way_rows(way, tags)
            return
        except RuntimeError:  # fewer than two different points
            self._counts["ways_dropped"] += 1
            return
        closed = way.is_closed() or way.ends_have_same_location()
        if not closed or tags.is_line:
            self._counts["lines"] += 1
            yield "w", way.id, tags.text, wkb
        if closed and tags.is_area:
            (points,) = struct.unpack_from("<I", wkb, len(_WKB_LINE_HEADER))
            if points < _MIN_RING_POINTS:
                self._counts["ways_dropped"] += 1
                return
            self._counts["polygons"] += 1
            yield "w", way.id, tags.text, _WKB_POLYGON_OF_ONE_RING + wkb[len(_WKB_LINE_HEADER) :]

    def _cut_way_rows(self, way: osmium.osm.Way, tags: TagSet) -> Iterator[tuple[str, int, str, bytes]]:
        runs = _located_runs(way)
        if (way.is_closed() and not tags.is_line) or not runs:
            self._counts["ways_dropped"] += 1
            return
        self._counts["lines"] += 1
        self._counts["ways_cut"] += 1
        yield "w", way.id, tags.text, shapely.to_wkb(shapely.MultiLineString(runs))

    def _partial_relation_rows(
        self, pending: osmium.index.IdSet, locations: osmium.index.LocationTable
    ) -> Iterator[tuple[str, int, str, bytes]]:
        relations: list[tuple[int, str, dict[int, bool]]] = []
        wanted_ways: set[int] = set()
        # One more look at the relations only, as the first one kept nothing but ids.
        for relation in osmium.FileProcessor(self._open(), osmium.osm.RELATION).with_filter(self._feature_filter):
            if relation.id not in pending:
                continue
            tags = self._tags_of(relation)
            inner_by_way = {member.ref: member.role == "inner" for member in relation.members if member.type == "w"}
            if tags.is_area or tags.is_line:
                relations.append((relation.id, tags.text, inner_by_way))
                wanted_ways.update(inner_by_way)
        parts: dict[int, _Part] = {}
        if wanted_ways:
            ways = osmium.FileProcessor(self._open(), osmium.osm.WAY).with_filter(IdFilter(wanted_ways))
            for way in ways:
                part = _complete_part(way, locations)
                if part is not None:
                    parts[way.id] = part
        for relation_id, text, inner_by_way in relations:
            polygons = _polygons_of_parts(
                [parts[way] for way, inner in inner_by_way.items() if not inner and way in parts],
                [parts[way] for way, inner in inner_by_way.items() if inner and way in parts],
            )
            if polygons:
                self._counts["polygons"] += 1
                self._counts["relations_incomplete"] += 1
                yield "r", relation_id, text, shapely.to_wkb(shapely.multipolygons(polygons))
            else:
                self._counts["relations_dropped"] += 1


def _tag_set(pairs: tuple[tuple[str, str], ...], keys: FeatureKeys) -> TagSet:
    tags = dict(sorted(pairs))
    kinds = {closed_way_is_area(tags, key) for key, value in tags.items() if key in keys.features and value != "no"}
    text = json.dumps(tags, ensure_ascii=False, separators=(",", ":"))
    return TagSet(text, is_area=True in kinds, is_line=False in kinds)


def _batch(rows: list[tuple[str, int, str, bytes]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), FEATURE_SCHEMA, strict=True)],
        schema=FEATURE_SCHEMA,
    )


def _located_runs(way: osmium.osm.Way) -> list[NDArray[np.float64]]:
    """Coordinates of the way's stretches of at least two consecutive located, different nodes."""
    runs: list[list[tuple[float, float]]] = [[]]
    for node in way.nodes:
        if not node.location.valid():
            runs.append([])
        elif not runs[-1] or runs[-1][-1] != (node.lon, node.lat):
            runs[-1].append((node.lon, node.lat))
    return [np.array(run) for run in runs if len(run) > 1]


class _Part(NamedTuple):
    """A way of which every node is located, as a piece of rings; `[n, 2]` lon/lat."""

    first_node: int
    last_node: int
    coordinates: NDArray[np.float64]


def _complete_part(way: osmium.osm.Way, locations: osmium.index.LocationTable) -> _Part | None:
    points: list[tuple[float, float]] = []
    for node in way.nodes:
        try:
            location = locations.get(node.ref)
        except KeyError:
            return None
        points.append((location.lon, location.lat))
    return _Part(way.nodes[0].ref, way.nodes[-1].ref, np.array(points)) if len(points) > 1 else None


def _closed_rings(parts: Iterable[_Part]) -> list[NDArray[np.float64]]:
    """Join ways end to end into the rings that close; ways that are part of none are left out.

    Where more than two ways meet in a node, several decompositions into rings exist. All of them have the same edges,
    and so the same even-odd inside.
    """
    rings = [part.coordinates for part in parts if part.first_node == part.last_node]
    open_parts = {index: part for index, part in enumerate(parts) if part.first_node != part.last_node}
    at_node: dict[int, set[int]] = {}
    for index, part in open_parts.items():
        at_node.setdefault(part.first_node, set()).add(index)
        at_node.setdefault(part.last_node, set()).add(index)

    def remove(index: int) -> _Part:
        part = open_parts.pop(index)
        at_node[part.first_node].discard(index)
        at_node[part.last_node].discard(index)
        return part

    dead_ends = [node for node, meeting in at_node.items() if len(meeting) == 1]
    while dead_ends:
        for index in tuple(at_node[dead_ends.pop()]):
            part = remove(index)
            dead_ends.extend(node for node in part[:2] if len(at_node[node]) == 1)

    while open_parts:
        part = remove(next(iter(open_parts)))
        start, end = part.first_node, part.last_node
        pieces = [part.coordinates]
        while end != start and at_node[end]:
            part = remove(min(at_node[end]))
            forward = part.first_node == end
            end = part.last_node if forward else part.first_node
            pieces.append(part.coordinates[1:] if forward else part.coordinates[-2::-1])
        if end == start:
            rings.append(np.concatenate(pieces))
    return [ring for ring in rings if len(ring) >= _MIN_RING_POINTS]


def _polygons_of_parts(outer: list[_Part], inner: list[_Part]) -> list[shapely.Polygon]:
    """Polygons of the closed outer rings with the closed inner rings that lie in them."""
    shells = _closed_rings(outer)
    areas = [shapely.polygons(shell) for shell in shells]
    holes: list[list[NDArray[np.float64]]] = [[] for _ in shells]
    for ring in _closed_rings(inner):
        inside = shapely.Polygon(ring).representative_point()
        for area, of_area in zip(areas, holes, strict=True):
            if shapely.contains_xy(area, inside.x, inside.y):
                of_area.append(ring)
                break
    return [shapely.Polygon(shell, of_area) for shell, of_area in zip(shells, holes, strict=True)]
