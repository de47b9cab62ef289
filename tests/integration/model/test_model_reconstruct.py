"""A model in use: samples through bytes and back, every sampler, precision and batch, and the sheet to look at."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_world
import torch
from PIL import Image
from tiny_models import CLASSES, one_step_model, tiny_model

from magc_model.cli import main
from magc_model.config import PAPER_LAMBDAS, Device, InferencePrecision, MapClass, RateConfig, RateMode
from magc_model.diffusion.noise import NoiseWindow
from magc_model.diffusion.samplers import SAMPLERS
from magc_model.entropy.coder import PayloadError
from magc_model.errors import DataError, ModelError, UsageError
from magc_model.model import MagcModel
from magc_model.reconstruct import Reconstructor, Sampling, torch_device

SIZE = (128, 64)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> MagcModel:
    return tiny_model()


@pytest.fixture(scope="module")
def reconstructor(model: MagcModel) -> Reconstructor:
    return Reconstructor(model, device=CPU, batch_size=2)


@pytest.fixture(scope="module")
def samples() -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(1)
    pictures = torch.from_numpy(random.integers(0, 256, (3, *SIZE, 3), dtype=np.uint8))
    return pictures, torch.from_numpy(random.integers(0, len(CLASSES), (3, *SIZE), dtype=np.uint8))


@pytest.fixture(scope="module")
def guides(reconstructor: Reconstructor, samples: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    payloads = [each.payload for each in reconstructor.compress(*samples)]
    return reconstructor.guides(payloads, SIZE, samples[1])


def _close(found: torch.Tensor, expected: torch.Tensor, grey_levels: float) -> bool:
    return bool((found.int() - expected.int()).abs().max() <= grey_levels)


def test_guides_are_what_the_lcm_makes_of_the_symbols(
    model: MagcModel, reconstructor: Reconstructor, samples: tuple[torch.Tensor, torch.Tensor], guides: torch.Tensor
) -> None:
    pictures, class_ids = samples
    compressed = reconstructor.compress(pictures, class_ids)
    symbols = torch.stack([each.symbols for each in compressed]).float()
    with torch.no_grad():
        expected = model.latent_compression.synthesise(
            symbols, model.latent_compression.map_pyramid(model.planes(class_ids, (3, *SIZE)))
        )
    torch.testing.assert_close(guides, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("start_t", [None, 400])
def test_a_batch_equals_its_pictures_alone(
    model: MagcModel,
    samples: tuple[torch.Tensor, torch.Tensor],
    guides: torch.Tensor,
    sampler: str,
    start_t: int | None,
) -> None:
    sampling = Sampling(sampler=sampler, steps=4, start_t=start_t)
    windows = [NoiseWindow(seed) for seed in (5, 5, 8)]
    together = Reconstructor(model, device=CPU, batch_size=3).reconstruct(guides, samples[1], sampling, windows)
    alone = Reconstructor(model, device=CPU, batch_size=1).reconstruct(guides, samples[1], sampling, windows)
    assert together.shape == (3, *SIZE, 3)
    assert _close(together, alone, 1)
    other = Reconstructor(model, device=CPU).reconstruct(guides, samples[1], sampling, [NoiseWindow(6)] * 3)
    assert not _close(together, other, 1)


def test_no_steps_decode_the_guide(
    model: MagcModel, reconstructor: Reconstructor, samples: tuple[torch.Tensor, torch.Tensor], guides: torch.Tensor
) -> None:
    pictures = reconstructor.reconstruct(guides, samples[1], Sampling(steps=0))
    with torch.no_grad():
        decoded = model.autoencoder.decode(guides, model.planes(samples[1], (3, *SIZE)))
    expected = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    assert _close(pictures, expected, 1)


@pytest.mark.parametrize(("place", "steps"), [("in_decoder", 0), ("in_decoder", 2), ("in_diffusion", 2), (None, 2)])
def test_the_map_and_its_absence_matter(
    samples: tuple[torch.Tensor, torch.Tensor], guides: torch.Tensor, place: str | None, steps: int
) -> None:
    model = tiny_model(**{each: each == place for each in ("in_decoder", "in_diffusion")})
    model.autoencoder.network.decoder.layers[-1].weight.data *= 8  # an untrained one's pictures have hardly a contrast
    reconstructor = Reconstructor(model, device=CPU)
    sampling = Sampling(sampler="ddim", steps=steps)
    with_map, without = (reconstructor.reconstruct(guides, each, sampling) for each in (samples[1], None))
    largest = (with_map.int() - without.int()).abs().max()
    assert largest > 8 if place else largest == 0


def test_a_model_that_needs_a_map_says_so(
    samples: tuple[torch.Tensor, torch.Tensor], guides: torch.Tensor, reconstructor: Reconstructor
) -> None:
    strict = Reconstructor(tiny_model(dropout=0.0), device=CPU)
    payloads = [each.payload for each in reconstructor.compress(*samples)]
    for call in (
        lambda some: some.compress(samples[0], None),
        lambda some: some.guides(payloads, SIZE, None),
        lambda some: some.reconstruct(guides, None, Sampling(steps=0)),
    ):
        with pytest.raises(UsageError, match="never seen a picture without its map"):
            call(strict)
    without = reconstructor.compress(samples[0], None)
    assert reconstructor.guides([each.payload for each in without], SIZE, None).shape == guides.shape


def test_the_last_batch_is_filled_up_for_a_compiled_network(
    model: MagcModel,
    samples: tuple[torch.Tensor, torch.Tensor],
    guides: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_: None)  # here it is about what it would be given
    sizes = {}
    sampling = Sampling(sampler="ddim", steps=2)
    windows = [NoiseWindow(seed) for seed in (5, 6, 7)]
    pictures = {}
    for compiled in (False, True):
        some = Reconstructor(model, device=CPU, batch_size=2, compile=compiled)
        seen = sizes[compiled] = []
        hook = some._denoiser.unet.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(len(inputs[0])))
        pictures[compiled] = some.reconstruct(guides, samples[1], sampling, windows)
        some.reconstruct(guides[:1], samples[1][:1], sampling)
        hook.remove()
    assert sizes == {False: [2, 2, 1, 1, 1, 1], True: [2, 2, 2, 2, 1, 1]}
    assert pictures[True].shape == (3, *SIZE, 3)
    assert _close(pictures[True], pictures[False], 1)


def test_half_precision_stays_near_and_leaves_the_model_alone(
    model: MagcModel, samples: tuple[torch.Tensor, torch.Tensor], guides: torch.Tensor
) -> None:
    before = model.fingerprint()
    half = Reconstructor(model, device=CPU, precision=InferencePrecision.BF16)
    sampling = Sampling(sampler="ddim", steps=3)
    pictures = half.reconstruct(guides, samples[1], sampling).double()
    expected = Reconstructor(model, device=CPU).reconstruct(guides, samples[1], sampling).double()
    assert (pictures - expected).abs().mean() < 4
    assert not torch.equal(pictures, expected)
    assert model.fingerprint() == before
    # Any sender's bytes are good for any receiver: the exact path is not touched by the precision.
    payloads = [each.payload for each in half.compress(*samples)]
    symbols = torch.stack([each.symbols for each in half.compress(*samples)])
    other = Reconstructor(model, device=CPU).guides(payloads, SIZE, samples[1])
    torch.testing.assert_close(other, half.guides(payloads, SIZE, samples[1]))
    assert symbols.shape[0] == 3


def test_a_gained_model_has_many_rates(samples: tuple[torch.Tensor, torch.Tensor]) -> None:
    gained = Reconstructor(tiny_model(rate=RateConfig(mode=RateMode.GAINED, lambdas=PAPER_LAMBDAS)), device=CPU)
    low, high = (gained.compress(*samples, rate)[0].ideal_bits for rate in (0.0, 5.0))
    assert low < high
    for rate, words in ((None, "needs a position"), (5.5, "expected 0 to 5"), (float("nan"), "expected 0 to 5")):
        with pytest.raises(UsageError, match=words):
            gained.compress(*samples, rate)


def test_what_cannot_work_is_one_sentence(
    model: MagcModel, reconstructor: Reconstructor, samples: tuple[torch.Tensor, torch.Tensor], guides: torch.Tensor
) -> None:
    pictures, class_ids = samples
    with pytest.raises(UsageError, match="64x100 pixels: expected sides that are multiples of 64"):
        reconstructor.compress(pictures[:, :100], class_ids[:, :100])
    with pytest.raises(UsageError, match="no position on the rate axis"):
        reconstructor.compress(pictures, class_ids, 1.0)
    with pytest.raises(DataError, match="class 9, which the model does not know"):
        reconstructor.compress(pictures, torch.full_like(class_ids, 9))
    with pytest.raises(DataError, match="there are 3 maps for 2 pictures"):
        reconstructor.guides([b"", b""], SIZE, class_ids)
    with pytest.raises(UsageError, match="there are 2 windows for 3 guides: expected one a guide"):
        reconstructor.reconstruct(guides, class_ids, Sampling(steps=1), [NoiseWindow(0)] * 2)
    with pytest.raises(UsageError, match="no payloads"):
        reconstructor.guides([], SIZE, None)
    with pytest.raises(UsageError, match="no guides"):
        reconstructor.reconstruct(guides[:0], None, Sampling(steps=0))
    with pytest.raises(PayloadError):
        reconstructor.guides([b"\xff" * 400], SIZE, class_ids[:1])
    with pytest.raises(UsageError, match="sampler 'euler' is unknown: expected one of ddpm"):
        Sampling(sampler="euler")
    with pytest.raises(UsageError, match="-1 steps"):
        Sampling(steps=-1)
    with pytest.raises(UsageError, match="fp16 is for GPUs"):
        Reconstructor(model, device=CPU, precision=InferencePrecision.FP16)
    without = MagcModel(model.config, model.autoencoder, model.latent_compression, None, model.tables)
    with pytest.raises(ModelError, match="stage2"):
        Reconstructor(without, device=CPU).reconstruct(guides, class_ids, Sampling(steps=1))
    with pytest.raises(ModelError, match="stage1"):
        Reconstructor(MagcModel(model.config, model.autoencoder), device=CPU)


def test_auto_is_cuda_where_there_is_a_gpu() -> None:
    found = torch.cuda.is_available()
    assert torch_device(Device.AUTO).type == ("cuda" if found else "cpu")
    assert torch_device(Device.CPU).type == "cpu"
    if not found:
        with pytest.raises(UsageError, match="no CUDA device: use --device cpu"):
            torch_device(Device.CUDA)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tiny_world.run(tiny_world.World(folder / "world", tiny_world.FOUR_TILES).config(folder / "dataset"))
    return folder / "dataset"


def test_the_command_draws_a_sheet(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from magc_data.dataset import MagcDataset

    samples = MagcDataset(dataset)
    classes = tuple(MapClass(*each) for each in samples.classes)
    tiny_model(classes=classes).save_pretrained(tmp_path / "model")
    sheet = tmp_path / "sheet.png"
    options = ["--model", str(tmp_path / "model"), "--out", str(sheet), "--steps", "2", "--sampler", "ddim"]
    with pytest.raises(SystemExit) as ended:
        main(["reconstruct", str(dataset), *options, "--count", "2", "--json"])
    assert ended.value.code == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["samples"]) == 2
    for each in answer["samples"]:
        assert each["key"] in samples.keys
        assert each["bpp"] == pytest.approx(each["bytes"] * 8 / 256**2)
        assert 0 < each["psnr_db"] < 60
    with Image.open(sheet) as picture:
        assert picture.size == (8 + 3 * 264, 8 + 2 * (256 + 20 + 8))
        first = np.asarray(picture)[8 : 8 + 256, 8 : 8 + 256]
    assert any(np.array_equal(first, samples[n].image) for n in range(len(samples)))


@pytest.mark.slow
def test_the_command_draws_in_one_step_what_can_do_so(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from magc_data.dataset import MagcDataset

    classes = tuple(MapClass(*each) for each in MagcDataset(dataset).classes)
    one_step_model(classes=classes).save_pretrained(tmp_path / "model")
    command = ["reconstruct", str(dataset), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "sheet.png")]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--count", "1", "--json"])
    assert ended.value.code == 0
    assert len(json.loads(capsys.readouterr().out)["samples"]) == 1
    with pytest.raises(SystemExit) as ended:
        main([*command, "--steps", "50"])
    assert ended.value.code == 2
    assert "50 steps: this model draws in one step" in capsys.readouterr().err


def test_the_command_refuses_another_class_table(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit) as ended:
        main(["reconstruct", str(dataset), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "x.png")])
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("magc: ")
    assert "class" in error
    assert error.count("\n") == 1
