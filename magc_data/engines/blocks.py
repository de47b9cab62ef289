"""What an engine is: it fetches and labels blocks, here or elsewhere, and the result does not depend on which it is."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol

from magc_data.errors import FetchError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from magc_data.config import BuildConfig
    from magc_data.ground_grid import AnyBlock
    from magc_data.inputs import Inputs
    from magc_data.label import BlockResult
    from magc_data.progress import Progress
    from magc_data.shards.destination import Destination
    from magc_data.sources.pace import Pace

MAX_FAILED_BLOCKS_IN_A_ROW = 3
"""A vector server that fails so many blocks in a row is down: the build stops rather than asking on."""


class Failures:
    """Blocks that could not be fetched, for all engines in the same way."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self._in_a_row = 0

    def fetched(self) -> None:
        """A block worked."""
        self._in_a_row = 0

    def failed(self, sentence: str) -> None:
        """One did not.

        Raises:
            FetchError: nor did those before it, so that going on is of no use.
        """
        self.sentences.append(sentence)
        self._in_a_row += 1
        if self._in_a_row >= MAX_FAILED_BLOCKS_IN_A_ROW:
            raise FetchError(f"{self._in_a_row} blocks in a row failed, the last because {sentence}")

    def raise_if_any(self, block_count: int) -> None:
        """End a build that went on in spite of them.

        Raises:
            FetchError: there were some.
        """
        if self.sentences:
            raise FetchError(
                f"{len(self.sentences)} of {block_count} blocks could not be fetched, the others are done; "
                f"the first failed because {self.sentences[0]}"
            )


class Engine(Protocol):
    """Where blocks are fetched and labelled."""

    @property
    def pace(self) -> Pace | None:
        """What the requests of the build keep; None: this process' own."""
        ...

    def make(
        self,
        inputs: Inputs,
        folder: Destination,
        blocks: Iterable[AnyBlock],
        repeated_sha256: frozenset[str],
        progress: Progress,
        failures: Failures,
        finished: Callable[[BlockResult], None],
    ) -> None:
        """Bring the shard and the sidecar of every block to their destination, but for those told to `failures`.

        Blocks are taken from the iterable only as there is room for them; `finished` is told of each that is there.
        """
        ...


ENGINES = {"local": "magc_data.build:local_engine", "ray": "magc_data.ray_build:ray_engine"}
"""Name -> 'module:function'; the function takes a configuration and gives a context manager around an `Engine`."""


def open_engine(config: BuildConfig) -> AbstractContextManager[Engine]:
    """The engine that a configuration asks for.

    Raises:
        UsageError: it is not known, or its packages are missing.
    """
    if config.engine not in ENGINES:
        raise UsageError(f"the engine '{config.engine}' is not known: expected one of {', '.join(ENGINES)}")
    module, _, function = ENGINES[config.engine].partition(":")
    engine: AbstractContextManager[Engine] = getattr(importlib.import_module(module), function)(config)
    return engine
