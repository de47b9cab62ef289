"""A made-up dataset of any number of tiles, quick to write: the rows are all different, the pictures repeat."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import tiny_world

from magc_data import grid
from magc_data.grid import Tile
from magc_data.png import encode_palette_png
from magc_data.schema.classes import load_scheme
from magc_data.shards.index import FRACTION_PREFIX, QUALITY_COLUMNS, index_schema, write_table
from magc_data.shards.manifest import to_json
from magc_data.shards.tar import TarWriter

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

ZOOM, WEST_X, NORTH_Y = 17, 70000, 43000
DISTINCT = 64
SHARES = {"forest": 0.22, "farmland": 0.25, "water": 0.06, "residential": 0.14, "building": 0.08, "road_minor": 0.04}
"""Mean share of the classes that occur; the rest is background."""


def _field(rng: np.random.Generator, side: int, across: int) -> NDArray[np.float64]:
    """Smooth hills from 0 to 1, [side, side]."""
    knots = rng.random((across + 2, across + 2))
    at = np.linspace(0, across, side)
    low, part = np.floor(at).astype(int), at % 1
    part = part * part * (3 - 2 * part)
    rows = knots[low] * (1 - part)[:, None] + knots[low + 1] * part[:, None]
    return rows[:, low] * (1 - part) + rows[:, low + 1] * part


def write_big_dataset(data: Path, tiles: int, *, with_splits: bool = True, with_quality: bool = True) -> Path:
    """Write a finished dataset of `tiles` tiles with smooth class shares, blocks of splits and quality columns."""
    rng = np.random.default_rng(5)
    scheme = load_scheme("default")
    side = int(np.ceil(np.sqrt(tiles * 1.25)))
    keep = _field(rng, side, 6).ravel()
    chosen = np.sort(np.argsort(keep)[-tiles:])
    y, x = np.divmod(chosen, side)
    places = [Tile(ZOOM, WEST_X + int(column), NORTH_Y + int(row)) for column, row in zip(x, y, strict=True)]
    centres = np.array([grid.tile_centre_lonlat(tile) for tile in places])

    (data / "shards").mkdir(parents=True)
    palette = np.array(scheme.palette, dtype=np.uint8)
    spans = []
    with (data / "shards" / "all.tar").open("wb") as stream:
        tar = TarWriter(stream)
        for number, tile in enumerate(places[:DISTINCT]):
            image = tiny_world.picture(tile)
            semantic_map = np.full((256, 256), number % 16, np.uint8)
            semantic_map[64:192, 64 : 65 + 2 * number] = 9
            members = (("image.jpg", image), ("map.png", encode_palette_png(semantic_map, palette)), ("json", b"{}"))
            spans.append([tar.add(f"{tile.key}.{suffix}", content) for suffix, content in members])
        sha256 = tar.finish()

    shares = {name: np.clip(_field(rng, side, 9).ravel()[chosen] - 0.35, 0, None) ** 1.5 for name in SHARES}
    shares = {name: each * SHARES[name] / each.mean() for name, each in shares.items()}
    total = sum(shares.values())
    shares = {name: each / np.maximum(total, 1) for name, each in shares.items()}
    shares["background"] = 1 - sum(shares.values())
    which = np.arange(tiles) % len(spans)
    places_in_shard = np.array([[value for span in each for value in span] for each in spans])[which]
    block_side = max(3, side // 12)
    block = (x // block_side) * 7919 + (y // block_side) * 104729
    split = np.where(block % 10 < 8, "train", np.where(block % 10 == 8, "val", "test")).astype(object)
    split[(x % block_side == 0) & (block % 3 == 0)] = None
    zeros = np.zeros(tiles)
    columns = {
        "key": [tile.key for tile in places],
        "z": np.full(tiles, ZOOM),
        "x": [tile.x for tile in places],
        "y": [tile.y for tile in places],
        "lon": centres[:, 0],
        "lat": centres[:, 1],
        "split": split if with_splits else np.full(tiles, None),
        "shard": ["shards/all.tar"] * tiles,
        "gsd_m": [grid.tile_gsd_m(tile) for tile in places],
        **{
            f"{member}_{what}": places_in_shard[:, 2 * m + w]
            for m, member in enumerate(("image", "map", "json"))
            for w, what in enumerate(("offset", "size"))
        },
        "image_format": ["jpg"] * tiles,
        "image_sha256": ["0" * 64] * tiles,
        "map_sha256": ["0" * 64] * tiles,
        "capture_date": ["2023-06-01"] * tiles,
        "osm_timestamp": ["2024-05-01T00:00:00Z"] * tiles,
        **{FRACTION_PREFIX + each.name: shares.get(each.name, zeros) for each in scheme.classes},
    }
    schema = index_schema(scheme)
    if with_quality:
        alignment = np.clip(
            0.45 + 0.15 * rng.standard_normal(tiles) - (_field(rng, side, 5).ravel()[chosen] > 0.8) * 0.4, 0, 1
        )
        columns["alignment"] = [None if number % 97 == 0 else float(value) for number, value in enumerate(alignment)]
        columns["alignment_dx_px"] = np.round(rng.standard_normal(tiles) * 1.2)
        columns["blur"] = rng.gamma(2, 0.1, tiles)
        columns |= {name: np.full(tiles, None) for name in QUALITY_COLUMNS if name not in columns}
    else:
        schema = pa.schema([field for field in schema if field.name not in QUALITY_COLUMNS])
    table = pa.table({name: pa.array(columns[name], schema.field(name).type) for name in schema.names})
    write_table(data / "index.parquet", table.schema, [table])
    source = {"address": "nowhere", "licence": "CC0-1.0", "terms": "Made up.", "redistributable": True}
    manifest = {
        "format_version": 1,
        "magc_version": "0",
        "config": {"scheme": {"name": "default"}},
        "sources": {
            "imagery": source | {"name": "made-up", "attribution": "Nobody"},
            "vectors": source | {"name": "made-up", "attribution": "Nobody either"},
        },
        "scheme": "default",
        "classes": [{"id": each.id, "name": each.name, "color": list(each.color)} for each in scheme.classes],
        "counts": {"planned": side * side, "kept": tiles, "rejected": {}, "transient": 0},
        "bounds_lonlat": [*centres.min(axis=0).tolist(), *centres.max(axis=0).tolist()],
        "zoom": ZOOM,
        "gsd_m": {"min": float(min(columns["gsd_m"])), "max": float(max(columns["gsd_m"]))},
        "shards": [{"path": "shards/all.tar", "samples": tiles, "size": tar.size, "sha256": sha256}],
    }
    (data / "dataset.json").write_bytes(to_json(manifest))
    return data
