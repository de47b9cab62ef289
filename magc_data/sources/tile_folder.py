"""Imagery from a folder of tiles, `z/x/y.EXT` or `z_x_y.EXT` (rows from the north). Bytes pass untouched.

What a file is, its content decides: JPEG bytes named `.tif` (as OpenAerialMap exports have them) are read as JPEG.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import shapely

from magc_data import grid
from magc_data.errors import SourceError, UsageError
from magc_data.grid import Tile
from magc_data.image_check import check_tile_bytes
from magc_data.schema.sample import Reason, Rejection, TileImage
from magc_data.sources.protocols import BlockAvailability, SourceInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shapely.geometry.base import BaseGeometry

    from magc_data.grid import Block
    from magc_data.sources.http import HttpClient
    from magc_data.sources.protocols import SourceContext

TILE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"})

TIFF_SIGNATURES = frozenset({b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"})

NAME_FORMS = ("{z}/{x}/{y}", "{z}_{x}_{y}")

_FLAT_NAME = re.compile(r"(\d{1,2})_(\d{1,8})_(\d{1,8})")
_NUMBER = re.compile(r"\d{1,8}")


class _Found(NamedTuple):
    """A tile's file."""

    path: Path
    z: int
    x: int
    y: int


@dataclass
class TileFolder:
    """A folder of tiles of one zoom; nothing is kept in memory that grows with their number."""

    info: SourceInfo
    root: Path
    name_form: str
    suffixes: tuple[str, ...]
    """Those in use, as spelled there."""
    bounds: grid.BoundsLonLat

    def extent(self) -> BaseGeometry | None:
        """The box around all tiles of the zoom."""
        return shapely.box(*self.bounds)

    def availability(self, block: Block, http: HttpClient) -> BlockAvailability | None:  # noqa: ARG002 - the protocol's
        """Looks every tile up."""
        available = sum(self._path(tile) is not None for tile in block.tiles)
        return BlockAvailability(available, len(block.tiles) - available, available)

    def fetch(self, block: Block, http: HttpClient, on_tile: Callable[[], None]) -> None:
        """Nothing to do: the files are here."""

    def read(self, tile: Tile) -> TileImage | Rejection:
        """One tile, checked.

        Raises:
            SourceError: the file is there but cannot be read.
        """
        path = self._path(tile)
        if path is None:
            return Rejection(Reason.OUTSIDE_IMAGERY, f"not in {self.info.name}")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise SourceError(f"{path} cannot be read ({error.strerror}): check its permissions") from None
        return check_tile_bytes(data, transient=False)

    def _path(self, tile: Tile) -> Path | None:
        stem = self.name_form.format(**tile._asdict())
        return next((path for suffix in self.suffixes if (path := self.root / f"{stem}{suffix}").is_file()), None)


def is_tile_folder(folder: Path) -> bool:
    """Whether a folder holds tiles by their names (and not GeoTIFFs named like tiles)."""
    first = next(_files(folder), None)
    if first is None:
        return False
    with first.path.open("rb") as stream:
        return stream.read(4) not in TIFF_SIGNATURES


def open_tile_folder(path: str, context: SourceContext) -> TileFolder:
    """Open a folder of tiles.

    Its version is a digest of the names and sizes of the zoom's tiles, not of their contents.

    Raises:
        SourceError: there are no tiles in it.
        UsageError: it has none of the zoom asked for.
    """
    root = Path(path)
    suffixes, zooms, forms = set(), set(), set()
    x_min = y_min = 2**grid.MAX_ZOOM
    x_max = y_max = -1
    digest = 0
    for file in _files(root):
        zooms.add(file.z)
        if file.z != context.zoom:
            continue
        suffixes.add(file.path.suffix)
        forms.add(NAME_FORMS[file.path.parent == root])
        x_min, y_min, x_max, y_max = min(x_min, file.x), min(y_min, file.y), max(x_max, file.x), max(y_max, file.y)
        # A sum does not depend on the order in which the file system lists names.
        identity = f"{file.x}/{file.y}{file.path.suffix}:{file.path.stat().st_size}"
        digest += int.from_bytes(hashlib.sha256(identity.encode()).digest())
    if not zooms:
        raise SourceError(f"folder {path} holds no tiles: expected z/x/y.jpg or z_x_y.jpg (or png, webp, tif)")
    if x_max < 0:
        raise UsageError(
            f"folder {path} has no tiles of zoom {context.zoom}: its zooms are {', '.join(map(str, sorted(zooms)))}"
        )
    if len(forms) > 1:
        raise SourceError(f"folder {path} names its tiles in two ways, z/x/y and z_x_y: keep one")
    west, _, _, north = grid.tile_bounds_lonlat(Tile(context.zoom, x_min, y_min))
    _, south, east, _ = grid.tile_bounds_lonlat(Tile(context.zoom, x_max, y_max))
    name = root.resolve().name
    info = SourceInfo(
        name=name,
        address=path,
        licence="not stated",
        attribution=f"local imagery: {name}",
        terms="Your own files: magc does not know their licence. Check it before you pass the pixels on.",
        redistributable=False,
        version=f"sha256-of-sizes:{digest % 2**256:064x}",
    )
    return TileFolder(info, root, forms.pop(), tuple(sorted(suffixes)), grid.BoundsLonLat(west, south, east, north))


def _files(root: Path) -> Iterator[_Found]:
    """All tiles of a folder, in no particular order."""
    try:
        yield from _files_in(root)
    except OSError as error:
        raise SourceError(f"folder {root} cannot be read ({error.strerror}): check its permissions") from None


def _files_in(root: Path) -> Iterator[_Found]:
    for entry in root.iterdir():
        if _NUMBER.fullmatch(entry.name) and entry.is_dir():
            yield from _files_of_zoom(entry, int(entry.name))
        elif (match := _FLAT_NAME.fullmatch(entry.stem)) and entry.suffix.lower() in TILE_SUFFIXES:
            yield from _valid(entry, *map(int, match.groups()))


def _files_of_zoom(folder: Path, z: int) -> Iterator[_Found]:
    for column in folder.iterdir():
        if not (_NUMBER.fullmatch(column.name) and column.is_dir()):
            continue
        for file in column.iterdir():
            if _NUMBER.fullmatch(file.stem) and file.suffix.lower() in TILE_SUFFIXES:
                yield from _valid(file, z, int(column.name), int(file.stem))


def _valid(path: Path, z: int, x: int, y: int) -> Iterator[_Found]:
    if z <= grid.MAX_ZOOM and x < 2**z and y < 2**z:
        yield _Found(path, z, x, y)
