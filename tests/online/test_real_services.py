"""The real services: run by hand with `pytest -m online tests/online`, where there is a network and you accept their terms.

A handful of tiles each, at the polite rate. Everything that can be tested without the services is, elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from magc_data.build import build
from magc_data.changes import build_changes
from magc_data.config import BuildConfig
from magc_data.plan import plan
from magc_data.shards.reader import read_index
from magc_data.verify import verify

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.online

BANEPA = (85.5210, 27.6290, 85.5240, 27.6320)
"""Two by two tiles of a town with dense buildings and roads."""


def test_the_default_build_of_four_tiles(tmp_path: Path) -> None:
    manifest = build(BuildConfig(bbox=BANEPA, out=tmp_path / "d", workers=1), print, quiet=True).manifest
    assert manifest["counts"]["kept"] == manifest["counts"]["planned"] > 0
    assert manifest["sources"]["imagery"]["redistributable"] is False
    assert verify(tmp_path / "d").findings == ()
    rows = read_index(tmp_path / "d").to_pylist()
    assert all(row["fraction_building"] > 0.02 for row in rows)
    assert all(row["osm_timestamp"] for row in rows)


def test_wayback_by_date_is_pinned_to_a_release(tmp_path: Path) -> None:
    config = BuildConfig(bbox=BANEPA, imagery="wayback:2023-06-01", out=tmp_path / "d", workers=1)
    manifest = build(config, print, quiet=True).manifest
    assert manifest["sources"]["imagery"]["version"]
    assert manifest["counts"]["kept"] > 0


def test_the_plan_asks_the_tilemap_and_fetches_nothing() -> None:
    figures = plan(BuildConfig(bbox=BANEPA))
    assert figures.blank_share == 0.0
    assert figures.tiles_to_fetch <= figures.tiles


def test_a_place_has_a_polygon() -> None:
    assert plan(BuildConfig(place="Banepa, Nepal")).tiles > 10


def test_tiles_of_world_imagery_and_wayback_have_dates(tmp_path: Path) -> None:
    for number, imagery in enumerate(("world-imagery", "wayback:2023-06-01")):
        manifest = build(
            BuildConfig(bbox=BANEPA, imagery=imagery, out=tmp_path / str(number)), print, quiet=True
        ).manifest
        assert manifest["capture_dates"]["known"] > 0, manifest["capture_dates"]
        assert all(row["capture_gsd_m"] < 2 for row in read_index(tmp_path / str(number)).to_pylist())


def test_changes_between_two_releases(tmp_path: Path) -> None:
    config = BuildConfig(bbox=BANEPA, imagery="wayback:2016..2023", changes=True, out=tmp_path / "d", workers=1)
    document = build_changes(config, print, quiet=True).document
    assert document["counts"]["kept"] + document["counts"]["rejected"].get("unchanged", 0) > 0
    assert document["counts"]["transient"] == 0


def test_a_map_of_the_month_of_its_image(tmp_path: Path) -> None:
    config = BuildConfig(bbox=BANEPA, imagery="wayback:2023-06-01", match_osm_date=True, out=tmp_path / "d", workers=1)
    build(config, print, quiet=True)
    assert all(-30 <= row["osm_days"] <= 0 for row in read_index(tmp_path / "d").to_pylist())
