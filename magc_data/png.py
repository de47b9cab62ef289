"""Class maps as palette PNGs: pixel = class id, palette = class colours, always the same bytes.

zlib, zlib-ng and their versions compress the same map to different bytes, and datasets promise equal bytes for equal
input. So the DEFLATE stream is made here, in integer arithmetic alone, and for what class maps are made of: a pixel is
mostly equal to the one before it, to the one above it, or to the one left of that (an outline that leans).
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

from magc_data.compiled import compiled
from magc_data.errors import MagcDataError

if TYPE_CHECKING:
    from numpy.typing import NDArray


_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PALETTE_COLOUR_TYPE = 3
_MAX_SIDE = 2**31 - 1

# DEFLATE (RFC 1951): match lengths 3 to 258 and distances 1 to 32768 are a symbol, which stands for a base value,
# and extra bits.
_MIN_MATCH, _MAX_MATCH, _MAX_DISTANCE = 3, 258, 32768
_LENGTH_BASE = np.array(
    [3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258]
)
_LENGTH_EXTRA = np.array([0] * 8 + [k // 4 for k in range(4, 24)] + [0])
_DISTANCE_EXTRA = np.array([0, 0] + [k // 2 for k in range(28)])
_DISTANCE_BASE = np.cumsum(np.concatenate([[1], 2 ** _DISTANCE_EXTRA[:-1]]))
_LENGTH_SYMBOL = (np.searchsorted(_LENGTH_BASE, np.arange(_MAX_MATCH + 1), side="right") - 1).clip(0)
_END_OF_BLOCK, _FIRST_LENGTH_SYMBOL = 256, 257
_LITERAL_SYMBOLS, _DISTANCE_SYMBOLS, _CODE_SYMBOLS = 286, 30, 19
_MAX_CODE_BITS, _MAX_CODE_CODE_BITS = 15, 7
_CODE_ORDER = np.array([16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15])
_FINAL_DYNAMIC_BLOCK = 0b101

# A token of the parsed stream is a literal byte, or for a match 256 + 256 x (which distance) + (length - 3).
_LENGTHS = _MAX_MATCH - _MIN_MATCH + 1
_FIRST_TOKENS = 4096
_LAZY_MAX, _LAZY_GAIN = 6, 1  # measured on maps of Baltimore and Helsinki: 3 % smaller than without

_WORD_BYTES = 8
_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)  # its products with the 64 powers of 2 have 64 different upper six bits
_BYTE_OF_BIT = np.zeros(64, dtype=np.uint64)
_BYTE_OF_BIT[(np.uint64(1) << np.arange(64, dtype=np.uint64)) * _DE_BRUIJN >> np.uint64(58)] = np.arange(64) // 8


class PngError(MagcDataError, ValueError):
    """This cannot be a palette PNG: wrong shape or type, too few or too many colours."""


def encode_palette_png(classes: NDArray[np.uint8], palette: NDArray[np.uint8]) -> bytes:
    """Encode a class map; the same map and palette give the same bytes on every machine.

    Args:
        classes: class ids, uint8 [height, width].
        palette: red, green and blue of each class, uint8 [classes, 3], 1 to 256 of them.

    Returns:
        A PNG with 8 bits a pixel and one IDAT chunk.

    Raises:
        PngError: an array of another type or shape, an empty map, a class without colour.
    """
    if classes.dtype != np.uint8 or classes.ndim != 2 or not all(1 <= side <= _MAX_SIDE for side in classes.shape):
        raise PngError(
            f"a map of {classes.dtype} {list(classes.shape)} was given: expected uint8 [height, width], not empty"
        )
    if palette.dtype != np.uint8 or palette.ndim != 2 or palette.shape[1] != 3 or not 1 <= len(palette) <= 256:
        raise PngError(f"a palette of {palette.dtype} {list(palette.shape)} was given: expected uint8 [1 to 256, 3]")
    height, width = classes.shape
    size = height * (width + 1)
    padded = np.zeros(size + _WORD_BYTES, dtype=np.uint8)
    scanlines = padded[:size].reshape(height, width + 1)  # each begins with its filter: 0, none
    scanlines[:, 1:] = classes
    if classes.max() >= len(palette):
        raise PngError(f"the map has class {classes.max()}, but the palette has {len(palette)} colours: add its colour")
    words = np.ndarray(size, np.dtype("<u8"), padded, 0, (1,))  # the 8 bytes from each place on, the first one lowest
    block = _deflate(padded, words, size, width + 1)
    stream = b"\x78\x01" + block.tobytes() + zlib.adler32(scanlines.data).to_bytes(4, "big")
    header = struct.pack(">IIBBBBB", width, height, 8, _PALETTE_COLOUR_TYPE, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"PLTE", palette.tobytes()), (b"IDAT", stream), (b"IEND", b""))
    return _SIGNATURE + b"".join(
        len(body).to_bytes(4, "big") + name + body + zlib.crc32(body, zlib.crc32(name)).to_bytes(4, "big")
        for name, body in chunks
    )


@compiled
def _deflate(data: NDArray[np.uint8], words: NDArray[np.uint64], size: int, stride: int) -> NDArray[np.uint8]:
    """One DEFLATE block with Huffman codes of its own; matches look back 1, one stride, and a stride and 1.

    data [size + 8] ends in padding; words [size] are its overlapping 8-byte words.
    """
    distances = np.array([1, stride, stride + 1])
    if stride + 1 > _MAX_DISTANCE:
        distances = distances[:1]
    tokens = _parse(data, words, size, distances)
    literal_counts = np.zeros(_LITERAL_SYMBOLS, dtype=np.int64)
    distance_counts = np.zeros(_DISTANCE_SYMBOLS, dtype=np.int64)
    distance_symbols = np.empty(len(distances), dtype=np.int64)
    for k in range(len(distances)):
        symbol = 0
        while symbol + 1 < _DISTANCE_SYMBOLS and _DISTANCE_BASE[symbol + 1] <= distances[k]:
            symbol += 1
        distance_symbols[k] = symbol
    token_counts = np.zeros(256 + _LENGTHS * len(distances), dtype=np.int64)
    for i in range(len(tokens)):
        token_counts[tokens[i]] += 1
    for literal in range(256):
        literal_counts[literal] = token_counts[literal]
    literal_counts[_END_OF_BLOCK] = 1
    for k in range(len(distances)):
        for j in range(_LENGTHS):
            count = token_counts[256 + k * _LENGTHS + j]
            literal_counts[_FIRST_LENGTH_SYMBOL + _LENGTH_SYMBOL[j + _MIN_MATCH]] += count
            distance_counts[distance_symbols[k]] += count
    literal_bits = _code_lengths(literal_counts, _MAX_CODE_BITS)
    distance_bits = _code_lengths(distance_counts, _MAX_CODE_BITS)
    literal_codes = _codes(literal_bits)
    distance_codes = _codes(distance_bits)
    # What each token is written as, all its parts together: at most 15 + 5 + 15 + 13 = 48 bits.
    written = np.zeros(len(token_counts), dtype=np.uint64)
    written_bits = np.zeros(len(token_counts), dtype=np.int64)
    total_bits = 8192  # more than any header has, and the end of the block
    for token in range(len(token_counts)):
        if token_counts[token] == 0:
            continue
        if token < 256:
            written[token], written_bits[token] = literal_codes[token], literal_bits[token]
        else:
            k, length = (token - 256) // _LENGTHS, (token - 256) % _LENGTHS + _MIN_MATCH
            symbol = _LENGTH_SYMBOL[length]
            bits = literal_codes[_FIRST_LENGTH_SYMBOL + symbol]
            count = literal_bits[_FIRST_LENGTH_SYMBOL + symbol]
            bits |= np.uint64(length - _LENGTH_BASE[symbol]) << np.uint64(count)
            count += _LENGTH_EXTRA[symbol]
            symbol = distance_symbols[k]
            bits |= distance_codes[symbol] << np.uint64(count)
            count += distance_bits[symbol]
            bits |= np.uint64(distances[k] - _DISTANCE_BASE[symbol]) << np.uint64(count)
            count += _DISTANCE_EXTRA[symbol]
            written[token], written_bits[token] = bits, count
        total_bits += token_counts[token] * written_bits[token]
    out = np.zeros(total_bits // 8 + 16, dtype=np.uint8)
    position = _write_header(out, literal_bits, distance_bits)
    byte, pending_bits = np.uint64(position >> 3), np.uint64(position & 7)
    pending = np.uint64(out[byte])
    for i in range(len(tokens) + 1):
        if i < len(tokens):
            pending |= written[tokens[i]] << pending_bits
            pending_bits += np.uint64(written_bits[tokens[i]])
        else:
            pending |= literal_codes[_END_OF_BLOCK] << pending_bits
            pending_bits += np.uint64(literal_bits[_END_OF_BLOCK])
        for k in range(np.uint64(0), np.uint64(8)):
            out[byte + k] = (pending >> (np.uint64(8) * k)) & np.uint64(255)
        byte += pending_bits >> np.uint64(3)
        pending >>= pending_bits & ~np.uint64(7)
        pending_bits &= np.uint64(7)
    return out[: byte + np.uint64(pending_bits > 0)]


@compiled
def _parse(
    data: NDArray[np.uint8], words: NDArray[np.uint64], size: int, distances: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Cut the bytes into literals and matches: the longest match, unless a longer one begins right after its start."""
    repeat_ends = np.zeros(len(distances), dtype=np.int64)
    tokens = np.empty(_FIRST_TOKENS, dtype=np.int32)
    token_count = 0
    position = 0
    while position < size:
        length, which = 0, 0
        for k in range(len(distances)):
            if repeat_ends[k] <= position and distances[k] <= position:
                repeat_ends[k] = _repeats_until(words, size, position, distances[k])
            if repeat_ends[k] - position > length:
                length, which = repeat_ends[k] - position, k
        if 0 < length <= _LAZY_MAX:
            next_length = 0
            for k in range(len(distances)):
                if repeat_ends[k] <= position + 1 and distances[k] <= position + 1:
                    repeat_ends[k] = _repeats_until(words, size, position + 1, distances[k])
                next_length = max(next_length, repeat_ends[k] - position - 1)
            if next_length > length + _LAZY_GAIN:
                length = 0
        if token_count + length // _MAX_MATCH + 2 > len(tokens):
            grown = np.empty(2 * len(tokens) + length // _MAX_MATCH, dtype=np.int32)
            for i in range(token_count):
                grown[i] = tokens[i]
            tokens = grown
        if length < _MIN_MATCH:
            tokens[token_count] = data[position]
            token_count += 1
            position += 1
        while length >= _MIN_MATCH:
            step = min(length, _MAX_MATCH)
            tokens[token_count] = 256 + which * _LENGTHS + step - _MIN_MATCH
            token_count += 1
            position += step
            length -= step
    return tokens[:token_count]


@compiled
def _repeats_until(words: NDArray[np.uint64], size: int, start: int, distance: int) -> int:
    """The first place from `start` on where a byte differs from the one a distance before it, or `size`."""
    i = np.uint64(start)
    back = np.uint64(distance)
    while i < np.uint64(size):
        difference = words[i] ^ words[i - back]
        if difference:
            lowest_bit = difference & (np.uint64(0) - difference)
            i += _BYTE_OF_BIT[(lowest_bit * _DE_BRUIJN) >> np.uint64(58)]
            break
        i += np.uint64(8)
    return int(min(np.int64(i), np.int64(size)))


@compiled
def _code_lengths(counts: NDArray[np.int64], max_bits: int) -> NDArray[np.int64]:
    """Lengths of a Huffman code for symbols that occur so often; 0 for those that do not."""
    lengths = np.zeros(len(counts), dtype=np.int64)
    used = np.empty(len(counts), dtype=np.int64)
    leaves = 0
    for symbol in range(len(counts)):
        if counts[symbol] > 0:
            used[leaves] = symbol
            leaves += 1
    if leaves <= 1:
        for i in range(leaves):
            lengths[used[i]] = 1
        return lengths
    weights = np.empty(leaves, dtype=np.int64)
    for i in range(leaves):
        weights[i] = counts[used[i]]
    node_weights = np.empty(2 * leaves - 1, dtype=np.int64)
    parents = np.empty(2 * leaves - 1, dtype=np.int64)
    depths = np.empty(2 * leaves - 1, dtype=np.int64)
    while True:
        order = _order_by_weight(weights)
        for i in range(leaves):
            node_weights[i] = weights[order[i]]
        leaf, inner = 0, leaves
        for node in range(leaves, 2 * leaves - 1):
            node_weights[node] = 0
            for _ in range(2):
                if leaf < leaves and (inner == node or node_weights[leaf] <= node_weights[inner]):
                    child = leaf
                    leaf += 1
                else:
                    child = inner
                    inner += 1
                parents[child] = node
                node_weights[node] += node_weights[child]
        depths[2 * leaves - 2] = 0
        for node in range(2 * leaves - 3, -1, -1):
            depths[node] = depths[parents[node]] + 1
        deepest = 0
        for i in range(leaves):
            deepest = max(deepest, depths[i])
        if deepest <= max_bits:
            break
        for i in range(leaves):
            weights[i] = (weights[i] + 1) // 2  # flatter weights make a shallower tree
    for i in range(leaves):
        lengths[used[order[i]]] = depths[i]
    return lengths


@compiled
def _order_by_weight(weights: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices by weight, equals in their order; by insertion, as there are at most 286."""
    order = np.empty(len(weights), dtype=np.int64)
    for i in range(len(order)):
        k = i
        while k > 0 and weights[order[k - 1]] > weights[i]:
            order[k] = order[k - 1]
            k -= 1
        order[k] = i
    return order


@compiled
def _codes(lengths: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The canonical codes of these lengths, their bits in writing order (the first bit lowest)."""
    codes = np.zeros(len(lengths), dtype=np.uint64)
    next_code = np.zeros(_MAX_CODE_BITS + 2, dtype=np.int64)
    for symbol in range(len(lengths)):
        if lengths[symbol]:
            next_code[lengths[symbol] + 1] += 1
    for bits in range(1, _MAX_CODE_BITS + 1):
        next_code[bits + 1] += next_code[bits]
        next_code[bits + 1] <<= 1
    for symbol in range(len(lengths)):
        bits = lengths[symbol]
        if bits:
            code = next_code[bits]
            next_code[bits] += 1
            for bit in range(bits):
                codes[symbol] |= np.uint64((code >> bit & 1) << (bits - 1 - bit))
    return codes


@compiled
def _write_header(out: NDArray[np.uint8], literal_bits: NDArray[np.int64], distance_bits: NDArray[np.int64]) -> int:
    """Write the block's beginning with its two codes; return how many bits that took."""
    literals = _LITERAL_SYMBOLS
    while literal_bits[literals - 1] == 0:  # the end of the block is always among them
        literals -= 1
    distances = 1
    for symbol in range(1, len(distance_bits)):
        if distance_bits[symbol]:
            distances = symbol + 1
    lengths = np.empty(literals + distances, dtype=np.int64)
    for symbol in range(literals):
        lengths[symbol] = literal_bits[symbol]
    for symbol in range(distances):
        lengths[literals + symbol] = distance_bits[symbol]
    # Run-length code: 0 to 15 a length, 16 the last one 3 to 6 times, 17 and 18 zero 3 to 10 and 11 to 138 times.
    symbols = np.empty(len(lengths), dtype=np.int64)
    extras = np.zeros(len(lengths), dtype=np.int64)
    count = 0
    i = 0
    while i < len(lengths):
        run = 1
        while i + run < len(lengths) and lengths[i + run] == lengths[i]:
            run += 1
        repeatable = run if lengths[i] == 0 else run - 1
        if repeatable < 3:
            symbols[count] = lengths[i]
            run = 1
        elif lengths[i] == 0:
            run = min(run, 138)
            symbols[count] = 18 if run > 10 else 17
            extras[count] = run - (11 if run > 10 else 3)
        else:
            symbols[count] = lengths[i]
            count += 1
            run = min(repeatable, 6)
            symbols[count] = 16
            extras[count] = run - 3
            run += 1
        count += 1
        i += run
    symbol_counts = np.zeros(_CODE_SYMBOLS, dtype=np.int64)
    for i in range(count):
        symbol_counts[symbols[i]] += 1
    code_bits = _code_lengths(symbol_counts, _MAX_CODE_CODE_BITS)
    codes = _codes(code_bits)
    code_count = _CODE_SYMBOLS
    while code_count > 4 and code_bits[_CODE_ORDER[code_count - 1]] == 0:
        code_count -= 1
    position = _put(out, 0, _FINAL_DYNAMIC_BLOCK, 3)
    position = _put(out, position, literals - 257, 5)
    position = _put(out, position, distances - 1, 5)
    position = _put(out, position, code_count - 4, 4)
    for i in range(code_count):
        position = _put(out, position, code_bits[_CODE_ORDER[i]], 3)
    for i in range(count):
        symbol = symbols[i]
        position = _put(out, position, codes[symbol], code_bits[symbol])
        if symbol == 16:
            position = _put(out, position, extras[i], 2)
        elif symbol == 17:
            position = _put(out, position, extras[i], 3)
        elif symbol == 18:
            position = _put(out, position, extras[i], 7)
    return position


@compiled
def _put(out: NDArray[np.uint8], position: int, bits: int, count: int) -> int:
    """Write `count` bits, the lowest first, at a bit position of zeros; return the position after them."""
    for bit in range(count):
        out[(position + bit) >> 3] |= np.uint8((np.int64(bits) >> bit & 1) << ((position + bit) & 7))
    return position + count
