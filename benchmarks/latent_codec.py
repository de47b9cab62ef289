"""Compressing latents: magc's exact path against a port of the published path, and what exactness costs in bytes.

Speed: a batch of 8 tiles of 256x256 with an LCM of the paper's size and random weights, interleaved, on one core.
The published path, as its description goes: the map encoder's four convolutions begin at full resolution with 64
channels and run for the analysis and again for the synthesis, which it always runs; both halves of each SPADE ResBlock
run, though one is not used; entropy networks are float, symbols and scale indices go through Python lists to
CompressAI's coder, one more string a tile for the hyper-symbols. Its networks are of their own layout (maps as
colours); magc is timed with its own layout (class planes) and with the published one.

Rate: the tiny LCM, trained for some steps on seeded synthetic latents; real bytes against the bits that the float
networks' likelihoods promise, on latents not seen in training.

CompressAI is not among magc's dependencies (docs/decisions/0006): the peer wants an environment of its own, made with
`pip install -e .[model,peers]`. `--without-peer` measures magc alone.

    python benchmarks/latent_codec.py [--preset paper] [--batch 8] [--repeats 7] [--train-steps 200] [--json]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import dataclasses
import importlib.util
import json
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from magc_model.config import PRESETS, MapClass, MapInput, PublishedQuirks
from magc_model.entropy.latent_codec import LatentCodec
from magc_model.entropy.tables import build_tables
from magc_model.nets.latent_compression import LatentCompression, LatentTransform, MapPyramid

CLASSES = tuple(MapClass(n, f"class {n}", (20 * n, 255 - 20 * n, 128)) for n in range(11))
TILE_PX = 256
PEER = "published path (port)"


def build_lcm(preset: str, *, published: bool) -> LatentCompression:
    """An LCM with random weights, in magc's layout or in the published one."""
    model = PRESETS[preset].model
    maps = dataclasses.replace(model.map, classes=CLASSES)
    quirks = model.quirks
    if published:
        maps = dataclasses.replace(maps, input=MapInput.RGB, in_entropy=False)
        quirks = PublishedQuirks(second_spade_reads_input=True, linear_map_encoder=True)
    torch.manual_seed(1)
    return LatentCompression(model.latent_compression, maps, model.rate, quirks).eval()


def scenes(count: int, side_px: int, seed: int, *, colours: bool = False) -> tuple[Tensor, Tensor]:
    """Latents that are alike among neighbours and depend on the class, as those of pictures; and maps."""
    generator = torch.Generator().manual_seed(seed)

    def field(cells: int, channels: int, side: int) -> Tensor:
        coarse = torch.randn(count, channels, cells, cells, generator=generator)
        return nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")

    ids = field(side_px // 32, len(CLASSES), side_px).argmax(1)
    side = side_px // 8
    shift = torch.randn(len(CLASSES), 4, generator=generator)[ids[:, ::8, ::8]].movedim(-1, 1)
    latent = (
        0.6 * field(side // 8, 4, side) + 0.4 * field(side // 3, 4, side) + 0.15 * field(side, 4, side) + 0.5 * shift
    )
    planes = torch.tensor([each.color for each in CLASSES]) / 255 if colours else torch.eye(len(CLASSES))
    return latent, planes[ids].movedim(-1, 1).contiguous()


class PublishedPath:
    """The published computation on an LCM in the published layout."""

    def __init__(self, lcm: LatentCompression) -> None:
        warnings.filterwarnings("ignore")  # CompressAI's own, on import
        from compressai.ans import BufferedRansEncoder
        from compressai.entropy_models import EntropyBottleneck, GaussianConditional

        self.lcm, self.new_encoder = lcm, BufferedRansEncoder
        self.bottleneck = EntropyBottleneck(lcm.config.symbol_channels)
        self.bottleneck.load_state_dict(lcm.entropy_bottleneck.state_dict(), strict=False)
        self.bottleneck.update(force=True)
        self.gaussian = GaussianConditional(None)
        levels = torch.logspace(torch.tensor(0.11).log10().item(), torch.tensor(256.0).log10().item(), 64)
        self.gaussian.update_scale_table(levels.tolist())

    @torch.no_grad()
    def compress(self, latent: Tensor, planes: Tensor) -> tuple[list[bytes], Tensor]:
        """Strings, and the decoded latent, which the published code makes in the same call."""
        lcm = self.lcm
        y = transform(lcm.analysis, latent, pyramid(lcm, planes))
        h = lcm.hyper_analysis(y)
        strings = self.bottleneck.compress(h)
        h_hat = self.bottleneck.decompress(strings, h.shape[2:])
        scales, means = lcm.hyper_synthesis(h_hat).chunk(2, 1)
        cdf = self.gaussian.quantized_cdf.tolist()
        lengths = self.gaussian.cdf_length.reshape(-1).int().tolist()
        offsets = self.gaussian.offset.reshape(-1).int().tolist()
        encoder = self.new_encoder()
        symbols: list[int] = []
        indexes: list[int] = []
        decoded: list[Tensor] = []
        for index, piece in enumerate(y.chunk(lcm.config.slices, 1)):
            mean = lcm.mean_networks[index](torch.cat([means, *decoded], 1))
            scale = lcm.scale_networks[index](torch.cat([scales, *decoded], 1))
            quantised = self.gaussian.quantize(piece, "symbols", mean)
            symbols.extend(quantised.reshape(-1).tolist())
            indexes.extend(self.gaussian.build_indexes(scale).reshape(-1).tolist())
            decoded.append(quantised + mean)
        encoder.encode_with_indexes(symbols, indexes, cdf, lengths, offsets)
        strings.append(encoder.flush())
        maps = pyramid(lcm, planes)
        return strings, transform(lcm.synthesis, torch.cat(decoded, 1), maps[::-1])


def pyramid(lcm: LatentCompression, planes: Tensor) -> MapPyramid:
    """The map's features."""
    found = lcm.map_pyramid(planes)
    if found is None:
        raise ValueError("the LCM reads no map")
    return found


def transform(network: LatentTransform, features: Tensor, maps: tuple[Tensor, ...]) -> Tensor:
    """Analysis or synthesis, with the halves of the SPADE ResBlocks that are not used."""
    for stage, spade, features_of_map in zip(network.stages, network.spades, maps, strict=True):
        features = stage(features)
        spade.first(spade.first_spade(features, features_of_map))
        features = spade(features, features_of_map)
    return network.tail(features)


def measure_speed(preset: str, batch: int, repeats: int, *, with_peer: bool) -> dict[str, Any]:
    """Time all ways, interleaved."""
    ours, published = build_lcm(preset, published=False), build_lcm(preset, published=True)
    codec, published_codec = LatentCodec(ours, build_tables(ours)), LatentCodec(published, build_tables(published))
    latent, classes = scenes(batch, TILE_PX, 1)
    _, colours = scenes(batch, TILE_PX, 1, colours=True)
    with torch.no_grad():
        analysis = ours.analyse(latent, ours.map_pyramid(classes))
    sent = codec.encode(*analysis, classes)
    payloads, size = [each.payload for each in sent], tuple(analysis.symbols.shape[2:])
    port = PublishedPath(published) if with_peer else None

    def float_networks() -> None:
        with torch.no_grad():
            contexts = ours.contexts(analysis.hyper_symbols.round(), classes)
            decoded: list[Tensor] = []
            for index in range(ours.config.slices):
                decoded.append(ours.estimate(index, contexts, decoded).means)

    ways: dict[str, Callable[[], object]] = {} if port is None else {PEER: lambda: port.compress(latent, colours)}
    ways |= {
        "magc": lambda: codec.compress(latent, classes),
        "magc, published layout": lambda: published_codec.compress(latent, colours),
        "magc: exact entropy coding alone": lambda: codec.encode(*analysis, classes),
        "magc: exact entropy decoding alone": lambda: codec.decode_symbols(payloads, size, classes),
        "float entropy networks alone": float_networks,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    decoded = codec.decode_symbols(payloads, size, classes)
    return {
        "preset": preset,
        "batch": batch,
        "repeats": repeats,
        "different_symbols": int((decoded != torch.stack([each.symbols for each in sent])).sum()),
        "ways": [{"name": name, "ms_per_tile": round(1000 * each / batch, 1)} for name, each in medians.items()],
        "magc_is_faster": times_as_fast(medians, "magc"),
        "published_layout_is_faster": times_as_fast(medians, "magc, published layout"),
    }


def times_as_fast(medians: dict[str, float], name: str) -> float | None:
    """Than the peer, if it ran."""
    return round(medians[PEER] / medians[name], 2) if PEER in medians else None


def measure_rate(steps: int, test_tiles: int) -> dict[str, Any]:
    """Train the tiny LCM briefly, then compare bytes."""
    lcm = build_lcm("tiny", published=False).train()
    optimiser = torch.optim.Adam(lcm.parameters(), 1e-3)
    lambda_ = lcm.rate.lambdas[0]
    for step in range(steps):
        latent, planes = scenes(8, 128, 1000 + step)
        compressed = lcm(latent, planes)
        bits_per_pixel = (compressed.symbol_bits + compressed.hyper_bits).mean() / 128**2
        loss = bits_per_pixel + lambda_ * (compressed.latent_hat - latent).square().mean()
        optimiser.zero_grad()
        (loss + 0.01 * lcm.entropy_bottleneck.quantile_loss()).backward()
        nn.utils.clip_grad_norm_(lcm.parameters(), 1.0)
        optimiser.step()
    lcm.eval()
    latent, planes = scenes(test_tiles, TILE_PX, 1)
    with torch.no_grad():
        promised = lcm(latent, planes)
    sent = LatentCodec(lcm, build_tables(lcm)).compress(latent, planes)
    promised_bytes = float((promised.symbol_bits + promised.hyper_bits).sum()) / 8
    real_bytes = sum(len(each.payload) for each in sent)
    ideal_bytes = sum(each.ideal_bits for each in sent) / 8
    return {
        "train_steps": steps,
        "tiles": test_tiles,
        "latent_error": round(float((promised.latent_hat - latent).square().mean()), 4),
        "float_bytes_per_tile": round(promised_bytes / test_tiles, 2),
        "ideal_bytes_per_tile": round(ideal_bytes / test_tiles, 2),
        "real_bytes_per_tile": round(real_bytes / test_tiles, 2),
        "exact_costs_percent": round(100 * (ideal_bytes / promised_bytes - 1), 3),
        "coder_costs_percent": round(100 * (real_bytes / ideal_bytes - 1), 3),
        "all_costs_percent": round(100 * (real_bytes / promised_bytes - 1), 3),
    }


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="paper")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--train-steps", type=int, default=200)
    parser.add_argument("--test-tiles", type=int, default=32)
    parser.add_argument("--without-peer", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not arguments.without_peer and importlib.util.find_spec("compressai") is None:
        parser.error("the peer needs CompressAI: make an environment with `pip install -e .[model,peers]`")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with_peer = not arguments.without_peer
    speed = measure_speed(arguments.preset, arguments.batch, arguments.repeats, with_peer=with_peer)
    rate = measure_rate(arguments.train_steps, arguments.test_tiles)
    if arguments.json:
        print(json.dumps({"speed": speed, "rate": rate}, indent=2))
        return
    print(
        f"{speed['preset']} LCM, batch of {speed['batch']} tiles, {speed['repeats']} interleaved repeats, "
        f"{torch.get_num_threads()} core(s)"
    )
    for way in speed["ways"]:
        print(f"  {way['name']:<36} {way['ms_per_tile']:>8} ms a tile")
    if with_peer:
        print(
            f"  magc is {speed['magc_is_faster']} times as fast, {speed['published_layout_is_faster']} in that layout"
        )
    print(f"  symbols different after decoding: {speed['different_symbols']}")
    print(f"tiny LCM after {rate['train_steps']} steps on synthetic latents, {rate['tiles']} tiles of {TILE_PX} px")
    for name in ("float", "ideal", "real"):
        print(f"  {name:<6} {rate[name + '_bytes_per_tile']:>8} bytes a tile")
    print(
        f"  exact networks and integer tables cost {rate['exact_costs_percent']} %, the coder "
        f"{rate['coder_costs_percent']} %, together {rate['all_costs_percent']} %"
    )


if __name__ == "__main__":
    main()
