"""Latents cached once: training that does not change the autoencoder need not run it at every step.

    FOLDER/latents.npy    float16 [samples, 8 symmetries, 4, height / 8, width / 8], read by memory mapping
    FOLDER/latents.json   from which autoencoder and dataset they are, and how many samples are on disk

Blocks of samples are appended and synced, then counted in `latents.json`: a run killed at any instant continues after
the last counted block, and ends in the same bytes.
"""

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from magc_data.atomic import remove_temporary_files, write_atomically
from magc_model.config import LATENT_CHANNELS, LATENT_STRIDE
from magc_model.data import SYMMETRIES, Source, Window, image_tensor, symmetry
from magc_model.errors import DataError, TrainingError
from magc_model.shapes import Image, Latent

FORMAT_VERSION = 1
DTYPE = np.dtype("<f2")
"""Rounds a latent of standard deviation 1 by at most 0.001 where it is below 4: far less than any code step."""

BLOCK_SAMPLES = 16
"""Samples between two syncs."""

Encode = Callable[[Image], Latent]


class LatentsKey(NamedTuple):
    """What latents depend on; any change makes them worthless."""

    format_version: int
    autoencoder: str
    dataset: str
    dtype: str
    shape: tuple[int, ...]


class LatentCache:
    """Latents on disk, complete. Holds no open file when pickled, so that workers map it by themselves."""

    def __init__(self, folder: Path) -> None:
        self._path = _array_path(folder)
        self._latents: NDArray[np.float16] | None = None

    def __len__(self) -> int:
        return len(self._mapped())

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_latents": None}

    def crop(self, sample: int, symmetry: int, window: Window) -> NDArray[np.float16]:
        """[4, side / 8, side / 8]: what the autoencoder made of a sample under a symmetry, cut where a crop is."""
        top, left, side = (each // LATENT_STRIDE for each in window)
        return self._mapped()[sample, symmetry, :, top : top + side, left : left + side]

    def _mapped(self) -> NDArray[np.float16]:
        if self._latents is None:
            self._latents = np.load(self._path, mmap_mode="r")
        return self._latents


def cache_latents(
    folder: Path, source: Source, encode: Encode, autoencoder: str, *, batch_size: int = 16, quiet: bool = False
) -> LatentCache:
    """Latents of every sample of a source under every symmetry: those in the folder, or else made now.

    Args:
        folder: where they are kept.
        source: pictures of one size.
        encode: the autoencoder; is given images on the CPU.
        autoencoder: its fingerprint.
        batch_size: images to encode at once, at least the eight of a sample.
        quiet: no progress bar.

    Raises:
        DataError: the pictures are not square, of one size, and a multiple of 8.
        TrainingError: the autoencoder yields something else than finite latents.
    """
    key = LatentsKey(FORMAT_VERSION, autoencoder, source.digest, DTYPE.str, latents_shape(source))
    header = _header(key)
    sample_bytes = DTYPE.itemsize * int(np.prod(key.shape[1:]))
    done = _done(folder, key, header, sample_bytes)
    if done < len(source):
        file_bytes = len(header) + done * sample_bytes
        with _continued(folder, key, header, file_bytes) as stream, _bar(len(source), done, quiet=quiet) as bar:
            for first in range(done, len(source), BLOCK_SAMPLES):
                numbers = range(first, min(first + BLOCK_SAMPLES, len(source)))
                stream.write(_encoded(source, numbers, encode, key, max(1, batch_size // SYMMETRIES)).tobytes())
                stream.flush()
                os.fsync(stream.fileno())
                _count(folder, key, numbers.stop)
                bar.update(len(numbers))
    return LatentCache(folder)


def latents_shape(source: Source) -> tuple[int, ...]:
    """Shape of the array that a source's latents would fill.

    Raises:
        DataError: the pictures are not square, of one size, and a multiple of 8.
    """
    sizes_px = np.unique(source.sizes_px, axis=0)
    side_px = int(sizes_px[0, 0])
    if len(sizes_px) > 1 or np.any(sizes_px != side_px) or side_px % LATENT_STRIDE:
        found = ", ".join(f"{width}x{height}" for height, width in sizes_px[:3].tolist())
        raise DataError(
            f"latents can be cached of square pictures of one size, a multiple of {LATENT_STRIDE}, found {found} pixels"
            f"{' and more' if len(sizes_px) > 3 else ''}: give --no-latent-cache, or train on a dataset made by "
            "`magc-data build`"
        )
    side = side_px // LATENT_STRIDE
    return (len(source), SYMMETRIES, LATENT_CHANNELS, side, side)


def _array_path(folder: Path) -> Path:
    return folder / "latents.npy"


def _marker_path(folder: Path) -> Path:
    return folder / "latents.json"


def _marker(key: LatentsKey, done: int) -> dict[str, Any]:
    return {**key._asdict(), "shape": list(key.shape), "samples_done": done}


def _header(key: LatentsKey) -> bytes:
    """The beginning of the .npy file, which says from the start how large it will be."""
    write_header: Callable[..., None] = np.lib.format.write_array_header_1_0
    stream = io.BytesIO()
    write_header(stream, {"descr": key.dtype, "fortran_order": False, "shape": key.shape})
    return stream.getvalue()


def _done(folder: Path, key: LatentsKey, header: bytes, sample_bytes: int) -> int:
    """How many samples on disk are good; says on stderr why others are made again."""
    if not _marker_path(folder).exists():
        return 0
    try:
        document = json.loads(_marker_path(folder).read_bytes())
        done = int(document["samples_done"])
        changed = [name for name, value in _marker(key, done).items() if document.get(name) != value]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return _again(f"{_marker_path(folder)} is damaged")
    if changed:
        return _again(f"the latents in {folder} are of another {changed[0].replace('_', ' ')}")
    if done:
        with _array_path(folder).open("rb") if _array_path(folder).exists() else io.BytesIO() as stream:
            begins_well = stream.read(len(header)) == header
            if not begins_well or stream.seek(0, os.SEEK_END) < len(header) + done * sample_bytes:
                return _again(f"{_array_path(folder)} is damaged")
    return done


def _again(reason: str) -> int:
    sys.stderr.write(f"{reason}: all latents are made again\n")
    return 0


def _continued(folder: Path, key: LatentsKey, header: bytes, file_bytes: int) -> IO[bytes]:
    """The file, to be written on from the end of what is good of it."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporary_files(folder)
    if file_bytes == len(header):
        _count(folder, key, 0)
        _array_path(folder).write_bytes(header)
    stream = _array_path(folder).open("r+b")
    stream.seek(file_bytes)
    return stream


def _count(folder: Path, key: LatentsKey, done: int) -> None:
    write_atomically(_marker_path(folder), (json.dumps(_marker(key, done), indent=2) + "\n").encode())


def _encoded(
    source: Source, numbers: range, encode: Encode, key: LatentsKey, samples_at_once: int
) -> NDArray[np.float16]:
    """[samples, 8, 4, height, width] of a block."""
    parts = []
    for start in range(0, len(numbers), samples_at_once):
        some = numbers[start : start + samples_at_once]
        images = image_tensor(np.stack([source[number].image for number in some]))
        turned = torch.stack([symmetry(images, each) for each in range(SYMMETRIES)], dim=1).flatten(0, 1)
        with torch.no_grad():
            latents = encode(turned).half().cpu()
        if not bool(latents.isfinite().all()):
            raise TrainingError(
                f"the latents of {source.keys[some[0]]} or its neighbours are no numbers or above 65504, expected a "
                "standard deviation of about 1: the autoencoder or its scaling factor is wrong"
            )
        parts.append(latents.reshape(len(some), *key.shape[1:]).numpy())
    return np.concatenate(parts)


def _bar(total: int, done: int, *, quiet: bool) -> "tqdm[Any]":
    # A log file gets a line every ten seconds, a terminal a smooth bar.
    return tqdm(
        total=total,
        initial=done,
        desc="latents",
        unit="sample",
        mininterval=0.1 if sys.stderr.isatty() else 10.0,
        disable=quiet,
        file=sys.stderr,
        dynamic_ncols=True,
    )
