"""Open files stay open between reads, once in each process and thread, and never cross from one to another."""

from __future__ import annotations

import functools
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Handle = TypeVar("Handle")


def open_once(max_open: int) -> Callable[[Callable[[str], Handle]], Callable[[str], Handle]]:
    """Decorate a function that opens a path: the `max_open` last used handles are kept.

    Handles of GDAL, SQLite and zip files may be used neither by two threads at once nor after a fork. A file that was
    replaced is opened anew.
    """

    def decorate(opener: Callable[[str], Handle]) -> Callable[[str], Handle]:
        @functools.lru_cache(maxsize=max_open)
        def cached(path: str, _process: int, _thread: int, _state: tuple[int, ...]) -> Handle:
            return opener(path)

        @functools.wraps(opener)
        def open_here(path: str) -> Handle:
            return cached(path, os.getpid(), threading.get_ident(), _state(path))

        return open_here

    return decorate


def _state(path: str) -> tuple[int, ...]:
    """What changes when a file does; nothing where there is none, which the opener will say better."""
    try:
        found = Path(path).stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
