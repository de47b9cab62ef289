"""What `magc-train` can be told, and the configs that this makes. No torch here: the command line reads it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from cyclopts import Parameter

from magc_model.config import (
    IMAGE_STRIDE,
    PAPER_LAMBDAS,
    AutoencoderKind,
    Device,
    MapConfig,
    MapInput,
    ModelConfig,
    NormKind,
    RateConfig,
    RateMode,
    StageConfig,
    preset,
)
from magc_model.errors import UsageError

DEFAULT_PRESET = "paper"

Flag = Annotated[bool, Parameter(negative="")]
"""Off unless it is given."""


class Precision(StrEnum):
    """What the networks compute in; weights are always fp32."""

    FP32 = "fp32"
    BF16 = "bf16"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Into what and how to train, whatever it is."""

    out: Path
    """Folder of the run. Running the same command again continues there."""
    seed: int = 0
    """Seed of the first weights and of everything random in training."""
    precision: Precision = Precision.FP32
    """fp32, or bf16 for mixed precision."""
    accumulate: int = 1
    """Pieces that a batch is computed in, one after the other, to save memory; must divide the batch size."""
    compile: Flag = False
    """Compile the largest networks with torch.compile; the first steps and validation take minutes then."""
    workers: int = 0
    """Processes that read batches ahead; 0 reads in the training process."""
    device: Device = Device.AUTO
    """auto, cpu or cuda."""
    checkpoint_every: int = 500
    """Steps between checkpoints; there is one at the end and on an interruption, too."""
    validate_every: int = 500
    """Steps between validations on the held-out samples; there is one at the end, too. 0: never."""
    keep: int = 3
    """Newest checkpoints to keep."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in ("accumulate", "checkpoint_every", "keep"):
            _at_least(name, getattr(self, name), 1)
        for name in ("seed", "workers", "validate_every"):
            _at_least(name, getattr(self, name), 0)


@dataclass(frozen=True, kw_only=True)
class TrainOptions(RunOptions):
    """From what, into what and how to train a stage."""

    data: Path
    """Dataset made by `magc-data build`; for a model without a map also a folder of pictures."""
    preset: str | None = None
    """paper or tiny. Default: that of --start-from, else paper."""
    start_from: str | None = None
    """Result of the stage before: a run's folder, a model directory, or a model's repository on the hub."""
    base_model: str | None = None
    """Stable Diffusion 2.1-base for the paper preset: a folder or a repository on the hub."""
    gradient_checkpointing: Flag = False
    """Compute activations twice instead of keeping them, to save memory."""
    latent_cache: bool = True
    """Encode every image once before training instead of at every step (stage1, stage2)."""


@dataclass(frozen=True, kw_only=True)
class SegmenterOptions(RunOptions):
    """From what, into what and how to train a segmenter."""

    data: Annotated[tuple[Path, ...], Parameter(negative="")]
    """Dataset made by `magc-data build`; give it several times to train on several, of one scheme."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        super().__post_init__()
        if not self.data:
            raise UsageError("--data is missing: give a dataset made by `magc-data build`")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What of the model can be set; what is not given is as in the preset or in the stage before."""

    rate: RateMode | None = None
    """fixed: one lambda. gained: one model for all lambdas and everything between them."""
    lambdas: Annotated[tuple[float, ...], Parameter(name="--lambda", negative="")] = ()
    """Weight of the distortion; give it several times for a gained model, whose default is the paper's six."""
    map_input: MapInput | None = None
    """How the networks see the map: classes, or rgb as in the paper."""
    map: bool = True
    """Without: a model that reads no map at all."""
    map_in_transform: bool | None = None
    """The map in the latent transforms."""
    map_in_diffusion: bool | None = None
    """The map in the denoiser."""
    map_in_decoder: bool | None = None
    """The map in the image decoder, at full resolution."""
    map_in_entropy: bool | None = None
    """The map in the entropy model."""


@dataclass(frozen=True, kw_only=True)
class DescentOptions:
    """What of any training can be set; what is not given is as it is for what is trained."""

    steps: int | None = None
    """Optimiser steps of the whole run; may be raised when a run is continued."""
    batch_size: int | None = None
    """Samples a step and process."""
    crop_px: int | None = None
    """Side of the training crop, a multiple of 64."""
    learning_rate: float | None = None
    """Peak learning rate (AdamW)."""
    warmup_steps: int | None = None
    """Steps of linear warm-up."""
    final_learning_rate: float | None = None
    """Share of the peak that a cosine ends on; 1 keeps the rate constant after the warm-up."""
    weight_decay: float | None = None
    """AdamW's."""
    gradient_clip: float | None = None
    """Largest norm of the gradient."""
    ema_decay: float | None = None
    """Decay of the averaged weights; 0 turns averaging off."""


@dataclass(frozen=True, kw_only=True)
class StageOptions(DescentOptions):
    """What of a stage's training can be set; what is not given is as in the preset."""

    map_dropout: float | None = None
    """Share of training samples whose map is left out."""
    latent_noise: float | None = None
    """vae: largest standard deviation of noise on the latents that the decoder learns from."""
    rate_warmup_steps: int | None = None
    """stage1: steps in which the weight of the rate grows from 0 to 1."""
    guide_weight: float | None = None
    """stage2: weight of the guide's mean squared error beside the noise's."""


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(f"{flag(name)} is {value}: expected {least} or more")


def flag(name: str) -> str:
    """A field as it is typed."""
    return "--" + {"lambdas": "lambda"}.get(name, name).replace("_", "-")


class _Limit(NamedTuple):
    least: float
    most: float


_LIMITS = {
    "steps": _Limit(1, 1e9),
    "batch_size": _Limit(1, 1e6),
    "crop_px": _Limit(IMAGE_STRIDE, 1e5),
    "learning_rate": _Limit(0, 1),
    "warmup_steps": _Limit(0, 1e9),
    "final_learning_rate": _Limit(0, 1),
    "weight_decay": _Limit(0, 1),
    "gradient_clip": _Limit(1e-6, 1e9),
    "ema_decay": _Limit(0, 0.999999),
    "map_dropout": _Limit(0, 1),
    "latent_noise": _Limit(0, 10),
    "rate_warmup_steps": _Limit(0, 1e9),
    "guide_weight": _Limit(0, 1e6),
}


def stage_config(preset_name: str, stage: str, options: StageOptions, accumulate: int) -> StageConfig:
    """The preset's training of a stage with what was given.

    Raises:
        UsageError: a value cannot work.
    """
    return with_given(preset(preset_name).stages[stage], options, accumulate)


def with_given(usual: StageConfig, options: Any, accumulate: int) -> StageConfig:
    """A training with what was given: fields of `options` that are not none.

    Raises:
        UsageError: a value cannot work.
    """
    given = {name: value for name, value in dataclasses.asdict(options).items() if value is not None}
    config = replace(usual, **given)
    for name, (least, most) in _LIMITS.items():
        value = getattr(config, name)
        if not least <= value <= most:
            raise UsageError(f"{flag(name)} is {value}: expected {least:g} to {most:g}")
    if config.crop_px % IMAGE_STRIDE:
        raise UsageError(f"--crop-px is {config.crop_px}: expected a multiple of {IMAGE_STRIDE}")
    if config.batch_size % accumulate:
        raise UsageError(f"--accumulate is {accumulate}: it must divide the batch of {config.batch_size} samples")
    return config


LEAST_FOR_STATISTICS = 8
"""Samples of which a batch norm's statistics are worth something."""


def require_enough_samples(model: ModelConfig, training: StageConfig, accumulate: int) -> None:
    """Check that pieces of a batch do not spoil the statistics that the latent compression takes from it.

    Raises:
        UsageError: they are too small.
    """
    size = training.batch_size // accumulate
    has_statistics = model.map.in_transform and model.latent_compression.spade_norm is NormKind.BATCH
    if has_statistics and size < LEAST_FOR_STATISTICS <= training.batch_size:
        raise UsageError(
            f"--accumulate is {accumulate}: this model's normalisation takes its statistics from each piece of a "
            f"batch, and {_counted(size)} would give poor ones; expected pieces of {LEAST_FOR_STATISTICS} or more, so "
            "accumulate less, or save memory by --gradient-checkpointing"
        )


def _counted(samples: int) -> str:
    return "1 sample" if samples == 1 else f"{samples} samples"


@dataclass(frozen=True)
class Start:
    """What the stage before left: its config and which parts it trained."""

    config: ModelConfig
    trained: frozenset[str] = field(default_factory=frozenset)
    """Of `autoencoder`, `latent_compression`, `denoiser`."""


def model_config(options: TrainOptions, model: ModelOptions, start: Start | None) -> ModelConfig:
    """The config of the stage before, or of the preset, with what was given.

    Raises:
        UsageError: what was given contradicts what is trained already.
    """
    if start is None:
        config = preset(options.preset or DEFAULT_PRESET).model
    else:
        config = start.config
        if options.preset is not None and options.preset != config.preset:
            raise UsageError(
                f"--preset is {options.preset}, but {options.start_from} is of the preset {config.preset}: "
                "leave --preset out, or start from another model"
            )
    if options.base_model is not None:
        if config.autoencoder.kind is not AutoencoderKind.STABLE_DIFFUSION:
            raise UsageError(f"the preset {config.preset} stands on no base model: leave --base-model out")
        config = replace(config, base_model=options.base_model)
    config = replace(config, rate=_rate(config.rate, model), map=_map(config.map, model))
    if start is not None:
        _refuse_changes(start, config)
    return config


def _rate(rate: RateConfig, given: ModelOptions) -> RateConfig:
    mode = given.rate or rate.mode
    if given.lambdas:
        return RateConfig(mode=mode, lambdas=given.lambdas)
    if mode is rate.mode:
        return rate
    return RateConfig(mode=mode, lambdas=PAPER_LAMBDAS if mode is RateMode.GAINED else RateConfig().lambdas)


_MAP_SWITCHES = ("in_transform", "in_diffusion", "in_decoder", "in_entropy")


def _map(config: MapConfig, given: ModelOptions) -> MapConfig:
    switches = {name: getattr(given, f"map_{name}") for name in _MAP_SWITCHES}
    if not given.map:
        if wanted := [name for name, value in switches.items() if value]:
            raise UsageError(f"--no-map and {flag(f'map_{wanted[0]}')} contradict each other: leave one out")
        switches = dict.fromkeys(_MAP_SWITCHES, False)
    changes: dict[str, Any] = {name: value for name, value in switches.items() if value is not None}
    if given.map_input is not None:
        changes["input"] = given.map_input
    return replace(config, **changes)


class _Fixed(NamedTuple):
    """An option that a stage settles for those after it."""

    part: str
    """The trained part that depends on it."""
    reads_map: str | None
    """The switch without which the part does not depend on it, for what concerns the look of the map."""
    option: str
    may_be_turned_off: bool = False


_FIXED = (
    _Fixed("autoencoder", None, "map.in_decoder", may_be_turned_off=True),
    _Fixed("autoencoder", "in_decoder", "map.input"),
    _Fixed("latent_compression", None, "map.in_transform"),
    _Fixed("latent_compression", None, "map.in_entropy"),
    _Fixed("latent_compression", None, "rate.mode"),
    _Fixed("latent_compression", None, "rate.lambdas"),
    _Fixed("latent_compression", "in_transform", "map.input"),
    _Fixed("latent_compression", "in_entropy", "map.input"),
)


def _refuse_changes(start: Start, config: ModelConfig) -> None:
    for part, switch, option, may_be_turned_off in _FIXED:
        section, name = option.split(".")
        before, now = (getattr(getattr(each, section), name) for each in (start.config, config))
        if part not in start.trained or before == now or (may_be_turned_off and now is False):
            continue
        if switch is not None and not getattr(start.config.map, switch):
            continue
        typed = {"mode": "rate", "lambdas": "lambdas"}.get(name, f"map_{name}")
        raise UsageError(
            f"{flag(typed)} is {_text(now)}, but the {part.replace('_', ' ')} was trained with {_text(before)}: "
            "leave the option out, or train from the stage that settles it"
        )


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def without_untrained_classes(start: Start) -> Start:
    """The start without its class table, where nothing that was trained reads a map: any table will do then."""
    config = start.config
    decoder = "autoencoder" in start.trained and config.map.in_decoder
    latent = "latent_compression" in start.trained and (config.map.in_transform or config.map.in_entropy)
    if decoder or latent or "denoiser" in start.trained:
        return start
    return replace(start, config=replace(config, map=replace(config.map, classes=())))
