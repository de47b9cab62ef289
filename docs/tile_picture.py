"""Makes the picture of the README: what standard codecs and the model in the box make of unseen ground in as few bytes.

    python docs/tile_picture.py [--out docs/tile.webp] [--quality 3]

The ground is the held-out half of the Banepa sample. The model's two pictures, faithful and realistic, are of one file:
the receiver chooses. The tile is not chosen by eye: its PSNR is the median of all, at the faithful end. Other codecs
get the largest file that is no larger than magc's; where they cannot make one so small, their smallest, with its true
size.

The picture shows imagery of OpenAerialMap (CC-BY-4.0) and a map of OpenStreetMap (ODbL): wherever it is shown, name
both.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from magc_data.build import build
from magc_data.config import BuildConfig
from magc_model.evaluate.codecs.protocol import ClassMap, ImageCodec, Picture
from magc_model.evaluate.codecs.registry import open_codec
from magc_model.evaluate.items import EvaluationSet, Loaded
from magc_model.evaluate.measurement import On

HELD_OUT = (85.5164, 27.6314, 85.5242, 27.6384)
MAX_BYTES = 250_000
CELL_PX, GAP_PX, MARGIN_PX, TITLE_PX, CAPTION_PX, TEXT_PX = 256, 12, 16, 34, 52, 17
INK, FAINT, PAPER = "#1f2328", "#59636e", "#ffffff"
"""Dark on white, whatever the page behind it."""

JPEG2000_RATES = tuple(np.geomspace(0.005, 0.5, 400).tolist())
"""Bits a pixel."""
VVC_RATES = tuple(float(qp) for qp in range(63, 20, -1))
"""QPs."""


class Cell(NamedTuple):
    """One picture with two lines under it."""

    picture: Picture
    name: str
    figures: str


class Decoded(NamedTuple):
    """What came back of a file."""

    data: bytes
    picture: Picture


class Row(NamedTuple):
    """Pictures side by side under a line that says what they are of."""

    title: str
    cells: tuple[Cell, ...]


def main() -> None:
    """Build the sample, compress it, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tile.webp")
    parser.add_argument("--quality", type=float, default=3.0, help="of the model in the box: 1 to 6")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "banepa"
        config = BuildConfig(imagery="sample-banepa", osm="sample-banepa", zoom=18, bbox=HELD_OUT, out=data)
        build(config, lambda _: None, quiet=True)
        rows = rows_of(EvaluationSet(data), options.quality)
    stream = io.BytesIO()
    drawn(rows).save(stream, "WEBP", quality=85, method=6)
    if stream.tell() > MAX_BYTES:
        sys.exit(f"the picture is {stream.tell()} bytes, expected up to {MAX_BYTES}: lower its quality")
    options.out.write_bytes(stream.getvalue())
    for row in rows:
        sys.stdout.write("\n  ".join((row.title, *(f"{cell.name}: {cell.figures}" for cell in row.cells))) + "\n")
    sys.stdout.write(f"{options.out}: {stream.tell()} bytes\n")


def rows_of(ground: EvaluationSet, quality: float) -> list[Row]:
    """A tile, and the middle of the scene that all of them are."""
    ends = tuple(open_codec(name) for name in ("magc", "magc,steps=1"))
    jpeg2000, vvc = open_codec("jpeg2000"), open_codec("vvc")
    palette = np.zeros((256, 3), np.uint8)
    for each in ground.classes:
        palette[each.id] = each.color

    def by_magc(item: Loaded, end: ImageCodec) -> Decoded:
        data = end.encode(item.picture, item.semantic_map, quality).data
        return Decoded(data, end.decode(data, item.semantic_map))

    tiles = [ground.load(item) for item in ground.items if item.on is On.TILES]
    tiles.sort(key=lambda tile: psnr_db(by_magc(tile, ends[0]).picture, tile.picture))
    tile = tiles[len(tiles) // 2]
    ours = [by_magc(tile, end) for end in ends]
    theirs = largest_within(jpeg2000, JPEG2000_RATES, tile.picture, len(ours[0].data))
    alone = (
        original(tile.picture, tile.picture),
        Cell(palette[tile.semantic_map], "map", "the receiver has it"),
        compared(jpeg2000, theirs, tile.picture),
        *(compared(end, decoded, tile.picture) for end, decoded in zip(ends, ours, strict=True)),
    )
    [scene] = [ground.load(item) for item in ground.items if item.on is On.SCENES]
    ours = [by_magc(scene, end) for end in ends]
    size = len(ours[0].data)
    height_px, width_px = scene.picture.shape[:2]
    together = (
        original(scene.picture, middle(scene.picture)),
        *(
            compared(codec, decoded, scene.picture, middle)
            for codec, decoded in (
                (jpeg2000, largest_within(jpeg2000, JPEG2000_RATES, scene.picture, size)),
                (vvc, largest_within(vvc, VVC_RATES, scene.picture, size)),
                *zip(ends, ours, strict=True),
            )
        ),
    )
    size_px = f"{width_px}x{height_px}"
    return [
        Row("One tile of 256x256 pixels, in a file of its own", alone),
        Row(f"The middle of a scene of {size_px} pixels, compressed as one; figures are of the whole scene", together),
    ]


# --- codecs ----------------------------------------------------------------------------------------------------------


def largest_within(codec: ImageCodec, rates: Sequence[float], picture: Picture, max_bytes: int) -> Decoded:
    """A codec's largest file of at most so many bytes, by bisection; its smallest, if that has more."""
    files: dict[int, bytes] = {}

    def fits(number: int) -> bool:
        files[number] = codec.encode(picture, None, rates[number]).data
        return len(files[number]) <= max_bytes

    low, high = 0, len(rates) - 1
    if fits(low):
        while low < high:
            middle_one = (low + high + 1) // 2
            low, high = (middle_one, high) if fits(middle_one) else (low, middle_one - 1)
    return Decoded(files[low], codec.decode(files[low], None))


def psnr_db(decoded: Picture, original_picture: Picture) -> float:
    """Over all pixels and colours."""
    return float(10 * np.log10(255**2 / np.square(decoded.astype(np.float64) - original_picture).mean()))


def original(whole: Picture, shown: Picture) -> Cell:
    """With the size of its bare pixels."""
    return Cell(shown, "original", f"{whole.size:,} bytes, 24 bpp")


def compared(
    codec: ImageCodec, decoded: Decoded, whole: Picture, part: Callable[[Picture], Picture] = lambda picture: picture
) -> Cell:
    """With what it cost and how near it came."""
    bpp = 8 * len(decoded.data) / (whole.shape[0] * whole.shape[1])
    figures = f"{len(decoded.data):,} bytes, {bpp:.3f} bpp, {psnr_db(decoded.picture, whole):.1f} dB"
    return Cell(part(decoded.picture), codec.label, figures)


def middle(picture: Picture | ClassMap) -> Any:
    """As much as one cell shows, in the picture's own pixels."""
    top, left = ((side - CELL_PX) // 2 for side in picture.shape[:2])
    return picture[top : top + CELL_PX, left : left + CELL_PX]


# --- drawing ---------------------------------------------------------------------------------------------------------


def drawn(rows: Sequence[Row]) -> Image.Image:
    """All rows on one sheet."""
    columns = max(len(row.cells) for row in rows)
    step = TITLE_PX + CELL_PX + CAPTION_PX + GAP_PX
    width = 2 * MARGIN_PX + columns * CELL_PX + (columns - 1) * GAP_PX
    sheet = Image.new("RGB", (width, 2 * MARGIN_PX - GAP_PX + len(rows) * step), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_PX)
    for number, row in enumerate(rows):
        top = MARGIN_PX + number * step
        pen.text((MARGIN_PX, top), row.title, fill=FAINT, font=font)
        for column, cell in enumerate(row.cells):
            left = MARGIN_PX + column * (CELL_PX + GAP_PX)
            under = top + TITLE_PX + CELL_PX + 4
            sheet.paste(Image.fromarray(np.ascontiguousarray(cell.picture)), (left, top + TITLE_PX))
            pen.text((left, under), cell.name, fill=INK, font=font)
            pen.text((left, under + TEXT_PX + 4), cell.figures, fill=INK, font=font)
    return sheet


if __name__ == "__main__":
    main()
