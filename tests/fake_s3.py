"""A real S3 server (moto) of this machine behind a gate that counts requests and makes them fail as networks do."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest
import s3fs
from botocore.config import Config
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BUCKET = "datasets"
KEY_ID, SECRET = "AKIATESTKEYOFNOBODY0", "secret-that-must-show-nowhere"


class Request(NamedTuple):
    """A request that came to the gate."""

    what: str
    """S3's name of it."""
    key: str
    """Of the object; the prefix of a list."""
    bytes_sent: int
    condition: str | None
    status: int
    """Of the answer, 0 where there was none."""


class Fault(NamedTuple):
    """What is done to a request."""

    status: int = 0
    """Answered instead of S3; 0: the connection is closed."""
    is_stored: bool = False
    """S3 does what was asked all the same: only the answer is lost."""
    code: str = ""
    """S3's name of the error."""


_OPERATIONS: dict[tuple[str, frozenset[str]], str] = {
    ("GET", frozenset({"list-type"})): "list",
    ("GET", frozenset({"uploads"})): "list uploads",
    ("POST", frozenset({"uploads"})): "begin upload",
    ("PUT", frozenset({"partNumber"})): "put part",
    ("POST", frozenset({"uploadId"})): "complete upload",
    ("DELETE", frozenset({"uploadId"})): "abort upload",
    ("POST", frozenset({"delete"})): "delete several",
}


def operation(method: str, query: set[str]) -> str:
    """S3's name of a request."""
    found = (name for (verb, keys), name in _OPERATIONS.items() if verb == method and keys <= query)
    return next(found, method.lower())


class FakeS3:
    """The server, what was asked of it, and what is to go wrong."""

    def __init__(self, moto_port: int) -> None:
        self.moto_port = moto_port
        self.requests: list[Request] = []
        self.fault_of: Callable[[str, str], Fault | None] = lambda what, key: None
        self.delay_s: Callable[[str, str], float] = lambda what, key: 0.0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # Straight to moto: what the tests themselves ask is neither counted nor disturbed.
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{moto_port}",
            aws_access_key_id=KEY_ID,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}),
        )

    @contextlib.contextmanager
    def serving(self) -> Iterator[FakeS3]:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()

    def environment(self) -> dict[str, str]:
        """How an AWS program finds it."""
        return {
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def objects(self, prefix: str) -> dict[str, bytes]:
        """Everything under a prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
        keys = [each["Key"] for page in pages for each in page.get("Contents", ())]
        return {
            key.removeprefix(f"{prefix}/"): self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            for key in keys
        }

    def unfinished_uploads(self) -> list[str]:
        """Keys of uploads that were begun and neither completed nor given up."""
        return [each["Key"] for each in self.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", ())]

    def count(self, *what: str) -> int:
        """Requests of these kinds."""
        return sum(each.what in what for each in self.requests)

    def broken_condition(self, what: str, key: str, if_match: str | None) -> Fault | None:
        """S3's answer where an upload in parts is to replace another object than is there: moto has no eye for it."""
        if what != "complete upload" or if_match is None:
            return None
        try:
            is_there = self.client.head_object(Bucket=BUCKET, Key=key)["ETag"] == if_match
        except ClientError:
            return Fault(404, code="NoSuchKey")
        return None if is_there else Fault(412, code="PreconditionFailed")

    def fail(self, what: str, times: int, fault: Fault, key_part: str = "") -> None:
        """Let requests of a kind fail so, a number of times for each object."""
        seen: dict[str, int] = {}

        def fault_of(asked: str, key: str) -> Fault | None:
            if asked != what or key_part not in key:
                return None
            seen[key] = seen.get(key, 0) + 1
            return fault if seen[key] <= times else None

        self.fault_of = fault_of


def _handler(gate: FakeS3) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            parts = urlsplit(self.path)
            query = parse_qs(parts.query, keep_blank_values=True)
            key = query.get("prefix", [parts.path.removeprefix(f"/{BUCKET}").lstrip("/")])[0]
            what = operation(self.command, set(query))
            condition = next((name for name in ("If-None-Match", "If-Match") if self.headers.get(name)), None)
            time.sleep(gate.delay_s(what, key))
            fault = gate.fault_of(what, key) or gate.broken_condition(what, key, self.headers.get("If-Match"))
            status, headers, answer = 0, {}, b""
            if fault is None or fault.is_stored:
                status, headers, answer = self._ask_moto(body)
            if fault is not None:
                error = f"<Error><Code>{fault.code}</Code><Message>said the test</Message></Error>"
                status, headers, answer = fault.status, {}, error.encode() if fault.code else b""
            gate.requests.append(Request(what, key, length, condition, status))
            if not status:
                self.close_connection = True
                return
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.send_response_only(status)
                for name, value in headers.items():
                    if name.lower() not in {"connection", "transfer-encoding", "content-length"}:
                        self.send_header(name, value)
                given = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(answer))
                self.send_header("Content-Length", given)
                self.end_headers()
                self.wfile.write(answer)

        def _ask_moto(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", gate.moto_port, timeout=60)
            try:
                headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                return answer.status, dict(answer.getheaders()), answer.read()
            finally:
                connection.close()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on  # noqa: N815 - http.server's names

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@pytest.fixture(scope="session")
def moto_port() -> Iterator[int]:
    """One server for all tests of a process."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        yield server.get_host_and_port()[1]
    finally:
        server.stop()


@pytest.fixture
def s3(moto_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeS3]:
    """An empty bucket, and an environment in which AWS programs of this process and its children find it."""
    fake = FakeS3(moto_port)
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", moto_port)) as connection:
        connection.request("POST", "/moto-api/reset")
        connection.getresponse().read()  # else it may come after the bucket
    fake.client.create_bucket(Bucket=BUCKET)
    for name, value in fake.environment().items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    _forget_connections()
    with fake.serving():
        yield fake
    _forget_connections()


def _forget_connections() -> None:
    """Connections know the address that the environment had when they were made."""
    from magc_data.shards import s3_store

    s3_store.connections.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()
