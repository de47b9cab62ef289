"""What the benchmarks work on: real OpenStreetMap data, and synthetic pictures of the right size."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

HELSINKI_BBOX = (24.9352, 60.1642, 24.9534, 60.1791)
"""Inside the extract that the `helsinki` source brings."""


def benchmark_cache() -> Path:
    """A cache of the benchmarks' own, kept between runs."""
    return Path(os.environ.get("MAGC_BENCHMARK_CACHE", Path(__file__).parent / "results" / "cache"))


def synthetic_jpeg(seed: int) -> bytes:
    """A picture of no place, about as large as a real zoom-17 tile (13 kB): smooth colour fields under fine noise."""
    rng = np.random.default_rng(seed)
    fields = Image.fromarray(rng.integers(40, 200, (12, 12, 3), dtype=np.uint8)).resize(
        (256, 256), Image.Resampling.BICUBIC
    )
    noisy = np.asarray(fields).astype(np.int16) + rng.integers(-12, 13, (256, 256, 1))
    stream = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=60)
    return stream.getvalue()


def marked_jpeg(picture: bytes, number: int) -> bytes:
    """The same picture with a comment segment of its own, so that no two tiles are the same bytes."""
    comment = f"tile {number}".encode()
    return picture[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + picture[2:]


@contextlib.contextmanager
def tile_server() -> Iterator[str]:
    """Serve synthetic tiles; yields the template URL."""
    pictures = [synthetic_jpeg(seed) for seed in range(16)]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            z, x, y = (int(part) for part in self.path.strip("/").split("/"))
            body = marked_jpeg(pictures[(x * 7 + y) % 16], (z << 48) + (x << 24) + y)
            self.send_response(200)
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/{{z}}/{{x}}/{{y}}"
    finally:
        server.shutdown()
        server.server_close()
