"""Samplers: from a noisy latent to a clean one, as pure functions over one denoiser contract.

`denoise(latent, timestep)` gives the noise in a latent; `noise(draw)` gives standard normal numbers of the latent's
shape: draw 0 is the start's (`start_latent`), draw i what the i-th step of an ancestral sampler adds. The same draws
give the same picture. Symbols are the papers': a latent is alpha x0 + sigma epsilon, lambda is log(alpha / sigma).
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import MappingProxyType
from typing import NamedTuple, Protocol

from magc_model.diffusion.schedule import NoiseSchedule, solver_timesteps, spaced_timesteps, start_timestep
from magc_model.shapes import Latent

Denoise = Callable[[Latent, int], Latent]
"""(noisy latent, timestep) -> the noise in it."""

Noise = Callable[[int], Latent]
"""Draw number -> standard normal noise."""


class Sampler(Protocol):
    """What every function of `SAMPLERS` is."""

    def __call__(
        self,
        denoise: Denoise,
        latent: Latent,
        schedule: NoiseSchedule,
        *,
        steps: int,
        start_t: int | None = None,
        noise: Noise,
    ) -> Latent:
        """The clean latent behind `latent`, which holds the noise of `start_t` (of the noisiest timestep if none).

        Raises:
            UsageError: `steps` do not fit between `start_t` and 0, or `start_t` is not on the schedule.
        """
        ...


def start_latent(guide: Latent, schedule: NoiseSchedule, start_t: int | None, noise: Noise) -> Latent:
    """Where a sampler starts: the guide with the noise of `start_t` added, or pure noise where `start_t` is none.

    Raises:
        UsageError: `start_t` is not on the schedule.
    """
    drawn = noise(0)
    if start_t is None:
        return drawn
    level = _level(schedule, start_timestep(schedule, start_t))
    return level.alpha * guide + level.sigma * drawn


def ddpm(
    denoise: Denoise,
    latent: Latent,
    schedule: NoiseSchedule,
    *,
    steps: int,
    start_t: int | None = None,
    noise: Noise,
) -> Latent:
    """Ancestral sampling (Ho et al. 2020, algorithm 2) over spaced timesteps; the paper's sampler with 50 steps.

    The variance is the posterior's ("fixed small"); the clean latent is not clipped.
    """
    timesteps = spaced_timesteps(schedule, steps, start_t)
    for step, (timestep, here, there) in enumerate(_path(schedule, timesteps), start=1):
        clean = _clean(latent, denoise(latent, timestep), here)
        kept = (here.alpha / there.alpha) ** 2
        to_clean = there.alpha * (1 - kept) / here.sigma**2
        to_latent = math.sqrt(kept) * (there.sigma / here.sigma) ** 2
        latent = to_clean * clean + to_latent * latent
        if there != _CLEAN:
            latent = latent + there.sigma / here.sigma * math.sqrt(1 - kept) * noise(step)
    return latent


def ddim(
    denoise: Denoise,
    latent: Latent,
    schedule: NoiseSchedule,
    *,
    steps: int,
    start_t: int | None = None,
    noise: Noise,
) -> Latent:
    """Deterministic DDIM (Song et al. 2021, equation 12 with eta 0)."""
    del noise
    for timestep, here, there in _path(schedule, solver_timesteps(schedule, steps, start_t)):
        latent = _first_order(latent, _clean(latent, denoise(latent, timestep), here), here, there)
    return latent


def dpm_solver_pp(
    denoise: Denoise,
    latent: Latent,
    schedule: NoiseSchedule,
    *,
    steps: int,
    start_t: int | None = None,
    noise: Noise,
) -> Latent:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2); first order at both ends."""
    del noise
    before: _Evaluation | None = None
    for timestep, here, there in _path(schedule, solver_timesteps(schedule, steps, start_t)):
        clean = _clean(latent, denoise(latent, timestep), here)
        slope = 0.0 if before is None or there == _CLEAN else _log_step(here, there) / _log_step(before.level, here) / 2
        target = clean if before is None else clean + slope * (clean - before.clean)
        latent = _first_order(latent, target, here, there)
        before = _Evaluation(here, clean)
    return latent


def unipc(
    denoise: Denoise,
    latent: Latent,
    schedule: NoiseSchedule,
    *,
    steps: int,
    start_t: int | None = None,
    noise: Noise,
) -> Latent:
    """UniPC of order 2, data prediction, B(h) = exp(h) - 1 (Zhao et al. 2023, arXiv 2302.04867, algorithms 7 and 8).

    Each prediction is corrected by the next step's evaluation, at no further call of the denoiser.
    """
    del noise
    before: _Evaluation | None = None
    now: _Evaluation | None = None
    origin = latent
    for timestep, here, there in _path(schedule, solver_timesteps(schedule, steps, start_t)):
        arrived = _Evaluation(here, _clean(latent, denoise(latent, timestep), here))
        if now is not None:
            latent = _unipc_correct(origin, before, now, arrived)
        origin, before, now = latent, now, arrived
        latent = _unipc_predict(origin, before, now, there)
    return latent


SAMPLERS: MappingProxyType[str, Sampler] = MappingProxyType(
    {"ddpm": ddpm, "ddim": ddim, "dpm-solver++": dpm_solver_pp, "unipc": unipc}
)


class _Level(NamedTuple):
    """Noise level of a timestep."""

    alpha: float
    sigma: float


_CLEAN = _Level(1.0, 0.0)


class _Evaluation(NamedTuple):
    """The clean latent as the denoiser saw it at a noise level."""

    level: _Level
    clean: Latent


def _level(schedule: NoiseSchedule, timestep: int) -> _Level:
    alpha_squared = float(schedule.alphas_cumprod[timestep])
    return _Level(math.sqrt(alpha_squared), math.sqrt(1 - alpha_squared))


def _path(schedule: NoiseSchedule, timesteps: list[int]) -> Iterator[tuple[int, _Level, _Level]]:
    """Each timestep with its noise level and the next one's; the last leads to the clean latent."""
    levels = [_level(schedule, timestep) for timestep in timesteps]
    return ((timestep, *step) for timestep, step in zip(timesteps, pairwise([*levels, _CLEAN]), strict=True))


def _clean(latent: Latent, noise: Latent, level: _Level) -> Latent:
    """The clean latent, if `noise` is the noise in `latent`."""
    return (latent - level.sigma * noise) / level.alpha


def _log_step(here: _Level, there: _Level) -> float:
    """h: step in lambda, positive towards less noise; infinite to the clean latent."""
    if there == _CLEAN:
        return math.inf
    return math.log(there.alpha / there.sigma) - math.log(here.alpha / here.sigma)


def _first_order(latent: Latent, clean: Latent, here: _Level, there: _Level) -> Latent:
    """The exact step where the prediction of the clean latent does not change on the way."""
    return there.sigma / here.sigma * latent - there.alpha * math.expm1(-_log_step(here, there)) * clean


def _unipc_predict(origin: Latent, before: _Evaluation | None, now: _Evaluation, there: _Level) -> Latent:
    """UniP: order 2 from the second step on, order 1 to the clean latent."""
    latent = _first_order(origin, now.clean, now.level, there)
    if before is None or there == _CLEAN:
        return latent
    step = _log_step(now.level, there)
    change = (before.clean - now.clean) / (_log_step(now.level, before.level) / step)
    return latent - there.alpha * math.expm1(-step) * 0.5 * change


def _unipc_correct(origin: Latent, before: _Evaluation | None, now: _Evaluation, arrived: _Evaluation) -> Latent:
    """UniC: the step to `arrived` once more, knowing what the denoiser saw there."""
    there = arrived.level
    step = _log_step(now.level, there)
    latent = _first_order(origin, now.clean, now.level, there)
    growth = math.expm1(-step)
    change = arrived.clean - now.clean
    if before is None:
        return latent - there.alpha * growth * 0.5 * change
    # The two weights of the paper's linear system, whose matrix is [[1, 1], [ratio, 1]].
    ratio = _log_step(now.level, before.level) / step
    first_moment = growth / -step - 1
    second_moment = first_moment / -step - 0.5
    total, weighted = first_moment / growth, 2 * second_moment / growth
    weight_before = (total - weighted) / (1 - ratio)
    correction = weight_before * (before.clean - now.clean) / ratio + (total - weight_before) * change
    return latent - there.alpha * growth * correction
