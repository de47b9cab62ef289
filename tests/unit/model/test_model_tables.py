"""The integer tables: near the densities that they stand for, the same after a round trip, damage named."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from magc_model.config import LatentCompressionConfig, MapClass, MapConfig, NormKind, PublishedQuirks, RateConfig
from magc_model.entropy.fixed_point import FINEST_EXPONENT
from magc_model.entropy.tables import SCALE_LEVELS, EntropyTables, _frequencies, build_tables
from magc_model.errors import ModelError
from magc_model.nets.entropy_models import SCALE_BOUND, gaussian_likelihood
from magc_model.nets.latent_compression import LatentCompression

CHANNELS = 6
CLASSES = tuple(MapClass(n, f"class {n}", (n, n, n)) for n in range(4))
SMALL = LatentCompressionConfig(
    channels=8,
    symbol_channels=CHANNELS,
    slices=3,
    context_channels=(8,),
    map_channels=(4, 5, 6),
    entropy_map_channels=4,
    spade_norm=NormKind.CHANNEL,
)


def _lcm(in_entropy: bool = True, seed: int = 1) -> LatentCompression:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lcm = LatentCompression(
            SMALL, MapConfig(classes=CLASSES, in_entropy=in_entropy), RateConfig(), PublishedQuirks()
        )
        for parameter in lcm.entropy_bottleneck.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        return lcm


@pytest.fixture(scope="module")
def tables() -> EntropyTables:
    return build_tables(_lcm())


def _probabilities(tables: EntropyTables, row: int) -> tuple[Tensor, Tensor, float]:
    """Symbols of a row, their probabilities, the escape's."""
    entries = tables.cumulative[int(tables.starts[row]) : int(tables.starts[row + 1])]
    probabilities = entries.diff().double() / 2**16
    symbols = torch.arange(len(probabilities) - 1) + int(tables.offsets[row])
    return symbols, probabilities[:-1], float(probabilities[-1])


def _cost(shares: Tensor, coded: Tensor) -> float:
    """Bits lost a symbol by coding with other probabilities."""
    return float((shares * (shares / coded).log2()).nan_to_num(0).sum())


def test_rows_of_scales_are_gaussians(tables: EntropyTables) -> None:
    lost = []
    for row in range(SCALE_LEVELS):
        symbols, probabilities, escape = _probabilities(tables, row)
        scale = SCALE_BOUND * (256 / SCALE_BOUND) ** (row / (SCALE_LEVELS - 1))
        assert symbols.tolist() == sorted(-symbols.numpy())  # about 0
        cells = symbols.double().reshape(1, 1, 1, -1)
        expected = gaussian_likelihood(cells, torch.zeros_like(cells), torch.full_like(cells, scale)).flatten()
        assert (probabilities - expected).abs().max() < 4 / 2**16
        assert escape > 0
        lost.append(_cost(expected, probabilities))
    assert max(lost) < 0.03
    assert sum(lost) / len(lost) < 0.004


def test_each_scale_goes_to_the_nearest_row(tables: EntropyTables) -> None:
    scales = torch.logspace(math.log10(0.05), math.log10(255.9), 5000, dtype=torch.float64)
    rows = torch.bucketize((scales * 2**FINEST_EXPONENT).round(), tables.scale_thresholds.double())
    coded = SCALE_BOUND * (256 / SCALE_BOUND) ** (rows / (SCALE_LEVELS - 1))
    assert int(rows.min()) == 0
    assert int(rows.max()) == SCALE_LEVELS - 1
    assert ((coded / scales.clamp(min=SCALE_BOUND)).log().abs()).max() < 0.5 * math.log(256 / SCALE_BOUND) / 127 + 1e-3


def test_rows_of_channels_are_the_learned_densities(tables: EntropyTables) -> None:
    bottleneck = _lcm().entropy_bottleneck.double()
    for channel in range(CHANNELS):
        symbols, probabilities, _ = _probabilities(tables, SCALE_LEVELS + channel)
        values = bottleneck.medians() + symbols.reshape(1, 1, 1, -1)
        expected = bottleneck.likelihood(values)[0, channel, 0].detach()
        assert (probabilities - expected).abs().max() < 4 / 2**16
        assert expected.sum() > 0.999
        assert _cost(expected, probabilities) < 0.01
        median = float(tables.medians[channel]) / 2.0 ** int(tables.grids[0])
        assert median == pytest.approx(float(bottleneck.quantiles[channel, 0, 1].detach()), abs=2e-3)


def test_a_density_far_from_its_median_is_still_covered() -> None:
    """Quantiles that nobody trained: the published checkpoint's stay at 0, wherever the density went."""
    lcm = _lcm()
    lcm.entropy_bottleneck.quantiles.data[:, 0, 1] = 300.0
    tables = build_tables(lcm)
    symbols, probabilities, _ = _probabilities(tables, SCALE_LEVELS)
    assert symbols[probabilities.argmax()] == pytest.approx(-300, abs=40)
    assert probabilities.sum() > 0.999


def test_frequencies_add_up_and_leave_nothing_out() -> None:
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 3, 700, 3000):
        shares = torch.rand(count, generator=generator, dtype=torch.float64).pow(8)
        shares = (shares / shares.sum()).numpy()
        frequencies = _frequencies(shares)
        assert frequencies.sum() == 2**16
        assert frequencies.min() >= 1


def _same(one: EntropyTables, other: EntropyTables) -> bool:
    return all(map(torch.equal, one, other))


def test_tables_survive_a_round_trip(tables: EntropyTables) -> None:
    again = EntropyTables.from_tensors({name: each.clone() for name, each in tables.to_tensors().items()})
    assert _same(again, tables)
    assert sum(each.numel() * each.element_size() for each in tables) < 300_000
    without = build_tables(_lcm(in_entropy=False))
    assert _same(EntropyTables.from_tensors(without.to_tensors()), without)
    assert not _same(without, tables)


def test_building_changes_nothing_in_the_model() -> None:
    lcm = _lcm().train()
    before = {name: each.clone() for name, each in lcm.state_dict().items()}
    state = torch.random.get_rng_state()
    first = build_tables(lcm)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert lcm.training
    assert all(
        torch.equal(each, before[name]) and each.dtype is before[name].dtype for name, each in lcm.state_dict().items()
    )
    assert _same(build_tables(lcm), first)
    assert not _same(build_tables(_lcm(seed=2)), first)


def test_large_activations_get_coarser_grids(tables: EntropyTables) -> None:
    lcm = _lcm()
    with torch.no_grad():
        for network in lcm.mean_networks:
            network[-1].weight *= 1000
        for network in lcm.scale_networks:
            network[0].weight *= 1e6
    coarse = build_tables(lcm)
    assert int(coarse.grids[1]) < int(tables.grids[1]) - 3
    assert (coarse.scale_networks[:, 0] < tables.scale_networks[:, 0] - 10).all()
    assert (coarse.scale_networks[:, -1] == FINEST_EXPONENT).all()
    assert _same(EntropyTables.from_tensors(coarse.to_tensors()), coarse)


def test_weights_that_are_no_numbers_are_refused() -> None:
    lcm = _lcm()
    lcm.hyper_synthesis[0].bias.data[0] = math.nan
    with pytest.raises(ModelError, match="no numbers"):
        build_tables(lcm)


def _put(name: str, place: object, value: int) -> Callable[[dict[str, Tensor]], None]:
    def damage(tensors: dict[str, Tensor]) -> None:
        tensors[name][place] = value

    return damage


def _cut(name: str) -> Callable[[dict[str, Tensor]], None]:
    def damage(tensors: dict[str, Tensor]) -> None:
        tensors[name] = tensors[name][:-1]

    return damage


DAMAGES = {
    "lack 'gelu'": lambda tensors: tensors.pop("gelu"),
    "do not know 'zzz'": lambda tensors: tensors.update(zzz=torch.zeros(1)),
    "'cumulative' is torch.int64 in 1": lambda tensors: tensors.update(cumulative=tensors["cumulative"].long()),
    "'offsets' is torch.int32 in 2": lambda tensors: tensors.update(offsets=tensors["offsets"].unsqueeze(0)),
    "no row for hyper-symbols": lambda tensors: tensors.update(medians=tensors["medians"][:0]),
    "rows, expected": _cut("offsets"),
    "has no symbols": _put("starts", 3, 0),
    "has no symbols ": _cut("cumulative"),
    "does not begin at 0": _put("cumulative", 0, 1),
    "does not end at 65536": _put("cumulative", -1, 65535),
    "a symbol has no frequency": _put("cumulative", 1, 65536),
    "a symbol has no frequency ": _put("cumulative", 1, -(2**31)),
    "impossible symbol": _put("offsets", 5, -(2**31)),
    "scales do not rise": _put("scale_thresholds", 4, 0),
    "median is out of bounds": _put("medians", 0, 2**40),
    "GELU has 2048 entries": _cut("gelu"),
    "entry of GELU": _put("gelu", 7, -1),
    "not two grids": _cut("grids"),
    "grid of 'grids' is out": _put("grids", 0, 15),
    "grid of 'hyper_synthesis' is out": _put("hyper_synthesis", 0, -(2**62)),
    "grid of 'scale_networks' is out": _put("scale_networks", (0, 0), 99),
    "differ in number or depth": _cut("mean_networks"),
    "means are on another grid": _put("mean_networks", (1, -1), -3),
    "scales are on an unknown grid": _put("scale_networks", (1, -1), -3),
    "contexts are on another grid": _put("hyper_synthesis", -1, -3),
    "contexts are on another grid ": _put("entropy_map", -1, -3),
}


@pytest.mark.parametrize("sentence", DAMAGES)
def test_damaged_tables_are_refused(tables: EntropyTables, sentence: str) -> None:
    tensors = copy.deepcopy(tables.to_tensors())
    DAMAGES[sentence](tensors)
    with pytest.raises(ModelError, match=sentence.strip()):
        EntropyTables.from_tensors(tensors)
