"""Work in a process that ends without warning: at each change of a folder in turn, as if killed there."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import tiny_world

if TYPE_CHECKING:
    from collections.abc import Callable

FINISHED, DIED = 0, 9
CHANGES_OF_FOLDERS = ("mkdir", "replace", "rename", "unlink", "remove", "rmdir")
"""Path.replace, Path.unlink, shutil.rmtree and their like all end in one of these."""


def end_before(place: int, folder: Path) -> None:
    """From now on this process ends just before the so-manieth change of what stands in a folder.

    Just after one is just before the next, with less of a temporary file.
    """
    count = itertools.count(1)
    mkdir = os.mkdir

    def ending(real: Callable) -> Callable:
        def change(path: Path, *rest: object, **options: object) -> None:
            inside = options.get("dir_fd") is not None or Path(path).is_relative_to(folder)  # rmtree goes by dir_fd
            changes_nothing = real is mkdir and Path(path).exists()
            if inside and not changes_nothing and next(count) == place:
                os._exit(DIED)
            real(path, *rest, **options)

        return change

    for name in CHANGES_OF_FOLDERS:
        setattr(os, name, ending(getattr(os, name)))


def ended_before(place: int, work: Callable[[Path], object], out: Path) -> int:
    """Do the work in a process of its own that ends at a place: no exception, so nothing is cleaned up."""
    process = os.fork()
    if process == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(60)  # a process that hangs must not outlive the test
            end_before(place, out)
            work(out)
            os._exit(FINISHED)
        except BaseException:  # noqa: BLE001 - whatever it is, this copy of pytest must not go on
            traceback.print_exc()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def end_everywhere(
    work: Callable[[Path], object],
    folder: Path,
    start: Path | None,
    expected: dict[str, str],
    check_ended: Callable[[Path], object],
    step: int = 1,
) -> int:
    """End the work at each place, check what is there, do the work again to its end and compare; returns the places.

    With a step above 1 only at every so-manieth place.
    """
    for place in range(1, 200, step):
        out = folder / str(place)
        if start is not None:
            shutil.copytree(start, out)
        status = ended_before(place, work, out)
        if status == FINISHED:
            return place - 1
        assert status == DIED
        check_ended(out)
        work(out)
        assert tiny_world.tree_digests(out) == expected, place
    raise AssertionError("the work never ended")
