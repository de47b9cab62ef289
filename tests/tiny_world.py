"""A small made-up place for tests: an OSM file of streets, houses and a lake, and synthetic pictures of its tiles."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from magc_data import area as areas
from magc_data import grid

if TYPE_CHECKING:
    from pathlib import Path

    from magc_data.grid import Tile

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


def picture(tile: Tile) -> bytes:
    """A JPEG that no other tile has."""
    rng = np.random.default_rng([tile.z, tile.x, tile.y])
    small = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
    stream = io.BytesIO()
    small.resize((256, 256), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=70)
    return stream.getvalue()


def tiles() -> list[Tile]:
    """The tiles of BBOX in the order of the build."""
    return [tile for block in areas.blocks(areas.area_from_bbox(BBOX), ZOOM) for tile in block.tiles]


def write_pictures(folder: Path) -> Path:
    """Write `z/x/y.jpg` for every tile of BBOX."""
    for tile in tiles():
        path = folder / str(tile.z) / str(tile.x) / f"{tile.y}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(tile))
    return folder


def write_osm(path: Path) -> Path:
    """Write an OPL file (OSM's plain text form): a grid of streets, houses in rows, a lake with an island, a park."""
    nodes: list[str] = []
    ways: list[str] = []

    def node(lon: float, lat: float) -> int:
        nodes.append(f"n{len(nodes) + 1} v1 dV t2024-05-01T00:00:00Z x{lon:.7f} y{lat:.7f}")
        return len(nodes)

    def way(points: list[tuple[float, float]], tags: str) -> int:
        refs = [node(*point) for point in (points[:-1] if points[0] == points[-1] else points)]
        refs += refs[:1] if points[0] == points[-1] else []
        ways.append(f"w{len(ways) + 1} v1 dV t2024-05-01T00:00:00Z T{tags} N{','.join(f'n{ref}' for ref in refs)}")
        return len(ways)

    def rectangle(lon: float, lat: float, width: float, height: float) -> list[tuple[float, float]]:
        return [(lon, lat), (lon + width, lat), (lon + width, lat + height), (lon, lat + height), (lon, lat)]

    west, south, east, north = BBOX
    for number in range(8):
        lon = west - 0.001 + (east - west + 0.002) * number / 7
        lat = south - 0.001 + (north - south + 0.002) * number / 7
        kind = "primary" if number == 4 else "residential"
        way([(lon, south - 0.002), (lon + 0.0004, north + 0.002)], f"highway={kind}")
        way(
            [(west - 0.002, lat), (east + 0.002, lat + 0.0003)], f"highway={'footway' if number % 2 else 'residential'}"
        )
        for house in range(12):
            way(rectangle(west + 0.001 * house + 0.0002, lat + 0.0001, 0.0003, 0.00015), "building=yes")
    way(rectangle(west - 0.01, south - 0.01, 0.03, 0.03), "landuse=residential")
    way(rectangle(CORNER_LON - 0.002, CORNER_LAT - 0.001, 0.004, 0.002), "leisure=park")
    outer = way(rectangle(CORNER_LON - 0.001, CORNER_LAT - 0.0006, 0.002, 0.0012), "note=shore")
    inner = way(rectangle(CORNER_LON - 0.0003, CORNER_LAT - 0.0002, 0.0006, 0.0004), "note=island")
    relation = f"r1 v1 dV t2024-05-01T00:00:00Z Tnatural=water,type=multipolygon Mw{outer}@outer,w{inner}@inner"
    path.write_text("\n".join([*nodes, *ways, relation]) + "\n")
    return path


def tree_digests(folder: Path) -> dict[str, str]:
    """Path and sha256 of every file below a folder: two datasets are the same if and only if these are."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
