"""A one-step generator: what it adds to the guide, the dial between its picture and the faithful one, and its limits."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import one_step_model, tiny_model

from magc_model.cli import main
from magc_model.codec import MagcCodec
from magc_model.config import InferencePrecision
from magc_model.diffusion.noise import NoiseWindow, noise_batch
from magc_model.errors import ModelError, UsageError
from magc_model.model import MagcModel
from magc_model.nets.map_planes import map_planes
from magc_model.reconstruct import Reconstructor, Sampling, usual_sampling, usual_steps
from magc_model.scene.compress import compress_scene
from magc_model.scene.raster_files import ArrayMap, ArrayPixels
from magc_model.scene.read import SceneReader

CPU = torch.device("cpu")
ONCE, GUIDE = Sampling(steps=1), Sampling(steps=0)


@pytest.fixture(scope="module")
def model() -> MagcModel:
    return one_step_model()


@pytest.fixture(scope="module")
def reconstructor(model: MagcModel) -> Reconstructor:
    return Reconstructor(model, device=CPU)


@pytest.fixture(scope="module")
def class_ids() -> torch.Tensor:
    blocks = torch.randint(0, 4, (2, 16, 16), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    return blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)


@pytest.fixture(scope="module")
def guides() -> torch.Tensor:
    return torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))


def as_bytes(image: torch.Tensor) -> np.ndarray:
    return ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


@torch.no_grad()
def test_it_is_the_guide_and_the_residual_through_its_own_decoder(
    model: MagcModel, reconstructor: Reconstructor, guides: torch.Tensor, class_ids: torch.Tensor
) -> None:
    found = reconstructor.reconstruct(guides, class_ids, ONCE, [NoiseWindow(3), NoiseWindow(4)]).numpy()
    planes = map_planes(class_ids, model.config.map)
    noise = noise_batch([NoiseWindow(3), NoiseWindow(4)], 0, 16, 16)
    denoiser, decoder = model.denoiser, model.realistic_decoder
    assert denoiser is not None
    assert decoder is not None
    residual = denoiser(noise, torch.full((2,), 999), guides, denoiser.encode_map(planes))
    expected = as_bytes(decoder.decode(guides + residual, planes))
    assert np.abs(found.astype(int) - expected).max() <= 1
    faithful = reconstructor.reconstruct(guides, class_ids, GUIDE).numpy()
    assert np.abs(found.astype(int) - faithful).mean() > 1


def test_the_dial_is_the_mean_of_two_pictures(
    reconstructor: Reconstructor, guides: torch.Tensor, class_ids: torch.Tensor
) -> None:
    realistic, faithful = (
        reconstructor.reconstruct(guides, class_ids, each).numpy().astype(float) for each in (ONCE, GUIDE)
    )
    for fidelity in (0.25, 0.5, 0.9):
        found = reconstructor.reconstruct(guides, class_ids, Sampling(steps=1, fidelity=fidelity)).numpy()
        assert np.abs(found - ((1 - fidelity) * realistic + fidelity * faithful)).max() <= 1


def test_at_its_ends_only_one_of_them_is_computed(
    model: MagcModel, guides: torch.Tensor, class_ids: torch.Tensor
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise AssertionError("computed for nothing")

    without_generator, without_faithful = copy.deepcopy(model), copy.deepcopy(model)
    assert without_generator.denoiser is not None
    assert without_generator.realistic_decoder is not None
    without_generator.denoiser.forward = broken  # type: ignore[method-assign]
    without_generator.realistic_decoder.decode = broken  # type: ignore[assignment, method-assign]
    without_faithful.autoencoder.decode = broken  # type: ignore[assignment, method-assign]
    most_faithful = Sampling(steps=1, fidelity=1.0)
    found = Reconstructor(without_generator, device=CPU).reconstruct(guides, class_ids, most_faithful)
    assert torch.equal(found, Reconstructor(model, device=CPU).reconstruct(guides, class_ids, GUIDE))
    Reconstructor(without_faithful, device=CPU).reconstruct(guides, class_ids, ONCE)


def test_seeds_draw_and_samplers_do_not(
    reconstructor: Reconstructor, guides: torch.Tensor, class_ids: torch.Tensor
) -> None:
    def drawn(seed: int, sampler: str = "ddpm") -> torch.Tensor:
        return reconstructor.reconstruct(
            guides, class_ids, Sampling(sampler=sampler, steps=1), [NoiseWindow(seed), NoiseWindow(seed)]
        )

    assert torch.equal(drawn(7), drawn(7))
    assert torch.equal(drawn(7), drawn(7, "unipc"))
    assert not torch.equal(drawn(7), drawn(8))


def test_a_picture_does_not_depend_on_its_batch(
    model: MagcModel, reconstructor: Reconstructor, guides: torch.Tensor, class_ids: torch.Tensor
) -> None:
    windows = [NoiseWindow(1), NoiseWindow(2)]
    together = reconstructor.reconstruct(guides, class_ids, ONCE, windows).numpy().astype(int)
    one_by_one = Reconstructor(model, device=CPU, batch_size=1).reconstruct(guides, class_ids, ONCE, windows).numpy()
    assert np.abs(together - one_by_one).max() <= 1


def test_bf16_is_nearly_the_same(model: MagcModel, guides: torch.Tensor, class_ids: torch.Tensor) -> None:
    exact = Reconstructor(model, device=CPU).reconstruct(guides, class_ids, ONCE).float()
    before = model.fingerprint()
    rough = Reconstructor(model, device=CPU, precision=InferencePrecision.BF16).reconstruct(guides, class_ids, ONCE)
    assert (exact - rough.float()).abs().mean() < 4
    assert model.fingerprint() == before


def test_without_a_decoder_of_its_own_the_autoencoder_draws(guides: torch.Tensor, class_ids: torch.Tensor) -> None:
    model = one_step_model(has_own_decoder=False)
    found = Reconstructor(model, device=CPU).reconstruct(guides, class_ids, ONCE)
    assert not torch.equal(found, Reconstructor(model, device=CPU).reconstruct(guides, class_ids, GUIDE))


@pytest.mark.parametrize(
    ("sampling", "sentence"),
    [
        (Sampling(steps=2), r"^2 steps: this model draws in one step from pure noise, so use 1 step \(or 0 for none\)"),
        (Sampling(steps=1, start_t=300), r"^a timestep to start from: this model draws in one step"),
    ],
)
def test_more_than_one_step_is_refused(
    reconstructor: Reconstructor,
    guides: torch.Tensor,
    class_ids: torch.Tensor,
    sampling: Sampling,
    sentence: str,
) -> None:
    with pytest.raises(UsageError, match=sentence):
        reconstructor.reconstruct(guides, class_ids, sampling)


def test_it_draws_when_it_is_asked_to(model: MagcModel) -> None:
    assert (usual_sampling(model), usual_steps(model)) == (GUIDE, 1)
    assert (usual_sampling(tiny_model()), usual_steps(tiny_model())) == (Sampling(steps=50), 50)


def test_a_realistic_decoder_needs_a_generator(model: MagcModel) -> None:
    parts = (model.autoencoder, model.latent_compression, model.denoiser, model.tables, model.realistic_decoder)
    with pytest.raises(ModelError, match="a realistic decoder and no one-step generator"):
        MagcModel(tiny_model().config, *parts)
    with pytest.raises(ModelError, match="a realistic decoder and no one-step generator"):
        MagcModel(model.config, model.autoencoder, None, None, None, model.realistic_decoder)


def test_it_is_stored_and_read(model: MagcModel, tmp_path: Path, guides: torch.Tensor, class_ids: torch.Tensor) -> None:
    fingerprint = model.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "realistic_decoder.safetensors").is_file()
    document = json.loads((tmp_path / "model" / "config.json").read_text())
    assert document["model"]["denoiser"]["prediction"] == "residual"
    loaded = MagcModel.from_pretrained(tmp_path / "model")
    assert loaded.fingerprint() == fingerprint == model.fingerprint()
    found, expected = (Reconstructor(each, device=CPU).reconstruct(guides, class_ids, ONCE) for each in (loaded, model))
    assert torch.equal(found, expected)
    decoder = loaded.realistic_decoder
    assert decoder is not None
    assert not any(name.startswith("network.encoder") for name in decoder.state_dict())


def test_a_window_of_a_scene_is_cut_out_of_the_whole(model: MagcModel) -> None:
    codec = MagcCodec(model, device="cpu")
    random = np.random.default_rng(3)
    picture = random.integers(0, 256, (500, 700, 3), dtype=np.uint8)
    class_ids = np.kron(random.integers(0, 4, (50, 70), dtype=np.uint8), np.ones((10, 10), np.uint8))
    stream = compress_scene(codec, ArrayPixels(picture), ArrayMap(class_ids), chunk_px=256).stream
    whole = SceneReader(codec, stream, ArrayMap(class_ids), sampling=ONCE).read()
    window = (210, 130, 300, 260)
    found = SceneReader(codec, stream, ArrayMap(class_ids), sampling=ONCE).read(window)
    assert np.array_equal(found, whole[130:390, 210:510])
    faithful = SceneReader(codec, stream, ArrayMap(class_ids)).read(window)
    assert not np.array_equal(found, faithful)
    several = SceneReader(codec, stream, ArrayMap(class_ids), sampling=ONCE, draws=3).read(window)
    assert np.array_equal(several[..., :3], found)
    assert several[..., 3].max() > 0


def test_the_command_says_what_has_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codec = MagcCodec(one_step_model(), device="cpu")
    codec.model.save_pretrained(tmp_path / "model")
    picture = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (tmp_path / "tile.magc").write_bytes(codec.compress(picture))

    def decompressed(*options: str) -> tuple[int, np.ndarray | None, dict[str, str], str]:
        out = tmp_path / "back.png"
        out.unlink(missing_ok=True)
        with pytest.raises(SystemExit) as ended:
            main(
                [
                    "decompress",
                    str(tmp_path / "tile.magc"),
                    "--model",
                    str(tmp_path / "model"),
                    "-o",
                    str(out),
                    *options,
                ]
            )
        error = capsys.readouterr().err
        if not out.exists():
            return int(ended.value.code or 0), None, {}, error
        with Image.open(out) as image:
            return int(ended.value.code or 0), np.asarray(image), dict(image.info), error

    stream = (tmp_path / "tile.magc").read_bytes()
    for asked in (("--steps", "1"), ("--fidelity", "0")):
        _, drawn, said, _ = decompressed(*asked)
        assert drawn is not None
        assert np.array_equal(drawn, codec.decompress(stream, sampling=ONCE))
        assert "one-step generator" in str(said)
    for asked in ((), ("--steps", "0"), ("--fidelity", "1")):
        _, plain, said, _ = decompressed(*asked)
        assert plain is not None
        assert np.array_equal(plain, codec.decompress(stream))
        assert not np.array_equal(plain, drawn)
        assert "one-step generator" not in str(said)
    code, nothing, _, error = decompressed("--steps", "20")
    assert code
    assert nothing is None
    assert "20 steps: this model draws in one step" in error
    assert error.count("\n") == 1
