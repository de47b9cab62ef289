"""The training loop of every stage.

    step number ─► batch, noise (functions of seed and step) ─► losses ─► gradients ─► clip ─► optimisers ─► average
                                                                              │
                                               not finite, or far above its best for long: stop, and say so

Nothing random depends on what was run before, so a run that goes on from a checkpoint does what it would have done.
"""

import contextlib
import functools
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
import PIL.Image
import torch
from accelerate import Accelerator
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from magc_data.atomic import atomic_file
from magc_model.config import StageConfig
from magc_model.data import Batch, TrainingBatches, load
from magc_model.errors import CheckpointError, TrainingError
from magc_model.train.options import Precision
from magc_model.train.run_directory import Checkpoint, RunDirectory

LOG_EVERY = 10
"""Steps between two lines of metrics.jsonl."""

AUXILIARY_LEARNING_RATE = 1e-3
"""Where the auxiliary parameters are the bounds of an entropy model's tables."""

AVERAGE_WARMUP = 10
"""The average forgets faster at first: after n steps its decay is at most (1 + n) / (10 + n)."""

_NOISE = 2
"""Stream of random numbers under the run's seed; the data loader has two of its own."""


class Losses(NamedTuple):
    """What one pass over a batch gives."""

    total: Float[Tensor, ""]
    """What is minimised and watched."""
    figures: dict[str, Float[Tensor, ""]]
    """What is reported, without gradients."""
    auxiliary: Float[Tensor, ""] | None = None
    """What the auxiliary parameters minimise; nothing else depends on it."""


class Validation(NamedTuple):
    """What the held-out samples say."""

    figures: dict[str, float]
    picture: NDArray[np.uint8]
    """[height, width, 3]."""


Report = Callable[[dict[str, float]], None]


@runtime_checkable
class Stage(Protocol):
    """What is trained."""

    @property
    def network(self) -> nn.Module:
        """`network(batch)` gives `Losses`; what requires a gradient is trained, the rest is frozen."""
        ...

    @property
    def auxiliary(self) -> frozenset[str]:
        """Parameters that `Losses.auxiliary` moves, with an optimiser of their own, outside of the gradient's norm."""
        ...

    @property
    def auxiliary_learning_rate(self) -> float:
        """Of that optimiser; it stays as it is."""
        ...

    def validate(self) -> Validation:
        """Measure the network on held-out samples; is called in evaluation mode and without gradients."""
        ...

    def recompute_activations(self) -> None:
        """Compute activations twice instead of keeping them."""
        ...

    def compile(self) -> None:
        """Compile the parts in which the time goes."""
        ...


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How a run is driven, besides its `StageConfig`."""

    seed: int
    precision: Precision = Precision.FP32
    accumulate: int = 1
    compile: bool = False
    workers: int = 0
    checkpoint_every: int = 500
    validate_every: int = 500


# --- the parts of a step ---------------------------------------------------------------------------------------------


def learning_rate(step: int, config: StageConfig) -> float:
    """Linear warm-up to the peak, then a cosine to the final share of it; `step` counts from 0."""
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    if step < config.warmup_steps:
        return config.learning_rate * warmup
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    share = config.final_learning_rate
    return config.learning_rate * (share + (1 - share) * (1 + math.cos(math.pi * min(1.0, progress))) / 2)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the noise that one process draws in one step."""
    return int(np.random.SeedSequence((seed, _NOISE, step, rank)).generate_state(1, np.uint64)[0])


def pieces(batch: Batch, count: int) -> Iterator[Batch]:
    """A batch in equal pieces."""
    size = len(batch.class_ids) // count
    for start in range(0, size * count, size):
        yield _each(batch, functools.partial(torch.narrow, dim=0, start=start, length=size))


def on_device(batch: Batch, device: torch.device) -> Batch:
    """A batch where the networks are."""
    return _each(batch, lambda tensor: tensor.to(device, non_blocking=True))


def _each(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    images, latents = (None if each is None else change(each) for each in (batch.images, batch.latents))
    return Batch(images, latents, change(batch.class_ids), change(batch.has_map), batch.step)


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """What networks compute in."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision is Precision.BF16)


def recompute_activations(*modules: nn.Module) -> None:
    """Compute the activations inside of these modules twice instead of keeping them."""
    for module in modules:
        module.forward = functools.partial(checkpoint, module.forward, use_reentrant=False)


class Average:
    """Exponential average of weights, and of the statistics that belong to them; what is counted is copied."""

    def __init__(self, state: dict[str, Tensor], decay: float) -> None:
        self._state, self._decay = state, decay
        self.values = {name: each.detach().clone() for name, each in state.items()} if decay else {}
        self._averaged = [name for name, each in self.values.items() if each.is_floating_point()]

    def update(self, step: int) -> None:
        """Take in the state after a step, which counts from 1."""
        if not self.values:
            return
        decay = min(self._decay, (1 + step) / (AVERAGE_WARMUP + step))
        averages, now = ([each[name].detach() for name in self._averaged] for each in (self.values, self._state))
        torch._foreach_lerp_(averages, now, 1 - decay)
        overwrite(self.values, {name: self._state[name] for name in self.values.keys() - set(self._averaged)})

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The average stands in the network's place."""
        own = {name: self._state[name].detach().clone() for name in self.values}
        overwrite(self._state, self.values)
        try:
            yield
        finally:
            overwrite(self._state, own)


def overwrite(state: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Copy values into a state's tensors by name."""
    with torch.no_grad():
        for name, value in values.items():
            state[name].copy_(value)


class Watch:
    """Notices a loss that runs away."""

    SMOOTHING = 0.98
    FACTOR = 5.0
    """How far above its best a smoothed loss may be."""
    PATIENCE = 100
    """For how many steps in a row."""
    SETTLED = 0.87
    """Weight of the losses seen, of 1, from which on (some 100 steps) there is a best: one lucky batch makes none."""

    def __init__(self) -> None:
        self.state = {"smoothed": 0.0, "weight": 0.0, "best": math.inf, "bad_steps": 0.0}

    def see(self, loss: float) -> None:
        """Take in the loss of a step."""
        state = self.state
        state["smoothed"] = self.SMOOTHING * state["smoothed"] + (1 - self.SMOOTHING) * loss
        state["weight"] = self.SMOOTHING * state["weight"] + (1 - self.SMOOTHING)
        best = min(state["best"], self.smoothed) if state["weight"] > self.SETTLED else self.smoothed
        state["best"] = best
        state["bad_steps"] = state["bad_steps"] + 1 if self.smoothed > self.FACTOR * best else 0.0

    @property
    def smoothed(self) -> float:
        """The loss of late."""
        return self.state["smoothed"] / self.state["weight"]

    @property
    def is_sound(self) -> bool:
        """Whether the loss is where it should be: nothing else is worth a checkpoint."""
        return self.state["bad_steps"] == 0

    @property
    def has_diverged(self) -> bool:
        """Whether it has been too high for too long."""
        return self.state["bad_steps"] >= self.PATIENCE


INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def interruption() -> Iterator[threading.Event]:
    """Lets a step end before Ctrl-C or a termination does what it should; the second one acts at once."""
    came = threading.Event()
    before: dict[signal.Signals, Any] = {}

    def restore() -> None:
        while before:
            signal.signal(*before.popitem())

    def note(_signal: int, _frame: FrameType | None) -> None:
        came.set()
        restore()

    # Only there can signals be handled; a caller in another thread gets the usual behaviour.
    if threading.current_thread() is threading.main_thread():
        before.update({each: signal.signal(each, note) for each in INTERRUPTIONS})
    try:
        yield came
    finally:
        restore()


@contextlib.contextmanager
def _memory_advice() -> Iterator[None]:
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        reason = ". ".join(" ".join(str(error).split()).split(". ")[:2])  # what comes then is about fragmentation
        raise TrainingError(
            f"the device has too little memory ({reason}): use --accumulate, --gradient-checkpointing or a smaller "
            "--batch-size, with another --out"
        ) from None


def _statistics(network: nn.Module) -> dict[str, Tensor]:
    """Buffers of what is in training mode: statistics that move with the weights."""
    return {
        f"{prefix}.{name}".removeprefix("."): buffer
        for prefix, module in network.named_modules()
        if module.training
        for name, buffer in module.named_buffers(recurse=False)
    }


# --- the loop --------------------------------------------------------------------------------------------------------


class Trainer:
    """One run of one stage, from its newest checkpoint or from the start to its last step."""

    def __init__(
        self, stage: Stage, directory: RunDirectory, training: StageConfig, pace: Pace, accelerator: Accelerator
    ) -> None:
        self._stage, self._directory, self._training, self._pace = stage, directory, training, pace
        self._accelerator = accelerator
        stage.network.to(accelerator.device).train()
        self._weights = {name: each for name, each in stage.network.named_parameters() if each.requires_grad}
        main = {name: each for name, each in self._weights.items() if name not in stage.auxiliary}
        auxiliary = {name: each for name, each in self._weights.items() if name in stage.auxiliary}
        self._main = list(main.values())
        self._parameters = {"main": main, "auxiliary": auxiliary}
        self._optimizers: dict[str, torch.optim.Optimizer] = {
            "main": torch.optim.AdamW(self._main, weight_decay=training.weight_decay, fused=True)
        }
        if auxiliary:
            rate = stage.auxiliary_learning_rate
            self._optimizers["auxiliary"] = torch.optim.Adam(auxiliary.values(), rate, fused=True)
        self._state = {**self._weights, **_statistics(stage.network)}
        self._average = Average(self._state, training.ema_decay)
        self._watch = Watch()
        self._step = 0

    @property
    def step(self) -> int:
        """Steps done."""
        return self._step

    @property
    def weight_count(self) -> int:
        """Weights that are trained."""
        return sum(each.numel() for each in self._weights.values())

    def resume(self) -> None:
        """Go to where the newest checkpoint is; a fresh run stays at the start.

        Raises:
            CheckpointError: it is damaged, or of another network.
        """
        newest = self._directory.newest_checkpoint()
        if newest is None:
            return
        state = self._state
        averages = set(self._average.values)
        if newest.model.keys() != state.keys() or set(newest.ema) != averages:
            wrong = sorted((newest.model.keys() ^ state.keys()) | (set(newest.ema) ^ averages))
            raise CheckpointError(
                f"the checkpoint of step {newest.step} in {self._directory.path} is of another network (see "
                f"'{wrong[0]}'): go on with the version of magc that wrote it, or choose another --out"
            )
        overwrite(state, newest.model)
        overwrite(self._average.values, newest.ema)
        for key, value in newest.optimizer.items():
            optimizer, kind, name = key.split("/")
            parameter = self._parameters[optimizer][name]
            # In the weight's memory format, which the fused optimisers take for granted.
            like = parameter.detach() if value.shape == parameter.shape else value.to(parameter.device)
            self._optimizers[optimizer].state[parameter][kind] = torch.empty_like(like).copy_(value)
        self._watch.state = dict(newest.watch)
        self._step = newest.step

    def run(self, batches: TrainingBatches) -> None:
        """Do all the steps that are left; the network then holds the averaged weights.

        Raises:
            TrainingError: the loss is not finite any more, it diverges, or the device's memory is too small.
            KeyboardInterrupt: the run was interrupted; a checkpoint is written.
        """
        steps = range(self._step, self._training.steps)
        with _memory_advice(), interruption() as came, self._reports() as report, self._bar() as bar:
            for batch in load(batches, steps, self._pace.workers):
                figures = self.advance(batch)
                interrupted = self._agree(came.is_set())
                bar.set_postfix(loss=f"{self._watch.smoothed:.4g}", refresh=False)
                bar.update()
                is_last = self._step == self._training.steps
                if self._step % LOG_EVERY == 0 or is_last:
                    report(figures)
                if self._pace.validate_every and (self._step % self._pace.validate_every == 0 or is_last):
                    report(self._validate())
                if is_last and not self._watch.is_sound:
                    raise self._failure(f"the loss ends more than {self._above_best}")
                if self._step % self._pace.checkpoint_every == 0 or is_last or interrupted:
                    self._save()
                if interrupted and not is_last:
                    raise KeyboardInterrupt
        overwrite(self._state, self._average.values)

    @functools.cached_property
    def _prepared(self) -> nn.Module:
        """The network as it is called: compiled if wanted, and with gradients shared between processes."""
        if self._pace.compile:
            self._stage.compile()
        return cast("nn.Module", self._accelerator.prepare_model(self._stage.network))

    def advance(self, batch: Batch) -> dict[str, float]:
        """Do one step, with its batch; figures of it.

        Raises:
            TrainingError: the loss is not finite any more, or it diverges.
        """
        accelerator, pace, network = self._accelerator, self._pace, self._prepared
        torch.manual_seed(step_seed(pace.seed, self._step, accelerator.process_index))
        rate = learning_rate(self._step, self._training)
        for group in self._optimizers["main"].param_groups:
            group["lr"] = rate
        sums: dict[str, Tensor] = {}
        total = torch.zeros((), device=accelerator.device)
        for number, piece in enumerate(pieces(on_device(batch, accelerator.device), pace.accumulate), start=1):
            is_last = number == pace.accumulate
            with contextlib.nullcontext() if is_last else accelerator.no_sync(network):
                with autocast(pace.precision, accelerator.device):
                    losses = network(piece)
                goal = losses.total if losses.auxiliary is None else losses.total + losses.auxiliary
                accelerator.backward(goal / pace.accumulate)
            total += losses.total.detach() / pace.accumulate
            for name, value in losses.figures.items():
                sums[name] = sums.get(name, torch.zeros_like(total)) + value / pace.accumulate
        norm = float(nn.utils.clip_grad_norm_(self._main, self._training.gradient_clip))
        loss = float(accelerator.reduce(total, reduction="mean"))
        # Gradients are the same in all processes and so is the loss, so that all of them stop or none.
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._failure(f"the loss is no finite number any more in step {self._step + 1}")
        for optimizer in self._optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._step += 1
        self._average.update(self._step)
        self._watch.see(loss)
        if self._watch.has_diverged:
            raise self._failure(f"the loss has been more than {self._above_best} for {Watch.PATIENCE} steps")
        figures = {name: float(value) for name, value in sums.items()}
        return {"loss": loss, **figures, "learning_rate": rate, "gradient_norm": norm}

    @property
    def _above_best(self) -> str:
        return f"{Watch.FACTOR:g} times its best ({self._watch.state['best']:.4g})"

    def _failure(self, what: str) -> TrainingError:
        kept = self._directory.checkpoints()
        way_out = (
            f"the last good checkpoint, {kept[0]}, is kept: run the command again with a lower --learning-rate to go "
            "on from it"
            if kept
            else "there is no checkpoint yet: run the command again with a lower --learning-rate"
        )
        return TrainingError(f"{what}; {way_out}")

    def _agree(self, interrupted: bool) -> bool:
        """Whether any process was interrupted."""
        if self._accelerator.num_processes == 1:
            return interrupted
        flag = torch.tensor(float(interrupted), device=self._accelerator.device)
        return bool(self._accelerator.reduce(flag, reduction="sum") > 0)

    def _validate(self) -> dict[str, float]:
        """Figures of the held-out samples with the averaged weights, and a picture of them; by one process."""
        figures: dict[str, float] = {}
        if self._accelerator.is_main_process:
            with self._average.in_place(), torch.no_grad():
                self._stage.network.eval()
                figures, picture = self._stage.validate()
                self._stage.network.train()
            path = self._directory.path / "validation" / f"step-{self._step:06d}.png"
            with atomic_file(path) as stream:
                PIL.Image.fromarray(picture).save(stream, "PNG")
        self._accelerator.wait_for_everyone()
        return {f"validation/{name}": value for name, value in figures.items()}

    def _save(self) -> None:
        if self._accelerator.is_main_process and self._watch.is_sound:
            optimizer = {
                f"{name}/{kind}/{parameter}": torch.as_tensor(value)
                for name, each in self._optimizers.items()
                for parameter, weight in self._parameters[name].items()
                for kind, value in each.state[weight].items()
            }
            self._directory.write_checkpoint(
                Checkpoint(
                    self._step,
                    {name: each.detach() for name, each in self._state.items()},
                    self._average.values,
                    optimizer,
                    self._watch.state,
                )
            )
        self._accelerator.wait_for_everyone()

    @contextlib.contextmanager
    def _reports(self) -> Iterator[Report]:
        """What writes figures to metrics.jsonl and TensorBoard, where nothing is left of steps to be done again."""
        if not self._accelerator.is_main_process:
            yield lambda _: None
            return
        from torch.utils.tensorboard import SummaryWriter

        self._directory.cut_metrics(self._step)
        writer = SummaryWriter(str(self._directory.path / "tensorboard"), purge_step=self._step + 1)
        start = time.perf_counter()

        def report(figures: dict[str, float]) -> None:
            self._directory.measure(self._step, figures | {"seconds": round(time.perf_counter() - start, 3)})
            for name, value in figures.items():
                writer.add_scalar(name, value, self._step)

        try:
            yield report
        finally:
            writer.close()

    def _bar(self) -> "tqdm[Any]":
        # A log file gets a line every ten seconds, a terminal a smooth bar.
        return tqdm(
            total=self._training.steps,
            initial=self._step,
            desc=self._directory.path.name,
            unit="step",
            mininterval=0.1 if sys.stderr.isatty() else 10.0,
            disable=not self._accelerator.is_main_process,
            file=sys.stderr,
            dynamic_ncols=True,
        )
