"""What only a CUDA device can show. Run with `pytest -m gpu`; without a device every test says why it does not run."""

import dataclasses

import pytest
import torch

from magc_model.config import PRESETS, DiffusionConfig, InferencePrecision, MapClass, PublishedQuirks
from magc_model.diffusion.noise import NoiseWindow, noise_batch
from magc_model.diffusion.samplers import SAMPLERS, start_latent
from magc_model.diffusion.schedule import noise_schedule
from magc_model.entropy.tables import build_tables
from magc_model.model import MagcModel, build_autoencoder, build_denoiser, build_latent_compression
from magc_model.nets.conditional_diffusion import ConditionalDenoiser
from magc_model.reconstruct import Reconstructor, Sampling

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none"),
]

SCHEDULE = noise_schedule(DiffusionConfig())
PLANES = 6
WINDOWS = [NoiseWindow(seed=5), NoiseWindow(seed=5, row=32), NoiseWindow(seed=2**63 + 1, row=70_000, column=9)]


@pytest.fixture
def denoiser() -> ConditionalDenoiser:
    torch.manual_seed(0)
    model = ConditionalDenoiser(PRESETS["tiny"].model.denoiser, PLANES, PublishedQuirks()).eval()
    assert model.adapter is not None
    for parameter in model.adapter.exits.parameters():  # away from the zero start, so that the map counts
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def sample(model: ConditionalDenoiser, device: str, name: str) -> torch.Tensor:
    """Three pictures in 6 steps from a noised guide."""
    generator = torch.Generator().manual_seed(1)
    guides = torch.randn(3, 4, 32, 32, generator=generator).to(device)
    planes = torch.rand(3, PLANES, 256, 256, generator=generator).to(device)

    def drawn(draw: int) -> torch.Tensor:
        return noise_batch(WINDOWS, draw, 32, 32, device=device)

    with torch.no_grad():
        encoded = model.encode_map(planes)

        def denoise(latent: torch.Tensor, timestep: int) -> torch.Tensor:
            return model(latent, torch.full((3,), timestep, device=device), guides, encoded)

        first = start_latent(guides, SCHEDULE, 500, drawn)
        return SAMPLERS[name](denoise, first, SCHEDULE, steps=6, start_t=500, noise=drawn).cpu()


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_noise_is_the_same_on_both_devices() -> None:
    for draw in (0, 7):
        there = noise_batch(WINDOWS, draw, 64, 48, device="cuda")
        assert there.device.type == "cuda"
        torch.testing.assert_close(there.cpu(), noise_batch(WINDOWS, draw, 64, 48), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_float32_sampling_equals_the_processors(denoiser: ConditionalDenoiser, name: str) -> None:
    here = sample(denoiser, "cpu", name)
    denoiser.cuda()
    assert relative(sample(denoiser, "cuda", name), here) < 5e-3  # TF32 convolutions are torch's default


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SAMPLERS)
def test_half_precision_sampling_stays_close(denoiser: ConditionalDenoiser, name: str, dtype: torch.dtype) -> None:
    denoiser.cuda()
    full = sample(denoiser, "cuda", name)
    with torch.autocast("cuda", dtype):
        half = sample(denoiser, "cuda", name)
    assert half.isfinite().all()
    assert relative(half, full) < 0.05


def test_channels_last_changes_nothing(denoiser: ConditionalDenoiser) -> None:
    denoiser.cuda()
    full = sample(denoiser, "cuda", "dpm-solver++")
    denoiser.to(memory_format=torch.channels_last)
    assert relative(sample(denoiser, "cuda", "dpm-solver++"), full) < 5e-3


@pytest.mark.slow
def test_compiled_sampling_stays_close(denoiser: ConditionalDenoiser) -> None:
    denoiser.cuda()
    full = sample(denoiser, "cuda", "dpm-solver++")
    denoiser.unet.compile()  # not the whole: the shape checks of the tests cannot be traced
    assert relative(sample(denoiser, "cuda", "dpm-solver++"), full) < 5e-3


def test_a_training_step_under_autocast_has_finite_gradients(denoiser: ConditionalDenoiser) -> None:
    denoiser.cuda().train()
    denoiser.enable_gradient_checkpointing()
    noisy, guide = torch.randn(2, 4, 4, 16, 16, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        encoded = denoiser.encode_map(torch.rand(4, PLANES, 128, 128, device="cuda"))
        loss = denoiser(noisy, torch.tensor([0, 10, 500, 999], device="cuda"), guide, encoded).square().mean()
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in denoiser.parameters() if parameter.grad is not None)


# --- a whole model ---------------------------------------------------------------------------------------------------

CLASSES = tuple(MapClass(n, f"class {n}", (40 * n, 0, 0)) for n in range(PLANES))
SIZE = (128, 192)


@pytest.fixture
def model() -> MagcModel:
    torch.manual_seed(0)
    config = PRESETS["tiny"].model
    config = dataclasses.replace(config, map=dataclasses.replace(config.map, classes=CLASSES))
    lcm = build_latent_compression(config).eval()
    return MagcModel(config, build_autoencoder(config), lcm, build_denoiser(config), build_tables(lcm)).eval()


def reconstructed(
    model: MagcModel, device: str, precision: InferencePrecision, *, compiled: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of three random ones, two at a time, and how far their guides are from those on the processor."""
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randint(0, 256, (3, *SIZE, 3), generator=generator, dtype=torch.uint8)
    ids = torch.randint(0, PLANES, (3, *SIZE), generator=generator, dtype=torch.uint8)
    some = Reconstructor(model, device=torch.device(device), precision=precision, compile=compiled, batch_size=2)
    payloads = [each.payload for each in some.compress(pictures, ids)]
    guides = some.guides(payloads, SIZE, ids)
    assert guides.device.type == device
    found = some.reconstruct(guides, ids, Sampling(sampler="dpm-solver++", steps=4), WINDOWS)
    return found, Reconstructor(model, device=torch.device("cpu")).guides(payloads, SIZE, ids) - guides.cpu()


@pytest.mark.parametrize("precision", InferencePrecision)
def test_a_model_reconstructs_in_every_precision(model: MagcModel, precision: InferencePrecision) -> None:
    fingerprint = model.fingerprint()
    here, _ = reconstructed(model, "cpu", InferencePrecision.FP32)
    there, difference = reconstructed(model, "cuda", precision)
    assert model.fingerprint() == fingerprint
    assert there.device.type == "cpu"
    assert (there.double() - here.double()).abs().mean() < (1 if precision is InferencePrecision.FP32 else 5)
    assert difference.abs().max() < 0.05  # bytes of the device are read on the processor, to the same symbols


@pytest.mark.slow
def test_a_compiled_model_reconstructs_the_same(model: MagcModel) -> None:
    plain, _ = reconstructed(model, "cuda", InferencePrecision.FP32)
    compiled, _ = reconstructed(model, "cuda", InferencePrecision.FP32, compiled=True)
    assert (plain.double() - compiled.double()).abs().mean() < 1
