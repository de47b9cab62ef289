"""`magc evaluate` as a whole: right figures, the same ones however they came about, and a sentence for what cannot be."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from real_tiles import held_out_tiles

from magc_model.errors import EvaluationError, UsageError
from magc_model.evaluate.codecs.registry import open_codec
from magc_model.evaluate.footprint import footprint
from magc_model.evaluate.job import evaluate
from magc_model.evaluate.request import EvaluateOptions
from magc_model.evaluate.results import Results, read_results


@pytest.fixture(scope="session")
def pictures(embedded_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two held-out tiles."""
    folder = tmp_path_factory.mktemp("pictures")
    for each in held_out_tiles(embedded_cache)[:2]:
        Image.fromarray(each.image).save(folder / f"{each.key}.png")
    return folder


def measured(data: Path, report: Path, *codecs: str, **options: object) -> Results:
    """An evaluation in this process, against the first codec."""
    given = {"anchor": codecs[0].partition(",")[0], "workers": 1, "quiet": True, **options}
    return evaluate(data, EvaluateOptions(report=report, codecs=codecs, **given))  # type: ignore[arg-type]


# --- time and memory -------------------------------------------------------------------------------------------------


def test_a_codec_is_not_charged_for_the_memory_of_the_process_that_asks(pictures: Path) -> None:
    ballast = np.ones(100_000_000)  # 800 MB
    picture = np.asarray(Image.open(next(pictures.iterdir())))
    found = footprint("jpeg", 50.0, picture, None)
    assert ballast.all()
    assert 20 < found.peak_mb < 300
    assert 0 < found.decode_s < found.encode_s < 5


STAND_IN = """#!{python}
import sys, PIL.Image
_, verb, *rate, source, target = sys.argv
PIL.Image.open(source).save(target, "JPEG", quality=int(rate[0])) if verb == "encode" else (
    PIL.Image.open(source).save(target, "PNG"))
"""


def test_a_program_whose_rates_have_to_be_given_is_measured_at_these(pictures: Path, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    results = measured(pictures, tmp_path / "report", f"stf:{program},rates=10/60", anchor=f"stf:{program}")
    assert [each.rate for each in results.points] == [10.0, 60.0]
    assert results.points[0].file_bytes < results.points[1].file_bytes
    assert [each.codec for each in results.run.footprints] == [f"stf:{program}"]


def test_time_and_memory_belong_to_the_rates_and_the_item_that_they_were_taken_at(
    pictures: Path, tmp_path: Path
) -> None:
    first = measured(pictures, tmp_path, "jpeg2000,rates=0.05").run.footprints
    assert measured(pictures, tmp_path, "jpeg2000,rates=0.05").run.footprints == first
    assert measured(pictures, tmp_path, "jpeg2000,rates=0.5").run.footprints != first


# --- what is asked for -----------------------------------------------------------------------------------------------


def test_a_codec_is_asked_for_once(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"jpeg is asked for twice: .* jpeg,rates=1/2/3"):
        measured(pictures, tmp_path, "jpeg,rates=5", "jpeg,rates=50")


def test_the_anchor_may_be_named_with_its_rates_and_is_the_first_codec_unless_it_is_named(
    pictures: Path, tmp_path: Path
) -> None:
    codecs = "webp,rates=5", "jpeg,chroma=444,rates=5"
    assert measured(pictures, tmp_path, *codecs, anchor=codecs[1]).anchor == "jpeg,chroma=444"
    assert measured(pictures, tmp_path, *codecs, anchor=None).anchor == "webp"
    with pytest.raises(UsageError, match=r"--anchor is jpeg, .* expected one of webp, jpeg,chroma=444"):
        measured(pictures, tmp_path, *codecs, anchor="jpeg")


def test_a_folder_of_weights_that_is_not_there_is_no_folder_without_weights(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--weights-dir is .*nowhere, which is no folder"):
        measured(pictures, tmp_path, "jpeg", weights_dir=tmp_path / "nowhere")


@pytest.mark.parametrize("size_px", [(1, 1), (7, 90), (128, 128), (255, 203)])
def test_pictures_smaller_than_a_tile_have_the_figures_that_there_is_room_for(
    tmp_path: Path, size_px: tuple[int, int]
) -> None:
    (tmp_path / "Фото à 1").mkdir()
    random = np.random.default_rng(0)
    for name in ("x.y", "z"):
        pixels = random.integers(0, 256, (*size_px, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "Фото à 1" / f"{name}.png")
    [point] = measured(tmp_path / "Фото à 1", tmp_path / "report", "jpeg,rates=50").points
    assert point.metrics["psnr-rgb"].value is not None
    assert (point.metrics["patch-frechet-rand"].value is None) == (min(size_px) < 128)
    assert (point.metrics["ms-ssim-y"].value is None) == (min(size_px) < 161)
    assert "Фото à 1" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")


# --- pictures that were decoded elsewhere ----------------------------------------------------------------------------


@pytest.fixture
def by_hand(pictures: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The pictures as JPEG of quality 20 has them: a folder of decoded pictures, one of streams."""
    codec = open_codec("jpeg")
    folders = tmp_path / "decoded by hand", tmp_path / "streams"
    for each in folders:
        each.mkdir()
    for path in pictures.iterdir():
        data = codec.encode(np.asarray(Image.open(path)), None, 20.0).data
        (folders[1] / f"{path.stem}.jpg").write_bytes(data)
        Image.fromarray(codec.decode(data, None)).save(folders[0] / f"{path.stem}.png")
    return folders


def test_pictures_decoded_elsewhere_have_the_figures_of_their_codec(
    pictures: Path, tmp_path: Path, by_hand: tuple[Path, Path]
) -> None:
    folder, streams = by_hand
    elsewhere = f"decoded:{folder},streams={streams}"
    results = measured(pictures, tmp_path / "report", "jpeg,rates=20", elsewhere)
    ours, theirs = results.points
    assert (ours.file_bytes, ours.bpp, ours.metrics) == (theirs.file_bytes, theirs.bpp, theirs.metrics)
    assert [each.label for each in results.codecs] == ["JPEG", "decoded by hand"]
    assert {each.codec for each in results.run.costs} == {"jpeg"}, "nobody knows how long it took elsewhere"


def test_pictures_without_their_streams_have_no_rate(
    pictures: Path, tmp_path: Path, by_hand: tuple[Path, Path]
) -> None:
    results = measured(pictures, tmp_path / "report", "jpeg,rates=20", f"decoded:{by_hand[0]}")
    ours, theirs = results.points
    assert theirs.bpp.value is theirs.file_bytes is None
    assert theirs.metrics == ours.metrics
    assert [each.refused for each in results.comparisons] == ["the sizes of one's files are not known"]
    assert read_results(tmp_path / "report" / "results.json") == results
    assert "−" not in (tmp_path / "report" / "report.md").read_text(encoding="utf-8").partition("## Rate")[0]
    alone = measured(pictures, tmp_path / "alone", f"decoded:{by_hand[0]}", anchor=None)
    assert alone.points[0].metrics == theirs.metrics


def test_a_picture_that_is_missing_is_named(pictures: Path, tmp_path: Path, by_hand: tuple[Path, Path]) -> None:
    missing = next(by_hand[0].iterdir())
    missing.unlink()
    with pytest.raises(EvaluationError, match=rf"no files called {missing.stem}"):
        measured(pictures, tmp_path / "report", f"decoded:{by_hand[0]}", anchor=None)


# --- going on --------------------------------------------------------------------------------------------------------


def test_what_was_replaced_between_two_evaluations_of_one_process_is_measured_again(
    pictures: Path, tmp_path: Path, by_hand: tuple[Path, Path]
) -> None:
    codec = f"decoded:{by_hand[0]},streams={by_hand[1]}"
    before = measured(pictures, tmp_path / "report", codec, anchor=codec).points[0].metrics["psnr-rgb"]
    for each in by_hand[0].iterdir():
        Image.new("RGB", (256, 256)).save(each)
    after = measured(pictures, tmp_path / "report", codec, anchor=codec).points[0].metrics["psnr-rgb"]
    assert after.value < before.value - 5  # type: ignore[operator]
