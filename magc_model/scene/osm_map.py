"""The map of a georeferenced scene, from OpenStreetMap: rasterised by `magc_data` on the scene's own pixel grid."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from magc_data.image_grid import ImageGrid
from magc_data.image_map import ImageMap
from magc_data.rasterize import PixelWindow
from magc_data.schema.classes import load_scheme, scheme_of_classes
from magc_data.sources.cache import cache_dir, terms_shown_once
from magc_data.sources.http import HttpClient
from magc_data.sources.protocols import SourceContext
from magc_data.sources.registry import open_vectors
from magc_model.config import MapClass
from magc_model.errors import UsageError
from magc_model.scene.compress import ClassMap, Placed
from magc_model.scene.grid import Window

_ANY_ZOOM = 17
"""Sources of vectors do not look at it."""

_MOSTLY_OUTSIDE = 1e-4
"""Share of a scene without labels that is worth a word."""


class OsmMap:
    """A `MapSource` of `magc_data`'s image map."""

    def __init__(self, image_map: ImageMap) -> None:
        self._image_map = image_map

    def read(self, window: Window) -> ClassMap:
        """A window that lies inside."""
        return np.asarray(self._image_map.read(PixelWindow(*window)))


@contextlib.contextmanager
def open_osm_map(
    classes: Sequence[MapClass], scene: Placed, osm: str, scheme_name: str | None, *, quiet: bool
) -> Iterator[OsmMap]:
    """A scene's map, its features brought to this machine.

    Args:
        classes: the model's.
        scene: what the map is for.
        osm: a vector source as `magc-data build --osm` takes it: a file, or `overpass`.
        scheme_name: class scheme; the built-in one with the model's classes if not given.
        quiet: no bar.

    Raises:
        UsageError: the scene has no place, or the scheme is not the model's.
        MagcDataError: the source cannot be read, or does not cover the scene.
    """
    grid = _grid(scene)
    if not classes:
        raise UsageError("this model reads no map: leave --osm away")
    table = [(each.id, each.name) for each in classes]
    scheme = scheme_of_classes(table) if scheme_name is None else load_scheme(scheme_name)
    if {(each.id, each.name) for each in scheme.classes} != set(table):
        raise UsageError(
            f"scheme {scheme.name} has other classes than the model: give the one that it was trained with"
        )
    with HttpClient() as http:
        vectors = open_vectors(osm, SourceContext(cache_dir(), http, _ANY_ZOOM, scheme.tag_keys))
        if terms_shown_once(cache_dir(), vectors.info):
            _say(f"{vectors.info.name}: {vectors.info.attribution}. Licence: {vectors.info.licence}.")
        image_map = ImageMap(grid, vectors, scheme)
        if image_map.share_outside > _MOSTLY_OUTSIDE:
            _say(f"magc: warning: {vectors.info.name} does not cover {image_map.share_outside:.1%} of the scene")
        with _bar(image_map.cell_count, quiet=quiet) as bar:
            image_map.fetch(http, bar.update)
        yield OsmMap(image_map)


def _grid(scene: Placed) -> ImageGrid:
    from magc_model.scene.raster_files import crs_of

    place = scene.georeference
    crs = crs_of(place)
    if crs is None or place.transform is None:
        raise UsageError("the picture has no place on Earth to look up: give its map with --map, or a GeoTIFF")
    return ImageGrid(crs.to_wkt(), place.transform, scene.width_px, scene.height_px)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def _bar(total: int, *, quiet: bool) -> Any:
    return tqdm(total=total, desc="map", unit="cell", disable=quiet or total < 2, file=sys.stderr)
