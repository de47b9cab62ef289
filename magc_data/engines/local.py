"""Runs jobs in processes of this machine, a bounded number at a time."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_object
from typing import TYPE_CHECKING, TypeVar

from magc_data.errors import MagcDataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_local(
    function: Callable[[Job], Result], jobs: Iterable[Job], workers: int, *, abandon: bool = False
) -> Iterator[Result]:
    """Yield the results in the order in which they come.

    Jobs are taken from the iterable only as workers become free, so whatever the iterable does to make the next job
    ready (fetching its imagery) goes on beside the work on the last ones, and never runs far ahead of it.

    Args:
        function: importable at module level.
        jobs: picklable.
        workers: 1 runs in this process.
        abandon: an interruption ends jobs in their midst instead of waiting for their ends; for those that leave
            nothing behind but what they return.
    """
    if workers == 1:
        yield from map(function, jobs)
        return
    # spawn: a fork would copy the locks of the threads that fetch.
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, mp_context=context, initializer=die_with_parent) as pool:
        running: set[Future[Result]] = set()
        try:
            for job in jobs:
                with interrupts_ignored():
                    running.add(pool.submit(function, job))
                if len(running) > workers:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except (KeyboardInterrupt, GeneratorExit):
            if abandon:
                for process in set(multiprocessing.active_children()) - others:
                    process.kill()
            raise
        except BrokenProcessPool:
            raise MagcDataError(
                "a worker process was killed from outside (often for lack of memory): "
                "run the same command again, with fewer --workers"
            ) from None
        finally:
            for future in running:
                future.cancel()


@contextlib.contextmanager
def interrupts_ignored() -> Iterator[None]:
    """Processes started meanwhile ignore Ctrl-C from their first instruction; handling it is the parent's part."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def die_with_parent() -> None:
    """A worker whose parent was killed must not go on writing; Ctrl-C is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait_for_object([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
