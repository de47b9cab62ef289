import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from magc_model.config import DiffusionConfig
from magc_model.diffusion.schedule import (
    add_noise,
    noise_schedule,
    solver_timesteps,
    spaced_timesteps,
    start_timestep,
)
from magc_model.errors import UsageError

SCHEDULE = noise_schedule(DiffusionConfig())


def test_schedule_is_stable_diffusions() -> None:
    theirs = DDPMScheduler(1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    torch.testing.assert_close(SCHEDULE.alphas_cumprod.float(), theirs.alphas_cumprod, rtol=2e-5, atol=0)
    assert SCHEDULE.last_timestep == 999
    # The two ends by hand: 1 - beta of the first step, and the value that is known of this schedule.
    assert float(SCHEDULE.alphas_cumprod[0]) == pytest.approx(1 - 0.00085, abs=1e-15)
    assert float(SCHEDULE.alphas_cumprod[-1]) == pytest.approx(0.0046600, abs=1e-6)


def test_noise_is_added_as_the_reference_does() -> None:
    theirs = DDPMScheduler(1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    latent, noise = torch.randn(2, 5, 4, 8, 6)
    timesteps = torch.tensor([0, 1, 321, 998, 999])
    found = add_noise(SCHEDULE, latent, noise, timesteps)
    torch.testing.assert_close(found, theirs.add_noise(latent, noise, timesteps), rtol=1e-5, atol=1e-5)
    assert add_noise(SCHEDULE, latent.bfloat16(), noise.bfloat16(), timesteps).dtype == torch.bfloat16


def test_the_papers_50_timesteps() -> None:
    theirs = DDPMScheduler(1000, timestep_spacing="linspace")
    for steps in (2, 10, 50, 1000):
        theirs.set_timesteps(steps)
        assert spaced_timesteps(SCHEDULE, steps) == theirs.timesteps.tolist()
    assert spaced_timesteps(SCHEDULE, 50)[:3] == [999, 979, 958]
    assert spaced_timesteps(SCHEDULE, 50) == [round(i * 999 / 49) for i in range(49, -1, -1)]


@given(data=st.data(), start=st.integers(1, 999))
def test_timesteps_fall_from_the_start_evenly(data: st.DataObject, start: int) -> None:
    steps = data.draw(st.integers(2, start + 1))
    timesteps = spaced_timesteps(SCHEDULE, steps, start)
    assert len(timesteps) == steps
    assert (timesteps[0], timesteps[-1]) == (start, 0)
    gaps = -np.diff(timesteps)
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 2
    steps = min(steps, start)
    timesteps = solver_timesteps(SCHEDULE, steps, start)
    assert len(timesteps) == steps
    assert timesteps[0] == start
    gaps = -np.diff([*timesteps, 0])
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 2


def test_a_single_step_is_at_the_start() -> None:
    assert spaced_timesteps(SCHEDULE, 1, 300) == solver_timesteps(SCHEDULE, 1, 300) == [300]


@pytest.mark.parametrize("steps", [-1, 0, 302])
def test_steps_that_do_not_fit_are_refused(steps: int) -> None:
    with pytest.raises(UsageError, match=f"{steps} steps cannot be taken from timestep 300: use 1 to 301"):
        spaced_timesteps(SCHEDULE, steps, 300)
    steps = min(steps, 301)  # a solver has no step at 0
    with pytest.raises(UsageError, match=f"{steps} steps cannot be taken from timestep 300: use 1 to 300"):
        solver_timesteps(SCHEDULE, steps, 300)


@pytest.mark.parametrize("start", [-1, 0, 1000])
def test_a_start_off_the_schedule_is_refused(start: int) -> None:
    for function in (lambda: start_timestep(SCHEDULE, start), lambda: solver_timesteps(SCHEDULE, 1, start)):
        with pytest.raises(UsageError, match=f"timestep {start} is not on the noise schedule: use one from 1 to 999"):
            function()
