"""RGB to planes and back, and their files."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from magc_model.errors import EvaluationError
from magc_model.evaluate.codecs.yuv import Chroma, Matrix, pack_y4m, rgb_of, unpack_planes, unpack_y4m, yuv_of

pictures = st.tuples(st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda half: arrays.arrays(np.uint8, (2 * half[0], 2 * half[1], 3))
)


@settings(deadline=None)
@given(pictures, st.sampled_from(list(Matrix)))
def test_full_chroma_loses_nothing(picture: np.ndarray, matrix: Matrix) -> None:
    assert np.array_equal(rgb_of(yuv_of(picture, Chroma.FULL, matrix), matrix), picture)


@settings(deadline=None)
@given(arrays.arrays(np.uint8, 3), st.sampled_from(list(Chroma)), st.sampled_from(list(Matrix)))
def test_one_colour_stays_that_colour(colour: np.ndarray, chroma: Chroma, matrix: Matrix) -> None:
    picture = np.broadcast_to(colour, (4, 6, 3)).copy()
    assert np.array_equal(rgb_of(yuv_of(picture, chroma, matrix), matrix), picture)


@settings(deadline=None)
@given(pictures, st.sampled_from(list(Chroma)))
def test_a_y4m_file_is_read_back(picture: np.ndarray, chroma: Chroma) -> None:
    planes = yuv_of(picture, chroma, Matrix.BT601)
    back = unpack_y4m(pack_y4m(planes))
    assert back.chroma is chroma
    assert all(np.array_equal(a, b) for a, b in zip(planes, back, strict=True))


def test_the_weights_are_those_of_bt_601() -> None:
    """Pillow's, which are of full range and 8 bits."""
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    expected = np.asarray(Image.fromarray(picture).convert("YCbCr")).astype(float)
    planes = yuv_of(picture, Chroma.FULL, Matrix.BT601)
    found = [(planes.luma / 4.0 - 16) / 219 * 255, *((each / 4.0 - 128) / 224 * 255 + 128 for each in planes[1:])]
    assert np.abs(np.stack(found, axis=-1) - expected).max() < 1.2


def test_chroma_samples_lie_in_the_middle_of_their_pixels() -> None:
    """A colour ramp keeps its place: chroma that is off by half a pixel tilts it to one side."""
    ramp = np.linspace(60, 190, 64)
    picture = np.stack([np.tile(ramp, (8, 1)), np.full((8, 64), 120.0), np.full((8, 64), 120.0)], axis=-1)
    picture = np.rint(picture).astype(np.uint8)
    drawn = rgb_of(yuv_of(picture, Chroma.HALF, Matrix.BT601), Matrix.BT601).astype(float)
    inner = (drawn - picture)[:, 4:-4]
    assert np.abs(inner).max() <= 1
    assert abs(inner.mean()) < 0.1


def test_what_is_no_picture_of_planes_is_a_sentence() -> None:
    with pytest.raises(EvaluationError, match="no 10-bit Y4M picture"):
        unpack_y4m(b"YUV4MPEG2 W2 H2 F1:1 C420jpeg\nFRAME\n" + bytes(6))
    with pytest.raises(EvaluationError, match="gave 11 bytes of planes where a picture of 2x2 has 12"):
        unpack_planes(bytes(11), 2, 2, Chroma.HALF)
