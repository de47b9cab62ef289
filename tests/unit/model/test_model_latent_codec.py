"""Latents through bytes: the same symbols at both ends, however each runs, at the rate that training saw."""

import copy
import dataclasses
import functools
import itertools
from collections.abc import Iterator

import pytest
import torch
from fixed_point_oracle import Activation, run
from torch import Tensor

from magc_model.config import (
    PAPER_LAMBDAS,
    LatentCompressionConfig,
    MapClass,
    MapConfig,
    NormKind,
    PublishedQuirks,
    RateConfig,
    RateMode,
)
from magc_model.entropy.coder import PayloadError
from magc_model.entropy.latent_codec import LatentCodec
from magc_model.entropy.tables import EntropyTables, build_tables
from magc_model.errors import ModelError, UsageError
from magc_model.nets.latent_compression import LatentCompression
from magc_model.nets.map_planes import class_shares

CLASSES = tuple(MapClass(n, f"class {n}", (n, n, n)) for n in range(4))
SMALL = LatentCompressionConfig(
    channels=16,
    symbol_channels=12,
    slices=3,
    context_channels=(16, 8),
    map_channels=(4, 6, 8),
    entropy_map_channels=5,
    spade_norm=NormKind.CHANNEL,
)
FIXED = RateConfig()
GAINED = RateConfig(mode=RateMode.GAINED, lambdas=PAPER_LAMBDAS)
KINDS = {
    "fixed": (FIXED, {}),
    "fixed, map in entropy": (FIXED, {"in_entropy": True}),
    "gained": (GAINED, {}),
    "gained, map in entropy": (GAINED, {"in_entropy": True}),
    "no map": (FIXED, {"in_transform": False}),
}


def _scenes(count: int, seed: int, side: int = 32) -> tuple[Tensor, Tensor]:
    """Latents as pictures have them, alike among neighbours and within a class, and the planes of their maps."""
    generator = torch.Generator().manual_seed(seed)

    def field(cells: int, channels: int) -> Tensor:
        coarse = torch.randn(count, channels, cells, cells, generator=generator)
        return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")

    ids = field(4, len(CLASSES)).argmax(1)
    latent = (
        field(4, 4) + 0.5 * field(12, 4) + 0.1 * field(side, 4) + torch.linspace(-1, 1, len(CLASSES))[ids].unsqueeze(1)
    )
    planes = torch.nn.functional.one_hot(ids, len(CLASSES)).movedim(-1, 1).float()
    return latent, planes.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)


def _rates(rate: RateConfig, count: int) -> Tensor | None:
    return torch.linspace(0, 5, count) if rate.mode is RateMode.GAINED else None


@functools.cache
def _trained(kind: str, steps: int = 10) -> LatentCompression:
    rate, maps = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        lcm = LatentCompression(SMALL, MapConfig(classes=CLASSES, **maps), rate, PublishedQuirks())
        optimiser = torch.optim.Adam(lcm.parameters(), 3e-3)
        for step in range(steps):
            latent, planes = _scenes(4, step, 8)
            compressed = lcm(latent, planes, _rates(rate, 4))
            bits = (compressed.symbol_bits + compressed.hyper_bits).mean() / 64**2
            loss = (
                bits + 0.39 * (compressed.latent_hat - latent).square().mean() + lcm.entropy_bottleneck.quantile_loss()
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return lcm.eval()


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> tuple[str, LatentCompression, EntropyTables]:
    lcm = _trained(request.param)
    return request.param, lcm, build_tables(lcm)


@pytest.fixture(scope="module")
def mapped() -> tuple[LatentCompression, EntropyTables]:
    lcm = _trained("fixed, map in entropy")
    return lcm, build_tables(lcm)


def test_the_receiver_has_the_senders_symbols(model: tuple[str, LatentCompression, EntropyTables]) -> None:
    kind, lcm, tables = model
    rates = _rates(KINDS[kind][0], 3)
    latent, planes = _scenes(3, 100)
    sent = LatentCodec(lcm, tables).compress(latent, planes, rates)
    receiver = LatentCodec(lcm, EntropyTables.from_tensors(tables.to_tensors()))
    payloads = [each.payload for each in sent]
    symbols = receiver.decode_symbols(payloads, (8, 8), planes)
    assert torch.equal(symbols, torch.stack([each.symbols for each in sent]))
    for each in sent:
        assert -24 < len(each.payload) * 8 - each.ideal_bits < 8.01  # zeros at the end are not written
    with torch.no_grad():
        float_path = lcm(latent, planes, rates)
        analysis = lcm.analyse(latent, lcm.map_pyramid(planes), rates)
    assert (symbols - analysis.symbols).abs().max() < 0.502  # rounded to the nearest, up to float32 and bounds
    received = receiver.decompress(payloads, (8, 8), planes, rates)
    assert received.shape == latent.shape
    error, float_error = ((each - latent).square().mean() for each in (received, float_path.latent_hat))
    torch.testing.assert_close(error, float_error, rtol=0.01, atol=0)


def test_exactness_costs_less_than_a_hundredth(model: tuple[str, LatentCompression, EntropyTables]) -> None:
    """Real bytes against the bits that the float networks' likelihoods promise."""
    kind, lcm, tables = model
    rates = _rates(KINDS[kind][0], 12)
    latent, planes = _scenes(12, 200)
    with torch.no_grad():
        promised = lcm(latent, planes, rates)
    bits = float((promised.symbol_bits + promised.hyper_bits).sum())
    real = 8 * sum(len(each.payload) for each in LatentCodec(lcm, tables).compress(latent, planes, rates))
    assert bits / 8 / 12 > 50  # bytes a picture: few enough to be of the size that matters, enough to measure
    assert real / bits < 1.01


def _settings() -> Iterator[None]:
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            yield
        with torch.backends.mkldnn.flags(enabled=False):
            yield
        with torch.autocast("cpu", torch.bfloat16):
            yield
        torch.set_default_dtype(torch.float64)
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)


def test_nothing_about_how_it_runs_matters(mapped: tuple[LatentCompression, EntropyTables]) -> None:
    lcm, tables = mapped
    codec = LatentCodec(lcm, tables)
    latent, planes = _scenes(4, 300)
    with torch.no_grad():
        analysis = lcm.analyse(latent, lcm.map_pyramid(planes))
    sent = codec.encode(*analysis, planes)
    payloads, symbols = [each.payload for each in sent], torch.stack([each.symbols for each in sent])
    for _ in _settings():
        assert [each.payload for each in codec.encode(*analysis, planes)] == payloads
        assert torch.equal(codec.decode_symbols(payloads, (8, 8), planes), symbols)
        alone = [codec.encode(*(part[n : n + 1] for part in analysis), planes[n : n + 1])[0] for n in range(4)]
        assert [each.payload for each in alone] == payloads
    strided = planes.contiguous(memory_format=torch.channels_last)
    assert torch.equal(codec.decode_symbols(payloads, (8, 8), strided), symbols)
    order = [3, 1, 0, 2]
    assert torch.equal(codec.decode_symbols([payloads[n] for n in order], (8, 8), planes[order]), symbols[order])


def test_symbols_follow_from_the_slow_integer_arithmetic(mapped: tuple[LatentCompression, EntropyTables]) -> None:
    """Means of every slice, recomputed from the decoded slices before it, differ from y_hat by whole numbers."""
    lcm, tables = mapped
    codec = LatentCodec(lcm, tables)
    latent, planes = _scenes(1, 400)
    with torch.no_grad():
        analysis = lcm.analyse(latent, lcm.map_pyramid(planes))
    (sent,) = codec.encode(*analysis, planes)
    hyper_exponent, exponent = tables.grids.tolist()
    rounded = (analysis.hyper_symbols.double().movedim(1, 3) - tables.medians / 2**hyper_exponent).round()
    hyper = (rounded * 2**hyper_exponent).long() + tables.medians
    contexts = run(
        lcm.hyper_synthesis, Activation(hyper.numpy(), hyper_exponent), iter(tables.hyper_synthesis.tolist())
    )
    shares = (class_shares(planes) * 1024).long().movedim(1, 3).numpy()
    features = run(lcm.entropy_map, Activation(shares, 10, 1024), iter(tables.entropy_map.tolist()))
    scales_and_means = torch.from_numpy(contexts.integers).chunk(2, dim=3)
    known = torch.cat((scales_and_means[1], torch.from_numpy(features.integers)), dim=3)
    y_hat = (sent.symbols.unsqueeze(0).movedim(1, 3) * 2**exponent).long()
    for index, part in enumerate(y_hat.chunk(SMALL.slices, dim=3)):
        exponents = iter(tables.mean_networks[index].tolist())
        means = run(lcm.mean_networks[index], Activation(known.numpy(), exponent), exponents)
        steps = part - torch.from_numpy(means.integers)
        assert (steps % 2**exponent == 0).all()
        known = torch.cat((known, part), dim=3)


def test_a_whole_scene_is_one_payload(mapped: tuple[LatentCompression, EntropyTables]) -> None:
    codec = LatentCodec(*mapped)
    latent, planes = _scenes(1, 500, side=64)
    latent, planes = latent[:, :, :, :48], planes[:, :, :, :384]
    (sent,) = codec.compress(latent, planes)
    assert torch.equal(codec.decode_symbols([sent.payload], (16, 12), planes)[0], sent.symbols)


def test_values_out_of_all_proportion_survive(mapped: tuple[LatentCompression, EntropyTables]) -> None:
    codec = LatentCodec(*mapped)
    _, planes = _scenes(2, 600)
    generator = torch.Generator().manual_seed(0)
    for size, smaller in itertools.product((1e2, 1e5, 1e30), (1.0, 1e3)):
        symbols = size * torch.randn(2, SMALL.symbol_channels, 8, 8, generator=generator)
        hyper = size / smaller * torch.randn(2, SMALL.symbol_channels, 4, 4, generator=generator)
        sent = codec.encode(symbols, hyper, planes)
        received = codec.decode_symbols([each.payload for each in sent], (8, 8), planes)
        assert torch.equal(received, torch.stack([each.symbols for each in sent]))
    with pytest.raises(ModelError, match="no numbers"):
        codec.encode(symbols * float("nan"), hyper, planes)


def test_foreign_bytes_are_an_error_or_other_symbols(mapped: tuple[LatentCompression, EntropyTables]) -> None:
    codec = LatentCodec(*mapped)
    latent, planes = _scenes(1, 700)
    payload = codec.compress(latent, planes)[0].payload
    generator = torch.Generator().manual_seed(0)
    outcomes = set()
    for attempt in range(25):
        foreign = bytes(torch.randint(256, (attempt * 20,), generator=generator).tolist())
        for each in (foreign, payload[:attempt], payload + foreign):
            try:
                outcomes.add(codec.decode_symbols([each], (8, 8), planes).isfinite().all().item())
            except PayloadError:
                outcomes.add("error")
    assert outcomes == {True, "error"}


def test_any_precision_of_the_sender_serves_any_receiver(mapped: tuple[LatentCompression, EntropyTables]) -> None:
    latent, planes = _scenes(2, 800)
    sent = LatentCodec(*mapped, precision=torch.bfloat16).compress(latent, planes)
    receiver = LatentCodec(*mapped)
    payloads = [each.payload for each in sent]
    assert torch.equal(receiver.decode_symbols(payloads, (8, 8), planes), torch.stack([each.symbols for each in sent]))
    assert receiver.decompress(payloads, (8, 8), planes).dtype is torch.float32


def test_what_does_not_belong_together_is_refused(mapped: tuple[LatentCompression, EntropyTables]) -> None:
    lcm, tables = mapped
    latent, planes = _scenes(1, 900)
    with_map, without = (MapConfig(classes=CLASSES, in_entropy=each) for each in (True, False))

    def other(maps: MapConfig, **changes: object) -> LatentCompression:
        return LatentCompression(dataclasses.replace(SMALL, **changes), maps, FIXED, PublishedQuirks())

    two_slices, deeper, mapless = (
        other(with_map, slices=2),
        other(with_map, context_channels=(16, 8, 8)),
        other(without),
    )
    with pytest.raises(ModelError, match="12 symbol channels in 3 slices, the model has 12 in 2"):
        LatentCodec(two_slices, tables)
    with pytest.raises(ModelError, match="another number of grids"):
        LatentCodec(deeper, tables)
    with pytest.raises(ModelError, match="another number of grids"):
        LatentCodec(other(with_map), build_tables(mapless))
    with pytest.raises(ModelError, match="with the map in its entropy networks"):
        LatentCodec(mapless, tables)
    with pytest.raises(ModelError, match="float16"):
        LatentCodec(copy.deepcopy(lcm).half(), tables)
    codec = LatentCodec(lcm, tables)
    with pytest.raises(UsageError, match="give its planes"):
        codec.decode_symbols([b""], (8, 8), None)
    with pytest.raises(UsageError, match="must be even"):
        codec.decode_symbols([b""], (8, 7), planes)
    with pytest.raises(UsageError, match="eval"):
        LatentCodec(copy.deepcopy(lcm).train(), tables).compress(latent, planes)
    with pytest.raises(UsageError, match="multiples of 8, so crop or pad the picture to multiples of 64 pixels"):
        codec.compress(latent[:, :, :12], planes[:, :, :96])
    with pytest.raises(UsageError, match="takes no positions on the rate axis"):
        codec.compress(latent, planes, torch.zeros(len(latent)))
