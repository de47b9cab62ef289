"""`magc-train segmenter`: trained as a user does, killed and continued, and everything it refuses."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import PIL.Image
import pytest
import tiny_world
import torch

from magc_data.config import BuildConfig
from magc_data.dataset import MagcDataset
from magc_model.data import Joined
from magc_model.errors import DataError
from magc_model.segmenter_model import SegmenterModel
from magc_model.train.job import divide
from magc_model.train.segmenter_stage import class_shares, confusion
from magc_model.train_cli import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

STEPS = 20
SMALL = ("--batch-size", "2", "--crop-px", "64", "--warmup-steps", "2")
OFTEN = ("--steps", str(STEPS), "--checkpoint-every", "4", "--validate-every", "10")
TRAINING_GROUND = {18: (85.50865, 27.63183, 85.51414, 27.63792), 17: (85.51071, 27.63366, 85.51346, 27.63609)}
"""West of the sample's test half."""
HELD_OUT = (85.5187, 27.6337, 85.5208, 27.6357)
"""Inside of it."""


class Run(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the killed process, whose weights are compared to the last bit
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tiles whose maps have a dozen classes, and pictures that show them: each class in its own colour."""
    folder = tmp_path_factory.mktemp("segmenter")
    world = tiny_world.World(folder / "world", tiny_world.FOUR_TILES)
    tiny_world.run(world.config(folder / "first"))
    drawn = {each.key: each for each in MagcDataset(folder / "first")}
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
    for tile in tiny_world.tiles(tiny_world.FOUR_TILES):
        semantic_map = drawn[f"{tile.z}_{tile.x}_{tile.y}"].semantic_map
        PIL.Image.fromarray(palette[semantic_map]).save(world.picture(tile), "JPEG", quality=90)
    tiny_world.run(world.config(folder / "data"))
    return folder / "data"


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    def run(*arguments: object) -> Run:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["segmenter", *map(str, arguments)])
        return Run(ended.value.code, *capfd.readouterr())

    return run


def measured(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_and_leaves_a_segmenter(data: Path, tmp_path: Path, command: Callable[..., Run]) -> None:
    run = tmp_path / "run"
    done = command("--data", data, "--out", run, *SMALL, *OFTEN)
    assert done.code == 0, done.err
    assert "training 59" in done.err
    assert "3 samples" in done.err
    assert "(1 held out)" in done.err
    assert "building" in done.err
    lines = measured(run)
    assert all(math.isfinite(value) for line in lines for value in line.values())
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    scores = [line["validation/mean_iou"] for line in lines if "validation/mean_iou" in line]
    assert len(scores) == 2
    assert scores[-1] > scores[0]
    assert any(name.startswith("validation/iou_building") for line in lines for name in line)
    with PIL.Image.open(run / "validation" / "step-000020.png") as picture:
        assert picture.size == (3 * 260, 260)
    assert list((run / "tensorboard").glob("events.*"))
    segmenter = SegmenterModel.from_pretrained(run)  # the run's folder will do
    assert segmenter.fingerprint == SegmenterModel.from_pretrained(run / "model").fingerprint
    on_maps = {int(each) for n in range(3) for each in np.unique(divide(data).training.read_map(n))}
    assert set(segmenter.class_ids) == on_maps
    assert {"building", "water"} < set(segmenter.classes)
    assert set(np.unique(segmenter.predict(MagcDataset(data)[0].image[None]))) <= on_maps
    again = command("--data", data, "--out", run, *SMALL, *OFTEN)
    assert (again.code, "nothing to do" in again.out) == (0, True)


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_weights(data: Path, tmp_path: Path, command: Callable[..., Run]) -> None:
    program = "import sys; from magc_model.train_cli import main; main(sys.argv[1:])"
    arguments = ["segmenter", "--data", str(data), "--out", str(tmp_path / "killed"), *SMALL, *OFTEN]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "killed" / "checkpoints" / "step-00000008").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(Exception, match="has not ended yet"):
        SegmenterModel.from_pretrained(tmp_path / "killed")
    continued = command("--data", data, "--out", tmp_path / "killed", *SMALL, *OFTEN)
    assert continued.code == 0
    assert "from step " in continued.err
    assert command("--data", data, "--out", tmp_path / "whole", *SMALL, *OFTEN).code == 0
    for name in ("model/segmenter", *(f"checkpoints/step-000000{STEPS}/{each}" for each in ("ema", "optimizer"))):
        files = [tmp_path / run / f"{name}.safetensors" for run in ("killed", "whole")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_datasets_are_joined_one_after_the_other(data: Path) -> None:
    dataset = MagcDataset(data)
    assert divide(data).training.keys == dataset.keys[:3]  # the last is held out
    joined = Joined([divide(data).training, divide(data).held_out])
    assert joined.keys == dataset.keys
    assert [joined[n].key for n in range(4)] == dataset.keys
    assert all(np.array_equal(joined.read_map(n), dataset.read_map(n)) for n in range(4))
    assert len({each.digest for each in (joined, dataset, Joined([divide(data).held_out, divide(data).training]))}) == 3
    with pytest.raises(IndexError):
        joined[4]


def test_several_datasets_are_trained_on_together(data: Path, tmp_path: Path, command: Callable[..., Run]) -> None:
    done = command("--data", data, "--data", data, "--out", tmp_path / "run", *SMALL, "--steps", "1")
    assert done.code == 0, done.err
    assert "6 samples" in done.err
    assert "(2 held out)" in done.err
    other = command("--data", data, "--out", tmp_path / "run", *SMALL, "--steps", "1")
    assert other.code == 2
    assert "is a run with" in other.err


def test_datasets_of_two_schemes_are_refused(data: Path, tmp_path: Path, command: Callable[..., Run]) -> None:
    world = tiny_world.World(tmp_path / "world", tiny_world.FOUR_TILES)
    tiny_world.run(world.config(tmp_path / "basic", scheme="basic"))
    refused = command("--data", data, "--data", tmp_path / "basic", "--out", tmp_path / "run", *SMALL)
    assert refused.code == 1
    assert "give datasets of one scheme" in refused.err
    assert not (tmp_path / "run").exists()


def test_what_has_no_map_or_nothing_on_it_is_refused(tmp_path: Path, command: Callable[..., Run]) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(2):
        PIL.Image.new("RGB", (64, 64)).save(folder / f"{number}.png")
    refused = command("--data", folder, "--out", tmp_path / "run", *SMALL)
    assert refused.code == 1
    assert "no maps to learn from" in refused.err
    assert command("--out", tmp_path / "run", *SMALL).code == 2
    crop = command("--data", folder, "--out", tmp_path / "run", "--crop-px", "100")
    assert (crop.code, "multiple of 64" in crop.err) == (2, True)


def test_one_class_alone_cannot_be_learnt(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = MagcDataset(data)
    monkeypatch.setattr(MagcDataset, "read_map", lambda *_: np.zeros((256, 256), np.uint8))
    with pytest.raises(DataError, match="hold background alone"):
        class_shares(source)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_real_houses_are_found_on_ground_that_was_not_trained_on(
    tmp_path: Path, command: Callable[..., Run], embedded_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("MAGC_CACHE_DIR", str(embedded_cache))
        sources = {"imagery": "sample-banepa", "osm": "sample-banepa", "workers": 1}
        for zoom, bbox in TRAINING_GROUND.items():
            tiny_world.run(BuildConfig(**sources, bbox=bbox, zoom=zoom, out=tmp_path / f"train{zoom}"))
        tiny_world.run(BuildConfig(**sources, bbox=HELD_OUT, zoom=18, out=tmp_path / "held-out"))
    both = [each for zoom in TRAINING_GROUND for each in ("--data", tmp_path / f"train{zoom}")]
    done = command(*both, "--out", tmp_path / "run", "--steps", "150", "--validate-every", "0")
    assert done.code == 0, done.err
    segmenter = SegmenterModel.from_pretrained(tmp_path / "run")
    assert segmenter.classes == ("background", "building")
    samples = list(MagcDataset(tmp_path / "held-out"))

    def iou(shift: int) -> float:
        counts = sum(
            confusion(samples[number - shift].semantic_map, segmenter.predict(each.image[None])[0], (0, 9))
            for number, each in enumerate(samples)
        )
        return float(counts[1, 1] / (counts.sum() - counts[0, 0]))

    assert iou(0) > 0.38
    assert iou(0) > 1.5 * iou(1), "houses are where this map says, not where any map does"
