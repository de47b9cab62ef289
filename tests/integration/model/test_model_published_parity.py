"""The published computation and ours on the same pseudo-random weights: every array of the reference within 1e-4.

`tests/golden/published_lcm_*` are the part of the reference that is small enough to live here; the rest of it
(`../shared/facts`) covers the semantic adapter and the UNet.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from magc_model.convert import _NOT_WEIGHTS, published_config, published_names
from magc_model.model import build_latent_compression, stored_tensors, unfilled_model
from magc_model.nets.conditional_diffusion import ConditionalDenoiser

GOLDEN = Path(__file__).parents[2] / "golden"
FACTS = Path(__file__).parents[4] / "shared" / "facts"
SEED = 20260101
CONFIG = published_config((), 0.39)
NEVER_RUN = ("control_model.body.7.", "control_model.body.8.")
"""What the published adapter's indexing leaves out; a third of its weights."""


class Row(NamedTuple):
    """A key of the published checkpoint; `number` seeds its weights."""

    number: int
    key: str
    shape: tuple[int, ...]


class Inputs(NamedTuple):
    latent: Tensor
    planes: Tensor
    noisy: Tensor
    text: Tensor
    guide: Tensor


def read_rows(path: Path) -> list[Row]:
    rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    return [
        Row(int(number), key, tuple(map(int, shape.split("x"))) if shape != "scalar" else ())
        for number, key, shape in (row if len(row) == 3 else (index, *row) for index, row in enumerate(rows))
    ]


@functools.cache
def room() -> np.ndarray:
    """Memory to draw the largest weights in: fetching it anew for each takes longer than drawing."""
    return np.empty(1 << 25)


def drawn(row: Row) -> Tensor:
    """The weights of a row, by the recipe of the reference; no numbers for what never runs."""
    if row.key.startswith(NEVER_RUN):
        return torch.full(row.shape, float("nan"))
    values = room()[: math.prod(row.shape)].reshape(row.shape)
    np.random.default_rng([SEED, row.number]).standard_normal(out=values)
    if row.key.endswith("running_mean"):
        values *= 0.1
    elif row.key.endswith("running_var"):
        np.abs(values, out=values)
        values += 0.5
    elif row.key.endswith(("bias", ".b")):
        values *= 0.02
    elif sum(each > 1 for each in row.shape) <= 1:
        values *= 0.05
        values += 1
    else:
        values /= np.sqrt(np.prod(row.shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


def inputs() -> Inputs:
    random = np.random.default_rng([SEED, 1_000_000])
    latent = random.standard_normal((1, 4, 32, 32))
    planes = random.random((1, 3, 256, 256))
    rest = [random.standard_normal(shape) for shape in ((1, 4, 32, 32), (1, 77, 1024), (1, 4, 32, 32))]
    return Inputs(*(torch.from_numpy(each.astype(np.float32)) for each in (latent, planes, *rest)))


def own_weights(rows: list[Row], part: str) -> dict[str, Tensor]:
    """Drawn weights of a part of the model under our names; what the recipe leaves at its default is not there."""
    own = {published: name for name, published in published_names(unfilled_model(CONFIG)).items()}
    return {
        own[row.key].removeprefix(part): drawn(row)
        for row in rows
        if row.key in own and own[row.key].startswith(part)
        if not any(each in row.key for each in ("entropy_bottleneck", "gaussian_conditional", "num_batches_tracked"))
    }


def fill(module: torch.nn.Module, weights: dict[str, Tensor], defaults: tuple[str, ...]) -> None:
    missing, unexpected = module.load_state_dict(weights, strict=False, assign=True)
    assert not unexpected
    assert all(any(each in name for each in defaults) for name in missing), missing
    module.eval().requires_grad_(False)


def relative_error(found: Tensor, reference: np.ndarray) -> float:
    expected = torch.from_numpy(reference)
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module")
def published_rows() -> list[Row]:
    path = FACTS / "published_checkpoint_keys.tsv"
    if not path.is_file():
        pytest.skip("needs ../shared/facts beside the repository, which is absent here")
    return read_rows(path)


@pytest.fixture(scope="module")
def reference(published_rows: list[Row]) -> dict[str, np.ndarray]:
    with np.load(FACTS / "published_reference.npz") as file:
        return dict(file)


@torch.inference_mode()
def test_latent_compression_equals_the_published_one() -> None:
    lcm = build_latent_compression(CONFIG)
    rows = read_rows(GOLDEN / "published_lcm_keys.tsv")
    fill(lcm, own_weights(rows, "latent_compression."), ("entropy_bottleneck.", "num_batches_tracked"))
    given = inputs()

    pyramid = lcm.map_pyramid(given.planes)
    symbols, hyper_symbols = lcm.analyse(given.latent, pyramid)
    assert not lcm.entropy_bottleneck.medians().any()
    hyper = lcm.hyper_synthesis(hyper_symbols.round())
    contexts = lcm.contexts(hyper_symbols.round(), None)
    means, scales, decoded = [], [], []
    for index, piece in enumerate(symbols.chunk(8, dim=1)):
        estimate = lcm.estimate(index, contexts, decoded)
        means.append(estimate.means)
        scales.append(estimate.scales)
        decoded.append((piece - estimate.means).round() + estimate.means)
    symbols_hat = torch.cat(decoded, dim=1)

    found = {
        "lcm_y": symbols,
        "lcm_z": hyper_symbols,
        "lcm_hyper": hyper,
        "lcm_means": torch.cat(means, dim=1),
        "lcm_scales": torch.cat(scales, dim=1),
        "lcm_y_hat": symbols_hat,
        "lcm_z_hat_latent": lcm.synthesise(symbols_hat, pyramid),
    }
    with np.load(GOLDEN / "published_lcm_reference.npz") as file:
        assert set(file) == set(found)
        errors = {name: relative_error(found[name], file[name]) for name in file}
    assert max(errors.values()) < 1e-4, errors
    # The model's own forward pass is the same computation.
    assert relative_error(lcm(given.latent, given.planes).latent_hat, found["lcm_z_hat_latent"].numpy()) < 1e-6


def test_golden_is_the_reference(published_rows: list[Row], reference: dict[str, np.ndarray]) -> None:
    rows = read_rows(GOLDEN / "published_lcm_keys.tsv")
    assert rows == [row for row in published_rows if row.key.startswith("hyper_encoder.")]
    with np.load(GOLDEN / "published_lcm_reference.npz") as file:
        assert set(file) == {name for name in reference if name.startswith("lcm_")}
        assert all(np.array_equal(file[name], reference[name]) for name in file)


def test_every_published_weight_has_its_place(published_rows: list[Row]) -> None:
    model = unfilled_model(CONFIG)
    shapes = {name: tuple(each.shape) for name, each in stored_tensors(model).items()}
    names = published_names(model)
    assert len(set(names.values())) == len(names)
    weights = {row.key: row.shape for row in published_rows if not _NOT_WEIGHTS.fullmatch(row.key)}
    assert set(names.values()) == set(weights)
    different = {own for own, published in names.items() if shapes[own] != weights[published]}
    # The autoencoder's attention: linear layers here, 1x1 convolutions there.
    assert len(different) == 8
    assert all(shapes[own] == weights[names[own]][:2] for own in different)


@pytest.fixture(scope="module")
def denoiser() -> ConditionalDenoiser:
    """The published denoiser without its weights."""
    denoiser = unfilled_model(CONFIG).denoiser
    assert denoiser is not None
    return denoiser


@torch.inference_mode()
def test_semantic_adapter_equals_the_published_one(
    denoiser: ConditionalDenoiser, published_rows: list[Row], reference: dict[str, np.ndarray]
) -> None:
    adapter = denoiser.adapter
    assert adapter is not None
    fill(adapter, own_weights(published_rows, "denoiser.adapter."), ())
    given = inputs()
    features = adapter(adapter.encode_map(given.planes), given.noisy)
    errors = [
        relative_error(feature[:, : len(expected[0])] / 0.18215, expected)
        for feature, expected in zip(
            features,
            [*(reference[f"sam_{scale}_first_channels"] for scale in range(3)), reference["sam_3"]],
            strict=True,
        )
    ]
    assert max(errors) < 1e-4, errors


@pytest.mark.slow
@torch.inference_mode()
def test_unet_equals_the_published_one(
    denoiser: ConditionalDenoiser, published_rows: list[Row], reference: dict[str, np.ndarray]
) -> None:
    given = inputs()
    fill(denoiser, {**own_weights(published_rows, "denoiser."), "text": given.text}, ())
    timesteps = torch.tensor([321])
    told = denoiser(given.noisy, timesteps, given.guide, denoiser.encode_map(given.planes))
    assert relative_error(told, reference["unet_eps"]) < 1e-4

    with torch.device("meta"):
        without_map = ConditionalDenoiser(CONFIG.denoiser, None, CONFIG.quirks)
    weights = {name: each for name, each in denoiser.state_dict().items() if not name.startswith("adapter.")}
    fill(without_map, weights, ())
    assert (
        relative_error(without_map(given.noisy, timesteps, given.guide, None), reference["unet_eps_without_map"]) < 1e-4
    )
