"""Which tiles and scenes codecs are given, and the squares that figures are taken of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from magc_data.grid import Tile
from magc_data.ground_grid import GroundGrid, GroundTile
from magc_model.errors import DataError, EvaluationError, UsageError
from magc_model.evaluate.decoded_folder import DecodedFolder, folder_version
from magc_model.evaluate.items import EvaluationSet, SceneGrid, cuts, neighbourhood, scene_grids
from magc_model.evaluate.measurement import On


def rectangle(x: int, y: int, columns: int, rows: int, z: int = 18) -> set[Tile]:
    return set(SceneGrid(z, x, y, columns, rows).places())


def test_a_square_of_neighbours_is_one_scene_wherever_it_lies() -> None:
    for x, y in ((0, 0), (193343, 110117), (61, 62), (2**18 - 6, 2**18 - 6)):
        assert scene_grids(rectangle(x, y, 6, 6)) == [SceneGrid(18, x, y, 6, 6)]


def test_large_areas_are_cut_into_scenes_of_eight_tiles_a_side() -> None:
    found = scene_grids(rectangle(1000, 2000, 20, 9))
    assert found[0][3:] == (8, 8)
    assert {grid.columns * grid.rows for grid in found} <= {8 * 8, 4 * 8, 4 * 9, 4 * 4, 4 * 5, 4 * 6, 4 * 7}


def test_no_scene_reaches_over_the_edge_of_two_bands_of_constant_ground_resolution() -> None:
    """Their columns do not lie under one another."""
    grid = GroundGrid.of(1.07)
    edge = grid.row_of(60.0) // grid.band_rows * grid.band_rows
    keys = [GroundTile(1070, x, y).key for y in range(edge - 6, edge + 6) for x in range(50_000, 50_008)]
    found = scene_grids({neighbourhood(key) for key in keys})
    assert [each[3:] for each in found] == [(8, 6), (8, 6)]
    assert {each.y for each in found} == {edge - 6, edge}
    assert neighbourhood("18_5_6") == Tile(18, 5, 6)


def test_what_is_too_small_or_has_gaps_is_no_scene() -> None:
    assert scene_grids(rectangle(5, 5, 3, 40)) == []
    assert scene_grids(rectangle(5, 5, 4, 4) - {Tile(18, 6, 6)}) == []
    assert scene_grids({Tile(18, 2 * n, n) for n in range(50)}) == []


@settings(max_examples=60, deadline=None)
@given(st.sets(st.tuples(st.integers(95, 112), st.integers(0, 14)), max_size=220), st.sets(st.integers(0, 3)))
def test_scenes_are_full_and_share_no_tile(cells: set[tuple[int, int]], shifts: set[int]) -> None:
    places = {Tile(17, x + 40 * shift, y) for x, y in cells for shift in shifts}
    places |= {Tile(17, x + 40 * shift, y) for shift in shifts for x in range(97, 103) for y in range(2, 7)}
    found = scene_grids(places)
    tiles = [place for grid in found for place in grid.places()]
    assert len(tiles) == len(set(tiles))
    assert set(tiles) <= places
    assert all(4 <= grid.columns <= 8 and 4 <= grid.rows <= 8 for grid in found)
    assert len(found) >= len(shifts)
    left = places - set(tiles)
    assert not any(rectangle(place.x, place.y, 4, 4, 17) <= left for place in left), (
        "nothing that would do is left over"
    )


def test_cuts_lie_row_by_row_and_leave_the_remainder_out() -> None:
    rows, columns = np.mgrid[:600, :800]
    picture = np.stack((rows // 256, columns // 256, rows % 7), -1).astype(np.uint8)
    found = cuts(picture)
    assert found.shape == (6, 256, 256, 3)
    assert found[:, 0, 0, :2].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert (found[..., :2] == found[:, :1, :1, :2]).all()
    assert cuts(picture[:256, :256]).shape == (1, 256, 256, 3)
    assert cuts(picture[:100, :800]).shape == (1, 100, 256, 3)
    assert cuts(picture[..., 0]).shape == (6, 256, 256)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for name, size in (("a.png", (256, 256)), ("deep/b.png", (300, 260)), ("c.png", (1024, 1100))):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(path)
    return tmp_path / "pictures"


def test_a_folder_of_pictures_has_items_without_maps(folder: Path) -> None:
    found = EvaluationSet(folder)
    assert [(item.on, item.key, item.width_px, item.height_px) for item in found.items] == [
        (On.TILES, "a", 256, 256),
        (On.TILES, "deep/b", 260, 300),
        (On.SCENES, "c", 1100, 1024),
    ]
    loaded = found.load(found.items[1])
    assert loaded.picture.shape == (300, 260, 3)
    assert loaded.semantic_map is None
    assert [item.key for item in EvaluationSet(folder, on=(On.SCENES,)).items] == ["c"]


def test_what_cannot_be_evaluated_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no split"):
        EvaluationSet(folder, "test")
    (folder / "c.png").unlink()
    with pytest.raises(DataError, match=r"holds none of scenes.*4x4 neighbouring tiles"):
        EvaluationSet(folder, on=(On.SCENES,))
    Image.new("RGB", (64, 64)).save(folder / "a.jpg")
    with pytest.raises(DataError, match="two pictures .* are called a"):
        EvaluationSet(folder)


def test_pictures_that_would_count_differently_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    for name, side_px in (("a", 256), ("b", 300), ("c", 100)):
        Image.new("RGB", (side_px, side_px)).save(tmp_path / f"{name}.png")
    with pytest.raises(DataError, match=r"a of 256x256 and c of 100x100 pixels, which are not measured alike"):
        EvaluationSet(tmp_path)
    (tmp_path / "c.png").unlink()
    assert len(EvaluationSet(tmp_path).items) == 2


def test_decoded_pictures_are_found_by_the_names_of_their_originals(folder: Path, tmp_path: Path) -> None:
    streams = tmp_path / "streams"
    (streams / "deep").mkdir(parents=True)
    (streams / "a.bin").write_bytes(b"12345")
    (streams / "deep" / "b.bin").write_bytes(b"123")
    found = DecodedFolder(f"decoded:{folder},streams={streams}")
    assert found.picture("deep/b").shape == (300, 260, 3)
    assert (found.stream_bytes("a"), found.stream_bytes("deep/b")) == (5, 3)
    assert DecodedFolder(f"decoded:{folder}").stream_bytes("a") is None
    with pytest.raises(EvaluationError, match="no files called nowhere"):
        found.picture("nowhere")
    (folder / "a.webp").write_bytes((folder / "a.png").read_bytes())
    with pytest.raises(EvaluationError, match="2 files called a"):
        DecodedFolder(f"decoded:{folder}").picture("a")


def test_a_changed_folder_of_decoded_pictures_is_another_version(folder: Path) -> None:
    before = folder_version(f"decoded:{folder}")
    assert folder_version(f"decoded:{folder}") == before
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    assert folder_version(f"decoded:{folder}") != before


@pytest.mark.parametrize("text", ["decoded:", "decoded:x,y", "decoded:x,streams=a,streams=b", "decoded:x,stream=a"])
def test_only_a_folder_and_its_streams_can_be_named(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected decoded:FOLDER\[,streams=FOLDER\]"):
        DecodedFolder(text)


def test_an_absent_folder_is_a_sentence() -> None:
    with pytest.raises(EvaluationError, match="is no folder"):
        DecodedFolder("decoded:/nowhere/at/all")
