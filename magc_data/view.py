"""Make a view: a folder that is some rows of a dataset, without a copy of anything."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from magc_data.atomic import write_atomically
from magc_data.errors import UsageError
from magc_data.shards.manifest import read_manifest
from magc_data.shards.view_file import VIEW_NAME, Condition, Resolved, follow_views, read_rows, view_json

if TYPE_CHECKING:
    from pathlib import Path


class ViewResult(NamedTuple):
    """What a filter came to."""

    kept: int
    total: int
    """Rows of the dataset or view that was filtered."""


def make_view(data: Path, where: str, out: Path) -> ViewResult:
    """Write `out/view.json`, which stands for the rows of `data` that the expression is true of.

    Args:
        data: a dataset, or a view of one.
        where: see magc_data.where.
        out: a new or empty folder, or a view to replace.

    Raises:
        WhereError: the expression cannot be read.
        UsageError: nothing is left, or `out` holds something else.
        DatasetError: `data` is no finished dataset.
    """
    total = read_manifest(data)["counts"]["kept"]
    folder, conditions = follow_views(data)
    asked = Resolved(folder, (Condition(None, where), *conditions))
    # All columns, so that a damaged index is told now and not by the first reader.
    kept = len(read_rows(asked))
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file: give --out a folder")
    if out.is_dir() and any(path.name != VIEW_NAME for path in out.iterdir()):
        raise UsageError(f"{out} holds files that are no view: give --out an empty or new folder")
    beneath = [data, *(condition.view for condition in conditions if condition.view)]
    if out.resolve() in {each.resolve() for each in beneath}:
        raise UsageError(f"{out} cannot be a view of itself: give --out another folder")
    if not kept:
        raise UsageError(f"'{where}' is true of none of the {total} samples of {data}: ask for less")
    write_atomically(out / VIEW_NAME, view_json(_path_from(out.resolve(), data.resolve()), where))
    return ViewResult(kept, total)


def _path_from(out: Path, data: Path) -> str:
    """The dataset's path from the view's folder, so that both can be moved together."""
    try:
        return os.path.relpath(data, out).replace(os.sep, "/")
    except ValueError:  # On another drive of Windows nothing is relative.
        return str(data)
