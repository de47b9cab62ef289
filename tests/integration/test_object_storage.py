"""Building into a real S3 server: the bytes of a local build, whatever fails, dies or gets in the way."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
import numpy as np
import pytest
import tiny_world
from fake_s3 import BUCKET, KEY_ID, SECRET, FakeS3, Fault, moto_port, s3
from PIL import Image
from tiny_world import World, run

from magc_data import grid
from magc_data.build import build
from magc_data.errors import DatasetError, MagcDataError, UsageError
from magc_data.grid import Tile
from magc_data.shards import s3_store
from magc_data.shards.manifest import MANIFEST_NAME, read_manifest
from magc_data.shards.object_store import ReplacedError, StorageError, Stored, open_store
from magc_data.shards.prefix import CONFIG_NAME
from magc_data.shards.s3_store import S3Store
from magc_data.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["moto_port", "s3"]  # fixtures

ADDRESS = f"s3://{BUCKET}/some/where"
PREFIX = "some/where"
DOCUMENTS = 7
"""What a dataset has besides shards."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Two blocks; both end with the same picture, so that both are done twice and the second ends up empty."""
    world = World(tmp_path, tiny_world.FOUR_TILES)
    for tile in tiny_world.tiles(world.bbox)[-2:]:
        world.picture(tile).write_bytes(tiny_world.picture(Tile(17, 1, 1)))
    return world


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_store, "FIRST_WAIT_S", 0.001)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of a few tiles go in several parts."""
    monkeypatch.setattr(s3_store, "PART_BYTES", 4096)
    monkeypatch.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", 1024)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def built_here(world: World, tmp_path: Path) -> dict[str, bytes]:
    run(world.config(tmp_path / "here"))
    return files_of(tmp_path / "here")


def go_to_another_machine() -> None:
    """From now on nothing is left of what this one kept of builds."""
    shutil.rmtree(Path(os.environ["MAGC_CACHE_DIR"]) / "staging", ignore_errors=True)


def test_a_build_in_a_bucket_is_the_build_in_a_folder_byte_for_byte(tmp_path: Path, s3: FakeS3) -> None:
    """And its requests: two a block, one an object of the dataset, and five."""
    world = World(tmp_path)
    expected = built_here(world, tmp_path)
    manifest = run(world.config(ADDRESS))
    assert s3.objects(PREFIX) == expected
    assert manifest == json.loads(expected[MANIFEST_NAME])
    blocks = len(manifest["shards"])
    assert blocks == 4
    assert s3.count("put") == 2 * blocks + DOCUMENTS + 1  # config.json
    assert len(s3.requests) == s3.count("put") + 4  # a list, a list of uploads, a list, a delete
    shards = sum(each["size"] for each in manifest["shards"])
    assert sum(each.bytes_sent for each in s3.requests if each.key.endswith(".tar")) == shards
    assert not list((Path(os.environ["MAGC_CACHE_DIR"]) / "staging").iterdir())
    assert all(each.condition == "If-None-Match" for each in s3.requests if each.what == "put")

    puts = [each.key.removeprefix(f"{PREFIX}/") for each in s3.requests if each.what == "put"]
    assert puts[0] == CONFIG_NAME
    assert puts[-1] == MANIFEST_NAME
    for entry in manifest["shards"]:
        name = Path(entry["path"]).stem
        assert puts.index(entry["path"]) < puts.index(f".magc-build/blocks/{name}.arrow")

    s3.requests.clear()
    assert build(world.config(ADDRESS), lambda _: None, quiet=True).was_complete
    assert s3.count("list") == 1
    assert s3.count("put", "delete several") == 0
    assert verify(ADDRESS).findings == ()


def test_workers_put_their_blocks_themselves(world: World, tmp_path: Path, s3: FakeS3) -> None:
    """Also done twice, in a bucket whose root the dataset is."""
    expected = built_here(world, tmp_path)
    run(world.config(f"s3://{BUCKET}", workers=2))
    found = s3.client.list_objects_v2(Bucket=BUCKET)["Contents"]
    assert {each["Key"]: each["Size"] for each in found} == {name: len(each) for name, each in expected.items()}


@pytest.mark.parametrize(
    "fault", [Fault(503), Fault(500), Fault(400, code="RequestTimeout"), Fault(), Fault(0, is_stored=True)], ids=str
)
@pytest.mark.parametrize("what", ["put", "put part", "complete upload"])
@pytest.mark.usefixtures("small_parts")
def test_puts_that_fail_are_made_again(what: str, fault: Fault, world: World, tmp_path: Path, s3: FakeS3) -> None:
    """Refused, cut off, or done although the answer was lost: then a condition finds what the first attempt left."""
    s3.fail(what, 3, fault)
    run(world.config(ADDRESS))
    assert s3.objects(PREFIX) == built_here(world, tmp_path)
    assert s3.unfinished_uploads() == []
    assert s3.count("put part") > 0
    assert sum(each.status == fault.status for each in s3.requests if each.what == what) >= 3


@pytest.mark.usefixtures("small_parts")
def test_a_put_that_never_succeeds_ends_the_build_and_leaves_nothing_half_done(
    world: World, tmp_path: Path, s3: FakeS3
) -> None:
    s3.fail("put part", 10**9, Fault(503))
    with pytest.raises(StorageError, match=r"some/where did not answer properly 9 times.*same command continues"):
        run(world.config(ADDRESS))
    assert set(s3.objects(PREFIX)) == {CONFIG_NAME}
    assert s3.unfinished_uploads() == []
    assert s3.count("put part") == s3_store.MAX_ATTEMPTS
    s3.fault_of = lambda what, key: None
    run(world.config(ADDRESS))
    assert s3.objects(PREFIX) == built_here(world, tmp_path)


def from_request(first: int, *, is_stored: bool) -> Callable[[str, str], Fault | None]:
    """Nothing gets through from a request on; that one does, if it is to be stored, but its answer does not."""
    asked = itertools.count(1)

    def fault_of(what: str, key: str) -> Fault | None:
        number = next(asked)
        return None if number < first else Fault(0, is_stored=is_stored and number == first)

    return fault_of


def end_at_each_request(
    world: World,
    s3: FakeS3,
    monkeypatch: pytest.MonkeyPatch,
    expected: dict[str, bytes],
    *,
    stored: bool,
    step: int,
) -> int:
    """End a build at each so-manieth of its requests, continue it elsewhere or here, compare; returns the requests.

    From that request on nothing gets through, as if the machine had lost its power.
    """
    monkeypatch.setattr(s3_store, "MAX_ATTEMPTS", 1)
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    start = s3.objects(PREFIX)
    for place in range(1, 200, step):
        for name in s3.objects(PREFIX):
            s3.client.delete_object(Bucket=BUCKET, Key=f"{PREFIX}/{name}")
        for name, content in start.items():
            s3.client.put_object(Bucket=BUCKET, Key=f"{PREFIX}/{name}", Body=content)
        go_to_another_machine()
        s3.requests.clear()
        s3.fault_of = from_request(place, is_stored=stored)
        try:
            run(world.config(ADDRESS))
        except MagcDataError:
            pass
        else:
            s3.fault_of = lambda what, key: None
            return place - 1
        s3.fault_of = lambda what, key: None
        if MANIFEST_NAME in s3.objects(PREFIX):
            assert verify(ADDRESS).findings == (), place
        else:
            with pytest.raises(DatasetError):
                read_manifest(ADDRESS)
        if place % 2:
            go_to_another_machine()
        run(world.config(ADDRESS))
        assert s3.objects(PREFIX) == expected, place
        assert s3.unfinished_uploads() == [], place
    raise AssertionError("the build never ended")


some_or_all = pytest.mark.parametrize(
    ("stored", "step"),
    [(False, 19), *(pytest.param(each, 1, marks=pytest.mark.slow) for each in (False, True))],
)


@some_or_all
@pytest.mark.usefixtures("small_parts")
def test_a_build_may_end_at_any_request(
    world: World, s3: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: bool, step: int
) -> None:
    expected = built_here(world, tmp_path)
    places = end_at_each_request(world, s3, monkeypatch, expected, stored=stored, step=step)
    assert places >= 4 + 2 * 4 + DOCUMENTS


@some_or_all
def test_a_retry_of_a_complete_dataset_may_end_at_any_request(
    world: World, s3: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: bool, step: int
) -> None:
    """One tile could not be fetched the first time."""
    expected = built_here(world, tmp_path)
    with monkeypatch.context() as patch:
        tiny_world.fail_imagery(patch, tiny_world.tiles(world.bbox)[0])
        assert run(world.config(ADDRESS))["counts"]["transient"] == 1
    places = end_at_each_request(world, s3, monkeypatch, expected, stored=stored, step=step)
    assert places >= 4 + 2 + 1 + 2 + DOCUMENTS  # what is read; sidecars given back; dataset.json; a block; the files


class BigWorld(World):
    """Two blocks of pictures that cannot be compressed: the first shard is put in two parts."""

    def __init__(self, folder: Path) -> None:
        block_px = 32 * 256
        lon, lat = (
            np.concatenate(each).tolist()
            for each in zip(
                grid.px_to_lonlat(np.array([2176.0 * block_px]), np.array([1312.0 * block_px]), 17),
                grid.px_to_lonlat(
                    np.array([2176.0 * block_px + 14 * 256]), np.array([1312.0 * block_px + 8 * 256]), 17
                ),
                strict=True,
            )
        )
        super().__init__(folder, (lon[0] - 0.0015, lat[1] + 0.0003, lon[1] - 0.0003, lat[0] - 0.0003))
        rng = np.random.default_rng(0)
        for tile in tiny_world.tiles(self.bbox):
            noise = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
            stream = io.BytesIO()
            Image.fromarray(noise).save(stream, "PNG", compress_level=0)
            self.picture(tile).unlink()
            self.picture(tile).with_suffix(".png").write_bytes(stream.getvalue())


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_build_killed_in_the_midst_of_an_upload_goes_on_elsewhere(
    tmp_path: Path, s3: FakeS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = BigWorld(tmp_path)
    run(world.config(tmp_path / "here"))
    expected = files_of(tmp_path / "here")
    large = [name for name, content in expected.items() if len(content) > s3_store.PART_BYTES]
    assert len(large) == 1
    assert any(name.endswith(".tar") for name in expected.keys() - {*large})

    is_amid = threading.Event()

    def delay_s(what: str, key: str) -> float:
        if what != "put part" or "partNumber=2" in key:
            return 0.0
        if s3.count("put part") == 1:
            is_amid.set()
            time.sleep(30)
        return 0.0

    s3.delay_s = delay_s
    command = [sys.executable, "-m", "magc_data", *world.arguments(tmp_path, workers=1)]
    command[command.index("--out") + 1] = ADDRESS
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert is_amid.wait(120)
        finally:
            process.kill()
    s3.delay_s = lambda what, key: 0.0
    assert s3.unfinished_uploads() == [f"{PREFIX}/{large[0]}"]
    there = s3.objects(PREFIX)
    assert large[0] not in there
    finished = [name for name in there if name.endswith(".arrow")]
    assert len(finished) == 1
    with pytest.raises(DatasetError, match="not a magc dataset"):
        read_manifest(ADDRESS)

    s3.requests.clear()
    go_to_another_machine()
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stderr
    assert s3.objects(PREFIX) == expected
    assert s3.unfinished_uploads() == []
    assert s3.count("list") == 2
    assert s3.count("abort upload") == 1
    assert [each.key for each in s3.requests if each.what == "put" and each.key.endswith(".tar")] == []
    parts = [each.bytes_sent for each in s3.requests if each.what == "put part"]
    assert len(parts) == 2
    assert sum(parts) == len(expected[large[0]])
    assert [each.key for each in s3.requests if each.what == "get"] == [
        f"{PREFIX}/{CONFIG_NAME}",
        f"{PREFIX}/{finished[0]}",
    ]


def test_what_this_machine_still_has_is_not_fetched_again(
    world: World, tmp_path: Path, s3: FakeS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.fault_of = lambda what, key: Fault(501) if key.endswith("index.parquet") else None
    with pytest.raises(StorageError, match=r"index\.parquet is refused"):
        run(world.config(ADDRESS))
    s3.fault_of = lambda what, key: None
    s3.requests.clear()
    for staged in Path(os.environ["MAGC_CACHE_DIR"]).glob("staging/*/.magc-build/blocks/*.arrow"):
        before = staged.stat().st_mtime_ns
    run(world.config(ADDRESS))
    assert before
    assert [each.key for each in s3.requests if each.what == "get"] == [f"{PREFIX}/{CONFIG_NAME}"]
    assert s3.objects(PREFIX) == built_here(world, tmp_path)


def test_rows_left_here_that_are_not_those_in_the_bucket_are_not_used(
    world: World, tmp_path: Path, s3: FakeS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.fault_of = lambda what, key: Fault(501) if key.endswith("index.parquet") else None
    with pytest.raises(StorageError):
        run(world.config(ADDRESS))
    s3.fault_of = lambda what, key: None
    staged = sorted(Path(os.environ["MAGC_CACHE_DIR"]).glob("staging/*/.magc-build/blocks/*.arrow"))
    shutil.copy(staged[0], staged[1])
    run(world.config(ADDRESS))
    assert s3.objects(PREFIX) == built_here(world, tmp_path)


def test_a_shard_that_went_away_is_made_again(
    world: World, tmp_path: Path, s3: FakeS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.fault_of = lambda what, key: Fault(501) if key.endswith("index.parquet") else None
    with pytest.raises(StorageError):
        run(world.config(ADDRESS))
    s3.fault_of = lambda what, key: None
    (shard,) = (name for name in s3.objects(PREFIX) if name.endswith(".tar"))
    s3.client.delete_object(Bucket=BUCKET, Key=f"{PREFIX}/{shard}")
    run(world.config(ADDRESS))
    assert s3.objects(PREFIX) == built_here(world, tmp_path)


def test_a_shard_that_goes_away_during_the_build_is_noticed_before_the_dataset_is_said_to_be_complete(
    world: World, s3: FakeS3
) -> None:
    def fault_of(what: str, key: str) -> None:
        if what == "list" and s3.count("put") > 4:
            for name in s3.objects(PREFIX):
                if name.endswith(".tar"):
                    s3.client.delete_object(Bucket=BUCKET, Key=f"{PREFIX}/{name}")

    s3.fault_of = fault_of
    with pytest.raises(DatasetError, match=r"\.tar has gone: something else writes or deletes there"):
        run(world.config(ADDRESS))
    assert MANIFEST_NAME not in s3.objects(PREFIX)


@pytest.mark.parametrize("what", ["put", "complete upload"])
@pytest.mark.parametrize("is_retry", [False, True])
def test_another_build_that_writes_other_bytes_meanwhile_is_noticed(
    what: str, is_retry: bool, world: World, tmp_path: Path, s3: FakeS3, request: pytest.FixtureRequest
) -> None:
    """As where a tile could be fetched there and not here; be the shard new or one that is to be replaced."""
    if what == "complete upload":
        request.getfixturevalue("small_parts")
    if is_retry:
        with pytest.MonkeyPatch.context() as patch:
            tiny_world.fail_imagery(patch, tiny_world.tiles(world.bbox)[0])
            run(world.config(ADDRESS))

    def fault_of(asked: str, key: str) -> None:
        if asked == what and key.endswith(".tar"):
            s3.client.put_object(Bucket=BUCKET, Key=key, Body=b"of another build")

    s3.fault_of = fault_of
    with pytest.raises(ReplacedError, match=r"\.tar is not what this build found there: another build writes"):
        run(world.config(ADDRESS))
    assert MANIFEST_NAME not in s3.objects(PREFIX)
    assert s3.unfinished_uploads() == []
    condition = next(each.condition for each in reversed(s3.requests) if each.what == what)
    assert condition == ("If-Match" if is_retry else "If-None-Match")
    s3.fault_of = lambda what, key: None
    run(world.config(ADDRESS))  # what it left is replaced by those who have listed it
    assert s3.objects(PREFIX) == built_here(world, tmp_path)


@pytest.mark.slow
def test_two_builds_at_once_end_in_one_dataset(world: World, tmp_path: Path, s3: FakeS3) -> None:
    """On two machines: what one has put, the other finds to be the same."""
    expected = built_here(world, tmp_path)
    command = [sys.executable, "-m", "magc_data", *world.arguments(tmp_path)]
    command[command.index("--out") + 1] = ADDRESS
    s3.delay_s = lambda what, key: 0.2
    processes = [
        subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=os.environ | {"MAGC_CACHE_DIR": str(tmp_path / name)}
        )
        for name in ("one", "two")
    ]
    printed = [process.communicate(timeout=250)[1] for process in processes]
    assert "Traceback" not in "".join(printed)
    assert 0 in [process.returncode for process in processes]
    s3.delay_s = lambda what, key: 0.0
    run(world.config(ADDRESS))
    assert s3.objects(PREFIX) == expected


def test_of_two_builds_with_different_options_one_begins(world: World, tmp_path: Path, s3: FakeS3) -> None:
    """Even if both found nothing there."""

    def fault_of(what: str, key: str) -> None:
        if what == "put" and key.endswith("config.json"):
            s3.fault_of = lambda what, key: None
            config = json.dumps(read_manifest(tmp_path / "basic")["config"]).encode()
            s3.client.put_object(Bucket=BUCKET, Key=f"{PREFIX}/{CONFIG_NAME}", Body=config)

    run(world.config(tmp_path / "basic", scheme="basic"))
    s3.fault_of = fault_of
    with pytest.raises(DatasetError, match="scheme was"):
        run(world.config(ADDRESS))


def test_one_machine_builds_into_an_address_once_at_a_time(world: World, s3: FakeS3) -> None:
    from magc_data.shards.prefix import DatasetPrefix

    with (
        DatasetPrefix(ADDRESS).locked(),
        pytest.raises(DatasetError, match=r"^s3://datasets/some/where is being built by another process"),
    ):
        run(world.config(ADDRESS))


def test_other_options_are_refused_with_the_difference(world: World, s3: FakeS3) -> None:
    run(world.config(ADDRESS))
    with pytest.raises(DatasetError, match=r"s3://datasets/some/where was begun with other options \(scheme was"):
        run(world.config(ADDRESS, scheme="basic"))


def test_objects_of_others_are_left_alone(world: World, s3: FakeS3) -> None:
    s3.client.put_object(Bucket=BUCKET, Key=f"{PREFIX}/thesis.tex", Body=b"x")
    s3.client.put_object(Bucket=BUCKET, Key=f"{PREFIX}-2/thesis.tex", Body=b"x")
    with pytest.raises(DatasetError, match="holds objects that are no magc dataset"):
        run(world.config(ADDRESS))
    run(world.config(f"{ADDRESS}-3"))
    assert s3.objects(PREFIX) == {"thesis.tex": b"x"}


def test_names_in_a_bucket_are_no_paths_on_this_machine(world: World, tmp_path: Path, s3: FakeS3) -> None:
    s3.fault_of = lambda what, key: Fault(501) if key.endswith("index.parquet") else None
    with pytest.raises(StorageError):
        run(world.config(ADDRESS))
    s3.fault_of = lambda what, key: None
    for name in ("../../../../../evil", "x/../../y", "..", "%2e%2e/z"):
        s3.client.put_object(Bucket=BUCKET, Key=f"{PREFIX}/.magc-build/blocks/{name}.arrow", Body=b"x")
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.as_posix()}
    run(world.config(ADDRESS))
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.as_posix()} == before
    assert not list(Path(os.environ["MAGC_CACHE_DIR"]).rglob("*evil*"))


def test_an_upload_that_another_build_gave_up_is_begun_again(
    world: World, tmp_path: Path, s3: FakeS3, small_parts: None
) -> None:
    given_up = 0

    def fault_of(what: str, key: str) -> Fault | None:
        nonlocal given_up
        if what != "complete upload" or given_up:
            return None
        given_up += S3Store(f"s3://{BUCKET}/some").abort_uploads()
        return Fault(404, code="NoSuchUpload")  # moto would break down

    s3.fault_of = fault_of
    run(world.config(ADDRESS))
    assert given_up == 1
    assert s3.objects(PREFIX) == built_here(world, tmp_path)
    assert s3.unfinished_uploads() == []


def test_credentials_show_nowhere(world: World, tmp_path: Path, s3: FakeS3) -> None:
    command = [sys.executable, "-m", "magc_data", *world.arguments(tmp_path)]
    command[command.index("--out") + 1] = ADDRESS
    s3.fault_of = lambda what, key: Fault(403) if key.endswith("index.parquet") else None
    result = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert result.returncode == 1
    assert re.search(
        r"^magc-data: s3://datasets/some/where/index\.parquet is refused \(403.*\): set AWS_PROFILE, or .*\n\Z",
        result.stderr,
        re.MULTILINE,
    )
    left = {**s3.objects(PREFIX), **files_of(Path(os.environ["MAGC_CACHE_DIR"])), "printed": result.stderr.encode()}
    assert f"{PREFIX}/{CONFIG_NAME}".removeprefix(f"{PREFIX}/") in left
    for content in left.values():
        assert KEY_ID.encode() not in content
        assert SECRET.encode() not in content
    with pytest.raises(UsageError, match="credentials belong in the environment") as refused:
        run(world.config(f"s3://{KEY_ID}:{SECRET}@{BUCKET}/x"))
    assert SECRET not in str(refused.value)


def test_no_credentials_are_a_sentence(
    world: World, s3: FakeS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    s3_store.connections.cache_clear()
    with pytest.raises(StorageError, match=r"cannot be reached \(Unable to locate credentials\): set AWS_PROFILE"):
        run(world.config(ADDRESS))
    profile = f"[mine]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n"
    (tmp_path / "credentials").write_text(profile)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    s3_store.connections.cache_clear()
    run(world.config(ADDRESS))


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("s3://no-such-bucket-here/x", "NoSuchBucket.*create the bucket first"),
        ("s3://Upper/x", "is no address in S3: expected s3://BUCKET/PREFIX"),
        ("s3:///x", "is no address in S3"),
        ("s3://datasets/a//b", "is no address in S3"),
        ("sftp://host/x", "cannot be built into: expected a folder, s3:// or"),
        ("https://host/x", "cannot be built into"),
    ],
)
def test_addresses_that_cannot_be_built_into(out: str, said: str, world: World, s3: FakeS3) -> None:
    with pytest.raises(MagcDataError, match=said):
        run(world.config(out))


@pytest.mark.parametrize("what", ["put", "complete upload"])
@pytest.mark.usefixtures("small_parts")
def test_puts_that_meet_another_are_made_again(what: str, world: World, tmp_path: Path, s3: FakeS3) -> None:
    """S3 wants a conditional put again where another was about to write the object and may have given up."""
    s3.fail(what, 2, Fault(409, code="ConditionalRequestConflict"))
    run(world.config(ADDRESS))
    assert s3.objects(PREFIX) == built_here(world, tmp_path)
    assert s3.unfinished_uploads() == []


def test_long_lists_come_and_go_in_parts(s3: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "10")
    monkeypatch.setattr(s3_store, "KEYS_PER_DELETE", 10)
    store = S3Store(ADDRESS)
    for number in range(25):
        s3.client.put_object(Bucket=BUCKET, Key=f"{PREFIX}/a b+{number}%", Body=b"x")
    s3.requests.clear()
    listing = store.listing()
    assert set(listing) == {f"a b+{number}%" for number in range(25)}
    assert s3.count("list") == 3
    store.delete(listing)
    assert s3.count("delete several") == 3
    assert store.listing() == {}


def test_a_put_says_what_it_replaces(s3: FakeS3) -> None:
    store = open_store(ADDRESS)
    store.put("x", b"one", None)
    store.put("x", b"one", None)  # what is to be there is there
    with pytest.raises(ReplacedError):
        store.put("x", b"two", None)
    store.put("x", b"two", store.listing()["x"])
    with pytest.raises(ReplacedError):
        store.put("x", b"three", Stored(3, '"0123"'))
    with pytest.raises(ReplacedError):
        store.put("y", b"three", Stored(3, '"0123"'))
    assert store.get("x") == b"two"


@pytest.fixture
def memory() -> Iterator[str]:
    yield "memory://magc-test/data"
    fsspec.filesystem("memory").rm("/magc-test", recursive=True)


def test_other_services_that_fsspec_can_write_to(
    world: World, tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        tiny_world.fail_imagery(patch, tiny_world.tiles(world.bbox)[0])
        run(world.config(memory))
    run(world.config(memory))
    files = fsspec.filesystem("memory")
    found = {path.removeprefix("/magc-test/data/"): files.cat_file(path) for path in files.find("/magc-test/data")}
    assert found == built_here(world, tmp_path)
    assert verify(memory).findings == ()
