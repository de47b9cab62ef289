"""Standard normal noise that depends on where and when it is asked for, never on what it is computed with.

    (column, row, channel group, draw), seed ─► Philox 4x32-10 ─► four 32-bit words ─► Box-Muller ─► four channels

A counter-based generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): every number is a
function of its own coordinates, so that any window of any batch holds the same noise as the whole, on any device.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from magc_model.config import LATENT_CHANNELS
from magc_model.errors import UsageError

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF
SEED_LIMIT = 2**64
CHANNELS_A_COUNTER = 4


class NoiseWindow(NamedTuple):
    """Which noise a picture of a batch gets: its seed, and where its top left latent pixel lies on the noise field."""

    seed: int
    row: int = 0
    column: int = 0


def noise_batch(
    windows: Sequence[NoiseWindow],
    draw: int,
    height: int,
    width: int,
    *,
    channels: int = LATENT_CHANNELS,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "batch channels height width"]:
    """Noise of draw number `draw` for a batch of windows, one a picture; sizes in latent pixels.

    Raises:
        UsageError: a seed is not a 64-bit number.
    """
    for window in windows:
        if not 0 <= window.seed < SEED_LIMIT:
            raise UsageError(f"seed {window.seed} is out of range: use one from 0 to {SEED_LIMIT - 1}")
    groups = -(-channels // CHANNELS_A_COUNTER)

    def column_of(values: list[int]) -> Int64[Tensor, "batch 1 1 1"]:
        return torch.tensor([value & WORD for value in values], device=device).view(-1, 1, 1, 1)

    rows = column_of([window.row for window in windows]) + torch.arange(height, device=device).view(-1, 1)
    columns = column_of([window.column for window in windows]) + torch.arange(width, device=device)
    shape = (len(windows), groups, height, width)
    counter = Words(
        (columns & WORD).expand(shape),
        (rows & WORD).expand(shape),
        torch.arange(groups, device=device).view(1, -1, 1, 1).expand(shape),
        torch.full((), draw & WORD, device=device).expand(shape),
    )
    key = (column_of([window.seed for window in windows]), column_of([window.seed >> 32 for window in windows]))
    first, second, third, fourth = philox(counter, key)
    normals = torch.stack([*_box_muller(first, second), *_box_muller(third, fourth)], dim=2)
    return normals.flatten(1, 2)[:, :channels].float()


def noise_field(
    seed: int,
    draw: int,
    rows: range,
    columns: range,
    *,
    channels: int = LATENT_CHANNELS,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "channels height width"]:
    """One window of a picture's endless field of noise, latent pixels `rows` by `columns` (both of step 1).

    Raises:
        UsageError: the seed is not a 64-bit number.
    """
    window = NoiseWindow(seed, rows.start, columns.start)
    return noise_batch([window], draw, len(rows), len(columns), channels=channels, device=device)[0]


class Words(NamedTuple):
    """Four 32-bit words, each in an int64 tensor: torch has few operations on unsigned numbers."""

    first: Int64[Tensor, "*shape"]
    second: Int64[Tensor, "*shape"]
    third: Int64[Tensor, "*shape"]
    fourth: Int64[Tensor, "*shape"]


def philox(counter: Words, key: tuple[Int64[Tensor, "*key"], Int64[Tensor, "*key"]]) -> Words:
    """Philox 4x32-10: four random words for each counter, under a key of two words."""
    first, second, third, fourth = counter
    low_key, high_key = key
    for _ in range(ROUNDS):
        first_high, first_low = _multiply(first, MULTIPLIERS[0])
        third_high, third_low = _multiply(third, MULTIPLIERS[1])
        first, second = third_high ^ second ^ low_key, third_low
        third, fourth = first_high ^ fourth ^ high_key, first_low
        low_key, high_key = (low_key + KEY_STEPS[0]) & WORD, (high_key + KEY_STEPS[1]) & WORD
    return Words(first, second, third, fourth)


def _multiply(word: Int64[Tensor, "*shape"], factor: int) -> tuple[Int64[Tensor, "*shape"], Int64[Tensor, "*shape"]]:
    """High and low word of a product of 32-bit words; in halves, for the whole overflows a signed 64-bit number."""
    low_part = word * (factor & 0xFFFF)
    high_part = word * (factor >> 16) + (low_part >> 16)
    return high_part >> 16, (high_part & 0xFFFF) << 16 | low_part & 0xFFFF


def _box_muller(
    first: Int64[Tensor, "*shape"], second: Int64[Tensor, "*shape"]
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Two independent standard normal numbers from two random words, in float64 so that devices agree in float32."""
    radius = torch.sqrt(-2 * torch.log((first.double() + 0.5) / (WORD + 1)))
    angle = second.double() * (2 * math.pi / (WORD + 1))
    return radius * torch.cos(angle), radius * torch.sin(angle)
