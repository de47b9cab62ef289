"""Scenes in raster files: any format of GDAL's is read by windows, a cloud-optimised GeoTIFF is written by windows."""

import math
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
import rasterio.errors
import rasterio.shutil
import rasterio.windows
from jaxtyping import UInt8
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags

from magc_data.atomic import TEMPORARY_SUFFIX, sync_folder
from magc_data.sources.raster import colour_bands, without_place_warning
from magc_model.errors import DataError
from magc_model.scene.compress import ClassMap, Pixels
from magc_model.scene.georeference import MAX_TEXT_BYTES, Affine, Georeference, Missing, fits
from magc_model.scene.grid import WINDOW_STEP_PX, Window, blocks
from magc_model.scene.read import Drawn

BLOCK_PX = 512
CACHE_BYTES = 64 << 20
"""GDAL's own cache: by default it grows to a twentieth of the machine's memory."""

_NOT_KEPT = ("TIFFTAG_XRESOLUTION", "TIFFTAG_YRESOLUTION", "TIFFTAG_RESOLUTIONUNIT", "TIFFTAG_SOFTWARE")
"""Tags of a file that say how it was printed or made, not what it shows."""

_NOT_WRITTEN = ("ns", "bidx")
"""Names that rasterio takes for something other than tags."""


class RasterPixels:
    """A raster of 8-bit colours as a `PixelSource`.

    Raises:
        DataError: it cannot be read, or is of another kind.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with _readable(path), _cache(), without_place_warning():
            self._dataset = rasterio.open(path)
            self._bands = colour_bands(self._dataset)
            self.width_px, self.height_px = self._dataset.width, self._dataset.height
            self.georeference = _georeference(self._dataset, self._bands)

    def close(self) -> None:
        """Close the file."""
        self._dataset.close()

    def read(self, window: Window) -> Pixels:
        """A window that lies inside."""
        part = rasterio.windows.Window(*window)
        with _readable(self._path), _cache():
            bands = self._dataset.read(self._bands, window=part)
            valid = None
            if self.georeference.missing is not Missing.NONE:
                valid = self._dataset.dataset_mask(window=part) != 0
        rgb = np.repeat(bands, 3, axis=0) if len(bands) == 1 else bands
        return Pixels(np.ascontiguousarray(rgb.transpose(1, 2, 0)), valid)


class RasterMap:
    """Class ids of a raster with one 8-bit band, on the scene's grid.

    Raises:
        DataError: it cannot be read, or does not lie on the grid.
    """

    def __init__(self, path: Path, width_px: int, height_px: int, georeference: Georeference) -> None:
        self._path = path
        with _readable(path), _cache(), without_place_warning():
            self._dataset = rasterio.open(path)
        if self._dataset.count != 1 or self._dataset.dtypes[0] != "uint8":
            raise DataError(f"{path} is no map: expected one 8-bit band whose pixels are class ids")
        if (self._dataset.width, self._dataset.height) != (width_px, height_px):
            raise DataError(
                f"the map has {self._dataset.width}x{self._dataset.height} pixels, the scene {width_px}x{height_px}: "
                "they must cover the same ground at the same size"
            )
        mine, scene = self._dataset.transform, georeference.transform
        if self._dataset.crs is not None and scene is not None and not _same_place(mine, scene):
            raise DataError(
                f"the map's geotransform {tuple(mine)[:6]} is not the scene's {tuple(scene)}: rasterise it on the "
                "scene's own grid, or let --osm do so"
            )

    def close(self) -> None:
        """Close the file."""
        self._dataset.close()

    def read(self, window: Window) -> ClassMap:
        """A window that lies inside."""
        with _readable(self._path), _cache():
            return np.asarray(self._dataset.read(1, window=rasterio.windows.Window(*window)))


class ArrayPixels(NamedTuple):
    """A picture in memory as a `PixelSource`."""

    rgb: UInt8[np.ndarray[Any, Any], "_height _width 3"]
    georeference: Georeference = Georeference()

    @property
    def width_px(self) -> int:
        """Columns."""
        return int(self.rgb.shape[1])

    @property
    def height_px(self) -> int:
        """Rows."""
        return int(self.rgb.shape[0])

    def read(self, window: Window) -> Pixels:
        """A window that lies inside."""
        return Pixels(self.rgb[window.slices], None)


class ArrayMap(NamedTuple):
    """A map in memory as a `MapSource`."""

    class_ids: ClassMap

    def read(self, window: Window) -> ClassMap:
        """A window that lies inside."""
        return np.ascontiguousarray(self.class_ids[window.slices])


def crs_of(place: Georeference) -> CRS | None:
    """The coordinate system of a georeference.

    Raises:
        DataError: this PROJ does not know it.
    """
    try:
        if place.epsg is not None:
            return CRS.from_epsg(place.epsg)
        return None if place.wkt is None else CRS.from_wkt(place.wkt)
    except rasterio.errors.CRSError:
        name = f"EPSG:{place.epsg}" if place.epsg is not None else "that it was given"
        raise DataError(f"the coordinate system {name} is unknown here: install a newer PROJ") from None


def write_scene(
    path: Path,
    scene: Drawn,
    window: Window,
    tags: dict[str, str],
    on_block: Callable[[], None] = lambda: None,
) -> None:
    """Write a window of a scene as a cloud-optimised GeoTIFF with overviews; the file appears whole or not at all.

    Needs room for the window's raw pixels beside the file.

    Args:
        path: of the file.
        scene: to be drawn.
        window: inside it.
        tags: what made the pixels, by name.
        on_block: called as each block is done.

    Raises:
        DataError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unique = f"{os.getpid()}-{secrets.token_hex(4)}"
    raw = path.with_name(f".{path.name}.{unique}.raw{TEMPORARY_SUFFIX}")
    whole = path.with_name(f".{path.name}.{unique}{TEMPORARY_SUFFIX}")
    mask = raw.with_name(f"{raw.name}.msk")
    try:
        with _writable(path), _cache(GDAL_TIFF_INTERNAL_MASK="YES"), without_place_warning():
            _write_raw(raw, scene, window, tags, on_block)
            rasterio.shutil.copy(
                raw, whole, driver="COG", compress="DEFLATE", predictor="YES", blocksize=BLOCK_PX,
                overview_resampling="AVERAGE", bigtiff="IF_SAFER",
            )  # fmt: skip
            with whole.open("rb") as stream:
                os.fsync(stream.fileno())
            whole.replace(path)
            sync_folder(path.parent)
    finally:
        for leftover in (raw, whole, mask):
            leftover.unlink(missing_ok=True)


def _write_raw(
    path: Path,
    scene: Drawn,
    window: Window,
    tags: dict[str, str],
    on_block: Callable[[], None],
) -> None:
    place = scene.georeference
    transform = place.transform
    if transform is not None:
        a, b, c, d, e, f = transform
        transform = Affine(a, b, c + a * window.x_px + b * window.y_px, d, e, f + d * window.x_px + e * window.y_px)
        if not all(math.isfinite(each) for each in transform):
            raise DataError(f"the scene's geotransform {tuple(place.transform or ())} is none: its sender made it up")
    profile: dict[str, Any] = {
        "driver": "GTiff", "dtype": "uint8", "count": scene.bands, "width": window.width_px,
        "height": window.height_px, "tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX,
        "interleave": "pixel", "BIGTIFF": "IF_SAFER", "photometric": "RGB", "crs": crs_of(place),
        "transform": None if transform is None else rasterio.Affine(*transform), "nodata": place.nodata,
    }  # fmt: skip
    if scene.bands == 4:
        profile["alpha"] = "UNSPECIFIED"
    with rasterio.open(path, "w", **{name: each for name, each in profile.items() if each is not None}) as dataset:
        kept = {name: value for name, value in place.tags if name not in _NOT_WRITTEN and not _says_origin(name)}
        dataset.update_tags(**kept | tags)
        for number, description in enumerate(place.descriptions[:3], 1):
            if description is not None:
                dataset.set_band_description(number, description)
        if scene.bands == 4:
            dataset.set_band_description(4, f"standard deviation of {len(scene.seeds)} draws, grey levels")
        masks: list[tuple[Window, bytes | None]] = []
        for of_scene in blocks(window, WINDOW_STEP_PX):  # the grid that is drawn on: nothing is drawn twice
            block = of_scene.within(window)
            bands, valid = scene.read(of_scene), scene.read_valid(of_scene)
            dataset.write(
                _marked(bands, valid, place.nodata).transpose(2, 0, 1), window=rasterio.windows.Window(*block)
            )
            masks.append((block, None if valid.all() else np.packbits(valid).tobytes()))
            on_block()
        # At the end: only then is it known whether any chunk is lost, and what a mask leaves out counts as missing.
        if place.nodata is None and (place.missing is Missing.MASK or any(packed for _, packed in masks)):
            for block, packed in masks:
                dataset.write_mask(_unpacked(packed, block), window=rasterio.windows.Window(*block))


def _unpacked(packed: bytes | None, block: Window) -> Any:
    shape = (block.height_px, block.width_px)
    if packed is None:
        return np.ones(shape, np.bool_)
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=shape[0] * shape[1]).reshape(shape).astype(np.bool_)


def _marked(bands: UInt8[np.ndarray[Any, Any], "..."], valid: Any, nodata: int | None) -> Any:
    """The nodata value where there is no pixel, and nowhere else: a pixel that happens to have it moves by one."""
    if nodata is None:
        return np.where(valid[..., None], bands, 0)
    nearest = nodata + 1 if nodata < 255 else 254
    return np.where(valid[..., None], np.where(bands == nodata, nearest, bands), nodata)


def _georeference(dataset: Any, bands: tuple[int, ...]) -> Georeference:
    path = dataset.name
    if dataset.gcps[0]:
        raise DataError(f"{path} is placed by ground control points, which a scene does not carry: gdalwarp it first")
    if dataset.rpcs is not None:
        raise DataError(
            f"{path} is placed by a sensor model (RPC), which a scene does not carry: orthorectify it first"
        )
    epsg = wkt = None
    if dataset.crs is not None:
        code = dataset.crs.to_epsg()
        if code is not None and CRS.from_epsg(code) == dataset.crs:
            epsg = code
        else:
            wkt = dataset.crs.to_wkt(version="WKT2_2019")
    transform = None if dataset.transform.is_identity else Affine(*dataset.transform[:6])
    missing, nodata = Missing.NONE, None
    flags = {flag for band in bands for flag in dataset.mask_flag_enums[band - 1]}
    if MaskFlags.nodata in flags:
        missing, nodata = Missing.NODATA, _whole_number(dataset.nodatavals[bands[0] - 1])
        if nodata is None:
            missing = Missing.NONE  # a value that no 8-bit pixel can have
    elif flags - {MaskFlags.all_valid} or ColorInterp.alpha in dataset.colorinterp:
        missing = Missing.MASK
    descriptions = tuple(dataset.descriptions[band - 1] for band in bands)
    left_out = (*_NOT_KEPT, *_NOT_WRITTEN)
    tags = {name: value for name, value in dataset.tags().items() if name not in left_out and not _says_origin(name)}
    if tags.get("AREA_OR_POINT") == "Area":
        del tags["AREA_OR_POINT"]  # what a file is if it says nothing
    place = Georeference(
        epsg, wkt, transform, missing, nodata, descriptions if any(descriptions) else (), tuple(sorted(tags.items()))
    )
    if not fits(place):
        raise DataError(
            f"{path} has {len(tags)} tags of {sum(map(len, tags.values()))} characters, or a CRS as long: a scene "
            f"carries {MAX_TEXT_BYTES} bytes of text, so remove what is not needed (gdal_edit -unsetmd)"
        )
    return place


def _says_origin(tag: str) -> bool:
    """Whether a tag says what made a file's pixels, as `magc decompress` writes it: true of that file alone."""
    return tag.upper().startswith("MAGC_")


def _whole_number(value: float | None) -> int | None:
    return int(value) if value is not None and value in range(256) else None


def _same_place(mine: Any, scene: Affine) -> bool:
    """Within a thousandth of a pixel."""
    size = max(abs(scene.a), abs(scene.b), abs(scene.d), abs(scene.e))
    return all(abs(one - other) <= size * 1e-3 for one, other in zip(tuple(mine)[:6], scene, strict=True))


def _cache(**options: str) -> rasterio.Env:
    return rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES, **options)


class _readable:  # noqa: N801  (reads as a statement)
    """GDAL's errors as one sentence."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, rasterio.errors.RasterioError):
            raise DataError(f"{self._path} cannot be read as a raster ({_first_line(error)})") from None


class _writable(_readable):  # noqa: N801
    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, rasterio.errors.RasterioError):
            raise DataError(f"{self._path} cannot be written ({_first_line(error)}): is there room for it?") from None


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
