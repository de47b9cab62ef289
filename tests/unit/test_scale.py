"""What a plan comes to: spans hold what they should, and grow where less is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magc_data.scale import LABEL_TILES_PER_S, Scale, Span, available_share, scale_lines, scale_of

SETTINGS = {
    "tiles": 1_000_000,
    "blocks": 1000,
    "blocks_asked": 64,
    "blank_share": 0.25,
    "tiles_to_fetch": 750_000,
    "tile_bytes": 13_000,
    "image_bytes": 13_000,
    "label_tiles_per_s": LABEL_TILES_PER_S,
    "map_bytes": 5_500,
    "requests_per_s": 8.0,
    "workers": 2,
    "has_imagery": True,
    "overpass_queries": None,
}


@given(
    st.integers(1, 10**9),
    st.floats(0, 1),
    st.none() | st.floats(0, 1),
    st.floats(0.1, 1000),
    st.integers(1, 64),
    st.booleans(),
    st.booleans(),
)
def test_every_span_is_in_order(
    tiles: int, cached: float, blank: float | None, rate: float, workers: int, has_imagery: bool, of_pairs: bool
) -> None:
    blocks = max(1, tiles // 700)
    to_fetch = round(tiles * (1 - (blank or 0)) * (1 - cached))
    changes = {"tiles": tiles, "blocks": blocks, "blocks_asked": min(64, blocks) if blank is not None else 0}
    changes |= {"blank_share": blank, "tiles_to_fetch": to_fetch, "requests_per_s": rate, "workers": workers}
    if of_pairs:
        changes |= {"tiles_to_fetch": 2 * to_fetch, "is_half_of_pairs": True, "datasets": 2}
    scale = scale_of(**(SETTINGS | changes | {"has_imagery": has_imagery}))
    for value in scale:
        if isinstance(value, Span):
            assert 0 <= value.low <= value.expected * (1 + 1e-9)
            assert value.expected <= value.high * (1 + 1e-9)


def test_the_share_of_a_sample_is_within_its_span_19_times_of_20() -> None:
    """At least: blocks here are wholly there or wholly blank, as the span assumes."""
    rng = np.random.default_rng(1)
    for truth in (0.02, 0.3, 0.5, 0.9):
        there = np.zeros(2000, bool)
        there[: round(2000 * truth)] = True
        held = 0
        for _ in range(400):
            sample = rng.choice(there, 64, replace=False)
            span = available_share(1 - sample.mean(), 64, 2000)
            held += span.low <= truth <= span.high
        assert held >= 0.92 * 400


def test_a_share_that_is_known_has_no_span_and_one_that_is_not_has_all() -> None:
    assert available_share(0.25, 10, 10) == Span(0.75, 0.75, 0.75)
    assert available_share(None, 0, 10) == Span(0.0, 1.0, 1.0)
    assert available_share(0.0, 64, 10_000).low < 1.0


def test_days_follow_from_the_rate() -> None:
    """750,000 tiles and one request a block, at 8 a second."""
    scale = scale_of(**SETTINGS)
    assert scale.fetch_days.expected == pytest.approx((750_000 + 1000) / 8 / 86_400)
    assert scale_of(**(SETTINGS | {"requests_per_s": 4.0})).fetch_days.high == pytest.approx(2 * scale.fetch_days.high)
    assert scale.label_core_days.expected == pytest.approx(750_000 / 225 / 86_400)


def test_samples_that_are_made_of_several_tiles_cost_what_those_cost() -> None:
    ground = SETTINGS | {"tiles_to_fetch": 3_000_000, "image_bytes": 100_000}
    scale = scale_of(**ground)
    assert scale.fetch_bytes.expected == pytest.approx(3_000_000 * 13_000)
    assert scale.dataset_bytes.expected == pytest.approx(750_000 * 105_500)


def test_pairs_cost_what_tells_them_from_the_others_and_then_all_twice() -> None:
    """From a request a tile, where nothing changed, to two and two pictures."""
    tiles = 1_000_000
    changes = {"blocks_asked": 0, "blank_share": None, "tiles_to_fetch": 2 * tiles, "is_half_of_pairs": True}
    scale = scale_of(**(SETTINGS | changes | {"datasets": 2}))
    days = [each * 86_400 * 8 for each in scale.fetch_days]
    assert days == pytest.approx([tiles, 4 * tiles, 4 * tiles])
    assert (scale.fetch_bytes.low, scale.dataset_bytes.low, scale.shards.low) == (0, 0, 0)
    assert scale.fetch_bytes.expected == scale.cache_bytes.expected == pytest.approx(2 * tiles * 13_000)
    assert scale.dataset_bytes.expected == pytest.approx(2 * tiles * 18_500)
    assert scale.label_core_days.expected == pytest.approx(2 * tiles / 225 / 86_400)
    assert scale.shards.high == 2000
    alone = scale_of(**(SETTINGS | changes))
    assert (alone.fetch_days, alone.fetch_bytes) == (scale.fetch_days, scale.fetch_bytes)
    assert alone.dataset_bytes.expected == pytest.approx(tiles * 18_500)


def lines(scale: Scale) -> dict[str, str]:
    return {line.split()[0]: line for line in scale_lines(scale)}


def test_maps_alone_fetch_nothing_and_overpass_has_its_own_days() -> None:
    assert "fetching" in lines(scale_of(**SETTINGS))
    alone = lines(scale_of(**(SETTINGS | {"has_imagery": False, "tiles_to_fetch": 0, "overpass_queries": 1000})))
    assert alone.keys() == {"labelling", "shards", "disk", "memory", "Overpass"}
    assert "0.1 days" in alone["Overpass"]
