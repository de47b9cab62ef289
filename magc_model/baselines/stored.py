"""A baseline's directory.

    MODEL/config.json         format version, kind, config, digest of the weights, what it was made from
    MODEL/model.safetensors   weights
    MODEL/README.md           for people

It appears whole or not at all, and is read only if every name, shape, dtype and the digest are as they should be.
"""

import json
import reprlib
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from magc_data.atomic import write_atomically
from magc_data.version import __version__
from magc_model.baselines.architectures import label
from magc_model.baselines.config import BaselineConfig, LabelsConfig, Objective
from magc_model.baselines.labels import LabelNetwork
from magc_model.baselines.network import BaselineCodec, digest
from magc_model.config import config_from, to_document
from magc_model.errors import ModelError
from magc_model.model_folder import former_folder, sync_file, whole_folder

FORMAT_VERSION = 1
CONFIG_NAME, WEIGHTS_NAME, CARD_NAME = "config.json", "model.safetensors", "README.md"
CODEC, LABELS = "baseline codec", "label network"


class Stored(NamedTuple):
    """A directory's contents."""

    network: BaselineCodec | LabelNetwork
    digest: str
    """Of the weights."""
    record: dict[str, Any]
    """What it was trained on and with, for people."""


def save(folder: Path, network: BaselineCodec | LabelNetwork, record: dict[str, Any]) -> str:
    """Write a directory; one that is there already is replaced, in one step.

    Returns:
        The digest of the weights.

    Raises:
        ModelError: it cannot be written.
    """
    tensors = {name: each.detach().cpu().contiguous() for name, each in _tensors(network).items()}
    config = network.config
    document = {
        "format_version": FORMAT_VERSION,
        "magc_version": __version__,
        "kind": CODEC if isinstance(config, BaselineConfig) else LABELS,
        "config": to_document(config),
        "digest": digest(tensors),
        "record": record,
    }
    with whole_folder(_check_destination(folder)) as temporary:
        try:
            safetensors.torch.save_file(tensors, temporary / WEIGHTS_NAME)
        except SafetensorError as error:
            raise ModelError(f"{folder} cannot be written ({error}): make room for it, or give another path") from None
        write_atomically(temporary / CONFIG_NAME, (json.dumps(document, indent=2) + "\n").encode())
        write_atomically(temporary / CARD_NAME, _card(config, record).encode())
        shutil.copymode(temporary / CONFIG_NAME, temporary / WEIGHTS_NAME)  # safetensors keeps its files to the owner
        sync_file(temporary / WEIGHTS_NAME)
    return str(document["digest"])


def is_model(path: Path) -> bool:
    """Whether a path is a model's directory, or a run's folder with one in it."""
    return bool(_places(path))


def _places(path: Path) -> list[Path]:
    # The former one, where a replacement was ended between its two renames.
    folders = [each for folder in (path / "model", path) for each in (folder, former_folder(folder))]
    return [each for each in folders if (each / WEIGHTS_NAME).is_file() and (each / CONFIG_NAME).is_file()]


def find(path: Path) -> Path:
    """The model of a path: a model's directory, or a run's folder with one in it.

    Raises:
        ModelError: there is none.
    """
    for folder in _places(path):
        return folder
    if (path / "checkpoints").is_dir():
        raise ModelError(f"the run {path} has not ended yet: run its command again, then use it")
    raise ModelError(f"{path} is no baseline's directory: expected one that `magc-train baseline` has written")


def load(path: Path) -> Stored:
    """Read a directory; the network is in evaluation mode, on the CPU.

    Raises:
        ModelError: it is missing, damaged, or of another version.
        EvaluationError: CompressAI is not installed.
    """
    folder = find(path)
    document = _document(folder)
    network = _built(folder, document)
    expected = _tensors(network)
    try:
        tensors = safetensors.torch.load_file(folder / WEIGHTS_NAME)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{folder / WEIGHTS_NAME} cannot be read ({error}): copy the directory again") from None
    for name in sorted(expected.keys() | tensors.keys()):
        found, wanted = (_shape(each.get(name)) for each in (tensors, expected))
        if found != wanted:
            raise ModelError(
                f"{folder / WEIGHTS_NAME} holds {found} as '{name[:80]}', where its config asks for {wanted}: the "
                "files belong to different models, so copy the whole directory again"
            )
    found_digest = digest(tensors)
    if found_digest != document["digest"]:
        raise ModelError(
            f"{folder / WEIGHTS_NAME} does not hold what {CONFIG_NAME} says (its digest differs): copy the "
            "directory again"
        )
    if isinstance(network, BaselineCodec):
        network.fill(tensors)
    else:
        network.load_state_dict(tensors)
    record = document.get("record")
    return Stored(network.eval(), found_digest, record if isinstance(record, dict) else {})


def load_codec(path: Path) -> tuple[BaselineCodec, str]:
    """A codec, and the digest of its weights.

    Raises:
        ModelError, EvaluationError: as `load`, or it is a label network.
    """
    stored = load(path)
    if not isinstance(stored.network, BaselineCodec):
        raise ModelError(f"{path} is a network of labels (vq-vae) and no codec: give a codec's folder")
    return stored.network, stored.digest


def load_labels(path: Path) -> tuple[LabelNetwork, str]:
    """A label network, and the digest of its weights.

    Raises:
        ModelError: as `load`, or it is a codec.
    """
    stored = load(path)
    if not isinstance(stored.network, LabelNetwork):
        raise ModelError(f"{path} is a codec: --labels takes a run of `magc-train baseline --architecture vq-vae`")
    return stored.network, stored.digest


def _tensors(network: BaselineCodec | LabelNetwork) -> dict[str, Tensor]:
    return network.stored() if isinstance(network, BaselineCodec) else network.state_dict()


def _shape(tensor: Tensor | None) -> str:
    if tensor is None:
        return "nothing"
    return f"{str(tensor.dtype).removeprefix('torch.')} {'x'.join(map(str, tensor.shape)) or 'number'}"


def _document(folder: Path) -> dict[str, Any]:
    place = folder / CONFIG_NAME
    try:
        document = json.loads(place.read_bytes())
    except (OSError, ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise ModelError(f"{place} cannot be read as JSON: copy the directory again")
    if document.get("format_version") != FORMAT_VERSION or document.get("kind") not in (CODEC, LABELS):
        found = f"{reprlib.repr(document.get('kind'))} of format {reprlib.repr(document.get('format_version'))}"
        raise ModelError(
            f"{place} is of {found}: expected a baseline of format {FORMAT_VERSION}, such as `magc-train baseline` "
            "writes"
        )
    return document


def _built(folder: Path, document: dict[str, Any]) -> BaselineCodec | LabelNetwork:
    """The network that a config asks for, whose weights are still any."""
    kind = BaselineConfig if document["kind"] == CODEC else LabelsConfig
    try:
        config = config_from(kind, document.get("config"), "config")
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from None
    return BaselineCodec(config) if isinstance(config, BaselineConfig) else LabelNetwork(config)


def _card(config: BaselineConfig | LabelsConfig, record: dict[str, Any]) -> str:
    if isinstance(config, BaselineConfig):
        title = f"{label(config)} ({config.architecture}, lambda {config.rate_lambda:g})"
        use = "Measure it with `magc evaluate --codec baseline:THIS_FOLDER`."
        if config.objective is not Objective.MSE and not config.perceptual:
            use += "\n\nTrained without LPIPS, whose weights were not there: not the published objective."
    else:
        title, use = "VQ-VAE for labels", "Give it to `magc-train baseline --finetune ms-illm --labels THIS_FOLDER`."
    lines = "\n".join(f"* {name}: {value}" for name, value in record.items())
    return f"# {title}\n\nA baseline trained by magc {__version__}. {use}\n\n{lines}\n"


def _check_destination(folder: Path) -> Path:
    folder = folder.resolve()
    if folder.exists() and not (folder / CONFIG_NAME).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"{folder} holds other things and no model: give the path of a new folder")
    return folder
