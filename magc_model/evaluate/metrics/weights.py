"""Published weights in a folder of the user's: which files, where they come from, and reading them without trust.

Nothing is ever downloaded, and no pickle is run: files are read as tensors alone. A file of the right name that is
damaged or of another network is an error; one that works but is not the published one is told apart by its hash.
"""

import hashlib
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from magc_model.errors import EvaluationError


class WeightFile(NamedTuple):
    """One file that a metric needs."""

    name: str
    """As it is published: the name that it must have in the folder."""
    source: str
    """Where people get it."""
    sha256: str
    """How its hash begins, as far as that is known; empty where it is not."""


class LoadedWeights(NamedTuple):
    """One file that a metric was measured with: part of what its figures belong to."""

    metric: str
    file: str
    sha256: str
    published: bool | None
    """Whether it is the published file; none where that cannot be told."""


_PYIQA = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main"

ALEXNET = WeightFile(
    "alexnet-owt-7be5be79.pth", "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "7be5be79"
)
VGG16 = WeightFile("vgg16-397923af.pth", "https://download.pytorch.org/models/vgg16-397923af.pth", "397923af")
LPIPS_HEADS = WeightFile(
    "LPIPS_v0.1_alex-df73285e.pth",
    f"{_PYIQA}/LPIPS_v0.1_alex-df73285e.pth, or lpips/weights/v0.1/alex.pth of the package lpips, renamed",
    "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
)
DISTS_WEIGHTS = WeightFile("DISTS_weights-f5e65c96.pth", f"{_PYIQA}/DISTS_weights-f5e65c96.pth", "f5e65c96")
MUSIQ_KONIQ = WeightFile("musiq_koniq_ckpt-e95806b9.pth", f"{_PYIQA}/musiq_koniq_ckpt-e95806b9.pth", "e95806b9")
CLIP_RN50 = WeightFile(
    "RN50.pt",
    "https://openaipublic.azureedge.net/clip/models/afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/"
    "RN50.pt",
    "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
)
INCEPTION = WeightFile(
    "weights-inception-2015-12-05-6726825d.pth",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "",
)

# What torch.load raises over bytes that are no weights, depending on where it notices.
_UNREADABLE = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError,
)  # fmt: skip

Tensors = dict[str, Tensor]


def loaded_weights(metric: str, file: WeightFile, folder: Path) -> LoadedWeights:
    """What is known of a file that lies in the folder."""
    with (folder / file.name).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return LoadedWeights(metric, file.name, digest, digest.startswith(file.sha256) if file.sha256 else None)


def read_tensors(path: Path) -> Tensors:
    """A state dict, without `module.` before its names.

    Raises:
        EvaluationError: the file holds something else, or is damaged.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise _unreadable(path, "PyTorch weights", error) from error
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise EvaluationError(f"{path} holds no tensors by name: expected PyTorch weights, so fetch the file again")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def read_script(path: Path, extra_files: dict[str, Any] | None = None) -> torch.jit.ScriptModule:
    """A TorchScript archive; its code stays inside of TorchScript.

    Args:
        path: the file.
        extra_files: filled with the files of these names inside of the archive.

    Raises:
        EvaluationError: the file is none, or is damaged.
    """
    try:
        with warnings.catch_warnings():
            # What is published as TorchScript stays TorchScript, whatever PyTorch would rather have.
            warnings.simplefilter("ignore", FutureWarning)
            script = torch.jit.load(path, map_location="cpu", _extra_files=extra_files)  # type: ignore[no-untyped-call, unused-ignore]
    except _UNREADABLE as error:
        raise _unreadable(path, "a TorchScript archive", error) from error
    return cast("torch.jit.ScriptModule", script)


def fill(network: nn.Module, tensors: Tensors, path: Path) -> None:
    """Put weights into a network that they must fit exactly.

    Raises:
        EvaluationError: names or shapes differ.
    """
    filled_from(path, lambda: network.load_state_dict(tensors))
    network.eval().requires_grad_(requires_grad=False)


def filled_from(path: Path, put: Callable[[], object]) -> None:
    """Do what puts the weights of a file into a network.

    Raises:
        EvaluationError: they do not fit.
    """
    try:
        put()
    except (RuntimeError, KeyError, AttributeError) as error:
        detail = " ".join(str(error).split())[:200]
        raise EvaluationError(
            f"{path} has the right name and holds the weights of another network ({detail}): fetch the file again"
        ) from error


def _unreadable(path: Path, expected: str, error: Exception) -> EvaluationError:
    """The sentence about a file that could not be read."""
    detail = " ".join(str(error).split())[:120]
    return EvaluationError(
        f"{path} cannot be read ({type(error).__name__}: {detail}): expected {expected}, so fetch the file again"
    )
