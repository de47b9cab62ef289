"""Ended without warning at any instant, a build goes on where it was and ends in the same bytes."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tiny_world
from ended_anywhere import end_everywhere
from tiny_world import World, run

from magc_data.errors import DatasetError
from magc_data.grid import Tile
from magc_data.shards import index
from magc_data.shards.manifest import BUILD_NAME, MANIFEST_NAME, read_manifest
from magc_data.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def assert_sound_or_unfinished(out: Path) -> None:
    """Whoever finds a `dataset.json` finds the dataset that it describes, maybe with temporary files beside it."""
    temporary = re.compile(rf"({re.escape(BUILD_NAME)}/|(shards/)?\.).* belongs to no sample")
    if (out / MANIFEST_NAME).exists():
        assert [finding for finding in verify(out).findings if not temporary.match(finding)] == []
    else:
        with pytest.raises(DatasetError):
            verify(out)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Two blocks that end with the same picture, so that the second, which has no other, ends up empty."""
    world = World(tmp_path, tiny_world.FOUR_TILES)
    for tile in tiny_world.tiles(world.bbox)[-2:]:
        world.picture(tile).write_bytes(tiny_world.picture(Tile(17, 1, 1)))
    return world


def test_a_new_build_may_end_anywhere(world: World, tmp_path: Path) -> None:
    """Both blocks are done twice, as they hold the same picture."""

    def build(out: Path) -> None:
        run(world.config(out, scheme="basic"))

    build(tmp_path / "whole")
    assert read_manifest(tmp_path / "whole")["counts"]["rejected"] == {"repeated": 2}
    places = end_everywhere(
        build, tmp_path / "ended", None, tiny_world.tree_digests(tmp_path / "whole"), assert_sound_or_unfinished
    )
    assert places >= 4 + 2 * 4 + 4  # folders; shard and sidecar of each block, twice; the dataset's own files


@pytest.mark.slow
def test_a_retry_of_a_complete_dataset_may_end_anywhere(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block that is done again meets a picture that the other block lost in the first run."""
    first, _, *repeated = tiny_world.tiles(world.bbox)
    with monkeypatch.context() as patch:
        tiny_world.fail_imagery(patch, first)
        run(world.config(tmp_path / "incomplete", scheme="basic"))
    assert read_manifest(tmp_path / "incomplete")["counts"]["transient"] == 1

    def retry(out: Path) -> None:
        run(world.config(out, scheme="basic"))

    retry(tmp_path / "never-failed")
    expected = tiny_world.tree_digests(tmp_path / "never-failed")
    rows = index.read_table(tmp_path / "never-failed" / "rejected.parquet").to_pylist()
    assert {row["key"] for row in rows} == {tile.key for tile in repeated}
    retry(shutil.copytree(tmp_path / "incomplete", tmp_path / "retried"))
    assert tiny_world.tree_digests(tmp_path / "retried") == expected
    places = end_everywhere(retry, tmp_path / "ended", tmp_path / "incomplete", expected, assert_sound_or_unfinished)
    assert places >= 1 + 2 + 1 + 4 + 4  # config; sidecars given back; dataset.json; a block twice; the dataset's own


def is_running(process: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def workers_of(parent: int) -> list[int]:
    """The processes of the pool of a build."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(stat[1]) == parent and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def until(condition: Callable[[], object], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes by /proc")


@needs_proc
def test_a_worker_killed_from_outside_is_one_sentence(world: World, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "magc_data", *world.arguments(tmp_path / "d", workers=2)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert until(lambda: workers_of(process.pid), 60)
        os.kill(workers_of(process.pid)[0], signal.SIGKILL)
        _, printed = process.communicate(timeout=60)
    assert process.returncode == 1
    *_, sentence = printed.strip().splitlines()
    assert sentence.startswith("magc-data: a worker process was killed from outside")
    assert "Traceback" not in printed
    run(world.config(tmp_path / "d"))
    run(world.config(tmp_path / "whole"))
    assert tiny_world.tree_digests(tmp_path / "d") == tiny_world.tree_digests(tmp_path / "whole")


@needs_proc
def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """Where the parent is killed, nobody is left who would tell the workers; they must notice, at work or idle."""
    job = "import os, pathlib, sys, time; pathlib.Path(sys.argv[-1], str(os.getpid())).touch(); time.sleep(60)"
    program = f"from magc_data.engines.local import run_local; list(run_local(exec, [{job!r}] * 2, 2))"
    workers: list[int] = []
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) as parent:
        try:
            assert until(lambda: len(list(tmp_path.iterdir())) == 2, 60)
            workers = [int(path.name) for path in tmp_path.iterdir()]
            parent.kill()
            assert until(lambda: not any(map(is_running, workers)), 5)
        finally:
            parent.kill()
            for worker in filter(is_running, workers):
                os.kill(worker, signal.SIGKILL)
