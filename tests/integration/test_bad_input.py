"""Whatever was done to a dataset's files, whoever reads it says so in one sentence or is not concerned; none follows it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import tiny_world
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from magc_data import cli
from magc_data.config import HealConfig
from magc_data.dataset import MagcDataset
from magc_data.errors import DatasetError
from magc_data.heal import heal
from magc_data.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    printed: str
    complaint: str


def command(*arguments: object) -> Ended:
    """Run a command in this process; an exception other than the end of the program is the test's."""
    out, err = io.StringIO(), io.StringIO()
    real = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, err
    try:
        cli.main([str(each) for each in arguments])
    except SystemExit as end:
        return Ended(int(end.code or 0), out.getvalue(), err.getvalue())
    finally:
        sys.stdout, sys.stderr = real
    raise AssertionError("the command did not end the program")


def read_all(data: Path) -> Ended:
    try:
        for sample in MagcDataset(data):
            assert sample.image.shape == (256, 256, 3)
    except DatasetError as error:
        return Ended(1, "", f"{error}\n")
    return Ended(0, "", "")


DIVIDED = ("--block-m", "300", "--ratios", "0.5,0,0.5", "--seed", "1")
"""Two of the four tiles on either side."""

# A line for each command that reads datasets: `data` is the damaged one, `sound` is what it was, `out` is not there yet.
READERS: dict[str, Callable[[Path, Path, Path], Ended]] = {
    "verify": lambda data, sound, out: command("verify", data, "--quiet"),
    "info": lambda data, sound, out: command("info", data),
    "stats": lambda data, sound, out: command("stats", data),
    "preview": lambda data, sound, out: command("preview", data, "--out", out),
    "diff": lambda data, sound, out: command("diff", data, sound, "--quiet"),
    "diff-after": lambda data, sound, out: command("diff", sound, data, "--json", "--out", out),
    "split": lambda data, sound, out: command("split", data, *DIVIDED, "--out", out, "--quiet"),
    "filter": lambda data, sound, out: command("filter", data, "--where", "x > 0", "--out", out),
    "export": lambda data, sound, out: command(
        "export", data, "--format", "folders", "--out", out, "--i-hold-a-licence", "--quiet"
    ),
    "explore": lambda data, sound, out: command("explore", data, "--out", out.with_suffix(".html"), "--quiet"),
    "MagcDataset": lambda data, sound, out: read_all(data),
}
ALL = set(READERS)
ALL_BUT_INFO = ALL - {"info"}
WHO_READ_SAMPLES = {"verify", "preview", "split", "export", "MagcDataset"}
WHO_CHECK_DIGESTS = {"verify", "split"}
WHO_CHECK_MEMBERS = {"verify", "split", "export"}
"""To copy is to seal: what `split` and `export` write has new digests or none, so they look at the old ones first."""


class Damage(NamedTuple):
    """Something that happens to a dataset."""

    do: Callable[[Path], object]
    noticed_by: set[str]
    """Commands that must refuse; the others must end without a word or refuse, too."""
    named: str
    """What `verify` must name."""
    healed: bool = True
    """Whether `heal` gives every byte back."""


def first_shard(data: Path) -> Path:
    return min((data / "shards").iterdir())


def flip(path: Path, share: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * share)] ^= 0x10
    path.write_bytes(content)


def flip_column(path: Path, name: str) -> None:
    """In the last of the compressed values of a column: nothing but a checksum can tell."""
    group = pq.read_metadata(path).row_group(0)
    chunk = next(each for each in map(group.column, range(group.num_columns)) if each.path_in_schema == name)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content = bytearray(path.read_bytes())
    content[start + chunk.total_compressed_size - 1] ^= 0x01
    path.write_bytes(content)


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def foreign_tar(path: Path, name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
    """Another program's tar, whose names are no samples' and may lead elsewhere."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        member = tarfile.TarInfo(name)
        member.size, member.type, member.linkname = (4 if kind == tarfile.REGTYPE else 0), kind, link
        archive.addfile(member, io.BytesIO(b"evil"))


def index(change: Callable[[list[dict]], object]) -> Callable[[Path], None]:
    def edit(data: Path) -> None:
        table = pq.read_table(data / "index.parquet")
        rows = table.to_pylist()
        change(rows)
        pq.write_table(pa.Table.from_pylist(rows, table.schema), data / "index.parquet")

    return edit


def column(name: str, kind: pa.DataType) -> Callable[[Path], None]:
    def edit(data: Path) -> None:
        table = pq.read_table(data / "index.parquet")
        place = table.column_names.index(name)
        pq.write_table(table.set_column(place, name, pc.cast(table[name], kind)), data / "index.parquet")

    return edit


def manifest(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(data: Path) -> None:
        document = json.loads((data / "dataset.json").read_text())
        change(document)
        (data / "dataset.json").write_text(json.dumps(document))

    return edit


def of_first_shard(**changes: object) -> Callable[[Path], None]:
    return manifest(lambda document: document["shards"][0].update(changes))


# fmt: off
DAMAGES = {
    "shard cut": Damage(lambda data: cut(first_shard(data), 0.3), WHO_READ_SAMPLES, "is cut short"),
    "shard cut at the end mark": Damage(lambda data: cut(first_shard(data), 0.999), WHO_CHECK_DIGESTS, "end mark"),
    "shard empty": Damage(lambda data: first_shard(data).write_bytes(b""), WHO_READ_SAMPLES, "has 0 bytes"),
    "shard flipped": Damage(lambda data: flip(first_shard(data), 0.2), WHO_CHECK_DIGESTS, "another sha256"),
    "shard header flipped": Damage(lambda data: flip(first_shard(data), 0.0), WHO_CHECK_DIGESTS, "another sha256"),
    "shard missing": Damage(lambda data: first_shard(data).unlink(), WHO_READ_SAMPLES, "is missing"),
    "shard a folder": Damage(
        lambda data: (path := first_shard(data), path.unlink(), path.mkdir()),
        WHO_READ_SAMPLES,
        "is missing",
        healed=False,
    ),
    "foreign tar": Damage(lambda data: foreign_tar(first_shard(data), "notes.txt"), WHO_READ_SAMPLES, "another sha256"),
    "tar with ../": Damage(lambda data: foreign_tar(first_shard(data), "../../evil"), WHO_READ_SAMPLES, "'../../evil'"),
    "tar with a link": Damage(
        lambda data: foreign_tar(first_shard(data), "17_1_1.json", tarfile.SYMTYPE, "/etc/passwd"),
        WHO_READ_SAMPLES,
        "17_1_1.json",
    ),
    "tar with a long name": Damage(
        lambda data: foreign_tar(first_shard(data), "a" * 200), WHO_READ_SAMPLES, "LongLink"
    ),
    "metadata missing": Damage(lambda data: (data / "croissant.json").unlink(), {"verify"}, "croissant.json is missing"),
    "datasheet edited": Damage(
        lambda data: (data / "DATASHEET.md").write_text("all is well"), {"verify"}, "DATASHEET.md is missing or says"
    ),
    "index missing": Damage(
        lambda data: (data / "index.parquet").unlink(), ALL_BUT_INFO, "index.parquet does not exist"
    ),
    "index cut": Damage(lambda data: cut(data / "index.parquet", 0.7), ALL_BUT_INFO, "index.parquet is not readable"),
    "index text": Damage(
        lambda data: (data / "index.parquet").write_text("a,b\n"), ALL_BUT_INFO, "index.parquet is not"
    ),
    "index flipped": Damage(lambda data: flip_column(data / "index.parquet", "map_offset"), ALL_BUT_INFO, "checksum"),
    "offset below 0": Damage(index(lambda rows: rows[0].update(map_offset=-512)), ALL_BUT_INFO, "'map_offset' below 0"),
    "offset beyond the end": Damage(
        index(lambda rows: rows[0].update(map_offset=1 << 60)), WHO_READ_SAMPLES, "expects"
    ),
    "size beyond memory": Damage(index(lambda rows: rows[0].update(image_size=1 << 60)), WHO_READ_SAMPLES, "expects"),
    "offset elsewhere": Damage(index(lambda rows: rows[0].update(image_offset=513)), WHO_CHECK_MEMBERS, "expects"),
    "offset of another member": Damage(
        index(lambda rows: rows[0].update(map_offset=rows[0]["image_offset"])), WHO_READ_SAMPLES, "expects"
    ),
    "offset null": Damage(index(lambda rows: rows[0].update(map_offset=None)), ALL_BUT_INFO, "without 'map_offset'"),
    "image null": Damage(index(lambda rows: rows[0].update(image_offset=None)), ALL_BUT_INFO, "without 'image_offset'"),
    "no images": Damage(
        index(
            lambda rows: [
                row.update(dict.fromkeys(("image_offset", "image_size", "image_sha256", "image_format")))
                for row in rows
            ]
        ),
        WHO_READ_SAMPLES,
        "says otherwise",
    ),
    "sha256 of another": Damage(index(lambda rows: rows[0].update(map_sha256="0" * 64)), WHO_CHECK_MEMBERS, "another sha256"),
    "sha256 of no digest": Damage(
        index(lambda rows: rows[0].update(map_sha256="../x")), {"verify", "stats", "diff", "split", "filter"}, "the map_sha256 '../x'"
    ),
    "key elsewhere": Damage(index(lambda rows: rows[0].update(key="17_1_1")), WHO_CHECK_DIGESTS, "17_1_1"),
    "key a path": Damage(index(lambda rows: rows[0].update(key="../../evil")), ALL_BUT_INFO, "the key '../../evil'"),
    "key twice": Damage(index(lambda rows: rows[1].update(key=rows[0]["key"])), ALL_BUT_INFO, "stands 2 times"),
    "row twice": Damage(index(lambda rows: rows.append(rows[0])), ALL_BUT_INFO, "stands 2 times"),
    "row missing": Damage(index(lambda rows: rows.pop()), {"verify"}, "rows, expected"),
    "no rows": Damage(index(lambda rows: rows.clear()), {"verify", "preview"}, "rows, expected"),
    "rows in another order": Damage(index(lambda rows: rows.reverse()), {"verify"}, "expects"),
    "shard ../": Damage(
        index(lambda rows: rows[0].update(shard="../../etc/passwd")), ALL_BUT_INFO, "outside the dataset"
    ),
    "shard absolute": Damage(
        index(lambda rows: rows[0].update(shard="/etc/passwd")), ALL_BUT_INFO, "outside the dataset"
    ),
    "shard of NUL": Damage(index(lambda rows: rows[0].update(shard="a\0.tar")), ALL_BUT_INFO, "outside the dataset"),
    "shard unknown": Damage(
        index(lambda rows: rows[0].update(shard="shards/other.tar")), WHO_READ_SAMPLES, "other.tar"
    ),
    "format unknown": Damage(
        index(lambda rows: rows[0].update(image_format="exe")), {"verify", "stats", "preview", "split", "filter"}, "image_format 'exe'"
    ),
    "share not finite": Damage(
        index(lambda rows: rows[0].update(fraction_water=float("nan"))), {"verify", "stats", "split", "filter"}, "not finite"
    ),
    "place not finite": Damage(index(lambda rows: rows[0].update(lon=float("inf"))), {"verify", "stats", "split", "filter"}, "not finite"),
    "quality of others": Damage(
        index(lambda rows: rows[0].update(blur=0.0, alignment=None)), {"verify"}, "the pixels say"
    ),
    "quality not finite": Damage(
        index(lambda rows: rows[0].update(blur=float("nan"))), {"verify", "stats", "split", "filter"}, "not finite"
    ),
    "quality as text": Damage(column("blur", pa.string()), ALL_BUT_INFO, "'blur' as string"),
    "quality lost": Damage(
        lambda data: pq.write_table(
            pq.read_table(data / "index.parquet").drop_columns(["blur", "alignment"]), data / "index.parquet"
        ),
        {"verify"},
        "blur is None",
    ),
    "place of another": Damage(index(lambda rows: rows[0].update(x=5)), WHO_CHECK_DIGESTS, "the index's x is 5"),
    "offsets as text": Damage(column("map_offset", pa.string()), ALL_BUT_INFO, "'map_offset' as string"),
    "keys as numbers": Damage(
        lambda data: (
            index(lambda rows: [row.update(key=str(number)) for number, row in enumerate(rows)])(data),
            column("key", pa.int64())(data),
        ),
        ALL_BUT_INFO,
        "'key' as int64",
    ),
    "rejected missing": Damage(lambda data: (data / "rejected.parquet").unlink(), {"verify"}, "rejected.parquet"),
    "rejected flipped": Damage(lambda data: cut(data / "rejected.parquet", 0.5), {"verify"}, "rejected.parquet"),
    "attribution changed": Damage(
        lambda data: (data / "ATTRIBUTION.md").write_text("mine"), {"verify"}, "ATTRIBUTION.md"
    ),
    "manifest missing": Damage(lambda data: (data / "dataset.json").unlink(), ALL, "not a magc dataset", healed=False),
    "manifest cut": Damage(lambda data: cut(data / "dataset.json", 0.5), ALL, "dataset.json is damaged", healed=False),
    "manifest nested": Damage(
        lambda data: (data / "dataset.json").write_text("[" * 100_000), ALL, "dataset.json is damaged", healed=False
    ),
    "manifest path ../": Damage(of_first_shard(path="../../etc/passwd"), ALL, "'shards'", healed=False),
    "manifest path of NUL": Damage(of_first_shard(path="\0.tar"), ALL, "'shards'", healed=False),
    "manifest size below 0": Damage(of_first_shard(size=-1), ALL, "'shards'", healed=False),
    "manifest other sha256": Damage(of_first_shard(sha256="0" * 64), WHO_CHECK_DIGESTS, "another sha256", healed=False),
    "manifest other samples": Damage(of_first_shard(samples=7), {"verify"}, "expected 7", healed=False),
    "manifest class 300": Damage(
        manifest(lambda document: document["classes"][1].update(id=300)), ALL, "'classes'", healed=False
    ),
    "manifest colour": Damage(
        manifest(lambda document: document["classes"][1].update(color=["red"])), ALL, "'classes'", healed=False
    ),
    "manifest class name": Damage(
        manifest(lambda document: document["classes"][1].update(name="x")),
        {"verify", "preview", "diff", "split"},
        "x",
        healed=False,
    ),
    "manifest class name, index lost": Damage(lambda data: ((data / "index.parquet").unlink(), manifest(lambda document: document["classes"][0].update(name="x"))(data)), ALL_BUT_INFO, "index.parquet", healed=False),
    "manifest bounds": Damage(
        manifest(lambda document: document.update(bounds_lonlat=[None] * 4)), ALL, "'bounds_lonlat'", healed=False
    ),
    "manifest gsd": Damage(
        manifest(lambda document: document["gsd_m"].update(min="far")), ALL, "'gsd_m'", healed=False
    ),
    "manifest zoom": Damage(manifest(lambda document: document.update(zoom=10**9)), ALL, "'zoom'", healed=False),
    "manifest counts": Damage(
        manifest(lambda document: document["counts"].update(rejected={"blank": None})), ALL, "'counts'", healed=False
    ),
    "manifest other counts": Damage(
        manifest(lambda document: document["counts"].update(kept=9)), {"verify"}, "expected 9", healed=False
    ),
    "manifest config": Damage(
        manifest(lambda document: document["config"].update(scheme=[])), ALL, "'config'", healed=False
    ),
    "manifest scheme": Damage(
        manifest(lambda document: document.update(scheme="sgdm")), {"verify"}, "two schemes", healed=False
    ),
    "manifest split": Damage(manifest(lambda document: document.update(split=[])), ALL, "'split'", healed=False),
    "manifest a view": Damage(
        manifest(lambda document: document.update(view={"folder": "/etc", "where": []})), ALL, "'view'", healed=False
    ),
    "manifest shard left out": Damage(
        manifest(lambda document: document["shards"].pop()), {"verify"}, "which dataset.json does not", healed=False
    ),
    "two shards lost": Damage(
        lambda data: [path.unlink() for path in (data / "shards").iterdir()], WHO_READ_SAMPLES, "is missing"
    ),
    "shard and index lost": Damage(
        lambda data: (first_shard(data).unlink(), (data / "index.parquet").unlink()),
        ALL_BUT_INFO,
        "index.parquet",
        healed=False,
    ),
}
# fmt: on


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad-input")
    os.environ["MAGC_CACHE_DIR"] = str(folder / "cache")
    world = tiny_world.World(folder, tiny_world.FOUR_TILES)
    tiny_world.run(world.config(folder / "dataset", scheme="basic"))
    return folder / "dataset"


def test_a_sound_dataset_is_read_by_all(sound: Path, tmp_path: Path) -> None:
    for name, reader in READERS.items():
        ended = reader(sound, sound, tmp_path / name)
        assert ended.code == 0, (name, ended)


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_one_sentence_and_is_healed(sound: Path, tmp_path: Path, name: str) -> None:
    damage = DAMAGES[name]
    data = shutil.copytree(sound, tmp_path / "data")
    damage.do(data)
    damaged = tiny_world.tree_digests(data)
    for reader_name, reader in READERS.items():
        ended = reader(data, sound, tmp_path / reader_name)
        assert ended.code in ({1, 2} if reader_name in damage.noticed_by else {0, 1, 2}), (reader_name, ended)
        assert "Traceback" not in ended.complaint, reader_name
        if ended.code:
            assert len(ended.complaint.splitlines()) == 1, (reader_name, ended.complaint)
            assert str(data) in ended.complaint or "class" in ended.complaint, (reader_name, ended.complaint)
        if reader_name == "verify":
            assert damage.named in ended.printed + ended.complaint
    assert tiny_world.tree_digests(data) == damaged, "to read is not to change"

    ended = command("heal", data, "--quiet")
    assert "Traceback" not in ended.complaint
    assert (ended.code == 0) == damage.healed, ended
    if name.startswith("manifest"):
        assert tiny_world.tree_digests(data) == damaged, (
            "what the manifest says wrongly is no reason to change the rest"
        )
    if damage.healed:
        assert tiny_world.tree_digests(data) == tiny_world.tree_digests(sound)
        assert read_all(data).code == 0
    else:
        assert "not healed" in ended.printed or "still wrong" in ended.printed or len(ended.complaint.splitlines()) == 1


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("file", ["index.parquet", "dataset.json", "rejected.parquet", "shard"])
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bytes_end_in_a_report_or_a_sentence(
    sound: Path, tmp_path: Path, file: str, flips: list[tuple[float, int]]
) -> None:
    """Whatever bytes: `verify` reports or raises a DatasetError, samples are read or refused, `heal` ends."""
    data = tmp_path / "data"
    shutil.rmtree(data, ignore_errors=True)
    shutil.copytree(sound, data)
    path = first_shard(data) if file == "shard" else data / file
    content = bytearray(path.read_bytes())
    for share, mask in flips:
        content[int(share * len(content))] ^= mask
    path.write_bytes(content)
    read_all(data)
    with contextlib.suppress(DatasetError):
        findings = verify(data).findings
        assert file != "shard" or findings or bytes(content) == first_shard(sound).read_bytes()
        healed = heal(HealConfig(data=data))
        assert file != "shard" or healed.verification.findings == ()
