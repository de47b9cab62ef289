"""What changed between two OpenStreetMap extracts of one place, and what it costs to say so.

    python benchmarks/diff.py OLD.osm.pbf NEW.osm.pbf --zoom 17 --out diff.png

Builds a dataset of maps alone from each, which takes a minute per 20,000 tiles, and compares the two.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import psutil

from magc_data.build import build
from magc_data.config import BuildConfig
from magc_data.diff import as_text, difference
from magc_data.diff_picture import difference_sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--zoom", type=int, default=17)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = [Path(folder) / "old", Path(folder) / "new"]
        for out, osm in zip(data, (options.old, options.new), strict=True):
            config = BuildConfig(imagery="none", osm=str(osm), zoom=options.zoom, out=out)
            began = time.perf_counter()
            manifest = build(config, lambda _: None, quiet=True).manifest
            print(f"{osm.name}: {manifest['counts']['kept']} maps in {time.perf_counter() - began:.1f} s")
        before = psutil.Process().memory_info().rss
        began = time.perf_counter()
        found = difference(*data)
        seconds = time.perf_counter() - began
        print(as_text(found))
        memory = psutil.Process().memory_info().rss - before
        decoded = f"{len(found.changes)} of them decoded"
        print(f"{seconds:.2f} s for {found.common} tiles, {decoded}; {memory / 1e6:.0f} MB more memory")
        if options.out:
            difference_sheet(found, options.out)


if __name__ == "__main__":
    main()
