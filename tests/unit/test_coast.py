"""Coastlines to sea: every made-up coast here says beforehand what is land, and is asked at many places."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from magc_data.coast import Sea, is_sea, sea_in_box
from magc_data.grid import BoundsLonLat
from magc_data.rasterize import PixelWindow, burn_window, ring_table

Point = tuple[float, float]
BOX = BoundsLonLat(0.0, 0.0, 10.0, 10.0)
# The sea in the west, land in the east: land is on the left of a line that runs south.
WEST_COAST = [(5.0, 12.0), (5.0, -2.0)]
ISLAND = [(1.0, 1.0), (3.0, 1.0), (3.0, 3.0), (1.0, 3.0), (1.0, 1.0)]
FAR_ISLAND = [(21.0, 1.0), (23.0, 1.0), (23.0, 3.0), (21.0, 3.0), (21.0, 1.0)]


def sea_of(*lines: list[Point], bounds: BoundsLonLat = BOX) -> Sea | None:
    return sea_in_box([np.array(line, dtype=float) for line in lines], bounds)


def sketch(sea: Sea, size: int = 10, bounds: BoundsLonLat = BOX) -> list[str]:
    """Rows from the north: `~` sea, `.` land, `?` unknown."""
    west, south, east, north = bounds
    rows = []
    for y in np.linspace(north, south, 2 * size + 1)[1::2]:
        row = ""
        for x in np.linspace(west, east, 2 * size + 1)[1::2]:
            known = not any(shapely.intersects_xy(each.ground, x, y) for each in sea.unknown)
            row += ("~" if is_sea(sea, x, y) else ".") if known else "?"
        rows.append(row)
    return rows


def problems(sea: Sea) -> list[str]:
    return [each.problem for each in sea.unknown]


def split_at(line: list[Point], *places: int) -> list[list[Point]]:
    edges = [0, *places, len(line) - 1]
    return [line[first : last + 1] for first, last in itertools.pairwise(edges)]


def test_the_sea_lies_on_the_right_of_a_coastline() -> None:
    sea = sea_of(WEST_COAST)
    assert sea is not None
    assert sketch(sea) == ["~~~~~....."] * 10
    assert sea.unknown == ()
    turned = sea_of(WEST_COAST[::-1])
    assert turned is not None
    assert sketch(turned) == [".....~~~~~"] * 10


def test_an_island_is_land_in_the_sea_and_a_ring_the_other_way_round_is_sea_in_the_land() -> None:
    alone = sea_of(ISLAND)
    assert alone is not None
    assert sketch(alone) == ["~" * 10] * 7 + ["~..~~~~~~~"] * 2 + ["~" * 10]
    turned = sea_of(ISLAND[::-1])
    assert turned is not None
    assert sketch(turned) == ["." * 10] * 7 + [".~~......."] * 2 + ["." * 10]
    both = sea_of(WEST_COAST, ISLAND)
    assert both is not None
    assert sketch(both) == ["~~~~~....."] * 7 + ["~..~~....."] * 2 + ["~~~~~....."]


def test_a_strait_has_two_coasts_and_lakes_of_sea_have_islands() -> None:
    strait = sea_of([(3.0, -1.0), (3.0, 11.0)], [(7.0, 11.0), (7.0, -1.0)])
    assert strait is not None
    assert sketch(strait) == ["...~~~~..."] * 10
    lagoon = [(1.0, 1.0), (1.0, 9.0), (9.0, 9.0), (9.0, 1.0), (1.0, 1.0)]
    nested = sea_of(lagoon, [(4.0, 4.0), (6.0, 4.0), (6.0, 6.0), (4.0, 6.0), (4.0, 4.0)])
    assert nested is not None
    assert sketch(nested)[0] == "." * 10
    assert sketch(nested)[1] == ".~~~~~~~~."
    assert sketch(nested)[5] == ".~~~..~~~."


def test_several_coastlines_cross_the_box_and_each_has_its_land_on_the_left() -> None:
    corners = [
        [(3.0, -1.0), (3.0, 3.0), (-1.0, 3.0)],  # land in the south-west
        [(-1.0, 7.0), (3.0, 7.0), (3.0, 11.0)],
        [(7.0, 11.0), (7.0, 7.0), (11.0, 7.0)],
        [(11.0, 3.0), (7.0, 3.0), (7.0, -1.0)],
    ]
    sea = sea_of(*corners)
    assert sea is not None
    assert sketch(sea) == ["...~~~~..."] * 3 + ["~" * 10] * 4 + ["...~~~~..."] * 3
    assert sketch(sea_of(*[line[::-1] for line in corners]) or Sea(None)) == (
        ["~~~....~~~"] * 3 + ["." * 10] * 4 + ["~~~....~~~"] * 3
    )


def test_where_no_coastline_divides_the_box_nothing_is_said() -> None:
    assert sea_of() is None
    assert sea_of(FAR_ISLAND) is None
    assert sea_of([(0.0, 12.0), (0.0, -2.0)]) is None  # along the edge
    assert sea_of([(-3.0, 5.0), (-1.0, 5.0)]) is None


def test_a_coastline_that_leaves_the_box_may_do_what_it_likes_outside() -> None:
    detour = [(5.0, 15.0), (5.0, -2.0), (-8.0, -2.0), (-8.0, 14.0), (20.0, 14.0), (20.0, -9.0)]
    sea = sea_of(detour)
    assert sea is not None
    assert sketch(sea) == ["~~~~~....."] * 10


@settings(max_examples=40, deadline=None)
@given(order=st.permutations(range(6)), reverse=st.booleans())
def test_ways_are_joined_in_whatever_order_they_come(order: list[int], reverse: bool) -> None:
    coast = [(5.0, 12.0), (4.0, 8.0), (6.0, 7.0), (4.0, 5.0), (6.0, 4.0), (5.0, 2.0), (5.0, -2.0)]
    coast = coast[::-1] if reverse else coast
    whole = sea_of(coast)
    pieces = split_at(coast, 1, 2, 3, 4, 5)
    joined = sea_of(*[pieces[number] for number in order])
    assert whole is not None
    assert joined is not None
    assert joined.unknown == ()
    assert sketch(joined) == sketch(whole)


def test_a_line_that_came_twice_counts_once() -> None:
    sea = sea_of(WEST_COAST, WEST_COAST, ISLAND, ISLAND)
    assert sea is not None
    assert sea.unknown == ()
    assert sketch(sea)[8] == "~..~~....."


def test_islands_that_touch_are_both_land() -> None:
    other = [(3.0, 3.0), (4.0, 3.0), (4.0, 4.0), (3.0, 4.0), (3.0, 3.0)]
    sea = sea_of(ISLAND, other)
    assert sea is not None
    assert sea.unknown == ()
    assert sketch(sea)[6:9] == ["~~~.~~~~~~", "~..~~~~~~~", "~..~~~~~~~"]


def test_a_gap_is_bridged_and_the_ground_around_it_unknown() -> None:
    sea = sea_of([(5.0, 12.0), (5.0, 5.4)], [(5.0, 4.6), (5.0, -2.0)])
    assert sea is not None
    assert problems(sea)[0].startswith("a coastline ends in the midst at 5.00000,")
    rows = sketch(sea)
    assert rows[0] == rows[9] == "~~~~~....."
    assert rows[4] == rows[5] == "~~~~??...."
    assert sea.unknown[0].ground.area < 4


def test_a_coastline_cut_off_at_the_edge_of_an_extract_is_led_out_the_nearest_way() -> None:
    sea = sea_of([(5.0, 9.7), (5.0, -2.0)])
    assert sea is not None
    assert sketch(sea, 20)[1:] == ["~" * 10 + "." * 10] * 19
    assert sketch(sea, 40)[0] == "~" * 19 + "??" + "." * 19
    both = sea_of([(5.0, 9.7), (5.0, 0.2)])
    assert both is not None
    assert sketch(both, 20)[1:19] == ["~" * 10 + "." * 10] * 18


def test_a_coastline_that_ends_in_the_midst_leaves_much_unknown() -> None:
    sea = sea_of([(5.0, 12.0), (5.0, 5.0)])
    assert sea is not None
    assert problems(sea) == ["a coastline ends in the midst at 5.00000,5.00000"]
    assert "".join(sketch(sea)).count("?") > 50


def test_ends_a_hand_apart_are_one_node_that_a_projection_has_moved() -> None:
    hand = 1e-7  # one centimetre
    sea = sea_of([(5.0, 12.0), (5.0, 5.0)], [(5.0 + hand, 5.0), (5.0, -2.0)])
    assert sea is not None
    assert sea.unknown == ()
    assert sketch(sea) == ["~~~~~....."] * 10
    ring = sea_of([*ISLAND[:-1], (1.0, 1.0 + hand)])
    assert ring is not None
    assert ring.unknown == ()
    assert sketch(ring)[8] == "~..~~~~~~~"


def test_an_island_drawn_the_wrong_way_round_is_unknown_and_the_rest_is_not() -> None:
    small = [(1.0, 1.0), (1.0, 2.0), (2.0, 2.0), (2.0, 1.0), (1.0, 1.0)]
    sea = sea_of(WEST_COAST, small)
    assert sea is not None
    assert problems(sea)[0].startswith("coastlines contradict each other at 1.")
    assert sketch(sea) == ["~~~~~....."] * 8 + ["~?~~~....."] + ["~~~~~....."]


@pytest.mark.parametrize(
    "lines",
    [
        [WEST_COAST, [(2.0, 12.0), (2.0, -2.0)]],  # land west of one and sea west of the other
        [WEST_COAST, WEST_COAST[::-1]],
        [[(x, 12.0), (x, -2.0)] for x in (2.0, 4.0, 6.0, 8.0)],
    ],
)
def test_coastlines_that_contradict_each_other_make_all_of_the_box_unknown(lines: list[list[Point]]) -> None:
    sea = sea_of(*lines)
    assert sea is not None
    assert sketch(sea) == ["?" * 10] * 10
    assert len(problems(sea)) == 1


def test_a_heap_of_loose_ends_is_no_coastline() -> None:
    sea = sea_of(*[[(0.01 * n + 0.5, 3.0), (0.01 * n + 0.505, 4.0)] for n in range(300)])
    assert sea is not None
    assert sketch(sea) == ["?" * 10] * 10
    assert problems(sea)[0].startswith("600 coastlines end in the midst")


def wavy_coast(phase: float, count: int) -> np.ndarray:
    """A coastline from the north to the south of the box, as wavy as a fractal, and its islands in a second part."""
    t = np.linspace(12, -2, count)
    return np.column_stack([5 + 1.5 * np.sin(t + phase) + 0.4 * np.sin(7 * t) + 0.1 * np.sin(31 * t + phase), t])


@settings(max_examples=25, deadline=None)
@given(phase=st.floats(0, 6.3), count=st.integers(5, 400), seed=st.integers(0, 2**31))
def test_any_box_around_a_place_says_the_same_of_it(phase: float, count: int, seed: int) -> None:
    """Every pixel of every small box is the pixel that the large one has: the pixels do not depend on the tiling."""
    rng = np.random.default_rng(seed)
    lines = [wavy_coast(phase, count)]
    lines += [
        np.array([(x + r * math.cos(a), y + r * math.sin(a)) for a in np.linspace(0, 2 * math.pi, 9)])
        for x, y, r in zip(rng.uniform(0.3, 2.5, 6), np.arange(6) * 1.6 + 0.9, rng.uniform(0.05, 0.6, 6), strict=True)
    ]
    for line in lines[1:]:
        line[-1] = line[0]
    size_px = 200
    scale = size_px / 10

    def burn(bounds: BoundsLonLat, window: PixelWindow) -> np.ndarray:
        sea = sea_in_box(lines, bounds)
        assert sea is not None
        assert sea.unknown == ()
        on_grid = shapely.transform(sea.polygon, lambda xy: np.column_stack([xy[:, 0] * scale, 200 - xy[:, 1] * scale]))
        return burn_window(ring_table([on_grid]), [1], window)

    whole = burn(BOX, PixelWindow(0, 0, size_px, size_px))
    assert 0 < whole.mean() < 1
    for y in range(0, size_px, 25):
        bounds = BoundsLonLat(0.0, 10 - (y + 25) / scale - 0.1, 10.0, 10 - y / scale + 0.1)
        part = burn(bounds, PixelWindow(0, y, size_px, 25))
        assert np.array_equal(part, whole[y : y + 25])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_the_sea_is_what_polygons_of_the_same_land_leave(seed: int) -> None:
    """Land made of polygons, whose outlines become coastlines, cut up at random: shapely says what is land."""
    rng = np.random.default_rng(seed)
    land = shapely.union_all(
        [shapely.buffer(shapely.Point(x, y), r) for x, y, r in rng.uniform((-1, -1, 0.3), (11, 11, 2.5), (12, 3))]
    )
    pieces = []
    for polygon in shapely.get_parts(land):
        for ring in (polygon.exterior, *polygon.interiors):
            line = shapely.get_coordinates(ring)
            # Land on the left: shells anticlockwise, lakes of sea clockwise.
            line = (
                line
                if shapely.is_ccw(ring) == (ring is polygon.exterior or ring.equals(polygon.exterior))
                else line[::-1]
            )
            cuts = sorted({0, len(line) - 1, *rng.integers(1, len(line) - 1, 3).tolist()})
            pieces += [line[first : last + 1] for first, last in itertools.pairwise(cuts)]
    sea = sea_in_box(pieces, BOX)
    places = rng.uniform(0, 10, (200, 2))
    if sea is None:
        assert len(set(shapely.contains_xy(land, places).tolist())) == 1
        return
    assert sea.unknown == ()
    assert [is_sea(sea, x, y) for x, y in places] == (~shapely.contains_xy(land, places)).tolist()
