"""`verify` finds each kind of damage, and nothing in a sound dataset."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_world
from PIL import Image

from magc_data.build import build
from magc_data.config import BuildConfig
from magc_data.dataset import MagcDataset
from magc_data.errors import DatasetError
from magc_data.quality.signals import tile_signals
from magc_data.shards.describe import write_metadata
from magc_data.shards.index import QUALITY_COLUMNS
from magc_data.shards.manifest import BUILD_NAME, read_manifest
from magc_data.verify import verify
from magc_data.view import make_view
from magc_data.where import WhereError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    os.environ["MAGC_CACHE_DIR"] = str(folder / "cache")
    settings = BuildConfig(
        bbox=tiny_world.BBOX,
        imagery=str(tiny_world.write_pictures(folder / "tiles")),
        osm=str(tiny_world.write_osm(folder / "world.osm.opl")),
        out=folder / "dataset",
        workers=1,
    )
    build(settings, lambda _: None, quiet=True)
    return folder / "dataset"


@pytest.fixture
def data(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "dataset")


def first_shard(data: Path) -> Path:
    return min((data / "shards").iterdir())


def edit_manifest(data: Path, change: Callable[[dict], None]) -> None:
    document = json.loads((data / "dataset.json").read_text())
    change(document)
    (data / "dataset.json").write_text(json.dumps(document))


def edit_index(data: Path, change: Callable[[list[dict]], None]) -> None:
    table = pq.read_table(data / "index.parquet")
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), data / "index.parquet")


def flip_byte(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x40
    path.write_bytes(content)


def rewrite_shard(data: Path, change: Callable[[str, bytes], tuple[str, bytes] | None]) -> None:
    """Write the first shard anew with changed members, and the digest in the manifest to match: a careful forgery."""
    path = first_shard(data)
    with tarfile.open(path) as archive:
        members = [(member.name, archive.extractfile(member).read()) for member in archive]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            changed = change(name, content)
            if changed is not None:
                member = tarfile.TarInfo(changed[0])
                member.size = len(changed[1])
                archive.addfile(member, io.BytesIO(changed[1]))
    path.write_bytes(stream.getvalue())

    def repair(document: dict) -> None:
        entry = next(entry for entry in document["shards"] if entry["path"].endswith(path.name))
        entry["size"] = path.stat().st_size
        entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()

    edit_manifest(data, repair)


def forge(
    data: Path,
    *,
    image: Callable[[bytes], bytes] = lambda content: content,
    semantic_map: Callable[[bytes], bytes] = lambda content: content,
    record: Callable[[dict], None] = lambda fields: None,
    digests_too: bool = True,
) -> None:
    """Change the first sample, and with it everything that names its members: record, offsets, sizes, digests.

    Without `digests_too`, the digests of the sample's members stay what they were.
    """
    changes = {"image": image, "map": semantic_map}
    path = first_shard(data)
    with tarfile.open(path) as archive:
        first_key = archive.getnames()[0].split(".")[0]
    digests: dict[str, str] = {}

    def changed(name: str, content: bytes) -> tuple[str, bytes]:
        if name.split(".")[0] != first_key:
            return name, content
        if name.endswith(".json"):
            fields = json.loads(content)
            fields |= digests if digests_too else {}
            record(fields)
            return name, json.dumps(fields, sort_keys=True).encode()
        member = name.split(".")[1]
        content = changes[member](content)
        digests[f"{member}_sha256"] = hashlib.sha256(content).hexdigest()
        return name, content

    rewrite_shard(data, changed)
    with tarfile.open(path) as archive:
        places = {member.name: (member.offset_data, member.size) for member in archive}

    def repair(rows: list[dict]) -> None:
        of_shard = [row for row in rows if row["shard"].endswith(path.name)]
        for row in of_shard:
            suffixes = {"image": f"image.{row['image_format']}", "map": "map.png", "json": "json"}
            for member, suffix in suffixes.items():
                row[f"{member}_offset"], row[f"{member}_size"] = places[f"{row['key']}.{suffix}"]
        if digests_too:
            of_shard[0].update(digests)

    edit_index(data, repair)


def redrawn(
    change: Callable[[np.ndarray], np.ndarray], first_color: list[int] | None = None
) -> Callable[[bytes], bytes]:
    """A change of a map's pixels, or of its first colour, as a change of its PNG."""

    def of_bytes(content: bytes) -> bytes:
        with Image.open(io.BytesIO(content)) as before:
            after = Image.fromarray(change(np.array(before)), "P")
            colors = before.getpalette()
            after.putpalette([*(first_color or colors[:3]), *colors[3:]])
        stream = io.BytesIO()
        after.save(stream, "PNG")
        return stream.getvalue()

    return of_bytes


def swapped(classes: np.ndarray) -> np.ndarray:
    """Every class keeps its share, but not its place."""
    return np.ascontiguousarray(classes[::-1])


def of_size(width: int) -> Callable[[bytes], bytes]:
    def resized(content: bytes) -> bytes:
        stream = io.BytesIO()
        with Image.open(io.BytesIO(content)) as image:
            image.resize((width, 256)).save(stream, "JPEG")
        return stream.getvalue()

    return resized


def as_png(content: bytes) -> bytes:
    stream = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        image.save(stream, "PNG")
    return stream.getvalue()


def test_a_sound_dataset_has_no_findings(data: Path) -> None:
    result = verify(data)
    assert result.findings == ()
    assert result.samples == len(tiny_world.tiles())


@pytest.mark.parametrize("position", [0.001, 0.3, 0.7])
def test_a_flipped_byte_anywhere_in_a_shard_is_found(data: Path, position: float) -> None:
    shard = first_shard(data)
    flip_byte(shard, int(shard.stat().st_size * position))
    assert any("another sha256" in finding and shard.name in finding for finding in verify(data).findings)


def test_every_truncation_is_found(data: Path) -> None:
    shard = first_shard(data)
    content = shard.read_bytes()
    for size in (0, 1, 512, len(content) // 2, len(content) - 1):
        shard.write_bytes(content[:size])
        findings = verify(data).findings
        assert any(f"{shard.name} has {size} bytes" in finding for finding in findings), size


def test_a_missing_shard_is_found(data: Path) -> None:
    first_shard(data).unlink()
    assert any("is missing" in finding for finding in verify(data).findings)


def test_leftovers_are_found(data: Path) -> None:
    shutil.copy(first_shard(data), data / "shards" / "17_0_0.tar")
    assert any("17_0_0.tar belongs to no sample" in finding for finding in verify(data).findings)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[0].update(gsd_m=1.07), "the index's gsd_m is 1.07"),
        (lambda rows: rows[0].update(lon=rows[0]["lon"] + 1e-6), "the index's lon"),
        (lambda rows: rows[0].update(image_sha256="0" * 64), "the image has another sha256"),
        (lambda rows: rows[0].update(fraction_building=0.9), "the share of building"),
        (lambda rows: rows[0].update(map_offset=rows[0]["map_offset"] + 512), "where the index expects"),
        (lambda rows: rows[0].update(capture_date="2020-01-01"), "capture_date"),
        (lambda rows: rows.pop(), "rows, expected"),
        (lambda rows: rows.append(rows[0]), "stands 2 times"),
        (lambda rows: rows[0].update(shard="shards/other.tar"), "other.tar"),
        (lambda rows: rows[0].update(shard="../outside.tar"), "outside.tar"),
    ],
)
def test_a_wrong_index_is_found(data: Path, change: Callable[[list[dict]], None], said: str) -> None:
    edit_index(data, change)
    findings = verify(data).findings
    assert any(said in finding for finding in findings), findings


def test_forged_members_are_found_even_if_the_digest_was_forged_too(data: Path) -> None:
    """The pixel grid, the record and the class shares still tell."""
    original = data.with_name("original")
    shutil.copytree(data, original)

    def moved_record(name: str, content: bytes) -> tuple[str, bytes]:
        # Same length, another place.
        return name, content.replace(b'"lat":54.1', b'"lat":54.2', 1) if name.endswith(".json") else content

    rewrite_shard(data, moved_record)
    assert any("the record's lat" in finding for finding in verify(data).findings)

    shutil.rmtree(data)
    shutil.copytree(original, data)
    rewrite_shard(data, lambda name, content: (name.replace("17_", "18_"), content))
    assert any("where the index expects" in finding for finding in verify(data).findings)

    shutil.rmtree(data)
    shutil.copytree(original, data)
    rewrite_shard(data, lambda name, content: None if name.endswith("map.png") else (name, content))
    assert any("where the index expects" in finding for finding in verify(data).findings)


@pytest.mark.parametrize(
    ("forged", "said"),
    [
        ({"image": lambda content: content[: len(content) // 2]}, "the image cannot be decoded"),
        ({"image": lambda content: content[:3] + bytes(len(content) - 3)}, "the image cannot be decoded"),
        ({"image": of_size(255)}, "the image is 255x256 pixels"),
        ({"image": as_png}, "the image is no jpg"),
        ({"image": of_size(256), "digests_too": False}, "the image has another sha256"),
        ({"semantic_map": redrawn(swapped), "digests_too": False}, "the map has another sha256"),
        ({"semantic_map": lambda content: content[: len(content) // 2]}, "the map cannot be decoded"),
        ({"semantic_map": redrawn(lambda classes: classes.repeat(2, axis=1))}, "the map is 512x256 pixels"),
        ({"semantic_map": redrawn(np.copy, first_color=[7, 7, 7])}, "the map's palette"),
        ({"record": lambda fields: fields.update(scheme="basic")}, "the record's scheme is basic"),
        ({"record": lambda fields: fields.update(imagery="other")}, "the record's imagery is other"),
        ({"record": lambda fields: fields.update(vectors="other")}, "the record's vectors is other"),
        ({"record": lambda fields: fields.update(gsd_m=1.07)}, "the record's gsd_m is 1.07"),
        ({"record": lambda fields: fields.pop("bounds_3857")}, "the record's bounds_3857 is None"),
        ({"record": lambda fields: fields.update(osm_timestamp=None)}, "the record's osm_timestamp is None"),
        ({"record": lambda fields: fields["class_fractions"].update(water=0.5)}, "the record's class_fractions"),
        ({"record": lambda fields: fields.update(class_fractions=None)}, "the record's class_fractions"),
    ],
)
def test_each_check_of_a_sample_stands_alone(data: Path, forged: dict, said: str) -> None:
    """Everything else about the sample was made to fit: this check alone tells."""
    forge(data, **forged)
    (finding,) = verify(data).findings
    assert said in finding


def test_a_forgery_that_fits_in_everything_is_none(data: Path) -> None:
    """What the tests above and below find is what they changed, not a trace of how they changed it."""
    forge(data, image=of_size(256), semantic_map=redrawn(swapped))
    sample = MagcDataset(data)[0]
    signals = tile_signals(sample.image, sample.semantic_map)
    edit_index(data, lambda rows: rows[0].update(signals._asdict()))
    stale = verify(data).findings
    assert [finding.split()[0] for finding in stale] == ["croissant.json", "DATASHEET.md"]
    assert all("`magc-data metadata" in finding for finding in stale)
    write_metadata(data, read_manifest(data))
    assert verify(data).findings == ()


def test_quality_that_the_pixels_do_not_have_is_found(data: Path) -> None:
    edit_index(data, lambda rows: rows[0].update(blur=0.0, alignment=None))
    findings = verify(data).findings
    assert len(findings) == 2
    assert "the index's alignment is None, the pixels say " in findings[0]
    assert "the index's blur is 0.0, the pixels say " in findings[1]


def test_a_dataset_from_before_there_was_quality_is_sound(data: Path) -> None:
    """Read, checked and filtered as ever; what it does not have is named."""
    table = pq.read_table(data / "index.parquet").drop_columns(list(QUALITY_COLUMNS))
    pq.write_table(table, data / "index.parquet")
    edit_manifest(data, lambda document: document["config"].pop("quality_version"))
    write_metadata(data, read_manifest(data))
    assert verify(data).findings == ()
    assert len(MagcDataset(data)) == len(table)
    with pytest.raises(WhereError, match="no column 'blur'"):
        make_view(data, "blur < 0.5", data.parent / "view")


def test_a_class_that_is_not_in_the_table_is_found(data: Path) -> None:
    """The shares in index and record were made to fit, so that nothing else tells."""
    names = {each["id"]: each["name"] for each in json.loads((data / "dataset.json").read_text())["classes"]}
    replaced: list[str] = []

    def with_class_200(classes: np.ndarray) -> np.ndarray:
        replaced.append(names[classes[0, 0]])
        return np.where(classes == classes[0, 0], np.uint8(200), classes)

    def without_share(record: dict) -> None:
        del record["class_fractions"][replaced[0]]

    forge(data, semantic_map=redrawn(with_class_200), record=without_share)
    edit_index(data, lambda rows: rows[0].update({f"fraction_{replaced[0]}": 0.0}))
    (finding,) = verify(data).findings
    assert "class 200, which is not in the class table" in finding


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda counts: counts.update(planned=counts["planned"] + 1), "rejected, expected .* in all"),
        (lambda counts: counts.update(planned=counts["planned"] + 1, rejected={"blank": 1}), r"holds \{\}, expected \{'blank': 1\}"),
        (lambda counts: counts.update(planned=counts["planned"] + 1, kept=counts["kept"] + 1), "rows, expected"),
    ],
)  # fmt: skip
def test_counts_that_do_not_add_up_are_found(data: Path, change: Callable[[dict], None], said: str) -> None:
    edit_manifest(data, lambda document: change(document["counts"]))
    (finding,) = verify(data).findings
    assert re.search(said, finding)


def test_another_reason_for_a_rejection_is_found(data: Path) -> None:
    """As many as the manifest says, but for another reason."""
    row = pq.read_table(data / "index.parquet").to_pylist()[0]
    schema = pq.read_schema(data / "rejected.parquet")
    rejected = {name: row.get(name) for name in schema.names}
    rejected |= {"key": "17_1_1", "block": "17_0_0", "reason": "blank", "transient": False}
    pq.write_table(pa.Table.from_pylist([rejected], schema), data / "rejected.parquet")

    def count(document: dict) -> None:
        document["counts"]["planned"] += 1
        document["counts"]["rejected"] = {"repeated": 1}

    edit_manifest(data, count)
    (finding,) = verify(data).findings
    assert "holds {'blank': 1}, expected {'repeated': 1}" in finding


def test_a_path_out_of_the_dataset_is_not_followed(data: Path) -> None:
    edit_manifest(data, lambda document: document["shards"][0].update(path="../../etc/passwd"))
    with pytest.raises(DatasetError, match="'shards' is missing or not what it can be"):
        verify(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: (data / "dataset.json").unlink(), "not a magc dataset"),
        (lambda data: (data / "dataset.json").write_text("{"), "damaged"),
        (lambda data: (data / "dataset.json").write_text("[]"), "damaged"),
        (lambda data: (data / "dataset.json").write_text('{"format_version": 99}'), "format 99"),
        (lambda data: (data / "dataset.json").write_text('{"format_version": 1}'), "damaged"),
        (lambda data: (data / "index.parquet").write_bytes(b"PAR1"), "not readable as Parquet"),
        (lambda data: (data / "index.parquet").unlink(), "does not exist"),
        (lambda data: pq.write_table(pa.table({"a": [1]}), data / "index.parquet"), "lacks the column"),
    ],
)
def test_what_is_no_dataset_is_one_sentence(data: Path, damage: Callable[[Path], object], said: str) -> None:
    damage(data)
    with pytest.raises(DatasetError, match=said):
        verify(data)


def test_an_unfinished_build_is_called_so(data: Path) -> None:
    (data / "dataset.json").unlink()
    (data / BUILD_NAME).mkdir()
    with pytest.raises(DatasetError, match="unfinished build"):
        verify(data)


def test_a_changed_attribution_is_found(data: Path) -> None:
    (data / "ATTRIBUTION.md").write_text("mine, all mine")
    assert any("ATTRIBUTION.md" in finding for finding in verify(data).findings)


def test_a_retry_that_changed_nothing_yet_leaves_the_dataset_sound(data: Path) -> None:
    (data / ".magc-build" / "blocks").mkdir(parents=True)
    (data / ".magc-build" / "blocks" / "17_0_0.arrow").write_bytes(b"scratch")
    assert verify(data).findings == ()
