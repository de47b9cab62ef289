"""What a cluster costs and gives: a Ray cluster of two nodes of one core against processes of one machine.

Tiles (synthetic pictures, real sizes) and the extract are in a cache that both nodes see, so what is timed is
labelling, shards on their way to the driver, and writing; the joining of the cluster is timed with it, its start is
not. The results are compared byte by byte. Then how many requests a second the cluster's pace keeper lets through when
the rate is no limit.

    python benchmarks/cluster.py [--zoom 20] [--repeats 2] [--json]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

for variable in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "GDAL_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster
from scenes import HELSINKI_BBOX, benchmark_cache, tile_server

from magc_data.build import build
from magc_data.config import BuildConfig
from magc_data.engines.ray_cluster import join_cluster, leave_cluster
from magc_data.engines.ray_pace import RayPace, start_keeper
from magc_data.sources.pace import LocalPace

REQUESTS = 2000


def digest_of(data: Path) -> str:
    """Of the names and contents of all files of a dataset."""
    digest = hashlib.sha256()
    for path in sorted(path for path in data.rglob("*") if path.is_file()):
        digest.update(path.relative_to(data).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def requests_per_s(pace: Any, threads: int = 8) -> float:
    """Slots that a pace gives to some threads in a second when neither rate nor places are scarce."""

    def ask(number: int) -> None:
        with pace.slot("host", f"request {number}", 1e9, 64):
            pass
        pace.worked("host", f"request {number}")

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        begun = time.perf_counter()
        list(pool.map(ask, range(REQUESTS)))
    return REQUESTS / (time.perf_counter() - begun)


def measure(config: BuildConfig, address: str, repeats: int) -> dict[str, Any]:
    """Builds from the cache, in turn."""
    ways = {
        "one process": {"workers": 1},
        "two processes": {"workers": 2},
        "ray, two nodes": {"engine": "ray", "address": address},
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    digests, kept = set(), 0
    with tempfile.TemporaryDirectory() as scratch:
        for repeat in range(repeats):
            for name, changes in ways.items():
                out = Path(scratch) / f"{name} {repeat}"
                begun = time.perf_counter()
                result = build(dataclasses.replace(config, out=out, **changes), lambda _: None, quiet=True)
                seconds[name].append(time.perf_counter() - begun)
                digests.add(digest_of(out))
                kept = result.manifest["counts"]["kept"]
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    return {
        "tiles": kept,
        "different_results": len(digests) - 1,
        "seconds": {name: [round(each, 2) for each in values] for name, values in seconds.items()},
        "tiles_per_s": {name: round(kept / median, 1) for name, median in medians.items()},
        "times_as_fast_as_one_process": {
            name: round(medians["one process"] / median, 2) for name, median in medians.items()
        },
    }


def main() -> None:
    """Fill the cache, start the cluster, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoom", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.environ["MAGC_CACHE_DIR"] = str(benchmark_cache())
    with tile_server() as template, tempfile.TemporaryDirectory() as scratch:
        config = BuildConfig(
            bbox=HELSINKI_BBOX, zoom=arguments.zoom, imagery=template, osm="helsinki", rate=100_000.0, workers=1
        )
        build(dataclasses.replace(config, out=Path(scratch) / "first"), lambda _: None, quiet=True)
        begun = time.perf_counter()
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
        start_s = time.perf_counter() - begun
        try:
            result = measure(dataclasses.replace(config, workers=0), cluster.address, arguments.repeats)
            join_cluster(cluster.address)
            try:
                pace = RayPace(start_keeper)
                local = LocalPace(time.monotonic, time.sleep)
                rates = {"cluster": requests_per_s(pace), "process": requests_per_s(local)}
                pace.close()
            finally:
                leave_cluster()
        finally:
            cluster.shutdown()
    result |= {"cluster_start_s": round(start_s, 1), "slots_per_s": {name: round(rate) for name, rate in rates.items()}}
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{result['tiles']} tiles at zoom {arguments.zoom}; the cluster took {result['cluster_start_s']} s to start")
    for name, rate in result["tiles_per_s"].items():
        times = result["times_as_fast_as_one_process"][name]
        print(f"  {name:<16} {rate:>8} tiles/s  {times} times one process  {result['seconds'][name]} s")
    print(f"results that differ: {result['different_results']}")
    print(f"slots a second: {result['slots_per_s']}")


if __name__ == "__main__":
    main()
