"""How a scene is cut: chunks that are coded each alone, and overlapping windows that pixels are drawn in. Pure.

Both lie on one grid that begins at the scene's upper left pixel, so that what a window becomes never depends on which
part of the scene was asked for.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from magc_model.config import IMAGE_STRIDE

WINDOW_STEP_PX = 384
WINDOW_OVERLAP_PX = 64
"""Two neighbouring windows show so much of the same ground, and are faded into one another there."""

Ramp = Float32[np.ndarray[Any, Any], " length"]


class Window(NamedTuple):
    """A rectangle of the scene's pixels."""

    x_px: int
    y_px: int
    width_px: int
    height_px: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.y_px, self.y_px + self.height_px), slice(self.x_px, self.x_px + self.width_px)

    def meets(self, other: "Window") -> "Window":
        """What both show; of no size or less if nothing."""
        x, y = max(self.x_px, other.x_px), max(self.y_px, other.y_px)
        right = min(self.x_px + self.width_px, other.x_px + other.width_px)
        bottom = min(self.y_px + self.height_px, other.y_px + other.height_px)
        return Window(x, y, right - x, bottom - y)

    def widened(self, margin_px: int, bounds: "Window") -> "Window":
        """With a margin on each side, inside the bounds."""
        x, y, width, height = self
        return Window(x - margin_px, y - margin_px, width + 2 * margin_px, height + 2 * margin_px).meets(bounds)

    def within(self, other: "Window") -> "Window":
        """The same rectangle, counted from the other's upper left pixel."""
        return self._replace(x_px=self.x_px - other.x_px, y_px=self.y_px - other.y_px)

    def divided(self, stride: int) -> "Window":
        """The same on a coarser grid, of latents or symbols; all sides are multiples of the stride."""
        return Window(*(each // stride for each in self))

    @property
    def is_empty(self) -> bool:
        """No pixels."""
        return self.width_px <= 0 or self.height_px <= 0


def padded(length_px: int) -> int:
    """The next multiple of 64: what the networks see."""
    return -(-length_px // IMAGE_STRIDE) * IMAGE_STRIDE


class Axis(NamedTuple):
    """Windows along one side of a scene."""

    length_px: int
    """A multiple of 64."""

    @property
    def windows(self) -> int:
        """Number of windows. None is narrower than twice the overlap, unless it is the only one."""
        return max(1, -(-(self.length_px - WINDOW_OVERLAP_PX) // WINDOW_STEP_PX))

    def span(self, number: int) -> tuple[int, int]:
        """Begin and end of a window."""
        start = number * WINDOW_STEP_PX
        return start, min(start + WINDOW_STEP_PX + WINDOW_OVERLAP_PX, self.length_px)

    def touching(self, start: int, stop: int) -> Iterator[int]:
        """Numbers of the windows that show any of [start, stop)."""
        return (
            number for number in range(self.windows) if self.span(number)[0] < stop and start < self.span(number)[1]
        )

    def weights(self, number: int) -> Ramp:
        """How much each pixel of a window counts; those of all windows that show a pixel add up to 1.

        A raised cosine over the overlap: value and slope fit the neighbours', so that the fading has no edge.
        """
        start, stop = self.span(number)
        weights = np.ones(stop - start, np.float32)
        rise = _rise()
        if number > 0:
            weights[:WINDOW_OVERLAP_PX] = rise
        if number + 1 < self.windows:
            weights[-WINDOW_OVERLAP_PX:] = 1 - rise
        return weights


def _rise() -> Ramp:
    places = (np.arange(WINDOW_OVERLAP_PX) + 0.5) / WINDOW_OVERLAP_PX
    return ((1 - np.cos(np.pi * places)) / 2).astype(np.float32)


def blocks(window: Window, side_px: int) -> Iterator[Window]:
    """A window in squares of the scene's grid, row by row; those at its edges are cut."""
    for y in range(window.y_px // side_px * side_px, window.y_px + window.height_px, side_px):
        for x in range(window.x_px // side_px * side_px, window.x_px + window.width_px, side_px):
            yield Window(x, y, side_px, side_px).meets(window)
