"""CompressAI's networks: how each is made, and what its codec hands back. Everything CompressAI is asked goes here."""

import functools
import importlib
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from torch import nn

from magc_model.baselines.config import Architecture, BaselineConfig
from magc_model.errors import EvaluationError

INSTALL = "pip install --no-deps compressai pytorch-msssim torch-geometric"
"""CompressAI 1.2.8 asks for numpy below 2 and for a dozen packages; it runs with numpy 2 and these."""


class Layout(NamedTuple):
    """How the codec of an architecture hands its symbols over, for a hyper-latent of these rows and columns."""

    strings: Callable[[BaselineConfig], int]
    shape: Callable[[BaselineConfig, int, int], Any]
    """CompressAI's `shape` argument; it follows from the picture's size and is not transmitted."""


class Entry(NamedTuple):
    """One architecture."""

    build: Callable[[ModuleType, BaselineConfig], nn.Module]
    layout: Layout
    label: str


def _of_hyperprior(_: BaselineConfig, rows: int, columns: int) -> tuple[int, int]:
    return (rows, columns)


def _of_checkerboard(config: BaselineConfig, rows: int, columns: int) -> dict[str, Any]:
    return {"y": (config.symbol_channels, 4 * rows, 4 * columns), "hyper": (rows, columns)}


def _of_groups(config: BaselineConfig, rows: int, columns: int) -> dict[str, Any]:
    return {"y": [(each, 4 * rows, 4 * columns) for each in config.groups], "hyper": (rows, columns)}


_HYPERPRIOR = Layout(lambda _: 2, _of_hyperprior)

CODECS: dict[Architecture, Entry] = {
    Architecture.BMSHJ2018: Entry(
        lambda models, config: models.ScaleHyperprior(config.channels, config.symbol_channels),
        _HYPERPRIOR,
        "Scale hyperprior",
    ),
    Architecture.MBT2018_MEAN: Entry(
        lambda models, config: models.MeanScaleHyperprior(config.channels, config.symbol_channels),
        _HYPERPRIOR,
        "Mean-scale hyperprior",
    ),
    Architecture.MBT2018: Entry(
        lambda models, config: models.JointAutoregressiveHierarchicalPriors(config.channels, config.symbol_channels),
        _HYPERPRIOR,
        "Joint hyperprior",
    ),
    Architecture.CHENG2020: Entry(
        lambda models, config: models.Cheng2020Attention(config.channels), _HYPERPRIOR, "Cheng 2020"
    ),
    Architecture.CHENG2020_CHECKERBOARD: Entry(
        lambda models, config: models.Cheng2020AnchorCheckerboard(config.channels),
        Layout(lambda _: 3, _of_checkerboard),
        "Cheng 2020 checkerboard",
    ),
    Architecture.ELIC: Entry(
        lambda models, config: models.Elic2022Chandelier(
            config.channels, config.symbol_channels, groups=list(config.groups)
        ),
        Layout(lambda config: 2 * len(config.groups) + 1, _of_groups),
        "ELIC",
    ),
}
"""Strings: one of symbols (a checkerboard's are two, for each of ELIC's groups) and one of hyper-symbols."""


@functools.cache
def compressai() -> ModuleType:
    """CompressAI's models.

    Raises:
        EvaluationError: it, or what it needs, is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it imports was written for older versions of torch
            return importlib.import_module("compressai.models")
    except ImportError as error:
        raise EvaluationError(
            f"the learned baselines are CompressAI's, which cannot be imported here ({error}): {INSTALL}"
        ) from None


def compressai_version() -> str:
    """What is installed, for the record."""
    compressai()
    return str(importlib.import_module("compressai").__version__)


def build_body(config: BaselineConfig) -> nn.Module:
    """A freshly initialised network of a config, with its own decoder.

    Raises:
        EvaluationError: CompressAI is not installed.
    """
    return CODECS[config.architecture].build(compressai(), config)


def label(config: BaselineConfig) -> str:
    """What tables call a baseline: `ELIC`, `HiFiC + map`."""
    name = {
        "mse": CODECS[config.architecture].label,
        "hific": "HiFiC",
        "ms-illm": "MS-ILLM",
    }[config.objective]
    return f"{name} + map" if config.map.is_used else name
