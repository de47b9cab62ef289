"""Sides of a split: where blocks lie, what they draw, the ring between them, balance and sizes; distances; near-duplicates."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pyproj
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from magc_data.area import area_from_bbox
from magc_data.area import blocks as blocks_of_area
from magc_data.errors import UsageError
from magc_data.ground_grid import GroundGrid
from magc_data.schema.classes import load_scheme
from magc_data.splits.blocks import GroundBlocks, drawn, hashed
from magc_data.splits.ground import (
    gap_m,
    latitude_rad,
    rects_of_boxes,
    smallest_gap_m,
    smallest_gap_of_rects_m,
    tile_rects,
    tile_size_m,
)
from magc_data.splits.near_duplicates import MAX_BITS_APART, MAX_EXAMPLES, near_duplicates, perceptual_hash
from magc_data.splits.sides import (
    LEFT_OUT,
    SIDES,
    Ground,
    Settings,
    Tiles,
    almost_empty,
    assign,
    divergence_bits,
    refuse_if_too_small,
    shortfall,
    stratified_seed,
)

if TYPE_CHECKING:
    from pathlib import Path

SPHERE = pyproj.Geod(a=6378137.0, b=6378137.0)
RATIOS = Settings(1000.0, (0.6, 0.2, 0.2), None, 0, 0.0, None)


def tiles_of(x: np.ndarray, y: np.ndarray, zoom: int = 17) -> Tiles:
    """With class shares that follow from the place alone."""
    shares = np.stack([1 + (x % 7), 1 + (y % 5), np.ones_like(x)], axis=1).astype(float)
    return Tiles(zoom, x, y, shares / shares.sum(axis=1, keepdims=True), (x * 31 + y * 17) % 5 == 0)


def square(width: int, zoom: int = 17, x0: int = 70000, y0: int = 50000) -> Tiles:
    y, x = np.divmod(np.arange(width * width), width)
    return tiles_of(x + x0, y + y0, zoom)


zooms = st.integers(14, 19)


@st.composite
def places(draw: st.DrawFn, count: int = 2, near: int = 40) -> tuple[int, np.ndarray, np.ndarray]:
    """Tiles anywhere between 80 degrees south and north, some tiles apart, the antimeridian included."""
    zoom = draw(zooms)
    world = 2**zoom
    lowest, highest = (int((1 - np.arcsinh(np.tan(np.radians(lat))) / np.pi) / 2 * world) for lat in (80, -80))
    x0 = draw(st.one_of(st.integers(0, world - 1), st.integers(-near, near)))
    y0 = draw(st.integers(lowest, highest))
    steps = st.lists(st.integers(0, near), min_size=count, max_size=count)
    return zoom, (x0 + np.array(draw(steps))) % world, np.clip(y0 + np.array(draw(steps)), lowest, highest)


@given(places())
def test_a_gap_is_what_the_nearest_points_of_two_tiles_are_apart(place: tuple[int, np.ndarray, np.ndarray]) -> None:
    """Compared with a thousand pairs of points of the tiles' edges, by another library."""
    zoom, x, y = place
    assume(abs(int(x[0]) - int(x[1])) < 1000)  # gap_m itself knows nothing of the antimeridian
    first, second = ((tile_rects(x[n : n + 1], y[n : n + 1])) for n in (0, 1))
    gap = float(gap_m(first, second, zoom)[0])
    along = np.linspace(0, 1, 17)
    edges = np.array([(a, b) for t in along for a, b in ((t, 0), (t, 1), (0, t), (1, t))])
    lon, lat = (
        [(x[n] + edges[:, 0]) / 2**zoom * 360 - 180 for n in (0, 1)],
        [np.degrees(latitude_rad(y[n] + edges[:, 1], zoom)) for n in (0, 1)],
    )
    a, b = (each.reshape(-1) for each in np.meshgrid(np.arange(len(edges)), np.arange(len(edges))))
    measured = float(SPHERE.inv(lon[0][a], lat[0][a], lon[1][b], lat[1][b])[2].min())
    assert gap == pytest.approx(measured, rel=2e-3, abs=1e-3)


@given(places(count=30), st.integers(0, 2**32))
@settings(deadline=None)
def test_the_smallest_gap_is_that_of_all_pairs(place: tuple[int, np.ndarray, np.ndarray], seed: int) -> None:
    zoom, x, y = place
    sides = np.random.default_rng(seed).integers(-1, 3, len(x)).astype(np.int8)
    pairs = np.argwhere((sides[:, None] >= 0) & (sides[None, :] > sides[:, None]))
    found = smallest_gap_m(x, y, sides, zoom)
    if not len(pairs):
        assert found is None
        return
    a, b = pairs.T
    gaps = [gap_m(tile_rects(x[a] + shift, y[a]), tile_rects(x[b], y[b]), zoom) for shift in (0, 2**zoom, -(2**zoom))]
    assert found == pytest.approx(float(np.min(gaps)), abs=1e-6)


def test_far_apart_the_nearest_on_the_ground_is_not_the_nearest_on_the_map() -> None:
    """1,000 tiles north are fewer metres than 990 south, as the projection stretches the north."""
    x, y = np.array([9000, 9000, 9000]), np.array([3000, 2000, 3990])
    north, south = (gap_m(tile_rects(x[:1], y[:1]), tile_rects(x[n:][:1], y[n:][:1]), 14)[0] for n in (1, 2))
    assert north < south
    assert smallest_gap_m(x, y, np.array([0, 1, 1], dtype=np.int8), 14) == pytest.approx(float(north))


def test_the_smallest_gap_may_lie_over_the_antimeridian() -> None:
    world = 2**14
    x, y = np.array([0, world - 2, 500]), np.array([8000, 8000, 8000])
    one_tile_m = float(tile_size_m(y[:1], 14)[0])
    for sides in ([0, 1, 1], [1, 0, 0]):
        assert smallest_gap_m(x, y, np.array(sides, dtype=np.int8), 14) == pytest.approx(one_tile_m, rel=1e-3)


@given(places(count=20), st.floats(0, 1))
def test_blocks_partition_the_tiles_and_are_as_large_as_they_say(
    place: tuple[int, np.ndarray, np.ndarray], extra: float
) -> None:
    zoom, x, y = place
    tile_m = tile_size_m(y, zoom)
    blocks = GroundBlocks(zoom, float(tile_m.max()) * (2 + 20 * extra))
    bands = blocks.bands(y)
    columns = blocks.columns(x, bands)
    rects = blocks.rects(bands, columns)
    for low, value, high in ((rects.x0, x, rects.x1), (rects.y0, y, rects.y1)):
        assert (low <= value).all()
        assert (value < high).all()
    # To the tile, and not where a block is cut off by the antimeridian.
    whole = (rects.x0 > 0) & (rects.x1 < 2**zoom)
    height_m = gap_m(tile_rects(rects.x0, rects.y0 - 1), tile_rects(rects.x0, rects.y1), zoom)
    assert np.abs(height_m - blocks.block_m).max() < 1.2 * tile_m.max()
    width_m = (rects.x1 - rects.x0) * tile_size_m((rects.y0 + rects.y1) / 2, zoom)
    assert (np.abs(width_m - blocks.block_m) < 1.2 * tile_m.max() + 0.01 * blocks.block_m)[whole].all()
    # The tiles beside a block are in another one.
    assert (blocks.columns(np.minimum(rects.x1, 2**zoom - 1).astype(int), bands) != columns)[whole].all()
    assert (blocks.bands(rects.y1.astype(int)) == bands - 1).all()


def sides_of(settings: Settings, zoom: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of any tiles, without a buffer."""
    return assign(tiles_of(x, y, zoom), settings._replace(buffer_m=0.0)).sides


@given(places(count=12), st.floats(1, 6), st.floats(0, 1), st.integers(0, 1000))
@settings(deadline=None, max_examples=50)
def test_the_ring_is_where_ground_of_an_earlier_side_is_near(
    place: tuple[int, np.ndarray, np.ndarray], blocks: float, buffer: float, seed: int
) -> None:
    """Compared with looking at every tile around, be it in the dataset or not."""
    zoom, x, y = place
    block_m = float(tile_size_m(y, zoom).max()) * blocks
    options = Settings(block_m, (0.5, 0.25, 0.25), None, seed, block_m * buffer, None)
    found = assign(tiles_of(x, y, zoom), options).sides == LEFT_OUT
    sides = sides_of(options, zoom, x, y)
    reach = int(np.ceil(options.buffer_m / tile_size_m(y, zoom).min() * 1.2)) + 1
    expected = np.zeros(len(x), dtype=bool)
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            other_x, other_y = x + dx, y + dy
            near = gap_m(tile_rects(x, y), tile_rects(other_x, other_y), zoom) < options.buffer_m
            expected |= near & (sides_of(options, zoom, other_x % 2**zoom, other_y) > sides)
    assert (found == expected).all()


@given(st.integers(0, 10**6), st.floats(0, 1), st.integers(0, 120000))
@settings(deadline=None, max_examples=30)
def test_with_a_buffer_no_two_sides_are_nearer(seed: int, buffer: float, y0: int) -> None:
    tiles = square(24, y0=y0)
    block_m = 5 * float(tile_size_m(tiles.y, tiles.zoom).max())
    options = Settings(block_m, (0.6, 0.2, 0.2), None, seed, block_m * buffer, None)
    distance_m = smallest_gap_m(tiles.x, tiles.y, assign(tiles, options).sides, tiles.zoom)
    assert distance_m is None or distance_m >= options.buffer_m


growing = st.fixed_dictionaries({"seed": st.integers(0, 2**63 - 1), "buffer_m": st.sampled_from([0.0, 300.0, 1000.0])})


@given(growing, st.integers(0, 2**32))
@settings(deadline=None, max_examples=30)
def test_what_was_there_before_a_dataset_grew_stays_on_its_side(options: dict, chosen: int) -> None:
    """By ratios every tile keeps its side and every tile left out stays so, whichever tiles come."""
    grown = square(20)
    before = np.random.default_rng(chosen).random(len(grown.x)) < 0.4
    asked = RATIOS._replace(**options)
    old = grown.chosen(before)
    assert (assign(old, asked).sides == assign(grown, asked).sides[before]).all()
    # By sizes and with balance a tile may be left out or taken in, but never goes from one side to another.
    for choosing in (
        asked._replace(ratios=None, sizes=(60, 10, 10)),
        asked._replace(empty_share=0.5),
        asked._replace(ratios=None, sizes=(60, 10, 10), empty_share=0.3),
    ):
        earlier, later = assign(old, choosing).sides, assign(grown, choosing).sides[before]
        both = (earlier != LEFT_OUT) & (later != LEFT_OUT)
        assert (earlier == later)[both].all()


def test_draws_never_change() -> None:
    """They decide the sides of datasets that exist: golden."""
    bands, columns = np.array([0, -1, 1234, 5]), np.array([0, 7, -99999, 5])
    assert [f"{each:016x}" for each in hashed(0, bands, columns).tolist()] == GOLDEN_0
    assert [f"{each:016x}" for each in hashed(2**63 - 1, bands, columns).tolist()] == GOLDEN_MAX
    tiles = square(6, zoom=17, x0=96664, y0=55060)
    sides = "".join(
        "tvs."[side] for side in assign(tiles, Settings(600.0, (0.5, 0.25, 0.25), None, 3, 200.0, None)).sides
    )
    assert sides == GOLDEN_SIDES


GOLDEN_0 = ["a706dd2f4d197e6f", "19f20a9bb46150b6", "a524c22fad159c84", "e06b51eec968ea89"]
GOLDEN_MAX = ["69c9d98a86c5cd1e", "86f5205cbb1eca52", "2d6ab5c1ce5eb054", "10f8a5570645357e"]
GOLDEN_SIDES = "t.v.sst.v.ss....sssss...sss.v......v"


def test_draws_are_even_and_seeds_are_unlike() -> None:
    bands, columns = (each.reshape(-1) for each in np.meshgrid(np.arange(-100, 100), np.arange(-100, 100)))
    draws = [drawn(seed, bands, columns) for seed in (0, 1)]
    for each in draws:
        assert np.abs(np.histogram(each, 10, (0, 1))[0] / len(each) - 0.1).max() < 0.01
    assert abs(np.corrcoef(*draws)[0, 1]) < 0.02
    neighbours = draws[0].reshape(200, 200)
    assert abs(np.corrcoef(neighbours[1:].reshape(-1), neighbours[:-1].reshape(-1))[0, 1]) < 0.02


def test_almost_empty_is_the_authors_rule() -> None:
    """`np.var(map) < 20` over the pixels of maps painted in the authors' colours, from the shares alone."""
    colors = np.array([each.color for each in load_scheme("sgdm").classes], dtype=np.uint8)
    rng = np.random.default_rng(0)
    shares, expected = [], []
    for _ in range(200):
        painted = np.zeros(4096, dtype=np.int64)
        painted[: int(rng.integers(0, 200))] = rng.integers(0, len(colors), 1)
        shares.append(np.bincount(painted, minlength=len(colors)) / len(painted))
        expected.append(np.var(colors[painted].astype(np.float64)) < 20)
    assert 20 < sum(expected) < 180
    assert almost_empty(np.array(shares), colors.astype(float)).tolist() == expected


@pytest.mark.parametrize("scheme", ["default", "basic"])
def test_an_empty_map_is_almost_empty_in_every_palette(scheme: str) -> None:
    colors = np.array([each.color for each in load_scheme(scheme).classes], dtype=float)
    names = [each.name for each in load_scheme(scheme).classes]
    shares = np.zeros((2, len(colors)))
    shares[0, 0] = 1
    shares[1, 0], shares[1, names.index("building")] = 0.8, 0.2
    assert almost_empty(shares, colors).tolist() == [True, False]


def test_balance_and_sizes_are_exact() -> None:
    tiles = square(60)
    every = assign(tiles, RATIOS)
    for share in (0.5, 0.1, 0.0):
        balanced = assign(tiles, RATIOS._replace(empty_share=share))
        for side, count in enumerate(balanced.counts):
            empties = int(tiles.almost_empty[balanced.sides == side].sum())
            assert count
            assert abs(empties - share * count) <= 0.5
            # Nothing more could be kept: one of the two kinds is used up.
            kinds = [int((tiles.almost_empty[every.sides == side] == kind).sum()) for kind in (True, False)]
            assert empties == kinds[0] or abs(count - empties - kinds[1]) <= 1
        assert sum(balanced.left_out.values()) == int((balanced.sides == LEFT_OUT).sum())
        assert balanced.left_out["balance"]
    sized = assign(tiles, Settings(1000.0, None, (1000, 0, 200), 0, 0.0, 0.1))
    assert sized.counts == (1000, 0, 200)
    assert int(tiles.almost_empty[sized.sides == 2].sum()) == 20
    assert sized.left_out == {"buffer": 0, "balance": sized.left_out["balance"], "surplus": sized.left_out["surplus"]}
    assert sum(sized.left_out.values()) == len(tiles.x) - 1200
    # Which tiles are chosen does not depend on the order in which they come.
    order = np.random.default_rng(0).permutation(len(tiles.x))
    mixed = tiles.chosen(order)
    assert (assign(mixed, Settings(1000.0, None, (1000, 0, 200), 0, 0.0, 0.1)).sides == sized.sides[order]).all()


@pytest.mark.parametrize(
    "asked",
    [
        RATIOS._replace(block_m=4000.0, ratios=(0.8, 0.1, 0.1)),
        Settings(1000.0, None, (300, 0, 120), 0, 0.0, None),
        RATIOS._replace(empty_share=0.9, ratios=(0.96, 0.02, 0.02)),
    ],
)
def test_too_few_tiles_are_refused_with_what_works(asked: Settings) -> None:
    """What the sentence names is tried out here once more."""
    tiles = square(20)
    assert shortfall(assign(tiles, asked), asked)
    with pytest.raises(UsageError, match="too few: .* what works: ") as refused:
        refuse_if_too_small(tiles, asked, assign(tiles, asked))
    for option in str(refused.value).partition("what works: ")[2].split(", or "):
        words = dict(zip(option.split()[::2], option.split()[1::2], strict=True))
        changes: dict = {}
        if "--block-m" in words:
            changes["block_m"] = float(words["--block-m"])
        if "--seed" in words:
            changes["seed"] = int(words["--seed"])
        if "--sizes" in words:
            sizes = dict(part.split("=") for part in words["--sizes"].split(","))
            changes["sizes"] = tuple(int(sizes.get(name, 0)) for name in SIDES)
        if "--balance" in words:
            changes["empty_share"] = float(words["--balance"].partition("=")[2])
        if "no" in words:
            changes["empty_share"] = None
        assert changes
        better = asked._replace(**changes)
        assert shortfall(assign(tiles, better), better) is None, option


def test_what_can_never_be_is_refused_too() -> None:
    tiles = square(1)
    with pytest.raises(UsageError, match="build a larger area"):
        refuse_if_too_small(tiles, RATIOS, assign(tiles, RATIOS))


def test_stratifying_takes_the_seed_whose_sides_are_most_alike() -> None:
    tiles = square(30)
    tiles.class_shares[:450] = [0.7, 0.2, 0.1]
    tiles.class_shares[450:] = [0.1, 0.2, 0.7]
    asked = RATIOS._replace(block_m=900.0)

    def unlikeness(seed: int) -> float:
        sides = assign(tiles, asked._replace(seed=seed)).sides
        totals = np.stack([tiles.class_shares[sides == side].sum(axis=0) for side in range(3)])
        return divergence_bits(totals, totals.sum(axis=1) / totals.sum())

    best = stratified_seed(tiles, asked)
    others = sorted(unlikeness(seed) for seed in range(100))
    assert unlikeness(best) < others[10]
    counts = np.array(assign(tiles, asked._replace(seed=best)).counts) / len(tiles.x)
    assert np.abs(counts - asked.shares).max() < 0.03
    assert stratified_seed(tiles, asked) == best


def test_divergence_is_counted_in_bits() -> None:
    even = np.array([0.5, 0.5])
    assert divergence_bits(np.array([[1.0, 3.0], [2.0, 6.0]]), even) == pytest.approx(0)
    assert divergence_bits(np.array([[1.0, 0.0], [0.0, 9.0]]), even) == pytest.approx(1)
    assert divergence_bits(np.array([[1.0, 0.0], [0.0, 9.0], [5.0, 5.0]]), np.array([0.5, 0.5, 0])) == pytest.approx(1)


def scenery(seed: int) -> Image.Image:
    """A picture with structure at every scale, as photographs have."""
    rng = np.random.default_rng(seed)
    total = np.zeros((256, 256, 3))
    for size in (4, 8, 16, 32, 64):
        noise = Image.fromarray(rng.integers(0, 255, (size, size, 3), dtype=np.uint8))
        total += np.asarray(noise.resize((256, 256), Image.Resampling.BICUBIC), dtype=float) / size
    return Image.fromarray((total / total.max() * 255).astype(np.uint8))


def encoded(picture: Image.Image, kind: str = "JPEG", **options: int) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def bits_between(a: bytes, b: bytes) -> int:
    return (perceptual_hash(a) ^ perceptual_hash(b)).bit_count()


def test_the_same_picture_has_nearly_the_same_hash_and_others_have_not() -> None:
    for seed in range(20):
        picture = scenery(seed)
        raw = encoded(picture, quality=90)
        for changed in (
            encoded(picture, "PNG"),
            encoded(picture, quality=40),
            encoded(ImageEnhance.Brightness(picture).enhance(0.8), quality=75),
            encoded(picture.resize((128, 128)).resize((256, 256)), quality=75),
        ):
            assert bits_between(raw, changed) <= MAX_BITS_APART
        assert bits_between(raw, encoded(scenery(seed + 100), quality=90)) > 2 * MAX_BITS_APART


def test_of_real_aerial_pictures_only_true_duplicates_are_near(shared_data: Path) -> None:
    """UC Merced is known to hold a few pictures twice; a pair in a million is near, not more."""
    paths = sorted((shared_data / "chips" / "ucmerced" / "train").rglob("*.jpg"))[::2]
    hashes = np.array([perceptual_hash(path.read_bytes()) for path in paths], dtype=np.uint64)
    sides = (np.arange(len(paths)) % 2).astype(np.int8)
    assert len(paths) > 800
    assert near_duplicates(hashes, sides).pairs <= 2


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(-1, 2)), min_size=1, max_size=40))
@settings(deadline=None)
def test_near_pairs_are_those_of_all_pairs(cases: list[tuple[int, int]]) -> None:
    base = cases[0][0]
    values = [base ^ (value & 0x0101010101010101 if number % 2 else value) for number, (value, _) in enumerate(cases)]
    sides = [side for _, side in cases]
    expected = {
        (a, b, (values[a] ^ values[b]).bit_count())
        for a in range(len(values))
        for b in range(len(values))
        if 0 <= sides[a] < sides[b] and (values[a] ^ values[b]).bit_count() <= MAX_BITS_APART
    }
    found = near_duplicates(np.array(values, dtype=np.uint64), np.array(sides, dtype=np.int8))
    assert found.pairs == len(expected)
    assert len(found.examples) == min(found.pairs, MAX_EXAMPLES)
    assert set(found.examples) <= expected


# --- constant ground resolution --------------------------------------------------------------------------------------


def ground_tiles(lon: float, lat: float, seed: int) -> Tiles:
    """Some of the tiles of a box of 6 by 6 km, over two bands and their different columns."""
    grid = GroundGrid.of(1.07)
    edge = grid.band(grid.row_of(lat)).south
    box = area_from_bbox((lon, edge - 0.03, lon + 0.06 / np.cos(np.radians(lat)), edge + 0.03))
    found = [tile for block in blocks_of_area(box, grid) for tile in block.tiles]
    x, y = (np.array([getattr(tile, name) for tile in found]) for name in "xy")
    some = np.random.default_rng(seed).random(len(x)) < 0.7
    rects = rects_of_boxes(np.array([tile.bounds_lonlat for tile in found]), 17)
    return tiles_of(x, y, 17)._replace(ground=Ground(grid.tile_m, rects)).chosen(some)


@given(st.floats(-179, 170), st.floats(-75, 75), st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_a_buffer_of_constant_ground_resolution_is_kept(lon: float, lat: float, seed: int) -> None:
    tiles = ground_tiles(lon, lat, seed)
    assert len(np.unique(tiles.rects.x1 - tiles.rects.x0)) > 1
    options = Settings(900.0, (0.5, 0.25, 0.25), None, seed, 300.0, None)
    assignment = assign(tiles, options)
    gap = smallest_gap_of_rects_m(tiles.rects, assignment.sides, tiles.zoom)
    assert gap is None or gap >= 300.0
    # What is left out is near to ground of another side: not further than the buffer, a tile, and half of one more.
    bare = assign(tiles, options._replace(buffer_m=0.0))
    assert sum(assignment.counts) > 0.2 * sum(bare.counts)
    assert (bare.sides[assignment.sides >= 0] == assignment.sides[assignment.sides >= 0]).all()


@given(st.floats(-179, 170), st.floats(-75, 75), st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_tiles_of_constant_ground_resolution_do_not_change_sides_when_others_come(
    lon: float, lat: float, seed: int
) -> None:
    tiles = ground_tiles(lon, lat, seed)
    options = Settings(900.0, (0.5, 0.25, 0.25), None, seed, 300.0, None)
    before = np.random.default_rng(seed).random(len(tiles.x)) < 0.5
    assert (assign(tiles, options).sides[before] == assign(tiles.chosen(before), options).sides).all()
