"""The explore page as a file and from its server: the right bytes, nothing for strangers, a sentence where it cannot be."""

from __future__ import annotations

import base64
import contextlib
import html
import http.client
import io
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from big_dataset import write_big_dataset
from hypothesis import given
from hypothesis import strategies as st
from interrupts import heed_interrupts
from PIL import Image

from magc_data import cli
from magc_data.errors import DatasetError, UsageError
from magc_data.explore.document import embedded_json, page_shell, write_page
from magc_data.explore.pictures import PicturePlan, pictures_of_row, plan_pictures
from magc_data.explore.server import MAX_CONNECTIONS, ExploreServer
from magc_data.explore.table import ExploreTable, read_table
from magc_data.shards.reader import read_members

if TYPE_CHECKING:
    from collections.abc import Iterator

TILES = 160


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_big_dataset(tmp_path_factory.mktemp("explore") / "dataset", TILES)


@pytest.fixture(scope="module")
def table(data: Path) -> ExploreTable:
    return read_table(data)


def page_of(table: ExploreTable, plan: PicturePlan) -> str:
    stream = io.BytesIO()
    write_page(stream, table, plan)
    return stream.getvalue().decode()


def facts_of(page: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def unpacked(text: str, dtype: type) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


def picture_of(page: str, row: int, which: str) -> bytes:
    """As the page's script finds it."""
    held = facts_of(page)["pictures"]
    columns = {
        name: unpacked(held[name], np.int32)[row] for name in ("chunks", "starts", "image_lengths", "map_lengths")
    }
    text = re.search(rf'id="pictures-{columns["chunks"]}">(.*?)</script>', page)[1]
    start = columns["starts"] + (columns["image_lengths"] if which == "map" else 0)
    return base64.b64decode(text[start : start + columns[f"{which}_lengths"]])


def test_a_page_holds_the_shards_own_bytes_and_the_indexs_own_numbers(table: ExploreTable, monkeypatch) -> None:
    monkeypatch.setattr("magc_data.explore.document._CHUNK_CHARACTERS", 100_000)
    page = page_of(table, plan_pictures(table, 50_000_000))
    facts = facts_of(page)
    assert page.count('id="pictures-') > 5
    for row in (0, 1, 37, TILES - 1):
        members = read_members(table.data, table.row(row))
        assert picture_of(page, row, "image") == members.image
        assert picture_of(page, row, "map") == members.semantic_map
    assert facts["keys"] == table.rows["key"].to_pylist()
    assert np.array_equal(unpacked(facts["x"], np.int32), table.rows["x"])
    building = next(each for each in facts["classes"] if each["name"] == "building")
    assert np.array_equal(unpacked(building["share"], np.float32), table.rows["fraction_building"])
    split = facts["words"]["split"]
    codes = unpacked(split["codes"], np.int32)
    assert [split["values"][code - 1] if code else None for code in codes] == table.rows["split"].to_pylist()
    assert None in table.rows["split"].to_pylist()


def test_whatever_else_was_measured_is_shown_with_its_gaps(table: ExploreTable) -> None:
    measured = {
        each["name"]: unpacked(each["values"], np.float32)
        for each in facts_of(page_of(table, PicturePlan(64, [])))["measured"]
    }
    assert list(measured) == ["alignment", "alignment_dx_px", "blur"]
    expected = np.array([np.nan if each is None else each for each in table.rows["alignment"].to_pylist()], np.float32)
    assert np.isnan(expected).any()
    assert np.array_equal(measured["alignment"], expected, equal_nan=True)
    assert np.array_equal(measured["alignment_dx_px"], table.rows["alignment_dx_px"])


def test_pictures_get_smaller_and_then_fewer_until_they_fit(table: ExploreTable) -> None:
    sizes = {}
    for limit in (5_000_000, 400_000, 30_000):
        plan = plan_pictures(table, limit)
        sizes[limit] = (plan.size_px, len(plan.rows))
        written = len(page_of(table, plan)) - len(page_of(table, PicturePlan(64, [])))
        assert 0.3 * limit < written < 1.1 * limit or plan.size_px == 256, (limit, written)
    assert sizes[5_000_000] == (256, TILES)
    assert [size for size, _ in sizes.values()] == sorted((size for size, _ in sizes.values()), reverse=True)
    size_px, held = sizes[30_000]
    assert size_px == 64
    assert 5 < held < TILES
    rows = plan_pictures(table, 30_000).rows
    assert max(np.diff(rows)) <= min(np.diff(rows)) + 1  # from all over the dataset
    facts = facts_of(page_of(table, plan_pictures(table, 30_000)))["pictures"]
    lengths = unpacked(facts["image_lengths"], np.int32)
    assert (np.flatnonzero(lengths) == rows).all()


@pytest.mark.parametrize("size_px", [128, 64])
def test_thumbnails_look_like_their_tiles(table: ExploreTable, size_px: int) -> None:
    small, whole = (pictures_of_row(table, 5, size) for size in (size_px, 256))
    image = np.asarray(Image.open(io.BytesIO(small.image)), np.int64)
    expected = np.asarray(Image.open(io.BytesIO(whole.image)).resize((size_px, size_px)), np.int64)
    assert image.shape == (size_px, size_px, 3)
    assert np.abs(image - expected).mean() < 8
    colors = np.asarray(Image.open(io.BytesIO(small.semantic_map)))
    step = 256 // size_px
    exact = np.asarray(Image.open(io.BytesIO(whole.semantic_map)).convert("RGB"))[step // 2 :: step, step // 2 :: step]
    assert np.array_equal(colors, exact)  # classes are never mixed


@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_no_text_ends_the_element_it_stands_in(value) -> None:
    text = embedded_json({"value": value})
    assert "<" not in text
    assert json.loads(text) == {"value": value}


def test_the_policy_lets_nothing_in_but_the_page_itself(table: ExploreTable) -> None:
    page = page_of(table, PicturePlan(64, [0]))
    policy = html.unescape(re.search(r'Security-Policy" content="(.*?)"', page)[1])
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "unsafe" not in policy
    assert "*" not in policy
    # The one address anywhere in the page is that of OpenStreetMap's link and of SVG's name space.
    addresses = {"https://www.openstreetmap.org", "http://www.w3.org"}
    assert set(re.findall(r"https?://[^/\"'`]+", page)) == addresses
    hostile = page_shell("</title><script>alert(1)</script>", "data:")
    assert b"<script>alert" not in hostile.head


def test_what_cannot_be_shown_is_said_in_a_sentence(data: Path, tmp_path: Path, capsys) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["explore", *arguments])
        return ended.value.code, capsys.readouterr().err.strip()

    cases = [
        ((str(tmp_path),), 1, "is not a magc dataset"),
        ((str(data), "--port", "8000"), 2, "--port needs --serve"),
        ((str(data), "--serve", "--out", "a.html"), 2, "--out is of the file"),
        ((str(data), "--pictures-mb", "0"), 2, "expected 1 to 1000"),
        ((str(data), "--serve", "--port", "70000"), 2, "expected 0 to 65535"),
        ((str(data), "--out", str(tmp_path)), 2, "is a folder"),
    ]
    for arguments, code, words in cases:
        ended, sentence = run(*arguments)
        assert (ended, sentence.count("\n")) == (code, 0), sentence
        assert words in sentence
    with pytest.raises(DatasetError, match="no tile to show"):
        read_table(data, [])


def test_a_damaged_tile_stops_a_page_of_thumbnails_and_leaves_no_file(data: Path, tmp_path: Path, capsys) -> None:
    copy = shutil.copytree(data, tmp_path / "dataset")
    row = read_table(copy).row(0)
    with (copy / row["shard"]).open("r+b") as shard:
        shard.seek(row["image_offset"])
        shard.write(bytes(row["image_size"]))
    with pytest.raises(DatasetError, match=rf"{row['key']} .*magc-data verify"):
        pictures_of_row(read_table(copy), 0, 64)
    (copy / row["shard"]).unlink()
    with pytest.raises(SystemExit) as ended:
        cli.main(["explore", str(copy), "--out", str(tmp_path / "page.html"), "--quiet"])
    assert ended.value.code == 1
    assert "is missing although the index names it" in capsys.readouterr().err
    assert not list(tmp_path.glob("*page.html*"))


def test_a_colour_that_is_none_is_refused(data: Path, tmp_path: Path) -> None:
    manifest = json.loads((data / "dataset.json").read_bytes())
    manifest["classes"][1]["color"] = ["url(//evil)", 0, 0]
    (tmp_path / "dataset.json").write_text(json.dumps(manifest))
    (tmp_path / "index.parquet").write_bytes((data / "index.parquet").read_bytes())
    with pytest.raises(DatasetError, match="'classes' is missing or not what it can be"):
        read_table(tmp_path)


def test_imagery_that_may_not_be_passed_on_is_said_where_the_page_is_written(
    data: Path, tmp_path: Path, capsys
) -> None:
    copy = shutil.copytree(data, tmp_path / "dataset")
    manifest = json.loads((copy / "dataset.json").read_bytes())
    manifest["sources"]["imagery"]["redistributable"] = False
    (copy / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(SystemExit) as ended:
        cli.main(["explore", str(copy), "--out", str(tmp_path / "new" / "page.html"), "--quiet", "--pictures-mb", "1"])
    assert ended.value.code == 0
    said = capsys.readouterr()
    assert f"{TILES} tiles, pictures of all as thumbnails of 128 pixels" in said.out
    assert "made-up that may not be passed on" in said.err
    assert "--serve shows every one" in said.err


def test_an_index_without_a_place_is_refused(data: Path, tmp_path: Path) -> None:
    index = pq.read_table(data / "index.parquet")
    number = index.column_names.index("x")
    holed = pa.array([None, *index["x"].to_pylist()[1:]], pa.int32())
    pq.write_table(index.set_column(number, "x", holed), tmp_path / "index.parquet")
    (tmp_path / "dataset.json").write_bytes((data / "dataset.json").read_bytes())
    with pytest.raises(DatasetError, match="rows without 'x'"):
        read_table(tmp_path)


# --- the server ---


@pytest.fixture(scope="module")
def server(table: ExploreTable) -> Iterator[ExploreServer]:
    with running(table) as started:
        yield started


@contextlib.contextmanager
def running(table: ExploreTable) -> Iterator[ExploreServer]:
    with ExploreServer(table, 0) as started:
        thread = threading.Thread(target=started.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield started
        finally:
            started.shutdown()
            thread.join()


def get(server: ExploreServer, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, dict(answer.headers), body


def base_of(server: ExploreServer) -> str:
    return "/" + server.url.split("/", 3)[3]


def test_the_server_sends_the_page_and_every_picture(server: ExploreServer, table: ExploreTable) -> None:
    base = base_of(server)
    status, headers, body = get(server, base)
    assert status == 200
    assert facts_of(body.decode())["pictures"] == {"mode": "server"}
    assert "img-src 'self' data:;" in headers["Content-Security-Policy"]
    members = read_members(table.data, table.row(7))
    status, headers, body = get(server, f"{base}tile/7/image")
    assert (status, headers["Content-Type"], body) == (200, "image/jpeg", members.image)
    assert get(server, f"{base}tile/7/map")[2] == members.semantic_map
    status, headers, body = get(server, f"{base}thumbnail/{TILES - 1}/map")
    assert (status, headers["Content-Type"]) == (200, "image/webp")
    assert Image.open(io.BytesIO(body)).size == (128, 128)
    status, headers, body = get(server, f"{base}tile/7/image", "HEAD")
    assert (status, int(headers["Content-Length"]), body) == (200, len(members.image), b"")


def test_the_server_is_bound_to_this_machine(server: ExploreServer) -> None:
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "path",
    ["../dataset.json", "tile/../../index.parquet", "tile/0/image/..", "tile/-1/image", "tile/999999999/image", "tile/٣/map",
     "tile/0/json", "tile//image", "%2e%2e/dataset.json", "tile/0/image?x", "//etc/passwd", "tile/1e1/image"],
)  # fmt: skip
def test_no_path_but_a_pictures_own_is_answered(server: ExploreServer, path: str) -> None:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as connection:
        request = (
            f"GET {base_of(server)}{path} HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\nConnection: close\r\n\r\n"
        )
        connection.sendall(request.encode())
        answer = b""
        while received := connection.recv(65536):
            answer += received
    assert answer.startswith(b"HTTP/1.1 404"), answer[:100]
    assert b"there is no such picture" in answer


def test_strangers_get_nothing(server: ExploreServer) -> None:
    base, port = base_of(server), server.server_port
    assert get(server, "/")[0] == 404
    assert get(server, "/tile/0/image")[0] == 404
    assert get(server, "/" + "x" * (len(base) - 2) + "/")[0] == 404
    # DNS rebinding: a page of another host that has come to mean 127.0.0.1.
    for host in (f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}", f"127.0.0.1:{port}.evil.example"):
        assert get(server, base, Host=host)[0] == 403, host
    assert get(server, base, Host=f"localhost:{port}")[0] == 200
    # A picture put into another site's page.
    assert get(server, f"{base}tile/0/image", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors")[0] == 403
    assert get(server, base, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200
    assert get(server, base, "POST")[0] == 501
    assert get(server, base)[1]["Cross-Origin-Resource-Policy"] == "same-origin"


def test_a_damaged_picture_is_a_sentence_and_the_next_one_is_shown(data: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(data, tmp_path / "dataset")
    table = read_table(copy)
    row = table.row(0)
    with (copy / row["shard"]).open("r+b") as shard:
        shard.seek(row["map_offset"])
        shard.write(bytes(row["map_size"]))
    with running(table) as server:
        status, headers, body = get(server, f"{base_of(server)}thumbnail/0/map")
        assert (status, headers["Cache-Control"]) == (500, "no-store")
        assert row["key"].encode() in body
        assert b"magc-data verify" in body
        assert get(server, f"{base_of(server)}thumbnail/1/map")[0] == 200


def test_a_taken_port_is_refused(server: ExploreServer, table: ExploreTable) -> None:
    with pytest.raises(UsageError, match=rf"port {server.server_port} cannot be used .*--port 0"):
        ExploreServer(table, server.server_port)


def test_the_command_says_where_and_serves_until_interrupted(data: Path) -> None:
    command = [sys.executable, "-m", "magc_data", "explore", str(data), "--serve", "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    ) as process:
        try:
            said = process.stdout.readline()
            url = re.search(r"http://127\.0\.0\.1:\d+/\S+/", said)[0]
            with urllib.request.urlopen(url, timeout=10) as page:
                assert b'id="data"' in page.read()
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()


def test_connections_are_bounded(table: ExploreTable) -> None:
    with running(table) as server, contextlib.ExitStack() as stack:
        threads = threading.active_count()
        for _ in range(MAX_CONNECTIONS * 2):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.server_port), timeout=10))
        # The last one was accepted after all others: it is turned away.
        late = stack.enter_context(socket.create_connection(("127.0.0.1", server.server_port), timeout=10))
        assert late.recv(1) == b""
        assert threading.active_count() - threads <= MAX_CONNECTIONS
