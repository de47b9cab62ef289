"""Flip bytes of a dataset's files at random and read it: every command must report, refuse in a sentence, or succeed.

    python benchmarks/fuzz_datasets.py DATA --minutes 5 --seed 0

DATA is a small finished dataset; it is copied, and nothing of it is changed.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import shutil
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np

from magc_data.config import HealConfig
from magc_data.dataset import MagcDataset
from magc_data.diff import difference
from magc_data.errors import MagcDataError
from magc_data.heal import heal
from magc_data.stats import as_text, statistics
from magc_data.verify import verify

SLOW_S = 20.0


def read_all(data: Path) -> None:
    for _ in MagcDataset(data):
        pass


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """A few bits flipped, or a run of bytes overwritten, or the end cut off."""
    changed = bytearray(content)
    kind = rng.integers(0, 4)
    if kind == 0:
        return bytes(changed[: rng.integers(0, len(changed))])
    if kind == 1:
        start, length = rng.integers(0, len(changed)), rng.integers(1, 64)
        changed[start : start + length] = rng.bytes(length)[: len(changed) - start]
        return bytes(changed)
    for _ in range(rng.integers(1, 5)):
        changed[rng.integers(0, len(changed))] ^= 1 << rng.integers(0, 8)
    return bytes(changed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    faulthandler.enable()
    outcomes: collections.Counter[str] = collections.Counter()
    failures = 0
    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        readers = {
            "samples": lambda: read_all(data),
            "stats": lambda: as_text(statistics(data)),
            "diff": lambda: difference(data, options.data),
            "verify": lambda: verify(data),
            "heal": lambda: heal(HealConfig(data=data)),
        }
        while time.monotonic() < end:
            shutil.rmtree(data, ignore_errors=True)
            shutil.copytree(options.data, data)
            files = sorted(path for path in data.rglob("*") if path.is_file())
            path = files[rng.integers(0, len(files))]
            path.write_bytes(damaged(path.read_bytes(), rng))
            for name, reader in readers.items():
                begun = time.monotonic()
                try:
                    reader()
                    outcome = "ended"
                except MagcDataError as error:
                    outcome = "a sentence" if "\n" not in str(error) else "several lines"
                except Exception:  # noqa: BLE001 - that there are none is what is asked here
                    outcome = "TRACEBACK"
                    failures += 1
                    traceback.print_exc()
                    print("in", path.relative_to(data))
                if time.monotonic() - begun > SLOW_S:
                    outcome += ", SLOW"
                    failures += 1
                outcomes[f"{name}: {outcome}"] += 1
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:>7}  {outcome}")
    raise SystemExit(failures > 0)


if __name__ == "__main__":
    main()
