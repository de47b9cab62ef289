"""What `magc-data explore` does: write the page, or serve it until interrupted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magc_data.atomic import atomic_file
from magc_data.errors import UsageError
from magc_data.explore.document import write_page
from magc_data.explore.pictures import plan_pictures
from magc_data.explore.server import DEFAULT_PORT, ExploreServer
from magc_data.explore.table import read_table
from magc_data.progress import Progress
from magc_data.schema.sample import TILE_SIZE_PX

if TYPE_CHECKING:
    from collections.abc import Callable

PICTURES_MB = 64
"""Pictures that a page may hold: above this, browsers take seconds to open it and mail refuses it."""


def write_dataset_page(
    data: Path,
    out: Path | None,
    pictures_mb: int | None,
    say: Callable[[str], None],
    answer: Callable[[str], None],
    *,
    quiet: bool,
    unused: dict[str, Any],
) -> int:
    """Write the page; `say` hears what one should know of it, `answer` what was written."""
    _refuse_unused(unused, "needs --serve")
    pictures_mb = PICTURES_MB if pictures_mb is None else pictures_mb
    if not 1 <= pictures_mb <= 1000:
        raise UsageError(f"--pictures-mb is {pictures_mb}: expected 1 to 1000")
    out = out or Path("explore.html")
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder: give the name of an HTML file")
    table = read_table(data)
    plan = plan_pictures(table, pictures_mb * 1_000_000)
    with Progress(len(plan.rows), "pictures", quiet=quiet) as progress, atomic_file(out) as stream:
        write_page(stream, table, plan, advance=progress.tile_fetched)
    tiles, held = len(table.rows), len(plan.rows)
    pictures = "whole" if plan.size_px == TILE_SIZE_PX else f"as thumbnails of {plan.size_px} pixels"
    whose = "all" if held == tiles else f"{held} of them"
    answer(f"{out}: {tiles} tiles, pictures of {whose} {pictures}, {out.stat().st_size / 1e6:.1f} MB")
    if held < tiles or plan.size_px < TILE_SIZE_PX:
        say(f"whole pictures of all {tiles} tiles are more than {pictures_mb} MB: --serve shows every one")
    for source in table.manifest["sources"].values():
        if not source["redistributable"]:
            say(f"{out} holds pictures of {source['name']} that may not be passed on: keep it to yourself")
    return 0


def serve_dataset(data: Path, port: int | None, answer: Callable[[str], None], *, unused: dict[str, Any]) -> int:
    """Serve the page until interrupted; `answer` hears its address."""
    _refuse_unused(unused, "is of the file, which --serve does not write")
    port = DEFAULT_PORT if port is None else port
    if not 0 <= port <= 65535:
        raise UsageError(f"--port is {port}: expected 0 to 65535")
    with ExploreServer(read_table(data), port) as server:
        answer(f"open {server.url} in a browser on this machine; Ctrl-C ends it")
        sys.stdout.flush()  # whoever reads it through a pipe waits for nothing else
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


def _refuse_unused(options: dict[str, Any], why: str) -> None:
    if given := [name for name, value in options.items() if value is not None]:
        raise UsageError(f"{given[0]} {why}: leave one of them out")
