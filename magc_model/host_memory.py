"""How a program that computes on the CPU holds its memory.

By default glibc gives every large block back to the system and asks for it anew: a training step that allocates and
frees the same hundred megabytes again and again spends a third of its time in page faults. Here freed blocks stay with
the process, and large tensors lie on huge pages. For programs only: a library leaves its host's memory alone.
"""

import ctypes
import os

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h
_TOP_PAD_BYTES = 64 << 20
_NEVER = -1


def keep_memory() -> None:
    """Keep freed memory, and ask for huge pages; to be called before the first tensor is made. Needs glibc."""
    # Of torch's own allocator, on systems whose huge pages are given to those who ask. The user's word comes first.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
        mallopt(_M_TOP_PAD, _TOP_PAD_BYTES)
