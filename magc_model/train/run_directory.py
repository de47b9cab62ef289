"""The folder of a training run: what it was asked to do, what it has measured, and checkpoints to go on from.

    RUN/config.json                what the run does, resolved; the same command finds itself here again
    RUN/metrics.jsonl              a line every few steps and a line a validation; no step twice
    RUN/tensorboard/               the same figures for TensorBoard
    RUN/validation/step-NNNNNN.png
    RUN/checkpoints/step-NNNNNNNN/ model, ema, optimizer (safetensors), state.json with the files' digests
    RUN/model/                     the trained model, at the end
    RUN/finished.json              written last

A checkpoint is written under another name and renamed when it is whole, so that what has a checkpoint's name is one.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from magc_data.atomic import TEMPORARY_SUFFIX, remove_temporary_files, sync_folder, write_atomically
from magc_model.errors import CheckpointError, UsageError
from magc_model.train.options import flag

FORMAT_VERSION = 1

FREE_TO_CHANGE = frozenset(
    {
        "magc_version",
        "data.path",
        "start_from.path",
        "model.base_model",
        "device",
        "workers",
        "checkpoint_every",
        "validate_every",
        "keep",
    }
)
"""What does not decide where a run ends. Of data and models, it is the content."""

MAY_BE_RAISED = frozenset({"training.steps"})
MAY_BE_LOWERED = frozenset({"training.learning_rate"})
"""Once a run has diverged, its last good checkpoint is of use only so."""


class Checkpoint(NamedTuple):
    """Everything a run needs to go on; what is random in a step depends on the seed and its number alone."""

    step: int
    """Steps done."""
    model: dict[str, Tensor]
    """Trained weights and the statistics that training moves, by name."""
    ema: dict[str, Tensor]
    """Averaged weights; empty where averaging is off."""
    optimizer: dict[str, Tensor]
    """State of the optimizers, by optimizer, kind and parameter."""
    watch: dict[str, float]
    """What watches over the loss remembers."""


TENSORS = ("model", "ema", "optimizer")


class RunDirectory:
    """A run's folder, found by `find_run` or made by `open_run`."""

    def __init__(self, path: Path, config: dict[str, Any], *, keep: int) -> None:
        self.path, self.config, self._keep = path, config, keep

    @property
    def model(self) -> Path:
        """Where the trained model is at the end."""
        return self.path / "model"

    @property
    def metrics(self) -> Path:
        """The file of measurements."""
        return self.path / "metrics.jsonl"

    @property
    def is_finished(self) -> bool:
        """Whether all steps are done and the model is written."""
        document = _read_json(self.path / "finished.json")
        return document is not None and document.get("steps") == self.config["training"]["steps"]

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, the newest first."""
        found = (self.path / "checkpoints").glob("step-*")
        return sorted((each for each in found if re.fullmatch(r"step-\d{8}", each.name)), reverse=True)

    def newest_checkpoint(self) -> Checkpoint | None:
        """What to go on from; none for a fresh run.

        Raises:
            CheckpointError: the newest checkpoint is damaged.
        """
        for path in self.checkpoints():
            return read_checkpoint(path)
        return None

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Put a checkpoint on disk, then delete those beyond the newest few.

        Raises:
            CheckpointError: the disk is full.
        """
        place = self.path / "checkpoints" / f"step-{checkpoint.step:08d}"
        with _room_for(place), _appearing(place) as temporary:
            digests = {}
            for name in TENSORS:
                file = temporary / f"{name}.safetensors"
                tensors = {key: each.contiguous() for key, each in getattr(checkpoint, name).items()}
                safetensors.torch.save_file(tensors, file)
                digests[name] = _sync_and_digest(file)
            state = {
                "format_version": FORMAT_VERSION,
                "step": checkpoint.step,
                "watch": checkpoint.watch,
                "sha256": digests,
            }
            write_atomically(temporary / "state.json", _json(state))
        for old in self.checkpoints()[self._keep :]:
            _remove(old)

    def cut_metrics(self, step: int) -> None:
        """Forget what was measured after a step: it is about to be measured again."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_bytes().splitlines(keepends=True):
            try:
                measured = json.loads(line)["step"]
            except (ValueError, KeyError, TypeError):
                continue  # the line that a kill cut short
            if measured <= step and line.endswith(b"\n"):
                kept.append(line)
        write_atomically(self.metrics, b"".join(kept))

    def measure(self, step: int, figures: dict[str, Any]) -> None:
        """Add a line to the measurements."""
        with self.metrics.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **figures}) + "\n")

    def finish(self) -> None:
        """Say that all is done."""
        write_atomically(self.path / "finished.json", _json({"steps": self.config["training"]["steps"]}))


def find_run(path: Path, config: dict[str, Any], *, keep: int) -> RunDirectory:
    """The run in a folder, which may not exist yet; nothing is written.

    Args:
        path: the run's folder.
        config: what the run does, JSON-ready.
        keep: newest checkpoints to keep.

    Raises:
        UsageError: the folder is of a run with other options, or of no run.
    """
    place = path / "config.json"
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file: choose another --out")
    if place.exists():
        _check_same(path, _read_json(place), config)
    elif path.is_dir() and any(each.suffix != TEMPORARY_SUFFIX for each in path.iterdir()):
        raise UsageError(f"{path} is not empty and no training run: choose another --out")
    return RunDirectory(path, config, keep=keep)


def open_run(path: Path, config: dict[str, Any], *, keep: int) -> RunDirectory:
    """A new run, or one that the same command began; with more steps than it was begun with, it is taken further.

    Args and errors are those of `find_run`.
    """
    run = find_run(path, config, keep=keep)
    write_atomically(path / "config.json", _json(config))
    for folder in (path, path / "checkpoints", path / "validation"):
        folder.mkdir(exist_ok=True)
        for leftover in folder.glob(f".*{TEMPORARY_SUFFIX}/"):
            shutil.rmtree(leftover)
        remove_temporary_files(folder)
    return run


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of `RunDirectory.write_checkpoint`.

    Raises:
        CheckpointError: it is damaged; the message names it and says what to do.
    """
    try:
        state = json.loads((path / "state.json").read_bytes())
        if state["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"the checkpoint {path} is of format {state['format_version']}, this version of magc reads "
                f"{FORMAT_VERSION}: go on with the version that wrote it"
            )
        tensors = {}
        for name in TENSORS:
            file = path / f"{name}.safetensors"
            if _digest(file) != state["sha256"][name]:
                raise _damaged(path, f"{file.name} is not what was written")
            tensors[name] = safetensors.torch.load_file(file)
        return Checkpoint(step=int(state["step"]), watch=dict(state["watch"]), **tensors)
    except FileNotFoundError as error:
        raise _damaged(path, f"{Path(error.filename).name} is missing") from None
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise _damaged(path, f"{type(error).__name__} in reading it") from None


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {path} is damaged ({what}): delete that folder, and the same command goes on from the "
        "checkpoint before it"
    )


def _check_same(path: Path, before: dict[str, Any] | None, now: dict[str, Any]) -> None:
    if before is None or before.get("format_version") != now["format_version"]:
        raise UsageError(f"{path / 'config.json'} is no run's that this version of magc can read: choose another --out")
    old, new = dict(_flat(before)), dict(_flat(now))
    for name in [*new, *(each for each in old if each not in new)]:
        if name in FREE_TO_CHANGE or old.get(name) == new.get(name):
            continue
        if (name in MAY_BE_RAISED and new[name] > old[name]) or (name in MAY_BE_LOWERED and new[name] < old[name]):
            continue
        raise UsageError(
            f"{path} is a run with {_words(name)} {_shown(old.get(name))}, not {_shown(new.get(name))}: "
            "give the options it was begun with, or choose another --out"
        )


_TYPED = {
    "stage": "stage",
    "processes": "number of processes",
    "data.digest": "data",
    "start_from.fingerprint": "--start-from model",
    "base_model.fingerprint": "weights in --base-model",
    "model.rate.mode": "--rate",
}


def _words(name: str) -> str:
    """An entry of config.json as a person knows it."""
    if name in _TYPED:
        return _TYPED[name]
    section, _, field = name.rpartition(".")
    return {
        "model.map": f"{flag('map_' + field)}",
        "model.rate": f"{flag(field)}",
        "training": flag(field),
        "": flag(field),
    }.get(section, name)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    text = "none" if value is None else json.dumps(value, ensure_ascii=False).strip('"')
    return text if len(text) <= 60 else text[:57] + "..."


def _flat(document: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _json(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync_and_digest(file: Path) -> str:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def _room_for(checkpoint: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        # Safetensors has one error for all that can go wrong with the disk.
        if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise CheckpointError(
            f"there is no room for the checkpoint {checkpoint} ({' '.join(str(error).split())}); older checkpoints are "
            "kept: make room and run the same command again"
        ) from None


@contextlib.contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A folder that takes its name when the block ends without an error, in place of one that had it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(folder)
    temporary.mkdir()
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary)
        raise
    sync_folder(temporary)
    if folder.exists():
        _remove(folder)
    temporary.rename(folder)
    sync_folder(folder.parent)


def _remove(folder: Path) -> None:
    """Delete a folder, of which nothing half-deleted ever has its name."""
    doomed = folder.rename(_temporary(folder))
    shutil.rmtree(doomed)


def _temporary(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
