"""What a segmenter makes of pictures that codecs have had: intersection over union with the map, class by class.

The dataset's tiles are laid out as they lie on the ground, compressed as one picture, and cut again; the model in the
box has a tile at a time, with its map. The last rows are controls: pictures that have nothing to do with the map.

    python benchmarks/segmenter.py SEGMENTER [SEGMENTER ...] --data DATASET [--class building] [--json]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np
from PIL import Image, ImageFilter

from magc_data.dataset import MagcDataset
from magc_model.codec import MagcCodec, Rate
from magc_model.segmenter_model import SegmenterModel
from magc_model.train.segmenter_stage import confusion

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Pictures = NDArray[np.uint8]

TILE_PX = 256


class Ground(NamedTuple):
    """Tiles of a dataset, and where they lie."""

    pictures: Pictures
    maps: Pictures
    places: list[tuple[int, int]]
    """Row and column."""

    def mosaic(self) -> Image.Image:
        """All of them as one picture; grey where there is none."""
        rows, columns = (1 + max(each) for each in zip(*self.places, strict=True))
        whole = np.full((rows * TILE_PX, columns * TILE_PX, 3), 128, np.uint8)
        for picture, (row, column) in zip(self.pictures, self.places, strict=True):
            whole[row * TILE_PX : (row + 1) * TILE_PX, column * TILE_PX : (column + 1) * TILE_PX] = picture
        return Image.fromarray(whole)

    def cut(self, mosaic: Image.Image) -> Pictures:
        """The tiles again."""
        whole = np.asarray(mosaic.convert("RGB"))
        return np.stack(
            [
                whole[row * TILE_PX : (row + 1) * TILE_PX, column * TILE_PX : (column + 1) * TILE_PX]
                for row, column in self.places
            ]
        )


def ground(data: Path) -> Ground:
    samples = list(MagcDataset(data))
    places = np.array([[int(part) for part in each.key.split("_")[:0:-1]] for each in samples])
    places -= places.min(axis=0)
    return Ground(
        np.stack([each.image for each in samples]),
        np.stack([each.semantic_map for each in samples]),
        [(int(row), int(column)) for row, column in places],
    )


class Variant(NamedTuple):
    """Pictures after something was done to them."""

    name: str
    bpp: float | None
    pictures: Pictures


def variants(of: Ground) -> Iterator[Variant]:
    mosaic, count = of.mosaic(), of.maps.size
    yield Variant("original", None, of.pictures)
    for deviation in (1, 2, 4, 8):
        yield Variant(f"blurred by {deviation} px", None, of.cut(mosaic.filter(ImageFilter.GaussianBlur(deviation))))
    for bpp in (0.5, 0.2, 0.1, 0.05, 0.025):
        yield coded(
            of,
            mosaic,
            "JPEG2000",
            format="JPEG2000",
            quality_mode="rates",
            quality_layers=[24 / bpp],
            irreversible=True,
        )
    for quality in (40, 20, 10, 0):
        yield coded(of, mosaic, "AVIF", format="AVIF", quality=quality)
    for qp in (37, 45, 53):
        size, decoded = vvc(mosaic, qp)
        yield Variant("VVC", size * 8 / count, of.cut(decoded))
    codec = MagcCodec.from_pretrained("tiny")
    for position in (0.0, 2.5):
        streams = codec.compress_batch(list(of.pictures), list(of.maps), rate=Rate(position=position))
        decoded = codec.decompress_batch([each.stream for each in streams], list(of.maps))
        yield Variant("magc tiny", sum(len(each.stream) for each in streams) * 8 / count, np.stack(decoded))
    elsewhere = np.roll(of.maps, 1, axis=0)
    streams = codec.compress_batch(list(of.pictures), list(elsewhere), rate=Rate(position=2.5))
    decoded = codec.decompress_batch([each.stream for each in streams], list(elsewhere))
    yield Variant("magc tiny, given another tile's map", None, np.stack(decoded))
    yield Variant("another tile's picture", None, np.roll(of.pictures, 1, axis=0))
    yield Variant("the picture, turned by a half", None, np.ascontiguousarray(of.pictures[:, ::-1, ::-1]))
    yield Variant("one grey", None, np.full_like(of.pictures, 128))


def coded(of: Ground, mosaic: Image.Image, name: str, **options: object) -> Variant:
    stream = io.BytesIO()
    mosaic.save(stream, **options)
    return Variant(name, len(stream.getvalue()) * 8 / of.maps.size, of.cut(Image.open(stream)))


def vvc(mosaic: Image.Image, qp: int) -> tuple[int, Image.Image]:
    """Bytes of the elementary stream, and what it decodes to."""
    import imageio_ffmpeg

    program = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error"]
    with tempfile.TemporaryDirectory() as folder:
        before, stream, after = (Path(folder) / name for name in ("before.png", "stream.vvc", "after.png"))
        mosaic.save(before)
        encode = [
            *program,
            "-i",
            before,
            "-pix_fmt",
            "yuv420p10le",
            "-c:v",
            "libvvenc",
            "-preset",
            "fast",
            "-qp",
            str(qp),
        ]
        subprocess.run([*encode, "-f", "vvc", stream], check=True)
        subprocess.run([*program, "-i", stream, "-frames:v", "1", after], check=True)
        return stream.stat().st_size, Image.open(after).convert("RGB")


def scores(segmenter: SegmenterModel, pictures: Pictures, maps: Pictures, name: str) -> dict[str, float]:
    """Intersection over union, share of the map's that is seen, share of what is seen that is on the map."""
    counts = sum(
        confusion(truth, seen, segmenter.class_ids)
        for truth, seen in zip(maps, segmenter.predict(pictures), strict=True)
    )
    place = segmenter.classes.index(name)
    both, truth, seen = counts[place, place], counts[place].sum(), counts[:, place].sum()
    return {"iou": both / (truth + seen - both), "recall": both / truth, "precision": both / max(seen, 1)}


def timed(segmenter: SegmenterModel, pictures: Pictures) -> float:
    """Processor seconds a picture."""
    segmenter.predict(pictures[:2])
    start = time.process_time()
    segmenter.predict(pictures[:16])
    return (time.process_time() - start) / len(pictures[:16])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("segmenters", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--class", dest="name", default="building")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    of = ground(arguments.data)
    segmenters = {str(path): SegmenterModel.from_pretrained(path) for path in arguments.segmenters}
    rows = [
        {"what": each.name, "bpp": each.bpp}
        | {path: scores(segmenter, each.pictures, of.maps, arguments.name) for path, segmenter in segmenters.items()}
        for each in variants(of)
    ]
    seconds = {path: timed(segmenter, of.pictures) for path, segmenter in segmenters.items()}

    if arguments.json:
        print(json.dumps({"rows": rows, "seconds_a_picture": seconds}))
    else:
        _print(rows, seconds)


def _print(rows: list[dict], seconds: dict[str, float]) -> None:
    for path, each in seconds.items():
        print(f"{path}: {each * 1000:.1f} ms a picture")
    print("\n| pictures | bpp |" + " IoU | recall | precision |" * len(seconds))
    print("|---|---|" + "---|---|---|" * len(seconds))
    for row in rows:
        bpp = "" if row["bpp"] is None else f"{row['bpp']:.3f}"
        cells = [f"{row[path][key]:.3f}" for path in seconds for key in ("iou", "recall", "precision")]
        print(f"| {row['what']} | {bpp} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
