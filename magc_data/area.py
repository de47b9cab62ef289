"""Where to build: a bounding box, polygons, a place or points become a stream of blocks of tiles."""

from __future__ import annotations

import csv
import hashlib
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import shapely

from magc_data import grid, ground_area
from magc_data.errors import UsageError
from magc_data.grid import BLOCK_TILES, MAX_LATITUDE, Block, BoundsLonLat, Tile
from magc_data.ground_grid import GroundGrid
from magc_data.sources.registry import NO_IMAGERY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from shapely.geometry.base import BaseGeometry

    from magc_data.config import BuildConfig
    from magc_data.ground_grid import AnyBlock, AnyTile

LONGITUDE_COLUMNS = ("lon", "lng", "long", "longitude", "x")
LATITUDE_COLUMNS = ("lat", "latitude", "y")


class Area(NamedTuple):
    """A part of the Earth to build; exactly one of the three is set."""

    description: dict[str, Any]
    """What the manifest says of it, and what identifies it when a build is resumed."""
    boxes: tuple[BoundsLonLat, ...] = ()
    polygons: BaseGeometry | None = None
    """(Multi)Polygon in lon/lat."""
    points_lonlat: tuple[tuple[float, float], ...] = ()


def area_from_bbox(bbox: tuple[float, float, float, float]) -> Area:
    """A box in degrees; one that crosses the antimeridian becomes two.

    Raises:
        UsageError: the box is empty, swapped, or not on the map.
    """
    west, south, east, north = bbox
    text = ",".join(f"{value:g}" for value in bbox)
    expected = "expected W,S,E,N in degrees with W and E from -180 to 180 and S below N"
    if not all(math.isfinite(value) for value in bbox):
        raise UsageError(f"bbox {text} holds a value that is no number: {expected}")
    if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south <= 90 and -90 <= north <= 90):
        raise UsageError(f"bbox {text} lies outside the world: {expected}")
    if south > north:
        raise UsageError(f"bbox {text} has its south ({south:g}) above its north ({north:g}): {expected}")
    if west == east or south == north:
        raise UsageError(f"bbox {text} is empty: {expected}")
    if south < -MAX_LATITUDE or north > MAX_LATITUDE:
        raise UsageError(
            f"bbox {text} reaches beyond {MAX_LATITUDE:.4f} degrees of latitude, where web-mercator tiles end: "
            "cut it there, or swap longitude and latitude if they are in the wrong order"
        )
    description = {"bbox": list(bbox)}
    if west < east:
        return Area(description, boxes=(BoundsLonLat(*bbox),))
    if west - east < 180:
        raise UsageError(
            f"bbox {text} has its west ({west:g}) east of its east ({east:g}): swap them "
            "(a box over the antimeridian must span less than 180 degrees)"
        )
    parts = [(west, 180.0), (-180.0, east)]
    return Area(description, boxes=tuple(BoundsLonLat(w, south, e, north) for w, e in parts if w < e))


def area_from_polygons(geometry: BaseGeometry, description: dict[str, Any]) -> Area:
    """Polygons in lon/lat; the description gets a digest of the geometry, so that a changed file is noticed."""
    origin = next(iter(description.values()))
    parts = _simple_parts([geometry])
    if others := sorted({part.geom_type for part in parts} - {"Polygon"}):
        raise UsageError(f"{origin} holds {', '.join(others)}: expected polygons alone (or use --points)")
    # A polygon that crosses itself is repaired; the lines and points that this can leave cover no ground.
    repaired = _simple_parts([shapely.make_valid(part) for part in parts])
    polygonal = shapely.union_all([part for part in repaired if part.geom_type == "Polygon"])
    if polygonal.is_empty:
        raise UsageError(f"{origin} holds no polygon with an area: give polygons, or use --points")
    west, south, east, north = polygonal.bounds
    if west < -180 or east > 180 or south < -MAX_LATITUDE or north > MAX_LATITUDE:
        raise UsageError(
            f"{origin} reaches {west:g},{south:g},{east:g},{north:g}, outside the web-mercator world: "
            f"keep to -180..180 and +-{MAX_LATITUDE:.4f} degrees (split polygons that cross the antimeridian)"
        )
    digest = hashlib.sha256(shapely.to_wkb(shapely.normalize(polygonal), byte_order=1)).hexdigest()
    return Area(description | {"geometry_sha256": digest}, polygons=polygonal)


def area_from_points(points_lonlat: list[tuple[float, float]], description: dict[str, Any]) -> Area:
    """Single places, each standing for the tile around it."""
    origin = next(iter(description.values()))
    if not points_lonlat:
        raise UsageError(f"{origin} holds no point: expected one a row with lon and lat in degrees")
    for number, (lon, lat) in enumerate(points_lonlat, 1):
        if not (-180 <= lon <= 180 and abs(lat) <= MAX_LATITUDE):
            raise UsageError(
                f"{origin}, point {number} is at {lon:g},{lat:g}: "
                f"expected lon,lat within 180 and {MAX_LATITUDE:.4f} degrees"
            )
    digest = hashlib.sha256(np.array(points_lonlat, dtype="<f8").tobytes()).hexdigest()
    return Area(description | {"geometry_sha256": digest}, points_lonlat=tuple(points_lonlat))


def area_from_tiles(tiles: list[AnyTile], description: dict[str, Any]) -> Area:
    """Exactly these tiles, each by the point at its centre."""
    return Area(description, points_lonlat=tuple(tile.centre_lonlat for tile in tiles))


def read_points(path: Path) -> list[tuple[float, float]]:
    """Longitude and latitude of every point in a CSV (columns lon and lat, in any spelling) or vector file."""
    if path.suffix.lower() not in {".csv", ".tsv", ".txt"}:
        geometry = _read_vector_file(path)
        if not all(each.geom_type == "Point" for each in geometry):
            raise UsageError(f"{path} holds other geometries than points: use --aoi for polygons")
        return [(float(lon), float(lat)) for lon, lat in shapely.get_coordinates(geometry)]
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            sample = stream.readline()
            stream.seek(0)
            rows = csv.DictReader(stream, delimiter="\t" if "\t" in sample else ";" if ";" in sample else ",")
            columns = {name.strip().lower(): name for name in rows.fieldnames or [] if name}
            lon_column = next((columns[name] for name in LONGITUDE_COLUMNS if name in columns), None)
            lat_column = next((columns[name] for name in LATITUDE_COLUMNS if name in columns), None)
            if lon_column is None or lat_column is None:
                raise UsageError(
                    f"{path} has the columns {', '.join(columns) or 'none'}: expected 'lon' and 'lat' among them"
                )
            points = []
            for row in rows:
                try:
                    points.append((float(row[lon_column]), float(row[lat_column])))
                except (TypeError, ValueError):
                    raise UsageError(
                        f"{path}, line {rows.line_num}: lon {row[lon_column]!r} and lat {row[lat_column]!r}, "
                        "expected numbers in degrees"
                    ) from None
            return points
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UsageError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip().splitlines()[0]
    return UsageError(f"{path} cannot be read ({reason}): check the path and that it is a file of the expected kind")


def _read_vector_file(path: Path) -> list[BaseGeometry]:
    import geopandas

    if not path.exists():
        raise UsageError(f"{path} does not exist: check the path")
    try:
        frame = geopandas.read_parquet(path) if path.suffix == ".parquet" else geopandas.read_file(path)
        lonlat = frame.geometry.to_crs(4326) if frame.crs is not None else None
    except Exception as error:  # noqa: BLE001 - GDAL, pyarrow and pyproj each raise their own kinds for a bad file
        raise _unreadable(path, error) from None
    if lonlat is None:
        raise UsageError(f"{path} states no coordinate system: expected one, such as EPSG:4326")
    return [each for each in lonlat if each is not None and not each.is_empty]


def area_of(config: BuildConfig, default_extent: BaseGeometry | None) -> Area:
    """The area that a configuration asks for; without any, the extent of its local imagery (vectors: maps alone).

    Raises:
        UsageError: none or several were given, or the one given is not valid.
    """
    given = [name for name in ("bbox", "aoi", "place", "points") if getattr(config, name) is not None]
    if len(given) > 1:
        raise UsageError(
            f"--{given[0]} and --{given[1]} were both given: expected one of --bbox, --aoi, --place, --points"
        )
    if config.bbox is not None:
        return area_from_bbox(config.bbox)
    if config.aoi is not None:
        return area_from_polygons(shapely.GeometryCollection(_read_vector_file(config.aoi)), {"aoi": config.aoi.name})
    if config.place is not None:
        from magc_data.sources.place import place_polygon

        return area_from_polygons(place_polygon(config.place), {"place": config.place})
    if config.points is not None:
        return area_from_points(read_points(config.points), {"points": config.points.name})
    if default_extent is not None:
        return area_from_polygons(default_extent, {"extent_of": _bounding_source(config)})
    raise UsageError(
        f"no area was given and {_bounding_source(config)} covers the world: "
        "add --bbox W,S,E,N, --aoi, --place or --points"
    )


def _bounding_source(config: BuildConfig) -> str:
    """The source whose extent is built where no area is given."""
    return config.osm if config.imagery == NO_IMAGERY else config.imagery


def _simple_parts(geometries: list[BaseGeometry]) -> list[BaseGeometry]:
    """Single polygons, lines and points of geometries, however deep collections are nested; empty ones are left out."""
    parts = np.array(geometries, dtype=object)
    while any(part.geom_type.startswith(("Multi", "GeometryCollection")) for part in parts):
        parts = shapely.get_parts(parts)
    return [part for part in parts if not part.is_empty]


def blocks(area: Area, zoom: int | GroundGrid) -> Iterator[AnyBlock]:
    """The area's tiles, block by block (row by row), each tile once; holds one row of blocks at a time.

    Args:
        area: where.
        zoom: of web-mercator tiles, or the grid of a constant ground resolution; so in the functions below.

    Raises:
        UsageError: the zoom is out of range, or the area beyond the grid's latitudes.
    """
    if isinstance(zoom, GroundGrid):
        yield from ground_area.blocks(area, zoom)
        return
    if not grid.MIN_ZOOM <= zoom <= grid.MAX_ZOOM:
        raise UsageError(f"zoom {zoom} is out of range: expected {grid.MIN_ZOOM} to {grid.MAX_ZOOM}")
    if area.points_lonlat:
        yield from _blocks_of_points(area.points_lonlat, zoom)
    elif area.polygons is not None:
        yield from _blocks_of_polygons(area.polygons, zoom)
    else:
        for box in area.boxes:
            yield from grid.blocks_of_range(grid.tile_range(box, zoom), zoom)


def count_tiles(area: Area, zoom: int | GroundGrid) -> int:
    """How many tiles `blocks` will yield."""
    if isinstance(zoom, GroundGrid):
        return ground_area.count_tiles(area, zoom)
    if area.boxes:
        return sum(grid.tile_range(box, zoom).tile_count for box in area.boxes)
    return sum(len(block.tiles) for block in blocks(area, zoom))


def count_blocks(area: Area, zoom: int | GroundGrid) -> int:
    """How many blocks `blocks` will yield."""
    if isinstance(zoom, GroundGrid):
        return ground_area.count_blocks(area, zoom)
    if area.boxes:
        return sum(grid.block_count(grid.tile_range(box, zoom)) for box in area.boxes)
    return sum(1 for _ in blocks(area, zoom))


def spread_blocks(area: Area, zoom: int | GroundGrid, count: int) -> Sequence[AnyBlock]:
    """Up to `count` blocks from all over the area, evenly spaced in its order."""
    if isinstance(zoom, GroundGrid):
        return ground_area.spread_blocks(area, zoom, count)
    total = count_blocks(area, zoom)
    wanted = [number * total // min(count, total) for number in range(min(count, total))]
    if not area.boxes:
        chosen = set(wanted)
        return [block for number, block in enumerate(blocks(area, zoom)) if number in chosen]
    found = []
    for tiles in (grid.tile_range(box, zoom) for box in area.boxes):
        found += [
            grid.block_of_range(tiles, zoom, number) for number in wanted if 0 <= number < grid.block_count(tiles)
        ]
        wanted = [number - grid.block_count(tiles) for number in wanted]
    return found


def _blocks_of_points(points_lonlat: tuple[tuple[float, float], ...], zoom: int) -> Iterator[Block]:
    lon, lat = np.array(points_lonlat).T
    x_px, y_px = grid.lonlat_to_px(lon, lat, zoom)
    xy = np.clip(np.column_stack([x_px, y_px]) // grid.TILE_SIZE_PX, 0, 2**zoom - 1).astype(np.int64)
    by_block: dict[tuple[int, int], list[Tile]] = {}
    for y, x in sorted({(int(y), int(x)) for x, y in xy}):
        by_block.setdefault((y // BLOCK_TILES, x // BLOCK_TILES), []).append(Tile(zoom, x, y))
    for (row, column), tiles in sorted(by_block.items()):
        yield Block(zoom, column, row, tuple(tiles))


def _blocks_of_polygons(polygons: BaseGeometry, zoom: int) -> Iterator[Block]:
    whole = grid.tile_range(BoundsLonLat(*polygons.bounds), zoom)
    shapely.prepare(polygons)
    columns = np.arange(whole.x_min // BLOCK_TILES, whole.x_max // BLOCK_TILES + 1)
    for row in range(whole.y_min // BLOCK_TILES, whole.y_max // BLOCK_TILES + 1):
        for column in columns[_share_ground(polygons, columns, np.full_like(columns, row), zoom, BLOCK_TILES)]:
            y, x = np.divmod(np.arange(BLOCK_TILES**2), BLOCK_TILES)
            x, y = x + column * BLOCK_TILES, y + row * BLOCK_TILES
            wanted = _share_ground(polygons, x, y, zoom, 1)
            tiles = tuple(Tile(zoom, int(x), int(y)) for x, y in zip(x[wanted], y[wanted], strict=True))
            if tiles:
                yield Block(zoom, int(column), row, tiles)


def _share_ground(polygons: BaseGeometry, x: np.ndarray, y: np.ndarray, zoom: int, tiles_per_side: int) -> np.ndarray:
    """Which squares of tiles overlap the polygons in more than an edge; x and y count such squares."""
    side_px = float(tiles_per_side * grid.TILE_SIZE_PX)
    west, north = grid.px_to_lonlat(x * side_px, y * side_px, zoom)
    east, south = grid.px_to_lonlat((x + 1) * side_px, (y + 1) * side_px, zoom)
    squares = shapely.box(west, south, east, north)
    overlap: np.ndarray = shapely.intersects(polygons, squares) & ~shapely.touches(polygons, squares)
    return overlap


def area_extent(area: Area) -> BaseGeometry:
    """The area as one lon/lat geometry, for messages and maps."""
    if area.points_lonlat:
        return shapely.MultiPoint(area.points_lonlat)
    return (
        area.polygons if area.polygons is not None else shapely.MultiPolygon([shapely.box(*box) for box in area.boxes])
    )
