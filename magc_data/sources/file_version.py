"""What pins the content of local files, so that a build resumed on changed files is noticed."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from magc_data.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FULL_DIGEST_BYTES = 2**30
"""Up to this much in all, every byte is digested (one to three seconds); above it, a build would wait minutes."""

END_BYTES = 2**20


def files_version(paths: Sequence[Path]) -> str:
    """A digest over names (without folders) and contents, in the given order: `sha256:HEX`.

    Where the files together exceed `FULL_DIGEST_BYTES`, each is represented by its size, time of change and the
    digest of its first and last mebibyte instead, and the result reads `sha256-of-ends:HEX`.

    Raises:
        SourceError: a file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        sizes = [path.stat().st_size for path in paths]
        whole = sum(sizes) <= FULL_DIGEST_BYTES
        for path, size in zip(paths, sizes, strict=True):
            digest.update(f"{path.name}\0{size}\0".encode())
            with path.open("rb") as stream:
                if whole:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
                else:
                    digest.update(f"{path.stat().st_mtime_ns}\0".encode())
                    digest.update(stream.read(END_BYTES))
                    stream.seek(max(size - END_BYTES, 0))
                    digest.update(stream.read(END_BYTES))
    except OSError as error:
        raise SourceError(
            f"{error.filename} cannot be read ({error.strerror}): check the path and its permissions"
        ) from None
    return f"{'sha256' if whole else 'sha256-of-ends'}:{digest.hexdigest()}"
