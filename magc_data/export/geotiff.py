"""Cloud-optimised GeoTIFFs in the tiles' own CRS: one a tile, and mosaics of up to 32 x 32 tiles under one VRT.

The CRS is EPSG:3857, with constant ground resolution EPSG:4326.

    OUT/train/images/KEY.tif      RGB, lossless
    OUT/train/maps/KEY.tif        class ids with the class colours
    OUT/mosaics/images/BLOCK.tif  RGB and alpha: alpha is 0 where there is no tile
    OUT/mosaics/maps/BLOCK.tif    class ids; nodata where there is no tile
    OUT/mosaics/images.vrt, maps.vrt   all mosaics as one picture (of each band, with ground resolution)

A mosaic covers one block of the grid, so that neither memory nor a file grows with the area, however scattered it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.enums import ColorInterp
from rasterio.io import MemoryFile
from rasterio.transform import Affine
from rasterio.windows import Window

from magc_data import grid
from magc_data.errors import UsageError
from magc_data.export.geotiff_vrt import write_vrt
from magc_data.grid import TILE_SIZE_PX, Block, MercatorPixels, Tile
from magc_data.ground_grid import block_of_tiles, parse_key

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from magc_data.export.job import ExportJob
    from magc_data.grid import PixelGrid
    from magc_data.ground_grid import AnyBlock, AnyTile

_GDAL_CACHE_BYTES = 64 << 20
_RGBA = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
# One thread and one compressor: the same bytes on every machine with the same GDAL.
_COG: dict[str, Any] = {
    "driver": "COG",
    "compress": "DEFLATE",
    "blocksize": 512,
    "bigtiff": "IF_SAFER",
    "num_threads": 1,
}
_COG_IMAGE = _COG | {"predictor": "YES", "overview_resampling": "AVERAGE"}
# The commonest class of four: an average of ids is no class.
_COG_MAP = _COG | {"overview_resampling": "MODE"}
_TILED: dict[str, Any] = {
    "driver": "GTiff",
    "tiled": True,
    "blockxsize": TILE_SIZE_PX,
    "blockysize": TILE_SIZE_PX,
    "compress": "DEFLATE",
    "zlevel": 1,
    "bigtiff": "IF_SAFER",
    "sparse_ok": False,
}


class MapLook(NamedTuple):
    """What a map's file says of its values."""

    colours: dict[int, tuple[int, int, int, int]]
    names: dict[int, str]
    nodata: int


class TileWindow(NamedTuple):
    """A rectangle of tiles of one pixel grid: first column and row, columns, rows."""

    pixels: PixelGrid
    x: int
    y: int
    columns: int
    rows: int

    @property
    def transform(self) -> Affine:
        """From pixels to the grid's coordinates."""
        if isinstance(self.pixels, MercatorPixels):
            left, _, right, top = grid.tile_bounds_3857(Tile(self.pixels.zoom, self.x, self.y))
            pixel_m = (right - left) / TILE_SIZE_PX
            return Affine(pixel_m, 0.0, left, 0.0, -pixel_m, top)
        return Affine(*self.pixels.transform_at(self.x * TILE_SIZE_PX, self.y * TILE_SIZE_PX))


def write_geotiff(job: ExportJob) -> None:
    """Write tiles, then mosaics of what lies in each block.

    Raises:
        UsageError: the classes leave no number for "no tile here".
    """
    look = map_look(job.facts.manifest["classes"])
    tags = {"TIFFTAG_COPYRIGHT": "; ".join(each["attribution"] for each in job.facts.manifest["sources"].values())}
    map_tags = tags | {f"CLASS_{number}": name for number, name in look.names.items()}
    with rasterio.Env(GDAL_CACHEMAX=_GDAL_CACHE_BYTES, GDAL_PAM_ENABLED="NO"):
        for side in job.sides:
            for folder in ("images", "maps"):
                (job.folder / side.name / folder).mkdir(parents=True)
            for sample in job.samples(side):
                key = sample.row["key"]
                tile = parse_key(key)
                window = TileWindow(block_of_tiles([tile]).pixels, tile.x, tile.y, 1, 1)
                image = sample.image_pixels()
                if image is not None:
                    pixels = np.moveaxis(image, -1, 0)
                    _write_tile(job.folder / side.name / "images" / f"{key}.tif", pixels, window, None, tags)
                classes = sample.class_ids()[None]
                _write_tile(job.folder / side.name / "maps" / f"{key}.tif", classes, window, look, map_tags)
                job.sample_done()
        _write_mosaics(job, look, tags, map_tags)


def map_look(classes: list[dict[str, Any]]) -> MapLook:
    """Colours, names and the nodata value of a class table.

    Raises:
        UsageError: all 256 values are classes.
    """
    free = sorted(set(range(256)) - {each["id"] for each in classes})
    if not free:
        raise UsageError("the scheme has 256 classes, which leaves no value for 'no tile here': export it as folders")
    return MapLook(
        colours={each["id"]: (*each["color"], 255) for each in classes},
        names={each["id"]: each["name"] for each in classes},
        nodata=free[-1],
    )


def _profile(bands: int, window: TileWindow, look: MapLook | None) -> dict[str, Any]:
    return {
        "count": bands,
        "dtype": "uint8",
        "width": window.columns * TILE_SIZE_PX,
        "height": window.rows * TILE_SIZE_PX,
        "crs": window.pixels.crs,
        "transform": window.transform,
        "nodata": None if look is None else look.nodata,
        "photometric": "PALETTE" if look else "RGB",
        **({} if bands != len(_RGBA) else {"alpha": "YES"}),
    }


def _write_tile(
    path: Path, pixels: NDArray[np.uint8], window: TileWindow, look: MapLook | None, tags: dict[str, str]
) -> None:
    """One tile: pixels are [bands, height, width]."""
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", **_profile(len(pixels), window, look)) as target:
            target.write(pixels)
            if look is not None:
                target.write_colormap(1, look.colours)
            target.update_tags(**tags)
        with memory.open() as source:
            options = (_COG_MAP if look else _COG_IMAGE) | {"blocksize": TILE_SIZE_PX}
            rasterio.shutil.copy(source, path, **options)


def _write_mosaics(job: ExportJob, look: MapLook, tags: dict[str, str], map_tags: dict[str, str]) -> None:
    """One file a block, whichever side its tiles belong to."""
    blocks: dict[AnyBlock, list[tuple[int, int]]] = {}
    for side_number, side in enumerate(job.sides):
        for row_number, key in enumerate(side.rows["key"].to_pylist()):
            block = block_of_tiles([parse_key(key)])._replace(tiles=())
            blocks.setdefault(block, []).append((side_number, row_number))
    has_images = "imagery" in job.facts.manifest["sources"]
    windows: dict[str, dict[str, TileWindow]] = {}
    for block, numbers in sorted(blocks.items()):
        image_tags = tags if has_images else None
        # One file cannot hold pixels of several sizes: every band of constant ground resolution has a VRT of its own.
        number = "" if isinstance(block, Block) else f"-band-{block.pixels.first_row // block.pixels.rows}"
        windows.setdefault(number, {})[f"{block.name}.tif"] = _write_mosaic(
            job, block.name, numbers, look, image_tags, map_tags
        )
    for number, files in windows.items():
        if has_images:
            write_vrt(job.folder / "mosaics" / f"images{number}.vrt", "images", files, None)
        write_vrt(job.folder / "mosaics" / f"maps{number}.vrt", "maps", files, look)


def _write_mosaic(
    job: ExportJob,
    name: str,
    numbers: list[tuple[int, int]],
    look: MapLook,
    image_tags: dict[str, str] | None,
    map_tags: dict[str, str],
) -> TileWindow:
    """The mosaics of one block, a tile at a time; returns the rectangle that they cover."""
    rows = [job.sides[side_number].rows.slice(row_number, 1) for side_number, row_number in numbers]
    tiles = [parse_key(row["key"][0].as_py()) for row in rows]
    xs, ys = [tile.x for tile in tiles], [tile.y for tile in tiles]
    window = TileWindow(block_of_tiles(tiles).pixels, min(xs), min(ys), max(xs) - min(xs) + 1, max(ys) - min(ys) + 1)
    folders = {kind: job.folder / "mosaics" / kind for kind in ("images", "maps")}
    scratch = {kind: folder / f".{name}.part.tif" for kind, folder in folders.items()}
    folders["maps"].mkdir(parents=True, exist_ok=True)
    with rasterio.open(scratch["maps"], "w", **_TILED, **_profile(1, window, look)) as maps:
        maps.write_colormap(1, look.colours)
        maps.update_tags(**map_tags)
        for tile, row in zip(tiles, rows, strict=True):
            maps.write(job.sample(row).class_ids(), 1, window=_place(tile, window))
            job.sample_done()
    _finish(scratch["maps"], folders["maps"] / f"{name}.tif", _COG_MAP)
    if image_tags is not None:
        folders["images"].mkdir(parents=True, exist_ok=True)
        with rasterio.open(scratch["images"], "w", **_TILED, **_profile(len(_RGBA), window, None)) as images:
            images.colorinterp = _RGBA
            images.update_tags(**image_tags)
            for tile, row in zip(tiles, rows, strict=True):
                pixels = job.sample(row).image_pixels()
                if pixels is None:
                    continue
                opaque = np.full((*pixels.shape[:2], 1), 255, np.uint8)
                images.write(np.moveaxis(np.concatenate([pixels, opaque], axis=-1), -1, 0), window=_place(tile, window))
        _finish(scratch["images"], folders["images"] / f"{name}.tif", _COG_IMAGE)
    return window


def _place(tile: AnyTile, window: TileWindow) -> Window:
    return Window((tile.x - window.x) * TILE_SIZE_PX, (tile.y - window.y) * TILE_SIZE_PX, TILE_SIZE_PX, TILE_SIZE_PX)


def _finish(scratch: Path, path: Path, options: dict[str, Any]) -> None:
    """Make the cloud-optimised file, with overviews, of the one that was written window by window."""
    rasterio.shutil.copy(scratch, path, **options)
    scratch.unlink()
