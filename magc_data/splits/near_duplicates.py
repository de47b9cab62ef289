"""Pictures that look the same although their bytes differ: a perceptual hash, and the pairs of nearly equal hashes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from magc_data.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from magc_data.splits.sides import SideIds

METHOD = "64-bit DCT hash (pHash): the 8 x 8 lowest frequencies of the 32 x 32 grey picture against their median"
MAX_BITS_APART = 6
"""Of 64. A picture encoded again or brightened is 0 to 6 away from itself; of different aerial pictures, one pair in a
million is (docs/splits.md)."""
MAX_EXAMPLES = 100

_SMALL_PX, _FREQUENCIES = 32, 8
# Whole numbers throughout, so that no machine's rounding decides a bit.
_COSINES = np.rint(
    4096 * np.cos(np.pi * np.outer(np.arange(_FREQUENCIES), 2 * np.arange(_SMALL_PX) + 1) / (2 * _SMALL_PX))
).astype(np.int64)


class NearDuplicates(NamedTuple):
    """Pairs of tiles on different sides whose pictures nearly look the same."""

    pairs: int
    examples: tuple[tuple[int, int, int], ...]
    """Numbers of two tiles and the bits between them; at most MAX_EXAMPLES."""


def perceptual_hash(image: bytes) -> int:
    """Hash of a JPEG or PNG; brightness and contrast hardly matter.

    Raises:
        OSError, ValueError, SyntaxError: it does not decode (Pillow's).
    """
    with Image.open(io.BytesIO(image)) as picture:
        # A JPEG gives its brightness at a quarter of its size for a quarter of the work.
        picture.draft("L", (2 * _SMALL_PX, 2 * _SMALL_PX))
        small = picture.convert("L").resize((_SMALL_PX, _SMALL_PX), Image.Resampling.BOX)
    waves = (_COSINES @ np.asarray(small, dtype=np.int64) @ _COSINES.T).reshape(-1)
    bits = waves[1:] > np.sort(waves[1:])[(len(waves) - 1) // 2]  # the first is the mean brightness
    return int.from_bytes(np.packbits(np.concatenate([[False], bits])).tobytes(), "big")


def near_duplicates(hashes: NDArray[np.uint64], sides: SideIds) -> NearDuplicates:
    """Every pair across sides that is at most MAX_BITS_APART, found by comparing all pairs in compiled code.

    Args:
        hashes: [n].
        sides: [n]; tiles below 0 are on no side.
    """
    found = np.zeros((MAX_EXAMPLES, 3), dtype=np.int64)
    pairs = 0
    numbers = np.arange(len(hashes))
    for side in np.unique(sides[sides >= 0])[:-1]:
        few, rest = numbers[sides == side], numbers[sides > side]
        pairs = _compare(hashes, few, rest, MAX_BITS_APART, found, pairs)
    examples = tuple((int(a), int(b), int(bits)) for a, b, bits in found[:pairs])
    return NearDuplicates(int(pairs), examples)


@compiled
def _bits_apart(a: np.uint64, b: np.uint64) -> np.uint64:
    """How many bits two hashes differ in, without a branch."""
    bits = a ^ b
    bits = bits - ((bits >> np.uint64(1)) & np.uint64(0x5555555555555555))
    bits = (bits & np.uint64(0x3333333333333333)) + ((bits >> np.uint64(2)) & np.uint64(0x3333333333333333))
    bits = (bits + (bits >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (bits * np.uint64(0x0101010101010101)) >> np.uint64(56)


@compiled
def _compare(
    hashes: NDArray[np.uint64],
    few: NDArray[np.int64],
    rest: NDArray[np.int64],
    max_bits: int,
    found: NDArray[np.int64],
    pairs: int,
) -> int:
    """Count the pairs and note the first of them."""
    limit = np.uint64(max_bits)
    others = hashes[rest]
    for a in few:
        near = 0
        for number in range(len(others)):  # nothing but this is done for nearly every pair: it becomes vector code
            near += int(_bits_apart(hashes[a], others[number]) <= limit)
        if near:
            for number in range(len(others)):
                bits = _bits_apart(hashes[a], others[number])
                if bits <= limit:
                    if pairs < len(found):
                        found[pairs, 0], found[pairs, 1], found[pairs, 2] = a, rest[number], bits
                    pairs += 1
    return pairs
