"""A sheet of what changed: tiles before and after with their difference, and a table of what became what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageFont

from magc_data.atomic import atomic_file
from magc_data.schema.sample import TILE_SIZE_PX
from magc_data.shards.manifest import read_manifest
from magc_data.shards.reader import read_image, read_index, read_map

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from magc_data.diff import Difference, TileChange

MARGIN_PX, CAPTION_PX, GAP_PX = 12, 22, 4
CELL_WIDTH_PX, CELL_HEIGHT_PX, NAME_WIDTH_PX = 74, 20, 100

GONE = (230, 0, 200)
"""Where a class gave way to background, which has no colour of its own to show."""

UNCHANGED_BACKGROUND, UNCHANGED = 244, 214
"""Grey levels of what is as it was: enough to see where one is."""

_READ = ["key", "shard", "map_offset", "map_size", "image_offset", "image_size"]


def map_difference(old: NDArray[np.uint8], new: NDArray[np.uint8], palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Changed pixels in the colour of what they became, the others grey.

    Args:
        old: class ids before, uint8 [h, w].
        new: class ids after, uint8 [h, w].
        palette: RGB by class id, uint8 [256, 3].

    Returns:
        RGB, uint8 [h, w, 3].
    """
    greys = np.where(new == 0, np.uint8(UNCHANGED_BACKGROUND), np.uint8(UNCHANGED))[..., None]
    became = np.where((new == 0)[..., None], np.array(GONE, np.uint8), palette[new])
    return np.where((old == new)[..., None], greys, became).astype(np.uint8)


def image_difference(old: NDArray[np.uint8], new: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Twice the absolute difference, dark on white.

    Args:
        old: RGB before, uint8 [h, w, 3].
        new: RGB after, uint8 [h, w, 3].

    Returns:
        RGB, uint8 [h, w, 3].
    """
    doubled = 2 * np.abs(old.astype(np.int16) - new)
    return np.asarray(255 - doubled.clip(0, 255), np.uint8)


def difference_sheet(found: Difference, out: Path, count: int = 12) -> int:
    """Write a PNG of the tiles that tell most of the change; returns how many it shows.

    Raises:
        DatasetError: a dataset is damaged.
    """
    manifest = read_manifest(found.after.data)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for each in manifest["classes"]:
        palette[each["id"]] = each["color"]
    shown = found.most_telling(count)
    rows = {side.data: _rows_of(side.data, shown) for side in (found.before, found.after)}
    with_images = found.images_changed is not None
    panels = 6 if with_images else 3
    columns = 1 if with_images else min(2, max(len(shown), 1))
    group_px = panels * TILE_SIZE_PX + (panels - 1) * GAP_PX
    line_px = CAPTION_PX + TILE_SIZE_PX + MARGIN_PX
    lines = -(-len(shown) // columns)
    involved = [name for name, moved in zip(found.class_names, _moved(found), strict=True) if moved]
    table_width = NAME_WIDTH_PX + (len(involved) + 1) * CELL_WIDTH_PX
    width = max(columns * (group_px + MARGIN_PX), table_width + MARGIN_PX, 600) + MARGIN_PX
    height = 2 * MARGIN_PX + 3 * CAPTION_PX + lines * line_px + (len(involved) + 3) * CELL_HEIGHT_PX
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, text in enumerate(_headings(found)):
        draw.text((MARGIN_PX, MARGIN_PX + number * CAPTION_PX), text, fill="black", font=font)
    top_of_tiles = MARGIN_PX + 2 * CAPTION_PX
    for number, change in enumerate(shown):
        left = MARGIN_PX + (number % columns) * (group_px + MARGIN_PX)
        top = top_of_tiles + (number // columns) * line_px
        draw.text((left, top + 2), _caption(change, with_images=with_images), fill="black", font=font)
        pictures = _pictures(found, rows, change.key, palette, with_images=with_images)
        for place, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture), (left + place * (TILE_SIZE_PX + GAP_PX), top + CAPTION_PX))
    top = top_of_tiles + lines * line_px
    _draw_table(draw, (MARGIN_PX, top), found, involved, palette, manifest["classes"])
    attributions = dict.fromkeys(
        source["attribution"]
        for side in (found.before, found.after)
        for source in read_manifest(side.data)["sources"].values()
    )
    draw.text((MARGIN_PX, height - MARGIN_PX - 14), "   ".join(attributions), fill="dimgray", font=font)
    with atomic_file(out) as stream:
        sheet.save(stream, format="PNG")
    return len(shown)


def _rows_of(data: Path | str, changes: list[TileChange]) -> dict[str, dict[str, Any]]:
    wanted = pa.array([change.key for change in changes], pa.string())
    table = read_index(data, _READ)
    return {row["key"]: row for row in table.filter(pc.is_in(table["key"], value_set=wanted)).to_pylist()}


def _pictures(
    found: Difference,
    rows: dict[Path | str, dict[str, dict[str, Any]]],
    key: str,
    palette: NDArray[np.uint8],
    *,
    with_images: bool,
) -> list[NDArray[np.uint8]]:
    """Before, after and difference: of the image, where there is one, and of the map."""
    sides = [(side.data, rows[side.data][key]) for side in (found.before, found.after)]
    old, new = (read_map(data, row) for data, row in sides)
    of_map = [palette[old], palette[new], map_difference(old, new, palette)]
    if not with_images:
        return of_map
    old, new = (read_image(data, row) for data, row in sides)
    return [old, new, image_difference(old, new), *of_map]


def _headings(found: Difference) -> tuple[str, str]:
    dates = [side.osm_timestamp for side in (found.before, found.after)]
    of_dates = f" (maps of {dates[0][:10]} and {dates[1][:10]})" if dates[0] and dates[1] else ""
    what = "" if found.images_changed is None else f"{found.images_changed} images and "
    panels = "" if found.images_changed is None else "image and map, each "
    return (
        f"{found.before.data} -> {found.after.data}{of_dates}",
        f"{found.common} tiles in both, {what}{found.maps_changed} maps changed.   {panels}before | after | difference",
    )


def _caption(change: TileChange, *, with_images: bool) -> str:
    of_image = f", image by {change.image_difference:.1f} levels" if with_images else ""
    return f"{change.key}   {change.map_pixels / TILE_SIZE_PX**2:.1%} of the map changed{of_image}"


def _moved(found: Difference) -> NDArray[np.int64]:
    """Changed pixels that were or became each class, shape [classes]."""
    changed = found.pixels - np.diag(np.diag(found.pixels))
    total: NDArray[np.int64] = changed.sum(axis=0) + changed.sum(axis=1)
    return total


def _draw_table(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    found: Difference,
    involved: list[str],
    palette: NDArray[np.uint8],
    classes: list[dict[str, Any]],
) -> None:
    """From class (row) to class (column), in hectares on the ground; the larger, the darker."""
    font = ImageFont.load_default(12)
    left, top = corner
    numbers = [found.class_names.index(name) for name in involved]
    hectares = found.ground_m2[np.ix_(numbers, numbers)] / 1e4
    colors = {each["name"]: tuple(palette[each["id"]].tolist()) for each in classes}
    gone = "hectares from (row) to (column); in the difference, a class that gave way to background is"
    draw.text((left, top), gone, fill="black", font=font)
    after_text = left + draw.textlength(gone, font=font) + 6
    draw.rectangle((after_text, top + 1, after_text + 14, top + 13), fill=GONE, outline="black")
    for place, name in enumerate(involved):
        x, y = left + NAME_WIDTH_PX + place * CELL_WIDTH_PX, top + CELL_HEIGHT_PX
        draw.text((x + 4, y + 3), name[:11], fill="black", font=font)
        y = top + (place + 2) * CELL_HEIGHT_PX
        draw.rectangle((left, y + 3, left + 12, y + 15), fill=colors[name], outline="black")
        draw.text((left + 17, y + 3), name[:12], fill="black", font=font)
    largest = hectares.max(initial=0.0)
    for (row, column), value in np.ndenumerate(hectares):
        if value <= 0:
            continue
        x, y = left + NAME_WIDTH_PX + column * CELL_WIDTH_PX, top + (row + 2) * CELL_HEIGHT_PX
        shade = round(255 - 150 * float(value / largest) ** 0.5)
        draw.rectangle((x, y, x + CELL_WIDTH_PX - 2, y + CELL_HEIGHT_PX - 2), fill=(255, shade, shade))
        draw.text((x + CELL_WIDTH_PX - 8, y + 3), f"{value:.2f}", fill="black", font=font, anchor="ra")
