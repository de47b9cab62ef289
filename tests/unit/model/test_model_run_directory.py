"""The folder of a run: checkpoints are whole or not there, measurements come once, other options are named."""

from __future__ import annotations

import errno
import itertools
import json
import os
import resource
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from magc_model.config import PRESETS, StageConfig, to_document
from magc_model.errors import CheckpointError, UsageError
from magc_model.train import run_directory
from magc_model.train.run_directory import Checkpoint, find_run, open_run, read_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

TRAINING = StageConfig(steps=100, batch_size=8, crop_px=128, learning_rate=0.001)
CONFIG: dict[str, Any] = {
    "format_version": 1,
    "magc_version": "1",
    "stage": "vae",
    "model": to_document(PRESETS["tiny"].model),
    "training": to_document(TRAINING),
    "data": {"path": "here", "digest": "abc"},
    "start_from": {"path": None, "fingerprint": None},
    "base_model": {"fingerprint": None},
    "seed": 0,
    "processes": 1,
    "device": "cpu",
    "workers": 0,
    "keep": 3,
}


def changed(**changes: Any) -> dict[str, Any]:
    """The config with entries changed; `section__name` is an entry of a section."""
    document = json.loads(json.dumps(CONFIG))
    for path, value in changes.items():
        *sections, name = path.split("__")
        place = document
        for section in sections:
            place = place[section]
        place[name] = value
    return document


def checkpoint(step: int) -> Checkpoint:
    values = torch.arange(4.0).reshape(2, 2) + step
    return Checkpoint(
        step=step,
        model={"a.weight": values, "a.count": torch.tensor(step)},
        ema={"a.weight": values / 2},
        optimizer={"main/exp_avg/a.weight": values.to(memory_format=torch.contiguous_format)},
        watch={"best": 0.1 + step, "smoothed": 1 / 3},
    )


def equal(left: Checkpoint, right: Checkpoint) -> bool:
    tensors = ("model", "ema", "optimizer")
    return (left.step, left.watch) == (right.step, right.watch) and all(
        getattr(left, each).keys() == getattr(right, each).keys()
        and all(torch.equal(getattr(left, each)[name], getattr(right, each)[name]) for name in getattr(left, each))
        for each in tensors
    )


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", CONFIG, keep=3)
    assert run.newest_checkpoint() is None
    written = checkpoint(7)._replace(ema={})
    run.write_checkpoint(written)
    found = open_run(tmp_path / "run", CONFIG, keep=3).newest_checkpoint()
    assert found is not None
    assert equal(found, written)


def test_weights_in_another_memory_format_come_back(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", CONFIG, keep=1)
    weight = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    run.write_checkpoint(checkpoint(1)._replace(model={"w": weight}))
    found = run.newest_checkpoint()
    assert found is not None
    assert torch.equal(found.model["w"], weight)


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_few_are_kept(tmp_path: Path, keep: int) -> None:
    run = open_run(tmp_path / "run", CONFIG, keep=keep)
    for step in (1, 2, 30, 100, 1000):
        run.write_checkpoint(checkpoint(step))
    assert [int(each.name[5:]) for each in run.checkpoints()] == [1000, 100, 30][:keep]
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == keep


def ended_before(place: int, work: Callable[[], object]) -> bool:
    """Do the work in a process that ends just before its so-manieth change of a folder; whether it did end so."""
    process = os.fork()
    if process == 0:
        count = itertools.count(1)

        def ending(real: Callable[..., Any]) -> Callable[..., Any]:
            def change(*arguments: Any, **options: Any) -> Any:
                if next(count) == place:
                    os._exit(9)
                return real(*arguments, **options)

            return change

        try:
            for name in ("mkdir", "replace", "rename", "unlink", "remove", "rmdir"):
                setattr(os, name, ending(getattr(os, name)))
            work()
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code in (0, 9)
    return code == 9


def test_killed_anywhere_in_writing_there_is_a_whole_checkpoint(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    run = open_run(begun, CONFIG, keep=1)
    run.write_checkpoint(checkpoint(1))
    before = {1: checkpoint(1), 2: checkpoint(2)}
    for place in itertools.count(1):
        shutil.copytree(begun, tmp_path / str(place))
        here = open_run(tmp_path / str(place), CONFIG, keep=1)
        was_ended = ended_before(place, lambda here=here: here.write_checkpoint(checkpoint(2)))
        again = open_run(tmp_path / str(place), CONFIG, keep=1)
        found = again.newest_checkpoint()
        assert found is not None
        assert equal(found, before[found.step])
        left_over = [each.name for each in (tmp_path / str(place) / "checkpoints").iterdir() if each.name[0] == "."]
        assert not left_over
        if not was_ended:
            break
    assert place > 8
    assert [each.name for each in again.checkpoints()] == ["step-00000002"]


def test_a_full_disk_costs_the_newest_checkpoint_only(tmp_path: Path) -> None:
    run = open_run(tmp_path, CONFIG, keep=1)
    run.write_checkpoint(checkpoint(1))
    large = checkpoint(2)._replace(ema={"a.weight": torch.zeros(100_000)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))  # to the writer as if the disk were full
    try:
        with pytest.raises(CheckpointError, match=r"no room for .*step-00000002 \(.*\); older .* run the same command"):
            run.write_checkpoint(large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [each.name for each in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    run.write_checkpoint(large)
    found = run.newest_checkpoint()
    assert found is not None
    assert equal(found, large)


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, CheckpointError), (errno.EACCES, PermissionError)])
def test_only_a_full_disk_is_called_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    run = open_run(tmp_path, CONFIG, keep=1)

    def fail(path: Path, data: bytes) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(run_directory, "write_atomically", fail)
    with pytest.raises(kind, match=os.strerror(number)):
        run.write_checkpoint(checkpoint(1))
    assert not list((tmp_path / "checkpoints").iterdir())


FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json")


@given(st.sampled_from(FILES), st.data())
def test_any_damage_is_noticed(tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    run = open_run(folder, CONFIG, keep=1)
    run.write_checkpoint(checkpoint(3))
    path = run.checkpoints()[0] / name
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans(), label="cut short"):
        path.write_bytes(content[:place])
    else:
        content[place] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
    try:
        found = read_checkpoint(path.parent)
    except CheckpointError as error:
        assert str(path.parent) in str(error)  # noqa: PT017  (no damage is the other possible outcome)
    else:
        # A byte of state.json that says the same otherwise, or another step: the tensors are never wrong.
        assert name == "state.json"
        assert equal(found._replace(step=3, watch={}), checkpoint(3)._replace(watch={}))


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_with_the_way_out(tmp_path: Path, name: str) -> None:
    run = open_run(tmp_path, CONFIG, keep=2)
    for step in (1, 2):
        run.write_checkpoint(checkpoint(step))
    newest = run.checkpoints()[0]
    (newest / name).unlink()
    with pytest.raises(CheckpointError, match=f"{newest} is damaged .*{name} is missing.*delete that folder"):
        run.newest_checkpoint()
    shutil.rmtree(newest)
    found = run.newest_checkpoint()
    assert found is not None
    assert found.step == 1


def test_brackets_by_the_thousand_are_damage(tmp_path: Path) -> None:
    run = open_run(tmp_path, CONFIG, keep=1)
    run.write_checkpoint(checkpoint(3))
    (run.checkpoints()[0] / "state.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="is damaged"):
        run.newest_checkpoint()
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(UsageError, match="choose another --out"):
        open_run(tmp_path, CONFIG, keep=1)


def test_measurements_after_the_step_are_cut(tmp_path: Path) -> None:
    run = open_run(tmp_path, CONFIG, keep=1)
    run.cut_metrics(5)  # nothing measured yet
    for step in (2, 4, 4, 6):
        run.measure(step, {"loss": step / 3})
    with run.metrics.open("a") as stream:
        stream.write('{"step": 3, "lo')
    run.cut_metrics(4)
    run.measure(5, {"loss": 0.0})
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [2, 4, 4, 5]


OTHERS = {
    "--learning-rate 0.001, not 0.1": {"training__learning_rate": 0.1},
    "--crop-px 128, not 64": {"training__crop_px": 64},
    "--map-in-decoder true, not false": {"model__map__in_decoder": False},
    "--map-input classes, not rgb": {"model__map__input": "rgb"},
    "--rate fixed, not gained": {"model__rate__mode": "gained"},
    "--lambda 0.39, not 0.5": {"model__rate__lambdas": [0.5]},
    "data abc, not def": {"data__digest": "def"},
    "--start-from model none, not f00": {"start_from__fingerprint": "f00"},
    "weights in --base-model none, not ba5e": {"base_model__fingerprint": "ba5e"},
    "number of processes 1, not 2": {"processes": 2},
    "--seed 0, not 7": {"seed": 7},
    "stage vae, not stage1": {"stage": "stage1"},
}


@pytest.mark.parametrize("sentence", OTHERS)
def test_other_options_are_named(tmp_path: Path, sentence: str) -> None:
    open_run(tmp_path, CONFIG, keep=1)
    with pytest.raises(UsageError, match=f"is a run with {sentence}: give the options it was begun with"):
        open_run(tmp_path, changed(**OTHERS[sentence]), keep=1)
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "cuda", "workers": 3, "keep": 1, "magc_version": "2", "data__path": "there"},
        {"model__base_model": "elsewhere"},
        {"training__steps": TRAINING.steps + 1},
        {"training__learning_rate": TRAINING.learning_rate / 2},
    ],
)
def test_what_does_not_spoil_the_run_may_change(tmp_path: Path, changes: dict[str, Any]) -> None:
    open_run(tmp_path, CONFIG, keep=1)
    open_run(tmp_path, changed(**changes), keep=1)
    assert json.loads((tmp_path / "config.json").read_text()) == changed(**changes)


def test_a_run_is_finished_when_all_its_steps_are_done(tmp_path: Path) -> None:
    run = open_run(tmp_path, CONFIG, keep=1)
    assert not run.is_finished
    run.finish()
    assert open_run(tmp_path, CONFIG, keep=1).is_finished
    assert not open_run(tmp_path, changed(training__steps=10_000), keep=1).is_finished


def test_looking_for_a_run_writes_nothing(tmp_path: Path) -> None:
    run = find_run(tmp_path / "run", CONFIG, keep=1)
    assert not run.is_finished
    assert not run.path.exists()
    open_run(tmp_path / "run", CONFIG, keep=1)
    find_run(tmp_path / "run", changed(training__steps=10_000), keep=1)
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == CONFIG
    with pytest.raises(UsageError, match="--seed 0, not 7"):
        find_run(tmp_path / "run", changed(seed=7), keep=1)


def test_foreign_folders_and_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        open_run(tmp_path / "file", CONFIG, keep=1)
    with pytest.raises(UsageError, match="is not empty and no training run"):
        open_run(tmp_path, CONFIG, keep=1)
    (tmp_path / "config.json").write_text('{"format_version": 99}')
    with pytest.raises(UsageError, match="no run's that this version of magc can read"):
        open_run(tmp_path, CONFIG, keep=1)
