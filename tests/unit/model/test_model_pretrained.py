"""A model directory: what goes in comes out, it is whole at every instant, and nothing else is taken for one."""

import base64
import contextlib
import copy
import dataclasses
import hashlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from huggingface_hub import constants
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

import magc_model
from magc_model import model as model_module
from magc_model.config import (
    AutoencoderConfig,
    AutoencoderKind,
    DenoiserConfig,
    FineTune,
    LatentCompressionConfig,
    MapClass,
    MapConfig,
    ModelConfig,
    NormKind,
)
from magc_model.entropy.tables import build_tables
from magc_model.errors import DataError, ModelError, UsageError
from magc_model.model import MagcModel, build_autoencoder, build_denoiser, build_latent_compression
from magc_model.model_folder import fingerprint_of

CLASSES = (MapClass(0, "land", (9, 9, 9)), MapClass(1, "house", (255, 0, 0)), MapClass(4, "water", (0, 0, 255)))
CONFIG = ModelConfig(
    preset="tiny",
    base_model=None,
    map=MapConfig(in_decoder=True, in_entropy=True, classes=CLASSES),
    autoencoder=AutoencoderConfig(
        kind=AutoencoderKind.TINY,
        channels=(4, 4, 4, 4),
        blocks_per_level=1,
        scaling_factor=1.0,
        map_decoder_channels=(4, 4, 4, 4),
    ),
    latent_compression=LatentCompressionConfig(
        channels=8,
        symbol_channels=6,
        slices=3,
        context_channels=(8,),
        map_channels=(4, 5, 6),
        entropy_map_channels=4,
        spade_norm=NormKind.BATCH,
    ),
    denoiser=DenoiserConfig(
        channels=(8, 16),
        layers_per_block=1,
        attention_heads=(2, 2),
        norm_groups=4,
        text_tokens=1,
        text_channels=8,
        map_channels=(4, 5, 6),
        adapter_blocks=1,
        fine_tune=FineTune.ALL,
    ),
)
PARTS = ("autoencoder", "latent_compression", "denoiser", "entropy_tables")
STAGES = {"vae": 1, "stage1": 2, "stage2": 3}


def _build(stage: str) -> MagcModel:
    torch.manual_seed(1)
    parts = STAGES[stage]
    lcm = build_latent_compression(CONFIG).eval() if parts > 1 else None
    model = MagcModel(
        CONFIG,
        build_autoencoder(CONFIG),
        lcm,
        build_denoiser(CONFIG) if parts > 2 else None,
        None if lcm is None else build_tables(lcm),
    )
    return model.eval()


@pytest.fixture(scope="module")
def built() -> MagcModel:
    return _build("stage2")


@pytest.fixture
def model(built: MagcModel) -> MagcModel:
    """A whole model, to be changed at will."""
    return copy.deepcopy(built)


@pytest.fixture(scope="module")
def saved(built: MagcModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    built.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """Its directory, to be damaged at will."""
    return shutil.copytree(saved, tmp_path / "model")


def _names(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


def _edit(folder: Path, change: Callable[[dict], None]) -> None:
    path = folder / "config.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def _change_tensors(folder: Path, part: str, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / f"{part}.safetensors"
    tensors = {name: each.clone() for name, each in safetensors.torch.load_file(path).items()}
    change(tensors)
    path.write_bytes(safetensors.torch.save(tensors))


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_saved_is_loaded(stage: str, tmp_path: Path) -> None:
    model = _build(stage)
    model.autoencoder.scaling_factor = 0.1 + 0.2  # training sets it
    fingerprint = model.save_pretrained(tmp_path / "made" / "model")
    parts = {"vae": PARTS[:1], "stage1": (*PARTS[:2], PARTS[3]), "stage2": PARTS}[stage]
    assert _names(tmp_path / "made" / "model") == {
        "config.json",
        "README.md",
        *(f"{each}.safetensors" for each in parts),
    }
    assert _names(tmp_path / "made") == {"model"}
    assert len({each.stat().st_mode for each in (tmp_path / "made" / "model").iterdir()}) == 1  # all as the umask says

    loaded = MagcModel.from_pretrained(str(tmp_path / "made" / "model"))
    assert loaded.fingerprint() == model.fingerprint() == fingerprint
    assert loaded.autoencoder.scaling_factor == 0.1 + 0.2
    assert loaded.config == dataclasses.replace(
        CONFIG, autoencoder=dataclasses.replace(CONFIG.autoencoder, scaling_factor=0.1 + 0.2)
    )
    assert not loaded.training
    saved, found = model.state_dict(), loaded.state_dict()
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], saved[name]) for name in saved)
    assert [each.requires_grad for each in loaded.parameters()] == [each.requires_grad for each in model.parameters()]
    assert (loaded.tables is None) is (model.tables is None)
    if loaded.tables is not None and model.tables is not None:
        assert all(map(torch.equal, loaded.tables, model.tables))
        assert loaded.entropy_fingerprint() == model.entropy_fingerprint()


@torch.inference_mode()
def test_a_loaded_model_computes_the_same(model: MagcModel, folder: Path) -> None:
    loaded = MagcModel.from_pretrained(folder)
    planes = model.planes(torch.randint(0, 2, (1, 64, 64), dtype=torch.uint8), (1, 64, 64))
    latent = torch.randn(1, 4, 8, 8)
    compressed = model.latent_compression(latent, planes), loaded.latent_compression(latent, planes)
    assert all(map(torch.equal, *compressed))
    steps = torch.tensor([5])
    features = model.denoiser.encode_map(planes)
    assert torch.equal(
        loaded.denoiser(latent, steps, latent, features), model.denoiser(latent, steps, latent, features)
    )
    assert torch.equal(loaded.autoencoder.decode(latent, planes), model.autoencoder.decode(latent, planes))


def test_a_loaded_model_can_be_trained_and_saved_again(folder: Path) -> None:
    loaded = MagcModel.from_pretrained(folder)
    before = (folder / "autoencoder.safetensors").read_bytes()
    weight = next(loaded.autoencoder.parameters())
    weight.sum().backward()
    with torch.no_grad():
        weight -= weight.grad
    assert (folder / "autoencoder.safetensors").read_bytes() == before  # weights in memory are no longer the file
    loaded.save_pretrained(folder)
    assert torch.equal(next(MagcModel.from_pretrained(folder).autoencoder.parameters()), weight)


def _nudge(weight: torch.Tensor) -> None:
    """The smallest change there is: one bit of one number."""
    with torch.no_grad():
        weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(9.0))


def test_the_fingerprint_changes_with_whatever_changes_the_outcome(model: MagcModel) -> None:
    seen = [model.fingerprint()]
    for part in (model.autoencoder, model.latent_compression, model.denoiser):
        assert part is not None
        _nudge(next(part.parameters()))
        seen.append(model.fingerprint())
    assert model.tables is not None
    model.tables = model.tables._replace(offsets=model.tables.offsets + 1)
    seen.append(model.fingerprint())
    model.autoencoder.scaling_factor = 0.5
    seen.append(model.fingerprint())
    model.config = dataclasses.replace(model.config, map=dataclasses.replace(model.config.map, classes=CLASSES[::-1]))
    seen.append(model.fingerprint())
    assert len(set(seen)) == len(seen)
    model.config = dataclasses.replace(model.config, preset="mine", base_model="/some/where")  # for people only
    assert model.fingerprint() == seen[-1]


def test_the_fingerprint_knows_names_shapes_and_dtypes() -> None:
    same_bytes = [
        {"a": torch.zeros(2, 3)},
        {"b": torch.zeros(2, 3)},
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3, dtype=torch.int32)},
        {"a": torch.zeros(2, 2), "b": torch.zeros(2)},
    ]
    assert len({fingerprint_of(each) for each in same_bytes}) == len(same_bytes)


def test_the_entropy_fingerprint_is_that_of_the_streams(model: MagcModel) -> None:
    first = model.entropy_fingerprint()
    lcm = model.latent_compression
    assert lcm is not None
    assert lcm.entropy_map is not None
    assert model.denoiser is not None
    assert model.tables is not None
    for part in (model.denoiser, model.autoencoder, lcm.analysis, lcm.synthesis, lcm.hyper_analysis):
        _nudge(next(part.parameters()))
    assert model.entropy_fingerprint() == first  # stage 2 trains beside it
    seen = [first]
    for part in (lcm.hyper_synthesis, lcm.mean_networks, lcm.scale_networks, lcm.entropy_map):
        _nudge(next(part.parameters()))
        seen.append(model.entropy_fingerprint())
    model.tables = model.tables._replace(medians=model.tables.medians + 1)
    seen.append(model.entropy_fingerprint())
    assert len(set(seen)) == len(seen)
    with pytest.raises(ModelError, match="train stage 1 first"):
        _build("vae").entropy_fingerprint()


def test_a_model_is_replaced_as_a_whole(built: MagcModel, folder: Path) -> None:
    smaller = _build("vae")
    smaller.save_pretrained(folder)
    assert _names(folder) == {"config.json", "README.md", "autoencoder.safetensors"}  # nothing of the former one
    assert _names(folder.parent) == {"model"}
    assert MagcModel.from_pretrained(folder).fingerprint() == smaller.fingerprint()


def test_a_full_disk_leaves_the_former_model(folder: Path, model: MagcModel) -> None:
    """A limit on the size of files is what a full disk looks like."""
    former = model.fingerprint()
    _nudge(next(model.autoencoder.parameters()))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(ModelError, match=r"/model cannot be written \(.*File too large.*\): make room for it, or"):
            model.save_pretrained(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert _names(folder.parent) == {"model"}
    assert MagcModel.from_pretrained(folder).fingerprint() == former


def test_a_failed_rename_leaves_the_former_model(
    folder: Path, model: MagcModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = model.fingerprint()
    _nudge(next(model.autoencoder.parameters()))
    real_rename = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if path.name.endswith(".part"):
            raise PermissionError(13, "Permission denied")
        return real_rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(PermissionError):
            model.save_pretrained(folder)
    assert _names(folder.parent) == {"model"}
    assert MagcModel.from_pretrained(folder).fingerprint() == former


def test_a_save_killed_at_any_instant_leaves_a_whole_model(model: MagcModel, folder: Path) -> None:
    other = copy.deepcopy(model)
    _nudge(next(other.autoencoder.parameters()))
    known = {model.fingerprint(), other.fingerprint()}
    chance = random.Random(1)
    for _ in range(4):
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                while True:
                    other.save_pretrained(folder)
                    model.save_pretrained(folder)
            os._exit(1)
        time.sleep(chance.uniform(0.05, 0.4))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert MagcModel.from_pretrained(folder).fingerprint() in known
    model.save_pretrained(folder)
    assert _names(folder.parent) == {"model"}  # what the killed ones left is gone


def test_a_save_killed_between_its_two_renames_is_made_good(model: MagcModel, folder: Path) -> None:
    folder.rename(folder.with_name(".model.former"))
    assert MagcModel.from_pretrained(folder).fingerprint() == model.fingerprint()
    model.save_pretrained(folder)
    assert _names(folder.parent) == {"model"}
    assert MagcModel.from_pretrained(folder).fingerprint() == model.fingerprint()


def test_a_model_is_not_written_over_other_things(model: MagcModel, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="is a file"):
        model.save_pretrained(tmp_path / "file")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_text("")
    with pytest.raises(ModelError, match="holds other things and no model"):
        model.save_pretrained(tmp_path / "photos")
    (folder / "notes.md").write_text("mine")
    with pytest.raises(ModelError, match=r"holds notes\.md beside a model, which would be lost"):
        model.save_pretrained(folder)
    assert (folder / "notes.md").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    model.save_pretrained(tmp_path / "empty")
    assert _names(tmp_path) == {"file", "photos", "model", "empty"}


def test_the_card_says_what_the_model_is_and_stands_on(model: MagcModel, folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert "Preset: tiny" in card
    assert "autoencoder, denoiser, entropy tables, latent compression" in card
    assert "license" not in card.split("---")[1]
    model.config = dataclasses.replace(model.config, base_model="owner/stable-diffusion")
    model.save_pretrained(folder)
    card = (folder / "README.md").read_text()  # the former one was nobody's own
    assert "license: openrail++" in card.split("---")[1]
    assert "Base model: owner/stable-diffusion" in card
    assert "CreativeML Open RAIL++-M" in card
    assert "Attachment A" in card
    model.save_pretrained(folder.with_name("again"))
    assert (folder.with_name("again") / "README.md").read_text() == card


def test_a_card_that_a_person_has_written_is_kept(model: MagcModel, folder: Path) -> None:
    (folder / "README.md").write_text("My own words, é")
    _build("vae").save_pretrained(folder)
    model.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "My own words, é"
    assert MagcModel.from_pretrained(folder).fingerprint() == model.fingerprint()


def test_what_could_not_be_read_again_is_not_written(model: MagcModel, tmp_path: Path) -> None:
    model.autoencoder.scaling_factor = float("nan")
    with pytest.raises(ModelError, match="scaling_factor' is nan"):
        model.save_pretrained(tmp_path / "model")
    assert not _names(tmp_path)


def test_a_half_precision_model_is_not_saved(model: MagcModel, tmp_path: Path) -> None:
    model.autoencoder.half()
    with pytest.raises(ModelError, match=r"autoencoder: '.*' is float16 .*, expected float32"):
        model.save_pretrained(tmp_path / "half")
    assert not _names(tmp_path)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _drop_first(tensors: dict) -> None:
    del tensors[min(tensors)]


def _as_double(tensors: dict) -> None:
    tensors["text"] = tensors["text"].double()


def _widen(tensors: dict) -> None:
    tensors["text"] = torch.zeros(1, 2, 8)


def _alter(tensors: dict) -> None:
    tensors["text"][0, 0, 0] += 1


def _shift(tensors: dict) -> None:
    tensors["starts"] += 1


def _pickled(path: Path) -> None:
    torch.save({"text": torch.zeros(1)}, path)


def _raw_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"text": 1}))


def _nested(depth: int) -> list:
    found: list = []
    for _ in range(depth):
        found = [found]
    return found


DAMAGES = {
    "no config": (lambda at: (at / "config.json").unlink(), r"is no MAGC model: it has no config\.json"),
    "only pickles": (
        lambda at: (
            [each.unlink() for each in at.iterdir()],
            _pickled(at / "pytorch_model.bin"),
        ),
        r"has no config\.json, and pytorch_model\.bin is a pickle, which is never read",
    ),
    "no JSON": (lambda at: (at / "config.json").write_bytes(b"\xff{"), r"config\.json cannot be read"),
    "brackets": (
        lambda at: (at / "config.json").write_text(
            '{"format_version": 1, "model": ' + "[" * 100_000 + "]" * 100_000 + "}"
        ),
        r"config\.json cannot be read",
    ),
    "brackets in the format": (
        lambda at: _edit(at, lambda config: config.update(format_version=_nested(200), magc_version="9" * 9999)),
        r"is of format \[+\.\.\.\]+, this magc reads format 1",
    ),
    "brackets in the components": (
        lambda at: _edit(at, lambda config: config.update(components=_nested(200))),
        r"components are \[+\.\.\.\]+: expected",
    ),
    "a list": (lambda at: (at / "config.json").write_text("[]"), "is not of a MAGC model"),
    "of diffusers": (
        lambda at: (at / "config.json").write_text('{"_class_name": "AutoencoderKL"}'),
        "is not of a MAGC model",
    ),
    "a later format": (
        lambda at: _edit(at, lambda config: config.update(format_version=99, magc_version="9.9")),
        r"is of format 99, this magc reads format 1: use the version that wrote it \(magc '9\.9'\)",
    ),
    "unknown component": (
        lambda at: _edit(at, lambda config: config["components"].update(upscaler="0")),
        "components are .*'upscaler'.*: expected autoencoder and some of latent_compression, denoiser, realistic_decoder, entropy_tables",
    ),
    "no autoencoder": (lambda at: _edit(at, lambda config: config["components"].pop("autoencoder")), "components are"),
    "no components": (lambda at: _edit(at, lambda config: config.pop("components")), "components are None"),
    "no fingerprint": (lambda at: _edit(at, lambda config: config.pop("fingerprint")), "lacks the fingerprint"),
    "unknown field": (
        lambda at: _edit(at, lambda config: config["model"].update(colour="red")),
        "'model' lacks or does not know colour",
    ),
    "another lambda": (
        lambda at: _edit(at, lambda config: config["model"]["rate"].update(lambdas=[0.5])),
        r"config\.json was changed after it was written",
    ),
    "another width": (
        lambda at: _edit(at, lambda config: config["model"]["denoiser"].update(text_tokens=2)),
        r"denoiser\.safetensors: 'text' is float32 \[1, 1, 8\], expected float32 \[1, 2, 8\]",
    ),
    "impossible network": (
        lambda at: _edit(at, lambda config: config["model"]["latent_compression"].update(slices=5)),
        r"config\.json describes networks that cannot be built",
    ),
    "file missing": (
        lambda at: (at / "latent_compression.safetensors").unlink(),
        r"latent_compression\.safetensors is missing: the model is incomplete",
    ),
    "cut off": (lambda at: _truncate(at / "denoiser.safetensors"), r"denoiser\.safetensors is damaged or no"),
    "empty": (lambda at: (at / "denoiser.safetensors").write_bytes(b""), r"denoiser\.safetensors is damaged or no"),
    "text": (lambda at: (at / "denoiser.safetensors").write_text("hello, world"), "is damaged or no safetensors file"),
    "torch pickle": (
        lambda at: _pickled(at / "denoiser.safetensors"),
        r"denoiser\.safetensors is a pickle under another name, which is never read",
    ),
    "pickle": (lambda at: _raw_pickle(at / "autoencoder.safetensors"), "is a pickle under another name"),
    "weight missing": (
        lambda at: _change_tensors(at, "denoiser", _drop_first),
        r"denoiser\.safetensors lacks 'adapter\.encoder\.layers\.0\.bias'",
    ),
    "weight unknown": (
        lambda at: _change_tensors(at, "denoiser", lambda tensors: tensors.update(more=torch.zeros(1))),
        r"denoiser\.safetensors has an unknown 'more'",
    ),
    "another shape": (lambda at: _change_tensors(at, "denoiser", _widen), r"'text' is float32 \[1, 2, 8\], expected"),
    "another dtype": (lambda at: _change_tensors(at, "denoiser", _as_double), "'text' is float64 .* expected float32"),
    "another value": (
        lambda at: _change_tensors(at, "denoiser", _alter),
        r"denoiser\.safetensors does not hold what config\.json says",
    ),
    "tables damaged": (
        lambda at: _change_tensors(at, "entropy_tables", _shift),
        r"entropy_tables\.safetensors cannot be used: the entropy tables are damaged",
    ),
    "tables lacking": (
        lambda at: _change_tensors(at, "entropy_tables", _drop_first),
        r"entropy_tables\.safetensors cannot be used: the entropy tables lack",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_what_is_no_whole_model_is_refused_in_a_sentence(case: str, folder: Path) -> None:
    damage, sentence = DAMAGES[case]
    damage(folder)
    with pytest.raises(ModelError, match=sentence) as caught:
        MagcModel.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_planes_of_a_map(model: MagcModel) -> None:
    ids = torch.tensor([[[0, 1], [4, 0]]], dtype=torch.uint8)
    planes = model.planes(ids, (1, 2, 2))
    assert planes is not None
    assert planes.shape == (1, 5, 2, 2)
    assert planes[0, :, 1, 0].tolist() == [0, 0, 0, 0, 1]
    with pytest.raises(DataError, match="the map is of shape 1x2x2, the images are 1x2x4"):
        model.planes(ids, (1, 2, 4))
    with pytest.raises(DataError, match="the map holds class 2"):
        model.planes(torch.full((1, 2, 2), 2, dtype=torch.uint8), (1, 2, 2))
    blind = dataclasses.replace(CONFIG.map, in_transform=False, in_diffusion=False, in_decoder=False, in_entropy=False)
    without = MagcModel(dataclasses.replace(CONFIG, map=blind), model.autoencoder)
    assert without.planes(ids, (1, 2, 2)) is None
    assert without.planes(None, (1, 2, 2)) is None


def test_no_map_is_for_models_that_were_trained_without_it(model: MagcModel) -> None:
    with pytest.raises(UsageError, match="never seen a picture without its map: give the map, or train with --map-dr"):
        model.planes(None, (3, 2, 4))
    model.config = dataclasses.replace(CONFIG, map=dataclasses.replace(CONFIG.map, dropout=0.1))
    nothing = model.planes(None, (3, 2, 4))
    assert nothing is not None
    assert nothing.shape == (3, 5, 2, 4)
    assert not nothing.any()


# The hub

NAME = "someone/magc-tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, empty, with nothing to download from."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path.parent / f"{tmp_path.name}-hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return Path(constants.HF_HUB_CACHE)


@pytest.fixture
def hub(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> HTTPServer:
    endpoint = httpserver.url_for("").rstrip("/")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    return httpserver


def _serve(hub: HTTPServer, files: dict[str, bytes]) -> None:
    """A repository that can be downloaded."""
    identity = {"_id": "1", "id": NAME, "sha": COMMIT, "private": False, "tags": [], "siblings": []}
    hub.expect_request(f"/api/models/{NAME}/revision/main").respond_with_json(identity)
    listing = []
    for name, content in files.items():
        tag = hashlib.sha1(content).hexdigest()
        listing.append({"type": "file", "path": name, "size": len(content), "oid": tag})
        hub.expect_request(f"/{NAME}/resolve/{COMMIT}/{name}").respond_with_data(
            content, headers={"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}
        )
    hub.expect_request(f"/api/models/{NAME}/tree/{COMMIT}").respond_with_json(listing)


def test_a_model_is_downloaded_once_and_without_its_pickles(
    hub: HTTPServer, hub_cache: Path, folder: Path, model: MagcModel
) -> None:
    files = {each.name: each.read_bytes() for each in folder.iterdir() if each.name != "README.md"}
    _serve(hub, {**files, "pytorch_model.bin": b"\x80\x04N.", "README.md": b"#"})
    assert MagcModel.from_pretrained(NAME).fingerprint() == model.fingerprint()
    assert {each.name for each in (hub_cache).rglob("*.*") if each.is_symlink() or each.is_file()} >= files.keys()
    assert not list(hub_cache.rglob("*.bin"))
    hub.clear_log()
    assert MagcModel.from_pretrained(NAME).fingerprint() == model.fingerprint()
    assert hub.log == []


def test_a_half_downloaded_model_is_completed(hub: HTTPServer, hub_cache: Path, folder: Path, model: MagcModel) -> None:
    snapshot = hub_cache / "models--someone--magc-tiny" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(COMMIT)
    (snapshot / "config.json").write_bytes((folder / "config.json").read_bytes())
    _serve(hub, {each.name: each.read_bytes() for each in folder.iterdir()})
    assert MagcModel.from_pretrained(NAME).fingerprint() == model.fingerprint()


def test_what_is_nowhere_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match="there is no model directory .*/nowhere: give the path of one, tiny for the one in"
    ):
        MagcModel.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="there is no model directory"):
        MagcModel.from_pretrained("./runs/a/b")
    with pytest.raises(ModelError, match="'someone/magc-tiny' is neither a folder .*HF_HUB_OFFLINE is set"):
        MagcModel.from_pretrained(NAME)


def test_a_hub_that_does_not_know_the_model(hub: HTTPServer) -> None:
    with pytest.raises(ModelError, match="neither a folder .* and it cannot be downloaded") as caught:
        MagcModel.from_pretrained(NAME)
    assert "\n" not in str(caught.value)


def test_push_uploads_the_directory(hub: HTTPServer, model: MagcModel, folder: Path, tmp_path: Path) -> None:
    uploaded: dict[str, bytes] = {}

    def preupload(request: Request) -> Response:
        files = [{**each, "uploadMode": "regular", "shouldIgnore": False} for each in request.get_json()["files"]]
        return Response(json.dumps({"files": files}), mimetype="application/json")

    def commit(request: Request) -> Response:
        for line in map(json.loads, request.get_data().splitlines()):
            if line["key"] == "file":
                uploaded[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        answer = {"commitUrl": f"{hub.url_for('')}{NAME}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
        return Response(json.dumps(answer), mimetype="application/json")

    made = {"url": hub.url_for(f"/{NAME}"), "name": NAME, "id": "1"}
    hub.expect_request("/api/repos/create", method="POST", headers={"Authorization": "Bearer hf_x"}).respond_with_json(
        made
    )
    identity = {"_id": "1", "id": NAME, "sha": COMMIT, "private": True, "tags": [], "siblings": []}
    hub.expect_request(f"/api/models/{NAME}/revision/main").respond_with_json(identity)
    hub.expect_request(f"/api/models/{NAME}/preupload/main", method="POST").respond_with_handler(preupload)
    hub.expect_request(f"/api/models/{NAME}/commit/main", method="POST").respond_with_handler(commit)
    hub.expect_request("/api/validate-yaml", method="POST").respond_with_json({"errors": [], "warnings": []})

    own = {each.name: each.read_bytes() for each in folder.iterdir()}
    cards = iter((Response(status=404, headers={"X-Error-Code": "EntryNotFound"}), Response(headers={"ETag": '"1"'})))
    hub.expect_request(f"/{NAME}/resolve/main/README.md", method="HEAD").respond_with_handler(lambda _: next(cards))
    assert COMMIT in model.push_to_hub(NAME, private=True, token="hf_x")
    assert uploaded == own
    uploaded.clear()
    model.push_to_hub(NAME, private=True, token="hf_x")
    del own["README.md"]  # the repository's is kept
    assert uploaded == own


def test_a_refused_upload_is_a_sentence(hub: HTTPServer, model: MagcModel) -> None:
    hub.expect_request("/api/repos/create").respond_with_json({"error": "Invalid username or password."}, status=401)
    with pytest.raises(ModelError, match="cannot be uploaded to 'someone/magc-tiny' .*expected OWNER/NAME") as caught:
        model.push_to_hub(NAME, token="hf_wrong")
    assert "\n" not in str(caught.value)


def test_missing_files_are_found_before_networks_are_built(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "denoiser.safetensors").unlink()
    monkeypatch.setattr(model_module, "unfilled_model", lambda *_: pytest.fail("built"))
    with pytest.raises(ModelError, match="denoiser.safetensors is missing"):
        MagcModel.from_pretrained(folder)


def test_the_package_offers_the_model_without_importing_torch() -> None:
    program = "import sys, magc_model; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    from magc_model.reconstruct import Reconstructor

    assert (magc_model.MagcModel, magc_model.Reconstructor) == (MagcModel, Reconstructor)
    assert not hasattr(magc_model, "Compressor")


def test_loading_does_not_initialise_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks are built without memory, so that loading costs reading and no more."""
    made: list[torch.device] = []
    real = model_module._NETWORKS["denoiser"]

    def build(config: ModelConfig) -> torch.nn.Module:
        network = real(config)
        made.extend(each.device for each in network.parameters())
        return network

    monkeypatch.setitem(model_module._NETWORKS, "denoiser", build)
    MagcModel.from_pretrained(folder)
    assert {each.type for each in made} == {"meta"}


def test_numbers_of_half_precision_take_half_the_room_and_come_back_exactly(model: MagcModel, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    model.save_pretrained(whole)
    with torch.no_grad():
        for parameter in model.autoencoder.parameters():
            parameter.copy_(parameter.half())
    fingerprint = model.save_pretrained(tmp_path / "rounded")
    stored = {
        folder: safetensors.torch.load_file(tmp_path / folder / "autoencoder.safetensors")
        for folder in ("whole", "rounded")
    }
    assert {each.dtype for each in stored["rounded"].values()} == {torch.float16}
    assert torch.float32 in {each.dtype for each in stored["whole"].values()}
    loaded = MagcModel.from_pretrained(tmp_path / "rounded")
    assert loaded.fingerprint() == fingerprint
    found, expected = loaded.autoencoder.state_dict(), model.autoencoder.state_dict()
    assert all(each.dtype is torch.float32 for each in found.values())
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("value", [1.0 + 2**-11, 70_000.0, 2.0**-25, float("nan")])
def test_one_number_that_half_precision_has_not_keeps_its_tensor_whole(
    value: float, model: MagcModel, tmp_path: Path
) -> None:
    name, parameter = next(iter(model.autoencoder.named_parameters()))
    with torch.no_grad():
        parameter.copy_(parameter.half())
        parameter.view(-1)[0] = value
    model.save_pretrained(tmp_path / "model")
    stored = safetensors.torch.load_file(tmp_path / "model" / "autoencoder.safetensors")[name]
    assert stored.dtype is torch.float32
    loaded = dict(MagcModel.from_pretrained(tmp_path / "model").autoencoder.named_parameters())[name]
    assert torch.equal(loaded.nan_to_num(7.5), parameter.nan_to_num(7.5))


def test_a_folder_of_single_precision_is_read_as_the_same_model(model: MagcModel, folder: Path) -> None:
    """As earlier versions wrote it."""

    def widen(tensors: dict[str, torch.Tensor]) -> None:
        for name, each in tensors.items():
            tensors[name] = each.float() if each.dtype is torch.float16 else each

    for part in PARTS:
        _change_tensors(folder, part, widen)
    assert MagcModel.from_pretrained(folder).fingerprint() == model.fingerprint()
