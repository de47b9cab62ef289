"""Will streams travel? The entropy decoder run in every way that could change a float, and compared to the last bit.

    synthetic latents and maps ─► payloads, once ─► decode_symbols in each configuration ─► the same y_hat, bit for bit?

Threads, batches, oneDNN, matrix precision, default dtype and order of work all change how floating-point sums are
formed. A decoder with its networks in plain float32 loses a tile here and there between two of these; the fixed-point
networks must lose none.
"""

import contextlib
import platform
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from magc_model.config import HYPER_STRIDE, LATENT_CHANNELS, LATENT_STRIDE, SYMBOL_STRIDE
from magc_model.entropy.coder import PayloadError
from magc_model.entropy.latent_codec import LatentCodec
from magc_model.errors import ModelError
from magc_model.model import MagcModel
from magc_model.shapes import ClassIds

TILE_PX = 2 * HYPER_STRIDE


class Configuration(NamedTuple):
    """A way to run the decoder."""

    name: str
    batch_size: int
    threads: int
    onednn: bool = True
    matmul_precision: str = "highest"
    default_dtype: torch.dtype = torch.float32
    backwards: bool = False


CONFIGURATIONS = (
    Configuration("1 thread, 32 tiles at a time", 32, 1),
    Configuration("1 thread, a tile at a time", 1, 1),
    Configuration("2 threads, 32 tiles at a time", 32, 2),
    Configuration("2 threads, a tile at a time", 1, 2),
    Configuration("without oneDNN", 32, 2, onednn=False),
    Configuration("matrices in medium precision", 32, 2, matmul_precision="medium"),
    Configuration("float64 by default", 32, 2, default_dtype=torch.float64),
    Configuration("7 tiles at a time, backwards", 7, 2, backwards=True),
)


class Finding(NamedTuple):
    """What a configuration did."""

    name: str
    tiles: int
    wrong_tiles: int
    """Whose symbols are not the sender's, to the last bit."""


def environment() -> dict[str, str]:
    """What the machine computes with."""
    return {
        "machine": f"{platform.machine()}, {platform.system()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def examine(model: MagcModel, tiles: int, report: Callable[[Finding], None] = lambda _: None) -> list[Finding]:
    """Run every configuration over synthetic tiles.

    Args:
        model: with entropy tables; stays as it is.
        tiles: how many, of 128x128 pixels.
        report: is told each finding as it comes.

    Raises:
        ModelError: the model cannot compress.
    """
    if model.latent_compression is None or model.tables is None:
        raise ModelError("the model cannot compress yet: train it with `magc-train stage1` first")
    codec = LatentCodec(model.latent_compression.eval(), model.tables)
    latents, class_ids = _latents(tiles), _maps(tiles, model)
    highest = len(model.config.rate.lambdas) - 1
    payloads: list[bytes] = []
    expected: list[bytes] = []
    for some in _batches(range(tiles), 32):
        rates = None if not highest else torch.full((len(some),), highest / 2)
        planes = model.planes(None if class_ids is None else class_ids[some], (len(some), TILE_PX, TILE_PX))
        for compressed in codec.compress(latents[some], planes, rates):
            payloads.append(compressed.payload)
            expected.append(_bits(compressed.symbols))
    findings = []
    for configuration in CONFIGURATIONS:
        with _configured(configuration):
            wrong = _wrong_tiles(codec, model, payloads, expected, class_ids, configuration)
        findings.append(Finding(configuration.name, tiles, wrong))
        report(findings[-1])
    return findings


def _wrong_tiles(
    codec: LatentCodec,
    model: MagcModel,
    payloads: Sequence[bytes],
    expected: Sequence[bytes],
    class_ids: ClassIds | None,
    configuration: Configuration,
) -> int:
    numbers = range(len(payloads))[:: -1 if configuration.backwards else 1]
    side = TILE_PX // SYMBOL_STRIDE
    wrong = 0
    for some in _batches(numbers, configuration.batch_size):
        planes = model.planes(None if class_ids is None else class_ids[some], (len(some), TILE_PX, TILE_PX))
        try:
            decoded = codec.decode_symbols([payloads[number] for number in some], (side, side), planes)
        except PayloadError:
            wrong += len(some)  # which one of the batch strayed is not known
            continue
        wrong += sum(_bits(each) != expected[number] for each, number in zip(decoded, some, strict=True))
    return wrong


@contextlib.contextmanager
def _configured(configuration: Configuration) -> Iterator[None]:
    threads, precision, dtype = (
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.get_default_dtype(),
    )
    torch.set_num_threads(configuration.threads)
    torch.set_float32_matmul_precision(configuration.matmul_precision)
    torch.set_default_dtype(configuration.default_dtype)
    try:
        with warnings.catch_warnings():
            # Switching oneDNN off and on also sets what only Intel's GPUs have, of which torch warns.
            warnings.filterwarnings("ignore", message="TF32 acceleration on top of oneDNN")
            with torch.backends.mkldnn.flags(enabled=configuration.onednn):
                yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.set_default_dtype(dtype)


def _batches(numbers: Sequence[int], size: int) -> list[list[int]]:
    return [list(numbers[start : start + size]) for start in range(0, len(numbers), size)]


def _bits(symbols: Tensor) -> bytes:
    return bytes(symbols.contiguous().numpy().tobytes())


def _latents(count: int) -> Float32[Tensor, "count 4 latent_height latent_width"]:
    side = TILE_PX // LATENT_STRIDE
    random = np.random.Generator(np.random.Philox(0))
    return torch.from_numpy(random.standard_normal((count, LATENT_CHANNELS, side, side), dtype=np.float32))


def _maps(count: int, model: MagcModel) -> UInt8[Tensor, "count height width"] | None:
    """Blocks of random classes."""
    if not model.config.map.is_used:
        return None
    random = np.random.Generator(np.random.Philox(1))
    ids = np.array([each.id for each in model.config.map.classes], np.uint8)
    blocks = ids[random.integers(0, len(ids), (count, TILE_PX // 16, TILE_PX // 16))]
    return torch.from_numpy(np.ascontiguousarray(blocks.repeat(16, axis=1).repeat(16, axis=2)))
