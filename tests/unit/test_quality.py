"""Quality signals find what was done to a tile on purpose, and are exactly what their formulae say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from magc_data.quality.alignment import MIN_OUTLINE_PX, REACH_PX, alignment, correlations
from magc_data.quality.edges import edge_strength, empty_ground, luma, outlines
from magc_data.quality.picture import block_shares, blur
from magc_data.quality.signals import CLEARANCE_PX, TileSignals, tile_signals
from magc_data.schema.classes import load_scheme
from magc_data.shards.index import QUALITY_COLUMNS, index_schema

Pixels = NDArray[np.uint8]
seeds = st.integers(0, 2**32 - 1)


def town(seed: int, houses: int = 30) -> tuple[Pixels, Pixels]:
    """A picture of houses on rough ground, RGB [256, 256, 3], and its map, [256, 256]."""
    rng = np.random.default_rng(seed)
    ground = Image.fromarray(rng.integers(70, 130, (64, 64, 3), dtype=np.uint8)).resize(
        (256, 256), Image.Resampling.BICUBIC
    )
    semantic_map = Image.new("L", (256, 256))
    for _ in range(houses):
        x, y, width, height = (int(each) for each in [*rng.integers(0, 240, 2), *rng.integers(10, 30, 2)])
        box = (x, y, x + width - 1, y + height - 1)
        ImageDraw.Draw(ground).rectangle(box, fill=tuple(rng.integers(140, 230, 3).tolist()))
        ImageDraw.Draw(semantic_map).rectangle(box, fill=9)
    return np.asarray(ground.filter(ImageFilter.GaussianBlur(0.7))), np.asarray(semantic_map)


def noise(seed: int, shape: tuple[int, ...]) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def moved(semantic_map: Pixels, dx_px: int, dy_px: int) -> Pixels:
    """The map moved right and down; what comes in from outside is empty."""
    result = np.zeros_like(semantic_map)
    height, width = semantic_map.shape
    source = semantic_map[max(0, -dy_px) : height - max(0, dy_px), max(0, -dx_px) : width - max(0, dx_px)]
    result[max(0, dy_px) :, max(0, dx_px) :][: source.shape[0], : source.shape[1]] = source
    return result


@settings(deadline=None)  # the first call compiles
@given(st.integers(-8, 8), st.integers(-8, 8), st.integers(0, 50))
def test_a_map_moved_on_purpose_is_found(dx_px: int, dy_px: int, seed: int) -> None:
    image, semantic_map = town(seed)
    as_it_lies = tile_signals(image, semantic_map)
    off = tile_signals(image, moved(semantic_map, -dx_px, -dy_px))
    assert (as_it_lies.alignment_dx_px, as_it_lies.alignment_dy_px) == (0, 0)
    assert as_it_lies.alignment == as_it_lies.alignment_peak
    assert (off.alignment_dx_px, off.alignment_dy_px) == (dx_px, dy_px), "where the map has to go"
    if max(abs(dx_px), abs(dy_px)) >= 2:
        assert off.alignment < 0.7 * off.alignment_peak


def test_correlations_are_pearsons_of_every_offset() -> None:
    """Against numpy's own, offset by offset: the transforms and running sums are exact."""
    image, semantic_map = town(3)
    strength, lines = edge_strength(luma(image)), outlines(semantic_map)
    found = correlations(strength, lines)
    inner = lines[REACH_PX:-REACH_PX, REACH_PX:-REACH_PX].ravel()
    for dy in range(2 * REACH_PX + 1):
        for dx in range(2 * REACH_PX + 1):
            window = strength[dy : dy + 240, dx : dx + 240].ravel()
            assert found[dy, dx] == pytest.approx(np.corrcoef(inner, window)[0, 1], abs=1e-12)


def test_with_hardly_an_outline_no_offset_is_given() -> None:
    image, _ = town(0)
    semantic_map = np.zeros((256, 256), np.uint8)
    semantic_map[100:110, 100:110] = 9
    signals = tile_signals(image, semantic_map)
    assert signals[:4] == (None, None, None, None)
    lines = outlines(semantic_map)
    assert 0 < lines.sum() < MIN_OUTLINE_PX
    assert tile_signals(np.full((256, 256, 3), 90, np.uint8), town(0)[1])[:4] == (None,) * 4, "no edge in the image"


def test_of_equal_offsets_the_nearest_is_given() -> None:
    """Stripes down the picture say nothing of the way along them."""
    stripes = np.zeros((256, 256), np.uint8)
    stripes[:, 40::64] = stripes[:, 41::64] = stripes[:, 42::64] = 200
    lie = alignment(edge_strength(stripes), outlines((stripes > 0).astype(np.uint8)))
    assert (lie.dx_px, lie.dy_px) == (0, 0)


@settings(deadline=None)  # the first call compiles
@given(seeds)
def test_luma_is_pillows(seed: int) -> None:
    image = noise(seed, (16, 24, 3))
    assert np.array_equal(luma(image), np.asarray(Image.fromarray(image).convert("L")))


@settings(deadline=None)  # the first call compiles
@given(seeds)
def test_edge_strength_is_the_sobel_gradient(seed: int) -> None:
    brightness = noise(seed, (12, 9))
    padded = np.pad(brightness.astype(np.int64), 1, mode="edge")
    across, down = (
        sum(
            weight * padded[1 + dy : 13 + dy, 1 + dx : 10 + dx]
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
            for weight in [(dx, dy)[axis] * (2 if 0 in (dx, dy) else 1)]
        )
        for axis in (0, 1)
    )
    assert np.array_equal(edge_strength(brightness), np.floor(np.hypot(across, down) + 1e-9).astype(int))


@settings(deadline=None)  # the first call compiles
@given(seeds, st.integers(0, 5))
def test_empty_ground_keeps_clear_of_what_is_mapped(seed: int, clearance_px: int) -> None:
    class_ids = (np.random.default_rng(seed).random((20, 17)) < 0.03).astype(np.uint8)
    expected = np.ones_like(class_ids)
    for row, column in np.argwhere(class_ids):
        rows = slice(max(0, row - clearance_px), row + clearance_px + 1)
        expected[rows, max(0, column - clearance_px) : column + clearance_px + 1] = 0
    assert np.array_equal(empty_ground(class_ids, clearance_px), expected)


@settings(deadline=None)  # the first call compiles
@given(seeds)
def test_outlines_are_both_sides_of_every_change(seed: int) -> None:
    class_ids = np.random.default_rng(seed).integers(0, 2, (7, 9), dtype=np.uint8)
    padded = np.pad(class_ids.astype(int), 1, mode="edge")
    neighbours = [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
    assert np.array_equal(outlines(class_ids), np.any([each != class_ids for each in neighbours], axis=0))


def test_houses_missing_from_the_map_are_hinted_at() -> None:
    image, semantic_map = town(5)
    half = semantic_map.copy()
    half[:, 128:] = 0
    whole, missing = tile_signals(image, semantic_map), tile_signals(image, half)
    assert whole.unmapped_edges < 0.01 < missing.unmapped_edges
    strength, empty = edge_strength(luma(image)), empty_ground(half, CLEARANCE_PX)
    assert missing.unmapped_edges == round(float(np.mean((strength >= 160) & (empty == 1))), 4)


def test_blank_and_cloud_are_shares_of_blocks() -> None:
    image = noise(1, (256, 256, 3))
    image[:64] = 77  # a quarter of one colour
    image[192:, :128] = np.random.default_rng(2).integers(215, 245, (64, 128, 1), dtype=np.uint8)  # an eighth of cloud
    assert block_shares(image, luma(image)) == (0.25, 0.125)
    signals = tile_signals(image, np.zeros((256, 256), np.uint8))
    assert (signals.blank, signals.cloud) == (0.25, 0.125)
    roof = noise(3, (256, 256, 3))
    roof[100:114, 100:114] = 240
    assert block_shares(roof, luma(roof)).cloud == 0, "a white roof is no cloud"
    sand = np.full((256, 256, 3), (240, 220, 190), np.uint8)
    assert block_shares(sand, luma(sand)) == (1, 0), "bright but not white"


def crete(brightness: Pixels) -> float:
    """The paper's formula with numpy, over the pixels whose nine neighbours are all there."""

    def one_way(rows: NDArray[np.float64]) -> float:
        mean = np.apply_along_axis(np.convolve, 1, rows, np.ones(9) / 9, mode="valid")
        sharp, blurred = np.abs(np.diff(rows, axis=1))[:, 4:-4], np.abs(np.diff(mean, axis=1))
        return (sharp.sum() - np.maximum(0, sharp - blurred).sum()) / sharp.sum()

    values = brightness.astype(float)
    return max(one_way(values), one_way(values.T))


@settings(deadline=None)  # the first call compiles
@given(seeds)
def test_blur_is_cretes_formula(seed: int) -> None:
    brightness = noise(seed, (20, 31))
    assert blur(brightness) == pytest.approx(crete(brightness), abs=1e-12)


def test_blur_grows_with_blurring() -> None:
    image = Image.fromarray(town(1)[0])
    found = [blur(luma(np.asarray(image.filter(ImageFilter.GaussianBlur(radius))))) for radius in (0, 1, 2, 4)]
    assert found == sorted(found)
    assert found[-1] - found[0] > 0.3
    assert blur(np.full((256, 256), 9, np.uint8)) is None


def test_the_index_has_the_signals_as_they_are_named() -> None:
    assert TileSignals._fields == QUALITY_COLUMNS
    names = index_schema(load_scheme("default")).names
    assert names.index("osm_timestamp") + 1 == names.index(QUALITY_COLUMNS[0])
