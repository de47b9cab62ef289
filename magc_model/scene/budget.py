"""A scene in a given number of bytes: a rate for each chunk, where the bytes do most good.

    each chunk at six rates ─► bits and squared error of the latent ─► smooth curves of both over the rate
    price of a bit ─► each chunk's rate of least error + price x bits ─► total size;  the price is found by bisection

Where every chunk pays the same price for its last bit, no exchange of bytes between two chunks makes the whole better
(Shoham and Gersho 1988, "Efficient bit allocation for an arbitrary set of quantizers").
"""

import tempfile
from collections.abc import Callable
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64

from magc_model.bitstream import RATE_STEPS
from magc_model.codec import MagcCodec
from magc_model.errors import UsageError
from magc_model.scene.compress import Analysed, Coded, CompressedScene, MapSource, PixelSource, SceneEncoder
from magc_model.scene.grid import Window
from magc_model.scene.stream import MAX_CHUNK_PX

PROBED_STEPS = (0, 51, 102, 153, 204, 255)
"""With six lambdas, those of training."""

AIM = 0.99
"""Share of the budget that is aimed at: sizes of real streams differ from the curves' by less than a hundredth."""
GOOD_ENOUGH = 0.97
ATTEMPTS = 6

Curves = Float64[np.ndarray[Any, Any], "chunks steps"]


class RateCurves(NamedTuple):
    """What each chunk costs and how far it is off at every rate step, 0 to 255."""

    bits: Curves
    squared_error: Curves


def compress_scene_to_size(
    codec: MagcCodec,
    source: PixelSource,
    maps: MapSource | None = None,
    *,
    max_bytes: int,
    seed: int = 0,
    embed_map: bool = False,
    chunk_px: int = MAX_CHUNK_PX,
    on_chunk: Callable[[], None] = lambda: None,
) -> CompressedScene:
    """The best stream of a scene that has at most so many bytes, all included; for gained models.

    Other arguments and errors are those of `compress_scene`.

    Raises:
        UsageError: the model has one rate, or its lowest rate needs more bytes.
    """
    if not codec.is_gained:
        raise UsageError(
            f"this model has one rate (lambda {codec.model.config.rate.lambdas[0]:g}) and cannot aim at a size: leave "
            "the size away, or use a model trained with --rate gained"
        )
    encoder = SceneEncoder(codec, source, maps, embed_map=embed_map, chunk_px=chunk_px)
    windows = list(encoder.windows())
    with tempfile.TemporaryFile() as file:
        chunks = _Analysed(file)
        probes = []
        for window in windows:
            chunk = encoder.analyse(window)
            chunks.append(chunk)
            probes.append([_probe(codec, encoder, window, chunk, step) for step in PROBED_STEPS])
            on_chunk()

        def compressed(steps: Int64[np.ndarray[Any, Any], " chunks"]) -> CompressedScene:
            coded = [
                encoder.encode(window, chunks[number], int(step))._replace(symbols=None)
                for number, (window, step) in enumerate(zip(windows, steps, strict=True))
            ]
            return encoder.assemble(coded, seed)

        return _fitted(curves(np.array(probes, np.float64)), compressed, max_bytes)


def _fitted(
    table: RateCurves,
    compressed: Callable[[Int64[np.ndarray[Any, Any], " chunks"]], CompressedScene],
    max_bytes: int,
) -> CompressedScene:
    count = len(table.bits)
    smallest = compressed(np.zeros(count, np.int64))
    if smallest.cost.total > max_bytes:
        raise UsageError(
            f"the smallest stream of this scene has {smallest.cost.total} bytes, {max_bytes} were asked for: allow "
            "more, or use a model trained for lower rates"
        )
    largest = compressed(np.full(count, RATE_STEPS, np.int64))
    if largest.cost.total <= max_bytes:
        return largest
    best, target = smallest, AIM * max_bytes
    for _ in range(ATTEMPTS):
        found = compressed(allocate(table, (target - (smallest.cost.total - smallest.cost.ideal)) * 8))
        if best.cost.total < found.cost.total <= max_bytes:
            best = found
        if GOOD_ENOUGH * max_bytes <= best.cost.total:
            break
        target *= AIM * max_bytes / found.cost.total  # the curves are off by about as much near by
    return best


def _probe(codec: MagcCodec, encoder: SceneEncoder, window: Window, chunk: Analysed, step: int) -> tuple[float, float]:
    """Bits, and squared error of the latent."""
    coded: Coded = encoder.encode(window, chunk, step)
    if coded.symbols is None or chunk.latent is None:
        return 0.0, 0.0
    symbols = codec.reconstructor.scaled_back(coded.symbols[None], codec.position(step))
    latent = codec.reconstructor.synthesise(symbols, encoder.class_ids(window))
    return coded.ideal_bits, float((latent - chunk.latent).square().sum())


def curves(probes: Float64[np.ndarray[Any, Any], "chunks probes 2"]) -> RateCurves:
    """Bits and errors at every step, from those at the probed ones: cubics of their logarithms, made monotone."""
    steps = np.arange(RATE_STEPS + 1)
    # One more keeps chunks without symbols from minus infinity.
    logs = np.log(probes + 1).transpose(1, 0, 2).reshape(len(PROBED_STEPS), -1)
    smooth = np.polynomial.polynomial.Polynomial
    fits = np.stack([smooth.fit(PROBED_STEPS, column, 3)(steps) for column in logs.T])
    values = np.exp(fits.reshape(len(probes), 2, -1)) - 1
    return RateCurves(np.maximum.accumulate(values[:, 0], axis=1), np.minimum.accumulate(values[:, 1], axis=1))


def allocate(table: RateCurves, total_bits: float) -> Int64[np.ndarray[Any, Any], " chunks"]:
    """The steps that leave the least squared error for at most so many bits, by the curves; all 0 if none do."""

    def steps_at(price: float) -> Int64[np.ndarray[Any, Any], " chunks"]:
        return np.asarray((table.squared_error + price * table.bits).argmin(axis=1))

    def bits_of(steps: Int64[np.ndarray[Any, Any], " chunks"]) -> float:
        return float(np.take_along_axis(table.bits, steps[:, None], axis=1).sum())

    cheap, dear = 1e-12, 1e12
    for _ in range(100):
        price = float(np.sqrt(cheap * dear))
        cheap, dear = (price, dear) if bits_of(steps_at(price)) > total_bits else (cheap, price)
    steps = steps_at(dear)
    if bits_of(steps) > total_bits:
        return np.zeros_like(steps)
    # At this price some chunks jump from one rate to a much higher one: those that fit do, the next goes part of the
    # way. What is left then, where no chunk gains anything more by the curves, is spent all the same.
    for more in (steps_at(cheap), np.full_like(steps, RATE_STEPS)):
        for chunk in np.argsort(steps - more, kind="stable"):
            left = total_bits - bits_of(steps) + table.bits[chunk, steps[chunk]]
            fitting = np.flatnonzero(table.bits[chunk, : more[chunk] + 1] <= left)
            steps[chunk] = max(steps[chunk], fitting[-1])
    return steps


class _Analysed:
    """Analysed chunks on disk: of a large scene they are more than memory should hold."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._kept: list[tuple[int, tuple[int, ...] | None, bytes, bytes | None]] = []

    def append(self, chunk: Analysed) -> None:
        """Keep one more."""
        place, shape = self._file.seek(0, 2), None
        if chunk.symbols is not None:
            shape = tuple(chunk.symbols.shape)
            self._file.write(chunk.symbols.cpu().contiguous().numpy().tobytes())
        self._kept.append((place, shape, chunk.map_data, chunk.mask))

    def __getitem__(self, number: int) -> Analysed:
        place, shape, map_data, mask = self._kept[number]
        if shape is None:
            return Analysed(None, None, map_data, mask)
        self._file.seek(place)
        values = np.frombuffer(self._file.read(4 * int(np.prod(shape))), np.float32).reshape(shape)
        return Analysed(torch.from_numpy(values.copy()), None, map_data, mask)
