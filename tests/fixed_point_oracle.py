"""The arithmetic of `magc_model.entropy.fixed_point` once more, slowly: numpy int64, sums in integers only.

Activations are int64 arrays [batch, height, width, channels] beside their exponent. Nothing here is taken from the code
that it checks, but for the numbers that define the arithmetic.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import nn

from magc_model.nets.blocks import ChannelNorm, ResBlock

if TYPE_CHECKING:
    from collections.abc import Iterator

BOUND = 1 << 22


class Activation(NamedTuple):
    integers: np.ndarray
    exponent: int
    bound: int = BOUND


def shifted(integers: np.ndarray, shift: int) -> np.ndarray:
    """integers x 2^shift, rounded half to even, clamped."""
    if shift >= 0:
        return np.clip(np.clip(integers, -BOUND, BOUND) << min(shift, 24), -BOUND, BOUND)
    if shift < -60:
        return np.zeros_like(integers)
    floor = integers >> -shift
    rest = integers - (floor << -shift)
    half = 1 << (-shift - 1)
    return np.clip(floor + ((rest > half) | ((rest == half) & (floor & 1 == 1))), -BOUND, BOUND)


def gelu_values() -> list[int]:
    """(relu - GELU)(k / 256) in units of 2^-20."""
    return [round(k / 256 * 0.5 * math.erfc(k / 256 / math.sqrt(2)) * 2**20) for k in range(2049)]


def run(module: nn.Module, activation: Activation, exponents: Iterator[int]) -> Activation:
    """Evaluate a module; `exponents` gives the grid behind each convolution, in their order."""
    if isinstance(module, nn.Sequential):
        for each in module:
            activation = run(each, activation, exponents)
        return activation
    if isinstance(module, ResBlock):
        body = run(module.second, run(module.first, activation, exponents), exponents)
        skip = run(module.skip, activation, exponents)
        exponent = min(body.exponent, skip.exponent)
        both = (shifted(each.integers, exponent - each.exponent) for each in (body, skip))
        return Activation(np.clip(sum(both), -BOUND, BOUND), exponent)
    if isinstance(module, nn.Conv2d):
        return _convolution(module, activation, next(exponents))
    return {
        nn.Identity: lambda _, same: same,
        ChannelNorm: _norm,
        nn.LeakyReLU: _leaky,
        nn.GELU: _gelu,
        nn.PixelShuffle: _shuffle,
    }[type(module)](module, activation)


def _quantised(weight: np.ndarray, bias: np.ndarray, activation: Activation) -> tuple[int, np.ndarray, np.ndarray]:
    """The finest grid up to 2^-24 on which no sum can reach 2^53."""
    for exponent in itertools.count(24, -1):
        numbers, offsets = np.ldexp(weight, exponent), np.ldexp(bias, exponent + activation.exponent)
        if max(np.abs(numbers).max() * activation.bound, np.abs(offsets).max()) >= 2**54:
            continue
        integers, offset_integers = np.rint(numbers).astype(np.int64), np.rint(offsets).astype(np.int64)
        magnitudes = np.abs(integers).reshape(len(integers), -1)
        # In two halves, lest the check itself overflows.
        high, low = (magnitudes >> 20).sum(axis=1), (magnitudes & (2**20 - 1)).sum(axis=1)
        largest = max((int(h) << 20) + int(lo) for h, lo in zip(high, low, strict=True))
        if largest * activation.bound + int(np.abs(offset_integers).max()) < 2**53:
            return exponent, integers, offset_integers
    raise AssertionError


def _convolution(layer: nn.Conv2d, activation: Activation, out_exponent: int) -> Activation:
    weight = layer.weight.detach().double().numpy()
    bias = np.zeros(len(weight)) if layer.bias is None else layer.bias.detach().double().numpy()
    exponent, weight, bias = _quantised(weight, bias, activation)
    (kernel, _), (stride, _), (padding, _) = layer.kernel_size, layer.stride, layer.padding
    padded = np.pad(activation.integers, ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)))
    batch, height, width, _ = padded.shape
    rows, columns = (height - kernel) // stride + 1, (width - kernel) // stride + 1
    sums = np.broadcast_to(bias, (batch, rows, columns, len(bias))).copy()
    for row, column in itertools.product(range(kernel), repeat=2):
        seen = padded[
            :, row : row + (rows - 1) * stride + 1 : stride, column : column + (columns - 1) * stride + 1 : stride
        ]
        sums += seen @ weight[:, :, row, column].T
    return Activation(shifted(sums, out_exponent - activation.exponent - exponent), out_exponent)


def _norm(layer: ChannelNorm, activation: Activation) -> Activation:
    integers = activation.integers
    channels = integers.shape[-1]
    gain, bias = (each.detach().double().numpy().flatten() for each in (layer.gain, layer.bias))
    mean = np.rint(integers.sum(axis=-1, keepdims=True) * (1 / channels)).astype(np.int64)
    centred = integers - mean
    epsilon = max(math.ldexp(1e-5, 2 * activation.exponent), 2**-12)
    variance = (centred**2).sum(axis=-1, keepdims=True) * (1 / channels) + epsilon
    normalised = np.empty_like(centred)
    for place, each in np.ndenumerate(variance[..., 0]):
        shift = next(k for k in range(60) if each * 4**k >= 2**50)
        root = math.isqrt(int(each * 4**shift))
        normalised[place] = np.rint(centred[place] * 2.0 ** (shift + 16) / root)
    reach = (math.isqrt(channels) + 1) << 16
    exponent, gain, bias = _quantised(gain.reshape(-1, 1), bias, Activation(integers, 16, reach))
    largest = int(np.abs(gain).max()) * reach + int(np.abs(bias).max())
    out_exponent = min(14, 16 + exponent + 22 - largest.bit_length())
    products = normalised * gain.flatten() + bias
    return Activation(shifted(products, out_exponent - 16 - exponent), out_exponent)


def _leaky(layer: nn.LeakyReLU, activation: Activation) -> Activation:
    integers = activation.integers
    small = np.rint(integers.astype(np.float64) * layer.negative_slope).astype(np.int64)
    return activation._replace(integers=np.where(integers < 0, small, integers))


def _gelu(_: nn.GELU, activation: Activation) -> Activation:
    integers, exponent, _ = activation
    values = np.array([*gelu_values(), gelu_values()[-1]], dtype=np.int64)
    fine = max(exponent - 8, 0)
    magnitude = np.minimum(np.abs(integers) << min(max(8 - exponent, 0), 24), 2048 << fine)
    place, rest = magnitude >> fine, magnitude & ((1 << fine) - 1)
    correction = (values[place] << fine) + (values[place + 1] - values[place]) * rest
    return activation._replace(integers=np.maximum(integers, 0) - shifted(correction, exponent - 20 - fine))


def _shuffle(layer: nn.PixelShuffle, activation: Activation) -> Activation:
    batch, height, width, channels = activation.integers.shape
    factor = layer.upscale_factor
    out = np.empty((batch, height * factor, width * factor, channels // factor**2), dtype=np.int64)
    for channel, row, column in itertools.product(range(out.shape[-1]), range(factor), range(factor)):
        out[:, row::factor, column::factor, channel] = activation.integers[
            ..., (channel * factor + row) * factor + column
        ]
    return activation._replace(integers=out)
