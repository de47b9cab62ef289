"""The latent compression module: sizes, shapes, gradients, rates, the map in its transforms and its entropy model."""

import dataclasses
import math

import pytest
import torch

from magc_model.config import (
    PAPER_LAMBDAS,
    PRESETS,
    LatentCompressionConfig,
    MapClass,
    MapConfig,
    MapInput,
    NormKind,
    PublishedQuirks,
    RateConfig,
    RateMode,
)
from magc_model.errors import UsageError
from magc_model.nets.latent_compression import LatentCompression, round_straight_through

CLASSES = tuple(MapClass(n, f"class {n}", (n, n, n)) for n in range(4))
SMALL = LatentCompressionConfig(
    channels=8,
    symbol_channels=6,
    slices=3,
    context_channels=(8,),
    map_channels=(4, 5, 6),
    entropy_map_channels=4,
    spade_norm=NormKind.CHANNEL,
)
FIXED = RateConfig()
GAINED = RateConfig(mode=RateMode.GAINED, lambdas=PAPER_LAMBDAS)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(1)


def _planes(batch: int = 2, side: int = 128) -> torch.Tensor:
    ids = torch.randint(0, len(CLASSES), (batch, side, side))
    return torch.nn.functional.one_hot(ids, len(CLASSES)).movedim(-1, 1).float()


def _small(rate: RateConfig = FIXED, **maps: bool) -> LatentCompression:
    return LatentCompression(SMALL, MapConfig(classes=CLASSES, **maps), rate, PublishedQuirks())


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_published_layout_has_the_published_number_of_weights() -> None:
    """Counts of the published model, part by part."""
    paper = PRESETS["paper"].model
    maps = dataclasses.replace(paper.map, input=MapInput.RGB)
    with torch.device("meta"):
        lcm = LatentCompression(
            paper.latent_compression,
            maps,
            paper.rate,
            PublishedQuirks(linear_map_encoder=True, second_spade_reads_input=True),
        )
    assert _count(lcm) == 20_209_348
    assert _count(lcm.analysis) - _count(lcm.analysis.spades) == 2_147_776
    assert _count(lcm.analysis.spades) == _count(lcm.synthesis.spades) == 4_872_192
    assert _count(lcm.synthesis) - _count(lcm.synthesis.spades) == 1_984_644
    assert (_count(lcm.hyper_analysis), _count(lcm.hyper_synthesis)) == (886_592, 878_848)
    assert _count(lcm.mean_networks) == _count(lcm.scale_networks) == 1_633_216
    assert (_count(lcm.semantic_encoder), _count(lcm.pyramid)) == (632_064, 2 * 332_352)


@pytest.mark.parametrize("rate", [RateConfig(), GAINED], ids=["fixed", "gained"])
@pytest.mark.parametrize("maps", [{}, {"in_entropy": True}, {"in_transform": False, "in_entropy": True}])
def test_every_weight_learns(rate: RateConfig, maps: dict[str, bool]) -> None:
    lcm = _small(rate, **maps)
    latent = torch.randn(2, 4, 16, 16)
    rates = torch.tensor([0.5, 4.2]) if rate is GAINED else None
    result = lcm(latent, _planes(), rates)
    bits = result.symbol_bits + result.hyper_bits
    (
        (result.latent_hat - latent).square().mean() + bits.mean() / 128**2 + lcm.entropy_bottleneck.quantile_loss()
    ).backward()
    assert result.latent_hat.shape == latent.shape
    assert bits.shape == (2,)
    silent = [name for name, weight in lcm.named_parameters() if weight.grad is None or not weight.grad.abs().sum()]
    assert silent == []


def test_symbols_are_at_a_32nd_and_hyper_symbols_at_a_64th_of_the_image() -> None:
    lcm = _small().eval()
    analysis = lcm.analyse(torch.randn(1, 4, 16, 24), lcm.map_pyramid(torch.zeros(1, 4, 128, 192)))
    assert analysis.symbols.shape == (1, 6, 4, 6)
    assert analysis.hyper_symbols.shape == (1, 6, 2, 3)


def test_bits_are_those_of_the_rounded_symbols() -> None:
    """Out of training the bits are the Gaussian's probability of each rounded residual, added by hand."""
    lcm = _small().eval()
    planes, latent = _planes(), torch.randn(2, 4, 16, 16) * 3
    result = lcm(latent, planes)
    analysis = lcm.analyse(latent, lcm.map_pyramid(planes))
    medians = lcm.entropy_bottleneck.medians()
    contexts = lcm.contexts((analysis.hyper_symbols - medians).round() + medians, planes)
    decoded, bits = [], torch.zeros(2)
    for index, piece in enumerate(analysis.symbols.chunk(3, dim=1)):
        means, scales = lcm.estimate(index, contexts, decoded)
        residual = (piece - means).round()
        normal = torch.distributions.Normal(0.0, scales.clamp(min=0.11))
        bits -= (normal.cdf(residual + 0.5) - normal.cdf(residual - 0.5)).clamp(min=1e-9).log2().flatten(1).sum(1)
        decoded.append(residual + means)
    torch.testing.assert_close(result.symbol_bits, bits, rtol=1e-3, atol=1e-2)
    rebuilt = lcm.synthesise(torch.cat(decoded, 1), lcm.map_pyramid(planes))
    torch.testing.assert_close(result.latent_hat, rebuilt)


def test_a_slice_depends_on_the_slices_before_it_alone() -> None:
    lcm = _small().eval()
    contexts = lcm.contexts(torch.randn(1, 6, 2, 2), None)
    previous = torch.randn(1, 2, 4, 4)
    first = lcm.estimate(0, contexts, [])
    second, other = (lcm.estimate(1, contexts, [each]) for each in (previous, previous + 1))
    assert first.means.shape == second.means.shape == (1, 2, 4, 4)
    assert not torch.equal(second.means, other.means)


def test_the_map_reaches_the_latent_and_the_entropy_model() -> None:
    latent = torch.randn(1, 4, 16, 16)
    for maps in ({"in_transform": True}, {"in_transform": False, "in_entropy": True}):
        lcm = _small(**maps).eval()
        one, other = lcm(latent, _planes(1)), lcm(latent, torch.zeros(1, 4, 128, 128))
        assert one.symbol_bits != other.symbol_bits
        assert torch.equal(one.latent_hat, other.latent_hat) is False


def test_without_a_map_planes_are_not_needed() -> None:
    lcm = _small(in_transform=False)
    assert lcm(torch.randn(1, 4, 8, 8), None).latent_hat.shape == (1, 4, 8, 8)
    with pytest.raises(UsageError, match="read a map"):
        _small()(torch.randn(1, 4, 8, 8), None)


def test_a_gain_is_log_linear_between_two_lambdas() -> None:
    lcm = _small(GAINED)
    gains = lcm._gain("log_gains", torch.tensor([1.0, 1.5, 2.0]))
    torch.testing.assert_close(gains[1], (gains[0] * gains[2]).sqrt())
    torch.testing.assert_close(gains[0, 0, 0, 0].item() ** 2, math.exp(lcm.log_gains[1, 0].item() * 2))
    low, high = lcm._gain("log_gains", torch.tensor([-3.0, 9.0]))
    torch.testing.assert_close(torch.stack((low, high))[..., 0, 0], lcm.log_gains[[0, -1]].exp())


def test_a_higher_rate_costs_more_bits() -> None:
    lcm = _small(GAINED).eval()
    latent = torch.randn(1, 4, 16, 16) * 5
    bits = [lcm(latent, _planes(1), torch.tensor([rate])).symbol_bits.item() for rate in (0.0, 5.0)]
    assert bits[0] < bits[1]


@pytest.mark.parametrize(("rate", "rates"), [(GAINED, None), (RateConfig(), torch.zeros(1))])
def test_rates_belong_to_gained_models_and_only_to_them(rate: RateConfig, rates: torch.Tensor | None) -> None:
    with pytest.raises(UsageError, match="rate axis"):
        _small(rate)(torch.randn(1, 4, 8, 8), torch.zeros(1, 4, 64, 64), rates)


@pytest.mark.parametrize(("height", "width"), [(12, 16), (16, 4)])
def test_latents_that_cannot_be_halved_three_times_are_refused(height: int, width: int) -> None:
    planes = torch.zeros(1, 4, 8 * height, 8 * width)
    with pytest.raises(UsageError, match=f"the latent has {width}x{height} places: .* multiples of 8, so crop or pad"):
        _small()(torch.randn(1, 4, height, width), planes)


def test_rounding_is_straight_through() -> None:
    values = torch.tensor([0.4, 1.6], requires_grad=True)
    rounded = round_straight_through(values)
    rounded.sum().backward()
    assert rounded.tolist() == [0.0, 2.0]
    assert values.grad.tolist() == [1.0, 1.0]


def test_a_picture_does_not_depend_on_its_batch() -> None:
    lcm = _small().eval()
    latent, planes = torch.randn(3, 4, 16, 16), _planes(3)
    together = lcm(latent, planes)
    alone = [lcm(latent[n : n + 1], planes[n : n + 1]) for n in range(3)]
    torch.testing.assert_close(
        together.latent_hat, torch.cat([each.latent_hat for each in alone]), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(
        together.symbol_bits, torch.cat([each.symbol_bits for each in alone]), atol=1e-2, rtol=1e-4
    )


def test_likelihoods_are_in_full_precision_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = _small()(torch.randn(1, 4, 8, 8), torch.zeros(1, 4, 64, 64))
    assert {each.dtype for each in result} == {torch.float32}


def test_slices_must_divide_the_symbols() -> None:
    config = dataclasses.replace(SMALL, slices=4)
    with pytest.raises(UsageError, match="6 symbol channels cannot be cut into 4 equal slices"):
        LatentCompression(config, MapConfig(), RateConfig(), PublishedQuirks())
