"""A baseline's training job, from its options to the model directory.

    start, preset, options ─► config ─► run directory ─► networks ─► loop ─► MODEL

Samples, crops, checkpoints and the loop are those of MAGC's own stages. What can be refused is refused before
the run's folder is made.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import torch

from magc_data.version import __version__
from magc_model.baselines import stored
from magc_model.baselines.architectures import compressai_version, label
from magc_model.baselines.config import (
    NO_MAP,
    Architecture,
    BaselineConfig,
    LabelsConfig,
    Objective,
    baseline_preset,
)
from magc_model.baselines.labels import LabelNetwork
from magc_model.baselines.network import BaselineCodec
from magc_model.baselines.perceptual import BACKBONE, HEADS, PerceptualDistance, find_weights
from magc_model.config import MapClass, StageConfig, to_document
from magc_model.data import Source, TrainingBatches, require_maps
from magc_model.train.baseline_options import (
    BaselineOptions,
    BaselineTraining,
    fine_tuned_config,
    labels_config,
    new_codec_config,
    preset_name,
    training_config,
)
from magc_model.train.baseline_stages import CodecStage, Ingredients, LabelsStage, codec_network
from magc_model.train.job import Divided, Outcome, Say, divide, open_accelerator
from magc_model.train.loop import Pace, Stage, Trainer
from magc_model.train.run_directory import FORMAT_VERSION, find_run, open_run
from magc_model.train.stages import HeldOut

STAGE = "baseline"


class _Parts(NamedTuple):
    """What a run is made of, read and checked, before anything is written."""

    config: BaselineConfig | LabelsConfig
    start: BaselineCodec | None
    labels: LabelNetwork | None
    perceptual: PerceptualDistance | None
    fingerprints: dict[str, str | None]
    """Of what the result depends on besides options and data."""


def train_baseline(options: BaselineOptions, training_options: BaselineTraining, say: Say) -> Outcome | None:
    """Train a baseline, from where the run is to its end.

    Returns:
        What is there now; nothing in the processes that only help the first.

    Raises:
        MagcModelError, MagcDataError: it cannot be done; the message says what was found and the way out.
        KeyboardInterrupt: it was interrupted; the same call goes on.
    """
    accelerator = open_accelerator(options.device)
    samples = divide(options.data)
    parts = _parts(options, samples.training, say if accelerator.is_main_process else _silent)
    training = training_config(parts.config.preset, options, training_options)
    if isinstance(parts.config, BaselineConfig) and parts.config.map.is_used:
        dropout = replace(parts.config.map, dropout=training.map_dropout)
        parts = parts._replace(config=replace(parts.config, map=dropout))
    for part in samples:
        TrainingBatches(part, crop_px=training.crop_px, batch_size=training.batch_size, seed=options.seed)
    document = _document(options, parts, training, samples, accelerator.num_processes)
    directory = find_run(options.out, document, keep=options.keep)
    if directory.is_finished:
        return Outcome(directory.model, training.steps, was_finished=True) if accelerator.is_main_process else None
    network = _network(parts, options.seed)
    trained = _stage(network, parts, training, samples.held_out, accelerator.device)
    if accelerator.is_main_process:
        open_run(options.out, document, keep=options.keep)
    accelerator.wait_for_everyone()
    trainer = Trainer(trained, directory, training, _pace(options), accelerator)
    trainer.resume()
    if accelerator.is_main_process:
        say(
            f"{_name(parts.config)}: training {trainer.weight_count:,} weights on {len(samples.training):,} samples of "
            f"{options.data} ({len(samples.held_out):,} held out), {training.steps:,} steps of "
            f"{training.batch_size * accelerator.num_processes} on {accelerator.device.type}, into {options.out}"
            + (f" from step {trainer.step:,}" if trainer.step else "")
        )
    trainer.run(
        TrainingBatches(
            samples.training,
            crop_px=training.crop_px,
            batch_size=training.batch_size,
            seed=options.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            map_dropout=training.map_dropout,
        )
    )
    if not accelerator.is_main_process:
        return None
    stored.save(directory.model, network.to("cpu").eval(), _record(document))
    directory.finish()
    return Outcome(directory.model, training.steps, was_finished=False)


def _silent(_: str) -> None:
    pass


def _name(config: BaselineConfig | LabelsConfig) -> str:
    return "baseline vq-vae" if isinstance(config, LabelsConfig) else f"baseline {label(config)}"


def _parts(options: BaselineOptions, source: Source, say: Say) -> _Parts:
    if options.architecture is Architecture.VQ_VAE:
        return _Parts(labels_config(options), None, None, None, {"start_from": None})
    if options.start_from is None:
        fingerprints = {"start_from": None, "compressai": compressai_version()}
        return _Parts(new_codec_config(options), None, None, None, fingerprints)
    start, digest = stored.load_codec(options.start_from)
    preset_name(options, start.config)
    config = fine_tuned_config(options, start.config)
    if config.map.is_used:
        require_maps(source, config.map)
        if not config.map.classes:
            classes = tuple(MapClass(*each) for each in source.classes)
            config = replace(config, map=replace(config.map, classes=classes))
    labels, labels_digest = (None, None) if options.labels is None else stored.load_labels(options.labels)
    files = None if config.objective is Objective.MSE else find_weights(options.weights_dir)
    if files is None and config.objective is not Objective.MSE:
        where = "no --weights-dir was given" if options.weights_dir is None else f"{options.weights_dir} lacks them"
        say(
            f"LPIPS is left out of {config.objective}'s published objective, because it needs the weights "
            f"{BACKBONE[0]} and {HEADS[0]} ({where}); the model's record says so"
        )
    config = replace(config, perceptual=files is not None)
    return _Parts(
        config,
        start,
        labels,
        None if files is None else PerceptualDistance(files),
        {
            "start_from": digest,
            "compressai": compressai_version(),
            "labels": labels_digest,
            "lpips": None if files is None else files.digest(),
        },
    )


def _network(parts: _Parts, seed: int) -> BaselineCodec | LabelNetwork:
    torch.manual_seed(seed)
    if isinstance(parts.config, LabelsConfig):
        return LabelNetwork(parts.config)
    codec = BaselineCodec(parts.config)
    if parts.start is not None:
        codec.fill(codec.stored() | parts.start.stored())
    return codec


def _stage(
    network: BaselineCodec | LabelNetwork,
    parts: _Parts,
    training: StageConfig,
    held_out: Source,
    device: torch.device,
) -> Stage:
    if isinstance(network, LabelNetwork):
        return LabelsStage(network, HeldOut(held_out, NO_MAP, device))
    ingredients = Ingredients(
        baseline_preset(network.config.preset).discriminator_channels,
        parts.perceptual,
        parts.labels,
        freezes_body=parts.start is not None,
        rate_warmup_steps=training.rate_warmup_steps,
    )
    return CodecStage(
        codec_network(network.config, network, ingredients), HeldOut(held_out, network.config.map, device)
    )


def _pace(options: BaselineOptions) -> Pace:
    return Pace(
        seed=options.seed,
        accumulate=options.accumulate,
        workers=options.workers,
        checkpoint_every=options.checkpoint_every,
        validate_every=options.validate_every,
    )


def _document(
    options: BaselineOptions, parts: _Parts, training: StageConfig, samples: Divided, processes: int
) -> dict[str, Any]:
    """What the run does, for config.json: everything that decides where it ends, and what does not beside it."""
    fingerprints = dict(parts.fingerprints)
    return {
        "format_version": FORMAT_VERSION,
        "magc_version": __version__,
        "stage": STAGE,
        "model": to_document(parts.config),
        "training": to_document(training),
        "data": {
            "path": str(options.data),
            "digest": samples.training.digest,
            "samples": len(samples.training),
            "held_out": len(samples.held_out),
        },
        "start_from": {
            "path": None if options.start_from is None else str(options.start_from),
            "fingerprint": fingerprints.pop("start_from"),
        },
        "made_with": fingerprints,
        "seed": options.seed,
        "accumulate": options.accumulate,
        "processes": processes,
        "device": options.device.value,
        "workers": options.workers,
        "checkpoint_every": options.checkpoint_every,
        "validate_every": options.validate_every,
        "keep": options.keep,
    }


def _record(document: dict[str, Any]) -> dict[str, Any]:
    """What the model's directory says of its training."""
    training, data = document["training"], document["data"]
    record = {
        "steps": training["steps"],
        "batch_size": training["batch_size"] * document["processes"],
        "crop_px": training["crop_px"],
        "samples": data["samples"],
        "data": data["digest"],
        "start_from": document["start_from"]["fingerprint"],
        **document["made_with"],
    }
    if document["model"].get("objective", Objective.MSE) != Objective.MSE:
        record["lpips"] = record["lpips"] or "left out: its weights were not given"
    return record
