"""What was fetched: one SQLite file a source, read by many processes while one writes.

Write-ahead logging makes a kill at any instant harmless: what was committed stays, what was not is asked for again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sqlite3
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from magc_data.atomic import write_atomically
from magc_data.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from magc_data.sources.protocols import SourceInfo

COMMIT_EVERY_S = 0.5
"""Answers wait in memory no longer than this: what a kill can cost."""

_FORMAT = 1  # PRAGMA user_version of the file: append only, never renumber
_BUSY_S = 60.0
_KEYS_A_QUERY = 500
_TABLE = """
CREATE TABLE answers (
    key TEXT PRIMARY KEY,
    status INTEGER NOT NULL,
    headers TEXT NOT NULL,
    body BLOB NOT NULL,
    verdict TEXT NOT NULL,
    transient INTEGER NOT NULL,
    fetched_at TEXT NOT NULL
)"""
_REPLACE = "REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)"


class Answer(NamedTuple):
    """One answer of a service, and what was made of it."""

    key: str
    status: int
    headers: Mapping[str, str]
    body: bytes
    """The server's bytes, untouched; empty where they are of no use."""
    verdict: str
    """JSON, the source's own."""
    transient: bool
    """True: to be asked for again."""
    fetched_at: str


def now_utc() -> str:
    """This second, ISO 8601."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Cache:
    """The answers of one source. Pickles as its path; each process and thread opens the file for itself, if need be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mine = threading.local()
        self._waiting: list[Answer] = []
        self._waiting_since = 0.0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Cache], tuple[Path]]:
        return Cache, (self.path,)

    def read(self, key: str) -> Answer | None:
        """One answer, None where there is none.

        Raises:
            SourceError: the file is damaged or cannot be read.
        """
        return self.read_many((key,)).get(key)

    def read_many(self, keys: Sequence[str]) -> dict[str, Answer]:
        """The answers there are to some keys.

        Raises:
            SourceError: the file is damaged or cannot be read.
        """
        return {
            key: Answer(key, status, json.loads(headers), body, verdict, bool(transient), fetched_at)
            for key, status, headers, body, verdict, transient, fetched_at in self._select("*", keys)
        }

    def settled(self, keys: Sequence[str]) -> dict[str, str]:
        """Verdicts, by key, of the answers that need not be asked for again; bodies stay where they are.

        Raises:
            SourceError: the file is damaged or cannot be read.
        """
        return {
            key: verdict for key, verdict, transient in self._select("key, verdict, transient", keys) if not transient
        }

    def put(self, answer: Answer) -> None:
        """Keep an answer, in place of an older one. It is on disk at most `COMMIT_EVERY_S` after the next call here.

        Raises:
            SourceError: the file is damaged or cannot be written.
        """
        with self._lock:
            if not self._waiting:
                self._waiting_since = time.monotonic()
            self._waiting.append(answer)
        self.flush_if_due()

    def flush_if_due(self) -> None:
        """Write what has waited long enough; call it while waiting for slow answers.

        Raises:
            SourceError: the file is damaged or cannot be written.
        """
        if self._waiting and time.monotonic() - self._waiting_since >= COMMIT_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Write all that waits, in one transaction.

        Raises:
            SourceError: the file is damaged or cannot be written.
        """
        with self._lock, self._plain_errors():
            if not self._waiting:
                return
            rows = [(*answer[:2], json.dumps(dict(answer.headers)), *answer[3:]) for answer in self._waiting]
            connection = self._connection()
            with _transaction(connection):
                connection.executemany(_REPLACE, rows)
            self._waiting.clear()

    def close(self) -> None:
        """Write what waits and close this thread's connection."""
        self.flush()
        _, connection = getattr(self._mine, "connection", (0, None))
        if connection is not None:
            connection.close()
            del self._mine.connection

    def _select(self, columns: str, keys: Sequence[str]) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = []
        with self._plain_errors():
            if not hasattr(self._mine, "connection") and not self.path.exists():
                return []
            connection = self._connection()
            for start in range(0, len(keys), _KEYS_A_QUERY):
                part = keys[start : start + _KEYS_A_QUERY]
                query = f"SELECT {columns} FROM answers WHERE key IN ({','.join('?' * len(part))})"  # noqa: S608 - no data
                rows += connection.execute(query, part).fetchall()
        return rows

    def _connection(self) -> sqlite3.Connection:
        opened: tuple[int, sqlite3.Connection] | None = getattr(self._mine, "connection", None)
        if opened is not None:
            process, connection = opened
            if process == os.getpid():
                return connection
            _INHERITED.append(connection)  # opened before a fork: SQLite forbids even closing it here
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = _open(self.path)
        self._mine.connection = (os.getpid(), connection)
        return connection

    @contextlib.contextmanager
    def _plain_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            problem = _WAYS_OUT.get(code, _UNKNOWN).format(path=self.path, error=error)
            raise SourceError(f"the cache of fetched tiles {self.path} {problem}") from None
        except OSError as error:
            raise SourceError(
                f"the cache of fetched tiles {self.path} cannot be used ({error.strerror or error}): "
                "set MAGC_CACHE_DIR to another folder"
            ) from None


_INHERITED: list[sqlite3.Connection] = []

_DAMAGED = "is damaged: delete this file (and {path}-wal and {path}-shm) and run again, which fetches its tiles anew"
_UNKNOWN = "cannot be used ({error}): set MAGC_CACHE_DIR to another folder, or delete this file"
_WAYS_OUT = {
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
    sqlite3.SQLITE_ERROR: _DAMAGED,  # our own statements are right: the table is not ours
    sqlite3.SQLITE_MISMATCH: _DAMAGED,
    sqlite3.SQLITE_FULL: "cannot grow, for the disk is full: free some space, then run the same command again",
    sqlite3.SQLITE_BUSY: f"has been locked by another program for {_BUSY_S:.0f} s: wait for its end, then run again",
    sqlite3.SQLITE_READONLY: "cannot be written: change its permissions, or set MAGC_CACHE_DIR to another folder",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: check its permissions, or set MAGC_CACHE_DIR to another folder",
}


def _open(path: Path) -> sqlite3.Connection:
    # Each thread has its own connection; the last thread to let go of one may be another.
    connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        # NORMAL: with a write-ahead log nothing is lost when this process dies, and a power cut costs the last commits.
        connection.execute("PRAGMA synchronous = NORMAL")
        if _user_version(connection) == 0:
            _use_write_ahead_log(connection)
            with _transaction(connection):
                if _user_version(connection) == 0:  # no other process was faster
                    connection.execute(_TABLE)
                    connection.execute(f"PRAGMA user_version = {_FORMAT}")
        found = _user_version(connection)
    except BaseException:
        connection.close()
        raise
    if found != _FORMAT:
        connection.close()
        raise SourceError(
            f"the cache of fetched tiles {path} is of format {found}, this version of magc reads {_FORMAT}: "
            "delete the file (its tiles are fetched anew), or set MAGC_CACHE_DIR to another folder"
        )
    return connection


def _user_version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    # SQLite does not wait for others here, whatever its timeout, when several processes make the file at once.
    deadline = time.monotonic() + _BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def cache_path(cache_dir: Path, name: str, identity: str) -> Path:
    """File for the tiles of a source.

    Args:
        cache_dir: as `cache_dir()` gives it.
        name: what a person recognises.
        identity: what tells this source from others, free of secrets (for files can be listed by anyone).
    """
    readable = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:40]
    return cache_dir / "tiles" / f"{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.sqlite"


def cache_dir() -> Path:
    """Where fetched things are kept: MAGC_CACHE_DIR, or `magc` in the place that the platform has for caches."""
    if chosen := os.environ.get("MAGC_CACHE_DIR"):
        return Path(chosen).expanduser()
    return _platform_cache_dir() / "magc"


def _platform_cache_dir() -> Path:
    home = Path.home()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    if sys.platform == "darwin":
        return home / "Library" / "Caches"
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return chosen if chosen.is_absolute() else home / ".cache"  # the XDG rules ignore relative paths


def terms_shown_once(cache_dir: Path, info: SourceInfo) -> bool:
    """True the first time that a source with these terms is used on this machine: print them then.

    Raises:
        SourceError: the note that they were shown cannot be written.
    """
    path = cache_dir / "terms-shown.json"
    digest = hashlib.sha256(f"{info.terms}\n{info.attribution}\n{info.licence}".encode()).hexdigest()
    try:
        shown = json.loads(path.read_bytes())
    except (OSError, ValueError):
        shown = {}
    if not isinstance(shown, dict):
        shown = {}
    if shown.get(info.name) == digest:
        return False
    try:
        write_atomically(path, json.dumps({**shown, info.name: digest}, indent=1, sort_keys=True).encode())
    except OSError as error:
        raise SourceError(
            f"the cache folder {cache_dir} cannot be written ({error.strerror or error}): "
            "change its permissions, or set MAGC_CACHE_DIR to another folder"
        ) from None
    return True
