"""Seconds a training step: stage 1 with cached latents against encoding at every step, and stage 2; the tiny preset.

    python benchmarks/training.py [--threads 2] [--steps 12] [--batch-size 16] [--crop-px 128] [--json]

Steps are whole ones (batch, forward, backward, clipping, optimiser, average), interleaved; medians are given. Pictures
are noise, weights random: neither matters for time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from accelerate import Accelerator

from magc_model.config import PRESETS, MapClass
from magc_model.data import ImageFolder, TrainingBatches
from magc_model.host_memory import keep_memory
from magc_model.model import MagcModel, build_autoencoder, build_denoiser, build_latent_compression
from magc_model.train.latents import cache_latents
from magc_model.train.loop import Pace, Trainer
from magc_model.train.run_directory import open_run
from magc_model.train.stages import CompressionStage, DiffusionStage, HeldOut

PICTURES = 8
PICTURE_PX = 256
CLASSES = tuple(MapClass(number, f"class {number}", (number, number, number)) for number in range(12))


def write_pictures(folder: Path) -> ImageFolder:
    """Noise of the size of a tile."""
    folder.mkdir()
    for number in range(PICTURES):
        pixels = np.random.default_rng(number).integers(0, 256, (PICTURE_PX, PICTURE_PX, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{number:03d}.jpg", quality=80)
    return ImageFolder(folder)


def measure(folder: Path, steps: int, batch_size: int, crop_px: int) -> dict[str, Any]:
    """Time the ways to train, in turn."""
    preset = PRESETS["tiny"]
    config = replace(preset.model, map=replace(preset.model.map, classes=CLASSES))
    source = write_pictures(folder / "pictures")
    torch.manual_seed(0)
    autoencoder = build_autoencoder(config)
    cache = cache_latents(folder / "latents", source, autoencoder.encode, "benchmark", quiet=True)
    accelerator = Accelerator(cpu=True)
    ways = {
        "stage 1, cached latents": ("stage1", CompressionStage, cache),
        "stage 1, encoding at every step": ("stage1", CompressionStage, None),
        "stage 2, cached latents": ("stage2", DiffusionStage, cache),
    }
    step_of: dict[str, Callable[[], object]] = {}
    for name, (stage_name, make, latents) in ways.items():
        training = replace(preset.stages[stage_name], batch_size=batch_size, crop_px=crop_px)
        model = MagcModel(config, autoencoder, build_latent_compression(config), build_denoiser(config))
        held_out = HeldOut(source, config.map, torch.device("cpu"))
        directory = open_run(folder / name, {"format_version": 1}, keep=1)
        trainer = Trainer(make(model, training, held_out), directory, training, Pace(seed=0), accelerator)
        batches = TrainingBatches(
            source, crop_px=crop_px, batch_size=batch_size, seed=0, map_dropout=training.map_dropout, latents=latents
        )
        step_of[name] = lambda trainer=trainer, batches=batches: trainer.advance(batches[trainer.step])
    seconds: dict[str, list[float]] = {name: [] for name in step_of}
    for number in range(steps + 2):
        for name, advance in step_of.items():
            start = time.perf_counter()
            advance()
            if number >= 2:  # the first ones also choose kernels
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    cached, uncached, _ = medians.values()
    return {
        "batch_size": batch_size,
        "crop_px": crop_px,
        "threads": torch.get_num_threads(),
        "steps": steps,
        "seconds_a_step": {name: round(each, 3) for name, each in medians.items()},
        "cached_is_faster": round(uncached / cached, 2),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--crop-px", type=int, default=128)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    keep_memory()  # as `magc-train` does
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), arguments.steps, arguments.batch_size, arguments.crop_px)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(
        f"tiny preset, batch {result['batch_size']}, {result['crop_px']} px, {result['threads']} threads: "
        f"median of {result['steps']} interleaved steps"
    )
    for name, each in result["seconds_a_step"].items():
        print(f"  {name:<32} {each:.3f} s a step")
    print(f"  stage 1 with cached latents does {result['cached_is_faster']} times as many steps a second")


if __name__ == "__main__":
    main()
