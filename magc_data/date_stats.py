"""When the images of a dataset were taken, and how far from that its maps are, as `stats` shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pyarrow.compute as pc

if TYPE_CHECKING:
    import pyarrow as pa

DAYS = "osm_days"

_GROUPS = (
    ("more than a year older", None, -366),
    ("32 days to a year older", -365, -32),
    ("up to 31 days older", -31, -1),
    ("up to 31 days later", 0, 31),
    ("32 days to a year later", 32, 365),
    ("1 to 2 years later", 366, 730),
    ("2 to 5 years later", 731, 1826),
    ("more than 5 years later", 1827, None),
)
"""Of the map beside its image: first and last day of each group."""


class DateFigures(NamedTuple):
    """Dates of a dataset whose imagery tells captures."""

    first: str | None
    last: str | None
    """Captures; None where none is known."""
    without: int
    """Samples without a capture date."""
    osm_days: tuple[int, int, int] | None
    """Days by which the map is later than the image: least, half of the samples at most, most."""
    osm_days_groups: dict[str, int]
    """Samples by distance."""


def date_figures(rows: pa.Table) -> DateFigures | None:
    """Figures of an index; None where it has no columns of captures."""
    if DAYS not in rows.column_names:
        return None
    captured = pc.min_max(rows["capture_date"]).as_py()
    days = rows[DAYS].drop_null()
    spread = None
    if len(days):
        quantiles = pc.quantile(days, [0.0, 0.5, 1.0], interpolation="lower").to_pylist()
        spread = (int(quantiles[0]), int(quantiles[1]), int(quantiles[2]))
    return DateFigures(captured["min"], captured["max"], rows["capture_date"].null_count, spread, {**_counted(days)})


def _counted(days: pa.ChunkedArray) -> dict[str, int]:
    counts = {}
    for name, first, last in _GROUPS:
        inside = days if first is None else days.filter(pc.greater_equal(days, first))
        counts[name] = len(inside if last is None else inside.filter(pc.less_equal(inside, last)))
    return {name: count for name, count in counts.items() if count}


def as_lines(figures: DateFigures | None, samples: int) -> list[str]:
    """The figures as a person reads them."""
    if figures is None:
        return []
    without = f", {figures.without} of {samples} without a date" if figures.without else ""
    span = "on no known date" if figures.first is None else f"{figures.first} to {figures.last}"
    lines = [f"captured   {span}{without}"]
    if figures.osm_days is not None:
        least, half, most = figures.osm_days
        lines.append(f"map later than image, days: least {least}, half {half}, most {most}")
        lines += [f"{name:<24} {count:>7}" for name, count in figures.osm_days_groups.items()]
    return lines
