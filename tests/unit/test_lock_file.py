"""`magc.lock`: what is written is what is read, every damage is one sentence, and version 1 never changes."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magc_data.config import BuildConfig
from magc_data.errors import DatasetError, MagcDataError, UsageError
from magc_data.grid import Tile
from magc_data.ground_grid import GroundTile
from magc_data.lock_config import config_of_lock
from magc_data.lock_file import Lock, LockedSea, LockedSource, LockedTile, LockHeader, lock_bytes, read_lock

IMAGERY = LockedSource("world-imagery", "https://a.example/MapServer", None, "own", "Esri", False, is_file=False)
VECTORS = LockedSource("overpass", "https://b.example/api", None, "ODbL-1.0", "OSM", True, is_file=False)
HEADER = LockHeader("0.1.0", 17, IMAGERY, VECTORS, "2024-04-30T00:00:00Z", "2024-05-01T00:00:00Z", "default", "ab", ())

digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
locked_tiles = st.builds(
    LockedTile,
    st.builds(Tile, st.just(17), st.integers(0, 2**17 - 1), st.integers(0, 2**17 - 1)),
    st.none() | digests,
    digests,
    st.sampled_from([None, "train", "val", "test"]),
)
sources = st.builds(
    LockedSource, *[st.text(max_size=9)] * 2, st.none() | st.text(max_size=9), *[st.text(max_size=9)] * 2, st.booleans(),
    st.booleans(),
)  # fmt: skip
seas = st.builds(
    LockedSea, st.text(max_size=9), *[st.none() | st.text(max_size=9)] * 2, st.booleans(),
)  # fmt: skip
headers = st.builds(
    LockHeader, st.text(max_size=9), st.just(17), st.none() | sources, sources, *[st.none() | st.text(max_size=9)] * 2,
    *[st.text(max_size=9)] * 2, st.lists(st.text(max_size=9), max_size=2).map(tuple), sea=st.none() | seas, gsd=st.none(),
    imagery_zoom=st.none(), match_osm_date=st.booleans(),
)  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lock") / "magc.lock"


def a_lock(path: Path, header: LockHeader = HEADER) -> Lock:
    path.write_bytes(lock_bytes(header, [LockedTile(Tile(17, 5, 6), "00" * 32, "ff" * 32, None)]))
    return read_lock(path)


@given(headers, st.lists(locked_tiles, min_size=1, max_size=5, unique_by=lambda each: each.tile))
def test_reading_inverts_writing(file: Path, header: LockHeader, tiles: list[LockedTile]) -> None:
    file.write_bytes(lock_bytes(header, tiles))
    lock = read_lock(file)
    assert lock.header == header
    assert list(lock.tiles) == tiles


def test_version_1_never_changes() -> None:
    tiles = [
        LockedTile(Tile(17, 5, 6), "00" * 32, "ff" * 32, "train"),
        LockedTile(Tile(17, 6, 6), None, "01" * 32, None),
    ]
    first, *lines = lock_bytes(HEADER, tiles).decode().splitlines()
    assert lines == [
        '["17_5_6","AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","__________________________________________8","train"]',
        '["17_6_6",null,"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE"]',
    ]
    fields = json.loads(first)
    assert fields["magc_lock"] == 1
    assert fields["sha256"] == "dddca8503ac79a03e834833e98db23b16598a442953fbf9b7892071a68377dbd"
    assert fields["tiles"] == 2
    assert fields["imagery"]["name"] == "world-imagery"


def test_every_truncation_and_flipped_byte_is_named(file: Path) -> None:
    whole = lock_bytes(HEADER, [LockedTile(Tile(17, x, 6), "00" * 32, "ff" * 32, "train") for x in range(3)])
    end_of_header = whole.index(b"\n") + 1
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(DatasetError):
            read_lock(file)
    for place in range(end_of_header, len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DatasetError, match="digest differs"):
            read_lock(file)
    for place in range(end_of_header):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        # A changed word of the header may be a word as well: a lock or one of our errors, and nothing else.
        with contextlib.suppress(MagcDataError):
            read_lock(file)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('["../../etc/passwd",null,"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE"]', "is no tile"),
        ('["17_5_6",null,"short"]', "is no tile"),
        ('["17_5_6"]', "is no tile"),
        ('{"key": 1}', "is no tile"),
        ("[" * 5000, "is no tile"),
        ('["17_5_6",null,"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE","../up"]', "names the split"),
        ('["16_5_6",null,"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE"]', "expected zoom 17"),
    ],
)
def test_a_forged_line_is_refused_although_its_digest_fits(file: Path, line: str, said: str) -> None:
    whole = lock_bytes(HEADER, [LockedTile(Tile(17, 5, 6), None, "ff" * 32, None)])
    fields = json.loads(whole.splitlines()[0])
    body = f"{line}\n".encode()
    file.write_bytes(json.dumps(fields | {"sha256": hashlib.sha256(body).hexdigest()}).encode() + b"\n" + body)
    with pytest.raises(DatasetError, match=said):
        read_lock(file)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"magc_lock": 2}, "lock format 2"),
        ({"zoom": "17"}, "'zoom'"),
        ({"vectors": None}, "'vectors'"),
        ({"imagery": {"name": "x"}}, "'address'"),
        ({"tiles": 2}, "1 tiles, expected 2"),
    ],
)
def test_a_forged_header_is_refused(file: Path, change: dict, said: str) -> None:
    first, body = lock_bytes(HEADER, [LockedTile(Tile(17, 5, 6), None, "ff" * 32, None)]).split(b"\n", 1)
    file.write_bytes(json.dumps(json.loads(first) | change).encode() + b"\n" + body)
    with pytest.raises(DatasetError, match=said):
        read_lock(file)


def test_no_file_and_a_file_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no file"):
        read_lock(tmp_path / "absent.lock")
    (tmp_path / "tar").write_bytes(bytes(2048))
    with pytest.raises(DatasetError, match="first line is not JSON"):
        read_lock(tmp_path / "tar")


def test_the_recorded_sources_are_used(file: Path) -> None:
    config = config_of_lock(BuildConfig(), a_lock(file))
    assert (config.imagery, config.osm, config.zoom, config.scheme) == ("world-imagery", "overpass", 17, "default")
    assert config.osm_date is None  # the maker pinned nothing
    pinned = a_lock(file, HEADER._replace(vectors=VECTORS._replace(version="2024-01-01T00:00:00Z")))
    assert config_of_lock(BuildConfig(), pinned).osm_date == "2024-01-01T00:00:00Z"
    alone = a_lock(file, HEADER._replace(imagery=None))
    assert config_of_lock(BuildConfig(), alone).imagery == "none"
    template = "https://t.example/{z}/{x}/{y}.png"
    by_address = a_lock(file, HEADER._replace(imagery=IMAGERY._replace(name=template, address=template)))
    assert config_of_lock(BuildConfig(), by_address).imagery == template


@pytest.mark.parametrize(
    ("imagery", "said"),
    [
        (
            IMAGERY._replace(name="scene.tif", address="scene.tif", version="abc", is_file=True),
            "file 'scene.tif', version abc",
        ),
        (IMAGERY._replace(name="/etc/passwd", address="/etc/passwd"), "--imagery PATH"),
        (IMAGERY._replace(name="../../secrets.tif"), "--imagery PATH"),
        (IMAGERY._replace(name="world-imagery", is_file=True), "--imagery PATH"),
        (IMAGERY._replace(name="https://t.example/{z}/{x}/{y}?key=***"), "with a key"),
    ],
)
def test_no_path_of_a_lock_is_opened(file: Path, imagery: LockedSource, said: str) -> None:
    lock = a_lock(file, HEADER._replace(imagery=imagery))
    with pytest.raises(UsageError, match=said):
        config_of_lock(BuildConfig(), lock)
    assert config_of_lock(BuildConfig(imagery="my.tif"), lock).imagery == "my.tif"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (BuildConfig(bbox=(0, 0, 1, 1)), "--bbox was given with --lock"),
        (BuildConfig(aoi=Path("a.geojson")), "--aoi was given with --lock"),
        (BuildConfig(zoom=15), "--zoom is 15"),
    ],
)
def test_an_option_that_contradicts_the_lock_is_refused(file: Path, config: BuildConfig, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        config_of_lock(config, a_lock(file))


def test_a_scheme_of_the_makers_own_has_to_be_given(file: Path) -> None:
    lock = a_lock(file, HEADER._replace(scheme_name="mine"))
    with pytest.raises(UsageError, match="its YAML file with --scheme"):
        config_of_lock(BuildConfig(), lock)
    assert config_of_lock(BuildConfig(scheme="mine.yaml"), lock).scheme == "mine.yaml"


def test_45000_tiles_take_a_few_megabytes() -> None:
    tiles = (
        LockedTile(Tile(17, 64000 + n % 300, 40000 + n // 300), "ab" * 32, "cd" * 32, "train") for n in range(45_000)
    )
    assert len(lock_bytes(HEADER, tiles)) < 6_000_000


def test_a_lock_of_constant_ground_resolution_reads_back_and_holds_no_other_tiles(file: Path) -> None:
    header = HEADER._replace(zoom=None, gsd=1.07, imagery_zoom=18)
    tile = LockedTile(GroundTile(1070, 95687, 25379), "00" * 32, "ff" * 32, "train")
    file.write_bytes(lock_bytes(header, [tile]))
    assert (read_lock(file).header, read_lock(file).tiles) == (header, (tile,))
    file.write_bytes(lock_bytes(header, [tile._replace(tile=GroundTile(1080, 95687, 25379))]))
    with pytest.raises(DatasetError, match=r"holds the tile g1080_95687_25379: expected 1\.07 m/px"):
        read_lock(file)
    for wrong in ({"zoom": 17}, {"gsd": None}, {"gsd": "1"}, {"gsd": 0}, {"gsd": True}, {"imagery_zoom": "18"}):
        file.write_bytes(lock_bytes(header._replace(**wrong), [tile]))
        with pytest.raises(DatasetError):
            read_lock(file)


def test_locks_of_web_mercator_tiles_are_as_they_were(file: Path) -> None:
    a_lock(file)
    assert not {"gsd", "imagery_zoom"} & json.loads(file.read_bytes().splitlines()[0]).keys()
