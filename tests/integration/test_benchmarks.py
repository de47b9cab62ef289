"""The benchmarks run: figures in the docs come from them, so a script that breaks must be noticed. Nothing is timed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_world
from PIL import Image

from magc_data.config import BuildConfig
from magc_data.dataset import MagcDataset

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(helsinki_pbf: Path, tmp_path: Path) -> Any:
    """Run a script on the extract of Helsinki and give back its JSON."""

    def run(script: str, *arguments: str) -> Any:
        environment = os.environ | {"MAGC_BENCHMARK_CACHE": str(tmp_path / "cache")}
        command = [sys.executable, str(BENCHMARKS / script), *arguments, "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_burn(benchmark: Any, helsinki_pbf: Path) -> None:
    printed = json.dumps(benchmark("burn.py", "--pbf", str(helsinki_pbf), "--side", "2", "--repeats", "1"))
    assert "rasterio" in printed


def test_png(benchmark: Any, helsinki_pbf: Path) -> None:
    (result,) = benchmark("png.py", "--pbf", str(helsinki_pbf), "--repeats", "1")
    assert result["different_pixels"] == 0
    assert len(result["ways"]) == 3


def test_relabel(benchmark: Any, helsinki_pbf: Path) -> None:
    area = ("--bbox", "24.940,60.168,24.948,60.173", "--zoom", "17")
    result = benchmark("relabel.py", "--pbf", str(helsinki_pbf), *area, "--repeats", "1")
    assert result["tiles"] > 5
    assert result["different_pixels"] == 0


def test_memory(benchmark: Any, helsinki_pbf: Path) -> None:
    sizes = ("--zoom", "19", "--small", "20", "--large", "60")
    result = benchmark("memory.py", "--osm", str(helsinki_pbf), *sizes)
    assert 0 < result["small"]["kept"] < result["large"]["kept"]
    assert result["ratio"] > 0


def test_quality(benchmark: Any, embedded_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGC_CACHE_DIR", str(embedded_cache))
    result = benchmark("quality.py", "--zoom", "17", "--repeats", "1")
    assert result["histogram"] == result["histogram_moved"] == {"0": 22}
    assert result["alignment"]["1"] > result["peak_foreign"]["99"]
    assert result["build"]["ratio"] > 0


def test_reader(benchmark: Any, embedded_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGC_CACHE_DIR", str(embedded_cache))
    result = benchmark("reader.py", "--repeats", "1")
    assert result["samples"] == 126
    assert result["different_samples"] == 0
    assert len(result["times_as_fast"]) == 2


@pytest.fixture
def held_out(embedded_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[str, ...]:
    """Ground that the model in the box has never seen, and a segmenter that knows nothing."""
    from magc_model.config import MapClass, SegmenterConfig
    from magc_model.segmenter_model import SegmenterModel, build_segmenter

    monkeypatch.setenv("MAGC_CACHE_DIR", str(embedded_cache))
    sources = {"imagery": "sample-banepa", "osm": "sample-banepa"}
    sixteen_held_out = (85.51772, 27.63257, 85.52293, 27.63718)
    tiny_world.run(BuildConfig(**sources, bbox=sixteen_held_out, zoom=18, out=tmp_path / "data", workers=1))
    known = [each for each in MagcDataset(tmp_path / "data").classes if each.name in ("background", "building")]
    config = SegmenterConfig(classes=tuple(MapClass(each.id, each.name, each.color) for each in known))
    SegmenterModel(config, build_segmenter(config)).save_pretrained(tmp_path / "segmenter")
    return "--data", str(tmp_path / "data"), "--segmenter", str(tmp_path / "segmenter")


@pytest.mark.timeout(900)
def test_tiny_aims(benchmark: Any, held_out: tuple[str, ...]) -> None:
    found = benchmark("tiny_aims.py", *held_out)
    assert all(each["low"] <= each["value"] <= each["high"] for each in found)
    gradients, distance, *_ = found
    assert (gradients["reached"], distance["reached"]) == ("yes", "yes")
    assert {each["reached"] for each in found} > {"yes"}  # those that ask a segmenter that knows nothing


@pytest.mark.timeout(900)
def test_tiny_model(benchmark: Any, held_out: tuple[str, ...], tmp_path: Path) -> None:
    only = ("--qualities", "2", "--standard", "jpeg2000", "--sheet", str(tmp_path / "sheet.png"))
    rows = benchmark("tiny_model.py", *held_out, *only)
    faithful, half, realistic = (
        next(row for row in rows if row["fidelity"] == fidelity) for fidelity in (1.0, 0.5, 0.0)
    )
    assert faithful["psnr_db"] > half["psnr_db"] > realistic["psnr_db"] > 14
    assert faithful["gradient_energy"] < half["gradient_energy"] < realistic["gradient_energy"] < 1.3
    assert faithful["bytes"] == realistic["bytes"]
    assert [row["codec"] for row in rows[4:]] == ["jpeg2000"] * 3
    assert (tmp_path / "sheet.png").is_file()


def test_latent_codec(benchmark: Any) -> None:
    """Without the peer, which needs an environment of its own."""
    size = ("--preset", "tiny", "--batch", "1", "--repeats", "1", "--train-steps", "0", "--test-tiles", "2")
    result = benchmark("latent_codec.py", "--without-peer", *size)
    assert result["speed"]["different_symbols"] == 0
    assert result["rate"]["coder_costs_percent"] < 5


def test_cluster(benchmark: Any) -> None:
    result = benchmark("cluster.py", "--zoom", "17", "--repeats", "1")
    assert result["tiles"] > 20
    assert result["different_results"] == 0
    assert min(result["slots_per_s"].values()) > 50


def test_scale_simulation(benchmark: Any) -> None:
    result = benchmark("scale_simulation.py", "--blocks", "3")["simulated"]
    assert result["the default: 0.15 s, one core"]["tiles_per_s"] == pytest.approx(8, rel=0.02)
    assert result["from the cache, 64 cores"]["tiles_per_s"] > result["from the cache, one core"]["tiles_per_s"]


def test_training(benchmark: Any) -> None:
    result = benchmark("training.py", "--steps", "2", "--batch-size", "2", "--crop-px", "64", "--threads", "1")
    assert len(result["seconds_a_step"]) == 3
    assert min(result["seconds_a_step"].values()) > 0


def test_fuzz_streams(benchmark: Any, tmp_path: Path) -> None:
    result = benchmark("fuzz_streams.py", "--streams", "400", "--keep", str(tmp_path))
    assert result["failures"] == []
    assert list(tmp_path.glob("*.magc")) == []
    assert sum(result["outcomes"].values()) == 400
    expected = ("tile: decoded", "scene: decoded", "scene: decoded, chunks lost", "tile: BitstreamError")
    assert all(result["outcomes"][each] > 0 for each in expected)


def test_fuzz_atheris(tmp_path: Path) -> None:
    """Where atheris is installed; it has no JSON."""
    pytest.importorskip("atheris")
    command = [sys.executable, str(BENCHMARKS / "fuzz_atheris.py"), str(tmp_path / "corpus"), "-runs=300"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_split(benchmark: Any, tmp_path: Path) -> None:
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((256, 256)).save(tmp_path / f"{number}.jpg")
    result = benchmark("split.py", "--tiles", "4000", "--images", str(tmp_path))
    shuffled, blocks, buffered = result["apart"]
    assert shuffled["test_tiles_that_touch_train"] > 0.9
    assert blocks["test_tiles_that_touch_train"] < 0.6
    assert buffered["test_tiles_that_touch_train"] == 0
    assert buffered["smallest_distance_m"] >= 300
    assert result["images"]["pairs"] == 3
