"""Which sources there are, and how what a user types becomes one: a name, a URL template, or a path.

Nothing heavy is imported here: a source's module is loaded when the source is opened.
"""

from __future__ import annotations

import difflib
import importlib
import re
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from magc_data.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from magc_data.sources.protocols import ImagerySource, SourceContext, VectorSource


@dataclass(frozen=True)
class Registry:
    """Named sources of one kind. Immutable: `register` returns a new registry."""

    kind: str
    """`imagery` or `vectors`; entry points stand in the group `magc_data.KIND`."""
    openers: Mapping[str, str] = field(default_factory=dict)
    """Name -> 'module:function'; the function takes (argument or None, SourceContext) and returns the source."""

    def register(self, name: str, opener: str) -> Registry:
        """This registry and one more source.

        Raises:
            UsageError: the name is taken or malformed.
        """
        if not _NAME.fullmatch(name):
            raise UsageError(f"'{name}' cannot name a source: expected lower-case letters, digits and hyphens")
        if name == NO_IMAGERY:
            raise UsageError(f"a source is named '{name}', which means no imagery: uninstall its package ({opener})")
        if name in self.openers:
            raise UsageError(
                f"two {self.kind} sources are named '{name}' ({self.openers[name]} and {opener}): uninstall one of the "
                "packages"
            )
        return Registry(self.kind, {**self.openers, name: opener})

    def with_entry_points(self) -> Registry:
        """This registry and the sources of installed packages.

        Raises:
            UsageError: a package uses a name that is taken.
        """
        registry = self
        for point in sorted(entry_points(group=f"magc_data.{self.kind}")):
            registry = registry.register(point.name, f"{point.module}:{point.attr}")
        return registry


_NAME = re.compile(r"[a-z][a-z0-9-]*")

IMAGERY = Registry(
    "imagery",
    {
        "world-imagery": "magc_data.sources.world_imagery:open_world_imagery",
        "wayback": "magc_data.sources.wayback:open_wayback",
        "sample-banepa": "magc_data.sources.sample_banepa:open_sample_imagery",
    },
)

VECTORS = Registry(
    "vectors",
    {
        "overpass": "magc_data.sources.overpass:open_overpass",
        "sample-banepa": "magc_data.sources.sample_banepa:open_sample_vectors",
        "helsinki": "magc_data.sources.helsinki:open_helsinki",
    },
)

NO_IMAGERY = "none"
"""Asked for as imagery: a dataset of maps alone."""

_XYZ = "magc_data.sources.xyz:open_xyz"
_RASTER = "magc_data.sources.raster:open_raster"
_TILE_FOLDER = "magc_data.sources.tile_folder:open_tile_folder"
_OSM_FILE = "magc_data.sources.osm_file:open_osm_file"
_DATED_EXTRACTS = "magc_data.sources.dated_extracts:open_dated_extracts"
_VECTOR_FILE = "magc_data.sources.vector_file:open_vector_file"

IMAGERY_FILES = {
    ".mbtiles": "magc_data.sources.mbtiles:open_mbtiles",
    ".pmtiles": "magc_data.sources.mbtiles:open_pmtiles",
}
"""Any other file is a raster."""

VECTOR_FILES = {
    **dict.fromkeys((".osm.pbf", ".pbf", ".osm", ".osm.bz2", ".osm.gz", ".opl", ".osm.opl"), _OSM_FILE),
    **dict.fromkeys(
        (".gpkg", ".geojson", ".json", ".geojsonl", ".fgb", ".shp", ".parquet", ".geoparquet"), _VECTOR_FILE
    ),
}


class _Choice(NamedTuple):
    """What opens a source, and with what."""

    opener: str
    argument: str | None


def open_imagery(spec: str, context: SourceContext) -> ImagerySource | None:
    """Open imagery: NAME, NAME:ARGUMENT, a URL template, or the path of a file, folder, pattern or list with commas.

    None for `none`: the dataset will hold maps alone.

    Raises:
        UsageError: there is no such source, or it cannot be used as asked.
        SourceError: it cannot be read.
    """
    if spec == NO_IMAGERY:
        return None
    source: ImagerySource = _open(_named(IMAGERY, spec) or _imagery_at(spec), context)
    return source


def is_raster(spec: str) -> bool:
    """Whether this imagery is a raster (or several), which has no zoom levels.

    Raises:
        UsageError: there is no such source.
    """
    return (_named(IMAGERY, spec) or _imagery_at(spec)).opener == _RASTER


def open_vectors(spec: str, context: SourceContext) -> VectorSource:
    """Open vectors: NAME, NAME:ARGUMENT, the path of a file, or a folder or list with commas of dated extracts.

    Raises:
        UsageError: there is no such source, or it cannot be used as asked.
        SourceError: it cannot be read.
    """
    source: VectorSource = _open(_named(VECTORS, spec) or _vectors_at(spec), context)
    return source


def spec_of(registry: Registry, source: Mapping[str, str]) -> str:
    """What to ask for to open a source again, from what the manifest says of it."""
    return source["name"] if _named(registry, source["name"]) else source["address"]


def source_names() -> dict[str, tuple[str, ...]]:
    """Names of the sources by kind, those of installed packages included."""
    return {each.kind: _names(each) for each in (IMAGERY, VECTORS)}


def _names(registry: Registry) -> tuple[str, ...]:
    return tuple(sorted([*registry.with_entry_points().openers, *([NO_IMAGERY] if registry.kind == "imagery" else [])]))


def is_source_name(kind: str, spec: str) -> bool:
    """Whether `NAME` or `NAME:ARGUMENT` is a source known here, rather than an address or a file."""
    return spec.partition(":")[0] in source_names().get(kind, ())


def _open(choice: _Choice, context: SourceContext) -> Any:
    module, _, function = choice.opener.partition(":")
    try:
        opener: Callable[[str | None, SourceContext], Any] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"the source's code {choice.opener} cannot be loaded ({error}): reinstall its package"
        ) from None
    return opener(choice.argument, context)


def _named(registry: Registry, spec: str) -> _Choice | None:
    name, colon, argument = spec.partition(":")
    if not _NAME.fullmatch(name):
        return None
    opener = registry.openers.get(name) or registry.with_entry_points().openers.get(name)
    return _Choice(opener, argument if colon else None) if opener else None


def _imagery_at(spec: str) -> _Choice:
    if "://" in spec:
        if "{" not in spec:
            raise UsageError(
                f"{_shown(spec)} is no tile template: write where zoom, column and row go, as in "
                "https://HOST/{z}/{x}/{y}.png, or download the file and give its path"
            )
        return _Choice(_XYZ, spec)
    path = Path(spec).expanduser()
    if path.is_dir():
        from magc_data.sources.tile_folder import is_tile_folder

        return _Choice(_TILE_FOLDER if is_tile_folder(path) else _RASTER, str(path))
    if path.is_file():
        return _Choice(IMAGERY_FILES.get(path.suffix.lower(), _RASTER), str(path))
    if any(mark in spec for mark in ",*?["):
        return _Choice(_RASTER, spec)
    raise _unknown(IMAGERY, spec)


def _vectors_at(spec: str) -> _Choice:
    path = Path(spec).expanduser()
    if spec and (path.is_dir() or ("," in spec and not path.is_file())):
        return _Choice(_DATED_EXTRACTS, spec)
    if not path.is_file():
        raise _unknown(VECTORS, spec)
    for suffix in path.suffixes[-2:], path.suffixes[-1:]:
        if opener := VECTOR_FILES.get("".join(suffix).lower()):
            return _Choice(opener, str(path))
    raise UsageError(f"'{spec}' is no vector file known here: expected a name that ends in {' '.join(VECTOR_FILES)}")


def _unknown(registry: Registry, spec: str) -> UsageError:
    """Neither a name nor a file: the nearest names, and all of them."""
    names = _names(registry)
    near = difflib.get_close_matches(spec.partition(":")[0].lower(), names, n=1)
    guess = f" (did you mean {near[0]}?)" if near else ""
    return UsageError(
        f"{_shown(spec)} is neither a file nor {registry.kind} known here{guess}: expected a path or one of "
        f"{', '.join(names)}"
    )


def _shown(spec: str) -> str:
    """A specification as errors may show it: addresses can hold passwords and keys."""
    return f"the address at {urlsplit(spec).hostname}" if "://" in spec else f"'{spec}'"
