"""Metrics that need weights: the plumbing, with real networks of random weights under the published names."""

import io
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from magc_model.errors import EvaluationError
from magc_model.evaluate.metrics import perceptual
from magc_model.evaluate.metrics.perceptual import open_perceptual
from magc_model.evaluate.metrics.perceptual_nets import Dists, Lpips
from magc_model.evaluate.metrics.weights import LPIPS_HEADS, read_tensors

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:FutureWarning")

NAMES = ("lpips", "dists", "musiq", "clip-iqa", "fid", "kid")
RANDOM = np.random.default_rng(0)
ORIGINAL = RANDOM.integers(0, 256, (96, 96, 3), dtype=np.uint8)
NEAR = np.clip(ORIGINAL + RANDOM.normal(0, 8, ORIGINAL.shape), 0, 255).astype(np.uint8)
FAR = RANDOM.integers(0, 256, (96, 96, 3), dtype=np.uint8)


def planes(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255


def random_backbone(network: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """A classifier's file as torchvision has it."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    features = {f"features.{name}": value for name, value in network.state_dict().items()}
    return features | {"classifier.6.weight": torch.zeros(10, 8), "classifier.6.bias": torch.zeros(10)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LPIPS and DISTS, and an Inception whose weights do not fit."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save(random_backbone(Lpips().features, 1), folder / "alexnet-owt-7be5be79.pth")
    torch.save(random_backbone(Dists().features, 2), folder / "vgg16-397923af.pth")
    heads = {f"lin{n}.model.1.weight": torch.rand(1, c, 1, 1) for n, c in enumerate((64, 192, 384, 256, 256))}
    torch.save(heads, folder / LPIPS_HEADS.name)
    torch.save(
        {"alpha": torch.rand(1, 1475, 1, 1), "beta": torch.rand(1, 1475, 1, 1)}, folder / "DISTS_weights-f5e65c96.pth"
    )
    return folder


def test_without_a_folder_everything_is_missing_and_the_way_out_names_the_files():
    opened = open_perceptual(None, NAMES)
    assert opened[:3] == ({}, None, ())
    missing = {one.name: one for one in opened.missing}
    assert tuple(missing) == NAMES
    assert missing["lpips"].reason == "no folder of weights was given"
    assert "alexnet-owt-7be5be79.pth (from https://download.pytorch.org/" in missing["lpips"].way_out
    assert "LPIPS_v0.1_alex-df73285e.pth (from " in missing["lpips"].way_out
    assert all("--weights-dir" in one.way_out for one in missing.values())


def test_what_lies_in_the_folder_is_there_and_the_rest_is_missing(folder):
    opened = open_perceptual(folder, NAMES)
    assert set(opened.pairs) == {"lpips", "dists"}
    assert {one.name for one in opened.missing} == {"musiq", "clip-iqa", "fid", "kid"}
    assert opened.missing[0].reason == f"{folder} does not have its weights"
    assert [(one.metric, one.file, one.published) for one in opened.weights] == [
        ("lpips", "alexnet-owt-7be5be79.pth", False),
        ("lpips", "LPIPS_v0.1_alex-df73285e.pth", False),
        ("dists", "vgg16-397923af.pth", False),
        ("dists", "DISTS_weights-f5e65c96.pth", False),
    ], "random weights are not the published ones"
    for measure in opened.pairs.values():
        assert measure(ORIGINAL, ORIGINAL) == pytest.approx(0, abs=1e-5)
        assert 0 < measure(ORIGINAL, NEAR) < measure(ORIGINAL, FAR)
        assert np.isnan(measure(ORIGINAL[:32], NEAR[:32]))


def test_only_what_is_asked_for_is_opened(folder):
    assert set(open_perceptual(folder, ["dists"]).pairs) == {"dists"}
    assert open_perceptual(folder, ["dists"]).missing == ()


def test_lpips_and_dists_are_those_of_pyiqa(folder, monkeypatch):
    pytest.importorskip("pyiqa")
    from pyiqa.archs import dists_arch, lpips_arch

    opened = open_perceptual(folder, ["lpips", "dists"])

    def backbone(features: nn.Module, file: str) -> SimpleNamespace:
        """What torchvision would give it, without the classifier and without downloading."""
        tensors = {name: value for name, value in read_tensors(folder / file).items() if "features" in name}
        features.load_state_dict({name.removeprefix("features."): value for name, value in tensors.items()})
        return SimpleNamespace(features=features)

    alexnet, vgg16 = (
        backbone(Lpips().features, "alexnet-owt-7be5be79.pth"),
        backbone(Dists().features, "vgg16-397923af.pth"),
    )
    monkeypatch.setattr(lpips_arch.models, "alexnet", lambda weights: alexnet)
    monkeypatch.setattr(dists_arch.models, "vgg16", lambda weights: vgg16)
    theirs = {
        "lpips": lpips_arch.LPIPS(pretrained_model_path=str(folder / LPIPS_HEADS.name)),
        "dists": dists_arch.DISTS(pretrained_model_path=str(folder / "DISTS_weights-f5e65c96.pth")),
    }
    for name, network in theirs.items():
        with torch.no_grad():
            assert opened.pairs[name](ORIGINAL, NEAR) == pytest.approx(
                float(network(planes(NEAR), planes(ORIGINAL))), rel=1e-4
            )


def test_musiq_is_that_of_pyiqa(tmp_path):
    pytest.importorskip("pyiqa")
    from pyiqa.archs.musiq_arch import MUSIQ

    torch.manual_seed(3)
    network = MUSIQ(pretrained=False).eval()
    torch.save(
        {f"module.{name}": value for name, value in network.state_dict().items()},
        tmp_path / "musiq_koniq_ckpt-e95806b9.pth",
    )
    opened = open_perceptual(tmp_path, ["musiq"])
    with torch.no_grad():
        assert opened.pairs["musiq"](ORIGINAL, NEAR) == pytest.approx(float(network(planes(NEAR))), rel=1e-5)
    assert opened.pairs["musiq"](ORIGINAL, FAR) != opened.pairs["musiq"](ORIGINAL, NEAR)


def small_clip() -> nn.Module:
    from pyiqa.archs.clip_model import CLIP

    torch.manual_seed(4)
    return CLIP(32, 64, (1, 1, 1, 1), 8, None, 77, 49408, 64, 1, 1).eval()


class Archive(nn.Module):
    """Holds weights by the names of CLIP in a TorchScript file, as RN50.pt does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        for name, module in network.named_children():
            self.add_module(name, module)
        for name, parameter in network.named_parameters(recurse=False):
            self.register_parameter(name, parameter)


def test_clip_iqa_is_the_share_of_the_better_prompts(tmp_path):
    pytest.importorskip("pyiqa")
    network = small_clip()
    for parameter in network.parameters():
        parameter.data = parameter.data.half().float()  # what the published weights are
    holder = Archive(network)
    holder.forward = lambda planes: network.visual.conv1(planes)
    torch.jit.save(torch.jit.trace(holder, torch.zeros(1, 3, 64, 64)), tmp_path / "RN50.pt")
    opened = open_perceptual(tmp_path, ["clip-iqa"])
    tokens = torch.zeros(10, 77, dtype=torch.long)
    for row, words in enumerate(perceptual._PROMPTS):
        tokens[row, : len(words) + 2] = torch.tensor([49406, *words, 49407])
    mean, deviation = torch.tensor(perceptual._CLIP_MEAN), torch.tensor(perceptual._CLIP_DEVIATION)
    with torch.no_grad():
        logits, _ = network((planes(NEAR) - mean[:, None, None]) / deviation[:, None, None], tokens)
        wanted = float(logits.reshape(1, -1, 2).softmax(-1)[..., 0].mean())
    assert opened.pairs["clip-iqa"](ORIGINAL, NEAR) == pytest.approx(wanted, rel=1e-4)
    assert 0 < wanted < 1


def test_the_tokens_of_the_prompts_are_clips():
    """They are words of CLIP's vocabulary, which its package brings: looked up there without importing it."""
    import gzip
    import importlib.util

    found = importlib.util.find_spec("clip")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs the package openai-clip")
    with gzip.open(Path(found.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz", "rt") as file:
        merges = file.read().split("\n")
    merges = [tuple(line.split()) for line in merges[1 : 49152 - 256 - 2 + 1]]

    def token(word: str) -> int:
        return 512 + next(n for n, pair in enumerate(merges) if "".join(pair) == f"{word}</w>")

    sentences = (
        "good image", "bad image", "sharp image", "blurry image", "sharp edges", "blurry edges", "high resolution image",
        "low resolution image", "noise - free image", "noisy image",
    )  # fmt: skip
    for sentence, prompt in zip(sentences, perceptual._PROMPTS, strict=True):
        words = [token(word) if len(word) > 1 else 256 + ord(word) - ord("!") for word in sentence.split()]
        assert tuple(words) == prompt, sentence


def test_inception_features_are_those_of_torch_fidelity(tmp_path, monkeypatch):
    pytest.importorskip("torch_fidelity")
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: pytest.fail("downloads"))
    blank = io.BytesIO()

    class Unloaded(inception.FeatureExtractorInceptionV3):
        def load_state_dict(self, tensors, *_, **__):
            return None

    torch.save({}, blank)
    blank.seek(0)
    torch.manual_seed(5)
    network = Unloaded("inception", ["2048"], feature_extractor_weights_path=blank)
    torch.save(network.state_dict(), tmp_path / "weights-inception-2015-12-05-6726825d.pth")
    opened = open_perceptual(tmp_path, ["fid", "kid"])
    assert opened.missing == ()
    assert opened.pairs == {}
    assert [(one.metric, one.published) for one in opened.weights] == [("fid", None), ("kid", None)]
    patches = RANDOM.integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    found = opened.inception(patches)
    assert found.shape == (2, 2048)
    (wanted,) = network(torch.from_numpy(patches).permute(0, 3, 1, 2))
    assert found == pytest.approx(wanted.numpy(), rel=1e-5)


def spoil(folder: Path, file: str, content: bytes, into: Path) -> Path:
    for each in folder.iterdir():
        (into / each.name).symlink_to(each)
    (into / file).unlink(missing_ok=True)
    (into / file).write_bytes(content)
    return into


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


class Runs:
    """A pickle that would run a program."""

    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("name", "file", "content", "sentence"),
    [
        ("lpips", "alexnet-owt-7be5be79.pth", b"", "alexnet-owt-7be5be79.pth cannot be read .* expected PyTorch weights"),
        ("lpips", "alexnet-owt-7be5be79.pth", b"<html>404</html>", "cannot be read .* so fetch the file again"),
        ("lpips", "alexnet-owt-7be5be79.pth", saved({"features.0.weight": torch.zeros(64, 3, 11, 11)}), "the weights of another network"),
        ("lpips", LPIPS_HEADS.name, saved({"a": torch.zeros(1)}), "df73285e.pth has the right name and holds the weights of another network"),
        ("lpips", LPIPS_HEADS.name, saved([1, 2]), "df73285e.pth holds no tensors by name"),
        ("dists", "DISTS_weights-f5e65c96.pth", saved(Runs()), "DISTS_weights-f5e65c96.pth cannot be read"),
        ("dists", "vgg16-397923af.pth", saved({"features.0.weight": torch.zeros(1)})[:-200], "vgg16-397923af.pth cannot be read"),
    ],
)  # fmt: skip
def test_a_wrong_or_damaged_file_is_a_sentence_and_runs_nothing(
    folder, tmp_path, capsys, name, file, content, sentence
):
    with pytest.raises(EvaluationError, match=sentence):
        open_perceptual(spoil(folder, file, content, tmp_path), [name])
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "content", [b"nothing", zipfile.ZIP_STORED.to_bytes(4, "little"), saved({"a": torch.zeros(1)})]
)
def test_a_clip_file_that_is_no_archive_is_a_sentence(tmp_path, content):
    pytest.importorskip("pyiqa")
    (tmp_path / "RN50.pt").write_bytes(content)
    with pytest.raises(EvaluationError, match=r"RN50\.pt cannot be read .* expected a TorchScript archive"):
        open_perceptual(tmp_path, ["clip-iqa"])


def test_a_missing_package_is_the_reason(tmp_path, monkeypatch):
    (tmp_path / "musiq_koniq_ckpt-e95806b9.pth").write_bytes(b"")

    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(perceptual.importlib, "import_module", absent)
    (missing,) = open_perceptual(tmp_path, ["musiq"]).missing
    assert "the package pyiqa.archs.musiq_arch is not here" in missing.reason
    assert missing.way_out == 'pip install "magc[perceptual]"'
