"""`magc evaluate` as a whole: right figures, the same ones however they came about, and a sentence for what cannot be."""

from __future__ import annotations

import itertools
import json
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_world
import torch
from PIL import Image
from tiny_world import World

from magc_data import grid
from magc_data.config import BuildConfig
from magc_data.dataset import MagcDataset
from magc_model.config import MapClass, SegmenterConfig
from magc_model.errors import EvaluationError, UsageError
from magc_model.evaluate import job
from magc_model.evaluate.codecs.registry import open_codec
from magc_model.evaluate.footprint import footprint
from magc_model.evaluate.job import evaluate
from magc_model.evaluate.measurement import On
from magc_model.evaluate.request import EvaluateOptions
from magc_model.evaluate.results import Results, read_results
from magc_model.evaluate.worker import Task, work
from magc_model.segmenter_model import SegmenterModel, build_segmenter

FEW_TILES = (85.5190, 27.6337, 85.5205, 27.6345)
"""Inside of the sample's test half."""


@pytest.fixture(scope="session")
def tiles(embedded_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of held-out tiles with their maps."""
    folder = tmp_path_factory.mktemp("held-out") / "dataset"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAGC_CACHE_DIR", str(embedded_cache))
        sources = {"imagery": "sample-banepa", "osm": "sample-banepa"}
        tiny_world.run(BuildConfig(**sources, bbox=FEW_TILES, zoom=18, out=folder, workers=1))
    return folder


@pytest.fixture(scope="session")
def pictures(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two of them."""
    folder = tmp_path_factory.mktemp("pictures")
    for each in itertools.islice(MagcDataset(tiles), 2):
        Image.fromarray(each.image).save(folder / f"{each.key}.png")
    return folder


def measured(data: Path, report: Path, *codecs: str, **options: object) -> Results:
    """An evaluation in this process, against the first codec."""
    given = {"anchor": codecs[0].partition(",")[0], "workers": 1, "quiet": True, **options}
    return evaluate(data, EvaluateOptions(report=report, codecs=codecs, **given))  # type: ignore[arg-type]


def repeatable(report: Path) -> bytes:
    """What another run of the same must give again: all of `results.json` but its section `run`."""
    document = json.loads((report / "results.json").read_bytes())
    assert document.pop("run")["facts"]
    return json.dumps(document).encode()


# --- figures ---------------------------------------------------------------------------------------------------------

CODECS = "magc,rates=2/4", "jpeg,rates=10/40", "webp,rates=1/20"


@pytest.fixture(scope="session")
def whole(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    """Three codecs at two rates, in one go and one process."""
    report = tmp_path_factory.mktemp("whole")
    return report, measured(tiles, report, *CODECS)


def test_bytes_and_figures_are_those_of_coding_by_hand(tiles: Path, whole: tuple[Path, Results]) -> None:
    report, results = whole
    assert read_results(report / "results.json") == results
    samples = list(MagcDataset(tiles))
    found = {(each.codec, each.rate): each for each in results.points}
    assert set(found) == {("magc", 2.0), ("magc", 4.0), ("jpeg", 10.0), ("jpeg", 40.0), ("webp", 1.0), ("webp", 20.0)}
    for (name, rate), point in found.items():
        codec = open_codec(name)
        sizes, psnr_db = [], []
        for sample in samples:
            data = codec.encode(sample.image, sample.semantic_map, rate).data
            error = codec.decode(data, sample.semantic_map).astype(float) - sample.image
            sizes.append(len(data))
            psnr_db.append(10 * np.log10(255**2 / (error**2).mean()))
        assert (point.items, point.cuts, point.file_bytes) == (len(samples), len(samples), sum(sizes))
        assert point.bpp.value == pytest.approx(8 * sum(sizes) / (len(samples) * 256**2), rel=1e-8)
        assert point.metrics["psnr-rgb"].value == pytest.approx(np.mean(psnr_db), abs=1e-3)
        assert point.bpp.low < point.bpp.value < point.bpp.high  # type: ignore[operator]
    assert [each.uses_map for each in results.codecs] == [True, False, False]
    assert {(each.codec, each.on) for each in results.run.footprints} == {
        (name, On.TILES) for name in ("magc", "jpeg", "webp")
    }
    page = (report / "report.html").read_text(encoding="utf-8")
    assert all(each.label in page for each in results.codecs)


@pytest.mark.slow
def test_a_smaller_number_of_items_lies_all_over_and_is_measured_once(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measured(tiles, tmp_path, "jpeg,rates=10", limit=1)
    assert [each.items for each in first.points] == [1]
    done: list[Task] = []
    monkeypatch.setattr(job, "work", lambda task: (done.append(task), work(task))[1])
    assert [each.items for each in measured(tiles, tmp_path, "jpeg,rates=10").points] == [len(MagcDataset(tiles))]
    shown = sum(len(each.numbers) for each in done)
    done.clear()
    assert measured(tiles, tmp_path, "jpeg,rates=10", limit=1).points == first.points
    assert measured(tiles, tmp_path, "jpeg,rates=10", seed=7).points != first.points
    assert (sum(len(each.numbers) for each in done), shown > 0) == (0, True)


def test_a_scene_is_coded_whole_and_measured_in_cuts(tmp_path: Path) -> None:
    x, y, side_px = 2176 * 32, 1312 * 32, 4 * 256
    corners_px = np.array([x, y + 4]) * 256 + [9, -9], np.array([x + 4, y]) * 256 + [-9, 9]
    lon, lat = grid.px_to_lonlat(
        np.array([each[0] for each in corners_px], float), np.array([each[1] for each in corners_px], float), 17
    )
    world = World(tmp_path, (float(lon[0]), float(lat[0]), float(lon[1]), float(lat[1])))
    tiny_world.run(world.config(tmp_path / "dataset"))
    results = measured(tmp_path / "dataset", tmp_path / "report", "jpeg,rates=30", on=(On.SCENES,))
    [point] = results.points
    picture = np.empty((side_px, side_px, 3), np.uint8)
    for sample in MagcDataset(tmp_path / "dataset"):
        tile = grid.parse_key(sample.key)
        picture[(tile.y - y) * 256 : (tile.y - y + 1) * 256, (tile.x - x) * 256 : (tile.x - x + 1) * 256] = sample.image
    codec = open_codec("jpeg")
    data = codec.encode(picture, None, 30.0).data
    error = (codec.decode(data, None).astype(float) - picture) ** 2
    psnr_db = 10 * np.log10(255**2 / error.reshape(4, 256, 4, 256, 3).mean(axis=(1, 3, 4)))
    assert (point.on, point.items, point.cuts, point.file_bytes) == (On.SCENES, 1, 16, len(data))
    assert point.metrics["psnr-rgb"].value == pytest.approx(psnr_db.mean(), abs=1e-3)
    assert point.bpp.low is None, "one scene has one rate"


def test_a_segmenter_finds_the_map_in_originals_and_in_decoded_pictures(tiles: Path, tmp_path: Path) -> None:
    dataset = MagcDataset(tiles)
    config = SegmenterConfig(classes=tuple(MapClass(*each) for each in dataset.classes))
    torch.manual_seed(0)
    segmenter = SegmenterModel(config, build_segmenter(config))
    segmenter.save_pretrained(tmp_path / "segmenter")
    results = measured(tiles, tmp_path / "report", "jpeg,rates=10", segmenter=tmp_path / "segmenter")
    assert ("segmenter of the map", segmenter.name) in results.settings
    codec, samples = open_codec("jpeg"), list(dataset)
    pictures = np.stack([each.image for each in samples])
    decoded = np.stack([codec.decode(codec.encode(each, None, 10.0).data, None) for each in pictures])
    maps = np.stack([each.semantic_map for each in samples])
    for figures, seen in ((results.originals[0], pictures), (results.points[0], decoded)):
        answer = segmenter.predict(seen)
        iou = [
            float(((answer == each) & (maps == each)).sum() / union)
            if (union := ((answer == each) | (maps == each)).sum())
            else None
            for each in segmenter.class_ids
        ]
        assert [each.value for each in figures.classes["map-consistency"]] == pytest.approx(iou)
        assert figures.metrics["map-consistency"].value == pytest.approx(
            np.mean([each for each in iou if each is not None])
        )
    assert [each.name for each in results.classes["map-consistency"]] == list(segmenter.classes)


# --- the same figures, however they came about -----------------------------------------------------------------------


@pytest.mark.slow
def test_figures_do_not_depend_on_the_number_of_workers(
    tiles: Path, tmp_path: Path, whole: tuple[Path, Results]
) -> None:
    measured(tiles, tmp_path, *CODECS, workers=2)
    assert repeatable(tmp_path) == repeatable(whole[0])


KILLED = """
import os, signal, sys
from magc_model.evaluate import store
add, left = store.MeasurementStore.add, [int(sys.argv[1])]
def add_and_die(*arguments):
    add(*arguments)
    left[0] -= 1
    left[0] or os.kill(os.getpid(), signal.SIGKILL)
store.MeasurementStore.add = add_and_die
from magc_model.cli import main
if __name__ == "__main__":
    main(sys.argv[2:])
"""


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_and_ends_in_the_same_bytes(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codecs = CODECS[1:]
    asked = [word for each in codecs for word in ("--codec", each)]
    command = ["evaluate", str(tiles), *asked, "--anchor", "jpeg", "--report", str(tmp_path / "killed")]
    program = [sys.executable, "-c", KILLED, "3", *command, "--workers", "2", "--quiet"]
    killed = subprocess.run(program, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (tmp_path / "killed" / "results.json").exists()
    done: list[Task] = []
    monkeypatch.setattr(job, "work", lambda task: (done.append(task), work(task))[1])
    measured(tiles, tmp_path / "killed", *codecs)
    assert len(done) in (2, 3), "of five; the pictures to be shown come after the figures of the last"
    measured(tiles, tmp_path / "whole", *codecs)
    assert repeatable(tmp_path / "killed") == repeatable(tmp_path / "whole")


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


@pytest.mark.slow
def test_a_program_whose_rates_have_to_be_given_is_measured_at_these(pictures: Path, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    results = measured(pictures, tmp_path / "report", f"stf:{program},rates=10/60", anchor=f"stf:{program}")
    assert [each.rate for each in results.points] == [10.0, 60.0]
    assert results.points[0].file_bytes < results.points[1].file_bytes
    assert [each.codec for each in results.run.footprints] == [f"stf:{program}"]


@pytest.mark.slow
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


@pytest.mark.slow
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
@pytest.mark.slow
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
