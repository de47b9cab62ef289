"""Time and memory of a codec by itself: in a process of its own that does nothing else, with one thread.

Little is imported here, so that a codec of a few lines is not charged for the networks of another.
"""

import multiprocessing
import os
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from magc_model.errors import EvaluationError
from magc_model.evaluate.codecs.protocol import ClassMap, Picture
from magc_model.evaluate.codecs.registry import open_codec
from magc_model.evaluate.measurement import Footprint

REPEATS = 3
"""Of what is quick; the fastest counts, as nothing makes a program faster than it is."""
_LONG_S = 5.0
_RSS_BYTES = 1 if sys.platform == "darwin" else 1024
"""What `ru_maxrss` counts in."""


def footprint(codec: str, picture: Picture, semantic_map: ClassMap | None) -> Footprint:
    """Measure one codec on one picture at its middle rate.

    Raises:
        EvaluationError: it fails, or the process is killed.
    """
    threads = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update(dict.fromkeys(threads, "1"))  # of the process to be started
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
            return alone.submit(_measured, codec, picture, semantic_map).result()
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


def _measured(text: str, picture: Picture, semantic_map: ClassMap | None) -> Footprint:
    codec = open_codec(text)
    rate = codec.rates[len(codec.rates) // 2]
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
    # A program that a codec runs stands beside the process that waits for it.
    peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return Footprint(min(encode_s), min(decode_s), peak * _RSS_BYTES / 1e6)
