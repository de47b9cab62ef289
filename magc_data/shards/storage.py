"""Where a dataset's files are: a folder, or an address that fsspec understands (https://, s3://, memory:// ...).

Files are named by their path within the dataset, and every name is checked before it is used, as it may come from an
index or manifest of strangers.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from magc_data.errors import WAY_OUT, DatasetError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

SHARD_PATH = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*/)*[A-Za-z0-9_][A-Za-z0-9_.-]*\.tar")
"""A path within the dataset: no part of it is empty, hidden, `.` or `..`, it is not absolute and no address."""

MAX_MEMBER_BYTES = 1 << 30
"""No picture of 256x256 pixels is larger; an index that says so is damaged."""


class RemoteFolder(NamedTuple):
    """A dataset's folder at an address. Holds no connection, so it pickles; fsspec keeps one a process."""

    url: str

    def __truediv__(self, name: str) -> RemoteFolder:
        """The address of a file in it."""
        return RemoteFolder(f"{self.url.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.url


Location = Path | RemoteFolder
Answer = TypeVar("Answer")


def location(data: Path | str) -> Location:
    """The folder that a path or an address with `://` names."""
    return RemoteFolder(data) if isinstance(data, str) and "://" in data else Path(data)


_EXTRAS = {"http": "remote", "https": "remote", "s3": "s3", "s3a": "s3"}
"""What pip installs for an address."""
_LISTED = ("abfs", "abfss", "az", "file", "gcs", "gs", "memory", "s3", "s3a")
"""Protocols that can say what is in a folder; a web server only says what is under a name."""
_WAITS_S = {"http": (0.25, 0.5, 1.0), "https": (0.25, 0.5, 1.0)}
"""Before asking again what failed in passing; other services' packages do so themselves."""
_S3_OPTIONS = {"config_kwargs": {"retries": {"total_max_attempts": 3}}}
"""s3fs asks 25 times where a connection is lost, and botocore 5 times for each of those unless told: minutes."""
_OPTIONS = {"s3": _S3_OPTIONS, "s3a": _S3_OPTIONS}
_PASSING_STATUS = {408, 429, 500, 502, 503, 504}
_PASSING_ERRORS = {"ClientConnectionError", "ClientPayloadError", "ConnectionError", "TimeoutError"}
"""Names of classes: those of aiohttp cannot be imported where it is not needed."""


def read_bytes(file: Location) -> bytes:
    """A whole file.

    Raises:
        FileNotFoundError: there is none.
        NotADirectoryError: its folder is a file.
        DatasetError: the service refuses.
    """
    return file.read_bytes() if isinstance(file, Path) else _ask(file, lambda files, path: bytes(files.cat_file(path)))


def read_range(folder: Location, name: str, offset: int, size: int) -> bytes:
    """A part of a shard; fewer bytes than asked for where it ends before.

    Raises:
        FileNotFoundError, IsADirectoryError, NotADirectoryError: there is no such file.
        DatasetError: no such part can be, or the service refuses, or it sends something else.
    """
    if not SHARD_PATH.fullmatch(name):
        raise DatasetError(f"the index names the shard {name!r}, which is not in the dataset: {WAY_OUT}")
    if not (0 <= offset < 1 << 62 and 0 <= size <= MAX_MEMBER_BYTES):
        raise DatasetError(
            f"the index says {size} bytes from {offset} on in {folder / name}, which cannot be: {WAY_OUT}"
        )
    if isinstance(folder, Path):
        descriptor = os.open(folder / name, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            # Reserves no more memory than there is file.
            end = min(offset + size, os.fstat(descriptor).st_size)
            if offset >= end:
                return b""
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.read(descriptor, end - offset)
        finally:
            os.close(descriptor)
    found = _ask(folder / name, lambda files, path: bytes(files.cat_file(path, start=offset, end=offset + size)))
    if len(found) > size:
        raise DatasetError(
            f"{folder / name} was sent whole when {size} bytes of it were asked for: the server does not answer range "
            "requests, copy the dataset to this machine"
        )
    return found


def fetch_file(file: RemoteFolder, to: Path) -> None:
    """Copy a file to this machine, in pieces.

    Raises:
        FileNotFoundError: there is none.
        DatasetError: the service refuses.
    """
    _ask(file, lambda files, path: files.get_file(path, str(to)))


def names_in(folder: Location) -> list[str] | None:
    """Paths within a folder of all files in it; None where a service cannot say.

    Raises:
        DatasetError: the service refuses.
    """
    if isinstance(folder, Path):
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    if folder.url.partition("://")[0] not in _LISTED:
        return None

    def found(files: Any, path: str) -> list[str]:
        files.invalidate_cache(path)
        return sorted(name.removeprefix(path.rstrip("/") + "/") for name in files.find(path))

    return _ask(folder, found)


def _ask(file: RemoteFolder, request: Callable[[Any, str], Answer]) -> Answer:
    """Make a request of whatever file system understands the address; again, where it fails in passing."""
    protocol = file.url.partition("://")[0]
    wanted = f'pip install "magc[{_EXTRAS.get(protocol, "remote")}]"'
    try:
        from fsspec.core import url_to_fs
    except ModuleNotFoundError:
        raise UsageError(f"{file} needs the package fsspec: {wanted}") from None
    for wait_s in (*_WAITS_S.get(protocol, ()), None):
        try:
            # Cheap, as fsspec keeps its file systems; of one process only, which makes a fork safe.
            return request(*url_to_fs(file.url, **_OPTIONS.get(protocol, {})))
        except FileNotFoundError:
            raise
        except ImportError as error:
            raise UsageError(f"{file} needs a package that is not installed here ({error}): {wanted}") from None
        except Exception as error:  # noqa: BLE001 - each of fsspec's file systems has errors of its own
            if wait_s is not None and _may_pass(error):
                time.sleep(wait_s)
                continue
            what = " ".join(f"{type(error).__name__} {error}".split())
            raise DatasetError(f"{file} cannot be read ({what}): is the address right, and may you read it?") from None
    raise AssertionError


def _may_pass(error: Exception) -> bool:
    """Whether asking again may help."""
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return status in _PASSING_STATUS
    return any(each.__name__ in _PASSING_ERRORS for each in type(error).__mro__)
