"""What is in a dataset: class shares, counts, ground resolution, reasons for rejection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow.compute as pc

from magc_data.date_stats import DateFigures, as_lines, date_figures
from magc_data.shards.index import FRACTION_PREFIX
from magc_data.shards.manifest import read_manifest
from magc_data.shards.reader import read_index

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa


class ClassShare(NamedTuple):
    """How much of a dataset is of one class."""

    name: str
    mean_share: float
    """Of all pixels."""
    tiles: int
    """In how many tiles the class occurs at all."""


class Statistics(NamedTuple):
    """Figures of a dataset."""

    planned: int
    kept: int
    rejected: dict[str, int]
    splits: dict[str, int]
    """Tiles of each side of a split; those on none under `none`; empty where the dataset is not split."""
    classes: tuple[ClassShare, ...]
    gsd_m_min: float | None
    gsd_m_mean: float | None
    gsd_m_max: float | None
    image_bytes_mean: float | None
    """None where there are no images."""
    map_bytes_mean: float | None
    ground_km2: float
    dates: DateFigures | None
    """None where the imagery tells no captures."""
    where: tuple[str, ...]
    """What a view asks for, the outermost first; empty for a dataset."""


def statistics(data: Path | str) -> Statistics:
    """Read the figures off the manifest and index; no shard is opened.

    Raises:
        DatasetError: not a finished dataset.
    """
    manifest = read_manifest(data)
    counts = manifest["counts"]
    rows = read_index(data)
    classes = tuple(
        ClassShare(
            name.removeprefix(FRACTION_PREFIX),
            float(pc.mean(rows[name]).as_py() or 0.0),
            int(pc.sum(pc.greater(rows[name], 0)).as_py() or 0),
        )
        for name in rows.column_names
        if name.startswith(FRACTION_PREFIX)
    )
    gsd_m = rows["gsd_m"]
    bounds = pc.min_max(gsd_m).as_py()
    return Statistics(
        planned=counts["planned"],
        kept=counts["kept"],
        rejected=counts["rejected"],
        splits=_splits(rows),
        classes=classes,
        gsd_m_min=bounds["min"],
        gsd_m_mean=pc.mean(gsd_m).as_py(),
        gsd_m_max=bounds["max"],
        image_bytes_mean=pc.mean(rows["image_size"]).as_py(),
        map_bytes_mean=pc.mean(rows["map_size"]).as_py(),
        ground_km2=float(pc.sum(pc.power(pc.multiply(gsd_m, 256.0), 2)).as_py() or 0.0) / 1e6,
        dates=date_figures(rows),
        where=tuple(manifest.get("view", {}).get("where", ())),
    )


def _splits(rows: pa.Table) -> dict[str, int]:
    if rows["split"].null_count == len(rows):
        return {}
    found = {each["values"] or "none": each["counts"] for each in pc.value_counts(rows["split"]).to_pylist()}
    return {name: found[name] for name in ("train", "val", "test", "none") if name in found}


def as_text(figures: Statistics) -> str:
    """The figures as a person reads them."""
    lines = [f"tiles      {figures.planned} planned, {figures.kept} kept"]
    lines += [f"of these   {where}" for where in figures.where]
    lines += [f"rejected   {count:>7}  {reason}" for reason, count in figures.rejected.items()]
    lines += [f"split      {count:>7}  {name}" for name, count in figures.splits.items()]
    if figures.gsd_m_mean is not None:
        has_images = figures.image_bytes_mean is not None
        images = f"{figures.image_bytes_mean:.0f} an image" if has_images else "no images"
        lines += [
            f"ground     {figures.ground_km2:.3f} km2",
            f"resolution {figures.gsd_m_min:.4f} to {figures.gsd_m_max:.4f} m/px (mean {figures.gsd_m_mean:.4f})",
            f"bytes      {images}, {figures.map_bytes_mean:.0f} a map (mean)",
            *as_lines(figures.dates, figures.kept),
            "class             share   tiles",
        ]
        bar = 40 / max(each.mean_share for each in figures.classes)
        lines += [
            f"{each.name:<16} {each.mean_share:6.2%} {each.tiles:>7}  {'#' * round(each.mean_share * bar)}"
            for each in figures.classes
            if each.tiles
        ]
        if absent := [each.name for each in figures.classes if not each.tiles]:
            lines.append(f"in no tile: {', '.join(absent)}")
    return "\n".join(lines)


def as_json(figures: Statistics) -> dict[str, Any]:
    """The figures as a machine reads them."""
    dates = {} if figures.dates is None else {"dates": figures.dates._asdict()}
    classes = [each._asdict() for each in figures.classes]
    return {name: value for name, value in figures._asdict().items() if name != "dates"} | dates | {"classes": classes}
