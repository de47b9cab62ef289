"""One export: which samples, whether they may be handed on, and a folder that appears whole or not at all.

Besides what its format asks for, every export holds ATTRIBUTION.md, DATASHEET.md and export.json. The same dataset
gives the same bytes: no time, no path and no name of this machine is in them.
"""

from __future__ import annotations

import hashlib
import shutil
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow.compute as pc

from magc_data.atomic import sync_folder, write_atomically
from magc_data.errors import WAY_OUT, DatasetError, UsageError
from magc_data.export.formats import format_named, writer_of
from magc_data.metadata.datasheet import datasheet
from magc_data.metadata.facts import facts_of
from magc_data.metadata.files import DATASHEET_NAME
from magc_data.progress import Progress
from magc_data.shards.folder import ATTRIBUTION_NAME
from magc_data.shards.manifest import attribution_text, read_manifest, to_json
from magc_data.shards.reader import decode_image, decode_map, decode_member, read_index, read_member
from magc_data.shards.storage import location
from magc_data.sources.registry import is_source_name
from magc_data.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from magc_data.metadata.facts import Facts

EXPORT_NAME = "export.json"
EXPORT_VERSION = 1
UNSPLIT = "all"
"""The side of a dataset that has not been split."""
_ROWS_AT_ONCE = 1024
_SIDES_IN_ORDER = ("train", "val", "test")


class Side(NamedTuple):
    """The samples of one split."""

    name: str
    """As the split is called, or `all` before a split. Safe as the name of a folder."""
    rows: pa.Table


class ExportSample(NamedTuple):
    """A sample on its way out."""

    data: Path | str
    """The dataset that it is of."""
    row: dict[str, Any]
    """Its index row: key and image format are checked and safe in names of files."""
    image: bytes | None
    """None: the dataset holds maps alone."""
    semantic_map: bytes

    def image_pixels(self) -> NDArray[np.uint8] | None:
        """RGB, uint8 [height, width, 3].

        Raises:
            DatasetError: the bytes are damaged.
        """
        return None if self.image is None else self._decoded("image", decode_image, self.image)

    def class_ids(self) -> NDArray[np.uint8]:
        """Uint8 [height, width].

        Raises:
            DatasetError: the bytes are damaged.
        """
        return self._decoded("map", decode_map, self.semantic_map)

    def _decoded(self, member: str, decode: Callable[[bytes], NDArray[np.uint8]], content: bytes) -> NDArray[np.uint8]:
        return decode_member(location(self.data), self.row["shard"], self.row["key"], member, content, decode)


class ExportJob(NamedTuple):
    """What a format's writer is given."""

    data: Path | str
    folder: Path
    """To fill; empty."""
    sides: tuple[Side, ...]
    facts: Facts
    """Of the samples that are exported."""
    sample_done: Callable[[], None]
    """To be called for each sample and pass."""

    def samples(self, side: Side) -> Iterator[ExportSample]:
        """The samples of a side in the order of the index, with their bytes.

        Raises:
            DatasetError: a shard is missing or damaged, or the index names what no file may be called.
        """
        for row in rows_of(side.rows):
            image = self._member(row, "image") if "imagery" in self.facts.manifest["sources"] else None
            yield ExportSample(self.data, row, image, self._member(row, "map"))

    def _member(self, row: dict[str, Any], member: str) -> bytes:
        """Bytes that are what the index says: an export is a copy that nothing else would be compared with."""
        content = read_member(self.data, row, member)
        if hashlib.sha256(content).hexdigest() != row[f"{member}_sha256"]:
            raise DatasetError(
                f"the {member} of {row['key']} in {location(self.data) / row['shard']} has another sha256 than the "
                f"index says: {WAY_OUT}"
            )
        return content

    def sample(self, one_row: pa.Table) -> ExportSample:
        """One sample, given as a table of its row."""
        return next(self.samples(Side("", one_row)))


class ExportResult(NamedTuple):
    """What an export came to."""

    samples: dict[str, int]
    """By split."""
    left_out: int
    """Samples that belong to no split of a dataset that has been split."""


def export(
    data: Path | str,
    format_name: str,
    out: Path,
    split: str | None = None,
    *,
    holds_licence: bool = False,
    quiet: bool = False,
) -> ExportResult:
    """Write a dataset, a view or one of its splits in another form.

    Args:
        data: dataset or view, in a folder or at an address.
        format_name: key of `formats.FORMATS`.
        out: a folder that does not exist yet, or is empty.
        split: only this one; None: all.
        holds_licence: the person says that their licence allows what the source's does not.
        quiet: no bar.

    Raises:
        UsageError: there is no such format or split, `out` is in use, or the source may not be redistributed.
        DatasetError: the dataset is unfinished or damaged.
    """
    chosen = format_named(format_name)
    manifest = read_manifest(data)
    if chosen.holds_pixels and not holds_licence:
        _refuse_if_bound(manifest["sources"])
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists already: give --out a new or empty folder")
    rows = read_index(data)
    sides = _sides(data, rows, split)
    facts = _facts(manifest, sides, split)
    left_out = rows["split"].null_count if sides[0].name != UNSPLIT else 0
    with_licence = chosen.holds_pixels and holds_licence and not facts.redistributable
    partial = out.resolve().with_name(f".{out.resolve().name}.part")
    # What a killed run left. Two exports into one folder at the same time are nobody's wish.
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with Progress(facts.samples * chosen.passes, "export", quiet=quiet) as progress:
            writer_of(chosen)(ExportJob(data, partial, sides, facts, progress.tile_fetched))
        sources = facts.manifest["sources"]
        write_atomically(partial / ATTRIBUTION_NAME, attribution_text(sources).encode())
        write_atomically(partial / DATASHEET_NAME, datasheet(facts).encode())
        about = _about(format_name, facts, sides, left_out, with_licence=with_licence)
        write_atomically(partial / EXPORT_NAME, to_json(about))
        if out.is_dir():
            out.rmdir()
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(out.resolve().parent)
    return ExportResult({side.name: len(side.rows) for side in sides}, left_out)


def rows_of(rows: pa.Table) -> Iterator[dict[str, Any]]:
    """Index rows one by one. What becomes a name of a file was checked when the index was read."""
    for batch in rows.to_batches(_ROWS_AT_ONCE):
        yield from batch.to_pylist()


def _refuse_if_bound(sources: dict[str, dict[str, Any]]) -> None:
    bound = [source for source in sources.values() if not source["redistributable"]]
    if bound:
        raise UsageError(
            f"{bound[0]['name']} may not be redistributed (licence: {bound[0]['licence']}): --format recipe exports "
            "how to make the dataset again, without its pixels; if you hold a licence that allows more, or know the "
            "owner's terms to allow it, say so with --i-hold-a-licence, which the export records"
        )


def _sides(data: Path | str, rows: pa.Table, split: str | None) -> tuple[Side, ...]:
    there = [name for name in pc.unique(rows["split"]).to_pylist() if name is not None]
    if split is not None and split not in there:
        has = f"it has {', '.join(sorted(there))}" if there else "it has not been split (`magc-data split` does that)"
        raise UsageError(f"--split is '{split}', which {data} does not have: {has}")
    if not len(rows):
        raise UsageError(f"{data} has no sample: there is nothing to export")
    if not there:
        return (Side(UNSPLIT, rows),)
    order = {name: number for number, name in enumerate(_SIDES_IN_ORDER)}
    names = [split] if split else sorted(there, key=lambda name: (order.get(name, len(order)), name))
    return tuple(Side(name, rows.filter(pc.equal(rows["split"], name))) for name in names)


def _facts(manifest: dict[str, Any], sides: tuple[Side, ...], split: str | None) -> Facts:
    """Facts of what is exported: the manifest's place and sources, without paths of this machine."""
    where = [*manifest.get("view", {}).get("where", []), *([f"split = '{split}'"] if split else [])]
    bounds = [pc.min_max(side.rows["gsd_m"]).as_py() for side in sides]
    narrowed = {
        "sources": {role: without_local_path(role, source) for role, source in manifest["sources"].items()},
        "gsd_m": {"min": min(each["min"] for each in bounds), "max": max(each["max"] for each in bounds)},
        "view": {"where": where},
    }
    return facts_of(manifest | narrowed, (side.rows for side in sides))


def is_file_of_the_maker(role: str, source: dict[str, Any]) -> bool:
    """Whether a manifest's source was a file or folder on the machine where the dataset was made."""
    return "://" not in source["address"] and not is_source_name(role, source["name"])


def without_local_path(role: str, source: dict[str, Any]) -> dict[str, Any]:
    """What may be said of a source to others: where it is a file, its name stands for its path."""
    return source | {"address": source["name"]} if is_file_of_the_maker(role, source) else dict(source)


def _about(
    format_name: str, facts: Facts, sides: tuple[Side, ...], left_out: int, *, with_licence: bool
) -> dict[str, Any]:
    manifest = facts.manifest
    return {
        "export_version": EXPORT_VERSION,
        "format": format_name,
        "magc_version": __version__,
        "dataset": {
            "name": facts.name,
            "format_version": manifest["format_version"],
            "magc_version": manifest["magc_version"],
        },
        "selection": manifest["view"]["where"],
        "samples": {side.name: len(side.rows) for side in sides},
        "left_out": left_out,
        "sources": manifest["sources"],
        "exported_under_a_licence_of_the_exporter": with_licence,
        "classes": manifest["classes"],
    }
