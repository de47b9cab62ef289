"""Which side each tile is on. Pure: from the tiles' places, the maps' shares and the settings to a side for each tile.

    block of ground -> its draw -> side -> buffer -> balance -> sizes

The first three depend on the tile's place alone. Balance and sizes choose among a side's tiles by a hash of the tile;
they leave tiles out, and never move one to another side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from magc_data.errors import UsageError
from magc_data.splits.blocks import GroundBlocks, drawn, hashed
from magc_data.splits.ground import TileRects, taken, tile_rects, tile_size_m

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    SideIds = NDArray[np.int8]

SIDES = ("train", "val", "test")
"""By number. Where two sides come too near to one another, the earlier gives its tiles up."""

LEFT_OUT = -1
SEEDS_TRIED = 1000
"""By `--stratify`."""
MIN_SHARE_OF_ASKED = 0.5
"""A side that gets less of its tiles than this is no split as asked for."""

_EXTRA_VARIANCE = 20.0 - 14.0
"""The authors call a map almost empty if its colours' variance is below 20; an empty one in their palette has 14."""

_TILE_SALT = 0x6D616763
"""Keeps the draws of tiles apart from those of blocks."""


class Settings(NamedTuple):
    """How to divide a dataset."""

    block_m: float
    ratios: tuple[float, float, float] | None
    """Shares of train, val and test, or None where sizes are given."""
    sizes: tuple[int, int, int] | None
    """Tiles of train, val and test."""
    seed: int
    buffer_m: float
    empty_share: float | None
    """This share of each side's tiles has an almost empty map; None leaves them as they come."""

    @property
    def shares(self) -> tuple[float, float, float]:
        """Share of train, val and test, of 1 together."""
        train, val, test = self.ratios or self.sizes or (1, 0, 0)
        total = train + val + test
        return train / total, val / total, test / total

    def as_json(self) -> dict[str, Any]:
        """For the manifest and the certificate."""
        return {name: list(each) if isinstance(each, tuple) else each for name, each in self._asdict().items()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Settings:
        """Inverse of `as_json`.

        Raises:
            KeyError, TypeError, ValueError: they are no settings.
        """
        values: dict[str, Any] = {name: fields[name] for name in cls._fields}
        values = {name: tuple(each) if isinstance(each, list) else each for name, each in values.items()}
        if any(each is not None and len(each) != len(SIDES) for each in (values["ratios"], values["sizes"])):
            raise ValueError(f"expected a share or size for each of {', '.join(SIDES)}")
        settings = cls(**values)
        check_settings(settings)
        return settings


class Ground(NamedTuple):
    """Where tiles of constant ground resolution are."""

    tile_m: float
    rects: TileRects


class Tiles(NamedTuple):
    """What a split looks at."""

    zoom: int
    x: NDArray[np.int64]
    y: NDArray[np.int64]
    class_shares: NDArray[np.float64]
    """[tiles, classes]."""
    almost_empty: NDArray[np.bool_]
    ground: Ground | None = None
    """Where tiles of constant ground resolution are; None: `x` and `y` are tile coordinates of the zoom."""

    @property
    def rects(self) -> TileRects:
        """The tiles in tile coordinates of the zoom."""
        return tile_rects(self.x, self.y) if self.ground is None else self.ground.rects

    @property
    def least_block_m(self) -> float:
        """A block is at least as large as the dataset's largest tile."""
        if self.ground is not None:
            return self.ground.tile_m
        return float(tile_size_m(self.y, self.zoom).max(initial=0.0))

    def blocks(self, block_m: float) -> GroundBlocks:
        """The squares of ground that are drawn as a whole."""
        return GroundBlocks(self.zoom, block_m, None if self.ground is None else self.ground.tile_m)

    def places(self, block_m: float) -> NDArray[np.int64]:
        """Band and column of each tile's block, [2, tiles]."""
        blocks, rects = self.blocks(block_m), self.rects
        bands = blocks.bands_at((rects.y0 + rects.y1) / 2)
        return np.stack([bands, blocks.columns_at((rects.x0 + rects.x1) / 2, bands)])

    def chosen(self, which: NDArray[Any]) -> Tiles:
        """Some of the tiles, or all in another order."""
        ground = None if self.ground is None else self.ground._replace(rects=taken(self.ground.rects, which))
        return Tiles(
            self.zoom, self.x[which], self.y[which], self.class_shares[which], self.almost_empty[which], ground
        )


class Assignment(NamedTuple):
    """What became of each tile."""

    sides: SideIds
    """Number of the side, or LEFT_OUT; [tiles]."""
    blocks: tuple[int, ...]
    """How many blocks each side has tiles of."""
    left_out: dict[str, int]
    """Tiles on no side, by reason: buffer, balance, surplus."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Tiles of each side."""
        return tuple(int(np.count_nonzero(self.sides == side)) for side in range(len(SIDES)))


def check_settings(settings: Settings) -> None:
    """Refuse settings that mean nothing.

    Raises:
        UsageError: with the option's name.
    """
    ratios, sizes = settings.ratios, settings.sizes
    if not 0 < settings.block_m < np.inf:
        raise UsageError(f"--block-m is {settings.block_m:g}: expected metres on the ground, above 0")
    if not 0 <= settings.buffer_m <= settings.block_m:
        raise UsageError(
            f"--buffer-m is {settings.buffer_m:g}: expected 0 to {settings.block_m:g}, the size of a block (--block-m)"
        )
    if not 0 <= settings.seed < 2**63:
        raise UsageError(f"--seed is {settings.seed}: expected a whole number from 0")
    if (ratios is None) == (sizes is None):
        raise UsageError("--ratios and --sizes were both given: expected one of them")
    if ratios is not None and not (min(ratios) >= 0 and abs(sum(ratios) - 1) < 1e-6):
        raise UsageError(f"--ratios is {_listed(ratios)}: expected shares of train, val and test that add up to 1")
    if sizes is not None and not (min(sizes) >= 0 and max(sizes) > 0):
        raise UsageError(f"--sizes is {_listed(sizes)}: expected numbers of tiles, as in train=45000,test=4500")
    if settings.empty_share is not None and not 0 <= settings.empty_share <= 1:
        raise UsageError(f"--balance is empty={settings.empty_share:g}: expected a share from 0 to 1")


def _listed(values: tuple[float, ...]) -> str:
    return ",".join(f"{each:g}" for each in values)


def almost_empty(class_shares: NDArray[np.float64], colors: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which maps the dataset's authors would call almost empty, from the classes' shares alone.

    Their rule is `np.var(map) < 20` over all colour values of the painted map; an empty map has 14 in their palette
    (scheme `sgdm`), so what counts is less than 6 above an empty map's. In other palettes the 6 is kept.

    Args:
        class_shares: [maps, classes].
        colors: RGB, [classes, 3]; the first is the background.
    """
    totals = class_shares.sum(axis=1)
    mean, square = (class_shares @ (colors**power).mean(axis=1) / totals for power in (1, 2))
    few: NDArray[np.bool_] = square - mean**2 < colors[0].var() + _EXTRA_VARIANCE
    return few


def assign(tiles: Tiles, settings: Settings) -> Assignment:
    """Give each tile its side."""
    bands, columns = tiles.places(settings.block_m)

    def side_of(bands: NDArray[np.int64], columns: NDArray[np.int64]) -> SideIds:
        return _sides_of_draws(drawn(settings.seed, bands, columns), settings.shares)

    drawn_sides = side_of(bands, columns)
    sides = drawn_sides.copy()
    if settings.buffer_m:
        blocks = tiles.blocks(settings.block_m)
        sides[blocks.in_ring(tiles.rects, drawn_sides, side_of, settings.buffer_m)] = LEFT_OUT
    left_out = {"buffer": int(np.count_nonzero(sides == LEFT_OUT))}
    # Tiles in an order that neither their place nor the rest of the dataset decides.
    order = hashed(settings.seed ^ _TILE_SALT, tiles.x, tiles.y)
    for side in range(len(SIDES)):
        of_side = np.flatnonzero(sides == side)
        of_side = of_side[np.argsort(order[of_side], kind="stable")]
        kept = of_side[_balanced(tiles.almost_empty[of_side], settings.empty_share)]
        chosen = kept
        if settings.sizes is not None:
            chosen = kept[_balanced(tiles.almost_empty[kept], settings.empty_share, settings.sizes[side])]
        for reason, before, after in (("balance", of_side, kept), ("surplus", kept, chosen)):
            left_out[reason] = left_out.get(reason, 0) + len(before) - len(after)
        sides[of_side] = LEFT_OUT
        sides[chosen] = side
    places = (np.stack([bands[sides == side], columns[sides == side]]) for side in range(len(SIDES)))
    return Assignment(sides, tuple(np.unique(each, axis=1).shape[1] for each in places), left_out)


def _sides_of_draws(draws: NDArray[np.float64], shares: tuple[float, float, float]) -> SideIds:
    """Test has the lowest draws, train the highest."""
    _, val, test = shares
    return np.where(draws < test, 2, np.where(draws < test + val, 1, 0)).astype(np.int8)


def _balanced(empty: NDArray[np.bool_], share: float | None, size: int | None = None) -> NDArray[np.int64]:
    """Numbers of the tiles to keep, the first ones in their order: at most `size`, of which `share` are empty."""
    total = len(empty) if size is None else min(size, len(empty))
    if share is None:
        return np.arange(total)
    empties, others = np.flatnonzero(empty), np.flatnonzero(~empty)
    # As many as either kind allows, when its number is rounded.
    if share:
        total = min(total, int((len(empties) + 0.5) / share))
    if share < 1:
        total = min(total, int((len(others) + 0.5) / (1 - share)))
    wanted = min(round(total * share), len(empties))
    return np.sort(np.concatenate([empties[:wanted], others[: total - wanted]]))


def stratified_seed(tiles: Tiles, settings: Settings) -> int:
    """Of the SEEDS_TRIED seeds from `settings.seed` on, the one whose sides are most alike.

    Alike: the divergence of the sides' class mix from one another, and of their sizes from what was asked for, in bits.
    What follows is the ordinary split with that seed, so it is as stable as any other.
    """
    places, block_of_tile = np.unique(tiles.places(settings.block_m), axis=1, return_inverse=True)
    block_of_tile = block_of_tile.reshape(-1)
    per_block = np.zeros((places.shape[1], tiles.class_shares.shape[1]))
    np.add.at(per_block, block_of_tile, tiles.class_shares)
    asked = np.array(settings.shares)

    def badness(seed: int) -> float:
        sides = _sides_of_draws(drawn(seed, places[0], places[1]), settings.shares)
        mixes = (sides == np.arange(len(SIDES))[:, None]).astype(np.float64) @ per_block
        got = mixes.sum(axis=1) / mixes.sum()
        if (got[asked > 0] == 0).any():
            return np.inf
        return divergence_bits(mixes, got) + _relative_entropy_bits(asked, got)

    return min(range(settings.seed, settings.seed + SEEDS_TRIED), key=badness)


def divergence_bits(mixes: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Jensen-Shannon divergence of several mixes: 0 where all are the same, in bits.

    Args:
        mixes: [mixes, classes], not negative; each counts as shares of its own total.
        weights: [mixes], of 1 together; a mix of weight 0 does not count.
    """
    mixes, weights = mixes[weights > 0], weights[weights > 0]
    mixes = mixes / mixes.sum(axis=1, keepdims=True)
    middle = weights @ mixes
    return float(sum(weight * _relative_entropy_bits(mix, middle) for mix, weight in zip(mixes, weights, strict=True)))


def _relative_entropy_bits(mix: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Kullback-Leibler divergence; `other` is above 0 wherever `mix` is."""
    some = mix > 0
    return float((mix[some] * np.log2(mix[some] / other[some])).sum())


def shortfall(assignment: Assignment, settings: Settings) -> str | None:
    """What is missing from what was asked for, in words, or None."""
    counts, total = assignment.counts, sum(assignment.counts)
    for name, count, share, size in zip(
        SIDES, counts, settings.shares, settings.sizes or (None,) * len(SIDES), strict=True
    ):
        if size is not None and count < size:
            return f"{name} gets {count} of the {size} tiles asked for"
        if size is None and share and (not count or count < MIN_SHARE_OF_ASKED * share * total):
            of_all = f"{count / total:.1%} of them" if total else "none of them"
            return f"{name} gets {count} tiles, {of_all}, where {share:.1%} was asked for"
    return None


def refuse_if_too_small(tiles: Tiles, settings: Settings, assignment: Assignment) -> None:
    """Refuse a split that cannot be as asked for, with settings that can.

    Raises:
        UsageError: with settings that work, tried out.
    """
    lacking = shortfall(assignment, settings)
    if lacking is None:
        return
    blocks = np.unique(tiles.places(settings.block_m), axis=1).shape[1]
    working = [
        option
        for options in _ways_out(tiles, settings)
        if (option := next((text for text, each in options if not shortfall(assign(tiles, each), each)), None))
    ]
    way_out = f"what works: {', or '.join(working)}" if working else "build a larger area"
    raise UsageError(
        f"{len(tiles.x)} tiles in {blocks} blocks of {settings.block_m:g} m are too few: {lacking}; {way_out}"
    )


def _ways_out(tiles: Tiles, settings: Settings) -> Iterator[Iterator[tuple[str, Settings]]]:
    """Settings near to those asked for, of each kind of change in turn."""
    smallest = tiles.least_block_m

    def smaller_blocks() -> Iterator[tuple[str, Settings]]:
        block_m = settings.block_m / 1.2
        while block_m >= smallest:
            rounded = float(f"{block_m:.2g}")
            if smallest <= rounded and settings.buffer_m <= rounded:
                yield f"--block-m {rounded:g}", settings._replace(block_m=rounded)
            block_m /= 1.2

    def other_seeds() -> Iterator[tuple[str, Settings]]:
        for seed in range(settings.seed + 1, settings.seed + 51):
            yield f"--seed {seed}", settings._replace(seed=seed)

    def smaller_sizes() -> Iterator[tuple[str, Settings]]:
        for percent in range(95, 0, -5):
            if settings.sizes is None:
                return
            train, val, test = (max(1, each * percent // 100) if each else 0 for each in settings.sizes)
            sizes = (train, val, test)
            for seed in range(settings.seed, settings.seed + 10):
                text = ",".join(f"{name}={size}" for name, size in zip(SIDES, sizes, strict=True) if size)
                seed_text = "" if seed == settings.seed else f" --seed {seed}"
                yield f"--sizes {text}{seed_text}", settings._replace(sizes=sizes, seed=seed)

    def other_balance() -> Iterator[tuple[str, Settings]]:
        if settings.empty_share is not None:
            share = round(float(tiles.almost_empty.mean()), 2)
            if share:
                yield f"--balance empty={share:g}", settings._replace(empty_share=share)
            yield "no --balance", settings._replace(empty_share=None)

    ways: tuple[Callable[[], Iterator[tuple[str, Settings]]], ...] = (
        smaller_blocks, other_seeds, smaller_sizes, other_balance,
    )  # fmt: skip
    return (way() for way in ways)
