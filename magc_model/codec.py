"""`MagcCodec`: pictures to `.magc` bytes and back.

    picture, map ─► pad to multiples of 64 ─► Reconstructor.compress ─► pack_tile ─► stream
    stream, map ─► unpack_tile ─► Reconstructor.guides ─► sampler ─► crop ─► picture

Bits a pixel are always `8 * len(stream) / (width * height)`: header, check and an embedded map included.
"""

import hashlib
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt8
from torch import Tensor

from magc_model.bitstream import MAP_BYTES, MODEL_BYTES, RATE_STEPS, MapKind, TileStream, pack_tile, unpack_tile
from magc_model.config import IMAGE_STRIDE, Device, InferencePrecision, RateMode
from magc_model.diffusion.noise import NoiseWindow
from magc_model.embedded_map import decode_map, encode_map
from magc_model.errors import BitstreamError, DataError, UsageError
from magc_model.model import MagcModel
from magc_model.reconstruct import Reconstructor, Sampling, torch_device, usual_sampling
from magc_model.tensors import images_of, maps_of, pictures_of

Picture = UInt8[np.ndarray[Any, Any], "_height _width 3"]
ClassMap = UInt8[np.ndarray[Any, Any], "_height _width"]
"""Sizes are checked in the code: a batch holds pictures of several."""

MAX_PIXELS = 1 << 22
"""Largest picture that is decoded unasked, 2048x2048: a header of a few bytes could ask for any amount of memory."""


_STEPS_BEYOND = 3
"""Rates above the one that a search for a size has found, of which one may by chance be as small."""


class MapMismatchWarning(UserWarning):
    """The map at the receiver is not the sender's."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Where on the rate axis; one of the three, or none for the middle. Models of one rate take none."""

    quality: float | None = None
    """1 (smallest) to the number of lambdas (6 in the paper); anything between."""
    lambda_: float | None = None
    """Weight of the distortion, within the model's lambdas."""
    position: float | None = None
    """0 to number of lambdas - 1."""


class Cost(NamedTuple):
    """What a stream costs, in bytes."""

    total: int
    payload: int
    ideal: float
    """Information content of the symbols: what no coder can go below."""
    embedded_map: int


class Compressed(NamedTuple):
    """A stream and what it cost."""

    stream: bytes
    cost: Cost


class _Job(NamedTuple):
    """A picture as the networks take it."""

    picture: Picture
    class_ids: ClassMap | None
    height_px: int
    width_px: int


def map_digest(class_ids: ClassMap) -> bytes:
    """What identifies a map: the first bytes of the sha256 of its size (two big-endian uint32) and its class ids."""
    height, width = class_ids.shape
    size = height.to_bytes(4, "big") + width.to_bytes(4, "big")
    return hashlib.sha256(size + np.ascontiguousarray(class_ids).tobytes()).digest()[:MAP_BYTES]


def padded_pixels(width_px: int, height_px: int) -> int:
    """What the networks see of a picture, sides filled up to multiples of 64: one of a single row is not small."""
    return math.prod(-(-side // IMAGE_STRIDE) * IMAGE_STRIDE for side in (width_px, height_px))


class MagcCodec:
    """Compresses pictures with a model; see `from_pretrained`.

    Args:
        model: from stage 1 on; decoding with steps needs stage 2.
        device: where to compute.
        precision: of autoencoder and denoiser; streams decode to the same symbols in any.
        batch_size: pictures at a time.
        max_pixels: a stream of a larger picture is refused, both sides filled up to multiples of 64.
    """

    def __init__(
        self,
        model: MagcModel,
        *,
        device: Device | str = Device.AUTO,
        precision: InferencePrecision | str = InferencePrecision.FP32,
        batch_size: int = 8,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.device = torch_device(Device(device))
        self.reconstructor = Reconstructor(
            model,
            device=self.device,
            precision=InferencePrecision(precision),
            batch_size=batch_size,
        )
        self.model = model
        self.max_pixels = max_pixels
        self.is_gained = model.config.rate.mode is RateMode.GAINED
        self.entropy_fingerprint = model.entropy_fingerprint()
        self.entropy_model = bytes.fromhex(self.entropy_fingerprint)[:MODEL_BYTES]

    @classmethod
    def from_pretrained(cls, name_or_path: str, *, draws: bool | None = True, **options: Any) -> "MagcCodec":
        """A codec with the model of a directory or of a repository on the Hugging Face hub.

        Args:
            name_or_path: model directory, or OWNER/NAME.
            draws: whether to read what draws, as for `MagcModel.from_pretrained`; to compress, nothing is drawn.
            options: of the class.

        Raises:
            ModelError: there is no usable model.
        """
        return cls(MagcModel.from_pretrained(name_or_path, draws=draws), **options)

    # --- sender ------------------------------------------------------------------------------------------------------

    def compress(
        self,
        image: Picture,
        semantic_map: ClassMap | None = None,
        *,
        rate: Rate | None = None,
        seed: int = 0,
        embed_map: bool = False,
    ) -> bytes:
        """The stream of a picture of any size.

        Args:
            image: RGB.
            semantic_map: class ids on the picture's own grid, or none for ground without a map.
            rate: for gained models.
            seed: of the noise that the receiver starts from unless told otherwise.
            embed_map: store the map in the stream, for receivers that have none.

        Raises:
            UsageError: the rate does not fit the model, or the model needs a map and there is none.
            DataError: the map does not fit the picture or the model.
        """
        [result] = self.compress_batch([image], [semantic_map], rate=rate, seed=seed, embed_map=embed_map)
        return result.stream

    def compress_batch(
        self,
        images: Sequence[Picture],
        semantic_maps: Sequence[ClassMap | None] | None = None,
        *,
        rate: Rate | None = None,
        seed: int = 0,
        embed_map: bool = False,
    ) -> list[Compressed]:
        """Streams of pictures, each as `compress` makes it, with what they cost; the sizes may differ."""
        maps = [None] * len(images) if semantic_maps is None else list(semantic_maps)
        if len(maps) != len(images):
            raise UsageError(f"there are {len(maps)} maps for {len(images)} pictures: expected one a picture")
        if not 0 <= seed < 2**64:
            raise UsageError(f"the seed is {seed}: expected 0 to 2^64 - 1")
        step = self.rate_step(rate)
        if embed_map and not self.model.config.map.is_used:
            raise UsageError("this model reads no map, so none can be embedded: leave --embed-map away")
        jobs = [self._prepared(image, each) for image, each in zip(images, maps, strict=True)]
        results: dict[int, Compressed] = {}
        for numbers in _alike(jobs):
            some = [jobs[number] for number in numbers]
            pictures = torch.from_numpy(np.stack([job.picture for job in some]))
            compressed = self.reconstructor.compress(pictures, _stacked(some), self.position(step))
            for number, job, each in zip(numbers, some, compressed, strict=True):
                kind, map_data = self._map_field(job, maps[number], embed_map=embed_map)
                stream = pack_tile(
                    TileStream(
                        self.entropy_model, step, job.width_px, job.height_px, seed, kind, map_data, each.payload
                    )
                )
                embedded = len(map_data) if kind is MapKind.EMBEDDED else 0
                cost = Cost(len(stream), len(each.payload), each.ideal_bits / 8, embedded)
                results[number] = Compressed(stream, cost)
        return [results[number] for number in range(len(images))]

    def compress_tensor(
        self,
        images: Tensor,
        semantic_maps: Tensor | None = None,
        *,
        rate: Rate | None = None,
        seed: int = 0,
        embed_map: bool = False,
    ) -> list[bytes]:
        """Streams of images as torchvision has them: those that `compress_batch` makes of the same 8-bit pictures.

        No gradient goes through.

        Args:
            images: [batch, 3, height, width] on any device: floats in [0, 1], which are rounded to 8 bits, or uint8.
            semantic_maps: class ids [batch, height, width], uint8 or int64, on any device; none for ground without.
            rate: for gained models.
            seed: of the noise that the receiver starts from unless told otherwise.
            embed_map: store each map in its stream.

        Raises:
            UsageError: a shape, a type or a value is not as above, or as for `compress`.
            DataError: as for `compress`.
        """
        pictures = list(pictures_of(images))
        maps = None if semantic_maps is None else list(maps_of(semantic_maps, len(pictures)))
        results = self.compress_batch(pictures, maps, rate=rate, seed=seed, embed_map=embed_map)
        return [each.stream for each in results]

    def compress_to_size(
        self,
        image: Picture,
        semantic_map: ClassMap | None = None,
        *,
        max_bytes: int,
        seed: int = 0,
        embed_map: bool = False,
    ) -> Compressed:
        """The best stream of a picture that has at most so many bytes, all included; for gained models.

        Sizes rise with the rate but for a byte now and then: the rate is found by bisection, and then raised as long as
        one of the next few still fits.

        Raises:
            UsageError: the model has one rate, its lowest rate needs more bytes, or as for `compress`.
            DataError: as for `compress`.
        """
        if self.model.config.rate.mode is RateMode.FIXED:
            raise UsageError(
                f"this model has one rate (lambda {self.model.config.rate.lambdas[0]:g}) and cannot aim at a size: "
                "leave the size away, or use a model trained with --rate gained"
            )
        tried: dict[int, Compressed] = {}

        def fits(step: int) -> bool:
            if step not in tried:
                rate = Rate(position=self.position(step))
                [tried[step]] = self.compress_batch([image], [semantic_map], rate=rate, seed=seed, embed_map=embed_map)
            return len(tried[step].stream) <= max_bytes

        if not fits(0):
            raise UsageError(
                f"the smallest stream of this picture has {len(tried[0].stream)} bytes, {max_bytes} were asked for: "
                "allow more, or use a model trained for lower rates"
            )
        low, high = 0, RATE_STEPS
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle) else (low, middle - 1)
        best = max(step for step in range(low, min(low + _STEPS_BEYOND, RATE_STEPS) + 1) if fits(step))
        return tried[best]

    def rate_step(self, rate: Rate | None) -> int | None:
        """A rate as streams store it: 0 to 255 along the rate axis; none for a model of one rate.

        Raises:
            UsageError: it is outside of the model's, or the model has one rate only.
        """
        config = self.model.config.rate
        given = {} if rate is None else {name: each for name, each in vars(rate).items() if each is not None}
        if config.mode is RateMode.FIXED:
            if given:
                raise UsageError(
                    f"this model has one rate (lambda {config.lambdas[0]:g}): leave the quality away, or use a model "
                    "trained with --rate gained"
                )
            return None
        highest = len(config.lambdas) - 1
        if len(given) > 1:
            raise UsageError(f"a rate was given as {' and as '.join(given)}: expected one of them")
        [(name, value)] = given.items() or [("position", highest / 2)]
        scale = _SCALES[name]
        low, high = scale.of_position(0, config.lambdas), scale.of_position(highest, config.lambdas)
        if not low <= value <= high:
            raise UsageError(f"the {name.strip('_')} is {value:g}: this model has {low:g} to {high:g}")
        return round(scale.position(value, config.lambdas) / highest * RATE_STEPS)

    # --- receiver ----------------------------------------------------------------------------------------------------

    def decompress(
        self,
        stream: bytes,
        semantic_map: ClassMap | None = None,
        *,
        sampling: Sampling | None = None,
        seed: int | None = None,
        strict: bool = False,
    ) -> Picture:
        """The picture of a stream.

        Args:
            stream: from `compress`.
            semantic_map: the sender's map; not needed where the stream brings it along.
            sampling: sampler and steps; `default_sampling` if not given.
            seed: of the noise; the stream's own if not given.
            strict: refuse a map that is not the sender's instead of warning.

        Raises:
            BitstreamError: the stream is damaged, or for another model; with `strict`, or where the symbols cannot be
                read, for another map.
            UsageError: the picture is larger than `max_pixels`, or the stream needs a map.
            DataError: the map does not fit the picture or the model.
        """
        return self.decompress_batch([stream], [semantic_map], sampling=sampling, seed=seed, strict=strict)[0]

    def decompress_batch(
        self,
        streams: Sequence[bytes],
        semantic_maps: Sequence[ClassMap | None] | None = None,
        *,
        sampling: Sampling | None = None,
        seed: int | None = None,
        strict: bool = False,
    ) -> list[Picture]:
        """Pictures of streams, each as `decompress` makes it; sizes and rates may differ."""
        maps = [None] * len(streams) if semantic_maps is None else list(semantic_maps)
        if len(maps) != len(streams):
            raise UsageError(f"there are {len(maps)} maps for {len(streams)} streams: expected one a stream")
        tiles = [self.read(stream) for stream in streams]
        chosen = [self._chosen_map(tile, each, strict=strict) for tile, each in zip(tiles, maps, strict=True)]
        jobs = [self._blank(tile, each) for tile, each in zip(tiles, chosen, strict=True)]
        sampling = sampling or self.default_sampling()
        pictures: dict[int, Picture] = {}
        for numbers in _alike(jobs, [tile.rate for tile in tiles]):
            some = [jobs[number] for number in numbers]
            size, class_ids = some[0].picture.shape[:2], _stacked(some)
            payloads = [tiles[number].payload for number in numbers]
            guides = self.reconstructor.guides(payloads, size, class_ids, self.position(tiles[numbers[0]].rate))
            windows = [NoiseWindow(tiles[number].seed if seed is None else seed) for number in numbers]
            decoded = self.reconstructor.reconstruct(guides, class_ids, sampling, windows).numpy()
            for number, job, picture in zip(numbers, some, decoded, strict=True):
                pictures[number] = np.ascontiguousarray(picture[: job.height_px, : job.width_px])
        return [pictures[number] for number in range(len(streams))]

    def decompress_tensor(
        self,
        streams: Sequence[bytes],
        semantic_maps: Tensor | None = None,
        *,
        sampling: Sampling | None = None,
        seed: int | None = None,
        strict: bool = False,
    ) -> Float32[Tensor, "batch 3 height width"]:
        """The pictures of streams of one size, as floats in [0, 1] on the codec's device; no gradient.

        Args:
            streams: from any `compress`.
            semantic_maps: the senders' maps, class ids [batch, height, width], uint8 or int64, on any device.
            sampling: as for `decompress`.
            seed: as for `decompress`.
            strict: as for `decompress`.

        Raises:
            UsageError: there are no streams, their sizes differ, a map's shape, type or value is not as above, or as
                for `decompress`.
            BitstreamError, DataError: as for `decompress`.
        """
        if not streams:
            raise UsageError("there are no streams: expected one or more")
        maps = None if semantic_maps is None else list(maps_of(semantic_maps, len(streams)))
        sizes = sorted({(tile.width_px, tile.height_px) for tile in map(self.read, streams)})
        if len(sizes) > 1:
            found = " and ".join(f"{width}x{height}" for width, height in (sizes[0], sizes[-1]))
            raise UsageError(
                f"the streams hold pictures of {found} pixels, which no one tensor holds: use decompress_batch"
            )
        pictures = self.decompress_batch(streams, maps, sampling=sampling, seed=seed, strict=strict)
        return images_of(pictures, self.device)

    def symbols(
        self, stream: bytes, semantic_map: ClassMap | None = None
    ) -> Float64[np.ndarray[Any, Any], "symbol_channels symbol_height symbol_width"]:
        """What a stream says before any float network: the same on every machine, to the last bit.

        Raises:
            BitstreamError, UsageError, DataError: as for `decompress`.
        """
        tile = self.read(stream)
        job = self._blank(tile, self._chosen_map(tile, semantic_map, strict=False))
        symbols = self.reconstructor.symbols(tile.payload, job.picture.shape[:2], _stacked([job]))
        return np.asarray(symbols.cpu().numpy())

    def read(self, stream: bytes) -> TileStream:
        """The fields of a stream for this model.

        Raises:
            BitstreamError: it is damaged, or for another model.
            UsageError: the picture is larger than `max_pixels`.
        """
        tile = unpack_tile(stream)
        self.check_model(tile.entropy_model, has_rate=tile.rate is not None)
        pixels = padded_pixels(tile.width_px, tile.height_px)
        if pixels > self.max_pixels:
            raise UsageError(
                f"the stream holds a picture of {tile.width_px}x{tile.height_px} pixels, more than the "
                f"{self.max_pixels} that are decoded unasked ({pixels}, filled up to multiples of {IMAGE_STRIDE}): "
                "raise max_pixels if you trust its sender"
            )
        return tile

    def default_sampling(self) -> Sampling:
        """What is done unasked: the paper's 50 steps of DDPM, one of a one-step generator, none without a denoiser."""
        return usual_sampling(self.model)

    def check_model(self, entropy_model: bytes, *, has_rate: bool) -> None:
        """Whether streams that name this entropy model can be read.

        Raises:
            BitstreamError: they are for another.
        """
        if entropy_model != self.entropy_model:
            raise BitstreamError(
                f"the stream is for the entropy model {entropy_model.hex()}, this model's is "
                f"{self.entropy_model.hex()}: decode it with the model that compressed it"
            )
        if has_rate is not self.is_gained:
            raise BitstreamError("the stream's rate does not fit the model: get it again from its sender")

    # --- both --------------------------------------------------------------------------------------------------------

    def _prepared(self, image: Picture, class_ids: ClassMap | None) -> _Job:
        height, width = image.shape[:2]
        if not height or not width:
            raise DataError(f"the picture has {width}x{height} pixels: expected at least one")
        if class_ids is not None and class_ids.shape != (height, width):
            raise DataError(
                f"the map has {class_ids.shape[1]}x{class_ids.shape[0]} pixels, the picture {width}x{height}: they "
                "must cover the same ground at the same size"
            )
        padding = [(0, -height % IMAGE_STRIDE), (0, -width % IMAGE_STRIDE)]
        # Repeated borders, not mirrored ones: a picture may be narrower than what is missing.
        picture = np.pad(image, [*padding, (0, 0)], mode="edge")
        if class_ids is not None and self.model.config.map.is_used:
            return _Job(picture, np.pad(class_ids, padding, mode="edge"), height, width)
        return _Job(picture, None, height, width)

    def _blank(self, tile: TileStream, class_ids: ClassMap | None) -> _Job:
        return self._prepared(np.zeros((tile.height_px, tile.width_px, 3), np.uint8), class_ids)

    def _map_field(self, job: _Job, class_ids: ClassMap | None, *, embed_map: bool) -> tuple[MapKind, bytes]:
        if job.class_ids is None or class_ids is None:
            if embed_map:
                raise UsageError("there is no map to embed: give one, or leave --embed-map away")
            return MapKind.NONE, b""
        if embed_map:
            return MapKind.EMBEDDED, encode_map(class_ids)
        return MapKind.DIGEST, map_digest(class_ids)

    def _chosen_map(self, tile: TileStream, given: ClassMap | None, *, strict: bool) -> ClassMap | None:
        """The map to decode with."""
        if tile.map_kind is MapKind.NONE:
            if given is not None and self.model.config.map.is_used:
                _mismatch("the stream was compressed without a map, and one was given: it is left out", strict=strict)
            return None
        if tile.map_kind is MapKind.EMBEDDED:
            return self.decode_embedded_map(tile.map_data, tile.height_px, tile.width_px)
        if given is None:
            raise UsageError(
                f"the stream needs the map of digest {tile.map_data.hex()}: give the sender's map, or have it embedded "
                "with --embed-map"
            )
        if (found := map_digest(given)) != tile.map_data:
            _mismatch(
                f"the map's digest is {found.hex()}, the sender's was {tile.map_data.hex()}: houses and roads will be "
                "elsewhere, and the symbols may not be readable at all",
                strict=strict,
            )
        return given

    def decode_embedded_map(self, data: bytes, height_px: int, width_px: int) -> ClassMap:
        """A map that came in a stream.

        Raises:
            BitstreamError: it is damaged, of another size, or holds a class that the model does not know.
        """
        class_ids = decode_map(data, height_px, width_px)
        foreign = class_ids[~np.isin(class_ids, [each.id for each in self.model.config.map.classes])]
        if self.model.config.map.is_used and len(foreign):
            raise BitstreamError(
                f"the embedded map holds class {foreign[0]}, which the model does not know: get the stream again from "
                "its sender"
            )
        return class_ids

    def position(self, step: int | None) -> float | None:
        """Position on the rate axis of a rate as streams store it."""
        return None if step is None else step / RATE_STEPS * (len(self.model.config.rate.lambdas) - 1)


def _mismatch(message: str, *, strict: bool) -> None:
    if strict:
        raise BitstreamError(message)
    warnings.warn(message, MapMismatchWarning, stacklevel=4)


class _Scale(NamedTuple):
    """A way to name places on the rate axis."""

    position: Callable[[float, Sequence[float]], float]
    of_position: Callable[[int, Sequence[float]], float]


_SCALES = {
    "quality": _Scale(lambda value, _: value - 1, lambda position, _: position + 1),
    "lambda_": _Scale(
        lambda value, lambdas: float(np.interp(math.log(value), np.log(lambdas), np.arange(len(lambdas)))),
        lambda position, lambdas: lambdas[position],
    ),
    "position": _Scale(lambda value, _: value, lambda position, _: position),
}
"""By the fields of `Rate`; log-linear between two lambdas."""


def _alike(jobs: Sequence[_Job], rates: Iterable[int | None] | None = None) -> list[list[int]]:
    """Numbers of jobs that can share a batch: one size, one rate, all with a map or none."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, (job, rate) in enumerate(zip(jobs, rates or [None] * len(jobs), strict=True)):
        groups.setdefault((job.picture.shape, job.class_ids is None, rate), []).append(number)
    return list(groups.values())


def _stacked(jobs: Sequence[_Job]) -> UInt8[torch.Tensor, "batch height width"] | None:
    maps = [job.class_ids for job in jobs if job.class_ids is not None]
    return torch.from_numpy(np.stack(maps)) if maps else None
