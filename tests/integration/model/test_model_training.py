"""`magc-train`: three stages end to end, killed and continued, and everything it refuses."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import tiny_training
import tiny_world
import torch
from accelerate.state import AcceleratorState, GradientState
from huggingface_hub import constants

from magc_data.errors import DatasetError
from magc_model.config import PRESETS, AutoencoderConfig
from magc_model.data import ImageFolder
from magc_model.errors import BaseModelError, DataError
from magc_model.model import MagcModel, build_autoencoder
from magc_model.nets.map_planes import map_planes
from magc_model.train import job, loop, stages
from magc_model.train.job import divide, unet_weights
from magc_model.train_cli import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SCRIPT = Path(tiny_training.__file__)
STAGES = ("vae", "stage1", "stage2")


class Run(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class Chain(NamedTuple):
    """A run of each stage."""

    data: Path
    folder: Path

    def run(self, stage: str) -> Path:
        return self.folder / stage

    def arguments(self, stage: str, out: Path, *more: str) -> list[str]:
        """The command of a stage, into another folder."""
        before = {"vae": (), "stage1": ("vae",), "stage2": ("stage1",)}[stage]
        start = [*("--start-from", str(self.run(before[0])))] if before else ["--preset", tiny_training.NAME]
        return [stage, "--data", str(self.data), "--out", str(out), *start, *more]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the killed process, whose weights are compared to the last bit
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def _smallest_preset() -> Iterator[None]:
    PRESETS[tiny_training.NAME] = tiny_training.PRESET
    yield
    del PRESETS[tiny_training.NAME]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """All three stages, trained as a user does."""
    folder = tmp_path_factory.mktemp("chain")
    data = folder / "data"
    tiny_world.run(tiny_world.World(folder / "world", tiny_world.FOUR_TILES).config(data))
    chain = Chain(data, folder)
    for stage in STAGES:
        with pytest.raises(SystemExit) as ended:
            main(chain.arguments(stage, chain.run(stage), "--checkpoint-every", "2", "--validate-every", "3"))
        assert ended.value.code == 0
    return chain


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    def run(arguments: list[str]) -> Run:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        return Run(ended.value.code, *capfd.readouterr())

    return run


def weights(run: Path, stage: str) -> dict[str, torch.Tensor]:
    name = {"vae": "autoencoder", "stage1": "latent_compression", "stage2": "denoiser"}[stage]
    return safetensors.torch.load_file(run / "model" / f"{name}.safetensors")


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def measured(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# --- what a run leaves -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_leaves_figures_pictures_checkpoints_and_a_model(chain: Chain, stage: str) -> None:
    run = chain.run(stage)
    lines = measured(run)
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert [line["step"] for line in lines if "loss" in line] == [6]
    assert [line["step"] for line in lines if "validation/psnr" in line] == [3, 6]
    assert [each.name for each in sorted((run / "checkpoints").iterdir())] == [f"step-0000000{n}" for n in (2, 4, 6)]
    assert list((run / "tensorboard").glob("events.*"))
    with PIL.Image.open(run / "validation" / "step-000006.png") as picture:
        columns = {"vae": 3, "stage1": 3, "stage2": 4}[stage]
        assert picture.size == (columns * 260, 260)
    model = MagcModel.from_pretrained(run / "model")
    parts = [model.autoencoder, model.latent_compression, model.denoiser]
    assert [each is not None for each in parts] == [True, stage != "vae", stage == "stage2"]
    assert (model.tables is not None) is (stage != "vae")
    config = json.loads((run / "config.json").read_text())
    assert config["stage"] == stage
    assert config["data"]["samples"] == 3


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_holds_only_what_is_trained(chain: Chain, stage: str) -> None:
    names = safetensors.torch.load_file(chain.run(stage) / "checkpoints" / "step-00000006" / "model.safetensors").keys()
    parts = {name.removeprefix("model.").split(".")[0] for name in names}
    assert parts == {"vae": {"autoencoder"}, "stage1": {"latent_compression"}}.get(
        stage, {"latent_compression", "denoiser"}
    )
    if stage == "stage2":
        assert all(".synthesis." in name for name in names if "latent_compression" in name)


def test_a_finished_run_says_so_and_does_nothing(chain: Chain, command: Callable[..., Run]) -> None:
    before = tiny_world.tree_digests(chain.run("vae"))
    again = command(chain.arguments("vae", chain.run("vae"), "--checkpoint-every", "2", "--validate-every", "3"))
    assert again.code == 0
    assert "finished already: nothing to do" in again.out
    changed = {name for name, digest in tiny_world.tree_digests(chain.run("vae")).items() if before.get(name) != digest}
    assert not changed


def test_vae_scales_its_latents_to_a_deviation_of_one(chain: Chain) -> None:
    autoencoder = MagcModel.from_pretrained(chain.run("vae") / "model").autoencoder
    assert autoencoder.scaling_factor != 1
    corners = [sample.image[:64, :64] for sample in (divide(chain.data).training[n] for n in range(3))]
    with torch.no_grad():
        latents = autoencoder.encode(stages.image_tensor(np.stack(corners)))
    assert float(latents.std()) == pytest.approx(1, abs=1e-3)


def test_the_latents_scale_is_of_samples_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(10):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8) // (number + 1)
        PIL.Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    source = ImageFolder(tmp_path)
    torch.manual_seed(0)
    autoencoder = build_autoencoder(tiny_training.MODEL).eval()
    encode, sizes = autoencoder.encode, []
    monkeypatch.setattr(autoencoder, "encode", lambda images: sizes.append(len(images)) or encode(images))
    monkeypatch.setattr(job, "LATENT_SAMPLES", 4)
    monkeypatch.setitem(job._IMAGES_AT_ONCE, "cpu", 3)
    found = job._latent_deviation(autoencoder, source, 64, torch.device("cpu"))
    assert sizes == [3, 1]
    images = stages.image_tensor(np.stack([source[number].image for number in (0, 3, 6, 9)]))
    with torch.no_grad():
        assert found == pytest.approx(float(encode(images).std(correction=0)), rel=1e-5)


def test_averaged_weights_come_with_averaged_statistics(chain: Chain) -> None:
    checkpoint = chain.run("stage1") / "checkpoints" / "step-00000006"
    own, average = (safetensors.torch.load_file(checkpoint / f"{each}.safetensors") for each in ("model", "ema"))
    prefix = "model.latent_compression."
    delivered = weights(chain.run("stage1"), "stage1")
    statistics = [name for name in delivered if "running_" in name]
    assert statistics
    for name, value in delivered.items():
        assert torch.equal(value, average[prefix + name])
    assert not any(torch.equal(delivered[name], own[prefix + name]) for name in statistics)
    counts = [name for name in delivered if name.endswith("num_batches_tracked")]
    assert {int(delivered[name]) for name in counts} == {6}


def test_statistics_are_averaged_as_the_weights_are() -> None:
    state = {"running_mean": torch.zeros(2), "num_batches_tracked": torch.tensor(0)}
    average = loop.Average(state, 0.9)
    expected = 0.0
    for step in range(1, 30):
        state["running_mean"].fill_(float(step))
        state["num_batches_tracked"] += 1
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    with average.in_place():
        assert state["running_mean"].tolist() == pytest.approx([expected] * 2, rel=1e-5)
    assert state["running_mean"].tolist() == [29.0, 29.0]
    assert int(average.values["num_batches_tracked"]) == 29


def test_training_learns(
    chain: Chain, tmp_path: Path, command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    more = ("--steps", "30", "--batch-size", "3", "--learning-rate", "0.01", "--validate-every", "0")
    assert command(chain.arguments("vae", tmp_path / "run", *more)).code == 0
    losses = [line["loss"] for line in measured(tmp_path / "run") if "loss" in line]
    assert losses[-1] < 0.6 * losses[0]


def test_raising_the_steps_continues_a_finished_run(chain: Chain, tmp_path: Path, command: Callable[..., Run]) -> None:
    shutil.copytree(chain.run("vae"), tmp_path / "run")
    ended = command(chain.arguments("vae", tmp_path / "run", "--steps", "8"))
    assert ended.code == 0
    assert "from step 6" in ended.err
    assert measured(tmp_path / "run")[-1]["step"] == 8
    assert not same(weights(tmp_path / "run", "vae"), weights(chain.run("vae"), "vae"))
    fewer = command(chain.arguments("vae", tmp_path / "run", "--steps", "4"))
    assert fewer.code == 2
    assert "--steps 8, not 4" in fewer.err


# --- stage 2 keeps the bitrate ---------------------------------------------------------------------------------------


def test_stage_2_changes_no_symbol_and_no_bit(chain: Chain) -> None:
    before, after = (MagcModel.from_pretrained(chain.run(stage) / "model") for stage in ("stage1", "stage2"))
    source = divide(chain.data).training
    images = stages.image_tensor(np.stack([source[n].image for n in range(3)]))
    ids = torch.from_numpy(np.stack([source[n].semantic_map for n in range(3)]))
    planes = map_planes(ids, before.config.map)
    with torch.no_grad():
        first, second = (
            model.latent_compression(model.autoencoder.encode(images), planes) for model in (before, after)
        )
        analyses = [
            model.latent_compression.analyse(
                model.autoencoder.encode(images), model.latent_compression.map_pyramid(planes)
            )
            for model in (before, after)
        ]
    assert torch.equal(first.symbol_bits, second.symbol_bits)
    assert torch.equal(first.hyper_bits, second.hyper_bits)
    assert all(torch.equal(*pair) for pair in zip(*analyses, strict=True))
    assert before.entropy_fingerprint() == after.entropy_fingerprint()
    assert not torch.equal(first.latent_hat, second.latent_hat)  # the synthesis is trained
    names = before.latent_compression.state_dict().keys()
    moved = [
        name
        for name in names
        if not torch.equal(before.latent_compression.state_dict()[name], after.latent_compression.state_dict()[name])
    ]
    assert moved
    assert all(name.startswith("synthesis.") and "running" not in name for name in moved)


# --- killed, interrupted, diverged -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_and_continued_ends_in_the_same_weights(
    chain: Chain, tmp_path: Path, command: Callable[..., Run]
) -> None:
    """A kill at any moment, here wherever a real one happens to strike."""
    more = ("--steps", "16", "--checkpoint-every", "2", "--validate-every", "7")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *chain.arguments("stage1", tmp_path / "killed", *more)],
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not (tmp_path / "killed" / "checkpoints" / "step-00000004").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model").exists()
    continued = command(chain.arguments("stage1", tmp_path / "killed", *more))
    assert continued.code == 0
    assert "from step " in continued.err
    assert command(chain.arguments("stage1", tmp_path / "whole", *more)).code == 0
    assert same(weights(tmp_path / "killed", "stage1"), weights(tmp_path / "whole", "stage1"))
    for name in ("model", "ema", "optimizer"):
        last = Path("checkpoints", "step-00000016", f"{name}.safetensors")
        assert (tmp_path / "killed" / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()

    def without_time(run: str) -> list[dict[str, Any]]:
        return [{name: value for name, value in line.items() if name != "seconds"} for line in measured(tmp_path / run)]

    assert without_time("killed") == without_time("whole")


@pytest.mark.parametrize("stage", STAGES)
def test_a_termination_writes_a_checkpoint_from_which_the_same_command_continues(
    chain: Chain, tmp_path: Path, command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    see = loop.Watch.see
    seen = []

    def see_and_terminate(self: loop.Watch, loss: float) -> None:
        see(self, loss)
        seen.append(loss)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    more = ("--checkpoint-every", "2", "--validate-every", "3")
    with monkeypatch.context() as patched:
        patched.setattr(loop.Watch, "see", see_and_terminate)
        ended = command(chain.arguments(stage, tmp_path / "run", *more))
    assert ended.code == 130
    assert ended.err.splitlines()[-1].startswith("magc-train: interrupted: the newest checkpoint is kept")
    assert (tmp_path / "run" / "checkpoints" / "step-00000003").is_dir()
    unfinished = command(["stage1", "--data", str(chain.data), "--start-from", str(tmp_path / "run"), "--out", "x"])
    assert "has not ended yet" in unfinished.err
    assert command(chain.arguments(stage, tmp_path / "run", *more)).code == 0
    assert same(weights(tmp_path / "run", stage), weights(chain.run(stage), stage))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(
    chain: Chain, tmp_path: Path, command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = stages.CompressionNetwork.forward
    steps = []

    def spoilt(self: stages.CompressionNetwork, batch: Any) -> loop.Losses:
        losses = forward(self, batch)
        steps.append(1)
        return losses._replace(total=losses.total * float("nan")) if len(steps) == 4 else losses

    more = ("--checkpoint-every", "2")
    with monkeypatch.context() as patched:
        patched.setattr(stages.CompressionNetwork, "forward", spoilt)
        ended = command(chain.arguments("stage1", tmp_path / "run", *more))
    assert ended.code == 1
    sentence = ended.err.splitlines()[-1]
    good = tmp_path / "run" / "checkpoints" / "step-00000002"
    assert "the loss is no finite number any more in step 4" in sentence
    assert str(good) in sentence
    assert "Traceback" not in ended.err
    assert loop.Checkpoint is not None
    kept = safetensors.torch.load_file(good / "model.safetensors")
    assert all(bool(torch.isfinite(each).all()) for each in kept.values())
    gentler = command(chain.arguments("stage1", tmp_path / "run", *more, "--learning-rate", "0.001"))
    assert gentler.code == 0
    assert "from step 2" in gentler.err


def test_a_run_that_ends_far_above_its_best_is_not_finished(
    chain: Chain, tmp_path: Path, command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop.Watch, "SMOOTHING", 0.0)
    monkeypatch.setattr(loop.Watch, "FACTOR", 0.5)  # any loss is too high
    ended = command(chain.arguments("vae", tmp_path / "run", "--steps", "2", "--validate-every", "0"))
    assert ended.code == 1
    assert "the loss ends more than 0.5 times its best" in ended.err.splitlines()[-1]
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "finished.json").exists()


def test_too_little_memory_names_what_saves_some(
    chain: Chain, tmp_path: Path, command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: stages.AutoencoderNetwork, batch: Any) -> loop.Losses:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has some more to say.")

    monkeypatch.setattr(stages.AutoencoderNetwork, "forward", forward)
    ended = command(chain.arguments("vae", tmp_path / "run"))
    assert ended.code == 1
    assert ended.err.splitlines()[-1] == (
        "magc-train: the device has too little memory (CUDA out of memory. Tried to allocate 2.50 GiB): use "
        "--accumulate, --gradient-checkpointing or a smaller --batch-size, with another --out"
    )


def test_a_lucky_first_batch_is_no_best() -> None:
    watch = loop.Watch()
    for loss in [0.01, *[1.0] * 400]:
        watch.see(loss)
        assert watch.is_sound
    for _ in range(loop.Watch.PATIENCE + 10):
        watch.see(100.0)
    assert watch.has_diverged


def test_a_loss_that_runs_away_is_noticed() -> None:
    watch = loop.Watch()
    for _ in range(200):
        watch.see(1.0)
    assert watch.is_sound
    for _ in range(loop.Watch.PATIENCE):
        watch.see(100.0)
    assert not watch.is_sound
    assert not watch.has_diverged  # it took a few steps to show
    for _ in range(10):
        watch.see(100.0)
    assert watch.has_diverged


def test_a_few_bad_steps_are_forgiven() -> None:
    watch = loop.Watch()
    for number in range(2000):
        watch.see(30.0 if number % 300 == 299 else 1.0)
        assert not watch.has_diverged


# --- the ways to train -----------------------------------------------------------------------------------------------


WAYS = {
    "bf16": ("stage2", ("--precision", "bf16")),
    "no-latent-cache": ("stage1", ("--no-latent-cache",)),
    "workers": ("stage1", ("--workers", "1")),
    "no-average": ("stage1", ("--ema-decay", "0")),
    "rgb-map": ("vae", ("--map-input", "rgb", "--no-map-in-entropy")),
    "no-map": ("vae", ("--no-map",)),
    "small-batch-in-pieces": ("stage1", ("--accumulate", "2")),
}


QUICK_WAYS = ("bf16", "no-latent-cache", "no-map")


@pytest.mark.parametrize(
    "way", [each if each in QUICK_WAYS else pytest.param(each, marks=pytest.mark.slow) for each in WAYS]
)
def test_each_way_to_train_runs(chain: Chain, tmp_path: Path, command: Callable[..., Run], way: str) -> None:
    stage, more = WAYS[way]
    ended = command(chain.arguments(stage, tmp_path / "run", "--steps", "2", *more))
    assert ended.code == 0, ended.err
    assert weights(tmp_path / "run", stage)


@pytest.mark.slow
def test_workers_change_nothing(chain: Chain, tmp_path: Path, command: Callable[..., Run]) -> None:
    """Nor does the validation, nor how often there are checkpoints."""
    for workers, every in (("0", "1"), ("1", "100")):
        more = ("--steps", "3", "--workers", workers, "--validate-every", every, "--checkpoint-every", every)
        assert command(chain.arguments("stage1", tmp_path / workers, *more)).code == 0
    assert same(weights(tmp_path / "0", "stage1"), weights(tmp_path / "1", "stage1"))


@pytest.mark.parametrize("stage", STAGES)
def test_recomputed_activations_change_nothing(
    chain: Chain, tmp_path: Path, command: Callable[..., Run], stage: str
) -> None:
    more = ("--steps", "2", "--validate-every", "0")
    assert command(chain.arguments(stage, tmp_path / "plain", *more)).code == 0
    assert command(chain.arguments(stage, tmp_path / "saving", *more, "--gradient-checkpointing")).code == 0
    plain, saving = (weights(tmp_path / each, stage) for each in ("plain", "saving"))
    assert all(torch.allclose(plain[name], saving[name], atol=1e-6) for name in plain)


COMPILED = """
import functools, json, sys, torch
torch.compile = functools.partial(torch.compile, backend="eager")  # traced as for any other, and run at once
import tiny_training
from torch._dynamo.utils import counters
for arguments in json.loads(sys.argv[1]):
    torch._dynamo.reset()
    counters.clear()
    sys.argv[1:] = arguments
    try:
        tiny_training.main()
    except SystemExit as ended:
        assert ended.code == 0, ended.code
    print("traced:", counters["frames"]["ok"], "of", counters["frames"]["total"])
"""


@pytest.mark.slow
def test_compiled_networks_train_alike(chain: Chain, tmp_path: Path, command: Callable[..., Run]) -> None:
    more = ("--steps", "2", "--validate-every", "0")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [chain.arguments(stage, tmp_path / "compiled" / stage, *more, "--compile") for stage in STAGES]
    # A program of its own for all stages: the shape checks of the tests cannot be traced.
    done = subprocess.run(
        [sys.executable, "-c", COMPILED, json.dumps(arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    traced = re.findall(r"^traced: (\d+) of (\d+)$", done.stdout, re.MULTILINE)
    assert len(traced) == len(STAGES), done.stdout
    for stage, (ok, total) in zip(STAGES, traced, strict=True):
        assert 0 < int(ok) == int(total), (stage, done.stdout)
        assert command(chain.arguments(stage, tmp_path / "plain" / stage, *more)).code == 0
        compiled, plain = (weights(tmp_path / each / stage, stage) for each in ("compiled", "plain"))
        assert all(torch.allclose(compiled[name], plain[name], atol=1e-5) for name in plain), stage


def test_a_batch_in_pieces_gives_the_same_gradients(
    chain: Chain, tmp_path: Path, command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = torch.nn.utils.clip_grad_norm_
    gradients: list[torch.Tensor] = []

    def see(parameters: list[torch.nn.Parameter], largest: float) -> torch.Tensor:
        gradients.append(torch.cat([each.grad.flatten() for each in parameters]))
        return clip(parameters, largest)

    monkeypatch.setattr(loop.nn.utils, "clip_grad_norm_", see)
    for pieces in ("1", "2"):
        more = ("--steps", "1", "--batch-size", "4", "--accumulate", pieces, "--validate-every", "0")
        assert command(chain.arguments("vae", tmp_path / pieces, *more)).code == 0
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-5)


def test_a_gained_model_goes_through_both_stages(chain: Chain, tmp_path: Path, command: Callable[..., Run]) -> None:
    more = ("--rate", "gained", *("--lambda", "0.1"), *("--lambda", "0.5"), "--steps", "2")
    assert command(chain.arguments("stage1", tmp_path / "s1", *more)).code == 0
    assert {"validation/bpp_0.1", "validation/bpp_0.5"} <= measured(tmp_path / "s1")[-1].keys()
    assert MagcModel.from_pretrained(tmp_path / "s1" / "model").config.rate.lambdas == (0.1, 0.5)
    second = ["stage2", "--data", str(chain.data), "--start-from", str(tmp_path / "s1"), "--steps", "2"]
    assert command([*second, "--out", str(tmp_path / "s2")]).code == 0
    other = command([*second, "--out", str(tmp_path / "other"), "--lambda", "0.1", "--lambda", "0.6"])
    assert other.code == 2
    assert "--lambda is 0.1, 0.6, but the latent compression was trained with 0.1, 0.5" in other.err


def test_pictures_without_maps(chain: Chain, tmp_path: Path, command: Callable[..., Run]) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (64 + 64 * number, 128, 3), dtype=np.uint8)
        PIL.Image.fromarray(noise).save(pictures / f"{number}.png")
    arguments = ["vae", "--preset", tiny_training.NAME, "--data", str(pictures), "--out", str(tmp_path / "vae")]
    refused = command(arguments)
    assert refused.code == 1
    assert "have no maps" in refused.err
    assert not (tmp_path / "vae").exists()
    assert command([*arguments, "--no-map-in-decoder", "--steps", "2"]).code == 0
    # What reads the map comes later, and takes the classes of the dataset that it is trained on.
    first = ["stage1", "--data", str(chain.data), "--start-from", str(tmp_path / "vae"), "--steps", "2"]
    assert command([*first, "--out", str(tmp_path / "s1")]).code == 0
    assert MagcModel.from_pretrained(tmp_path / "s1" / "model").config.map.classes


def test_a_dataset_without_splits_is_used_as_a_whole(chain: Chain) -> None:
    parts = divide(chain.data)
    assert [len(parts.training), len(parts.held_out)] == [3, 1]
    assert not set(parts.training.keys) & set(parts.held_out.keys)


def with_splits(data: Path, folder: Path, *names: str | None) -> list[str]:
    """A copy of the dataset whose samples are in these splits; their keys."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    shutil.copytree(data, folder)
    table = pq.read_table(folder / "index.parquet")
    place = table.column_names.index("split")
    field = table.schema.field("split")
    pq.write_table(table.set_column(place, field, pa.array(names, field.type)), folder / "index.parquet")
    return list(table["key"].to_pylist())


@pytest.mark.parametrize(
    ("names", "training", "held_out"),
    [
        (("val", "train", "test", "val"), [1], [0, 3]),
        (("train", None, "val", "train"), [0, 3], [2]),
        (("test", "train", "train", None), [1], [2]),  # without val: the last one to train on
    ],
)
def test_splits_are_used_where_there_are_any(
    chain: Chain, tmp_path: Path, names: tuple[str | None, ...], training: list[int], held_out: list[int]
) -> None:
    keys = with_splits(chain.data, tmp_path / "split", *names)
    split = divide(tmp_path / "split")
    assert split.training.keys == [keys[number] for number in training]
    assert split.held_out.keys == [keys[number] for number in held_out]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("test", "val", "test", None), "splits test, val: expected one named train"),
        (("test", "train", "test", None), "holds 1 sample to train on"),
    ],
)
def test_other_splits_are_never_trained_on(
    chain: Chain, tmp_path: Path, names: tuple[str | None, ...], said: str
) -> None:
    with_splits(chain.data, tmp_path / "split", *names)
    with pytest.raises(DataError, match=said):
        divide(tmp_path / "split")


def test_an_index_that_cannot_say_its_splits_is_refused(chain: Chain, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    shutil.copytree(chain.data, tmp_path / "old")
    path = tmp_path / "old" / "index.parquet"
    pq.write_table(pq.read_table(path).drop_columns("split"), path)
    with pytest.raises(DatasetError, match="lacks the column 'split'"):
        divide(tmp_path / "old")


# --- a start or a base model from elsewhere --------------------------------------------------------------------------


def test_a_start_may_be_a_repository_of_the_hub(
    chain: Chain, tmp_path: Path, command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--someone--vae"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(chain.run("vae") / "model", repository / "snapshots" / ("0" * 40))
    first = ["stage1", "--data", str(chain.data), "--steps", "1", "--validate-every", "0"]
    assert command([*first, "--start-from", "someone/vae", "--out", str(tmp_path / "s1")]).code == 0
    assert command([*first, "--start-from", "someone/other", "--out", str(tmp_path / "s2")]).code == 1
    # A folder of that name comes first.
    shutil.copytree(chain.run("stage1"), tmp_path / "someone" / "vae")
    monkeypatch.chdir(tmp_path)
    other = command([*first, "--start-from", "someone/vae", "--out", str(tmp_path / "s3")])
    assert "is a model with autoencoder and latent compression" in other.err


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base model with a tiny autoencoder of Stable Diffusion's kind; the preset `smallest-sd` stands on it."""
    folder = tmp_path / "base"
    config = replace(
        tiny_training.MODEL,
        preset="smallest-sd",
        base_model=str(folder),
        map=replace(tiny_training.MODEL.map, in_decoder=False),
        autoencoder=AutoencoderConfig(channels=(32, 32, 32, 32), blocks_per_level=1),
    )
    monkeypatch.setitem(PRESETS, "smallest-sd", tiny_training.PRESET._replace(model=config))
    torch.manual_seed(0)
    build_autoencoder(config).network.save_pretrained(folder / "vae")
    denoiser = config.denoiser
    documents = {
        "unet/config.json": {
            "attention_head_dim": denoiser.attention_heads,
            "cross_attention_dim": denoiser.text_channels,
            "use_linear_projection": True,
            "norm_num_groups": denoiser.norm_groups,
        },
        "scheduler/scheduler_config.json": {
            "beta_start": config.diffusion.beta_start,
            "beta_end": config.diffusion.beta_end,
            "beta_schedule": "scaled_linear",
        },
    }
    for name, document in documents.items():
        (folder / name).parent.mkdir()
        (folder / name).write_text(json.dumps(document))
    safetensors.torch.save_file({"a": torch.zeros(1)}, folder / "unet" / "diffusion_pytorch_model.safetensors")
    return folder


def test_a_run_is_of_the_base_models_weights(
    chain: Chain, base: Path, tmp_path: Path, command: Callable[..., Run]
) -> None:
    first = ["stage1", "--preset", "smallest-sd", "--data", str(chain.data), "--out", str(tmp_path / "out")]
    first += ["--steps", "1", "--validate-every", "0", "--no-latent-cache"]
    assert command(first).code == 0
    base.rename(tmp_path / "moved")
    assert command([*first, "--base-model", str(tmp_path / "moved")]).code == 0
    path = tmp_path / "moved" / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["encoder.conv_in.bias"] += 1
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    other = command([*first, "--base-model", str(tmp_path / "moved")])
    assert other.code == 2
    assert "is a run with weights in --base-model " in other.err


def test_the_weights_of_stage_2_are_the_unets_as_it_is_read(base: Path) -> None:
    before = job._base_fingerprint("stage2", base)
    (base / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"a variant")
    (base / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"of stage 1")
    assert job._base_fingerprint("stage2", base) == before
    (base / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"another")
    assert job._base_fingerprint("stage2", base) != before


@pytest.mark.parametrize("what", ["nothing to train", "unreadable"])
def test_what_the_base_model_cannot_give_is_said_before_there_is_a_run(
    chain: Chain, base: Path, tmp_path: Path, command: Callable[..., Run], what: str
) -> None:
    if what == "unreadable":
        (base / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"nonsense")
    arguments = ["vae", "--preset", "smallest-sd", "--data", str(chain.data), "--out", str(tmp_path / "out")]
    ended = command(arguments)
    assert ended.code in (1, 2)
    assert {"nothing to train": "nothing to train", "unreadable": "cannot be read"}[what] in ended.err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


HOSTILE = (
    '{"weight_map": {"a": "../../secret.safetensors"}}',
    '{"weight_map": {"a": "/etc/passwd"}}',
    '{"weight_map": {"a": "shard.bin"}}',
    '{"weight_map": {"a": 1, "b": "x.safetensors"}}',
    '{"weight_map": {"a": ["x"]}}',
    '{"weight_map": ["a"]}',
    '["weight_map"]',
    "1",
    "{",
    "[" * 100_000,
)


@pytest.mark.parametrize("content", HOSTILE)
def test_an_index_of_shards_names_files_beside_it_or_is_refused(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "base" / "unet"
    folder.mkdir(parents=True)
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "secret.safetensors")
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(BaseModelError, match="cannot be read"):
        unet_weights(tmp_path / "base")


def test_weights_in_shards_are_read(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    places = {"a": "diffusion_pytorch_model-00001-of-00002.safetensors", "b": "some.other-name_2.safetensors"}
    for number, (name, place) in enumerate(places.items()):
        safetensors.torch.save_file({name: torch.full((1,), number)}, tmp_path / "unet" / place)
    index = tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert {name: int(each) for name, each in unet_weights(tmp_path).items()} == {"a": 0, "b": 1}


# --- started by `accelerate launch` ----------------------------------------------------------------------------------


@pytest.fixture
def _fresh_accelerator() -> Iterator[None]:
    def forget() -> None:
        AcceleratorState._reset_state()
        GradientState._reset_state()

    forget()
    yield
    forget()


OVERRIDES = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("4", "use --accumulate"),
    "ACCELERATE_DYNAMO_BACKEND": ("INDUCTOR", "use --compile"),
    "ACCELERATE_USE_DEEPSPEED": ("true", "torchrun"),
    "ACCELERATE_USE_FSDP": ("true", "torchrun"),
}


@pytest.mark.usefixtures("_fresh_accelerator")
@pytest.mark.parametrize("variable", OVERRIDES)
@pytest.mark.slow
def test_what_accelerate_launch_sets_is_refused_if_it_would_change_the_run(
    chain: Chain, tmp_path: Path, command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    value, way_out = OVERRIDES[variable]
    monkeypatch.setenv(variable, value)
    ended = command(chain.arguments("vae", tmp_path / "run"))
    assert ended.code == 2
    assert f"the environment variable {variable} is {value}" in ended.err
    assert way_out in ended.err
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("_fresh_accelerator")
def test_the_precision_of_accelerate_launch_changes_nothing(
    chain: Chain, tmp_path: Path, command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    more = ("--checkpoint-every", "2", "--validate-every", "3")
    assert command(chain.arguments("vae", tmp_path / "run", *more)).code == 0
    assert same(weights(tmp_path / "run", "vae"), weights(chain.run("vae"), "vae"))


# --- what is refused -------------------------------------------------------------------------------------------------


def _other_classes(chain: Chain, folder: Path) -> list[str]:
    world = tiny_world.World(folder / "world", tiny_world.FOUR_TILES)
    tiny_world.run(world.config(folder / "other", scheme="basic"))
    return ["stage1", "--data", str(folder / "other"), "--start-from", str(chain.run("vae"))]


def _pictures(folder: Path, *sides: tuple[int, int]) -> Path:
    (folder / "pictures").mkdir()
    for number, (width, height) in enumerate(sides):
        PIL.Image.new("RGB", (width, height)).save(folder / "pictures" / f"{number}.png")
    return folder / "pictures"


def _with_damaged(chain: Chain, folder: Path, name: str, content: bytes) -> Path:
    model = folder / "model"
    shutil.copytree(chain.run("vae") / "model", model)
    (model / name).write_bytes(content)
    return model


def _pickled(folder: Path) -> Path:
    (folder / "pickled").mkdir()
    torch.save({"weight": torch.zeros(1)}, folder / "pickled" / "model.pt")
    return folder / "pickled"


def _on(chain: Chain, stage: str, *more: str | Path) -> list[str]:
    return [stage, "--data", str(chain.data), *map(str, more)]


SMALLEST = ("--preset", tiny_training.NAME)
REFUSED: dict[str, tuple[int, Callable[[Chain, Path], list[str]], str]] = {
    "unknown preset": (2, lambda c, _: _on(c, "vae", "--preset", "huge"), "preset 'huge' is unknown"),
    "crop": (2, lambda c, _: _on(c, "vae", *SMALLEST, "--crop-px", "100"), "--crop-px is 100.*multiple of 64"),
    "crop too large": (1, lambda c, _: _on(c, "vae", *SMALLEST, "--crop-px", "320"), "is 256x256 pixels.*crop of 320"),
    "picture too small": (
        1,
        lambda c, f: ["vae", "--data", str(_pictures(f, (64, 64), (128, 60))), *SMALLEST, "--no-map"],
        "is 128x60 pixels",
    ),
    "one picture": (
        1,
        lambda c, f: ["vae", "--data", str(_pictures(f, (64, 64))), *SMALLEST, "--no-map"],
        "holds 1 sample",
    ),
    "no data": (1, lambda c, f: ["vae", "--data", str(f / "nothing"), *SMALLEST], "is no folder"),
    "pieces too small": (
        2,
        lambda c, _: _on(c, "stage1", "--start-from", c.run("vae"), "--batch-size", "8", "--accumulate", "2"),
        "takes its statistics from each piece of a batch, and 4 samples would give poor ones",
    ),
    "latents of several sizes": (
        1,
        lambda c, f: [
            *("stage1", "--data", str(_pictures(f, (64, 64), (128, 128), (64, 64))), "--no-map"),
            *("--start-from", str(c.run("vae"))),
        ],
        "found .*64x64.* give --no-latent-cache",
    ),
    "a checkpoint of others": (
        2,
        lambda c, f: _on(c, "stage1", "--start-from", _pickled(f) / "model.pt"),
        "model.pt is a file: .* pickles are never read, but `magc convert-checkpoint`",
    ),
    "not a multiple": (2, lambda c, _: _on(c, "vae", *SMALLEST, "--accumulate", "3"), "--accumulate is 3"),
    "steps": (2, lambda c, _: _on(c, "vae", *SMALLEST, "--steps", "0"), "--steps is 0: expected 1 to"),
    "half a step": (2, lambda c, _: _on(c, "vae", *SMALLEST, "--steps", "1.5"), "whole number"),
    "not a rate": (2, lambda c, _: _on(c, "vae", *SMALLEST, "--learning-rate", "nan"), "--learning-rate is nan"),
    "lambda": (2, lambda c, _: _on(c, "vae", *SMALLEST, "--lambda", "-1"), "lambda is -1.0: expected positive"),
    "two lambdas": (2, lambda c, _: _on(c, "vae", *SMALLEST, "--lambda", "1", "--lambda", "2"), "use --rate gained"),
    "cuda": (2, lambda c, _: _on(c, "vae", *SMALLEST, "--device", "cuda"), "finds no CUDA device"),
    "contradiction": (
        2,
        lambda c, _: _on(c, "vae", *SMALLEST, "--no-map", "--map-in-decoder"),
        "--no-map and --map-in-decoder contradict",
    ),
    "vae from something": (2, lambda c, _: _on(c, "vae", "--start-from", c.run("vae")), "vae is the first stage"),
    "no start": (2, lambda c, _: _on(c, "stage1", *SMALLEST), "give --start-from"),
    "no start 2": (2, lambda c, _: _on(c, "stage2", "--preset", "paper"), "give --start-from"),
    "missing start": (1, lambda c, f: _on(c, "stage1", "--start-from", f / "gone"), "there is no model directory"),
    "start too early": (
        2,
        lambda c, _: _on(c, "stage2", "--start-from", c.run("vae")),
        "is a model with autoencoder: ",
    ),
    "start too late": (2, lambda c, _: _on(c, "stage1", "--start-from", c.run("stage2")), "autoencoder and denoiser"),
    "another preset": (
        2,
        lambda c, _: _on(c, "stage1", "--start-from", c.run("vae"), "--preset", "paper"),
        "is of the preset smallest",
    ),
    "no base model": (
        1,
        lambda c, f: _on(c, "stage1", "--preset", "paper", "--base-model", f / "gone"),
        "the base model .*gone is no folder",
    ),
    "needless base model": (
        2,
        lambda c, _: _on(c, "stage1", "--start-from", c.run("vae"), "--base-model", "a/b"),
        "stands on no base model",
    ),
    "another map decoder": (
        2,
        lambda c, _: _on(c, "stage2", "--start-from", c.run("stage1"), "--no-map-in-transform"),
        "--map-in-transform is False, but the latent compression was trained with True",
    ),
    "another map input": (
        2,
        lambda c, _: _on(c, "stage1", "--start-from", c.run("vae"), "--map-input", "rgb", "--no-map-in-entropy"),
        "--map-input is rgb, but the autoencoder was trained with classes",
    ),
    "another class table": (1, _other_classes, "the dataset has .* where the model was trained with"),
    "damaged start": (
        1,
        lambda c, f: _on(c, "stage1", "--start-from", _with_damaged(c, f, "autoencoder.safetensors", b"x" * 100)),
        "is damaged or no safetensors file",
    ),
    "foreign start": (
        1,
        lambda c, f: _on(c, "stage1", "--start-from", _with_damaged(c, f, "config.json", b'{"a": 1}')),
        "is not of a MAGC model",
    ),
    "pickled start": (
        1,
        lambda c, f: _on(c, "stage1", "--start-from", _pickled(f)),
        "is a pickle, which is never read",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_in_one_sentence(
    chain: Chain, tmp_path: Path, command: Callable[..., Run], case: str
) -> None:
    code, arguments, sentence = REFUSED[case]
    out = tmp_path / "out"
    ended = command([*arguments(chain, tmp_path), "--out", str(out)])
    said = ended.err.splitlines()
    assert ended.code == code, ended.err
    assert re.search(sentence, said[-1]), said
    assert said[-1].startswith("magc-train: ")
    assert "Traceback" not in ended.err
    assert not out.exists()


OTHER_OPTIONS = {
    "seed": (("--seed", "1"), "--seed 0, not 1"),
    "learning rate": (("--learning-rate", "0.1"), "--learning-rate 0.002, not 0.1"),
    "batch": (("--batch-size", "4"), "--batch-size 2, not 4"),
    "map": (("--no-map-in-diffusion",), "--map-in-diffusion true, not false"),
    "precision": (("--precision", "bf16"), "--precision fp32, not bf16"),
    "lambda": (("--lambda", "0.5"), "--lambda 0.39, not 0.5"),
}


@pytest.mark.parametrize("case", OTHER_OPTIONS)
def test_a_run_of_other_options_is_named_by_the_first_that_differs(
    chain: Chain, command: Callable[..., Run], case: str
) -> None:
    more, words = OTHER_OPTIONS[case]
    config = (chain.run("vae") / "config.json").read_bytes()
    ended = command(chain.arguments("vae", chain.run("vae"), *more))
    assert ended.code == 2
    assert f"is a run with {words}" in ended.err
    assert (chain.run("vae") / "config.json").read_bytes() == config


def test_a_run_of_another_stage_and_a_folder_of_other_things_are_left_alone(
    chain: Chain, tmp_path: Path, command: Callable[..., Run]
) -> None:
    other = command(chain.arguments("stage1", chain.run("vae")))
    assert other.code == 2
    assert "stage vae, not stage1" in other.err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    foreign = command(chain.arguments("vae", tmp_path / "mine"))
    assert foreign.code == 2
    assert "is not empty and no training run" in foreign.err
    assert [each.name for each in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_serves(
    chain: Chain, tmp_path: Path, command: Callable[..., Run]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(chain.run("stage1"), run)
    shutil.rmtree(run / "model")
    (run / "finished.json").unlink()
    newest = run / "checkpoints" / "step-00000006"
    content = bytearray((newest / "ema.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "ema.safetensors").write_bytes(content)
    damaged = command(chain.arguments("stage1", run))
    assert damaged.code == 1
    assert f"the checkpoint {newest} is damaged" in damaged.err
    assert "delete that folder" in damaged.err
    shutil.rmtree(newest)
    assert command(chain.arguments("stage1", run)).code == 0
    assert same(weights(run, "stage1"), weights(chain.run("stage1"), "stage1"))


def test_help_imports_no_torch() -> None:
    program = (
        "import sys\nfrom magc_model.train_cli import main\n"
        "try: main(['stage1', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "--crop-px" in done.stdout
