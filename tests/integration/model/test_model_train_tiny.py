"""`pipelines/train_tiny.py`: a step of each of its phases makes a whole model of the kind that is in the box."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_world
import torch
from PIL import Image

from magc_data.dataset import MagcDataset
from magc_model.codec import MagcCodec
from magc_model.model import ENTROPY_PARTS, MagcModel, stored_tensors
from magc_model.reconstruct import Sampling, usual_steps

SCRIPT = Path(__file__).resolve().parents[3] / "pipelines" / "train_tiny.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_makes_a_model_that_draws_in_one_step(tmp_path: Path) -> None:
    tiny_world.run(tiny_world.World(tmp_path / "world", tiny_world.FOUR_TILES).config(tmp_path / "dataset"))
    (tmp_path / "pictures").mkdir()
    random = np.random.default_rng(0)
    for number in range(2):
        pixels = random.integers(0, 256, (200, 200, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number}.png")
    options = ("--data", "dataset", "--pictures", "pictures", "--out", "model", "--batch", "1", "--minutes", "0.001")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines() if " steps in " in line] == [
        "autoencoder", "codec", "realistic"
    ]  # fmt: skip

    model = MagcModel.from_pretrained(tmp_path / "model")
    shipped = MagcModel.from_pretrained("tiny")
    assert model.config.denoiser == shipped.config.denoiser
    assert {name: each.shape for name, each in stored_tensors(model).items()} == {
        name: each.shape for name, each in stored_tensors(shipped).items()
    }
    exact = tuple(f"latent_compression.{part}" for part in ENTROPY_PARTS)
    for network in (model, shipped):
        rounded = [each for name, each in stored_tensors(network).items() if not name.startswith(exact)]
        assert all(torch.equal(each, each.half().float()) for each in rounded if each.is_floating_point())

    sample = MagcDataset(tmp_path / "dataset")[0]
    codec = MagcCodec(model, device="cpu")
    stream = codec.compress(sample.image, sample.semantic_map)
    assert usual_steps(codec.model) == 1
    assert codec.decompress(stream, sample.semantic_map, sampling=Sampling(steps=1)).shape == sample.image.shape


@pytest.mark.slow
def test_an_adversary_learns_and_deceives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against pictures that stay as they are the discriminator's loss goes down; a generator's then does so too."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from tiny_adversary import Discriminator, closeness, deceit, discriminator_loss
    from tiny_descent import Descent

    torch.manual_seed(0)
    torch.set_num_threads(1)
    original, faithful = torch.rand(2, 3, 64, 64) * 2 - 1, torch.zeros(2, 3, 64, 64)
    planes = torch.zeros(2, 3, 64, 64)
    drawn = torch.nn.Parameter(torch.zeros(2, 3, 64, 64))
    judge = Discriminator(3)
    judging = Descent(list(judge.parameters()), 1e-3, betas=(0.5, 0.99))
    drawing = Descent([drawn], 3e-2)

    def judged() -> torch.Tensor:
        return discriminator_loss(judge(original, faithful, planes), judge(drawn.detach(), faithful, planes))

    before = float(judged())
    for _ in range(15):
        judging.down(judged())
    assert float(judged()) < before - 0.5

    def loss() -> torch.Tensor:
        real, fake = judge(original, faithful, planes), judge(drawn, faithful, planes)
        return deceit(real, fake) + closeness(drawn, original)

    before = float(loss())
    weights = [each.detach().clone() for each in judge.parameters()]
    for _ in range(10):
        drawing.down(loss())
    assert float(loss()) < before
    assert all(map(torch.equal, weights, judge.parameters()))
    drawing.settle()
    assert drawn.abs().max() > 0
