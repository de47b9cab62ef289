"""`build --task I/N`: processes that share nothing but a folder make one dataset, the same as one process would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tiny_world
from ended_anywhere import end_everywhere
from hypothesis import given
from hypothesis import strategies as st
from test_killed import assert_sound_or_unfinished
from tiny_world import World, run

from magc_data.array_job import Task, build_task, parse_task
from magc_data.cli import main
from magc_data.errors import DatasetError, FetchError, MagcDataError, UsageError
from magc_data.shards import staged
from magc_data.shards.folder import DatasetFolder
from magc_data.sources.shared_disk import file_system_of, refuse_shared_cache
from magc_data.verify import verify


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Four blocks of few tiles; two pictures are the same, so that the end of the build drops them."""
    west, south, east, north = tiny_world.BBOX
    world = World(tmp_path, (west + 0.003, south + 0.0018, east - 0.003, north - 0.0018))
    first, *_, last = tiny_world.tiles(world.bbox)
    world.picture(last).write_bytes(world.picture(first).read_bytes())
    return world


def task(world: World, out: Path, text: str, **changes: object) -> int:
    """Run a task here; returns how many blocks it made."""
    return build_task(world.config(out, scheme="basic", task=text, **changes), lambda _: None, quiet=True).made


def whole(world: World, tmp_path: Path) -> dict[str, str]:
    run(world.config(tmp_path / "whole", scheme="basic"))
    return tiny_world.tree_digests(tmp_path / "whole")


@given(st.integers(1, 40), st.lists(st.text(max_size=20), max_size=20))
def test_every_block_has_one_owner(total: int, names: list[str]) -> None:
    for name in names:
        assert sum(Task(number, total).owns(name) for number in range(1, total + 1)) == 1


@pytest.mark.parametrize("text", ["", "0/3", "4/3", "1", "1/0", "-1/3", "1/3/5", "a/b", "1.0/2", "1/99999999999"])
def test_a_task_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="I from 1 to N"):
        parse_task(text)


def test_tasks_at_the_same_time_make_what_one_build_makes(world: World, tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "magc_data", *world.arguments(tmp_path / "d"), "--scheme", "basic"]
    tasks = [
        subprocess.Popen([*arguments, "--task", f"{number}/2"], stdout=subprocess.PIPE, text=True) for number in (1, 2)
    ]
    printed = [each.communicate(timeout=120)[0] for each in tasks]
    assert [each.returncode for each in tasks] == [0, 0]
    assert all("the same command without --task" in text for text in printed)
    assert not (tmp_path / "d" / "dataset.json").exists()
    assert list((tmp_path / "d" / "shards").iterdir()) == []
    manifest = run(world.config(tmp_path / "d", scheme="basic"))
    assert manifest["counts"]["rejected"] == {"repeated": 2}
    assert tiny_world.tree_digests(tmp_path / "d") == whole(world, tmp_path)
    assert verify(tmp_path / "d").findings == ()


def test_the_number_of_tasks_may_change_and_nothing_is_made_twice(world: World, tmp_path: Path) -> None:
    made = task(world, tmp_path / "d", "2/2")
    assert 0 < made < 4
    made += sum(task(world, tmp_path / "d", f"{number}/3") for number in (1, 2))
    made += sum(task(world, tmp_path / "d", f"{number}/5") for number in range(1, 6))
    assert made == 4
    assert task(world, tmp_path / "d", "1/1") == 0
    run(world.config(tmp_path / "d", scheme="basic"))
    assert tiny_world.tree_digests(tmp_path / "d") == whole(world, tmp_path)
    assert task(world, tmp_path / "d", "1/3") == 0  # published: nothing to do


def test_what_no_task_made_the_last_build_makes(world: World, tmp_path: Path) -> None:
    task(world, tmp_path / "d", "1/2")
    run(world.config(tmp_path / "d", scheme="basic"))
    assert tiny_world.tree_digests(tmp_path / "d") == whole(world, tmp_path)


def test_two_tasks_may_make_one_block_differently_at_once(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that was thought lost comes back: its shard is there, then another's shard and rows, then its rows."""
    real, others = staged.sync_folder, []

    def interrupt(folder: Path) -> None:
        real(folder)
        if folder.name == "staged" and not others:
            others.append("at work")
            with monkeypatch.context() as patch:
                tiny_world.fail_imagery(patch, tiny_world.tiles(world.bbox)[1])
                others.append(task(world, tmp_path / "d", "1/1"))

    monkeypatch.setattr(staged, "sync_folder", interrupt)
    task(world, tmp_path / "d", "1/1")
    assert others == ["at work", 4]
    shards = [path.name.split(".")[0] for path in (tmp_path / "d/.magc-build/staged").iterdir()]
    assert len(shards) > len(set(shards)), "both made the same shard"
    monkeypatch.undo()
    monkeypatch.setenv("MAGC_CACHE_DIR", str(tmp_path / "cache"))
    run(world.config(tmp_path / "d", scheme="basic"))
    assert verify(tmp_path / "d").findings == ()
    assert tiny_world.tree_digests(tmp_path / "d") == whole(world, tmp_path)


@pytest.mark.slow
def test_a_task_and_the_build_that_publishes_may_end_anywhere(world: World, tmp_path: Path) -> None:
    expected = whole(world, tmp_path)

    def build(out: Path) -> None:
        task(world, out, "1/2")
        task(world, out, "2/2")
        run(world.config(out, scheme="basic"))

    places = end_everywhere(build, tmp_path / "ended", None, expected, assert_sound_or_unfinished)
    assert places >= 4 * 4 + 4 + 4  # each block's shard and sidecar, made and moved; shards put in place; the end


def test_a_build_waits_for_tasks_and_tasks_do_not_for_each_other(world: World, tmp_path: Path) -> None:
    with DatasetFolder(tmp_path / "d").locked(shared=True):
        assert task(world, tmp_path / "d", "1/1") == 4
        with pytest.raises(DatasetError, match="being built by another process"):
            run(world.config(tmp_path / "d", scheme="basic"))
    with DatasetFolder(tmp_path / "d").locked(), pytest.raises(DatasetError, match="being built by another process"):
        task(world, tmp_path / "d", "1/1")


def test_tasks_of_other_options_are_refused(world: World, tmp_path: Path) -> None:
    task(world, tmp_path / "d", "1/2")
    with pytest.raises(DatasetError, match="begun with other options"):
        build_task(world.config(tmp_path / "d", task="2/2"), lambda _: None, quiet=True)


def test_a_block_that_fails_is_left_to_the_last_build(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        tiny_world.fail_vectors(patch, 2)
        with pytest.raises(FetchError, match="1 of 4 blocks could not be fetched, the others are done"):
            task(world, tmp_path / "d", "1/1")
    assert task(world, tmp_path / "d", "1/1") == 1
    run(world.config(tmp_path / "d", scheme="basic"))
    assert tiny_world.tree_digests(tmp_path / "d") == whole(world, tmp_path)


def test_tasks_do_not_ask_the_public_overpass_server(world: World, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2 queries at once"):
        task(world, tmp_path / "d", "1/2", osm="overpass")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("changes", "said"), [({"engine": "ray"}, "divides the blocks by itself"), ({"task": "5/2"}, "I from 1 to N")]
)
def test_options_that_do_not_go_together_are_refused(
    world: World, tmp_path: Path, changes: dict[str, str], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        build_task(world.config(tmp_path / "d", **({"task": "1/2"} | changes)), lambda _: None, quiet=True)


def test_the_command_says_what_was_made(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*world.arguments(tmp_path / "d"), "--task", "1/1"])
    assert stopped.value.code == 0
    assert "task 1/1: 4 blocks made, 0 of its 4 were there; 4 of the dataset's 4 are finished" in capfd.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main([*world.arguments(tmp_path / "d"), "--task", "0/1"])
    assert stopped.value.code == 2


MOUNTS = """\
22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:21 / /home rw,relatime shared:2 - nfs4 server:/home rw
24 23 0:22 / /home/me/my\\040disk rw shared:3 - xfs /dev/vdb rw
25 22 0:23 / /scratch rw - lustre 10.0.0.1@tcp:/scratch rw,flock
26 22 0:24 / /scratch rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/var/cache", "ext4"),
        ("/home/me/.cache/magc", "nfs4"),
        ("/home/me/my disk/magc", "xfs"),
        ("/scratch/x", "tmpfs"),
    ],
)
def test_caches_that_machines_would_share_are_refused(tmp_path: Path, folder: str, kind: str) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert file_system_of(Path(folder), mounts) == kind
    if kind == "nfs4":
        with pytest.raises(MagcDataError, match="MAGC_CACHE_DIR to a disk of each machine's own"):
            refuse_shared_cache(Path(folder), mounts)
    else:
        refuse_shared_cache(Path(folder), mounts)
    assert file_system_of(Path(folder), tmp_path / "no-such-platform") is None
