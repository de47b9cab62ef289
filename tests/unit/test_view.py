"""A view is some rows of a dataset wherever datasets are read, and copies nothing."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest
import tiny_world

from magc_data.cli import main
from magc_data.dataset import MagcDataset, is_dataset
from magc_data.errors import DatasetError, UsageError
from magc_data.preview import contact_sheet
from magc_data.shards.manifest import read_manifest
from magc_data.shards.reader import read_index, read_members
from magc_data.stats import as_text, statistics
from magc_data.verify import verify
from magc_data.view import make_view
from magc_data.where import WhereError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data` (24 tiles, 20 of them with buildings), `view` of it and `view-of-view`."""
    folder = tmp_path_factory.mktemp("home")
    os.environ["MAGC_CACHE_DIR"] = str(folder / "cache")
    tiny_world.run(tiny_world.World(folder).config(folder / "data"))
    make_view(folder / "data", "building > 0.01", folder / "view")
    make_view(folder / "view", "water > 0.01", folder / "view-of-view")
    return folder


@pytest.fixture
def at(home: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return shutil.copytree(home, tmp_path / "home")


def test_a_view_is_the_rows_that_the_expression_is_true_of(home: Path) -> None:
    rows = read_index(home / "data").to_pylist()
    with_buildings = [row for row in rows if row["fraction_building"] > 0.01]
    assert read_index(home / "view").to_pylist() == with_buildings
    assert 0 < len(with_buildings) < len(rows)
    with_water = [row["key"] for row in with_buildings if row["fraction_water"] > 0.01]
    assert read_index(home / "view-of-view", ["key"]).to_pydict() == {"key": with_water}
    assert 0 < len(with_water) < len(with_buildings)
    assert [path.name for path in (home / "view").iterdir()] == ["view.json"]


def test_samples_of_a_view_are_those_of_the_dataset(home: Path) -> None:
    whole, some = MagcDataset(home / "data"), MagcDataset(home / "view-of-view")
    assert some.keys == read_index(home / "view-of-view")["key"].to_pylist()
    for number, key in enumerate(some.keys):
        there = whole[whole.keys.index(key)]
        assert all((one == other).all() for one, other in zip(some[number][1:3], there[1:3], strict=True))
    row = read_index(home / "view-of-view").to_pylist()[0]
    assert read_members(home / "view-of-view", row) == read_members(home / "data", row)
    assert some.digest != whole.digest


def test_the_manifest_counts_what_the_view_has(home: Path) -> None:
    whole, part = read_manifest(home / "data"), read_manifest(home / "view-of-view")
    rows = read_index(home / "view-of-view").to_pylist()
    assert part["counts"] == whole["counts"] | {"kept": len(rows)}
    assert {each["path"] for each in part["shards"]} == {row["shard"] for row in rows}
    assert part["gsd_m"]["max"] == max(row["gsd_m"] for row in rows)
    assert part["view"] == {"folder": str(home / "data"), "where": ["water > 0.01", "building > 0.01"]}
    unchanged = whole.keys() - {"counts", "shards", "gsd_m"}
    assert all(part[name] == whole[name] for name in unchanged)


def test_commands_take_a_view(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert is_dataset(home / "view")
    figures = statistics(home / "view")
    assert figures.kept == len(read_index(home / "view"))
    assert "of these   building > 0.01" in as_text(figures)
    assert contact_sheet(home / "view-of-view", tmp_path / "sheet.png", 3) == 3
    assert verify(home / "view").samples == len(read_index(home / "data"))
    with pytest.raises(SystemExit) as stop:
        main(["info", str(home / "view-of-view")])
    assert stop.value.code == 0
    assert (
        f"view of      {home / 'data'}\nwhere        water > 0.01\nwhere        building > 0.01\n"
        in capsys.readouterr().out
    )


def test_the_command_makes_and_replaces_a_view(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for where in ("building > 0.01", "building <= 0.01"):
        with pytest.raises(SystemExit) as stop:
            main(["filter", str(home / "data"), "--where", where, "--out", str(tmp_path / "v")])
        assert stop.value.code == 0
        assert f"{len(read_index(tmp_path / 'v'))} of 24 samples" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["filter", str(home / "data"), "--where", "buildng > 1", "--out", str(tmp_path / "w")])
    assert stop.value.code == 2
    assert "did you mean building" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_a_view_and_its_dataset_move_together(at: Path) -> None:
    expected = read_index(at / "view")
    moved = at.rename(at.with_name("elsewhere"))
    assert read_index(moved / "view") == expected


def test_an_absolute_base_may_be_anywhere(at: Path, tmp_path: Path) -> None:
    view = tmp_path / "a" / "b"
    view.mkdir(parents=True)
    (view / "view.json").write_text(json.dumps({"view_version": 1, "base": str(at / "data"), "where": "x > 0"}))
    assert len(read_index(view)) == 24


def test_a_missing_base_is_named(at: Path) -> None:
    shutil.rmtree(at / "data")
    for read in (read_index, read_manifest, MagcDataset):
        with pytest.raises(DatasetError, match=r"view of .*data, which is not there"):
            read(at / "view-of-view")


def test_a_base_must_be_a_dataset(at: Path) -> None:
    (at / "data" / "dataset.json").unlink()
    with pytest.raises(DatasetError, match="is not a magc dataset"):
        read_manifest(at / "view")


def test_views_in_a_circle_end(at: Path) -> None:
    document = json.loads((at / "view" / "view.json").read_text())
    (at / "view" / "view.json").write_text(json.dumps(document | {"base": "../view-of-view"}))
    with pytest.raises(DatasetError, match="in a circle"):
        read_index(at / "view")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"view_version": 1, "base": 3, "where": "x > 1"}', "is damaged"),
        ('{"view_version": 1, "base": "", "where": "x > 1"}', "is damaged"),
        ('{"view_version": 1, "base": "../da\\u0000ta", "where": "x > 1"}', "is damaged"),
        ('{"view_version": 1, "base": "../data"}', "is damaged"),
        ('{"view_version": 2, "base": "../data", "where": "x > 1"}', "view format 2, this build of magc reads 1"),
        ('{"view_version": 1, "base": "../data", "where": "nope > 1"}', "view.json: the index has no column 'nope'"),
        ('{"view_version": 1, "base": "../world.osm.opl", "where": "x > 1"}', "not there"),
    ],
)
def test_a_damaged_view_is_named(at: Path, content: str, message: str) -> None:
    (at / "view" / "view.json").write_text(content)
    with pytest.raises(DatasetError, match=message):
        read_index(at / "view")


def test_what_cannot_be_a_view_is_refused(at: Path) -> None:
    with pytest.raises(UsageError, match="none of the 24 samples"):
        make_view(at / "data", "building > 1", at / "new")
    with pytest.raises(WhereError, match="no column"):
        make_view(at / "view", "nope > 1", at / "new")
    with pytest.raises(UsageError, match="files that are no view"):
        make_view(at / "view", "x > 1", at / "data")
    with pytest.raises(UsageError, match="is a file"):
        make_view(at / "view", "x > 1", at / "world.osm.opl")
    with pytest.raises(UsageError, match="view of itself"):
        make_view(at / "view-of-view", "x > 1", at / "view")
    with pytest.raises(DatasetError, match="not a magc dataset"):
        make_view(at / "cache", "x > 1", at / "new")
    assert not (at / "new").exists()
