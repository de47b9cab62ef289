"""A dataset that was built into a bucket is read from there, and over plain HTTP, as one in a folder is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_world
from fake_s3 import BUCKET, FakeS3, Fault, moto_port, s3

from magc_data import cli
from magc_data.config import SplitConfig
from magc_data.dataset import MagcDataset
from magc_data.errors import DatasetError
from magc_data.split import split
from magc_data.verify import verify

__all__ = ["moto_port", "s3"]  # fixtures

PREFIX = "a/dataset"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    os.environ["MAGC_CACHE_DIR"] = str(folder / "cache")
    tiny_world.run(tiny_world.World(folder).config(folder / "dataset"))
    return folder / "dataset"


def put(folder: Path, s3: FakeS3) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            s3.client.put_object(Bucket=BUCKET, Key=f"{PREFIX}/{name}", Body=path.read_bytes(), ACL="public-read")


@pytest.fixture(params=["s3", "http"])
def address(request: pytest.FixtureRequest, data: Path, s3: FakeS3) -> str:
    """Of the same objects; by HTTP anybody may read a bucket that is open to the public."""
    put(data, s3)
    return f"s3://{BUCKET}/{PREFIX}" if request.param == "s3" else f"{s3.url}/{BUCKET}/{PREFIX}"


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    return int(ended.value.code or 0), *capsys.readouterr()


def test_samples_are_those_of_the_folder(address: str, data: Path, s3: FakeS3) -> None:
    here, there = MagcDataset(data), MagcDataset(address)
    s3.requests.clear()
    for one, other in zip(here, there, strict=True):
        assert one.key == other.key
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.semantic_map, other.semantic_map)
    assert [each.what for each in s3.requests] == ["get"] * len(here)
    assert here.digest == there.digest


@pytest.mark.parametrize("command", ["info", "stats", "verify", "preview", "coverage", "diff", "export"])
def test_commands_that_only_read_take_addresses(
    command: str, address: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And say of one what they say of the folder."""
    more = {
        "preview": ["preview", "--out", "OUT.png", "--count", "3"],
        "coverage": ["preview", "--coverage", "--out", "OUT.png"],
        "diff": ["diff", str(data), "--quiet"],
        "export": ["export", "--format", "folders", "--out", "OUT", "--i-hold-a-licence", "--quiet"],
        "verify": ["verify", "--quiet"],
    }
    name, *options = more.get(command, [command])
    said = {}
    for place, where in (("here", str(data)), ("there", address)):
        filled = [each.replace("OUT", str(tmp_path / place)) for each in options]
        code, out, error = printed([name, where, *filled], capsys)
        assert (code, error) == (0, "")
        said[place] = out.replace(where, "DATA").replace(str(data), "DATA").replace(str(tmp_path / place), "OUT")
    assert said["there"] == said["here"]
    if command == "export":
        assert tiny_world.tree_digests(tmp_path / "there") == tiny_world.tree_digests(tmp_path / "here")
    if command in ("preview", "coverage"):
        assert (tmp_path / "there.png").read_bytes() == (tmp_path / "here.png").read_bytes()


@pytest.mark.parametrize(
    "arguments",
    [
        ["split", "ADDRESS"],
        ["heal", "ADDRESS"],
        ["metadata", "ADDRESS"],
        ["explore", "ADDRESS"],
        ["filter", "ADDRESS", "--where", "x > 0", "--out", "view"],
        ["filter", "here", "--where", "x > 0", "--out", "ADDRESS"],
    ],
)
def test_commands_that_write_refuse_addresses_plainly(
    arguments: list[str], s3: FakeS3, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"s3://{BUCKET}/{PREFIX}"
    code, _, error = printed([each.replace("ADDRESS", address) for each in arguments], capsys)
    assert code == 2
    assert f'"{address}" is an address: this needs a path, so copy what is there to this machine first' in error
    assert not s3.requests


def test_verify_finds_damage_at_an_address(address: str, data: Path, s3: FakeS3) -> None:
    """A flipped byte, a shard that has gone, one too many, a document that was edited."""
    shards = sorted(path.relative_to(data).as_posix() for path in data.rglob("*.tar"))
    content = bytearray((data / shards[0]).read_bytes())
    content[5000] ^= 1
    s3.client.put_object(Bucket=BUCKET, Key=f"{PREFIX}/{shards[0]}", Body=bytes(content), ACL="public-read")
    s3.client.delete_object(Bucket=BUCKET, Key=f"{PREFIX}/{shards[1]}")
    s3.client.put_object(Bucket=BUCKET, Key=f"{PREFIX}/shards/17_0_0.tar", Body=b"x")
    s3.client.put_object(Bucket=BUCKET, Key=f"{PREFIX}/ATTRIBUTION.md", Body=b"mine", ACL="public-read")
    findings = "\n".join(verify(address).findings)
    assert f"{shards[0]} has another sha256" in findings
    assert f"{shards[1]} is missing" in findings
    assert "ATTRIBUTION.md is missing or was changed" in findings
    # A web server cannot be asked for what nobody names.
    assert ("shards/17_0_0.tar belongs to no sample" in findings) == address.startswith("s3")


def test_a_split_dataset_is_verified_at_an_address(data: Path, tmp_path: Path, s3: FakeS3) -> None:
    """The certificate compares pictures of all shards: each is fetched once all the same."""
    folder = shutil.copytree(data, tmp_path / "split")
    split(folder, SplitConfig(block_m=300, ratios="0.5,0.25,0.25", seed=2), quiet=True)
    put(folder, s3)
    s3.requests.clear()
    assert verify(f"s3://{BUCKET}/{PREFIX}").findings == verify(folder).findings == ()
    shards = [each.key for each in s3.requests if each.what == "get" and each.key.endswith(".tar")]
    assert len(shards) == len(set(shards)) == len(list(folder.rglob("*.tar")))


def test_what_fails_in_passing_is_asked_again(address: str, s3: FakeS3) -> None:
    dataset = MagcDataset(address)
    s3.fail("get", 2, Fault(503))
    s3.requests.clear()
    assert dataset[0].image.shape == (256, 256, 3)
    assert [each.status for each in s3.requests] == [503, 503, 206]


def test_what_is_refused_is_named(s3: FakeS3) -> None:
    s3.fault_of = lambda what, key: Fault(403)
    for address in (f"s3://{BUCKET}/{PREFIX}", f"{s3.url}/{BUCKET}/{PREFIX}"):
        with pytest.raises(DatasetError, match=r"dataset\.json cannot be read .*may you read it\?"):
            MagcDataset(address)
