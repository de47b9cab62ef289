"""Cached latents are the encoder's, survive a kill at any place, and are never taken for those of something else."""

from __future__ import annotations

import itertools
import os
import pickle
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tiny_world
import torch
from PIL import Image as Picture
from torch import nn

from magc_data.dataset import MagcDataset
from magc_model.data import ImageFolder, TrainingBatches, Window, draws, image_tensor, load, symmetry
from magc_model.errors import DataError, TrainingError
from magc_model.train import latents
from magc_model.train.latents import LatentCache, cache_latents

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DIED, FINISHED = 9, 0
BATCH_SIZE = 24  # three of the four samples, then one


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> MagcDataset:
    """Four samples."""
    folder = tmp_path_factory.mktemp("world")
    os.environ["MAGC_CACHE_DIR"] = str(folder / "cache")
    tiny_world.run(tiny_world.World(folder, tiny_world.FOUR_TILES).config(folder / "dataset"))
    return MagcDataset(folder / "dataset")


class Encoder:
    """A real strided convolution, which symmetries change; counts the images that it sees."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.layer = nn.Conv2d(3, 4, 8, stride=8)
        self.images = 0

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        self.images += len(image)
        return self.layer(image)


@pytest.fixture(scope="module")
def finished(source: MagcDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    cache_latents(folder, source, Encoder(), "encoder 0", batch_size=BATCH_SIZE, quiet=True)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_latents_are_those_of_the_turned_pictures(source: MagcDataset, finished: Path) -> None:
    cache = LatentCache(finished)
    assert len(cache) == 4
    whole = Window(0, 0, 256)
    for number, turn in itertools.product(range(4), range(8)):
        pixels = symmetry(source[number].image, turn)[None]
        with torch.no_grad():
            direct = Encoder()(image_tensor(pixels))[0].numpy()
        assert np.allclose(cache.crop(number, turn, whole), direct, atol=1e-3)
    assert not np.allclose(cache.crop(0, 0, whole), cache.crop(0, 1, whole), atol=0.1)


def test_a_crop_of_latents_is_a_slice(finished: Path) -> None:
    array = np.load(finished / "latents.npy")
    assert array.shape == (4, 8, 4, 32, 32)
    assert array.dtype == np.float16
    assert np.array_equal(LatentCache(finished).crop(2, 5, Window(64, 8, 128)), array[2, 5, :, 8:24, 1:17])


def test_batches_of_latents_show_what_batches_of_images_show(source: MagcDataset, finished: Path) -> None:
    """This encoder sees blocks of 8 px only, so encoding a crop is cropping the latent: the same step must agree."""
    options = {"crop_px": 64, "batch_size": 8, "seed": 5}
    cached = TrainingBatches(source, **options, latents=LatentCache(finished))
    assert set(draws(5, 0, 0, 32, 1, 4).symmetries.tolist()) == set(range(8)), "every symmetry is tried"
    for by_latent, by_image in zip(
        load(cached, range(4), 1), load(TrainingBatches(source, **options), range(4)), strict=True
    ):
        with torch.no_grad():
            assert torch.allclose(by_latent.latents, Encoder()(by_image.images), atol=2e-3)
        assert torch.equal(by_latent.class_ids, by_image.class_ids)
        assert torch.equal(by_latent.has_map, by_image.has_map)


def test_finished_latents_are_used_again(
    source: MagcDataset, finished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = contents(finished)
    encoder = Encoder()
    cache_latents(finished, source, encoder, "encoder 0", quiet=True)
    assert encoder.images == 0
    assert contents(finished) == before
    assert capfd.readouterr().err == ""


def other_dataset(folder: Path) -> tuple[ImageFolder, str]:
    for number in range(4):
        Picture.new("RGB", (256, 256), (number, 0, 0)).save(folder / f"{number}.png")
    return ImageFolder(folder), "encoder 0"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda source, folder: (source, "encoder 1"), "another autoencoder"),
        (lambda source, folder: other_dataset(folder), "another dataset"),
    ],
)
def test_latents_of_something_else_are_made_again(
    change: Callable, said: str, source: MagcDataset, finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "cache")
    (tmp_path / "pictures").mkdir()
    other, fingerprint = change(source, tmp_path / "pictures")
    encoder = Encoder(1)
    cache_latents(tmp_path / "cache", other, encoder, fingerprint, batch_size=BATCH_SIZE, quiet=True)
    assert encoder.images == 32
    assert said in capfd.readouterr().err
    cache_latents(tmp_path / "fresh", other, Encoder(1), fingerprint, batch_size=BATCH_SIZE, quiet=True)
    assert contents(tmp_path / "cache") == contents(tmp_path / "fresh")


def cut(folder: Path) -> None:
    with (folder / "latents.npy").open("r+b") as stream:
        stream.truncate(stream.seek(0, os.SEEK_END) - 1)


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        lambda folder: (folder / "latents.npy").unlink(),
        lambda folder: (folder / "latents.npy").write_bytes(bytes((folder / "latents.npy").stat().st_size)),
        lambda folder: (folder / "latents.json").write_text("{"),
        lambda folder: (folder / "latents.json").write_text("[]"),
        lambda folder: (folder / "latents.json").write_text('{"samples_done": null}'),
    ],
)
def test_damaged_latents_are_made_again(
    damage: Callable[[Path], None],
    source: MagcDataset,
    finished: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(finished, tmp_path / "cache")
    damage(tmp_path / "cache")
    cache_latents(tmp_path / "cache", source, Encoder(), "encoder 0", batch_size=BATCH_SIZE, quiet=True)
    assert contents(tmp_path / "cache") == contents(finished)
    said = capfd.readouterr().err
    assert said.endswith("is damaged: all latents are made again\n")
    assert len(said.splitlines()) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("begun_with", ["nothing", "latents of another encoder"])
@pytest.mark.slow
def test_killed_at_any_place_it_ends_in_the_same_bytes(
    begun_with: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended just before each encoding, sync and rename in turn, then continued: nothing that was counted is redone."""
    monkeypatch.setattr(latents, "BLOCK_SAMPLES", 1)
    for number in range(3):
        Picture.effect_noise((64, 64), 50 + number).save(tmp_path / f"{number}.png")
    source = ImageFolder(tmp_path)
    cache_latents(tmp_path / "whole", source, Encoder(), "encoder 0", quiet=True)
    images_left = []
    for place in itertools.count(1):
        folder = tmp_path / str(place)
        if begun_with != "nothing":
            cache_latents(folder, source, Encoder(1), "encoder 1", quiet=True)
        if ended_before(place, folder, source) == FINISHED:
            break
        encoder = Encoder()
        cache_latents(folder, source, encoder, "encoder 0", quiet=True)
        assert contents(folder) == contents(tmp_path / "whole"), place
        images_left.append(encoder.images)
    assert contents(folder) == contents(tmp_path / "whole")
    assert images_left == sorted(images_left, reverse=True)
    assert set(images_left) == {0, 8, 16, 24}


def ended_before(place: int, folder: Path, source: ImageFolder) -> int:
    child = os.fork()
    if not child:
        torch.set_num_threads(1)  # a forked process has none of its parent's threads, and would wait for them for ever
        count = itertools.count(1)

        def ending(real: Callable) -> Callable:
            def act(*arguments: object) -> object:
                if next(count) == place:
                    os._exit(DIED)
                return real(*arguments)

            return act

        try:
            os.fsync, os.replace = ending(os.fsync), ending(os.replace)
            cache_latents(folder, source, ending(Encoder()), "encoder 0", quiet=True)
            os._exit(FINISHED)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (DIED, FINISHED)
    return code


@pytest.mark.parametrize("sizes", [[(64, 64), (128, 128)], [(64, 128), (64, 128)], [(60, 60)]])
def test_pictures_that_cannot_be_cached_are_refused(sizes: list[tuple[int, int]], tmp_path: Path) -> None:
    for number, size in enumerate(sizes):
        Picture.new("RGB", size).save(tmp_path / f"{number}.png")
    with pytest.raises(DataError, match=f"found {sizes[0][0]}x{sizes[0][1]}"):
        cache_latents(tmp_path / "cache", ImageFolder(tmp_path), Encoder(), "encoder 0", quiet=True)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("factor", [float("nan"), 1e9])
def test_latents_that_are_no_numbers_are_refused(factor: float, source: MagcDataset, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no numbers or above 65504"):
        cache_latents(tmp_path, source, lambda image: Encoder()(image) * factor, "broken", quiet=True)


def test_a_pickled_cache_carries_no_latents(finished: Path) -> None:
    cache = LatentCache(finished)
    first = cache.crop(0, 0, Window(0, 0, 64))
    pickled = pickle.dumps(cache)
    assert len(pickled) < 1000
    assert np.array_equal(pickle.loads(pickled).crop(0, 0, Window(0, 0, 64)), first)


def test_the_bar_tells_rate_and_time_left(
    source: MagcDataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cache_latents(tmp_path, source, Encoder(), "encoder 0")
    printed = capfd.readouterr()
    assert "latents: 100%" in printed.err
    assert "sample/s" in printed.err
    assert printed.out == ""
