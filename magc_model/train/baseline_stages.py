"""What `magc-train baseline` trains.

    codec     image ─► lambda x 255^2 x mean squared error + bits a pixel
    + map     symbols as they are ─► decoder with adapter ─► the objective that the decoder had
    hific     symbols as they are ─► decoder ─► squared error, LPIPS, and what a patch discriminator is told
    ms-illm   symbols as they are ─► decoder ─► squared error, LPIPS, and what a local discriminator is told
    vq-vae    image ─► codes ─► squared error and the codes' own

Decoder and discriminator move in the same step, each by its own optimiser: the discriminator's loss sees decoded
pictures without their history, and the decoder's sees the discriminator with its weights held still.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from magc_model.baselines.config import BaselineConfig, Objective
from magc_model.baselines.discriminators import (
    LocalDiscriminator,
    PatchDiscriminator,
    held_still,
    local_deceit,
    local_losses,
    patch_deceit,
    patch_losses,
)
from magc_model.baselines.labels import LabelNetwork
from magc_model.baselines.network import BaselineCodec, quantiles_of
from magc_model.baselines.perceptual import PerceptualDistance
from magc_model.data import Batch
from magc_model.shapes import Features, Image
from magc_model.train.loop import AUXILIARY_LEARNING_RATE, Losses, Validation, recompute_activations
from magc_model.train.stages import VALIDATION_PICTURES, HeldOut, batch_planes, psnr

DISCRIMINATOR = "discriminator."


class PublishedWeights(NamedTuple):
    """Of a fine-tune's losses."""

    squared_error: float
    """Of the mean squared error of pictures in [0, 1]."""
    perceptual: float
    """Of LPIPS (AlexNet)."""
    adversarial: float
    discriminator_learning_rate: float


HIFIC = PublishedWeights(0.75 * 0.1 * 2**-5 * 255**2, 1.0, 0.1 * 1.5, 1e-4)
"""Mentzer et al. 2020 (arXiv 2006.09965), table of k_M = 0.075 x 2^-5 on [0, 255], k_P = 1, beta = 0.15; its learning
rate is 1e-4 for both (tensorflow/compression, models/hific/configs.py: C x CD, lpips_weight, CP)."""

MS_ILLM = PublishedWeights(150.0, 1.0, 0.008, 4e-4)
"""Muckley et al. 2023 (arXiv 2301.11189; NeuralCompression, projects/illm/README.md: mse_param, lpips_param,
generator_weight; optimizer/model_adamw_disc_const.yaml). Encoder and bottleneck are frozen there, too."""


class Seen(NamedTuple):
    """What a codec makes of a batch."""

    images: Image
    symbols: Features
    decoded: Image
    bpp: Float[Tensor, " batch"]

    def squared_error(self) -> Float[Tensor, ""]:
        """Of pictures in [0, 1]."""
        return ((self.decoded - self.images) / 2).square().mean()


class CodecNetwork(nn.Module):
    """A codec under training, and which of its parts stand still."""

    def __init__(self, codec: BaselineCodec, frozen: Iterable[nn.Module]) -> None:
        super().__init__()
        self.codec = codec
        self._frozen = tuple(frozen)
        for module in self._frozen:
            module.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "CodecNetwork":
        """Training mode for what is trained only: a frozen body rounds as the codec does."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def see(self, batch: Batch) -> Seen:
        """Encode and decode."""
        images = torch.as_tensor(batch.images)
        analysed = self.codec.analyse(images)
        planes = batch_planes(batch.class_ids, batch.has_map, self.codec.config.map)
        decoded = self.codec.synthesise(analysed.symbols, planes)
        return Seen(images, analysed.symbols, decoded, analysed.bits / images[0, 0].numel())


class RateDistortionNetwork(CodecNetwork):
    """Rate plus lambda times squared error; of a frozen body the rate is only reported."""

    def __init__(self, codec: BaselineCodec, *, freezes_body: bool, rate_warmup_steps: int) -> None:
        super().__init__(codec, (codec.body,) if freezes_body else ())
        self._freezes_body, self._rate_warmup_steps = freezes_body, rate_warmup_steps

    def forward(self, batch: Batch) -> Losses:
        """CompressAI's rate-distortion loss (compressai/losses/rate_distortion.py)."""
        seen = self.see(batch)
        error, bpp = seen.squared_error(), seen.bpp.mean()
        rate_weight = min(1.0, batch.step / self._rate_warmup_steps) if self._rate_warmup_steps else 1.0
        total = self.codec.config.rate_lambda * 255**2 * error + rate_weight * bpp
        body: Any = self.codec.body
        auxiliary = None if self._freezes_body else torch.as_tensor(body.aux_loss())
        return Losses(total, {"mse": error.detach() * 255**2, "bpp": bpp.detach()}, auxiliary)


class AdversarialNetwork(CodecNetwork, ABC):
    """A decoder, and the discriminator that it is trained against."""

    weights: PublishedWeights

    def __init__(
        self,
        codec: BaselineCodec,
        discriminator: nn.Module,
        perceptual: PerceptualDistance | None,
        others: Iterable[nn.Module] = (),
    ) -> None:
        frozen = (codec.body, *([] if perceptual is None else [perceptual]), *others)
        super().__init__(codec, frozen)
        self.discriminator, self.perceptual = discriminator, perceptual

    @abstractmethod
    def deceit(self, fake: Tensor, images: Image) -> Float[Tensor, ""]:
        """What the decoder minimises, given what the discriminator says of its pictures."""

    @abstractmethod
    def judgement(self, real: Tensor, fake: Tensor, images: Image) -> Float[Tensor, ""]:
        """What the discriminator minimises."""

    def forward(self, batch: Batch) -> Losses:
        """Both sides' losses."""
        seen = self.see(batch)
        decoded, original, symbols = (seen.decoded + 1) / 2, (seen.images + 1) / 2, seen.symbols.detach()
        error = seen.squared_error()
        deceit = self.deceit(held_still(self.discriminator, decoded, symbols), seen.images)
        real, fake = self.discriminator(original, symbols), self.discriminator(decoded.detach(), symbols)
        judgement = self.judgement(real, fake, seen.images)
        total = self.weights.squared_error * error + self.weights.adversarial * deceit
        figures = {"mse": error * 255**2, "bpp": seen.bpp.mean(), "deceit": deceit, "discriminator": judgement}
        if self.perceptual is not None:
            figures["lpips"] = self.perceptual(seen.decoded, seen.images)
            total = total + self.weights.perceptual * figures["lpips"]
        return Losses(total, {name: each.detach() for name, each in figures.items()}, judgement)


class HificNetwork(AdversarialNetwork):
    """Against patches that look real or not."""

    weights = HIFIC

    def __init__(self, codec: BaselineCodec, channels: int, perceptual: PerceptualDistance | None) -> None:
        super().__init__(codec, PatchDiscriminator(codec.config.symbol_channels, channels), perceptual)

    def deceit(self, fake: Tensor, images: Image) -> Float[Tensor, ""]:  # noqa: ARG002
        """Patches should look real."""
        return patch_deceit(fake)

    def judgement(self, real: Tensor, fake: Tensor, images: Image) -> Float[Tensor, ""]:  # noqa: ARG002
        """Tell real from decoded."""
        return patch_losses(real, fake)


class MsIllmNetwork(AdversarialNetwork):
    """Against places that look like the original's label, like another one, or like none."""

    weights = MS_ILLM

    def __init__(
        self, codec: BaselineCodec, channels: int, perceptual: PerceptualDistance | None, labels: LabelNetwork
    ) -> None:
        discriminator = LocalDiscriminator(codec.config.symbol_channels, channels, labels.config.codes)
        super().__init__(codec, discriminator, perceptual, (labels,))
        self.labels = labels

    def deceit(self, fake: Tensor, images: Image) -> Float[Tensor, ""]:
        """Places should be taken for the original's."""
        return local_deceit(fake, self._labels(images))

    def judgement(self, real: Tensor, fake: Tensor, images: Image) -> Float[Tensor, ""]:
        """Tell the label of real places, and decoded ones from them."""
        return local_losses(real, fake, self._labels(images))

    def _labels(self, images: Image) -> Tensor:
        with torch.no_grad():
            return self.labels.labels(images)


class CodecStage:
    """A codec, or its decoder alone."""

    def __init__(self, network: CodecNetwork, held_out: HeldOut) -> None:
        self.network, self._held_out = network, held_out
        is_adversarial = isinstance(network, AdversarialNetwork)
        names = {name for name, each in network.named_parameters() if each.requires_grad}
        quantiles = {f"codec.{name}" for name in quantiles_of(network.codec)}
        judges = {name for name in names if name.startswith(DISCRIMINATOR)}
        self.auxiliary = frozenset(judges if is_adversarial else quantiles & names)
        self.auxiliary_learning_rate = (
            network.weights.discriminator_learning_rate
            if isinstance(network, AdversarialNetwork)
            else AUXILIARY_LEARNING_RATE
        )

    def validate(self) -> Validation:
        """Rate by the likelihoods, and PSNR."""
        figures: dict[str, list[float]] = {"bpp": [], "psnr": []}
        shown, codec = [], self.network.codec
        for images, planes in self._held_out.batches():
            analysed = codec.analyse(images)
            decoded = codec.synthesise(analysed.symbols, planes)
            figures["bpp"] += (analysed.bits / images[0, 0].numel()).tolist()
            figures["psnr"] += psnr(decoded, images).tolist()
            shown.append(decoded)
        return Validation(_means(figures), self._held_out.picture(torch.cat(shown)[:VALIDATION_PICTURES]))

    def recompute_activations(self) -> None:
        """Compute the decoder's activations twice."""
        recompute_activations(self.network.codec.synthesis)

    def compile(self) -> None:
        """Compile the decoder."""
        self.network.codec.synthesis.compile()


class LabelsTraining(nn.Module):
    """A label network and its loss."""

    def __init__(self, labels: LabelNetwork) -> None:
        super().__init__()
        self.labels = labels

    def forward(self, batch: Batch) -> Losses:
        """Squared error, and the codes'."""
        images = torch.as_tensor(batch.images)
        seen = self.labels(images)
        error = (seen.decoded - images).square().mean()
        return Losses(error + seen.code_loss, {"mse": error.detach(), "code_loss": seen.code_loss.detach()})


class LabelsStage:
    """`vq-vae`."""

    auxiliary: frozenset[str] = frozenset()
    auxiliary_learning_rate = AUXILIARY_LEARNING_RATE

    def __init__(self, labels: LabelNetwork, held_out: HeldOut) -> None:
        self.network, self._held_out = LabelsTraining(labels), held_out

    def validate(self) -> Validation:
        """PSNR, and the share of the codes that held-out pictures need: far from 1, the labels say little."""
        figures: dict[str, list[float]] = {"psnr": []}
        shown, used = [], set()
        for images, _ in self._held_out.batches():
            seen = self.network.labels(images)
            figures["psnr"] += psnr(seen.decoded, images).tolist()
            used |= set(seen.labels.unique().tolist())
            shown.append(seen.decoded)
        share = len(used) / self.network.labels.config.codes
        picture = self._held_out.picture(torch.cat(shown)[:VALIDATION_PICTURES])
        return Validation(_means(figures) | {"codes_used": share}, picture)

    def recompute_activations(self) -> None:
        """Compute activations twice."""
        recompute_activations(self.network.labels.encoder, self.network.labels.decoder)

    def compile(self) -> None:
        """Compile encoder and decoder."""
        self.network.labels.encoder.compile()
        self.network.labels.decoder.compile()


def _means(figures: dict[str, list[float]]) -> dict[str, float]:
    return {name: sum(values) / len(values) for name, values in figures.items()}


class Ingredients(NamedTuple):
    """What an objective may need besides the codec."""

    discriminator_channels: int
    perceptual: PerceptualDistance | None
    labels: LabelNetwork | None
    freezes_body: bool
    rate_warmup_steps: int


_NETWORKS: dict[Objective, Callable[[BaselineCodec, Ingredients], CodecNetwork]] = {
    Objective.MSE: lambda codec, given: RateDistortionNetwork(
        codec, freezes_body=given.freezes_body, rate_warmup_steps=given.rate_warmup_steps
    ),
    Objective.HIFIC: lambda codec, given: HificNetwork(codec, given.discriminator_channels, given.perceptual),
    # What the options have checked: ms-illm has labels.
    Objective.MS_ILLM: lambda codec, given: MsIllmNetwork(
        codec, 2 * given.discriminator_channels, given.perceptual, _given(given.labels)
    ),
}


def codec_network(config: BaselineConfig, codec: BaselineCodec, given: Ingredients) -> CodecNetwork:
    """What trains a codec for the objective of a config."""
    return _NETWORKS[config.objective](codec, given)


def _given(labels: LabelNetwork | None) -> LabelNetwork:
    if labels is None:
        raise ValueError("ms-illm without labels")
    return labels
