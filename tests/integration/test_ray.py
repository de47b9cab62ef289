"""`--engine ray` on a real cluster of two nodes on this machine, each with a cache of its own, and real local servers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import shapely
import tiny_world
from fake_arcgis import Picture, running_arcgis
from fake_overpass import FakeOverpass
from fake_s3 import BUCKET, moto_port, s3
from tiny_world import run
from water_files import write_water_polygons

import magc_data
from magc_data.config import BuildConfig
from magc_data.errors import FetchError, SourceError, UsageError
from magc_data.ray_build import _ENVIRONMENT, _Bench, _Order
from magc_data.schema.classes import load_scheme
from magc_data.shards.manifest import read_manifest
from magc_data.sources.http import IMAGERY_POLICY
from magc_data.verify import verify
from magc_data.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fake_arcgis import FakeArcgis
    from fake_s3 import FakeS3

ray = pytest.importorskip("ray", reason="needs the package ray")

__all__ = ["moto_port", "s3"]  # fixtures

RATE = 40.0
DELAY_S = 0.25
"""Of each tile: at this rate ten would be in flight if nothing held them."""
LON, LAT = tiny_world.CORNER_LON, tiny_world.CORNER_LAT
WIDE = (LON - 0.0125, LAT - 0.0062, LON + 0.0125, LAT + 0.0062)
"""80 tiles in four blocks."""


class TwoNodes:
    """A cluster; what a test takes away is put back."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self.caches = [folder / "cache-of-head", folder / "cache-of-second"]
        head = {"num_cpus": 1, "include_dashboard": False, "env_vars": self._environment(0)}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = self.cluster.address
        self.second: Any = None
        self.add_second()

    def _environment(self, number: int) -> dict[str, str]:
        return {"MAGC_CACHE_DIR": str(self.caches[number])}

    def add_second(self) -> None:
        if self.second is None:
            self.second = self.cluster.add_node(num_cpus=1, env_vars=self._environment(1))

    def kill_second(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = None

    def forget(self) -> None:
        """Empty the caches of both nodes."""
        import shutil

        for cache in self.caches:
            shutil.rmtree(cache, ignore_errors=True)

    def tiles_cached(self) -> list[int]:
        """How many tiles each node has."""
        import sqlite3

        counts = []
        for cache in self.caches:
            counts.append(0)
            for path in cache.glob("tiles/world-imagery-*.sqlite"):
                # A node that has just made the file may not have made its table.
                connecting = contextlib.closing(sqlite3.connect(path))
                with connecting as connection, contextlib.suppress(sqlite3.OperationalError):
                    query = "SELECT count(*) FROM answers WHERE length(body) > 0 AND key LIKE '17_%'"
                    counts[-1] += connection.execute(query).fetchone()[0]
        return counts


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        nodes = TwoNodes(tmp_path_factory.mktemp("nodes"))
        yield nodes
        nodes.cluster.shutdown()


@pytest.fixture
def cluster(nodes: TwoNodes) -> Iterator[TwoNodes]:
    nodes.add_second()
    nodes.forget()
    yield nodes
    assert not ray.is_initialized(), "the build left this process connected"


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


def config(out: Path | str, **changes: object) -> BuildConfig:
    return BuildConfig(**({"bbox": tiny_world.BBOX, "out": out, "workers": 1, "rate": RATE} | changes))


def on(nodes: TwoNodes, **changes: object) -> dict[str, object]:
    return {"engine": "ray", "address": nodes.address, "workers": 0, **changes}


def most_in_a_second(times: list[float]) -> int:
    times = sorted(times)
    return max(sum(first <= each < first + 1 for each in times) for first in times)


def test_a_cluster_that_starts_for_the_build_makes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one test of this engine that is quick, as it needs a single node."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    world = tiny_world.World(tmp_path, tiny_world.FOUR_TILES)
    run(world.config(tmp_path / "local", scheme="basic"))
    run(world.config(tmp_path / "far", scheme="basic", engine="ray", address="local", workers=1))
    assert tiny_world.tree_digests(tmp_path / "far") == tiny_world.tree_digests(tmp_path / "local")
    assert not ray.is_initialized()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_without_ray_one_sentence_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    world = tiny_world.World(tmp_path, tiny_world.FOUR_TILES)
    with pytest.raises(UsageError, match=r'pip install "magc\[ray\]"'):
        run(world.config(tmp_path / "d", engine="ray"))
    assert not (tmp_path / "d" / "dataset.json").exists()


@pytest.mark.slow
def test_two_nodes_make_the_same_and_ask_as_politely_as_one_process(
    cluster: TwoNodes, arcgis: FakeArcgis, overpass: FakeOverpass, tmp_path: Path
) -> None:
    arcgis.delay_s = DELAY_S
    run(config(tmp_path / "local", bbox=WIDE))
    local_most_at_once, local_rate = arcgis.most_at_once, most_in_a_second(arcgis.times)
    tiles, queries = dict(arcgis.tiles), sorted(overpass.queries)
    assert local_most_at_once == IMAGERY_POLICY.concurrency  # the limit is met, so keeping it below means something
    arcgis.forget()
    overpass.queries.clear()

    run(config(tmp_path / "far", bbox=WIDE, **on(cluster)))
    assert tiny_world.tree_digests(tmp_path / "far") == tiny_world.tree_digests(tmp_path / "local")
    assert dict(arcgis.tiles) == tiles
    assert sorted(overpass.queries) == queries
    on_head, on_second = cluster.tiles_cached()
    assert on_head + on_second == len(tiles)
    assert min(on_head, on_second) > 0, "one node did everything"
    assert arcgis.most_at_once <= local_most_at_once
    assert most_in_a_second(arcgis.times) <= max(local_rate, RATE + 2)
    counted = {"at once": arcgis.most_at_once, "in a second": most_in_a_second(arcgis.times)}
    sys.stdout.write(f"cluster {counted}; local at once {local_most_at_once}, in a second {local_rate}\n")


@pytest.mark.slow
def test_a_node_killed_in_mid_build_costs_only_time(
    cluster: TwoNodes, arcgis: FakeArcgis, overpass: FakeOverpass, tmp_path: Path
) -> None:
    run(config(tmp_path / "local", bbox=WIDE, rate=500.0))
    arcgis.forget()
    arcgis.delay_s = DELAY_S
    killed: list[list[int]] = []

    def kill() -> None:
        """In the middle of a block of the second node: before any is finished, it has some tiles."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not killed:
            counts = cluster.tiles_cached()
            if 2 <= counts[1] < 20:
                killed.append(counts)
                cluster.kill_second()
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    run(config(tmp_path / "far", bbox=WIDE, **on(cluster, rate=8.0)))
    killer.join()
    assert killed, "the build ended before the kill"
    assert tiny_world.tree_digests(tmp_path / "far") == tiny_world.tree_digests(tmp_path / "local")
    assert verify(tmp_path / "far").findings == ()
    asked_again = sum(count > 1 for count in arcgis.tiles.values())
    assert asked_again >= 1, "nothing was lost with the node"
    assert cluster.tiles_cached()[0] == len(arcgis.tiles), "the first node did not do all of it"
    assert arcgis.most_at_once <= IMAGERY_POLICY.concurrency


@pytest.mark.slow
def test_a_build_goes_on_elsewhere(
    cluster: TwoNodes, arcgis: FakeArcgis, overpass: FakeOverpass, tmp_path: Path
) -> None:
    """Begun on a cluster and stopped by a failure, ended on one machine; and the sentence says where it failed."""
    first = tiny_world.tiles()[0]
    overpass.faults.extend(["cut-json", "400"])
    with pytest.raises(SourceError, match=r"refused the query for the cell .* HTTP 400 .*\(on .+\)"):
        run(config(tmp_path / "d", rate=500.0, **on(cluster)))
    overpass.faults.clear()
    run(config(tmp_path / "d", rate=500.0))
    run(config(tmp_path / "whole", rate=500.0))
    assert tiny_world.tree_digests(tmp_path / "d") == tiny_world.tree_digests(tmp_path / "whole")
    assert arcgis.tiles[tuple(first)] >= 1


@pytest.mark.slow
def test_repeated_images_are_dropped_there_too(
    cluster: TwoNodes, arcgis: FakeArcgis, overpass: FakeOverpass, tmp_path: Path
) -> None:
    first, *_, last = (tuple(tile) for tile in tiny_world.tiles())
    arcgis.faults = {first: "placeholder", last: "placeholder"}
    run(config(tmp_path / "local", rate=500.0))
    arcgis.forget()
    run(config(tmp_path / "far", rate=500.0, **on(cluster)))
    assert read_manifest(tmp_path / "far")["counts"]["rejected"].get("repeated", 0) in (0, 2)
    assert tiny_world.tree_digests(tmp_path / "far") == tiny_world.tree_digests(tmp_path / "local")
    assert max(arcgis.tiles.values()) <= 2  # 2 where Ray could not do a block again on the machine that has its tiles


@pytest.mark.slow
@pytest.mark.parametrize("what", ["constant ground resolution", "maps of the time of their images", "water polygons"])
def test_every_kind_of_dataset_is_made_there(
    what: str, cluster: TwoNodes, arcgis: FakeArcgis, overpass: FakeOverpass, tmp_path: Path
) -> None:
    _, south, east, north = WIDE
    sea = write_water_polygons(tmp_path / "water.zip", shapely.box(LON, south - 0.01, east + 0.01, north + 0.01))
    changes: dict[str, object] = {
        "constant ground resolution": {"gsd": 1.07},
        "maps of the time of their images": {"match_osm_date": True},
        "water polygons": {"water_polygons": str(sea)},
    }[what]
    everywhere = (-2e7, -2e7, 2e7, 2e7)
    arcgis.pictures = [Picture(everywhere, "2021-09-05")]
    manifest = run(config(tmp_path / "local", rate=500.0, **changes))
    assert manifest["counts"]["kept"] > 0
    run(config(tmp_path / "far", rate=500.0, **on(cluster, **changes)))
    assert tiny_world.tree_digests(tmp_path / "far") == tiny_world.tree_digests(tmp_path / "local")


@pytest.mark.slow
def test_a_cluster_builds_into_a_bucket(
    cluster: TwoNodes, arcgis: FakeArcgis, overpass: FakeOverpass, s3: FakeS3, tmp_path: Path
) -> None:
    """The machine that the command runs on alone speaks with the bucket, and alone needs to be allowed to."""
    run(config(tmp_path / "local", rate=500.0))
    run(config(f"s3://{BUCKET}/far", rate=500.0, **on(cluster)))
    local = {
        path.relative_to(tmp_path / "local").as_posix(): path.read_bytes()
        for path in (tmp_path / "local").rglob("*")
        if path.is_file()
    }
    assert s3.objects("far") == local


@pytest.mark.slow
def test_keys_are_in_no_log_and_not_in_the_list_of_jobs(cluster: TwoNodes, arcgis: FakeArcgis, tmp_path: Path) -> None:
    """The command line itself holds the key, as those of users do."""
    secret = "s3cr3tV4lue"
    template = arcgis.url + "/tile/{z}/{y}/{x}?blankTile=false&token=" + secret
    osm = tiny_world.write_osm(tmp_path / "world.osm.opl")
    arguments = ["build", "--bbox", tiny_world.BBOX_TEXT, "--imagery", template, "--osm", str(osm), "--rate", "500"]
    far = ["--engine", "ray", "--address", cluster.address, "--out", str(tmp_path / "d")]
    arcgis.faults[tuple(tiny_world.tiles()[0])] = "token"
    command = [sys.executable, "-m", "magc_data", *arguments, *far]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert "refuses to give tiles" in done.stderr
    assert "Traceback" not in done.stderr
    arcgis.faults.clear()
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "100%" in done.stderr  # progress in one place
    assert {query for query in arcgis.queries if "token" in query} == {f"blankTile=false&token={secret}"}
    assert secret not in done.stdout + done.stderr
    jobs = ray._private.state.state  # connected below
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        entrypoints = [job["Entrypoint"] for job in jobs.job_table()]
    finally:
        ray.shutdown()
    assert any("token=***" in each for each in entrypoints), entrypoints
    assert not any(secret in each for each in entrypoints)
    session = Path(cluster.cluster.head_node.get_session_dir_path())
    files = [path for path in [*session.rglob("*"), *(tmp_path / "d").rglob("*")] if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if secret.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("address", "said"),
    [("ray://127.0.0.1:1", "run magc-data on a machine of the cluster"), ("127.0.0.1:9", "there is no Ray cluster")],
)
def test_where_there_is_no_cluster_one_sentence_says_so(tmp_path: Path, address: str, said: str) -> None:
    world = tiny_world.World(tmp_path, tiny_world.FOUR_TILES)
    with pytest.raises(UsageError, match=said):
        run(world.config(tmp_path / "d", engine="ray", address=address))
    assert not (tmp_path / "d" / "dataset.json").exists()


def test_an_engine_that_is_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the engine 'dask' is not known: expected one of local, ray"):
        run(config(tmp_path / "d", engine="dask"))


def test_workers_ask_the_servers_that_the_driver_asks() -> None:
    """Every variable that moves a source, whatever source is added."""
    package = Path(magc_data.__file__).parent
    found = {name for path in package.rglob("*.py") for name in re.findall(r'"(MAGC_\w+_URL)"', path.read_text())}
    assert len(found) >= 4
    assert found == set(_ENVIRONMENT)


def order(tmp_path: Path, **changes: object) -> _Order:
    world = tiny_world.World(tmp_path, tiny_world.FOUR_TILES)
    settings = world.config(tmp_path / "d")
    values: dict[str, Any] = {
        "number": "1",
        "config": settings,
        "level": settings.zoom,
        "place": shapely.box(0, 0, 1, 1),
        "scheme": load_scheme("default"),
        "identities": {},
        "environment": {},
        "folder": str(tmp_path),
        "magc_version": __version__,
        "board": None,
    }
    return _Order(**(values | changes))


def test_a_worker_refuses_other_sources_than_the_drivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=r"the vectors here are world.osm.opl at .*, and another at .* version 7"):
        _Bench(order(tmp_path, identities={"vectors": ("another", "/elsewhere", "7")}))
    with pytest.raises(SourceError, match="install the same version on all machines"):
        _Bench(order(tmp_path, magc_version="0.0.1"))


@pytest.mark.slow
def test_blocks_that_fail_in_a_row_end_the_build(
    cluster: TwoNodes, arcgis: FakeArcgis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAGC_OVERPASS_URL", "http://127.0.0.1:9/api")
    with pytest.raises(FetchError, match=r"3 blocks in a row failed, the last because .*127.0.0.1:9.*\(on "):
        run(config(tmp_path / "d", rate=500.0, **on(cluster)))
    assert json.loads((tmp_path / "d/.magc-build/config.json").read_bytes())
