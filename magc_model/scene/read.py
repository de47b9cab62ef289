"""A scene's stream as something to read windows from, without decoding the rest.

    chunks under the window ─► symbols ─┐
    window of the fixed grid and margin ├► synthesis ─► guide ─► sampler on the noise of this place ─► decode ─► pixels
    map ────────────────────────────────┘                                 overlapping windows faded into one another

Every window of the fixed grid is drawn alone, from symbols, map and noise of its own place: what a pixel becomes does
not depend on which part of the scene was asked for. A chunk that is damaged is missing from the picture; around it the
networks see no symbols, as at the scene's border.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from magc_model.bitstream import MapKind
from magc_model.codec import MagcCodec, MapMismatchWarning, map_digest
from magc_model.config import LATENT_STRIDE, SYMBOL_STRIDE
from magc_model.diffusion.noise import NoiseWindow
from magc_model.embedded_map import decode_map
from magc_model.errors import BitstreamError, UsageError
from magc_model.reconstruct import Sampling
from magc_model.scene.compress import MARGIN_PX, ClassMap, MapSource, Mask, Picture, filled_up
from magc_model.scene.georeference import Georeference, Missing, unpack_georeference
from magc_model.scene.grid import Axis, Window, padded
from magc_model.scene.stream import MAX_HEADER_BYTES, Chunk, SceneIndex, unpack_chunk, unpack_header

MAX_WINDOW_PIXELS = 1 << 24
"""Largest window that is read at once, 4096x4096: write a file instead."""

Bands = UInt8[np.ndarray[Any, Any], "_height _width bands"]


@runtime_checkable
class Drawn(Protocol):
    """A stream as something to read windows from: a scene, or a tile."""

    width_px: int
    height_px: int
    georeference: Georeference
    seeds: tuple[int, ...]
    """Of the noise of each draw."""
    damaged: dict[int, str]

    @property
    def bands(self) -> int:
        """3, or 4 with the disagreement of several draws."""
        ...

    @property
    def whole(self) -> Window:
        """All of it."""
        ...

    def read(self, window: tuple[int, int, int, int] | None = None) -> Bands:
        """A window's pixels."""
        ...

    def read_valid(self, window: tuple[int, int, int, int] | None = None) -> Mask:
        """Which pixels of a window there are."""
        ...


class DamagedChunkWarning(UserWarning):
    """A part of a scene is lost."""


class _Ground(NamedTuple):
    """A decoded chunk, filled up to multiples of 64."""

    symbols: Tensor
    """Scaled back; shape [symbol_channels, height / 32, width / 32]."""
    class_ids: UInt8[np.ndarray[Any, Any], "_height _width"] | None
    valid: Bool[np.ndarray[Any, Any], "_height _width"]


class _Recent:
    """The last results of a function."""

    def __init__(self, make: Callable[[tuple[int, int]], Any], size: int) -> None:
        self._make, self._size = make, size
        self._kept: OrderedDict[tuple[int, int], Any] = OrderedDict()

    def __call__(self, key: tuple[int, int]) -> Any:
        if key in self._kept:
            self._kept.move_to_end(key)
        else:
            self._kept[key] = self._make(key)
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return self._kept[key]


class SceneReader:
    """Pixels of a scene's stream.

    Args:
        codec: with the model that compressed it.
        data: the stream; anything that gives bytes for slices, such as a memory map.
        maps: the sender's map on the scene's grid; not needed where the stream brings it along.
        sampling: sampler and steps; the codec's default if not given.
        seed: of the noise field; the stream's own if not given.
        draws: with more than one, as many pictures are drawn, with this seed and those after it: `read` gives the first
            and a fourth band with the standard deviation of all in each pixel, in grey levels.
        strict: refuse a map that is not the sender's and a scene of which a chunk is damaged.

    Attributes:
        width_px, height_px: of the scene.
        georeference: its place, and what its file said.
        damaged: chunks (by number, row by row) that turned out to be lost, and why; those that were looked at so far.

    Raises:
        BitstreamError: the header is damaged, or for another model.
        UsageError: the stream needs a map.
    """

    def __init__(
        self,
        codec: MagcCodec,
        data: Any,
        maps: MapSource | None = None,
        *,
        sampling: Sampling | None = None,
        seed: int | None = None,
        draws: int = 1,
        strict: bool = False,
    ) -> None:
        self._index = read_header(data)
        header = self._index.header
        codec.check_model(header.entropy_model, has_rate=header.has_rates)
        self.georeference = unpack_georeference(header.georeference)
        if header.map_kind is MapKind.DIGEST and maps is None:
            raise UsageError("the scene needs its sender's map: give it, or have it embedded with --embed-map")
        self.width_px, self.height_px = header.width_px, header.height_px
        self.sampling = sampling or codec.default_sampling()
        self.seeds = seeds_of(header.seed if seed is None else seed, draws)
        self.damaged: dict[int, str] = {}
        self._codec, self._data, self._maps, self._strict = codec, data, maps, strict
        self._warned_of_map = False
        self._symbol_channels = codec.model.config.latent_compression.symbol_channels
        self._padded = Window(0, 0, padded(header.width_px), padded(header.height_px))
        self._columns, self._rows = Axis(self._padded.width_px), Axis(self._padded.height_px)
        # A row of windows and of chunks, and what lies beside it: reading row by row makes nothing twice.
        self._ground = _Recent(self._read_chunk, 2 * header.chunk_columns + 2)
        self._drawn = _Recent(self._draw, self._columns.windows + 3)

    @property
    def bands(self) -> int:
        """3, or 4 with the disagreement of several draws."""
        return 3 if len(self.seeds) == 1 else 4

    @property
    def whole(self) -> Window:
        """All of the scene."""
        return Window(0, 0, self.width_px, self.height_px)

    def read(self, window: tuple[int, int, int, int] | None = None) -> Bands:
        """A window's pixels: red, green, blue, and the disagreement of the draws if there are several.

        Pixels of damaged chunks and those that were missing in the original have no meaning; see `read_valid`.

        Raises:
            UsageError: the window is not inside the scene, or larger than 4096x4096.
            BitstreamError: with `strict`, a chunk is damaged or the map another.
        """
        window = checked_window(window, self.whole)
        total = np.zeros((window.height_px, window.width_px, self.bands), np.float32)
        for row in self._rows.touching(window.y_px, window.y_px + window.height_px):
            for column in self._columns.touching(window.x_px, window.x_px + window.width_px):
                drawn = self._place(row, column)
                shared = drawn.meets(window)
                inner = shared.within(drawn).slices
                weights = np.outer(self._rows.weights(row)[inner[0]], self._columns.weights(column)[inner[1]])
                total[shared.within(window).slices] += weights[..., None] * self._drawn((row, column))[inner]
        return np.rint(total).clip(0, 255).astype(np.uint8)

    def read_valid(self, window: tuple[int, int, int, int] | None = None) -> Mask:
        """Which pixels of a window there are: neither missing in the original nor lost."""
        window = checked_window(window, self.whole)
        return np.asarray(self._assembled(window, lambda ground: ground.valid, np.bool_))

    def read_map(self, window: tuple[int, int, int, int] | None = None) -> ClassMap | None:
        """The semantic map under a window, as the stream brings it along or as it was given; none without one."""
        window = checked_window(window, self.whole)
        if self._index.header.map_kind is MapKind.NONE:
            return None
        return np.asarray(self._assembled(window, lambda ground: ground.class_ids, np.uint8))

    def check_chunks(self) -> None:
        """Look at the checks of all chunks, so that `damaged` is complete but for what only decoding can tell."""
        for number in range(len(self._index.offsets) - 1):
            try:
                self._chunk(number)
            except BitstreamError as error:
                self._lost(number, error)

    # --- windows ------------------------------------------------------------------------------------------------------

    def _place(self, row: int, column: int) -> Window:
        (top, bottom), (left, right) = self._rows.span(row), self._columns.span(column)
        return Window(left, top, right - left, bottom - top)

    @torch.no_grad()
    def _draw(self, key: tuple[int, int]) -> Bands:
        """One window of the fixed grid, alone."""
        place = self._place(*key)
        seen = place.widened(MARGIN_PX, self._padded)
        symbols = torch.zeros(1, self._symbol_channels, seen.height_px // SYMBOL_STRIDE, seen.width_px // SYMBOL_STRIDE)
        class_ids = np.zeros((1, seen.height_px, seen.width_px), np.uint8)
        has_map = self._index.header.map_kind is not MapKind.NONE
        for chunk, ground in self._chunks_under(seen):
            shared = chunk.meets(seen)
            to, of = shared.within(seen), shared.within(chunk)
            symbols[0][:, *to.divided(SYMBOL_STRIDE).slices] = ground.symbols[:, *of.divided(SYMBOL_STRIDE).slices]
            if ground.class_ids is not None:
                class_ids[0][to.slices] = ground.class_ids[of.slices]
        inner = place.within(seen)
        reconstructor = self._codec.reconstructor
        latent = reconstructor.synthesise(symbols, torch.from_numpy(class_ids) if has_map else None)
        guide = latent[:, :, *inner.divided(LATENT_STRIDE).slices]
        ids = torch.from_numpy(np.ascontiguousarray(class_ids[:, *inner.slices])) if has_map else None
        pictures = []
        for seed in self.seeds:
            noise = NoiseWindow(seed, place.y_px // LATENT_STRIDE, place.x_px // LATENT_STRIDE)
            pictures.append(reconstructor.reconstruct(guide, ids, self.sampling, [noise])[0].numpy())
        return with_disagreement(pictures)

    # --- chunks -------------------------------------------------------------------------------------------------------

    def _chunk_place(self, row: int, column: int) -> Window:
        """A chunk's ground inside the scene."""
        side = self._index.header.chunk_px
        return Window(column * side, row * side, side, side).meets(self.whole)

    def _chunks_under(self, window: Window) -> Iterable[tuple[Window, _Ground]]:
        """Chunks (filled up to multiples of 64) that a window meets."""
        header = self._index.header
        side = header.chunk_px
        last_row, last_column = header.chunk_rows - 1, header.chunk_columns - 1
        for row in range(window.y_px // side, min((window.y_px + window.height_px - 1) // side, last_row) + 1):
            for column in range(window.x_px // side, min((window.x_px + window.width_px - 1) // side, last_column) + 1):
                place = self._chunk_place(row, column)
                whole = place._replace(width_px=padded(place.width_px), height_px=padded(place.height_px))
                yield whole, self._ground((row, column))

    def _assembled(self, window: Window, part: Callable[[_Ground], Any], dtype: Any) -> Any:
        out = np.zeros((window.height_px, window.width_px), dtype)
        for chunk, ground in self._chunks_under(window):
            shared = chunk.meets(window)
            out[shared.within(window).slices] = part(ground)[shared.within(chunk).slices]
        return out

    def _chunk(self, number: int) -> Chunk | None:
        """A chunk's fields; none for one without valid pixels.

        Raises:
            BitstreamError: it is damaged.
        """
        start, stop = self._index.offsets[number : number + 2]
        if start == stop:
            return None
        data = bytes(self._data[start:stop]) if stop <= len(self._data) else b""
        return unpack_chunk(data, number, self._index, has_mask=self.georeference.missing is not Missing.NONE)

    def _read_chunk(self, key: tuple[int, int]) -> _Ground:
        row, column = key
        header = self._index.header
        number, place = row * header.chunk_columns + column, self._chunk_place(row, column)
        size = (padded(place.height_px), padded(place.width_px))
        blank = torch.zeros(self._symbol_channels, *(side // SYMBOL_STRIDE for side in size))
        nothing = np.broadcast_to(np.bool_(False), size)  # a byte, however large
        ids = None
        try:
            chunk = self._chunk(number)
            ids = self._map(chunk, place)
            if chunk is None:
                return _Ground(blank, ids, nothing)
            valid = np.broadcast_to(np.bool_(True), size)
            if chunk.mask:
                valid = filled_up(decode_map(chunk.mask, place.height_px, place.width_px) != 0)
            class_ids = None if ids is None else torch.from_numpy(ids)[None]
            reconstructor = self._codec.reconstructor
            symbols = reconstructor.symbols(chunk.payload, size, class_ids)[None]
            scaled = reconstructor.scaled_back(symbols, self._codec.position(chunk.rate))[0].cpu()
        except BitstreamError as error:
            self._lost(number, error)
            if ids is None and self._maps is not None and header.map_kind is MapKind.DIGEST:
                ids = filled_up(self._maps.read(place))
            return _Ground(blank, ids if ids is not None else _no_map(header.map_kind, size), nothing)
        return _Ground(scaled, ids, valid)

    def _map(self, chunk: Chunk | None, place: Window) -> ClassMap | None:
        """The map of a chunk, filled up."""
        kind = self._index.header.map_kind
        if kind is MapKind.NONE:
            return None
        if kind is MapKind.EMBEDDED:
            if chunk is None:
                return _no_map(kind, (padded(place.height_px), padded(place.width_px)))
            return np.asarray(
                filled_up(self._codec.decode_embedded_map(chunk.map_data, place.height_px, place.width_px))
            )
        if self._maps is None:
            raise AssertionError("checked when the scene was opened")
        ids = self._maps.read(place)
        if chunk is not None and (found := map_digest(ids)) != chunk.map_data:
            message = (
                f"the map's digest is {found.hex()} at column {place.x_px}, row {place.y_px}, the sender's was "
                f"{chunk.map_data.hex()}: houses and roads will be elsewhere, and symbols may not be readable at all"
            )
            if self._strict:
                raise MapMismatchError(message)
            if not self._warned_of_map:  # once: a map that differs does so in many chunks
                self._warned_of_map = True
                warnings.warn(message, MapMismatchWarning, stacklevel=2)
        return np.asarray(filled_up(ids))

    def _lost(self, number: int, error: BitstreamError) -> None:
        if self._strict or isinstance(error, MapMismatchError):
            raise error
        if number not in self.damaged:
            self.damaged[number] = str(error)
            row, column = divmod(number, self._index.header.chunk_columns)
            place = self._chunk_place(row, column)
            warnings.warn(
                f"{place.width_px}x{place.height_px} pixels at column {place.x_px}, row {place.y_px} are lost: {error}",
                DamagedChunkWarning,
                stacklevel=2,
            )


def with_disagreement(pictures: Sequence[Picture]) -> Bands:
    """The first picture; of several, with the standard deviation of all, in grey levels, as a fourth band."""
    if len(pictures) == 1:
        return np.asarray(pictures[0])
    deviation = np.sqrt(np.stack(pictures).astype(np.float32).var(axis=0).mean(axis=2))
    return np.dstack([pictures[0], np.rint(deviation).clip(0, 255).astype(np.uint8)])


def seeds_of(first: int, draws: int) -> tuple[int, ...]:
    """Seeds of several draws.

    Raises:
        UsageError: there are none, or the first is no 64-bit number.
    """
    if draws < 1:
        raise UsageError(f"{draws} draws: expected 1 or more")
    if not 0 <= first < 2**64:
        raise UsageError(f"the seed is {first}: expected 0 to 2^64 - 1")
    return tuple((first + number) % 2**64 for number in range(draws))


def checked_window(
    window: tuple[int, int, int, int] | None, whole: Window, most_pixels: int | None = MAX_WINDOW_PIXELS
) -> Window:
    """A window that lies inside and can be read at once; all if none is given.

    Raises:
        UsageError: it does not, or cannot.
    """
    window = whole if window is None else Window(*window)
    if window.is_empty or window.meets(whole) != window:
        raise UsageError(
            f"the window of {window.width_px}x{window.height_px} pixels at column {window.x_px}, row {window.y_px} "
            f"does not lie inside the picture of {whole.width_px}x{whole.height_px}"
        )
    if most_pixels is not None and window.width_px * window.height_px > most_pixels:
        raise UsageError(
            f"a window of {window.width_px}x{window.height_px} pixels is more than is read at once: read it in "
            f"parts of at most {most_pixels} pixels, or decompress into a .tif"
        )
    return window


def read_header(data: Any) -> SceneIndex:
    """Header and index at the beginning of a stream, of which the rest may be anywhere.

    Raises:
        BitstreamError: they are damaged.
    """
    return unpack_header(bytes(data[:MAX_HEADER_BYTES]))


class MapMismatchError(BitstreamError):
    """The map at the receiver is not the sender's, and that was not to be."""


def _no_map(kind: MapKind, size: tuple[int, int]) -> ClassMap | None:
    return None if kind is MapKind.NONE else np.zeros(size, np.uint8)
