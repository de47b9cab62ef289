"""Imagery from any raster that GDAL reads, or from several as one mosaic: resampled once onto the web-mercator grid.

    file (any CRS) -> window of source pixels -> which of them are missing -> warp -> 256 x 256 tile -> PNG

A tile is a pure function of the files and its own place, never of what is read beside it: places are right to 0.00001
source pixels, the kernel does not depend on the window, and nothing is read through overviews.

* Resampling: averaging over the footprint where the source is finer than the target (interpolating there would skip
  source pixels and alias), cubic convolution where it is coarser (bilinear would blur what little detail there is).
* A pixel is missing when its centre lies outside the raster, or when any source pixel that it would be made from is
  missing by the file's own nodata value, alpha band (alpha 0) or mask. A nodata value counts where all colours have it.
* A file that declares none of these may still have a black collar. Solid black of at least 16 x 16 source pixels,
  and the 12 pixels around it, count as missing (JPEG smears a collar's edge over its 16 x 16 blocks). Real shadows
  are far smaller; declare a nodata value or a mask to switch the rule off.
* Mosaic: in each pixel the first file that has it wins. Folders and patterns are sorted by name; a comma-separated
  list keeps its order.
"""

from __future__ import annotations

import glob
import math
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyproj
import rasterio
import rasterio.errors
import rasterio.warp
import shapely
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.io import MemoryFile
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from magc_data.errors import SourceError, UsageError
from magc_data.grid import HALF_CIRCUMFERENCE_M, MAX_LATITUDE, MercatorPixels, edge_points
from magc_data.image_check import SINGLE_COLOUR_RANGE
from magc_data.schema.sample import TILE_SIZE_PX, ImageFormat, Reason, Rejection, TileImage
from magc_data.sources.file_version import files_version
from magc_data.sources.open_once import open_once
from magc_data.sources.protocols import BlockAvailability, SourceInfo
from magc_data.sources.rgb_png import MEAN_TILE_BYTES, encode_rgb_png

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from rasterio import DatasetReader
    from shapely.geometry.base import BaseGeometry

    from magc_data.grid import Block, PixelGrid, Tile
    from magc_data.ground_grid import AnyTile
    from magc_data.sources.http import HttpClient
    from magc_data.sources.protocols import SourceContext

RASTER_SUFFIXES = frozenset({".tif", ".tiff", ".vrt", ".jp2", ".j2k", ".img"})
"""What counts as a raster inside a folder; a file that is named itself may have any suffix."""

COLLAR_SQUARE_PX = 16
COLLAR_RING_PX = 12
COLLAR_MARGIN_PX = 2

MAX_WINDOW_PX = 2**24
"""Source pixels held at once (48 MB of colours); a tile that covers more is warped in parts."""

ROUNDING_BIAS = 1e-3
"""Averages of four bytes end in exactly .5 quite often: they are rounded up whatever the last bits of a float say."""

TOLERANCE_PX = 1e-5
"""Error of places, in source pixels. Exact transformation (below 1e-7) takes four times as long and changes a byte in
20,000 by one."""

TARGET_CRS = "EPSG:3857"


class Kernel(NamedTuple):
    """How source pixels become target pixels."""

    resampling: Resampling
    scale: float
    """Target pixels over source pixels: below 1 the kernel is widened (averages do not look at it)."""
    reach_px: int
    """How far it reaches for source pixels beyond the target pixel's footprint."""


AVERAGE = Kernel(Resampling.average, 1, 0)
CUBIC = Kernel(Resampling.cubic, 1, 2)


class RasterFile(NamedTuple):
    """What is known of one file after it was opened once."""

    path: str
    bands: tuple[int, ...]
    """Red, green, blue; or the one grey band."""
    width: int
    height: int
    declares_missing: bool
    kernel: Kernel
    px_bounds: tuple[float, float, float, float]
    """Left, top, right, bottom on the global pixel grid of the zoom."""
    footprint: BaseGeometry
    """Polygon in lon/lat."""


@dataclass
class RasterSource:
    """Rasters as one mosaic of 256 x 256 tiles."""

    info: SourceInfo
    zoom: int
    files: tuple[RasterFile, ...]

    def extent(self) -> BaseGeometry | None:
        """The union of the files' outlines, missing pixels included."""
        world = shapely.box(-180, -MAX_LATITUDE, 180, MAX_LATITUDE)
        return shapely.union_all([file.footprint for file in self.files]).intersection(world)

    def availability(self, block: Block, http: HttpClient) -> BlockAvailability | None:  # noqa: ARG002 - the protocol's
        """Tiles whose box meets a file's."""
        available = sum(any(True for _ in self._files_at(tile)) for tile in block.tiles)
        return BlockAvailability(available, len(block.tiles) - available, available)

    def fetch(self, block: Block, http: HttpClient, on_tile: Callable[[], None]) -> None:
        """Nothing to do: the files are here."""

    def read(self, tile: Tile) -> TileImage | Rejection:
        """Resample one tile.

        Raises:
            SourceError: a file is damaged or gone.
        """
        return mosaic_tile(self._files_at(tile), MercatorPixels(self.zoom), tile, self.info.name)

    def _files_at(self, tile: Tile) -> Iterator[RasterFile]:
        left, top = tile.x * TILE_SIZE_PX, tile.y * TILE_SIZE_PX
        for file in self.files:
            west, north, east, south = file.px_bounds
            if west < left + TILE_SIZE_PX and left < east and north < top + TILE_SIZE_PX and top < south:
                yield file


def mosaic_tile(files: Iterable[RasterFile], grid: PixelGrid, tile: AnyTile, name: str) -> TileImage | Rejection:
    """Resample one tile of a pixel grid from the first files that have its pixels.

    Raises:
        SourceError: a file is damaged or gone.
    """
    size = TILE_SIZE_PX
    pixels = np.zeros((size, size, 3), np.uint8)
    present = np.zeros((size, size), np.bool_)
    touched = False
    for file in files:
        warped = warp(file, grid, tile.x * size, tile.y * size, size, size)
        touched |= bool(warped.inside.any())
        take = warped.present & ~present
        pixels[take] = warped.pixels[take]
        present |= take
        if present.all():
            break
    if not touched:
        return Rejection(Reason.OUTSIDE_IMAGERY, f"outside {name}")
    if missing := int(size * size - np.count_nonzero(present)):
        return Rejection(Reason.MISSING_PIXELS, f"{missing} of {size * size} pixels are nodata or outside the raster")
    return image_of_pixels(pixels)


def image_of_pixels(pixels: NDArray[np.uint8]) -> TileImage | Rejection:
    """A tile of resampled pixels, lossless, unless it is a single colour all over."""
    if (np.ptp(pixels, axis=(0, 1)) <= SINGLE_COLOUR_RANGE).all():
        return Rejection(Reason.BLANK, f"a single colour, about #{bytes(pixels[0, 0]).hex()}")
    return TileImage(encode_rgb_png(pixels), ImageFormat.PNG)


def open_raster(paths_spec: str, context: SourceContext) -> RasterSource:
    """Open a raster, or several as one mosaic: a path, a folder, a glob pattern, or a comma-separated list of these.

    Raises:
        UsageError: nothing there.
        SourceError: a file is unreadable, or not 8-bit colour with a known place.
    """
    paths = list(_expand(paths_spec))
    files, parts = [], []
    for path in paths:
        file, file_parts = _inspect(path, context.zoom)
        files.append(file)
        parts.extend(file_parts)
    name = paths[0].name if len(paths) == 1 else f"{paths[0].name} and {len(paths) - 1} more"
    info = SourceInfo(
        name=name,
        address=paths_spec,
        licence="not stated",
        attribution=f"local imagery: {name}",
        terms="Your own files: magc does not know their licence. Check it before you pass the pixels on.",
        redistributable=False,
        version=files_version(parts),
        mean_tile_bytes=MEAN_TILE_BYTES,
    )
    return RasterSource(info, context.zoom, tuple(files))


def _expand(paths_spec: str) -> Iterator[Path]:
    """The files that a specification names, each once, in mosaic order."""
    found: dict[Path, None] = {}
    for part in [paths_spec] if Path(paths_spec).exists() else paths_spec.split(","):
        text = part.strip()
        path = Path(text).expanduser()
        if path.is_dir():
            matches = sorted(
                each for each in path.iterdir() if each.suffix.lower() in RASTER_SUFFIXES and each.is_file()
            )
            if not matches:
                raise UsageError(
                    f"folder '{text}' holds no raster: expected files ending in {' '.join(sorted(RASTER_SUFFIXES))}"
                )
        elif path.exists():
            matches = [path]
        else:
            # Path.glob takes no absolute pattern.
            names = glob.glob(str(path), recursive=True)  # noqa: PTH207 - as said above
            matches = sorted(Path(name) for name in names if Path(name).is_file())
            if not matches:
                raise UsageError(f"no raster at '{text}': expected a file, a folder, or a pattern that matches some")
        found.update(dict.fromkeys(matches))
    yield from found


def _inspect(path: Path, zoom: int) -> tuple[RasterFile, list[Path]]:
    """Open a file once and check that tiles can be made of it; also the files it consists of (VRT parts, sidecars)."""
    try:
        with without_place_warning(), rasterio.open(path) as dataset:
            bands = colour_bands(dataset)
            _check_placed(dataset)
            # The last pixel is stored last: reading it finds most truncated files now, not after hours.
            dataset.read(bands[0], window=Window(dataset.width - 1, dataset.height - 1, 1, 1))
            column, row = dataset.width / 2, dataset.height / 2
            file = RasterFile(
                path=str(path),
                bands=bands,
                width=dataset.width,
                height=dataset.height,
                declares_missing=any(flags != [MaskFlags.all_valid] for flags in _mask_flags(dataset, bands)),
                kernel=AVERAGE if _pixel_size_m(dataset, column, row) < _target_pixel_m(zoom) * (1 + 1e-6) else CUBIC,
                px_bounds=_px_bounds(dataset, zoom),
                footprint=shapely.Polygon(list(zip(*_outline(dataset, "EPSG:4326"), strict=True))),
            )
            parts = [Path(each) for each in sorted(dataset.files) if Path(each).is_file()]
    except rasterio.errors.RasterioError as error:
        raise _unreadable(str(path), error) from None
    return file, parts or [path]


def without_place_warning() -> warnings.catch_warnings[None]:
    """A file without a place is refused in words of our own."""
    return warnings.catch_warnings(action="ignore", category=rasterio.errors.NotGeoreferencedWarning)


def _unreadable(path: str, error: Exception) -> SourceError:
    reason = str(error).splitlines()[0].replace(path, Path(path).name)
    return SourceError(
        f"{path} cannot be read as a raster ({reason}): it is damaged, incomplete, or no format of this GDAL"
    )


def colour_bands(dataset: DatasetReader) -> tuple[int, ...]:
    """The bands to read as red, green and blue, or as grey."""
    path, count, roles = dataset.name, dataset.count, list(dataset.colorinterp)
    if ColorInterp.palette in roles:
        raise SourceError(f"{path} holds palette indices, not colours: convert it with gdal_translate -expand rgb")
    rgb = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    if all(role in roles for role in rgb):
        bands = tuple(roles.index(role) + 1 for role in rgb)
    elif count == len(rgb):
        bands = (1, 2, 3)
    elif count == 1 or (count == 2 and roles[1] == ColorInterp.alpha):
        bands = (1,)
    elif count == 0:
        raise SourceError(f"{path} holds no bands of its own, only subdatasets: extract one with gdal_translate")
    else:
        raise SourceError(
            f"{path} has {count} bands and none is marked red, green or blue: pick them with "
            "gdal_translate -b R -b G -b B -colorinterp red,green,blue"
        )
    if unfit := {dataset.dtypes[band - 1] for band in bands} - {"uint8"}:
        raise SourceError(
            f"{path} holds {unfit.pop()} pixels, expected 8-bit colours: convert it with gdal_translate -scale -ot Byte"
        )
    return bands


def _check_placed(dataset: DatasetReader) -> None:
    """Refuse a file whose place on Earth is unknown, or known only to within a datum shift."""
    path = dataset.name
    if dataset.crs is None:
        raise SourceError(f"{path} has no coordinate system: set the right one with gdal_edit.py -a_srs EPSG:CODE")
    if dataset.transform.is_identity or dataset.transform.is_degenerate:
        raise SourceError(f"{path} has a coordinate system but no geotransform: georeference it (gdalwarp) first")
    try:
        pyproj.Transformer.from_crs(pyproj.CRS.from_wkt(dataset.crs.to_wkt()), TARGET_CRS, allow_ballpark=False)
    except pyproj.exceptions.ProjError:
        raise SourceError(
            f"{path} has a coordinate system whose datum has no known relation to WGS 84, so it could be off by "
            "hundreds of metres: set the right one with gdal_edit.py -a_srs EPSG:CODE"
        ) from None


def _mask_flags(dataset: DatasetReader, bands: Sequence[int]) -> list[list[MaskFlags]]:
    return [dataset.mask_flag_enums[band - 1] for band in bands]


def _target_pixel_m(zoom: int) -> float:
    return 2 * HALF_CIRCUMFERENCE_M / (TILE_SIZE_PX << zoom)


def _pixel_size_m(dataset: DatasetReader, column: float, row: float) -> float:
    """Side in web-mercator metres of a square of the area of the source pixel at a place."""
    corners = _apply(dataset.transform, column + np.array([0.0, 1.0, 0.0]), row + np.array([0.0, 0.0, 1.0]))
    (x0, x1, x2), (y0, y1, y2) = rasterio.warp.transform(dataset.crs, TARGET_CRS, *corners)
    return float(np.sqrt(abs((x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0))))


def _apply(
    transform: rasterio.Affine, x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What `transform * (x, y)` is; the operator changes with the versions of affine."""
    a, b, c, d, e, f = transform[:6]
    return a * x + b * y + c, d * x + e * y + f


def _outline(dataset: DatasetReader, crs: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The raster's edges in another CRS."""
    edges = _apply(dataset.transform, *edge_points(0, 0, dataset.width, dataset.height))
    projected = rasterio.warp.transform(dataset.crs, crs, *edges)
    if not np.isfinite(projected).all():
        raise SourceError(
            f"{dataset.name} lies outside the area that its coordinate system covers: check its georeferencing"
        )
    return np.asarray(projected[0]), np.asarray(projected[1])


def _px_bounds(dataset: DatasetReader, zoom: int) -> tuple[float, float, float, float]:
    x_m, y_m = _outline(dataset, TARGET_CRS)
    x_px = (x_m + HALF_CIRCUMFERENCE_M) / _target_pixel_m(zoom)
    y_px = (HALF_CIRCUMFERENCE_M - y_m) / _target_pixel_m(zoom)
    return float(x_px.min()), float(y_px.min()), float(x_px.max()), float(y_px.max())


@open_once(max_open=16)
def _dataset(path: str) -> DatasetReader:
    return rasterio.open(path)


class Warped(NamedTuple):
    """A rectangle of the global pixel grid as one file has it."""

    pixels: NDArray[np.uint8]
    """Shape [height, width, 3]; meaningless where not `present`."""
    inside: NDArray[np.bool_]
    """The pixel's centre lies inside the raster; shape [height, width]."""
    present: NDArray[np.bool_]
    """Inside, and made of no missing source pixel; shape [height, width]."""


def warp(
    file: RasterFile,
    grid: PixelGrid | int,
    left_px: int,
    top_px: int,
    width: int,
    height: int,
    max_window_px: int = MAX_WINDOW_PX,
) -> Warped:
    """Resample a rectangle of a pixel grid (a number is the zoom of a global one).

    At most `max_window_px` source pixels are held at once.

    Raises:
        SourceError: the file cannot be read.
    """
    try:
        to = MercatorPixels(grid) if isinstance(grid, int) else grid
        return _warp(file, to, left_px, top_px, width, height, max_window_px)
    except rasterio.errors.RasterioError as error:
        raise _unreadable(file.path, error) from None


def _warp(
    file: RasterFile, grid: PixelGrid, left_px: int, top_px: int, width: int, height: int, max_window_px: int
) -> Warped:
    dataset = _dataset(file.path)
    transform = rasterio.Affine(*grid.transform_at(left_px, top_px))
    x, y = rasterio.warp.transform(grid.crs, dataset.crs, *_apply(transform, *edge_points(0, 0, width, height)))
    columns, rows = _apply(~dataset.transform, np.asarray(x), np.asarray(y))
    reach = COLLAR_SQUARE_PX + COLLAR_RING_PX + max(COLLAR_MARGIN_PX, file.kernel.reach_px)
    if not np.isfinite([columns, rows]).all():
        # Part of the rectangle has no place in the source's CRS (low zooms only): any source pixel may be needed.
        columns, rows = np.array([0, file.width]), np.array([0, file.height])
    window = _Window.around(columns, rows, reach)
    part = window.clipped(file.width, file.height)
    if part.empty:
        return _nothing(width, height)
    if part.area > max_window_px and max(width, height) > 1:
        cut = partial(_warp, file, grid, max_window_px=max_window_px)
        if width >= height:
            half = width // 2
            halves = (cut(left_px, top_px, half, height), cut(left_px + half, top_px, width - half, height))
            return Warped(*(np.concatenate(pair, axis=1) for pair in zip(*halves, strict=True)))
        half = height // 2
        halves = (cut(left_px, top_px, width, half), cut(left_px, top_px + half, width, height - half))
        return Warped(*(np.concatenate(pair, axis=0) for pair in zip(*halves, strict=True)))

    read_window = Window(part.left, part.top, part.width, part.height)
    colours = dataset.read(file.bands, window=read_window)
    onto_grid = partial(
        resample,
        source_transform=dataset.window_transform(read_window),
        source_crs=dataset.crs,
        crs=grid.crs,
        transform=transform,
        shape=(height, width),
    )
    pixels = rounded(onto_grid(colours, file.kernel))

    inside = np.ones((height, width), np.bool_)
    if part != window:
        inside = onto_grid(np.ones((1, part.height, part.width), np.uint8), _NEAREST)[0] > 0
    missing = (
        ~(dataset.read_masks(file.bands, window=read_window) > 0).any(axis=0)
        if file.declares_missing
        else collar(~colours.any(axis=0), window, part)
    )
    present = inside
    if missing.any():
        if file.kernel.reach_px:
            missing = _grow(missing, file.kernel.reach_px)
        present = inside & (onto_grid(~missing[np.newaxis], _MIN)[0] > 0)
    rgb = np.broadcast_to(pixels.transpose(1, 2, 0), (height, width, 3))
    return Warped(rgb, inside, present)


_NEAREST = Kernel(Resampling.nearest, 1, 0)
_MIN = Kernel(Resampling.min, 1, 0)


def rounded(resampled: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Whole numbers, halves up."""
    whole: NDArray[np.float32] = np.floor(np.clip(resampled, 0, 255) + (0.5 + ROUNDING_BIAS)).clip(0, 255)
    return whole.astype(np.uint8)


def resample(
    bands: NDArray[np.uint8] | NDArray[np.bool_],
    kernel: Kernel,
    source_transform: rasterio.Affine,
    source_crs: rasterio.CRS | str,
    crs: str,
    transform: rasterio.Affine,
    shape: tuple[int, int],
) -> NDArray[np.float32]:
    """Resample bands of shape [bands, height, width] onto a grid; zero where there is no source pixel."""
    count, source_height, source_width = bands.shape
    # rasterio.warp.reproject always works with an eighth of a pixel of tolerance: only a WarpedVRT can be told.
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            dtype="uint8",
            count=count,
            height=source_height,
            width=source_width,
            crs=source_crs,
            transform=source_transform,
        ) as source:
            source.write(bands.astype(np.uint8, copy=False))
        with (
            memory.open() as source,
            WarpedVRT(
                source,
                crs=crs,
                transform=transform,
                height=shape[0],
                width=shape[1],
                dtype="float32",
                resampling=kernel.resampling,
                tolerance=TOLERANCE_PX,
                # Without these GDAL derives the kernel's size from the window's, and with it the pixels.
                XSCALE=kernel.scale,
                YSCALE=kernel.scale,
            ) as warped,
        ):
            return np.asarray(warped.read())


def _nothing(width: int, height: int) -> Warped:
    nowhere = np.zeros((height, width), np.bool_)
    return Warped(np.zeros((height, width, 3), np.uint8), nowhere, nowhere)


class _Window(NamedTuple):
    """Source pixels, left and top included, right and bottom not."""

    left: int
    top: int
    right: int
    bottom: int

    @staticmethod
    def around(columns: NDArray[np.float64], rows: NDArray[np.float64], margin: int) -> _Window:
        return _Window(
            math.floor(columns.min()) - margin,
            math.floor(rows.min()) - margin,
            math.ceil(columns.max()) + margin,
            math.ceil(rows.max()) + margin,
        )

    def clipped(self, width: int, height: int) -> _Window:
        return _Window(max(self.left, 0), max(self.top, 0), min(self.right, width), min(self.bottom, height))

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def empty(self) -> bool:
        return self.width <= 0 or self.height <= 0

    @property
    def area(self) -> int:
        return self.width * self.height


def collar(black: NDArray[np.bool_], window: _Window, part: _Window) -> NDArray[np.bool_]:
    """Which pixels of `part` belong to an undeclared black collar, or lie in the ring around one.

    `part` is what the raster has of `window`. Outside the raster counts as black when squares are sought, so that
    the thin wedges along the edges of a slightly turned scene are found too.
    """
    if not black.any():
        return black
    outside = np.ones((window.height, window.width), np.bool_)
    own = (
        slice(part.top - window.top, part.bottom - window.top),
        slice(part.left - window.left, part.right - window.left),
    )
    outside[own] = False
    # Beyond the window all is unknown, and near its edge nothing is asked: it was widened by the reach of this rule.
    solid = outside.copy()
    solid[own] = black
    solid = _slide(_slide(solid, COLLAR_SQUARE_PX, 0, np.logical_and), COLLAR_SQUARE_PX, 1, np.logical_and)
    solid = np.pad(solid, COLLAR_SQUARE_PX - 1)
    solid = _slide(_slide(solid, COLLAR_SQUARE_PX, 0, np.logical_or), COLLAR_SQUARE_PX, 1, np.logical_or)
    return _grow(solid & ~outside, COLLAR_RING_PX)[own]


def _grow(mask: NDArray[np.bool_], reach_px: int) -> NDArray[np.bool_]:
    """Widen a mask by a square of `reach_px` pixels in every direction."""
    padded = np.pad(mask, reach_px)
    return _slide(_slide(padded, 2 * reach_px + 1, 0, np.logical_or), 2 * reach_px + 1, 1, np.logical_or)


def _slide(mask: NDArray[np.bool_], length: int, axis: int, combine: np.ufunc) -> NDArray[np.bool_]:
    """Combine every `length` neighbours along an axis, which gets `length - 1` shorter; by doubling."""
    if mask.shape[axis] < length:
        return np.zeros([0 if each == axis else size for each, size in enumerate(mask.shape)], np.bool_)
    mask = np.moveaxis(mask, axis, 0)
    done = 1
    while done < length:
        step = min(done, length - done)
        mask = combine(mask[:-step], mask[step:])
        done += step
    return np.moveaxis(mask, 0, axis)
