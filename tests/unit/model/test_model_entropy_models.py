"""The likelihoods: equal to CompressAI's, and probabilities in their own right."""

from pathlib import Path

import numpy as np
import pytest
import torch

from magc_model.nets.entropy_models import (
    LIKELIHOOD_BOUND,
    EntropyBottleneck,
    gaussian_likelihood,
    lower_bound,
    with_noise,
)

CHANNELS = 5


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(1)


@pytest.fixture(scope="module")
def compressai() -> dict[str, torch.Tensor]:
    """What CompressAI 1.2.8 says (tests/golden/make_compressai_likelihoods.py)."""
    golden = Path(__file__).parents[2] / "golden" / "compressai_likelihoods.npz"
    with np.load(golden, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _random_bottleneck() -> EntropyBottleneck:
    bottleneck = EntropyBottleneck(CHANNELS)
    for parameter in bottleneck.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return bottleneck


def test_the_learned_density_is_compressais(compressai: dict[str, torch.Tensor]) -> None:
    bottleneck = EntropyBottleneck(CHANNELS)
    weights = {name.removeprefix("weight."): value for name, value in compressai.items() if name.startswith("weight.")}
    bottleneck.load_state_dict(weights)
    medians = bottleneck.medians()
    torch.testing.assert_close((compressai["values"] - medians).round() + medians, compressai["rounded"])
    likelihood = bottleneck.likelihood(compressai["rounded"])
    torch.testing.assert_close(likelihood, compressai["likelihood"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(bottleneck.quantile_loss(), compressai["quantile_loss"].squeeze())


def test_an_untrained_density_is_compressais(compressai: dict[str, torch.Tensor]) -> None:
    """Same start: every matrix, factor and quantile; biases are random in the same range."""
    for name, value in EntropyBottleneck(CHANNELS).named_parameters():
        assert value.shape == compressai[f"start.{name}"].shape
        if name.startswith("biases"):
            assert value.abs().max() <= 0.5
        else:
            torch.testing.assert_close(value.detach(), compressai[f"start.{name}"])


def test_the_gaussian_is_compressais(compressai: dict[str, torch.Tensor]) -> None:
    means, scales = compressai["means"], compressai["scales"]
    likelihood = gaussian_likelihood(compressai["gaussian_rounded"], means, scales)
    torch.testing.assert_close(likelihood, compressai["gaussian_likelihood"])


def test_probabilities_of_all_cells_add_up_to_one() -> None:
    cells = torch.arange(-400.0, 401).reshape(1, 1, 1, -1).repeat(1, CHANNELS, 1, 1)
    density = _random_bottleneck().likelihood(cells).sum(-1)
    torch.testing.assert_close(density, torch.ones_like(density), rtol=1e-4, atol=1e-5)
    gaussian = gaussian_likelihood(cells, torch.full_like(cells, 0.3), torch.full_like(cells, 7.0)).sum(-1)
    torch.testing.assert_close(gaussian, torch.ones_like(gaussian), rtol=1e-4, atol=1e-5)


def test_nothing_is_impossible() -> None:
    far = torch.full((1, CHANNELS, 1, 1), 1e4)
    gaussian = gaussian_likelihood(far, torch.zeros_like(far), torch.ones_like(far))
    for likelihood in (gaussian, EntropyBottleneck(CHANNELS).likelihood(far)):
        torch.testing.assert_close(likelihood, torch.full_like(far, LIKELIHOOD_BOUND))


def test_the_middle_of_a_symmetric_density_is_its_most_probable_value() -> None:
    """The logits of both ends add up to exactly 0 there."""
    bottleneck = EntropyBottleneck(CHANNELS)
    for bias in bottleneck.biases:
        torch.nn.init.zeros_(bias)
    cells = torch.arange(-3.0, 4).reshape(1, 1, 1, -1).repeat(1, CHANNELS, 1, 1)
    likelihood = bottleneck.likelihood(cells)
    assert (likelihood.argmax(dim=3) == 3).all()
    torch.testing.assert_close(likelihood, likelihood.flip(3))


def test_half_precision_does_not_reach_the_densities() -> None:
    bottleneck = _random_bottleneck()
    values = torch.randn(2, CHANNELS, 3, 3).bfloat16()
    likelihood, loss = bottleneck.likelihood(values.float()), bottleneck.quantile_loss()
    gaussian = gaussian_likelihood(*(each.float() for each in (values, values / 2, values.abs() + 1)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(bottleneck.likelihood(values), likelihood)
        assert torch.equal(bottleneck.likelihood(values.float()), likelihood)
        assert torch.equal(bottleneck.quantile_loss(), loss)
        assert gaussian_likelihood(values, values / 2, values.abs() + 1).dtype is torch.float32
    assert gaussian.dtype is torch.float32
    assert bottleneck.double().likelihood(values.double()).dtype is torch.float64


def test_quantiles_find_their_places_and_leave_the_density_alone() -> None:
    bottleneck = _random_bottleneck()
    optimiser = torch.optim.Adam([bottleneck.quantiles], 0.2)
    for _ in range(400):
        optimiser.zero_grad()
        bottleneck.quantile_loss().backward()
        optimiser.step()
    assert bottleneck.matrices[0].grad is None
    medians = torch.sigmoid(bottleneck.cumulative_logits(bottleneck.quantiles)[:, 0, 1])
    torch.testing.assert_close(medians, torch.full_like(medians, 0.5), atol=0.05, rtol=0)


def test_a_lower_bound_can_be_left_upwards_only() -> None:
    values = torch.tensor([0.0, 0.0, 2.0], requires_grad=True)
    bounded = lower_bound(values, 1.0)
    assert bounded.tolist() == [1.0, 1.0, 2.0]
    (bounded * torch.tensor([-1.0, 1.0, 1.0])).sum().backward()
    assert values.grad.tolist() == [-1.0, 0.0, 1.0]


def test_noise_is_uniform_in_the_unit_cell() -> None:
    noise = with_noise(torch.zeros(1, 1, 100, 100))
    assert -0.5 <= noise.min() < -0.49
    assert 0.49 < noise.max() <= 0.5
    assert abs(noise.mean().item()) < 0.02
