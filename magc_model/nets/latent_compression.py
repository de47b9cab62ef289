"""LCM, the latent compression module: latent -> symbols -> latent, and how probable each symbol is (paper 3.2, Fig. 3).

    planes ─► semantic encoder ─┬─────────────┬─────────────┐   map pyramid (1/8, 1/16, 1/32)
                                ▼             ▼             ▼
    latent ─► conv ─► RB RB ─► SPADE ─► down RB RB ─► SPADE ─► down RB RB ─► SPADE ─► conv ─► y        analysis, g_a
    y ─► round(y - mean) ─► symbols ─► + mean ─► y_hat
    y_hat ─► conv ─► RB RB ─► SPADE ─► up RB RB ─► SPADE ─► up RB RB ─► SPADE ─► conv ─► latent_hat   synthesis, g_s

    y ─► conv RB down RB conv ─► h ─► round ─► conv RB up RB conv ─► scale and mean contexts           h_a, h_s
    slice i of y:   mean_i = network_i(mean context, y_hat of slices < i)       (Minnen and Singh 2020: channel-wise)
                    scale_i = network_i(scale context, y_hat of slices < i)
    With the map in the entropy model, both contexts also hold features of the class shares in each symbol's ground.

A gained model multiplies y by a gain vector and y_hat by an inverse gain vector, both interpolated between the lambdas
(Cui et al. 2021): everything between the two, the entropy model included, is one network for all rates.

Entropy networks run here in float for training; at compression time `magc_model.entropy` runs the same weights in exact
arithmetic. Symbols travel as y - mean rounded (straight-through in training, Theis et al. 2017); likelihoods are those
of y with uniform noise in training (Balle et al. 2018) and of the rounded values otherwise.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from magc_model.config import (
    HYPER_STRIDE,
    IMAGE_STRIDE,
    LATENT_CHANNELS,
    LATENT_STRIDE,
    LatentCompressionConfig,
    MapConfig,
    PublishedQuirks,
    RateConfig,
    RateMode,
)
from magc_model.errors import UsageError
from magc_model.nets.blocks import LEAKY_SLOPE, ChannelNorm, Downsample, ResBlock, Upsample
from magc_model.nets.entropy_models import EntropyBottleneck, gaussian_likelihood, with_noise
from magc_model.nets.map_planes import class_shares
from magc_model.nets.semantic_encoder import LinearSemanticEncoder, SemanticEncoder
from magc_model.nets.spade import SpadeResBlock
from magc_model.shapes import HyperSymbols, Latent, MapPlanes, Rates, Symbols

Bits = Float[Tensor, " batch"]
AnyFeatures = Float[Tensor, "batch _ _ _"]
"""Features of any number of channels at any scale."""


class MapPyramid(NamedTuple):
    """Features of the map at the three scales of the transforms."""

    eighth: AnyFeatures
    sixteenth: AnyFeatures
    thirty_second: AnyFeatures


class Analysis(NamedTuple):
    """What the analysis transforms make of a latent; not rounded yet."""

    symbols: Symbols
    """y, times the gain."""
    hyper_symbols: HyperSymbols
    """h."""


class Contexts(NamedTuple):
    """What the context networks know before the first slice."""

    scales: Float[Tensor, "batch context_channels symbol_height symbol_width"]
    means: Float[Tensor, "batch context_channels symbol_height symbol_width"]


class Estimate(NamedTuple):
    """The Gaussian of each symbol of a slice."""

    means: Float[Tensor, "batch slice_channels symbol_height symbol_width"]
    scales: Float[Tensor, "batch slice_channels symbol_height symbol_width"]


class Compressed(NamedTuple):
    """A latent after compression, and what it cost."""

    latent_hat: Latent
    symbol_bits: Bits
    hyper_bits: Bits


def round_straight_through(values: Tensor) -> Tensor:
    """Round, with the gradient of the identity."""
    return values + (torch.round(values) - values).detach()


class LatentTransform(nn.Module):
    """Three scales, each a resampling or a convolution, two residual blocks and a SPADE ResBlock; then a convolution.

    The analysis and the synthesis are the same chain, one going down and one up.
    """

    def __init__(
        self, heads: tuple[nn.Module, nn.Module, nn.Module], tail: nn.Module, channels: int, spades: list[SpadeResBlock]
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(head, ResBlock(channels, channels), ResBlock(channels, channels)) for head in heads
        )
        self.spades = nn.ModuleList(spades)
        self.tail = tail

    def forward(self, features: AnyFeatures, maps: tuple[AnyFeatures, ...] | None) -> AnyFeatures:
        """Transform; `maps` in the order of the stages, none for a model without a map in its transforms."""
        for index, stage in enumerate(self.stages):
            features = stage(features)
            if maps is not None:
                features = self.spades[index](features, maps[index])
        return torch.as_tensor(self.tail(features))


def _context_network(in_channels: int, hidden: tuple[int, ...], out_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in hidden:
        layers += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.GELU()]
        in_channels = channels
    return nn.Sequential(*layers, nn.Conv2d(in_channels, out_channels, 3, padding=1))


class LatentCompression(nn.Module):
    """The LCM."""

    def __init__(
        self, config: LatentCompressionConfig, map_config: MapConfig, rate: RateConfig, quirks: PublishedQuirks
    ) -> None:
        super().__init__()
        channels, symbols = config.channels, config.symbol_channels
        if symbols % config.slices:
            raise UsageError(f"{symbols} symbol channels cannot be cut into {config.slices} equal slices")
        self.config, self.rate = config, rate
        self.slice_channels = symbols // config.slices

        map_channels = config.map_channels[-1]
        self.semantic_encoder: nn.Module | None = None
        if map_config.in_transform:
            encoder = LinearSemanticEncoder if quirks.linear_map_encoder else SemanticEncoder
            self.semantic_encoder = encoder(map_config.plane_count, config.map_channels)
            self.pyramid = nn.ModuleList(
                nn.Sequential(
                    Downsample(map_channels, map_channels), ChannelNorm(map_channels), nn.LeakyReLU(LEAKY_SLOPE)
                )
                for _ in range(2)
            )

        def spades() -> list[SpadeResBlock]:
            return [
                SpadeResBlock(
                    channels,
                    map_channels,
                    config.spade_norm,
                    second_reads_input=quirks.second_spade_reads_input,
                )
                for _ in range(3 if map_config.in_transform else 0)
            ]

        self.analysis = LatentTransform(
            (
                nn.Conv2d(LATENT_CHANNELS, channels, 3, padding=1),
                Downsample(channels, channels),
                Downsample(channels, channels),
            ),
            nn.Conv2d(channels, symbols, 3, padding=1),
            channels,
            spades(),
        )
        self.synthesis = LatentTransform(
            (nn.Conv2d(symbols, channels, 3, padding=1), Upsample(channels), Upsample(channels)),
            nn.Conv2d(channels, LATENT_CHANNELS, 3, padding=1),
            channels,
            spades(),
        )
        self.hyper_analysis = nn.Sequential(
            nn.Conv2d(symbols, channels, 3, padding=1),
            ResBlock(channels, channels),
            Downsample(channels, channels),
            ResBlock(channels, channels),
            nn.Conv2d(channels, symbols, 3, padding=1),
        )
        self.hyper_synthesis = nn.Sequential(
            nn.Conv2d(symbols, channels, 3, padding=1),
            ResBlock(channels, channels),
            Upsample(channels),
            ResBlock(channels, channels),
            nn.Conv2d(channels, 2 * symbols, 3, padding=1),
        )
        context = symbols
        self.entropy_map: nn.Sequential | None = None
        if map_config.in_entropy:
            features = config.entropy_map_channels
            context += features
            self.entropy_map = _context_network(map_config.plane_count, (features,), features)

        def networks() -> nn.ModuleList:
            return nn.ModuleList(
                _context_network(context + index * self.slice_channels, config.context_channels, self.slice_channels)
                for index in range(config.slices)
            )

        self.mean_networks, self.scale_networks = networks(), networks()
        self.entropy_bottleneck = EntropyBottleneck(symbols)
        if rate.mode is RateMode.GAINED:
            # The best quantisation step falls with the square root of lambda. On the CPU even for a model that is only
            # shapes (`unfilled_model`): on the meta device such sums import PyTorch's compiler, which takes seconds.
            lambdas = torch.tensor(rate.lambdas, device="cpu")
            start = (0.5 * (lambdas.log() - lambdas.log().mean())).unsqueeze(1).repeat(1, symbols)
            self.log_gains = nn.Parameter(start.clone())
            self.log_inverse_gains = nn.Parameter(-start)

    def map_pyramid(self, planes: MapPlanes | None) -> MapPyramid | None:
        """Features of the map for both transforms; none for a model without a map in its transforms.

        Raises:
            UsageError: the model reads a map, and there are no planes.
        """
        if self.semantic_encoder is None:
            return None
        if planes is None:
            raise UsageError("this model's transforms read a map: give its planes, or all-zero planes for no map")
        eighth = self.semantic_encoder(planes)
        sixteenth = self.pyramid[0](eighth)
        return MapPyramid(eighth, sixteenth, self.pyramid[1](sixteenth))

    def analyse(self, latent: Latent, pyramid: MapPyramid | None, rates: Rates | None = None) -> Analysis:
        """Latent to unrounded symbols and hyper-symbols. `rates` is for gained models, and only for them.

        Raises:
            UsageError: the latent's sides are no multiples of 8, or `rates` does not fit the model.
        """
        height, width = latent.shape[2:]
        stride = HYPER_STRIDE // LATENT_STRIDE
        if height % stride or width % stride or not height or not width:
            raise UsageError(
                f"the latent has {width}x{height} places: compression needs sides that are multiples of {stride}, so "
                f"crop or pad the picture to multiples of {IMAGE_STRIDE} pixels"
            )
        return self.with_hyper_symbols(torch.as_tensor(self.analysis(latent, pyramid)), rates)

    def with_hyper_symbols(self, symbols: Symbols, rates: Rates | None) -> Analysis:
        """The second half of `analyse`: what the analysis gave, scaled to its rate, and the side information on it."""
        if (gain := self._gain("log_gains", rates)) is not None:
            symbols = symbols * gain
        return Analysis(symbols, self.hyper_analysis(symbols))

    def synthesise(self, symbols: Symbols, pyramid: MapPyramid | None, rates: Rates | None = None) -> Latent:
        """Decoded symbols (y_hat: rounded residual plus mean) to latent."""
        return self.synthesise_scaled(self.scaled_back(symbols, rates), pyramid)

    def scaled_back(self, symbols: Symbols, rates: Rates | None) -> Symbols:
        """Decoded symbols as those of every rate are: the first half of `synthesise`."""
        gain = self._gain("log_inverse_gains", rates)
        return symbols if gain is None else symbols * gain

    def synthesise_scaled(self, symbols: Symbols, pyramid: MapPyramid | None) -> Latent:
        """The second half: symbols of any rates to latent."""
        return torch.as_tensor(self.synthesis(symbols, None if pyramid is None else pyramid[::-1]))

    def contexts(self, hyper_symbols: HyperSymbols, planes: MapPlanes | None) -> Contexts:
        """Hyper-synthesis of rounded hyper-symbols, with the map's features where the entropy model has the map.

        Raises:
            UsageError: the entropy model reads a map, and there are no planes.
        """
        scales, means = self.hyper_synthesis(hyper_symbols).chunk(2, dim=1)
        if self.entropy_map is not None:
            if planes is None:
                raise UsageError("this model's entropy networks read a map: give its planes, or all-zero ones for none")
            shares = self.entropy_map(class_shares(planes))
            return Contexts(torch.cat((scales, shares), dim=1), torch.cat((means, shares), dim=1))
        return Contexts(scales, means)

    def estimate(self, index: int, contexts: Contexts, previous: list[Tensor]) -> Estimate:
        """Mean and scale of slice `index` from the contexts and the decoded slices before it."""
        return Estimate(
            self.mean_networks[index](torch.cat((contexts.means, *previous), dim=1)),
            self.scale_networks[index](torch.cat((contexts.scales, *previous), dim=1)),
        )

    def forward(self, latent: Latent, planes: MapPlanes | None, rates: Rates | None = None) -> Compressed:
        """Compress and decompress in one differentiable pass; bits are minus the log-likelihoods of each sample."""
        pyramid = self.map_pyramid(planes)
        analysis = self.analyse(latent, pyramid, rates)
        # Likelihoods and rounding are in full precision whatever the networks run in.
        with torch.autocast(latent.device.type, enabled=False):
            hyper_symbols, symbols = analysis.hyper_symbols.float(), analysis.symbols.float()
            medians = self.entropy_bottleneck.medians()
            hyper_hat = round_straight_through(hyper_symbols - medians) + medians
            hyper_bits = _bits(
                self.entropy_bottleneck.likelihood(with_noise(hyper_symbols) if self.training else hyper_hat)
            )
        contexts = self.contexts(hyper_hat, planes)
        decoded: list[Tensor] = []
        symbol_bits = torch.zeros_like(hyper_bits)
        for index, piece in enumerate(symbols.chunk(self.config.slices, dim=1)):
            estimate = self.estimate(index, contexts, decoded)
            with torch.autocast(latent.device.type, enabled=False):
                means, scales = estimate.means.float(), estimate.scales.float()
                decoded.append(round_straight_through(piece - means) + means)
                values = with_noise(piece) if self.training else decoded[-1]
                symbol_bits = symbol_bits + _bits(gaussian_likelihood(values, means, scales))
        return Compressed(self.synthesise(torch.cat(decoded, dim=1), pyramid, rates).float(), symbol_bits, hyper_bits)

    def _gain(self, name: str, rates: Rates | None) -> Float[Tensor, "batch symbol_channels 1 1"] | None:
        """Gain vectors at positions on the rate axis: log-linear between two lambdas."""
        if (rates is None) is (self.rate.mode is RateMode.GAINED):
            raise UsageError(
                f"a {self.rate.mode} model {'needs' if rates is None else 'takes no'} positions on the rate axis"
            )
        if rates is None:
            return None
        table = torch.as_tensor(getattr(self, name))
        rates = rates.clamp(0, len(self.rate.lambdas) - 1)
        low = rates.floor().long().clamp(max=len(self.rate.lambdas) - 2)
        share = (rates - low).unsqueeze(1)
        return ((1 - share) * table[low] + share * table[low + 1]).exp()[:, :, None, None]


def _bits(likelihoods: Tensor) -> Bits:
    return -likelihoods.log2().flatten(1).sum(1)
