"""A picture of where a dataset's tiles lie, coloured by the side of the split that they are on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from magc_data.atomic import atomic_file
from magc_data.errors import DatasetError
from magc_data.ground_grid import grid_of, plane_columns
from magc_data.shards.manifest import read_manifest
from magc_data.shards.reader import read_index

if TYPE_CHECKING:
    from pathlib import Path

LARGEST_PX, LARGEST_TILE_PX, MARGIN_PX, LEGEND_LINE_PX = 1200, 24, 12, 22
SIDE_COLORS: dict[str | None, tuple[int, int, int]] = {
    "train": (86, 140, 196),
    "val": (240, 180, 60),
    "test": (200, 70, 60),
    None: (205, 205, 205),
}
"""Tiles on no side are grey: left out, or not split."""


def coverage_picture(data: Path | str, out: Path) -> int:
    """Write a PNG in which every tile is a square, north up; returns the number of tiles.

    Raises:
        DatasetError: not a finished dataset, or one without samples.
    """
    rows = read_index(data, ["x", "y", "split"])
    if not len(rows):
        raise DatasetError(f"{data} holds no sample to show: `magc-data stats {data}` says why tiles were rejected")
    x, y = (rows[name].to_numpy().astype(np.int64) for name in ("x", "y"))
    x = plane_columns(grid_of(read_manifest(data)), x, y)
    x, y = x - x.min(), y - y.min()
    tile_px = min(LARGEST_TILE_PX, (LARGEST_PX - 2 * MARGIN_PX) / (max(x.max(), y.max()) + 1))
    splits = np.array(rows["split"].to_pylist(), dtype=object)
    counts = {name: int((splits == name).sum()) for name in SIDE_COLORS}
    width = max(240, round((x.max() + 1) * tile_px) + 2 * MARGIN_PX)
    top = round((y.max() + 1) * tile_px) + 2 * MARGIN_PX
    height = top + LEGEND_LINE_PX * sum(map(bool, counts.values())) + MARGIN_PX
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    gap_px = 1 if tile_px >= 4 else 0
    # The test side last: where a pixel stands for many tiles, it shows what is rarest.
    for name in (None, "train", "val", "test"):
        for left, upper in zip(x[splits == name] * tile_px, y[splits == name] * tile_px, strict=True):
            corner = (MARGIN_PX + int(left), MARGIN_PX + int(upper))
            far = (MARGIN_PX + int(left + tile_px) - 1, MARGIN_PX + int(upper + tile_px) - 1)
            end = (max(far[0] - gap_px, corner[0]), max(far[1] - gap_px, corner[1]))
            draw.rectangle((*corner, *end), fill=SIDE_COLORS[name])
    font = ImageFont.load_default(13)
    shown = [(name, count) for name, count in counts.items() if count]
    for number, (name, count) in enumerate(shown):
        line = top + number * LEGEND_LINE_PX
        draw.rectangle((MARGIN_PX, line + 3, MARGIN_PX + 14, line + 17), fill=SIDE_COLORS[name], outline="black")
        draw.text((MARGIN_PX + 20, line + 2), f"{name or 'on no side'}: {count} tiles", fill="black", font=font)
    with atomic_file(out) as stream:
        sheet.save(stream, format="PNG")
    return len(rows)
