"""Made tests/golden/scenes: scene streams of the model of tests/golden/streams. What is there must decode for ever.

    python tests/golden/make_scenes.py NEW_FOLDER

A new version of the format gets new files beside the old ones, never in their place. Pictures and maps are synthetic.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from magc_model.codec import MagcCodec, Rate
from magc_model.scene.compress import Pixels, compress_scene
from magc_model.scene.georeference import Affine, Georeference, Missing
from magc_model.scene.grid import Window
from magc_model.scene.raster_files import ArrayMap, ArrayPixels
from magc_model.scene.read import SceneReader

SIZE = (200, 330)
PLACES = {
    "plain": Georeference(),
    "epsg": Georeference(32645, None, Affine(0.5, 0.0, 345000.0, 0.0, -0.5, 3057000.0)),
    "masked": Georeference(
        None, "LOCAL_CS[\"somewhere\"]", Affine(0.5, 0.1, 7.0, 0.2, -0.6, 9.0), Missing.MASK, None,
        ("red", None, None), (("SENSOR", "none"),),
    ),
}  # fmt: skip


class MaskedPixels(ArrayPixels):
    """Without the first 150 columns."""

    def read(self, window: Window) -> Pixels:
        valid = np.ones(self.rgb.shape[:2], np.bool_)
        valid[:, :150] = False
        return Pixels(self.rgb[window.slices], valid[window.slices])


def main() -> None:
    """Write streams, and what they decode to."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    codec = MagcCodec.from_pretrained(str(Path(__file__).parent / "streams" / "model"), device="cpu")
    random = np.random.Generator(np.random.Philox(11))
    blocks = random.integers(0, 4, (SIZE[0] // 16 + 1, SIZE[1] // 16 + 1), dtype=np.uint8)
    class_ids = np.ascontiguousarray(blocks.repeat(16, 0).repeat(16, 1)[: SIZE[0], : SIZE[1]])
    image = (class_ids[..., None] * 60 + random.integers(0, 60, (*SIZE, 3))).astype(np.uint8)
    scenes = {}
    for name, place in PLACES.items():
        source = (MaskedPixels if place.missing is Missing.MASK else ArrayPixels)(image, place)
        maps = None if name == "plain" else ArrayMap(class_ids)
        quality = {"plain": 1.0, "epsg": 3.5, "masked": 6.0}[name]
        stream = compress_scene(
            codec, source, maps, rate=Rate(quality=quality), chunk_px=128, embed_map=name == "masked", seed=9
        ).stream
        (folder / f"{name}.magc").write_bytes(stream)
        reader = SceneReader(codec, stream, maps)
        symbols = [reader.symbols(row, column) for row in range(2) for column in range(3)]
        scenes[name] = [
            None if each is None else hashlib.sha256(each.astype("<f8").tobytes()).hexdigest() for each in symbols
        ]
    document = {"blocks": ["".join(map(str, row)) for row in blocks], "size": SIZE, "sha256": scenes}
    (folder / "expected.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
