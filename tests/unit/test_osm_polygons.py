"""The closed-way table against the published one, as osmnx ships it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magc_data.schema.osm_polygons import AREA_RULES, MODIFIER_KEYS, RELEVANT_KEYS, closed_way_is_area

OUR_OWN = {"landcover", "water", "wetland"}


def published_rule(key: str, value: str) -> bool:
    from osmnx.features import _POLYGON_FEATURES

    rule = _POLYGON_FEATURES.get(key)
    if rule is None:
        return False
    listed = value in rule.get("values", ())
    return {"all": True, "passlist": listed, "blocklist": not listed}[rule["polygon"]]


def test_the_table_is_the_published_one() -> None:
    from osmnx.features import _POLYGON_FEATURES

    # osmnx has `area` itself as a key; here it overrules all others.
    assert set(AREA_RULES) - OUR_OWN == set(_POLYGON_FEATURES) - {"area"}
    for key in set(AREA_RULES) - OUR_OWN:
        values = {"yes", "anything", *_POLYGON_FEATURES[key].get("values", ()), *AREA_RULES[key].values}
        for value in values:
            assert closed_way_is_area({key: value}, key) == published_rule(key, value), (key, value)


@given(st.sampled_from(sorted(AREA_RULES)), st.text(min_size=1).filter(lambda value: value != "no"))
def test_area_overrules_every_rule(key: str, value: str) -> None:
    assert closed_way_is_area({key: value, "area": "yes"}, key)
    assert not closed_way_is_area({key: value, "area": "no"}, key)


@pytest.mark.parametrize(
    ("tags", "key", "expected"),
    [
        ({"highway": "residential"}, "highway", False),
        ({"highway": "pedestrian", "area": "yes"}, "highway", True),
        ({"highway": "services"}, "highway", True),
        ({"natural": "water", "barrier": "fence"}, "natural", True),
        ({"natural": "water", "barrier": "fence"}, "barrier", False),
        ({"natural": "coastline"}, "natural", False),
        ({"building": "no"}, "building", False),
        ({"building": "no", "area": "yes"}, "building", False),
        ({"area": "yes"}, "building", False),
        ({"water": "lake"}, "water", True),
        ({"seamark:type": "fairway"}, "seamark:type", False),
        ({"seamark:type": "fairway", "area": "yes"}, "seamark:type", True),
        ({"waterway": "river"}, "waterway", False),
        ({"waterway": "dock"}, "waterway", True),
    ],
)
def test_each_key_is_judged_by_itself(tags: dict[str, str], key: str, expected: bool) -> None:
    assert closed_way_is_area(tags, key) is expected


def test_feature_keys_and_modifiers_are_apart() -> None:
    assert not RELEVANT_KEYS & MODIFIER_KEYS
    assert {"area", "layer", "width", "width:carriageway", "tunnel", "boundary"} <= MODIFIER_KEYS
