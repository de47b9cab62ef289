"""Imagery on a grid of constant ground resolution: read at the right zoom with a margin, resampled once.

    tile service, tile file, sample:   web-mercator tiles around a sample -> one picture -> 256 x 256 pixels -> PNG
    raster:                            source pixels in the file's own CRS ----------^

* Zoom: the first whose pixels are sqrt(2) times finer than the wished resolution or better, at the band's edge nearest
  to the equator; or the one that is asked for. Pixels coarser than wished are refused beyond MAX_ENLARGEMENT.
* Kernel: averages over the footprint where it holds sqrt(2) source pixels a side or more; Lanczos, widened to the
  target's pixels, below that (there an average would take one pixel here and two there).

A sample is a pure function of its place and of the source's tiles, never of what is read beside it.
"""

from __future__ import annotations

import contextlib
import io
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import rasterio
import rasterio.errors
import rasterio.warp
import shapely
from PIL import Image
from rasterio.enums import Resampling

from magc_data.errors import UsageError
from magc_data.grid import BLOCK_TILES, MAX_ZOOM, MIN_ZOOM, Block, MercatorPixels, Tile, lonlat_to_px
from magc_data.ground_grid import Band, metres_per_degree
from magc_data.schema.sample import TILE_SIZE_PX, Rejection, TileImage
from magc_data.sources.http import remove_secrets
from magc_data.sources.protocols import BlockAvailability, PairedImagery, SourceContext
from magc_data.sources.raster import (
    AVERAGE,
    Kernel,
    RasterFile,
    image_of_pixels,
    mosaic_tile,
    open_raster,
    resample,
    rounded,
)
from magc_data.sources.registry import NO_IMAGERY, is_raster, open_imagery
from magc_data.sources.tile_service import TileService

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

    from magc_data.ground_grid import GroundBlock, GroundGrid, GroundTile
    from magc_data.sources.http import HttpClient
    from magc_data.sources.protocols import ImagerySource, SourceInfo

REDUCTION_TO_AVERAGE = math.sqrt(2)
MAX_ENLARGEMENT = 1.05
"""Imagery may be coarser than the wished resolution by this: a raster of 1.07 m in a projection that is a bit off."""
LANCZOS_REACH_PX = 3
TILES_KEPT = 256
"""Decoded tiles that a worker remembers (200 kB each), as neighbouring samples share them."""


class Resampled(NamedTuple):
    """How the imagery came onto the grid, for the manifest."""

    asked_zoom: int | None
    """`--imagery-zoom`."""
    zooms: tuple[int, ...]
    """Of the web-mercator tiles that were read; none for rasters."""
    kernels: tuple[str, ...]
    reduction_min: float
    reduction_max: float
    """Source pixels over target pixels along a side; below 1 the imagery was enlarged."""

    def as_json(self) -> dict[str, Any]:
        """As the manifest has it, and as it is when it was read back."""
        return {name: list(each) if isinstance(each, tuple) else each for name, each in self._asdict().items()}


def kernel_of(reduction: float) -> Kernel:
    """The kernel for source pixels so many times finer than the target's."""
    if reduction >= REDUCTION_TO_AVERAGE:
        return AVERAGE
    widened = max(reduction, 1.0)
    return Kernel(Resampling.lanczos, 1 / widened, math.ceil(LANCZOS_REACH_PX * widened))


def tile_pixel_m(lat: float, zoom: int) -> float:
    """Metres on the ellipsoid that a web-mercator pixel is wide."""
    return metres_per_degree(lat)[0] * 360 / (TILE_SIZE_PX << zoom)


def right_zoom(lat: float, gsd_m: float) -> int:
    """The first zoom that is finer than a resolution by REDUCTION_TO_AVERAGE or more at a latitude."""
    zoom = math.ceil(math.log2(tile_pixel_m(lat, 0) * REDUCTION_TO_AVERAGE / gsd_m) - 1e-9)
    return min(max(zoom, MIN_ZOOM), MAX_ZOOM)


def _nearest_to_equator(band: Band) -> float:
    return 0.0 if band.south <= 0 <= band.north else min(abs(band.south), abs(band.north))


def zoom_of_band(band: Band, asked: int | None) -> int:
    """The zoom that a band's imagery is read from."""
    return right_zoom(_nearest_to_equator(band), band.gsd_m) if asked is None else asked


class _Decoded(NamedTuple):
    pixels: NDArray[np.uint8]
    capture_date: str | None


@dataclass
class GroundTiles:
    """Web-mercator imagery, resampled. Pickles as its sources do."""

    info: SourceInfo
    grid: GroundGrid
    asked_zoom: int | None
    sources: dict[int, ImagerySource]
    """By zoom."""
    _decoded: dict[Tile, _Decoded | Rejection] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_decoded": {}}

    def extent(self) -> BaseGeometry | None:
        """What the source covers."""
        return next(iter(self.sources.values())).extent()

    def availability(self, block: GroundBlock, http: HttpClient) -> BlockAvailability | None:
        """Of the web-mercator tiles that the block needs."""
        zoom, wanted = self._wanted(block)
        found = [self.sources[zoom].availability(each, http) for each in wanted]
        if any(each is None for each in found):
            return None
        return BlockAvailability(*(sum(counts) for counts in zip(*filter(None, found), strict=True)))

    def tiles_needed(self, block: GroundBlock) -> int:
        """How many web-mercator tiles the block needs."""
        return sum(len(each.tiles) for each in self._wanted(block)[1])

    def fetch(self, block: GroundBlock, http: HttpClient, on_tile: Callable[[], None]) -> None:
        """Bring the web-mercator tiles of a block, margin included, onto this machine.

        Raises:
            FetchError: the service does not answer at all.
        """
        zoom, wanted = self._wanted(block)
        for each in wanted:
            self.sources[zoom].fetch(each, http, lambda: None)
        for _ in block.tiles:
            on_tile()

    def read(self, tile: GroundTile) -> TileImage | Rejection:
        """Resample one sample; what is wrong with any of its web-mercator tiles is wrong with it."""
        band = tile.band
        zoom = zoom_of_band(band, self.asked_zoom)
        kernel = kernel_of(self.grid.gsd_m / tile_pixel_m((band.north + band.south) / 2, zoom))
        needed = pixels_around(tile, zoom, kernel)
        mosaic = self._mosaic(self.sources[zoom], zoom, needed)
        if isinstance(mosaic, Rejection):
            return mosaic
        pixels, capture_date = mosaic
        mercator, size = MercatorPixels(zoom), TILE_SIZE_PX
        resampled = resample(
            np.moveaxis(pixels, -1, 0),
            kernel,
            rasterio.Affine(*mercator.transform_at(needed.left, needed.top)),
            mercator.crs,
            band.crs,
            rasterio.Affine(*band.transform_at(tile.x * size, tile.y * size)),
            (size, size),
        )
        image = image_of_pixels(np.moveaxis(rounded(resampled), 0, -1))
        return image if isinstance(image, Rejection) else image._replace(capture_date=capture_date)

    def _mosaic(self, source: ImagerySource, zoom: int, needed: PixelsNeeded) -> _Decoded | Rejection:
        """The pixels that a sample is made of, uint8 [height, width, 3]; their date where all have the same."""
        left, top, right, bottom = needed
        pixels = np.empty((bottom - top, right - left, 3), np.uint8)
        dates = set()
        for y in needed.rows:
            for x in needed.columns:
                # Beyond the antimeridian the world goes on.
                found = self._tile(source, Tile(zoom, x % 2**zoom, y))
                if isinstance(found, Rejection):
                    return found
                there, down = x * TILE_SIZE_PX, y * TILE_SIZE_PX
                dates.add(found.capture_date)
                part = found.pixels[max(top - down, 0) : bottom - down, max(left - there, 0) : right - there]
                row, column = max(down - top, 0), max(there - left, 0)
                pixels[row : row + part.shape[0], column : column + part.shape[1]] = part
        return _Decoded(pixels, dates.pop() if len(dates) == 1 else None)

    def _tile(self, source: ImagerySource, tile: Tile) -> _Decoded | Rejection:
        if tile not in self._decoded:
            if len(self._decoded) >= TILES_KEPT:
                del self._decoded[next(iter(self._decoded))]
            image = source.read(tile)
            if isinstance(image, Rejection):
                rejection = image._replace(detail=f"tile {tile.key}: {image.detail}")
                if image.transient:
                    return rejection  # another block's fetch may bring it
                self._decoded[tile] = rejection
            else:
                pixels = np.asarray(Image.open(io.BytesIO(image.data)).convert("RGB"))
                self._decoded[tile] = _Decoded(pixels, image.capture_date)
        return self._decoded[tile]

    def _wanted(self, block: GroundBlock) -> tuple[int, list[Block]]:
        """The zoom, and the block's web-mercator tiles in blocks of theirs."""
        zoom = zoom_of_band(block.pixels, self.asked_zoom)
        kernel = kernel_of(self.grid.gsd_m / tile_pixel_m((block.pixels.north + block.pixels.south) / 2, zoom))
        places: set[tuple[int, int]] = set()
        for tile in block.tiles:
            needed = pixels_around(tile, zoom, kernel)
            places.update((y, x % 2**zoom) for y in needed.rows for x in needed.columns)
        blocks: dict[tuple[int, int], list[Tile]] = {}
        for y, x in sorted(places):
            blocks.setdefault((y // BLOCK_TILES, x // BLOCK_TILES), []).append(Tile(zoom, x, y))
        return zoom, [Block(zoom, column, row, tuple(tiles)) for (row, column), tiles in sorted(blocks.items())]


class PixelsNeeded(NamedTuple):
    """A rectangle of web-mercator pixels, which may go on beyond the antimeridian; right and bottom excluded."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def columns(self) -> range:
        """Of the tiles that hold it."""
        return range(self.left // TILE_SIZE_PX, (self.right - 1) // TILE_SIZE_PX + 1)

    @property
    def rows(self) -> range:
        """Of the tiles that hold it."""
        return range(self.top // TILE_SIZE_PX, (self.bottom - 1) // TILE_SIZE_PX + 1)


def pixels_around(tile: GroundTile, zoom: int, kernel: Kernel) -> PixelsNeeded:
    """What a sample is made of: its footprint and what the kernel needs around it."""
    west, south, east, north = tile.bounds_lonlat
    (left, right), (top, bottom) = lonlat_to_px(np.array([west, east]), np.array([north, south]), zoom)
    # A pixel more than the kernel needs: what lies on an edge may fall to either side.
    reach = kernel.reach_px + 1
    height = TILE_SIZE_PX << zoom
    return PixelsNeeded(
        math.floor(left) - reach,
        max(math.floor(top) - reach, 0),
        math.ceil(right) + reach,
        min(math.ceil(bottom) + reach, height),
    )


@dataclass
class GroundRaster:
    """Rasters as one mosaic, resampled from their own pixels."""

    info: SourceInfo
    files: tuple[RasterFile, ...]
    covered: BaseGeometry | None

    def extent(self) -> BaseGeometry | None:
        """The union of the files' outlines, missing pixels included."""
        return self.covered

    def availability(self, block: GroundBlock, http: HttpClient) -> BlockAvailability | None:  # noqa: ARG002 - the protocol's
        """Samples whose box meets a file's."""
        available = sum(any(True for _ in self._files_at(tile)) for tile in block.tiles)
        return BlockAvailability(available, len(block.tiles) - available, available)

    def tiles_needed(self, block: GroundBlock) -> int:
        """One a sample: each is resampled from the files."""
        return len(block.tiles)

    def fetch(self, block: GroundBlock, http: HttpClient, on_tile: Callable[[], None]) -> None:
        """Nothing to do: the files are here."""

    def read(self, tile: GroundTile) -> TileImage | Rejection:
        """Resample one sample.

        Raises:
            SourceError: a file is damaged or gone.
        """
        return mosaic_tile(self._files_at(tile), tile.band, tile, self.info.name)

    def _files_at(self, tile: GroundTile) -> Iterator[RasterFile]:
        west, south, east, north = tile.bounds_lonlat
        # Between the points of its outline a raster may reach a little further.
        margin = east - west
        for file in self.files:
            left, bottom, right, top = file.footprint.bounds
            if left - margin < east and west < right + margin and bottom - margin < north and south < top + margin:
                yield file


def open_ground_imagery(
    spec: str,
    context: SourceContext,
    grid: GroundGrid,
    asked_zoom: int | None,
    latitudes: tuple[float, float] | None,
    labelled: BaseGeometry | None = None,
) -> tuple[GroundTiles | GroundRaster | None, Resampled | None]:
    """Open imagery for a grid, and say how it will come onto it.

    Args:
        spec: as `registry.open_imagery` takes it.
        context: its zoom is not looked at.
        grid: of the samples.
        asked_zoom: of the imagery, for sources that have zooms.
        latitudes: from south to north, of the area; None where that is what imagery and vectors have in common.
        labelled: what the vectors cover in lon/lat, where it is known and no area was asked for.

    Raises:
        UsageError: there is no such source, its pixels are too coarse, or more must be said of the area.
        SourceError: it cannot be read.
    """
    if spec == NO_IMAGERY:
        return None, None
    if is_raster(spec):
        if asked_zoom is not None:
            raise UsageError(f"--imagery-zoom is {asked_zoom}, but {spec} is a raster, which has none: leave it out")
        return _open_raster(spec, context, grid)
    if latitudes is None and labelled is None and asked_zoom is None:
        raise UsageError(
            "which zoom of the imagery is right for --gsd depends on the latitude: give an area (--bbox, --aoi, "
            "--place or --points), or --imagery-zoom"
        )
    sources: dict[int, ImagerySource] = {}
    if latitudes is None:
        sources = _open_somewhere(spec, context, grid, asked_zoom, labelled)
        place = _in_common([each.extent() for each in sources.values()], labelled)
        # Without an extent there is no area either, and the build says so.
        latitudes = (0.0, 0.0) if place is None else _latitudes(place)
    bands = list(_bands(latitudes, grid))
    zooms = sorted({zoom_of_band(band, asked_zoom) for band in bands})
    reductions = [
        grid.gsd_m / tile_pixel_m((band.north + band.south) / 2, zoom_of_band(band, asked_zoom)) for band in bands
    ]
    _refuse_enlarged(reductions, f"{remove_secrets(spec)} at zoom {zooms[0]}", grid)
    opened = {zoom: sources.get(zoom) or _open_at(spec, context, zoom, asked_zoom) for zoom in zooms}
    info = opened[zooms[0]].info
    return GroundTiles(info, grid, asked_zoom, opened), _resampled(asked_zoom, zooms, reductions)


def _open_somewhere(
    spec: str, context: SourceContext, grid: GroundGrid, asked_zoom: int | None, labelled: BaseGeometry | None
) -> dict[int, ImagerySource]:
    """The imagery at the zooms that the labelled ground may need, if it has these: where it is, they tell alone."""
    if asked_zoom is not None:
        return {asked_zoom: _open_at(spec, context, asked_zoom, asked_zoom)}
    bands = [] if labelled is None else _bands(_latitudes(labelled), grid)
    opened = {}
    for zoom in sorted({zoom_of_band(band, None) for band in bands}):
        # One that turns out to be needed is opened again, and says what it lacks.
        with contextlib.suppress(UsageError):
            opened[zoom] = _open_at(spec, context, zoom, None)
    return opened


def _in_common(extents: list[BaseGeometry | None], labelled: BaseGeometry | None) -> BaseGeometry | None:
    """Where imagery of any of some extents is labelled; all that is labelled where the imagery does not say."""
    known = [shapely.make_valid(each) for each in extents if each is not None]
    if not known or len(known) < len(extents):
        return labelled
    covered = shapely.union_all(known)
    common = covered if labelled is None else shapely.intersection(covered, shapely.make_valid(labelled))
    # That they have nothing in common the build says, when both are open.
    return labelled if common.is_empty else common


def _latitudes(place: BaseGeometry) -> tuple[float, float]:
    return place.bounds[1], place.bounds[3]


def _bands(latitudes: tuple[float, float], grid: GroundGrid) -> Iterator[Band]:
    south, north = latitudes
    row, last = grid.row_of(north), grid.row_of(south)
    while row <= last:
        band = grid.band(row)
        yield band
        row = band.first_row + band.rows


def _resampled(asked_zoom: int | None, zooms: Iterable[int], reductions: list[float]) -> Resampled:
    kernels = sorted({kernel_of(each).resampling.name for each in reductions})
    least, most = (round(each(reductions, default=0.0), 4) for each in (min, max))
    return Resampled(asked_zoom, tuple(zooms), tuple(kernels), least, most)


def _refuse_enlarged(reductions: Iterable[float], what: str, grid: GroundGrid) -> None:
    coarsest = min(reductions, default=1.0)
    if coarsest * MAX_ENLARGEMENT < 1:
        raise UsageError(
            f"{what} has {grid.gsd_m / coarsest:.3g} m/px, coarser than --gsd {grid.gsd_m:g}: detail cannot be made, "
            "so give a larger --gsd, or finer imagery (with --imagery-zoom, where it has several)"
        )


def _open_at(spec: str, context: SourceContext, zoom: int, asked_zoom: int | None) -> ImagerySource:
    try:
        source = open_imagery(spec, context._replace(zoom=zoom))
    except UsageError as error:
        hint = "" if asked_zoom is not None else f" (--gsd reads zoom {zoom} here: --imagery-zoom takes another)"
        raise UsageError(f"{error}{hint}") from None
    if source is None:
        raise UsageError(f"--imagery {spec} holds no images")
    if isinstance(source, PairedImagery):
        raise UsageError(f"--imagery {spec} is one half of pairs, which are made of whole tiles: use --zoom")
    if isinstance(source, TileService):
        # A sample is made of several tiles, of several days as a rule: it has no date, and none is asked for.
        source.captures = None
    return source


def _open_raster(spec: str, context: SourceContext, grid: GroundGrid) -> tuple[GroundRaster, Resampled]:
    # The zoom only says how the files would be resampled onto it, and is not used.
    mosaic = open_raster(spec, context._replace(zoom=MIN_ZOOM))
    reductions = [grid.gsd_m / raster_pixel_m(file.path) for file in mosaic.files]
    for file, reduction in zip(mosaic.files, reductions, strict=True):
        _refuse_enlarged([reduction], file.path, grid)
    files = tuple(
        file._replace(kernel=kernel_of(reduction)) for file, reduction in zip(mosaic.files, reductions, strict=True)
    )
    return GroundRaster(mosaic.info, files, mosaic.extent()), _resampled(None, (), reductions)


def raster_pixel_m(path: str) -> float:
    """Metres on the ground of the side of a square of the area of a raster's central pixel."""
    with rasterio.open(path) as dataset:
        column, row = dataset.width / 2, dataset.height / 2
        a, b, c, d, e, f = dataset.transform[:6]
        corners = [(column, row), (column + 1, row), (column, row + 1)]
        x, y = zip(*((a * i + b * j + c, d * i + e * j + f) for i, j in corners), strict=True)
        lon, lat = rasterio.warp.transform(dataset.crs, "EPSG:4326", list(x), list(y))
    east_m, north_m = metres_per_degree(lat[0])
    (dx1, dy1), (dx2, dy2) = (((lon[n] - lon[0]) * east_m, (lat[n] - lat[0]) * north_m) for n in (1, 2))
    return math.sqrt(abs(dx1 * dy2 - dx2 * dy1))
