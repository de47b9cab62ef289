"""A tile server whose pixels say where they are: two waves of the global mercator pixel, and a shape on the ground.

    red    127.5 + 120 cos(2 pi x / WAVE_PX)      x and y in pixels of the zoom that is served
    green  127.5 + 120 cos(2 pi y / WAVE_PX)
    blue   255 inside the shape, 0 outside, by share of the pixel at the shape's edge

The waves' phases give the place of a resampled pixel to a hundredth of itself; the shape is drawn on maps as well.
"""

from __future__ import annotations

import contextlib
import io
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import numpy as np
import shapely
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

WAVE_PX = 64
_FINER = 4
"""Each pixel of the shape is looked at in so many by so many places."""


def wave(at_px: NDArray[np.float64]) -> NDArray[np.float64]:
    """Brightness at places of the zoom that is served."""
    return 127.5 + 120 * np.cos(2 * np.pi * at_px / WAVE_PX)


def mercator_px(lon: NDArray[np.float64], lat: NDArray[np.float64], zoom: int) -> NDArray[np.float64]:
    """Global pixels, by the textbook: not by the code under test."""
    world = 256 * 2.0**zoom
    x = (lon + 180) / 360 * world
    y = (1 - np.log(np.tan(np.pi / 4 + np.radians(lat) / 2)) / np.pi) / 2 * world
    return np.stack([x, y])


class WaveService:
    """A running server.

    Args:
        shape: polygon in lon/lat whose edges are straight there, as those of an OSM way are.
    """

    def __init__(self, shape: shapely.Polygon) -> None:
        self.shape = shape
        self.asked: list[tuple[int, int, int]] = []
        self.absent: set[tuple[int, int, int]] = set()
        self.url = ""

    def picture(self, z: int, x: int, y: int) -> bytes:
        """One tile as PNG."""
        at = np.arange(256) + 0.5
        pixels = np.zeros((256, 256, 3))
        pixels[..., 0] = wave(256 * x + at)[None, :]
        pixels[..., 1] = wave(256 * y + at)[:, None]
        shape = shapely.transform(self.shape, lambda lonlat: mercator_px(*lonlat.T, z).T)
        fine = (np.arange(256 * _FINER) + 0.5) / _FINER
        if shape.intersects(shapely.box(256 * x, 256 * y, 256 * (x + 1), 256 * (y + 1))):
            inside = shapely.contains_xy(shape, *np.meshgrid(256 * x + fine, 256 * y + fine))
            pixels[..., 2] = 255 * inside.reshape(256, _FINER, 256, _FINER).mean(axis=(1, 3))
        stream = io.BytesIO()
        Image.fromarray(np.floor(pixels + 0.5).astype(np.uint8)).save(stream, "PNG", compress_level=1)
        return stream.getvalue()


@contextlib.contextmanager
def running_waves(shape: shapely.Polygon) -> Iterator[WaveService]:
    """A server at 127.0.0.1, until the block ends."""
    service = WaveService(shape)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            match = re.fullmatch(r"/(\d+)/(\d+)/(\d+)\.png", self.path)
            place = tuple(map(int, match.groups())) if match else None
            service.asked.append(place)
            body = b"" if place is None or place in service.absent else service.picture(*place)
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Silence."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    service.url = f"http://127.0.0.1:{server.server_port}/{{z}}/{{x}}/{{y}}.png"
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
