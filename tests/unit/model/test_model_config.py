"""Presets and the JSON that stores them."""

import dataclasses
import json

import pytest

from magc_model.config import (
    PAPER_LAMBDAS,
    PRESETS,
    STAGES,
    MapClass,
    MapConfig,
    MapInput,
    ModelConfig,
    Prediction,
    RateConfig,
    RateMode,
    StageConfig,
    model_config_from,
    preset,
    stage_config_from,
    to_document,
)
from magc_model.errors import ModelError, UsageError

CLASSES = (MapClass(0, "background", (1, 2, 3)), MapClass(4, "building", (200, 0, 0)))


@pytest.mark.parametrize("name", PRESETS)
def test_a_model_config_survives_json(name: str) -> None:
    config = dataclasses.replace(PRESETS[name].model, map=MapConfig(classes=CLASSES))
    assert model_config_from(json.loads(json.dumps(to_document(config)))) == config


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_config_survives_json(name: str, stage: str) -> None:
    config = PRESETS[name].stages[stage]
    assert stage_config_from(json.loads(json.dumps(to_document(config)))) == config
    assert config.crop_px % 64 == 0


def test_the_paper_preset_is_the_papers() -> None:
    paper = PRESETS["paper"]
    lcm, stage1, stage2 = paper.model.latent_compression, paper.stages["stage1"], paper.stages["stage2"]
    assert (lcm.channels, lcm.symbol_channels, lcm.slices) == (128, 64, 8)
    assert PAPER_LAMBDAS == (0.10, 0.20, 0.39, 0.67, 0.91, 1.25)
    assert (stage1.batch_size, stage1.steps, stage2.batch_size, stage2.steps) == (16, 250_000, 48, 150_000)
    for stage in (stage1, stage2):
        assert (stage.learning_rate, stage.warmup_steps, stage.final_learning_rate) == (5e-5, 10_000, 1.0)


def _damaged(path: tuple[str, ...], value: object) -> dict[str, object]:
    document = to_document(ModelConfig(map=MapConfig(classes=CLASSES)))
    inner = document
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("preset",), 3, "model.preset"),
        (("map", "input"), "colours", "model.map.input"),
        (("map", "in_transform"), 1, "model.map.in_transform"),
        (("map", "classes"), [{"id": 1, "name": "a"}], r"model.map.classes\[0\]"),
        (("map", "classes"), [{"id": True, "name": "a", "color": [1, 2, 3]}], r"model.map.classes\[0\].id"),
        (("map", "classes"), [{"id": 1, "name": "a", "color": [1, 2]}], r"model.map.classes\[0\].color"),
        (("latent_compression", "channels"), 12.5, "latent_compression.channels"),
        (("latent_compression", "channels"), None, "latent_compression.channels"),
        (("latent_compression", "surprise"), 1, "surprise"),
        (("rate",), [], "model.rate"),
        (("rate", "lambdas"), [0.1, 0.2], "one lambda"),
        (("rate", "lambdas"), [-1.0], "positive"),
        (("rate", "lambdas"), [0.1] * 257, "model.rate.lambdas' holds 257 values, expected at most 256"),
        (("latent_compression", "channels"), 10**30, "model.latent_compression.channels' is 1.*, expected 1 to 8192"),
        (("latent_compression", "slices"), 0, "latent_compression.slices' is 0, expected 1 to 64"),
        (("latent_compression", "symbol_channels"), -64, "symbol_channels' is -64"),
        (("latent_compression", "map_channels"), [64, 0], "map_channels' is 0, expected 1 to 8192"),
        (
            ("latent_compression", "context_channels"),
            [1] * 17,
            "context_channels' holds 17 values, expected at most 16",
        ),
        (("denoiser", "layers_per_block"), 65, "layers_per_block' is 65, expected 1 to 64"),
        (("denoiser", "adapter_blocks"), 1000, "adapter_blocks' is 1000, expected 0 to 64"),
        (("denoiser", "text_tokens"), -1, "text_tokens' is -1, expected 0 to 4096"),
        (("denoiser", "norm_groups"), 0, "norm_groups' is 0"),
        (("diffusion", "train_timesteps"), 10**9, "train_timesteps' is 1000000000, expected 1 to 100000"),
        (("diffusion", "beta_start"), 0.5, "the noise schedule goes from 0.5 to 0.012"),
        (("diffusion", "beta_start"), 0.0, "the noise schedule goes from 0.0"),
        (("diffusion", "beta_end"), 1.0, "the noise schedule goes from 0.00085 to 1.0"),
        (("diffusion", "beta_end"), float("nan"), "beta_end' is nan, expected a finite number"),
        (("autoencoder", "scaling_factor"), 0.0, "scaling_factor' is 0.0, expected 1e-06 to 1e"),
        (("autoencoder", "scaling_factor"), float("inf"), "scaling_factor' is inf, expected a finite number"),
        (("autoencoder", "scaling_factor"), 10**400, "scaling_factor' is 1.*, expected a finite number"),
        (("quirks", "adapter_scale"), float("-inf"), "adapter_scale' is -inf, expected a finite number"),
        (("map", "dropout"), 1.5, "model.map.dropout' is 1.5, expected 0 to 1"),
        (
            ("map", "classes"),
            [{"id": 256, "name": "a", "color": [1, 2, 3]}],
            r"classes\[0\].id' is 256, expected 0 to 255",
        ),
        (("map", "classes"), [{"id": 1, "name": "a", "color": [1, 2, -3]}], r"classes\[0\].color' is -3"),
        (("map", "classes"), [{"id": 1, "name": "a", "color": [1, 2, 3]}] * 2, "the id 1 more than once"),
        (("preset",), [[[["x" * 10_000]]]], "model.preset' is .{1,80}, which is not of the expected kind"),
    ],
)
def test_a_damaged_config_is_named(path: tuple[str, ...], value: object, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        model_config_from(_damaged(path, value))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("document", [None, [], 3, {}, {"preset": "tiny"}])
def test_a_foreign_config_is_named(document: object) -> None:
    with pytest.raises(ModelError, match="config.json"):
        model_config_from(document)


@pytest.mark.parametrize(
    ("mode", "lambdas", "words"),
    [
        (RateMode.FIXED, (0.1, 0.2), "one lambda"),
        (RateMode.GAINED, (0.1,), "two lambdas"),
        (RateMode.GAINED, (0.2, 0.1), "rising"),
        (RateMode.GAINED, (0.1, 0.1), "rising"),
        (RateMode.FIXED, (float("nan"),), "positive"),
        (RateMode.FIXED, (float("inf"),), "positive"),
        (RateMode.FIXED, (), "missing"),
    ],
)
def test_a_senseless_rate_is_refused(mode: RateMode, lambdas: tuple[float, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        RateConfig(mode=mode, lambdas=lambdas)


def test_a_map_of_colours_cannot_enter_the_entropy_model() -> None:
    with pytest.raises(UsageError, match="class planes"):
        MapConfig(input=MapInput.RGB, in_entropy=True)


def test_planes_are_counted_by_the_highest_id() -> None:
    assert MapConfig(classes=CLASSES).plane_count == 5
    assert MapConfig(classes=CLASSES, input=MapInput.RGB).plane_count == 3
    assert not MapConfig(in_transform=False, in_diffusion=False).is_used


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(UsageError, match="'huge' is unknown: expected one of paper, tiny"):
        preset("huge")


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        StageConfig(steps=1, batch_size=1).steps = 2  # type: ignore[misc]


def test_what_a_denoiser_predicts_is_said_only_where_it_is_not_noise() -> None:
    """Configs that were stored before there was a choice read as ever and say the same."""
    usual = ModelConfig(map=MapConfig(classes=CLASSES))
    document = json.loads(json.dumps(to_document(usual)))
    assert "prediction" not in document["denoiser"]
    assert model_config_from(document) == usual
    assert not usual.denoiser.is_one_step

    one_step = dataclasses.replace(usual, denoiser=dataclasses.replace(usual.denoiser, prediction=Prediction.RESIDUAL))
    document = json.loads(json.dumps(to_document(one_step)))
    assert document["denoiser"]["prediction"] == "residual"
    assert model_config_from(document) == one_step
    assert one_step.denoiser.is_one_step

    document["denoiser"]["prediction"] = "velocity"
    with pytest.raises(ModelError, match=r"'model.denoiser.prediction' is 'velocity', expected one of noise, residual"):
        model_config_from(document)
