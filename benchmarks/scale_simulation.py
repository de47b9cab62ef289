"""How long builds of countries take: the rate limiter itself and a model of the engine, on a clock that only jumps.

The limiter is magc's own (`magc_data.sources.pace.Service`), asked at simulated times; latencies of the service and
speeds of labelling are injected. As in the engine, a block's vectors come first, then its tiles through eight threads,
while blocks before it are labelled; at most one block more than there are workers is ahead. Only some blocks are
simulated, until the pace is steady, and the rest is arithmetic.

With --land FILE (Natural Earth's countries, any vector file with a column of names) tiles are counted by the area of
the outlines on the web-mercator plane, divided by that of a tile.

    python benchmarks/scale_simulation.py [--blocks 40] [--land FILE] [--zoom 17] [--json]
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
from typing import Any, NamedTuple

from magc_data.grid import BLOCK_TILES, HALF_CIRCUMFERENCE_M, MAX_LATITUDE
from magc_data.scale import LABEL_TILES_PER_S, scale_of
from magc_data.sources.http import IMAGERY_POLICY
from magc_data.sources.pace import Service

TILE_BYTES, MAP_BYTES = 13_000, 5_500
ANTARCTICA = "Antarctica"


class World(NamedTuple):
    """What is injected."""

    latency_s: float
    """Median of a tile's; log-normal, so that some take several times as long."""
    label_tiles_per_s: float
    """Of a core."""
    workers: int
    """Cores that label."""
    requests_per_s: float
    vector_s: float
    """To fetch a block's vectors (an Overpass query; 0 from a file)."""


class Simulated(NamedTuple):
    """What came of it."""

    tiles_per_s: float
    places_used: float
    """Mean number of requests in flight."""
    label_share: float
    """Of the time that a core labels."""


def fetch(service: Service, tiles: int, world: World, start_s: float, rng: random.Random) -> tuple[float, float]:
    """Fetch a block's tiles; returns when the last is there and the seconds that requests were in flight."""
    flying: list[float] = []
    now, in_flight_s = start_s, 0.0
    for number in range(tiles):
        request = str(number)
        while not service.enter(request, IMAGERY_POLICY.concurrency, now):
            now = max(now, heapq.heappop(flying))
            service.leave()
        while delay := service.due_in(world.requests_per_s, now):
            now += delay
        latency_s = world.latency_s * math.exp(rng.gauss(0.0, 0.5)) if world.latency_s else 0.0
        heapq.heappush(flying, now + latency_s)
        in_flight_s += latency_s
    last_s = max(flying, default=now)
    for _ in flying:
        service.leave()
    return max(now, last_s), in_flight_s


def simulate(world: World, blocks: int, seed: int = 0) -> Simulated:
    """Build so many full blocks, as `LocalEngine` does."""
    rng = random.Random(seed)
    service = Service("host")
    tiles = BLOCK_TILES**2
    label_s = tiles / world.label_tiles_per_s
    free_at = [0.0] * world.workers
    finished: list[float] = []
    now = in_flight_s = 0.0
    for _ in range(blocks):
        if len(finished) > world.workers:  # one more than there are workers is ahead
            now = max(now, heapq.heappop(finished))
        now, flew_s = fetch(service, tiles, world, now + world.vector_s, rng)
        in_flight_s += flew_s
        worker_s = heapq.heappop(free_at)
        done_s = max(now, worker_s) + label_s
        heapq.heappush(free_at, done_s)
        heapq.heappush(finished, done_s)
    end_s = max(now, *free_at)
    return Simulated(
        tiles_per_s=blocks * tiles / end_s,
        places_used=in_flight_s / end_s,
        label_share=blocks * label_s / end_s / world.workers,
    )


class Place(NamedTuple):
    """A part of the Earth."""

    name: str
    tiles: float
    blocks: float


def places_of(path: str, zoom: int) -> list[Place]:
    """Nepal, Germany and all land but Antarctica (which web-mercator tiles cut), from outlines of countries."""
    import geopandas
    import shapely

    frame = geopandas.read_file(path)
    name = next(column for column in frame.columns if column.lower() in ("name", "admin"))
    world = shapely.box(-180, -MAX_LATITUDE, 180, MAX_LATITUDE)
    tile_m2 = (2 * HALF_CIRCUMFERENCE_M / 2**zoom) ** 2

    def place(title: str, rows: Any) -> Place:
        outlines = shapely.make_valid(rows.geometry.clip(world).to_crs(3857).array)
        outline = shapely.union_all(outlines, grid_size=1.0)
        side_m = math.sqrt(tile_m2) * BLOCK_TILES
        # Of squares on a plane, an outline meets so many, in the mean over where the grid lies.
        blocks = outline.area / side_m**2 + outline.length * 2 / math.pi / side_m + 1
        return Place(title, outline.area / tile_m2, blocks)

    return [
        place("Nepal", frame[frame[name] == "Nepal"]),
        place("Germany", frame[frame[name] == "Germany"]),
        place("the land surface", frame[frame[name] != ANTARCTICA]),
    ]


def worlds() -> dict[str, World]:
    """Services near and far, slow and fast labelling."""
    usual = World(0.15, 225.0, 1, IMAGERY_POLICY.requests_per_s, 0.0)
    return {
        "the default: 0.15 s, one core": usual,
        "a far service: 1.5 s": usual._replace(latency_s=1.5),
        "with an Overpass query of 20 s a block": usual._replace(vector_s=20.0),
        "a crowded core: 20 tiles/s": usual._replace(label_tiles_per_s=20.0),
        "an own service: no limit, 0.02 s, one core": usual._replace(latency_s=0.02, requests_per_s=1e9),
        "an own service: no limit, 0.02 s, four cores": usual._replace(latency_s=0.02, requests_per_s=1e9, workers=4),
        "from the cache, one core": usual._replace(latency_s=0.0, requests_per_s=1e9),
        "from the cache, 64 cores": usual._replace(latency_s=0.0, requests_per_s=1e9, workers=64),
    }


def demands(place: Place) -> dict[str, Any]:
    """What `magc-data plan` says of a place whose tiles all exist."""
    scale = scale_of(
        tiles=round(place.tiles),
        blocks=round(place.blocks),
        blocks_asked=0,
        blank_share=0.0,
        tiles_to_fetch=round(place.tiles),
        tile_bytes=TILE_BYTES,
        image_bytes=TILE_BYTES,
        label_tiles_per_s=LABEL_TILES_PER_S,
        map_bytes=MAP_BYTES,
        requests_per_s=IMAGERY_POLICY.requests_per_s,
        workers=2,
        has_imagery=True,
        overpass_queries=round(place.blocks),
    )
    return {
        "tiles": round(place.tiles),
        "blocks": round(place.blocks),
        "fetch_gb": [round(each / 1e9, 1) for each in scale.fetch_bytes[1:]],
        "polite_days": round(scale.fetch_days.expected, 2),
        "label_core_days": [round(each, 3) for each in scale.label_core_days[1:]],
        "dataset_gb": [round(each / 1e9, 1) for each in scale.dataset_bytes[1:]],
        "memory_gb": round(scale.memory_bytes / 1e9, 2),
        "overpass_days": round(scale.vector_query_days or 0.0, 2),
    }


def main() -> None:
    """Simulate, then multiply."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=40)
    parser.add_argument("--land")
    parser.add_argument("--zoom", type=int, default=17)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    simulated = {name: simulate(world, max(arguments.blocks, 8 * world.workers)) for name, world in worlds().items()}
    places = places_of(arguments.land, arguments.zoom) if arguments.land else []
    result = {
        "simulated": {
            name: {key: round(value, 3) for key, value in each._asdict().items()} for name, each in simulated.items()
        },
        "places": {place.name: demands(place) for place in places},
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    for name, each in simulated.items():
        days = 1e6 / each.tiles_per_s / 86_400
        print(
            f"{name:<46} {each.tiles_per_s:>9.2f} tiles/s, {days:.3f} days a million; "
            f"{each.places_used:.1f} in flight, cores label {each.label_share:.0%} of the time"
        )
    for name, each in result["places"].items():
        print(name, each)


if __name__ == "__main__":
    main()
