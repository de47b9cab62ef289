"""What `magc decompress` does: a stream or a window of it into a file that says what its pixels were made by."""

import contextlib
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from magc_data.version import __version__
from magc_model.codec import MAX_PIXELS, MagcCodec, MapMismatchWarning, Picture
from magc_model.compress_job import MapChoice, open_maps
from magc_model.errors import UsageError
from magc_model.picture_files import encoded_picture
from magc_model.reconstruct import Sampling, check_sampling, usual_steps
from magc_model.scene.georeference import Georeference, unpack_georeference
from magc_model.scene.grid import WINDOW_STEP_PX, Window, blocks
from magc_model.scene.open import is_scene, open_stream
from magc_model.scene.raster_files import write_scene
from magc_model.scene.read import DamagedChunkWarning, Drawn, checked_window, read_header

MAX_SCENE_PIXELS = 1 << 30
"""Largest scene that is written into a file unasked, 32768x32768: a small file could fill any disk."""

GEOTIFF_SUFFIXES = frozenset({".tif", ".tiff"})


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How a stream is to be drawn."""

    steps: int | None = None
    sampler: str = "ddpm"
    start_t: int | None = None
    fidelity: float | None = None
    """Whoever gives one asks for a drawing."""
    seed: int | None = None
    draws: int = 1
    window: Window | None = None
    strict: bool = False
    max_pixels: int | None = None

    @property
    def is_asked_for(self) -> bool:
        """Whether anything but the steps asks for what the model draws."""
        return self.draws > 1 or (self.fidelity, self.start_t) != (None, None)

    @property
    def needs_generator(self) -> bool | None:
        """Whether the networks that draw will be used; none where that is for the model to say."""
        if self.steps == 0:
            return False
        if self.fidelity == 1 or (self.steps is None and not self.is_asked_for):
            return None
        return True


class Done(NamedTuple):
    """What was made, and from what."""

    width_px: int
    height_px: int
    picture: bytes | None
    """A plain picture's file; none for a GeoTIFF, which is written already."""
    origin: dict[str, Any]
    """What made the pixels."""
    damaged_chunks: dict[int, str]
    """Lost parts of a scene, and why."""


def decompress_one(
    codec: MagcCodec, data: Any, choice: MapChoice, drawing: Drawing, out: Path, kind: str | None, *, quiet: bool
) -> Done:
    """Draw a stream.

    Args:
        codec: with the model that compressed it.
        data: the stream, as bytes or as a memory map.
        choice: of the map.
        drawing: sampler, seed, window.
        out: the GeoTIFF to write.
        kind: PNG, JPEG or WEBP for a plain picture, which is not written; none for a GeoTIFF.
        quiet: no bar.

    Raises:
        MagcModelError, MagcDataError: in one sentence; nothing was written.
    """
    usual = usual_steps(codec.model) if drawing.is_asked_for else codec.default_sampling().steps
    steps = usual if drawing.steps is None else drawing.steps
    fidelity = 0.0 if drawing.fidelity is None else drawing.fidelity
    sampling = Sampling(sampler=drawing.sampler, steps=steps, start_t=drawing.start_t, fidelity=fidelity)
    check_sampling(codec.model, sampling)
    if drawing.draws > 1 and (kind is not None or not steps):
        raise UsageError("--uncertainty needs room for a fourth band and steps that draw: write a .tif, with --steps")
    with contextlib.ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("always", MapMismatchWarning)
        warnings.simplefilter("always", DamagedChunkWarning)
        warnings.showwarning = _show
        size = _size(codec, data)
        # Before anything of that size is fetched or made.
        window = checked_window(drawing.window, Window(0, 0, size.width_px, size.height_px), None)
        _check_size(window, drawing.max_pixels, MAX_SCENE_PIXELS if kind is None else MAX_PIXELS)
        maps = open_maps(stack, codec, choice, size, quiet=quiet)
        scene = open_stream(
            codec,
            data,
            maps,
            sampling=sampling,
            seed=drawing.seed,
            draws=drawing.draws,
            strict=drawing.strict,
        )
        origin = _origin(codec, scene, sampling, len(data))
        picture = None
        if kind is None:
            tags = {f"MAGC_{name.upper()}": str(value) for name, value in origin.items() if value is not None}
            count = sum(1 for _ in blocks(window, WINDOW_STEP_PX))
            with _bar(count, quiet=quiet or count == 1) as bar:
                write_scene(out, scene, window, tags, bar.update)
        else:
            picture = encoded_picture(_without_missing(scene, window), kind, origin)
    return Done(window.width_px, window.height_px, picture, origin, scene.damaged)


def _without_missing(scene: Drawn, window: Window) -> Picture:
    """Pixels, black where there are none."""
    return np.where(scene.read_valid(window)[..., None], scene.read(window), np.uint8(0))


class _Size(NamedTuple):
    """What a stream says of its picture's grid."""

    width_px: int
    height_px: int
    georeference: Georeference


def _size(codec: MagcCodec, data: Any) -> _Size:
    if is_scene(data):
        header = read_header(data).header
        return _Size(header.width_px, header.height_px, unpack_georeference(header.georeference))
    tile = codec.read(bytes(data[:]))
    return _Size(tile.width_px, tile.height_px, Georeference())


def _check_size(window: Window, allowed: int | None, usual: int) -> None:
    limit = usual if allowed is None else allowed
    if window.width_px * window.height_px > limit:
        raise UsageError(
            f"this is a picture of {window.width_px}x{window.height_px} pixels, more than the {limit} that are decoded "
            "unasked: give --window, write a .tif, or raise --max-pixels if you trust its sender"
        )


def _origin(codec: MagcCodec, scene: Drawn, sampling: Sampling, compressed_bytes: int) -> dict[str, Any]:
    is_one_step = codec.model.config.denoiser.is_one_step
    drew = sampling.steps > 0 and sampling.fidelity < 1
    drawn_by = "a one-step generator" if is_one_step else "diffusion"
    return {
        "software": f"magc {__version__}",
        "model": codec.model.fingerprint(),
        "compressed_bytes": compressed_bytes,
        "steps": sampling.steps,
        "sampler": sampling.sampler if drew and not is_one_step else None,
        "fidelity": sampling.fidelity if sampling.steps else None,
        "seed": scene.seeds[0] if drew else None,
        "draws": len(scene.seeds) if len(scene.seeds) > 1 else None,
        "synthesised": f"details by {drawn_by}, seeded; not observed" if drew else "none: decoded symbols only",
    }


def _show(message: Warning | str, *_: object, **__: object) -> None:
    sys.stderr.write(f"magc: warning: {message}\n")


def _bar(total: int, *, quiet: bool) -> Any:
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, desc="decompress", unit="window", mininterval=interval, disable=quiet, file=sys.stderr)
