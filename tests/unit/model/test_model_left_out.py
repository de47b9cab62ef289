"""A model of which the networks that draw stay on the disk."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_models import one_step_model, tiny_model

from magc_model.cli import main
from magc_model.codec import MagcCodec
from magc_model.decompress_job import Drawing
from magc_model.errors import ModelError
from magc_model.model import MagcModel
from magc_model.reconstruct import Sampling, usual_sampling, usual_steps


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of a model that draws in one step, and of one that diffuses."""
    folder = tmp_path_factory.mktemp("models")
    one_step_model().save_pretrained(folder / "one-step")
    tiny_model().save_pretrained(folder / "diffusion")
    return {"one-step": folder / "one-step", "diffusion": folder / "diffusion"}


@pytest.mark.parametrize(
    ("name", "draws", "left_out"),
    [
        ("one-step", True, set()),
        ("one-step", False, {"denoiser", "realistic_decoder"}),
        ("one-step", None, {"denoiser", "realistic_decoder"}),
        ("diffusion", True, set()),
        ("diffusion", False, {"denoiser"}),
        ("diffusion", None, set()),  # it draws unasked
    ],
)
def test_it_is_the_same_model_without_what_draws(
    folders: dict[str, Path], name: str, draws: bool | None, left_out: set[str]
) -> None:
    whole, part = MagcModel.from_pretrained(folders[name]), MagcModel.from_pretrained(folders[name], draws=draws)
    assert set(part.left_out) == left_out
    for component in ("denoiser", "realistic_decoder"):
        is_there = getattr(whole, component) is not None and component not in left_out
        assert (getattr(part, component) is not None) is is_there
    assert part.fingerprint() == whole.fingerprint()
    assert part.entropy_fingerprint() == whole.entropy_fingerprint()
    assert (usual_sampling(part), usual_steps(part)) == (usual_sampling(whole), usual_steps(whole))


@pytest.mark.parametrize("name", ["one-step", "diffusion"])
def test_it_compresses_and_decodes_faithfully_to_the_same_bits(folders: dict[str, Path], name: str) -> None:
    whole, part = (MagcCodec.from_pretrained(str(folders[name]), draws=each) for each in (True, False))
    picture = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    stream = whole.compress(picture)
    assert part.compress(picture) == stream
    faithful = Sampling(steps=0)
    assert np.array_equal(part.decompress(stream, sampling=faithful), whole.decompress(stream, sampling=faithful))


def test_it_neither_draws_nor_is_saved(folders: dict[str, Path], tmp_path: Path) -> None:
    codec = MagcCodec.from_pretrained(str(folders["one-step"]), draws=False)
    stream = codec.compress(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(ModelError, match="1 steps of a model that was read without its denoiser.*draws=True"):
        codec.decompress(stream, sampling=Sampling(steps=1))
    # What asks for the symbols alone does not draw.
    faithful = codec.decompress(stream, sampling=Sampling(steps=1, fidelity=1.0))
    assert np.array_equal(faithful, codec.decompress(stream))
    with pytest.raises(ModelError, match="read without its denoiser and realistic_decoder.*draws=True to save it"):
        codec.model.save_pretrained(tmp_path / "copy")
    diffusion = MagcCodec.from_pretrained(str(folders["diffusion"]), draws=False)
    with pytest.raises(ModelError, match="50 steps of a model that was read without its denoiser"):
        diffusion.decompress(diffusion.compress(np.zeros((64, 64, 3), np.uint8)))


def test_what_is_left_out_must_be_there(folders: dict[str, Path], tmp_path: Path) -> None:
    one_step_model().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "denoiser.safetensors").unlink()
    with pytest.raises(ModelError, match=r"denoiser\.safetensors is missing"):
        MagcModel.from_pretrained(tmp_path / "model", draws=False)


@pytest.mark.parametrize(
    ("drawing", "needs"),
    [
        (Drawing(), None),
        (Drawing(steps=0), False),
        (Drawing(steps=0, fidelity=0.5), False),
        (Drawing(steps=1), True),
        (Drawing(fidelity=0.5), True),
        (Drawing(fidelity=1.0), None),
        (Drawing(steps=1, fidelity=1.0), None),
        (Drawing(start_t=300), True),
        (Drawing(draws=3), True),
    ],
)
def test_what_is_asked_for_says_what_is_read(drawing: Drawing, needs: bool | None) -> None:
    assert drawing.needs_generator is needs


_QUICKLY = ["--start-t", "20", "--steps", "2", "--sampler", "ddim"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("one-step", []),
        ("one-step", ["--steps", "0"]),
        ("one-step", ["--steps", "1"]),
        ("one-step", ["--fidelity", "0.5"]),
        ("one-step", ["--fidelity", "1"]),
        ("diffusion", ["--steps", "0"]),
        ("diffusion", _QUICKLY),
        ("diffusion", [*_QUICKLY, "--fidelity", "1"]),
    ],
)
def test_the_command_reads_what_its_options_need(
    folders: dict[str, Path], tmp_path: Path, name: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "tile.png")
    model = ["--model", str(folders[name])]
    for command in (
        ["compress", f"{tmp_path}/tile.png", "--no-map", "-o", f"{tmp_path}/tile.magc", *model],
        ["decompress", f"{tmp_path}/tile.magc", "-o", f"{tmp_path}/back.png", *model, *options],
    ):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert not ended.value.code, capsys.readouterr().err
    fingerprint = MagcModel.from_pretrained(folders[name]).fingerprint()
    assert re.search(fingerprint.encode(), (tmp_path / "back.png").read_bytes())
