"""A contact sheet: image, map and overlay of samples side by side, with the classes' colours."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from magc_data.atomic import atomic_file
from magc_data.errors import DatasetError
from magc_data.schema.sample import TILE_SIZE_PX
from magc_data.shards.index import FRACTION_PREFIX, SAMPLE_COLUMNS
from magc_data.shards.manifest import read_manifest
from magc_data.shards.reader import read_image, read_index, read_map

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

MAP_OPACITY = 0.35
"""Of the map over the image in the overlay; background stays clear."""

MARGIN_PX, CAPTION_PX, LEGEND_LINE_PX = 12, 22, 22
PANELS = ("image", "map", "overlay")


class Panel(NamedTuple):
    """One sample's three pictures, each uint8 [256, 256, 3]."""

    image: NDArray[np.uint8]
    semantic_map: NDArray[np.uint8]
    overlay: NDArray[np.uint8]


def panel(image: NDArray[np.uint8], class_ids: NDArray[np.uint8], palette: NDArray[np.uint8]) -> Panel:
    """Colour a map and lay it over its image.

    Args:
        image: RGB, uint8 [h, w, 3].
        class_ids: uint8 [h, w].
        palette: RGB by class id, uint8 [n, 3].
    """
    colored = palette[class_ids]
    mixed = (image * (1 - MAP_OPACITY) + colored * MAP_OPACITY).astype(np.uint8)
    overlay = np.where(class_ids[..., None] > 0, mixed, image)
    # Outlines in the full colour: roofs and their class are often of much the same hue.
    edge = np.zeros(class_ids.shape, dtype=bool)
    edge[:, 1:] |= class_ids[:, 1:] != class_ids[:, :-1]
    edge[1:] |= class_ids[1:] != class_ids[:-1]
    overlay[edge & (class_ids > 0)] = colored[edge & (class_ids > 0)]
    return Panel(image, colored, overlay)


def chosen_rows(background_fractions: NDArray[np.float32], count: int) -> list[int]:
    """The samples with most on their maps, from all over the dataset: the best of each of `count` equal runs of it."""
    total = len(background_fractions)
    edges = np.linspace(0, total, min(count, total) + 1).astype(int)
    return [int(start + np.argmin(background_fractions[start:end])) for start, end in itertools.pairwise(edges)]


def contact_sheet(data: Path | str, out: Path, count: int = 8) -> int:
    """Write a PNG of up to `count` samples, of their maps where there are no images; returns how many it shows.

    Raises:
        DatasetError: not a finished dataset, or one without samples.
    """
    manifest = read_manifest(data)
    shares = [FRACTION_PREFIX + each["name"] for each in manifest["classes"]]
    table = read_index(data, [*SAMPLE_COLUMNS, *shares])
    if not len(table):
        raise DatasetError(f"{data} holds no sample to show: `magc-data stats {data}` says why tiles were rejected")
    rows = table.take(chosen_rows(table[shares[0]].to_numpy(), count)).to_pylist()
    palette = np.zeros((256, 3), dtype=np.uint8)
    for each in manifest["classes"]:
        palette[each["id"]] = each["color"]
    shown = [
        name
        for name in (each["name"] for each in manifest["classes"])
        if any(row[FRACTION_PREFIX + name] for row in rows)
    ]
    colors = {each["name"]: tuple(each["color"]) for each in manifest["classes"]}

    # Maps alone stand three times as close.
    panels = PANELS if "imagery" in manifest["sources"] else ("map",)
    columns = min(6 // len(panels), len(rows))
    group_px = len(panels) * TILE_SIZE_PX + (len(panels) - 1) * 4
    width = columns * group_px + (columns + 1) * MARGIN_PX
    lines = -(-len(rows) // columns)
    line_px = CAPTION_PX + TILE_SIZE_PX + MARGIN_PX
    per_line = max(1, (width - 2 * MARGIN_PX) // 170)
    legend_lines = -(-len(shown) // per_line)
    attribution = "   ".join(dict.fromkeys(source["attribution"] for source in manifest["sources"].values()))
    height = MARGIN_PX + lines * line_px + legend_lines * LEGEND_LINE_PX + CAPTION_PX + MARGIN_PX
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    for number, row in enumerate(rows):
        left = MARGIN_PX + (number % columns) * (group_px + MARGIN_PX)
        top = MARGIN_PX + (number // columns) * line_px
        caption = f"{row['key']}   {row['gsd_m']:.3f} m/px"
        if len(panels) > 1:
            caption += f"   {row['lat']:.5f}, {row['lon']:.5f}   {' | '.join(panels)}"
        draw.text((left, top + 2), caption, fill="black", font=font)
        class_ids = read_map(data, row)
        pictures = panel(read_image(data, row), class_ids, palette) if len(panels) > 1 else (palette[class_ids],)
        for place, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture), (left + place * (TILE_SIZE_PX + 4), top + CAPTION_PX))
    top = MARGIN_PX + lines * line_px
    for number, name in enumerate(shown):
        left = MARGIN_PX + (number % per_line) * 170
        y = top + (number // per_line) * LEGEND_LINE_PX
        draw.rectangle((left, y + 3, left + 14, y + 17), fill=colors[name], outline="black")
        draw.text((left + 20, y + 2), name, fill="black", font=font)
    draw.text((MARGIN_PX, top + legend_lines * LEGEND_LINE_PX + 4), attribution, fill="dimgray", font=font)
    with atomic_file(out) as stream:
        sheet.save(stream, format="PNG")
    return len(rows)
