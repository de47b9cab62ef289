"""The likelihoods: equal to CompressAI's, and probabilities in their own right."""

import warnings

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
def compressai() -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("compressai.entropy_models", reason="compressai, the reference, is not installed")


def _random_bottleneck() -> EntropyBottleneck:
    bottleneck = EntropyBottleneck(CHANNELS)
    for parameter in bottleneck.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return bottleneck


def test_the_learned_density_is_compressais(compressai: object) -> None:
    ours = _random_bottleneck()
    theirs = compressai.EntropyBottleneck(CHANNELS).eval()
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert unexpected == []
    assert all("quantized" in name or name.startswith(("_", "target", "likelihood")) for name in missing)
    values = 4 * torch.randn(2, CHANNELS, 6, 3)
    rounded, likelihood = theirs(values)
    medians = ours.medians()
    torch.testing.assert_close((values - medians).round() + medians, rounded)
    torch.testing.assert_close(ours.likelihood(rounded), likelihood, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.quantile_loss(), theirs.loss())


def test_an_untrained_density_is_compressais(compressai: object) -> None:
    """Same start: every matrix, factor and quantile; biases are random in the same range."""
    ours, theirs = EntropyBottleneck(CHANNELS).state_dict(), compressai.EntropyBottleneck(CHANNELS).state_dict()
    for name, value in ours.items():
        assert value.shape == theirs[name].shape
        if name.startswith("biases"):
            assert value.abs().max() <= 0.5
        else:
            torch.testing.assert_close(value, theirs[name])


def test_the_gaussian_is_compressais(compressai: object) -> None:
    values, means = 3 * torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5)
    scales = torch.rand(2, 4, 5, 5) * 3 - 0.2
    theirs = compressai.GaussianConditional(None, scale_bound=0.11).eval()
    rounded, likelihood = theirs(values, scales, means)
    torch.testing.assert_close(gaussian_likelihood(rounded, means, scales), likelihood)


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
