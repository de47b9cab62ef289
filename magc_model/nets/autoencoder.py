"""Image to latent and back: Stable Diffusion's autoencoder (diffusers' AutoencoderKL) or a tiny one, with the map.

    image ─► encoder ─► posterior mode ─► x scaling factor ─► latent, 4 channels at 1/8 of the size

    latent ─► / scaling factor ─► head ─► [ modulation ─► up block ] x 4 ─► tail ─► image
                                                ▲
    planes ─► pyramid (map_decoder.py) ─────────┘  (without planes: the network's own decoder, layer by layer)

Images are RGB in [-1, 1] on both ends; what `decode` returns may leave that range a little.

The tiny autoencoder's latent is what its encoder gives, not limited; its decoder first bends it by 3 * tanh(x / 3), so
that a value far outside (a decoder of symbols or a denoiser may produce one) cannot hurt, and so that an encoder gains
ever less by larger latents.

diffusers is imported only where its network is made or read: it takes seconds, which models without one do not wait.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from magc_model.config import LATENT_CHANNELS, LATENT_STRIDE, AutoencoderConfig, AutoencoderKind
from magc_model.errors import BaseModelError, UsageError
from magc_model.nets.map_decoder import DecoderLevel, MapDecoder
from magc_model.nets.tiny_autoencoder import TinyAutoencoder
from magc_model.shapes import Image, Latent, MapPlanes

LEVELS = 4
"""Resolutions of the autoencoder: full, 1/2, 1/4, 1/8."""

KL_NORM_GROUPS = 32

Layer = Callable[[Tensor], Tensor]


class DecoderParts(NamedTuple):
    """A network's decoder cut where the map comes in."""

    head: Layer
    """Raw latent to the input of the first up block."""
    up_blocks: tuple[Layer, ...]
    """At 1/8, 1/4, 1/2 and full resolution."""
    tail: Layer
    """Output of the last up block to the image."""


class _Kind(NamedTuple):
    """How one kind of autoencoder is made and used."""

    build: Callable[[AutoencoderConfig], Any]
    encode: Callable[[Any, Tensor], Tensor]
    decoder_parts: Callable[[Any], DecoderParts]
    up_block_channels: Callable[[AutoencoderConfig], tuple[int, ...]]
    """Channels of what enters each up block."""
    encoder_parts: tuple[str, ...]
    """Layers that a decoder does without."""


def _build_kl(config: AutoencoderConfig) -> Any:
    from diffusers import AutoencoderKL

    if any(each % KL_NORM_GROUPS for each in config.channels):
        raise UsageError(
            f"the stable-diffusion autoencoder needs channels that are multiples of {KL_NORM_GROUPS}, "
            f"found {_listed(config.channels)}"
        )
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * LEVELS,
        up_block_types=("UpDecoderBlock2D",) * LEVELS,
        block_out_channels=config.channels,
        layers_per_block=config.blocks_per_level,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=KL_NORM_GROUPS,
        scaling_factor=config.scaling_factor,
    )


def _encode_kl(network: Any, image: Tensor) -> Tensor:
    return torch.as_tensor(network.encode(image).latent_dist.mode())


def _kl_decoder_parts(network: Any) -> DecoderParts:
    decoder = network.decoder
    return DecoderParts(
        head=lambda latent: decoder.mid_block(decoder.conv_in(network.post_quant_conv(latent))),
        up_blocks=tuple(decoder.up_blocks),
        tail=lambda features: decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(features))),
    )


def _build_tiny(config: AutoencoderConfig) -> Any:
    if len(set(config.channels)) != 1:
        raise UsageError(
            f"the tiny autoencoder has equally many channels on every level, found {_listed(config.channels)}: "
            "give the same number four times"
        )
    blocks = (1, *(config.blocks_per_level,) * (LEVELS - 1))
    return TinyAutoencoder(config.channels[0], LATENT_CHANNELS, blocks)


def _tiny_decoder_parts(network: TinyAutoencoder) -> DecoderParts:
    decoder = network.decoder
    return DecoderParts(decoder.head, decoder.levels(), decoder.tail)


_KINDS = {
    AutoencoderKind.STABLE_DIFFUSION: _Kind(
        _build_kl,
        _encode_kl,
        _kl_decoder_parts,
        lambda config: (config.channels[-1], *config.channels[:0:-1]),
        ("encoder", "quant_conv"),
    ),
    AutoencoderKind.TINY: _Kind(
        _build_tiny,
        lambda network, image: network.encoder(image),
        _tiny_decoder_parts,
        lambda config: config.channels,
        ("encoder",),
    ),
}


class ImageNetwork(nn.Module):
    """What decoders and autoencoders share: the network, the map's layers, and how they decode."""

    def __init__(self, config: AutoencoderConfig, map_planes: int | None) -> None:
        super().__init__()
        if len(config.channels) != LEVELS:
            raise UsageError(f"an autoencoder has {LEVELS} levels, found channels for {len(config.channels)}")
        self.config = config
        self.scaling_factor = config.scaling_factor
        self.network = _KINDS[config.kind].build(config)
        self.map_decoder = None if map_planes is None else MapDecoder(map_planes, _decoder_levels(config))

    def decode(self, latent: Latent, planes: MapPlanes | None = None) -> Image:
        """Image of a latent, not clamped; with planes (all zero: no map here), through the map-aware layers.

        Raises:
            UsageError: planes for an autoencoder whose decoder reads no map, or a map of another size.
        """
        parts = _KINDS[self.config.kind].decoder_parts(self.network)
        features = parts.head(latent / self.scaling_factor)
        if planes is None:
            for up_block in parts.up_blocks:
                features = up_block(features)
            return parts.tail(features)
        map_decoder = self._map_decoder_for(latent, planes)
        levels = zip(parts.up_blocks, map_decoder.modulations, map_decoder.encode_map(planes), strict=True)
        for up_block, modulate, map_features in levels:
            features = up_block(modulate(features, map_features))
        return parts.tail(features)

    def _map_decoder_for(self, latent: Tensor, planes: Tensor) -> MapDecoder:
        if self.map_decoder is None:
            raise UsageError("a map was given to an image decoder that reads none: decode without it")
        height, width = (LATENT_STRIDE * each for each in latent.shape[-2:])
        if tuple(planes.shape[-2:]) != (height, width):
            raise UsageError(
                f"the map has {planes.shape[-1]}x{planes.shape[-2]} pixels, the image to decode {width}x{height}: "
                "they must cover the same ground at the same size"
            )
        return self.map_decoder


class ImageDecoder(ImageNetwork):
    """An image decoder alone: an autoencoder's weights by the same names, without its encoder's.

    Args:
        config: of the autoencoder.
        map_planes: planes of the map that it reads; none for a decoder without a map.

    Raises:
        UsageError: no such decoder can be built.
    """

    def __init__(self, config: AutoencoderConfig, map_planes: int | None) -> None:
        super().__init__(config, map_planes)
        for part in _KINDS[config.kind].encoder_parts:
            delattr(self.network, part)


class ImageAutoencoder(ImageNetwork):
    """The image autoencoder of a model.

    Args:
        config: its kind and sizes.
        map_planes: planes of the map that its decoder reads; none for a decoder without a map.

    Raises:
        UsageError: no such autoencoder can be built.
    """

    def encode(self, image: Image) -> Latent:
        """Latent of an image: the mode of the posterior, never a sample of it, times the scaling factor.

        Raises:
            UsageError: the image's sides are no multiples of 8.
        """
        height, width = image.shape[-2:]
        if height % LATENT_STRIDE or width % LATENT_STRIDE:
            raise UsageError(
                f"the image has {width}x{height} pixels: the autoencoder needs sides that are multiples of "
                f"{LATENT_STRIDE}, so crop or pad it"
            )
        return _KINDS[self.config.kind].encode(self.network, image) * self.scaling_factor

    def load_base(self, base: Path) -> None:
        """Take the weights of a Stable Diffusion folder's `vae` (safetensors only).

        Raises:
            BaseModelError: they are missing, unreadable or of another shape than this autoencoder.
            UsageError: this autoencoder is of the tiny kind.
        """
        if self.config.kind is not AutoencoderKind.STABLE_DIFFUSION:
            raise UsageError(
                f"a {self.config.kind} autoencoder takes no weights from a base model: train it with magc-train vae"
            )
        from diffusers import AutoencoderKL

        folder = base / "vae"
        try:
            found, report = AutoencoderKL.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                torch_dtype=torch.float32,
                output_loading_info=True,
            )
        except Exception as error:  # noqa: BLE001  (a dozen kinds, from three libraries)
            reason = " ".join(str(error).split())
            raise BaseModelError(
                f"the base model's autoencoder {folder} cannot be read ({reason}): expected config.json and "
                "diffusion_pytorch_model.safetensors as Stable Diffusion has them"
            ) from None
        if report["missing_keys"]:
            raise BaseModelError(
                f"the base model's autoencoder {folder} lacks weights ({min(report['missing_keys'])} and "
                f"{len(report['missing_keys']) - 1} more): get a complete copy"
            )
        expected, actual = _shape_of(self.network.config), _shape_of(found.config)
        if expected != actual:
            raise BaseModelError(
                f"the base model's autoencoder {folder} is another one than the model is made for: found {actual}, "
                f"expected {expected}"
            )
        self.network.load_state_dict(found.state_dict())


class _AutoencoderShape(NamedTuple):
    channels: tuple[int, ...]
    blocks_per_level: int
    latent_channels: int
    scaling_factor: float


def _shape_of(config: Any) -> _AutoencoderShape:
    return _AutoencoderShape(
        tuple(config.block_out_channels), config.layers_per_block, config.latent_channels, config.scaling_factor
    )


def _decoder_levels(config: AutoencoderConfig) -> tuple[DecoderLevel, ...]:
    if len(config.map_decoder_channels) != LEVELS:
        raise UsageError(
            f"the map-aware decoder has {LEVELS} levels, found channels for {len(config.map_decoder_channels)}"
        )
    channels = _KINDS[config.kind].up_block_channels(config)
    return tuple(
        DecoderLevel(map_channels=map_width, decoder_channels=width)
        for map_width, width in zip(config.map_decoder_channels, channels, strict=True)
    )


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
