"""Train the model in the box: autoencoder and LCM together, for all rates, on the error of the picture itself.

    build="magc-data build --imagery sample-banepa --osm sample-banepa"
    $build --zoom 18 --bbox 85.50865,27.63183,85.51414,27.63792 --out west18     # the sample's training half lies west
    $build --zoom 18 --bbox 85.51552,27.62453,85.53474,27.63062 --out south18    # and south of its test half
    $build --zoom 17 --bbox 85.51071,27.63366,85.51346,27.63609 --out west17
    $build --zoom 17 --bbox 85.51620,27.62636,85.53268,27.62879 --out south17
    python pipelines/train_tiny.py --data west18 south18 west17 south17 --pictures ucmerced/train --out tiny

    1. autoencoder   image ─► latent ─► + noise ─► image, with the map               L1, and L1 of the edges
    2. codec         image ─► latent ─► symbols ─► latent ─► image, with the map     lambda x squared error + bits

`magc-train` keeps the autoencoder still while the LCM learns, because Stable Diffusion's must not change. A small one
of our own may, and its decoder then learns from what it will be given. Written for one GPU, where a step is a single
captured graph; it runs on a CPU, too, far slower. What came of it: docs/models/tiny.md.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from magc_data.dataset import MagcDataset
from magc_model.config import PRESETS, MapClass, ModelConfig, RateConfig, RateMode
from magc_model.entropy.tables import build_tables
from magc_model.model import MagcModel, build_autoencoder, build_latent_compression
from magc_model.train.stages import edge_loss

if TYPE_CHECKING:
    from collections.abc import Callable

    from magc_model.nets.autoencoder import ImageAutoencoder
    from magc_model.nets.latent_compression import LatentCompression

LAMBDAS = (0.5, 1.2, 3.0, 8.0, 20.0, 60.0)
"""Weights of the squared error of a picture in [-1, 1] against bits a pixel: about 0.01 to 0.05 bpp."""
CROP_PX, PICTURE_PX = 256, 128
CROPS, PICTURES = 12, 12
"""A step learns from crops with their maps and from other pictures without any."""
MAP_DROPOUT = 0.1
LATENT_NOISE = 0.3
LATENT_WEIGHT = 0.02
"""Of the latent's own error, so that it stays something that a denoiser can work on."""
AUTOENCODER_SHARE = 0.15
"""Of the time."""


class Batch(NamedTuple):
    """What a step sees; the same storage every time, as a captured graph needs it."""

    crops: Tensor
    planes: Tensor
    pictures: Tensor


class Ground:
    """Datasets laid out as they lie on the ground, so that a crop may begin anywhere and cross from tile to tile."""

    def __init__(self, folders: list[Path], device: torch.device) -> None:
        self.classes = MagcDataset(folders[0]).classes
        self._device, self._random = device, np.random.default_rng(0)
        self._images: list[Tensor] = []
        self._maps: list[Tensor] = []
        self._starts: list[np.ndarray] = []
        for folder in folders:
            image, semantic_map, covered = _mosaic(MagcDataset(folder))
            summed = np.pad(covered.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
            inside = (
                summed[CROP_PX:, CROP_PX:]
                - summed[:-CROP_PX, CROP_PX:]
                - summed[CROP_PX:, :-CROP_PX]
                + summed[:-CROP_PX, :-CROP_PX]
            )
            self._starts.append(np.argwhere(inside == CROP_PX**2))
            self._images.append(torch.from_numpy(image).to(device))
            self._maps.append(torch.from_numpy(semantic_map).to(device))
        counts = np.array([len(each) for each in self._starts], float)
        self._shares = counts / counts.sum()

    def batch(self) -> tuple[Tensor, Tensor]:
        """Crops in [-1, 1] and their class planes, under the square's symmetries and changes of colour."""
        images, maps = [], []
        for number in self._random.choice(len(self._starts), CROPS, p=self._shares):
            row, column = self._starts[number][self._random.integers(len(self._starts[number]))]
            window = slice(row, row + CROP_PX), slice(column, column + CROP_PX)
            image, semantic_map = self._images[number][window], self._maps[number][window]
            symmetry = int(self._random.integers(8))
            for bit in (0, 1):
                if symmetry >> bit & 1:
                    image, semantic_map = image.flip(bit), semantic_map.flip(bit)
            if symmetry & 4:
                image, semantic_map = image.transpose(0, 1), semantic_map.transpose(0, 1)
            images.append(image)
            maps.append(semantic_map)
        crops = torch.stack(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        planes = functional.one_hot(torch.stack(maps).long(), 1 + max(each.id for each in self.classes))
        has_map = torch.rand(CROPS, 1, 1, 1, device=self._device) > MAP_DROPOUT
        return _recoloured(crops), planes.permute(0, 3, 1, 2).float() * has_map


def _mosaic(dataset: MagcDataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, map and which pixels there are, over the rectangle that the tiles span."""
    places = np.array([[int(part) for part in key.split("_")[1:]] for key in dataset.keys])
    places -= places.min(axis=0)
    width, height = (places.max(axis=0) + 1) * 256
    image, semantic_map = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
    covered = np.zeros((height, width), np.int64)
    for sample, (x, y) in zip(dataset, places * 256, strict=True):
        window = slice(y, y + 256), slice(x, x + 256)
        image[window], semantic_map[window], covered[window] = sample.image, sample.semantic_map, 1
    return image, semantic_map, covered


def _recoloured(crops: Tensor) -> Tensor:
    """Three in five crops with other contrast, brightness and tint."""

    def drawn(spread: float, channels: int) -> Tensor:
        return spread * torch.randn(len(crops), channels, 1, 1, device=crops.device)

    changed = crops * (1 + drawn(0.12, 1) + drawn(0.05, 3)) + drawn(0.1, 1) + drawn(0.04, 3)
    kept = torch.rand(len(crops), 1, 1, 1, device=crops.device) < 0.4
    return torch.where(kept, crops, changed).clamp(-1, 1)


def load_pictures(folder: Path, device: torch.device) -> Tensor:
    """All pictures below a folder, brought to 128x128 pixels: uint8 [count, 3, 128, 128]."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".png", ".tif"))
    pixels = [
        np.asarray(Image.open(path).convert("RGB").resize((PICTURE_PX,) * 2, Image.Resampling.BOX)) for path in paths
    ]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).to(device)


class Averages:
    """Moving averages of weights, which is what is kept in the end."""

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self._means = [each.detach().clone() for each in parameters]

    def update(self) -> None:
        """After a step."""
        torch._foreach_lerp_(self._means, [each.detach() for each in self._parameters], 1 - self._decay)

    def apply(self) -> None:
        """Put the averages in the weights' place."""
        with torch.no_grad():
            for parameter, mean in zip(self._parameters, self._means, strict=True):
                parameter.copy_(mean)


def captured(step: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """The step as one CUDA graph: its thousands of small kernels take longer to start than to run."""
    if device.type != "cuda":
        return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(4):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()

    def replay() -> Tensor:
        graph.replay()
        return found

    return replay


class Training:
    """The two networks, what they learn from, and one loop for both phases."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.device = torch.device(arguments.device)
        self.ground = Ground(arguments.data, self.device)
        self.others = load_pictures(arguments.pictures, self.device)
        self.config = tiny_config(self.ground)
        self.autoencoder: ImageAutoencoder = build_autoencoder(self.config).to(self.device)
        self.autoencoder.to(memory_format=torch.channels_last)
        self.lcm: LatentCompression = build_latent_compression(self.config).to(self.device)
        self.rate_weight = torch.ones((), device=self.device)
        self.seen = self._next_batch()
        self._log_lambdas = torch.tensor(LAMBDAS, device=self.device).log()

    def _next_batch(self) -> Batch:
        crops, planes = self.ground.batch()
        chosen = torch.randint(len(self.others), (PICTURES,), device=self.device)
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

    def phase(
        self, name: str, networks: list[nn.Module], loss: Callable[[], Tensor], seconds: float, learning_rate: float
    ) -> None:
        """Train for so long, the learning rate on a cosine."""
        quantiles = self.lcm.entropy_bottleneck.quantiles
        parameters = [each for network in networks for each in network.parameters() if each is not quantiles]
        rate = torch.tensor(learning_rate, device=self.device)
        on_gpu = self.device.type == "cuda"
        optimiser = torch.optim.AdamW(
            parameters, lr=rate if on_gpu else learning_rate, weight_decay=0.01, capturable=on_gpu, foreach=on_gpu
        )
        averages = Averages(parameters, 0.999)

        def step() -> Tensor:
            optimiser.zero_grad(set_to_none=True)
            found = loss()
            found.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=on_gpu)
            optimiser.step()
            averages.update()
            return found.detach()

        run, start, count = captured(step, self.device), time.monotonic(), 0
        while (done := (time.monotonic() - start) / seconds) < 1:
            factor = min(1, (count + 1) / 100) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * done)))
            rate.fill_(learning_rate * factor)
            for group in optimiser.param_groups:
                if not on_gpu:
                    group["lr"] = learning_rate * factor
            self.rate_weight.fill_(min(1, count / 500))
            for held, new in zip(self.seen, self._next_batch(), strict=True):
                held.copy_(new)
            found, count = run(), count + 1
            if count % 500 == 1:
                print(f"{name}: {count} steps, {time.monotonic() - start:.0f} s, loss {float(found):.4f}", flush=True)
        averages.apply()
        print(f"{name}: {count} steps in {time.monotonic() - start:.0f} s")

    def fit_quantiles(self) -> None:
        """The quantiles that the coder's tables begin and end at, for the density as it has become."""
        bottleneck = self.lcm.entropy_bottleneck
        for learning_rate in (0.3, 0.03, 0.003):
            optimiser = torch.optim.Adam([bottleneck.quantiles], lr=learning_rate)
            for _ in range(700):
                optimiser.zero_grad()
                bottleneck.quantile_loss().backward()
                optimiser.step()

    def model(self) -> MagcModel:
        """The model with latents of standard deviation 1, as a denoiser wants them; its pictures are the same."""
        with torch.no_grad():
            spread = torch.cat([self.autoencoder.encode(self.ground.batch()[0]).flatten() for _ in range(4)]).std()
            factor = 1 / float(spread)
            first, tail = self.lcm.analysis.stages[0][0], self.lcm.synthesis.tail
            first.weight.div_(factor)
            tail.weight.mul_(factor)
            tail.bias.mul_(factor)
        config = replace(self.config, autoencoder=replace(self.config.autoencoder, scaling_factor=factor))
        autoencoder = build_autoencoder(config)
        autoencoder.load_state_dict(self.autoencoder.state_dict())
        lcm = self.lcm.cpu().eval()
        return MagcModel(config, autoencoder.eval(), lcm, None, build_tables(lcm))


def tiny_config(ground: Ground) -> ModelConfig:
    """The tiny preset for all rates, with the dataset's classes."""
    config = PRESETS["tiny"].model
    classes = tuple(MapClass(each.id, each.name, each.color) for each in ground.classes)
    return replace(
        config,
        map=replace(config.map, classes=classes, dropout=MAP_DROPOUT),
        rate=RateConfig(mode=RateMode.GAINED, lambdas=LAMBDAS),
    )


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="datasets of compact areas")
    parser.add_argument("--pictures", type=Path, required=True, help="folder of aerial pictures without maps")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, required=True, help="model directory to write")
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    training, seconds = Training(arguments), 60 * arguments.minutes
    training.phase("autoencoder", [training.autoencoder], training.autoencoder_loss, AUTOENCODER_SHARE * seconds, 2e-3)
    both: list[nn.Module] = [training.autoencoder, training.lcm]
    training.phase("codec", both, training.codec_loss, (1 - AUTOENCODER_SHARE) * seconds, 1.2e-3)
    training.fit_quantiles()
    training.model().save_pretrained(arguments.out)
    print(f"{arguments.out}: the model; `magc doctor --model {arguments.out}` checks it")


if __name__ == "__main__":
    main()
