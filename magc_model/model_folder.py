"""What the folders of all trained networks have in common: safetensors and a config.json, whole or not at all."""

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from glob import escape as glob_escape
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from magc_data.atomic import TEMPORARY_SUFFIX, sync_folder
from magc_model.errors import ModelError

CONFIG_NAME = "config.json"
CARD_NAME = "README.md"
WEIGHTS_SUFFIX = ".safetensors"
LARGE_BYTES = 2**20
"""Tensors from this size on are hashed in threads; of smaller ones, a thread costs more than it saves."""


def check_is_there(path: Path) -> None:
    """Raise ModelError where a file of a model is missing."""
    if not path.is_file():
        raise ModelError(f"{path} is missing: the model is incomplete, copy the whole directory again")


def write_tensors(folder: Path, new: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Write `name.safetensors` into the new folder that is to take the place of `folder`, where config.json lies.

    A tensor of single precision whose numbers are all half-precision ones takes half the room.

    Raises:
        ModelError: there is no room.
    """
    path = new / f"{name}{WEIGHTS_SUFFIX}"
    contents = {key: _as_stored(each.detach().cpu().contiguous()) for key, each in tensors.items()}
    try:
        safetensors.torch.save_file(contents, path)
    except SafetensorError as error:
        raise ModelError(
            f"{folder} cannot be written ({in_one_line(error)}): make room for it, or give another path"
        ) from None
    shutil.copymode(new / CONFIG_NAME, path)  # safetensors keeps its files from everyone else
    sync_file(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, those of half precision as the same numbers in single precision.

    Raises:
        ModelError: it is none, or damaged.
    """
    try:
        tensors = safetensors.torch.load_file(path)
        return {key: each.float() if each.dtype is torch.float16 else each for key, each in tensors.items()}
    except (SafetensorError, OSError) as error:
        if is_pickle(path):
            raise ModelError(f"{path} is a pickle under another name, which is never read") from None
        raise ModelError(
            f"{path} is damaged or no safetensors file ({in_one_line(error)}): copy the whole directory again"
        ) from None


def _as_stored(tensor: Tensor) -> Tensor:
    """In half precision where that loses nothing."""
    if tensor.dtype is not torch.float32:
        return tensor
    half = tensor.half()
    return half if torch.equal(half.float(), tensor) else tensor


def check_tensors(where: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check names, shapes and dtypes.

    Raises:
        ModelError: one is another.
    """
    for name in sorted(found.keys() ^ expected.keys()):
        verb = "lacks" if name in expected else "has an unknown"
        raise ModelError(f"{where} {verb} '{name}': it does not belong to the model that {CONFIG_NAME} describes")
    for name, tensor in found.items():
        if (tensor.shape, tensor.dtype) != (expected[name].shape, expected[name].dtype):
            raise ModelError(
                f"{where}: '{name}' is {described(tensor)}, expected {described(expected[name])}: it does not belong "
                f"to the model that {CONFIG_NAME} describes"
            )


def is_pickle(path: Path) -> bool:
    """Whether a file is one of `torch.save` or `pickle`, whatever its name."""
    with path.open("rb") as stream:
        start = stream.read(4)
    return start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))


def fingerprint_of(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and contents."""

    def digest(name: str) -> str:
        tensor = tensors[name].detach().cpu().contiguous()
        content = hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().data).hexdigest()
        return f"{name} {described(tensor)} {content}\n"

    # Hashing leaves the interpreter to others: a large tensor a thread.
    with ThreadPoolExecutor() as pool:
        large = {name: pool.submit(digest, name) for name, each in tensors.items() if each.nbytes >= LARGE_BYTES}
        lines = [large[name].result() if name in large else digest(name) for name in sorted(tensors)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def described(tensor: Tensor) -> str:
    """Its dtype and shape."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def former_folder(folder: Path) -> Path:
    """Where a directory lies while another takes its place."""
    return folder.absolute().with_name(f".{folder.absolute().name}.former")


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` when the block ends without an error, and else goes away.

    Folders cannot be exchanged in one step everywhere: for an instant the former one has another name, under which
    `find_model` finds it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    former = former_folder(folder)
    if former.is_dir() and not folder.exists():
        former.rename(folder)
    for leftover in (former, *folder.parent.glob(f".{glob_escape(folder.name)}.*{TEMPORARY_SUFFIX}")):
        shutil.rmtree(leftover, ignore_errors=True)
    new = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    new.mkdir()
    try:
        yield new
        sync_folder(new)
        if folder.exists():
            folder.rename(former)
        new.rename(folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        if former.is_dir() and not folder.exists():
            former.rename(folder)
        raise
    sync_folder(folder.parent)
    shutil.rmtree(former, ignore_errors=True)


def sync_file(path: Path) -> None:
    """Have a file on the disk before anything says that it is there."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def in_one_line(error: Exception) -> str:
    """What another library says, for an error of our own."""
    return " ".join(str(error).split())[:300] or type(error).__name__
