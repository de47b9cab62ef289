"""MAGC under evaluation: the files that `magc compress` writes, and the pictures that `magc decompress` makes of them.

    magc                              the model in the box
    magc:runs/x/model,steps=20        another, with options of its decoder
    magc:runs/a/model+runs/b/model    several models of one rate each: a curve, as in the paper
    magc,map=off                      ground without a map, at the sender and the receiver
    magc:runs/x/model,only=autoencoder    nothing but the image autoencoder (autoencoder.py)

Pictures of at most 512 pixels a side are tile streams, larger ones are scene streams. Bytes are those of the whole
stream; of them, `stream_bytes` are the symbols', without header, index, checks and the map's digest.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from magc_data.version import __version__
from magc_model.bitstream import unpack_tile
from magc_model.codec import MagcCodec, Rate
from magc_model.config import IMAGE_STRIDE, IN_THE_BOX, Device, MapConfig
from magc_model.diffusion.samplers import SAMPLERS
from magc_model.errors import UsageError
from magc_model.evaluate.codecs.autoencoder import AutoencoderUnderTest
from magc_model.evaluate.codecs.protocol import ClassMap, Encoded, ImageCodec, Picture
from magc_model.evaluate.codecs.spec import (
    RATES,
    CodecSpec,
    RateScale,
    choice_option,
    number_option,
    rates_of,
)
from magc_model.reconstruct import Sampling, check_sampling, usual_steps
from magc_model.scene.compress import compress_scene
from magc_model.scene.open import open_stream
from magc_model.scene.raster_files import ArrayMap, ArrayPixels
from magc_model.scene.stream import MAX_CHUNK_PX

MAX_TILE_PX = 512
"""Side of the largest picture that is coded as a tile: what the denoiser sees at once."""

_MODELS = "+"
_MAP = ("on", "off")
_PARTS = ("all", "autoencoder")
_SAMPLING_OPTIONS = ("steps", "sampler", "start_t", "fidelity")


class _Model(NamedTuple):
    """A model that is open."""

    codec: MagcCodec
    rates: tuple[float, ...]
    """Usual ones: the qualities of its lambdas, or its one lambda."""


class MagcUnderTest:
    """MAGC with one gained model, or with several of one rate each."""

    def __init__(self, spec: CodecSpec) -> None:
        self._has_map = choice_option(spec, "map", _MAP, "on") == "on"
        names = (spec.argument or IN_THE_BOX).split(_MODELS)
        self._models = [_opened(each, spec) for each in names]
        gained = [each.codec.is_gained for each in self._models]
        if len(names) > 1 and any(gained):
            raise UsageError(
                f"{names[gained.index(True)]} has many rates and is one of {len(names)} models in '{spec.text}': give "
                "it alone"
            )
        if len({each.codec.entropy_model for each in self._models}) < len(names):
            raise UsageError(
                f"two models in '{spec.text}' have one entropy model, so that streams do not tell them apart: give "
                "them one by one"
            )
        self.name = spec.text
        codecs = [each.codec for each in self._models]
        fingerprints = "+".join(each.model.fingerprint()[:12] for each in codecs)
        self.version = f"magc {__version__}, model {fingerprints}"
        self.rates = self._rates(spec, is_gained=gained[0])
        self.uses_map = self._has_map and any(each.model.config.map.is_used for each in codecs)
        self._sampling = _sampling(spec, codecs[0])
        self.label = ", ".join(("MAGC", *self._lacks(codecs[0].model.config.map)))
        self._seed = int(number_option(spec, "seed", 0.0, 0.0, 2.0**53))
        smallest_px, largest_px = float(IMAGE_STRIDE), float(MAX_CHUNK_PX)
        self._chunk_px = int(number_option(spec, "chunk", largest_px, smallest_px, largest_px))
        if self._chunk_px % IMAGE_STRIDE:
            raise UsageError(f"{spec.name} was asked for chunk={self._chunk_px}: expected a multiple of {IMAGE_STRIDE}")

    def encode(self, picture: Picture, semantic_map: ClassMap | None, rate: float) -> Encoded:
        """A tile's or a scene's stream."""
        codec, at = self._at(rate)
        class_ids = semantic_map if self._has_map else None
        with one_thread():
            if max(picture.shape[:2]) <= MAX_TILE_PX:
                stream = codec.compress(picture, class_ids, rate=at)
                return Encoded(stream, len(unpack_tile(stream).payload))
            maps = None if class_ids is None else ArrayMap(class_ids)
            scene = compress_scene(codec, ArrayPixels(picture), maps, rate=at, chunk_px=self._chunk_px)
        return Encoded(scene.stream, scene.cost.payload)

    def decode(self, data: bytes, semantic_map: ClassMap | None) -> Picture:
        """What the receiver draws with the same map, and with the seed that was asked for."""
        maps = ArrayMap(semantic_map) if self._has_map and semantic_map is not None else None
        codec = self._codec_of(data)
        with one_thread():
            drawn = open_stream(codec, data, maps, sampling=self._sampling, seed=self._seed, strict=True).read()
        return np.ascontiguousarray(drawn)

    def _lacks(self, used: MapConfig) -> Iterator[str]:
        """What of the paper's model is not there, by tables 2 and 3; without diffusion it is its faithful end."""
        if not self.uses_map:
            yield "no map"
        elif not used.in_transform:
            yield "no SPADE"
        if not self._sampling.steps:
            yield "faithful"

    def _rates(self, spec: CodecSpec, *, is_gained: bool) -> tuple[float, ...]:
        if is_gained:
            usual = self._models[0].rates
            return rates_of(spec, RateScale("quality", usual, usual[0], usual[-1], whole=False))
        known = tuple(sorted(rate for each in self._models for rate in each.rates))
        if len(set(known)) < len(known):
            raise UsageError(f"two models in '{spec.text}' have one lambda: expected one model for each")
        if RATES not in spec.options:
            return known
        wanted = rates_of(spec, RateScale("lambda", known, known[0], known[-1], whole=False))
        if foreign := [each for each in wanted if each not in known]:
            found = ", ".join(f"{each:g}" for each in known)
            raise UsageError(f"no model in '{spec.text}' has lambda {foreign[0]:g}: there are {found}")
        return wanted

    def _at(self, rate: float) -> tuple[MagcCodec, Rate | None]:
        first = self._models[0]
        if first.codec.is_gained:
            return first.codec, Rate(quality=float(rate))
        for model in self._models:
            if rate in model.rates:
                return model.codec, None
        raise UsageError(f"{self.name} was asked for lambda {rate:g}: expected one of its rates")

    def _codec_of(self, data: bytes) -> MagcCodec:
        """The model that a stream names."""
        for each in self._models:
            if each.codec.entropy_model in data[:_NAMED_WITHIN]:
                return each.codec
        return self._models[0].codec  # which says what is wrong with it


_NAMED_WITHIN = 8
"""Bytes at a stream's beginning among which it names its model."""


def open_magc(spec: CodecSpec) -> ImageCodec:
    """MAGC, or its autoencoder.

    Raises:
        UsageError: an option does not fit the model.
        ModelError: there is no such model.
    """
    if choice_option(spec, "only", _PARTS, "all") == "autoencoder":
        if strange := [each for each in spec.options if each not in ("only", "map", RATES)]:
            raise UsageError(f"'{spec.text}' asks for {strange[0]}, which the autoencoder alone does not have")
        return AutoencoderUnderTest(spec, has_map=choice_option(spec, "map", _MAP, "on") == "on")
    return MagcUnderTest(spec)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread: processes share the cores already, and sums are made in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _opened(name: str, spec: CodecSpec) -> _Model:
    if not name:
        raise UsageError(f"'{spec.text}' names no model beside a '{_MODELS}': expected MODEL{_MODELS}MODEL")
    codec = MagcCodec.from_pretrained(name, draws=_draws(spec), device=Device.CPU)
    lambdas = codec.model.config.rate.lambdas
    rates = tuple(float(each + 1) for each in range(len(lambdas))) if codec.is_gained else (float(lambdas[0]),)
    return _Model(codec, rates)


def _steps(spec: CodecSpec) -> int:
    return int(number_option(spec, "steps", 0.0, 0.0, 1000.0))


def _draws(spec: CodecSpec) -> bool | None:
    """Whether options ask for what the model draws; none where that is for the model to say."""
    if "steps" in spec.options:
        return _steps(spec) > 0
    return True if any(each in spec.options for each in _SAMPLING_OPTIONS) else None


def _sampling(spec: CodecSpec, codec: MagcCodec) -> Sampling:
    """The decoder's options over its usual ones.

    Raises:
        UsageError: they do not fit the model.
    """
    given: dict[str, Any] = {}
    if "steps" in spec.options:
        given["steps"] = _steps(spec)
    if "sampler" in spec.options:
        given["sampler"] = choice_option(spec, "sampler", SAMPLERS, "")
    if "start_t" in spec.options:
        given["start_t"] = int(number_option(spec, "start_t", 0.0, 0.0, 999.0))
    if "fidelity" in spec.options:
        given["fidelity"] = number_option(spec, "fidelity", 0.0, 0.0, 1.0, whole=False)
    if given.get("steps", 1) and given and not codec.model.has_denoiser:
        wrong = next(each for each in _SAMPLING_OPTIONS if each in given)
        raise UsageError(f"the model of '{spec.text}' has no denoiser, so that {wrong} means nothing: leave it away")
    usual = codec.default_sampling()
    steps = usual_steps(codec.model) if given else usual.steps
    sampling = Sampling(**{"sampler": usual.sampler, "steps": steps, **given})
    check_sampling(codec.model, sampling)
    return sampling
