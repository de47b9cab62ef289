"""Maps inside of streams."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from magc_model.embedded_map import decode_map, encode_map
from magc_model.errors import BitstreamError, UsageError

MAPS = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))


@given(MAPS)
def test_a_map_comes_back(class_ids: np.ndarray) -> None:
    assert np.array_equal(decode_map(encode_map(class_ids), *class_ids.shape), class_ids)


def test_a_map_of_large_areas_is_small() -> None:
    class_ids = np.zeros((256, 256), np.uint8)
    class_ids[40:90, 30:200], class_ids[100:, 128:140] = 5, 9
    assert len(encode_map(class_ids)) < 100


@given(MAPS, st.data())
def test_any_damage_is_another_map_or_refused(class_ids: np.ndarray, data: st.DataObject) -> None:
    bad = bytearray(encode_map(class_ids))
    place = data.draw(st.integers(0, len(bad) - 1))
    if data.draw(st.booleans(), label="cut short"):
        del bad[place:]
    else:
        bad[place] ^= data.draw(st.integers(1, 255))
    try:
        found = decode_map(bytes(bad), *class_ids.shape)
    except BitstreamError:
        return
    assert found.shape == class_ids.shape


def test_a_size_that_is_not_the_pictures_is_refused_before_anything_is_made() -> None:
    huge = b"\x2f" + ((1 << 28) - 1).to_bytes(4, "little") + bytes(40)  # 16384 x 16384
    with pytest.raises(BitstreamError, match="of another size"):
        decode_map(huge, 256, 256)
    with pytest.raises(BitstreamError, match="damaged"):
        decode_map(b"", 256, 256)


@pytest.mark.parametrize("shape", [(0, 5), (1, 16385)])
def test_a_size_that_the_format_does_not_know(shape: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="cannot be embedded"):
        encode_map(np.zeros(shape, np.uint8))
