"""The authors' published checkpoint -> a model of ours, with its quirks switched on.

    FILE (torch.save or safetensors) ─► state dict ─► names of ours ─► MagcModel ─► entropy tables

The published networks have other names than ours and, for Stable Diffusion's parts, than diffusers'. `published_names`
says for every weight of a model what the published layout calls it; everything else here follows from that table.
Sizes are those of a `ModelConfig`, by default the published one's: a file of other sizes is refused.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional

from magc_model.config import MapClass, MapConfig, MapInput, ModelConfig, PublishedQuirks, RateConfig
from magc_model.entropy.tables import build_tables
from magc_model.errors import CheckpointError
from magc_model.model import MagcModel, fill_model, stored_tensors, unfilled_model
from magc_model.model_folder import is_pickle

PUBLISHED_QUIRKS = PublishedQuirks(
    second_spade_reads_input=True,
    adapter_overlaps_scales=True,
    adapter_before_blocks=True,
    adapter_scale=0.18215,
    linear_map_encoder=True,
)

_NOT_WEIGHTS = re.compile(
    r"betas|alphas_.*|sqrt_.*|posterior_.*|log_.*|lvlb_weights|logvar|cond_stage_model\..*"
    r"|hyper_encoder\.gaussian_conditional\..*"
    r"|hyper_encoder\.entropy_bottleneck\.(_offset|_quantized_cdf|_cdf_length|target|likelihood_lower_bound\.bound)"
)
"""Names in a checkpoint that are constants, tables made anew, or the text encoder."""

_TEXT_BUFFER = "denoiser.text"
"""The embedding of the empty prompt: the one tensor of ours that a checkpoint does not hold."""

_TEXT = "cond_stage_model.model."
_TEXT_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.")
_TEXT_HEAD_CHANNELS = 64


class Rename(NamedTuple):
    """Where a module of ours is in the published layout."""

    own: str
    """Beginning of its names here."""
    published: str
    """What stands for it there."""
    inside: Mapping[str, str]
    """The same for the rest of the name; what is not listed keeps its name."""


_SAME: Mapping[str, str] = {}
_CHANNEL_NORM = {"gain": "g", "bias": "b"}
_DOWNSAMPLE = {"": "conv."}
_UPSAMPLE = {"0.": "pix_shuffle.0."}


def _basic_block(own: str, published: str) -> dict[str, str]:
    norm = {f"{own}.1.{ours}": f"{published}.1.{theirs}" for ours, theirs in _CHANNEL_NORM.items()}
    return {f"{own}.0.": f"{published}.0.", **norm}


_RES_BLOCK = {
    **_basic_block("first", "block1.block"),
    **_basic_block("second", "block2.block"),
    "skip.": "res_conv.",
}
_SPADE_RES_BLOCK = {
    key: value
    for own, number in (("first", 0), ("second", 1))
    for key, value in {
        f"{own}_spade.norm.": f"norm_{number}.param_free_norm.",
        **_basic_block(f"{own}_spade.shared", f"norm_{number}.mlp_shared"),
        f"{own}_spade.gamma.": f"norm_{number}.mlp_gamma.",
        f"{own}_spade.beta.": f"norm_{number}.mlp_beta.",
        **_basic_block(own, f"basicblock_{number}.block"),
    }.items()
}
_PYRAMID_STEP = _basic_block("", "")
_UNET_RESNET = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "time_emb_proj.": "emb_layers.1.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "conv_shortcut.": "skip_connection.",
}
_VAE_RESNET = {"conv_shortcut.": "nin_shortcut."}
_VAE_ATTENTION = {"group_norm.": "norm.", "to_q.": "q.", "to_k.": "k.", "to_v.": "v.", "to_out.0.": "proj_out."}
"""Linear layers here, 1x1 convolutions there."""


def published_config(classes: tuple[MapClass, ...], lambda_: float) -> ModelConfig:
    """The published model. Its maps were rendered pictures: `classes` are what stands for them, by colour."""
    return ModelConfig(
        preset="published",
        map=MapConfig(input=MapInput.RGB, classes=classes),
        rate=RateConfig(lambdas=(lambda_,)),
        quirks=PUBLISHED_QUIRKS,
    )


def published_names(model: MagcModel) -> dict[str, str]:
    """For each weight of a model that a checkpoint holds: its name there."""
    renames = tuple(
        chain(_latent_compression(), _adapter(model.config), _unet(model.config), _autoencoder(model.config))
    )
    names: dict[str, str] = {}
    for name in stored_tensors(model):
        if name != _TEXT_BUFFER:
            rename = next(each for each in renames if name.startswith(each.own))
            names[name] = rename.published + _renamed(name.removeprefix(rename.own), rename.inside)
    return names


def convert_checkpoint(
    path: Path, config: ModelConfig, text: Float[Tensor, "1 tokens text_channels"] | None = None
) -> MagcModel:
    """Read a checkpoint of the published layout, in the sizes of `config`.

    Args:
        path: of a `torch.save` file, with the weights under `state_dict` or bare, or of a safetensors file.
        config: what the checkpoint is; see `published_config`.
        text: embedding of the empty prompt; none: that of the checkpoint's own text encoder. Where that is missing
            too, the model has no text (`config.denoiser.text_tokens` is 0) and cannot denoise yet.

    Raises:
        CheckpointError: the file is unreadable, no such checkpoint, or of other sizes.
    """
    state = read_state_dict(path)
    if text is None:
        with torch.no_grad():
            text = text_embedding(state)
    tokens = 0 if text is None else text.shape[1]
    config = replace(config, denoiser=replace(config.denoiser, text_tokens=tokens))
    model = unfilled_model(config)
    names = published_names(model)
    _check_names(path, state, set(names.values()))
    expected = stored_tensors(model)
    weights = {own: _weight(path, published, state[published], expected[own]) for own, published in names.items()}
    if text is None:
        text = torch.zeros(1, 0, config.denoiser.text_channels)
    if text.shape != expected[_TEXT_BUFFER].shape:
        raise CheckpointError(
            f"the embedding of the empty prompt is of shape {list(text.shape)}, the checkpoint's UNet needs "
            f"{list(expected[_TEXT_BUFFER].shape)}: give the base model that it was made from"
        )
    weights[_TEXT_BUFFER] = text.float().contiguous()
    fill_model(model, weights)
    if model.latent_compression is None:
        raise ValueError("a published model has a latent compression module")
    model.eval()
    model.tables = build_tables(model.latent_compression)
    return model


def read_state_dict(path: Path) -> dict[str, Any]:
    """What a checkpoint holds under `state_dict`, or the whole of it: names to tensors, checked when they are used.

    Raises:
        CheckpointError: it cannot be read without running code from it, or at all, or it holds no names.
    """
    if not path.is_file():
        raise CheckpointError(f"the checkpoint {path} does not exist or is no file: give a .ckpt or .safetensors file")
    document = _read_pickle(path) if is_pickle(path) else _read_safetensors(path)
    state = document.get("state_dict", document) if isinstance(document, dict) else document
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state) or not state:
        raise CheckpointError(
            f"the checkpoint {path} holds {_described(state)}: expected names and tensors, bare or under 'state_dict'"
        )
    return state


def text_embedding(state: Mapping[str, Any]) -> Float[Tensor, "1 tokens text_channels"] | None:
    """Embedding of the empty prompt by the checkpoint's own text encoder; none if it does not hold a whole one.

    That encoder is OpenCLIP's (Ilharco et al. 2021); Stable Diffusion 2 reads its last layer but one, normalised.

    Raises:
        CheckpointError: it is all there, but of shapes that no text encoder has.
    """
    weights = {name.removeprefix(_TEXT): each for name, each in state.items() if name.startswith(_TEXT)}
    layers = [int(found[1]) for name in weights if (found := _TEXT_LAYER.match(name))]
    try:
        embeddings, positions = weights["token_embedding.weight"], weights["positional_embedding"]
        tokens = torch.zeros(len(positions), dtype=torch.long)
        tokens[0], tokens[1] = len(embeddings) - 2, len(embeddings) - 1  # start, end; the rest is padding
        hidden = (embeddings[tokens] + positions).float().unsqueeze(0)
        for layer in range(max(layers, default=0)):
            hidden = _text_layer(hidden, weights, f"transformer.resblocks.{layer}.")
        return _text_norm(hidden, weights, "ln_final.")
    except KeyError:
        return None
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        reason = str(error).split("\n")[0][:200]
        raise CheckpointError(
            f"the checkpoint's text encoder ({_TEXT}*) cannot be used ({reason}): give --base-model for the embedding "
            "of the empty prompt"
        ) from None


def _text_layer(hidden: Tensor, weights: Mapping[str, Tensor], prefix: str) -> Tensor:
    def linear(name: str, values: Tensor) -> Tensor:
        weight, bias = (weights[f"{prefix}{name}{what}"].float() for what in ("weight", "bias"))
        return functional.linear(values, weight, bias)

    heads = hidden.shape[-1] // _TEXT_HEAD_CHANNELS
    joint = linear("attn.in_proj_", _text_norm(hidden, weights, f"{prefix}ln_1."))
    query, key, value = (each.reshape(*each.shape[:-1], heads, -1).transpose(1, 2) for each in joint.chunk(3, dim=-1))
    attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    hidden = hidden + linear("attn.out_proj.", attended.transpose(1, 2).flatten(-2))
    inner = functional.gelu(linear("mlp.c_fc.", _text_norm(hidden, weights, f"{prefix}ln_2.")))
    return hidden + linear("mlp.c_proj.", inner)


def _text_norm(hidden: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    weight, bias = (weights[f"{name}{what}"].float() for what in ("weight", "bias"))
    return functional.layer_norm(hidden, hidden.shape[-1:], weight, bias)


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; a failure is told below
            # Weights stay on disk until they are used where the file's form allows it.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|global|class) ([\w.]+)", str(error))
        what = f"Python objects ({found[1]})" if found else "Python objects"
        raise CheckpointError(
            f"the checkpoint {path} holds {what} beside its tensors, and reading those could run code, so it is not "
            "read: ask whoever made it for its state_dict alone, as .safetensors or as a .ckpt of nothing but tensors"
        ) from None
    except (OSError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(_damaged(path, error)) from None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(_damaged(path, error)) from None


def _damaged(path: Path, error: Exception) -> str:
    reason = str(error).split("\n")[0][:200]
    return f"the checkpoint {path} is damaged, cut off or no checkpoint ({reason}): get it again"


def _check_names(path: Path, state: Mapping[str, Any], expected: set[str]) -> None:
    lacking = sorted(expected - state.keys())
    if lacking:
        raise CheckpointError(
            f"the checkpoint {path} lacks '{lacking[0]}' and {len(lacking) - 1} more of the {len(expected)} weights of "
            "a published MAGC checkpoint: it is another model's, or incomplete"
        )
    foreign = sorted(name for name in state.keys() - expected if not _NOT_WEIGHTS.fullmatch(name))
    if foreign:
        raise CheckpointError(
            f"the checkpoint {path} holds '{foreign[0]}' ({len(foreign)} such names), which no published MAGC "
            "checkpoint has: it is another model's"
        )


def _weight(path: Path, name: str, found: Any, expected: Tensor) -> Tensor:
    if not isinstance(found, Tensor):
        raise CheckpointError(f"the checkpoint {path}: '{name}' is {_described(found)}, expected a tensor")
    tensor, shape = found.detach(), expected.shape
    if tensor.shape == (*shape, 1, 1) and len(shape) == 2:
        tensor = tensor.reshape(shape)  # a 1x1 convolution there, a linear layer here
    if tensor.shape != shape:
        raise CheckpointError(
            f"the checkpoint {path}: '{name}' is of shape {list(tensor.shape)}, expected {list(shape)}: "
            "only the published sizes can be converted"
        )
    if tensor.is_floating_point() is not expected.is_floating_point() or tensor.layout is not torch.strided:
        raise CheckpointError(f"the checkpoint {path}: '{name}' holds {tensor.dtype}, expected {expected.dtype}")
    return tensor.to(expected.dtype).contiguous()


def _described(value: Any) -> str:
    return "nothing" if isinstance(value, dict) and not value else f"a {type(value).__name__}"


def _renamed(rest: str, inside: Mapping[str, str]) -> str:
    for own, published in inside.items():
        if rest.startswith(own):
            return published + rest.removeprefix(own)
    return rest


def _sequence(own: str, published: str, *kinds: Mapping[str, str]) -> Iterator[Rename]:
    """The modules of an `nn.Sequential`, by their kinds."""
    for index, kind in enumerate(kinds):
        yield Rename(f"{own}.{index}.", f"{published}.{index}.", kind)


def _latent_compression() -> Iterator[Rename]:
    own, published = "latent_compression", "hyper_encoder"
    # The published code counts transforms and SPADE blocks from 1.
    for transform, letter, resampling in (("analysis", "a", _DOWNSAMPLE), ("synthesis", "s", _UPSAMPLE)):
        for stage in range(3):
            stage_head = resampling if stage else _SAME
            names = f"{own}.{transform}.stages.{stage}", f"{published}.g{letter}_{stage + 1}"
            yield from _sequence(*names, stage_head, _RES_BLOCK, _RES_BLOCK)
            spade = f"{own}.{transform}.spades.{stage}.", f"{published}.g{letter}_sem{stage + 1}."
            yield Rename(*spade, _SPADE_RES_BLOCK)
        yield Rename(f"{own}.{transform}.tail.", f"{published}.g{letter}_4.", _SAME)
        hyper = f"{own}.hyper_{transform}", f"{published}.h{letter}_1"
        yield from _sequence(*hyper, _SAME, _RES_BLOCK, resampling, _RES_BLOCK, _SAME)
    yield Rename(f"{own}.semantic_encoder.layers.", f"{published}.sem_encoder.", _SAME)
    for step in range(2):
        yield Rename(f"{own}.pyramid.{step}", f"{published}.sem_conv{step + 1}", _PYRAMID_STEP)
    for what in ("mean", "scale"):
        yield Rename(f"{own}.{what}_networks.", f"{published}.cc_{what}_transforms.", _SAME)
    # CompressAI's names of 2020.
    for today, once in (("matrices.", "_matrix"), ("biases.", "_bias"), ("factors.", "_factor"), ("quant", "quant")):
        yield Rename(f"{own}.entropy_bottleneck.{today}", f"{published}.entropy_bottleneck.{once}", _SAME)


def _adapter(config: ModelConfig) -> Iterator[Rename]:
    own, published = "denoiser.adapter", "control_model"
    yield Rename(f"{own}.encoder.layers.", f"{published}.cond_encoder.", _SAME)
    yield Rename(f"{own}.first.", f"{published}.first_rb.", _RES_BLOCK)
    modules = 1 + config.denoiser.adapter_blocks
    for scale in range(len(config.denoiser.channels) - 1):
        for index in range(modules):
            kind = _RES_BLOCK if index else _SAME
            yield Rename(f"{own}.scales.{scale}.{index}.", f"{published}.body.{scale * modules + index}.", kind)


def _unet(config: ModelConfig) -> Iterator[Rename]:
    own, published = "denoiser.unet", "model.diffusion_model"
    yield Rename(f"{own}.time_embedding.linear_1.", f"{published}.time_embed.0.", _SAME)
    yield Rename(f"{own}.time_embedding.linear_2.", f"{published}.time_embed.2.", _SAME)
    yield Rename(f"{own}.conv_in.", f"{published}.input_blocks.0.0.", _SAME)
    yield Rename(f"{own}.conv_norm_out.", f"{published}.out.0.", _SAME)
    yield Rename(f"{own}.conv_out.", f"{published}.out.2.", _SAME)
    yield Rename(f"{own}.mid_block.resnets.0.", f"{published}.middle_block.0.", _UNET_RESNET)
    yield Rename(f"{own}.mid_block.attentions.0.", f"{published}.middle_block.1.", _SAME)
    yield Rename(f"{own}.mid_block.resnets.1.", f"{published}.middle_block.2.", _UNET_RESNET)
    levels, layers = len(config.denoiser.channels), config.denoiser.layers_per_block
    # There, blocks are counted through all levels: on the way down a level has its layers and then its downsampler,
    # on the way up one layer more, and its upsampler is the last part of its last block.
    for level in range(levels):
        down, first_in = f"{own}.down_blocks.{level}", 1 + level * (layers + 1)
        for layer in range(layers):
            block = f"{published}.input_blocks.{first_in + layer}"
            yield Rename(f"{down}.resnets.{layer}.", f"{block}.0.", _UNET_RESNET)
            yield Rename(f"{down}.attentions.{layer}.", f"{block}.1.", _SAME)
        yield Rename(f"{down}.downsamplers.0.conv.", f"{published}.input_blocks.{first_in + layers}.0.op.", _SAME)
        up, first_out = f"{own}.up_blocks.{level}", level * (layers + 1)
        for layer in range(layers + 1):
            block = f"{published}.output_blocks.{first_out + layer}"
            yield Rename(f"{up}.resnets.{layer}.", f"{block}.0.", _UNET_RESNET)
            yield Rename(f"{up}.attentions.{layer}.", f"{block}.1.", _SAME)
        place = 2 if level else 1  # the coarsest level has no attention before it
        yield Rename(f"{up}.upsamplers.0.", f"{published}.output_blocks.{first_out + layers}.{place}.", _SAME)


def _autoencoder(config: ModelConfig) -> Iterator[Rename]:
    own, published, levels = "autoencoder.network", "first_stage_model", range(4)
    for side in ("encoder", "decoder"):
        yield Rename(f"{own}.{side}.conv_norm_out.", f"{published}.{side}.norm_out.", _SAME)
        for index in range(2):
            resnet = f"{own}.{side}.mid_block.resnets.{index}.", f"{published}.{side}.mid.block_{index + 1}."
            yield Rename(*resnet, _VAE_RESNET)
        attention = f"{own}.{side}.mid_block.attentions.0.", f"{published}.{side}.mid.attn_1."
        yield Rename(*attention, _VAE_ATTENTION)
    for level in levels:
        # There, decoder levels are counted from full resolution.
        for blocks, place, resampler in (
            (f"{own}.encoder.down_blocks.{level}", f"{published}.encoder.down.{level}", "downsample"),
            (f"{own}.decoder.up_blocks.{level}", f"{published}.decoder.up.{levels[-1] - level}", "upsample"),
        ):
            yield Rename(f"{blocks}.{resampler}rs.0.", f"{place}.{resampler}.", _SAME)
            for layer in range(config.autoencoder.blocks_per_level + 1):
                yield Rename(f"{blocks}.resnets.{layer}.", f"{place}.block.{layer}.", _VAE_RESNET)
    # conv_in, conv_out, quant_conv and post_quant_conv have the same names.
    yield Rename(f"{own}.", f"{published}.", _SAME)
