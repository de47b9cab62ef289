"""A scene to a `.magc` stream: windows with a margin are analysed, chunks are entropy-coded each alone.

    source ─► window and margin ─► encode ─► analysis ─► symbols without the margin ─┐
    chunk of symbols, map ─► hyper-symbols ─► exact entropy coding ─► chunk of bytes ◄┘

The analysis sees past a chunk's border, so that symbols know nothing of chunks; the contexts that predict them do not,
so that each chunk can be read alone. What is held at once does not grow with the scene, but for its compressed bytes.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Shaped, UInt8
from torch import Tensor

from magc_model.bitstream import MapKind
from magc_model.codec import MagcCodec, Rate, map_digest
from magc_model.config import LATENT_STRIDE, SYMBOL_STRIDE
from magc_model.embedded_map import encode_map
from magc_model.errors import DataError, UsageError
from magc_model.scene.georeference import Georeference, Missing, pack_georeference
from magc_model.scene.grid import Window, blocks, padded
from magc_model.scene.stream import MAX_CHUNK_PX, Chunk, SceneHeader, chunk_check, crc_of, pack_chunk, pack_header
from magc_model.wire import CHECK_BYTES

CELL_PX = 512
"""Symbols are made for squares of this side."""
MARGIN_PX = 128
"""And the networks see so much ground around each, four symbols: beyond it they hardly look."""

Picture = UInt8[np.ndarray[Any, Any], "_height _width 3"]
ClassMap = UInt8[np.ndarray[Any, Any], "_height _width"]
Mask = Bool[np.ndarray[Any, Any], "_height _width"]


class Pixels(NamedTuple):
    """A window of a scene."""

    rgb: Picture
    valid: Mask | None
    """Which pixels there are; none: all."""


@runtime_checkable
class Placed(Protocol):
    """Something with a size and a place."""

    @property
    def width_px(self) -> int:
        """Columns."""
        ...

    @property
    def height_px(self) -> int:
        """Rows."""
        ...

    @property
    def georeference(self) -> Georeference:
        """Where it lies, and what its file says of it."""
        ...


@runtime_checkable
class PixelSource(Placed, Protocol):
    """Where a scene's pixels come from."""

    def read(self, window: Window) -> Pixels:
        """A window that lies inside."""
        ...


@runtime_checkable
class MapSource(Protocol):
    """Where its map comes from: the same class ids for a pixel whatever the window."""

    def read(self, window: Window) -> ClassMap:
        """A window that lies inside."""
        ...


class SceneCost(NamedTuple):
    """What a scene costs, in bytes."""

    total: int
    payload: int
    ideal: float
    """Information content of the symbols: what no coder can go below."""
    embedded_map: int
    mask: int
    """Which pixels there are, where not all."""
    georeference: int
    chunks: int
    """How many of them."""


class CompressedScene(NamedTuple):
    """A stream and what it cost."""

    stream: bytes
    cost: SceneCost


class Coded(NamedTuple):
    """A chunk without its check, and its share of the cost."""

    body: bytes
    payload: int
    ideal_bits: float
    embedded_map: int
    mask: int
    symbols: Tensor | None
    """As the receiver will have them."""


def compress_scene(
    codec: MagcCodec,
    source: PixelSource,
    maps: MapSource | None = None,
    *,
    rate: Rate | None = None,
    seed: int = 0,
    embed_map: bool = False,
    chunk_px: int = MAX_CHUNK_PX,
    on_chunk: Callable[[], None] = lambda: None,
) -> CompressedScene:
    """The stream of a scene of any size.

    Args:
        codec: with its model.
        source: the pixels.
        maps: class ids on the same grid, or none for ground without a map.
        rate: for gained models.
        seed: of the noise field that the receiver draws on unless told otherwise.
        embed_map: store the map in the stream.
        chunk_px: side of what can be read alone; a multiple of 64, at most 1024.
        on_chunk: called as each chunk is done.

    Raises:
        UsageError: the rate does not fit the model, or the model needs a map and there is none.
        DataError: the map does not fit the model, or there is no valid pixel.
    """
    step = codec.rate_step(rate)
    encoder = SceneEncoder(codec, source, maps, embed_map=embed_map, chunk_px=chunk_px)
    coded = []
    for window in encoder.windows():
        coded.append(encoder.encode(window, encoder.analyse(window), step)._replace(symbols=None))
        on_chunk()
    return encoder.assemble(coded, seed)


class Analysed(NamedTuple):
    """A chunk's symbols before they are scaled to a rate, and what goes with them."""

    symbols: Tensor | None
    """Shape [1, symbol_channels, height / 32, width / 32]; none where no pixel is valid."""
    latent: Tensor | None
    """What they were made from, shape [1, 4, height / 8, width / 8]."""
    map_data: bytes
    mask: bytes | None


class SceneEncoder:
    """Chunks of one scene, one after the other."""

    def __init__(
        self,
        codec: MagcCodec,
        source: PixelSource,
        maps: MapSource | None,
        *,
        embed_map: bool,
        chunk_px: int,
    ) -> None:
        self._codec, self._source, self._chunk_px = codec, source, chunk_px
        is_used = codec.model.config.map.is_used
        if embed_map and not (is_used and maps is not None):
            raise UsageError("there is no map to embed, or the model reads none: leave --embed-map away")
        self._maps = maps if is_used else None
        self._kind = MapKind.NONE if self._maps is None else MapKind.EMBEDDED if embed_map else MapKind.DIGEST
        self._has_mask = source.georeference.missing is not Missing.NONE
        self._whole = Window(0, 0, padded(source.width_px), padded(source.height_px))

    def windows(self) -> Iterator[Window]:
        """The chunks, row by row."""
        return blocks(Window(0, 0, self._source.width_px, self._source.height_px), self._chunk_px)

    def analyse(self, window: Window) -> Analysed:
        """A chunk's symbols."""
        valid = self._source.read(window).valid if self._has_mask else None
        if valid is not None and not valid.any():
            return Analysed(None, None, b"", None)
        mask = None
        if self._has_mask:
            mask = b"" if valid is None or valid.all() else encode_map(valid.astype(np.uint8))
        map_data = b""
        if self._maps is not None:
            ids = self._checked(self._maps.read(window), window)
            map_data = encode_map(ids) if self._kind is MapKind.EMBEDDED else map_digest(ids)
        symbols, latents = [], []
        for y in range(0, padded(window.height_px), CELL_PX):
            row = []
            for x in range(0, padded(window.width_px), CELL_PX):
                width, height = padded(window.width_px) - x, padded(window.height_px) - y
                cell = Window(window.x_px + x, window.y_px + y, min(CELL_PX, width), min(CELL_PX, height))
                row.append(self._analysed(cell))
            symbols.append(torch.cat([each for each, _ in row], dim=3))
            latents.append(torch.cat([each for _, each in row], dim=3))
        return Analysed(torch.cat(symbols, dim=2), torch.cat(latents, dim=2), map_data, mask)

    def class_ids(self, window: Window) -> Tensor | None:
        """A chunk's map, shape [1, height, width], filled up to multiples of 64."""
        if self._maps is None:
            return None
        return torch.from_numpy(filled_up(self._checked(self._maps.read(window), window)))[None]

    def encode(self, window: Window, chunk: Analysed, step: int | None) -> Coded:
        """A chunk's bytes at a rate."""
        if chunk.symbols is None:
            return Coded(b"", 0, 0.0, 0, 0, None)
        codec = self._codec
        [coded] = codec.reconstructor.encode_symbols(chunk.symbols, self.class_ids(window), codec.position(step))
        body = pack_chunk(Chunk(step, chunk.map_data, chunk.mask, coded.payload), self._kind)
        embedded = len(chunk.map_data) if self._kind is MapKind.EMBEDDED else 0
        return Coded(body, len(coded.payload), coded.ideal_bits, embedded, len(chunk.mask or b""), coded.symbols)

    def assemble(self, chunks: list[Coded], seed: int) -> CompressedScene:
        """The whole stream."""
        if not 0 <= seed < 2**64:
            raise UsageError(f"the seed is {seed}: expected 0 to 2^64 - 1")
        if not any(chunk.body for chunk in chunks):
            raise DataError("the scene has no valid pixel: there is nothing to compress")
        place = pack_georeference(self._source.georeference)
        header = SceneHeader(
            self._codec.entropy_model,
            self._codec.is_gained,
            self._source.width_px,
            self._source.height_px,
            self._chunk_px,
            seed,
            self._kind,
            place,
        )
        packed = pack_header(header, [len(chunk.body) + CHECK_BYTES if chunk.body else 0 for chunk in chunks])
        crc = crc_of(packed)
        parts = [packed]
        for number, chunk in enumerate(chunks):
            if chunk.body:
                parts += [chunk.body, chunk_check(chunk.body, number, crc)]
        stream = b"".join(parts)
        cost = SceneCost(
            len(stream),
            sum(chunk.payload for chunk in chunks),
            sum(chunk.ideal_bits for chunk in chunks) / 8,
            sum(chunk.embedded_map for chunk in chunks),
            sum(chunk.mask for chunk in chunks),
            len(place),
            len(chunks),
        )
        return CompressedScene(stream, cost)

    def _analysed(self, cell: Window) -> tuple[Tensor, Tensor]:
        """A cell's symbols and latent, made with the ground around it in view."""
        seen = cell.widened(MARGIN_PX, self._whole)
        there = seen.meets(Window(0, 0, self._source.width_px, self._source.height_px))
        size = (seen.height_px, seen.width_px)
        picture = torch.from_numpy(filled_up(_filled(self._source.read(there)), size))[None]
        class_ids = None
        if self._maps is not None:
            ids = self._checked(self._maps.read(there), there)
            class_ids = torch.from_numpy(filled_up(ids, size))[None]
        analysis = self._codec.reconstructor.analyse(picture, class_ids)
        inner = cell.within(seen)
        symbols = analysis.symbols[:, :, *inner.divided(SYMBOL_STRIDE).slices]
        return symbols, analysis.latent[:, :, *inner.divided(LATENT_STRIDE).slices]

    @staticmethod
    def _checked(ids: ClassMap, window: Window) -> ClassMap:
        if ids.shape != (window.height_px, window.width_px):
            raise DataError(
                f"the map has {ids.shape[1]}x{ids.shape[0]} pixels where the scene has "
                f"{window.width_px}x{window.height_px}: they must cover the same ground at the same size"
            )
        return ids


def filled_up(pixels: Shaped[np.ndarray[Any, Any], "..."], size: tuple[int, int] | None = None) -> Any:
    """Repeat the last column and row up to a size (height, width); to multiples of 64 if none is given."""
    height, width = pixels.shape[:2]
    wanted = size or (padded(height), padded(width))
    rest = [(0, 0)] * (pixels.ndim - 2)
    return np.pad(pixels, [(0, wanted[0] - height), (0, wanted[1] - width), *rest], mode="edge")


def _filled(pixels: Pixels) -> Picture:
    """The mean colour where there is no pixel: it costs least, and does not bleed into what there is."""
    if pixels.valid is None or pixels.valid.all():
        return pixels.rgb
    mean = pixels.rgb[pixels.valid].mean(axis=0) if pixels.valid.any() else np.full(3, 127.0)
    return np.where(pixels.valid[..., None], pixels.rgb, mean.round().astype(np.uint8))
