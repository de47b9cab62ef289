"""`pipelines/paper_dataset.py`: what it would do at full size, and all of it at the smallest, against local servers."""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tiny_world
from fake_arcgis import running_arcgis
from fake_overpass import FakeOverpass

from magc_data.area import area_of, count_tiles
from magc_data.cli import app
from magc_data.config import BuildConfig
from magc_data.shards.reader import read_index

if TYPE_CHECKING:
    from types import ModuleType

PIPELINE = Path(__file__).resolve().parents[2] / "pipelines" / "paper_dataset.py"


@pytest.fixture(scope="module")
def pipeline() -> ModuleType:
    spec = importlib.util.spec_from_file_location("paper_dataset", PIPELINE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(PIPELINE), *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("variant", [pytest.param("world-imagery", marks=pytest.mark.slow), "open"])
@pytest.mark.slow
def test_its_commands_are_commands_and_its_area_has_the_tiles(variant: str, tmp_path: Path) -> None:
    done = ran("--out", str(tmp_path), "--variant", variant, "--dry-run")
    assert done.returncode == 0, done.stderr
    head, *lines = done.stdout.splitlines()
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "magc-data"
        app.parse_args(arguments, exit_on_error=False, print_error=False)
    assert [shlex.split(line)[1] for line in lines] == ["plan", "build", "verify", "split", "stats", "export"]
    assert not (tmp_path / "dataset").exists()
    area = area_of(BuildConfig(aoi=tmp_path / "area.geojson", out=tmp_path), None)
    tiles = count_tiles(area, 17)
    assert f" {tiles} tiles" in head
    assert 1.5 * (45_000 + 4_500) <= tiles < 1.6 * (45_000 + 4_500)


def test_places_lie_on_their_continents_and_share_no_ground(pipeline: ModuleType) -> None:
    assert {place.continent for place in pipeline.WORLD} == {
        "Africa", "Asia", "Europe", "North America", "Oceania", "South America"
    }  # fmt: skip
    for variant in pipeline.VARIANTS.values():
        found = [each.bounds_lonlat for each in pipeline.squares(variant.places, 74_250)]
        for number, a in enumerate(found):
            assert a.west < a.east
            assert a.south < a.north
            for b in found[number + 1 :]:
                assert a.east < b.west or b.east < a.west or a.north < b.south or b.north < a.south


@pytest.mark.slow
def test_the_whole_way_at_the_smallest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = tmp_path / "places.csv"
    west, south, east, north = tiny_world.BBOX
    rows = [f"P{n},Nowhere,{west + (east - west) * share},{(south + north) / 2}" for n, share in enumerate((0.1, 0.9))]
    # Far enough for the ring between train and test.
    rows += [f"Q{n},Nowhere,{west + 0.2 * (n + 1)},{south}" for n in range(2)]
    places.write_text("\n".join(["name,continent,lon,lat", *rows]) + "\n")
    osm = tiny_world.write_osm(tmp_path / "world.osm.opl")
    with running_arcgis() as imagery, FakeOverpass.of_file(osm) as overpass:
        monkeypatch.setenv("MAGC_WORLD_IMAGERY_URL", imagery.url)
        monkeypatch.setenv("MAGC_OVERPASS_URL", overpass.api)
        sizes = ("--train-tiles", "8", "--test-tiles", "4", "--oversampled", "1.3")
        done = ran("--out", str(tmp_path / "paper"), "--places", str(places), *sizes)
    assert done.returncode == 0, done.stderr
    splits = read_index(tmp_path / "paper" / "dataset", ["split"])["split"].to_pylist()
    assert (splits.count("train"), splits.count("test")) == (8, 4)
    assert list((tmp_path / "paper" / "recipe").rglob("magc.lock"))
    area = json.loads((tmp_path / "paper" / "area.geojson").read_bytes())
    assert [each["properties"]["name"] for each in area["features"]] == ["P0", "P1", "Q0", "Q1"]
