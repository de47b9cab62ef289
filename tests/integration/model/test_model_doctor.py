"""`magc doctor`: no configuration of this machine changes a symbol, and one that did would be found."""

import json
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model

from magc_model import doctor
from magc_model.cli import main
from magc_model.config import PAPER_LAMBDAS, RateConfig, RateMode
from magc_model.entropy import latent_codec
from magc_model.errors import ModelError


@pytest.mark.parametrize("kind", ["fixed", "gained", "without a map"])
def test_streams_travel(kind: str) -> None:
    model = {
        "fixed": lambda: tiny_model(),
        "gained": lambda: tiny_model(rate=RateConfig(mode=RateMode.GAINED, lambdas=PAPER_LAMBDAS)),
        "without a map": lambda: tiny_model(in_transform=False, in_diffusion=False, in_decoder=False, in_entropy=False),
    }[kind]()
    before = torch.get_num_threads(), torch.get_default_dtype(), torch.get_float32_matmul_precision()
    findings = doctor.examine(model, 40)
    assert [each.name for each in findings] == [each.name for each in doctor.CONFIGURATIONS]
    assert [(each.tiles, each.wrong_tiles) for each in findings] == [(40, 0)] * 8
    assert before == (torch.get_num_threads(), torch.get_default_dtype(), torch.get_float32_matmul_precision())


def test_zero_has_one_sign_at_both_ends() -> None:
    """Means just below zero: the sender rounds some residuals to -0, the receiver reads 0."""
    model = tiny_model()
    for network in model.latent_compression.mean_networks:
        torch.nn.init.zeros_(network[-1].weight)
        torch.nn.init.constant_(network[-1].bias, -1e-9)
    assert [each.wrong_tiles for each in doctor.examine(model, 8)] == [0] * 8


@pytest.mark.slow
def test_a_decoder_that_strays_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scales that depend on the number of threads by one part in a thousand."""
    tiny_model().save_pretrained(tmp_path / "model")
    bucketize = torch.bucketize

    def strays(scales: torch.Tensor, *more: object, **options: object) -> torch.Tensor:
        return bucketize(scales * (1 + 1e-3 * (torch.get_num_threads() == 2)), *more, **options)

    torch.set_num_threads(1)
    monkeypatch.setattr(latent_codec.torch, "bucketize", strays)
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--model", str(tmp_path / "model"), "--tiles", "32", "--json"])
    assert ended.value.code == 1
    answer = json.loads(capsys.readouterr().out)
    assert not answer["travels"]
    wrong = {each["name"]: each["wrong_tiles"] for each in answer["configurations"]}
    assert wrong["1 thread, a tile at a time"] == 0
    assert wrong["2 threads, a tile at a time"] > 0


@pytest.mark.slow
def test_the_command_says_so_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--model", str(tmp_path / "model"), "--tiles", "3"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert out.count("0 of 3 tiles wrong") == 8
    assert "they will travel" in out


def test_a_model_that_cannot_compress_is_refused() -> None:
    model = tiny_model()
    model.latent_compression = None
    with pytest.raises(ModelError, match="cannot compress yet"):
        doctor.examine(model, 1)
