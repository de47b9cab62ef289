"""Programs that tests interrupt: they must hear it, wherever the tests were started from."""

from __future__ import annotations

import signal


def heed_interrupts() -> None:
    """What a shell runs in the background ignores interrupts, and so does all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
