"""What a dataset and its samples look like below a notebook's cell; nothing here asks the network.

Maps are the page of `magc-data explore` in a frame: folium and ipyleaflet fetch their scripts and their background from
the internet, and a notebook in a cellar or a clean room would stay white.
"""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow.compute as pc
from PIL import Image, ImageDraw

from magc_data.errors import MagcDataError, UsageError
from magc_data.explore.document import CELL, TILE, write_page
from magc_data.explore.pictures import plan_pictures
from magc_data.explore.table import read_table, split_color
from magc_data.ground_grid import grid_of, grid_text, plane_columns
from magc_data.preview import panel
from magc_data.schema.sample import TILE_SIZE_PX

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from magc_data.explore.document import Layout
    from magc_data.explore.table import Color, ExploreTable
    from magc_data.schema.classes import SemanticClass

PICTURES_BYTES = 8_000_000
"""Pictures in a map below a cell: they are saved with the notebook."""

_COVERAGE_PX = 300
_TILE_HEIGHT_PX = 560


class HtmlView(NamedTuple):
    """Something that notebooks show as HTML."""

    html: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"HtmlView of {len(self.html) / 1e6:.1f} MB"


class Plot(NamedTuple):
    """A figure that notebooks show once, whatever their settings for matplotlib."""

    figure: Figure

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        self.figure.savefig(stream, format="png", dpi=110, bbox_inches="tight")
        return stream.getvalue()

    def save(self, path: Path | str) -> None:
        """Write the figure to a file; its suffix names the format."""
        self.figure.savefig(path, bbox_inches="tight")


def framed_page(data: Path, keys: Collection[str], height_px: int = 640, layout: Layout = CELL) -> HtmlView:
    """The explore page of some tiles in a frame that can neither touch the notebook nor ask the network.

    Raises:
        DatasetError: no such tile, or a damaged dataset.
    """
    table = read_table(data, keys)
    stream = io.BytesIO()
    write_page(stream, table, plan_pictures(table, PICTURES_BYTES), layout)
    return HtmlView(
        f'<iframe title="{html.escape(table.title)}" style="width: 100%; height: {height_px:d}px; border: 0; '
        'border-radius: 12px" sandbox="allow-scripts allow-popups allow-popups-to-escape-sandbox" '
        f'srcdoc="{html.escape(stream.getvalue().decode())}"></iframe>'
    )


def flip_view(data: Path, key: str) -> HtmlView:
    """One tile with a divider between its image and its map.

    Raises:
        DatasetError: no such tile, or a damaged dataset.
    """
    return framed_page(data, [key], _TILE_HEIGHT_PX, TILE)


def dataset_card(data: Path, keys: Collection[str]) -> str:
    """A dataset, or the tiles of it with these keys, at a glance: coverage, counts, classes, sources, as HTML.

    Raises:
        DatasetError: a damaged dataset.
    """
    table = read_table(data, keys)
    rows = table.rows
    gsd_m = rows["gsd_m"].to_numpy()
    splits = {name: count for name, count in zip(*_value_counts(table, "split"), strict=True) if name is not None}
    shares = [
        (each, float(pc.mean(column).as_py() or 0))
        for each in table.classes
        if (column := table.fractions(each.name)) is not None
    ]
    occurring = sorted(((each, share) for each, share in shares if share), key=lambda pair: -pair[1])
    resolution = " to ".join(dict.fromkeys(f"{value:.2f}" for value in (gsd_m.min(), gsd_m.max())))
    facts = [
        f"{len(rows):,} tiles",
        f"{float(np.sum((gsd_m * TILE_SIZE_PX) ** 2)) / 1e6:,.1f} km²",
        grid_text(table.manifest),
        f"{resolution} m/px",
    ]
    split_line = " ".join(
        f"<span>{_dot(split_color(name))}{html.escape(name)} {count:,}</span>" for name, count in splits.items()
    )
    bar = "".join(
        f'<i title="{html.escape(each.name)} {share:.1%}" style="width: {share:.3%}; background: rgb{each.color}"></i>'
        for each, share in occurring
    )
    legend = " ".join(
        f"<span>{_dot(each.color)}{html.escape(each.name)} {share:.1%}</span>" for each, share in occurring
    )
    sources = "; ".join(
        dict.fromkeys(f"{each['attribution']} ({each['licence']})" for each in table.manifest["sources"].values())
    )
    spans = "display: flex; flex-wrap: wrap; gap: 3px 14px; margin: 6px 0"
    return (
        '<div style="display: flex; flex-wrap: wrap; gap: 22px; align-items: center; max-width: 900px; padding: 8px 0; '
        'font: 13px/1.5 system-ui, sans-serif">'
        f'<img alt="Coverage of {html.escape(table.title)}" src="data:image/png;base64,'
        f'{base64.b64encode(coverage_png(table)).decode()}" style="max-width: {_COVERAGE_PX}px; '
        'image-rendering: pixelated; border-radius: 6px; margin: 0">'
        '<div style="flex: 1; min-width: 280px">'
        f'<div style="font-size: 16px; font-weight: 600">{html.escape(table.title)}</div>'
        f'<div style="opacity: .75">{" · ".join(facts)}</div>'
        f'<div style="{spans}">{split_line}</div>'
        f'<div style="display: flex; height: 12px; border-radius: 6px; overflow: hidden; margin: 8px 0">{bar}</div>'
        f'<div style="{spans}">{legend}</div>'
        f'<div style="opacity: .65; font-size: 11px">{html.escape(sources)}</div>'
        "</div></div>"
    )


def _dot(color: Color) -> str:
    return (
        '<i style="display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 6px; '
        f'background: rgb{color}"></i>'
    )


def _value_counts(table: ExploreTable, column: str) -> tuple[list[str | None], list[int]]:
    counts = table.rows[column].value_counts()
    return counts.field("values").to_pylist(), counts.field("counts").to_pylist()


def coverage_png(table: ExploreTable) -> bytes:
    """Where the tiles are, in the colours of their splits or, before a split, of their main classes; north is up."""
    rows = table.rows
    top = rows["y"].to_numpy().astype(np.int64)
    left = plane_columns(grid_of(table.manifest), rows["x"].to_numpy().astype(np.int64), top)
    side = np.ones_like(top)
    left, top = left - left.min(), top - top.min()
    extent = int(max((left + side).max(), (top + side).max()))
    # Whole pixels a tile where there is room for it, so that squares are square.
    scale: float = max(1, _COVERAGE_PX // extent) if extent <= _COVERAGE_PX else _COVERAGE_PX / extent
    width, height = (int(np.ceil(float(each.max()) * scale)) for each in (left + side, top + side))
    picture = Image.new("RGBA", (width, height))
    draw = ImageDraw.Draw(picture)
    gap = 1 if scale >= 6 else 0
    boxes = np.stack([left, top, left + side, top + side], axis=1) * scale
    for (x0, y0, x1, y1), color in zip(boxes.astype(int).tolist(), _colors(table), strict=True):
        draw.rectangle((x0, y0, max(x0, x1 - 1 - gap), max(y0, y1 - 1 - gap)), fill=(*color, 255))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def _colors(table: ExploreTable) -> list[Color]:
    splits = table.rows["split"]
    columns = [table.fractions(each.name) for each in table.classes]
    if splits.null_count < len(splits) or any(column is None for column in columns):
        return [split_color(name) for name in splits.to_pylist()]
    shares = np.stack([column.to_numpy() for column in columns if column is not None], axis=1)
    # Background only where there is nothing else: nearly every tile is mostly that.
    shares[:, 0] = np.where(shares[:, 1:].max(axis=1, initial=0) > 0, 0, 1)
    return [table.classes[number].color for number in shares.argmax(axis=1)]


def plot_tile(
    key: str,
    image: NDArray[np.uint8],
    semantic_map: NDArray[np.uint8],
    gsd_m: float,
    classes: Sequence[SemanticClass],
) -> Plot:
    """Image, map and overlay side by side, over a legend of the classes that occur.

    Args:
        key: the title.
        image: RGB, uint8 [height, width, 3].
        semantic_map: class ids, uint8 [height, width].
        gsd_m: metres on the ground a pixel.
        classes: names and colours.

    Raises:
        UsageError: a class of the map is not among them.
    """
    ids, counts = np.unique(semantic_map, return_counts=True)
    by_id = {each.id: each for each in classes}
    if unknown := [int(each) for each in ids if int(each) not in by_id]:
        raise UsageError(
            f"{key} has the class {unknown[0]} on its map, whose name and colour are not given: expected "
            "a sample of a MagcDataset, which brings its classes"
        )
    palette = np.zeros((256, 3), np.uint8)
    for each in classes:
        palette[each.id] = each.color
    figure = _new_figure(10, 3.9)
    axes = figure.subplots(1, 3)
    pictures = panel(image, semantic_map, palette)
    for axis, picture, name in zip(axes, pictures, ("image", "map", "overlay"), strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(name, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_visible(False)
    figure.suptitle(f"{key}   {gsd_m:.3f} m/px, {gsd_m * image.shape[1]:.0f} m across", fontsize=11)
    from matplotlib.patches import Patch

    order = np.argsort(-counts)
    patches = [
        Patch(
            facecolor=_unit_rgb(by_id[int(ids[n])]),
            edgecolor="0.5",
            linewidth=0.5,
            label=f"{by_id[int(ids[n])].name} {counts[n] / semantic_map.size:.1%}",
        )
        for n in order
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 6), frameon=False, fontsize=9)
    return Plot(figure)


def _unit_rgb(each: SemanticClass) -> tuple[float, float, float]:
    red, green, blue = each.color
    return red / 255, green / 255, blue / 255


def plot_class_histograms(data: Path, keys: Collection[str]) -> Plot:
    """How much of each tile is of each class: a histogram a class that occurs, over tiles that have it.

    Raises:
        DatasetError: a damaged dataset.
    """
    table = read_table(data, keys)
    occurring = [
        (each, shares)
        for each in table.classes
        if (column := table.fractions(each.name)) is not None and (shares := column.to_numpy()).max() > 0
    ]
    columns = min(4, max(1, len(occurring)))
    lines = max(1, -(-len(occurring) // columns))
    figure = _new_figure(2.8 * columns, 2.1 * lines + 0.3)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis, (each, shares) in zip(axes, occurring, strict=False):
        present = shares[shares > 0]
        axis.hist(
            present * 100, bins=30, range=(0, 100), color=np.array(each.color) / 255, edgecolor="0.4", linewidth=0.4
        )
        axis.set_title(f"{each.name}: {len(present):,} of {len(shares):,} tiles", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.set_xlabel("% of the tile", fontsize=8)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    for axis in axes[len(occurring) :]:
        axis.set_axis_off()
    return Plot(figure)


def _new_figure(width_inches: float, height_inches: float) -> Figure:
    # Not pyplot's: notebooks show those at the end of the cell too, a second time.
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise MagcDataError("plots need matplotlib, not installed here: pip install 'magc[notebook]'") from None
    return Figure(figsize=(width_inches, height_inches), layout="constrained")
