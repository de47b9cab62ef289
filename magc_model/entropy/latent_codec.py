"""Latents to bytes and back, the same symbols at both ends whatever machine each runs on.

    latent ─► analysis ─► y, h      float, in any precision: only the sender sees them
    h ─► round ─► hyper-symbols ─► exact hyper-synthesis ─► contexts (with exact features of the map)
    slice i: exact mean and scale networks on contexts and y_hat of slices < i ─► means on a grid, rows of the tables
             round(y - mean) ─► symbols,   y_hat = mean + symbol, exactly
    hyper-symbols, then the slices' symbols ─► one payload a picture
    y_hat ─► synthesis ─► latent_hat   float, in any precision

Sender and receiver run the same exact networks (`magc_model.entropy.fixed_point`) and read the same integer tables; the
receiver takes symbols from the payload where the sender takes them from y.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int32
from torch import Tensor

from magc_model.config import SYMBOL_STRIDE
from magc_model.entropy.coder import SYMBOL_LIMIT, Array, PayloadDecoder, encode, ideal_bits
from magc_model.entropy.fixed_point import BOUND, FixedPointNetwork, Grid, Integers, convolutions, unfold
from magc_model.entropy.tables import EntropyTables
from magc_model.errors import ModelError, UsageError
from magc_model.nets.latent_compression import LatentCompression, MapPyramid
from magc_model.nets.map_planes import class_shares
from magc_model.shapes import HyperSymbols, Latent, MapPlanes, Rates, Symbols

_SHARE_EXPONENT = 2 * (SYMBOL_STRIDE.bit_length() - 1)
"""Class shares are multiples of 1/1024."""

SliceIntegers = Float64[Tensor, "batch symbol_height symbol_width slice_channels"]
TakeSymbols = Callable[[int, SliceIntegers, Tensor], SliceIntegers]
"""Slice number, its means (integers on their grid) and rows of the tables -> its symbols."""


class CompressedLatent(NamedTuple):
    """One picture's latent as bytes."""

    payload: bytes
    ideal_bits: float
    """Information content of all symbols by the tables."""
    symbols: Float64[Tensor, "symbol_channels symbol_height symbol_width"]
    """y_hat, as the receiver will have it."""


class LatentCodec:
    """Compresses with a trained LCM (in float32, on any device, in evaluation mode) and its tables."""

    def __init__(self, lcm: LatentCompression, tables: EntropyTables, precision: torch.dtype = torch.float32) -> None:
        """Make the exact networks.

        Args:
            lcm: the module.
            tables: its tables.
            precision: what analysis and synthesis run in (autocast); any sender can serve any receiver.

        Raises:
            ModelError: the tables do not belong to this LCM, or its entropy networks are not in float32.
        """
        self._lcm, self._tables, self._precision = lcm, tables, precision
        self._coding = tables.coding
        device = next(lcm.parameters()).device
        hyper_exponent, exponent = (int(each) for each in tables.grids)
        self._hyper_step, self._step = math.ldexp(1.0, hyper_exponent), math.ldexp(1.0, exponent)
        self._thresholds = tables.scale_thresholds.to(device, torch.float64)
        self._levels = len(tables.scale_thresholds) + 1
        self._medians = tables.medians.to(device, torch.float64)
        if len(tables.medians) != lcm.config.symbol_channels or len(tables.mean_networks) != lcm.config.slices:
            raise ModelError(
                f"the entropy tables are for {len(tables.medians)} symbol channels in {len(tables.mean_networks)} "
                f"slices, the model has {lcm.config.symbol_channels} in {lcm.config.slices}: they are another model's"
            )
        if len(tables.entropy_map) and lcm.entropy_map is None:
            raise ModelError("the entropy tables are for a model with the map in its entropy networks, this has none")
        gelu = tables.gelu.to(device)
        self._hyper_synthesis = FixedPointNetwork(
            [lcm.hyper_synthesis], Grid([hyper_exponent], BOUND), [tables.hyper_synthesis.tolist()], gelu
        )
        self._entropy_map: FixedPointNetwork | None = None
        if lcm.entropy_map is not None:
            shares = Grid([_SHARE_EXPONENT], 2**_SHARE_EXPONENT)
            self._entropy_map = FixedPointNetwork([lcm.entropy_map], shares, [tables.entropy_map.tolist()], gelu)
        self._slices = [
            FixedPointNetwork(
                networks,
                Grid([exponent] * 2, BOUND),
                [mean_exponents.tolist(), scale_exponents.tolist()],
                gelu,
                [convolutions(networks[0])[0].in_channels - index * lcm.slice_channels, *[lcm.slice_channels] * index],
            )
            for index, (*networks, mean_exponents, scale_exponents) in enumerate(
                zip(lcm.mean_networks, lcm.scale_networks, tables.mean_networks, tables.scale_networks, strict=True)
            )
        ]

    @torch.no_grad()
    def compress(self, latent: Latent, planes: MapPlanes | None, rates: Rates | None = None) -> list[CompressedLatent]:
        """Compress a batch; `rates` is for gained models, and only for them.

        Raises:
            UsageError: planes or rates that the model needs are missing, the latent's sides are no multiples of 8, or
                the LCM is in training mode.
        """
        self._check_mode()
        with self._autocast(latent):
            analysis = self._lcm.analyse(_channels_last(latent), self._pyramid(planes), rates)
        return self.encode(analysis.symbols, analysis.hyper_symbols, planes)

    @torch.no_grad()
    def decompress(
        self,
        payloads: Sequence[bytes],
        size: tuple[int, int],
        planes: MapPlanes | None,
        rates: Rates | None = None,
    ) -> Latent:
        """Latents of payloads that all stand for `size` = height and width in symbols.

        Raises:
            PayloadError: a payload cannot have been written with these tables.
            UsageError: planes or rates that the model needs are missing, the size is odd, or the LCM is in training
                mode.
        """
        self._check_mode()
        symbols = self.decode_symbols(payloads, size, planes).float()
        with self._autocast(symbols):
            return self._lcm.synthesise(_channels_last(symbols), self._pyramid(planes), rates).float()

    # --- in pieces, for scenes: analysis and synthesis over windows, entropy coding by chunks -----------------------

    @torch.no_grad()
    def analyse(self, latent: Latent, planes: MapPlanes | None) -> Symbols:
        """Unrounded symbols of a latent, before they are scaled to a rate."""
        self._check_mode()
        with self._autocast(latent):
            return torch.as_tensor(self._lcm.analysis(_channels_last(latent), self._pyramid(planes))).float()

    @torch.no_grad()
    def encode_analysed(
        self, symbols: Symbols, planes: MapPlanes | None, rates: Rates | None = None
    ) -> list[CompressedLatent]:
        """Entropy-code what `analyse` gave; chunks cut from it as well, sides even."""
        self._check_mode()
        with self._autocast(symbols):
            analysis = self._lcm.with_hyper_symbols(_channels_last(symbols), rates)
        return self.encode(analysis.symbols, analysis.hyper_symbols, planes)

    @torch.no_grad()
    def scaled_back(self, symbols: Symbols, rates: Rates | None = None) -> Symbols:
        """Decoded symbols as those of every rate are."""
        return self._lcm.scaled_back(symbols, rates)

    @torch.no_grad()
    def synthesise(self, symbols: Symbols, planes: MapPlanes | None) -> Latent:
        """Latent of decoded symbols that were scaled back."""
        self._check_mode()
        with self._autocast(symbols):
            return self._lcm.synthesise_scaled(_channels_last(symbols), self._pyramid(planes)).float()

    @torch.no_grad()
    def encode(self, symbols: Symbols, hyper_symbols: HyperSymbols, planes: MapPlanes | None) -> list[CompressedLatent]:
        """Entropy-code what the analysis gave."""
        if not (bool(symbols.isfinite().all()) and bool(hyper_symbols.isfinite().all())):
            raise ModelError("the analysis gave values that are no numbers: the model or the picture is damaged")
        # Channels innermost, as the exact networks have it; y in units of the means' grid.
        targets = (symbols.double() * self._step).movedim(1, 3).chunk(len(self._slices), dim=3)
        medians = self._medians * (1 / self._hyper_step)
        hyper = (hyper_symbols.double().movedim(1, 3) - medians).round_().clamp_(-SYMBOL_LIMIT, SYMBOL_LIMIT)
        coded = [_pictures(hyper)]
        rows = [_pictures(self._hyper_rows(hyper))]

        def take(index: int, means: Tensor, slice_rows: Tensor) -> Tensor:
            residual = (targets[index] - means).mul_(1 / self._step).round_().clamp_(-SYMBOL_LIMIT, SYMBOL_LIMIT)
            coded.append(_pictures(residual))
            rows.append(_pictures(slice_rows))
            return residual

        decoded = self._walk(hyper, planes, take)
        all_symbols, all_rows = np.concatenate(coded, axis=1), np.concatenate(rows, axis=1)
        return [
            CompressedLatent(
                encode(picture, picture_rows, self._coding), ideal_bits(picture, picture_rows, self._coding), y_hat
            )
            for picture, picture_rows, y_hat in zip(all_symbols, all_rows, decoded, strict=True)
        ]

    @torch.no_grad()
    def decode_symbols(
        self, payloads: Sequence[bytes], size: tuple[int, int], planes: MapPlanes | None
    ) -> Float64[Tensor, "batch symbol_channels symbol_height symbol_width"]:
        """y_hat of payloads that all stand for `size` = height and width in symbols; exact.

        Raises:
            PayloadError: a payload cannot have been written with these tables.
            UsageError: planes that the model needs are missing, or the size is odd.
        """
        height, width = size
        if height < 2 or width < 2 or height % 2 or width % 2:
            raise UsageError(f"the symbols are {height}x{width}: both sides must be even")
        decoders = [PayloadDecoder(each, self._coding) for each in payloads]
        channels = len(self._tables.medians)
        device = self._medians.device

        def read(rows: Tensor) -> Tensor:
            values = [decoder.decode(each) for decoder, each in zip(decoders, _pictures(rows), strict=True)]
            return torch.from_numpy(np.stack(values)).to(device, torch.float64).reshape(rows.shape)

        hyper = read(self._hyper_rows(torch.empty(len(payloads), height // 2, width // 2, channels, device=device)))
        symbols = self._walk(hyper, planes, lambda _index, _means, rows: read(rows))
        for decoder in decoders:
            decoder.finish()
        return symbols

    def _walk(self, hyper: Tensor, planes: MapPlanes | None, take: TakeSymbols) -> Tensor:
        """From hyper-symbols through all slices to y_hat; both ends run exactly this."""
        contexts = self._contexts(hyper, planes)
        size, channels, slice_channels = contexts.shape[1:4], contexts.shape[4], self._lcm.slice_channels
        # What the first layer of each slice sees: the contexts, then the slices before it, unfolded once for all.
        filled = 9 * channels
        windows = contexts.new_empty(2, size.numel(), filled + 9 * slice_channels * (len(self._slices) - 1))
        windows[:, :, :filled] = unfold(contexts, 3, padding=1)
        decoded = []
        for index, networks in enumerate(self._slices):
            means, scales = networks.from_windows(windows[:, :, :filled], size)
            symbols = take(index, means, torch.bucketize(scales, self._thresholds, out_int32=True))
            decoded.append((symbols * self._step).add_(means).clamp_(-BOUND, BOUND))
            if index + 1 < len(self._slices):
                before, filled = filled, filled + 9 * slice_channels
                windows[:, :, before:filled] = unfold(decoded[-1].unsqueeze(0), 3, padding=1)
        # Adding 0 makes 0 of -0, which a sender's rounding leaves and a receiver's symbols do not.
        return torch.cat(decoded, dim=3).mul_(1 / self._step).add_(0.0).movedim(3, 1).contiguous()

    def _contexts(self, hyper: Tensor, planes: MapPlanes | None) -> Integers:
        """Contexts of the mean networks and of the scale networks."""
        integers = (hyper.unsqueeze(0) * self._hyper_step).add_(self._medians).clamp_(-BOUND, BOUND)
        scales, means = self._hyper_synthesis(integers)[0].chunk(2, dim=3)
        contexts = torch.stack((means, scales))
        if self._entropy_map is None:
            return contexts
        if planes is None:
            raise UsageError("this model's entropy networks read a map: give its planes, or all-zero ones for none")
        shares = class_shares(planes.float()).double().mul_(2**_SHARE_EXPONENT).round_().movedim(1, 3)
        features = self._entropy_map(shares.unsqueeze(0))
        return torch.cat((contexts, features.expand(2, -1, -1, -1, -1)), dim=4)

    def _hyper_rows(self, hyper: Tensor) -> Tensor:
        """Rows of the hyper-symbols: one a channel, behind those of the Gaussians."""
        rows = torch.arange(hyper.shape[3], dtype=torch.int32, device=hyper.device) + self._levels
        return rows.expand(hyper.shape)

    def _pyramid(self, planes: MapPlanes | None) -> MapPyramid | None:
        return self._lcm.map_pyramid(None if planes is None else _channels_last(planes))

    def _autocast(self, tensor: Tensor) -> torch.autocast:
        return torch.autocast(tensor.device.type, self._precision, enabled=self._precision is not torch.float32)

    def _check_mode(self) -> None:
        if self._lcm.training:
            raise UsageError("the LCM is in training mode, where its normalisation depends on the batch: call eval()")


def _channels_last(tensor: Tensor) -> Tensor:
    """The layout in which convolutions and ChannelNorm are fastest: a fifth less time on CPU."""
    return tensor.contiguous(memory_format=torch.channels_last)


def _pictures(tensor: Tensor) -> Int32[Array, "batch symbols"]:
    """A row of integers a picture: position by position, all channels of each."""
    return tensor.flatten(1).to(torch.int32).cpu().numpy()
