"""All signals of a tile, as the index has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from magc_data.quality.alignment import alignment
from magc_data.quality.edges import edge_strength, empty_ground, luma, outlines
from magc_data.quality.picture import block_shares, blur

if TYPE_CHECKING:
    from numpy.typing import NDArray

QUALITY_VERSION = 1
"""Of the formulae. It belongs to what identifies a build, so that one dataset never mixes two."""

STRONG_EDGE = 160
"""Edge strength of a step of 40 grey levels."""

CLEARANCE_PX = 4
"""An edge so near to something mapped may be its own."""

DECIMALS = 4


class TileSignals(NamedTuple):
    """Columns of the index, in their order; None where the tile has nothing to measure."""

    alignment: float | None
    """Correlation of image edges and map outlines as they lie, -1 to 1."""
    alignment_peak: float | None
    """The same with the map at its best offset: how far that offset can be trusted."""
    alignment_dx_px: int | None
    """The map fits best so far to the right of where it is, -8 to 8."""
    alignment_dy_px: int | None
    """... and so far below."""
    unmapped_edges: float | None
    """Share of the tile's pixels that are strong edges on ground where the map is empty, 0 to 1."""
    blank: float | None
    """Share of blocks of one colour, 0 to 1."""
    cloud: float | None
    """Share of blocks as white as a cloud, 0 to 1."""
    blur: float | None
    """0 (sharp) to 1 (blurred)."""


def tile_signals(image: NDArray[np.uint8] | None, class_ids: NDArray[np.uint8]) -> TileSignals:
    """Measure a tile.

    Args:
        image: RGB, uint8 [h, w, 3]; None where there is a map alone, which leaves nothing to measure.
        class_ids: the map on the same pixel grid, uint8 [h, w]; 0 is the empty map.
    """
    if image is None:
        return TileSignals(*[None] * len(TileSignals._fields))
    brightness = luma(image)
    strength = edge_strength(brightness)
    lie = alignment(strength, outlines(class_ids))
    unmapped = np.count_nonzero((strength >= STRONG_EDGE) & (empty_ground(class_ids, CLEARANCE_PX) > 0))
    shares = block_shares(image, brightness)
    return TileSignals(
        alignment=lie and _rounded(lie.score),
        alignment_peak=lie and _rounded(lie.peak),
        alignment_dx_px=lie and lie.dx_px,
        alignment_dy_px=lie and lie.dy_px,
        unmapped_edges=_rounded(unmapped / class_ids.size),
        blank=_rounded(shares.blank),
        cloud=_rounded(shares.cloud),
        blur=_rounded(blur(brightness)),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DECIMALS)
