"""A whole model: its networks and entropy tables as one thing, and the directory that it is stored in.

    MODEL/config.json                       format version, ModelConfig, components and their fingerprints
    MODEL/autoencoder.safetensors           from `vae` on
    MODEL/latent_compression.safetensors    from stage 1 on, with
    MODEL/entropy_tables.safetensors        the integer tables that its streams are coded with
    MODEL/denoiser.safetensors              from stage 2 on
    MODEL/realistic_decoder.safetensors     where a one-step generator has an image decoder of its own
    MODEL/README.md                         model card, for people

A directory appears whole or not at all, and is read only if every name, shape, dtype and fingerprint is as it should
be. Pickles are neither written nor read.
"""

import contextlib
import hashlib
import json
import re
import reprlib
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from magc_data.version import __version__
from magc_model.config import FORMAT_VERSION, IN_THE_BOX, ModelConfig, model_config_from, to_document
from magc_model.entropy.tables import EntropyTables
from magc_model.errors import DataError, MagcModelError, ModelError, UsageError
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
from magc_model.nets.autoencoder import ImageAutoencoder, ImageDecoder
from magc_model.nets.conditional_diffusion import ConditionalDenoiser
from magc_model.nets.latent_compression import LatentCompression
from magc_model.nets.map_planes import map_planes
from magc_model.shapes import ClassIds, MapPlanes

TABLES = "entropy_tables"

_PICKLE_SUFFIXES = {".bin", ".ckpt", ".pt", ".pth", ".pkl"}
_FOR_PEOPLE = ("preset", "base_model")
"""Fields of a ModelConfig that say where a model came from, not what it does."""

_BRIEFLY = reprlib.Repr()
"""For what a foreign file holds: no message gets longer than a few lines."""
_BRIEFLY.maxdict = 8

ENTROPY_PARTS = ("hyper_synthesis.", "mean_networks.", "scale_networks.", "entropy_map.")
"""Of the LCM, what the exact entropy path reads: another value is another format of streams."""


def build_autoencoder(config: ModelConfig) -> ImageAutoencoder:
    """The image autoencoder of a config, freshly initialised."""
    return ImageAutoencoder(config.autoencoder, config.map.plane_count if config.map.in_decoder else None)


def build_latent_compression(config: ModelConfig) -> LatentCompression:
    """The LCM of a config, freshly initialised."""
    return LatentCompression(config.latent_compression, config.map, config.rate, config.quirks)


def build_denoiser(config: ModelConfig) -> ConditionalDenoiser:
    """The denoiser of a config, freshly initialised."""
    planes = config.map.plane_count if config.map.in_diffusion else None
    return ConditionalDenoiser(config.denoiser, planes, config.quirks)


def build_realistic_decoder(config: ModelConfig) -> ImageDecoder:
    """The image decoder of a config's one-step generator, freshly initialised."""
    return ImageDecoder(config.autoencoder, config.map.plane_count if config.map.in_decoder else None)


_NETWORKS: dict[str, Callable[[ModelConfig], Any]] = {
    "autoencoder": build_autoencoder,
    "latent_compression": build_latent_compression,
    "denoiser": build_denoiser,
    "realistic_decoder": build_realistic_decoder,
}
_OF_ALL_MODELS = ("autoencoder", "latent_compression", "denoiser")
_GENERATOR = ("denoiser", "realistic_decoder")
"""The networks that draw."""


class MagcModel(nn.Module):
    """The parts of a model; each training stage adds one.

    Attributes:
        config: what the parts were built from.
        autoencoder: image to latent and back.
        latent_compression: the LCM; from stage 1 on.
        denoiser: the CDM with its semantic adapter; from stage 2 on.
        tables: what streams are coded with; they belong to the weights of `latent_compression`.
        realistic_decoder: latent to image for what a one-step generator draws; none where `autoencoder` does that too.
        left_out: fingerprints, by name, of networks that are stored with the model and were not read with it.

    Raises:
        ModelError: there is a realistic decoder, and no one-step generator.
    """

    def __init__(
        self,
        config: ModelConfig,
        autoencoder: ImageAutoencoder,
        latent_compression: LatentCompression | None = None,
        denoiser: ConditionalDenoiser | None = None,
        tables: EntropyTables | None = None,
        realistic_decoder: ImageDecoder | None = None,
    ) -> None:
        super().__init__()
        if realistic_decoder is not None and (denoiser is None or not config.denoiser.is_one_step):
            raise ModelError(
                "the model has a realistic decoder and no one-step generator: expected a denoiser that predicts the "
                "residual beside it"
            )
        self.config = config
        self.autoencoder = autoencoder
        self.latent_compression = latent_compression
        self.denoiser = denoiser
        self.tables = tables
        self.realistic_decoder = realistic_decoder
        self.left_out: dict[str, str] = {}

    @property
    def has_denoiser(self) -> bool:
        """Whether the model can draw, with what was left out read as well."""
        return self.denoiser is not None or "denoiser" in self.left_out

    def planes(self, class_ids: ClassIds | None, shape: tuple[int, int, int]) -> MapPlanes | None:
        """What the networks read of a map: nothing for a model without a map, all-zero planes where there is none.

        Args:
            class_ids: the map, or none for ground without one.
            shape: batch, height and width of the images, in pixels.

        Raises:
            DataError: the map is of another size, or holds a class that the model does not know.
            UsageError: there is no map, and the model has never been trained without one.
        """
        if not self.config.map.is_used:
            return None
        if class_ids is None:
            if not self.config.map.dropout:
                raise UsageError(
                    "this model has never seen a picture without its map: give the map, or train with --map-dropout"
                )
            device = next(self.autoencoder.parameters()).device
            batch, height, width = shape
            return torch.zeros(batch, self.config.map.plane_count, height, width, device=device)
        if tuple(class_ids.shape) != shape:
            found, expected = ("x".join(map(str, each)) for each in (class_ids.shape, shape))
            raise DataError(f"the map is of shape {found}, the images are {expected} (batch x height x width)")
        return map_planes(class_ids, self.config.map)

    def fingerprint(self) -> str:
        """sha256 over all weights, tables and the config: what identifies the model. Reads every weight.

        What was left out counts as it is stored: the same model has one fingerprint, however much of it was read.
        """
        read = {name: fingerprint_of(each) for name, each in _components(self).items()}
        return _whole_fingerprint(self._stored_config(), read | self.left_out)

    def entropy_fingerprint(self) -> str:
        """sha256 over what an entropy decoder needs: models that share it can read each other's streams.

        Raises:
            ModelError: the model cannot compress.
        """
        if self.latent_compression is None or self.tables is None:
            raise ModelError("the model has no latent compression with entropy tables yet: train stage 1 first")
        weights = {
            name: each for name, each in self.latent_compression.state_dict().items() if name.startswith(ENTROPY_PARTS)
        }
        tables = {f"{TABLES}.{name}": each for name, each in self.tables.to_tensors().items()}
        return fingerprint_of(weights | tables)

    def save_pretrained(self, folder: Path | str) -> str:
        """Write the model's directory; one that is there already is replaced, in one step.

        A README.md that was edited is kept.

        Returns:
            The model's fingerprint.

        Raises:
            ModelError: the folder holds something else or cannot be written, a weight is of another dtype than a
                model directory has, the config would not be read again, or parts of the model were not read.
        """
        if self.left_out:
            raise ModelError(
                f"the model was read without its {' and '.join(self.left_out)}: read it with draws=True to save it"
            )
        folder = check_destination(folder)
        config = self._stored_config()
        model_config_from(to_document(config))
        components = _components(self)
        expected = _components(unfilled_model(config, components.keys()))
        for name, tensors in components.items():
            if name != TABLES:
                check_tensors(f"the model's {name}", tensors, expected[name])
        fingerprints = {name: fingerprint_of(tensors) for name, tensors in components.items()}
        fingerprint = _whole_fingerprint(config, fingerprints)
        document = {
            "format_version": FORMAT_VERSION,
            "magc_version": __version__,
            "model": to_document(config),
            "components": fingerprints,
            "fingerprint": fingerprint,
        }
        texts = {
            CONFIG_NAME: (json.dumps(document, indent=2) + "\n").encode(),
            CARD_NAME: _edited_card(folder) or _card(config, components),
        }
        with whole_folder(folder) as new:
            for name, text in texts.items():
                (new / name).write_bytes(text)
                sync_file(new / name)
            for name, tensors in components.items():
                write_tensors(folder, new, name, tensors)
        return fingerprint

    @staticmethod
    def from_pretrained(
        name_or_path: Path | str, device: torch.device | str = "cpu", *, draws: bool | None = True
    ) -> "MagcModel":
        """Read a model directory, or a repository of the Hugging Face hub (its local cache first); ready for use.

        Args:
            name_or_path: directory, name of the one in the box, or OWNER/NAME.
            device: for its weights.
            draws: whether to read the networks that draw: not needed to compress, nor for a one-step generator's
                faithful end, and most of what there is to wait for; none for what the model does unasked.

        Raises:
            ModelError: it is nowhere, unfinished, damaged, or no model of this version.
        """
        folder = find_model(name_or_path)
        stored = _read_config(folder)
        for name in stored.components:
            check_is_there(folder / f"{name}{WEIGHTS_SUFFIX}")
        draws = not stored.config.denoiser.is_one_step if draws is None else draws
        left_out = {name: each for name, each in stored.components.items() if not draws and name in _GENERATOR}
        to_read = {name: each for name, each in stored.components.items() if name not in left_out}
        model = _built(folder, stored.config, to_read)
        expected = _components(model)
        weights: dict[str, Tensor] = {}
        for name, fingerprint in to_read.items():
            path = folder / f"{name}{WEIGHTS_SUFFIX}"
            tensors = read_tensors(path)
            if name == TABLES:
                model.tables = _read_tables(path, tensors)
            else:
                check_tensors(str(path), tensors, expected[name])
                weights |= {f"{name}.{key}": each for key, each in tensors.items()}
            if fingerprint_of(tensors) != fingerprint:
                raise ModelError(
                    f"{path} does not hold what {CONFIG_NAME} says (its fingerprint differs): it is damaged or of "
                    "another model, so copy the whole directory again"
                )
        if _whole_fingerprint(stored.config, stored.components) != stored.fingerprint:
            raise ModelError(
                f"{folder / CONFIG_NAME} was changed after it was written (its fingerprint differs): copy the whole "
                "directory again"
            )
        fill_model(model, weights)
        model.left_out = left_out
        return model.to(device).eval()

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the model's directory to the Hugging Face hub, into a repository that is made if need be.

        A README.md that the repository has already is kept.

        Returns:
            Address of the commit.

        Raises:
            ModelError: the hub refuses, or cannot be reached.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.save_pretrained(folder)
            try:
                api.create_repo(repo_id, private=private, exist_ok=True)
                kept = [CARD_NAME] if api.file_exists(repo_id, CARD_NAME) else None
                commit = api.upload_folder(
                    repo_id=repo_id, folder_path=folder, commit_message="Upload a MAGC model", ignore_patterns=kept
                )
            except Exception as error:  # noqa: BLE001  (a dozen kinds, from the hub's client and from its HTTP library)
                raise ModelError(
                    f"the model cannot be uploaded to '{repo_id}' ({in_one_line(error)}): expected OWNER/NAME, a "
                    "connection, and a token with write access (`hf auth login`)"
                ) from None
        return str(commit)

    def _stored_config(self) -> ModelConfig:
        """The config with what training has found out."""
        scaling_factor = float(self.autoencoder.scaling_factor)
        return replace(self.config, autoencoder=replace(self.config.autoencoder, scaling_factor=scaling_factor))


def unfilled_model(config: ModelConfig, components: Collection[str] = _OF_ALL_MODELS) -> MagcModel:
    """A model whose weights have shapes but no values, to be given to `fill_model`."""
    with torch.device("meta"):
        return MagcModel(config, **{name: build(config) for name, build in _NETWORKS.items() if name in components})


def fill_model(model: MagcModel, weights: Mapping[str, Tensor]) -> None:
    """Give an unfilled model its weights, which are not copied; names are those of `stored_tensors`."""
    model.load_state_dict(weights, assign=True)


def stored_tensors(model: MagcModel) -> dict[str, Tensor]:
    """Everything that a model directory holds of the networks, by the name in the model."""
    return {
        f"{component}.{name}": each
        for component, tensors in _components(model).items()
        if component != TABLES
        for name, each in tensors.items()
    }


def check_destination(folder: Path | str) -> Path:
    """Where a model can be written, made absolute: a folder to be made, an empty one, or a model to be replaced.

    Raises:
        ModelError: the place is taken.
    """
    folder = Path(folder).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise ModelError(f"{folder} is a file: give the path of a folder for the model")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / CONFIG_NAME).is_file():
            raise ModelError(f"{folder} holds other things and no model: give the path of a new folder")
        ours = {CONFIG_NAME, CARD_NAME, *(f"{name}{WEIGHTS_SUFFIX}" for name in (*_NETWORKS, TABLES))}
        foreign = sorted(each.name for each in folder.iterdir() if each.name not in ours)
        if foreign:
            raise ModelError(
                f"{folder} holds {foreign[0]} beside a model, which would be lost when the model is replaced: move it "
                "away, or give the path of a new folder"
            )
    return folder


def find_model(name_or_path: Path | str) -> Path:
    """Directory of a model: a local folder, one in the box, a repository in the hub's cache, or downloaded from there.

    Raises:
        ModelError: it is nowhere.
    """
    name, folder = str(name_or_path), Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    if former_folder(folder).is_dir():
        return former_folder(folder)  # a replacement was killed between its two renames
    if name == IN_THE_BOX:
        return Path(__file__).with_name("weights") / name
    if isinstance(name_or_path, Path) or folder.exists() or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise ModelError(
            f"there is no model directory {folder}: give the path of one, {IN_THE_BOX} for the one in "
            "the box, or a repository of the hub as OWNER/NAME"
        )
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = [CONFIG_NAME, f"*{WEIGHTS_SUFFIX}"]
    with contextlib.suppress(LocalEntryNotFoundError, ModelError):
        cached = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
        if all((cached / f"{each}{WEIGHTS_SUFFIX}").is_file() for each in _read_config(cached).components):
            return cached
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # noqa: BLE001  (a dozen kinds, from the hub's client and from its HTTP library)
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else in_one_line(error)
        raise ModelError(
            f"the model '{name}' is neither a folder ({folder.absolute()}) nor in the hub's cache "
            f"({constants.HF_HUB_CACHE}), and it cannot be downloaded ({reason}): give the path of a model directory, "
            "or check the name and the connection"
        ) from None


class _StoredConfig(NamedTuple):
    """What config.json says."""

    config: ModelConfig
    components: dict[str, str]
    """Name to fingerprint."""
    fingerprint: str


def _read_config(folder: Path) -> _StoredConfig:
    path = folder / CONFIG_NAME
    if not path.is_file():
        pickles = sorted(each.name for each in folder.iterdir() if each.suffix in _PICKLE_SUFFIXES)
        if pickles:
            raise ModelError(
                f"{folder} is no MAGC model: it has no {CONFIG_NAME}, and {pickles[0]} is a pickle, which is never "
                "read (`magc convert-checkpoint` reads the published checkpoint)"
            )
        raise ModelError(f"{folder} is no MAGC model: it has no {CONFIG_NAME}")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # the last one: brackets by the thousand
        raise ModelError(f"{path} cannot be read ({error}): copy the whole directory again") from None
    if not isinstance(document, dict) or "format_version" not in document or "model" not in document:
        raise ModelError(f"{path} is not of a MAGC model: expected format_version, model and components in it")
    if document["format_version"] != FORMAT_VERSION:
        raise ModelError(
            f"{path} is of format {_BRIEFLY.repr(document['format_version'])}, this magc reads format "
            f"{FORMAT_VERSION}: use the version that wrote it (magc {_BRIEFLY.repr(document.get('magc_version'))})"
        )
    components, fingerprint = document.get("components"), document.get("fingerprint")
    if (
        not isinstance(fingerprint, str)
        or not isinstance(components, dict)
        or not all(isinstance(each, str) for each in components.values())
        or not {"autoencoder"} <= components.keys() <= {*_NETWORKS, TABLES}
    ):
        raise ModelError(
            f"{path} lacks the fingerprint, or its components are {_BRIEFLY.repr(components)}: expected autoencoder "
            f"and some of {', '.join((*list(_NETWORKS)[1:], TABLES))}, each with its fingerprint"
        )
    return _StoredConfig(model_config_from(document["model"]), components, fingerprint)


def _built(folder: Path, config: ModelConfig, components: Collection[str]) -> MagcModel:
    try:
        return unfilled_model(config, components)
    except Exception as error:  # noqa: BLE001  (numbers that make no network fail in as many ways as there are layers)
        raise ModelError(
            f"{folder / CONFIG_NAME} describes networks that cannot be built ({in_one_line(error)}): copy the whole "
            "directory again"
        ) from None


def _read_tables(path: Path, tensors: Mapping[str, Tensor]) -> EntropyTables:
    try:
        return EntropyTables.from_tensors(dict(tensors))
    except MagcModelError as error:
        raise ModelError(f"{path} cannot be used: {error}") from None


def _components(model: MagcModel) -> dict[str, dict[str, Tensor]]:
    """The tensors of each part that a model has, by their names in its file."""
    components = {name: dict(part.state_dict()) for name in _NETWORKS if (part := getattr(model, name)) is not None}
    if model.tables is not None:
        components[TABLES] = dict(model.tables.to_tensors())
    return components


def _whole_fingerprint(config: ModelConfig, components: Mapping[str, str]) -> str:
    what_it_does = {key: value for key, value in to_document(config).items() if key not in _FOR_PEOPLE}
    document = {"format_version": FORMAT_VERSION, "model": what_it_does, "components": dict(components)}
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


_CARD = """\
---
{license}tags:
- image-compression
- remote-sensing
---
# MAGC model

A model of MAGC, a generative codec for aerial images that knows the map (arXiv 2409.01935).

- Preset: {preset}
- Base model: {base}
- Parts: {parts}

In Python: `magc_model.MagcModel.from_pretrained(FOLDER)`; on the command line: `magc reconstruct DATA --model FOLDER`.

## Licence

{terms}
"""

_DERIVED = """\
Weights derived from Stable Diffusion 2.1-base: CreativeML Open RAIL++-M. Whoever passes this model on passes that
licence on, and its use restrictions (Attachment A) go with it."""
_OWN = "Trained from scratch: on what terms it may be used is for those to say who trained it."


def _card(config: ModelConfig, components: Collection[str]) -> bytes:
    """The model card, the same for the same config and parts."""
    is_derived = config.base_model is not None
    text = _CARD.format(
        license="license: openrail++\n" if is_derived else "",
        preset=config.preset,
        base=config.base_model or "none",
        parts=", ".join(name.replace("_", " ") for name in sorted(components)),
        terms=_DERIVED if is_derived else _OWN,
    )
    return text.encode()


def _edited_card(folder: Path) -> bytes | None:
    """The card of a model directory that is about to be replaced, where a person has written it."""
    if not (folder / CARD_NAME).is_file():
        return None
    found = (folder / CARD_NAME).read_bytes()
    try:
        stored = _read_config(folder)
    except ModelError:
        return found
    return None if found == _card(stored.config, stored.components) else found
