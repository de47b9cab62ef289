"""A checkpoint in the published layout becomes a model that computes the same; anything else is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from huggingface_hub import constants
from transformers import CLIPTextConfig, CLIPTextModel

from magc_model import cli, convert
from magc_model.config import DenoiserConfig, LatentCompressionConfig, MapClass, ModelConfig
from magc_model.convert import convert_checkpoint, published_config, published_names, read_state_dict, text_embedding
from magc_model.entropy.tables import build_tables
from magc_model.errors import CheckpointError
from magc_model.model import (
    MagcModel,
    build_autoencoder,
    build_denoiser,
    build_latent_compression,
    stored_tensors,
    unfilled_model,
)

if TYPE_CHECKING:
    from collections.abc import Callable

CLASSES = (MapClass(0, "land", (200, 200, 200)), MapClass(1, "water", (10, 20, 250)))
SIZES = published_config(CLASSES, 0.2)
SMALL = dataclasses.replace(
    SIZES,
    autoencoder=dataclasses.replace(SIZES.autoencoder, channels=(32, 32, 64, 64), blocks_per_level=1),
    latent_compression=LatentCompressionConfig(
        channels=8, symbol_channels=6, slices=3, context_channels=(8,), map_channels=(4, 5, 6)
    ),
    denoiser=DenoiserConfig(
        channels=(8, 16, 24, 24),
        layers_per_block=2,
        attention_heads=(1, 2, 2, 2),
        norm_groups=4,
        text_tokens=7,
        text_channels=128,
        map_channels=(4, 5, 6),
    ),
)
"""The published layout in small: everything that the names depend on is as it is there."""

BESIDE = {
    "betas": torch.zeros(1000),
    "alphas_cumprod_prev": torch.zeros(1000),
    "sqrt_recipm1_alphas_cumprod": torch.zeros(1000),
    "posterior_log_variance_clipped": torch.zeros(1000),
    "log_one_minus_alphas_cumprod": torch.zeros(1000),
    "lvlb_weights": torch.zeros(1000),
    "logvar": torch.zeros(1000),
    "cond_stage_model.model.logit_scale": torch.tensor(4.6),
    "hyper_encoder.entropy_bottleneck._quantized_cdf": torch.zeros(0, dtype=torch.int32),
    "hyper_encoder.entropy_bottleneck.target": torch.zeros(3),
    "hyper_encoder.entropy_bottleneck.likelihood_lower_bound.bound": torch.zeros(1),
    "hyper_encoder.gaussian_conditional.scale_table": torch.zeros(64),
}
"""What a checkpoint also has and nobody needs."""


@pytest.fixture(scope="module")
def original() -> MagcModel:
    """A model with random weights everywhere: no constant or zero initialisation hides a wrong place."""
    torch.manual_seed(7)
    lcm = build_latent_compression(SMALL)
    model = MagcModel(SMALL, build_autoencoder(SMALL), lcm, build_denoiser(SMALL)).eval()
    with torch.no_grad():
        for name, weight in stored_tensors(model).items():
            if weight.is_floating_point() and "entropy_bottleneck" not in name:
                weight.add_(0.05 * torch.randn_like(weight).abs())
    model.tables = build_tables(lcm)
    return model


@pytest.fixture(scope="module")
def text(original: MagcModel) -> torch.Tensor:
    assert original.denoiser is not None
    return original.denoiser.text


@pytest.fixture(scope="module")
def published(original: MagcModel) -> dict[str, torch.Tensor]:
    """Its weights as the authors would have written them."""
    tensors = stored_tensors(original)
    state = {there: tensors[own].clone() for own, there in published_names(original).items()}
    for name in state:
        if name.startswith("first_stage_model.") and ".attn_1." in name and state[name].ndim == 2:
            state[name] = state[name][:, :, None, None]
    return state


def _write(path: Path, document: Any) -> Path:
    torch.save(document, path)
    return path


def _save_old(path: Path, document: Any) -> None:
    torch.save(document, path, _use_new_zipfile_serialization=False)


FORMS: dict[str, Callable[[Path, dict], None]] = {
    "lightning": lambda path, state: torch.save(
        {"epoch": 3, "state_dict": {**BESIDE, **state}, "optimizer_states": [{"state": {}}]}, path
    ),
    "bare": lambda path, state: torch.save(state, path),
    "old form": _save_old,
    "safetensors": lambda path, state: path.write_bytes(safetensors.torch.save(state)) and None,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_file_is_read(form: str, published: dict, tmp_path: Path) -> None:
    FORMS[form](tmp_path / "magc.ckpt", published)
    state = read_state_dict(tmp_path / "magc.ckpt")
    assert all(torch.equal(state[name], each) for name, each in published.items())


@torch.inference_mode()
def test_the_converted_model_computes_the_same(
    original: MagcModel, published: dict, text: torch.Tensor, tmp_path: Path
) -> None:
    FORMS["lightning"](tmp_path / "magc.ckpt", published)
    model = convert_checkpoint(tmp_path / "magc.ckpt", SMALL, text)
    assert not model.training
    assert model.fingerprint() == original.fingerprint()
    assert model.tables is not None
    assert original.tables is not None
    assert all(map(torch.equal, model.tables, original.tables))

    planes, latent, steps = torch.rand(1, 3, 64, 64), torch.randn(1, 4, 8, 8), torch.tensor([321])
    assert torch.equal(
        model.latent_compression(latent, planes).latent_hat, original.latent_compression(latent, planes).latent_hat
    )
    features = original.denoiser.encode_map(planes)
    assert torch.equal(
        model.denoiser(latent, steps, latent, features), original.denoiser(latent, steps, latent, features)
    )
    assert torch.equal(model.autoencoder.decode(latent), original.autoencoder.decode(latent))

    model.save_pretrained(tmp_path / "model")
    assert MagcModel.from_pretrained(tmp_path / "model").fingerprint() == original.fingerprint()


def test_half_precision_is_widened(published: dict, text: torch.Tensor, tmp_path: Path) -> None:
    halved = {name: each.half() if each.is_floating_point() else each for name, each in published.items()}
    model = convert_checkpoint(_write(tmp_path / "half.ckpt", halved), SMALL, text)
    assert {each.dtype for each in model.parameters()} == {torch.float32}
    assert torch.equal(
        model.autoencoder.network.decoder.conv_in.bias, halved["first_stage_model.decoder.conv_in.bias"].float()
    )


def test_stable_diffusion_names_are_those_of_diffusers_own_converter() -> None:
    """An independent reading of the same layout, on the published sizes."""
    model = unfilled_model(SIZES)
    tensors, names = stored_tensors(model), published_names(model)
    # A number a weight, which shows where it has gone.
    mark = {own: float(index) for index, own in enumerate(names)}
    state = {there: torch.full((1, 1, 1, 1), mark[own]) for own, there in names.items()}
    assert model.denoiser is not None
    for prefix, convert_names, network in (
        ("denoiser.unet.", convert_ldm_unet_checkpoint, model.denoiser.unet),
        ("autoencoder.network.", convert_ldm_vae_checkpoint, model.autoencoder.network),
    ):
        there = {names[own]: state[names[own]] for own in names if own.startswith(prefix)}
        converted = convert_names(dict(there), dict(network.config))
        assert len(there) == len(network.state_dict())
        assert {f"{prefix}{own}": float(each.flatten()[0]) for own, each in converted.items()} == {
            own: number for own, number in mark.items() if own.startswith(prefix)
        }
    assert set(tensors) - set(names) == {"denoiser.text"}
    # That converter takes upsamplers from either place.
    there = "model.diffusion_model.output_blocks"
    assert names["denoiser.unet.up_blocks.0.upsamplers.0.conv.bias"] == f"{there}.2.1.conv.bias"
    assert names["denoiser.unet.up_blocks.1.upsamplers.0.conv.bias"] == f"{there}.5.2.conv.bias"


@pytest.fixture(scope="module")
def text_encoder() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """An OpenCLIP text encoder in the published layout, and what transformers' CLIP makes of the empty prompt."""
    torch.manual_seed(3)
    width, layers, tokens, words = 128, 3, 7, 50
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers - 1,  # the last one is never used
            num_attention_heads=2,
            max_position_embeddings=tokens,
            hidden_act="gelu",
            bos_token_id=words - 2,
            eos_token_id=words - 1,
            attn_implementation="eager",
        )
    ).eval()
    with torch.no_grad():
        for each in clip.parameters():
            each.add_(0.05 * torch.randn_like(each))
        prompt = torch.tensor([[words - 2, words - 1, *[0] * (tokens - 2)]])
        expected = clip(prompt).last_hidden_state
    theirs = {name.removeprefix("text_model."): each for name, each in clip.state_dict().items()}
    state = {
        "token_embedding.weight": theirs["embeddings.token_embedding.weight"],
        "positional_embedding": theirs["embeddings.position_embedding.weight"],
        "ln_final.weight": theirs["final_layer_norm.weight"],
        "ln_final.bias": theirs["final_layer_norm.bias"],
        "text_projection": torch.zeros(width, width),
    }
    for layer in range(layers):
        # The last layer is there too, and is full of what would show if it were used.
        source = f"encoder.layers.{min(layer, layers - 2)}"
        target, poison = f"transformer.resblocks.{layer}", float("nan") if layer == layers - 1 else 0.0
        for what in ("weight", "bias"):
            joint = [theirs[f"{source}.self_attn.{part}_proj.{what}"] for part in "qkv"]
            state[f"{target}.attn.in_proj_{what}"] = torch.cat(joint) + poison
            for own, other in (
                ("attn.out_proj", "self_attn.out_proj"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ):
                state[f"{target}.{own}.{what}"] = theirs[f"{source}.{other}.{what}"] + poison
    return {f"cond_stage_model.model.{name}": each.detach() for name, each in state.items()}, expected


def test_the_checkpoints_text_encoder_gives_the_empty_prompt(
    text_encoder: tuple[dict, torch.Tensor], published: dict, tmp_path: Path
) -> None:
    state, expected = text_encoder
    model = convert_checkpoint(_write(tmp_path / "magc.ckpt", {**published, **state}), SMALL)
    assert model.denoiser is not None
    assert torch.allclose(model.denoiser.text, expected, atol=1e-5)
    assert model.config.denoiser.text_tokens == 7


def test_without_any_text_the_model_says_so(
    text_encoder: tuple[dict, torch.Tensor], published: dict, tmp_path: Path
) -> None:
    state, _ = text_encoder
    partial = {name: each for name, each in state.items() if "ln_final" not in name}
    assert text_embedding({}) is text_embedding(partial) is None
    model = convert_checkpoint(_write(tmp_path / "magc.ckpt", {**published, **partial}), SMALL)
    assert model.config.denoiser.text_tokens == 0
    assert model.denoiser is not None
    assert model.denoiser.text.shape == (1, 0, 128)
    model.save_pretrained(tmp_path / "model")
    assert MagcModel.from_pretrained(tmp_path / "model").fingerprint() == model.fingerprint()


def test_a_text_encoder_of_impossible_shapes(text_encoder: tuple[dict, torch.Tensor]) -> None:
    state, _ = text_encoder
    name = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
    with pytest.raises(CheckpointError, match=r"text encoder .* cannot be used .* give --base-model"):
        text_embedding({**state, name: state[name][:, :5]})


def test_a_text_of_another_width_is_refused(published: dict, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"empty prompt is of shape \[1, 77, 768\], .* needs \[1, 77, 128\]"):
        convert_checkpoint(_write(tmp_path / "magc.ckpt", published), SMALL, torch.zeros(1, 77, 768))


class Attack:
    """An object that runs a command where it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("attacked",)


def _changed(published: dict, **changes: Any) -> dict:
    names = {"bias": "control_model.body.6.bias", "norm": "hyper_encoder.ga_1.1.block1.block.1.g"}
    return {**published, **{names.get(key, key): value for key, value in changes.items()}}


FILES: dict[str, tuple[Callable[[Path, dict], object], str]] = {
    "nothing": (lambda path, _: None, "does not exist or is no file"),
    "folder": (lambda path, _: path.mkdir(), "does not exist or is no file"),
    "empty": (lambda path, _: path.write_bytes(b""), "is damaged, cut off or no checkpoint"),
    "text": (lambda path, _: path.write_text("hello, world"), "is damaged, cut off or no checkpoint"),
    "numpy": (lambda path, _: np.save(path.open("wb"), np.zeros(3)), "is damaged, cut off or no checkpoint"),
    "cut off": (
        lambda path, state: (torch.save(state, path), path.write_bytes(path.read_bytes()[:-5000])),
        "is damaged, cut off or no checkpoint",
    ),
    "an old one cut off": (
        lambda path, state: (_save_old(path, state), path.write_bytes(path.read_bytes()[:-5000])),
        "is damaged, cut off or no checkpoint",
    ),
    "an archive": (
        lambda path, _: shutil.make_archive(str(path), "zip", path.parent) and Path(f"{path}.zip").rename(path),
        "is damaged, cut off or no checkpoint",
    ),
    "an object": (
        lambda path, state: torch.save({"state_dict": state, "hyper_parameters": Attack()}, path),
        r"holds Python objects \(\w+\.mkdir\) beside its tensors, and reading those could run code, so it is not read",
    ),
    "a plain object": (
        lambda path, _: path.write_bytes(pickle.dumps(Attack())),
        "holds Python objects .*beside its tensors, and reading those could run code",
    ),
    "a list": (lambda path, _: torch.save([1, 2], path), "holds a list: expected names and tensors"),
    "a tensor": (lambda path, _: torch.save(torch.zeros(2), path), "holds a Tensor: expected names and tensors"),
    "no weights": (lambda path, _: torch.save({"state_dict": {}}, path), "holds nothing: expected names and tensors"),
    "numbers for names": (lambda path, _: torch.save({1: torch.zeros(1)}, path), "expected names and tensors"),
    "lacking one": (
        lambda path, state: torch.save({name: each for name, each in state.items() if "body.6.bias" not in name}, path),
        r"lacks 'control_model\.body\.6\.bias' and 0 more of the \d+ weights",
    ),
    "another model": (
        lambda path, _: torch.save({"conv_in.weight": torch.zeros(1), "conv_in.bias": torch.zeros(1)}, path),
        r"lacks 'control_model\.body\.0\.bias' and \d+ more .* it is another model's, or incomplete",
    ),
    "one more": (
        lambda path, state: torch.save(_changed(state, upscaler=torch.zeros(1)), path),
        r"holds 'upscaler' \(1 such names\), which no published MAGC checkpoint has",
    ),
    "another shape": (
        lambda path, state: torch.save(_changed(state, bias=torch.zeros(5)), path),
        r"'control_model\.body\.6\.bias' is of shape \[5\], expected \[24\]: only the published sizes",
    ),
    "a flat norm": (
        lambda path, state: torch.save(_changed(state, norm=torch.zeros(8)), path),
        r"'hyper_encoder\.ga_1\.1\.block1\.block\.1\.g' is of shape \[8\], expected \[1, 8, 1, 1\]",
    ),
    "integers": (
        lambda path, state: torch.save(_changed(state, bias=torch.zeros(24, dtype=torch.int8)), path),
        r"'control_model\.body\.6\.bias' holds torch\.int8, expected torch\.float32",
    ),
    "no tensor": (
        lambda path, state: torch.save(_changed(state, bias=[0.0] * 24), path),
        r"'control_model\.body\.6\.bias' is a list, expected a tensor",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_what_is_no_such_checkpoint_is_refused_in_a_sentence(
    case: str, published: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, sentence = FILES[case]
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "magc.ckpt", published)
    with pytest.raises(CheckpointError, match=sentence) as caught:
        convert_checkpoint(tmp_path / "magc.ckpt", SMALL)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert not (tmp_path / "attacked").exists()


def test_the_way_out_for_a_checkpoint_with_objects_works(published: dict, tmp_path: Path) -> None:
    """What the sentence asks for: the tensors alone, in either form."""
    torch.save({"state_dict": published, "callbacks": Path("x")}, tmp_path / "magc.ckpt")
    with pytest.raises(CheckpointError, match="holds Python objects .* state_dict alone"):
        read_state_dict(tmp_path / "magc.ckpt")
    torch.save(published, tmp_path / "plain.ckpt")
    safetensors.torch.save_file(published, tmp_path / "plain.safetensors")
    for name in ("plain.ckpt", "plain.safetensors"):
        assert read_state_dict(tmp_path / name).keys() == published.keys()


# The command


def _magc(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(each) for each in arguments])
    out, err = capfd.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture
def checkpoint(published: dict, text_encoder: tuple[dict, torch.Tensor], tmp_path: Path) -> Path:
    return _write(tmp_path / "magc.ckpt", {"state_dict": {**published, **text_encoder[0]}})


@pytest.fixture
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command expects our small checkpoint's sizes instead of the published one's."""

    def config(classes: tuple[MapClass, ...], lambda_: float) -> ModelConfig:
        full = published_config(classes, lambda_)
        return dataclasses.replace(SMALL, map=full.map, rate=full.rate)

    monkeypatch.setattr(convert, "published_config", config)


@pytest.mark.usefixtures("small_sizes")
def test_the_command_writes_a_model(checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = _magc(capfd, "convert-checkpoint", checkpoint, "--out", tmp_path / "model", "--lambda", "1.25")
    assert (code, err) == (0, "")
    model = MagcModel.from_pretrained(tmp_path / "model")
    assert out == f"{tmp_path / 'model'}: model {model.fingerprint()}\n"
    assert model.config.rate.lambdas == (1.25,)
    assert model.config.map.classes[4] == MapClass(4, "water", (133, 203, 249))  # of the sgdm scheme
    assert model.config.quirks == convert.PUBLISHED_QUIRKS
    assert model.latent_compression is not None
    planes = model.planes(torch.full((1, 64, 64), 4, dtype=torch.uint8), (1, 64, 64))
    assert planes is not None
    assert planes.shape == (1, 3, 64, 64)
    assert torch.isfinite(model.latent_compression(torch.zeros(1, 4, 8, 8), planes).latent_hat).all()


@pytest.mark.usefixtures("small_sizes")
def test_the_command_as_json_with_the_classes_of_a_dataset(
    published: dict, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    table = [{"id": 0, "name": "land", "color": [9, 8, 7]}, {"id": 2, "name": "sea", "color": [0, 0, 255]}]
    words = dict.fromkeys(("name", "address", "licence", "attribution", "terms"), "made up")
    source = words | {"redistributable": True}
    manifest = {
        "format_version": 1,
        "magc_version": "0",
        "config": {"scheme": {"name": "mine"}},
        "sources": {"vectors": source},
        "scheme": "mine",
        "classes": table,
        "counts": {"planned": 1, "kept": 1, "rejected": {}, "transient": 0},
        "bounds_lonlat": [0, 0, 1, 1],
        "zoom": 17,
        "gsd_m": {"min": 1, "max": 1},
        "shards": [],
    }
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "dataset.json").write_text(json.dumps(manifest))
    _write(tmp_path / "magc.ckpt", published)
    code, out, err = _magc(
        capfd, "convert-checkpoint", tmp_path / "magc.ckpt", "--out", tmp_path / "model", "--data",
        tmp_path / "dataset", "--json",
    )  # fmt: skip
    assert code == 0
    model = MagcModel.from_pretrained(tmp_path / "model")
    assert json.loads(out) == {
        "out": str(tmp_path / "model"),
        "fingerprint": model.fingerprint(),
        "can_denoise": False,
    }
    assert "it compresses, but cannot denoise until it is converted again with --base-model" in err
    assert [each._asdict() | {"color": list(each.color)} for each in model.config.map.classes] == table


def test_the_command_refuses_in_one_line(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "photo.jpg").write_text("")
    new = tmp_path / "new"
    for code, sentence, arguments in (
        (1, "it is another model's, or incomplete", (checkpoint, "--out", new)),
        (1, "does not exist or is no file", (tmp_path / "none.ckpt", "--out", new)),
        (1, "holds other things and no model", (checkpoint, "--out", tmp_path / "taken")),
        (1, "is not a magc dataset", (checkpoint, "--out", new, "--data", tmp_path / "taken")),
        (1, "is neither a folder", (checkpoint, "--out", new, "--base-model", "some/base")),
        (2, "lambda is -1.0: expected positive numbers", (checkpoint, "--out", new, "--lambda", "-1")),
        (2, "--out", (checkpoint,)),
        (2, "", ("--out", new)),
    ):
        found, out, err = _magc(capfd, "convert-checkpoint", *arguments)
        assert (found, out) == (code, "")
        assert err.startswith("magc: ")
        assert err.count("\n") == 1
        assert sentence in err
    assert not new.exists()


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom magc_model import cli\n"
        "try:\n    cli.main(['convert-checkpoint', '--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'diffusers', 'numpy', 'safetensors', 'pyarrow'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "--base-model" in done.stdout
