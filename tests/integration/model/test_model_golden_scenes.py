"""Scenes that were written once decode for ever, to the same bits."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from magc_model.codec import MagcCodec
from magc_model.reconstruct import Sampling
from magc_model.scene.georeference import Affine, Missing
from magc_model.scene.raster_files import ArrayMap
from magc_model.scene.read import SceneReader

GOLDEN = Path(__file__).parents[2] / "golden"
EXPECTED = json.loads((GOLDEN / "scenes" / "expected.json").read_text())


def reader(name: str) -> SceneReader:
    codec = MagcCodec.from_pretrained(str(GOLDEN / "streams" / "model"), device="cpu")
    height, width = EXPECTED["size"]
    blocks = np.array([[int(digit) for digit in row] for row in EXPECTED["blocks"]], np.uint8)
    maps = ArrayMap(np.ascontiguousarray(blocks.repeat(16, 0).repeat(16, 1)[:height, :width]))
    stream = (GOLDEN / "scenes" / f"{name}.magc").read_bytes()
    return SceneReader(codec, stream, maps if name == "epsg" else None, sampling=Sampling(steps=0), strict=True)


@pytest.mark.parametrize("name", EXPECTED["sha256"])
def test_a_golden_scene_decodes_to_the_same_bits(name: str) -> None:
    scene = reader(name)
    found = [scene.symbols(row, column) for row in range(2) for column in range(3)]
    digests = [None if each is None else hashlib.sha256(each.astype("<f8").tobytes()).hexdigest() for each in found]
    assert digests == EXPECTED["sha256"][name]
    assert scene.read().shape == (*EXPECTED["size"], 3)


def test_what_golden_scenes_say_of_their_place() -> None:
    place = reader("epsg").georeference
    assert (place.epsg, place.transform) == (32645, Affine(0.5, 0.0, 345000.0, 0.0, -0.5, 3057000.0))
    masked = reader("masked")
    assert masked.georeference.missing is Missing.MASK
    assert masked.georeference.transform == Affine(0.5, 0.1, 7.0, 0.2, -0.6, 9.0)
    assert masked.georeference.tags == (("SENSOR", "none"),)
    valid = masked.read_valid()
    assert not valid[:, :150].any()
    assert valid[:, 150:].all()
