"""All symbols of a picture in one string of CompressAI's range coder.

CompressAI's own codecs write a string a channel group and pass: eleven for ELIC, each with a floor of 8 bytes, which is
0.01 bits a pixel of a 256-px tile. Its coder can take them all one after the other; `JoinedCoder` stands in for the
coder of every entropy model of a network, and does so. The autoregressive models call the coder themselves, for all
their symbols at once: theirs is a second string.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from magc_model.baselines.architectures import CODECS
from magc_model.baselines.config import SEQUENTIAL, STRIDE_PX
from magc_model.baselines.network import BaselineCodec
from magc_model.errors import BitstreamError, EvaluationError
from magc_model.shapes import Image, MapPlanes

LEAST_SYMBOLS = 8
"""CompressAI 1.2.8 writes up to two words more than symbols into memory for as many words as symbols: a string of one
symbol ends the process. From a handful on, words are fewer than symbols."""


class JoinedCoder:
    """In the place of CompressAI's `_EntropyCoder`: strings handed over are empty, what is in them is kept here."""

    def __init__(self) -> None:
        self._ans = importlib.import_module("compressai.ans")
        self._encoder: Any = None
        self._decoder: Any = None
        self._last: list[int] = []
        self._count = 0

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Symbols that come are kept until `string` is asked for."""
        self._encoder, self._last, self._count = self._ans.BufferedRansEncoder(), [], 0
        try:
            yield
        finally:
            self._encoder = None

    @contextmanager
    def reading(self, string: bytes) -> Iterator[None]:
        """Symbols are taken from a string, in the order they were written in."""
        self._decoder = self._ans.RansDecoder()
        self._decoder.set_stream(string)
        try:
            yield
        finally:
            self._decoder = None

    def string(self) -> bytes:
        """What was written.

        Raises:
            EvaluationError: so little that the range coder would damage the memory.
        """
        if self._count < LEAST_SYMBOLS:
            raise EvaluationError(
                f"there are {self._count} symbols to code, and CompressAI's coder needs {LEAST_SYMBOLS}: "
                "use a network with more channels"
            )
        return bytes(self._encoder.flush())

    def encode_with_indexes(self, symbols: list[int], *tables: Any) -> bytes:
        """As CompressAI's; what it would have returned comes later, from `string`."""
        self._encoder.encode_with_indexes(symbols, *tables)
        self._last, self._count = symbols, self._count + len(symbols)
        return b""

    def decode_with_indexes(self, _string: bytes, *tables: Any) -> list[int]:
        """As CompressAI's. While writing: the symbols that just came, which encoders ask back for their context."""
        return self._last if self._decoder is None else list(self._decoder.decode_stream(*tables))


class Strings(NamedTuple):
    """A picture as the coder has it."""

    parts: tuple[bytes, ...]
    """One string, or two of an autoregressive model."""


class PictureCoder:
    """Encodes and decodes padded pictures with a baseline, in evaluation mode and on the CPU.

    Tables are made from the weights here, in float: another machine's or library's may differ by a unit, and would then
    decode noise. Measure where you encode.
    """

    def __init__(self, codec: BaselineCodec) -> None:
        self._codec = codec.cpu().eval()
        body: Any = codec.body
        body.update(force=True)
        self._joined = JoinedCoder()
        for module in body.modules():
            if hasattr(module, "entropy_coder"):
                module.entropy_coder = self._joined
        self._layout = CODECS[codec.config.architecture].layout
        self._is_sequential = codec.config.architecture in SEQUENTIAL

    @property
    def part_count(self) -> int:
        """Strings a picture."""
        return 2 if self._is_sequential else 1

    @torch.no_grad()
    def encode(self, image: Image) -> Strings:
        """Strings of one image in [-1, 1] whose sides are multiples of 64."""
        body: Any = self._codec.body
        with self._joined.writing():
            strings = body.compress((image + 1) / 2)["strings"]
            joined = self._joined.string()
        return Strings((joined, strings[0][0]) if self._is_sequential else (joined,))

    @torch.no_grad()
    def decode(self, strings: Strings, height_px: int, width_px: int, planes: MapPlanes | None) -> Image:
        """The image of these padded sides.

        Raises:
            BitstreamError: the strings are not what the encoder wrote.
            DataError: there is no map, and the decoder reads one.
        """
        first = strings.parts[1] if self._is_sequential else b""
        parts = [[first], *([b""] for _ in range(self._layout.strings(self._codec.config) - 1))]
        shape = self._layout.shape(self._codec.config, height_px // STRIDE_PX, width_px // STRIDE_PX)
        with self._joined.reading(strings.parts[0]):
            try:
                return self._codec.decompress(parts, shape, planes)
            except (ValueError, IndexError, RuntimeError, OverflowError) as error:
                reason = " ".join(str(error).split())[:200]
                raise BitstreamError(
                    f"the stream cannot be decoded ({reason}): decode it with the model and on the machine it was "
                    "written with"
                ) from None


def padded(image: Image) -> Float[Tensor, "batch 3 padded_height padded_width"]:
    """An image with its last row and column repeated, up to multiples of 64."""
    height_px, width_px = image.shape[-2:]
    below, right = (-side % STRIDE_PX for side in (height_px, width_px))
    return torch.nn.functional.pad(image, (0, right, 0, below), mode="replicate")
