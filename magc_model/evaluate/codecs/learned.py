"""Learned baselines as codecs under evaluation: `baseline:RUN`, `baseline:RUN1+RUN2+RUN3`, `baseline:FOLDER_OF_RUNS`.

Every lambda is a model of its own, so a scale of rates is a list of models. A file says by two bytes of the digest of
encoder and entropy model which of them reads it; sides are padded to multiples of 64 inside.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from magc_model.baselines import stored
from magc_model.baselines.architectures import compressai_version, label
from magc_model.baselines.coder import PictureCoder, padded
from magc_model.baselines.config import BaselineConfig
from magc_model.baselines.network import BaselineCodec
from magc_model.baselines.stream import TAG_BYTES, BaselineStream, pack, tag_of, unpack
from magc_model.data import image_tensor
from magc_model.errors import BitstreamError, DataError, EvaluationError, UsageError
from magc_model.evaluate.codecs.protocol import ClassMap, Encoded, Picture
from magc_model.evaluate.codecs.registry import CodecSpec
from magc_model.evaluate.codecs.spec import RATES, RateScale, rates_of
from magc_model.nets.map_planes import map_planes

SEPARATOR = "+"


class _Rate:
    """One of the models, ready to code."""

    def __init__(self, codec: BaselineCodec, digest: str) -> None:
        self.config: BaselineConfig = codec.config
        self.digest = digest
        self.tag = bytes.fromhex(codec.stream_digest())[:TAG_BYTES]
        self.coder = PictureCoder(codec)


class LearnedCodec:
    """Baselines of one kind at several rates, which are their lambdas.

    Args:
        text: what it was asked for by, without rates.
        codecs: the models, each with the digest of its weights.
        wanted: lambdas to measure at; all of the models' if not given.

    Raises:
        UsageError: the models are no scale of rates.
    """

    uses_map: bool

    def __init__(
        self, text: str, codecs: list[tuple[BaselineCodec, str]], wanted: tuple[float, ...] | None = None
    ) -> None:
        self.name = text
        models = sorted((_Rate(*each) for each in codecs), key=lambda each: each.config.rate_lambda)
        kinds = sorted({f"{label(each.config)} of {each.config.architecture}" for each in models})
        if len(kinds) > 1:
            raise UsageError(f"'{text}' mixes {' and '.join(kinds)}: expected one kind of baseline at several lambdas")
        self._by_rate = {each.config.rate_lambda: each for each in models}
        self._by_tag = {each.tag: each for each in models}
        if len(self._by_rate) < len(models) or len(self._by_tag) < len(models):
            raise UsageError(f"'{text}' has two models of one lambda or with one encoder: expected one a rate")
        first = models[0].config
        self.label = label(first)
        self.uses_map = first.map.is_used
        digests = ", ".join(each.digest[:12] for each in models)
        self.version = f"{first.architecture} of compressai {compressai_version()}, weights {digests}"
        known = tuple(self._by_rate)
        self.rates: tuple[float, ...] = known if wanted is None else wanted
        if foreign := [each for each in self.rates if each not in known]:
            raise UsageError(
                f"no model in '{text}' has lambda {foreign[0]:g}: there are {', '.join(f'{each:g}' for each in known)}"
            )

    def encode(self, picture: Picture, semantic_map: ClassMap | None, rate: float) -> Encoded:  # noqa: ARG002
        """The picture's file; the map is the decoder's alone.

        Raises:
            UsageError: the rate is none of the models' lambdas.
        """
        model = self._by_rate.get(rate)
        if model is None:
            known = ", ".join(f"{each:g}" for each in self.rates)
            raise UsageError(f"the rate {rate:g} is no lambda of '{self.name}': expected one of {known}")
        strings = model.coder.encode(padded(image_tensor(picture[np.newaxis])))
        height_px, width_px = picture.shape[:2]
        data = pack(BaselineStream(model.tag, height_px, width_px, strings))
        return Encoded(data, sum(map(len, strings.parts)))

    def decode(self, data: bytes, semantic_map: ClassMap | None) -> Picture:
        """The picture, from the file's bytes and, where the decoder reads it, the map.

        Raises:
            BitstreamError: the bytes are no baseline's, damaged, or of a model that is not here.
            DataError: there is no map of the picture's size where one is needed.
        """
        model = self._by_tag.get(tag_of(data))
        if model is None:
            raise BitstreamError(
                f"the file was written by a model that '{self.name}' does not hold: decode it with that"
            )
        stream = unpack(data, model.coder.part_count)
        rows_px, columns_px = (-(-side // 64) * 64 for side in (stream.height_px, stream.width_px))
        planes = _planes(model.config, semantic_map, (stream.height_px, stream.width_px), (rows_px, columns_px))
        image = model.coder.decode(stream.strings, rows_px, columns_px, planes)
        levels = ((image[0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return np.ascontiguousarray(levels[:, : stream.height_px, : stream.width_px].permute(1, 2, 0).numpy())


def _planes(
    config: BaselineConfig, semantic_map: ClassMap | None, size_px: tuple[int, int], padded_px: tuple[int, int]
) -> Tensor | None:
    if not config.map.is_used:
        return None
    if semantic_map is None:
        if not config.map.dropout:
            raise DataError(
                "this baseline has never seen a picture without its map: give it, or train with --map-dropout"
            )
        return torch.zeros(1, config.map.plane_count, *padded_px)
    if semantic_map.shape != size_px:
        found, expected = (f"{width}x{height}" for height, width in (semantic_map.shape, size_px))
        raise DataError(f"the map has {found} pixels, the picture {expected}: expected one grid")
    room: Any = [(0, room - side) for side, room in zip(size_px, padded_px, strict=True)]
    ids = torch.from_numpy(np.pad(semantic_map, room, mode="edge")[np.newaxis])
    return map_planes(ids, config.map)


def open(spec: CodecSpec) -> LearnedCodec:  # noqa: A001  (the registry's word for it)
    """The codec of a text such as `baseline:runs/elic-1+runs/elic-2`.

    Raises:
        UsageError: no model is named, or they do not belong together.
        EvaluationError: there is no model in a folder that is named, or CompressAI is not installed.
        ModelError: a model is damaged.
    """
    if not spec.argument:
        raise UsageError("'baseline' needs a model: write baseline:RUN, or baseline:RUN1+RUN2+RUN3 for several rates")
    folders = [folder for each in spec.argument.split(SEPARATOR) for folder in _models(Path(each).expanduser())]
    wanted = rates_of(spec, RateScale("lambda", (), 0, 1e9, whole=False)) if RATES in spec.options else None
    return LearnedCodec(spec.text, [stored.load_codec(folder) for folder in folders], wanted)


def _models(path: Path) -> list[Path]:
    """The model in a folder, or the models in its subfolders."""
    if not path.is_dir():
        raise EvaluationError(f"there is no folder {path}: give a run of `magc-train baseline`, or a folder of them")
    if stored.is_model(path):
        return [path]
    inside = sorted(each for each in path.iterdir() if each.is_dir() and stored.is_model(each))
    if not inside:
        raise EvaluationError(
            f"{path} holds no finished baseline: give a run of `magc-train baseline`, or a folder of them"
        )
    return inside
