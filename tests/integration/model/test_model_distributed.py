"""Several processes train one model: on the CPU here, by torchrun and gloo, as on several GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import tiny_training
import tiny_world
import torch

from magc_model.config import PRESETS
from magc_model.train_cli import main

SCRIPT = Path(tiny_training.__file__)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tiny_world.run(tiny_world.World(folder / "world", tiny_world.FOUR_TILES).config(folder / "data"))
    return folder / "data"


def train(processes: int, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the smallest preset's training in so many processes; what they saw goes to FOLDER/dump."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "MAGC_TEST_DUMP": str(folder / "dump"),
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += [str(SCRIPT), *arguments, *options(folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


def train_here(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """The same in this process alone."""
    with monkeypatch.context() as patched:
        patched.setitem(PRESETS, tiny_training.NAME, tiny_training.PRESET)
        tiny_training.dump_into(folder / "dump", patched.setattr)
        with pytest.raises(SystemExit) as ended:
            main([*arguments, *options(folder)])
    assert ended.value.code == 0


def options(folder: Path) -> list[str]:
    return ["--out", str(folder / "run"), "--preset", tiny_training.NAME, "--device", "cpu"]


def dumped(folder: Path, what: str, rank: int) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "dump" / f"{what}-{rank}.safetensors")


def test_two_processes_are_one_with_twice_the_batch(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["vae", "--data", str(data), "--steps", "3", "--validate-every", "2"]
    two = train(2, tmp_path / "two", *arguments, "--batch-size", "2")
    assert two.returncode == 0, two.stderr
    assert "3 steps of 4 on 2 x cpu" in two.stderr
    train_here(tmp_path / "one", monkeypatch, *arguments, "--batch-size", "4")
    first, second, alone = (
        dumped(tmp_path / folder, "gradients", rank) for folder, rank in (("two", 0), ("two", 1), ("one", 0))
    )
    for name, gradient in first.items():
        assert torch.equal(gradient, second[name])
        assert torch.allclose(gradient, alone[name], rtol=1e-3, atol=1e-5)
    ours, theirs = (dumped(tmp_path / "two", "weights", rank) for rank in (0, 1))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    # One process writes; its measurements are of both.
    lines = [
        [json.loads(line) for line in (tmp_path / each / "run" / "metrics.jsonl").open()] for each in ("one", "two")
    ]
    (alone_last, *_), (both_last, *_) = ([line for line in each if "loss" in line] for each in lines)
    assert both_last["loss"] == pytest.approx(alone_last["loss"], rel=1e-2)
    assert [line["step"] for line in lines[1]] == [2, 3, 3]


def test_a_sentence_comes_from_several_processes_too(data: Path, tmp_path: Path) -> None:
    refused = train(2, tmp_path, "stage1", "--data", str(data), "--start-from", str(tmp_path / "gone"))
    assert refused.returncode != 0
    assert "magc-train: there is no model directory" in refused.stderr
