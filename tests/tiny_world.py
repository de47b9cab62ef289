"""A small made-up place for tests: an OSM file of streets, houses and a lake, and synthetic pictures of its tiles."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from magc_data import area as areas
from magc_data import build, grid, inputs
from magc_data.config import BuildConfig
from magc_data.errors import FetchError
from magc_data.schema.sample import Reason, Rejection, TileImage

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

    import pytest
    from shapely.geometry.base import BaseGeometry

    from magc_data.grid import BoundsLonLat, Tile
    from magc_data.sources.http import HttpClient
    from magc_data.sources.protocols import FeatureTable, ImagerySource, VectorSource

Bbox = tuple[float, float, float, float]

ZOOM = 17
# Lies across four blocks: the corner of blocks (x 2176, y 1312) is inside.
CORNER_LON, CORNER_LAT = (
    float(each[0]) for each in grid.px_to_lonlat(np.array([2176 * 32 * 256.0]), np.array([1312 * 32 * 256.0]), ZOOM)
)
HALF_WIDTH = 0.006
BBOX = tuple(
    round(value, 6)  # as a person types it, so that the command line and the function build the same
    for value in (
        CORNER_LON - HALF_WIDTH,
        CORNER_LAT - HALF_WIDTH / 2,
        CORNER_LON + HALF_WIDTH,
        CORNER_LAT + HALF_WIDTH / 2,
    )
)
BBOX_TEXT = ",".join(map(str, BBOX))
# One row of four tiles: three in the western block, one in the eastern.
FOUR_TILES = (CORNER_LON - 0.007, CORNER_LAT + 0.0002, CORNER_LON + 0.0002, CORNER_LAT + 0.0006)


def picture(tile: Tile) -> bytes:
    """A JPEG that no other tile has."""
    rng = np.random.default_rng([tile.z, tile.x, tile.y])
    small = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
    stream = io.BytesIO()
    small.resize((256, 256), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=70)
    return stream.getvalue()


def tiles(bbox: Bbox = BBOX) -> list[Tile]:
    """The tiles of a box in the order of the build."""
    return [tile for block in areas.blocks(areas.area_from_bbox(bbox), ZOOM) for tile in block.tiles]


def write_pictures(folder: Path, wanted: Iterable[Tile] | None = None) -> Path:
    """Write `z/x/y.jpg` for every tile, those of BBOX unless said otherwise."""
    for tile in tiles() if wanted is None else wanted:
        path = folder / str(tile.z) / str(tile.x) / f"{tile.y}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(tile))
    return folder


class Opl:
    """OSM's plain text form, a way at a time."""

    def __init__(self) -> None:
        self._nodes: list[str] = []
        self._ways: list[str] = []

    def way(self, points: list[tuple[float, float]], tags: str) -> int:
        """Add a way with nodes of its own; returns its id."""
        closed = points[0] == points[-1]
        refs = [self._node(*point) for point in (points[:-1] if closed else points)]
        refs += refs[:1] if closed else []
        number = len(self._ways) + 1
        self._ways.append(f"w{number} v1 dV t2024-05-01T00:00:00Z T{tags} N{','.join(f'n{ref}' for ref in refs)}")
        return number

    def _node(self, lon: float, lat: float) -> int:
        self._nodes.append(f"n{len(self._nodes) + 1} v1 dV t2024-05-01T00:00:00Z x{lon:.7f} y{lat:.7f}")
        return len(self._nodes)

    def write(self, path: Path, *relations: str) -> Path:
        """Write the file."""
        path.write_text("\n".join([*self._nodes, *self._ways, *relations]) + "\n")
        return path


def write_osm(path: Path) -> Path:
    """Write an OPL file: a grid of streets, houses in rows, a lake with an island, a park."""
    opl = Opl()

    def rectangle(lon: float, lat: float, width: float, height: float) -> list[tuple[float, float]]:
        return [(lon, lat), (lon + width, lat), (lon + width, lat + height), (lon, lat + height), (lon, lat)]

    west, south, east, north = BBOX
    for number in range(8):
        lon = west - 0.001 + (east - west + 0.002) * number / 7
        lat = south - 0.001 + (north - south + 0.002) * number / 7
        kind = "primary" if number == 4 else "residential"
        opl.way([(lon, south - 0.002), (lon + 0.0004, north + 0.002)], f"highway={kind}")
        across = "footway" if number % 2 else "residential"
        opl.way([(west - 0.002, lat), (east + 0.002, lat + 0.0003)], f"highway={across}")
        for house in range(12):
            opl.way(rectangle(west + 0.001 * house + 0.0002, lat + 0.0001, 0.0003, 0.00015), "building=yes")
    opl.way(rectangle(west - 0.01, south - 0.01, 0.03, 0.03), "landuse=residential")
    opl.way(rectangle(CORNER_LON - 0.002, CORNER_LAT - 0.001, 0.004, 0.002), "leisure=park")
    outer = opl.way(rectangle(CORNER_LON - 0.001, CORNER_LAT - 0.0006, 0.002, 0.0012), "note=shore")
    inner = opl.way(rectangle(CORNER_LON - 0.0003, CORNER_LAT - 0.0002, 0.0006, 0.0004), "note=island")
    relation = f"r1 v1 dV t2024-05-01T00:00:00Z Tnatural=water,type=multipolygon Mw{outer}@outer,w{inner}@inner"
    return opl.write(path, relation)


class World:
    """Pictures of a box, an OSM file, and builds of them."""

    def __init__(self, folder: Path, bbox: Bbox = BBOX) -> None:
        self.bbox = bbox
        self.pictures = write_pictures(folder / "tiles", tiles(bbox))
        self.osm = write_osm(folder / "world.osm.opl")

    def config(self, out: Path, **changes: object) -> BuildConfig:
        """A build into a folder."""
        sources = {"imagery": str(self.pictures), "osm": str(self.osm)}
        return BuildConfig(**({"bbox": self.bbox, "workers": 1, "out": out} | sources | changes))

    def arguments(self, out: Path, workers: int = 1) -> list[str]:
        """The same build as a command line."""
        return [
            *("build", "--bbox", ",".join(map(str, self.bbox))),
            *("--imagery", str(self.pictures), "--osm", str(self.osm)),
            *("--workers", str(workers), "--out", str(out), "--quiet"),
        ]

    def picture(self, tile: Tile) -> Path:
        """The file of a tile's picture."""
        return self.pictures / str(tile.z) / str(tile.x) / f"{tile.y}.jpg"


def run(config: BuildConfig) -> dict:
    """Build without a word; returns the manifest."""
    return build.build(config, lambda _: None, quiet=True).manifest


class FailingVectors:
    """A real vector source whose fetches of the given numbers (the first is 1) fail as a server's do."""

    def __init__(self, source: VectorSource, failing: Collection[int]) -> None:
        self._source = source
        self._failing = failing
        self.info = source.info
        self.fetched: list[BoundsLonLat] = []

    def extent(self) -> BaseGeometry | None:
        return self._source.extent()

    def fetch(self, bounds: BoundsLonLat, http: HttpClient) -> None:
        self.fetched.append(bounds)
        if len(self.fetched) in self._failing:
            raise FetchError("the server is asleep")
        self._source.fetch(bounds, http)

    def read(self, bounds: BoundsLonLat) -> FeatureTable:
        return self._source.read(bounds)


def fail_vectors(monkeypatch: pytest.MonkeyPatch, *failing: int) -> list[FailingVectors]:
    """Builds from now on have vectors that fail so; returns a list that gets each build's source."""
    opened: list[FailingVectors] = []
    real = inputs.open_vectors

    def open_failing(*arguments: object) -> FailingVectors:
        opened.append(FailingVectors(real(*arguments), failing))
        return opened[-1]

    monkeypatch.setattr(inputs, "open_vectors", open_failing)
    return opened


class FailingImagery:
    """A real imagery source of which some tiles could not be fetched this time."""

    def __init__(self, source: ImagerySource, failing: Collection[Tile]) -> None:
        self._source = source
        self._failing = failing
        self.info, self.extent, self.fetch = source.info, source.extent, source.fetch

    def read(self, tile: Tile) -> TileImage | Rejection:
        if tile in self._failing:
            return Rejection(Reason.FETCH_FAILED, "HTTP 503 four times", transient=True)
        return self._source.read(tile)


def fail_imagery(monkeypatch: pytest.MonkeyPatch, *failing: Tile) -> None:
    """Builds from now on have imagery that lacks these tiles for the time being."""
    real = inputs.open_imagery
    monkeypatch.setattr(inputs, "open_imagery", lambda *arguments: FailingImagery(real(*arguments), failing))


def tree_digests(folder: Path) -> dict[str, str]:
    """Path and sha256 of everything below a folder: two datasets are the same if and only if these are."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "/"
        for path in sorted(folder.rglob("*"))
    }
