"""A range coder over integer tables: symbols to bytes and back.

    probability of a symbol = frequency / 2^16,  frequencies of a row of the tables add up to 2^16
    outside of its row      = the row's escape, then sign and distance as an exponential Golomb code of equal bits

Byte-wise, with the carry run back into the bytes already written (Martin 1979); the range has 64 bits and is never
below 2^48, so that nothing measurable is lost against the ideal. The end is as short as can be: what the decoder reads
behind the last byte counts as zeros. So a payload costs its ideal bits and one byte at most, and none for no symbols.

The decoder may be given any bytes: it reads nothing behind them, and every search stays inside a row. CompressAI's rANS
writes behind its buffer for less than four symbols and reads behind the bytes that it is given, which ends the process,
and it takes symbols and all tables as Python lists at every call.
"""

from typing import Any, NamedTuple, no_type_check

import numpy as np
from jaxtyping import Int32, UInt8

from magc_data.compiled import compiled
from magc_model.errors import BitstreamError

Array = np.ndarray[Any, Any]

PRECISION = 16
"""Bits of a frequency; those of a row add up to 2^16."""

SYMBOL_LIMIT = 2**20
"""Symbols lie in +- this."""

_RANGE_FLOOR = np.uint64(1) << np.uint64(48)
_LONGEST_GOLOMB = 23
"""Bits of the longest distance from a row, plus 2."""

SymbolArray = Int32[Array, " symbols"]
RowArray = Int32[Array, " symbols"]
"""Which row of the tables each symbol is coded with."""


class PayloadError(BitstreamError):
    """Entropy-coded bytes that no encoder with these tables has written."""


class CodingTables(NamedTuple):
    """Rows of cumulative frequencies, one behind the other."""

    cumulative: Int32[Array, " entries"]
    """A row with n symbols has n + 2 entries: 0, ..., where the escape begins, 2^16."""
    starts: Int32[Array, " bounds"]
    """Where each row begins, and the end."""
    offsets: Int32[Array, " rows"]
    """The smallest symbol of each row."""


def encode(symbols: SymbolArray, rows: RowArray, tables: CodingTables) -> bytes:
    """Entropy-code symbols, each by its row."""
    if len(symbols) and int(np.abs(symbols).max()) > SYMBOL_LIMIT:
        raise ValueError(f"a symbol is {np.abs(symbols).max()}: the largest is {SYMBOL_LIMIT}")
    # At most 2 bytes a symbol, and 2 x 22 bits for an escaped one.
    buffer = np.empty(8 * len(symbols) + 16, dtype=np.uint8)
    return buffer[: _encode(symbols, rows, *tables, buffer)].tobytes()


def ideal_bits(symbols: SymbolArray, rows: RowArray, tables: CodingTables) -> float:
    """Information content of symbols by the tables, escapes included."""
    starts, lengths = tables.starts[rows], np.diff(tables.starts)[rows] - 2
    places = symbols - tables.offsets[rows]
    escaped = (places < 0) | (places >= lengths)
    entries = starts + np.where(escaped, lengths, places)
    bits = PRECISION - np.log2(tables.cumulative[entries + 1] - tables.cumulative[entries])
    beyond = np.where(places < 0, -2 * places - 1, 2 * (places - lengths))[escaped]
    return float(bits.sum() + 2 * np.floor(np.log2(beyond + 2)).sum())


class PayloadDecoder:
    """Reads symbols from a payload, as many at a time as one likes."""

    def __init__(self, payload: bytes, tables: CodingTables) -> None:
        self._bytes: UInt8[Array, " size"] = np.frombuffer(payload, dtype=np.uint8)
        self._tables = tables
        # Offset of the range's beginning, width of the range, bytes read.
        self._state = np.array([0, 0xFFFF_FFFF_FFFF_FFFF, 8], dtype=np.uint64)
        self._state[0] = int.from_bytes(payload[:8].ljust(8, b"\0"), "big")

    def decode(self, rows: RowArray) -> SymbolArray:
        """The next symbols.

        Raises:
            PayloadError: the bytes stand for a symbol that cannot be.
        """
        symbols = np.empty(len(rows), dtype=np.int32)
        if not _decode(symbols, rows, *self._tables, self._bytes, self._state):
            raise PayloadError("the payload holds a symbol that no encoder writes: it is damaged or of another model")
        return symbols

    def finish(self) -> None:
        """Make sure that nothing is left.

        Raises:
            PayloadError: bytes are left.
        """
        if len(self._bytes) > int(self._state[2]):
            raise PayloadError(
                f"the payload has {len(self._bytes)} bytes, of which only {self._state[2]} hold symbols: "
                "it is damaged or of another model"
            )


# Typed by numba; a checker of arguments around them, as the tests put it, is nothing that numba can compile.


@no_type_check
@compiled
def _encode(symbols, rows, cumulative, starts, offsets, buffer):  # noqa: ANN001, ANN202
    state = np.empty(3, dtype=np.uint64)  # low, range, bytes written
    state[0], state[1], state[2] = 0, 0xFFFF_FFFF_FFFF_FFFF, 0
    for n in range(len(symbols)):
        start = starts[rows[n]]
        length = starts[rows[n] + 1] - start - 2
        place = symbols[n] - offsets[rows[n]]
        entry = start + (place if 0 <= place < length else length)
        _put(state, buffer, np.uint64(cumulative[entry]), np.uint64(cumulative[entry + 1] - cumulative[entry]), 16)
        if entry == start + length:
            golomb = 2 + (-2 * place - 1 if place < 0 else 2 * (place - length))
            bits = 1
            while golomb >> (bits + 1):
                bits += 1
                _put(state, buffer, np.uint64(1), np.uint64(1), 1)
            _put(state, buffer, np.uint64(0), np.uint64(1), 1)
            _put(state, buffer, np.uint64(golomb - (1 << bits)), np.uint64(1), bits)
    low, size = state[0], np.int64(state[2])
    # The shortest number inside the range, of which only bytes before the last one that is not zero are kept.
    if low != 0:
        for count in range(1, 9):
            rest = (np.uint64(1) << np.uint64(64 - 8 * count)) - np.uint64(1)
            value = (low + rest) & ~rest
            if value - low < state[1]:
                if value < low:
                    _carry(buffer, size)
                for n in range(count):
                    buffer[size] = np.uint8((value >> np.uint64(56 - 8 * n)) & np.uint64(255))
                    size += 1
                break
    while size > 0 and buffer[size - 1] == 0:
        size -= 1
    return size


@no_type_check
@compiled
def _put(state, buffer, start, frequency, precision):  # noqa: ANN001, ANN202
    unit = state[1] >> np.uint64(precision)
    before = state[0]
    state[0] = before + unit * start
    state[1] = unit * frequency
    if state[0] < before:
        _carry(buffer, np.int64(state[2]))
    while state[1] < _RANGE_FLOOR:
        buffer[np.int64(state[2])] = np.uint8(state[0] >> np.uint64(56))
        state[0] <<= np.uint64(8)
        state[1] <<= np.uint64(8)
        state[2] += np.uint64(1)


@no_type_check
@compiled
def _carry(buffer, size):  # noqa: ANN001, ANN202
    n = size - 1
    while buffer[n] == 255:
        buffer[n] = 0
        n -= 1
    buffer[n] += np.uint8(1)


@no_type_check
@compiled
def _decode(symbols, rows, cumulative, starts, offsets, data, state):  # noqa: ANN001, ANN202
    for n in range(len(symbols)):
        start = starts[rows[n]]
        length = starts[rows[n] + 1] - start - 2
        target = _target(state, 16)
        low, high = start, start + length  # the last entry of the row that is not above the target
        while low < high:
            middle = (low + high + 1) >> 1
            if cumulative[middle] <= target:
                low = middle
            else:
                high = middle - 1
        _take(state, data, np.uint64(cumulative[low]), np.uint64(cumulative[low + 1] - cumulative[low]), 16)
        place = np.int64(low - start)
        if place == length:
            bits = 1
            while _take_bits(state, data, 1) == 1:
                bits += 1
                if bits >= _LONGEST_GOLOMB:
                    return False
            beyond = (1 << bits) - 2 + _take_bits(state, data, bits)
            place = length + (beyond >> 1) if beyond & 1 == 0 else -((beyond + 1) >> 1)
        symbol = place + offsets[rows[n]]
        if abs(symbol) > SYMBOL_LIMIT:
            return False
        symbols[n] = symbol
    return True


@no_type_check
@compiled
def _target(state, precision):  # noqa: ANN001, ANN202
    # What is left over at the end of the range belongs to nobody: only foreign bytes point there.
    return min(np.int64(state[0] // (state[1] >> np.uint64(precision))), (np.int64(1) << precision) - 1)


@no_type_check
@compiled
def _take(state, data, start, frequency, precision):  # noqa: ANN001, ANN202
    unit = state[1] >> np.uint64(precision)
    state[0] -= unit * start
    state[1] = unit * frequency
    while state[1] < _RANGE_FLOOR:
        position = np.int64(state[2])
        byte = np.uint64(data[position]) if position < len(data) else np.uint64(0)
        state[0] = (state[0] << np.uint64(8)) | byte
        state[1] <<= np.uint64(8)
        state[2] += np.uint64(1)


@no_type_check
@compiled
def _take_bits(state, data, bits):  # noqa: ANN001, ANN202
    value = _target(state, bits)
    _take(state, data, np.uint64(value), np.uint64(1), bits)
    return value
