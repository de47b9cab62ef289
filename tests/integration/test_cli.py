"""The command line: one plain sentence for every mistake, the right exit code, quick help, answers a machine can read."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_world
from interrupts import heed_interrupts
from PIL import Image

from magc_data import cli
from magc_data.build import build
from magc_data.config import BuildConfig


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tiles`, `world.osm.opl` and a finished `dataset`."""
    folder = tmp_path_factory.mktemp("world")
    tiny_world.write_pictures(folder / "tiles")
    tiny_world.write_osm(folder / "world.osm.opl")
    os.environ["MAGC_CACHE_DIR"] = str(folder / "cache")
    settings = BuildConfig(
        bbox=tiny_world.BBOX,
        imagery=str(folder / "tiles"),
        osm=str(folder / "world.osm.opl"),
        out=folder / "dataset",
        workers=1,
    )
    build(settings, lambda _: None, quiet=True)
    return folder


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


def magc_data(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> Outcome:
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(each) for each in arguments])
    printed = capfd.readouterr()
    return Outcome(stopped.value.code, printed.out, printed.err)


GOOD_SOURCES = ["--imagery", "{world}/tiles", "--osm", "{world}/world.osm.opl", "--out", "{out}", "--quiet"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["build", "--bbox", "11,55,10,56"], 2, "west"),
        (["build", "--bbox", "10,56,11,55"], 2, "south"),
        (["build", "--bbox", "10,55,10,56"], 2, "empty"),
        (["build", "--bbox", "10,55,200,56"], 2, "outside the world"),
        (["build", "--bbox", "10,84,11,86"], 2, "85.05"),
        (["build", "--bbox", "10,55,11"], 2, "bbox"),
        (["build", "--bbox", "a,b,c,d"], 2, "bbox"),
        (["build", "--bbox"], 2, "bbox"),
        (["build", "--bbox", "10,55,11,56,57"], 2, "57"),
        (["build", "--zoom", "17.5"], 2, "zoom"),
        (["build", "--bbox", "{bbox}", "--zoom", "40", *GOOD_SOURCES], 2, "zoom 40"),
        (["build", "--imagery", "wold-imagery", "--osm", "{world}/world.osm.opl", "--bbox", "{bbox}", "--out", "{out}"], 2, "world-imagery"),
        (["build", "--imagery", "bing", "--osm", "{world}/world.osm.opl", "--bbox", "{bbox}", "--out", "{out}"], 2, "bing"),
        (["build", "--imagery", "{world}/tiles", "--osm", "{world}/absent.osm.pbf", "--bbox", "{bbox}", "--out", "{out}"], None, "absent.osm.pbf"),
        (["build", "--imagery", "{world}/absent.tif", "--osm", "{world}/world.osm.opl", "--bbox", "{bbox}", "--out", "{out}"], None, "absent.tif"),
        (["build", "--imagery", "{world}/text.tif", "--osm", "{world}/world.osm.opl", "--bbox", "{bbox}", "--out", "{out}"], 1, "text.tif"),
        (["build", "--imagery", "{world}/tiles", "--osm", "{world}/text.osm.pbf", "--bbox", "{bbox}", "--out", "{out}"], 1, "text.osm.pbf"),
        (["build", "--bbox", "{bbox}", *GOOD_SOURCES, "--scheme", "absent.yaml"], 2, "absent.yaml"),
        (["build", "--bbox", "{bbox}", *GOOD_SOURCES, "--workers", "-1"], 2, "workers"),
        (["build", "--bbox", "{bbox}", *GOOD_SOURCES, "--rate", "0"], 2, "rate"),
        (["build", "--bbox", "{bbox}", *GOOD_SOURCES, "--rate", "inf"], 2, "rate"),
        (["build", "--bbox", "{bbox}", *GOOD_SOURCES[:4], "--out", "{world}/tiles"], 1, "no magc dataset"),
        (["build", "--bbox", "{bbox}", *GOOD_SOURCES[:4], "--out", "{world}/world.osm.opl"], 1, "is a file"),
        (["build", "--aoi", "{world}/absent.geojson", *GOOD_SOURCES], 2, "absent.geojson"),
        (["build", "--points", "{world}/world.osm.opl", *GOOD_SOURCES], 2, "world.osm.opl"),
        (["build", "--bbox", "{bbox}", "--aoi", "x.geojson", *GOOD_SOURCES], 2, "--bbox and --aoi"),
        (["build", "--osm-date", "yesterday", "--bbox", "{bbox}", "--imagery", "{world}/tiles", "--out", "{out}"], 2, "yesterday"),
        (["build", "--osm-date", "2020-01-01", "--bbox", "{bbox}", *GOOD_SOURCES], 2, "only overpass"),
        (["build", "--imagery", "{world}/tiles", "--osm", "{helsinki}", "--out", "{out}"], 2, "no place in common"),
        (["verify", "{world}/tiles"], 1, "not a magc dataset"),
        (["verify", "{world}/absent"], 1, "not a magc dataset"),
        (["stats", "{world}/world.osm.opl"], 1, "is a file"),
        (["preview", "{world}/dataset", "--count", "0"], 2, "--count"),
        (["preview", "{world}/dataset", "--out", "/proc/nowhere/x.png"], 1, "/proc/nowhere"),
        (["scheme", "absent"], 2, "absent"),
        (["frobnicate"], 2, "frobnicate"),
        (["build", "--frobnicate"], 2, "frobnicate"),
    ],
)  # fmt: skip
def test_a_mistake_gets_one_sentence(
    arguments: list[str],
    code: int | None,
    said: str,
    world: Path,
    helsinki_pbf: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name in ("text.tif", "text.osm.pbf"):
        (world / name).write_text("this is no such file")
    values = {
        "world": str(world),
        "out": str(tmp_path / "out"),
        "bbox": tiny_world.BBOX_TEXT,
        "helsinki": str(helsinki_pbf),
    }
    outcome = magc_data(capfd, *(each.format(**values) for each in arguments))
    assert outcome.code in ({1, 2} if code is None else {code})
    lines = outcome.err.strip().splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("magc-data: ")
    assert said in lines[0]
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "out").exists(), "a refused build left something behind"


@pytest.mark.parametrize(
    "form",
    [["--bbox", "-10.5,-3,-10.4,-2.9"], ["--bbox=-10.5,-3,-10.4,-2.9"], ["--bbox", "-10.5", "-3", "-10.4", "-2.9"], ["--bbox", "-10.5,", "-3,", "-10.4,", "-2.9"]],
)  # fmt: skip
def test_a_bbox_may_be_written_in_each_way(form: list[str], capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tiny_world.write_pictures(tmp_path / "tiles")
    tiny_world.write_osm(tmp_path / "w.osm.opl")
    outcome = magc_data(
        capfd, "plan", *form, "--imagery", tmp_path / "tiles", "--osm", tmp_path / "w.osm.opl", "--json"
    )
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["bounds_lonlat"] == [-10.5, -3.0, -10.4, -2.9]


def test_the_plan_says_what_the_build_then_does(world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sources = ["--bbox", tiny_world.BBOX_TEXT, "--imagery", world / "tiles", "--osm", world / "world.osm.opl"]
    figures = json.loads(magc_data(capfd, "plan", *sources, "--json").out)
    built = json.loads(magc_data(capfd, "build", *sources, "--out", tmp_path / "d", "--json", "--quiet").out)
    assert figures["tiles_to_fetch"] == 0  # they are on this machine
    assert figures["tiles"] == built["planned"] == built["kept"] == len(tiny_world.tiles())
    info = json.loads(magc_data(capfd, "info", tmp_path / "d", "--json").out)
    assert figures["gsd_m_min"] <= info["gsd_m"]["min"] <= info["gsd_m"]["max"] <= figures["gsd_m_max"]
    text = magc_data(capfd, "plan", *sources).out
    assert "m/px" in text
    assert "0.69" in text  # 54.16 N: not the 1.07 of 26.4 N


def test_info_stats_and_preview(world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    info = magc_data(capfd, "info", world / "dataset")
    assert "0.69" in info.out
    stats = json.loads(magc_data(capfd, "stats", world / "dataset", "--json").out)
    assert stats["kept"] == len(tiny_world.tiles())
    assert sum(each["mean_share"] for each in stats["classes"]) == pytest.approx(1, abs=1e-5)
    assert "building" in magc_data(capfd, "stats", world / "dataset").out
    outcome = magc_data(capfd, "preview", world / "dataset", "--out", tmp_path / "p.png", "--count", "5")
    assert outcome.code == 0
    with Image.open(tmp_path / "p.png") as sheet:
        assert sheet.width > 3 * 256
        colors = np.unique(np.asarray(sheet.convert("RGB")).reshape(-1, 3), axis=0)
    assert [178, 62, 50] in colors.tolist()  # the building's colour is in the picture


def test_the_scheme_command_prints_what_build_reads(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from magc_data.schema.classes import load_scheme

    (tmp_path / "mine.yaml").write_text(magc_data(capfd, "scheme", "basic").out)
    assert load_scheme(str(tmp_path / "mine.yaml")) == load_scheme("basic")


def test_sources_are_listed(capfd: pytest.CaptureFixture[str]) -> None:
    out = magc_data(capfd, "sources").out
    for name in ("world-imagery", "wayback", "sample-banepa", "overpass", "helsinki"):
        assert name in out


def test_help_imports_nothing_heavy() -> None:
    """Speed is judged in benchmarks; what makes help slow is an import, and that can be tested."""
    heavy = {
        "numpy",
        "pyarrow",
        "shapely",
        "numba",
        "rasterio",
        "geopandas",
        "osmnx",
        "osmium",
        "torch",
        "requests",
        "PIL",
    }
    code = (
        "import sys\nfrom magc_data import cli\n"
        "try:\n    cli.main(['build', '--help'])\nexcept SystemExit:\n    pass\n"
        f"print(sorted({heavy!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "--bbox" in done.stdout


def test_a_full_disk_is_one_sentence(
    world: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """/dev/full is a real device that answers every write with ENOSPC."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    from magc_data import preview

    monkeypatch.setattr(preview, "atomic_file", lambda _: os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb"))
    outcome = magc_data(capfd, "preview", world / "dataset", "--out", "x.png")
    assert outcome.code == 1
    assert "No space left on device" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


def test_ctrl_c_is_one_sentence_and_the_build_goes_on_later(world: Path, tmp_path: Path) -> None:
    """A real interrupt, sent as a terminal sends it: to the whole process group, workers included."""
    environment = os.environ | {"MAGC_CACHE_DIR": str(tmp_path / "cache")}
    arguments = ["build", "--bbox", tiny_world.BBOX_TEXT, "--imagery", str(world / "tiles"), "--quiet"]
    arguments += ["--osm", str(world / "world.osm.opl"), "--workers", "2", "--out", str(tmp_path / "d")]
    command = [sys.executable, "-m", "magc_data", *arguments]
    # In the middle, where the machine lets it; the last time before anything is made.
    for begun, wait in (("d/shards", 0.3), ("d/shards", 0.0), ("d", 0.0)):
        process = subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True,
            preexec_fn=heed_interrupts,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not (tmp_path / begun).is_dir() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        time.sleep(wait)
        os.killpg(process.pid, signal.SIGINT)
        _, printed = process.communicate(timeout=60)
        if process.returncode:
            break
        shutil.rmtree(tmp_path / "d")  # it was faster
    assert process.returncode == 130
    assert "Traceback" not in printed
    assert printed.strip().splitlines()[-1].startswith("magc-data: interrupted")
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert tiny_world.tree_digests(tmp_path / "d") == tiny_world.tree_digests(world / "dataset")
