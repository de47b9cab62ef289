"""`split`: samples move byte for byte, can be ended anywhere, undone and done otherwise; the certificate is checked."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_world
import webdataset
from ended_anywhere import end_everywhere
from PIL import Image
from tiny_world import World, run

from magc_data import cli
from magc_data.build import build
from magc_data.config import BuildConfig, SplitConfig
from magc_data.coverage import SIDE_COLORS, coverage_picture
from magc_data.dataset import MagcDataset
from magc_data.errors import DatasetError, UsageError
from magc_data.preview import contact_sheet
from magc_data.shards.manifest import REPACK_NAME, read_manifest
from magc_data.shards.reader import Members, read_index, read_members
from magc_data.split import split, undo
from magc_data.splits.certificate import CERTIFICATE_NAME
from magc_data.stats import statistics
from magc_data.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable

WEST, SOUTH, EAST, NORTH = tiny_world.BBOX
AREA = (WEST - 0.004, SOUTH - 0.006, EAST + 0.004, NORTH + 0.006)
WIDER = (WEST - 0.008, SOUTH - 0.006, EAST + 0.008, NORTH + 0.010)
DIVIDED = SplitConfig(block_m=600, ratios="0.6,0.2,0.2", seed=20, buffer_m=100)
OTHERWISE = SplitConfig(block_m=350, ratios="0.5,0.0,0.5", seed=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A made-up place with a dataset of it (`dataset`), and the same divided (`divided`)."""
    folder = tmp_path_factory.mktemp("world")
    os.environ["MAGC_CACHE_DIR"] = str(folder / "cache")
    made = World(folder, AREA)
    run(made.config(folder / "dataset"))
    shutil.copytree(folder / "dataset", folder / "divided")
    split(folder / "divided", DIVIDED, quiet=True)
    return made


@pytest.fixture(scope="module")
def whole(world: World) -> Path:
    return world.pictures.parent / "dataset"


@pytest.fixture(scope="module")
def divided(world: World) -> Path:
    return world.pictures.parent / "divided"


@pytest.fixture
def data(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "data")


@pytest.fixture
def data_divided(divided: Path, tmp_path: Path) -> Path:
    return shutil.copytree(divided, tmp_path / "data")


def samples(folder: Path) -> dict[str, Members]:
    return {row["key"]: read_members(folder, row) for row in read_index(folder).to_pylist()}


def sides(folder: Path) -> dict[str, str | None]:
    rows = read_index(folder, ["key", "split"])
    return dict(zip(rows["key"].to_pylist(), rows["split"].to_pylist(), strict=True))


def certificate(folder: Path) -> dict:
    return json.loads((folder / CERTIFICATE_NAME).read_text())


def edit_index(folder: Path, change: Callable[[list[dict]], None]) -> None:
    table = pq.read_table(folder / "index.parquet")
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), folder / "index.parquet")


def test_every_sample_is_there_as_it_was(whole: Path, divided: Path) -> None:
    assert samples(divided) == samples(whole)
    assert verify(divided).findings == ()
    counts = {name: each["tiles"] for name, each in certificate(divided)["sides"].items()}
    assert set(counts) == {"train", "val", "test"}
    left_out = certificate(divided)["left_out"]
    assert left_out["tiles"] == left_out["buffer"] > 0
    assert sum(counts.values()) + left_out["tiles"] == len(samples(whole))
    assert not (divided / "shards").exists()
    assert certificate(divided)["smallest_distance_m"] >= 100
    shares = certificate(divided)["sides"]["test"]["class_shares"]
    test_rows = read_index(divided).filter(pa.compute.field("split") == "test")
    assert shares["building"] == pytest.approx(np.mean(test_rows["fraction_building"].to_numpy()), abs=1e-5)


def test_readers_find_the_sides(divided: Path, tmp_path: Path) -> None:
    keys = sides(divided)
    for side in ("train", "val", "test"):
        expected = {key for key, each in keys.items() if each == side}
        assert set(MagcDataset(divided, split=side).keys) == expected
        shards = [str(path) for path in sorted((divided / side).glob("*.tar"))]
        found = list(webdataset.WebDataset(shards, shardshuffle=False))
        assert {each["__key__"] for each in found} == expected
        assert all({"image.jpg", "map.png", "json"} <= each.keys() for each in found)
    counts = {name: each["tiles"] for name, each in certificate(divided)["sides"].items()}
    left_out = certificate(divided)["left_out"]["tiles"]
    assert statistics(divided).splits == counts | {"none": left_out}
    assert contact_sheet(divided, tmp_path / "sheet.png") == 8
    assert coverage_picture(divided, tmp_path / "coverage.png") == len(keys)
    colors = np.asarray(Image.open(tmp_path / "coverage.png")).reshape(-1, 3)
    for name, color in SIDE_COLORS.items():
        assert (colors == color).all(axis=1).any(), name


def test_shards_are_filled_up_to_their_size_and_mix_places(
    data: Path, monkeypatch: pytest.MonkeyPatch, divided: Path
) -> None:
    from magc_data import split as splitting

    real = splitting._side_shards
    monkeypatch.setattr(splitting, "_side_shards", lambda *given: real(*given[:-1], 60_000))
    split(data, DIVIDED, quiet=True)
    assert verify(data).findings == ()
    assert sides(data) == sides(divided)
    sizes = [entry["size"] for entry in read_manifest(data)["shards"] if entry["path"].startswith("train/")]
    assert len(sizes) > 2
    largest = max(sum(map(len, each)) for each in samples(data).values()) + 3 * 1024
    assert all(60_000 - largest <= size <= 60_000 + largest for size in sizes[:-1])
    # The places of one shard lie all over the area.
    rows = read_index(data).filter(pa.compute.field("shard") == "train/000000.tar")
    in_order = sorted(rows["key"].to_pylist(), key=lambda key: [int(part) for part in key.split("_")][::-1])
    assert rows["key"].to_pylist() != in_order
    undo(data, quiet=True)
    assert (data / "shards").is_dir()


def test_a_split_is_undone_to_the_byte_and_done_otherwise(
    data: Path, whole: Path, divided: Path, tmp_path: Path
) -> None:
    before = tiny_world.tree_digests(whole)
    assert not split(data, DIVIDED, quiet=True).was_split
    assert tiny_world.tree_digests(data) == tiny_world.tree_digests(divided)
    assert split(data, DIVIDED, quiet=True).was_split
    assert tiny_world.tree_digests(data) == tiny_world.tree_digests(divided)
    # From one split to another is the same as from the beginning.
    split(data, OTHERWISE, quiet=True)
    assert verify(data).findings == ()
    fresh = shutil.copytree(whole, tmp_path / "fresh")
    split(fresh, OTHERWISE, quiet=True)
    assert tiny_world.tree_digests(data) == tiny_world.tree_digests(fresh)
    assert undo(data, quiet=True)
    assert tiny_world.tree_digests(data) == before
    assert not undo(data, quiet=True)
    assert tiny_world.tree_digests(data) == before


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Four tiles of two blocks, for tests that do the same dozens of times."""
    folder = tmp_path_factory.mktemp("four")
    os.environ["MAGC_CACHE_DIR"] = str(folder / "cache")
    made = World(folder, tiny_world.FOUR_TILES)
    run(made.config(folder / "dataset", scheme="basic"))
    return made


FOUR_SPLIT = SplitConfig(block_m=300, ratios="0.5,0,0.5", seed=1)
FOUR_OTHERWISE = SplitConfig(block_m=300, ratios="0.5,0.5,0", seed=1)


def sound_or_amid_a_split(out: Path) -> None:
    """Whoever finds a `dataset.json` finds the dataset that it describes."""
    if (out / "dataset.json").exists():
        # What has been looked at once need not be again.
        scratch = (REPACK_NAME, ".magc-build")
        state = {name: each for name, each in tiny_world.tree_digests(out).items() if not name.startswith(scratch)}
        if state in SOUND:
            return
        SOUND.append(state)
        assert [each for each in verify(out).findings if ".part belongs to no sample" not in each] == []
    else:
        with pytest.raises(DatasetError, match="amid a split"):
            read_manifest(out)
        with pytest.raises(DatasetError, match="is split"):
            run(BUILDS[0](out))


SOUND: list[dict[str, str]] = []
BUILDS: list[Callable[[Path], BuildConfig]] = []


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("change", ["split", "redo", "undo"])
def test_a_split_may_end_anywhere(change: str, four: World, tmp_path: Path) -> None:
    BUILDS[:] = [lambda out: four.config(out, scheme="basic")]
    whole = four.pictures.parent / "dataset"
    start = shutil.copytree(whole, tmp_path / "start")
    if change != "split":
        split(start, FOUR_SPLIT, quiet=True)
    works: dict[str, Callable[[Path], object]] = {
        "split": lambda out: split(out, FOUR_SPLIT, quiet=True),
        "redo": lambda out: split(out, FOUR_OTHERWISE, quiet=True),
        "undo": lambda out: undo(out, quiet=True),
    }
    finished = shutil.copytree(start, tmp_path / "finished")
    works[change](finished)
    expected = tiny_world.tree_digests(finished)
    if change == "undo":
        assert expected == tiny_world.tree_digests(whole)
    step = 3 if change == "redo" else 1
    places = end_everywhere(works[change], tmp_path / "ended", start, expected, sound_or_amid_a_split, step)
    assert places >= 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.slow
def test_a_split_into_a_new_folder_may_end_anywhere(four: World, tmp_path: Path) -> None:
    whole = four.pictures.parent / "dataset"
    config = SplitConfig(**{**vars(FOUR_SPLIT), "out": tmp_path / "finished"})

    def work(out: Path) -> None:
        split(whole, SplitConfig(**{**vars(config), "out": out}), quiet=True)

    before = tiny_world.tree_digests(whole)
    work(tmp_path / "finished")
    expected = tiny_world.tree_digests(tmp_path / "finished")

    def check(out: Path) -> None:
        if (out / "dataset.json").exists():
            assert verify(out).findings == ()

    assert end_everywhere(work, tmp_path / "ended", None, expected, check, step=3) >= 20
    assert tiny_world.tree_digests(whole) == before


def test_killed_at_any_time_the_same_command_goes_on(data: Path, divided: Path) -> None:
    """A real SIGKILL, after ever longer times."""
    options = ["--block-m", "600", "--ratios", "0.6,0.2,0.2", "--seed", "20", "--buffer-m", "100", "--quiet"]
    command = [sys.executable, "-m", "magc_data", "split", str(data), *options]
    rng = random.Random(0)
    killed = 0
    for number in range(4):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            deadline = time.monotonic() + 60
            # From the first two times on it has begun to write.
            while number > 1 and not (data / REPACK_NAME).exists() and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(rng.random() * 0.05)
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
    assert killed
    subprocess.run(command, check=True, capture_output=True)
    assert tiny_world.tree_digests(data) == tiny_world.tree_digests(divided)


def test_what_is_not_of_the_same_split_is_begun_anew(data: Path, divided: Path) -> None:
    """What a killed split had prepared is only used for the same split."""
    forged = data / REPACK_NAME / "new" / "train" / "000000.tar"
    forged.parent.mkdir(parents=True)
    forged.write_bytes(b"of another split")
    (data / REPACK_NAME / "plan.json").write_text("{}")
    split(data, DIVIDED, quiet=True)
    assert tiny_world.tree_digests(data) == tiny_world.tree_digests(divided)


def test_building_again_leaves_a_split_as_it_is(data_divided: Path, divided: Path, world: World) -> None:
    assert build(world.config(data_divided), lambda _: None, quiet=True).was_complete
    assert tiny_world.tree_digests(data_divided) == tiny_world.tree_digests(divided)
    with pytest.raises(DatasetError, match="begun with other options"):
        run(world.config(data_divided, scheme="basic"))
    assert tiny_world.tree_digests(data_divided) == tiny_world.tree_digests(divided)


def test_tiles_that_come_later_join_after_undo_build_and_split(
    world: World, whole: Path, divided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that has something left to do refuses a split dataset and says the way, which ends in the same bytes."""
    late = tiny_world.tiles(AREA)[3]
    data = tmp_path / "data"
    with monkeypatch.context() as patch:
        tiny_world.fail_imagery(patch, late)
        run(world.config(data))
    split(data, DIVIDED, quiet=True)
    before = tiny_world.tree_digests(data)
    with pytest.raises(DatasetError, match="--undo`, then the same build command, then the same split"):
        run(world.config(data))
    assert tiny_world.tree_digests(data) == before
    earlier = sides(data)
    undo(data, quiet=True)
    run(world.config(data))
    assert tiny_world.tree_digests(data) == tiny_world.tree_digests(whole)
    split(data, DIVIDED, quiet=True)
    assert tiny_world.tree_digests(data) == tiny_world.tree_digests(divided)
    assert {key: side for key, side in sides(data).items() if key in earlier} == earlier
    assert late.key not in earlier


def test_a_grown_dataset_keeps_every_side(world: World, divided: Path, tmp_path: Path) -> None:
    """A larger area is a new dataset: the same settings put what the old one had where it was."""
    pictures = tiny_world.write_pictures(tmp_path / "tiles", tiny_world.tiles(WIDER))
    run(world.config(tmp_path / "grown", bbox=WIDER, imagery=str(pictures)))
    split(tmp_path / "grown", DIVIDED, quiet=True)
    earlier, later = sides(divided), sides(tmp_path / "grown")
    assert len(later) > 1.5 * len(earlier)
    assert {key: later[key] for key in earlier} == earlier
    assert verify(tmp_path / "grown").findings == ()


def test_a_new_folder_leaves_the_old_one_alone(whole: Path, divided: Path, tmp_path: Path) -> None:
    before = tiny_world.tree_digests(whole)
    out = tmp_path / "out"
    into = SplitConfig(**{**vars(DIVIDED), "out": out})
    split(whole, into, quiet=True)
    assert tiny_world.tree_digests(whole) == before
    assert verify(out).findings == ()
    assert sides(out) == sides(divided)
    assert samples(out) == samples(whole)
    assert split(whole, into, quiet=True).was_split
    with pytest.raises(DatasetError, match="holds another dataset"):
        split(whole, SplitConfig(**{**vars(OTHERWISE), "out": out}), quiet=True)
    with pytest.raises(DatasetError, match="no magc dataset"):
        split(whole, SplitConfig(**{**vars(DIVIDED), "out": tmp_path}), quiet=True)
    with pytest.raises(UsageError, match="itself"):
        split(whole, SplitConfig(**{**vars(DIVIDED), "out": whole}), quiet=True)
    undo(out, quiet=True)
    assert tiny_world.tree_digests(out) == before


def test_a_damaged_shard_is_not_copied(data: Path) -> None:
    path = max((data / "shards").iterdir())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    before = tiny_world.tree_digests(data)
    with pytest.raises(DatasetError, match=f"{path.name} is damaged"):
        split(data, DIVIDED, quiet=True)
    assert tiny_world.tree_digests(data) == before
    path.unlink()
    with pytest.raises(DatasetError, match=f"{path.name} is missing"):
        split(data, DIVIDED, quiet=True)


def test_a_persons_own_files_are_never_removed(data: Path) -> None:
    note = data / "train" / "notes.txt"
    note.parent.mkdir()
    note.write_text("mine")
    with pytest.raises(DatasetError, match=r"notes.txt does not belong"):
        split(data, DIVIDED, quiet=True)
    assert note.read_text() == "mine"
    assert verify(data).findings == ()


def test_an_unfinished_build_is_finished_first(data: Path) -> None:
    (data / ".magc-build").mkdir()
    (data / ".magc-build" / "config.json").write_text("{}")
    for work in (lambda: split(data, DIVIDED, quiet=True), lambda: undo(data, quiet=True)):
        with pytest.raises(DatasetError, match="unfinished build"):
            work()


def change_number(folder: Path) -> None:
    document = certificate(folder)
    document["smallest_distance_m"] += 0.5
    (folder / CERTIFICATE_NAME).write_text(json.dumps(document))


def hide_duplicates(folder: Path) -> None:
    document = certificate(folder)
    document["near_duplicates"]["pairs"] += 1
    (folder / CERTIFICATE_NAME).write_text(json.dumps(document))


def move_a_tile(folder: Path) -> None:
    def move(rows: list[dict]) -> None:
        next(row for row in rows if row["split"] == "test")["split"] = "train"

    edit_index(folder, move)


def change_settings(folder: Path) -> None:
    document = json.loads((folder / "dataset.json").read_text())
    document["split"]["settings"]["seed"] += 1
    (folder / "dataset.json").write_text(json.dumps(document))


def break_settings(folder: Path) -> None:
    document = json.loads((folder / "dataset.json").read_text())
    del document["split"]["settings"]["block_m"]
    (folder / "dataset.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (change_number, r"smallest_distance_m is \d+\.?\d*, measured"),
        (hide_duplicates, "near_duplicates.pairs is 1, measured 0"),
        (move_a_tile, "on another side than the settings put them"),
        (move_a_tile, "expected the folder train"),
        (change_settings, "settings.seed is 20, measured 21"),
        (break_settings, "settings are damaged"),
        (lambda folder: (folder / CERTIFICATE_NAME).unlink(), "split-certificate.json is missing"),
        (lambda folder: (folder / CERTIFICATE_NAME).write_text("{"), "split-certificate.json is damaged"),
        (lambda folder: (folder / CERTIFICATE_NAME).write_text("[]"), "split-certificate.json says"),
    ],
)
def test_verify_measures_the_certificate_again(damage: Callable[[Path], object], said: str, data_divided: Path) -> None:
    import re

    damage(data_divided)
    findings = verify(data_divided).findings
    assert any(re.search(said, each) for each in findings), findings


def test_verify_misses_a_split_without_a_manifest(data: Path, divided: Path) -> None:
    shutil.copy(divided / CERTIFICATE_NAME, data)
    assert any("is not split" in each for each in verify(data).findings)
    edit_index(data, lambda rows: rows[0].update(split="train"))
    assert any("manifest knows of none" in each for each in verify(data).findings)


def test_a_picture_on_two_sides_is_found(world: World, divided: Path, tmp_path: Path) -> None:
    """The same picture encoded again has other bytes, so that the build keeps it at both places."""
    keys = sides(divided)
    tiles = tiny_world.tiles(AREA)
    one, other = (next(tile for tile in tiles if keys[tile.key] == side) for side in ("train", "test"))
    shutil.copytree(world.pictures, tmp_path / "tiles")
    copied = tmp_path / "tiles" / str(other.z) / str(other.x) / f"{other.y}.jpg"
    with Image.open(world.picture(one)) as picture:
        picture.save(copied, quality=60)
    run(world.config(tmp_path / "data", imagery=str(tmp_path / "tiles")))
    found = split(tmp_path / "data", DIVIDED, quiet=True).certificate["near_duplicates"]
    assert found["pairs"] == 1
    assert set(found["examples"][0]["tiles"]) == {one.key, other.key}
    assert verify(tmp_path / "data").findings == ()


def test_what_is_no_dataset_is_left_as_it_is(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "a.txt").touch()
    (tmp_path / "unfinished" / ".magc-build").mkdir(parents=True)
    before = tiny_world.tree_digests(tmp_path)
    for name, said in (
        ("absent", "not a magc dataset"),
        ("foreign", "not a magc dataset"),
        ("foreign/a.txt", "is a file"),
        ("unfinished", "unfinished build"),
    ):
        for work in (split, lambda data, _, quiet: undo(data, quiet=quiet)):
            with pytest.raises(DatasetError, match=said):
                work(tmp_path / name, DIVIDED, quiet=True)
        with pytest.raises(DatasetError, match=said):
            split(tmp_path / name, SplitConfig(**{**vars(DIVIDED), "out": tmp_path / "out"}), quiet=True)
    assert tiny_world.tree_digests(tmp_path) == before


MISTAKES = [
    (["--ratios", "0.5,0.5"], "--ratios is '0.5,0.5'"),
    (["--ratios", "0.5,0.5,0.5"], "add up to 1"),
    (["--ratios", "nan,0.5,0.5"], "--ratios"),
    (["--sizes", "train=5,dev=3"], "train=NUMBER"),
    (["--sizes", "train=5,train=3"], "each once"),
    (["--sizes", "train=0"], "--sizes"),
    (["--sizes", "train=5", "--ratios", "1,0,0"], "both given"),
    (["--balance", "full=0.5"], "empty=NUMBER"),
    (["--balance", "empty=1.5"], "--balance"),
    (["--block-m", "0"], "--block-m"),
    (["--block-m", "nan"], "--block-m"),
    (["--block-m", "50"], "smaller than a tile: expected 180"),
    (["--block-m", "600", "--buffer-m", "601"], "--buffer-m"),
    (["--block-m", "600", "--buffer-m", "-1"], "--buffer-m"),
    (["--seed", "-1"], "--seed"),
    (["--shard-mb", "0"], "--shard-mb"),
    (["--block-m", "100000"], "too few"),
]


@pytest.mark.parametrize(("arguments", "said"), MISTAKES)
def test_a_mistake_gets_one_sentence(
    arguments: list[str], said: str, whole: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = tiny_world.tree_digests(whole)
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        cli.main(["split", str(whole), *arguments, "--quiet"])
    printed = capfd.readouterr()
    assert stopped.value.code == 2, printed.err
    assert len(printed.err.strip().splitlines()) == 1
    assert said in printed.err
    assert tiny_world.tree_digests(whole) == before


def test_the_command_says_what_came_of_it(data: Path, whole: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: str) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main(["split", str(data), *arguments, "--quiet"])
        assert stopped.value.code == 0
        return capfd.readouterr().out

    printed = said("--block-m", "350", "--stratify", "--sizes", "train=20,test=5")
    assert "train" in printed
    assert "20 tiles" in printed
    assert "smallest distance" in printed
    seed = certificate(data)["settings"]["seed"]
    # Stratifying is the ordinary split with the seed that it found.
    stratified = sides(data)
    document = json.loads(said("--block-m", "350", "--seed", str(seed), "--sizes", "train=20,test=5", "--json"))
    assert document["sides"]["train"]["tiles"] == 20
    assert sides(data) == stratified
    assert "block shards as before" in said("--undo")
    assert tiny_world.tree_digests(data) == tiny_world.tree_digests(whole)
    assert "nothing to undo" in said("--undo")


def test_the_real_sample_splits(embedded_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Banepa at zoom 18, 126 tiles in two kilometres: blocks of 400 m and one tile between the sides."""
    monkeypatch.setenv("MAGC_CACHE_DIR", str(embedded_cache))
    data = tmp_path / "banepa"
    sample = BuildConfig(imagery="sample-banepa", osm="sample-banepa", zoom=18, out=data, workers=1)
    build(sample, lambda _: None, quiet=True)
    before = tiny_world.tree_digests(data)
    with pytest.raises(UsageError, match="126 tiles in 4 blocks of 2000 m are too few"):
        split(data, SplitConfig(), quiet=True)
    found = split(data, SplitConfig(block_m=400, buffer_m=130, stratify=True), quiet=True).certificate
    assert {name: each["tiles"] for name, each in found["sides"].items()} == {"train": 60, "val": 10, "test": 13}
    assert found["smallest_distance_m"] == pytest.approx(135.43)
    assert found["near_duplicates"]["pairs"] == 0
    assert found["divergence_bits"] < 0.001
    assert found["left_out"] == {"tiles": 43, "buffer": 43, "balance": 0, "surplus": 0}
    assert verify(data).findings == ()
    undo(data, quiet=True)
    assert tiny_world.tree_digests(data) == before


def test_a_view_is_split_into_a_new_dataset(whole: Path, tmp_path: Path, world: World) -> None:
    """Only the view's rows are copied; what they have in common is written down, and outlasts an undo."""
    make_view = pytest.importorskip("magc_data.view", reason="needs views").make_view
    before = tiny_world.tree_digests(whole)
    make_view(whole, "building>0.01", tmp_path / "view")
    with pytest.raises(UsageError, match="is a view.*--out"):
        split(tmp_path / "view", DIVIDED, quiet=True)
    out = tmp_path / "out"
    chosen = SplitConfig(block_m=300, ratios="0.5,0,0.5", seed=5, out=out)
    split(tmp_path / "view", chosen, quiet=True)
    assert tiny_world.tree_digests(whole) == before
    assert verify(out).findings == ()
    rows = read_index(whole).filter(pa.compute.field("fraction_building") > 0.01)
    assert 0 < len(rows) < len(read_index(whole))
    assert set(sides(out)) == set(rows["key"].to_pylist())
    assert read_manifest(out)["rows_where"] == ["building>0.01"]
    assert str(tmp_path) not in (out / "dataset.json").read_text()
    make_view(out, "building>0.03", tmp_path / "narrower")
    split(tmp_path / "narrower", SplitConfig(**{**vars(chosen), "out": tmp_path / "next"}), quiet=True)
    assert read_manifest(tmp_path / "next")["rows_where"] == ["building>0.01", "building>0.03"]
    undo(out, quiet=True)
    assert verify(out).findings == ()
    assert read_manifest(out)["rows_where"] == ["building>0.01"]
    (out / ".magc-build").mkdir()
    with pytest.raises(DatasetError, match="copy of some rows"):
        run(world.config(out))
