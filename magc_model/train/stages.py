"""What the three stages train, on what, and how far they have come.

    vae      image ─► encode ─► latent ─► + noise ─► decode, with the map ─► L1, and L1 of the edges
    stage1   latent ─► LCM, with the map ─► lambda x mean squared error + bits a pixel        (paper, equation 13)
    stage2   latent ─► LCM ─► guide ─► CDM, with the map ─► mean squared error of the noise   (paper, equation 12),
                                                            and of the guide where --guide-weight says so

The autoencoder stands still after `vae`; the latents may come from a cache. In stage 2 everything that decides about
symbols stands still as well, in evaluation mode: the published code trains the hyper-synthesis on, with no rate in the
loss, and its bitrate drifts.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from magc_model.config import (
    IMAGE_STRIDE,
    LATENT_STRIDE,
    STAGES,
    AutoencoderKind,
    MapConfig,
    ModelConfig,
    RateMode,
    StageConfig,
)
from magc_model.data import Batch, Source, image_tensor
from magc_model.diffusion.noise import NoiseWindow, noise_batch
from magc_model.diffusion.samplers import SAMPLERS, start_latent
from magc_model.diffusion.schedule import add_noise, noise_schedule
from magc_model.model import MagcModel
from magc_model.nets.conditional_diffusion import ConditionalDenoiser
from magc_model.nets.latent_compression import LatentCompression
from magc_model.nets.map_planes import map_planes
from magc_model.shapes import ClassIds, Image, Latent, MapPlanes, Rates
from magc_model.train.loop import AUXILIARY_LEARNING_RATE, Losses, Validation, recompute_activations

VAE, STAGE1, STAGE2 = STAGES

LATENT_PENALTY = 0.01
"""vae: weight of the latents' mean square, so that they do not grow to drown the noise."""

VALIDATION_PX = 256
"""Largest side of the held-out pictures."""
VALIDATION_SAMPLES = 16
VALIDATION_PICTURES = 4
"""Of these, how many are drawn."""
VALIDATION_TIMESTEPS = (100, 300, 500, 700, 900)
VALIDATION_SAMPLER = "dpm-solver++"
VALIDATION_STEPS = 10
_BATCH = 4
_GAP_PX = 4


# --- what the networks see of a batch --------------------------------------------------------------------------------


def stage_map(stage: str, config: MapConfig) -> MapConfig:
    """The uses of the map that concern a stage: `vae` trains the image decoder's alone."""
    return replace(config, in_transform=False, in_diffusion=False, in_entropy=False) if stage == VAE else config


def batch_planes(class_ids: ClassIds, has_map: Bool[Tensor, " batch"], config: MapConfig) -> MapPlanes | None:
    """Planes of a batch's maps, all zero where there is none; nothing where no map is used."""
    return (map_planes(class_ids, config) * has_map[:, None, None, None]).contiguous() if config.is_used else None


def _compression(model: MagcModel) -> LatentCompression:
    return cast("LatentCompression", model.latent_compression)


def _denoiser(model: MagcModel) -> ConditionalDenoiser:
    return cast("ConditionalDenoiser", model.denoiser)


class _Network(nn.Module):
    """A model under training, and which of its parts stand still."""

    def __init__(self, model: MagcModel, map_config: MapConfig, frozen: Iterable[nn.Module]) -> None:
        super().__init__()
        self.model, self.map_config = model, map_config
        self._frozen = tuple(frozen)
        for module in self._frozen:
            module.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "_Network":
        """Training mode for what is trained only: a frozen part's statistics must not move."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def planes(self, batch: Batch) -> MapPlanes | None:
        """Of a batch."""
        return batch_planes(batch.class_ids, batch.has_map, self.map_config)

    def latent(self, batch: Batch) -> Latent:
        """From the cache, or else encoded now."""
        if batch.latents is not None:
            return batch.latents
        with torch.no_grad():
            return self.model.autoencoder.encode(torch.as_tensor(batch.images))


# --- vae -------------------------------------------------------------------------------------------------------------


def edge_loss(decoded: Image, image: Image) -> Float[Tensor, ""]:
    """Mean difference of the steps between neighbouring pixels."""
    return torch.stack(
        [(torch.diff(decoded, dim=dim) - torch.diff(image, dim=dim)).abs().mean() for dim in (-2, -1)]
    ).sum()


class AutoencoderNetwork(_Network):
    """The tiny autoencoder with its map-aware decoder, or the latter alone on a frozen Stable Diffusion autoencoder."""

    def __init__(self, model: MagcModel, map_config: MapConfig, latent_noise: float) -> None:
        is_own = model.config.autoencoder.kind is AutoencoderKind.TINY
        super().__init__(model, map_config, () if is_own else (model.autoencoder.network,))
        self._latent_noise = latent_noise
        # A quarter faster on a CPU; the other stages' networks, with their many small layers, are slower so.
        self.to(memory_format=torch.channels_last)

    def forward(self, batch: Batch) -> Losses:
        """Encode, disturb, decode."""
        images = torch.as_tensor(batch.images).contiguous(memory_format=torch.channels_last)
        latent = self.model.autoencoder.encode(images)
        # Up to so much noise: the decoder will be given compressed latents, more or less far from the encoder's.
        amount = self._latent_noise * torch.rand(len(latent), 1, 1, 1, device=latent.device)
        decoded = decode(self.model, latent + amount * torch.randn_like(latent), self.planes(batch))
        pixels, edges = (decoded - images).abs().mean(), edge_loss(decoded, images)
        power = latent.square().mean()
        figures = {"pixel_l1": pixels, "edge_l1": edges, "latent_power": power}
        return Losses(
            pixels + edges + LATENT_PENALTY * power,
            {name: each.detach() for name, each in figures.items()},
        )


def decode(model: MagcModel, latent: Latent, planes: MapPlanes | None) -> Image:
    """Image of a latent, with the map where the decoder reads one."""
    return model.autoencoder.decode(latent, planes if model.config.map.in_decoder else None)


# --- stage 1 ---------------------------------------------------------------------------------------------------------


def lambdas_at(rates: Rates | None, config: ModelConfig, count: int, device: torch.device) -> Float[Tensor, " batch"]:
    """Weight of the distortion of each sample: log-linear between the lambdas of a gained model."""
    logs = torch.tensor(config.rate.lambdas, device=device).log()
    if rates is None:
        return logs.exp().expand(count)
    low = rates.floor().long().clamp(max=len(logs) - 2)
    return torch.lerp(logs[low], logs[low + 1], rates - low).exp()


def random_rates(config: ModelConfig, count: int, device: torch.device) -> Rates | None:
    """Positions on the rate axis for a batch, uniform; none for a model of one rate."""
    if config.rate.mode is RateMode.FIXED:
        return None
    return torch.rand(count, device=device) * (len(config.rate.lambdas) - 1)


class CompressionNetwork(_Network):
    """The LCM on a frozen autoencoder's latents."""

    def __init__(self, model: MagcModel, map_config: MapConfig, rate_warmup_steps: int) -> None:
        super().__init__(model, map_config, (model.autoencoder,))
        self._rate_warmup_steps = rate_warmup_steps

    def forward(self, batch: Batch) -> Losses:
        """Rate plus lambda times distortion."""
        lcm = _compression(self.model)
        latent = self.latent(batch)
        rates = random_rates(self.model.config, len(latent), latent.device)
        compressed = lcm(latent, self.planes(batch), rates)
        distortion = (compressed.latent_hat - latent).square().mean(dim=(1, 2, 3))
        symbol_rate, hyper_rate = (
            bits / (latent[0, 0].numel() * LATENT_STRIDE**2) for bits in (compressed.symbol_bits, compressed.hyper_bits)
        )
        weights = lambdas_at(rates, self.model.config, len(latent), latent.device)
        rate_weight = min(1.0, batch.step / self._rate_warmup_steps) if self._rate_warmup_steps else 1.0
        return Losses(
            (weights * distortion + rate_weight * (symbol_rate + hyper_rate)).mean(),
            {
                "latent_mse": distortion.detach().mean(),
                "symbol_bpp": symbol_rate.detach().mean(),
                "hyper_bpp": hyper_rate.detach().mean(),
            },
            lcm.entropy_bottleneck.quantile_loss(),
        )


# --- stage 2 ---------------------------------------------------------------------------------------------------------


class DiffusionNetwork(_Network):
    """The CDM with its adapter, and the LCM's synthesis, from whose latent it takes its guide."""

    def __init__(self, model: MagcModel, map_config: MapConfig, guide_weight: float) -> None:
        lcm, denoiser = _compression(model), _denoiser(model)
        super().__init__(model, map_config, (model.autoencoder, lcm))
        self._guide_weight = guide_weight
        # In evaluation mode as the rest of the LCM: symbols are rounded, and the decoder uses stage 1's statistics.
        lcm.synthesis.requires_grad_(True)
        denoiser.requires_grad_(False)
        for _, parameter in denoiser.trainable_parameters():
            parameter.requires_grad_(True)
        self.schedule = noise_schedule(model.config.diffusion)

    def forward(self, batch: Batch) -> Losses:
        """Mean squared error of the predicted noise at random timesteps, and of the guide where it has a weight."""
        latent, planes = self.latent(batch), self.planes(batch)
        rates = random_rates(self.model.config, len(latent), latent.device)
        timesteps = torch.randint(0, self.model.config.diffusion.train_timesteps, (len(latent),), device=latent.device)
        noise = torch.randn_like(latent)
        guide = _compression(self.model)(latent, planes, rates).latent_hat
        noise_mse = self.noise_error(latent, guide, planes, timesteps, noise).mean()
        guide_mse = (guide - latent).square().mean()
        figures = {"noise_mse": noise_mse.detach(), "guide_mse": guide_mse.detach()}
        return Losses(noise_mse + self._guide_weight * guide_mse, figures)

    def noise_error(
        self, latent: Latent, guide: Latent, planes: MapPlanes | None, timesteps: Tensor, noise: Latent
    ) -> Float[Tensor, " batch"]:
        """Of each sample."""
        denoiser = _denoiser(self.model)
        noisy = add_noise(self.schedule, latent, noise, timesteps)
        predicted = denoiser(noisy, timesteps, guide, denoiser.encode_map(planes))
        return torch.as_tensor((predicted.float() - noise).square().mean(dim=(1, 2, 3)))


# --- held-out samples ------------------------------------------------------------------------------------------------


class HeldOut:
    """The first held-out samples, cut to the middle."""

    def __init__(self, source: Source, config: MapConfig, device: torch.device) -> None:
        numbers = range(min(len(source), VALIDATION_SAMPLES))
        side = min(VALIDATION_PX, int(source.sizes_px[: len(numbers)].min()) // IMAGE_STRIDE * IMAGE_STRIDE)
        self._samples = [source[number] for number in numbers]
        self._side, self._device, self.map_config = side, device, config
        self._has_map = bool(source.classes) and config.is_used

    def batches(self) -> Iterator[tuple[Image, MapPlanes | None]]:
        """Images and planes, a few at a time."""
        for start in range(0, len(self._samples), _BATCH):
            some = self._samples[start : start + _BATCH]
            images = image_tensor(np.stack([self._middle(each.image) for each in some])).to(self._device)
            ids = torch.from_numpy(np.stack([self._middle(each.semantic_map) for each in some])).to(self._device)
            has_map = torch.ones(len(some), dtype=torch.bool, device=self._device)
            yield images, batch_planes(ids, has_map, self.map_config)

    def picture(self, *columns: Image) -> NDArray[np.uint8]:
        """A row a sample: original, map in its colours, and what was made of it."""
        palette = np.zeros((256, 3), np.uint8)
        for each in self.map_config.classes:
            palette[each.id] = each.color
        rows = []
        for number, sample in enumerate(self._samples[: len(columns[0])]):
            cells = [self._middle(sample.image)]
            if self._has_map:
                cells.append(palette[self._middle(sample.semantic_map)])
            cells += [_pixels(column[number]) for column in columns]
            rows.append(np.concatenate([_framed(cell) for cell in cells], axis=1))
        return np.concatenate(rows)

    def _middle(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        top, left = ((room - self._side) // 2 for room in picture.shape[:2])
        return picture[top : top + self._side, left : left + self._side]


def _framed(cell: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.pad(cell, ((0, _GAP_PX), (0, _GAP_PX), (0, 0)), constant_values=255)


def _pixels(image: Tensor) -> NDArray[np.uint8]:
    scaled = (image.clamp(-1, 1) + 1) * 127.5
    return np.asarray(scaled.round().to(torch.uint8).permute(1, 2, 0).cpu().numpy())


def psnr(decoded: Image, image: Image) -> Float[Tensor, " batch"]:
    """Peak signal-to-noise ratio of each picture in dB, over the range that can be shown."""
    error = ((decoded.clamp(-1, 1) - image) / 2).square().mean(dim=(1, 2, 3))
    return -10 * error.clamp(min=1e-10).log10()


class _Means:
    """Means of figures over samples."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}

    def add(self, **figures: Tensor) -> None:
        """Figures of some samples, each [batch]."""
        for name, values in figures.items():
            self._values.setdefault(name, []).extend(values.tolist())

    def __call__(self) -> dict[str, float]:
        return {name: math.fsum(values) / len(values) for name, values in self._values.items()}


class AutoencoderStage:
    """`vae`."""

    auxiliary: frozenset[str] = frozenset()
    auxiliary_learning_rate = AUXILIARY_LEARNING_RATE

    def __init__(self, model: MagcModel, training: StageConfig, held_out: HeldOut) -> None:
        self.network = AutoencoderNetwork(model, held_out.map_config, training.latent_noise)
        self._held_out = held_out

    def validate(self) -> Validation:
        """PSNR of the autoencoder alone."""
        means, shown = _Means(), []
        for image, planes in self._held_out.batches():
            model = self.network.model
            decoded = decode(model, model.autoencoder.encode(image), planes)
            means.add(psnr=psnr(decoded, image), pixel_l1=(decoded - image).abs().mean(dim=(1, 2, 3)))
            shown.append(decoded)
        return Validation(means(), self._held_out.picture(torch.cat(shown)[:VALIDATION_PICTURES]))

    def recompute_activations(self) -> None:
        """Compute activations twice instead of keeping them."""
        network = self.network.model.autoencoder.network
        recompute_activations(*_blocks(network.encoder), *_blocks(network.decoder))

    def compile(self) -> None:
        """Compile the encoder, and the decoder's blocks, between which the map comes in."""
        network = self.network.model.autoencoder.network
        for part in (network.encoder, *_blocks(network.decoder)):
            part.compile()


_AUTOENCODER_BLOCKS = frozenset({"TinyBlock", "ResnetBlock2D"})


def _blocks(part: nn.Module) -> list[nn.Module]:
    return [each for each in part.modules() if type(each).__name__ in _AUTOENCODER_BLOCKS]


class CompressionStage:
    """`stage1`."""

    auxiliary_learning_rate = AUXILIARY_LEARNING_RATE

    def __init__(self, model: MagcModel, training: StageConfig, held_out: HeldOut) -> None:
        self.network = CompressionNetwork(model, held_out.map_config, training.rate_warmup_steps)
        self.auxiliary = frozenset({"model.latent_compression.entropy_bottleneck.quantiles"})
        self._held_out = held_out

    def validate(self) -> Validation:
        """Rate, error of the latent and PSNR of the picture without diffusion; by lambda if there are several."""
        model, means, shown = self.network.model, _Means(), []
        lcm = _compression(model)
        gained = model.config.rate.mode is RateMode.GAINED
        for image, planes in self._held_out.batches():
            latent = model.autoencoder.encode(image)
            for position, weight in enumerate(model.config.rate.lambdas):
                rates = torch.full((len(image),), float(position), device=image.device) if gained else None
                compressed = lcm(latent, planes, rates)
                decoded = decode(model, compressed.latent_hat, planes)
                figures = {
                    "bpp": (compressed.symbol_bits + compressed.hyper_bits) / image[0, 0].numel(),
                    "latent_mse": (compressed.latent_hat - latent).square().mean(dim=(1, 2, 3)),
                    "psnr": psnr(decoded, image),
                }
                means.add(**({f"{name}_{weight:g}": each for name, each in figures.items()} if gained else figures))
                if position == len(model.config.rate.lambdas) // 2:
                    shown.append(decoded)
        return Validation(means(), self._held_out.picture(torch.cat(shown)[:VALIDATION_PICTURES]))

    def recompute_activations(self) -> None:
        """Compute activations twice; not in the SPADE blocks, whose batch statistics must move once a step."""
        lcm = _compression(self.network.model)
        recompute_activations(*lcm.analysis.stages, *lcm.synthesis.stages)

    def compile(self) -> None:
        """Compile both latent transforms."""
        lcm = _compression(self.network.model)
        for part in (lcm.analysis, lcm.synthesis):
            part.compile()


class DiffusionStage:
    """`stage2`."""

    auxiliary: frozenset[str] = frozenset()
    auxiliary_learning_rate = AUXILIARY_LEARNING_RATE

    def __init__(self, model: MagcModel, training: StageConfig, held_out: HeldOut) -> None:
        self.network = DiffusionNetwork(model, held_out.map_config, training.guide_weight)
        self._held_out = held_out

    def validate(self) -> Validation:
        """Error of the predicted noise, and PSNR of a few pictures after few steps of diffusion and without."""
        network, means, shown = self.network, _Means(), []
        model = network.model
        lcm = _compression(model)
        middle = (len(model.config.rate.lambdas) - 1) / 2
        for number, (image, planes) in enumerate(self._held_out.batches()):
            latent = model.autoencoder.encode(image)
            rates = (
                torch.full((len(image),), middle, device=image.device)
                if model.config.rate.mode is RateMode.GAINED
                else None
            )
            windows = [NoiseWindow(number * _BATCH + index) for index in range(len(image))]
            noise = _noise(windows, latent)
            compressed = lcm(latent, planes, rates)
            guide = compressed.latent_hat
            for draw, timestep in enumerate(VALIDATION_TIMESTEPS):
                timesteps = torch.full((len(image),), timestep, device=image.device)
                means.add(noise_mse=network.noise_error(latent, guide, planes, timesteps, noise(1000 + draw)))
            if number == 0:
                alone = decode(model, guide, planes)
                sampled = decode(model, self._sample(guide, planes, noise), planes)
                bpp = (compressed.symbol_bits + compressed.hyper_bits) / image[0, 0].numel()
                means.add(psnr=psnr(sampled, image), psnr_without_diffusion=psnr(alone, image), bpp=bpp)
                shown = [alone, sampled]
        return Validation(means(), self._held_out.picture(*shown))

    def _sample(self, guide: Latent, planes: MapPlanes | None, noise: Callable[[int], Tensor]) -> Latent:
        network = self.network
        denoiser = _denoiser(network.model)
        features = denoiser.encode_map(planes)

        def denoise(latent: Latent, timestep: int) -> Latent:
            timesteps = torch.full((len(latent),), timestep, device=latent.device)
            return torch.as_tensor(denoiser(latent, timesteps, guide, features))

        start = start_latent(guide, network.schedule, None, noise)
        sampler = SAMPLERS[VALIDATION_SAMPLER]
        return sampler(denoise, start, network.schedule, steps=VALIDATION_STEPS, noise=noise)

    def recompute_activations(self) -> None:
        """Compute activations twice instead of keeping them."""
        denoiser = _denoiser(self.network.model)
        denoiser.enable_gradient_checkpointing()

    def compile(self) -> None:
        """Compile the UNet."""
        _denoiser(self.network.model).unet.compile()


def _noise(windows: list[NoiseWindow], latent: Latent) -> Callable[[int], Tensor]:
    return lambda draw: noise_batch(windows, draw, latent.shape[2], latent.shape[3], device=latent.device)
