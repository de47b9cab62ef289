"""Metrics that need published weights: each where its files lie in the folder, else missing, with the way out.

One cut is measured at a time, so that a figure does not depend on what else is measured with it.
"""

import functools
import importlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from magc_model.evaluate.metrics.colour import PicturePixels
from magc_model.evaluate.metrics.patches import Patches
from magc_model.evaluate.metrics.perceptual_nets import Dists, Lpips
from magc_model.evaluate.metrics.table import INCEPTION_DISTANCES, PERCEPTUAL, Missing
from magc_model.evaluate.metrics.weights import (
    ALEXNET,
    CLIP_RN50,
    DISTS_WEIGHTS,
    INCEPTION,
    LPIPS_HEADS,
    MUSIQ_KONIQ,
    VGG16,
    LoadedWeights,
    Tensors,
    WeightFile,
    fill,
    filled_from,
    loaded_weights,
    read_script,
    read_tensors,
)

PERCEPTUAL_SMALLEST_PX = 64
"""Below this the deep layers have no room."""

PairMeasure = Callable[[PicturePixels, PicturePixels], float]
"""Original and decoded to a figure."""
PatchFeatures = Callable[[Patches], Float32[np.ndarray[Any, Any], "_patches _dimensions"]]

# "X image" prompts of CLIP-IQA as pyiqa has them, in the tokens of CLIP: the tokeniser that it uses does not load where
# setuptools is new. Good, sharp, sharp edges, High resolution, Noise-free, each with its opposite.
_START, _END, _TEXT_LENGTH = 49406, 49407, 77
_PROMPTS = (
    (886, 2867), (2103, 2867), (8157, 2867), (21977, 2867), (8157, 20938), (21977, 20938), (1400, 9977, 2867),
    (1042, 9977, 2867), (9307, 268, 1139, 2867), (33495, 2867),
)  # fmt: skip
_CLIP_MEAN, _CLIP_DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Perceptual(NamedTuple):
    """What could be opened."""

    pairs: dict[str, PairMeasure]
    """By the metric's name."""
    inception: PatchFeatures | None
    """Features of FID and KID."""
    weights: tuple[LoadedWeights, ...]
    missing: tuple[Missing, ...]


class _Entry(NamedTuple):
    labels: dict[str, str]
    """Of the metrics that it serves, by name."""
    files: tuple[WeightFile, ...]
    package: str
    """Which it needs; the empty text for none."""
    open: Callable[[Path], Any]


def open_perceptual(folder: Path | None, names: Sequence[str]) -> Perceptual:
    """Open those of the metrics whose weights and packages are here.

    Raises:
        EvaluationError: a file is damaged, or of another network.
    """
    opened: dict[str, Any] = {}
    weights: list[LoadedWeights] = []
    missing: list[Missing] = []
    for entry in _ENTRIES:
        wanted = [name for name in entry.labels if name in names]
        if not wanted:
            continue
        lack = _lack(entry, folder)
        if lack is None and folder is not None:
            network = entry.open(folder)
            opened |= dict.fromkeys(wanted, network)
            weights += [loaded_weights(name, file, folder) for name in wanted for file in entry.files]
        elif lack is not None:
            missing += [Missing(name, entry.labels[name], *lack) for name in wanted]
    inception = next((opened.pop(metric.name) for metric in INCEPTION_DISTANCES if metric.name in opened), None)
    pairs = {name: measure for name, measure in opened.items() if name in _PAIR_NAMES}
    return Perceptual(pairs, inception, tuple(weights), tuple(missing))


def _lack(entry: _Entry, folder: Path | None) -> tuple[str, str] | None:
    """Reason and way out where something is missing."""
    absent = [file for file in entry.files if folder is None or not (folder / file.name).is_file()]
    if absent:
        where = "no folder of weights was given" if folder is None else f"{folder} does not have its weights"
        sources = "; ".join(f"{file.name} (from {file.source})" for file in absent)
        return where, f"put into the folder of --weights-dir: {sources}"
    if entry.package:
        try:
            importlib.import_module(entry.package)
        except ImportError as error:
            name = getattr(error, "name", None) or entry.package
            return f"the package {name} is not here or does not load ({error})", 'pip install "magc[perceptual]"'
    return None


def _planes(picture: PicturePixels) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float() / 255


def _open_lpips(folder: Path) -> PairMeasure:
    network = Lpips()
    features = _backbone(folder / ALEXNET.name, network.features)
    fill(network, features | read_tensors(folder / LPIPS_HEADS.name), folder / LPIPS_HEADS.name)
    return functools.partial(_pair_distance, network)


def _open_dists(folder: Path) -> PairMeasure:
    network = Dists()
    features = _backbone(folder / VGG16.name, network.features)
    own = {name: value for name, value in read_tensors(folder / DISTS_WEIGHTS.name).items() if name in _DISTS_OWN}
    fill(network, features | own, folder / DISTS_WEIGHTS.name)
    return functools.partial(_pair_distance, network)


_DISTS_OWN = ("alpha", "beta")  # pyiqa's file may hold the backbone as well


def _backbone(path: Path, layers: nn.Module) -> Tensors:
    """The convolutions of a torchvision classifier."""
    tensors = {name: value for name, value in read_tensors(path).items() if name.startswith("features.")}
    fill(layers, {name.removeprefix("features."): value for name, value in tensors.items()}, path)
    return tensors


def _pair_distance(network: nn.Module, original: PicturePixels, decoded: PicturePixels) -> float:
    if min(original.shape[:2]) < PERCEPTUAL_SMALLEST_PX:
        return float("nan")
    with torch.no_grad():
        return float(network(_planes(decoded), _planes(original)))


def _open_musiq(folder: Path) -> PairMeasure:
    from pyiqa.archs.musiq_arch import MUSIQ

    network = MUSIQ(pretrained=False)
    fill(network, read_tensors(folder / MUSIQ_KONIQ.name), folder / MUSIQ_KONIQ.name)

    def measure(_: PicturePixels, decoded: PicturePixels) -> float:
        if min(decoded.shape[:2]) < PERCEPTUAL_SMALLEST_PX:
            return float("nan")
        with torch.no_grad():
            return float(network(_planes(decoded)))

    return measure


def _open_clip_iqa(folder: Path) -> PairMeasure:
    from pyiqa.archs.clip_model import build_model

    path = folder / CLIP_RN50.name
    tensors = dict(read_script(path).state_dict())
    built: list[Any] = []
    filled_from(path, lambda: built.append(build_model(tensors).float().eval().requires_grad_(requires_grad=False)))
    network = built[0]
    tokens = torch.zeros(len(_PROMPTS), _TEXT_LENGTH, dtype=torch.long)
    for row, words in enumerate(_PROMPTS):
        tokens[row, : len(words) + 2] = torch.tensor([_START, *words, _END])
    texts = nn.functional.normalize(network.encode_text(tokens), dim=-1)
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (_CLIP_MEAN, _CLIP_DEVIATION))

    def measure(_: PicturePixels, decoded: PicturePixels) -> float:
        if min(decoded.shape[:2]) < PERCEPTUAL_SMALLEST_PX:
            return float("nan")
        with torch.no_grad():
            seen = network.encode_image((_planes(decoded) - mean) / deviation, pos_embedding=False)
            logits = network.logit_scale.exp() * nn.functional.normalize(seen, dim=-1) @ texts.T
            return float(logits.reshape(-1, 2).softmax(dim=-1)[:, 0].mean())

    return measure


def _open_inception(folder: Path) -> PatchFeatures:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = folder / INCEPTION.name
    # It unpickles what it is given: so it gets nothing but the tensors, packed again here.
    packed = io.BytesIO()
    torch.save(read_tensors(path), packed)
    packed.seek(0)
    built: list[Any] = []
    filled_from(
        path,
        lambda: built.append(
            FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=packed)
        ),
    )

    def features(patches: Patches) -> Float32[np.ndarray[Any, Any], "_patches _dimensions"]:
        with torch.no_grad():
            (found,) = built[0](torch.from_numpy(np.ascontiguousarray(patches)).permute(0, 3, 1, 2))
        return np.asarray(found.numpy())

    return features


_LABELS = {metric.name: metric.label for metric in (*PERCEPTUAL, *INCEPTION_DISTANCES)}
_PAIR_NAMES = frozenset(metric.name for metric in PERCEPTUAL)


def _labels(*names: str) -> dict[str, str]:
    return {name: _LABELS[name] for name in names}


_ENTRIES = (
    _Entry(_labels("lpips"), (ALEXNET, LPIPS_HEADS), "", _open_lpips),
    _Entry(_labels("dists"), (VGG16, DISTS_WEIGHTS), "", _open_dists),
    _Entry(_labels("musiq"), (MUSIQ_KONIQ,), "pyiqa.archs.musiq_arch", _open_musiq),
    _Entry(_labels("clip-iqa"), (CLIP_RN50,), "pyiqa.archs.clip_model", _open_clip_iqa),
    _Entry(_labels("fid", "kid"), (INCEPTION,), "torch_fidelity", _open_inception),
)
