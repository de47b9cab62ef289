"""What commands wait for before they begin: libraries that only training or drawing needs stay away."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

HEAVY = (
    "accelerate",
    "diffusers",
    "huggingface_hub",
    "matplotlib",
    "sympy",
    "torch._dynamo",
    "torchvision",
    "transformers",
)
"""Seconds, all in all."""

SCRIPT = """
import contextlib, json, sys
import numpy as np

def command(*arguments):
    from magc_model.cli import main
    with contextlib.suppress(SystemExit):
        main([*arguments])

def zarr_chunk():
    from magc_model.zarr_codec import MagcNumcodec
    chunk = MagcNumcodec("tiny")
    chunk.decode(chunk.encode(np.zeros((64, 64, 3), np.uint8)))

def evaluated():
    from magc_model.evaluate.codecs.registry import open_codec
    codec = open_codec("magc")
    picture = np.zeros((64, 64, 3), np.uint8)
    codec.decode(codec.encode(picture, None, 2.0).data, None)

steps = {
    "info": lambda: command("info", "sent.magc"),
    "compress": lambda: command("compress", "tile.png", "--map", "map.png", "-o", "tile.magc"),
    "decompress": lambda: command("decompress", "tile.magc", "--map", "map.png", "-o", "back.png"),
    "zarr": zarr_chunk,
    "evaluate": evaluated,
}
found, seen = {}, set()
for name, step in steps.items():
    step()
    found[name] = sorted(each for each in json.loads(sys.argv[1]) if each in sys.modules and each not in seen)
    seen |= set(found[name])
print(json.dumps(found))
"""


def test_commands_import_nothing_that_only_drawing_needs(tmp_path: Path) -> None:
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "tile.png")
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "map.png")
    (tmp_path / "sent.magc").write_bytes((Path(__file__).parents[2] / "golden/streams/no-map.magc").read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(HEAVY)], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert {name: each for name, each in found.items() if each} == {}, done.stderr
    assert all((tmp_path / name).is_file() for name in ("tile.magc", "back.png"))
    assert all(find_spec(name) for name in HEAVY), "a library has another name now"
