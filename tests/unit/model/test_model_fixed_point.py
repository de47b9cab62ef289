"""Exact networks: equal to slow integer arithmetic, near the float networks, the same however they are run."""

import copy
import dataclasses
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from fixed_point_oracle import Activation, gelu_values, run
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from magc_model.config import PRESETS, MapClass
from magc_model.entropy import fixed_point
from magc_model.entropy.fixed_point import (
    BOUND,
    FixedPointNetwork,
    Grid,
    convolutions,
    gelu_table,
    unfold,
)
from magc_model.errors import ModelError
from magc_model.nets.blocks import BasicBlock, ChannelNorm, Downsample, ResBlock, Upsample
from magc_model.nets.latent_compression import LatentCompression

GELU = gelu_table()

LAYERS = {
    "conv3x3": lambda: [nn.Conv2d(5, 7, 3, padding=1)],
    "conv3x3/2": lambda: [Downsample(5, 7)],
    "conv1x1": lambda: [nn.Conv2d(5, 7, 1)],
    "conv without bias": lambda: [nn.Conv2d(5, 7, 3, padding=1, bias=False)],
    "gelu": lambda: [nn.Conv2d(5, 7, 3, padding=1), nn.GELU(), nn.Conv2d(7, 3, 3, padding=1)],
    "leaky": lambda: [nn.LeakyReLU(0.01), nn.LeakyReLU(0.3)],
    "norm": lambda: [ChannelNorm(5)],
    "basic block": lambda: [BasicBlock(5, 12)],
    "residual block": lambda: [ResBlock(5, 5)],
    "residual block of other width": lambda: [ResBlock(5, 9)],
    "upsample": lambda: [Upsample(5)],
    "all": lambda: [
        nn.Conv2d(5, 8, 3, padding=1),
        ResBlock(8, 8),
        Upsample(8),
        nn.GELU(),
        Downsample(8, 6),
        ResBlock(6, 4),
    ],
}


def _random_network(kind: str, seed: int, size: float = 1.0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(*LAYERS[kind]())
        for parameter in network.parameters():
            parameter.data = size * (parameter.data + 0.2 * torch.randn_like(parameter))
    return network


def _random_integers(shape: tuple[int, ...], seed: int, largest: int = 2**16) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-largest, largest + 1, shape, generator=generator).double()


def _exponents(network: nn.Module, exponent: int = 14) -> list[int]:
    return [exponent] * len(convolutions(network))


def _expected(network: nn.Module, integers: Tensor, exponent: int, exponents: list[int]) -> Activation:
    return run(network, Activation(integers.long().numpy(), exponent), iter(exponents))


def _fast(network: nn.Module, exponent: int, exponents: list[int]) -> FixedPointNetwork:
    return FixedPointNetwork([network], Grid([exponent], BOUND), [exponents], GELU)


@pytest.mark.parametrize("kind", LAYERS)
def test_each_layer_is_the_slow_integer_arithmetic(kind: str) -> None:
    network = _random_network(kind, 3)
    integers = _random_integers((2, 6, 4, 5), 4)
    exact = _fast(network, 14, _exponents(network))
    expected = _expected(network, integers, 14, _exponents(network))
    assert np.array_equal(exact(integers.unsqueeze(0))[0].numpy(), expected.integers)
    assert exact.grid.exponents == [expected.exponent]


@pytest.mark.parametrize("kind", LAYERS)
def test_each_layer_is_near_the_float_network(kind: str) -> None:
    network = _random_network(kind, 5)
    integers = _random_integers((2, 6, 4, 5), 6)
    exact = _fast(network, 14, _exponents(network))
    with torch.no_grad():
        expected = copy.deepcopy(network).double()(integers.movedim(3, 1) / 2**14).movedim(1, 3)
    found = exact(integers.unsqueeze(0))[0] / 2.0 ** exact.grid.exponents[0]
    # Each rounding is off by 2^-15 at most; the layers that follow pass it on.
    assert (found - expected).abs().max() < 2e-3
    assert (found - expected).square().mean().sqrt() < 2e-4


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(LAYERS)),
    seed=st.integers(0, 2**20),
    size=st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 300.0, 1e6, 1e18]),
    largest=st.sampled_from([0, 1, 1000, BOUND]),
    exponent=st.integers(-20, 14),
    data=st.data(),
)
def test_any_weights_and_inputs_are_exact(
    kind: str, seed: int, size: float, largest: int, exponent: int, data: st.DataObject
) -> None:
    network = _random_network(kind, seed, size)
    count = len(convolutions(network))
    exponents = data.draw(st.lists(st.integers(-30, 14), min_size=count, max_size=count))
    integers = _random_integers((2, 4, 2, 5), seed, largest)
    found = _fast(network, exponent, exponents)(integers.unsqueeze(0))[0]
    assert np.array_equal(found.numpy(), _expected(network, integers, exponent, exponents).integers)
    assert found.abs().max() <= BOUND


@pytest.mark.parametrize("sign", [1, -1])
def test_sums_of_residual_blocks_stay_in_bounds(sign: int) -> None:
    network = nn.Sequential(ResBlock(5, 5))
    with torch.no_grad():
        network[0].second[1].bias.fill_(sign * 200.0)  # the other way it is leaky: 2 are left
    integers = torch.full((1, 3, 3, 5), sign * BOUND, dtype=torch.float64)
    found = _fast(network, 14, _exponents(network))(integers.unsqueeze(0))[0]
    assert found.abs().max() == BOUND
    assert np.array_equal(found.numpy(), _expected(network, integers, 14, _exponents(network)).integers)


def _entropy_networks(name: str) -> list[tuple[nn.Sequential, int]]:
    """Hyper-synthesis, the first and the last context networks, the map's network if any; with their input channels."""
    model = PRESETS[name].model
    maps = dataclasses.replace(model.map, classes=tuple(MapClass(n, f"class {n}", (n, n, n)) for n in range(5)))
    torch.manual_seed(2)
    lcm = LatentCompression(model.latent_compression, maps, model.rate, model.quirks)
    networks = [lcm.hyper_synthesis, lcm.mean_networks[0], lcm.scale_networks[-1], lcm.entropy_map]
    return [(each, convolutions(each)[0].in_channels) for each in networks if each is not None]


@pytest.mark.parametrize("name", PRESETS)
def test_the_entropy_networks_are_the_slow_integer_arithmetic(name: str) -> None:
    for network, channels in _entropy_networks(name):
        integers = _random_integers((1, 2, 2, channels), 7)
        found = _fast(network, 14, _exponents(network))(integers.unsqueeze(0))[0]
        assert np.array_equal(found.numpy(), _expected(network, integers, 14, _exponents(network)).integers)
        assert found.unique().numel() > 10


@pytest.fixture(scope="module")
def paper() -> tuple[FixedPointNetwork, Tensor, Tensor]:
    """The paper's hyper-synthesis, inputs and what it makes of them."""
    network, channels = _entropy_networks("paper")[0]
    exact = _fast(network, 14, _exponents(network))
    integers = _random_integers((1, 8, 4, 4, channels), 8, 2**18)
    return exact, integers, exact(integers)


def test_nothing_about_how_it_runs_matters(paper: tuple[FixedPointNetwork, Tensor, Tensor]) -> None:
    exact, integers, expected = paper
    one_by_one = torch.cat([exact(each) for each in integers.split(1, dim=1)], dim=1)
    assert torch.equal(one_by_one, expected)
    strided = integers.movedim(4, 2).contiguous().movedim(2, 4)
    assert not strided.is_contiguous()
    assert torch.equal(exact(strided), expected)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert torch.equal(exact(integers), expected)
    finally:
        torch.set_num_threads(threads)
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(exact(integers), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(exact(integers), expected)
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.equal(exact(integers), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_strips_of_a_large_picture_change_nothing(
    paper: tuple[FixedPointNetwork, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, integers, expected = paper
    monkeypatch.setattr(fixed_point, "_WINDOWS_AT_ONCE", 20_000)
    assert torch.equal(exact(integers), expected)
    down = nn.Sequential(Downsample(5, 7))
    small = _random_integers((2, 6, 6, 5), 1)
    monkeypatch.setattr(fixed_point, "_WINDOWS_AT_ONCE", 1)
    found = _fast(down, 14, [14])(small.unsqueeze(0))[0]
    assert np.array_equal(found.numpy(), _expected(down, small, 14, [14]).integers)


def test_the_order_of_summation_cannot_matter() -> None:
    """The same network with its channels in other orders adds the same numbers in other orders."""
    torch.manual_seed(9)
    first, second = nn.Conv2d(64, 96, 3, padding=1), nn.Conv2d(96, 4, 3, padding=1)
    integers = _random_integers((1, 3, 5, 5, 64), 10, BOUND)
    expected = _fast(nn.Sequential(first, nn.GELU(), second), 14, [14, 14])(integers)
    for order in (torch.arange(63, -1, -1), torch.randperm(64)):
        hidden = torch.randperm(96)
        with torch.no_grad():
            permuted = copy.deepcopy(first), copy.deepcopy(second)
            permuted[0].weight.copy_(first.weight[hidden][:, order])
            permuted[0].bias.copy_(first.bias[hidden])
            permuted[1].weight.copy_(second.weight[:, hidden])
        network = nn.Sequential(permuted[0], nn.GELU(), permuted[1])
        assert torch.equal(_fast(network, 14, [14, 14])(integers[..., order]), expected)


def test_groups_are_their_members_side_by_side() -> None:
    networks = [_random_network("all", seed, size) for seed, size in ((1, 1.0), (2, 40.0))]
    exponents = [_exponents(networks[0], 14), _exponents(networks[1], 5)]
    integers = _random_integers((2, 3, 4, 4, 5), 3)
    both = FixedPointNetwork(networks, Grid([12, 7], BOUND), exponents, GELU)
    for group, exponent in enumerate((12, 7)):
        alone = _fast(networks[group], exponent, exponents[group])
        assert torch.equal(both(integers)[group], alone(integers[group : group + 1])[0])
        assert both.grid.exponents[group] == alone.grid.exponents[0]


def test_inputs_unfolded_part_by_part_are_the_whole() -> None:
    network = _random_network("gelu", 4)
    integers = _random_integers((1, 2, 4, 6, 5), 5)
    expected = _fast(network, 14, _exponents(network))(integers)
    exact = FixedPointNetwork([network], Grid([14], BOUND), [_exponents(network)], GELU, parts=[2, 3])
    windows = torch.cat([unfold(each, 3, padding=1) for each in integers.split([2, 3], dim=4)], dim=2)
    assert torch.equal(exact.from_windows(windows, (2, 4, 6)), expected)
    assert torch.equal(exact(integers), expected)


def test_no_sum_can_reach_2_to_the_53() -> None:
    """The worst input for each output: every activation at its bound with the weight's sign."""
    for size, seed in itertools.product((1e-9, 1.0, 1e12), range(3)):
        layer = _random_network("conv3x3", seed, size)[0]
        exponent, weight, bias = fixed_point._quantise(layer.weight, layer.bias, BOUND, 14)
        worst = max(
            sum(int(each) for each in row.abs().flatten()) * BOUND + abs(int(offset))
            for row, offset in zip(weight, bias, strict=True)
        )
        assert worst < 2**53
        finer = (layer.weight.detach().double() * 2.0 ** (exponent + 1)).round().abs().flatten(1).sum(1).max()
        assert exponent == 24 or float(finer) * BOUND >= 2**52
        assert torch.equal(weight, weight.round())


def test_roots_are_exact_whatever_the_librarys_root_is(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = 2**50 + (torch.rand(2000, generator=generator, dtype=torch.float64) * 3 * 2**50).floor()
    roots = torch.randint(2**25, 2**26, (500,), generator=generator).double()
    numbers = torch.cat((numbers, roots.square(), roots.square() - 1, roots.square() + 1))
    library = torch.Tensor.sqrt
    for off in (1.0, 1 + 2**-52, 1 - 2**-52):
        monkeypatch.setattr(torch.Tensor, "sqrt", lambda values, off=off: library(values) * off)
        assert fixed_point._integer_root(numbers).tolist() == [math.isqrt(int(each)) for each in numbers.tolist()]


def test_quotients_are_correctly_rounded() -> None:
    """What ChannelNorm relies on: no division by way of a reciprocal."""
    generator = torch.Generator().manual_seed(0)
    numerators = torch.randint(-(2**53), 2**53, (3000,), generator=generator).double()
    denominators = torch.randint(2**25, 2**26, (3000,), generator=generator).double()
    exact = [float(Fraction(int(n), int(d))) for n, d in zip(numerators, denominators, strict=True)]
    assert (numerators / denominators).tolist() == exact


def test_the_gelu_table_is_as_exact_as_it_says() -> None:
    assert GELU.tolist() == gelu_values()
    assert GELU.numel() * GELU.element_size() < 10_000
    integers = torch.arange(-BOUND, BOUND, 7, dtype=torch.float64)
    exact = FixedPointNetwork([nn.Sequential(nn.GELU())], Grid([18], BOUND), [[]], GELU)
    found = exact(integers.reshape(1, 1, 1, 1, -1)).flatten() / 2**18
    error = (found - nn.functional.gelu(integers / 2**18)).abs().max()
    assert error < 2.0**-19 + 2e-6


def test_weights_that_cannot_be_used_are_refused() -> None:
    network = _random_network("conv3x3", 1)
    with torch.no_grad():
        network[0].weight[0, 0, 0, 0] = math.inf
    with pytest.raises(ModelError, match="no numbers"):
        _fast(network, 14, [14])
    with pytest.raises(ModelError, match="bfloat16"):
        _fast(_random_network("conv3x3", 1).bfloat16(), 14, [14])
    with pytest.raises(ModelError, match="another model"):
        _fast(_random_network("conv3x3", 1), 14, [14, 14])


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, (3, 1)),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.GELU("tanh"),
        nn.LeakyReLU(1.5),
        nn.Sigmoid(),
        ChannelNorm(4, affine=False),
        ChannelNorm(512),
    ],
)
def test_layers_without_an_exact_form_are_refused(layer: nn.Module) -> None:
    with pytest.raises(ValueError, match="no exact form|not be exact"):
        _fast(nn.Sequential(layer), 14, _exponents(layer))
