"""A training job, from its options to the model directory.

    start, preset, options ─► configs ─► run directory ─► networks ─► cached latents ─► loop ─► MODEL

Everything that can be refused is refused before the run's folder is made.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import reprlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend, InitProcessGroupKwargs
from safetensors import SafetensorError
from torch import Tensor, nn

from magc_data.dataset import MagcDataset
from magc_data.shards.reader import read_index
from magc_data.sources.cache import cache_dir
from magc_data.version import __version__
from magc_model.base_model import check_base_model, empty_prompt_embedding, find_base_model
from magc_model.config import AutoencoderKind, Device, ModelConfig, StageConfig, to_document
from magc_model.data import (
    Part,
    Source,
    TrainingBatches,
    adopt_classes,
    image_tensor,
    open_source,
    require_maps,
)
from magc_model.entropy.tables import build_tables
from magc_model.errors import BaseModelError, DataError, ModelError, UsageError
from magc_model.model import MagcModel, build_autoencoder, build_denoiser, build_latent_compression
from magc_model.model_folder import CONFIG_NAME
from magc_model.nets.autoencoder import ImageAutoencoder
from magc_model.train.latents import LatentCache, cache_latents, latents_shape
from magc_model.train.loop import Pace, Stage, Trainer, autocast
from magc_model.train.options import (
    ModelOptions,
    RunOptions,
    StageOptions,
    Start,
    TrainOptions,
    model_config,
    require_enough_samples,
    stage_config,
    without_untrained_classes,
)
from magc_model.train.run_directory import FORMAT_VERSION, find_run, open_run
from magc_model.train.stages import (
    STAGE1,
    STAGE2,
    VAE,
    AutoencoderStage,
    CompressionStage,
    DiffusionStage,
    HeldOut,
    stage_map,
)

HELD_OUT_SHARE = 20
"""One sample in so many is held out, where the dataset has no split `val`: the last ones by key."""

LATENT_SAMPLES = 2000
"""Samples from which the scale of an autoencoder's latents is taken: evenly spaced in the dataset."""

_LONGEST_WAIT = timedelta(hours=24)
"""For the process that encodes a large dataset's latents."""

COMPONENTS = {VAE: "autoencoder", STAGE1: "latent_compression", STAGE2: "denoiser"}
"""What each stage trains first; the name of its file in a model directory."""

_IMAGES_AT_ONCE = {"cpu": 2, "cuda": 64}

Say = Callable[[str], None]


_STAGES: dict[str, Callable[[MagcModel, StageConfig, HeldOut], Stage]] = {
    VAE: AutoencoderStage,
    STAGE1: CompressionStage,
    STAGE2: DiffusionStage,
}


class Outcome(NamedTuple):
    """What a job has left."""

    model: Path
    steps: int
    was_finished: bool
    """There was nothing to do."""


def train(
    stage: str, options: TrainOptions, model_options: ModelOptions, stage_options: StageOptions, say: Say
) -> Outcome | None:
    """Train a stage, from where the run is to its end.

    Returns:
        What is there now; nothing in the processes that only help the first.

    Raises:
        MagcModelError, MagcDataError: it cannot be done; the message says what was found and the way out.
        KeyboardInterrupt: it was interrupted; the same call goes on.
    """
    accelerator = open_accelerator(options.device)
    parts = divide(options.data)
    start = _read_start(stage, options)
    config = _model_config(stage, options, model_options, start, parts.training)
    training = stage_config(config.preset, stage, stage_options, options.accumulate)
    config = _with_dropout(stage, config, start, training.map_dropout)
    if stage == STAGE1:
        require_enough_samples(config, training, options.accumulate)
    # Before anything is written or encoded: is every picture large enough for the crop?
    for part in parts:
        TrainingBatches(part, crop_px=training.crop_px, batch_size=training.batch_size, seed=options.seed)
    uses_latents = stage != VAE and options.latent_cache
    if uses_latents:
        latents_shape(parts.training)
    base = _base_model(stage, config, start)
    document = _document(stage, options, config, training, parts, start, base, accelerator)
    directory = find_run(options.out, document, keep=options.keep)
    if directory.is_finished:
        return Outcome(directory.model, training.steps, was_finished=True) if accelerator.is_main_process else None
    model = _model(stage, config, start, base, options.seed)
    del start
    trained = _trained_stage(stage, options, model, training, parts.held_out, accelerator.device)
    if accelerator.is_main_process:
        open_run(options.out, document, keep=options.keep)
    accelerator.wait_for_everyone()
    trainer = Trainer(trained, directory, training, pace_of(options), accelerator)
    trainer.resume()
    if accelerator.is_main_process:
        say(_announcement(stage, trainer, training, parts, options, accelerator))
    latents = None
    if uses_latents:
        latents = _cached_latents(model.autoencoder, parts.training, options, accelerator)
    trainer.run(
        TrainingBatches(
            parts.training,
            crop_px=training.crop_px,
            batch_size=training.batch_size,
            seed=options.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            map_dropout=training.map_dropout,
            latents=latents,
        )
    )
    if not accelerator.is_main_process:
        return None
    trained.network.eval()
    _complete(stage, model, parts.training, training, accelerator.device)
    model.save_pretrained(directory.model)
    directory.finish()
    return Outcome(directory.model, training.steps, was_finished=False)


_OTHER_WAYS = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM")
"""Ways to share a model between processes that cannot be used here; `accelerate launch` sets them."""


def open_accelerator(device: Device) -> Accelerator:
    """Processes and device, and nothing else that `accelerate launch` has set: what a run does its options say.

    Raises:
        UsageError: there is no such device, or the environment says what the options do not.
    """
    if device is Device.CUDA and not torch.cuda.is_available():
        raise UsageError("--device is cuda, but this PyTorch finds no CUDA device: use --device cpu")
    for name in _OTHER_WAYS:
        if os.environ.get(name, "false").lower() not in {"false", "0", ""}:
            raise _overridden(name, "processes share the batch alone, so start them by torchrun")
    accelerator = Accelerator(
        cpu=device is Device.CPU or not torch.cuda.is_available(),
        mixed_precision="no",  # autocast is the loop's
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_LONGEST_WAIT)],
    )
    if accelerator.mixed_precision != "no" or accelerator.scaler is not None:
        raise _overridden("ACCELERATE_MIXED_PRECISION", "use --precision")
    if accelerator.gradient_accumulation_steps != 1:
        raise _overridden("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "use --accumulate")
    if accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
        raise _overridden("ACCELERATE_DYNAMO_BACKEND", "use --compile")
    if device is Device.CUDA and accelerator.device.type != "cuda":
        raise _overridden("ACCELERATE_USE_CPU", "use --device")
    return accelerator


def _overridden(variable: str, way_out: str) -> UsageError:
    value = os.environ.get(variable, "not set")
    return UsageError(
        f"the environment variable {variable} is {value}, which would change the run: unset it; {way_out}"
    )


def pace_of(options: RunOptions) -> Pace:
    """How a run is driven."""
    names = [field.name for field in dataclasses.fields(Pace)]
    return Pace(**{name: getattr(options, name) for name in names})


def _trained_stage(
    stage: str, options: TrainOptions, model: MagcModel, training: StageConfig, held_out: Source, device: torch.device
) -> Stage:
    pictures = HeldOut(held_out, stage_map(stage, model.config.map), device)
    trained = _STAGES[stage](model, training, pictures)
    if not any(each.requires_grad for each in trained.network.parameters()):
        raise UsageError(
            "there is nothing to train: this preset's autoencoder is the base model's, and its decoder reads no map; "
            "add --map-in-decoder, or go on to stage1"
        )
    if options.gradient_checkpointing:
        trained.recompute_activations()
    return trained


def _announcement(
    stage: str,
    trainer: Trainer,
    training: StageConfig,
    parts: "Divided",
    options: TrainOptions,
    accelerator: Accelerator,
) -> str:
    place = str(accelerator.device.type)
    if accelerator.num_processes > 1:
        place = f"{accelerator.num_processes} x {place}"
    batch = training.batch_size * accelerator.num_processes
    run = f"{options.out} from step {trainer.step:,}" if trainer.step else options.out
    return (
        f"{stage}: training {trainer.weight_count:,} weights on {len(parts.training):,} samples of {options.data} "
        f"({len(parts.held_out):,} held out), {training.steps:,} steps of {batch} on {place} in "
        f"{options.precision}, into {run}"
    )


# --- samples ---------------------------------------------------------------------------------------------------------


class Divided(NamedTuple):
    """Samples to train on, and others to look at."""

    training: Source
    held_out: Source


def divide(data: Path) -> Divided:
    """A dataset's splits `train` and `val`; without `val`, the last samples to train on are held out (one in 20).

    A dataset without any split is trained on as a whole. What is in another split is never trained on.

    Raises:
        DataError: there is no sample to train on, or one and none to hold out.
        DatasetError: the dataset is unfinished or damaged.
    """
    whole = open_source(data)
    if isinstance(whole, MagcDataset) and (splits := _splits(data)):
        if "train" not in splits:
            raise DataError(
                f"{data} is divided into the splits {', '.join(sorted(splits))}: expected one named train to train on"
            )
        whole = MagcDataset(data, "train")
        if "val" in splits:
            return Divided(whole, MagcDataset(data, "val"))
    if len(whole) < 2:
        raise DataError(
            f"{data} holds {len(whole)} sample to train on: expected two or more, since one is held out from training"
        )
    first = len(whole) - max(1, len(whole) // HELD_OUT_SHARE)
    return Divided(Part(whole, range(first)), Part(whole, range(first, len(whole))))


def _splits(data: Path) -> set[str]:
    """Names of the splits in a dataset's index; samples may be in none."""
    return {each for each in read_index(data, ["split"])["split"].unique().to_pylist() if each is not None}


def _cached_latents(
    autoencoder: ImageAutoencoder, source: Source, options: TrainOptions, accelerator: Accelerator
) -> LatentCache:
    """Latents of the samples, in the cache folder: runs on the same data share them."""
    fingerprint = f"{autoencoder_fingerprint(autoencoder)}-{options.precision}"
    name = hashlib.sha256(f"{fingerprint} {source.digest}".encode()).hexdigest()[:24]
    folder = cache_dir() / "latents" / name

    # A few at a time where that is quicker: large activations are memory that a CPU must fetch anew at every layer.
    at_once = _IMAGES_AT_ONCE[accelerator.device.type]

    def encode(images: Tensor) -> Tensor:
        there = images.to(accelerator.device).contiguous(memory_format=torch.channels_last)
        with autocast(options.precision, accelerator.device):
            return torch.cat([autoencoder.encode(some).float() for some in torch.split(there, at_once)])

    if accelerator.is_main_process:
        with _alone(folder):
            cache_latents(folder, source, encode, fingerprint, batch_size=max(16, at_once))
    accelerator.wait_for_everyone()
    return LatentCache(folder)


def autoencoder_fingerprint(autoencoder: ImageAutoencoder) -> str:
    """Sha256 of what latents depend on."""
    digest = hashlib.sha256(f"{autoencoder.scaling_factor!r}\n".encode())
    for name, weight in sorted(autoencoder.network.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)}\n".encode())
        digest.update(weight.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One run at a time writes a cache; others wait. Where files cannot be locked (Windows), nobody waits."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as stream:
        with contextlib.suppress(ImportError):
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


# --- the model -------------------------------------------------------------------------------------------------------


class _Loaded(NamedTuple):
    """What --start-from is."""

    model: MagcModel
    fingerprint: str


def _read_start(stage: str, options: TrainOptions) -> _Loaded | None:
    """The result of the stage before.

    Raises:
        UsageError: the stage takes none, or the model is of another stage.
        ModelError: it cannot be read, or its run has not ended.
    """
    if options.start_from is None:
        return None
    if stage == VAE:
        raise UsageError("vae is the first stage: leave --start-from out")
    folder = Path(options.start_from).expanduser()
    if folder.is_file():
        raise UsageError(
            f"{folder} is a file: give the folder of a run or of a model; .ckpt, .pt and other pickles are never read, "
            "but `magc convert-checkpoint` makes a model of the published checkpoint"
        )
    is_run = _is_run(folder)
    if is_run and not (folder / "model").is_dir():
        raise ModelError(f"the run {folder} has not ended yet: run its command again, then start from it")
    model = MagcModel.from_pretrained(folder / "model" if is_run else options.start_from)
    has = {name for name in COMPONENTS.values() if getattr(model, name) is not None}
    needed = {STAGE1: {"autoencoder"}, STAGE2: {"autoencoder", "latent_compression"}}[stage]
    if has != needed:
        found, expected = (" and ".join(sorted(each)).replace("_", " ") for each in (has, needed))
        before = {STAGE1: VAE, STAGE2: STAGE1}[stage]
        raise UsageError(
            f"{options.start_from} is a model with {found}: {stage} starts from one with {expected}, the result of "
            f"`magc-train {before}`"
        )
    return _Loaded(model, model.fingerprint())


def _is_run(folder: Path) -> bool:
    try:
        document = json.loads((folder / CONFIG_NAME).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and "stage" in document


def _model_config(
    stage: str, options: TrainOptions, model_options: ModelOptions, loaded: _Loaded | None, source: Source
) -> ModelConfig:
    """Config of the model under training, with the class table of the samples."""
    start = None if loaded is None else _start(loaded)
    config = model_config(options, model_options, start)
    if start is None and (stage == STAGE2 or (stage == STAGE1 and config.base_model is None)):
        before = {STAGE1: VAE, STAGE2: STAGE1}[stage]
        raise UsageError(
            f"{stage} of the preset {config.preset} goes on from a trained model: give --start-from and the folder of "
            f"a `magc-train {before}` run"
        )
    require_maps(source, stage_map(stage, config.map))
    return adopt_classes(config, source)


def _start(loaded: _Loaded) -> Start:
    """What the stage before has settled."""
    trained = frozenset(name for name in COMPONENTS.values() if getattr(loaded.model, name) is not None)
    return without_untrained_classes(Start(loaded.model.config, trained))


def _with_dropout(stage: str, config: ModelConfig, loaded: _Loaded | None, dropout: float) -> ModelConfig:
    """The config with the share of samples without a map: the least of all stages that have read maps so far."""
    if not stage_map(stage, config.map).is_used:
        return config
    if loaded is not None and _start(loaded).config.map.classes:
        dropout = min(dropout, loaded.model.config.map.dropout)
    return dataclasses.replace(config, map=dataclasses.replace(config.map, dropout=dropout))


def _base_model(stage: str, config: ModelConfig, start: _Loaded | None) -> Path | None:
    """The base model, where the stage takes something from it."""
    is_needed = config.autoencoder.kind is AutoencoderKind.STABLE_DIFFUSION and (start is None or stage == STAGE2)
    if config.base_model is None or not is_needed:
        return None
    base = find_base_model(config.base_model)
    check_base_model(base, config)
    return base


def _model(stage: str, config: ModelConfig, start: _Loaded | None, base: Path | None, seed: int) -> MagcModel:
    """The networks of a stage: those of the stages before as they were left, the base model's, or fresh ones."""
    torch.manual_seed(seed)
    model = MagcModel(config, build_autoencoder(config))
    if start is not None:
        _take_over(model.autoencoder, start.model.autoencoder)
        model.tables = start.model.tables
    elif base is not None:
        model.autoencoder.load_base(base)
    if stage in (STAGE1, STAGE2):
        model.latent_compression = build_latent_compression(config)
        if start is not None and start.model.latent_compression is not None:
            _take_over(model.latent_compression, start.model.latent_compression)
    if stage == STAGE2:
        model.denoiser = build_denoiser(config)
        if base is not None:
            model.denoiser.load_base(unet_weights(base), empty_prompt_embedding(base))
    return model


def _take_over(fresh: nn.Module, trained: nn.Module) -> None:
    """The trained weights; a part that is not wanted any more (a map decoder that was turned off) is left."""
    weights = trained.state_dict()
    fresh.load_state_dict({name: weights[name] for name in fresh.state_dict()})


def unet_weights(base: Path) -> dict[str, Tensor]:
    """Weights of a base model's UNet, whole or in shards.

    Raises:
        BaseModelError: they cannot be read.
    """
    folder = base / "unet"
    whole, index = (folder / f"diffusion_pytorch_model.safetensors{suffix}" for suffix in ("", ".index.json"))
    try:
        if whole.is_file():
            return safetensors.torch.load_file(whole)
        shards = map(safetensors.torch.load_file, _shards(index))
        return {name: each for shard in shards for name, each in shard.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise BaseModelError(f"the base model's {folder} cannot be read ({reason}): get a complete copy") from None


def _shards(index: Path) -> list[Path]:
    """The files that an index names. It may come from anywhere: they lie beside it or are refused."""
    names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    if wrong := [each for each in names if not re.fullmatch(r"[\w.-]+\.safetensors", each)]:
        raise ValueError(f"{index.name} names the file {reprlib.repr(wrong[0])}")
    return [index.with_name(each) for each in names]


def _base_fingerprint(stage: str, base: Path) -> str:
    """Sha256 of the weights that a stage takes from the base model. Reads them all."""
    folders = ("unet", "text_encoder") if stage == STAGE2 else ("vae",)
    # A point in the name is a variant, such as half precision, which is not read.
    found = (path for folder in folders for path in sorted((base / folder).glob("*.safetensors")))
    files = [path for path in found if "." not in path.stem]

    def digest(path: Path) -> str:
        with path.open("rb") as stream:
            return f"{path.parent.name}/{path.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n"

    # Hashing leaves the interpreter to others: a file a thread.
    with ThreadPoolExecutor() as pool:
        return hashlib.sha256("".join(pool.map(digest, files)).encode()).hexdigest()


def _complete(stage: str, model: MagcModel, source: Source, training: StageConfig, device: torch.device) -> None:
    """What a model directory holds besides the weights that were trained; the model is moved to the CPU."""
    if stage == VAE and model.config.autoencoder.kind is AutoencoderKind.TINY:
        model.autoencoder.scaling_factor = 1 / _latent_deviation(model.autoencoder, source, training.crop_px, device)
    model.to("cpu")
    if stage == STAGE1 and model.latent_compression is not None:
        model.tables = build_tables(model.latent_compression)


def _latent_deviation(autoencoder: ImageAutoencoder, source: Source, crop_px: int, device: torch.device) -> float:
    """Standard deviation of the latents of the samples' corners, before any scaling."""
    numbers = np.unique(np.linspace(0, len(source) - 1, min(len(source), LATENT_SAMPLES)).astype(int)).tolist()
    at_once = _IMAGES_AT_ONCE[device.type]
    count, total, squares = 0, 0.0, 0.0
    for start in range(0, len(numbers), at_once):
        corners = [source[number].image[:crop_px, :crop_px] for number in numbers[start : start + at_once]]
        images = image_tensor(np.stack(corners)).to(device)
        with torch.no_grad():
            latent = autoencoder.encode(images).double() / autoencoder.scaling_factor
        count += latent.numel()
        total += float(latent.sum())
        squares += float(latent.square().sum())
    return float((squares / count - (total / count) ** 2) ** 0.5)


# --- the run's config ------------------------------------------------------------------------------------------------


def _document(
    stage: str,
    options: TrainOptions,
    config: ModelConfig,
    training: StageConfig,
    parts: Divided,
    start: _Loaded | None,
    base: Path | None,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """What the run does, for config.json: everything that decides where it ends, and what does not beside it."""
    return {
        "format_version": FORMAT_VERSION,
        "magc_version": __version__,
        "stage": stage,
        "model": to_document(config),
        "training": to_document(training),
        "data": {
            "path": str(options.data),
            "digest": parts.training.digest,
            "samples": len(parts.training),
            "held_out": len(parts.held_out),
        },
        "start_from": {
            "path": options.start_from,
            "fingerprint": None if start is None else start.fingerprint,
        },
        "base_model": {"fingerprint": None if base is None else _base_fingerprint(stage, base)},
        "seed": options.seed,
        "precision": options.precision.value,
        "accumulate": options.accumulate,
        "compile": options.compile,
        "gradient_checkpointing": options.gradient_checkpointing,
        "latent_cache": options.latent_cache,
        "processes": accelerator.num_processes,
        "device": options.device.value,
        "workers": options.workers,
        "checkpoint_every": options.checkpoint_every,
        "validate_every": options.validate_every,
        "keep": options.keep,
    }
