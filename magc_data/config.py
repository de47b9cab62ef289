"""What each command can be told: one frozen dataclass a command; a field's docstring is its help text."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

DEFAULT_ZOOM = 17
DEFAULT_OUT = Path("magc-dataset")


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Where, from what, and into what to build."""

    bbox: tuple[float, float, float, float] | None = None
    """West, south, east, north in degrees; west greater than east crosses the antimeridian."""
    aoi: Path | None = None
    """Polygons in a file (GeoJSON, GeoPackage, ...): every tile that shares ground with them."""
    place: str | None = None
    """Name of a place, looked up in OpenStreetMap (Nominatim)."""
    points: Path | None = None
    """Points in a CSV with lon and lat columns, or in a vector file: the tile around each."""
    lock: Path | None = None
    """A magc.lock (`magc-data export --format recipe`): its tiles, from its sources. An --imagery, --osm, --scheme
    or --water-polygons other than the default takes the place of the recorded one."""
    zoom: int = DEFAULT_ZOOM
    """Web-mercator zoom level; `magc-data plan` prints the metres per pixel this means at your latitude."""
    gsd: float | None = None
    """Instead of --zoom: metres on the ground a pixel, the same everywhere (1.07 as in the paper); resampled once."""
    imagery_zoom: int | None = None
    """With --gsd, the zoom that imagery is read from [default: the first whose pixels are 1.4 times finer]."""
    imagery: str = "world-imagery"
    """Name of an imagery source, URL template with {z} {x} {y}, or path (raster, mosaic, MBTiles, PMTiles, folder);
    `none` makes a dataset of maps alone."""
    osm: str = "overpass"
    """Name of a vector source or path (.osm.pbf, .osm, GeoPackage, GeoJSON, FlatGeobuf, GeoParquet); with
    --match-osm-date several times, or a folder: extracts of several dates."""
    osm_date: str | None = None
    """Pin the OpenStreetMap database to this date (YYYY-MM-DD or a full ISO time), Overpass only."""
    water_polygons: str | None = None
    """Where the sea is: water polygons of osmdata (a zip or vector file; `auto` downloads them once), or `none` for no
    sea [default: the coastlines in --osm]."""
    match_osm_date: bool = False
    """Draw each map from OpenStreetMap as it was when its image was taken: Overpass is asked for the month of the
    capture, of several dated extracts the nearest is taken."""
    changes: bool = False
    """With --imagery wayback:2018..2024: pairs of images, of the tiles alone whose picture changed between the two
    releases; --out gets a dataset of each end and a table of the pairs."""
    scheme: str = "default"
    """Class table: default, basic, sgdm, or a YAML file (`magc-data scheme default` prints one to start from)."""
    out: Path | str = DEFAULT_OUT
    """Folder of the dataset, or an address in object storage (s3://BUCKET/PREFIX). Running the same command again
    continues there."""
    workers: int = 0
    """Processes that make the maps and shards; 0 is one a core. The result does not depend on it."""
    rate: float | None = None
    """Requests a second to an imagery host, at most (default 8); of all machines together, where several work."""
    engine: str = "local"
    """Where the work is done: local, or ray, a cluster (docs/scale.md). The result does not depend on it."""
    address: str = "auto"
    """Of the Ray cluster: auto, HOST:PORT, or local for one on this machine."""
    task: str | None = None
    """I/N makes only the blocks of task I of N, of an array job; the same command without --task ends the build."""

    @property
    def worker_count(self) -> int:
        """`workers` with 0 resolved."""
        return self.workers or usable_cores()


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How to divide a dataset."""

    block_m: float = 2000.0
    """Side of the squares of ground that go to one side as a whole, in metres."""
    ratios: str | None = None
    """Shares of train, val and test [default: 0.8,0.1,0.1]."""
    sizes: str | None = None
    """Numbers of tiles instead of shares, as in train=45000,test=4500; tiles over are left out."""
    seed: int = 0
    """Which of the many possible splits; keep it when the dataset grows."""
    stratify: bool = False
    """Try 1,000 seeds from --seed on; take the one whose sides are most alike in classes and nearest in size."""
    buffer_m: float = 0.0
    """Leave out train tiles nearer than this to ground of val or test, and val tiles nearer to test, in metres."""
    balance: str | None = None
    """empty=0.5 leaves tiles out until half of each side's maps are almost empty, as the paper's authors did."""
    shard_mb: int = 256
    """Size that a shard is filled up to, in megabytes."""
    out: Path | None = None
    """Write a new dataset there and leave DATA as it is (for a view the only way)."""
    undo: bool = False
    """Give DATA back its block shards, byte for byte."""


@dataclass(frozen=True, kw_only=True)
class HealConfig:
    """What to repair, and where its sources are today, if not where `dataset.json` says."""

    data: Path
    """Folder of a dataset."""
    imagery: str | None = None
    """Where the imagery is today: a name, URL template or path."""
    osm: str | None = None
    """Where the vectors are today: a name or path."""
    scheme: str | None = None
    """The class scheme's YAML file, if it was one's own."""
    water_polygons: str | None = None
    """Where the water polygons are today, if the dataset was built with some: a path, or `auto`."""
    rate: float | None = None
    """Requests a second to an imagery host, at most (default 8)."""
