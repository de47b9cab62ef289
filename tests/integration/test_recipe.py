"""A recipe makes its dataset again to the byte, or says exactly what has changed upstream; services are local servers."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import fake_arcgis
import pytest
import tiny_world
from fake_arcgis import running_arcgis
from fake_overpass import FakeOverpass
from tiny_world import World, tree_digests

from magc_data import cli
from magc_data.config import BuildConfig
from magc_data.errors import UsageError
from magc_data.export.job import export
from magc_data.grid import parse_key
from magc_data.lock_file import read_lock
from magc_data.plan import plan
from magc_data.shards.reader import read_index, read_members
from magc_data.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fake_arcgis import FakeArcgis

# Three columns and rows of tiles in one block.
WEST, SOUTH = tiny_world.CORNER_LON + 0.0002, tiny_world.CORNER_LAT + 0.0002
BBOX = (WEST, SOUTH, WEST + 0.0075, SOUTH + 0.004)
TILES = 9


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def magc_data(capfd: pytest.CaptureFixture[str]):
    def run(*arguments: object) -> Outcome:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(each) for each in arguments])
        printed = capfd.readouterr()
        return Outcome(stopped.value.code, printed.out, printed.err)

    return run


@pytest.fixture
def arcgis(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeArcgis]:
    with running_arcgis() as service:
        monkeypatch.setenv("MAGC_WORLD_IMAGERY_URL", service.url)
        yield service


@pytest.fixture
def overpass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOverpass]:
    with FakeOverpass.of_file(tiny_world.write_osm(tmp_path / "world.osm.opl")) as service:
        monkeypatch.setenv("MAGC_OVERPASS_URL", service.api)
        yield service


@pytest.fixture
def recorded(arcgis: FakeArcgis, overpass: FakeOverpass, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `data`, of services that may not be passed on, and its `recipe`; the next build starts afresh."""
    tiny_world.run(BuildConfig(bbox=BBOX, out=tmp_path / "data", workers=1, rate=500.0))
    export(tmp_path / "data", "recipe", tmp_path / "recipe", quiet=True)
    monkeypatch.setenv("MAGC_CACHE_DIR", str(tmp_path / "another-machine"))
    return tmp_path


def rebuild_arguments(folder: Path, out: str = "again") -> list[object]:
    lock = folder / "recipe" / "magc.lock"
    return ["build", "--lock", lock, "--out", folder / out, "--workers", 1, "--rate", 500, "--quiet"]


def report(folder: Path, out: str = "again") -> dict:
    return json.loads((folder / out / "lock-report.json").read_text())


def with_a_lake(before: Path, after: Path) -> Path:
    """The same town with a lake in the easternmost column of tiles."""
    west, south = BBOX[2] - 0.001, SOUTH + 0.0005
    corners = [(west, south), (west + 0.0009, south), (west + 0.0009, south + 0.003), (west, south + 0.003)]
    time = "v1 dV t2024-05-02T00:00:00Z"
    nodes = [f"n90000{number} {time} x{lon:.7f} y{lat:.7f}" for number, (lon, lat) in enumerate(corners)]
    way = f"w900000 {time} Tnatural=water N{','.join(f'n90000{number}' for number in (0, 1, 2, 3, 0))}"
    lines = before.read_text().splitlines()
    first_way = next(number for number, line in enumerate(lines) if line.startswith("w"))
    first_relation = next(number for number, line in enumerate(lines) if line.startswith("r"))
    lines = [*lines[:first_way], *nodes, *lines[first_way:first_relation], way, *lines[first_relation:]]
    after.write_text("\n".join(lines) + "\n")
    return after


def images(data: Path) -> dict[str, bytes]:
    return {row["key"]: read_members(data, row).image for row in read_index(data).to_pylist()}


def test_nothing_has_changed(recorded: Path, arcgis: FakeArcgis, magc_data) -> None:
    fetched = set(arcgis.tiles)
    arcgis.forget()
    outcome = magc_data(*rebuild_arguments(recorded))
    assert outcome.code == 0, outcome.err
    assert f"all {TILES} images and maps have the recorded digests" in outcome.out
    assert set(arcgis.tiles) == fetched  # these tiles and no others, from the service itself
    assert report(recorded)["is_same"] is True
    before, after = (tree_digests(recorded / name) for name in ("data", "again"))
    shards = [name for name in before if name.startswith("shards/")]
    assert shards
    assert {name: after[name] for name in [*shards, "index.parquet"]} == {
        name: before[name] for name in [*shards, "index.parquet"]
    }
    assert verify(recorded / "again").findings == ()


def test_images_maps_and_missing_tiles_are_told_apart(
    recorded: Path, arcgis: FakeArcgis, magc_data, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = read_index(recorded / "data")["key"].to_pylist()
    redrawn, gone, placeholder = keys[0], keys[1], keys[3]
    real = fake_arcgis.picture_of
    monkeypatch.setattr(
        fake_arcgis,
        "picture_of",
        lambda place, release=0: real(place, 9 if place == tuple(parse_key(redrawn)) else release),
    )
    arcgis.absent.add(tuple(parse_key(gone)))
    arcgis.faults[tuple(parse_key(placeholder))] = "blank-tile"
    with FakeOverpass.of_file(with_a_lake(recorded / "world.osm.opl", recorded / "changed.osm.opl")) as changed:
        monkeypatch.setenv("MAGC_OVERPASS_URL", changed.api)
        outcome = magc_data(*rebuild_arguments(recorded))
    assert outcome.code == 3, outcome.err
    found = report(recorded)
    assert found["is_same"] is False
    assert found["images_changed"] == [redrawn]
    assert {(each["key"], each["reason"]) for each in found["gone"]} == {
        (gone, "not-available"), (placeholder, "placeholder")
    }  # fmt: skip
    before, after = ({row["key"]: row for row in read_index(recorded / name).to_pylist()} for name in ("data", "again"))
    assert set(found["maps_changed"]) == {key for key in after if after[key]["map_sha256"] != before[key]["map_sha256"]}
    easternmost = max(parse_key(key).x for key in keys)
    assert {parse_key(key).x for key in found["maps_changed"]} == {easternmost}
    assert found["same"] == 3
    assert found["same"] == len(keys) - len({redrawn, gone, placeholder, *found["maps_changed"]})
    for words in ("image changed: 1", "map changed: ", "gone, not-available: 1", "gone, placeholder: 1"):
        assert words in outcome.out
    # What is left is a sound dataset of what there is now.
    assert verify(recorded / "again").findings == ()
    assert images(recorded / "again")[redrawn] == real(tuple(parse_key(redrawn)), 9)
    assert set(images(recorded / "again")) == set(keys) - {gone, placeholder}


def test_a_rebuild_that_was_stopped_goes_on(recorded: Path, arcgis: FakeArcgis, magc_data) -> None:
    """Tiles that could not be fetched this time are missing for now; the same command brings them."""
    key = read_index(recorded / "data")["key"].to_pylist()[2]
    arcgis.faults[tuple(parse_key(key))] = "503"
    outcome = magc_data(*rebuild_arguments(recorded))
    assert outcome.code == 3
    assert [(each["key"], each["transient"]) for each in report(recorded)["gone"]] == [(key, True)]
    assert "run the same command again" in outcome.out
    arcgis.faults.clear()
    outcome = magc_data(*rebuild_arguments(recorded))
    assert outcome.code == 0, outcome.out
    assert report(recorded)["is_same"] is True
    assert images(recorded / "again") == images(recorded / "data")


def test_a_pinned_database_is_pinned_again(
    arcgis: FakeArcgis, overpass: FakeOverpass, tmp_path: Path, magc_data
) -> None:
    pinned = BuildConfig(bbox=BBOX, out=tmp_path / "data", workers=1, rate=500.0, osm_date="2024-03-01")
    tiny_world.run(pinned)
    export(tmp_path / "data", "recipe", tmp_path / "recipe", quiet=True)
    overpass.timestamp = "2025-01-01T00:00:00Z"
    outcome = magc_data(*rebuild_arguments(tmp_path))
    assert outcome.code == 0, outcome.err
    assert report(tmp_path)["inputs_changed"] == []
    assert all('[date:"2024-03-01T00:00:00Z"]' in query for query in overpass.queries)


def test_a_newer_database_is_named_though_no_map_differs(recorded: Path, overpass: FakeOverpass, magc_data) -> None:
    overpass.timestamp = "2025-01-01T00:00:00Z"
    assert magc_data(*rebuild_arguments(recorded)).code == 0
    assert report(recorded)["inputs_changed"] == [
        {"name": "OpenStreetMap's time", "recorded": "2024-05-01T00:00:00Z", "found": "2025-01-01T00:00:00Z"}
    ]


def test_the_answer_for_machines(recorded: Path, magc_data) -> None:
    outcome = magc_data(*rebuild_arguments(recorded), "--json")
    answer = json.loads(outcome.out)
    assert answer["is_same"] is True
    assert answer["same"] == TILES


def test_plan_reads_a_lock_too(recorded: Path) -> None:
    figures = plan(BuildConfig(lock=recorded / "recipe" / "magc.lock", out=recorded / "unused"))
    assert (figures.tiles, figures.imagery, figures.zoom) == (TILES, "world-imagery", 17)


# --- recipes of files, which need no service ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Path]:
    """A world of files, its dataset `data` and the recipe of that."""
    folder = tmp_path_factory.mktemp("files")
    os.environ["MAGC_CACHE_DIR"] = str(folder / "cache")
    world = World(folder, BBOX)
    tiny_world.run(world.config(folder / "data"))
    export(folder / "data", "recipe", folder / "recipe", quiet=True)
    return world, folder


def test_a_recipe_of_files_asks_for_the_files(of_files: tuple[World, Path], tmp_path: Path, magc_data) -> None:
    world, folder = of_files
    arguments = ["build", "--lock", folder / "recipe" / "magc.lock", "--out", tmp_path / "again", "--quiet"]
    outcome = magc_data(*arguments)
    assert outcome.code == 2
    assert "came from the file 'tiles'" in outcome.err
    assert "--imagery PATH" in outcome.err
    outcome = magc_data(*arguments, "--imagery", world.pictures, "--osm", world.osm, "--workers", 1)
    assert outcome.code == 0, outcome.err
    assert images(tmp_path / "again") == images(folder / "data")


def test_a_recipe_names_no_path_of_the_maker(of_files: tuple[World, Path]) -> None:
    world, folder = of_files
    for path in (folder / "recipe").iterdir():
        assert str(folder) not in path.read_text()
    lock = read_lock(folder / "recipe" / "magc.lock")
    assert lock.header.imagery is not None
    assert lock.header.imagery.is_file
    assert lock.header.imagery.address == world.pictures.name


def test_a_recipe_is_of_what_was_chosen(of_files: tuple[World, Path], tmp_path: Path) -> None:
    """Splits are recorded, and the tiles that belong to none are left out."""
    import shutil

    import pyarrow as pa
    import pyarrow.parquet as pq

    _, folder = of_files
    data = tmp_path / "data"
    shutil.copytree(folder / "data", data)
    table = pq.read_table(data / "index.parquet")
    rows = table.to_pylist()
    for number, row in enumerate(rows):
        row["split"] = (None, "train", "test")[number % 3]
    pq.write_table(pa.Table.from_pylist(rows, table.schema), data / "index.parquet")
    export(data, "recipe", tmp_path / "all", quiet=True)
    recorded = {each.tile.key: each.split for each in read_lock(tmp_path / "all" / "magc.lock").tiles}
    assert recorded == {row["key"]: row["split"] for row in rows if row["split"]}
    export(data, "recipe", tmp_path / "test", "test", quiet=True)
    lock = read_lock(tmp_path / "test" / "magc.lock")
    assert {each.split for each in lock.tiles} == {"test"}
    assert lock.header.selection == ("split = 'test'",)


def test_a_folder_of_another_build_is_refused(of_files: tuple[World, Path]) -> None:
    world, folder = of_files
    from magc_data.errors import DatasetError
    from magc_data.rebuild import rebuild

    config = world.config(folder / "data", bbox=None, lock=folder / "recipe" / "magc.lock")
    with pytest.raises(DatasetError, match="begun with other options"):
        rebuild(config, folder / "recipe" / "magc.lock", lambda _: None, quiet=True)
    with pytest.raises(UsageError, match="leave one of them out"):
        tiny_world.run(world.config(folder / "x", lock=folder / "recipe" / "magc.lock"))
