"""Float networks evaluated in exact arithmetic: the same integers on every machine, in every order of summation.

An activation is an integer in [-2^22, 2^22] that stands for integer x 2^-exponent; it is carried in float64. So:

    convolution     integer weights, every possible sum below 2^53: float64 adds without rounding, hence in any order,
                    on any number of threads and on any device. As unfold + matrix product: no library may put a
                    Winograd transform, TF32 or another approximation of the convolution in its place
    after it        x power of two (exact), round half to even, clamp
    ChannelNorm     exact sums, an exact integer square root; a multiplication, an addition and a division, each
                    correctly rounded (IEEE 754) and a kernel of its own, so that no compiler fuses them; round;
                    integer gain and bias
    LeakyReLU       one multiplication, round
    GELU            relu(x) minus an even function that is tabled in integers and interpolated exactly

Nothing divides by a scalar (CUDA multiplies by its reciprocal instead), and no network is ever compiled or traced.
Weights are put on the finest grid for which the bound on the sums holds; it follows from the weights alone and comes
out the same everywhere. The grids of the activations are given (`exponents`, made once by `magc_model.entropy.tables`).
The idea is that of integer networks (Balle et al., ICLR 2019), without their training.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int32
from torch import Tensor, nn
from torch.nn import functional

from magc_model.errors import ModelError
from magc_model.nets.blocks import NORM_EPSILON, ChannelNorm, ResBlock

BOUND = 2**22
"""Activations are clamped to +- this."""
FINEST_EXPONENT = 14
"""Activations are multiples of 2^-14, or coarser where that would not hold them."""
_FINEST_WEIGHT_EXPONENT = 24
_EXACT = 2**53
_NORMALISED_EXPONENT = 16

GELU_REACH = 8
"""From here on GELU is relu (to 5e-15)."""
GELU_STEP_EXPONENT = 8
"""The table has a value every 2^-8, linearly interpolated: off by 2e-6 at most, before the result is rounded."""
GELU_VALUE_EXPONENT = 20
GELU_TABLE_SIZE = GELU_REACH * 2**GELU_STEP_EXPONENT + 1

_WINDOWS_AT_ONCE = 2**21
"""Unfolded values that a convolution holds at a time (16 MB)."""

Integers = Float64[Tensor, "groups batch feature_height feature_width channels"]
"""Integer activations of a group of networks; with channels innermost, unfolding copies long runs."""
OutIntegers = Float64[Tensor, "groups batch out_height out_width out_channels"]
Windows = Float64[Tensor, "groups positions window"]
"""Unfolded activations: what a convolution sees at each position of the batch, by row, column and channel."""
GeluTable = Int32[Tensor, " gelu_entries"]

Exponents = list[int]
"""One for each network of a group."""
Step = Callable[[Tensor], Tensor]


class Grid(NamedTuple):
    """What integers at some point of a group of networks stand for."""

    exponents: Exponents
    bound: int
    """Largest possible magnitude of the integers."""


def gelu_table() -> GeluTable:
    """|x| * normal_cdf(-|x|) for |x| = 0, 2^-8, ... 8, which is relu(x) - GELU(x), in units of 2^-20."""
    steps = (index / 2**GELU_STEP_EXPONENT for index in range(GELU_TABLE_SIZE))
    values = [step * 0.5 * math.erfc(step / math.sqrt(2)) for step in steps]
    return torch.tensor([round(each * 2**GELU_VALUE_EXPONENT) for each in values], dtype=torch.int32)


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    """The convolutions of a network, in the order of their exponents."""
    return [each for each in network.modules() if isinstance(each, nn.Conv2d)]


def unfold(integers: Integers, kernel: int, stride: int = 1, padding: int = 0) -> Windows:
    """What a square window sees at each position."""
    padded = _pad(integers, padding)
    groups, batch, height, width, channels = padded.shape
    rows, columns = (height - kernel) // stride + 1, (width - kernel) // stride + 1
    group, picture, row, column, _ = padded.stride()
    windows = padded.as_strided(
        (groups, batch, rows, columns, kernel, kernel * channels),
        (group, picture, row * stride, column * stride, row, 1),
    )
    return windows.reshape(groups, batch * rows * columns, kernel**2 * channels)


def _pad(integers: Tensor, padding: int) -> Tensor:
    padded = functional.pad(integers, (0, 0, *(padding,) * 4)) if padding else integers
    # Channels may be cut out of more of them; the windows' columns have to lie side by side.
    return padded if padded.stride(4) == 1 and padded.stride(3) == padded.shape[4] else padded.contiguous()


class FixedPointNetwork:
    """A group of float networks of one architecture as one exact network: group g of the input goes through network g.

    Made of convolutions (square, zero-padded), ChannelNorm, LeakyReLU, GELU, PixelShuffle, ResBlock and sequences.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        grid: Grid,
        exponents: Sequence[Sequence[int]],
        gelu: GeluTable,
        parts: Sequence[int] | None = None,
    ) -> None:
        """Quantise.

        Args:
            networks: one for each group.
            grid: of the input.
            exponents: a number a convolution for each network: the grids of what comes out of it.
            gelu: the table.
            parts: channels of the inputs that are unfolded one by one for `from_windows`; one part if not given.

        Raises:
            ModelError: a weight is infinite or no number, or is not float32.
        """
        grids: dict[int, int] = {}
        for network, given in zip(networks, exponents, strict=True):
            layers = convolutions(network)
            if len(layers) != len(given):
                raise ModelError("the entropy tables belong to another model: they have another number of grids")
            grids |= {id(layer): exponent for layer, exponent in zip(layers, given, strict=True)}
        builder = _Builder(grids, gelu, parts)
        self._steps, self.grid = builder.build(tuple(networks), grid)

    @torch.no_grad()
    def __call__(self, integers: Integers) -> OutIntegers:
        """Evaluate on integers of the input's grid."""
        for step in self._steps:
            integers = step(integers)
        return integers

    @torch.no_grad()
    def from_windows(self, windows: Windows, size: Sequence[int]) -> OutIntegers:
        """Evaluate a network that begins with a convolution on what that one sees, unfolded part by part.

        Args:
            windows: side by side, the windows of each part.
            size: batch, height and width of the convolution's output.
        """
        first, *rest = self._steps
        if not isinstance(first, _Convolution):
            raise TypeError("the network does not begin with a convolution")
        sums = first.from_windows(windows)
        integers = sums.reshape(len(sums), *size, -1)
        for step in rest:
            integers = step(integers)
        return integers


class _Builder:
    """Turns modules into steps, keeping track of the grid."""

    def __init__(self, exponents: dict[int, int], gelu: GeluTable, parts: Sequence[int] | None) -> None:
        self._exponents, self._gelu, self._parts = exponents, gelu, parts

    def build(self, modules: tuple[nn.Module, ...], grid: Grid) -> tuple[list[Step], Grid]:
        """Steps for modules of one kind, one of each network of the group, and the grid that they lead to."""
        first = modules[0]
        if isinstance(first, nn.Sequential):
            steps: list[Step] = []
            for layer in zip(*modules, strict=True):
                more, grid = self.build(layer, grid)
                steps += more
            return steps, grid
        if isinstance(first, nn.Identity):
            return [], grid
        step: Step
        if isinstance(first, ResBlock):
            step = _Residual(self, [each for each in modules if isinstance(each, ResBlock)], grid)
            return [step], step.grid
        if isinstance(first, nn.Conv2d):
            found = [each for each in modules if isinstance(each, nn.Conv2d)]
            step = _Convolution(found, grid, [self._exponents[id(each)] for each in modules], self._parts)
            self._parts = None  # only the first one has them
            return [step], step.grid
        if isinstance(first, ChannelNorm):
            step = _ChannelNorm([each for each in modules if isinstance(each, ChannelNorm)], grid)
            return [step], step.grid
        if isinstance(first, nn.GELU) and first.approximate == "none":
            return [_Gelu(self._gelu, grid)], grid
        if isinstance(first, nn.LeakyReLU) and 0 <= first.negative_slope <= 1:
            return [_LeakyRelu(first.negative_slope)], grid
        if isinstance(first, nn.PixelShuffle):
            return [_PixelShuffle(first.upscale_factor)], grid
        raise ValueError(f"there is no exact form of {first}")


class _Convolution:
    def __init__(self, layers: list[nn.Conv2d], grid: Grid, exponents: Exponents, parts: Sequence[int] | None) -> None:
        first = layers[0]
        self._kernel, self._stride = first.kernel_size[0], first.stride[0]
        self._parts = [first.in_channels] if parts is None else list(parts)
        padding = first.padding
        if (
            isinstance(padding, str)
            or first.groups != 1
            or any(each != 1 for each in first.dilation)
            or first.padding_mode != "zeros"
            or len({*first.kernel_size}) + len({*first.stride}) + len({*padding}) != 3
        ):
            raise ValueError(f"there is no exact form of {first}")
        self._padding = padding[0]
        weights, biases, scales = [], [], []
        for layer, in_exponent, out_exponent in zip(layers, grid.exponents, exponents, strict=True):
            bias = layer.weight.new_zeros(layer.out_channels) if layer.bias is None else layer.bias
            exponent, weight, bias_integers = _quantise(layer.weight, bias, grid.bound, in_exponent)
            # As windows are: by part, row, column and channel.
            taps = [each.permute(2, 3, 1, 0).flatten(0, 2) for each in torch.split(weight, self._parts, dim=1)]
            weights.append(torch.cat(taps))
            biases.append(bias_integers.unsqueeze(0))
            scales.append(math.ldexp(1.0, out_exponent - in_exponent - exponent))
        self._weight, self._bias = torch.stack(weights), torch.stack(biases)
        self._scale = _per_group(scales, self._weight, 3)
        self.grid = Grid(exponents, BOUND)

    def __call__(self, integers: Tensor) -> Tensor:
        groups, batch, height, width, channels = integers.shape
        rows, columns = ((side + 2 * self._padding - self._kernel) // self._stride + 1 for side in (height, width))
        strip = max(1, _WINDOWS_AT_ONCE // (groups * batch * columns * self._kernel**2 * channels))
        padded = _pad(integers, self._padding)
        strips = []
        for start in range(0, rows, strip):
            stop = min(start + strip, rows)
            seen = padded[:, :, start * self._stride : (stop - 1) * self._stride + self._kernel]
            windows = [unfold(each, self._kernel, self._stride) for each in torch.split(seen, self._parts, dim=4)]
            sums = self.from_windows(torch.cat(windows, dim=2) if len(windows) > 1 else windows[0])
            strips.append(sums.reshape(groups, batch, stop - start, columns, -1))
        return torch.cat(strips, dim=2) if len(strips) > 1 else strips[0]

    def from_windows(self, windows: Tensor) -> Tensor:
        sums = torch.baddbmm(self._bias, windows, self._weight)
        return sums.mul_(self._scale).round_().clamp_(-BOUND, BOUND)


class _ChannelNorm:
    def __init__(self, layers: list[ChannelNorm], grid: Grid) -> None:
        pairs = [(each.gain, each.bias) for each in layers if each.gain is not None and each.bias is not None]
        if len(pairs) != len(layers):
            raise ValueError("there is no exact form of a ChannelNorm without gain and bias")
        channels = pairs[0][0].shape[1]
        # The largest sum of squared differences from the rounded mean.
        if channels * (grid.bound**2 + 1) >= _EXACT:
            raise ValueError(f"the sums of a ChannelNorm over {channels} channels would not be exact")
        self._share = 1.0 / channels
        largest = (math.isqrt(channels) + 1) << _NORMALISED_EXPONENT
        gains, biases, scales, exponents = [], [], [], []
        for float_gain, float_bias in pairs:
            exponent, gain, bias = _quantise(
                float_gain.reshape(channels, 1), float_bias.flatten(), largest, _NORMALISED_EXPONENT
            )
            gain = gain.flatten()
            reach = int(gain.abs().max()) * largest + int(bias.abs().max())
            # The finest grid on which the result stays in bounds: one less a bit that the largest result is too long.
            product = _NORMALISED_EXPONENT + exponent
            spare = BOUND.bit_length() - 1 - reach.bit_length()
            exponents.append(min(FINEST_EXPONENT, product + spare))
            scales.append(math.ldexp(1.0, exponents[-1] - product))
            gains.append(gain)
            biases.append(bias)
        self._gain = torch.stack(gains)[:, None, None, None]
        self._bias = torch.stack(biases)[:, None, None, None]
        self._scale = _per_group(scales, self._gain, 5)
        # On coarse grids the smallest variance takes over: any variance of integers that differ is larger.
        epsilons = [max(math.ldexp(NORM_EPSILON, 2 * each), math.ldexp(1.0, -12)) for each in grid.exponents]
        self._epsilon = _per_group(epsilons, self._gain, 5)
        self.grid = Grid(exponents, BOUND)

    def __call__(self, integers: Tensor) -> Tensor:
        centred = integers - integers.sum(dim=4, keepdim=True).mul_(self._share).round_()
        variance = centred.square().sum(dim=4, keepdim=True).mul_(self._share).add_(self._epsilon)
        # variance x 4^shift lies in [2^50, 2^52)
        shift = 25 - (((variance.view(torch.int64) >> 52) - 1023) >> 1)
        root = _integer_root((variance * _power_of_two(2 * shift)).floor_())
        normalised = centred.mul_(_power_of_two(shift + _NORMALISED_EXPONENT)).div_(root).round_()
        return normalised.mul_(self._gain).add_(self._bias).mul_(self._scale).round_()


class _Residual:
    def __init__(self, builder: _Builder, blocks: list[ResBlock], grid: Grid) -> None:
        self._body, body = builder.build(tuple(nn.Sequential(each.first, each.second) for each in blocks), grid)
        self._skip, skip = builder.build(tuple(each.skip for each in blocks), grid)
        exponents = [min(pair) for pair in zip(body.exponents, skip.exponents, strict=True)]
        sample = next(blocks[0].parameters())
        self._body_scale = _alignment(body.exponents, exponents, sample)
        self._skip_scale = _alignment(skip.exponents, exponents, sample)
        self.grid = Grid(exponents, BOUND)

    def __call__(self, integers: Tensor) -> Tensor:
        body, skip = integers, integers
        for step in self._body:
            body = step(body)
        for step in self._skip:
            skip = step(skip)
        if self._body_scale is not None:
            body = body.mul(self._body_scale).round_()
        if self._skip_scale is not None:
            skip = skip.mul(self._skip_scale).round_()
        return (body + skip).clamp_(-BOUND, BOUND)


class _Gelu:
    def __init__(self, table: GeluTable, grid: Grid) -> None:
        self._values = table.double()
        self._slopes = functional.pad(self._values.diff(), (0, 1))
        self._position_scale = _per_group(
            [math.ldexp(1.0, GELU_STEP_EXPONENT - each) for each in grid.exponents], self._values, 5
        )
        self._value_scale = _per_group(
            [math.ldexp(1.0, each - GELU_VALUE_EXPONENT) for each in grid.exponents], self._values, 5
        )

    def __call__(self, integers: Tensor) -> Tensor:
        position = integers.abs().mul_(self._position_scale).clamp_(max=GELU_TABLE_SIZE - 1)
        index = position.int()
        places = index.flatten()
        correction = position.sub_(index).mul_(self._slopes.index_select(0, places).view_as(position))
        correction.add_(self._values.index_select(0, places).view_as(position))
        return integers.clamp(min=0).sub_(correction.mul_(self._value_scale).round_())


class _LeakyRelu:
    def __init__(self, slope: float) -> None:
        self._slope = slope

    def __call__(self, integers: Tensor) -> Tensor:
        return functional.leaky_relu(integers, self._slope).round_()


class _PixelShuffle:
    def __init__(self, factor: int) -> None:
        self._factor = factor

    def __call__(self, integers: Tensor) -> Tensor:
        groups, batch, height, width, channels = integers.shape
        factor = self._factor
        pieces = integers.reshape(groups, batch, height, width, channels // factor**2, factor, factor)
        return pieces.permute(0, 1, 2, 5, 3, 6, 4).reshape(
            groups, batch, height * factor, width * factor, channels // factor**2
        )


def _power_of_two(exponents: Tensor) -> Tensor:
    """2^exponent in float64, by its bits: no library's power function is trusted to be exact."""
    return ((exponents + 1023) << 52).view(torch.float64)


def _integer_root(squares: Tensor) -> Tensor:
    """floor(sqrt(x)) of integers below 2^52. Torch's own float64 root is off by one unit at times (AVX-512 builds)."""
    root = squares.sqrt().floor_()
    root -= (root.square() > squares).double()
    root += ((root + 1).square() <= squares).double()
    return root


def _quantise(weight: Tensor, bias: Tensor, in_bound: int, in_exponent: int) -> tuple[int, Tensor, Tensor]:
    """Exponent of the finest weight grid whose sums stay exact, and integer weights and biases on it.

    Biases are on the grid of the products. The search uses exact integers only, so that it ends alike everywhere.
    """
    if weight.dtype is not torch.float32:
        raise ModelError(
            f"the entropy networks' weights are {weight.dtype}, expected float32 as they were trained: "
            "other weights would write and read other streams"
        )
    rows, offsets = weight.detach().double(), bias.detach().double()
    if not (bool(rows.isfinite().all()) and bool(offsets.isfinite().all())):
        raise ModelError("the entropy networks hold weights that are infinite or no numbers: the model is damaged")
    for exponent in _falling(rows, offsets * math.ldexp(1.0, in_exponent), in_bound):
        integers = (rows * math.ldexp(1.0, exponent)).round()
        bias_integers = (offsets * math.ldexp(1.0, exponent + in_exponent)).round()
        # Sums of integers of one sign are exact below 2^53 and stay above it once they are.
        largest, largest_bias = int(integers.abs().flatten(1).sum(dim=1).max()), int(bias_integers.abs().max())
        if largest * in_bound + largest_bias < _EXACT:
            return exponent, integers, bias_integers
    raise AssertionError("unreachable: all-zero weights are always exact")


def _falling(rows: Tensor, offsets: Tensor, in_bound: int) -> Iterator[int]:
    """Weight exponents worth trying, finest first: from where the largest weight alone would still be exact."""
    largest = max(float(rows.abs().max()) * in_bound, float(offsets.abs().max()))
    _, bits = math.frexp(largest)
    start = min(_FINEST_WEIGHT_EXPONENT, 54 - bits)
    return iter(range(start, start - 64, -1))


def _per_group(numbers: list[float], like: Tensor, dimensions: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64, device=like.device).reshape(-1, *(1,) * (dimensions - 1))


def _alignment(found: Exponents, wanted: Exponents, like: Tensor) -> Tensor | None:
    """Factors that bring integers from one grid to a coarser one; none where nothing is to be done."""
    if found == wanted:
        return None
    return _per_group([math.ldexp(1.0, after - before) for before, after in zip(found, wanted, strict=True)], like, 5)
