"""`make demo`: its commands are commands, and in a folder of its own they do what they say."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

import magc_model.cli
from magc_data.cli import app as magc_data_app
from magc_data.cli import normalise_bbox

REPOSITORY = Path(__file__).resolve().parents[3]
APPS = {"magc": magc_model.cli.app, "magc-data": magc_data_app}
INSTALLED = ("-o", ".venv/.installed", "-o", ".venv/.installed-evaluate")
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def made(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """make in another folder, with programs of this environment, and taking everything for installed."""
    for name in APPS:
        module = "magc_data.cli" if name == "magc-data" else "magc_model.cli"
        program = folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        code = shlex.quote(f"from {module} import main; main()")
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {code} "$@"\n')
        program.chmod(0o755)
    command = ["make", "-f", str(REPOSITORY / "Makefile"), *INSTALLED, "BIN=bin", *arguments]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("target", ["demo", "demo-data"])
def test_every_command_that_is_run_or_recommended_is_one(target: str, tmp_path: Path) -> None:
    done = made(tmp_path, "-n", target)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.replace("\\\n", "").replace("test -d demo/geotiff || ", "").splitlines()
    commands = [shlex.split(line.removeprefix('echo "').rstrip('"').strip()) for line in lines if " bin/" in f" {line}"]
    programs = [command for command in commands if command[0].startswith("bin/")]
    assert len(programs) == {"demo": 14, "demo-data": 6}[target]
    for program, *arguments in programs:
        APPS[program.removeprefix("bin/")].parse_args(normalise_bbox(arguments), exit_on_error=False, print_error=False)
    assert target == "demo" or not any(program == "bin/magc" for program, *_ in programs), "which would need torch"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_goes_all_the_way(embedded_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGC_CACHE_DIR", str(embedded_cache))
    done = made(tmp_path, "demo")
    assert done.returncode == 0, done.stderr
    demo = tmp_path / "demo"
    streams = [path.stat().st_size for path in (demo / "streams").glob("*.magc")]
    assert len(streams) == 36
    assert max(streams) < 250
    [tile] = [path for path in (demo / "geotiff" / "all" / "images").iterdir() if path.name in done.stdout]
    with rasterio.open(tile) as dataset:
        original = dataset.read().transpose(1, 2, 0)[..., :3].astype(float)
    decoded = np.array(Image.open(demo / "tile.png").convert("RGB"))
    flat = np.square(original - original.mean((0, 1))).mean()
    assert np.square(decoded - original).mean() < 0.65 * flat, "2 dB better than the tile's mean colour"
    with rasterio.open(demo / "scene.tif") as scene, rasterio.open(demo / "geotiff/mosaics/images.vrt") as mosaic:
        assert (scene.crs, scene.transform, scene.shape) == (mosaic.crs, mosaic.transform, mosaic.shape)
    assert "JPEG 2000" in (demo / "report" / "report.html").read_text()
    again = made(tmp_path, "demo")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("nothing to do") == 2
