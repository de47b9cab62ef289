"""Time and memory of a codec by itself: in a process of its own that does nothing else, with one thread.

Little is imported here, so that a codec of a few lines is not charged for the networks of another.
"""

import multiprocessing
import os
import re
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from magc_data.engines.local import die_with_parent, interrupts_ignored
from magc_model.errors import EvaluationError
from magc_model.evaluate.codecs.protocol import ClassMap, Picture
from magc_model.evaluate.codecs.registry import open_codec
from magc_model.evaluate.measurement import Footprint

REPEATS = 3
"""Of what is quick; the fastest counts, as nothing makes a program faster than it is."""
_LONG_S = 5.0
_RSS_BYTES = 1 if sys.platform == "darwin" else 1024
"""What `ru_maxrss` counts in."""
_STATUS = Path("/proc/self/status")
_PEAK_KB = re.compile(r"^VmHWM:\s*(\d+) kB$", re.MULTILINE)


def middle_rate(rates: tuple[float, ...]) -> float:
    """The rate that a codec's time and memory are measured at."""
    return rates[len(rates) // 2]


def footprint(codec: str, rate: float, picture: Picture, semantic_map: ClassMap | None) -> Footprint:
    """Measure one codec on one picture.

    Args:
        codec: what it is asked for by, with its rates.
        rate: one of these.
        picture: what it is given.
        semantic_map: and its map.

    Raises:
        EvaluationError: it fails, or the process is killed.
    """
    threads = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update(dict.fromkeys(threads, "1"))  # of the process to be started
    try:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn, initializer=die_with_parent) as alone:
            with interrupts_ignored():
                found = alone.submit(_measured, codec, rate, picture, semantic_map)
            return found.result()
    except BrokenProcessPool:
        raise EvaluationError(
            f"the process that measured what {codec} takes was killed from outside (often for lack of memory): run the "
            "same command again"
        ) from None
    finally:
        for name, value in threads.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _measured(text: str, rate: float, picture: Picture, semantic_map: ClassMap | None) -> Footprint:
    codec = open_codec(text)
    encode_s, decode_s = [], []
    for _ in range(REPEATS):
        started = time.perf_counter()
        data = codec.encode(picture, semantic_map, rate).data
        coded = time.perf_counter()
        codec.decode(data, semantic_map)
        finished = time.perf_counter()
        encode_s.append(coded - started)
        decode_s.append(finished - coded)
        if finished - started > _LONG_S:
            break
    # A program that a codec runs stands beside the process that waits for it. A program smaller than that process
    # counts as large as it, see below: as little is loaded here as can be.
    programs_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * _RSS_BYTES
    return Footprint(min(encode_s), min(decode_s), (_own_peak_bytes() + programs_bytes) / 1e6)


def _own_peak_bytes() -> int:
    """Largest resident memory of this process.

    Linux counts in `ru_maxrss` what the process that started this one held at that moment (its memory is this one's
    until exec), with all its networks; the high-water mark of this one's own memory is in /proc.
    """
    if _STATUS.exists() and (found := _PEAK_KB.search(_STATUS.read_text(encoding="ascii", errors="replace"))):
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_BYTES
