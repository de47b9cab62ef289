"""The embedded sample: Banepa, Nepal, as 156 OpenAerialMap tiles of zoom 18 and 6,959 OpenStreetMap buildings.

Both come in the package fair-py-ops, whose `aoi.geojson` outlines the three areas inside which the labels are complete
(save for buildings that cross such an outline: the package has none of them, which touches four of the 22 whole
labelled tiles of zoom 17, x = 96670 and 96671, along one side). Row 110123 of the imagery lies mostly outside them, and
four of its tiles reach over the edge of the survey, where OpenAerialMap's JPEG tiles are pure white.

Zoom 18 gives the server's bytes; zoom 17 is made of four tiles each, every pixel the mean of 2 x 2, halves rounded up.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import shapely
from PIL import Image

from magc_data import grid
from magc_data.errors import SourceError, UsageError
from magc_data.grid import Tile
from magc_data.image_check import check_tile_bytes
from magc_data.schema.sample import TILE_SIZE_PX, ImageFormat, Reason, Rejection, TileImage
from magc_data.sources.embedded import Wheel, member_names, read_member, wheel_path
from magc_data.sources.protocols import BlockAvailability, FeatureTable, SourceInfo
from magc_data.sources.rgb_png import MEAN_TILE_BYTES, encode_rgb_png

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

    from magc_data.grid import Block, BoundsLonLat
    from magc_data.sources.http import HttpClient
    from magc_data.sources.protocols import SourceContext

FAIR_PY_OPS = Wheel(
    name="fair-py-ops",
    version="0.3.19",
    file_name="fair_py_ops-0.3.19-py3-none-any.whl",
    sha256="4ae75f4e6dac906bd734cfa707b651d96edf51bb09310f16bff7d66bd51b22b3",
)

NATIVE_ZOOM = 18
NAME = "sample-banepa"

_FOLDER = "fair/infra/data/sample"
_TILE_MEMBER = re.compile(rf"{_FOLDER}/(?:train|test)/oam/OAM-(\d+)-(\d+)-{NATIVE_ZOOM}\.tif")
_LABEL_MEMBERS = (f"{_FOLDER}/train/osm/labels.geojson", f"{_FOLDER}/test/osm/labels.geojson")
_AOI_MEMBER = f"{_FOLDER}/aoi.geojson"

_OSM_TYPES = {"ways_poly": "w", "relations": "r"}

_ADDRESS = f"package {FAIR_PY_OPS.name}=={FAIR_PY_OPS.version}, {_FOLDER}"

JPEG_BLOCK_PX = 8


def missing_pixels(pixels: NDArray[np.uint8]) -> int:
    """How many pixels of a tile of the survey lie over its edge.

    There OpenAerialMap paints pure white, and JPEG keeps a flat 8 x 8 block exactly as it was; so one block that is
    pure white all over tells. Real roofs do not: in the 152 whole tiles no two such pixels touch.

    Args:
        pixels: uint8 [256, 256, 3].
    """
    white = (pixels == 255).all(axis=-1)
    count = TILE_SIZE_PX // JPEG_BLOCK_PX
    blocks = white.reshape(count, JPEG_BLOCK_PX, count, JPEG_BLOCK_PX).all(axis=(1, 3))
    return int(np.count_nonzero(white)) if blocks.any() else 0


def halve(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Mean of each 2 x 2 pixels, halves rounded up: uint8 [2 h, 2 w, 3] -> [h, w, 3], in whole numbers throughout."""
    wide = pixels.astype(np.uint16)
    total = wide[0::2, 0::2] + wide[0::2, 1::2] + wide[1::2, 0::2] + wide[1::2, 1::2]
    return ((total + 2) >> 2).astype(np.uint8)


@lru_cache(maxsize=2)
def _members(wheel: Path) -> dict[tuple[int, int], str]:
    """File in the wheel for each (x, y) of the native zoom."""
    matches = (_TILE_MEMBER.fullmatch(name) for name in member_names(wheel))
    return {(int(match[1]), int(match[2])): match[0] for match in matches if match}


@dataclass
class SampleImagery:
    """Tiles of the sample."""

    info: SourceInfo
    wheel: Path
    zoom: int

    def extent(self) -> BaseGeometry | None:
        """The union of the tiles of zoom 18."""
        boxes = [shapely.box(*grid.tile_bounds_lonlat(Tile(NATIVE_ZOOM, x, y))) for x, y in _members(self.wheel)]
        return shapely.union_all(boxes)

    def availability(self, block: Block, http: HttpClient) -> BlockAvailability | None:  # noqa: ARG002 - the protocol's
        """Tiles whose parts are all there."""
        available = sum(all(part in _members(self.wheel) for part in _parts(tile)) for tile in block.tiles)
        return BlockAvailability(available, len(block.tiles) - available, available)

    def fetch(self, block: Block, http: HttpClient, on_tile: Callable[[], None]) -> None:
        """Nothing to do: the package is here."""

    def read(self, tile: Tile) -> TileImage | Rejection:
        """One tile, checked.

        Raises:
            SourceError: the package is gone or damaged.
        """
        parts = _parts(tile)
        absent = [part for part in parts if part not in _members(self.wheel)]
        if absent:
            return Rejection(
                Reason.OUTSIDE_IMAGERY, f"{len(absent)} of {len(parts)} tiles of zoom 18 are not in {NAME}"
            )
        images = []
        for part in parts:
            checked = check_tile_bytes(read_member(self.wheel, _members(self.wheel)[part]), transient=False)
            if isinstance(checked, Rejection):
                return checked
            images.append(checked)
        pixels = [np.asarray(Image.open(io.BytesIO(image.data)).convert("RGB")) for image in images]
        if missing := sum(map(missing_pixels, pixels)):
            count = len(parts) * TILE_SIZE_PX**2
            return Rejection(Reason.MISSING_PIXELS, f"{missing} of {count} pixels are white, beyond the survey")
        if len(images) == 1:
            return images[0]
        north_west, north_east, south_west, south_east = pixels
        mosaic = np.vstack([np.hstack([north_west, north_east]), np.hstack([south_west, south_east])])
        return TileImage(encode_rgb_png(halve(mosaic)), ImageFormat.PNG)


def _parts(tile: Tile) -> list[tuple[int, int]]:
    """The tiles of zoom 18 that make a tile of zoom 17 or 18, row by row."""
    scale = 2 ** (NATIVE_ZOOM - tile.z)
    return [(tile.x * scale + dx, tile.y * scale + dy) for dy in range(scale) for dx in range(scale)]


def open_sample_imagery(argument: str | None, context: SourceContext) -> SampleImagery:
    """Open the imagery.

    Raises:
        UsageError: an argument was given, or another zoom than 17 or 18 is asked for.
        FetchError: the data cannot be downloaded now.
    """
    _refuse_argument(argument, "--imagery")
    if context.zoom not in (NATIVE_ZOOM - 1, NATIVE_ZOOM):
        raise UsageError(f"imagery {NAME} has zooms 17 and 18, found --zoom {context.zoom}: use one of the two")
    info = SourceInfo(
        name=NAME,
        address=_ADDRESS,
        licence="CC-BY-4.0",
        attribution="OpenAerialMap image 62d85d11d8499800053796c1 (CC-BY-4.0), tiles provided by HOTOSM",
        terms="Free to use and share if OpenAerialMap is named and changes are stated (zoom 17 is averaged from 18).",
        redistributable=True,
        version=f"sha256:{FAIR_PY_OPS.sha256}",
        mean_tile_bytes=20_000 if context.zoom == NATIVE_ZOOM else MEAN_TILE_BYTES,
    )
    return SampleImagery(info, wheel_path(FAIR_PY_OPS, context.cache_dir), context.zoom)


def _refuse_argument(argument: str | None, option: str) -> None:
    if argument is not None:
        raise UsageError(f"source '{NAME}' takes no argument, found '{argument}': write {option} {NAME}")


class _Labels(NamedTuple):
    """All buildings of the sample."""

    features: FeatureTable
    tree: shapely.STRtree


@lru_cache(maxsize=2)
def _labels(wheel: Path) -> _Labels:
    """Read the buildings of both halves, each once, sorted by type and id."""
    by_id = {
        (_OSM_TYPES[feature["properties"]["osm_type"]], int(feature["properties"]["osm_id"])): feature
        for member in _LABEL_MEMBERS
        for feature in _features(wheel, member)
    }
    identities = sorted(by_id)
    features = [by_id[identity] for identity in identities]
    tag_rows: dict[tuple[tuple[str, str], ...], int] = {}
    tag_index = [
        tag_rows.setdefault(tuple(sorted(feature["properties"]["tags"].items())), len(tag_rows)) for feature in features
    ]
    geometry = np.asarray(shapely.from_geojson([json.dumps(feature["geometry"]) for feature in features]), dtype=object)
    table = FeatureTable(
        geometry=geometry,
        tag_index=np.array(tag_index, dtype=np.int32),
        tag_sets=tuple(dict(tags) for tags in tag_rows),
        osm_type=np.array([osm_type for osm_type, _ in identities], dtype="U1"),
        osm_id=np.array([osm_id for _, osm_id in identities], dtype=np.int64),
        # The package does not state the database's time; its newest edit comes closest.
        timestamp=max(feature["properties"]["timestamp"] for feature in features) + "Z",
    )
    return _Labels(table, shapely.STRtree(geometry))


def _features(wheel: Path, member: str) -> list[dict[str, Any]]:
    try:
        features = json.loads(read_member(wheel, member))["features"]
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{wheel} holds no GeoJSON in {member} ({error}): delete the file and run again") from None
    return list(features)


@dataclass
class SampleVectors:
    """Buildings of the sample."""

    info: SourceInfo
    wheel: Path

    @cached_property
    def _extent(self) -> BaseGeometry:
        areas = _features(self.wheel, _AOI_MEMBER)
        return shapely.union_all(shapely.from_geojson([json.dumps(area["geometry"]) for area in areas]))

    def extent(self) -> BaseGeometry | None:
        """The three areas of `aoi.geojson`."""
        return self._extent

    def fetch(self, bounds: BoundsLonLat, http: HttpClient) -> None:
        """Nothing to do: the package is here."""

    def read(self, bounds: BoundsLonLat) -> FeatureTable:
        """The buildings that touch the box.

        Raises:
            SourceError: the package is gone or damaged.
        """
        everything, tree = _labels(self.wheel)
        rows = np.sort(tree.query(shapely.box(*bounds), predicate="intersects"))
        return everything._replace(
            geometry=everything.geometry[rows],
            tag_index=everything.tag_index[rows],
            osm_type=everything.osm_type[rows],
            osm_id=everything.osm_id[rows],
        )


def open_sample_vectors(argument: str | None, context: SourceContext) -> SampleVectors:
    """Open the vectors.

    Raises:
        UsageError: an argument was given.
        FetchError: the data cannot be downloaded now.
    """
    _refuse_argument(argument, "--osm")
    info = SourceInfo(
        name=NAME,
        address=_ADDRESS,
        licence="ODbL-1.0",
        attribution="© OpenStreetMap contributors",
        terms="Buildings only. OpenStreetMap data: name its contributors, share databases made of it under the ODbL.",
        redistributable=True,
        version=f"sha256:{FAIR_PY_OPS.sha256}",
    )
    return SampleVectors(info, wheel_path(FAIR_PY_OPS, context.cache_dir))
