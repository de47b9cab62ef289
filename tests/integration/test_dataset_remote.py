"""A dataset at an address reads as the one in a folder: real HTTP with ranges, files, memory, forks; and what goes wrong."""

from __future__ import annotations

import multiprocessing
import operator
import os
import pickle
import re
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import fsspec
import numpy as np
import pytest
import tiny_world

from magc_data.dataset import MagcDataset
from magc_data.errors import DatasetError, UsageError
from magc_data.shards.manifest import read_manifest
from magc_data.shards.reader import read_index, read_members
from magc_data.shards.storage import RemoteFolder, location, read_range

if TYPE_CHECKING:
    from collections.abc import Iterator


class RangeHandler(SimpleHTTPRequestHandler):
    """Files with range requests, as object stores and web servers have them."""

    protocol_version = "HTTP/1.1"
    answers_ranges = True
    asked: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.asked.append((self.path, wanted))
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted or "")
        if found and self.answers_ranges:
            start, end = int(found[1]), min(int(found[2]), len(content) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(content)}")
            content = content[start : end + 1]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    os.environ["MAGC_CACHE_DIR"] = str(folder / "cache")
    tiny_world.run(tiny_world.World(folder, tiny_world.FOUR_TILES).config(folder / "dataset"))
    return folder / "dataset"


@pytest.fixture
def served(data: Path) -> Iterator[tuple[str, type[RangeHandler]]]:
    """The dataset's address and the server's handler."""

    class Handler(RangeHandler):
        asked: ClassVar[list[tuple[str, str | None]]] = []

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(data.parent))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/dataset", Handler
    server.shutdown()
    server.server_close()


def same(one: MagcDataset, other: MagcDataset) -> bool:
    assert one.keys == other.keys
    assert len(one) == 4
    return all(
        a.gsd_m == b.gsd_m and np.array_equal(a.image, b.image) and np.array_equal(a.semantic_map, b.semantic_map)
        for a, b in zip(one, other, strict=True)
    )


def test_over_http_only_the_parts_asked_for_travel(data: Path, served: tuple[str, type[RangeHandler]]) -> None:
    url, handler = served
    local, remote = MagcDataset(data), MagcDataset(url)
    handler.asked.clear()
    sample = remote[2]
    assert np.array_equal(sample.image, local[2].image)
    ((path, wanted),) = handler.asked
    row = read_index(data).to_pylist()[2]
    assert path == f"/dataset/{row['shard']}"
    assert wanted == f"bytes={row['image_offset']}-{row['map_offset'] + row['map_size'] - 1}"
    assert same(remote, local)
    assert same(MagcDataset(url + "/"), local)
    assert remote.digest == local.digest
    assert remote.classes == local.classes
    assert np.array_equal(remote.read_map(1), local[1].semantic_map)
    assert [len(part) for part in read_members(url, row)] == [row[f"{each}_size"] for each in ("image", "map", "json")]
    assert read_manifest(url) == read_manifest(data)
    assert MagcDataset(url, where="x > 0").keys == local.keys


def test_file_and_memory_addresses(data: Path) -> None:
    assert same(MagcDataset(f"file://{data}"), MagcDataset(data))
    memory = fsspec.filesystem("memory")
    for path in (path for path in data.rglob("*") if path.is_file()):
        memory.pipe(f"/magc/{path.relative_to(data).as_posix()}", path.read_bytes())
    assert same(MagcDataset("memory://magc"), MagcDataset(data))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_read_over_http_what_this_one_does(
    data: Path, served: tuple[str, type[RangeHandler]], method: str
) -> None:
    """After a request has been made here: what fsspec keeps open must not be shared with a fork."""
    remote = MagcDataset(served[0])
    assert remote[0].key == remote.keys[0]
    with multiprocessing.get_context(method).Pool(2) as pool:
        there = pool.starmap_async(operator.getitem, [(remote, number) for number in range(4)]).get(60)
    assert all(np.array_equal(a.image, b.image) for a, b in zip(there, MagcDataset(data), strict=True))
    assert [sample.key for sample in there] == remote.keys


def test_what_is_kept_is_small_and_pickles(data: Path, served: tuple[str, type[RangeHandler]]) -> None:
    remote = MagcDataset(served[0])
    assert remote[0].key
    content = pickle.dumps(remote)
    assert len(content) < 5000
    assert same(pickle.loads(content), MagcDataset(data))


def test_a_server_without_ranges_is_named(served: tuple[str, type[RangeHandler]]) -> None:
    url, handler = served
    remote = MagcDataset(url)
    handler.answers_ranges = False
    with pytest.raises(DatasetError, match="does not answer range requests"):
        remote[0]


def test_what_is_not_there_is_named(served: tuple[str, type[RangeHandler]], data: Path, tmp_path: Path) -> None:
    url, _ = served
    with pytest.raises(DatasetError, match=r"http://.*/nothing is not a magc dataset"):
        MagcDataset(url.replace("dataset", "nothing"))
    with pytest.raises(DatasetError, match=r"dataset\.json cannot be read \(ClientConnector.*is the address right"):
        MagcDataset("http://127.0.0.1:9/dataset")
    with pytest.raises((DatasetError, UsageError), match="nosuch://x"):
        MagcDataset("nosuch://x/data")
    broken = shutil.copytree(data, tmp_path / "broken")
    shutil.rmtree(broken / "shards")
    with pytest.raises(DatasetError, match="missing although the index names it"):
        MagcDataset(f"file://{broken}")[0]
    (broken / "index.parquet").write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match="not readable as Parquet"):
        MagcDataset(f"file://{broken}")


def test_names_stay_in_the_dataset(data: Path) -> None:
    elsewhere = ["../x", "/etc/passwd", "shards/../../x", "a\\b", "C:x", "x?y", "http://x/y", "a\0b", ".hidden/x"]
    for name in ("", "index.parquet", *elsewhere, *(f"{each}.tar" for each in elsewhere)):
        with pytest.raises(DatasetError, match="not in the dataset"):
            read_range(data, name, 0, 1)
    row = read_index(data).to_pylist()[0]
    with pytest.raises(DatasetError, match="not in the dataset"):
        read_members(data, row | {"shard": "/etc/passwd"})
    for places in ({"image_offset": -5}, {"image_offset": 2**61, "json_size": 2**40}, {"json_size": -1}):
        with pytest.raises(DatasetError, match="which cannot be|ends inside"):
            read_members(data, row | places)


def test_a_range_of_memory_larger_than_the_file_is_not_reserved(data: Path) -> None:
    shard = read_index(data)["shard"][0].as_py()
    size = (data / shard).stat().st_size
    assert len(read_range(data, shard, 0, 1 << 30)) == size
    assert read_range(data, shard, size + 5, 10) == b""
    assert location("s3://a/b") == RemoteFolder("s3://a/b")
    assert str(RemoteFolder("s3://a/b/") / "c") == "s3://a/b/c"
