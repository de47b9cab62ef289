"""The facts that every metadata file is filled from: what the manifest states and what the index adds up to.

Nothing here is asked of a network, a clock or a person, so the same dataset always has the same metadata.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from magc_data.grid import Tile
from magc_data.ground_grid import GroundGrid, GroundTile, grid_of, grid_text

if TYPE_CHECKING:
    from collections.abc import Iterable

FACT_COLUMNS = (
    "z",
    "x",
    "y",
    "split",
    "gsd_m",
    "image_format",
    "image_size",
    "map_size",
    "capture_date",
    "osm_timestamp",
)
"""What is read of the index, besides the class shares."""
_FRACTION = "fraction_"

LICENCE_URLS = {
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "ODbL-1.0": "https://opendatacommons.org/licenses/odbl/1-0/",
}
"""Pages of the licences that sources name by their SPDX id."""


class Span(NamedTuple):
    """First and last of some values, and how many samples state one; None and 0 where none does."""

    first: str | None
    last: str | None
    samples: int


class Facts(NamedTuple):
    """What is known of a dataset."""

    manifest: dict[str, Any]
    samples: int
    splits: dict[str, int]
    """Samples of each side; empty before a split."""
    left_out: int
    """Samples that belong to no side, where there are sides."""
    bounds_lonlat: tuple[float, float, float, float]
    """West, south, east, north of the kept tiles (of the area, where none was kept)."""
    gsd_m_mean: float | None
    class_shares: dict[str, float]
    """Mean share of the pixels, by class name."""
    image_formats: dict[str, int]
    image_bytes: int
    map_bytes: int
    captured: Span
    osm: Span

    @property
    def identity(self) -> str:
        """Eight hexadecimal digits that stand for the build's configuration."""
        config = json.dumps(self.manifest["config"], sort_keys=True)
        return hashlib.sha256(config.encode()).hexdigest()[:8]

    @property
    def name(self) -> str:
        """A name for catalogues: letters, digits and hyphens."""
        grid = grid_of(self.manifest)
        resolution = f"gsd-{grid.gsd_mm}-mm" if isinstance(grid, GroundGrid) else f"zoom-{grid}"
        return f"magc-{resolution}-{self.identity}"

    @property
    def title(self) -> str:
        """A title for people."""
        what = "images and maps" if "imagery" in self.manifest["sources"] else "maps"
        return f"Aligned {what} of {self.samples} places at {grid_text(self.manifest)} ({self.place})"

    @property
    def place(self) -> str:
        """Where, as it was asked for where that was in words, else in degrees."""
        asked = self.manifest["config"].get("area", {})
        if isinstance(asked, dict) and isinstance(asked.get("place"), str):
            return str(asked["place"])
        return "{:.5f}, {:.5f} to {:.5f}, {:.5f}".format(*self.bounds_lonlat)

    @property
    def redistributable(self) -> bool:
        """Whether every source lets its content be passed on."""
        return all(source["redistributable"] for source in self.manifest["sources"].values())

    @property
    def description(self) -> str:
        """A paragraph for catalogues."""
        sources = self.manifest["sources"]
        maps = (
            f"class maps ({len(self.manifest['classes'])} classes, scheme '{self.manifest['scheme']}') drawn from "
            f"{sources['vectors']['name']} ({sources['vectors']['attribution']})"
        )
        if "imagery" not in sources:
            return f"{self.samples} tiles of 256 x 256 pixels: {maps}."
        imagery = sources["imagery"]
        return (
            f"{self.samples} pairs of 256 x 256 pixels on one pixel grid: aerial images of {imagery['name']} "
            f"({imagery['attribution']}) and {maps}."
        )

    @property
    def grid_words(self) -> str:
        """The grid that the samples are cut from."""
        if "zoom" in self.manifest:
            return f"web-mercator zoom {self.manifest['zoom']}"
        return f"a grid of {self.manifest['gsd']:g} metres of ground a pixel"

    @property
    def crs(self) -> str:
        """Of the samples' pixel grid."""
        return str(self.manifest.get("crs", "EPSG:3857"))

    @property
    def sampling(self) -> str:
        """How the samples were chosen."""
        counts = self.manifest["counts"]
        rejected = sum(counts["rejected"].values())
        return (
            f"Every tile of {self.grid_words} that shares ground with the asked area: "
            f"{counts['planned']} tiles, of which {rejected} were rejected; "
            "each of those is listed with its reason in rejected.parquet."
        )


def facts_of(manifest: dict[str, Any], tables: Iterable[pa.Table]) -> Facts:
    """Add up an index that comes a table at a time.

    Args:
        manifest: of the dataset.
        tables: FACT_COLUMNS and the class shares of some rows each.
    """
    sums = _Sums(grid_of(manifest))
    for table in tables:
        sums.add(table)
    splits = {name: sums.splits[name] for name in sorted(sums.splits, key=_split_order) if name is not None}
    return Facts(
        manifest=manifest,
        samples=sums.samples,
        splits=splits,
        left_out=sums.splits.get(None, 0) if splits else 0,
        bounds_lonlat=sums.bounds_lonlat() or tuple(manifest["bounds_lonlat"]),
        gsd_m_mean=round(sums.gsd_m / sums.samples, 6) if sums.samples else None,
        class_shares={name: round(share / max(sums.samples, 1), 6) for name, share in sums.shares.items()},
        image_formats={name: sums.formats[name] for name in sorted(filter(None, sums.formats))},
        image_bytes=sums.image_bytes,
        map_bytes=sums.map_bytes,
        captured=sums.span("capture_date"),
        osm=sums.span("osm_timestamp"),
    )


_SPLIT_ORDER = ("train", "val", "test")


def _split_order(name: str | None) -> tuple[int, str]:
    return (_SPLIT_ORDER.index(name) if name in _SPLIT_ORDER else len(_SPLIT_ORDER), name or "")


class _Sums:
    """What is kept of the rows seen so far: a few numbers."""

    def __init__(self, grid: int | GroundGrid) -> None:
        self._grid = grid
        self.samples = self.image_bytes = self.map_bytes = 0
        self.gsd_m = 0.0
        self.splits: dict[str | None, int] = {}
        self.formats: dict[str | None, int] = {}
        self.shares: dict[str, float] = {}
        self._edges: dict[int, tuple[int, int]] = {}
        self._spans: dict[str, Span] = {}

    def add(self, table: pa.Table) -> None:
        """Take some rows in."""
        self.samples += len(table)
        self.image_bytes += pc.sum(table["image_size"], min_count=0).as_py() or 0
        self.map_bytes += pc.sum(table["map_size"], min_count=0).as_py() or 0
        self.gsd_m = math.fsum([self.gsd_m, *table["gsd_m"].to_numpy()])
        for column, counts in (("split", self.splits), ("image_format", self.formats)):
            for pair in pc.value_counts(table[column]).to_pylist():
                counts[pair["values"]] = counts.get(pair["values"], 0) + pair["counts"]
        for column in table.column_names:
            if column.startswith(_FRACTION):
                name = column.removeprefix(_FRACTION)
                # Shares are whole numbers of pixels over 65,536: their sum is exact in any order.
                share = float(np.sum(table[column].to_numpy(), dtype=np.float64))
                self.shares[name] = self.shares.get(name, 0.0) + share
        for column in ("capture_date", "osm_timestamp"):
            self._spans[column] = _joined(self._spans.get(column, Span(None, None, 0)), table[column])
        # First and last column of each row: columns of one number need not lie under one another.
        for row in table.group_by("y").aggregate([("x", "min"), ("x", "max")]).to_pylist():
            first, last = self._edges.get(row["y"], (row["x_min"], row["x_max"]))
            self._edges[row["y"]] = min(first, row["x_min"]), max(last, row["x_max"])

    def span(self, column: str) -> Span:
        """First and last value of a column of dates."""
        return self._spans.get(column, Span(None, None, 0))

    def bounds_lonlat(self) -> tuple[float, float, float, float] | None:
        """The box of all tiles; None without any."""
        grid = self._grid
        boxes = [
            (GroundTile(grid.gsd_mm, x, y) if isinstance(grid, GroundGrid) else Tile(grid, x, y)).bounds_lonlat
            for y, ends in self._edges.items()
            for x in ends
        ]
        if not boxes:
            return None
        west, south, east, north = zip(*boxes, strict=True)
        return min(west), min(south), max(east), max(north)


def _joined(span: Span, values: pa.ChunkedArray) -> Span:
    known = values.drop_null()
    if not len(known):
        return span
    bounds = pc.min_max(known).as_py()
    firsts = [bounds["min"], *([span.first] if span.first else [])]
    lasts = [bounds["max"], *([span.last] if span.last else [])]
    return Span(min(firsts), max(lasts), span.samples + len(known))
