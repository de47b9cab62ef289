"""What a plan comes to in days, disks and memory, each with how far it may be off.

Three things are not known beforehand: how many of the tiles are there (a sample of blocks tells), how large a tile is,
and how dense the map is. A span goes from all three being kind to all three being unkind.
"""

from __future__ import annotations

import math
from typing import NamedTuple

SECONDS_A_DAY = 86_400

TILE_BYTES_LOW, TILE_BYTES_HIGH = 0.75, 1.35
"""Of the expected size of an image: means of 10 to 17 kB have been seen at zoom 17 (docs/scale.md)."""
LABEL_TILES_PER_S = (150.0, 225.0, 400.0)
"""A core's: crowded by other programs, a dense city, and no map at all but the quality signals (docs/benchmarks.md)."""
LABEL_SAMPLES_PER_S = (10.0, 15.5, 28.0)
"""Of constant ground resolution, resampled of several tiles and stored without loss (docs/benchmarks.md); the spread is
taken from the tiles'."""
PROCESS_BYTES = 350_000_000
"""Peak of a process that labels (`benchmarks/memory.py`); it does not grow with the dataset, but for:"""
BYTES_AN_IMAGE = 24
"""Eight bytes of each image's digest, while they are sorted to find repeated images."""
OVERPASS_QUERIES_A_DAY = 10_000
CONFIDENCE = 1.96
"""Standard errors to each side: 95 of 100 samples of blocks lie within."""


_UNITS = (("days", 1), ("hours", 24), ("minutes", 1440), ("seconds", SECONDS_A_DAY))
"""Of time, and how many make a day."""


class Span(NamedTuple):
    """A figure that is not known exactly."""

    low: float
    expected: float
    high: float


class Scale(NamedTuple):
    """A build's demands."""

    available_share: Span
    """Of the tiles, how many the imagery has; of pairs, how many have changed as well."""
    fetch_bytes: Span
    fetch_days: Span
    """At the polite rate; the number of machines does not change it."""
    label_core_days: Span
    """Divided by the cores that label; at the same time as fetching."""
    shards: Span
    dataset_bytes: Span
    cache_bytes: Span
    """Of the images as they came, in the cache of those machines that fetched them."""
    memory_bytes: float
    """Of the process that fetches and those that label, together."""
    vector_query_days: float | None
    """At the public Overpass server's guideline, every state that is asked for; None where another source is asked."""


def available_share(blank_share: float | None, blocks_asked: int, blocks: int) -> Span:
    """Share of tiles that are there, from a sample of blocks.

    As if each block were either wholly there or wholly blank, which is the least that a sample can tell: coasts and
    edges of surveys come near to it.
    """
    if blank_share is None or not blocks_asked:
        return Span(0.0, 1.0, 1.0)
    share = 1.0 - blank_share
    if blocks_asked >= blocks:
        return Span(share, share, share)
    # Agresti and Coull's interval: with none of the sample blank, that none is blank is not certain yet.
    count = blocks_asked + CONFIDENCE**2
    middle = (share * blocks_asked + CONFIDENCE**2 / 2) / count
    left_out = math.sqrt((blocks - blocks_asked) / max(blocks - 1, 1))
    reach = CONFIDENCE * math.sqrt(middle * (1 - middle) / count) * left_out
    return Span(min(share, max(0.0, middle - reach)), share, max(share, min(1.0, middle + reach)))


def scale_of(
    *,
    tiles: int,
    blocks: int,
    blocks_asked: int,
    blank_share: float | None,
    tiles_to_fetch: int,
    tile_bytes: float,
    image_bytes: float,
    label_tiles_per_s: tuple[float, float, float],
    map_bytes: float,
    requests_per_s: float,
    workers: int,
    has_imagery: bool,
    overpass_queries: int | None,
    is_half_of_pairs: bool = False,
    datasets: int = 1,
) -> Scale:
    """The demands of a build.

    Nothing tells beforehand how many tiles changed. So spans of pairs begin where none did, and what is expected of
    them is the most, that all did: as with a service that cannot tell which tiles it has.

    Args:
        tiles: planned.
        blocks: that hold them.
        blocks_asked: whose availability is known.
        blank_share: of the tiles of those; None where the service cannot tell.
        tiles_to_fetch: expected to be there and not in the cache; of pairs, both pictures.
        tile_bytes: expected of a tile as it comes.
        image_bytes: expected of an image as it is stored.
        label_tiles_per_s: a core's; slow, usual, fast.
        map_bytes: expected of the rest of a sample.
        requests_per_s: the polite rate.
        workers: processes that label.
        has_imagery: False for maps alone.
        overpass_queries: to the public server; None where another source of vectors is asked.
        is_half_of_pairs: of each tile it is asked who owns its younger picture, and of each that changed, the older.
        datasets: that are built of the same tiles: two of pairs.
    """
    share = available_share(blank_share, blocks_asked, blocks) if has_imagery else Span(1.0, 1.0, 1.0)
    tile, image = _around(tile_bytes), _around(image_bytes)
    if not has_imagery:
        tile = image = Span(0.0, 0.0, 0.0)
    expected = max(share.expected, 1e-12)
    pictures = 2 if is_half_of_pairs else 1
    # A sample of constant ground resolution is made of several tiles.
    most = max(tiles * pictures, tiles_to_fetch / expected)
    fetched = Span(*(min(most, tiles_to_fetch * each / expected) for each in share))
    kept = Span(*(tiles * datasets * each for each in share))
    # Blank tiles are asked about, in one request a block, and not for.
    asked = Span(*(tiles * (1 + each) if is_half_of_pairs else float(blocks) for each in share))
    requests = Span(*map(sum, zip(fetched, asked, strict=True))) if has_imagery else fetched
    # Each dataset of pairs holds the digests of both halves, and is done before the other is begun.
    images = tiles * pictures * share.expected
    slow, usual, fast = label_tiles_per_s
    core_s = Span(kept.low / fast, kept.expected / usual, kept.high / slow)
    return Scale(
        available_share=share,
        fetch_bytes=_times(fetched, tile),
        fetch_days=Span(*(each / requests_per_s / SECONDS_A_DAY for each in requests)),
        label_core_days=Span(*(each / SECONDS_A_DAY for each in core_s)),
        shards=Span(*(math.ceil(blocks * each) * datasets for each in share)),
        dataset_bytes=_times(kept, Span(*(each + map_bytes for each in image))),
        cache_bytes=_times(fetched, tile),
        memory_bytes=(1 if workers == 1 else 1 + workers) * PROCESS_BYTES + BYTES_AN_IMAGE * images,
        vector_query_days=None if overpass_queries is None else overpass_queries / OVERPASS_QUERIES_A_DAY,
    )


def _around(size_bytes: float) -> Span:
    return Span(size_bytes * TILE_BYTES_LOW, size_bytes, size_bytes * TILE_BYTES_HIGH)


def _times(counts: Span, each: Span) -> Span:
    return Span(*(count * size for count, size in zip(counts, each, strict=True)))


def scale_lines(scale: Scale) -> list[str]:
    """As a person reads it: the expected figure, and from where to where it may be."""
    lines = []
    if scale.fetch_bytes.high:
        lines.append(f"fetching        {_time(scale.fetch_days, '')} at the polite rate, however many machines")
    lines += [
        f"labelling       {_time(scale.label_core_days, 'core-')}, beside the fetching",
        f"shards          {_span(scale.shards, '')}",
        f"disk            {_bytes(scale.dataset_bytes)}",
    ]
    if scale.fetch_bytes.high:
        lines.append(f"cache           {_bytes(scale.cache_bytes)}")
    lines.append(f"memory          about {size_text(scale.memory_bytes)}")
    if scale.vector_query_days is not None:
        lines.append(
            f"Overpass        {scale.vector_query_days:.2g} days at the public server's guideline; with an extract "
            "(--osm FILE) none"
        )
    return lines


def _time(days: Span, kind: str) -> str:
    """In the unit that fits the expected figure."""
    unit, a_day = next((unit, a_day) for unit, a_day in _UNITS if days.expected * a_day >= 1 or unit == "seconds")
    return _span(Span(*(each * a_day for each in days)), kind + unit)


def _span(span: Span, unit: str) -> str:
    low, expected, high = (f"{each:,.0f}" if each >= 100 else f"{each:.3g}" for each in span)
    return f"{expected} {unit} ({low} to {high})".replace("  ", " ")


def _bytes(span: Span) -> str:
    low, expected, high = map(size_text, span)
    return f"{expected} ({low} to {high})"


def size_text(size_bytes: float) -> str:
    """Bytes in the unit that fits."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "bytes" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"
