"""What a baseline is and how it is trained: frozen dataclasses and presets. No torch: the command line reads this."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from magc_model.config import MapConfig, StageConfig
from magc_model.errors import UsageError

STRIDE_PX = 64
"""Picture sides are padded to a multiple of this: 16 (analysis) x 4 (hyper-analysis), in every architecture."""

DEFAULT_LAMBDA = 0.001


class Architecture(StrEnum):
    """Networks of `compressai.models`, and one of our own."""

    BMSHJ2018 = "bmshj2018"
    """Scale hyperprior."""
    MBT2018_MEAN = "mbt2018-mean"
    """Mean and scale hyperprior: what HiFiC and MS-ILLM code with."""
    MBT2018 = "mbt2018"
    """Mean and scale hyperprior with a pixel-wise autoregressive context: decodes one position after the other."""
    CHENG2020 = "cheng2020"
    """Residual blocks, attention and the same autoregressive context."""
    CHENG2020_CHECKERBOARD = "cheng2020-checkerboard"
    """Residual blocks with a context of two passes."""
    ELIC = "elic"
    """ELIC as VincentChandelier re-implemented it: the paper's footnote 6."""
    VQ_VAE = "vq-vae"
    """No codec: gives --finetune ms-illm its labels."""


SEQUENTIAL = frozenset({Architecture.MBT2018, Architecture.CHENG2020})
"""Where training and codec round symbols differently: a decoder fine-tuned on the one would be used on the other."""


NO_MAP = MapConfig(in_transform=False, in_diffusion=False, in_decoder=False, in_entropy=False)


class Objective(StrEnum):
    """What a decoder is trained for."""

    MSE = "mse"
    HIFIC = "hific"
    MS_ILLM = "ms-illm"


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """Everything that defines a baseline codec besides its weights."""

    architecture: Architecture
    preset: str
    """Name of the sizes, for people."""
    channels: int
    """N: of the transforms."""
    symbol_channels: int
    """M: of what is transmitted; the same as N for the Cheng 2020 models, which have one width."""
    groups: tuple[int, ...] = ()
    """ELIC's groups of symbol channels."""
    rate_lambda: float = DEFAULT_LAMBDA
    """Weight of the distortion that the rate comes from."""
    objective: Objective = Objective.MSE
    """What the decoder was trained for in the end."""
    perceptual: bool = False
    """Whether LPIPS was part of the objective; it needs weights that magc does not bring."""
    map: MapConfig = NO_MAP
    """`in_decoder` is the adapter's switch; the other places do not exist here."""
    adapter_blocks: int = 2
    """Residual blocks a scale in the adapter: the paper's SAM has two."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not 0 < self.rate_lambda < float("inf"):
            raise UsageError(f"--lambda is {self.rate_lambda}: expected a positive number")
        if self.architecture is Architecture.VQ_VAE:
            raise UsageError("vq-vae is no codec")
        has_groups = self.architecture is Architecture.ELIC
        if has_groups != bool(self.groups) or (has_groups and sum(self.groups) != self.symbol_channels):
            raise UsageError(f"the groups {self.groups} do not make {self.symbol_channels} symbol channels")


@dataclass(frozen=True, kw_only=True)
class LabelsConfig:
    """The VQ-VAE whose codes are the labels of MS-ILLM's discriminator."""

    preset: str
    channels: int
    """At full resolution; levels have 1, 2, 2 and 4 times as many."""
    blocks: int
    """Residual blocks a level."""
    codes: int
    code_dimensions: int = 8


class Sizes(NamedTuple):
    """What a preset says of an architecture."""

    channels: int
    symbol_channels: int
    groups: tuple[int, ...] = ()


class BaselinePreset(NamedTuple):
    """Sizes, and how they are trained."""

    sizes: dict[Architecture, Sizes]
    labels: LabelsConfig
    adapter_blocks: int
    discriminator_channels: int
    """Of the first layer of either discriminator; 64 and 128 as published."""
    codec: StageConfig
    fine_tune: StageConfig


_PAPER = BaselinePreset(
    {
        Architecture.BMSHJ2018: Sizes(192, 320),
        Architecture.MBT2018_MEAN: Sizes(192, 320),
        Architecture.MBT2018: Sizes(192, 320),
        Architecture.CHENG2020: Sizes(192, 192),
        Architecture.CHENG2020_CHECKERBOARD: Sizes(192, 192),
        Architecture.ELIC: Sizes(192, 320, (16, 16, 32, 64, 192)),
    },
    LabelsConfig(preset="paper", channels=64, blocks=2, codes=1024),
    adapter_blocks=2,
    discriminator_channels=64,
    # As many pictures as MAGC's two stages see: 250,000 x 16 + 150,000 x 48.
    codec=StageConfig(steps=700_000, batch_size=16, learning_rate=1e-4, warmup_steps=0, weight_decay=0.0),
    # Steps, batch and learning rate of MS-ILLM's published fine-tune.
    fine_tune=StageConfig(steps=100_000, batch_size=16, learning_rate=1e-4, warmup_steps=0, weight_decay=0.0),
)

_TINY = BaselinePreset(
    {
        Architecture.BMSHJ2018: Sizes(32, 48),
        Architecture.MBT2018_MEAN: Sizes(32, 48),
        Architecture.MBT2018: Sizes(32, 48),
        Architecture.CHENG2020: Sizes(32, 32),
        Architecture.CHENG2020_CHECKERBOARD: Sizes(32, 32),
        Architecture.ELIC: Sizes(32, 48, (4, 4, 8, 16, 16)),
    },
    LabelsConfig(preset="tiny", channels=16, blocks=1, codes=64),
    adapter_blocks=1,
    discriminator_channels=16,
    # As many crops of 128 px as the tiny MAGC's three stages see: 500 x 4 + 500 x 8 + 400 x 8.
    codec=StageConfig(
        steps=1150,
        batch_size=8,
        crop_px=128,
        learning_rate=1e-3,
        warmup_steps=50,
        final_learning_rate=0.05,
        weight_decay=0.0,
        ema_decay=0.99,
        rate_warmup_steps=300,
    ),
    fine_tune=StageConfig(
        steps=300,
        batch_size=8,
        crop_px=128,
        learning_rate=5e-4,
        warmup_steps=20,
        final_learning_rate=0.05,
        weight_decay=0.0,
        ema_decay=0.99,
    ),
)

BASELINE_PRESETS = {"paper": _PAPER, "tiny": _TINY}


def baseline_preset(name: str) -> BaselinePreset:
    """The preset of a name.

    Raises:
        UsageError: there is none.
    """
    if name not in BASELINE_PRESETS:
        raise UsageError(f"preset '{name}' is unknown: expected one of {', '.join(BASELINE_PRESETS)}")
    return BASELINE_PRESETS[name]
