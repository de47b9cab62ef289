"""The Stable Diffusion base model: where its folder is, and what it makes of an empty prompt.

A base model folder is what diffusers writes: `unet/`, `vae/`, `text_encoder/`, `tokenizer/`, each with its
`config.json` and its weights as safetensors in full precision, and `scheduler/`. Pickled weights are never read.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from magc_data.atomic import write_atomically
from magc_data.sources.cache import cache_dir
from magc_model.config import ModelConfig
from magc_model.errors import BaseModelError


class _Component(NamedTuple):
    """A subfolder of the base model that holds weights."""

    name: str
    weights: str
    """Name of the weights' file, without its ending."""

    def files(self) -> tuple[str, ...]:
        """Patterns of its files: whole or in shards, never a half-precision variant beside them."""
        return (
            f"{self.name}/config.json",
            f"{self.name}/{self.weights}.safetensors",
            f"{self.name}/{self.weights}.safetensors.index.json",
            f"{self.name}/{self.weights}-?????-of-?????.safetensors",
        )

    def missing(self, base: Path) -> str | None:
        """The first file that a folder lacks, if it lacks one."""
        config, weights, index, _ = self.files()
        if not (base / config).is_file():
            return config
        return None if (base / weights).is_file() or (base / index).is_file() else weights


_NETWORKS = (_Component("unet", "diffusion_pytorch_model"), _Component("vae", "diffusion_pytorch_model"))
_TEXT_ENCODER = _Component("text_encoder", "model")
_UNET_CONFIG, _SCHEDULER_CONFIG = "unet/config.json", "scheduler/scheduler_config.json"
_TOKENIZER_FILES = ("tokenizer/*.json", "tokenizer/*.txt")
_HUB_FILES = (
    "model_index.json",
    "scheduler/*.json",
    *_TOKENIZER_FILES,
    *(pattern for component in (*_NETWORKS, _TEXT_ENCODER) for pattern in component.files()),
)

_HOW_TO_GET = (
    "on a machine with a connection run `hf download {repository} --include '*/*.json' --include '*/*.txt' "
    "--include '*/*.safetensors' --exclude '*fp16*' --local-dir DIR`, copy DIR here and give --base-model DIR"
)


def find_base_model(name: str) -> Path:
    """Folder of the base model: a local folder, a repository in the hub's cache, or else downloaded from the hub.

    Raises:
        BaseModelError: it is nowhere, incomplete, or has pickled weights only; the message says how to get it.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    folder = Path(name).expanduser()
    if folder.is_dir():
        _check(folder, _NETWORKS)
        return folder
    # Hub names are always OWNER/NAME for such models; what cannot be one was meant as a path.
    if not re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", name) or folder.exists():
        raise BaseModelError(
            f"the base model {name} is no folder: expected one with unet/ and vae/, or a repository such as OWNER/NAME"
        )
    try:
        cached = Path(snapshot_download(name, allow_patterns=list(_HUB_FILES), local_files_only=True))
    except LocalEntryNotFoundError:
        cached = None
    if (
        cached is not None
        and not any(each.missing(cached) for each in (*_NETWORKS, _TEXT_ENCODER))
        and (cached / _SCHEDULER_CONFIG).is_file()
    ):
        return cached
    try:
        downloaded = Path(snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except Exception as error:  # noqa: BLE001  (a dozen kinds, from the hub's client and from its HTTP library)
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _first_line(error.__cause__ or error)
        raise BaseModelError(
            f"the base model {name} is neither a folder ({folder.absolute()}) nor complete in the hub's cache "
            f"({constants.HF_HUB_CACHE}), and it cannot be downloaded ({reason}): {_HOW_TO_GET.format(repository=name)}"
        ) from None
    _check(downloaded, (*_NETWORKS, _TEXT_ENCODER))
    return downloaded


class _Trait(NamedTuple):
    """Something that a base model's configs say and that the shapes of its weights do not show."""

    file: str
    name: str
    expected: Any
    default: Any
    """What diffusers takes where the config does not say."""


def check_base_model(base: Path, config: ModelConfig) -> None:
    """Refuse a base model that fits by its shapes but computes something else, such as Stable Diffusion 2.1 of 768 px.

    Raises:
        BaseModelError: its configs are unreadable, or say another noise schedule, prediction or attention.
    """
    heads, schedule = config.denoiser.attention_heads, config.diffusion
    traits = (
        _Trait(_SCHEDULER_CONFIG, "prediction_type", "epsilon", "epsilon"),
        _Trait(_SCHEDULER_CONFIG, "beta_schedule", "scaled_linear", "linear"),
        _Trait(_SCHEDULER_CONFIG, "beta_start", schedule.beta_start, 0.0001),
        _Trait(_SCHEDULER_CONFIG, "beta_end", schedule.beta_end, 0.02),
        _Trait(_SCHEDULER_CONFIG, "num_train_timesteps", schedule.train_timesteps, 1000),
        _Trait(_SCHEDULER_CONFIG, "trained_betas", None, None),
        _Trait(_UNET_CONFIG, "attention_head_dim", list(heads), 8),
        _Trait(_UNET_CONFIG, "num_attention_heads", None, None),
        _Trait(_UNET_CONFIG, "cross_attention_dim", config.denoiser.text_channels, 1280),
        _Trait(_UNET_CONFIG, "use_linear_projection", True, False),
        _Trait(_UNET_CONFIG, "norm_num_groups", config.denoiser.norm_groups, 32),
    )
    documents = {name: _read_config(base, name) for name in (_SCHEDULER_CONFIG, _UNET_CONFIG)}
    for file, name, expected, default in traits:
        found = documents[file].get(name, default)
        if isinstance(expected, list) and isinstance(found, int):
            found = [found] * len(expected)  # one number for all levels
        if found != expected:
            raise BaseModelError(
                f"the base model {base} is another one than the model is made for: {file} says {name} "
                f"{json.dumps(found)[:80]}, expected {json.dumps(expected)}, so use Stable Diffusion 2.1-base"
            )


def _read_config(base: Path, name: str) -> dict[str, Any]:
    try:
        document = json.loads((base / name).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BaseModelError(f"the base model's {base / name} cannot be read ({error}): get a complete copy") from None
    if not isinstance(document, dict):
        raise BaseModelError(f"the base model's {base / name} holds no settings: get a complete copy")
    return document


def empty_prompt_embedding(base: Path) -> Float[Tensor, "1 tokens channels"]:
    """What the UNet's cross-attention reads for an empty prompt: the text encoder's last hidden state, normalised.

    (Stable Diffusion 2's text encoder on the hub has lost its last layer already: this is the penultimate layer of
    OpenCLIP's.) Computed once for each text encoder and kept in the cache folder.

    Raises:
        BaseModelError: the tokenizer or the text encoder is missing or unreadable, or the cache cannot be written.
    """
    _check(base, (_TEXT_ENCODER,))
    _check_tokenizer(base)
    path = cache_dir() / "text" / f"empty-prompt-{_text_digest(base)}.safetensors"
    if path.is_file():
        try:
            return safetensors.torch.load_file(path)["embedding"]
        except (SafetensorError, KeyError):
            path.unlink()  # damaged: what it held can be computed again
    embedding = _embed_empty_prompt(base)
    try:
        write_atomically(path, safetensors.torch.save({"embedding": embedding}))
    except OSError as error:
        raise BaseModelError(
            f"the cache folder {path.parent} cannot be written ({error.strerror or error}): "
            "change its permissions, or set MAGC_CACHE_DIR to another folder"
        ) from None
    return embedding


def _embed_empty_prompt(base: Path) -> Float[Tensor, "1 tokens channels"]:
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError:
        raise BaseModelError(
            "reading the base model's text encoder needs the package transformers, which is not installed: "
            "pip install transformers"
        ) from None
    try:
        tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer", local_files_only=True)
        text_encoder, report = CLIPTextModel.from_pretrained(
            base / "text_encoder",
            use_safetensors=True,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # noqa: BLE001  (a dozen kinds, from three libraries)
        raise BaseModelError(
            f"the base model's tokenizer and text encoder in {base} cannot be read ({_first_line(error)}): "
            "expected those of Stable Diffusion (CLIP)"
        ) from None
    if report["missing_keys"] or report["mismatched_keys"]:
        first = min(str(each) for each in (*report["missing_keys"], *report["mismatched_keys"]))
        raise BaseModelError(
            f"the base model's text encoder in {base} lacks weights or has others than its config.json says "
            f"({first}): get a complete copy"
        )
    tokens = tokenizer(
        "", padding="max_length", max_length=text_encoder.config.max_position_embeddings, return_tensors="pt"
    ).input_ids
    with torch.inference_mode():
        hidden = text_encoder.eval()(tokens).last_hidden_state
    return torch.as_tensor(hidden).clone().contiguous()


def _check_tokenizer(base: Path) -> None:
    """Refuse an incomplete tokenizer: transformers would make one up."""
    folder = base / "tokenizer"
    vocabulary = (folder / "tokenizer.json",), (folder / "vocab.json", folder / "merges.txt")
    has_vocabulary = any(all(path.is_file() for path in files) for files in vocabulary)
    if not has_vocabulary or not (folder / "tokenizer_config.json").is_file():
        raise BaseModelError(
            f"the base model {base} has no complete tokenizer: expected tokenizer_config.json, vocab.json and "
            "merges.txt in tokenizer/"
        )


def _text_digest(base: Path) -> str:
    """Identity of the tokenizer and the text encoder: names, sizes and contents of their files."""
    digest = hashlib.sha256()
    for path in sorted({path for each in (*_TOKENIZER_FILES, *_TEXT_ENCODER.files()) for path in base.glob(each)}):
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{path.relative_to(base).as_posix()} {path.stat().st_size} {content}\n".encode())
    return digest.hexdigest()[:16]


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _check(base: Path, components: tuple[_Component, ...]) -> None:
    for component in components:
        missing = component.missing(base)
        if missing is None:
            continue
        pickled = sorted((base / component.name).glob("*.bin"))
        if pickled:
            raise BaseModelError(
                f"the base model {base} has pickled weights only ({component.name}/{pickled[0].name}), which are never "
                f"read: expected {missing}, so get the model's safetensors files"
            )
        raise BaseModelError(
            f"the base model {base} lacks {missing}: expected a Stable Diffusion folder as diffusers writes it, with "
            "config.json and safetensors in full precision in unet/, vae/ and text_encoder/"
        )
