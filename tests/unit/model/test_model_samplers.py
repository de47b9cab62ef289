import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
)

from magc_model.config import DenoiserConfig, DiffusionConfig, PublishedQuirks
from magc_model.diffusion import samplers
from magc_model.diffusion.noise import NoiseWindow, noise_batch
from magc_model.diffusion.samplers import SAMPLERS, start_latent
from magc_model.diffusion.schedule import noise_schedule, solver_timesteps
from magc_model.errors import UsageError
from magc_model.nets.conditional_diffusion import ConditionalDenoiser

SCHEDULE = noise_schedule(DiffusionConfig())
SOLVERS = [name for name in SAMPLERS if name != "ddpm"]
REFERENCE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "linspace",
}


def noise(draw: int) -> torch.Tensor:
    return noise_batch([NoiseWindow(11)], draw, 6, 5).double()


def bent(latent: torch.Tensor, timestep: int) -> torch.Tensor:
    """A noise prediction that is no straight line in the latent nor in time."""
    return torch.tanh(latent * (0.4 + timestep / 900)) + 0.2 * torch.sin(3 * latent + timestep / 100)


def no_noise(draw: int) -> torch.Tensor:
    raise AssertionError(f"asked for draw {draw}")


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def drive(scheduler: Any, steps: int, latent: torch.Tensor, **options: Any) -> torch.Tensor:
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        latent = scheduler.step(bent(latent, int(timestep)), timestep, latent, **options).prev_sample
    return latent


@pytest.mark.parametrize("steps", [2, 7, 50])
def test_ddpm_equals_the_reference(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = iter(range(1, steps))
    from diffusers.schedulers import scheduling_ddpm

    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: noise(next(draws)))
    scheduler = DDPMScheduler(**REFERENCE, clip_sample=False, variance_type="fixed_small", prediction_type="epsilon")
    expected = drive(scheduler, steps, noise(0))
    assert next(draws, None) is None
    assert relative(samplers.ddpm(bent, noise(0), SCHEDULE, steps=steps, noise=noise), expected) < 1e-4


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 14, 15, 40])
@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("dpm-solver++", partial(DPMSolverMultistepScheduler, algorithm_type="dpmsolver++", solver_order=2)),
        ("ddim", partial(DPMSolverMultistepScheduler, algorithm_type="dpmsolver++", solver_order=1)),
        ("unipc", partial(UniPCMultistepScheduler, solver_order=2, solver_type="bh2")),
    ],
)
def test_solvers_equal_the_references(name: str, reference: Callable[..., Any], steps: int) -> None:
    """DDIM is the first-order DPM-Solver++ (its paper, section 4)."""
    scheduler = reference(**REFERENCE, final_sigmas_type="zero")
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == solver_timesteps(SCHEDULE, steps)
    expected = drive(scheduler, steps, noise(0))
    assert relative(SAMPLERS[name](bent, noise(0), SCHEDULE, steps=steps, noise=no_noise), expected) < 1e-4


def test_ddim_equals_the_reference_from_a_start_timestep() -> None:
    """Its scheduler steps by 1000 // steps whatever the spacing: 900, 800, ... 100 suits both."""
    scheduler = DDIMScheduler(**REFERENCE, clip_sample=False)
    scheduler.set_timesteps(10)
    latent = noise(0)
    for timestep in range(900, 0, -100):
        step = scheduler.step(bent(latent, timestep), timestep, latent)
        latent = step.prev_sample
    found = samplers.ddim(bent, noise(0), SCHEDULE, steps=9, start_t=900, noise=no_noise)
    assert relative(found, step.pred_original_sample) < 1e-4


MEAN, DEVIATION = 0.7, 1.3


def gaussian(latent: torch.Tensor, timestep: int) -> torch.Tensor:
    """The exact noise expectation where clean latents are normal with MEAN and DEVIATION."""
    kept = float(SCHEDULE.alphas_cumprod[timestep])
    variance = kept * DEVIATION**2 + 1 - kept
    return math.sqrt(1 - kept) * (latent - math.sqrt(kept) * MEAN) / variance


def exact(latent: torch.Tensor, start: int) -> torch.Tensor:
    """Where the probability flow of `gaussian` ends: as many deviations from the mean as where it starts."""
    kept = float(SCHEDULE.alphas_cumprod[start])
    return MEAN + DEVIATION * (latent - math.sqrt(kept) * MEAN) / math.sqrt(kept * DEVIATION**2 + 1 - kept)


@pytest.mark.parametrize("start", [None, 600])
@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_converge_to_the_exact_solution(name: str, start: int | None) -> None:
    latent = noise(0)
    expected = exact(latent, start or 999)

    def error(steps: int) -> float:
        found = SAMPLERS[name](gaussian, latent, SCHEDULE, steps=steps, start_t=start, noise=no_noise)
        return relative(found, expected)

    errors = [error(steps) for steps in (5, 20, 80, 320)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 6e-3


def test_second_order_solvers_need_fewer_steps() -> None:
    """Without the last jump to the clean latent, which all of them make alike."""
    latent, steps = noise(0), 20
    last = solver_timesteps(SCHEDULE, steps)[-1]
    kept = float(SCHEDULE.alphas_cumprod[last])
    spread = math.sqrt(kept * DEVIATION**2 + 1 - kept)
    arrived = math.sqrt(kept) * MEAN + spread * (exact(latent, 999) - MEAN) / DEVIATION
    expected = (arrived - math.sqrt(1 - kept) * gaussian(arrived, last)) / math.sqrt(kept)
    error = {
        name: relative(SAMPLERS[name](gaussian, latent, SCHEDULE, steps=steps, noise=no_noise), expected)
        for name in SOLVERS
    }
    assert error["dpm-solver++"] < error["ddim"] / 3
    assert error["unipc"] < error["dpm-solver++"]


@pytest.mark.parametrize("start", [None, 600])
def test_ddpm_converges_to_the_distribution(start: int | None) -> None:
    def wide(draw: int) -> torch.Tensor:
        return noise_batch([NoiseWindow(3)], draw, 64, 64)

    def moments(steps: int) -> tuple[float, float]:
        guide = MEAN + DEVIATION * wide(10_000)
        first = start_latent(guide, SCHEDULE, start, wide)
        found = samplers.ddpm(gaussian, first, SCHEDULE, steps=steps, start_t=start, noise=wide)
        return abs(float(found.mean()) - MEAN), abs(float(found.std()) - DEVIATION)

    count = 4 * 64 * 64
    mean, deviation = moments(150)
    assert mean < 4 * DEVIATION / math.sqrt(count)
    assert deviation < 4 * DEVIATION / math.sqrt(2 * count) + 0.01
    assert moments(4)[1] > 3 * deviation


def test_a_start_timestep_starts_from_the_noised_guide() -> None:
    guide = torch.full((1, 4, 6, 5), 2.0, dtype=torch.float64)
    assert torch.equal(start_latent(guide, SCHEDULE, None, noise), noise(0))
    kept = float(SCHEDULE.alphas_cumprod[400])
    expected = math.sqrt(kept) * guide + math.sqrt(1 - kept) * noise(0)
    torch.testing.assert_close(start_latent(guide, SCHEDULE, 400, noise), expected)
    # One step with the true noise leads back to the guide.
    for sampler in SAMPLERS.values():
        found = sampler(lambda *_: noise(0), expected, SCHEDULE, steps=1, start_t=400, noise=no_noise)
        torch.testing.assert_close(found, guide)


@pytest.mark.parametrize("name", SAMPLERS)
def test_impossible_requests_are_refused(name: str) -> None:
    sampler = partial(SAMPLERS[name], bent, noise(0), SCHEDULE, noise=noise)
    for steps in (0, -3, 1001):
        with pytest.raises(UsageError, match=f"{steps} steps cannot be taken"):
            sampler(steps=steps)
    with pytest.raises(UsageError, match="10 steps cannot be taken from timestep 5"):
        sampler(steps=10, start_t=5)
    with pytest.raises(UsageError, match="start timestep 1000 is not on the noise schedule"):
        sampler(steps=2, start_t=1000)
    with pytest.raises(UsageError, match="start timestep 0 is not on the noise schedule"):
        start_latent(noise(0), SCHEDULE, 0, noise)


TINY = DenoiserConfig(
    channels=(8, 16, 16),
    layers_per_block=1,
    attention_heads=(2, 2, 4),
    norm_groups=4,
    text_tokens=1,
    text_channels=8,
    map_channels=(4, 6, 8),
    adapter_blocks=1,
)
WINDOWS = [NoiseWindow(1), NoiseWindow(2, row=8), NoiseWindow(1, column=16)]


@pytest.fixture(scope="module")
def tiny() -> ConditionalDenoiser:
    torch.manual_seed(4)
    model = ConditionalDenoiser(TINY, 3, PublishedQuirks()).eval()
    for parameter in model.adapter.exits.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def sample(
    model: ConditionalDenoiser, name: str, pictures: slice = slice(None), steps: int = 5, start_t: int | None = None
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(8)
    guides = torch.randn(3, 4, 8, 16, generator=generator)[pictures]
    planes = torch.rand(3, 3, 64, 128, generator=generator)[pictures]

    def drawn(draw: int) -> torch.Tensor:
        return noise_batch(WINDOWS[pictures], draw, 8, 16)

    def denoise(latent: torch.Tensor, timestep: int) -> torch.Tensor:
        return model(latent, torch.full((len(latent),), timestep), guides, encoded)

    with torch.no_grad():
        encoded = model.encode_map(planes)
        first = start_latent(guides, SCHEDULE, start_t, drawn)
        return SAMPLERS[name](denoise, first, SCHEDULE, steps=steps, start_t=start_t, noise=drawn)


@pytest.mark.parametrize("start_t", [None, 500])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_batch_is_sampled_as_its_pictures_are(tiny: ConditionalDenoiser, name: str, start_t: int | None) -> None:
    batch = sample(tiny, name, start_t=start_t)
    singles = torch.cat([sample(tiny, name, slice(n, n + 1), start_t=start_t) for n in range(3)])
    assert relative(singles, batch) < 1e-4
    assert relative(batch[:1], batch[2:]) > 0.1


def test_bfloat16_autocast_stays_close(tiny: ConditionalDenoiser) -> None:
    plain = sample(tiny, "dpm-solver++", start_t=500)
    with torch.autocast("cpu", torch.bfloat16):
        cast = sample(tiny, "dpm-solver++", start_t=500)
    assert cast.dtype == torch.float32
    assert 0 < relative(cast, plain) < 0.05
