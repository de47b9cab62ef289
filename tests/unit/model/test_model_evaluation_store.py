"""Measurements on disk: the same again, apart by what made them, and whole whatever ends the program."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from magc_model.errors import EvaluationError
from magc_model.evaluate.measurement import Cost, Footprint, Measurement, On
from magc_model.evaluate.store import MeasurementStore, Point


def measurement(key: str, codec: str = "jpeg", rate: float = 1.0, cuts: int = 2) -> Measurement:
    random = np.random.default_rng(sum(key.encode()))
    return Measurement(
        codec,
        rate,
        On.TILES,
        key,
        256,
        256,
        Cost(1234, None, 0.25, 0.125),
        {"psnr": random.normal(size=cuts), "lpips/alex": np.full(cuts, np.nan)},
        {"rand": random.normal(size=(5 * cuts, 8)).astype(np.float32)},
        {"map": random.integers(0, 9, (cuts, 3, 3))},
    )


def same(a: Measurement, b: Measurement) -> bool:
    plain = a[:7] == b[:7]
    arrays = all(
        mine.keys() == theirs.keys() and all(np.array_equal(mine[n], theirs[n], equal_nan=n != "map") for n in mine)
        for mine, theirs in zip(a[7:], b[7:], strict=True)
    )
    return plain and arrays


POINT = Point("jpeg", "9", 1.0, On.TILES)


def test_what_is_added_is_read_again(tmp_path: Path) -> None:
    found = [measurement(key) for key in ("b", "a", "c")]
    store = MeasurementStore(tmp_path / "m.sqlite", "context", "data")
    store.add("9", found)
    store.add_picture(POINT, "a", b"PNG")
    store.add_footprint(POINT, "a", Footprint(1.0, 2.0, 3.0))
    store.close()
    again = MeasurementStore(tmp_path / "m.sqlite", "context", "data")
    assert again.done(POINT) == {"a", "b", "c"}
    read = list(again.read(POINT))
    assert [each.key for each in read] == ["a", "b", "c"]
    assert all(same(a, b) for a, b in zip(read, sorted(found, key=lambda each: each.key), strict=True))
    assert again.picture(POINT, "a") == b"PNG"
    assert again.picture(POINT, "b") is None
    assert again.footprint(POINT, "a") == Footprint(1.0, 2.0, 3.0)
    assert again.footprint(POINT, "b") is None
    assert again.footprint(POINT._replace(rate=2.0), "a") is None


def test_what_was_made_otherwise_is_kept_apart(tmp_path: Path) -> None:
    store = MeasurementStore(tmp_path / "m.sqlite", "context", "data")
    store.add("9", [measurement("a")])
    for other in (POINT._replace(version="10"), POINT._replace(rate=2.0), POINT._replace(on=On.SCENES)):
        assert store.done(other) == set()
    store.close()
    for context, keys in (("other", set()), ("context", {"a"})):
        store = MeasurementStore(tmp_path / "m.sqlite", context, "data")
        assert store.done(POINT) == keys
        store.close()


def test_measurements_of_other_samples_are_refused(tmp_path: Path) -> None:
    MeasurementStore(tmp_path / "m.sqlite", "context", "data").close()
    with pytest.raises(EvaluationError, match="measurements of other samples.*choose another folder"):
        MeasurementStore(tmp_path / "m.sqlite", "context", "more data")


def test_files_that_are_none_are_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.sqlite").write_text("this is no database" * 100)
    with pytest.raises(EvaluationError, match="cannot be used as a file of measurements"):
        MeasurementStore(tmp_path / "text.sqlite", "context", "data")
    with sqlite3.connect(tmp_path / "later.sqlite") as later:
        later.execute("PRAGMA user_version = 7")
    with pytest.raises(EvaluationError, match="of format 7, expected 1"):
        MeasurementStore(tmp_path / "later.sqlite", "context", "data")
    store = MeasurementStore(tmp_path / "m.sqlite", "context", "data")
    store.add("9", [measurement("a")])
    store.close()
    with sqlite3.connect(tmp_path / "m.sqlite") as damaged:
        damaged.execute("UPDATE measurement SET arrays = x'0011'")
    with pytest.raises(EvaluationError, match="cannot be used as a file of measurements"):
        list(MeasurementStore(tmp_path / "m.sqlite", "context", "data").read(POINT))


def test_what_was_added_survives_a_kill(tmp_path: Path) -> None:
    """The process ends by SIGKILL right after an addition and in the middle of the next."""
    program = f"""
import os, pathlib, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_model_evaluation_store import measurement
from magc_model.evaluate.store import MeasurementStore
store = MeasurementStore(pathlib.Path({str(tmp_path / "m.sqlite")!r}), "context", "data")
store.add("9", [measurement("a"), measurement("b")])
store._database.execute("BEGIN")
store._database.execute("DELETE FROM measurement")
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False, capture_output=True).returncode == -9
    again = MeasurementStore(tmp_path / "m.sqlite", "context", "data")
    assert again.done(POINT) == {"a", "b"}
    assert all(same(each, measurement(each.key)) for each in again.read(POINT))


def test_a_second_evaluation_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    first = MeasurementStore(tmp_path / "m.sqlite", "context", "data")
    with pytest.raises(EvaluationError, match="another evaluation is using it"):
        MeasurementStore(tmp_path / "m.sqlite", "context", "data")
    first.add("9", [measurement("a")])
    first.close()
    again = MeasurementStore(tmp_path / "m.sqlite", "context", "data")
    assert again.done(POINT) == {"a"}


def test_a_full_disk_is_no_reason_to_throw_measurements_away(tmp_path: Path) -> None:
    store = MeasurementStore(tmp_path / "m.sqlite", "context", "data")
    store.add("9", [measurement("a")])
    [pages] = store._database.execute("PRAGMA page_count").fetchone()
    store._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(EvaluationError, match=r"the disk is full.*make room; what was measured is kept"):
        store.add("9", [measurement(f"k{number}", cuts=36) for number in range(20)])
    store.close()
    assert MeasurementStore(tmp_path / "m.sqlite", "context", "data").done(POINT) == {"a"}


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.sqlite").mkdir()
    with pytest.raises(EvaluationError, match="choose a folder that can be written"):
        MeasurementStore(tmp_path / "m.sqlite", "context", "data")
