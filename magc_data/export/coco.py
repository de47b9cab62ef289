"""COCO instance annotations of the buildings.

    OUT/train/images/KEY.jpg
    OUT/annotations/instances_train.json

An instance is a piece of the class map's buildings that hangs together over edges (not corners). That is what the map
knows: houses that touch are one instance, a house cut by a tile's edge or by a road drawn over it is one in each part.
`iscrowd` is always 0. COCO's polygons cannot have holes, so a piece with a courtyard is run-length encoded, which every
reader of COCO masks takes as well; all others are polygons along the pixels' edges. Both give back every pixel exactly.
"""

from __future__ import annotations

import json
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from rasterio.features import rasterize, shapes

from magc_data.atomic import atomic_file
from magc_data.errors import UsageError
from magc_data.grid import Tile, tile_bounds_3857
from magc_data.ground_grid import parse_key
from magc_data.metadata.facts import LICENCE_URLS
from magc_data.schema.sample import TILE_SIZE_PX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from magc_data.export.job import ExportJob, Side
    from magc_data.ground_grid import AnyTile

CLASS_NAME = "building"
CATEGORY = {"id": 1, "name": CLASS_NAME, "supercategory": "structure"}


def write_coco(job: ExportJob) -> None:
    """Write images and annotations of every side.

    Raises:
        UsageError: the class scheme has no buildings.
    """
    classes = job.facts.manifest["classes"]
    class_id = next((each["id"] for each in classes if each["name"] == CLASS_NAME), None)
    if class_id is None:
        names = ", ".join(each["name"] for each in classes)
        raise UsageError(f"scheme '{job.facts.manifest['scheme']}' has no class '{CLASS_NAME}' (it has {names}): "
                         "COCO is exported of buildings alone")  # fmt: skip
    for side in job.sides:
        (job.folder / side.name / "images").mkdir(parents=True)
        with atomic_file(job.folder / "annotations" / f"instances_{side.name}.json") as stream:
            _write_side(job, side, class_id, stream)


def _write_side(job: ExportJob, side: Side, class_id: int, stream: IO[bytes]) -> None:
    """Images to files, annotations straight to the document: memory holds one line an image."""
    sources = job.facts.manifest["sources"]
    stream.write(b'{\n"info": ' + _json({"description": job.facts.title, "version": job.facts.name}))
    licences = [
        {"id": number, "name": f"{role}: {source['licence']}", "url": LICENCE_URLS.get(source["licence"], "")}
        for number, (role, source) in enumerate(sources.items(), 1)
    ]
    stream.write(b',\n"licenses": ' + _json(licences) + b',\n"categories": ' + _json([CATEGORY]))
    stream.write(b',\n"annotations": [')
    images: list[bytes] = []
    written = 0
    for sample in job.samples(side):
        row = sample.row
        name = f"{row['key']}.{row['image_format'] or 'png'}"
        if sample.image is not None:
            (job.folder / side.name / "images" / name).write_bytes(sample.image)
        tile = parse_key(row["key"])
        images.append(
            _json(
                {
                    "id": len(images) + 1,
                    "file_name": name,
                    "width": TILE_SIZE_PX,
                    "height": TILE_SIZE_PX,
                    "license": 1,
                    "key": row["key"],
                    **_bounds(tile),
                    "gsd_m": row["gsd_m"],
                }
            )
        )
        for annotation in instances(sample.class_ids() == class_id):
            stream.write(b",\n" if written else b"\n")
            written += 1
            about = {"id": written, "image_id": len(images), "category_id": CATEGORY["id"]}
            stream.write(_json(about | annotation))
        job.sample_done()
    stream.write(b'\n],\n"images": [\n' + b",\n".join(images) + b"\n]\n}\n")


def _bounds(tile: AnyTile) -> dict[str, Any]:
    """The tile's box: in web-mercator, or in degrees where it is of constant ground resolution."""
    if isinstance(tile, Tile):
        return {"bounds_3857": list(tile_bounds_3857(tile))}
    return {"bounds_lonlat": list(tile.bounds_lonlat)}


def instances(mask: NDArray[np.bool_]) -> Iterator[dict[str, Any]]:
    """The pieces of a mask: segmentation, area, bbox, iscrowd.

    Args:
        mask: [height, width].
    """
    for geometry, _ in shapes(mask.astype(np.uint8), mask=mask, connectivity=4):
        outline, *holes = (np.asarray(ring, dtype=np.int64)[:-1] for ring in geometry["coordinates"])
        left, top = outline.min(axis=0).tolist()
        right, bottom = outline.max(axis=0).tolist()
        pixels = _area(outline) - sum(_area(hole) for hole in holes)
        if holes:
            piece = rasterize([(geometry, 1)], out_shape=mask.shape, dtype=np.uint8)
            segmentation: Any = _run_lengths(piece)
        else:
            segmentation = [outline.ravel().tolist()]
        yield {
            "segmentation": segmentation,
            "area": pixels,
            "bbox": [left, top, right - left, bottom - top],
            "iscrowd": 0,
        }


def _area(ring: NDArray[np.int64]) -> int:
    """Pixels inside a ring along pixel edges (the shoelace formula)."""
    x, y = ring.T
    return abs(int(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) // 2


def _run_lengths(mask: NDArray[np.uint8]) -> dict[str, Any]:
    """COCO's uncompressed run lengths: column by column, beginning with the length of the first run outside."""
    flat = mask.ravel(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}


def _json(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
