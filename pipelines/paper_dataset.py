"""The paper's dataset, 45,000 pairs to train on and 4,500 to test on, from places all over the Earth.

    python pipelines/paper_dataset.py --out paper --dry-run              # says the commands and how many tiles
    python pipelines/paper_dataset.py --out paper                        # World Imagery, as the paper; for yourself
    python pipelines/paper_dataset.py --out paper-open --variant open    # imagery that may be passed on

The paper names its sources (World Imagery, OpenStreetMap), sizes and 1.07 m/px, but no place. Here each place is a
square of neighbouring tiles of zoom 17, so that scenes can be made of them and the split can keep ground apart; 1.07
m/px is zoom 17 at 26.4 degrees of latitude, and every sample records its own. What the services allow is theirs to
say: `magc-data plan` prints it, and nothing here was fetched for you.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from magc_data.atomic import write_atomically
from magc_data.grid import BoundsLonLat, Tile, tile_bounds_lonlat, tile_range

ZOOM = 17
TRAIN_TILES, TEST_TILES = 45_000, 4_500
OVERSAMPLED = 1.5
"""Tiles asked for to each that is wanted: some have no imagery or no map, and the split leaves a ring out."""
BUFFER_M, BLOCK_M = 300, 2_000
MAGC_DATA = ("-c", "from magc_data.cli import main; main()")


class Place(NamedTuple):
    """The middle of a square of tiles."""

    name: str
    continent: str
    lon: float
    lat: float


WORLD = (
    Place("Phoenix", "North America", -112.070, 33.450),
    Place("Houston", "North America", -95.370, 29.760),
    Place("Chicago", "North America", -87.680, 41.880),
    Place("Toronto", "North America", -79.400, 43.690),
    Place("Monterrey", "North America", -100.310, 25.680),
    Place("Iowa, fields", "North America", -93.600, 42.060),
    Place("Baltimore, harbour", "North America", -76.590, 39.270),
    Place("Sao Paulo", "South America", -46.640, -23.560),
    Place("Buenos Aires", "South America", -58.450, -34.610),
    Place("Bogota", "South America", -74.090, 4.650),
    Place("Mendoza, vineyards", "South America", -68.780, -33.030),
    Place("Manaus, river and forest", "South America", -60.020, -3.100),
    Place("Berlin", "Europe", 13.400, 52.510),
    Place("Madrid", "Europe", -3.700, 40.420),
    Place("Rotterdam, harbour", "Europe", 4.420, 51.900),
    Place("Krakow", "Europe", 19.950, 50.060),
    Place("Po plain, fields", "Europe", 10.700, 45.100),
    Place("Athens", "Europe", 23.740, 37.980),
    Place("Tromso, mountains", "Europe", 18.950, 69.650),
    Place("Cairo", "Africa", 31.250, 30.060),
    Place("Nile delta, fields", "Africa", 31.000, 30.800),
    Place("Lagos", "Africa", 3.380, 6.520),
    Place("Nairobi", "Africa", 36.820, -1.290),
    Place("Johannesburg", "Africa", 28.050, -26.200),
    Place("Ouagadougou", "Africa", -1.530, 12.370),
    Place("Delhi", "Asia", 77.220, 28.640),
    Place("Kathmandu valley", "Asia", 85.350, 27.690),
    Place("Dhaka", "Asia", 90.400, 23.780),
    Place("Taipei", "Asia", 121.540, 25.040),
    Place("Osaka", "Asia", 135.500, 34.690),
    Place("Singapore, harbour", "Asia", 103.820, 1.280),
    Place("Riyadh, desert's edge", "Asia", 46.720, 24.690),
    Place("Mekong delta, fields", "Asia", 105.780, 10.030),
    Place("Melbourne", "Oceania", 144.960, -37.810),
    Place("Perth", "Oceania", 115.860, -31.950),
    Place("Christchurch, plains", "Oceania", 172.600, -43.530),
)
"""Cities, suburbs, fields, coasts, desert, forest and mountains on six continents."""

FRENCH = (
    Place("Lyon", "Europe", 4.840, 45.760),
    Place("Nantes", "Europe", -1.550, 47.220),
    Place("Marseille, harbour", "Europe", 5.370, 43.310),
    Place("Lille", "Europe", 3.060, 50.630),
    Place("Beauce, fields", "Europe", 1.750, 48.200),
    Place("Bordeaux, vineyards", "Europe", -0.620, 44.830),
    Place("Chambery, mountains", "Europe", 5.920, 45.570),
    Place("Brest, harbour", "Europe", -4.480, 48.390),
    Place("Toulouse", "Europe", 1.440, 43.600),
    Place("Strasbourg", "Europe", 7.750, 48.580),
    Place("Ajaccio", "Europe", 8.740, 41.930),
    Place("Pointe-a-Pitre", "North America", -61.530, 16.240),
    Place("Fort-de-France", "North America", -61.060, 14.620),
    Place("Cayenne", "South America", -52.320, 4.930),
    Place("Saint-Laurent-du-Maroni", "South America", -54.030, 5.490),
    Place("Saint-Denis", "Africa", 55.450, -20.890),
    Place("Saint-Pierre", "Africa", 55.480, -21.330),
    Place("Mamoudzou", "Africa", 45.220, -12.790),
)
"""Where the French survey flies: four continents under one open licence (Licence Ouverte 2.0)."""

IGN_ORTHOPHOTOS = (
    "https://data.geopf.fr/wmts?SERVICE=WMTS&REQUEST=GetTile&VERSION=1.0.0&STYLE=normal&TILEMATRIXSET=PM"
    "&LAYER=ORTHOIMAGERY.ORTHOPHOTOS&FORMAT=image/jpeg&TILEMATRIX={z}&TILEROW={y}&TILECOL={x}"
)


class Variant(NamedTuple):
    """Places, and where their imagery comes from."""

    places: tuple[Place, ...]
    imagery: str


VARIANTS = {"world-imagery": Variant(WORLD, "world-imagery"), "open": Variant(FRENCH, IGN_ORTHOPHOTOS)}


class Square(NamedTuple):
    """The tiles of a place."""

    place: Place
    side_tiles: int
    bounds_lonlat: BoundsLonLat


def squares(places: tuple[Place, ...], tiles: int) -> list[Square]:
    """A square of tiles around each place, as many in all as are wanted or a few more."""
    side = math.ceil(math.sqrt(tiles / len(places)))
    found = []
    for place in places:
        middle = tile_range(BoundsLonLat(place.lon, place.lat, place.lon, place.lat), ZOOM)
        x, y = middle.x_min - side // 2, middle.y_min - side // 2
        first, last = (tile_bounds_lonlat(Tile(ZOOM, x + step, y + step)) for step in (0, side - 1))
        found.append(Square(place, side, BoundsLonLat(first.west, last.south, last.east, first.north)))
    return found


def area_document(found: list[Square]) -> bytes:
    """The squares as GeoJSON, each a hair smaller than its tiles so that it touches no others."""
    features = []
    for square in found:
        west, south, east, north = square.bounds_lonlat
        hair = 1e-7
        west, south, east, north = west + hair, south + hair, east - hair, north - hair
        ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
        features.append(
            {
                "type": "Feature",
                "properties": {"name": square.place.name, "continent": square.place.continent},
                "geometry": {"type": "Polygon", "coordinates": [ring]},
            }
        )
    return json.dumps({"type": "FeatureCollection", "features": features}, indent=1).encode()


def commands(options: argparse.Namespace, imagery: str, area: Path) -> list[tuple[str, ...]]:
    """What `magc-data` is told, in order."""
    dataset = str(options.out / "dataset")
    where = ("--aoi", str(area), "--zoom", str(ZOOM), "--imagery", imagery, "--osm", options.osm)
    sizes = f"train={options.train_tiles},test={options.test_tiles}"
    ground = ("--block-m", str(BLOCK_M), "--buffer-m", str(BUFFER_M))
    return [
        ("plan", *where),
        ("build", *where, "--out", dataset),
        ("verify", dataset),
        ("split", dataset, "--sizes", sizes, *ground, "--stratify", "--seed", str(options.seed)),
        ("stats", dataset),
        ("export", dataset, "--format", "recipe", "--out", str(options.out / "recipe")),
    ]


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the area, the dataset and its recipe")
    parser.add_argument("--variant", choices=tuple(VARIANTS), default="world-imagery")
    parser.add_argument("--imagery", help="another source for the same places")
    parser.add_argument("--osm", default="overpass", help="a planet or continent extract spares Overpass weeks of work")
    parser.add_argument("--places", type=Path, help="CSV with name, continent, lon, lat instead of the built-in places")
    parser.add_argument("--train-tiles", type=int, default=TRAIN_TILES)
    parser.add_argument("--test-tiles", type=int, default=TEST_TILES)
    parser.add_argument("--oversampled", type=float, default=OVERSAMPLED, help="tiles asked for to each that is wanted")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    parser.add_argument("--dry-run", action="store_true", help="write the area, say the commands, fetch nothing")
    options = parser.parse_args()
    variant = VARIANTS[options.variant]
    places = variant.places if options.places is None else _read_places(options.places)
    found = squares(places, math.ceil(options.oversampled * (options.train_tiles + options.test_tiles)))
    area = options.out / "area.geojson"
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(area, area_document(found))
    tiles = sum(square.side_tiles**2 for square in found)
    continents = len({square.place.continent for square in found})
    print(f"{len(found)} places on {continents} continents, {tiles} tiles: {area}", flush=True)
    for arguments in commands(options, options.imagery or variant.imagery, area):
        print(shlex.join(("magc-data", *arguments)), flush=True)
        if not options.dry_run:
            done = subprocess.run([sys.executable, *MAGC_DATA, *arguments], check=False)
            if done.returncode:
                sys.exit(done.returncode)


def _read_places(path: Path) -> tuple[Place, ...]:
    with path.open(newline="", encoding="utf-8") as stream:
        rows = csv.DictReader(stream)
        return tuple(Place(row["name"], row["continent"], float(row["lon"]), float(row["lat"])) for row in rows)


if __name__ == "__main__":
    main()
