"""Features compiled for reading by area: a folder of FlatGeobuf parts, each with its packed Hilbert R-tree.

    <name>/part-000.fgb ...   rows of `FEATURE_SCHEMA`
    <name>/store.json         `StoreSummary`

A store is written once under a temporary name and renamed when complete, so that a folder with the right name is
always a whole store; whoever comes second throws its own away. FlatGeobuf keeps neighbours together on disk and reads
a block faster than GeoPackage does. Its writer keeps about 100 bytes a feature in memory until the file is closed; the
cut into parts bounds that.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyogrio
import shapely

from magc_data import atomic
from magc_data.errors import SourceError
from magc_data.schema.osm_polygons import MODIFIER_KEYS
from magc_data.sources.osm_objects import FEATURE_SCHEMA
from magc_data.sources.protocols import FeatureTable
from magc_data.sources.vector_cache import cannot_write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from magc_data.grid import BoundsLonLat
    from magc_data.sources.osm_objects import FeatureKeys

STORE_VERSION = 1
"""Goes into every store's name: raise it when what is stored, or how objects become features, changes."""

ROWS_PER_PART = 4_000_000

CROSSING_DEGREES = 1.0
"""What crosses the antimeridian has vertices nearer to it than this, on both of its sides."""

# First in every part: a box around the world, without tags and so never wanted. GDAL (3.12) gives thousands of rows of
# zeros instead of none where a FlatGeobuf has no feature in a box; with this one there is no such box.
_NOTHING_EVERYWHERE = pa.RecordBatch.from_pylist(
    [{"osm_type": "", "osm_id": 0, "tags": "{}", "geometry": shapely.to_wkb(shapely.box(-180, -90, 180, 90))}],
    FEATURE_SCHEMA,
)

_IS_COASTLINE = """tags LIKE '%"natural":"coastline"%'"""

_SUMMARY_NAME = "store.json"
TEMPORARY_PREFIX = ".unfinished-"
"""Folders beside the stores that begin so are scratch space, deleted when they have been left for a day."""
_ABANDONED_AFTER_S = 24 * 3600


class StoreSummary(NamedTuple):
    """What is known of a store without reading its features."""

    rows: int
    timestamp: str | None
    """Database time that the features stand for (ISO 8601), where known."""
    counts: dict[str, int]
    """What the compilation kept, cut and dropped."""


def store_folder(cache_dir: Path, content_digest: str, keys: FeatureKeys) -> Path:
    """Where the store of some content and key set belongs."""
    key_text = "\n".join((str(STORE_VERSION), *sorted(keys.features), "", *sorted(keys.kept)))
    return cache_dir / "vectors" / f"{content_digest}-{hashlib.sha256(key_text.encode()).hexdigest()[:16]}"


def compile_store(folder: Path, batches: Iterable[pa.RecordBatch], summarise: Callable[[int], StoreSummary]) -> None:
    """Write a store, unless it is there already; safe against interruption and against others doing the same.

    Args:
        folder: where the store is to be.
        batches: rows of `FEATURE_SCHEMA`; what they raise comes through.
        summarise: called with the number of rows when `batches` is exhausted.

    Raises:
        SourceError: the cache folder cannot be written.
    """
    if folder.exists():
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder.parent)
        unfinished = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=folder.parent))
    except OSError as error:
        raise cannot_write(folder, error) from None
    try:
        rows = _write_parts(unfinished, iter(batches))
        summary = json.dumps(summarise(rows)._asdict(), sort_keys=True)
        (unfinished / _SUMMARY_NAME).write_text(summary, encoding="utf-8")
        for path in unfinished.iterdir():
            with path.open("rb") as part:
                os.fsync(part.fileno())
        atomic.sync_folder(unfinished)
        try:
            unfinished.rename(folder)
        except OSError:
            # Not empty: another process finished first, and from the same bytes.
            if not (folder / _SUMMARY_NAME).exists():
                raise
        atomic.sync_folder(folder.parent)
    except OSError as error:
        raise cannot_write(folder, error) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _damaged(folder: Path, found: str) -> SourceError:
    return SourceError(
        f"the feature store {folder} cannot be read ({found}): delete that folder and run the same command again"
    )


def read_summary(folder: Path) -> StoreSummary:
    """The summary of a store.

    Raises:
        SourceError: there is no store.
    """
    try:
        return StoreSummary(**json.loads((folder / _SUMMARY_NAME).read_bytes()))
    except (OSError, ValueError, TypeError):
        raise _damaged(folder, "it is not whole") from None


def read_store(folder: Path, bounds: BoundsLonLat, tag_keys: frozenset[str]) -> FeatureTable:
    """The features whose boxes touch `bounds` and which have a key of `tag_keys` that can stand for a feature.

    Raises:
        SourceError: there is no store, or it cannot be read.
    """
    summary = read_summary(folder)
    table = _rows_in(folder, bounds)
    if max(bounds.east, -bounds.west) > 180.0 - CROSSING_DEGREES:
        table = pa.concat_tables([table, _crossing(folder, bounds, table)])
    return feature_table(table, tag_keys, summary.timestamp)


def _rows_in(folder: Path, bounds: Sequence[float]) -> pa.Table:
    tables = []
    for part in sorted(folder.glob("part-*.fgb")):
        try:
            _, table = pyogrio.read_arrow(part, bbox=tuple(bounds))
        except (OSError, RuntimeError, ValueError) as error:
            raise _damaged(folder, str(error)) from None
        *_, geometry = table.schema.names
        tables.append(table.select(["osm_type", "osm_id", "tags", geometry]).rename_columns(FEATURE_SCHEMA.names))
    return pa.concat_tables(tables)


def _crossing(folder: Path, bounds: BoundsLonLat, found: pa.Table) -> pa.Table:
    """Features over the antimeridian beside those found: from 179.9 to -179.9 degrees, no box beyond meets a number."""
    _, south, _, north = bounds
    ends = ((-180.0, south, CROSSING_DEGREES - 180.0, north), (180.0 - CROSSING_DEGREES, south, 180.0, north))
    near = pa.concat_tables([_rows_in(folder, end) for end in ends])
    west, _, east, _ = shapely.bounds(shapely.from_wkb(near["geometry"].to_numpy())).T
    columns = ("osm_type", "osm_id", "geometry")
    known = set(zip(*(found[name].to_pylist() for name in columns), strict=True))
    rows = []
    for row in np.flatnonzero(east - west > 180.0).tolist():
        feature = tuple(near[name][row].as_py() for name in columns)
        if feature not in known:
            known.add(feature)
            rows.append(row)
    return near.take(pa.array(rows, pa.int64()))


def compile_coastlines(folder: Path) -> None:
    """Make a store of a store's coastlines alone, which are to be read from farther around than anything else.

    Raises:
        SourceError: there is no store, it cannot be read, or the cache folder cannot be written.
    """
    summary = read_summary(folder)

    def batches() -> Iterator[pa.RecordBatch]:
        for part in sorted(folder.glob("part-*.fgb")):
            try:
                with pyogrio.open_arrow(part, where=_IS_COASTLINE, use_pyarrow=True) as (_, reader):
                    for batch in reader:
                        *_, geometry = batch.schema.names
                        table = pa.Table.from_batches([batch]).select(["osm_type", "osm_id", "tags", geometry])
                        yield from table.rename_columns(FEATURE_SCHEMA.names).cast(FEATURE_SCHEMA).to_batches()
            except (OSError, RuntimeError, ValueError) as error:
                raise _damaged(folder, str(error)) from None

    compile_store(coastline_folder(folder), batches(), lambda rows: StoreSummary(rows, summary.timestamp, {}))


def coastline_folder(folder: Path) -> Path:
    """Where the store of a store's coastlines belongs."""
    return folder.with_name(f"{folder.name}-coastlines")


def feature_table(table: pa.Table, tag_keys: frozenset[str], timestamp: str | None) -> FeatureTable:
    """Rows of `FEATURE_SCHEMA` as a `FeatureTable`, less those without any key that the class scheme looks at."""
    feature_keys = tag_keys - MODIFIER_KEYS
    texts = table["tags"].combine_chunks().dictionary_encode()
    tag_sets = [json.loads(text) for text in texts.dictionary.to_pylist()]
    wanted = np.array([not feature_keys.isdisjoint(tags) for tags in tag_sets], dtype=bool)
    index_of_set = texts.indices.to_numpy().astype(np.int32)
    rows = np.flatnonzero(wanted[index_of_set]) if len(tag_sets) else np.empty(0, np.intp)
    kept = table.take(pa.array(rows))
    new_index = np.cumsum(wanted, dtype=np.int32) - 1
    return FeatureTable(
        geometry=shapely.from_wkb(kept["geometry"].to_numpy()),
        tag_index=new_index[index_of_set[rows]].astype(np.int32),
        tag_sets=tuple(itertools.compress(tag_sets, wanted)),
        osm_type=np.asarray(kept["osm_type"].to_numpy(), dtype="U1"),
        osm_id=kept["osm_id"].to_numpy().astype(np.int64),
        timestamp=timestamp,
    )


def _write_parts(folder: Path, batches: Iterator[pa.RecordBatch]) -> int:
    rows = 0
    # Errors raised while GDAL pulls a stream would come back as GDAL's own: they are kept and raised here.
    failure: list[BaseException] = []

    def part(first: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        nonlocal rows
        in_part = 0
        batch: pa.RecordBatch | None = first
        while batch is not None:
            yield batch
            rows += batch.num_rows
            in_part += batch.num_rows
            if in_part >= ROWS_PER_PART:
                return
            try:
                batch = next(batches, None)
            except BaseException as error:
                failure.append(error)
                raise

    for number in itertools.count():
        first = next(batches, None)
        if first is None and number > 0:
            return rows
        # An empty store has one part too, so that reading needs no special case.
        features = iter(()) if first is None else part(first)
        stream = pa.RecordBatchReader.from_batches(FEATURE_SCHEMA, itertools.chain([_NOTHING_EVERYWHERE], features))
        try:
            pyogrio.write_arrow(
                stream,
                folder / f"part-{number:03d}.fgb",
                driver="FlatGeobuf",
                geometry_name="geometry",
                geometry_type="Unknown",
                crs="EPSG:4326",
                layer_options={"TEMPORARY_DIR": str(folder)},
            )
        except (pyogrio.errors.DataSourceError, RuntimeError, ValueError, OSError) as error:
            if failure:
                raise failure[0] from None
            raise OSError(0, str(error)) from None
        if failure:
            raise failure[0]
    raise AssertionError("unreachable")


def _remove_abandoned(folder: Path) -> None:
    """Delete what interrupted compilations left behind; younger ones may still be at work."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        try:
            newest = max(entry.stat().st_mtime for entry in (path, *path.iterdir()))
        except OSError:
            continue
        if newest < time.time() - _ABANDONED_AFTER_S:
            shutil.rmtree(path, ignore_errors=True)
