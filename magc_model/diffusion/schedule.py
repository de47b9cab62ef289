"""How much noise a latent holds at each timestep, and which timesteps a sampler visits."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from magc_model.config import DiffusionConfig
from magc_model.errors import UsageError
from magc_model.shapes import Latent, Timesteps


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """A noisy latent at timestep t is sqrt(alphas_cumprod[t]) latent + sqrt(1 - alphas_cumprod[t]) noise."""

    alphas_cumprod: Float64[Tensor, " timesteps"]
    """Share of the latent's variance at each timestep."""

    @property
    def last_timestep(self) -> int:
        """The noisiest timestep."""
        return len(self.alphas_cumprod) - 1


def noise_schedule(config: DiffusionConfig) -> NoiseSchedule:
    """The schedule of latent diffusion (`scaled_linear`): betas are squares of evenly spaced numbers."""
    roots = torch.linspace(
        config.beta_start**0.5, config.beta_end**0.5, config.train_timesteps, dtype=torch.float64, device="cpu"
    )
    return NoiseSchedule(torch.cumprod(1 - roots**2, dim=0))


def add_noise(schedule: NoiseSchedule, latent: Latent, noise: Latent, timesteps: Timesteps) -> Latent:
    """Latents as they are at each one's timestep."""
    alphas = schedule.alphas_cumprod.sqrt().to(latent)[timesteps]
    sigmas = (1 - schedule.alphas_cumprod).sqrt().to(latent)[timesteps]
    return alphas.view(-1, 1, 1, 1) * latent + sigmas.view(-1, 1, 1, 1) * noise


def start_timestep(schedule: NoiseSchedule, start_t: int | None) -> int:
    """The timestep that sampling starts from: the noisiest unless told otherwise.

    Raises:
        UsageError: `start_t` is not on the schedule.
    """
    last = schedule.last_timestep
    if start_t is not None and not 1 <= start_t <= last:
        raise UsageError(f"start timestep {start_t} is not on the noise schedule: use one from 1 to {last}")
    return last if start_t is None else start_t


def spaced_timesteps(schedule: NoiseSchedule, steps: int, start_t: int | None = None) -> list[int]:
    """`steps` evenly spaced timesteps from `start_t` (the noisiest by default) down to and with 0.

    The paper's 50 of 1000 (the respacing of Improved DDPM, arXiv 2102.09672); a single step is at `start_t`.

    Raises:
        UsageError: there are not as many timesteps, or `start_t` is none of them.
    """
    start = start_timestep(schedule, start_t)
    if not 1 <= steps <= start + 1:
        raise UsageError(_too_many(steps, start, start + 1))
    if steps == 1:
        return [start]
    return [round(index * start / (steps - 1)) for index in reversed(range(steps))]


def solver_timesteps(schedule: NoiseSchedule, steps: int, start_t: int | None = None) -> list[int]:
    """`steps` evenly spaced timesteps from `start_t` down, without 0: the last step leads to the clean latent itself.

    Few steps are too precious to spend one on timestep 0, where there is hardly any noise left (arXiv 2305.08891).

    Raises:
        UsageError: there are not as many timesteps, or `start_t` is none of them.
    """
    start = start_timestep(schedule, start_t)
    if not 1 <= steps <= start:
        raise UsageError(_too_many(steps, start, start))
    return [round(index * start / steps) for index in range(steps, 0, -1)]


def _too_many(steps: int, start: int, most: int) -> str:
    return f"{steps} steps cannot be taken from timestep {start}: use 1 to {most}"
