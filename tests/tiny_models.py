"""Whole models of the smallest preset with random weights, ready to compress and to denoise."""

from __future__ import annotations

import dataclasses

import tiny_training
import torch

from magc_model.config import MapClass, Prediction, RateConfig
from magc_model.entropy.tables import build_tables
from magc_model.model import (
    MagcModel,
    build_autoencoder,
    build_denoiser,
    build_latent_compression,
    build_realistic_decoder,
)

CLASSES = tuple(MapClass(n, f"class {n}", (40 * n, 0, 0)) for n in range(4))


def _randomise(network: torch.nn.Module | None, std: float) -> None:
    """Away from the zero start, so that the map counts."""
    for parameter in () if network is None else network.parameters():
        torch.nn.init.normal_(parameter, std=std)


def tiny_model(*, rate: RateConfig | None = None, classes: tuple[MapClass, ...] = CLASSES, **maps: object) -> MagcModel:
    """All parts, with tables; the map counts in each."""
    torch.manual_seed(3)
    config = dataclasses.replace(
        tiny_training.MODEL,
        map=dataclasses.replace(tiny_training.MODEL.map, classes=classes, **{"dropout": 0.1, **maps}),
        rate=rate or RateConfig(),
    )
    lcm = build_latent_compression(config).eval()
    denoiser = build_denoiser(config)
    autoencoder = build_autoencoder(config)
    _randomise(denoiser.adapter and denoiser.adapter.exits, 3.0)
    _randomise(autoencoder.map_decoder and autoencoder.map_decoder.modulations, 0.3)
    torch.nn.init.constant_(autoencoder.network.decoder.layers[-1].bias, 0.5)  # grey: an untrained one decodes to black
    return MagcModel(config, autoencoder, lcm, denoiser, build_tables(lcm)).eval()


def one_step_model(*, has_own_decoder: bool = True, **options: object) -> MagcModel:
    """The same with a one-step generator, and an image decoder for what it draws."""
    faithful = tiny_model(**options)
    denoiser = dataclasses.replace(faithful.config.denoiser, prediction=Prediction.RESIDUAL)
    config = dataclasses.replace(faithful.config, denoiser=denoiser)
    decoder = None
    if has_own_decoder:
        decoder = build_realistic_decoder(config).eval()
        _randomise(decoder.map_decoder and decoder.map_decoder.modulations, 0.3)
        torch.nn.init.constant_(decoder.network.decoder.layers[-1].bias, 0.4)
    parts = (faithful.autoencoder, faithful.latent_compression, faithful.denoiser, faithful.tables)
    return MagcModel(config, *parts, decoder).eval()
