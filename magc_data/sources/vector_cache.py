"""What the vector sources keep in the cache folder beside their data: whole small files, and digests of large ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

from magc_data import atomic
from magc_data.errors import SourceError


def cannot_write(path: Path, error: OSError) -> SourceError:
    """The error to raise where the cache folder refuses a file."""
    return SourceError(
        f"cannot write {path} ({error.strerror or error}): free some space, or point MAGC_CACHE_DIR to another disk"
    )


def put(path: Path, data: bytes) -> None:
    """Put a whole file in place, or none.

    Raises:
        SourceError: the cache folder cannot be written.
    """
    try:
        atomic.write_atomically(path, data)
    except OSError as error:
        raise cannot_write(path, error) from None


def cached_sha256(path: Path, cache_dir: Path) -> str:
    """A file's SHA-256 in hex; computed once as long as its size and time of change stay as they are.

    Raises:
        SourceError: there is no such file, it cannot be read, or the cache folder cannot be written.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise SourceError(f"{path} {found}: expected the path of a file")
    try:
        stat = path.stat()
        identity = f"{path.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}"
        remembered = cache_dir / "vectors" / "digests" / hashlib.sha256(identity.encode()).hexdigest()
        if remembered.exists():
            return remembered.read_text(encoding="ascii")
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror}): check its permissions and its disk") from None
    put(remembered, digest.encode("ascii"))
    return digest
