"""The paper preset, of Stable Diffusion 2.1's shape and with random weights: a step of each stage and a sample, on a CPU.

A program of its own, so that its memory is its own. The first two stages leave runs and models as ever; what stage 2
would write (a checkpoint and a model of 4 GiB each, and digests of both) stays in memory and is sampled from: writing
and reading are the same code for networks of every size, and tested with small ones.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import safetensors.torch
import tiny_world
import torch

from magc_model.config import preset

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

GIB = 2**30
MEMORY_GIB = 16

PROGRAM = """
import json, resource, sys, torch
from magc_model.diffusion.noise import NoiseWindow, noise_batch
from magc_model.diffusion.samplers import SAMPLERS, start_latent
from magc_model.diffusion.schedule import noise_schedule
from magc_model.model import MagcModel
from magc_model.train.run_directory import RunDirectory
from magc_model.train_cli import main

def kaiming_uniform_(weight, **_):
    # The usual first weights, but a few drawn again and again: for a billion that takes longer than all the rest.
    flat, bound = weight.detach().view(-1), weight[0].numel() ** -0.5
    drawn = torch.empty(min(len(flat), 1 << 20)).uniform_(-bound, bound)
    for piece in flat.split(len(drawn)):
        piece.copy_(drawn[: len(piece)])

def train(arguments):
    try:
        main(arguments)
    except SystemExit as ended:
        assert ended.code == 0, ended.code

def say_memory(what):
    print(json.dumps({what: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}), flush=True)

torch.nn.init.kaiming_uniform_ = kaiming_uniform_
*first, last = json.loads(sys.argv[1])
for arguments in first:
    train(arguments)
    say_memory(arguments[0])

models, checkpoints = [], []
MagcModel.save_pretrained = lambda model, folder: models.append(model)
RunDirectory.write_checkpoint = lambda directory, checkpoint: checkpoints.append(
    {kind: {key.split("/")[-1] for key in getattr(checkpoint, kind)} for kind in ("model", "ema", "optimizer")}
)
train(last)
say_memory(last[0])
(model,), (checkpoint,) = models, checkpoints
names = {"model." + name for name, each in model.named_parameters() if each.requires_grad}
assert names and names == checkpoint["optimizer"] and names <= checkpoint["model"] == checkpoint["ema"]

model.eval()
image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
ids = torch.full((1, 64, 64), model.config.map.classes[0].id, dtype=torch.uint8)
with torch.inference_mode():
    planes = model.planes(ids, (1, 64, 64))
    compressed = model.latent_compression(model.autoencoder.encode(image), planes)
    guide, features = compressed.latent_hat, model.denoiser.encode_map(planes)
    schedule = noise_schedule(model.config.diffusion)
    noise = lambda draw: noise_batch([NoiseWindow(0)], draw, 8, 8)
    denoise = lambda latent, timestep: model.denoiser(latent, torch.tensor([timestep]), guide, features)
    start = start_latent(guide, schedule, None, noise)
    latent = SAMPLERS["ddpm"](denoise, start, schedule, steps=2, noise=noise)
    decoded = model.autoencoder.decode(latent, planes)
assert decoded.shape == image.shape and decoded.isfinite().all() and compressed.symbol_bits > 0
say_memory("sample")
"""


def _fill(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Small random weights for a network without any; drawing each of a billion would take far longer."""
    drawn = torch.empty(1 << 20).uniform_(-0.02, 0.02)

    def values(shape: torch.Size) -> torch.Tensor:
        flat = torch.empty(shape.numel())
        for piece in flat.split(len(drawn)):
            piece.copy_(drawn[: len(piece)])
        return flat.view(shape)

    return {
        name: torch.ones(each.shape) if "norm" in name and name.endswith("weight") else values(each.shape)
        for name, each in network.state_dict().items()
    }


def write_base_model(folder: Path) -> Path:
    """A base model of Stable Diffusion 2.1-base's shape, but for the depth of its text encoder."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    from magc_model.config import ModelConfig
    from magc_model.model import build_autoencoder, build_denoiser

    config = ModelConfig()
    with torch.device("meta"):
        unet = build_denoiser(config).unet
        vae = build_autoencoder(config).network
    weights = _fill(unet)
    weights["conv_in.weight"] = weights["conv_in.weight"][:, :4].contiguous()
    for name in ("unet", "vae", "tokenizer"):
        (folder / name).mkdir(parents=True)
    safetensors.torch.save_file(weights, folder / "unet" / "diffusion_pytorch_model.safetensors")
    (folder / "unet" / "config.json").write_text(json.dumps(dict(unet.config), default=str))
    del weights
    (folder / "scheduler").mkdir()
    scheduler = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    safetensors.torch.save_file(
        _fill(vae), folder / "vae" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"}
    )
    AutoencoderKL.from_config(vae.config).save_config(folder / "vae")
    text = CLIPTextConfig(
        vocab_size=4,
        hidden_size=1024,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=16,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=1,
    )
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    words = ["<|startoftext|>", "<|endoftext|>", "!</w>", "!"]
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer" / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": 77, "pad_token": "<|endoftext|>", "tokenizer_class": "CLIPTokenizer"})
    )
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path)  # some 6 GiB


def test_a_step_of_each_stage_and_a_sample(folder: Path) -> None:
    tiny_world.run(tiny_world.World(folder / "world", tiny_world.FOUR_TILES).config(folder / "data"))
    base = write_base_model(folder / "base")
    common = ("--data", folder / "data", "--base-model", base, "--device", "cpu", "--no-latent-cache")
    quick = ("--steps", "1", "--batch-size", "1", "--crop-px", "64", "--validate-every", "0")
    commands = []
    for stage, start in (("vae", None), ("stage1", "vae"), ("stage2", "stage1")):
        begin = ("--preset", "paper", "--map-in-decoder") if start is None else ("--start-from", folder / start)
        commands.append([stage, *map(str, (*common, *quick, *begin, "--out", folder / stage))])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    program = [sys.executable, "-c", PROGRAM, json.dumps(commands)]
    done = subprocess.run(program, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    memory_gib = {what: size / GIB for each in said for what, size in each.items()}
    assert [*memory_gib] == ["vae", "stage1", "stage2", "sample"]
    assert max(memory_gib.values()) < MEMORY_GIB, memory_gib
    assert preset("paper").model.denoiser.channels == (320, 640, 1280, 1280)
    line = json.loads((folder / "stage2" / "metrics.jsonl").read_text().splitlines()[-1])
    # The new half of the first convolution is zero, and so is the adapter's way out: noise is all that there is.
    assert 0.1 < line["loss"] < 10
