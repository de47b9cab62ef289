"""The page from a server on this machine: every picture of a dataset of any size, read from its shards when looked at.

For nobody but the person who started it: bound to 127.0.0.1, behind a secret in the address (others may be logged in
here), and deaf to requests that name another host or come from another site (DNS rebinding). No path of a request is
ever a path on disk: a request names a row by number.
"""

from __future__ import annotations

import functools
import re
import secrets
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple

from magc_data.errors import DatasetError, UsageError
from magc_data.explore.document import served_page
from magc_data.explore.pictures import MIME_TYPES, SERVED_THUMBNAIL_PX, pictures_of_row
from magc_data.schema.sample import TILE_SIZE_PX

if TYPE_CHECKING:
    import socket

    from magc_data.explore.pictures import TilePictures
    from magc_data.explore.table import ExploreTable

HOST = "127.0.0.1"
DEFAULT_PORT = 8765
MAX_CONNECTIONS = 32
IDLE_S = 20
_REMEMBERED_PICTURES = 2048  # pairs of thumbnails, about 5 kB each
_PICTURE = re.compile(r"(thumbnail|tile)/(\d{1,9})/(image|map)", re.ASCII)
_SIZES_PX = {"thumbnail": SERVED_THUMBNAIL_PX, "tile": TILE_SIZE_PX}


class _Answer(NamedTuple):
    status: HTTPStatus
    content_type: str
    body: bytes
    policy: str = "default-src 'none'"


def _refusal(status: HTTPStatus, sentence: str) -> _Answer:
    return _Answer(status, "text/plain; charset=utf-8", (sentence + "\n").encode())


class ExploreServer(ThreadingHTTPServer):
    """Serves one dataset's page and pictures; `serve_forever` until interrupted.

    Raises:
        UsageError: the port is taken or not allowed.
    """

    daemon_threads = True
    # A second server on the port must be refused, not share it.
    allow_reuse_address = False
    request_queue_size = 2 * MAX_CONNECTIONS

    def __init__(self, table: ExploreTable, port: int = DEFAULT_PORT) -> None:
        self._table = table
        self._secret = secrets.token_urlsafe(12)
        page, policy = served_page(table)
        self._page = _Answer(HTTPStatus.OK, "text/html; charset=utf-8", page, policy)
        self._thumbnails = functools.lru_cache(_REMEMBERED_PICTURES)(self._pictures)
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise UsageError(
                f"port {port} cannot be used ({error.strerror}): give another --port, or --port 0 for any free one"
            ) from None

    @property
    def url(self) -> str:
        """What to open in a browser."""
        return f"http://{HOST}:{self.server_port}/{self._secret}/"

    @property
    def own_names(self) -> set[str]:
        """What a browser that means this server says in the Host header."""
        return {f"{name}:{self.server_port}" for name in (HOST, "localhost")}

    def answer(self, path: str) -> _Answer:
        """What a request for a path gets."""
        prefix = f"/{self._secret}/"
        if not secrets.compare_digest(path[: len(prefix)].encode(), prefix.encode()):
            return _refusal(HTTPStatus.NOT_FOUND, "expected the address that `magc-data explore --serve` printed")
        wanted = path[len(prefix) :]
        if not wanted:
            return self._page
        if not (match := _PICTURE.fullmatch(wanted)) or int(match[2]) >= len(self._table.rows):
            return _refusal(HTTPStatus.NOT_FOUND, "there is no such picture")
        size_px, row = _SIZES_PX[match[1]], int(match[2])
        try:
            pictures = (self._pictures if size_px == TILE_SIZE_PX else self._thumbnails)(row, size_px)
        except DatasetError as error:
            return _refusal(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        if match[3] == "image":
            return _Answer(HTTPStatus.OK, MIME_TYPES[pictures.image_format], pictures.image)
        return _Answer(HTTPStatus.OK, MIME_TYPES[pictures.map_format], pictures.semantic_map)

    def _pictures(self, row: int, size_px: int) -> TilePictures:
        return pictures_of_row(self._table, row, size_px)

    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: Any) -> None:
        """Give the connection a thread, unless there are too many already."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: socket.socket | tuple[bytes, socket.socket], client_address: Any) -> None:
        """Serve a connection until it ends."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of a picture is no error worth a word."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S
    server: ExploreServer
    server_version = "magc"
    sys_version = ""

    def do_GET(self) -> None:
        self._send(self._answer(), with_body=True)

    def do_HEAD(self) -> None:
        self._send(self._answer(), with_body=False)

    def _answer(self) -> _Answer:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or hosts[0].lower() not in self.server.own_names:
            return _refusal(HTTPStatus.FORBIDDEN, "the request is for another host")
        from_elsewhere = self.headers.get("Sec-Fetch-Site", "none") not in {"none", "same-origin"}
        # A link to the page is followed from wherever it stands; the address is a secret.
        if from_elsewhere and self.headers.get("Sec-Fetch-Mode") != "navigate":
            return _refusal(HTTPStatus.FORBIDDEN, "the request comes from another site")
        return self.server.answer(self.path)

    def _send(self, answer: _Answer, *, with_body: bool) -> None:
        self.send_response(answer.status)
        headers = {
            "Content-Type": answer.content_type,
            "Content-Length": str(len(answer.body)),
            "Content-Security-Policy": answer.policy,
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            # The secret in the address is new with every start, so nothing old is ever shown.
            "Cache-Control": "private, max-age=3600" if answer.status == HTTPStatus.OK else "no-store",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(answer.body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the name is http.server's
        """Say nothing: a grid of thumbnails is hundreds of lines."""
