"""Baselines as small as they get, and `magc-train baseline` with them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from magc_model.baselines.config import (
    Architecture,
    BaselineConfig,
    BaselinePreset,
    LabelsConfig,
    Sizes,
)
from magc_model.config import StageConfig

if TYPE_CHECKING:
    from magc_model.baselines.network import BaselineCodec

NAME = "smallest"
STAGE = StageConfig(
    steps=6, batch_size=2, crop_px=64, learning_rate=1e-3, warmup_steps=2, weight_decay=0.0, ema_decay=0.9
)
SIZES = {
    Architecture.BMSHJ2018: Sizes(8, 12),
    Architecture.MBT2018_MEAN: Sizes(8, 12),
    Architecture.MBT2018: Sizes(8, 12),
    Architecture.CHENG2020: Sizes(8, 8),
    Architecture.CHENG2020_CHECKERBOARD: Sizes(8, 8),
    Architecture.ELIC: Sizes(8, 12, (2, 2, 4, 4)),
}
PRESET = BaselinePreset(
    SIZES,
    LabelsConfig(preset=NAME, channels=4, blocks=1, codes=8),
    adapter_blocks=1,
    discriminator_channels=4,
    codec=STAGE,
    fine_tune=replace(STAGE, steps=4),
)


def need_compressai() -> None:
    """Skip, with the reason, where CompressAI cannot be imported."""
    from magc_model.baselines.architectures import compressai
    from magc_model.errors import EvaluationError

    try:
        compressai()
    except EvaluationError as error:
        pytest.skip(str(error))


def config(architecture: Architecture, **changes: object) -> BaselineConfig:
    sizes = SIZES[architecture]
    fields = {"channels": sizes.channels, "symbol_channels": sizes.symbol_channels, "groups": sizes.groups}
    return BaselineConfig(architecture=architecture, preset=NAME, adapter_blocks=1, **fields | changes)


def lively(codec: BaselineCodec) -> BaselineCodec:
    """As if trained: symbols are many different numbers, where those of fresh weights are nearly all zero."""
    import torch

    generator = torch.Generator().manual_seed(0)
    layer = [each for each in codec.body.g_a.modules() if isinstance(each, torch.nn.Conv2d)][-1]
    with torch.no_grad():
        layer.weight.mul_(20)
        layer.bias.copy_(3 * torch.randn(layer.bias.shape, generator=generator))
    return codec
