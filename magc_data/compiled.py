"""Numba, as every kernel here uses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def compiled(kernel: Kernel) -> Kernel:
    """Compile a function on first use and keep the result on disk; it releases the interpreter's lock while it runs.

    Never fastmath: the rasteriser's order of operations decides on which side of a pixel's centre an edge passes.
    Kernels are written as loops where numpy has a function: numba takes seconds to compile each argsort, concatenate or
    slice assignment, and the first build of every installation waits for it.
    """
    options = {"nogil": True, "error_model": "numpy"}
    try:
        function: Kernel = numba.njit(cache=True, **options)(kernel)
    except RuntimeError:  # neither the package's folder nor the user's can be written: compile anew in each process
        function = numba.njit(**options)(kernel)
    return function
