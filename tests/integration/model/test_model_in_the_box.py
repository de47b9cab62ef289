"""The trained model that the package brings, on ground that it has never seen.

Decoded as it is by default, it makes nothing up; its realistic end is asked for.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_world

import magc_model
from magc_data.config import BuildConfig
from magc_data.dataset import MagcDataset, TileSample
from magc_model.codec import MagcCodec, Rate
from magc_model.errors import UsageError
from magc_model.model import MagcModel
from magc_model.reconstruct import Sampling

HELD_OUT = (85.5187, 27.6337, 85.5208, 27.6357)
"""Four tiles inside of the sample's test half."""
MOST_BYTES = 12_000_000
FAITHFUL, REALISTIC = Sampling(steps=0), Sampling(steps=1)
ENTROPY_FINGERPRINT = "f344e6695f90399ce699aa5fbc9e05f2bedf087a5048fc25efbef7dcab37d740"
"""Of the model as it was first shipped: its streams are read by every later one."""
PROGRAM = "from magc_model.cli import main; main()"


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory, embedded_cache: Path) -> list[TileSample]:
    folder = tmp_path_factory.mktemp("held-out") / "dataset"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAGC_CACHE_DIR", str(embedded_cache))
        sources = {"imagery": "sample-banepa", "osm": "sample-banepa"}
        tiny_world.run(BuildConfig(**sources, bbox=HELD_OUT, zoom=18, out=folder, workers=1))
    return list(MagcDataset(folder))[:4]


@pytest.fixture(scope="module")
def codec() -> MagcCodec:
    return MagcCodec.from_pretrained("tiny")


def psnr(drawn: np.ndarray, original: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(drawn.astype(float) - original).mean()))


def decoded(codec: MagcCodec, tiles: list[TileSample], quality: float, sampling: Sampling | None) -> np.ndarray:
    streams = [codec.compress(each.image, each.semantic_map, rate=Rate(quality=quality)) for each in tiles]
    return np.stack(codec.decompress_batch(streams, [each.semantic_map for each in tiles], sampling=sampling))


def gradient_energy(pictures: np.ndarray) -> float:
    grey = pictures.astype(float).mean(-1)
    return float(sum(np.square(np.diff(grey, axis=axis)).mean() for axis in (1, 2)))


def test_a_tile_is_small_and_recognisable(codec: MagcCodec, tiles: list[TileSample]) -> None:
    assert len(tiles) == 4
    streams = [codec.compress(each.image, each.semantic_map, rate=Rate(quality=2.0)) for each in tiles]
    assert all(40 < len(each) < 250 for each in streams)
    drawn = decoded(codec, tiles, 2.0, FAITHFUL)
    found = [psnr(picture, each.image) for picture, each in zip(drawn, tiles, strict=True)]
    flat = [psnr(np.broadcast_to(each.image.mean((0, 1)), each.image.shape), each.image) for each in tiles]
    assert min(np.array(found) - flat) > 2, "dB better than the tile's mean colour"
    assert np.mean(found) > 17


def test_more_bytes_are_a_better_picture(codec: MagcCodec, tiles: list[TileSample]) -> None:
    sizes, errors = [], []
    for quality in (1.0, 3.0, 6.0):
        streams = [codec.compress(each.image, each.semantic_map, rate=Rate(quality=quality)) for each in tiles]
        drawn = decoded(codec, tiles, quality, FAITHFUL)
        sizes.append(sum(map(len, streams)))
        errors.append(np.mean([psnr(picture, each.image) for picture, each in zip(drawn, tiles, strict=True)]))
    assert sizes == sorted(sizes)
    assert errors == sorted(errors)


@pytest.mark.slow
def test_the_map_is_worth_bytes(codec: MagcCodec, tiles: list[TileSample]) -> None:
    """With the map fewer bytes and a better picture."""
    with_map = [codec.compress(each.image, each.semantic_map) for each in tiles]
    without = [codec.compress(each.image) for each in tiles]
    assert sum(map(len, with_map)) < sum(map(len, without))
    drawn = [
        (codec.decompress(a, each.semantic_map, sampling=FAITHFUL), codec.decompress(b, sampling=FAITHFUL), each.image)
        for a, b, each in zip(with_map, without, tiles, strict=True)
    ]
    assert np.mean([psnr(a, x) - psnr(b, x) for a, b, x in drawn]) > 0.3


@pytest.mark.slow
def test_what_it_draws_when_asked_is_as_rough_as_the_ground(codec: MagcCodec, tiles: list[TileSample]) -> None:
    """A sixteenth of the original's gradient energy at the faithful end, about all of it at the realistic one."""
    originals = np.stack([each.image for each in tiles])
    energy = gradient_energy(originals)
    realistic, half, faithful = (
        decoded(codec, tiles, 2.0, sampling) for sampling in (REALISTIC, Sampling(steps=1, fidelity=0.5), FAITHFUL)
    )
    assert np.array_equal(decoded(codec, tiles, 2.0, None), faithful)
    found = [gradient_energy(each) / energy for each in (realistic, half, faithful)]
    assert 0.75 < found[0] < 1.3
    assert found[0] > found[1] > found[2]
    assert found[2] < 0.15
    errors = [psnr(each, originals) for each in (realistic, half, faithful)]
    assert errors == sorted(errors)
    assert errors[0] > 14


def test_a_drawing_is_its_seeds(codec: MagcCodec, tiles: list[TileSample]) -> None:
    tile = tiles[0]
    stream = codec.compress(tile.image, tile.semantic_map, seed=5)
    first = codec.decompress(stream, tile.semantic_map, sampling=REALISTIC)
    assert np.array_equal(first, codec.decompress(stream, tile.semantic_map, sampling=REALISTIC, seed=5))
    assert not np.array_equal(first, codec.decompress(stream, tile.semantic_map, sampling=REALISTIC, seed=6))
    with pytest.raises(UsageError, match=r"^20 steps: this model draws in one step"):
        codec.decompress(stream, tile.semantic_map, sampling=Sampling(steps=20))


def test_streams_of_its_first_day_are_read() -> None:
    assert MagcModel.from_pretrained("tiny").entropy_fingerprint() == ENTROPY_FINGERPRINT


@pytest.mark.slow
def test_it_is_what_the_commands_use(tiles: list[TileSample], tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(tiles[0].image).save(tmp_path / "tile.png")
    Image.fromarray(tiles[0].semantic_map).save(tmp_path / "map.png")
    for command in (
        ["compress", "tile.png", "--map", "map.png", "-o", "tile.magc"],
        ["decompress", "tile.magc", "--map", "map.png", "-o", "back.png"],
    ):
        subprocess.run([sys.executable, "-c", PROGRAM, *command], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "tile.magc").stat().st_size < 250
    assert Image.open(tmp_path / "back.png").size == (256, 256)


def test_it_fits_in_the_box() -> None:
    folder = Path(magc_model.__file__).with_name("weights")
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < MOST_BYTES
