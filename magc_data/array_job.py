"""`build --task I/N`: one of several processes without a scheduler, each of which makes the blocks that are its own.

A block's owner follows from its name, so that nobody hands out work and N may change between runs. Tasks share the
dataset's folder through `shards/staged.py`; a build without `--task` does what is left, and publishes.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from magc_data import area as areas
from magc_data.build import LocalEngine, say_terms
from magc_data.engines.blocks import Failures
from magc_data.errors import DatasetError, UsageError
from magc_data.inputs import open_inputs, resolved_config
from magc_data.progress import Progress
from magc_data.shards.folder import DatasetFolder, read_config, refuse_other_config
from magc_data.shards.manifest import MANIFEST_NAME, read_manifest, to_json
from magc_data.shards.staged import hand_in, own_folder, remove_own
from magc_data.sources.cache import cache_dir
from magc_data.sources.shared_disk import refuse_shared_cache

if TYPE_CHECKING:
    from collections.abc import Callable

    from magc_data.config import BuildConfig
    from magc_data.inputs import Inputs
    from magc_data.label import BlockResult


class Task(NamedTuple):
    """One of several."""

    number: int
    """From 1."""
    total: int

    def owns(self, block_name: str) -> bool:
        """Whether a block is this task's; each block is that of exactly one."""
        digest = hashlib.sha256(block_name.encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.total == self.number - 1


class TaskResult(NamedTuple):
    """What a task came to."""

    made: int
    """Blocks that it made in this run."""
    own: int
    """Blocks that are its own."""
    finished: int
    """Blocks of the dataset that somebody has made."""
    blocks: int
    """Of the dataset."""


def parse_task(text: str) -> Task:
    """`I/N`, with I from 1 to N.

    Raises:
        UsageError: it is not that.
    """
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"--task is '{text}': expected I/N with I from 1 to N, as in 3/8")
    return Task(int(found[1]), int(found[2]))


def build_task(config: BuildConfig, say: Callable[[str], None], *, quiet: bool = False) -> TaskResult:
    """Make the blocks of `config.task` that are not finished.

    The task takes its share of the polite rates: all tasks together ask as often as one build does.

    Raises:
        MagcDataError: in one sentence; every block finished so far is kept.
    """
    task = parse_task(config.task or "")
    if config.engine != "local":
        raise UsageError(f"--task and --engine {config.engine} were both given: a cluster divides the blocks by itself")
    if config.changes:
        raise UsageError(f"--task {config.task} and --changes were both given: build pairs with --engine ray or alone")
    if not isinstance(config.out, Path):
        raise UsageError(
            f"--task {config.task} and --out {config.out}: tasks share a folder, and not a prefix; build into object "
            "storage with --engine ray or without --task"
        )
    folder = DatasetFolder(config.out)
    with open_inputs(config, share=1 / task.total, quiet=quiet) as inputs:
        _refuse_what_tasks_cannot_share(inputs, task)
        identity = resolved_config(inputs)
        names = [block.name for block in areas.blocks(inputs.area, inputs.zoom)]
        if (folder.data / MANIFEST_NAME).exists():
            return _task_of_complete(folder, identity, task, names)
        with folder.locked(shared=True):
            _begin(folder, identity)
            made = _make_own_blocks(inputs, folder, task, config.worker_count, say, quiet=quiet)
            finished = sum(folder.sidecar(name).exists() for name in names)
    return TaskResult(made, sum(map(task.owns, names)), finished, len(names))


def _refuse_what_tasks_cannot_share(inputs: Inputs, task: Task) -> None:
    if task.total == 1:
        return
    refuse_shared_cache(cache_dir())
    if inputs.vectors.info.name == "overpass":
        from magc_data.sources.overpass import is_public_server

        if is_public_server(inputs.vectors.info.address):
            raise UsageError(
                f"--task {task.number}/{task.total} with the public Overpass server would send it {task.total} queries "
                "at once, and it gives each user two slots: use an OpenStreetMap file (--osm FILE), --engine ray, or a "
                "server of your own (MAGC_OVERPASS_URL)"
            )


def _task_of_complete(folder: DatasetFolder, identity: dict[str, object], task: Task, names: list[str]) -> TaskResult:
    manifest = read_manifest(folder.data)
    refuse_other_config(manifest["config"], identity, folder.data)
    if transient := manifest["counts"]["transient"]:
        raise UsageError(
            f"{folder.data} is published, and {transient} of its rejected tiles may come yet: run the same command "
            "without --task to try them once more"
        )
    return TaskResult(0, sum(map(task.owns, names)), len(names), len(names))


def _begin(folder: DatasetFolder, identity: dict[str, object]) -> None:
    """Start a build or join one. Nothing is removed: others are at work.

    Raises:
        DatasetError: the folder holds a build of another configuration.
    """
    for each in (folder.shards, folder.blocks):
        each.mkdir(parents=True, exist_ok=True)
    path = folder.build / "config.json"
    if not path.exists():
        _create_once(path, to_json(identity))
    refuse_other_config(read_config(path), identity, folder.data)


def _create_once(path: Path, data: bytes) -> None:
    """Create a file whole, unless somebody else has: a link, unlike a rename, never replaces."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        path.hardlink_to(temporary)
    except FileExistsError:
        pass
    except OSError as error:
        raise DatasetError(
            f"{path.parent} cannot be used by several tasks ({error.strerror or error}): give --out a folder on a file "
            "system with hard links, such as NFS or Lustre, or build without --task"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def _make_own_blocks(
    inputs: Inputs, folder: DatasetFolder, task: Task, workers: int, say: Callable[[str], None], *, quiet: bool
) -> int:
    """Returns how many blocks were made."""
    say_terms(inputs, say)
    wanted = [
        block
        for block in areas.blocks(inputs.area, inputs.zoom)
        if task.owns(block.name) and not folder.is_finished(block.name)
    ]
    own = own_folder(folder)
    made: list[str] = []
    failures = Failures()

    def finished(result: BlockResult) -> None:
        hand_in(own, folder, result.block_name)
        progress.block_finished(result.kept, result.rejected)
        made.append(result.block_name)

    try:
        description = f"task {task.number}/{task.total}"
        with Progress(sum(len(block.tiles) for block in wanted), description, quiet=quiet) as progress:
            LocalEngine(workers).make(inputs, own, wanted, frozenset(), progress, failures, finished)
    finally:
        remove_own(own)
    failures.raise_if_any(len(wanted))
    return len(made)
