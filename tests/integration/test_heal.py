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
from test_killed import DIED, FINISHED, ended_before

from magc_data import build, recover
from magc_data.config import HealConfig
from magc_data.dataset import MagcDataset
from magc_data.errors import DatasetError
from magc_data.grid import Tile
from magc_data.heal import Healing, heal
from magc_data.shards import index
from magc_data.shards.folder import DatasetFolder
from magc_data.shards.reader import read_index
from magc_data.shards.tar import TarWriter
from magc_data.verify import verify

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
    """The side of a split, or a signal of quality, is in the index alone: a repair of its other columns leaves it."""
    table = pq.read_table(data / "index.parquet")
    sides = pa.array(["train", "val"] * len(table), pa.string())[: len(table)]
    table = table.set_column(table.column_names.index("split"), "split", sides)
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


def repack(data: Path) -> None:
    """As a split does: the samples in other shards, in another order, with sides."""
    table = read_index(data)
    rows = table.to_pylist()
    sides = {"train": rows[::2], "val": rows[1::2]}
    entries, changed = [], []
    for side, members in sides.items():
        path = data / side / "000000.tar"
        path.parent.mkdir()
        with path.open("wb") as stream:
            writer = TarWriter(stream)
            for row in members:
                content = (data / row["shard"]).read_bytes()
                for member, name in index.member_names(row["key"], row["image_format"]).items():
                    start = row[f"{member}_offset"]
                    span = writer.add(name, content[start : start + row[f"{member}_size"]])
                    changed.append((row, member, span))
            sha256 = writer.finish()
        entries.append({"path": f"{side}/000000.tar", "samples": len(members), "size": writer.size, "sha256": sha256})
    for row, member, span in changed:
        row[f"{member}_offset"], row[f"{member}_size"] = span
    for side, members in sides.items():
        for row in members:
            row["split"], row["shard"] = side, f"{side}/000000.tar"
    schema = pq.read_schema(data / "index.parquet")
    ordered = [row for members in sides.values() for row in members]
    index.write_table(data / "index.parquet", schema, [pa.Table.from_pylist(ordered, schema)])
    shutil.rmtree(data / "shards")
    document = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps(document | {"shards": entries}))


@pytest.mark.parametrize("lose_index", [False, True])
def test_repacked_shards_are_healed_too(data: Path, lose_index: bool) -> None:
    """A damaged shard of a split draws on many blocks of the source."""
    repack(data)
    assert verify(data).findings == ()
    whole = tiny_world.tree_digests(data)
    if lose_index:
        (data / "index.parquet").unlink()
    else:
        (data / "train" / "000000.tar").unlink()
        overwrite(data, len(read_index(data)) - 1, "image")
    result = run(data)
    assert result.not_healed == result.verification.findings == ()
    assert tiny_world.tree_digests(data) == whole


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
    monkeypatch.setattr(recover, "open_vectors", lambda *arguments: build.open_vectors(*arguments))
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
def test_a_heal_may_end_anywhere(sound: Path, tmp_path: Path) -> None:
    """Killed just before each change of the folder: nothing is worse than it was, and the next heal ends it."""
    start = shutil.copytree(sound, tmp_path / "damaged")
    shards(start)[0].unlink()
    overwrite(start, len(read_index(start)) - 1, "map")
    (start / "ATTRIBUTION.md").unlink()
    expected = tiny_world.tree_digests(sound)
    wrong_at_first = set(verify(start).findings)
    for place in range(1, 100):
        out = shutil.copytree(start, tmp_path / str(place))
        status = ended_before(place, run, out)
        if status == FINISHED:
            break
        assert status == DIED
        findings = {each for each in verify(out).findings if ".part belongs to no sample" not in each}
        assert findings <= wrong_at_first
        assert run(out).verification.findings == ()
        assert tiny_world.tree_digests(out) == expected, place
    assert place > 1 + 3 + 2, "the scratch folder, three files, and the scratch folder's end"


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
