"""The pieces of a training step, and what options make of configs."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from magc_model.config import PAPER_LAMBDAS, PRESETS, MapClass, MapInput, ModelConfig, RateMode, StageConfig
from magc_model.data import Batch
from magc_model.errors import UsageError
from magc_model.train.loop import Average, learning_rate, pieces, step_seed
from magc_model.train.options import (
    ModelOptions,
    StageOptions,
    Start,
    TrainOptions,
    model_config,
    stage_config,
    without_untrained_classes,
)
from magc_model.train.stages import lambdas_at

TINY = PRESETS["tiny"].model


@given(
    st.integers(1, 500),
    st.integers(0, 100),
    st.floats(0, 1),
)
def test_the_learning_rate_rises_to_its_peak_and_falls_to_its_end(steps: int, warmup: int, final: float) -> None:
    config = StageConfig(steps=steps, batch_size=1, learning_rate=0.5, warmup_steps=warmup, final_learning_rate=final)
    rates = [learning_rate(step, config) for step in range(steps + 1)]
    top = min(warmup, steps)
    assert all(0 < rate <= 0.5 * (1 + 1e-12) for rate in rates[:steps])
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    if steps > warmup:
        assert rates[warmup] == pytest.approx(0.5)
        assert rates[steps] == pytest.approx(0.5 * final, abs=1e-12)


def test_the_paper_keeps_its_rate_after_the_warm_up() -> None:
    config = PRESETS["paper"].stages["stage1"]
    assert {learning_rate(step, config) for step in (10_000, 100_000, 249_999)} == {5e-5}
    assert learning_rate(4_999, config) == pytest.approx(2.5e-5, rel=1e-3)


def test_the_average_is_exponential_after_a_short_start() -> None:
    weight = nn.Parameter(torch.zeros(2))
    average = Average({"w": weight}, 0.9)
    expected = 0.0
    for step in range(1, 200):
        weight.data.fill_(float(step))
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.values["w"].tolist() == pytest.approx([expected] * 2, rel=1e-5)
    with average.in_place():
        assert weight.tolist() == pytest.approx([expected] * 2, rel=1e-5)
    assert weight.tolist() == [199.0, 199.0]


def test_no_average_holds_nothing() -> None:
    average = Average({"w": nn.Parameter(torch.ones(1))}, 0.0)
    average.update(1)
    assert not average.values


@given(st.integers(0, 2**31), st.integers(0, 10**6), st.integers(0, 7))
def test_each_step_and_process_has_its_own_noise(seed: int, step: int, rank: int) -> None:
    here = step_seed(seed, step, rank)
    assert here == step_seed(seed, step, rank)
    assert here not in {
        step_seed(seed, step + 1, rank),
        step_seed(seed, step, rank + 1),
        step_seed(seed + 1, step, rank),
    }


@pytest.mark.parametrize("count", [1, 2, 4])
def test_pieces_are_the_batch(count: int) -> None:
    ids = torch.arange(4, dtype=torch.uint8).reshape(4, 1, 1).expand(4, 64, 64)
    batch = Batch(None, torch.randn(4, 4, 8, 8), ids, torch.tensor([True, False, True, True]), 7)
    found = list(pieces(batch, count))
    assert len(found) == count
    assert all(piece.images is None and piece.step == 7 for piece in found)
    for name in ("latents", "class_ids", "has_map"):
        assert torch.equal(torch.cat([getattr(piece, name) for piece in found]), getattr(batch, name))


def test_lambdas_between_two_are_log_linear() -> None:
    config = replace(TINY, rate=replace(TINY.rate, mode=RateMode.GAINED, lambdas=(0.1, 0.4, 1.6)))
    found = lambdas_at(torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0]), config, 5, torch.device("cpu"))
    assert found.tolist() == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6])
    assert lambdas_at(None, TINY, 2, torch.device("cpu")).tolist() == pytest.approx([0.39, 0.39])


# --- options ---------------------------------------------------------------------------------------------------------


def options(**given: object) -> TrainOptions:
    return TrainOptions(data=Path("data"), out=Path("run"), **given)  # type: ignore[arg-type]


def test_every_field_of_a_stage_can_be_set() -> None:
    fields = {field.name: field.type for field in dataclasses.fields(StageConfig)}
    assert {field.name for field in dataclasses.fields(StageOptions)} == fields.keys()
    hints = typing.get_type_hints(StageOptions)
    assert all(hints[name] == typing.get_type_hints(StageConfig)[name] | None for name in fields)


def test_what_is_not_given_is_the_presets() -> None:
    config = stage_config("tiny", "stage1", StageOptions(steps=7), 1)
    assert config == replace(PRESETS["tiny"].stages["stage1"], steps=7)
    assert model_config(options(), ModelOptions(), None) == ModelConfig()
    assert model_config(options(preset="tiny"), ModelOptions(), None) == TINY


def test_no_map_turns_every_use_off() -> None:
    assert not model_config(options(preset="tiny"), ModelOptions(map=False), None).map.is_used


def test_a_gained_model_has_the_papers_lambdas() -> None:
    config = model_config(options(), ModelOptions(rate=RateMode.GAINED), None)
    assert config.rate.lambdas == PAPER_LAMBDAS
    back = model_config(options(), ModelOptions(rate=RateMode.FIXED), Start(config))
    assert back.rate.lambdas == (0.39,)


AUTOENCODER = frozenset({"autoencoder"})
BOTH = frozenset({"autoencoder", "latent_compression"})


@pytest.mark.parametrize(
    ("trained", "given", "refused"),
    [
        (AUTOENCODER, {"map_in_transform": False, "map_in_entropy": False, "rate": RateMode.GAINED}, None),
        (AUTOENCODER, {"map_in_decoder": False}, None),
        (AUTOENCODER, {"map_in_entropy": False, "map_input": MapInput.RGB}, "--map-input is rgb"),
        (BOTH, {"map_in_diffusion": False, "map_in_decoder": False}, None),
        (BOTH, {"map_in_entropy": False}, "--map-in-entropy is False, but the latent compression"),
        (BOTH, {"lambdas": (0.5,)}, "--lambda is 0.5, but the latent compression was trained with 0.39"),
        (BOTH, {"rate": RateMode.GAINED}, "--rate is gained"),
        (BOTH, {"map": False}, "--map-in-transform is False"),
    ],
)
def test_what_is_trained_cannot_be_changed(trained: frozenset[str], given: dict, refused: str | None) -> None:
    start = Start(TINY, trained)
    if refused is None:
        model_config(options(), ModelOptions(**given), start)
        return
    with pytest.raises(UsageError, match=refused):
        model_config(options(), ModelOptions(**given), start)


def test_a_map_decoder_cannot_come_later() -> None:
    start = Start(replace(TINY, map=replace(TINY.map, in_decoder=False)), AUTOENCODER)
    with pytest.raises(UsageError, match="--map-in-decoder is True, but the autoencoder was trained with False"):
        model_config(options(), ModelOptions(map_in_decoder=True), start)
    free = ModelOptions(map_in_entropy=False, map_input=MapInput.RGB)
    assert model_config(options(), free, start).map.input is MapInput.RGB


def test_classes_are_settled_by_the_first_part_that_reads_a_map() -> None:
    config = replace(TINY, map=replace(TINY.map, classes=(MapClass(0, "land", (1, 2, 3)),)))
    without = replace(config, map=replace(config.map, in_decoder=False))
    assert without_untrained_classes(Start(config, AUTOENCODER)).config.map.classes
    assert not without_untrained_classes(Start(without, AUTOENCODER)).config.map.classes
    assert without_untrained_classes(Start(without, BOTH)).config.map.classes
