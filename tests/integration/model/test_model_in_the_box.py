"""The trained model that the package brings, on ground that it has never seen."""

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

HELD_OUT = (85.5187, 27.6337, 85.5208, 27.6357)
"""Four tiles inside of the sample's test half."""
MOST_BYTES = 12_000_000
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


def test_a_tile_is_small_and_recognisable(codec: MagcCodec, tiles: list[TileSample]) -> None:
    assert len(tiles) == 4
    streams = [codec.compress(each.image, each.semantic_map, rate=Rate(quality=2.0)) for each in tiles]
    assert all(40 < len(each) < 250 for each in streams)
    drawn = [codec.decompress(stream, each.semantic_map) for stream, each in zip(streams, tiles, strict=True)]
    found = [psnr(picture, each.image) for picture, each in zip(drawn, tiles, strict=True)]
    flat = [psnr(np.broadcast_to(each.image.mean((0, 1)), each.image.shape), each.image) for each in tiles]
    assert min(np.array(found) - flat) > 2, "dB better than the tile's mean colour"
    assert np.mean(found) > 17


def test_more_bytes_are_a_better_picture(codec: MagcCodec, tiles: list[TileSample]) -> None:
    sizes, errors = [], []
    for quality in (1.0, 3.0, 6.0):
        streams = [codec.compress(each.image, each.semantic_map, rate=Rate(quality=quality)) for each in tiles]
        drawn = [codec.decompress(stream, each.semantic_map) for stream, each in zip(streams, tiles, strict=True)]
        sizes.append(sum(map(len, streams)))
        errors.append(np.mean([psnr(picture, each.image) for picture, each in zip(drawn, tiles, strict=True)]))
    assert sizes == sorted(sizes)
    assert errors == sorted(errors)


def test_the_map_is_worth_bytes(codec: MagcCodec, tiles: list[TileSample]) -> None:
    """With the map fewer bytes and a better picture."""
    with_map = [codec.compress(each.image, each.semantic_map) for each in tiles]
    without = [codec.compress(each.image) for each in tiles]
    assert sum(map(len, with_map)) < sum(map(len, without))
    drawn = [
        (codec.decompress(a, each.semantic_map), codec.decompress(b), each.image)
        for a, b, each in zip(with_map, without, tiles, strict=True)
    ]
    assert np.mean([psnr(a, x) - psnr(b, x) for a, b, x in drawn]) > 0.3


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
