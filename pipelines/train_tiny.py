"""Train the model in the box: autoencoder and LCM together, for all rates, then a generator that draws in one step.

    build="magc-data build --imagery sample-banepa --osm sample-banepa"
    $build --zoom 18 --bbox 85.50865,27.63183,85.51414,27.63792 --out west18     # the sample's training half lies west
    $build --zoom 18 --bbox 85.51552,27.62453,85.53474,27.63062 --out south18    # and south of its test half
    $build --zoom 17 --bbox 85.51071,27.63366,85.51346,27.63609 --out west17
    $build --zoom 17 --bbox 85.51620,27.62636,85.53268,27.62879 --out south17
    python pipelines/train_tiny.py --data west18 south18 west17 south17 --pictures ucmerced/train --out tiny

    1. autoencoder   image ─► latent ─► + noise ─► image, with the map               L1, and L1 of the edges
    2. codec         image ─► latent ─► symbols ─► latent ─► image, with the map     lambda x squared error + bits
    3. realistic     latent, noise ─► latent ─► image, with the map                  L1, and an adversary

`magc-train` keeps the autoencoder still while the LCM learns, because Stable Diffusion's must not change. A small one
of our own may, and its decoder then learns from what it will be given. The third phase leaves all of that as it is: a
denoiser and a second image decoder learn to draw what the first one leaves out. Written for one GPU, where a step is a
single captured graph; it runs on a CPU, too, far slower. What came of it: docs/models/tiny.md.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from tiny_adversary import Discriminator, closeness, deceit, discriminator_loss
from tiny_descent import Descent, captured
from tiny_ground import MAP_DROPOUT, PICTURE_PX, Ground, load_pictures
from torch import Tensor, nn

from magc_model.config import PRESETS, MapClass, ModelConfig, Prediction, RateConfig, RateMode
from magc_model.entropy.tables import build_tables
from magc_model.model import (
    ENTROPY_PARTS,
    MagcModel,
    build_autoencoder,
    build_denoiser,
    build_latent_compression,
    build_realistic_decoder,
    stored_tensors,
)
from magc_model.train.stages import edge_loss

if TYPE_CHECKING:
    from collections.abc import Callable

    from magc_model.nets.autoencoder import ImageAutoencoder, ImageDecoder
    from magc_model.nets.conditional_diffusion import ConditionalDenoiser
    from magc_model.nets.latent_compression import LatentCompression

LAMBDAS = (0.5, 1.2, 3.0, 8.0, 20.0, 60.0)
"""Weights of the squared error of a picture in [-1, 1] against bits a pixel: about 0.01 to 0.05 bpp."""
BATCH = 12
"""A step learns from so many crops with their maps, and from as many other pictures without any."""
LATENT_NOISE = 0.3
LATENT_WEIGHT = 0.02
"""Of the latent's own error, so that it stays something that a denoiser can work on."""
GENERATOR_CHANNELS = (32, 64, 96)
REALISTIC_RATES = 3.5
"""The realistic end learns from the lower rates, up to this place on the rate axis: above, there is less to draw."""
SHARES = {"autoencoder": 0.1, "codec": 0.6, "realistic": 0.3}
"""Of the time."""


class Batch(NamedTuple):
    """What a step sees; the same storage every time, as a captured graph needs it."""

    crops: Tensor
    planes: Tensor
    pictures: Tensor


class Training:
    """The two networks, what they learn from, and one loop for both phases."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.device = torch.device(arguments.device)
        self.count = arguments.batch
        self.ground = Ground(arguments.data, self.device, self.count)
        self.others = load_pictures(arguments.pictures, self.device)
        self.config = tiny_config(self.ground)
        self.autoencoder: ImageAutoencoder = build_autoencoder(self.config).to(self.device)
        self.autoencoder.to(memory_format=torch.channels_last)
        self.lcm: LatentCompression = build_latent_compression(self.config).to(self.device)
        self.rate_weight, self.adversary_weight = torch.ones(2, device=self.device)
        self.seen = self._next_batch()
        self._log_lambdas = torch.tensor(LAMBDAS, device=self.device).log()

    def _next_batch(self) -> Batch:
        crops, planes = self.ground.batch()
        chosen = torch.randint(len(self.others), (self.count,), device=self.device)
        pictures = self.others[chosen].float() / 127.5 - 1
        symmetry = int(torch.randint(8, (1,)))
        for bit, dimension in ((0, 2), (1, 3)):
            if symmetry >> bit & 1:
                pictures = pictures.flip(dimension)
        return Batch(crops, planes, pictures.transpose(2, 3) if symmetry & 4 else pictures)

    def _parts(self) -> list[tuple[Tensor, Tensor]]:
        no_map = torch.zeros_like(self.seen.planes[:, :, :PICTURE_PX, :PICTURE_PX])
        return [(self.seen.crops, self.seen.planes), (self.seen.pictures, no_map[: len(self.seen.pictures)])]

    def _mixed(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)

    def autoencoder_loss(self) -> Tensor:
        """L1 of pixels and edges after a latent with noise."""
        total = torch.zeros((), device=self.device)
        for images, planes in self._parts():
            with self._mixed():
                latent = self.autoencoder.encode(images)
                amount = LATENT_NOISE * torch.rand(len(latent), 1, 1, 1, device=self.device)
                decoded = self.autoencoder.decode(latent + amount * torch.randn_like(latent), planes)
            error = (decoded.float() - images).abs().mean() + edge_loss(decoded.float(), images)
            total = total + error + 0.01 * latent.float().square().mean()
        return total

    def codec_loss(self) -> Tensor:
        """Rate and distortion at random rates, each rate's divided by the root of its lambda so that none prevails."""
        total = torch.zeros((), device=self.device)
        for images, planes in self._parts():
            rates = torch.rand(len(images), device=self.device) * (len(LAMBDAS) - 1)
            low = rates.floor().long().clamp(max=len(LAMBDAS) - 2)
            lambdas = torch.lerp(self._log_lambdas[low], self._log_lambdas[low + 1], rates - low).exp()
            with self._mixed():
                latent = self.autoencoder.encode(images)
                coded = self.lcm(latent, planes, rates)
                decoded = self.autoencoder.decode(coded.latent_hat.to(latent.dtype), planes)
            latent = latent.float()
            distortion = (decoded.float() - images).square().mean((1, 2, 3))
            distortion = distortion + LATENT_WEIGHT * (coded.latent_hat.float() - latent).square().mean((1, 2, 3))
            bpp = (coded.symbol_bits + coded.hyper_bits) / images[0, 0].numel()
            weighted = (lambdas * distortion + self.rate_weight * bpp) / lambdas.sqrt()
            total = total + weighted.mean() + 0.002 * latent.square().mean()
        return total

    def phase(self, name: str, descents: list[Descent], step: Callable[[], Tensor], seconds: float) -> None:
        """Train for so long, the learning rates on a cosine."""
        run, start, count = captured(step, self.device), time.monotonic(), 0
        while (done := (time.monotonic() - start) / seconds) < 1:
            for each in descents:
                each.set_rate(min(1, (count + 1) / 100) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * done))))
            self.rate_weight.fill_(min(1, count / 500))
            self.adversary_weight.fill_(min(1, count / 800))
            for held, new in zip(self.seen, self._next_batch(), strict=True):
                held.copy_(new)
            found, count = run(), count + 1
            if count % 500 == 1:
                print(f"{name}: {count} steps, {time.monotonic() - start:.0f} s, loss {float(found):.4f}", flush=True)
        print(f"{name}: {count} steps in {time.monotonic() - start:.0f} s")

    def plain_phase(
        self, name: str, networks: list[nn.Module], loss: Callable[[], Tensor], seconds: float, learning_rate: float
    ) -> None:
        """Train networks down one loss."""
        quantiles = self.lcm.entropy_bottleneck.quantiles
        descent = Descent(
            [each for one in networks for each in one.parameters() if each is not quantiles], learning_rate
        )

        def step() -> Tensor:
            found = loss()
            descent.down(found)
            return found.detach()

        self.phase(name, [descent], step, seconds)
        descent.settle()

    def realistic_phase(self, seconds: float) -> tuple[ConditionalDenoiser, ImageDecoder]:
        """Train the generator and its decoder against a discriminator; everything else stays as it is."""
        for network in (self.autoencoder, self.lcm):
            network.requires_grad_(False).eval()
        generator = build_denoiser(self.config).to(self.device)
        with torch.no_grad():  # it begins with next to nothing, and with the map in sight
            generator.unet.conv_out.weight.mul_(0.1)
            generator.unet.conv_out.bias.zero_()
            for parameter in generator.adapter.exits.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        decoder = build_realistic_decoder(self.config).to(self.device).to(memory_format=torch.channels_last)
        decoder.load_state_dict({name: self.autoencoder.state_dict()[name] for name in decoder.state_dict()})
        judge = Discriminator(self.config.map.plane_count).to(self.device).to(memory_format=torch.channels_last)
        drawing = Descent(
            [*generator.parameters(), *decoder.parameters()], 3e-4,
            betas=(0.5, 0.99), weight_decay=0.001, largest_norm=5.0, average_decay=0.998,
        )  # fmt: skip
        judging = Descent(
            list(judge.parameters()), 3e-4, betas=(0.5, 0.99), weight_decay=0.0, largest_norm=5.0
        )  # fmt: skip

        def step() -> Tensor:
            drawn, judged = [], torch.zeros((), device=self.device)
            for images, planes in self._parts():
                with torch.no_grad(), self._mixed():
                    rates = torch.rand(len(images), device=self.device) * REALISTIC_RATES
                    guide = self.lcm(self.autoencoder.encode(images), planes, rates).latent_hat
                    faithful = self.autoencoder.decode(guide, planes).float().clamp(-1.2, 1.2)
                with self._mixed():
                    timesteps = torch.full((len(guide),), self.config.diffusion.train_timesteps - 1, device=self.device)
                    noise = torch.randn_like(guide)
                    residual = generator(noise, timesteps, guide, generator.encode_map(planes))
                    picture = decoder.decode(guide + residual, planes).float()
                    real, fake = (judge(each, faithful, planes) for each in (images, picture.detach()))
                judged = judged + discriminator_loss(real, fake)
                drawn.append((images, planes, faithful, picture, real))
            judging.down(judged)
            loss = torch.zeros((), device=self.device)
            for images, planes, faithful, picture, real in drawn:
                with self._mixed():
                    fake = judge(picture, faithful, planes)
                loss = loss + self.adversary_weight * deceit(real, fake) + closeness(picture, images)
            drawing.down(loss)
            return loss.detach()

        self.phase("realistic", [drawing, judging], step, seconds)
        drawing.settle()
        return generator.eval(), decoder.eval()

    def fit_quantiles(self) -> None:
        """The quantiles that the coder's tables begin and end at, for the density as it has become."""
        bottleneck = self.lcm.entropy_bottleneck
        for learning_rate in (0.3, 0.03, 0.003):
            optimiser = torch.optim.Adam([bottleneck.quantiles], lr=learning_rate)
            for _ in range(700):
                optimiser.zero_grad()
                bottleneck.quantile_loss().backward()
                optimiser.step()

    def scale_latents(self) -> None:
        """To a standard deviation of 1, as a denoiser wants them; pictures stay the same."""
        with torch.no_grad():
            spread = torch.cat([self.autoencoder.encode(self.ground.batch()[0]).flatten() for _ in range(4)]).std()
            factor = 1 / float(spread)
            first, tail = self.lcm.analysis.stages[0][0], self.lcm.synthesis.tail
            first.weight.div_(factor)
            tail.weight.mul_(factor)
            tail.bias.mul_(factor)
        self.config = replace(self.config, autoencoder=replace(self.config.autoencoder, scaling_factor=factor))
        self.autoencoder.scaling_factor = factor

    def model(self, generator: ConditionalDenoiser, decoder: ImageDecoder) -> MagcModel:
        """All parts, ready to be stored in little room."""
        lcm = self.lcm.cpu().eval()
        model = MagcModel(
            self.config, self.autoencoder.cpu().eval(), lcm, generator.cpu(), build_tables(lcm), decoder.cpu()
        )
        round_to_half_precision(model)
        return model


def round_to_half_precision(model: MagcModel) -> None:
    """All numbers but those that the exact entropy path reads, so that streams and their symbols stay the same.

    A model directory holds such numbers in half the room. Pictures change by at most 3 of 255 grey levels.
    """
    exact = tuple(f"latent_compression.{part}" for part in ENTROPY_PARTS)
    with torch.no_grad():
        for name, tensor in stored_tensors(model).items():
            if tensor.is_floating_point() and not name.startswith(exact):
                tensor.copy_(tensor.half())


def tiny_config(ground: Ground) -> ModelConfig:
    """The tiny preset for all rates, with the dataset's classes and a generator that draws in one step."""
    config = PRESETS["tiny"].model
    classes = tuple(MapClass(each.id, each.name, each.color) for each in ground.classes)
    return replace(
        config,
        map=replace(config.map, classes=classes, dropout=MAP_DROPOUT),
        rate=RateConfig(mode=RateMode.GAINED, lambdas=LAMBDAS),
        denoiser=replace(config.denoiser, channels=GENERATOR_CHANNELS, prediction=Prediction.RESIDUAL),
    )


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="datasets of compact areas")
    parser.add_argument("--pictures", type=Path, required=True, help="folder of aerial pictures without maps")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--batch", type=int, default=BATCH, help="crops a step, and as many pictures")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, required=True, help="model directory to write")
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    training, seconds = Training(arguments), 60 * arguments.minutes
    autoencoder, both = [training.autoencoder], [training.autoencoder, training.lcm]
    shares = {name: share * seconds for name, share in SHARES.items()}
    training.plain_phase("autoencoder", autoencoder, training.autoencoder_loss, shares["autoencoder"], 2e-3)
    training.plain_phase("codec", both, training.codec_loss, shares["codec"], 1.2e-3)
    training.fit_quantiles()
    training.scale_latents()
    generator, decoder = training.realistic_phase(shares["realistic"])
    training.model(generator, decoder).save_pretrained(arguments.out)
    print(f"{arguments.out}: the model; `magc doctor --model {arguments.out}` checks it")


if __name__ == "__main__":
    main()
