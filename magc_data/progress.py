"""One bar for a long job: tiles a second, kept and rejected, time left. Everything goes to stderr."""

from __future__ import annotations

import sys
from typing import Self

from tqdm import tqdm


class Progress:
    """Counts tiles in two steps, fetched and finished, and shows the further of the two."""

    def __init__(self, total: int, description: str, *, quiet: bool = False) -> None:
        self._fetched = self._finished = self._kept = self._rejected = self._elsewhere = 0
        # A log file gets a line every ten seconds, a terminal a smooth bar.
        interval = 0.1 if sys.stderr.isatty() else 10.0
        self._bar = tqdm(
            total=total,
            desc=description,
            unit="tile",
            mininterval=interval,
            disable=quiet,
            file=sys.stderr,
            dynamic_ncols=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def tile_fetched(self) -> None:
        """One more tile's imagery is settled."""
        self._fetched += 1
        self._show()

    def fetched_elsewhere(self, tiles: int) -> None:
        """So many tiles of blocks that are not finished are settled on other machines, by their own count."""
        self._elsewhere = tiles
        self._show()

    def block_finished(self, kept: int, rejected: int) -> None:
        """One more block is on disk."""
        self._finished += kept + rejected
        self._kept += kept
        self._rejected += rejected
        self._bar.set_postfix(kept=self._kept, rejected=self._rejected, refresh=False)
        self._show()

    def block_resumed(self, kept: int, rejected: int) -> None:
        """A block was on disk from an earlier run: it counts, but not for the rate."""
        self._kept += kept
        self._rejected += rejected
        self._fetched += kept + rejected
        self._finished += kept + rejected
        if not self._bar.disable:
            self._bar.initial += kept + rejected
        self._show()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.write(text, file=sys.stderr)

    def _show(self) -> None:
        self._bar.update(max(self._fetched, self._finished + self._elsewhere, self._bar.n) - self._bar.n)
