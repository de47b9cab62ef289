"""Which OSM tags describe a feature at all, and which of them make a closed way an area rather than a line.

The area table is the published list "osm-polygon-features" (OSM wiki: Overpass turbo/Polygon Features) plus the three
keys at its end, which describe nothing but ground or water.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class AreaRule(NamedTuple):
    """Which values of a key make a closed way an area."""

    values: frozenset[str]
    listed_are_areas: bool
    """True: the listed values and no others. False: every value but the listed ones."""


_EVERY_VALUE = AreaRule(frozenset(), listed_are_areas=False)


def _only(*values: str) -> AreaRule:
    return AreaRule(frozenset(values), listed_are_areas=True)


def _all_but(*values: str) -> AreaRule:
    return AreaRule(frozenset(values), listed_are_areas=False)


AREA_RULES: Final[Mapping[str, AreaRule]] = {
    "aeroway": _all_but("taxiway"),
    "amenity": _EVERY_VALUE,
    "area:highway": _EVERY_VALUE,
    "barrier": _only("city_wall", "ditch", "hedge", "retaining_wall", "spikes"),
    "boundary": _EVERY_VALUE,
    "building": _EVERY_VALUE,
    "building:part": _EVERY_VALUE,
    "craft": _EVERY_VALUE,
    "golf": _EVERY_VALUE,
    "highway": _only("elevator", "escape", "rest_area", "services"),
    "historic": _EVERY_VALUE,
    "indoor": _EVERY_VALUE,
    "landuse": _EVERY_VALUE,
    "leisure": _EVERY_VALUE,
    "man_made": _all_but("cutline", "embankment", "pipeline"),
    "military": _EVERY_VALUE,
    "natural": _all_but("arete", "cliff", "coastline", "ridge", "tree_row"),
    "office": _EVERY_VALUE,
    "place": _EVERY_VALUE,
    "power": _only("generator", "plant", "substation", "transformer"),
    "public_transport": _EVERY_VALUE,
    "railway": _only("platform", "roundhouse", "station", "turntable"),
    "ruins": _EVERY_VALUE,
    "shop": _EVERY_VALUE,
    "tourism": _EVERY_VALUE,
    "waterway": _only("boatyard", "dam", "dock", "riverbank"),
    # Not in the published list, which leaves them to `natural` and `landuse`.
    "landcover": _EVERY_VALUE,
    "water": _EVERY_VALUE,
    "wetland": _EVERY_VALUE,
}

RELEVANT_KEYS: Final = frozenset({
    "aeroway",
    "amenity",
    "area:highway",
    "barrier",
    "building",
    "building:part",
    "golf",
    "highway",
    "historic",
    "landcover",
    "landuse",
    "leisure",
    "man_made",
    "military",
    "natural",
    "place",
    "power",
    "public_transport",
    "railway",
    "tourism",
    "water",
    "waterway",
    "wetland",
})  # fmt: skip
"""Keys of things that can be seen from above. A way or relation without any of them (nor a key of the class scheme) is
not kept. Wide on purpose, so that another class scheme seldom needs a new reading of the file."""

MODIFIER_KEYS: Final = frozenset({
    "abandoned",
    "area",
    "boundary",
    "bridge",
    "construction",
    "covered",
    "cutting",
    "demolished",
    "disused",
    "embankment",
    "est_width",
    "footway",
    "gauge",
    "indoor",
    "intermittent",
    "junction",
    "lanes",
    "layer",
    "leaf_cycle",
    "leaf_type",
    "level",
    "location",
    "oneway",
    "proposed",
    "razed",
    "seasonal",
    "service",
    "surface",
    "tidal",
    "tracks",
    "tracktype",
    "tunnel",
    "type",
    "usage",
    "width",
    "width:carriageway",
})  # fmt: skip
"""Keys that say something about a feature but are none by themselves; kept with it. `boundary` is among them: borders
cannot be seen, and their relations are huge."""


COAST_KEYS: Final = frozenset({"natural"})
"""Keys of coastlines."""


def closed_way_is_area(tags: Mapping[str, str], key: str) -> bool:
    """Whether a closed way is an area as far as one key of its tags is concerned.

    The same closed way may be an area for one key and a line for another (`landuse=grass` inside a `barrier=fence`).
    `area=no` and `area=yes` overrule the table; a key that is absent or `no` makes no area.
    """
    value = tags.get(key, "no")
    if value == "no":
        return False
    declared = tags.get("area")
    if declared in {"yes", "no"}:
        return declared == "yes"
    rule = AREA_RULES.get(key)
    return rule is not None and (value in rule.values) == rule.listed_are_areas
