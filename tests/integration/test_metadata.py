"""The metadata of a dataset, read with the libraries of those who defined it, and compared with the dataset itself."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import mlcroissant
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pystac
import pytest
import tiny_world
from pystac.validation import RegisteredValidator
from tiny_world import World

from magc_data import cli
from magc_data.config import BuildConfig
from magc_data.metadata.facts import facts_of
from magc_data.shards.describe import stale_metadata, write_metadata
from magc_data.shards.manifest import read_manifest
from magc_data.shards.reader import decode_image, decode_map, read_index, read_members
from magc_data.verify import verify

if TYPE_CHECKING:
    from pathlib import Path

PUBLISHER_FILLS_IN = ("citeAs", "datePublished")
"""What mlcroissant recommends and no file of a dataset can know."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    os.environ["MAGC_CACHE_DIR"] = str(folder / "cache")
    tiny_world.run(World(folder, tiny_world.FOUR_TILES).config(folder / "data"))
    return folder / "data"


@pytest.fixture(scope="module")
def banepa(tmp_path_factory: pytest.TempPathFactory, embedded_cache: Path) -> Path:
    """The sample: sources that may be passed on, PNG images."""
    os.environ["MAGC_CACHE_DIR"] = str(embedded_cache)
    data = tmp_path_factory.mktemp("banepa") / "data"
    tiny_world.run(BuildConfig(imagery="sample-banepa", osm="sample-banepa", out=data, workers=1))
    return data


@pytest.fixture(params=["tiny", "banepa"])
def data(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def croissant_of(data: Path) -> mlcroissant.Dataset:
    return mlcroissant.Dataset(str(data / "croissant.json"))


def records(data: Path, record_set: str) -> list[dict[str, Any]]:
    return list(croissant_of(data).records(record_set))


@pytest.fixture
def _own_croissant_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mlcroissant keeps unpacked archives by their relative address, whatever the dataset."""
    from etils import epath
    from mlcroissant._src.operation_graph.operations import extract

    monkeypatch.setattr(extract, "EXTRACT_PATH", epath.Path(tmp_path / "croissant"))


def test_croissant_is_valid(data: Path) -> None:
    issues = croissant_of(data).metadata.ctx.issues
    assert not issues.errors
    unexpected = [each for each in issues.warnings if not any(name in each for name in PUBLISHER_FILLS_IN)]
    assert unexpected == []


def test_croissant_reads_every_sample(data: Path) -> None:
    read = {each["samples/key"].decode(): each for each in records(data, "samples")}
    rows = read_index(data).to_pylist()
    assert list(read) == [row["key"] for row in rows]
    for row in rows:
        found = read[row["key"]]
        assert found["samples/lon"] == row["lon"]
        assert found["samples/image_sha256"].decode() == row["image_sha256"]
        assert found["samples/fraction_building"] == pytest.approx(row["fraction_building"])
    table = {each["classes/id"]: each["classes/name"] for each in records(data, "classes")}
    assert table == {each["id"]: each["name"] for each in read_manifest(data)["classes"]}


@pytest.mark.usefixtures("_own_croissant_cache")
def test_croissant_reads_every_picture_out_of_the_shards(data: Path) -> None:
    rows = {row["key"]: row for row in read_index(data).to_pylist()}
    for record_set, decode in (("image", decode_image), ("map", decode_map)):
        read = {each[f"{record_set}s/key"].decode(): each for each in records(data, f"{record_set}s")}
        assert read.keys() == rows.keys()
        for key, each in read.items():
            members = read_members(data, rows[key])
            content = members.image if record_set == "image" else members.semantic_map
            assert np.array_equal(np.asarray(each[f"{record_set}s/{record_set}"]), decode(content))


def test_croissant_states_the_geography(banepa: Path) -> None:
    document = json.loads((banepa / "croissant.json").read_text())
    assert document["conformsTo"] == ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/geo/1.0"]
    assert document["@context"]["geocr"] == "http://mlcommons.org/croissant/geo/"
    assert document["geocr:coordinateReferenceSystem"] == "EPSG:3857"
    assert document["geocr:spatialResolution"]["value"] == pytest.approx(1.0581, abs=1e-4)
    south, west, north, east = map(float, document["spatialCoverage"]["geo"]["box"].split())
    assert 27.62 < south < north < 27.64  # latitude first
    assert 85.50 < west < east < 85.54
    assert document["license"] == [
        "https://creativecommons.org/licenses/by/4.0/",
        "https://opendatacommons.org/licenses/odbl/1-0/",
    ]
    (images,) = (each for each in document["recordSet"] if each["@id"] == "images")
    assert images["field"][1]["geocr:bandConfiguration"]["geocr:totalBands"] == 3


def test_croissant_names_every_file_with_its_digest(data: Path) -> None:
    document = json.loads((data / "croissant.json").read_text())
    files = [each for each in document["distribution"] if each["@type"] == "cr:FileObject"]
    assert {each["contentUrl"] for each in files} == {
        "index.parquet", *(each["path"] for each in read_manifest(data)["shards"])
    }  # fmt: skip
    for each in files:
        assert hashlib.sha256((data / each["contentUrl"]).read_bytes()).hexdigest() == each["sha256"]


def test_the_stac_collection_is_valid_offline(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def no_network(*_: object) -> None:
        raise AssertionError("validation asked the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    collection = pystac.Collection.from_file(str(data / "collection.json"))
    assert collection.validate() == ["https://schemas.stacspec.org/v1.1.0/collection-spec/json-schema/collection.json"]
    assert RegisteredValidator.get_validator() is not None
    for asset in collection.assets.values():
        assert (data / asset.href).is_file()
    west, south, east, north = collection.extent.spatial.bboxes[0]
    rows = read_index(data)
    assert west < min(rows["lon"].to_pylist())
    assert max(rows["lat"].to_pylist()) < north
    assert (east - west) * (north - south) < 0.01


def test_a_collection_without_an_extent_is_not_valid(tiny: Path, tmp_path: Path) -> None:
    """The validator that the test above trusts does look."""
    document = json.loads((tiny / "collection.json").read_text())
    del document["extent"]["spatial"]["bbox"]
    with pytest.raises(pystac.errors.STACValidationError):
        pystac.validation.validate_dict(document)


def test_the_datasheet_states_facts(banepa: Path) -> None:
    text = (banepa / "DATASHEET.md").read_text()
    for fact in (
        "Samples: 22;",
        "outside-vectors: 34",
        "CC-BY-4.0",
        "ODbL-1.0",
        "56 tiles",
        "24.58%",
        "| building | 9 |",
    ):
        assert fact in text
    assert "Pictures taken: not stated by the source." in text
    assert "## Not recorded by the tool" in text


def test_metadata_of_a_build_is_that_of_the_command(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    before = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir() if path.is_file()}
    for name in ("croissant.json", "collection.json", "DATASHEET.md"):
        (tmp_path / "data" / name).unlink()
    assert len(verify(tmp_path / "data").findings) == 3
    with pytest.raises(SystemExit) as stopped:
        cli.main(["metadata", str(tmp_path / "data")])
    assert stopped.value.code == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir() if path.is_file()} == before
    assert verify(tmp_path / "data").findings == ()


def test_metadata_that_lags_behind_is_found(tiny: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny, data)
    table = pq.read_table(data / "index.parquet")
    rows = table.to_pylist()
    for number, row in enumerate(rows):
        row["split"] = "train" if number else "test"
    pq.write_table(pa.Table.from_pylist(rows, table.schema), data / "index.parquet")
    manifest = read_manifest(data)
    assert stale_metadata(data, manifest) == ["croissant.json", "DATASHEET.md"]
    write_metadata(data, manifest)
    assert stale_metadata(data, manifest) == []
    assert "Splits: train 3, test 1; 0 samples belong to none." in (data / "DATASHEET.md").read_text()


def test_facts_do_not_depend_on_how_the_index_is_cut(banepa: Path) -> None:
    manifest, table = read_manifest(banepa), read_index(banepa)
    whole = facts_of(manifest, [table])
    assert facts_of(manifest, [table.slice(start, 5) for start in range(0, len(table), 5)]) == whole
    assert facts_of(manifest, [table.slice(0, 0), table]) == whole


def test_nothing_of_this_run_is_in_the_metadata(data: Path) -> None:
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    for name in ("croissant.json", "collection.json", "DATASHEET.md"):
        text = (data / name).read_text()
        assert str(data) not in text
        assert str(data.parent) not in text
        assert today not in text
