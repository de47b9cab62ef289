"""The base model is found where it is, fetched if it is not, and refused in one sentence."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from huggingface_hub import constants
from pytest_httpserver import HTTPServer

from magc_model.base_model import check_base_model, empty_prompt_embedding, find_base_model
from magc_model.config import DenoiserConfig, ModelConfig
from magc_model.errors import BaseModelError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "someone/stable-diffusion"
NEEDED = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
    "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
    "unet/diffusion_pytorch_model.safetensors.index.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)
NOT_NEEDED = (
    "README.md",
    "feature_extractor/preprocessor_config.json",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/pytorch_model.bin",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "v2-1_512-ema-pruned.safetensors",
    "vae/diffusion_pytorch_model.bin",
    "vae/diffusion_pytorch_model.fp16.safetensors",
)


def _write(base: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(name.encode())
    return base


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, empty, with nothing to download from."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def _cached(hub_cache: Path, names: tuple[str, ...]) -> Path:
    """A snapshot in the hub's cache, as earlier versions of its client left it."""
    repository = hub_cache / "models--someone--stable-diffusion"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(COMMIT)
    return _write(repository / "snapshots" / COMMIT, names)


@pytest.fixture
def hub(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> HTTPServer:
    """A hub with one repository."""
    endpoint = httpserver.url_for("").rstrip("/")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    identity = {"_id": "1", "id": NAME, "sha": COMMIT, "private": False, "tags": [], "siblings": []}
    httpserver.expect_request(f"/api/models/{NAME}/revision/main").respond_with_json(identity)
    listing = []
    for name in (*NEEDED, *NOT_NEEDED):
        tag = hashlib.sha1(name.encode()).hexdigest()
        listing.append({"type": "file", "path": name, "size": len(name), "oid": tag})
        httpserver.expect_request(f"/{NAME}/resolve/{COMMIT}/{name}").respond_with_data(
            name.encode(), headers={"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}
        )
    httpserver.expect_request(f"/api/models/{NAME}/tree/{COMMIT}").respond_with_json(listing)
    return httpserver


def _files(base: Path) -> tuple[str, ...]:
    return tuple(sorted(path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_file()))


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    base = _write(tmp_path / "base", tuple(each for each in NEEDED if each.startswith(("unet", "vae"))))
    assert find_base_model(str(base)) == base


def test_a_folder_named_like_a_repository_comes_first(
    tmp_path: Path, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _cached(hub_cache, NEEDED)
    _write(tmp_path / "work" / NAME, NEEDED)
    monkeypatch.chdir(tmp_path / "work")
    assert find_base_model(NAME) == Path(NAME)


def test_the_hubs_cache_is_used_without_the_network(hub_cache: Path) -> None:
    snapshot = _cached(hub_cache, NEEDED)
    assert find_base_model(NAME) == snapshot


def test_only_what_is_needed_is_downloaded_and_only_once(hub: HTTPServer, hub_cache: Path) -> None:
    base = find_base_model(NAME)
    assert _files(base) == NEEDED
    assert base.is_relative_to(hub_cache)
    hub.clear_log()
    assert find_base_model(NAME) == base
    assert hub.log == []


@pytest.mark.parametrize(
    "lost",
    ["text_encoder/config.json", "vae/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"],
)
def test_an_incomplete_cache_is_completed(hub: HTTPServer, hub_cache: Path, lost: str) -> None:
    _cached(hub_cache, tuple(each for each in NEEDED if each != lost))
    assert (find_base_model(NAME) / lost).read_bytes() == lost.encode()


def test_a_base_model_that_is_nowhere_says_how_to_get_it(hub_cache: Path) -> None:
    with pytest.raises(BaseModelError) as caught:
        find_base_model(NAME)
    message = str(caught.value)
    for part in (str(Path.cwd() / NAME), str(hub_cache), "HF_HUB_OFFLINE", f"hf download {NAME}", "--base-model DIR"):
        assert part in message
    assert "\n" not in message


def test_a_repository_that_the_hub_does_not_have(hub: HTTPServer) -> None:
    with pytest.raises(BaseModelError, match=r"cannot be downloaded \(.+\): on a machine") as caught:
        find_base_model("someone/else")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["./nowhere", "nowhere", "/no/such/folder", "a/b/c", "~/nowhere", ""])
def test_a_path_that_is_not_there_is_no_repository(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(BaseModelError, match=r"is no folder|lacks unet/config.json"):
        find_base_model(name)


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        ((), "lacks unet/config.json"),
        (("unet/config.json",), "lacks unet/diffusion_pytorch_model.safetensors"),
        (tuple(each for each in NEEDED if not each.startswith("vae")), "lacks vae/config.json"),
        (
            ("unet/config.json", "unet/diffusion_pytorch_model.bin"),
            r"pickled weights only \(unet/diffusion_pytorch_model.bin\).*never read",
        ),
        (
            ("unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors"),
            "lacks unet/diffusion_pytorch_model.safetensors.*full precision",
        ),
    ],
)
def test_an_unfit_folder_is_refused(tmp_path: Path, names: tuple[str, ...], complaint: str) -> None:
    (tmp_path / "base").mkdir()
    _write(tmp_path / "base", names)
    with pytest.raises(BaseModelError, match=complaint):
        find_base_model(str(tmp_path / "base"))


SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "trained_betas": None,
}
UNET = {
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "norm_num_groups": 32,
    "use_linear_projection": True,
}
"""What Stable Diffusion 2.1-base's configs say, of what counts."""


def _configured(tmp_path: Path, scheduler: object, unet: object) -> Path:
    for name, document in (("scheduler/scheduler_config.json", scheduler), ("unet/config.json", unet)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(document if isinstance(document, str) else json.dumps(document))
    return tmp_path


def test_stable_diffusion_2_1_base_is_the_base_model(tmp_path: Path) -> None:
    check_base_model(_configured(tmp_path, SCHEDULER, UNET), ModelConfig())


def test_what_diffusers_takes_as_said_is_said(tmp_path: Path) -> None:
    scheduler = {name: each for name, each in SCHEDULER.items() if name not in ("prediction_type", "trained_betas")}
    unet = {name: each for name, each in UNET.items() if name != "norm_num_groups"} | {"attention_head_dim": 8}
    config = ModelConfig(denoiser=DenoiserConfig(attention_heads=(8, 8, 8, 8)))
    check_base_model(_configured(tmp_path, scheduler, unet), config)


@pytest.mark.parametrize(
    ("scheduler", "unet", "complaint"),
    [
        (
            {"prediction_type": "v_prediction"},
            {},
            'prediction_type "v_prediction", expected "epsilon", so use Stable Diff',
        ),
        ({"beta_schedule": "linear"}, {}, 'beta_schedule "linear", expected "scaled_linear"'),
        ({"beta_start": 0.0001}, {}, "beta_start 0.0001, expected 0.00085"),
        ({"beta_end": 0.02}, {}, "beta_end 0.02, expected 0.012"),
        ({"num_train_timesteps": 500}, {}, "num_train_timesteps 500, expected 1000"),
        ({"trained_betas": [0.1, 0.2]}, {}, "trained_betas"),
        ({}, {"attention_head_dim": 8}, r"attention_head_dim \[8, 8, 8, 8\], expected \[5, 10, 20, 20\]"),
        ({}, {"cross_attention_dim": 768}, "cross_attention_dim 768, expected 1024"),
        ({}, {"use_linear_projection": False}, "use_linear_projection false, expected true"),
        ({}, {"norm_num_groups": 16}, "norm_num_groups 16, expected 32"),
    ],
)
def test_a_base_model_that_computes_something_else_is_refused(
    tmp_path: Path, scheduler: dict[str, object], unet: dict[str, object], complaint: str
) -> None:
    with pytest.raises(BaseModelError, match=complaint):
        check_base_model(_configured(tmp_path, SCHEDULER | scheduler, UNET | unet), ModelConfig())


@pytest.mark.parametrize("damaged", ["", "[]", "[" * 100_000, "\0"])
def test_unreadable_settings_are_named(tmp_path: Path, damaged: str) -> None:
    base = _configured(tmp_path, damaged, UNET)
    with pytest.raises(BaseModelError, match=r"scheduler_config.json (cannot be read|holds no settings)"):
        check_base_model(base, ModelConfig())
    (base / "scheduler/scheduler_config.json").unlink()
    with pytest.raises(BaseModelError, match=r"scheduler_config.json cannot be read .*No such file"):
        check_base_model(base, ModelConfig())


def _as_on_the_hub(text_encoder: Path) -> None:
    """Weights under the names that Stable Diffusion's repositories have."""
    path = text_encoder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    renamed = {f"text_model.{name.removeprefix('text_model.')}": each for name, each in tensors.items()}
    safetensors.torch.save_file(renamed, path, metadata={"format": "pt"})


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base model's text part, with the files and the padding of Stable Diffusion 2.1."""
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    folder = tmp_path / "base"
    config = CLIPTextConfig(
        vocab_size=7, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=9, projection_dim=16, bos_token_id=5, eos_token_id=6, hidden_act="gelu",
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    _as_on_the_hub(folder / "text_encoder")
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    words = ("!", '"', "a", "a</w>", "!</w>", "<|startoftext|>", "<|endoftext|>")
    (tokenizer / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    (tokenizer / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": 9, "pad_token": "<|endoftext|>", "tokenizer_class": "CLIPTokenizer"})
    )
    (tokenizer / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": words[5], "eos_token": words[6], "pad_token": "!", "unk_token": words[6]})
    )
    return folder


def test_the_empty_prompt_is_start_end_and_padding(base: Path) -> None:
    from transformers import CLIPTextModel

    text_encoder = CLIPTextModel.from_pretrained(base / "text_encoder").eval()
    with torch.no_grad():
        expected = text_encoder(torch.tensor([[5, 6, 0, 0, 0, 0, 0, 0, 0]])).last_hidden_state
    embedding = empty_prompt_embedding(base)
    assert embedding.shape == (1, 9, 16)
    assert embedding.dtype == torch.float32
    torch.testing.assert_close(embedding, expected)
    torch.testing.assert_close(embedding.mean(dim=-1), torch.zeros(1, 9), atol=1e-5, rtol=0)  # normalised


def test_it_is_computed_once_for_each_text_encoder(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import CLIPTextModel

    first = empty_prompt_embedding(base)
    with monkeypatch.context() as patch:
        patch.setattr(CLIPTextModel, "from_pretrained", lambda *_, **__: pytest.fail("computed again"))
        assert torch.equal(empty_prompt_embedding(base), first)
    path = base / "text_encoder/model.safetensors"
    tensors = safetensors.torch.load_file(path)
    name = next(each for each in tensors if "token_embedding" in each)
    tensors[name] += 1e-3 * torch.randn_like(tensors[name])
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    assert not torch.equal(empty_prompt_embedding(base), first)


def test_a_damaged_cache_entry_is_computed_again(base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MAGC_CACHE_DIR", str(tmp_path / "cache"))
    first = empty_prompt_embedding(base)
    (entry,) = (tmp_path / "cache/text").iterdir()
    for damaged in (entry.read_bytes()[:-1], safetensors.torch.save({"other": first})):
        entry.write_bytes(damaged)
        assert torch.equal(empty_prompt_embedding(base), first)
    assert safetensors.torch.load_file(entry).keys() == {"embedding"}


def test_a_cache_that_cannot_be_written_is_named(base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("MAGC_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(BaseModelError, match="MAGC_CACHE_DIR"):
        empty_prompt_embedding(base)


def _drop_a_weight(base: Path) -> None:
    path = base / "text_encoder/model.safetensors"
    tensors = safetensors.torch.load_file(path)
    del tensors[next(each for each in tensors if "final_layer_norm.weight" in each)]
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


def _other_width(base: Path) -> None:
    path = base / "text_encoder/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 32}))


def _to_pickle(base: Path) -> None:
    path = base / "text_encoder/model.safetensors"
    torch.save(safetensors.torch.load_file(path), base / "text_encoder/pytorch_model.bin")
    path.unlink()


def _drop_tokenizer(base: Path) -> None:
    for path in (base / "tokenizer").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (_drop_a_weight, "lacks weights.*final_layer_norm.weight"),
        (_other_width, "cannot be read|has others than its config.json says"),
        (_to_pickle, "pickled weights only .*pytorch_model.bin.*expected text_encoder/model.safetensors"),
        (_drop_tokenizer, "no complete tokenizer"),
        (lambda base: (base / "tokenizer/vocab.json").unlink(), "no complete tokenizer.*vocab.json"),
        (lambda base: (base / "tokenizer/tokenizer_config.json").unlink(), "no complete tokenizer"),
        (lambda base: (base / "text_encoder/model.safetensors").write_bytes(b"x" * 100), "cannot be read"),
        (lambda base: (base / "text_encoder/config.json").unlink(), "lacks text_encoder/config.json"),
    ],
    ids=[
        "weight missing",
        "other width",
        "pickle",
        "no tokenizer",
        "no vocabulary",
        "no tokenizer config",
        "damaged",
        "no config",
    ],
)
def test_a_bad_text_encoder_is_refused(base: Path, damage: Callable[[Path], object], complaint: str) -> None:
    damage(base)
    with pytest.raises(BaseModelError, match=complaint) as caught:
        empty_prompt_embedding(base)
    assert "\n" not in str(caught.value)
