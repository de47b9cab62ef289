"""The tables of a dataset: one row a sample (`index.parquet`), one a tile not kept (`rejected.parquet`).

While a build runs, each finished block has a sidecar of its own with the rows of both; its appearance is what makes the
block finished. At the end the sidecars are merged, one after another, so memory does not grow with the dataset.
"""

from __future__ import annotations

import contextlib
import errno
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from magc_data.atomic import atomic_file
from magc_data.errors import DatasetError, MagcDataError
from magc_data.shards.storage import Location, read_bytes
from magc_data.where import FRACTION_PREFIX as FRACTION_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pyarrow.compute as pc

    from magc_data.ground_grid import AnyTile
    from magc_data.quality.signals import TileSignals
    from magc_data.sample import Provenance, Sample
    from magc_data.schema.classes import Scheme
    from magc_data.schema.sample import Rejection, TileImage
    from magc_data.shards.tar import MemberSpan

INDEX_NAME = "index.parquet"
ROWS_PER_GROUP = 16384
TABLES_JOINED_AT_ONCE = 128
MEMBERS = ("image", "map", "json")

_PLACE = [
    ("key", pa.string()),
    ("z", pa.uint8()),
    ("x", pa.int32()),
    ("y", pa.int32()),
    ("lon", pa.float64()),
    ("lat", pa.float64()),
]
_SAMPLE = [
    *_PLACE,
    ("split", pa.string()),
    ("shard", pa.string()),
    ("gsd_m", pa.float64()),
    *[(f"{member}_{what}", pa.int64()) for member in MEMBERS for what in ("offset", "size")],
    ("image_format", pa.string()),
    ("image_sha256", pa.string()),
    ("map_sha256", pa.string()),
    ("capture_date", pa.string()),
    ("osm_timestamp", pa.string()),
]
_QUALITY = [
    ("alignment", pa.float32()),
    ("alignment_peak", pa.float32()),
    ("alignment_dx_px", pa.int8()),
    ("alignment_dy_px", pa.int8()),
    ("unmapped_edges", pa.float32()),
    ("blank", pa.float32()),
    ("cloud", pa.float32()),
    ("blur", pa.float32()),
]
"""The fields of TileSignals."""

_CAPTURE = [
    ("capture_share", pa.float64()),
    ("capture_source", pa.string()),
    ("capture_gsd_m", pa.float64()),
    ("capture_accuracy_m", pa.float64()),
    ("capture_unknown", pa.string()),
    ("capture_release", pa.string()),
    ("capture_pair_sha256", pa.string()),
    ("osm_days", pa.int32()),
]
"""What Capture knows beside the date, and how many days later the map's state is."""

FIXED_SCHEMA = pa.schema(_SAMPLE)
"""Columns that every index has; a `fraction_CLASS` for each class comes on top."""

QUALITY_SCHEMA = pa.schema(_QUALITY)
"""Columns that an index has besides if its build measured quality: those of older versions did not."""

CAPTURE_SCHEMA = pa.schema(_CAPTURE)
"""Columns that an index has besides if its imagery tells when it was captured."""

REJECTED_SCHEMA = pa.schema(
    [
        *_PLACE,
        ("block", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("transient", pa.bool_()),
        ("image_sha256", pa.string()),
    ]
)

SAMPLE_COLUMNS = tuple(FIXED_SCHEMA.names)
QUALITY_COLUMNS = tuple(QUALITY_SCHEMA.names)
CAPTURE_COLUMNS = tuple(CAPTURE_SCHEMA.names)


def member_names(key: str, image_format: str | None) -> dict[str, str]:
    """Names of a sample's members in its shard, in order; a sample without an image format is a map alone."""
    image = {} if image_format is None else {"image": f"{key}.image.{image_format}"}
    return image | {"map": f"{key}.map.png", "json": f"{key}.json"}


def index_schema(scheme: Scheme, *, with_captures: bool = False) -> pa.Schema:
    """Columns of `index.parquet`: the fixed ones, quality, captures, then one `fraction_CLASS` a class."""
    names = [each.name for each in scheme.classes]
    return schema_of_classes(names, with_quality=True, with_captures=with_captures)


def schema_of_classes(names: list[str], *, with_quality: bool, with_captures: bool = False) -> pa.Schema:
    """Columns of `index.parquet` where the classes have these names."""
    fractions = [(FRACTION_PREFIX + name, pa.float32()) for name in names]
    return pa.schema(_SAMPLE + (_QUALITY if with_quality else []) + (_CAPTURE if with_captures else []) + fractions)


def _place(tile: AnyTile) -> dict[str, Any]:
    lon, lat = tile.centre_lonlat
    return {"key": tile.key, "z": tile.z, "x": tile.x, "y": tile.y, "lon": lon, "lat": lat}


def sample_row(
    tile: AnyTile,
    image: TileImage | None,
    sample: Sample,
    signals: TileSignals,
    spans: dict[str, MemberSpan],
    shard: str,
    provenance: Provenance,
) -> dict[str, Any]:
    """The index row of a kept tile; `spans` are the places of its members."""
    return (
        _place(tile)
        | {"split": None, "shard": shard, "gsd_m": tile.gsd_m, "image_format": sample.image_extension}
        | {f"{member}_offset": span.offset for member, span in spans.items()}
        | {f"{member}_size": span.size for member, span in spans.items()}
        | {"image_sha256": sample.image_sha256, "map_sha256": sample.map_sha256}
        | {"capture_date": None if image is None else image.capture_date, "osm_timestamp": provenance.osm_timestamp}
        | signals._asdict()
        | _capture(image, provenance)
        | {FRACTION_PREFIX + name: share for name, share in sample.class_fractions.items()}
    )


def _capture(image: TileImage | None, provenance: Provenance) -> dict[str, Any]:
    if image is None or image.capture is None:
        return {}
    details = {f"capture_{name}": value for name, value in image.capture.details().items()}
    return details | {"osm_days": osm_days(image.capture_date, provenance.osm_timestamp)}


def osm_days(capture_date: str | None, osm_timestamp: str | None) -> int | None:
    """Days from the capture of an image to the state of OpenStreetMap that its map shows; None where one is unknown."""
    if capture_date is None or osm_timestamp is None:
        return None
    try:
        return (date.fromisoformat(osm_timestamp[:10]) - date.fromisoformat(capture_date)).days
    except ValueError:
        return None


def rejected_row(tile: AnyTile, rejection: Rejection, block_name: str) -> dict[str, Any]:
    """The row of a tile that was not kept."""
    return _place(tile) | {"block": block_name} | {**rejection._asdict(), "reason": str(rejection.reason)}


class BlockTables(NamedTuple):
    """What a sidecar holds."""

    samples: pa.Table
    rejected: pa.Table
    shard_size: int
    shard_sha256: str
    """Empty, with size 0, where no tile of the block was kept and there is no shard."""
    sea_is_settled: bool = False
    """Something said where in the block the sea is, or that there is none."""


def write_sidecar(path: Path, tables: BlockTables) -> None:
    """Write a block's rows; once the file has its name, the block is finished."""
    facts = {"shard_size": str(tables.shard_size), "shard_sha256": tables.shard_sha256}
    facts |= {"sea": "settled"} if tables.sea_is_settled else {}
    # One file makes one rename: both tables travel in it, the smaller as Arrow bytes in the other's metadata.
    rejected = pa.BufferOutputStream()
    with pa.ipc.new_stream(rejected, tables.rejected.schema) as stream:
        stream.write_table(tables.rejected)
    facts_bytes = {key.encode(): value.encode() for key, value in facts.items()}
    with (
        atomic_file(path) as file,
        pa.ipc.new_file(
            file, tables.samples.schema.with_metadata(facts_bytes | {b"rejected": rejected.getvalue().to_pybytes()})
        ) as writer,
    ):
        writer.write_table(tables.samples)


def read_sidecar(path: Path) -> BlockTables:
    """Read a block's rows back."""
    try:
        with pa.memory_map(str(path)) as source:
            samples = pa.ipc.open_file(source).read_all()
            metadata = samples.schema.metadata
            rejected = pa.ipc.open_stream(pa.py_buffer(metadata[b"rejected"])).read_all()
    except (pa.ArrowInvalid, KeyError, TypeError):
        raise DatasetError(f"{path} is damaged: delete it and run the build again, which redoes this block") from None
    return BlockTables(
        samples.replace_schema_metadata(None),
        rejected,
        int(metadata[b"shard_size"]),
        metadata[b"shard_sha256"].decode(),
        b"sea" in metadata,
    )


def write_table(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """Write tables one after another into one Parquet file; returns the number of rows.

    Row groups are cut at fixed counts, so that the bytes depend on the rows alone.
    """
    rows = 0
    # The checksums are what tells a flipped byte: Parquet alone would read it as another number.
    with (
        atomic_file(path) as file,
        pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        pending = schema.empty_table()
        small: list[pa.Table] = []
        for table in tables:
            # Scattered places make tables of one row: thousands of chunks would be looked through again for each.
            small.append(table.cast(schema))
            rows += len(table)
            if len(small) < TABLES_JOINED_AT_ONCE and len(pending) + sum(map(len, small)) < ROWS_PER_GROUP:
                continue
            pending = pa.concat_tables([pending, *small]).combine_chunks()
            small.clear()
            while len(pending) >= ROWS_PER_GROUP:
                writer.write_table(pending.slice(0, ROWS_PER_GROUP).combine_chunks())
                pending = pending.slice(ROWS_PER_GROUP).combine_chunks()
        pending = pa.concat_tables([pending, *small])
        if len(pending) or not rows:
            writer.write_table(pending.combine_chunks())
    return rows


class TableFile:
    """A Parquet table of a dataset, to be read once or in parts.

    Raises:
        DatasetError: it is absent or damaged; also when it is read.
    """

    def __init__(self, path: Location) -> None:
        self._path = path
        with self._named_errors():
            self._source = str(path) if isinstance(path, Path) else pa.BufferReader(read_bytes(path))
            self.schema: pa.Schema = pq.read_schema(self._source)

    def read(self, columns: list[str] | None = None, filters: pc.Expression | None = None) -> pa.Table:
        """These columns of the rows that pass the filters (row groups without any are skipped), in their order."""
        with self._named_errors():
            table = pq.read_table(
                self._source, columns=columns, filters=filters, partitioning=None, page_checksum_verification=True
            )
            table.validate(full=True)  # else text that is no UTF-8 shows only where it is used
            return table

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise DatasetError(
                f"{self._path} does not exist: if its folder is a dataset, `magc-data heal` repairs it"
            ) from None
        except MagcDataError:
            raise
        # Damaged files make pyarrow raise almost anything: ArrowInvalid, OSError, UnicodeDecodeError, KeyError, ...
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EIO, errno.EISDIR):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DatasetError(
                f"{self._path} is not readable as Parquet ({reason}): `magc-data heal` repairs it"
            ) from None


def read_table(
    path: Location,
    columns: list[str] | None = None,
    filters: list[tuple[str, str, str]] | None = None,
) -> pa.Table:
    """Read a dataset's Parquet table, or the rows that pass the filters.

    Raises:
        DatasetError: it is absent or damaged.
    """
    return TableFile(path).read(columns, pq.filters_to_expression(filters) if filters else None)
