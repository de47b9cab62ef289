"""What other packages find magc by."""

from __future__ import annotations

from importlib.metadata import distribution

import pytest


@pytest.mark.parametrize(
    ("group", "target"),
    [
        ("numcodecs.codecs", "magc_model.zarr_codec:MagcNumcodec"),
        ("zarr.codecs", "magc_model.zarr_v3_codec:MagcZarrCodec"),
    ],
)
def test_an_entry_point_is_installed(group: str, target: str) -> None:
    found = {(each.group, each.name): each.value for each in distribution("magc").entry_points}
    assert found.get((group, "magc")) == target, "the installed magc has no such entry point: install it again"
