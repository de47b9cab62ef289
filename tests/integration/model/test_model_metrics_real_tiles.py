"""The distance without weights, on real tiles that are spoiled more and more."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from real_tiles import real_tiles

from magc_model.evaluate.metrics.distances import FeatureMoments, feature_moments, frechet_distance
from magc_model.evaluate.metrics.patches import patches_of
from magc_model.evaluate.metrics.random_features import random_features

NOISE = np.random.default_rng(0)


def as_jpeg(tile: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(tile).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def as_blocks(tile: np.ndarray, share: float) -> np.ndarray:
    """Blended with the means of its blocks of 8 px."""
    means = tile.reshape(32, 8, 32, 8, 3).mean((1, 3)).repeat(8, 0).repeat(8, 1)
    return as_bytes((1 - share) * tile + share * means)


def as_bytes(tile: np.ndarray) -> np.ndarray:
    return np.clip(tile, 0, 255).round().astype(np.uint8)


def blurred(tile: np.ndarray, sigma: float) -> np.ndarray:
    return np.asarray(Image.fromarray(tile).filter(ImageFilter.GaussianBlur(sigma)))


@pytest.fixture(scope="module")
def tiles(embedded_cache: Path) -> np.ndarray:
    return real_tiles(embedded_cache, 16)


def moments(tiles: np.ndarray) -> FeatureMoments:
    return feature_moments(random_features(patches_of(tiles)))


@pytest.fixture(scope="module")
def original(tiles: np.ndarray) -> FeatureMoments:
    return moments(tiles)


@pytest.mark.parametrize(
    ("spoil", "steps"),
    [
        (blurred, (0.5, 1, 2, 4)),
        (lambda tile, sigma: as_bytes(tile + NOISE.normal(0, sigma, tile.shape)), (2, 5, 10, 20)),
        # The tiles come from JPEG files of quality 75: milder settings than these meet its grid.
        (as_jpeg, (20, 10, 5, 2)),
        (as_blocks, (0.25, 0.5, 0.75, 1)),
        (lambda tile, shift: as_bytes(tile + shift * np.array([1, -1, 0.5])), (2, 5, 10, 20)),
    ],
    ids=["blur", "noise", "jpeg", "blocks", "colour"],
)
def test_the_distance_grows_with_the_damage(spoil, steps, tiles, original):
    found = [frechet_distance(original, moments(np.stack([spoil(tile, step) for tile in tiles]))) for step in steps]
    assert found[0] > 0
    assert np.all(np.diff(found) > 0), found


def test_real_tiles_are_near_to_one_another_and_far_from_spoiled_ones(tiles, original):
    assert frechet_distance(original, original) == pytest.approx(0, abs=1e-9)
    halves = frechet_distance(moments(tiles[::2]), moments(tiles[1::2]))
    assert halves < frechet_distance(original, moments(np.stack([blurred(tile, 1) for tile in tiles])))


def test_the_distance_of_samples_of_one_kind_sinks_with_their_number(tiles):
    features = random_features(patches_of(tiles))
    order = np.random.default_rng(1).permutation(len(features))

    def between_halves(count: int) -> float:
        rows = features[order[:count]]
        return frechet_distance(feature_moments(rows[::2]), feature_moments(rows[1::2]))

    found = [between_halves(count) for count in (20, 40, 80)]
    assert found[0] > found[1] > found[2]
