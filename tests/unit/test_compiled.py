"""Kernels run where no folder for numba's cache can be written, too."""

from __future__ import annotations

from typing import Any

import numba
import pytest

from magc_data.compiled import compiled


def test_without_a_writable_cache_a_kernel_is_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    real = numba.njit

    def without_cache(*arguments: Any, cache: bool = False, **options: Any) -> Any:
        """What numba does in a read-only installation whose user has no home."""
        if cache:
            raise RuntimeError("cannot cache function 'kernel': no locator available for file 'x.py'")
        return real(*arguments, **options)

    monkeypatch.setattr(numba, "njit", without_cache)

    @compiled
    def kernel(number: int) -> int:
        return number + 1

    assert kernel(1) == 2
    assert kernel.signatures, "it was not compiled"
