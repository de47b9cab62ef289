"""Made tests/golden/streams: a model with random weights and streams of it. Run once; what is there must decode for ever.

    python tests/golden/make_streams.py NEW_FOLDER

A new version of the format gets new files beside the old ones, never in their place. The model has random weights and
synthetic pictures: it stands for every model whose arithmetic is the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch

from magc_model.codec import MagcCodec, Rate
from magc_model.config import PAPER_LAMBDAS, PRESETS, MapClass, RateConfig, RateMode
from magc_model.entropy.tables import build_tables
from magc_model.model import MagcModel, build_autoencoder, build_latent_compression


def model() -> MagcModel:
    """As small as can be, with the map in every part."""
    tiny = PRESETS["tiny"].model
    config = dataclasses.replace(
        tiny,
        preset="golden",
        map=dataclasses.replace(
            tiny.map, dropout=0.1, classes=tuple(MapClass(n, f"class {n}", (60 * n, 0, 0)) for n in range(4))
        ),
        autoencoder=dataclasses.replace(
            tiny.autoencoder, channels=(4, 4, 4, 4), blocks_per_level=1, map_decoder_channels=(2, 2, 2, 2)
        ),
        latent_compression=dataclasses.replace(
            tiny.latent_compression,
            channels=4,
            symbol_channels=4,
            slices=2,
            context_channels=(4,),
            map_channels=(2, 2, 4),
            entropy_map_channels=2,
        ),
        rate=RateConfig(mode=RateMode.GAINED, lambdas=PAPER_LAMBDAS),
    )
    torch.manual_seed(1)
    lcm = build_latent_compression(config).eval()
    with torch.no_grad():
        lcm.analysis.tail.weight.mul_(8)  # symbols beyond -1, 0 and 1
    return MagcModel(config, build_autoencoder(config), lcm, None, build_tables(lcm)).eval()


def main() -> None:
    """Write model, streams, maps and what they decode to."""
    folder = Path(sys.argv[1])
    network = model()
    network.save_pretrained(folder / "model")
    codec = MagcCodec(network, device="cpu")
    random = np.random.Generator(np.random.Philox(7))
    expected = {}
    for name, (height, width), options in (
        ("lowest-rate", (256, 256), {"rate": Rate(quality=1.0)}),
        ("highest-rate", (256, 256), {"rate": Rate(quality=6.0)}),
        ("odd-size-and-seed", (200, 75), {"seed": 2**40}),
        ("embedded-map", (128, 64), {"embed_map": True}),
        ("no-map", (64, 64), {}),
    ):
        class_ids = random.integers(0, 4, (height // 16 + 1, width // 16 + 1), dtype=np.uint8)
        class_ids = np.ascontiguousarray(class_ids.repeat(16, 0).repeat(16, 1)[:height, :width])
        image = (class_ids[..., None] * 60 + random.integers(0, 60, (height, width, 3))).astype(np.uint8)
        given = None if name == "no-map" else class_ids
        stream = codec.compress(image, given, **options)
        (folder / f"{name}.magc").write_bytes(stream)
        symbols = codec.symbols(stream, given)
        expected[name] = {
            "blocks": None if given is None else ["".join(map(str, row)) for row in class_ids[::16, ::16]],
            "size": [height, width],
            "symbols": list(symbols.shape),
            "sha256": hashlib.sha256(symbols.astype("<f8").tobytes()).hexdigest(),
        }
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
