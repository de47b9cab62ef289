"""The parts of learned baselines: networks, strings, files, adapters, discriminators, labels."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import tiny_baselines
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from magc_model.baselines import stored
from magc_model.baselines.architectures import CODECS, compressai
from magc_model.baselines.coder import JoinedCoder, PictureCoder, Strings, padded
from magc_model.baselines.config import BASELINE_PRESETS, SEQUENTIAL, Architecture, Objective, baseline_preset
from magc_model.baselines.discriminators import (
    LocalDiscriminator,
    PatchDiscriminator,
    held_still,
    local_deceit,
    local_losses,
    patch_deceit,
    patch_losses,
)
from magc_model.baselines.labels import LabelNetwork
from magc_model.baselines.network import BaselineCodec
from magc_model.baselines.perceptual import PerceptualDistance, PerceptualFiles, find_weights
from magc_model.baselines.stream import BaselineStream, pack, unpack
from magc_model.config import MapClass, MapConfig
from magc_model.data import Batch
from magc_model.errors import BitstreamError, DataError, EvaluationError, ModelError, UsageError
from magc_model.evaluate.codecs import learned
from magc_model.evaluate.codecs.protocol import ImageCodec
from magc_model.evaluate.codecs.registry import CodecSpec
from magc_model.evaluate.codecs.spec import parse_spec
from magc_model.train.baseline_stages import RateDistortionNetwork

CLASSES = (MapClass(0, "ground", (0, 0, 0)), MapClass(1, "building", (200, 0, 0)))
WITH_MAP = MapConfig(in_transform=False, in_diffusion=False, in_decoder=True, in_entropy=False, classes=CLASSES)
EXACT = sorted(CODECS.keys() - SEQUENTIAL)
RNG = np.random.default_rng(3)


def codec(architecture: Architecture = Architecture.MBT2018_MEAN, seed: int = 0, **changes: object) -> BaselineCodec:
    torch.manual_seed(seed)
    return tiny_baselines.lively(BaselineCodec(tiny_baselines.config(architecture, **changes))).eval()


def image(height_px: int = 64, width_px: int = 128) -> torch.Tensor:
    return torch.rand(1, 3, height_px, width_px, generator=torch.Generator().manual_seed(1)) * 2 - 1


def spec(argument: str) -> CodecSpec:
    return CodecSpec("baseline", argument, {}, f"baseline:{argument}")


@pytest.fixture(scope="module", autouse=True)
def _compressai() -> None:
    tiny_baselines.need_compressai()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two rates of one kind."""
    runs = tmp_path_factory.mktemp("models") / "runs"
    folders = [runs / "low", runs / "high"]
    for seed, (folder, rate_lambda) in enumerate(zip(folders, (0.5, 2.0), strict=True)):
        stored.save(folder, codec(seed=seed, rate_lambda=rate_lambda), {"steps": 1})
    return folders


def test_rates_that_are_asked_for_are_those_measured(models: list[Path]) -> None:
    folders = "+".join(map(str, models))
    asked = parse_spec(f"baseline:{folders},rates=2")
    assert learned.open(asked).rates == (2.0,)
    assert learned.open(spec(folders)).rates == (0.5, 2.0)
    with pytest.raises(UsageError, match=r"no model .* has lambda 3: there are 0\.5, 2"):
        learned.open(parse_spec(f"baseline:{folders},rates=3"))


# --- networks and strings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", EXACT)
def test_what_comes_out_of_the_bytes_is_what_the_networks_say(architecture: Architecture) -> None:
    network = codec(architecture)
    coder = PictureCoder(network)
    strings = coder.encode(image())
    with torch.no_grad():
        analysed = network.analyse(image())
        expected = network.synthesise(analysed.symbols, None).clamp(-1, 1)
    assert analysed.symbols.unique().numel() > 10, "nothing was coded to speak of"
    assert float((coder.decode(strings, 64, 128, None) - expected).abs().max()) < 1e-4
    # At most what CompressAI's likelihoods say and the coder's state; what is unlikely with fresh weights costs less.
    assert len(strings.parts) == 1
    assert len(strings.parts[0]) <= float(analysed.bits) / 8 + 16


@pytest.mark.parametrize("architecture", sorted(SEQUENTIAL))
def test_autoregressive_codecs_decode_what_they_encoded(architecture: Architecture) -> None:
    network = codec(architecture)
    coder = PictureCoder(network)
    strings = coder.encode(image())
    assert len(strings.parts) == coder.part_count == 2
    decoded = coder.decode(strings, 64, 128, None)
    symbols = network.body.g_s.seen
    coder.encode(image())
    assert torch.equal(decoded, coder.decode(strings, 64, 128, None))
    with torch.no_grad():
        analysed = network.analyse(image()).symbols
    # The codec rounds the distance to a mean, training the symbol: each is at most a half away from what is rounded.
    assert 0 < float((symbols - analysed).abs().max()) <= 1


def test_one_string_is_shorter_than_compressais_eleven() -> None:
    network = codec(Architecture.ELIC)
    theirs = network.body
    theirs.update(force=True)
    with torch.no_grad():
        separate = [each[0] for each in theirs.compress((image() + 1) / 2)["strings"]]
    joined = PictureCoder(network).encode(image())
    assert len(separate) == 9
    assert len(joined.parts[0]) <= sum(map(len, separate)) - 8 * 4


def test_a_string_too_short_for_the_coders_memory_is_refused() -> None:
    compressai()
    coder = JoinedCoder()
    with coder.writing():
        coder.encode_with_indexes([0] * 7, [0] * 7, [[0, 40000, 65536]], [3], [0])
        with pytest.raises(EvaluationError, match="7 symbols to code"):
            coder.string()


@given(st.integers(1, 200), st.integers(1, 200))
def test_pictures_are_padded_to_the_stride_with_their_edge(height_px: int, width_px: int) -> None:
    small = torch.arange(height_px * width_px, dtype=torch.float32).reshape(1, 1, height_px, width_px)
    large = padded(small.expand(1, 3, height_px, width_px))
    assert large.shape[-2] % 64 == large.shape[-1] % 64 == 0
    assert max(large.shape[-2] - height_px, large.shape[-1] - width_px) < 64
    assert torch.equal(large[..., :height_px, :width_px], small.expand(1, 3, height_px, width_px))
    assert float(large[0, 0, -1, -1]) == float(small.max())


@pytest.mark.parametrize("architecture", sorted(CODECS))
def test_twenty_steps_lower_the_loss(architecture: Architecture) -> None:
    torch.manual_seed(0)
    network = RateDistortionNetwork(
        BaselineCodec(tiny_baselines.config(architecture)), freezes_body=False, rate_warmup_steps=0
    )
    place = torch.linspace(-1, 1, 64)
    pictures = torch.stack([place.expand(64, 64), place.expand(64, 64).T, 0 * place.expand(64, 64)])[None]
    batch = Batch(pictures, None, torch.zeros(1, 64, 64, dtype=torch.uint8), torch.tensor([False]), 0)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    losses, bounds = [], []
    for _ in range(20):
        result = network(batch)
        assert result.auxiliary is not None
        optimizer.zero_grad()
        (result.total + result.auxiliary).backward()
        optimizer.step()
        losses.append(result.total.item())
        bounds.append(result.auxiliary.item())
        assert math.isfinite(losses[-1])
        assert losses[-1] < 3 * losses[0]
    assert losses[-1] < 0.8 * losses[0]
    assert bounds[-1] < bounds[0], "the quantiles move towards the tails"


# --- files -----------------------------------------------------------------------------------------------------------

SIDES = st.integers(1, 1 << 20)


@given(st.binary(min_size=2, max_size=2), SIDES, SIDES, st.lists(st.binary(max_size=300), min_size=1, max_size=2))
def test_unpack_inverts_pack(tag: bytes, height_px: int, width_px: int, parts: list[bytes]) -> None:
    stream = BaselineStream(tag, height_px, width_px, Strings(tuple(parts)))
    assert unpack(pack(stream), len(parts)) == stream


def test_the_bytes_of_a_file_never_change() -> None:
    stream = BaselineStream(b"\x12\x34", 256, 300, Strings((b"abc", b"de")))
    assert pack(stream).hex() == "6d421234ff01ab02036162636465689dda"


@settings(max_examples=50)
@given(st.data())
def test_every_damage_to_a_file_is_a_sentence(data: st.DataObject) -> None:
    whole = pack(BaselineStream(b"ab", 64, 64, Strings((bytes(range(40)),))))
    cut = data.draw(st.integers(0, len(whole) - 1))
    place, change = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(1, 255))
    flipped = whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1 :]
    for damaged in (whole[:cut], flipped):
        with pytest.raises(BitstreamError):
            unpack(damaged, 1)


# --- the codec under evaluation --------------------------------------------------------------------------------------


def test_any_size_comes_back_from_the_bytes_alone(models: list[Path]) -> None:
    writer, reader = (learned.open(spec("+".join(map(str, models)))) for _ in range(2))
    alone = [learned.open(spec(str(each))) for each in models]
    assert isinstance(writer, ImageCodec)
    assert writer.rates == (0.5, 2.0)
    for size_px in ((64, 64), (1, 1), (70, 129), (128, 65)):
        picture = RNG.integers(0, 256, (*size_px, 3), np.uint8)
        for rate, one in zip(writer.rates, alone, strict=True):
            encoded = writer.encode(picture, None, rate)
            assert encoded.stream_bytes is not None
            assert 0 < encoded.stream_bytes < len(encoded.data) <= encoded.stream_bytes + 11
            decoded = reader.decode(encoded.data, None)
            assert decoded.shape == picture.shape
            assert np.array_equal(one.decode(encoded.data, None), decoded), "the file says which model reads it"


def test_decoded_pixels_are_the_networks(models: list[Path]) -> None:
    picture = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    opened = learned.open(spec(str(models[0])))
    network, _ = stored.load_codec(models[0])
    batch = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        expected = network.synthesise(network.analyse(batch).symbols, None)[0].clamp(-1, 1)
    levels = ((expected + 1) * 127.5).round().permute(1, 2, 0).numpy()
    decoded = opened.decode(opened.encode(picture, None, 0.5).data, None)
    assert np.abs(decoded.astype(int) - levels).max() <= 1


def test_a_folder_of_runs_is_a_scale_of_rates(models: list[Path]) -> None:
    opened = learned.open(spec(str(models[0].parent)))
    assert opened.rates == (0.5, 2.0)
    assert opened.label == "Mean-scale hyperprior"
    assert not opened.uses_map


def test_models_that_do_not_belong_together_are_refused(models: list[Path], tmp_path: Path) -> None:
    other, twin = tmp_path / "other", tmp_path / "twin"
    stored.save(other, codec(Architecture.BMSHJ2018, rate_lambda=1.0), {})
    stored.save(twin, codec(seed=5, rate_lambda=0.5), {})
    for argument, message in (
        (f"{models[0]}+{other}", "mixes Mean-scale hyperprior of mbt2018-mean and Scale hyperprior"),
        (f"{models[0]}+{twin}", "two models of one lambda"),
    ):
        with pytest.raises(UsageError, match=message):
            learned.open(spec(argument))
    with pytest.raises(UsageError, match="'baseline' needs a model"):
        learned.open(CodecSpec("baseline", None, {}, "baseline"))
    with pytest.raises(EvaluationError, match="no folder"):
        learned.open(spec(str(tmp_path / "nowhere")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match="no finished baseline"):
        learned.open(spec(str(tmp_path / "empty")))


def test_a_file_of_another_model_is_refused(models: list[Path]) -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    low, high = (learned.open(spec(str(each))) for each in models)
    with pytest.raises(BitstreamError, match="a model that"):
        high.decode(low.encode(picture, None, 0.5).data, None)
    with pytest.raises(UsageError, match="the rate 2 is no lambda"):
        low.encode(picture, None, 2.0)


def test_the_map_is_the_decoders(tmp_path: Path) -> None:
    network = codec(map=WITH_MAP)
    assert network.adapter is not None
    for each in network.adapter.exits:
        nn.init.normal_(each.weight, std=0.5)
    stored.save(tmp_path / "model", network, {})
    opened = learned.open(spec(str(tmp_path / "model")))
    assert opened.uses_map
    assert opened.label == "Mean-scale hyperprior + map"
    picture = RNG.integers(0, 256, (70, 64, 3), np.uint8)
    town = RNG.integers(0, 2, (70, 64), np.uint8)
    data = opened.encode(picture, town, opened.rates[0]).data
    assert data == opened.encode(picture, None, opened.rates[0]).data
    assert not np.array_equal(opened.decode(data, town), opened.decode(data, 1 - town))
    with pytest.raises(DataError, match="has never seen a picture without its map"):
        opened.decode(data, None)
    with pytest.raises(DataError, match="64x64 pixels, the picture 64x70"):
        opened.decode(data, town[:64])
    with pytest.raises(DataError, match="class 9"):
        opened.decode(data, np.full_like(town, 9))


# --- stored ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", sorted(CODECS))
def test_a_directory_gives_the_codec_back(architecture: Architecture, tmp_path: Path) -> None:
    network = codec(architecture, objective=Objective.HIFIC, map=WITH_MAP)
    PictureCoder(network)  # which fills the tables: they are not stored
    digest = stored.save(tmp_path / "model", network, {"steps": 3})
    again = stored.load(tmp_path / "model")
    assert isinstance(again.network, BaselineCodec)
    assert again.network.config == network.config
    assert (again.digest, again.record) == (digest, {"steps": 3})
    before, after = network.stored(), again.network.stored()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def _change_config(folder: Path, **changes: object) -> None:
    document = json.loads((folder / "config.json").read_text())
    document["config"] |= changes
    (folder / "config.json").write_text(json.dumps(document))


def _weights(folder: Path, change: str) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    name = min(tensors)
    changed = {
        "value": {name: tensors[name] + 1},
        "shape": {name: tensors[name].flatten()[:-1].clone()},
        "dtype": {name: tensors[name].double()},
        "name": {"foreign": tensors[name].clone()},
    }[change]
    safetensors.torch.save_file(tensors | changed, folder / "model.safetensors")


DAMAGES = {
    "weights": (lambda folder: _weights(folder, "value"), "its digest differs"),
    "shape": (lambda folder: _weights(folder, "shape"), "where its config asks for float32"),
    "dtype": (lambda folder: _weights(folder, "dtype"), "holds float64"),
    "name": (lambda folder: _weights(folder, "name"), "as 'foreign', where its config asks for nothing"),
    "cut": (lambda folder: (folder / "model.safetensors").write_bytes(b"{"), "cannot be read"),
    "json": (lambda folder: (folder / "config.json").write_text("{"), "cannot be read as JSON"),
    "size": (lambda folder: _change_config(folder, channels=10**9), "expected 1 to 8192"),
    "groups": (lambda folder: _change_config(folder, groups=[1, 2]), "do not make 12 symbol channels"),
    "architecture": (lambda folder: _change_config(folder, architecture="os.system"), "expected one of bmshj2018"),
    "unknown": (lambda folder: _change_config(folder, extra=1), "does not know extra"),
    "gone": (lambda folder: (folder / "model.safetensors").unlink(), "no baseline's directory"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_directory_is_a_sentence(damage: str, tmp_path: Path) -> None:
    stored.save(tmp_path / "model", codec(), {})
    do, message = DAMAGES[damage]
    do(tmp_path / "model")
    with pytest.raises(ModelError, match=message):
        stored.load(tmp_path / "model")


def test_a_label_network_is_no_codec_and_a_codec_no_label_network(tmp_path: Path) -> None:
    stored.save(tmp_path / "labels", LabelNetwork(tiny_baselines.PRESET.labels), {})
    stored.save(tmp_path / "codec", codec(), {})
    with pytest.raises(ModelError, match="is a network of labels"):
        stored.load_codec(tmp_path / "labels")
    with pytest.raises(ModelError, match="is a codec: --labels takes"):
        stored.load_labels(tmp_path / "codec")


def test_a_replacement_that_ends_between_its_two_renames_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends there, with no handler run: the former model is found, and the next save cleans up."""
    folder, renames, really = tmp_path / "model", [], Path.rename
    digest = stored.save(folder, codec(), {})

    def rename(self: Path, target: Path) -> None:
        if renames:
            os._exit(0)
        renames.append(self)
        really(self, target)

    if not (child := os.fork()):
        monkeypatch.setattr(Path, "rename", rename)
        stored.save(folder, codec(seed=9), {})
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0, "it got to its second rename"
    assert not folder.exists()
    assert stored.load(folder).digest == digest
    stored.save(folder, codec(), {})
    assert {each.name for each in tmp_path.iterdir()} == {"model"}
    assert stored.load(folder).digest == digest


def test_nothing_else_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(ModelError, match="holds other things"):
        stored.save(tmp_path, codec(), {})
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.tex"]


# --- the adapter -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", EXACT)
def test_a_fresh_adapter_changes_nothing_and_then_every_scale(architecture: Architecture) -> None:
    plain = codec(architecture)
    network = BaselineCodec(replace(plain.config, map=WITH_MAP)).eval()
    network.fill(network.stored() | plain.stored())
    planes = torch.zeros(1, 2, 64, 128)
    planes[:, 1, :32] = 1
    with torch.no_grad():
        symbols = plain.analyse(image()).symbols
        before = plain.synthesise(symbols, None)
        assert torch.equal(network.synthesise(symbols, planes), before)
        assert network.adapter is not None
        assert len(network.adapter.exits) == 4, "1/16, 1/8, 1/4 and 1/2 of the resolution"
        for each in network.adapter.exits:
            nn.init.normal_(each.weight)
            assert not torch.allclose(network.synthesise(symbols, planes), before)
            nn.init.zeros_(each.weight)
    assert network.stream_digest() == plain.stream_digest()
    with pytest.raises(DataError, match="reads the map"):
        network.synthesise(symbols, None)


# --- discriminators and labels ---------------------------------------------------------------------------------------


def test_gradients_pass_a_discriminator_that_is_held_still() -> None:
    discriminator = PatchDiscriminator(4, 4)
    picture, symbols = torch.rand(2, 3, 64, 64, requires_grad=True), torch.randn(2, 4, 4, 4)
    patch_deceit(held_still(discriminator, picture, symbols)).backward()
    assert picture.grad is not None
    assert float(picture.grad.abs().sum()) > 0
    assert all(each.grad is None for each in discriminator.parameters())


@pytest.mark.parametrize("kind", ["patch", "local"])
def test_a_discriminator_learns_to_tell_two_kinds_of_pictures(kind: str) -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (2, 8, 8))
    network = PatchDiscriminator(4, 8) if kind == "patch" else LocalDiscriminator(4, 8, 3)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    labelled = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None].expand(-1, 3, -1, -1) / 2
    noise, symbols = torch.rand(2, 3, 64, 64), torch.randn(2, 4, 4, 4)
    real, fake = (noise + 1, noise - 1) if kind == "patch" else (labelled, noise)
    losses = []
    for _ in range(20):
        answers = network(real, symbols), network(fake, symbols)
        loss = patch_losses(*answers) if kind == "patch" else local_losses(*answers, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_the_local_discriminator_sees_a_label_every_eight_pixels() -> None:
    logits = LocalDiscriminator(4, 4, 5)(torch.rand(1, 3, 128, 64), torch.randn(1, 4, 8, 4))
    assert logits.shape == (1, 6, 16, 8)


def test_losses_of_one_who_knows_nothing_are_the_published_ones() -> None:
    nothing, labels = torch.zeros(1, 6, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)
    assert float(local_losses(nothing, nothing, labels)) == pytest.approx(math.log(6))
    assert float(local_deceit(nothing, labels)) == pytest.approx(math.log(6))
    assert float(patch_losses(nothing[:, :1], nothing[:, :1])) == pytest.approx(2 * math.log(2))
    sure = nothing.clone()
    sure[:, 0] = 50  # the first output is "fake"
    assert float(local_losses(sure.roll(1, 1), sure, labels)) == pytest.approx(0, abs=1e-6)
    assert float(local_deceit(sure, labels)) > 40


def test_labels_are_the_nearest_codes_and_the_loss_moves_encoder_and_codes() -> None:
    torch.manual_seed(0)
    network = LabelNetwork(tiny_baselines.PRESET.labels)
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    seen = network(pictures)
    assert seen.labels.shape == (2, 8, 8)
    assert torch.equal(seen.labels, network.labels(pictures))
    (seen.decoded.square().mean() + seen.code_loss).backward()
    assert network.codes.grad is not None
    assert network.encoder[0].weight.grad is not None
    assert float(network.encoder[0].weight.grad.abs().sum()) > 0


def _perceptual_files(folder: Path) -> PerceptualFiles:
    torch.manual_seed(0)
    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
    backbone = {f"features.{place}.weight": 0.05 * torch.randn(shape) for place, shape in shapes.items()}
    backbone |= {f"features.{place}.bias": torch.zeros(shape[0]) for place, shape in shapes.items()}
    heads = {f"lin{n}.model.1.weight": torch.rand(1, s[0], 1, 1) for n, s in enumerate(shapes.values())}
    torch.save(backbone, folder / "alexnet-owt-7be5be79.pth")
    torch.save(heads, folder / "alex.pth")
    files = find_weights(folder)
    assert files is not None
    return files


def test_the_perceptual_distance_is_read_from_the_users_files(tmp_path: Path) -> None:
    assert find_weights(None) is None
    assert find_weights(tmp_path) is None
    distance = PerceptualDistance(_perceptual_files(tmp_path))
    picture = torch.rand(1, 3, 64, 64) * 2 - 1
    assert float(distance(picture, picture)) == 0
    slightly, much = (float(distance(picture + each * torch.randn(1, 3, 64, 64), picture)) for each in (0.05, 0.5))
    assert 0 < slightly < much
    assert not any(each.requires_grad for each in distance.parameters())
    torch.save({"lin0.model.1.weight": torch.zeros(2)}, tmp_path / "alex.pth")
    with pytest.raises(EvaluationError, match="is another file than its name says"):
        PerceptualDistance(PerceptualFiles(tmp_path / "alexnet-owt-7be5be79.pth", tmp_path / "alex.pth"))
    torch.save({"code": nn.Linear}, tmp_path / "alex.pth")
    with pytest.raises(EvaluationError, match="holds no weights that can be read safely"):
        PerceptualDistance(PerceptualFiles(tmp_path / "alexnet-owt-7be5be79.pth", tmp_path / "alex.pth"))


# --- presets ---------------------------------------------------------------------------------------------------------


def test_every_preset_has_every_codec_and_the_paper_is_as_published() -> None:
    for preset in BASELINE_PRESETS.values():
        assert preset.sizes.keys() == CODECS.keys()
    assert baseline_preset("paper").sizes[Architecture.ELIC] == (192, 320, (16, 16, 32, 64, 192))
    with pytest.raises(UsageError, match="preset 'huge' is unknown"):
        baseline_preset("huge")


def test_without_compressai_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    compressai.cache_clear()
    monkeypatch.setitem(sys.modules, "compressai.models", None)
    with pytest.raises(EvaluationError, match="pip install --no-deps compressai"):
        codec()
    compressai.cache_clear()
