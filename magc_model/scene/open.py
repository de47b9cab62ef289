"""Any `.magc` stream as something to read windows from, as rasterio opens files."""

import mmap
from pathlib import Path
from typing import Any

import numpy as np

from magc_model.codec import MagcCodec
from magc_model.errors import BitstreamError
from magc_model.reconstruct import Sampling
from magc_model.scene.compress import ClassMap, MapSource, Mask
from magc_model.scene.georeference import Georeference
from magc_model.scene.grid import Window
from magc_model.scene.read import Bands, Drawn, SceneReader, checked_window, seeds_of, with_disagreement
from magc_model.scene.stream import SCENE_MAGIC


class TileReader:
    """A tile's stream; the first reading draws all of it. Arguments, attributes and errors are `SceneReader`'s."""

    def __init__(
        self,
        codec: MagcCodec,
        data: bytes,
        maps: MapSource | None = None,
        *,
        sampling: Sampling | None = None,
        seed: int | None = None,
        draws: int = 1,
        strict: bool = False,
    ) -> None:
        tile = codec.read(data)
        self.width_px, self.height_px = tile.width_px, tile.height_px
        self.georeference = Georeference()
        self.seeds = seeds_of(tile.seed if seed is None else seed, draws)
        self.damaged: dict[int, str] = {}
        self.sampling = sampling or codec.default_sampling()
        self._codec, self._data, self._maps, self._strict = codec, data, maps, strict
        self._drawn: Bands | None = None

    @property
    def bands(self) -> int:
        """3, or 4 with the disagreement of several draws."""
        return 3 if len(self.seeds) == 1 else 4

    @property
    def whole(self) -> Window:
        """All of the picture."""
        return Window(0, 0, self.width_px, self.height_px)

    def read(self, window: tuple[int, int, int, int] | None = None) -> Bands:
        """A window's pixels: red, green, blue, and the disagreement of the draws if there are several."""
        window = checked_window(window, self.whole)
        if self._drawn is None:
            class_ids = None if self._maps is None else self._maps.read(self.whole)
            self._drawn = with_disagreement(
                [
                    self._codec.decompress(
                        self._data, class_ids, sampling=self.sampling, seed=seed, strict=self._strict
                    )
                    for seed in self.seeds
                ]
            )
        return np.ascontiguousarray(self._drawn[window.slices])

    def read_valid(self, window: tuple[int, int, int, int] | None = None) -> Mask:
        """All of them: a tile has every pixel."""
        window = checked_window(window, self.whole)
        return np.ones((window.height_px, window.width_px), np.bool_)


def open_stream(
    codec: MagcCodec,
    data: Any,
    maps: MapSource | None = None,
    *,
    sampling: Sampling | None = None,
    seed: int | None = None,
    draws: int = 1,
    strict: bool = False,
) -> Drawn:
    """A scene's or a tile's stream; arguments and errors are `SceneReader`'s."""
    reader = SceneReader if is_scene(data) else TileReader
    if reader is TileReader:
        data = bytes(data[:])
    return reader(codec, data, maps, sampling=sampling, seed=seed, draws=draws, strict=strict)


def is_scene(data: Any) -> bool:
    """Whether bytes begin as a scene's stream does."""
    return bool(data[: len(SCENE_MAGIC)] == SCENE_MAGIC)


def mapped(path: Path) -> Any:
    """A file as bytes that are read where they are looked at.

    Raises:
        BitstreamError: it is empty.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        if not path.stat().st_size:
            raise BitstreamError(f"{path} is empty: expected a stream that `magc compress` wrote")
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def open_file(
    path: str | Path,
    model: str | MagcCodec,
    semantic_map: ClassMap | MapSource | None = None,
    *,
    steps: int | None = None,
    seed: int | None = None,
    draws: int = 1,
    strict: bool = False,
) -> Drawn:
    """Open a `.magc` file, to read windows of it.

    Args:
        path: of the file.
        model: directory, repository on the hub, or a codec to use.
        semantic_map: the sender's map on the picture's grid; not needed where the file brings it along.
        steps: calls of the denoiser; 50 if not given (0 of a one-step generator), 0 for none.
        seed: of the noise; the stream's own if not given.
        draws: with more than one, a fourth band tells how far so many draws disagree.
        strict: refuse another map than the sender's, and a damaged scene.

    Returns:
        What has `width_px`, `height_px`, `georeference`, `read(window)` and `read_valid(window)`.

    Raises:
        BitstreamError: the file is damaged, or for another model.
        UsageError: it needs a map.
        ModelError: there is no usable model.
    """
    from magc_model.scene.raster_files import ArrayMap

    is_drawn = None if steps is None else steps > 0
    codec = model if isinstance(model, MagcCodec) else MagcCodec.from_pretrained(model, draws=is_drawn)
    maps = ArrayMap(semantic_map) if isinstance(semantic_map, np.ndarray) else semantic_map
    sampling = None if steps is None else Sampling(steps=steps)
    return open_stream(codec, mapped(Path(path)), maps, sampling=sampling, seed=seed, draws=draws, strict=strict)
