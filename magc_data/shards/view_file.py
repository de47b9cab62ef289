"""`view.json`: a dataset that is some rows of another one. Nothing is copied, and the rows are chosen when it is read.

    VIEW/view.json    {"view_version": 1, "base": "../data", "where": "alignment > 0.2"}

The base is a dataset or another view; its path is absolute, or relative to the view's folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from magc_data.errors import WAY_OUT, DatasetError
from magc_data.shards import index
from magc_data.shards.index_check import column_findings, index_findings
from magc_data.shards.storage import Location, location
from magc_data.where import WhereError, compile_where

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.compute as pc

VIEW_NAME = "view.json"
DATASET_NAME = "dataset.json"
"""What is a dataset itself is no view."""
VIEW_VERSION = 1
MAX_DEPTH = 16
"""Views of views of views; more is taken for a circle."""


class Condition(NamedTuple):
    """What one view asks for."""

    view: Path | None
    """None where it is asked for in passing."""
    where: str


class Resolved(NamedTuple):
    """A folder that was given as a dataset: where its files are, and which rows of them it is."""

    folder: Location
    """Holds index and shards; the folder itself where it is no view."""
    conditions: tuple[Condition, ...]
    """Of the views on the way, the outermost first; all hold for its rows."""


def is_view(data: Path) -> bool:
    """Whether a folder is a view (of what, and whether that is there, is not looked at)."""
    return (data / VIEW_NAME).is_file() and not (data / DATASET_NAME).exists()


def resolve(data: Path | str) -> Resolved:
    """Where a dataset's files are and which rows it is; what is at an address is no view.

    Raises:
        DatasetError: a view that cannot be followed.
    """
    folder = location(data)
    return Resolved(*follow_views(folder)) if isinstance(folder, Path) else Resolved(folder, ())


def follow_views(data: Path) -> tuple[Path, tuple[Condition, ...]]:
    """Follow views down to the folder with the files; a folder that is no view stands for itself.

    Raises:
        DatasetError: a view is damaged, of another version, in a circle, or what it is a view of is not there.
    """
    folder, conditions = data, list[Condition]()
    while is_view(folder):
        if len(conditions) == MAX_DEPTH:
            raise DatasetError(f"{data} is a view of more than {MAX_DEPTH} views one of another: are they in a circle?")
        base, where = _read_view(folder / VIEW_NAME)
        conditions.append(Condition(folder, where))
        below = (folder / base).resolve()
        if not below.is_dir():
            raise DatasetError(
                f"{folder} is a view of {below}, which is not there: move it back, or make the view again with "
                f"`magc-data filter DATA --where '{where}' --out {folder}`"
            )
        folder = below
    return folder, tuple(conditions)


def _read_view(path: Path) -> tuple[str, str]:
    damaged = DatasetError(
        f"{path} is damaged (no JSON with view_version, base and where): make the view again with `magc-data filter`"
    )
    try:
        document = json.loads(path.read_bytes())
        version, base, where = document["view_version"], document["base"], document["where"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise damaged from None
    if version != VIEW_VERSION:
        raise DatasetError(f"{path} is view format {version!r}, this build of magc reads {VIEW_VERSION}")
    if not isinstance(base, str) or not isinstance(where, str) or not base or "\0" in base:
        raise damaged
    return base, where


def read_rows(resolved: Resolved, columns: list[str] | None = None, chosen: pc.Expression | None = None) -> pa.Table:
    """The rows of a dataset or view, or those of them that are chosen; they keep their order.

    Raises:
        DatasetError: the index is absent, damaged or lacks a column, or a view's expression does not fit it.
        WhereError: an expression that is no view's does not.
    """
    path = resolved.folder / index.INDEX_NAME
    file = index.TableFile(path)
    if missing := [name for name in (columns or index.SAMPLE_COLUMNS) if name not in file.schema.names]:
        raise DatasetError(f"{path} lacks the column '{missing[0]}': {WAY_OUT}")
    # Before a condition meets numbers where it expects text.
    if finding := next(column_findings(file.schema), None):
        raise DatasetError(f"{path} {finding}: {WAY_OUT}")
    for condition in resolved.conditions:
        expression = _compiled(condition, file.schema)
        chosen = expression if chosen is None else chosen & expression
    rows = file.read(columns, chosen)
    if finding := next(index_findings(rows), None):
        raise DatasetError(f"{path} {finding}: {WAY_OUT}")
    return rows


def _compiled(condition: Condition, schema: pa.Schema) -> pc.Expression:
    try:
        return compile_where(condition.where, schema)
    except WhereError as error:
        if condition.view is None:
            raise
        raise DatasetError(f"{condition.view / VIEW_NAME}: {error}") from None


def view_json(base: str, where: str) -> bytes:
    """The file's content."""
    document: dict[str, Any] = {"view_version": VIEW_VERSION, "base": base, "where": where}
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
