"""An image and a map become a sample: its members and its row of the index."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from magc_data.compiled import compiled
from magc_data.png import encode_palette_png
from magc_data.schema.sample import FORMAT_VERSION, record

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from magc_data.ground_grid import AnyTile
    from magc_data.schema.classes import Scheme
    from magc_data.schema.sample import TileImage


class Provenance(NamedTuple):
    """Where a sample's image and map come from."""

    imagery: str | None
    """None: the sample is a map alone."""
    vectors: str
    osm_timestamp: str | None


class Sample(NamedTuple):
    """The members of a sample and what the index says of them; without an image, what is said of one is None."""

    key: str
    image: bytes | None
    image_extension: str | None
    semantic_map: bytes
    record: bytes
    image_sha256: str | None
    map_sha256: str
    class_fractions: dict[str, float]

    @property
    def members(self) -> dict[str, bytes]:
        """What a shard holds of it, in order."""
        members = {"image": self.image, "map": self.semantic_map, "json": self.record}
        return {name: content for name, content in members.items() if content is not None}


@compiled
def _count_classes(semantic_map: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pixels of each of the 256 possible ids; ten times as fast as numpy.bincount, which casts to int64 first."""
    # Four histograms in turn: neighbours are mostly equal, and adding to one counter has to wait for the last addition.
    counts = np.zeros((4, 256), dtype=np.int64)
    for row in range(semantic_map.shape[0]):
        for column in range(semantic_map.shape[1]):
            counts[column & 3, semantic_map[row, column]] += 1
    total: NDArray[np.int64] = counts[0] + counts[1] + counts[2] + counts[3]
    return total


def class_fractions(semantic_map: NDArray[np.uint8], scheme: Scheme) -> dict[str, float]:
    """Share of the pixels of each class, by class name."""
    counts = _count_classes(semantic_map)
    return {each.name: int(counts[each.id]) / semantic_map.size for each in scheme.classes}


def map_bytes(semantic_map: NDArray[np.uint8], scheme: Scheme) -> bytes:
    """A map as the `.map.png` member holds it."""
    return encode_palette_png(semantic_map, np.array(scheme.palette, dtype=np.uint8))


def make_sample(
    tile: AnyTile, image: TileImage | None, semantic_map: NDArray[np.uint8], scheme: Scheme, provenance: Provenance
) -> Sample:
    """Put a sample together.

    Args:
        tile: the place.
        image: checked bytes of the image; None makes a map alone.
        semantic_map: class ids, uint8 [256, 256], on the same pixel grid.
        scheme: the class table that the ids belong to.
        provenance: names of the sources.
    """
    map_png = map_bytes(semantic_map, scheme)
    fractions = class_fractions(semantic_map, scheme)
    image_sha256 = None if image is None else hashlib.sha256(image.data).hexdigest()
    map_sha256 = hashlib.sha256(map_png).hexdigest()
    capture_date = None if image is None else image.capture_date
    capture = {} if image is None or image.capture is None else image.capture.details()
    fields = sample_fields(tile, capture_date, capture, fractions, image_sha256, map_sha256, scheme.name, provenance)
    return Sample(
        key=tile.key,
        image=None if image is None else image.data,
        image_extension=None if image is None else str(image.format),
        semantic_map=map_png,
        record=record(fields),
        image_sha256=image_sha256,
        map_sha256=map_sha256,
        class_fractions=fractions,
    )


def sample_fields(
    tile: AnyTile,
    capture_date: str | None,
    capture: dict[str, Any],
    fractions: dict[str, float],
    image_sha256: str | None,
    map_sha256: str,
    scheme_name: str,
    provenance: Provenance,
) -> dict[str, Any]:
    """What the `.json` member says; no times or addresses of this run, so that it is the same in every run."""
    return {
        "format_version": FORMAT_VERSION,
        **tile.place_fields(),
        "image_sha256": image_sha256,
        "map_sha256": map_sha256,
        "imagery": provenance.imagery,
        "vectors": provenance.vectors,
        "capture_date": capture_date,
        **({"capture": capture} if capture else {}),
        "osm_timestamp": provenance.osm_timestamp,
        "scheme": scheme_name,
        "class_fractions": {name: share for name, share in fractions.items() if share > 0},
    }
