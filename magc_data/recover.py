"""Single members of a dataset made again from the cache or the sources: its images and maps, by key."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from magc_data.config import DEFAULT_ZOOM
from magc_data.errors import MagcDataError, UsageError
from magc_data.ground_grid import GroundGrid, block_of_tiles, grid_of, parse_key
from magc_data.label import painter_of
from magc_data.match_dates import source_in_state, state_for
from magc_data.rasterize import burn_tiles
from magc_data.sample import map_bytes
from magc_data.schema.classes import load_scheme, scheme_sha256
from magc_data.schema.sample import TileImage
from magc_data.sea import NoSea, keys_with_coast, open_sea, spec_of_record
from magc_data.sources.cache import cache_dir
from magc_data.sources.http import HttpClient
from magc_data.sources.protocols import SourceContext
from magc_data.sources.registry import IMAGERY, VECTORS, open_imagery, open_vectors, spec_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from magc_data.config import HealConfig
    from magc_data.ground_grid import AnyBlock, AnyTile
    from magc_data.schema.classes import Scheme
    from magc_data.sea import Sea
    from magc_data.sources.protocols import GridImagery, VectorSource


class Recovered(NamedTuple):
    """A member as the sources have it today; whether that is what it was, its digest says."""

    key: str
    member: str
    content: bytes | None
    reason: str
    """Why there is none, in words; empty where there is one."""


class Recovery:
    """The sources of a dataset, opened when they are first needed.

    Args:
        manifest: of the dataset.
        config: where the sources are today, if not where they were.
        blocks: the tiles that the dataset was to have, by the block's column and row: what is asked of a source is
            then what the build asked, and the cache answers.
        capture_date: of the image of a sample, by key; None where it is not known.
    """

    def __init__(
        self,
        manifest: dict[str, Any],
        config: HealConfig,
        blocks: Callable[[AnyTile], tuple[AnyTile, ...]],
        capture_date: Callable[[str], str | None],
    ) -> None:
        self._manifest, self._config, self._blocks = manifest, config, blocks
        self._capture_date = capture_date
        self._stack = contextlib.ExitStack()
        self._opened: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._http = self._stack.enter_context(HttpClient(requests_per_s=self._config.rate))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def members(self, wanted: Mapping[str, Collection[str]]) -> Iterator[Recovered]:
        """Make members again, a block at a time.

        Args:
            wanted: keys of the samples, by member (`image`, `map`).
        """
        makers = {"image": self._images, "map": self._maps}
        for member, keys in wanted.items():
            by_block: dict[str, list[AnyTile]] = defaultdict(list)
            for tile in sorted((parse_key(key) for key in keys), key=lambda tile: (tile.y, tile.x)):
                by_block[tile.block_name].append(tile)
            for tiles in by_block.values():
                block = block_of_tiles(tiles)
                try:
                    yield from makers[member](block)
                except MagcDataError as error:
                    yield from (Recovered(tile.key, member, None, str(error)) for tile in tiles)

    def _images(self, block: AnyBlock) -> list[Recovered]:
        imagery = self._source("imagery", self._open_imagery)
        imagery.fetch(block, self._http, lambda: None)
        found = []
        for tile in block.tiles:
            image = imagery.read(tile)
            if isinstance(image, TileImage):
                found.append(Recovered(tile.key, "image", image.data, ""))
            else:
                reason = f"the imagery has none any more: {image.reason}, {image.detail}"
                found.append(Recovered(tile.key, "image", None, reason))
        return found

    def _maps(self, block: AnyBlock) -> list[Recovered]:
        scheme = self._source("scheme", self._open_scheme)
        vectors = self._source("vectors", self._open_vectors)
        whole = block_of_tiles(self._blocks(block.tiles[0]))
        bounds = whole.bounds_lonlat(scheme.margin_m)
        sea = self._source("sea", self._open_sea)
        found = []
        for source, tiles in self._by_state(vectors, block.tiles):
            source.fetch(bounds, self._http)
            sea_then = sea.of(source)
            sea_then.fetch(bounds, self._http)
            table = source.read(bounds)
            painter = painter_of(table, scheme, block.pixels, sea_then.read(bounds, table))
            found += [
                Recovered(tile.key, "map", map_bytes(semantic_map, scheme), "")
                for tile, semantic_map in burn_tiles(painter.rings, painter.class_ids, tiles)
            ]
        return found

    def _by_state(
        self, vectors: VectorSource, tiles: Sequence[AnyTile]
    ) -> Iterator[tuple[VectorSource, list[AnyTile]]]:
        """The tiles, with the source as it was when their maps were drawn from it."""
        if not self._manifest["config"].get("match_osm_date"):
            yield vectors, list(tiles)
            return
        by_state: dict[str | None, list[AnyTile]] = defaultdict(list)
        for tile in tiles:
            by_state[state_for(vectors, self._capture_date(tile.key))].append(tile)
        for state, those in by_state.items():
            yield source_in_state(vectors, state), those

    def _source(self, role: str, opened: Callable[[], Any]) -> Any:
        """What plays a role; a failure to open it is remembered, as it would fail for every block alike."""
        if role not in self._opened:
            try:
                self._opened[role] = opened()
            except MagcDataError as error:
                self._opened[role] = error
        if isinstance(self._opened[role], MagcDataError):
            raise self._opened[role]
        return self._opened[role]

    def _context(self) -> SourceContext:
        scheme: Scheme = self._source("scheme", self._open_scheme)
        vectors = self._manifest["sources"]["vectors"]
        osm_date = vectors.get("version") if vectors["name"] == "overpass" else None
        return SourceContext(cache_dir(), self._http, self._zoom, keys_with_coast(scheme), osm_date)

    @property
    def _zoom(self) -> int:
        """Of web-mercator tiles; of no meaning where there are none."""
        return int(self._manifest.get("zoom", DEFAULT_ZOOM))

    def _open_imagery(self) -> GridImagery:
        spec = self._config.imagery or spec_of(IMAGERY, self._manifest["sources"]["imagery"])
        # Imagery does not look at the tags, so a scheme that is lost does not matter here.
        context = SourceContext(cache_dir(), self._http, self._zoom, frozenset())
        if isinstance(level := grid_of(self._manifest), GroundGrid):
            from magc_data.sources.ground_imagery import open_ground_imagery

            _, south, _, north = self._manifest["bounds_lonlat"]
            asked_zoom = (self._manifest.get("resampling") or {}).get("asked_zoom")
            imagery: GridImagery | None
            imagery, _ = open_ground_imagery(spec, context, level, asked_zoom, (south, north))
        else:
            imagery = open_imagery(spec, context)
        if imagery is None:
            raise UsageError("--imagery none holds no images: give the imagery that the dataset was built from")
        return imagery

    def _open_vectors(self) -> VectorSource:
        spec = self._config.osm or spec_of(VECTORS, self._manifest["sources"]["vectors"])
        return open_vectors(spec, self._context())

    def _open_sea(self) -> Sea:
        if "sea" not in self._manifest:  # no coastline spoke, or a version of magc built it that did not listen
            return NoSea()
        recorded = self._manifest["config"].get("water_polygons")
        spec = self._config.water_polygons or spec_of_record(recorded)
        vectors = self._source("vectors", self._open_vectors)
        return open_sea(spec, vectors, self._source("scheme", self._open_scheme), self._context())

    def _open_scheme(self) -> Scheme:
        scheme = load_scheme(self._config.scheme or self._manifest["scheme"])
        if scheme_sha256(scheme) != self._manifest["config"]["scheme"].get("sha256"):
            raise UsageError(
                f"the class scheme {scheme.name} is not the one that the dataset was built with: give it with --scheme"
            )
        return scheme
