"""`heal` gives every byte back where the sources still have it, says what it could not, and may be killed anywhere."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import tiny_world
from ended_anywhere import FINISHED, end_everywhere, ended_before
from test_bad_input import command

from magc_data import inputs, recover
from magc_data.config import HealConfig, SplitConfig
from magc_data.dataset import MagcDataset
from magc_data.errors import DatasetError
from magc_data.grid import Tile
from magc_data.heal import Healing, heal
from magc_data.shards import index
from magc_data.shards.describe import write_metadata
from magc_data.shards.folder import DatasetFolder
from magc_data.shards.reader import read_index
from magc_data.split import split, undo
from magc_data.splits.certificate import CERTIFICATE_NAME
from magc_data.verify import verify
from magc_data.view import make_view

if TYPE_CHECKING:
    from pathlib import Path

    from tiny_world import World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    os.environ["MAGC_CACHE_DIR"] = str(folder / "cache")
    made = tiny_world.World(folder)
    tiny_world.run(made.config(folder / "dataset"))
    return made


@pytest.fixture
def sound(world: World) -> Path:
    return world.pictures.parent / "dataset"


@pytest.fixture
def data(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "dataset")


def run(data: Path, **where: object) -> Healing:
    return heal(HealConfig(data=data, **where))


def shards(data: Path) -> list[Path]:
    return sorted((data / "shards").iterdir())


def overwrite(data: Path, number: int, member: str, content: bytes = b"\xde\xad\xbe\xef") -> str:
    """Damage a member of a sample; returns its key."""
    row = read_index(data).to_pylist()[number]
    with (data / row["shard"]).open("r+b") as stream:
        stream.seek(row[f"{member}_offset"] + row[f"{member}_size"] // 2)
        stream.write(content)
    return row["key"]


def test_nothing_is_touched_where_nothing_is_wrong(data: Path, sound: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in data.rglob("*") if path.is_file()}
    result = run(data)
    assert result == Healing((), 0, (), verify(sound))
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*") if path.is_file()} == times


def test_members_come_back_and_whole_shards_are_left_alone(data: Path, sound: Path) -> None:
    damaged = [overwrite(data, 0, "image"), overwrite(data, 1, "map"), overwrite(data, 2, "json")]
    assert len(set(damaged)) == 3
    untouched = {path: path.stat().st_mtime_ns for path in shards(data)[1:]}
    result = run(data)
    assert result.members_recovered == 3
    assert result.rewritten == (f"shards/{shards(data)[0].name}",)
    assert result.verification.findings == result.not_healed == ()
    assert tiny_world.tree_digests(data) == tiny_world.tree_digests(sound)
    assert {path: path.stat().st_mtime_ns for path in shards(data)[1:]} == untouched


def test_a_record_changed_by_less_than_rounding_comes_back(data: Path, sound: Path) -> None:
    """A last digit that passes for another machine's rounding is not what the digest is of."""
    row = read_index(data).to_pylist()[0]
    content = (data / row["shard"]).read_bytes()
    start = row["json_offset"]
    record = content[start : start + row["json_size"]]
    place = record.index(b'"lat":') + len(f'"lat":{row["lat"]!r}') - 1
    other = record[:place] + (b"3" if record[place : place + 1] != b"3" else b"4") + record[place + 1 :]
    (data / row["shard"]).write_bytes(content[:start] + other + content[start + len(record) :])
    assert len(verify(data).findings) == 1, "the shard's digest alone tells"
    assert run(data).verification.findings == ()
    assert tiny_world.tree_digests(data) == tiny_world.tree_digests(sound)


def test_everything_at_once_comes_back(data: Path, sound: Path) -> None:
    shards(data)[0].unlink()
    shards(data)[1].write_bytes(shards(sound)[1].read_bytes()[:5000])
    overwrite(data, len(read_index(data)) - 1, "image")
    (data / "ATTRIBUTION.md").unlink()
    (data / "rejected.parquet").write_bytes(b"PAR1")
    (data / "shards" / ".x.tar.1-2.part").write_bytes(b"left by a killed run")
    result = run(data)
    assert result.not_healed == result.verification.findings == ()
    assert tiny_world.tree_digests(data) == tiny_world.tree_digests(sound)


def test_the_index_follows_from_the_shards(data: Path, sound: Path) -> None:
    (data / "index.parquet").unlink()
    assert run(data).rewritten == ("index.parquet",)
    assert tiny_world.tree_digests(data) == tiny_world.tree_digests(sound)


def test_columns_that_no_shard_knows_are_kept(data: Path) -> None:
    """Whatever somebody added to the index: a repair of its other columns leaves it."""
    table = pq.read_table(data / "index.parquet")
    table = table.append_column("sharpness", pa.array(range(len(table)), pa.float32()))
    digests = pc.if_else(pc.equal(table["key"], table["key"][0]), "0" * 64, table["map_sha256"])
    pq.write_table(
        table.set_column(table.column_names.index("map_sha256"), "map_sha256", digests), data / "index.parquet"
    )
    assert run(data).verification.findings == ()
    assert pq.read_table(data / "index.parquet").equals(table)


def test_what_the_source_no_longer_has_is_said_and_the_rest_is_healed(
    data: Path, sound: Path, world: World, tmp_path: Path
) -> None:
    keys = [overwrite(data, number, "image") for number in range(3)]
    place = shutil.copytree(world.pictures, tmp_path / "tiles")
    _, x, y = keys[0].split("_")
    (place / "17" / x / f"{y}.jpg").write_bytes(tiny_world.picture(Tile(17, 5, 5)))
    _, x, y = keys[1].split("_")
    (place / "17" / x / f"{y}.jpg").unlink()
    result = run(data, imagery=str(place))
    assert result.members_recovered == 1
    assert len(result.not_healed) == 2
    assert any("1 images: the source has others today" in each for each in result.not_healed)
    assert any("1 images: the imagery has none any more: outside-imagery" in each for each in result.not_healed)
    found = "\n".join(result.verification.findings)
    assert keys[0] in found
    assert keys[1] in found
    assert keys[2] not in found
    before = tiny_world.tree_digests(data)
    assert run(data, imagery=str(place)).rewritten == (), "nothing more can be done"
    assert tiny_world.tree_digests(data) == before
    assert run(data).verification.findings == (), "the original source has everything"
    assert tiny_world.tree_digests(data) == tiny_world.tree_digests(sound)


def test_a_lost_shard_keeps_the_places_of_what_is_lost_with_it(data: Path, world: World, tmp_path: Path) -> None:
    """One picture gone upstream costs one sample, not the block's other hundreds."""
    keys = read_index(data).filter(pc.equal(read_index(data)["shard"], f"shards/{shards(data)[0].name}"))["key"]
    shards(data)[0].unlink()
    place = shutil.copytree(world.pictures, tmp_path / "tiles")
    _, x, y = keys[0].as_py().split("_")
    (place / "17" / x / f"{y}.jpg").unlink()
    assert run(data, imagery=str(place)).members_recovered == 3 * len(keys) - 1
    dataset = MagcDataset(data)
    with pytest.raises(DatasetError, match=f"the image of {keys[0].as_py()} in .* cannot be decoded"):
        dataset[0]
    assert dataset[1].key == keys[1].as_py()
    assert {finding.split(",")[1].split(":")[0].strip() for finding in verify(data).findings[1:]} == {keys[0].as_py()}


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({"imagery": "nowhere/tiles"}, "neither a file nor imagery known here"),
        ({"imagery": "none"}, "--imagery none holds no images"),
        ({"osm": "nowhere.osm.pbf"}, "neither a file nor vectors known here"),
        ({"scheme": "sgdm"}, "the class scheme sgdm is not the one"),
    ],
)
def test_a_source_that_cannot_be_opened_is_said(data: Path, where: dict, said: str) -> None:
    overwrite(data, 0, "image")
    overwrite(data, 1, "map")
    result = run(data, **where)
    assert result.members_recovered == 1, "the other member needs not that source"
    (sentence,) = result.not_healed
    assert said in sentence
    assert len(result.verification.findings) > 0


def test_a_moved_source_is_told_where(data: Path, sound: Path, world: World, tmp_path: Path) -> None:
    overwrite(data, 0, "image")
    overwrite(data, 0, "map")
    document = json.loads((data / "dataset.json").read_text())
    for role in ("imagery", "vectors"):
        document["sources"][role]["address"] = "/gone/away"
    (data / "dataset.json").write_text(json.dumps(document))
    assert len(run(data).not_healed) == 2
    moved = shutil.copytree(world.pictures, tmp_path / "tiles")
    result = run(data, imagery=str(moved), osm=str(shutil.copy(world.osm, tmp_path / "elsewhere.osm.opl")))
    assert result.not_healed == ()
    assert shards(data)[0].read_bytes() == shards(sound)[0].read_bytes()


def test_wrong_signals_of_quality_are_measured_again(data: Path, sound: Path) -> None:
    """One that is wrong, one that is lost with its row, one that is lost with its column."""
    table = pq.read_table(data / "index.parquet")
    rows = table.to_pylist()[1:]
    rows[0]["blur"] = 0.0
    changed = pa.Table.from_pylist(rows, table.schema).drop_columns(["cloud"])
    pq.write_table(changed, data / "index.parquet")
    assert any("the pixels say" in each for each in verify(data).findings)
    assert run(data).rewritten == ("index.parquet",)
    assert tiny_world.tree_digests(data) == tiny_world.tree_digests(sound)


def test_an_index_from_before_there_was_quality_comes_back_as_it_was(data: Path) -> None:
    """Without the columns, and nothing is measured."""
    table = pq.read_table(data / "index.parquet").drop_columns(list(index.QUALITY_COLUMNS))
    index.write_table(data / "index.parquet", table.schema, [table])
    document = json.loads((data / "dataset.json").read_text())
    del document["config"]["quality_version"]
    (data / "dataset.json").write_text(json.dumps(document))
    write_metadata(data, document)
    whole = tiny_world.tree_digests(data)
    (data / "index.parquet").unlink()
    assert run(data).verification.findings == ()
    assert tiny_world.tree_digests(data) == whole
    document["config"]["quality_version"] = 99
    (data / "dataset.json").write_text(json.dumps(document))
    (data / "index.parquet").unlink()
    (sentence,) = run(data).not_healed
    assert "quality signals of version 99 cannot be measured here" in sentence


DIVISION = SplitConfig(block_m=350, ratios="0.4,0.3,0.3", seed=254, buffer_m=20)


@pytest.fixture(scope="module")
def divided(world: World) -> Path:
    """The dataset, really split: train, val, test and tiles left out."""
    folder = world.pictures.parent
    data = shutil.copytree(folder / "dataset", folder / "divided")
    split(data, DIVISION, quiet=True)
    assert {path.name for path in data.iterdir() if path.is_dir()} == {"train", "val", "test", "left-out"}
    return data


def edit_certificate(data: Path) -> None:
    document = json.loads((data / CERTIFICATE_NAME).read_text())
    document["smallest_distance_m"] += 1
    (data / CERTIFICATE_NAME).write_text(json.dumps(document))


def swap_sides(data: Path) -> None:
    table = pq.read_table(data / "index.parquet")
    sides = pa.array([{"train": "test", "test": "train"}.get(each, each) for each in table["split"].to_pylist()])
    pq.write_table(table.set_column(table.column_names.index("split"), "split", sides), data / "index.parquet")


DAMAGES_OF_SPLITS = {
    "index": lambda data: (data / "index.parquet").unlink(),
    "shard": lambda data: (data / "train" / "000000.tar").unlink(),
    "shard of tiles left out": lambda data: (data / "left-out" / "000000.tar").write_bytes(b""),
    "members": lambda data: [overwrite(data, -1, "image"), overwrite(data, 0, "map"), overwrite(data, 1, "json")],
    "sides": swap_sides,
    "certificate lost": lambda data: (data / CERTIFICATE_NAME).unlink(),
    "certificate cut": lambda data: (data / CERTIFICATE_NAME).write_text("{"),
    "certificate edited": edit_certificate,
    "certificate and index": lambda data: [(data / each).unlink() for each in (CERTIFICATE_NAME, "index.parquet")],
    "certificate and shards": lambda data: [
        (data / each).unlink() for each in (CERTIFICATE_NAME, "test/000000.tar", "val/000000.tar")
    ],
}


@pytest.mark.parametrize("name", DAMAGES_OF_SPLITS)
def test_a_split_is_healed(name: str, divided: Path, sound: Path, tmp_path: Path) -> None:
    """A damaged shard of a split draws on many blocks of the source; the certificate is as valid as before."""
    data = shutil.copytree(divided, tmp_path / "divided")
    DAMAGES_OF_SPLITS[name](data)
    assert run_ends_in_findings(data)
    result = run(data)
    assert result.not_healed == result.verification.findings == ()
    assert tiny_world.tree_digests(data) == tiny_world.tree_digests(divided)
    assert undo(data, quiet=True)
    assert tiny_world.tree_digests(data) == tiny_world.tree_digests(sound)


def run_ends_in_findings(data: Path) -> bool:
    try:
        return verify(data).findings != ()
    except DatasetError:
        return True


def test_a_certificate_of_another_split_is_not_signed(divided: Path, tmp_path: Path) -> None:
    """Tiles that are not where the settings put them are no split to be measured."""
    data = shutil.copytree(divided, tmp_path / "divided")
    document = json.loads((data / "dataset.json").read_text())
    document["split"]["settings"]["seed"] += 1
    (data / "dataset.json").write_text(json.dumps(document))
    before = tiny_world.tree_digests(data)
    result = run(data)
    assert any("on another side than the settings put them" in each for each in result.verification.findings)
    assert tiny_world.tree_digests(data) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.slow
def test_a_heal_amid_a_split_leaves_it_to_be_ended(divided: Path, sound: Path, tmp_path: Path) -> None:
    """Whatever the split had come to: the dataset is sound, or it is said what to do; and the split then ends as ever."""
    said = 0
    for place in range(2, 60, 3):
        data = shutil.copytree(sound, tmp_path / str(place))
        if ended_before(place, lambda out: split(out, DIVISION, quiet=True), data) == FINISHED:
            break
        ended = command("heal", data, "--quiet")
        if ended.code:
            assert "is amid a split: run the same `magc-data split` command again" in ended.complaint
            said += 1
        split(data, DIVISION, quiet=True)
        assert tiny_world.tree_digests(data) == tiny_world.tree_digests(divided)
    assert said > 0
    assert place > 20


def test_of_a_view_the_dataset_is_healed(data: Path, sound: Path, tmp_path: Path) -> None:
    make_view(data, "building > 0.01", tmp_path / "view")
    make_view(tmp_path / "view", "water > 0.01", tmp_path / "view-of-view")
    overwrite(data, 0, "image")
    (data / "index.parquet").unlink()
    overwritten = command("heal", tmp_path / "view-of-view", "--quiet")
    assert overwritten.code == 1, "a shard and the index at once"
    shutil.copy(sound / "index.parquet", data)
    ended = command("heal", tmp_path / "view-of-view", "--quiet")
    assert (ended.code, ended.complaint) == (0, "")
    assert tiny_world.tree_digests(data) == tiny_world.tree_digests(sound)
    assert [path.name for path in (tmp_path / "view-of-view").iterdir()] == ["view.json"]


def test_a_dataset_of_maps_alone_is_healed(world: World, tmp_path: Path) -> None:
    out = tmp_path / "maps"
    tiny_world.run(world.config(out, imagery="none"))
    whole = tiny_world.tree_digests(out)
    shards(out)[0].unlink()
    overwrite(out, len(read_index(out)) - 1, "map")
    assert run(out).verification.findings == ()
    (out / "index.parquet").unlink()
    assert run(out).verification.findings == ()
    assert tiny_world.tree_digests(out) == whole


def test_the_cache_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, httpserver) -> None:
    """A service that is gone: what it once answered is still in the cache, and heal asks as the build did."""
    (tmp_path / "world").mkdir()
    made = tiny_world.World(tmp_path / "world", tiny_world.FOUR_TILES)
    for tile in tiny_world.tiles(made.bbox):
        httpserver.expect_request(f"/{tile.z}/{tile.x}/{tile.y}.jpg").respond_with_data(
            made.picture(tile).read_bytes(), content_type="image/jpeg"
        )
    out = tmp_path / "dataset"
    tiny_world.run(made.config(out, imagery=httpserver.url_for("/") + "{z}/{x}/{y}.jpg"))
    whole = tiny_world.tree_digests(out)
    httpserver.clear()
    asked = len(httpserver.log)
    shards(out)[0].unlink()
    assert run(out).verification.findings == ()
    assert tiny_world.tree_digests(out) == whole
    assert len(httpserver.log) == asked


def test_vectors_are_asked_for_the_box_that_the_build_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service's cache answers the same question only; tiles that were rejected are part of the question."""
    (tmp_path / "world").mkdir()
    made = tiny_world.World(tmp_path / "world", tiny_world.FOUR_TILES)
    made.picture(tiny_world.tiles(made.bbox)[0]).unlink()
    monkeypatch.setattr(recover, "open_vectors", lambda *arguments: inputs.open_vectors(*arguments))
    opened = tiny_world.fail_vectors(monkeypatch)
    out = tmp_path / "dataset"
    assert tiny_world.run(made.config(out))["counts"]["rejected"] == {"outside-imagery": 1}
    for shard in shards(out):
        shard.unlink()
    assert run(out).verification.findings == ()
    assert len(opened) == 2
    assert opened[1].fetched == opened[0].fetched


def test_two_do_not_heal_at_once(data: Path) -> None:
    with DatasetFolder(data).locked(), pytest.raises(DatasetError, match="by another process"):
        run(data)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.slow
def test_a_heal_may_end_anywhere(sound: Path, tmp_path: Path) -> None:
    """Killed just before each change of the folder: nothing is worse than it was, and the next heal ends it."""
    start = shutil.copytree(sound, tmp_path / "damaged")
    shards(start)[0].unlink()
    overwrite(start, len(read_index(start)) - 1, "map")
    (start / "ATTRIBUTION.md").unlink()
    wrong_at_first = set(verify(start).findings)

    def check_ended(out: Path) -> None:
        assert {each for each in verify(out).findings if ".part belongs to no sample" not in each} <= wrong_at_first

    places = end_everywhere(run, tmp_path, start, tiny_world.tree_digests(sound), check_ended)
    assert places >= 1 + 3 + 2, "the scratch folder, three files, and the scratch folder's end"


def test_a_heal_that_is_out_of_space_loses_nothing(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overwrite(data, 0, "image")
    before = tiny_world.tree_digests(data)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left") as caught:
            run(data)
    assert caught.value.filename is not None
    assert tiny_world.tree_digests(data) == before


def test_a_shard_of_another_digest_than_its_samples_make_is_not_touched(data: Path) -> None:
    """The manifest and everything else disagree: which of them is right is not for a program to say."""
    document = json.loads((data / "dataset.json").read_text())
    document["shards"][0]["sha256"] = hashlib.sha256(b"other").hexdigest()
    (data / "dataset.json").write_text(json.dumps(document))
    before = tiny_world.tree_digests(data)
    (sentence,) = run(data).not_healed
    assert "dataset.json says another sha256" in sentence
    assert tiny_world.tree_digests(data) == before
