"""Training data: every step sees what its number says, image and map stay aligned, and what does not fit is refused."""

from __future__ import annotations

import dataclasses
import itertools
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tiny_world
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from magc_data.dataset import MagcDataset
from magc_data.errors import DatasetError
from magc_model.config import MapConfig, ModelConfig
from magc_model.data import (
    SYMMETRIES,
    ImageFolder,
    TrainingBatches,
    Window,
    adopt_classes,
    draws,
    image_tensor,
    load,
    open_source,
    require_maps,
    sample_order,
    symmetry,
    window,
)
from magc_model.errors import DataError, UsageError
from magc_model.evaluate.items import EvaluationSet

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of four samples."""
    folder = tmp_path_factory.mktemp("world")
    os.environ["MAGC_CACHE_DIR"] = str(folder / "cache")
    tiny_world.run(tiny_world.World(folder, tiny_world.FOUR_TILES).config(folder / "dataset"))
    return folder / "dataset"


def write_pictures(folder: Path, sizes: dict[str, tuple[int, int]]) -> Path:
    """Pictures of noise, (width, height) by name."""
    for number, (name, (width, height)) in enumerate(sizes.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


# --- symmetries ------------------------------------------------------------------------------------------------------


def test_the_eight_symmetries_are_a_group() -> None:
    """Distinct, closed under composition, each with an inverse: with eight of them, those of the square."""
    square = np.arange(9, dtype=np.uint8).reshape(3, 3)
    turned = [symmetry(square, number) for number in range(SYMMETRIES)]
    assert np.array_equal(turned[0], square)
    assert len({each.tobytes() for each in turned}) == SYMMETRIES
    for first, second in itertools.product(range(SYMMETRIES), repeat=2):
        assert symmetry(turned[first], second).tobytes() in {each.tobytes() for each in turned}
    rotations = {np.rot90(square, number).tobytes() for number in range(4)}
    mirrored = {np.rot90(square[:, ::-1], number).tobytes() for number in range(4)}
    assert {each.tobytes() for each in turned} == rotations | mirrored


@pytest.mark.parametrize("number", range(SYMMETRIES))
def test_arrays_and_tensors_turn_alike(number: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    turned = symmetry(pixels, number)
    assert turned.shape == ((7, 5, 3) if number & 4 else (5, 7, 3))
    tensor = symmetry(torch.from_numpy(pixels).permute(2, 0, 1), number)
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), turned)
    assert np.array_equal(symmetry(pixels[..., 1].copy(), number), turned[..., 1])


# --- sampling --------------------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**63), count=st.integers(1, 40), batch_size=st.integers(1, 12), world_size=st.integers(1, 4)
)
@settings(deadline=None)
def test_no_sample_comes_twice_in_an_epoch(seed: int, count: int, batch_size: int, world_size: int) -> None:
    steps = -(-3 * count // (batch_size * world_size))
    order = [
        draws(seed, step, rank, batch_size, world_size, count) for step in range(steps) for rank in range(world_size)
    ]
    samples = np.concatenate([each.samples for each in order])[: 3 * count].reshape(3, count)
    for epoch, row in enumerate(samples):
        assert sorted(row.tolist()) == list(range(count))
        assert np.array_equal(row, sample_order(seed, epoch, count))


def test_every_epoch_and_seed_has_an_order_of_its_own() -> None:
    orders = {sample_order(seed, epoch, 50).tobytes() for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


@given(seed=st.integers(0, 2**63), step=st.integers(0, 10**7), count=st.integers(1, 10**5))
@settings(deadline=None, max_examples=20)
def test_draws_do_not_depend_on_how_the_work_is_divided(seed: int, step: int, count: int) -> None:
    """Two processes with batches of 4, one with a batch of 8, and eight single samples draw the same."""
    whole = draws(seed, step, 0, 8, 1, count)
    halves = [draws(seed, step, rank, 4, 2, count) for rank in range(2)]
    singles = [draws(seed, 8 * step + place, 0, 1, 1, count) for place in range(8)]
    for parts in (halves, singles):
        for name in whole._fields:
            assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name)), name


def test_draws_are_uniform_and_independent() -> None:
    drawn = draws(7, 0, 0, 40_000, 1, 1000)
    assert np.bincount(drawn.symmetries, minlength=8).min() > 4600
    assert np.bincount(drawn.symmetries).shape == (8,)
    columns = np.stack([drawn.symmetries / 8 + 1 / 16, drawn.down, drawn.across, drawn.map_chances])
    assert columns.min() >= 0
    assert columns.max() < 1
    assert np.abs(columns.mean(axis=1) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(columns) - np.eye(4)).max() < 0.02
    assert not np.array_equal(draws(8, 0, 0, 8, 1, 1000).down, drawn.down[:8])


GOLDEN = ([85, 20, 28], [3, 6, 6], [0.64473545731168, 0.681719724433067, 0.236072448924796])


def test_draws_never_change() -> None:
    """A run begun with one version of magc goes on with the next."""
    drawn = draws(2024, 5, 1, 3, 2, 100)
    assert drawn.samples.tolist() == GOLDEN[0]
    assert drawn.symmetries.tolist() == GOLDEN[1]
    assert drawn.down.tolist() == pytest.approx(GOLDEN[2], abs=1e-12)


@given(down=st.floats(0, 1, exclude_max=True), height=st.integers(64, 400))
def test_windows_lie_inside_at_multiples_of_8(down: float, height: int) -> None:
    place = window(down, 0.0, height, 64, 64)
    assert place.top_px % 8 == place.left_px == 0
    assert 0 <= place.top_px <= height - 64


def test_windows_reach_every_place() -> None:
    assert {window(share, 0.0, 256, 128, 128).top_px for share in np.arange(0, 1, 0.01)} == set(range(0, 136, 8))


# --- batches ---------------------------------------------------------------------------------------------------------


def test_images_and_maps_are_cut_and_turned_alike(data: Path, tmp_path: Path) -> None:
    """Peer: each crop is found again in the sample, turned by an independent rule, at the drawn place in both members."""
    source = MagcDataset(data)
    batches = TrainingBatches(source, crop_px=64, batch_size=6, seed=3)
    for step in range(5):
        batch = batches[step]
        drawn = draws(3, step, 0, 6, 1, len(source))
        assert batch.images is not None
        assert batch.images.shape == (6, 3, 64, 64)
        assert batch.has_map.all()
        for place in range(6):
            sample = source[int(drawn.samples[place])]
            both = np.dstack([sample.image, sample.semantic_map])
            turned = [np.rot90(mirrored, quarter) for mirrored in (both, both[:, ::-1]) for quarter in range(4)]
            corner = window(float(drawn.down[place]), float(drawn.across[place]), 256, 256, 64)
            crops = [each[corner.top_px :, corner.left_px :][:64, :64] for each in turned]
            image = ((batch.images[place].permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
            found = [crop for crop in crops if np.array_equal(crop[..., :3], image)]
            assert len(found) == 1
            assert np.array_equal(found[0][..., 3], batch.class_ids[place].numpy())


def test_pixels_become_minus_one_to_one() -> None:
    image = image_tensor(np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3))
    assert image.flatten().tolist() == pytest.approx([-1, -0.6, 1])
    assert image.is_contiguous()


def test_a_step_is_the_same_whenever_and_wherever_it_is_read(data: Path) -> None:
    batches = TrainingBatches(MagcDataset(data), crop_px=64, batch_size=3, seed=1, map_dropout=0.5)
    from_the_start = list(load(batches, range(6)))
    resumed = list(load(batches, range(4, 6)))
    by_workers = list(load(batches, range(6), workers=2))
    assert len(by_workers) == 6
    for one, other in [*zip(from_the_start, by_workers, strict=True), *zip(from_the_start[4:], resumed, strict=True)]:
        for ours, theirs in zip(one, other, strict=True):
            assert ours is theirs or (ours == theirs if isinstance(ours, int) else torch.equal(ours, theirs))
    assert not torch.equal(from_the_start[0].images, from_the_start[1].images)


@pytest.mark.parametrize(("dropout", "least", "most"), [(0.0, 400, 400), (0.25, 270, 330), (1.0, 0, 0)])
def test_map_dropout_is_decided_a_sample(data: Path, dropout: float, least: int, most: int) -> None:
    class Unchanging:
        def crop(self, sample: int, symmetry: int, window: Window) -> NDArray[np.float16]:
            return np.zeros((4, 8, 8), np.float16)

    batches = TrainingBatches(
        MagcDataset(data), crop_px=64, batch_size=40, seed=1, map_dropout=dropout, latents=Unchanging()
    )
    masks = [batches[step].has_map for step in range(10)]
    for step, mask in enumerate(masks):
        assert mask.tolist() == (draws(1, step, 0, 40, 1, 4).map_chances >= dropout).tolist()
    assert least <= sum(int(mask.sum()) for mask in masks) <= most
    assert len({tuple(mask.tolist()) for mask in masks}) == (10 if 0 < dropout < 1 else 1)


def test_cached_latents_take_the_place_of_images(data: Path) -> None:
    asked = []

    class Recording:
        def crop(self, sample: int, symmetry: int, window: Window) -> NDArray[np.float16]:
            asked.append((sample, symmetry, *window))
            return np.full((4, window.side_px // 8, window.side_px // 8), sample, np.float16)

    plain = TrainingBatches(MagcDataset(data), crop_px=128, batch_size=4, seed=9)[2]
    batch = TrainingBatches(MagcDataset(data), crop_px=128, batch_size=4, seed=9, latents=Recording())[2]
    drawn = draws(9, 2, 0, 4, 1, 4)
    assert batch.images is None
    assert batch.latents is not None
    assert batch.latents.dtype == torch.float32
    assert batch.latents[:, 0, 0, 0].tolist() == drawn.samples.tolist()
    assert [each[1] for each in asked] == drawn.symmetries.tolist()
    assert torch.equal(batch.class_ids, plain.class_ids)


def test_a_damaged_sample_is_one_sentence_from_a_worker_too(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"a.png": (64, 64), "b.png": (64, 64)})
    batches = TrainingBatches(ImageFolder(tmp_path), crop_px=64, batch_size=2, seed=0)
    content = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(content[: len(content) // 2])
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"b.png cannot be read") as caught:
            list(load(batches, range(2), workers))
        assert "\n" not in str(caught.value)


# --- sources ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_like_a_dataset(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"sub/b.webp": (80, 72), "a.PNG": (64, 96), "c.tif": (100, 64), ".hidden/d.png": (64, 64)})
    (tmp_path / "notes.txt").write_text("no picture")
    Image.new("L", (64, 64), 7).save(tmp_path / "grey.jpg")
    source = open_source(tmp_path)
    assert source.keys == ["a.PNG", "c.tif", "grey.jpg", "sub/b.webp"]
    assert source.sizes_px.tolist() == [[96, 64], [64, 100], [64, 64], [72, 80]]
    assert source.classes == ()
    for number in range(4):
        sample = source[number]
        assert sample.image.shape == (*source.sizes_px[number], 3)
        assert sample.semantic_map.shape == source.read_map(number).shape == tuple(source.sizes_px[number])
    with Image.open(tmp_path / "c.tif") as picture:
        assert np.array_equal(source[1].image, np.asarray(picture))
    batches = TrainingBatches(source, crop_px=64, batch_size=4, seed=0)
    for step in range(8):
        batch = batches[step]
        assert batch.images is not None
        assert batch.images.shape == (4, 3, 64, 64)
        assert not batch.has_map.any()


def test_the_digest_of_a_folder_is_of_names_and_contents(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"a.png": (64, 64), "b.png": (64, 64)})
    digest = ImageFolder(tmp_path).digest
    (tmp_path / "a.png").touch()
    assert ImageFolder(tmp_path).digest == digest
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    renamed = ImageFolder(tmp_path).digest
    write_pictures(tmp_path, {"c.png": (64, 64)})
    assert len({digest, renamed, ImageFolder(tmp_path).digest}) == 3


def nothing(folder: Path) -> None:
    (folder / "readme.txt").write_text("nothing here")


def text_as_png(folder: Path) -> None:
    (folder / "text.png").write_text("no picture")


def sixteen_bits(folder: Path) -> None:
    Image.fromarray(np.zeros((64, 64), np.uint16)).save(folder / "deep.tif")


def transparent(folder: Path) -> None:
    Image.new("RGBA", (64, 64)).save(folder / "glass.png")


def huge(folder: Path) -> None:
    Image.new("1", (10000, 9000)).save(folder / "huge.tif", compression="group4")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (nothing, "neither a dataset .* nor pictures"),
        (text_as_png, "text.png cannot be read as a picture"),
        (sixteen_bits, "deep.tif is of mode I;16, expected 8-bit RGB or grey"),
        (transparent, "glass.png is of mode RGBA"),
        (huge, "huge.tif has more than .* pixels"),
        (lambda folder: (folder / ".magc-build").mkdir(), "unfinished build"),
    ],
)
def test_folders_that_cannot_be_used_are_refused(make: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises((DataError, DatasetError), match=said) as caught:
        open_source(tmp_path)
    assert "\n" not in str(caught.value)


def test_absent_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent is no folder"):
        open_source(tmp_path / "absent")


def test_an_empty_dataset_is_refused(data: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    (tmp_path / "dataset.json").write_bytes((data / "dataset.json").read_bytes())
    pq.write_table(pq.read_table(data / "index.parquet").slice(0, 0), tmp_path / "index.parquet")
    with pytest.raises(DataError, match="no sample to train on"):
        open_source(tmp_path)


def test_pictures_smaller_than_the_crop_are_named(tmp_path: Path) -> None:
    source = ImageFolder(write_pictures(tmp_path, {"big.png": (200, 200), "low.png": (200, 120)}))
    with pytest.raises(DataError, match="low.png is 200x120 pixels, smaller than the crop of 128"):
        TrainingBatches(source, crop_px=128, batch_size=1, seed=0)


@pytest.mark.parametrize("crop_px", [0, -64, 100])
def test_crops_are_multiples_of_64(crop_px: int, data: Path) -> None:
    with pytest.raises(UsageError, match="multiple of 64"):
        TrainingBatches(MagcDataset(data), crop_px=crop_px, batch_size=1, seed=0)


# --- class tables ----------------------------------------------------------------------------------------------------

NO_MAP = MapConfig(in_transform=False, in_diffusion=False)


def test_maps_are_required_by_models_with_maps_only(data: Path, tmp_path: Path) -> None:
    pictures = ImageFolder(write_pictures(tmp_path, {"a.png": (64, 64)}))
    require_maps(pictures, NO_MAP)
    require_maps(MagcDataset(data), MapConfig())
    with pytest.raises(DataError, match="have no maps"):
        require_maps(pictures, MapConfig())


def test_the_class_table_is_adopted_once_and_then_compared(data: Path, tmp_path: Path) -> None:
    source = MagcDataset(data)
    config = adopt_classes(ModelConfig(), source)
    assert [tuple(each) for each in config.map.classes] == [tuple(each) for each in source.classes]
    assert adopt_classes(config, ImageFolder(write_pictures(tmp_path, {"a.png": (64, 64)}))) is config
    require_maps(source, config.map)
    recolored = tuple(each._replace(color=(1, 2, 3)) for each in config.map.classes)
    require_maps(source, dataclasses.replace(config.map, classes=recolored))
    renamed = tuple(each._replace(name="lake") if each.name == "water" else each for each in config.map.classes)
    with pytest.raises(DataError, match="has class 8 water where the model was trained with class 8 lake"):
        require_maps(source, dataclasses.replace(config.map, classes=renamed))
    with pytest.raises(DataError, match="where the model was trained with no more classes"):
        require_maps(source, dataclasses.replace(config.map, classes=config.map.classes[:-1]))


# --- constant ground resolution --------------------------------------------------------------------------------------


def test_a_dataset_of_constant_ground_resolution_is_read_as_any_other(tmp_path: Path, monkeypatch) -> None:
    """Image, map and metres a pixel; batches for training; items for an evaluation."""
    monkeypatch.setenv("MAGC_CACHE_DIR", str(tmp_path / "cache"))
    world = tiny_world.World(tmp_path, (tiny_world.CORNER_LON, tiny_world.CORNER_LAT, *tiny_world.BBOX[2:]))
    middle = (tiny_world.CORNER_LON + 0.003, tiny_world.CORNER_LAT + 0.0014)
    bbox = (*middle, middle[0] + 0.0002, middle[1] + 0.0002)
    tiny_world.run(world.config(tmp_path / "d", bbox=bbox, gsd=1.07, imagery_zoom=17))
    source = open_source(tmp_path / "d")
    assert len(source) >= 1
    for sample in source:
        assert (sample.image.shape, sample.semantic_map.shape) == ((256, 256, 3), (256, 256))
        assert sample.gsd_m == pytest.approx(1.07, rel=0.005)
        assert sample.image.std() > 1
        assert len(np.unique(sample.semantic_map)) > 1
    items = EvaluationSet(tmp_path / "d").items
    assert [item.key for item in items] == list(source.keys)
