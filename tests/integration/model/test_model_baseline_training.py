"""`magc-train baseline`: codecs, fine-tunes and map adapters end to end, and everything it refuses."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import tiny_baselines
import tiny_world
import torch

from magc_data.dataset import MagcDataset
from magc_model.baselines import stored
from magc_model.baselines.config import BASELINE_PRESETS
from magc_model.evaluate.codecs import learned
from magc_model.evaluate.codecs.registry import CodecSpec
from magc_model.train_cli import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Run(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


RUNS = {
    "base": ("--architecture", "mbt2018-mean"),
    "labels": ("--architecture", "vq-vae"),
    "hific": ("--start-from", "{base}", "--finetune", "hific"),
    "ms-illm": ("--start-from", "{base}", "--finetune", "ms-illm", "--labels", "{labels}"),
    "map": ("--start-from", "{base}", "--map"),
    "hific-map": ("--start-from", "{hific}", "--map", "--map-dropout", "0.3"),
}
"""In the order they are trained in."""

FINE_TUNES = ("hific", "ms-illm", "map", "hific-map")
OFTEN = ("--checkpoint-every", "2", "--validate-every", "3")


class Trained(NamedTuple):
    """A run of each kind."""

    data: Path
    folder: Path
    said: dict[str, str]

    def arguments(self, name: str, out: Path) -> list[str]:
        runs = {each: str(self.folder / each) for each in RUNS}
        options = [each.format(**runs) for each in RUNS[name]]
        preset = [] if "--start-from" in options else ["--preset", tiny_baselines.NAME]
        return ["baseline", "--data", str(self.data), "--out", str(out), *preset, *options, *OFTEN]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def _smallest_preset() -> Iterator[None]:
    tiny_baselines.need_compressai()
    BASELINE_PRESETS[tiny_baselines.NAME] = tiny_baselines.PRESET
    yield
    del BASELINE_PRESETS[tiny_baselines.NAME]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Everything that can be trained, as a user does."""
    folder = tmp_path_factory.mktemp("baselines")
    data = folder / "data"
    tiny_world.run(tiny_world.World(folder / "world", tiny_world.FOUR_TILES).config(data))
    runs = Trained(data, folder, {})
    with pytest.MonkeyPatch.context() as patch:
        for name in RUNS:
            said: list[str] = []
            patch.setattr("magc_model.train_cli._say", said.append)
            with pytest.raises(SystemExit) as ended:
                main(runs.arguments(name, folder / name))
            assert ended.value.code == 0
            runs.said[name] = "\n".join(said)
    return runs


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    def run(arguments: list[str]) -> Run:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        return Run(ended.value.code, *capfd.readouterr())

    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "model" / "model.safetensors")


def checkpoint(run: Path, step: int) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


def codec(run: Path) -> learned.LearnedCodec:
    return learned.open(CodecSpec("baseline", str(run), {}, f"baseline:{run}"))


@pytest.mark.parametrize("name", FINE_TUNES)
@pytest.mark.slow
def test_fine_tunes_leave_the_bitstreams_as_they_were(trained: Trained, name: str) -> None:
    before, after = weights(trained.folder / "base"), weights(trained.folder / name)
    body = {each for each in before if each.startswith("body.")}
    decoder = before.keys() - body
    assert body
    assert decoder
    assert all(torch.equal(before[each], after[each]) for each in body)
    assert all(not torch.equal(before[each], after[each]) for each in decoder if each.endswith("weight"))
    sample = MagcDataset(trained.data)[0]
    base, tuned = codec(trained.folder / "base"), codec(trained.folder / name)
    data = base.encode(sample.image, None, base.rates[0]).data
    assert tuned.encode(sample.image, None, tuned.rates[0]).data == data
    decoded = tuned.decode(data, sample.semantic_map)
    assert not np.array_equal(decoded, base.decode(data, None))


def test_maps_reach_the_decoder_and_their_dropout_is_remembered(trained: Trained) -> None:
    for name in ("map", "hific-map"):
        exits = {each: value for each, value in weights(trained.folder / name).items() if ".exits." in each}
        assert len(exits) == 8
        assert all(value.abs().sum() > 0 for each, value in exits.items() if each.endswith("weight"))
    with_dropout, without = codec(trained.folder / "hific-map"), codec(trained.folder / "map")
    assert (with_dropout.label, without.label) == ("HiFiC + map", "Mean-scale hyperprior + map")
    sample = MagcDataset(trained.data)[0]
    data = with_dropout.encode(sample.image, None, with_dropout.rates[0]).data
    assert with_dropout.decode(data, None).shape == sample.image.shape


@pytest.mark.parametrize("name", ["hific", "ms-illm", "hific-map"])
def test_both_sides_of_a_gan_move(trained: Trained, name: str) -> None:
    before, after = (checkpoint(trained.folder / name, step) for step in (2, 4))
    moved = {each for each in before if not torch.equal(before[each], after[each])}
    assert not [each for each in before if each.startswith(("codec.body.", "labels."))], "frozen, so not in there"
    for side in ("codec.synthesis.", "discriminator."):
        weights_of = {each for each in before if each.startswith(side) and before[each].ndim == 4}
        assert weights_of
        assert weights_of <= moved
    figures = [json.loads(line) for line in (trained.folder / name / "metrics.jsonl").read_text().splitlines()]
    assert {"deceit", "discriminator", "mse", "bpp"} <= figures[-2].keys()


@pytest.mark.parametrize("name", ["base", "labels", "ms-illm", "hific-map"])
def test_a_run_that_was_cut_ends_as_it_would_have(trained: Trained, name: str, tmp_path: Path) -> None:
    again = tmp_path / name
    shutil.copytree(trained.folder / name, again)
    shutil.rmtree(again / "model")
    (again / "finished.json").unlink()
    for each in sorted((again / "checkpoints").iterdir())[1:]:
        shutil.rmtree(each)
    with pytest.raises(SystemExit) as ended:
        main(trained.arguments(name, again))
    assert ended.value.code == 0
    before, after = weights(trained.folder / name), weights(again)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[each], after[each]) for each in before)


def test_what_lpips_was_left_out_of_says_so(trained: Trained) -> None:
    for name in ("hific", "ms-illm", "hific-map"):
        assert "LPIPS is left out" in trained.said[name]
        record = stored.load(trained.folder / name).record
        assert record["lpips"] == "left out: its weights were not given"
        assert "Trained without LPIPS" in (trained.folder / name / "model" / "README.md").read_text()
    assert "LPIPS" not in trained.said["base"] + trained.said["map"]


def test_a_finished_run_says_so_and_validation_leaves_pictures(trained: Trained, command: Callable[..., Run]) -> None:
    ended = command(trained.arguments("labels", trained.folder / "labels"))
    assert (ended.code, ended.out.endswith("was finished already: nothing to do\n")) == (0, True)
    for name in RUNS:
        pictures = sorted((trained.folder / name / "validation").glob("*.png"))
        assert pictures
        with PIL.Image.open(pictures[-1]) as picture:
            assert picture.width > 2 * 64


REFUSALS = {
    "nothing to tune": (("--finetune", "hific"), "give that run as --start-from"),
    "nothing to adapt": (("--map",), "give that run as --start-from"),
    "no way": (("--start-from", "{base}"), "say how by --finetune or --map"),
    "no labels": (("--start-from", "{base}", "--finetune", "ms-illm"), "ms-illm needs labels"),
    "labels for nothing": (
        ("--start-from", "{base}", "--finetune", "hific", "--labels", "{labels}"),
        "--labels are for ms-illm",
    ),
    "labels of a codec": (
        ("--start-from", "{base}", "--finetune", "ms-illm", "--labels", "{base}"),
        "is a codec: --labels takes",
    ),
    "a start that is no codec": (("--start-from", "{labels}", "--map"), "is a network of labels"),
    "another architecture": (
        ("--start-from", "{base}", "--map", "--architecture", "elic"),
        "--architecture is elic, but .* has mbt2018-mean",
    ),
    "another lambda": (("--start-from", "{base}", "--map", "--lambda", "3"), "--lambda is 3.0, but"),
    "another preset": (("--start-from", "{base}", "--map", "--preset", "tiny"), "--preset is tiny, but"),
    "labels at a lambda": (("--architecture", "vq-vae", "--lambda", "1"), "--lambda is a codec's"),
    "no lambda": (("--lambda", "0"), "expected a positive number"),
    "no map to leave out": (("--map-dropout", "0.5"), "without --map there is none"),
    "weights for nothing": (("--start-from", "{base}", "--map", "--weights-dir", "."), "--weights-dir is for hific"),
    "no such start": (("--start-from", "nowhere", "--map"), "no baseline's directory"),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_what_cannot_work_is_refused_before_anything_is_written(
    trained: Trained, command: Callable[..., Run], tmp_path: Path, why: str
) -> None:
    options, message = REFUSALS[why]
    runs = {each: str(trained.folder / each) for each in RUNS}
    out = tmp_path / "out"
    ended = command(
        ["baseline", "--data", str(trained.data), "--out", str(out), *(each.format(**runs) for each in options)]
    )
    assert ended.code in (1, 2)
    assert ended.err.startswith("magc-train: ")
    assert ended.err.count("\n") == 1
    assert re.search(message, ended.err)
    assert not out.exists()


def test_pictures_without_maps_train_codecs_and_no_adapters(
    trained: Trained, command: Callable[..., Run], tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        PIL.Image.fromarray(MagcDataset(trained.data)[number].image).save(pictures / f"{number}.png")
    start = ["--start-from", str(trained.folder / "base")]
    ended = command(["baseline", "--data", str(pictures), "--out", str(tmp_path / "map"), *start, "--map"])
    assert (ended.code, "have no maps" in ended.err) == (1, True)
    sequential = command(
        [
            *("baseline", "--data", str(pictures), "--out", str(tmp_path / "ar"), "--preset", tiny_baselines.NAME),
            *("--architecture", "mbt2018", "--steps", "2", "--validate-every", "0"),
        ]
    )
    assert sequential.code == 0
    ended = command(
        [
            *("baseline", "--data", str(pictures), "--out", str(tmp_path / "tuned"), "--finetune", "hific"),
            *("--start-from", str(tmp_path / "ar")),
        ]
    )
    assert (ended.code, "rounds symbols otherwise" in ended.err) == (2, True)
