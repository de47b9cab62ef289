"""Large files from the network to the disk: piece by piece, never whole in memory, continued where it was interrupted.

PATH.part          what has come so far
PATH.part.json     which version of the file it is of: another one on the server begins anew
PATH               the whole file; appears last
PATH.json          where and when it came from, and its digest
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from magc_data.atomic import sync_folder, write_atomically
from magc_data.errors import FetchError, SourceError
from magc_data.sources.cache import now_utc
from magc_data.sources.http import DOWNLOAD_POLICY, remove_secrets, service_name
from magc_data.sources.vector_cache import cannot_write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from magc_data.sources.http import HttpClient, HttpResponse

PIECE_BYTES = 8 << 20
MAX_BEGINNINGS = 3
"""A file that changes on the server so often while it is downloaded is given up."""
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class _Version(NamedTuple):
    """Which file the server has."""

    url: str
    etag: str
    last_modified: str
    size: int


def download_once(http: HttpClient, url: str, path: Path, *, quiet: bool) -> Path:
    """The file at an address, kept at `path`; asked for only if it is not there.

    Args:
        http: the client.
        url: http or https.
        path: where it is kept, with `path.json` beside it.
        quiet: no bar on stderr.

    Raises:
        FetchError: the server does not answer properly; what has come is kept, and the next call continues.
        SourceError: the server has no such file, or the cache folder cannot be written.
    """
    if path.is_file():
        return path
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.with_name(f"{path.name}.lock")):
            if not path.is_file():
                version = _fetch_all(http, url, part, quiet=quiet)
                _finish(part, path, version)
    except OSError as error:
        raise cannot_write(path, error) from None
    return path


@contextlib.contextmanager
def _alone(lock_path: Path) -> Iterator[None]:
    """Two builds that begin at once download it once."""
    with lock_path.open("a") as lock:
        if os.name == "posix":
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch_all(http: HttpClient, url: str, part: Path, *, quiet: bool) -> _Version:
    for _ in range(MAX_BEGINNINGS):
        version = _fetch_pieces(http, url, part, quiet=quiet)
        if version is not None:
            return version
        part.unlink(missing_ok=True)
    raise FetchError(
        f"{service_name(url)} gave another file each time while {part.stem} was downloaded: run the same command again"
    )


def _fetch_pieces(http: HttpClient, url: str, part: Path, *, quiet: bool) -> _Version | None:
    """Fetch what is missing; None where the server has another file now than the one that was begun."""
    begun = _begun(part)
    have = part.stat().st_size if begun is not None else 0
    bar = None
    try:
        with part.open("r+b" if begun is not None else "wb") as stream:
            stream.seek(have)
            while begun is None or have < begun.size:
                answer = http.request(
                    "GET",
                    url,
                    policy=DOWNLOAD_POLICY,
                    headers={"Range": f"bytes={have}-{have + PIECE_BYTES - 1}", "Accept-Encoding": "identity"},
                )
                version, start = _version_of(answer, url)
                if begun is None:
                    begun = version
                    write_atomically(_state_path(part), json.dumps(version._asdict()).encode())
                if version != begun or start not in (have, 0):
                    return None
                stream.seek(start)
                stream.write(answer.body)
                have = start + len(answer.body)
                if bar is None:
                    bar = tqdm(
                        total=begun.size,
                        initial=have - len(answer.body),
                        desc=f"download {part.stem}",
                        unit="B",
                        unit_scale=True,
                        disable=quiet,
                        mininterval=0.1 if sys.stderr.isatty() else 10.0,
                        file=sys.stderr,
                    )
                bar.update(len(answer.body))
            stream.truncate(have)
            stream.flush()
            os.fsync(stream.fileno())
    finally:
        if bar is not None:
            bar.close()
    return begun


def _state_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _begun(part: Path) -> _Version | None:
    """The version that was begun; None where nothing was."""
    try:
        version = _Version(**json.loads(_state_path(part).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return version if part.is_file() and part.stat().st_size <= version.size else None


def _version_of(answer: HttpResponse, url: str) -> tuple[_Version, int]:
    """What an answer is a piece of, and where it begins."""
    header = answer.headers.get
    name = remove_secrets(url)
    if answer.status == 206:
        match = _RANGE.fullmatch(header("content-range", ""))
        if match is None or int(match[2]) - int(match[1]) + 1 != len(answer.body):
            raise FetchError(
                f"{service_name(url)} gave a piece of {name} without saying which: run the same command again, or "
                "download the file by other means and give its path"
            )
        return _Version(name, header("etag", ""), header("last-modified", ""), int(match[3])), int(match[1])
    if answer.status == 200:  # a server that cannot give pieces
        return _Version(name, header("etag", ""), header("last-modified", ""), len(answer.body)), 0
    if answer.status == 416:  # the file on the server has become shorter
        return _Version(name, "", "", -1), -1
    raise SourceError(
        f"{service_name(url)} has no such file ({name} gave HTTP {answer.status}): check the address, or download the "
        "file by other means and give its path"
    )


def _finish(part: Path, path: Path, version: _Version) -> None:
    with part.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    facts = version._asdict() | {"sha256": sha256, "downloaded_at": now_utc()}
    write_atomically(path.with_name(f"{path.name}.json"), json.dumps(facts, indent=1).encode())
    part.rename(path)
    sync_folder(path.parent)
    _state_path(part).unlink(missing_ok=True)
