"""A trained segmenter as one thing, and the directory that it is stored in.

    MODEL/config.json              format version, SegmenterConfig, fingerprint of the weights
    MODEL/segmenter.safetensors
    MODEL/README.md                model card, for people

As a model directory, it appears whole or not at all, and is read only if every name, shape, dtype and fingerprint is
as it should be.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from magc_data.version import __version__
from magc_model.config import SegmenterConfig, segmenter_config_from, to_document
from magc_model.data import image_tensor
from magc_model.errors import ModelError, UsageError
from magc_model.model_folder import (
    CARD_NAME,
    CONFIG_NAME,
    WEIGHTS_SUFFIX,
    check_is_there,
    check_tensors,
    fingerprint_of,
    former_folder,
    in_one_line,
    read_tensors,
    sync_file,
    whole_folder,
    write_tensors,
)
from magc_model.nets.segmenter import SegmenterNetwork

SEGMENTER_FORMAT_VERSION = 1
_WEIGHTS = "segmenter"
_RUNS_MODEL = "model"

Pictures = UInt8[np.ndarray[Any, Any], "pictures height width 3"]
"""RGB."""


def build_segmenter(config: SegmenterConfig) -> SegmenterNetwork:
    """The network of a config, freshly initialised."""
    if len(config.classes) < 2:
        raise UsageError(f"a segmenter of {len(config.classes)} classes has nothing to tell apart: give two or more")
    return SegmenterNetwork(config.channels, len(config.classes))


class SegmenterModel:
    """A trained segmenter.

    Attributes:
        config: what the network was built from.
        network: the network itself, in evaluation mode.
        fingerprint: sha256 over the config and all weights.
        name: for tables and results; two segmenters of one name are the same.
        classes: names of the classes that it tells apart.
        class_ids: their ids in the class table of the dataset, which `predict` answers with.
    """

    def __init__(self, config: SegmenterConfig, network: SegmenterNetwork) -> None:
        self.config, self.network = config, network.eval()
        self.fingerprint = _fingerprint(config, network.state_dict())
        self.name = f"segmenter-{self.fingerprint[:12]}"
        self.classes = tuple(each.name for each in config.classes)
        self.class_ids = tuple(each.id for each in config.classes)

    def predict(self, pictures: Pictures) -> UInt8[np.ndarray[Any, Any], "pictures height width"]:
        """The class id that each pixel looks like most.

        A picture at a time: what is said of one does not depend on those beside it, not even in the last bit.
        """
        device = next(self.network.parameters()).device
        ids = np.array(self.class_ids, np.uint8)
        answers = np.zeros(pictures.shape[:3], np.uint8)
        for picture, answer in zip(pictures, answers, strict=True):
            with torch.inference_mode():
                logits = self.network(image_tensor(picture[None]).to(device, memory_format=torch.channels_last))
            answer[...] = ids[logits[0].argmax(dim=0).cpu().numpy()]
        return answers

    def save_pretrained(self, folder: Path | str) -> str:
        """Write the segmenter's directory; a segmenter that is there already is replaced, in one step.

        Returns:
            The segmenter's fingerprint.

        Raises:
            ModelError: the folder holds something else or cannot be written.
        """
        folder = _check_destination(folder)
        document = {
            "format_version": SEGMENTER_FORMAT_VERSION,
            "magc_version": __version__,
            "segmenter": to_document(self.config),
            "fingerprint": self.fingerprint,
        }
        texts = {
            CONFIG_NAME: json.dumps(document, indent=2, ensure_ascii=False) + "\n",
            CARD_NAME: _CARD.format(name=self.name, classes=", ".join(self.classes)),
        }
        with whole_folder(folder) as new:
            for name, text in texts.items():
                (new / name).write_bytes(text.encode())
                sync_file(new / name)
            write_tensors(folder, new, _WEIGHTS, self.network.state_dict())
        return self.fingerprint

    @staticmethod
    def from_pretrained(path: Path | str, device: torch.device | str = "cpu") -> "SegmenterModel":
        """Read a segmenter's directory, or the one in the folder of a finished run of `magc-train segmenter`.

        Raises:
            ModelError: it is missing, unfinished, damaged, or no segmenter of this version.
        """
        folder = _find(Path(path).expanduser())
        stored = _read_config(folder)
        weights = folder / f"{_WEIGHTS}{WEIGHTS_SUFFIX}"
        check_is_there(weights)
        try:
            with torch.device("meta"):
                network = build_segmenter(stored.config)
        except Exception as error:  # noqa: BLE001  (numbers that make no network fail in as many ways as there are layers)
            raise ModelError(
                f"{folder / CONFIG_NAME} describes a network that cannot be built ({in_one_line(error)}): copy the "
                "whole directory again"
            ) from None
        tensors = read_tensors(weights)
        check_tensors(str(weights), tensors, network.state_dict())
        if _fingerprint(stored.config, tensors) != stored.fingerprint:
            raise ModelError(
                f"{weights} does not hold what {CONFIG_NAME} says (its fingerprint differs): it is damaged or of "
                "another segmenter, so copy the whole directory again"
            )
        network.load_state_dict(tensors, assign=True)
        return SegmenterModel(stored.config, network.to(device).to(memory_format=torch.channels_last))


class _Stored(NamedTuple):
    """What config.json says."""

    config: SegmenterConfig
    fingerprint: str


def _find(folder: Path) -> Path:
    if not folder.is_dir() and former_folder(folder).is_dir():
        return former_folder(folder)  # a replacement was killed between its two renames
    if (folder / "metrics.jsonl").exists() or (folder / "checkpoints").is_dir():
        if not (folder / _RUNS_MODEL).is_dir():
            raise ModelError(f"the run {folder} has not ended yet: run its command again, then use it")
        return folder / _RUNS_MODEL
    if not folder.is_dir():
        raise ModelError(
            f"there is no segmenter {folder}: give the folder of a run of `magc-train segmenter`, or of its model"
        )
    return folder


def _read_config(folder: Path) -> _Stored:
    path = folder / CONFIG_NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder} is no segmenter: it has no {CONFIG_NAME}") from None
    except (OSError, ValueError, RecursionError) as error:  # the last one: brackets by the thousand
        raise ModelError(f"{path} cannot be read ({in_one_line(error)}): copy the whole directory again") from None
    if not isinstance(document, dict) or not isinstance(document.get("fingerprint"), str) or _WEIGHTS not in document:
        raise ModelError(f"{path} is not of a segmenter: expected format_version, segmenter and fingerprint in it")
    if document.get("format_version") != SEGMENTER_FORMAT_VERSION:
        found = str(document.get("format_version"))[:40]
        raise ModelError(
            f"{path} is of format {found}, this magc reads format {SEGMENTER_FORMAT_VERSION}: use the version that "
            f"wrote it (magc {str(document.get('magc_version'))[:40]})"
        )
    return _Stored(segmenter_config_from(document[_WEIGHTS]), document["fingerprint"])


def _fingerprint(config: SegmenterConfig, tensors: Mapping[str, Tensor]) -> str:
    document = {
        "format_version": SEGMENTER_FORMAT_VERSION,
        "segmenter": to_document(config),
        "weights": fingerprint_of(tensors),
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _check_destination(folder: Path | str) -> Path:
    folder = Path(folder).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise ModelError(f"{folder} is a file: give the path of a folder for the segmenter")
    ours = {CONFIG_NAME, CARD_NAME, f"{_WEIGHTS}{WEIGHTS_SUFFIX}"}
    found = {each.name for each in folder.iterdir()} if folder.is_dir() else set()
    if found and not found <= ours:
        raise ModelError(f"{folder} holds {min(found - ours)}, which is no segmenter's: give the path of a new folder")
    if found:
        _read_config(folder)
    return folder


_CARD = """\
---
tags:
- image-segmentation
- remote-sensing
---
# {name}

Says of each pixel of an aerial picture which class of the map it looks like: {classes}. Trained on a dataset's own
maps by `magc-train segmenter`, to measure whether a codec leaves things where the map has them.

In Python: `magc_model.segmenter_model.SegmenterModel.from_pretrained(FOLDER).predict(pictures)`.

On what terms it may be used is for those to say who trained it.
"""
