"""`MagcNumcodec`: chunks of pictures in Zarr format 2, or wherever else numcodecs are used.

    chunk [height, width, 3] or [count, height, width, 3] ─► MagcCodec.compress ─► pack_chunk ─► bytes
    bytes ─► unpack_chunk ─► MagcCodec.decompress ─► chunk

A chunk comes without a map, so the model must be able to do without one. `magc_model.zarr_v3_codec` is the same for
Zarr format 3.
"""

import functools
import operator
import os
import re
import threading
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from numcodecs.abc import Codec
from numcodecs.compat import ensure_bytes, ensure_ndarray, ndarray_copy

from magc_model.chunk_stream import pack_chunk, unpack_chunk
from magc_model.codec import MagcCodec, Rate
from magc_model.errors import BitstreamError, ModelError, UsageError
from magc_model.reconstruct import Sampling, check_sampling

_FINGERPRINT = re.compile("[0-9a-f]{64}")
_SHOWN_DIGITS = 16


class _Loaded(NamedTuple):
    """A model in use. Zarr codes chunks in many threads: one at a time, so that memory does not grow with them."""

    codec: MagcCodec
    lock: threading.Lock


_LOADING = threading.Lock()


class MagcNumcodec(Codec):  # type: ignore[misc]  # numcodecs has no types
    """Compresses chunks of uint8 RGB pictures, with loss. The model is loaded by the first chunk, once a process.

    Args:
        model: directory, or OWNER/NAME on the Hugging Face hub; readers of the array look for it under this name.
        fingerprint: entropy fingerprint that the model must have (`MagcCodec.entropy_fingerprint`).
        quality: 1 (smallest) to the model's number of lambdas; the middle if not given. Models of one rate take none.
        steps: calls of the denoiser when a chunk is read; 0 for none: the most faithful, and the smoothest.
        seed: of the noise that the denoiser starts from; the same in every chunk.

    Raises:
        UsageError: the fingerprint, the steps or the seed cannot be.
    """

    codec_id = "magc"

    def __init__(
        self,
        model: str | os.PathLike[str],
        fingerprint: str | None = None,
        quality: float | None = None,
        steps: int = 0,
        seed: int = 0,
    ) -> None:
        if fingerprint is not None and not _FINGERPRINT.fullmatch(fingerprint):
            raise UsageError(
                f"the fingerprint is '{fingerprint}': expected the 64 hexadecimal digits of a model's "
                "entropy_fingerprint, or none"
            )
        if not 0 <= seed < 2**64:
            raise UsageError(f"the seed is {seed}: expected 0 to 2^64 - 1")
        # As JSON has them: numpy's numbers are none of its.
        self.model = os.fspath(model)
        self.fingerprint = fingerprint
        self.quality = None if quality is None else float(quality)
        self.steps = Sampling(steps=operator.index(steps)).steps
        self.seed = operator.index(seed)

    def encode(self, buf: Any) -> bytes:
        """The bytes of a chunk.

        Args:
            buf: C-contiguous uint8 [height, width, 3] or [count, height, width, 3].

        Raises:
            UsageError: the chunk is of another kind or too large, the quality does not fit the model, or the model
                needs a map.
            ModelError: there is no usable model, or not that of the fingerprint, or it has no denoiser for the steps.
        """
        pictures = _pictures(buf)
        codec, lock = _loaded(self.model, self.fingerprint, self.steps)
        height, width = pictures.shape[1:3]
        if height * width > codec.max_pixels:
            raise UsageError(
                f"a chunk's pictures have {width}x{height} pixels, more than the {codec.max_pixels} that are decoded "
                "unasked: make the chunks smaller"
            )
        rate = None if self.quality is None else Rate(quality=self.quality)
        with lock:
            return pack_chunk([each.stream for each in codec.compress_batch(list(pictures), rate=rate, seed=self.seed)])

    def decode(self, buf: Any, out: Any = None) -> Any:
        """The chunk of bytes.

        Args:
            buf: from `encode`.
            out: where to put it: a buffer of its size.

        Returns:
            `out`; or [height, width, 3] for one picture and [count, height, width, 3] for several.

        Raises:
            BitstreamError: the bytes are damaged, or for another model.
            UsageError: the pictures are too large, the model needs a map, or `out` is of another size.
            ModelError: there is no usable model, or not that of the fingerprint, or it has no denoiser for the steps.
        """
        streams = unpack_chunk(ensure_bytes(buf))
        codec, lock = _loaded(self.model, self.fingerprint, self.steps)
        headers = [codec.read(stream) for stream in streams]
        if len({(each.height_px, each.width_px) for each in headers}) > 1:
            raise BitstreamError("the chunk's pictures are of several sizes: get the array again from its sender")
        found = (len(headers), headers[0].height_px, headers[0].width_px, 3)
        if out is not None and (size := ensure_ndarray(out).nbytes) != np.prod(found):
            raise UsageError(f"the chunk is of shape {' x '.join(map(str, found))}, and there are {size} bytes for it")
        with lock:
            pictures = codec.decompress_batch(streams, sampling=Sampling(steps=self.steps), seed=self.seed)
        return ndarray_copy(np.stack(pictures) if len(pictures) > 1 else pictures[0], out)


def _pictures(buf: Any) -> UInt8[np.ndarray[Any, Any], "count height width 3"]:
    """A chunk as so many pictures.

    Raises:
        UsageError: it is no chunk of pictures.
    """
    chunk = ensure_ndarray(buf)
    if chunk.dtype != np.uint8 or chunk.ndim not in (3, 4) or chunk.shape[-1] != 3 or not chunk.size:
        shape = " x ".join(map(str, chunk.shape)) or "one number"
        raise UsageError(
            f"a chunk is of {chunk.dtype} and of shape {shape}: expected uint8 and height x width x 3, or "
            "count x height x width x 3"
        )
    if not chunk.flags.c_contiguous:
        raise UsageError('a chunk is not C-contiguous: expected an array of order "C"')
    return np.asarray(chunk.reshape(-1, *chunk.shape[-3:]))


def _loaded(model: str, fingerprint: str | None, steps: int) -> _Loaded:
    """The model of a config, loaded unless it is.

    Raises:
        ModelError: there is none, it is another, or it has no denoiser for the steps.
        UsageError: it needs a map.
    """
    with _LOADING:
        loaded = _load(model, draws=steps > 0)
    found = loaded.codec.entropy_fingerprint
    if fingerprint not in (None, found):
        raise ModelError(
            f"the model {model} has the entropy fingerprint {found[:_SHOWN_DIGITS]}..., the array is for "
            f"{str(fingerprint)[:_SHOWN_DIGITS]}...: give the model that the array was written with"
        )
    if steps and not loaded.codec.model.has_denoiser:
        raise ModelError(f"the model {model} has no denoiser, and {steps} steps of one were asked for: use 0 steps")
    check_sampling(loaded.codec.model, Sampling(steps=steps))
    return loaded


@functools.cache
def _load(model: str, *, draws: bool) -> _Loaded:
    codec = MagcCodec.from_pretrained(model, draws=draws)
    config = codec.model.config.map
    if config.is_used and not config.dropout:
        raise UsageError(
            f"the model {model} has never seen a picture without its map, and the chunks of an array have none: use a "
            "model trained with --map-dropout"
        )
    return _Loaded(codec, threading.Lock())
