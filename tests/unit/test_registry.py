"""How what a user types becomes a source."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import FrozenInstanceError
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import NamedTuple

import pytest

from magc_data.errors import UsageError
from magc_data.sources import registry
from magc_data.sources.protocols import SourceContext
from magc_data.sources.registry import IMAGERY, VECTORS, Registry, open_imagery, open_vectors, source_names

CONTEXT = SourceContext(Path(), None, 17, frozenset())


class Opened(NamedTuple):
    """What a test's opener returns."""

    opener: str
    argument: str | None


@pytest.fixture
def opened(monkeypatch):
    """Openers that report how they were called, under the real dispatch."""

    def report(choice, context):
        assert context is CONTEXT
        return Opened(choice.opener.rpartition(":")[2], choice.argument)

    monkeypatch.setattr(registry, "_open", report)


def installed(monkeypatch, *points):
    monkeypatch.setattr(registry, "entry_points", lambda group: [each for each in points if each.group == group])


def open_third_party(argument, context):
    """A source of an installed package, for the tests below."""
    return Opened("third-party", argument)


def test_register_returns_a_new_registry():
    one = Registry("imagery").register("a", "m:f")
    two = one.register("b-2", "m:g")
    assert (list(one.openers), list(two.openers)) == (["a"], ["a", "b-2"])
    with pytest.raises(FrozenInstanceError):
        one.openers = {}


def test_a_clash_is_an_error_that_names_both():
    with pytest.raises(
        UsageError, match=r"two imagery sources are named 'wayback' \(magc_data.*open_wayback and m:f\)"
    ):
        IMAGERY.register("wayback", "m:f")


@pytest.mark.parametrize("name", ["", "A", "a b", "a:b", "a/b", "1", "a.tif"])
def test_malformed_names_are_refused(name):
    with pytest.raises(UsageError, match="cannot name a source"):
        IMAGERY.register(name, "m:f")


@pytest.mark.parametrize("table", [IMAGERY.openers, VECTORS.openers, registry.IMAGERY_FILES, registry.VECTOR_FILES])
def test_every_opener_exists(table):
    for opener in set(table.values()):
        module, _, function = opener.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_suffixes_are_those_that_the_readers_know():
    from magc_data.sources.osm_file import OSM_FILE_SUFFIXES
    from magc_data.sources.vector_file import VECTOR_FILE_SUFFIXES

    by_opener = {opener: set() for opener in registry.VECTOR_FILES.values()}
    for suffix, opener in registry.VECTOR_FILES.items():
        by_opener[opener].add(suffix)
    osm_file, vector_file = by_opener.values()
    assert osm_file == set(OSM_FILE_SUFFIXES)
    assert vector_file == set(VECTOR_FILE_SUFFIXES)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("world-imagery", ("open_world_imagery", None)),
        ("wayback", ("open_wayback", None)),
        ("wayback:2022-01-01", ("open_wayback", "2022-01-01")),
        ("wayback:", ("open_wayback", "")),
        (
            "https://u:p@example.org/{z}/{x}/{y}.png?key=a,b",
            ("open_xyz", "https://u:p@example.org/{z}/{x}/{y}.png?key=a,b"),
        ),
        ("a.tif,b.tif", ("open_raster", "a.tif,b.tif")),
        ("scenes/*.tif", ("open_raster", "scenes/*.tif")),
    ],
)
def test_imagery_by_name_template_and_pattern(opened, spec, expected):
    assert open_imagery(spec, CONTEXT) == expected


@pytest.mark.parametrize(
    ("name", "opener"),
    [
        ("t.mbtiles", "open_mbtiles"),
        ("t.PMTiles", "open_pmtiles"),
        ("t.tif", "open_raster"),
        ("t.jp2", "open_raster"),
        ("no-suffix", "open_raster"),
        ("a,b [1].tif", "open_raster"),
        ("t/17/1/2.png", "open_tile_folder"),
        ("t/17_1_2.jpg", "open_tile_folder"),
        ("t/scene.tif", "open_raster"),
        ("t/readme.txt", "open_raster"),
    ],
)
def test_imagery_by_path(opened, tmp_path, name, opener):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\xff\xd8\xff")
    asked = str(tmp_path / Path(name).parts[0])
    assert open_imagery(asked, CONTEXT) == (opener, asked)


@pytest.mark.parametrize(
    ("name", "opener"),
    [
        ("a.osm.pbf", "open_osm_file"),
        ("a.b.PBF", "open_osm_file"),
        ("a.osm", "open_osm_file"),
        ("a.1.osm.bz2", "open_osm_file"),
        ("a.geojson", "open_vector_file"),
        ("a.2024.gpkg", "open_vector_file"),
        ("a.parquet", "open_vector_file"),
    ],
)
def test_vectors_by_path(opened, tmp_path, name, opener):
    (tmp_path / name).touch()
    assert open_vectors(str(tmp_path / name), CONTEXT) == (opener, str(tmp_path / name))


def test_a_name_goes_before_a_file_of_that_name(opened, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("overpass").touch()
    assert open_vectors("overpass", CONTEXT).opener == "open_overpass"
    Path("wayback").mkdir()
    assert open_imagery("wayback", CONTEXT).opener == "open_wayback"
    assert open_imagery("./wayback", CONTEXT).opener == "open_raster"


@pytest.mark.parametrize(
    ("opener", "spec", "message"),
    [
        (open_imagery, "wold-imagery", r"^'wold-imagery' is neither a file nor imagery known here \(did you mean world-imagery\?\)"),
        (open_imagery, "waybck:2022", r"\(did you mean wayback\?\): expected a path or one of none, sample-banepa, wayback, world-imagery$"),
        (open_imagery, "nowhere/scene.tif", r"^'nowhere/scene\.tif' is neither a file nor imagery known here: expected a path"),
        (open_vectors, "overpas", r"did you mean overpass\?\): expected a path or one of helsinki, overpass, sample-banepa$"),
        (open_vectors, "", r"^'' is neither a file nor vectors known here: expected"),
    ],
)  # fmt: skip
def test_unknown_sources_get_the_names(opener, spec, message):
    with pytest.raises(UsageError, match=message) as caught:
        opener(spec, CONTEXT)
    assert caught.value.exit_code == 2


def test_other_files_are_no_vectors(tmp_path):
    (tmp_path / "a.csv").touch()
    with pytest.raises(
        UsageError, match=r"a\.csv' is no vector file known here: expected a name that ends in \.osm\.pbf"
    ):
        open_vectors(str(tmp_path / "a.csv"), CONTEXT)


@pytest.mark.parametrize("opener", [open_imagery, open_vectors])
def test_addresses_are_never_repeated(opener):
    with pytest.raises(UsageError, match=r"the address at example\.org is") as caught:
        opener("https://me:geheim@example.org/a.tif?token=geheim", CONTEXT)
    assert "geheim" not in str(caught.value)


def test_installed_packages_add_sources(monkeypatch):
    point = EntryPoint("mine", f"{__name__}:open_third_party", "magc_data.imagery")
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    installed(monkeypatch, point)
    assert "mine" in source_names()["imagery"]
    assert "mine" not in source_names()["vectors"]
    assert open_imagery("mine:2", CONTEXT) == ("third-party", "2")
    assert "mine" not in IMAGERY.openers


def test_a_package_that_takes_a_taken_name_is_an_error(monkeypatch):
    installed(monkeypatch, EntryPoint("overpass", "other:f", "magc_data.vectors"))
    with pytest.raises(UsageError, match="two vectors sources are named 'overpass'"):
        source_names()
    # The built-in ones still open by name without looking at it.
    assert registry._named(VECTORS, "helsinki").argument is None


@pytest.mark.parametrize("value", ["not_installed_anywhere:f", "magc_data.grid:no_such_function"])
def test_a_source_whose_code_is_gone_is_one_sentence(monkeypatch, value):
    installed(monkeypatch, EntryPoint("mine", value, "magc_data.imagery"))
    with pytest.raises(UsageError, match=f"code {value} cannot be loaded .*: reinstall its package"):
        open_imagery("mine", CONTEXT)


def test_names_are_listed_without_loading_anything_heavy():
    code = (
        "import json, sys; from magc_data.sources.registry import source_names; "
        "print(json.dumps([source_names(), sorted(sys.modules)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, modules = json.loads(done.stdout)
    assert set(names["imagery"]) >= {"world-imagery", "wayback", "sample-banepa"}
    assert set(names["vectors"]) >= {"overpass", "sample-banepa", "helsinki"}
    heavy = {"rasterio", "osmium", "pyogrio", "osmnx", "numba", "shapely", "geopandas", "pandas", "requests", "numpy"}
    assert heavy.isdisjoint(modules)
