"""The integer tables that a model's streams are coded with: built once from a trained LCM, then stored with the model.

They are never made anew when a model is loaded: exp, erf and the order of float sums differ between machines. Whoever
holds the same weights and the same tables reads the same streams.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int32, Int64
from torch import Tensor, nn

from magc_model.entropy.coder import PRECISION, Array, CodingTables
from magc_model.entropy.fixed_point import (
    BOUND,
    FINEST_EXPONENT,
    GELU_TABLE_SIZE,
    GELU_VALUE_EXPONENT,
    GeluTable,
    convolutions,
    gelu_table,
)
from magc_model.errors import ModelError
from magc_model.nets.entropy_models import SCALE_BOUND, EntropyBottleneck
from magc_model.nets.latent_compression import LatentCompression

SCALE_LEVELS = 128
"""Scales that symbols are coded with: log-spaced, 6 % apart; each scale goes to the nearest."""
LARGEST_SCALE = 256.0
SCALE_EXPONENT = FINEST_EXPONENT
"""Grid of the scale networks' outputs: the largest activation is the largest scale."""

_TOTAL = 2**PRECISION
_RAREST = 0.5 / _TOTAL
"""Symbols at the ends of a row that are less probable than this go to the escape."""
_WIDEST = 2048
"""Hyper-symbols further from the median than this are escaped, however probable."""
_HEADROOM = 16
"""Grids hold activations this many times as large as any seen in the probes."""
_COARSEST_EXPONENT = -128

_PROBES = 8
_PROBE_SIDE = 4
"""Hyper-symbols a side."""


class EntropyTables(NamedTuple):
    """Integers only. Rows of frequencies: the Gaussians by rising scale, then a row a channel of the hyper-symbols."""

    cumulative: Int32[Tensor, " entries"]
    """Cumulative frequencies, row behind row (see `magc_model.entropy.coder`)."""
    starts: Int32[Tensor, " bounds"]
    """Where each row begins, and the end."""
    offsets: Int32[Tensor, " rows"]
    """Smallest symbol of each row."""
    scale_thresholds: Int64[Tensor, " thresholds"]
    """In units of 2^-14: a symbol's row is the number of thresholds below its scale."""
    medians: Int64[Tensor, " symbol_channels"]
    """Of the hyper-symbols, on the hyper-symbols' grid."""
    gelu: GeluTable
    grids: Int64[Tensor, "2"]
    """Exponents of the hyper-symbols, and of the contexts, the means and y_hat."""
    hyper_synthesis: Int64[Tensor, " hyper_convolutions"]
    """Exponents of the activations behind each convolution."""
    entropy_map: Int64[Tensor, " map_convolutions"]
    """The same; empty for a model without the map in its entropy model."""
    mean_networks: Int64[Tensor, "slices convolutions"]
    scale_networks: Int64[Tensor, "slices convolutions"]

    @property
    def coding(self) -> CodingTables:
        """What the coder reads."""
        return CodingTables(*(each.cpu().numpy() for each in (self.cumulative, self.starts, self.offsets)))

    def to_tensors(self) -> dict[str, Tensor]:
        """For a safetensors file."""
        return self._asdict()

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "EntropyTables":
        """Read what `to_tensors` gave.

        Raises:
            ModelError: a table is missing, unknown, of another type or shape, or holds what no table can.
        """
        wrong = sorted(set(tensors) ^ set(cls._fields))
        if wrong:
            raise ModelError(f"the entropy tables {'do not know' if wrong[0] in tensors else 'lack'} '{wrong[0]}'")
        for name, (dtype, dimensions) in _LAYOUT.items():
            found = tensors[name]
            if found.dtype is not dtype or found.ndim != dimensions:
                raise ModelError(
                    f"the entropy table '{name}' is {found.dtype} in {found.ndim} dimensions, "
                    f"expected {dtype} in {dimensions}"
                )
        for holds, what in _demands(tensors):
            if not holds:
                raise ModelError(f"the entropy tables are damaged: {what}")
        return cls(**tensors)


_LAYOUT = {
    "cumulative": (torch.int32, 1),
    "starts": (torch.int32, 1),
    "offsets": (torch.int32, 1),
    "scale_thresholds": (torch.int64, 1),
    "medians": (torch.int64, 1),
    "gelu": (torch.int32, 1),
    "grids": (torch.int64, 1),
    "hyper_synthesis": (torch.int64, 1),
    "entropy_map": (torch.int64, 1),
    "mean_networks": (torch.int64, 2),
    "scale_networks": (torch.int64, 2),
}


def _demands(tensors: Mapping[str, Tensor]) -> Iterator[tuple[bool, str]]:
    """What must hold, each only looked at where everything before it holds."""
    cumulative, starts, offsets = (tensors[name].long() for name in ("cumulative", "starts", "offsets"))
    thresholds, medians = tensors["scale_thresholds"], tensors["medians"]
    rows = len(thresholds) + 1 + len(medians)
    yield len(medians) > 0, "there is no row for hyper-symbols"
    yield len(starts) == rows + 1 and len(offsets) == rows, f"there are {len(offsets)} rows, expected {rows}"
    bounded = bool(starts[0] == 0) and bool(starts[-1] == len(cumulative)) and bool((starts.diff() >= 3).all())
    yield bounded, "a row of frequencies has no symbols"
    first, last = starts[:-1], starts[1:] - 1
    yield bool((cumulative[first] == 0).all()), "a row of frequencies does not begin at 0"
    yield bool((cumulative[last] == _TOTAL).all()), f"a row of frequencies does not end at {_TOTAL}"
    rises = cumulative.diff() > 0
    rises[last[:-1]] = True  # from one row to the next
    yield bool(rises.all()), "a symbol has no frequency"
    yield bool((offsets.abs() <= _TOTAL).all()), "a row of frequencies begins at an impossible symbol"
    yield bool((thresholds.diff() > 0).all()), "the scales do not rise"
    yield bool((medians.abs() <= BOUND).all()), "a median is out of bounds"
    gelu = tensors["gelu"]
    yield len(gelu) == GELU_TABLE_SIZE, f"GELU has {len(gelu)} entries, expected {GELU_TABLE_SIZE}"
    yield bool(((gelu >= 0) & (gelu < 2**GELU_VALUE_EXPONENT)).all()), "an entry of GELU is out of bounds"
    yield len(tensors["grids"]) == 2, "there are not two grids"
    for name in ("grids", "hyper_synthesis", "entropy_map", "mean_networks", "scale_networks"):
        exponents = tensors[name]
        fit = (exponents >= _COARSEST_EXPONENT) & (exponents <= FINEST_EXPONENT)
        yield bool(fit.all()), f"a grid of '{name}' is out of bounds"
    means, scales = tensors["mean_networks"], tensors["scale_networks"]
    yield means.shape == scales.shape and min(means.shape) > 0, "mean and scale networks differ in number or depth"
    yield bool((means[:, -1] == tensors["grids"][1]).all()), "the means are on another grid than y_hat"
    yield bool((scales[:, -1] == SCALE_EXPONENT).all()), "the scales are on an unknown grid"
    ends = [tensors[name][-1:] for name in ("hyper_synthesis", "entropy_map")]
    yield bool((torch.cat(ends) == tensors["grids"][1]).all()), "the contexts are on another grid than y_hat"


@torch.no_grad()
def build_tables(lcm: LatentCompression) -> EntropyTables:
    """Tables of a trained LCM. Not the same to the last bit on every machine: build once, store, share.

    Raises:
        ModelError: the weights are infinite or no numbers.
    """
    if not all(bool(each.isfinite().all()) for each in lcm.parameters()):
        raise ModelError("the latent compression module holds weights that are infinite or no numbers")
    lcm = copy.deepcopy(lcm).cpu().double().eval()
    scales = torch.logspace(math.log10(SCALE_BOUND), math.log10(LARGEST_SCALE), SCALE_LEVELS, dtype=torch.float64)
    thresholds = ((scales[:-1] * scales[1:]).sqrt() * 2**SCALE_EXPONENT).round().long()
    hyper = _hyper_probabilities(lcm.entropy_bottleneck)
    rows = [_row(each, -(len(each) // 2)) for each in (*map(_gaussian, scales.tolist()), *hyper)]
    cumulative = [np.concatenate(([0], np.cumsum(each.frequencies))) for each in rows]

    peaks = _probe(lcm, hyper)
    hyper_exponent = _exponent(peaks.hyper_symbols)
    context_exponent = _exponent(peaks.contexts)

    def exponents(found: list[float], last: int) -> list[int]:
        return [*map(_exponent, found[:-1]), last] if found else []

    return EntropyTables(
        cumulative=torch.from_numpy(np.concatenate(cumulative).astype(np.int32)),
        starts=torch.tensor([0, *np.cumsum([len(each) for each in cumulative])], dtype=torch.int32),
        offsets=torch.tensor([each.offset for each in rows], dtype=torch.int32),
        scale_thresholds=thresholds,
        medians=_on_grid(lcm.entropy_bottleneck.medians().flatten(), hyper_exponent),
        gelu=gelu_table(),
        grids=torch.tensor([hyper_exponent, context_exponent]),
        hyper_synthesis=torch.tensor(exponents(peaks.hyper_synthesis, context_exponent)),
        entropy_map=torch.tensor(exponents(peaks.entropy_map, context_exponent), dtype=torch.int64),
        mean_networks=torch.tensor([exponents(each, context_exponent) for each in peaks.mean_networks]),
        scale_networks=torch.tensor([exponents(each, SCALE_EXPONENT) for each in peaks.scale_networks]),
    )


def _on_grid(values: Tensor, exponent: int) -> Tensor:
    return (values * math.ldexp(1.0, exponent)).round().clamp(-BOUND, BOUND).long()


class _Row(NamedTuple):
    frequencies: Int64[Array, " entries"]
    """Of each symbol and of the escape; they add up to 2^16."""
    offset: int


def _gaussian(scale: float) -> Float64[Tensor, " symbols"]:
    """Probabilities of rounded values about 0, as far as a row may go."""
    reach = math.ceil(6 * scale) + 1
    distance = torch.arange(-reach, reach + 1, dtype=torch.float64).abs()
    factor = -math.sqrt(0.5) / scale
    return 0.5 * (torch.erfc(factor * (0.5 - distance)) - torch.erfc(factor * (-0.5 - distance)))


def _hyper_probabilities(bottleneck: EntropyBottleneck) -> Float64[Tensor, "symbol_channels symbols"]:
    """Probabilities of rounded values about the medians, as far as a row may go."""
    steps = torch.arange(-_WIDEST, _WIDEST + 1, dtype=torch.float64).reshape(1, 1, 1, -1)
    likelihood = bottleneck.likelihood(bottleneck.medians() + steps)
    return likelihood[0, :, 0]


def _row(probabilities: Float64[Tensor, " symbols"], first: int) -> _Row:
    """Frequencies of the symbols that are worth one; the rest is the escape's."""
    likely = torch.nonzero(probabilities >= _RAREST).flatten()
    if not len(likely):
        likely = probabilities.argmax().reshape(1)
    start, stop = int(likely[0]), int(likely[-1]) + 1
    kept = probabilities[start:stop].clamp(max=1.0)
    shares = torch.cat((kept, (1 - kept.sum()).clamp(min=0).reshape(1))).numpy()
    return _Row(_frequencies(shares / shares.sum()), first + start)


def _frequencies(shares: Float64[Array, " entries"]) -> Int64[Array, " entries"]:
    """Integers of at least 1 that add up to 2^16 and cost the least bits."""
    frequencies: Array = np.maximum(1, np.rint(shares * _TOTAL)).astype(np.int64)
    while (excess := int(frequencies.sum()) - _TOTAL) != 0:
        # One unit more or less where it saves most or costs least: p log2((f + 1) / f), p log2(f / (f - 1)).
        if excess < 0:
            frequencies[np.argmax(shares * np.log2((frequencies + 1) / frequencies))] += 1
        else:
            cost = shares * np.log2(frequencies / np.maximum(frequencies - 1, 1))
            frequencies[np.argmin(np.where(frequencies > 1, cost, np.inf))] -= 1
    return frequencies


class _Peaks(NamedTuple):
    """The largest magnitudes that pictures drawn from the model's own densities bring about."""

    hyper_symbols: float
    contexts: float
    """Of contexts, means and y_hat."""
    hyper_synthesis: list[float]
    """Behind each convolution."""
    entropy_map: list[float]
    mean_networks: list[list[float]]
    scale_networks: list[list[float]]


def _probe(lcm: LatentCompression, hyper: Float64[Tensor, "symbol_channels symbols"]) -> _Peaks:
    """Draw hyper-symbols and symbols as the model expects them, and run its entropy networks on them in float.

    Half of the pictures have the same hyper-symbols everywhere, since neighbours in real pictures are alike.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(hyper, _PROBES * _PROBE_SIDE**2, replacement=True, generator=generator) - _WIDEST
    shape = (len(hyper), _PROBES, _PROBE_SIDE, _PROBE_SIDE)
    steps = drawn.reshape(shape).transpose(0, 1).double()
    steps[_PROBES // 2 :] = steps[_PROBES // 2 :, :, :1, :1]
    hyper_symbols = lcm.entropy_bottleneck.medians() + steps

    hyper_synthesis, context = _observe(lcm.hyper_synthesis, hyper_symbols)
    scale_context, mean_context = context.chunk(2, dim=1)
    entropy_map: list[float] = []
    if lcm.entropy_map is not None:
        planes = convolutions(lcm.entropy_map)[0].in_channels
        classes = torch.randint(planes, (_PROBES, 2 * _PROBE_SIDE, 2 * _PROBE_SIDE), generator=generator)
        classes[_PROBES // 2 :] = classes[_PROBES // 2 :, :1, :1]
        shares = nn.functional.one_hot(classes, planes).movedim(-1, 1).double()
        entropy_map, features = _observe(lcm.entropy_map, shares)
        scale_context, mean_context = (torch.cat((each, features), dim=1) for each in (scale_context, mean_context))
    mean_networks, scale_networks = [], []
    for mean_network, scale_network in zip(lcm.mean_networks, lcm.scale_networks, strict=True):
        mean_peaks, means = _observe(mean_network, mean_context)
        scale_peaks, scales = _observe(scale_network, scale_context)
        noise = torch.randn(means.shape, generator=generator, dtype=torch.float64)
        symbols = means + (scales.clamp(SCALE_BOUND, LARGEST_SCALE) * noise).round()
        mean_context = torch.cat((mean_context, symbols), dim=1)
        scale_context = torch.cat((scale_context, symbols), dim=1)
        mean_networks.append(mean_peaks)
        scale_networks.append(scale_peaks)
    peaks = [float(each.abs().max()) for each in (hyper_symbols, mean_context, scale_context)]
    means_peak = max(each[-1] for each in mean_networks)
    return _Peaks(
        peaks[0],
        max(*peaks[1:], means_peak),
        hyper_synthesis,
        entropy_map,
        mean_networks,
        scale_networks,
    )


def _observe(network: nn.Module, inputs: Tensor) -> tuple[list[float], Tensor]:
    """The largest magnitude behind each convolution, and the output."""
    peaks: dict[int, float] = {}

    def note(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        peaks[id(layer)] = float(output.abs().max())

    layers = convolutions(network)
    handles = [layer.register_forward_hook(note) for layer in layers]
    output = network(inputs)
    for handle in handles:
        handle.remove()
    return [peaks[id(layer)] for layer in layers], output


def _exponent(peak: float) -> int:
    """The finest grid that holds activations with this peak, and headroom."""
    _, bits = math.frexp(max(peak, math.ldexp(1.0, -FINEST_EXPONENT)) * _HEADROOM)
    return max(_COARSEST_EXPONENT, min(FINEST_EXPONENT, BOUND.bit_length() - 1 - bits))
