"""What a model knows of the samples without a map that its stages were trained with."""

import dataclasses

import pytest
import tiny_training

from magc_model.config import MapClass, ModelConfig
from magc_model.model import MagcModel, build_autoencoder, build_latent_compression
from magc_model.train.job import _Loaded, _with_dropout

MAP = dataclasses.replace(tiny_training.MODEL.map, classes=(MapClass(0, "land", (1, 2, 3)),))


def _config(**maps: object) -> ModelConfig:
    return dataclasses.replace(tiny_training.MODEL, map=dataclasses.replace(MAP, **maps))


def _loaded(config: ModelConfig, *, stages: int) -> _Loaded:
    lcm = build_latent_compression(config) if stages > 1 else None
    return _Loaded(MagcModel(config, build_autoencoder(config), lcm), "")


def test_the_first_stage_that_reads_the_map_sets_it() -> None:
    assert _with_dropout("vae", _config(), None, 0.1).map.dropout == 0.1
    assert _with_dropout("vae", _config(in_decoder=False), None, 0.1).map.dropout == 0
    mapless = _config(in_decoder=False)
    assert _with_dropout("stage1", mapless, _loaded(mapless, stages=1), 0.2).map.dropout == 0.2


@pytest.mark.parametrize(("before", "now", "expected"), [(0.1, 0.3, 0.1), (0.3, 0.1, 0.1), (0.0, 0.5, 0.0)])
def test_the_stage_with_the_fewest_counts(before: float, now: float, expected: float) -> None:
    config = _config(dropout=before)
    for stage, stages in (("stage1", 1), ("stage2", 2)):
        assert _with_dropout(stage, config, _loaded(config, stages=stages), now).map.dropout == expected


def test_a_model_without_a_map_has_none() -> None:
    blind = _config(in_transform=False, in_diffusion=False, in_decoder=False, in_entropy=False)
    assert _with_dropout("stage1", blind, None, 0.5) == blind
