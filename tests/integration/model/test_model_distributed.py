"""Several processes train one model: on the CPU here, by torchrun and gloo, as on several GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import safetensors.torch
import tiny_training
import tiny_world
import torch

from magc_model.config import PRESETS
from magc_model.train_cli import main


class Two(NamedTuple):
    """What two processes have left, and how they ended."""

    folder: Path
    ended: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tiny_world.run(tiny_world.World(folder / "world", tiny_world.FOUR_TILES).config(folder / "data"))
    return folder / "data"


VAE = ("vae", "--steps", "3", "--validate-every", "2")


@pytest.fixture(scope="module")
def two(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Two:
    """Two processes train the smallest preset, and then are given a command that is refused."""
    folder = tmp_path_factory.mktemp("two")
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "MAGC_TEST_DUMP": str(folder / "dump"),
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [tiny_training.__file__, *VAE, "--batch-size", "2", *options(data, folder), tiny_training.THEN]
    command += ["stage1", "--start-from", str(folder / "gone"), *options(data, folder / "refused")]
    return Two(folder, subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240))


def train_here(data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same training by this process alone."""
    with monkeypatch.context() as patched:
        patched.setitem(PRESETS, tiny_training.NAME, tiny_training.PRESET)
        tiny_training.dump_into(folder / "dump", patched.setattr)
        with pytest.raises(SystemExit) as ended:
            main([*VAE, "--batch-size", "4", *options(data, folder)])
    assert ended.value.code == 0


def options(data: Path, folder: Path) -> list[str]:
    return [
        *("--data", str(data), "--out", str(folder / "run"), "--preset", tiny_training.NAME),
        *("--device", "cpu"),
    ]


def dumped(folder: Path, what: str, rank: int) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "dump" / f"{what}-{rank}.safetensors")


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(
    data: Path, two: Two, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "3 steps of 4 on 2 x cpu" in two.ended.stderr
    train_here(data, tmp_path, monkeypatch)
    first, second, alone = (
        dumped(folder, "gradients", rank) for folder, rank in ((two.folder, 0), (two.folder, 1), (tmp_path, 0))
    )
    for name, gradient in first.items():
        assert torch.equal(gradient, second[name])
        assert torch.allclose(gradient, alone[name], rtol=1e-3, atol=1e-5)
    ours, theirs = (dumped(two.folder, "weights", rank) for rank in (0, 1))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    # One process writes; its measurements are of both.
    lines = [
        [json.loads(line) for line in (folder / "run" / "metrics.jsonl").open()] for folder in (tmp_path, two.folder)
    ]
    (alone_last, *_), (both_last, *_) = ([line for line in each if "loss" in line] for each in lines)
    assert both_last["loss"] == pytest.approx(alone_last["loss"], rel=1e-2)
    assert [line["step"] for line in lines[1]] == [2, 3, 3]


@pytest.mark.slow
def test_a_sentence_comes_from_several_processes_too(two: Two) -> None:
    assert (two.folder / "run" / "finished.json").is_file()
    assert two.ended.returncode != 0
    assert "magc-train: there is no model directory" in two.ended.stderr
