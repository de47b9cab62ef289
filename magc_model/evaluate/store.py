"""Measurements on disk, one SQLite file: a run that was ended at any instant goes on where it stood.

A measurement belongs to what it was made with: `context` says how pictures were measured, `version` what coded them.
What was made otherwise stays in the file and is not looked at.
"""

import contextlib
import io
import sqlite3
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from magc_model.errors import EvaluationError
from magc_model.evaluate.measurement import Cost, Footprint, Measurement, On

_FORMAT = 1
_PATIENCE_S = 2.0
_TABLES = """
CREATE TABLE IF NOT EXISTS measurement (
    context TEXT NOT NULL, codec TEXT NOT NULL, version TEXT NOT NULL, rate REAL NOT NULL, kind TEXT NOT NULL,
    key TEXT NOT NULL, width_px INTEGER NOT NULL, height_px INTEGER NOT NULL, bytes INTEGER NOT NULL,
    stream_bytes INTEGER, encode_s REAL NOT NULL, decode_s REAL NOT NULL, arrays BLOB NOT NULL,
    PRIMARY KEY (context, codec, version, rate, kind, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS picture (
    codec TEXT NOT NULL, version TEXT NOT NULL, rate REAL NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL,
    png BLOB NOT NULL,
    PRIMARY KEY (codec, version, rate, kind, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS footprint_on (
    codec TEXT NOT NULL, version TEXT NOT NULL, rate REAL NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL,
    encode_s REAL NOT NULL, decode_s REAL NOT NULL, peak_mb REAL NOT NULL,
    PRIMARY KEY (codec, version, rate, kind, key)
) WITHOUT ROWID;
"""

_ENVIRONMENT = {
    "BUSY": ("another evaluation is using it", "wait for its end, or choose another folder"),
    "LOCKED": ("another evaluation is using it", "wait for its end, or choose another folder"),
    "FULL": ("the disk is full", "make room"),
    "READONLY": ("it may only be read", "choose a folder that can be written"),
    "CANTOPEN": ("it cannot be opened or made there", "choose a folder that can be written"),
}
"""What keeps a sound file from being used, by the name of SQLite's code; and the way out."""

_ADD = "INSERT OR REPLACE INTO measurement VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_KEYS = "SELECT key FROM measurement WHERE context = ? AND codec = ? AND version = ? AND rate = ? AND kind = ?"
_SIZES = "SELECT key, bytes FROM measurement WHERE context = ? AND codec = ? AND version = ? AND rate = ? AND kind = ?"
_READ = """
SELECT key, width_px, height_px, bytes, stream_bytes, encode_s, decode_s, arrays FROM measurement
WHERE context = ? AND codec = ? AND version = ? AND rate = ? AND kind = ? ORDER BY key
"""


class Point(NamedTuple):
    """One codec at one rate on one kind of item."""

    codec: str
    version: str
    rate: float
    on: On


class MeasurementStore:
    """The file; one process writes it.

    Args:
        path: made where it is not.
        context: what tells measurements of another kind apart.
        data_digest: of the items: a file holds measurements of one set of samples.

    Raises:
        EvaluationError: the file is none of ours, damaged, or holds measurements of other data.
    """

    def __init__(self, path: Path, context: str, data_digest: str) -> None:
        self._path, self._context = path, context
        with self._readable(), contextlib.ExitStack() as unless_opened:
            self._database = sqlite3.connect(path, timeout=_PATIENCE_S)
            unless_opened.callback(self._database.close)
            self._database.execute("PRAGMA synchronous = FULL")
            # Held until `close`: of two evaluations at once, each would measure everything.
            self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
            [format_] = self._database.execute("PRAGMA user_version").fetchone()
            if format_ not in (0, _FORMAT):
                raise EvaluationError(
                    f"{path} is of format {format_}, expected {_FORMAT}: it was written by another version of magc, so "
                    "choose another folder"
                )
            self._database.executescript(_TABLES)
            self._database.execute("CREATE TABLE IF NOT EXISTS data (digest TEXT NOT NULL)")
            self._database.execute(f"PRAGMA user_version = {_FORMAT}")
            known = [digest for (digest,) in self._database.execute("SELECT digest FROM data")]
            if not known:
                self._database.execute("INSERT INTO data VALUES (?)", (data_digest,))
                self._database.commit()
            elif known != [data_digest]:
                raise EvaluationError(
                    f"{path} holds measurements of other samples than these: choose another folder for the report"
                )
            unless_opened.pop_all()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def done(self, point: Point) -> set[str]:
        """Keys of the items that were measured."""
        return {key for (key,) in self._select(_KEYS, point)}

    def add(self, version: str, found: list[Measurement]) -> None:
        """Keep measurements: on disk when this returns."""
        rows = []
        for each in found:
            size = each.width_px, each.height_px
            rows.append(
                (self._context, each.codec, version, each.rate, each.on, each.key, *size, *each.cost, _packed(each))
            )
        with self._readable(), self._database:
            self._database.executemany(_ADD, rows)

    def read(self, point: Point) -> Iterator[Measurement]:
        """The measurements of a point, by key.

        Raises:
            EvaluationError: the file is damaged.
        """
        for key, width_px, height_px, *cost, arrays in self._select(_READ, point):
            parts = self._unpacked(arrays)
            yield Measurement(
                point.codec, point.rate, point.on, key, width_px, height_px, Cost(*cost),
                parts["values"], parts["features"], parts["confusions"],
            )  # fmt: skip

    def add_picture(self, point: Point, key: str, png: bytes) -> None:
        """Keep a decoded picture for people to look at."""
        with self._readable(), self._database:
            self._database.execute(
                "INSERT OR REPLACE INTO picture VALUES (?, ?, ?, ?, ?, ?)",
                (point.codec, point.version, point.rate, point.on, key, png),
            )

    def picture(self, point: Point, key: str) -> bytes | None:
        """A decoded picture that was kept."""
        query = "SELECT png FROM picture WHERE codec = ? AND version = ? AND rate = ? AND kind = ? AND key = ?"
        with self._readable():
            row = self._database.execute(query, (point.codec, point.version, point.rate, point.on, key)).fetchone()
        return None if row is None else row[0]

    def file_bytes(self, point: Point, key: str) -> int | None:
        """Size of an item's file, if it was measured."""
        rows = [size for other, size in self._select(_SIZES, point) if other == key]
        return rows[0] if rows else None

    def add_footprint(self, point: Point, key: str, found: Footprint) -> None:
        """Keep what a codec takes for an item."""
        with self._readable(), self._database:
            self._database.execute(
                "INSERT OR REPLACE INTO footprint_on VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*point, key, *found)
            )

    def footprint(self, point: Point, key: str) -> Footprint | None:
        """What a codec takes for an item, if it was measured."""
        query = (
            "SELECT encode_s, decode_s, peak_mb FROM footprint_on "
            "WHERE codec = ? AND version = ? AND rate = ? AND kind = ? AND key = ?"
        )
        with self._readable():
            row = self._database.execute(query, (*point, key)).fetchone()
        return None if row is None else Footprint(*row)

    def _select(self, query: str, point: Point) -> list[Any]:
        with self._readable():
            return self._database.execute(query, (self._context, *point)).fetchall()

    def _unpacked(self, data: bytes) -> dict[str, dict[str, Any]]:
        parts: dict[str, dict[str, Any]] = {"values": {}, "features": {}, "confusions": {}}
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                for name in arrays.files:
                    kind, _, metric = name.partition("/")
                    parts[kind][metric] = arrays[name]
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise self._damaged(error) from None
        return parts

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise self._out_of_reach(error) from None
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from None

    def _out_of_reach(self, error: sqlite3.OperationalError) -> EvaluationError:
        """The file may be sound: it must not be thrown away."""
        name = getattr(error, "sqlite_errorname", "")
        why, way_out = _ENVIRONMENT.get(name.removeprefix("SQLITE_").partition("_")[0], (str(error), "put this right"))
        return EvaluationError(
            f"{self._path} cannot be read or written ({why}): {way_out}; what was measured is kept, and the same "
            "command goes on"
        )

    def _damaged(self, error: Exception) -> EvaluationError:
        return EvaluationError(
            f"{self._path} cannot be used as a file of measurements ({type(error).__name__}: {error}): remove it, or "
            "choose another folder"
        )


def _packed(found: Measurement) -> bytes:
    arrays: dict[str, Any] = {}
    for kind, parts in (("values", found.values), ("features", found.features), ("confusions", found.confusions)):
        arrays |= {f"{kind}/{name}": array for name, array in parts.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()
