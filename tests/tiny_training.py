"""A preset smaller than tiny, and `magc-train` with it as a program: `python tests/tiny_training.py vae --data ...`.

Run as a program it can also leave behind what its processes saw: with MAGC_TEST_DUMP set to a folder, every process
writes its first gradients and its last weights there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from magc_model.config import (
    PRESETS,
    AutoencoderConfig,
    AutoencoderKind,
    DenoiserConfig,
    FineTune,
    LatentCompressionConfig,
    MapConfig,
    ModelConfig,
    NormKind,
    Preset,
    StageConfig,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

NAME = "smallest"
THEN = "then"
"""Stands between commands that one program runs in turn."""

MODEL = ModelConfig(
    preset=NAME,
    base_model=None,
    map=MapConfig(in_decoder=True, in_entropy=True),
    autoencoder=AutoencoderConfig(
        kind=AutoencoderKind.TINY,
        channels=(8, 8, 8, 8),
        blocks_per_level=1,
        scaling_factor=1.0,
        map_decoder_channels=(4, 4, 4, 4),
    ),
    latent_compression=LatentCompressionConfig(
        channels=8,
        symbol_channels=8,
        slices=2,
        context_channels=(8,),
        map_channels=(4, 4, 8),
        entropy_map_channels=4,
        spade_norm=NormKind.BATCH,  # whose statistics must not move in stage 2
    ),
    denoiser=DenoiserConfig(
        channels=(8, 16),
        layers_per_block=1,
        attention_heads=(1, 2),
        norm_groups=4,
        text_tokens=1,
        text_channels=8,
        map_channels=(4, 4, 8),
        adapter_blocks=1,
        fine_tune=FineTune.ALL,
    ),
)
STAGE = StageConfig(
    steps=6, batch_size=2, crop_px=64, learning_rate=2e-3, warmup_steps=2, final_learning_rate=0.1, ema_decay=0.9
)
PRESET = Preset(MODEL, {"vae": STAGE, "stage1": STAGE, "stage2": STAGE})


def dump_into(folder: Path, replace: Callable[[object, str, object], None] = setattr) -> None:
    """Let training leave behind what it sees; `replace` is how its functions are replaced."""
    import safetensors.torch

    from magc_model.train import loop

    folder.mkdir(parents=True, exist_ok=True)
    rank = os.environ.get("RANK", "0")
    clip, run = loop.nn.utils.clip_grad_norm_, loop.Trainer.run

    def clip_and_dump(parameters: list[torch.nn.Parameter], largest: float) -> torch.Tensor:
        path = folder / f"gradients-{rank}.safetensors"
        if not path.exists():
            safetensors.torch.save_file({str(n): each.grad.contiguous() for n, each in enumerate(parameters)}, path)
        return clip(parameters, largest)

    def run_and_dump(self: loop.Trainer, batches: object) -> None:
        run(self, batches)
        weights = {name: each.detach().contiguous() for name, each in self._weights.items()}
        safetensors.torch.save_file(weights, folder / f"weights-{rank}.safetensors")

    replace(loop.nn.utils, "clip_grad_norm_", clip_and_dump)
    replace(loop.Trainer, "run", run_and_dump)


def main() -> None:
    """`magc-train` that knows the smallest preset."""
    PRESETS[NAME] = PRESET
    if folder := os.environ.get("MAGC_TEST_DUMP"):
        dump_into(Path(folder))
    from magc_model.train_cli import main as magc_train

    rest = sys.argv[1:]
    while THEN in rest:
        arguments, rest = rest[: rest.index(THEN)], rest[rest.index(THEN) + 1 :]
        try:
            magc_train(arguments)
        except SystemExit as ended:
            if ended.code:
                raise
    magc_train(rest)


if __name__ == "__main__":
    main()
