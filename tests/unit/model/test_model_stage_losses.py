"""What stages 1 and 2 minimise."""

import dataclasses

import pytest
import tiny_training
import torch

from magc_model.config import MapClass
from magc_model.data import Batch
from magc_model.model import MagcModel, build_autoencoder, build_denoiser, build_latent_compression
from magc_model.train.stages import CompressionNetwork, DiffusionNetwork

CLASSES = tuple(MapClass(number, str(number), (number, 0, 0)) for number in range(3))
CONFIG = dataclasses.replace(tiny_training.MODEL, map=dataclasses.replace(tiny_training.MODEL.map, classes=CLASSES))


@pytest.fixture(scope="module")
def model() -> MagcModel:
    torch.manual_seed(0)
    return MagcModel(CONFIG, build_autoencoder(CONFIG), build_latent_compression(CONFIG), build_denoiser(CONFIG))


def batch(step: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 3, (2, 64, 64), generator=generator, dtype=torch.uint8)
    return Batch(None, torch.randn(2, 4, 8, 8, generator=generator), ids, torch.ones(2, dtype=torch.bool), step)


@pytest.mark.parametrize(
    ("warmup_steps", "step", "weight"), [(0, 0, 1), (8, 0, 0), (8, 2, 0.25), (8, 8, 1), (8, 100, 1)]
)
def test_the_rate_comes_in_slowly(model: MagcModel, warmup_steps: int, step: int, weight: float) -> None:
    losses = CompressionNetwork(model, CONFIG.map, warmup_steps).eval()(batch(step))
    rate = losses.figures["symbol_bpp"] + losses.figures["hyper_bpp"]
    assert rate > 0.01
    distortion = CONFIG.rate.lambdas[0] * losses.figures["latent_mse"]
    assert float(losses.total.detach()) == pytest.approx(float(distortion + weight * rate), rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_the_guide_counts_as_much_as_it_is_told_to(model: MagcModel, weight: float) -> None:
    torch.manual_seed(3)
    network = DiffusionNetwork(model, CONFIG.map, weight).eval()
    losses = network(batch(0))
    noise_mse, guide_mse = losses.figures["noise_mse"], losses.figures["guide_mse"]
    assert float(losses.total.detach()) == pytest.approx(float(noise_mse + weight * guide_mse), rel=1e-5)
    guide = network.model.latent_compression(batch(0).latents, network.planes(batch(0)), None).latent_hat
    assert float(guide_mse) == pytest.approx(float((guide - batch(0).latents).square().mean()), rel=1e-5)
