"""What was fetched survives kills, is read by many processes at once, and says plainly when it is damaged."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from magc_data.errors import SourceError
from magc_data.sources import cache as cache_module
from magc_data.sources.cache import Answer, Cache, cache_dir, cache_path, terms_shown_once
from magc_data.sources.protocols import SourceInfo

REPOSITORY = Path(__file__).resolve().parents[2]


def an_answer(key: str, body: bytes = b"body", *, transient: bool = False) -> Answer:
    return Answer(key, 200, {"etag": '"x"'}, body, '{"format":"jpg"}', transient, "2024-01-02T03:04:05Z")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "tiles" / "x.sqlite")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.builds(
        Answer,
        st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), min_size=1),
        st.integers(min_value=0, max_value=999),
        st.dictionaries(st.text(max_size=9), st.text(max_size=9)),
        st.binary(max_size=70_000),
        st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0")),
        st.booleans(),
        st.just("2024-01-02T03:04:05Z"),
    )
)
def test_read_inverts_put(cache: Cache, answer: Answer) -> None:
    cache.put(answer)
    cache.flush()
    assert Cache(cache.path).read(answer.key) == answer
    assert (answer.key in cache.settled([answer.key])) is not answer.transient


def test_nothing_is_made_by_reading(cache: Cache) -> None:
    assert cache.read("17_1_2") is None
    assert cache.settled(["17_1_2"]) == {}
    assert not cache.path.parent.exists()


def test_a_later_answer_takes_the_place_of_an_earlier_one(cache: Cache) -> None:
    cache.put(an_answer("17_1_2", b"old", transient=True))
    cache.flush()
    cache.put(an_answer("17_1_2", b"new"))
    cache.flush()
    found = cache.read("17_1_2")
    assert found is not None
    assert (found.body, found.transient) == (b"new", False)


def test_a_block_is_looked_up_at_once(cache: Cache) -> None:
    keys = [f"17_{x}_{y}" for y in range(32) for x in range(32)]
    for number, key in enumerate(keys):
        if number % 3:
            cache.put(an_answer(key, transient=number % 3 == 2))
    cache.flush()
    assert set(cache.settled(keys)) == set(keys[1::3])
    assert cache.read_many(keys).keys() == {*keys[1::3], *keys[2::3]}
    assert cache.read_many(keys)[keys[1]] == an_answer(keys[1])


def test_it_pickles_as_its_path_even_with_open_connections(cache: Cache) -> None:
    cache.put(an_answer("17_1_2"))
    cache.flush()
    packed = pickle.dumps(cache)
    assert len(packed) < 400
    assert pickle.loads(packed).read("17_1_2") == an_answer("17_1_2")


def test_answers_wait_for_a_common_commit_but_not_long(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 50.0
    monkeypatch.setattr(cache_module.time, "monotonic", lambda: now)
    other = Cache(cache.path)
    cache.put(an_answer("a"))
    now += cache_module.COMMIT_EVERY_S * 0.9
    cache.put(an_answer("b"))
    assert other.read("a") is None
    now += cache_module.COMMIT_EVERY_S * 0.2
    cache.flush_if_due()
    assert other.read_many(["a", "b"]).keys() == {"a", "b"}
    cache.put(an_answer("c"))
    now += cache_module.COMMIT_EVERY_S
    cache.put(an_answer("d"))
    assert other.read_many(["c", "d"]).keys() == {"c", "d"}
    assert cache_module.COMMIT_EVERY_S <= 1.0


# --- many at once ----------------------------------------------------------------------------------------------------


def read_all(cache: Cache, count: int) -> int:
    """Read in a process of its own, while the other one writes, until everything is there."""
    deadline = time.monotonic() + 30
    keys = [str(number) for number in range(count)]
    seen = 0
    while seen < count and time.monotonic() < deadline:
        found = cache.read_many(keys)
        assert all(answer.body == key.encode() * 3000 for key, answer in found.items())
        assert len(found) >= seen, "an answer vanished"
        seen = len(found)
    return seen


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_processes_read_while_one_writes(cache: Cache, method: str) -> None:
    cache.put(an_answer("first"))
    cache.flush()
    assert cache.read("first")  # a connection is open before the fork
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        readers = [pool.submit(read_all, cache, 60) for _ in range(2)]
        for number in range(60):
            cache.put(an_answer(str(number), str(number).encode() * 3000))
            cache.flush()
            time.sleep(0.005)
        assert [reader.result() for reader in readers] == [60, 60]
    assert cache.read("first") == an_answer("first")


def test_a_forked_process_leaves_its_parents_connection_alone(cache: Cache) -> None:
    cache.put(an_answer("first"))
    cache.flush()
    parents = id(cache._connection())
    context = multiprocessing.get_context("fork")
    ours = context.Value("b", 0)

    def child() -> None:
        ours.value = id(cache._connection()) != parents

    process = context.Process(target=child)
    process.start()
    process.join()
    assert ours.value


def test_a_long_read_does_not_hold_up_the_writer(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_BUSY_S", 0.5)
    fill(cache)
    reader = sqlite3.connect(cache.path, isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM answers").fetchone() == (50,)
    cache.put(an_answer("new"))
    cache.flush()
    assert Cache(cache.path).read("new") is not None
    assert reader.execute("SELECT count(*) FROM answers").fetchone() == (50,)
    reader.close()


def write_some(path: Path, first: int) -> None:
    cache = Cache(path)
    for number in range(first, first + 20):
        cache.put(an_answer(str(number)))
        cache.flush()


def test_several_processes_may_make_the_file_at_once(cache: Cache) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=write_some, args=(cache.path, 20 * worker)) for worker in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(cache.settled([str(number) for number in range(60)])) == 60


def test_threads_share_a_cache(cache: Cache) -> None:
    def work(number: int) -> bytes:
        cache.put(an_answer(str(number), str(number).encode()))
        cache.flush()
        found = cache.read(str(number))
        assert found is not None
        return found.body

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(200))) == [str(number).encode() for number in range(200)]


WRITER = """
import sys, time
from pathlib import Path
from magc_data.sources.cache import Answer, Cache
cache = Cache(Path(sys.argv[1]))
number = int(sys.argv[2])
while True:
    cache.put(Answer(str(number), 200, {}, str(number).encode() * 2000, "{}", False, ""))
    print(number, time.monotonic(), flush=True)
    number += 1
    time.sleep(0.0005)
"""


def test_a_kill_costs_at_most_the_last_second(cache: Cache) -> None:
    rng = random.Random(7)
    start = 0
    for _ in range(4):
        command = [sys.executable, "-c", WRITER, str(cache.path), str(start)]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as writer:
            assert writer.stdout is not None
            written = [writer.stdout.readline().split()]
            time.sleep(rng.uniform(0.1, 1.6))
            writer.send_signal(signal.SIGKILL)
            killed = time.monotonic()
            written += [line.split() for line in writer.stdout.read().splitlines()]
        keys = [number for number, *_ in written]
        found = Cache(cache.path).read_many(keys)
        safe = {entry[0] for entry in written if len(entry) == 2 and float(entry[1]) < killed - 1.0}
        assert safe <= found.keys()
        assert all(answer.body == key.encode() * 2000 for key, answer in found.items())
        start = int(keys[-1]) + 1
    assert start > 200
    with sqlite3.connect(cache.path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# --- damage ----------------------------------------------------------------------------------------------------------


def fill(cache: Cache) -> None:
    for number in range(50):
        cache.put(an_answer(str(number), os.urandom(9000)))
    cache.close()  # the last connection folds the log into the file


def test_a_damaged_file_is_named_with_the_way_out(cache: Cache) -> None:
    fill(cache)
    whole = cache.path.read_bytes()
    damages = {
        "not a database": b"garbage " * 1000,
        "half of it": whole[: len(whole) // 2],
        "zeros in the middle": whole[:4096] + bytes(len(whole) - 8192) + whole[-4096:],
    }
    for damage, data in damages.items():
        cache.path.write_bytes(data)
        damaged = Cache(cache.path)
        with pytest.raises(SourceError, match="is damaged: delete this file") as caught:
            damaged.read_many([str(number) for number in range(50)])
        assert str(cache.path) in str(caught.value), damage
        assert caught.value.__suppress_context__
    for leftover in cache.path.parent.iterdir():
        leftover.unlink()
    fill(Cache(cache.path))  # the way out works


def test_an_empty_file_is_as_good_as_none(cache: Cache) -> None:
    cache.path.parent.mkdir(parents=True)
    cache.path.touch()
    assert cache.read("17_1_2") is None
    fill(cache)
    assert Cache(cache.path).read("3") is not None


def test_a_file_of_another_format_is_refused(cache: Cache) -> None:
    fill(cache)
    with sqlite3.connect(cache.path) as connection:
        connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(SourceError, match="of format 7, this version of magc reads 1: delete the file"):
        Cache(cache.path).read("3")


def test_a_database_of_another_program_is_refused(cache: Cache) -> None:
    cache.path.parent.mkdir(parents=True)
    with sqlite3.connect(cache.path) as connection:
        connection.execute("CREATE TABLE answers (something TEXT)")
    connection.close()
    with pytest.raises(SourceError, match="delete this file"):
        Cache(cache.path).read("3")


def test_a_full_disk_is_said_and_costs_nothing_already_kept(cache: Cache) -> None:
    fill(cache)
    full = Cache(cache.path)
    connection = full._connection()
    connection.execute(f"PRAGMA max_page_count = {connection.execute('PRAGMA page_count').fetchone()[0] + 2}")
    full.put(an_answer("large", b"x" * 1_000_000))
    with pytest.raises(SourceError, match="the disk is full: free some space"):
        full.flush()
    assert full.read("large") is None
    assert full.read("3") is not None
    connection.execute("PRAGMA max_page_count = 1000000")
    full.flush()  # what waited was not thrown away
    assert full.read("large") is not None


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = Cache(tmp_path / "file" / "x.sqlite")
    cache.put(an_answer("1"))
    with pytest.raises(SourceError, match="cannot be used"):
        cache.flush()


# --- places ----------------------------------------------------------------------------------------------------------


def test_the_cache_folder_of_each_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module.Path, "home", lambda: Path("/home/me"))
    for name in ("MAGC_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_dir() == Path("/home/me/.cache/magc")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == Path("/home/me/.cache/magc")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_dir() == Path("/xdg/magc")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_dir() == Path("/home/me/Library/Caches/magc")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert cache_dir() == Path("/local/magc")
    monkeypatch.setenv("MAGC_CACHE_DIR", "/chosen")
    assert cache_dir() == Path("/chosen")


def test_cache_files_of_different_services_differ(tmp_path: Path) -> None:
    paths = {cache_path(tmp_path, "a/b: c", f"https://host/{number}") for number in range(50)}
    assert len(paths) == 50
    assert {path.parent for path in paths} == {tmp_path / "tiles"}
    assert all(path.name.startswith("a-b-c-") for path in paths)


INFO = SourceInfo("wayback:1", "https://host", "L", "A", "the terms", redistributable=False)


def test_terms_are_shown_once(tmp_path: Path) -> None:
    assert [terms_shown_once(tmp_path, INFO) for _ in range(3)] == [True, False, False]
    assert terms_shown_once(tmp_path, INFO._replace(name="wayback:2"))
    assert terms_shown_once(tmp_path, INFO._replace(terms="new terms"))
    assert not terms_shown_once(tmp_path, INFO._replace(name="wayback:2"))
    assert [path.name for path in tmp_path.iterdir()] == ["terms-shown.json"]


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b"\xff"])
def test_a_damaged_note_of_shown_terms_shows_them_again(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "terms-shown.json").write_bytes(damage)
    assert [terms_shown_once(tmp_path, INFO) for _ in range(2)] == [True, False]


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match="set MAGC_CACHE_DIR to another folder"):
        terms_shown_once(tmp_path / "file", INFO)
