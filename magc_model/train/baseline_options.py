"""What `magc-train baseline` can be told, and the configs that this makes. No torch: the command line reads it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from magc_model.baselines.config import (
    SEQUENTIAL,
    Architecture,
    BaselineConfig,
    LabelsConfig,
    Objective,
    baseline_preset,
)
from magc_model.config import Device, MapConfig, StageConfig
from magc_model.errors import UsageError
from magc_model.train.options import Flag, with_given

DEFAULT_ARCHITECTURE = Architecture.ELIC


class FineTune(StrEnum):
    """How a trained codec's decoder is taken further."""

    HIFIC = "hific"
    MS_ILLM = "ms-illm"


@dataclass(frozen=True, kw_only=True)
class BaselineOptions:
    """From what, into what and how to train a baseline."""

    data: Path
    """Dataset made by `magc-data build`; without --map also a folder of pictures."""
    out: Path
    """Folder of the run. Running the same command again continues there."""
    architecture: Architecture | None = None
    """bmshj2018 (scale hyperprior), mbt2018-mean (mean and scale hyperprior), mbt2018 (with autoregressive context),
    cheng2020 (attention), cheng2020-checkerboard, elic (the default), or vq-vae, whose codes label for ms-illm."""
    preset: str | None = None
    """paper or tiny. Default: that of --start-from, else paper."""
    rate_lambda: Annotated[float | None, Parameter(name="--lambda")] = None
    """Weight of the distortion, 255^2 x mean squared error, beside the bits a pixel; 0.001 unless it is given."""
    start_from: Path | None = None
    """Trained codec to fine-tune: its encoder and entropy model, and so its bitstreams, stay as they are."""
    finetune: FineTune | None = None
    """hific or ms-illm: train the decoder of --start-from against a discriminator, with the published losses."""
    map: Flag = False
    """Give the decoder of --start-from the map by an adapter, and train both: `ELIC + map`, `HiFiC + map`."""
    labels: Path | None = None
    """For ms-illm: a run of --architecture vq-vae on the same data."""
    weights_dir: Path | None = None
    """Folder with LPIPS's weights for hific and ms-illm; without them the objective lacks LPIPS, and says so."""
    seed: int = 0
    """Seed of the first weights and of everything random in training."""
    accumulate: int = 1
    """Pieces that a batch is computed in, one after the other, to save memory; must divide the batch size."""
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
        least = {"accumulate": 1, "checkpoint_every": 1, "keep": 1, "seed": 0, "workers": 0, "validate_every": 0}
        for name, limit in least.items():
            if getattr(self, name) < limit:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}: expected {limit} or more")


@dataclass(frozen=True, kw_only=True)
class BaselineTraining:
    """What of the training can be set; what is not given is as in the preset."""

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
    gradient_clip: float | None = None
    """Largest norm of the gradient."""
    ema_decay: float | None = None
    """Decay of the averaged weights; 0 turns averaging off."""
    map_dropout: float | None = None
    """--map: share of training samples whose map is left out."""
    rate_warmup_steps: int | None = None
    """Steps in which the weight of the rate grows from 0 to 1; fine-tunes have no rate to weigh."""


def training_config(preset: str, options: BaselineOptions, training: BaselineTraining) -> StageConfig:
    """The preset's training with what was given.

    Raises:
        UsageError: a value cannot work.
    """
    chosen = baseline_preset(preset)
    config = chosen.codec if options.start_from is None else chosen.fine_tune
    config = with_given(config, training, options.accumulate)
    if config.map_dropout and not options.map:
        raise UsageError("--map-dropout leaves maps out, and without --map there is none: leave the option out")
    return config


def preset_name(options: BaselineOptions, start: BaselineConfig | None) -> str:
    """The preset that sizes are taken from.

    Raises:
        UsageError: another one was trained.
    """
    if start is None:
        return options.preset or "paper"
    if options.preset not in (None, start.preset):
        raise UsageError(f"--preset is {options.preset}, but {options.start_from} is of {start.preset}: leave it out")
    return start.preset


def labels_config(options: BaselineOptions) -> LabelsConfig:
    """The label network that was asked for.

    Raises:
        UsageError: an option is a codec's.
    """
    given = {
        "--lambda": options.rate_lambda,
        "--start-from": options.start_from,
        "--finetune": options.finetune,
        "--map": options.map or None,
        "--labels": options.labels,
        "--weights-dir": options.weights_dir,
    }
    if wrong := [name for name, value in given.items() if value is not None]:
        raise UsageError(f"{wrong[0]} is a codec's, and vq-vae gives labels alone: leave it out")
    return baseline_preset(preset_name(options, None)).labels


def new_codec_config(options: BaselineOptions) -> BaselineConfig:
    """A codec to be trained from nothing.

    Raises:
        UsageError: an option needs a trained codec.
    """
    given = {"--finetune": options.finetune, "--map": options.map or None, "--labels": options.labels}
    given["--weights-dir"] = options.weights_dir
    if wrong := [name for name, value in given.items() if value is not None]:
        raise UsageError(
            f"{wrong[0]} is for the decoder of a trained codec: train one by `magc-train baseline` without it, then "
            "give that run as --start-from"
        )
    name = preset_name(options, None)
    chosen, architecture = baseline_preset(name), options.architecture or DEFAULT_ARCHITECTURE
    sizes = chosen.sizes[architecture]
    config = BaselineConfig(
        architecture=architecture,
        preset=name,
        channels=sizes.channels,
        symbol_channels=sizes.symbol_channels,
        groups=sizes.groups,
        adapter_blocks=chosen.adapter_blocks,
    )
    return config if options.rate_lambda is None else replace(config, rate_lambda=options.rate_lambda)


def fine_tuned_config(options: BaselineOptions, start: BaselineConfig) -> BaselineConfig:
    """A trained codec with the objective and adapter that its decoder is to get.

    Raises:
        UsageError: what was given contradicts what is trained already, or is incomplete.
    """
    if options.finetune is None and not options.map:
        raise UsageError("--start-from takes a trained codec's decoder further: say how by --finetune or --map")
    for name, given, found in (
        ("--architecture", options.architecture, start.architecture),
        ("--lambda", options.rate_lambda, start.rate_lambda),
    ):
        if given not in (None, found):
            raise UsageError(f"{name} is {given}, but {options.start_from} has {found}: leave it out")
    if start.architecture in SEQUENTIAL:
        others = ", ".join(each for each in Architecture if each not in {*SEQUENTIAL, Architecture.VQ_VAE})
        raise UsageError(
            f"{options.start_from} is of {start.architecture}, whose training rounds symbols otherwise than its codec "
            f"does, so that the decoder would be tuned to others than it gets: expected one of {others}"
        )
    objective = start.objective if options.finetune is None else Objective(options.finetune.value)
    if (options.labels is not None) != (objective is Objective.MS_ILLM):
        raise UsageError(
            "ms-illm needs labels: give --labels and a run of `magc-train baseline --architecture vq-vae`"
            if objective is Objective.MS_ILLM
            else "--labels are for ms-illm: leave the option out"
        )
    if options.weights_dir is not None and objective is Objective.MSE:
        raise UsageError("--weights-dir is for hific and ms-illm: leave the option out")
    uses = MapConfig(in_transform=False, in_diffusion=False, in_decoder=True, in_entropy=False)
    return replace(start, objective=objective, map=uses if options.map and not start.map.is_used else start.map)
