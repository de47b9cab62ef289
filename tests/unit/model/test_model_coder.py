"""The range coder: inverse, as short as the ideal, and harmless whatever bytes it is given."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magc_model.entropy.coder import (
    SYMBOL_LIMIT,
    CodingTables,
    PayloadDecoder,
    PayloadError,
    encode,
    ideal_bits,
)

ROWS = (
    ((65535, 1), 0),  # all but certain
    ((1, 1, 65534), -1),  # nearly always escaped
    ((1, 65533, 1, 1), -1),
    ((20000, 30000, 15000, 536), 4),
    ((*[64] * 1000, 1536), -500),
)


def _tables(rows: tuple[tuple[tuple[int, ...], int], ...] = ROWS) -> CodingTables:
    cumulative = [np.concatenate(([0], np.cumsum(frequencies))) for frequencies, _ in rows]
    starts = np.cumsum([0, *map(len, cumulative)])
    offsets = [offset for _, offset in rows]
    return CodingTables(*(np.asarray(each, dtype=np.int32) for each in (np.concatenate(cumulative), starts, offsets)))


TABLES = _tables()


def _arrays(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    table = np.array(pairs, dtype=np.int32).reshape(-1, 2)
    return np.ascontiguousarray(table[:, 0]), np.ascontiguousarray(table[:, 1])


def _decoded(payload: bytes, rows: np.ndarray, cuts: list[int] | None = None) -> np.ndarray:
    decoder = PayloadDecoder(payload, TABLES)
    parts = [decoder.decode(each) for each in np.split(rows, cuts or [])]
    decoder.finish()
    return np.concatenate(parts)


symbols = st.one_of(st.integers(-3, 8), st.integers(-600, 600), st.integers(-SYMBOL_LIMIT, SYMBOL_LIMIT))


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(symbols, st.integers(0, len(ROWS) - 1)), max_size=80), st.data())
def test_decoding_inverts_encoding_at_the_ideal_length(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    values, rows = _arrays(pairs)
    payload = encode(values, rows, TABLES)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    assert _decoded(payload, rows, cuts).tolist() == values.tolist()
    assert len(payload) * 8 < ideal_bits(values, rows, TABLES) + 8.01


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.just(0)), max_size=3000))
def test_runs_of_what_is_all_but_certain_cost_next_to_nothing(pairs: list[tuple[int, int]]) -> None:
    values, rows = _arrays(pairs)
    payload = encode(values, rows, TABLES)
    assert _decoded(payload, rows).tolist() == values.tolist()
    assert len(payload) * 8 < ideal_bits(values, rows, TABLES) + 8.01


def test_carries_run_through_long_chains() -> None:
    """Long payloads of unlikely symbols meet bytes of 255 in a row, which a carry has to pass."""
    generator = np.random.default_rng(0)
    for seed in range(30):
        generator = np.random.default_rng(seed)
        rows = generator.integers(0, len(ROWS), 4000).astype(np.int32)
        values = generator.integers(-520, 520, 4000).astype(np.int32)
        payload = encode(values, rows, TABLES)
        assert _decoded(payload, rows).tolist() == values.tolist()
        assert abs(len(payload) * 8 - ideal_bits(values, rows, TABLES)) < 9


def test_ideal_bits_are_minus_the_logarithms() -> None:
    values, rows = _arrays([(4, 3), (5, 3), (0, 0)])
    expected = -np.log2(20000 / 65536) - np.log2(30000 / 65536) - np.log2(65535 / 65536)
    assert ideal_bits(values, rows, TABLES) == pytest.approx(expected)
    # 7 is the first symbol above its row (distance 0: 2 bits), 3 the first below it, 12 the sixth above (7 bits or so).
    for symbol, golomb in ((7, 2), (3, 2), (8, 4), (2, 4), (9, 4), (10, 6)):
        values, rows = _arrays([(symbol, 3)])
        assert ideal_bits(values, rows, TABLES) == pytest.approx(-np.log2(536 / 65536) + golomb)


def test_nothing_costs_nothing() -> None:
    values, rows = _arrays([])
    assert encode(values, rows, TABLES) == b""
    assert ideal_bits(values, rows, TABLES) == 0
    assert _decoded(b"", rows).size == 0


def test_bytes_never_change() -> None:
    values, rows = _arrays([(0, 0), (5, 3), (-1, 1), (77, 4), (-9000, 2), (0, 2), (6, 3), (SYMBOL_LIMIT, 0)])
    assert encode(values, rows, TABLES).hex() == "4e1ff40555da186fefd6f7ff72f3ca7db3"


def test_a_symbol_out_of_all_bounds_is_refused() -> None:
    for symbol in (SYMBOL_LIMIT + 1, -SYMBOL_LIMIT - 1):
        values, rows = _arrays([(symbol, 0)])
        with pytest.raises(ValueError, match="the largest is"):
            encode(values, rows, TABLES)


def test_bytes_that_are_left_are_noticed() -> None:
    values, rows = _arrays([(5, 3)] * 40)
    payload = encode(values, rows, TABLES)
    decoder = PayloadDecoder(payload + b"\1" * 9, TABLES)
    decoder.decode(rows)
    with pytest.raises(PayloadError, match="only .* hold symbols"):
        decoder.finish()


def test_an_impossible_distance_is_noticed() -> None:
    """All ones: an escape whose length never ends."""
    decoder = PayloadDecoder(b"\xff" * 64, TABLES)
    with pytest.raises(PayloadError, match="no encoder writes"):
        decoder.decode(np.zeros(50, dtype=np.int32))


HOSTILE = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from test_model_coder import ROWS, TABLES, PayloadDecoder, PayloadError, SYMBOL_LIMIT, encode
generator = np.random.default_rng(int(sys.argv[2]))
outcomes = {"symbols": 0, "errors": 0}
for attempt in range(4000):
    count = int(generator.integers(0, 200))
    rows = generator.integers(0, len(ROWS), count).astype(np.int32)
    payload = bytearray(encode(generator.integers(-600, 600, count).astype(np.int32), rows, TABLES))
    kind = attempt % 4
    if kind == 0:
        payload = payload[: int(generator.integers(0, len(payload) + 1))]
    elif kind == 1 and payload:
        for place in generator.integers(0, len(payload), 3):
            payload[place] ^= int(generator.integers(1, 256))
    elif kind == 2:
        payload = bytearray(generator.bytes(int(generator.integers(0, 300))))
    else:
        rows = generator.integers(0, len(ROWS), int(generator.integers(0, 5000))).astype(np.int32)
    decoder = PayloadDecoder(bytes(payload), TABLES)
    try:
        found = decoder.decode(rows)
        decoder.finish()
        assert len(found) == len(rows) and np.abs(found).max(initial=0) <= SYMBOL_LIMIT
        outcomes["symbols"] += 1
    except PayloadError:
        outcomes["errors"] += 1
print(outcomes["symbols"], outcomes["errors"])
"""


@pytest.mark.parametrize("checked", [False, True])
def test_hostile_bytes_end_in_symbols_or_an_error(
    request: pytest.FixtureRequest, tmp_path: Path, checked: bool
) -> None:
    """In a process of its own, which a read out of bounds would end; then with numba's own check of every index."""
    more = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)} if checked else {}
    command = [sys.executable, "-c", HOSTILE, str(request.path.parent), str(int(checked))]
    done = subprocess.run(command, env=os.environ | more, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    finished, refused = map(int, done.stdout.split())
    assert finished > 100
    assert refused > 100
