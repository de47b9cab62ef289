"""`build --gsd`: samples of constant ground resolution, from a real tile server whose pixels say where they are."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import osmium
import pytest
import rasterio
import shapely
import tiny_world
from fake_arcgis import FakeArcgis, Fault, Picture, running_arcgis
from pyproj import Geod, Transformer
from rasterio.warp import transform_bounds
from tiny_world import Opl, tree_digests
from wave_service import mercator_px, running_waves, wave

from magc_data import cli
from magc_data.config import BuildConfig, HealConfig, SplitConfig
from magc_data.coverage import coverage_picture
from magc_data.dataset import MagcDataset
from magc_data.diff import difference
from magc_data.errors import UsageError
from magc_data.explore.table import read_table
from magc_data.export.job import export
from magc_data.grid import BLOCK_TILES
from magc_data.ground_grid import GroundGrid, GroundTile, parse_key
from magc_data.heal import heal
from magc_data.notebook import coverage_png, dataset_card
from magc_data.plan import plan
from magc_data.preview import contact_sheet
from magc_data.rebuild import rebuild
from magc_data.shards import index
from magc_data.shards.manifest import read_manifest
from magc_data.shards.reader import read_image, read_index, read_map
from magc_data.sources.http import IMAGERY_POLICY
from magc_data.split import split, undo
from magc_data.stats import statistics
from magc_data.verify import verify
from magc_data.view import make_view

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from wave_service import WaveService

GEOD = Geod(ellps="WGS84")
GSD_M = 1.07
BUILDING = 9
"""Class of the default scheme."""


class Place(NamedTuple):
    """Somewhere on Earth, with a building."""

    lon: float
    lat: float

    @property
    def building(self) -> shapely.Polygon:
        """A turned quadrangle of about 150 by 90 m around the place."""
        corners = [(GEOD.fwd(self.lon, self.lat, azimuth, distance)[:2]) for azimuth, distance in
                   ((20, 80), (75, 95), (195, 85), (260, 90))]  # fmt: skip
        return shapely.Polygon(np.round(corners, 7))

    @property
    def bbox(self) -> tuple[float, float, float, float]:
        west, east = (GEOD.fwd(self.lon, self.lat, azimuth, 150)[0] for azimuth in (270, 90))
        south, north = (GEOD.fwd(self.lon, self.lat, azimuth, 150)[1] for azimuth in (180, 0))
        return (west, south, east, north)

    def osm(self, path: Path) -> Path:
        """The building as OpenStreetMap has it."""
        opl = Opl()
        opl.way(list(self.building.exterior.coords), "building=yes")
        return opl.write(path)


PLACES = {
    "equator": Place(9.5, 0.0),
    "nepal": Place(85.5201, 27.6301),
    "south": Place(-68.3, -54.8),
    "far-north": Place(15.6, 74.6),
    "antimeridian": Place(179.9991, -16.8),
}


def config(place: Place, service: WaveService, folder: Path, out: Path, **changes: object) -> BuildConfig:
    asked: dict = {"bbox": place.bbox, "gsd": GSD_M, "imagery": service.url, "rate": 2000.0, "workers": 1, "out": out}
    return BuildConfig(**asked | {"osm": str(place.osm(folder / "world.osm.opl"))} | changes)


@pytest.fixture(scope="module")
def nepal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WaveService, Path]]:
    """A server, and a dataset built from it; neither is to be changed."""
    folder = tmp_path_factory.mktemp("nepal")
    with running_waves(PLACES["nepal"].building) as service, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAGC_CACHE_DIR", str(folder / "cache"))
        tiny_world.run(config(PLACES["nepal"], service, folder, folder / "data"))
        yield service, folder


@pytest.fixture
def copied(nepal: tuple[WaveService, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that dataset, to be changed; the cache is the one that it was built with."""
    monkeypatch.setenv("MAGC_CACHE_DIR", str(nepal[1] / "cache"))
    return shutil.copytree(nepal[1] / "data", tmp_path / "copied")


def read_table_of(data: Path) -> list[dict]:
    return index.read_table(data / "rejected.parquet").to_pylist()


def exit_code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(arguments))
    return stopped.value.code


def shift_px(observed: np.ndarray, at_px: np.ndarray, axis: int) -> float:
    """By how many source pixels a picture of waves lies beside where it should be: least squares over all pixels."""
    expected = wave(at_px)
    slope = wave(at_px + 0.5) - wave(at_px - 0.5)
    # Averaging lowers the wave a little; a fit of height and shift together does not mistake that for a shift.
    height = expected - 127.5
    design = np.stack([height.ravel(), slope.ravel()], axis=1)
    (factor, moved), *_ = np.linalg.lstsq(design, (observed - 127.5).ravel(), rcond=None)
    assert 0.9 < factor < 1.02, f"the wave along axis {axis} is not there"
    return float(moved / factor)


def in_sample(shape: shapely.Polygon, key: str) -> shapely.Polygon:
    """What of a shape in lon/lat is in a sample, in the sample's pixels, from its box alone."""
    west, south, east, north = parse_key(key).bounds_lonlat

    def to_px(lonlat: np.ndarray) -> np.ndarray:
        return 256 * np.column_stack([(lonlat[:, 0] - west) / (east - west), (north - lonlat[:, 1]) / (north - south)])

    return shapely.transform(shape, to_px).intersection(shapely.box(0, 0, 256, 256))


def pixel_places(key: str) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude of a sample's pixel centres, from its box alone."""
    west, south, east, north = parse_key(key).bounds_lonlat
    at = (np.arange(256) + 0.5) / 256
    return west + at * (east - west), north + at * (south - north)


@pytest.mark.parametrize("name", PLACES)
def test_image_map_and_ground_lie_on_one_another(name: str, tmp_path: Path) -> None:
    """The image against the waves, the map against the polygon, and the image's shape against the map's."""
    place = PLACES[name]
    with running_waves(place.building) as service:
        manifest = tiny_world.run(config(place, service, tmp_path, tmp_path / "d"))
    assert manifest["counts"]["kept"] == manifest["counts"]["planned"] >= 4
    (zoom,) = manifest["resampling"]["zooms"]
    assert {z for z, _, _ in service.asked} == {zoom}
    worst_px, disagreeing, edge = 0.0, 0, 0
    seen = np.zeros(3)
    for row in read_index(tmp_path / "d").to_pylist():
        image, semantic_map = read_image(tmp_path / "d", row), read_map(tmp_path / "d", row)
        lon, lat = pixel_places(row["key"])
        x_px, y_px = mercator_px(lon, np.full(256, lat[0]), zoom)[0], mercator_px(np.full(256, lon[0]), lat, zoom)[1]
        source_px = float(x_px[1] - x_px[0])  # source pixels in one of the sample's
        for axis, (channel, at_px) in enumerate(((0, np.tile(x_px, (256, 1))), (1, np.tile(y_px[:, None], (1, 256))))):
            worst_px = max(worst_px, abs(shift_px(image[..., channel].astype(float), at_px, axis)) / source_px)
        drawn, burnt = image[..., 2] >= 128, semantic_map == BUILDING
        disagreeing += int(np.count_nonzero(drawn != burnt))
        edge += int(np.count_nonzero((image[..., 2] > 8) & (image[..., 2] < 247)))
        # Where the building is: by the image, by the map, and by its polygon, in the sample's pixels.
        part = in_sample(place.building, row["key"])
        seen += (image[..., 2].sum() / 255.0, np.count_nonzero(burnt), part.area)
        if part.area > 1000:
            by_image = _middle(image[..., 2] / 255.0)
            assert by_image == pytest.approx((part.centroid.x, part.centroid.y), abs=0.03)
            assert _middle(burnt.astype(float)) == pytest.approx((part.centroid.x, part.centroid.y), abs=0.2)
    print(f"{name}: waves off by {worst_px:.4f} px, {disagreeing} of {edge} edge pixels differ")  # noqa: T201
    assert worst_px < 0.02
    assert seen[0] == pytest.approx(seen[2], rel=0.002)
    assert seen[1] == pytest.approx(seen[2], rel=0.01)
    # They differ in pixels that the building's edge cuts, and there in few.
    assert disagreeing < 0.15 * edge
    area_m2 = abs(GEOD.geometry_area_perimeter(place.building)[0])
    assert seen[1] * GSD_M**2 == pytest.approx(area_m2, rel=0.01)


def _middle(weights: np.ndarray) -> tuple[float, float]:
    y, x = np.indices(weights.shape) + 0.5
    return float((weights * x).sum() / weights.sum()), float((weights * y).sum() / weights.sum())


def test_what_is_on_disk(nepal: tuple[WaveService, Path]) -> None:
    data = nepal[1] / "data"
    manifest = read_manifest(data)
    assert "zoom" not in manifest
    assert (manifest["gsd"], manifest["crs"]) == (GSD_M, "EPSG:4326")
    assert manifest["resampling"] == {
        "asked_zoom": None,
        "zooms": [18],
        "kernels": ["average"],
        "reduction_min": pytest.approx(2.02, abs=0.01),
        "reduction_max": pytest.approx(2.02, abs=0.01),
    }
    for row in read_index(data).to_pylist():
        tile = parse_key(row["key"])
        assert (row["z"], row["x"], row["y"]) == (None, tile.x, tile.y)
        assert (row["lon"], row["lat"]) == tile.centre_lonlat
        assert row["gsd_m"] == pytest.approx(GSD_M, rel=0.005)
        assert row["image_format"] == "png"
        assert row["shard"] == f"shards/{tile.block_name}.tar"
    assert verify(data).findings == ()
    assert statistics(data).gsd_m_mean == pytest.approx(GSD_M, rel=0.005)


def test_workers_and_a_second_run_change_no_byte(nepal: tuple[WaveService, Path], tmp_path: Path) -> None:
    service, folder = nepal
    for workers in (1, 2):
        wanted = config(PLACES["nepal"], service, folder, tmp_path / str(workers), workers=workers)
        tiny_world.run(wanted)
        assert tree_digests(tmp_path / str(workers)) == tree_digests(folder / "data")
        tiny_world.run(wanted)
        assert tree_digests(tmp_path / str(workers)) == tree_digests(folder / "data")


def test_a_sample_does_not_depend_on_the_area_around_it(nepal: tuple[WaveService, Path], tmp_path: Path) -> None:
    service, folder = nepal
    whole = {row["key"]: row for row in read_index(folder / "data").to_pylist()}
    key, row = next(iter(whole.items()))
    lon, lat = row["lon"], row["lat"]
    bbox = (lon - 1e-5, lat - 1e-5, lon + 1e-5, lat + 1e-5)
    tiny_world.run(config(PLACES["nepal"], service, folder, tmp_path / "d", bbox=bbox))
    (alone,) = read_index(tmp_path / "d").to_pylist()
    assert alone["key"] == key
    assert (alone["image_sha256"], alone["map_sha256"]) == (row["image_sha256"], row["map_sha256"])


def test_a_tile_that_the_service_lacks_takes_its_samples_with_it(tmp_path: Path) -> None:
    place = PLACES["nepal"]
    with running_waves(place.building) as service:
        lon, lat = place
        x, y = (int(each // 256) for each in mercator_px(np.array([lon]), np.array([lat]), 18)[:, 0])
        service.absent.add((18, x, y))
        manifest = tiny_world.run(config(place, service, tmp_path, tmp_path / "d"))
    counts = manifest["counts"]
    assert counts["kept"] > 0
    assert counts["rejected"]["not-available"] in range(1, 5)
    rejected = read_table_of(tmp_path / "d")
    assert all(f"tile 18_{x}_{y}: " in row["detail"] for row in rejected)
    assert verify(tmp_path / "d").findings == ()


@pytest.fixture
def arcgis(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeArcgis]:
    with running_arcgis() as service:
        service.pictures = [Picture((-2e7, -2e7, 2e7, 2e7), "2016-05-14")]
        service.releases = {10: "2014-02-20", 77: "2023-05-03"}
        monkeypatch.setenv("MAGC_WORLD_IMAGERY_URL", service.url)
        monkeypatch.setenv("MAGC_WAYBACK_CONFIG_URL", service.wayback_config_url)
        yield service


def arcgis_config(tmp_path: Path, **changes: object) -> BuildConfig:
    asked: dict = {"bbox": tiny_world.FOUR_TILES, "gsd": GSD_M, "rate": 2000.0, "workers": 1, "out": tmp_path / "d"}
    return BuildConfig(**asked | {"osm": str(tiny_world.write_osm(tmp_path / "world.osm.opl"))} | changes)


def test_samples_of_several_tiles_have_no_dates_and_none_are_asked_for(arcgis: FakeArcgis, tmp_path: Path) -> None:
    manifest = tiny_world.run(arcgis_config(tmp_path))
    assert manifest["counts"]["kept"] > 0
    assert "capture_dates" not in manifest["config"]
    assert set(read_index(tmp_path / "d")["capture_date"].to_pylist()) == {None}
    assert arcgis.requests["captures"] == 0


def test_one_half_of_pairs_is_refused(arcgis: FakeArcgis, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is one half of pairs, which are made of whole tiles: use --zoom"):
        tiny_world.run(arcgis_config(tmp_path, imagery="wayback:2014..2023@after"))


def test_a_tile_that_failed_for_one_block_may_come_for_the_next(
    arcgis: FakeArcgis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both blocks need the tile on their border; one process makes both, as a worker does."""
    monkeypatch.setattr("magc_data.sources.http.BACKOFF_S", 0.0)
    grid = GroundGrid.of(GSD_M)
    row = grid.row_of(0.01)
    column = grid.column_of(10.0, grid.band(row)) // BLOCK_TILES * BLOCK_TILES
    west, south, _, north = GroundTile(grid.gsd_mm, column, row).bounds_lonlat
    width = 360 / grid.band(row).columns
    box = (west - 1.5 * width, south + 1e-5, west + 1.5 * width, north - 1e-5)
    x, y = mercator_px(np.array([west]), np.array([(south + north) / 2]), 18)[:, 0]
    arcgis.faults[18, int(x // 256), int(y // 256)] = Fault("503", IMAGERY_POLICY.attempts)
    street = Opl()
    street.way([(box[0], box[1]), (box[2], box[3])], "highway=residential")
    osm = str(street.write(tmp_path / "street.osm.opl"))
    manifest = tiny_world.run(arcgis_config(tmp_path, bbox=box, osm=osm))
    assert manifest["counts"]["transient"] > 0
    assert len({each["block"] for each in read_table_of(tmp_path / "d")}) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"zoom": 16}, "--gsd 1.07 and --zoom 16 were both given"),
        ({"gsd": 0.3, "imagery_zoom": 17}, "coarser than --gsd 0.3"),
        (
            {"gsd": 0.3, "imagery_zoom": 17, "imagery": "https://a.example/{z}/{x}/{y}.png?api_key=S3CR3T"},
            r"api_key=\*\*\* at zoom 17",
        ),
        ({"match_osm_date": True}, "resampled of several tiles, which may be of several dates"),
        ({"imagery_zoom": 30}, "--imagery-zoom 30 is out of range"),
        ({"gsd": None, "imagery_zoom": 18}, "--imagery-zoom is 18 without --gsd"),
        ({"gsd": 1.07005}, "whole millimetres"),
        ({"bbox": (10.0, 79.0, 10.1, 81.0)}, "--gsd goes up to 80"),
    ],
)
def test_what_does_not_go_together_is_refused(
    nepal: tuple[WaveService, Path], tmp_path: Path, changes: dict, said: str
) -> None:
    service, folder = nepal
    with pytest.raises(UsageError, match=said):
        tiny_world.run(config(PLACES["nepal"], service, folder, tmp_path / "d", **changes))


def test_without_an_area_the_latitude_is_not_known(nepal: tuple[WaveService, Path], tmp_path: Path) -> None:
    service, folder = nepal
    with pytest.raises(UsageError, match="depends on the latitude"):
        tiny_world.run(config(PLACES["nepal"], service, folder, tmp_path / "d", bbox=None))


def test_without_an_area_a_folder_of_one_zoom_says_where_it_is(tmp_path: Path) -> None:
    tiles = tiny_world.World(tmp_path, (tiny_world.CORNER_LON, tiny_world.CORNER_LAT, *tiny_world.BBOX[2:]))
    manifest = tiny_world.run(tiles.config(tmp_path / "d", bbox=None, gsd=GSD_M, imagery_zoom=17))
    assert manifest["counts"]["kept"] > 0
    assert manifest["resampling"]["reduction_min"] == pytest.approx(1.5255, abs=0.001)
    assert verify(tmp_path / "d").findings == ()


def write_extract(path: Path, opl: Path, box: tuple[float, float, float, float]) -> Path:
    """An extract whose header says that it covers a box."""
    header = osmium.io.Header()
    header.add_box(osmium.osm.Box(*box))
    with osmium.SimpleWriter(str(path), header=header) as writer:
        for item in osmium.FileProcessor(str(opl)):
            writer.add(item)
    return path


@pytest.mark.parametrize("asked_zoom", [None, 17])
def test_without_an_area_the_ground_in_common_says_which_zooms_are_read(tmp_path: Path, asked_zoom: int | None) -> None:
    """Vectors from the tropics to the far north, for which zooms 16 to 18 would be right, or 17 be too coarse."""
    tiles = tiny_world.World(tmp_path, (tiny_world.CORNER_LON, tiny_world.CORNER_LAT, *tiny_world.BBOX[2:]))
    osm = write_extract(tmp_path / "wide.osm.pbf", tiles.osm, (4.0, 5.0, 31.0, 71.5))
    wanted = tiles.config(tmp_path / "d", bbox=None, gsd=GSD_M, osm=str(osm), imagery_zoom=asked_zoom)
    manifest = tiny_world.run(wanted)
    assert manifest["counts"]["kept"] > 0
    assert manifest["resampling"]["zooms"] == [17]
    assert manifest["resampling"]["reduction_min"] == pytest.approx(1.5255, abs=0.001)
    assert verify(tmp_path / "d").findings == ()
    with pytest.raises(UsageError, match="coarser than" if asked_zoom else "has no tiles of zoom"):
        tiny_world.run(
            tiles.config(tmp_path / "asked", bbox=(4.0, 5.0, 31.0, 71.5), gsd=GSD_M, imagery_zoom=asked_zoom)
        )


def test_without_an_area_imagery_and_vectors_of_two_places_are_refused(tmp_path: Path) -> None:
    tiles = tiny_world.World(tmp_path, (tiny_world.CORNER_LON, tiny_world.CORNER_LAT, *tiny_world.BBOX[2:]))
    south, north = tiny_world.BBOX[1] - 0.01, tiny_world.BBOX[3] + 0.01
    osm = write_extract(tmp_path / "west.osm.pbf", tiles.osm, (-80.0, south, -79.9, north))
    with pytest.raises(UsageError, match="have no place in common"):
        tiny_world.run(tiles.config(tmp_path / "d", bbox=None, gsd=GSD_M, osm=str(osm)))


def test_imagery_of_nearly_the_same_resolution_is_interpolated(nepal: tuple[WaveService, Path], tmp_path: Path) -> None:
    service, folder = nepal
    manifest = tiny_world.run(config(PLACES["nepal"], service, folder, tmp_path / "d", imagery_zoom=17))
    assert manifest["resampling"]["kernels"] == ["lanczos"]
    assert manifest["resampling"]["reduction_min"] == pytest.approx(1.0102, abs=1e-3)
    row = read_index(tmp_path / "d").to_pylist()[0]
    lon, lat = pixel_places(row["key"])
    x_px = mercator_px(lon, np.full(256, lat[0]), 17)[0]
    image = read_image(tmp_path / "d", row)
    assert abs(shift_px(image[..., 0].astype(float), np.tile(x_px, (256, 1)), 0)) < 0.02


def test_a_raster_in_utm_is_resampled_once_from_its_own_pixels(tmp_path: Path) -> None:
    """Its pixels hold waves of easting and northing: every pixel of a sample must be where pyproj says."""
    lon, lat = PLACES["nepal"]
    to_utm = Transformer.from_crs(4326, 32645, always_xy=True)
    left, top = (round(each) for each in to_utm.transform(lon - 0.004, lat + 0.0035))
    at = (np.arange(1600) + 0.5) * 0.5
    bands = np.zeros((3, 1600, 1600))
    bands[0], bands[1] = wave(left + at)[None, :], wave(top - at)[:, None]
    path = tmp_path / "utm.tif"
    options = {"driver": "GTiff", "width": 1600, "height": 1600, "count": 3, "dtype": "uint8", "crs": "EPSG:32645"}
    with rasterio.open(path, "w", transform=rasterio.Affine(0.5, 0, left, 0, -0.5, top), **options) as raster:
        raster.write(np.floor(bands + 0.5).astype(np.uint8))
    osm = PLACES["nepal"].osm(tmp_path / "world.osm.opl")
    for gsd_m, kernel in ((GSD_M, "average"), (0.6, "lanczos")):
        out = tmp_path / f"{gsd_m}"
        manifest = tiny_world.run(BuildConfig(imagery=str(path), osm=str(osm), gsd=gsd_m, out=out, workers=1))
        assert manifest["resampling"]["kernels"] == [kernel]
        assert manifest["counts"]["kept"] > 0
        assert verify(out).findings == ()
        for row in read_index(out).to_pylist():
            image = read_image(out, row).astype(float)
            x_m, y_m = to_utm.transform(*np.meshgrid(*pixel_places(row["key"])))
            for channel, at_m in ((0, x_m), (1, y_m)):
                assert abs(shift_px(image[..., channel], at_m, channel)) / gsd_m < 0.02
    with pytest.raises(UsageError, match=r"has 0\.5 m/px, coarser than --gsd 0\.4"):
        tiny_world.run(BuildConfig(imagery=str(path), osm=str(osm), gsd=0.4, out=tmp_path / "fine", workers=1))
    with pytest.raises(UsageError, match="is a raster, which has none"):
        tiny_world.run(
            BuildConfig(imagery=str(path), osm=str(osm), gsd=1.0, imagery_zoom=17, out=tmp_path / "z", workers=1)
        )


def test_maps_alone_need_no_zoom(tmp_path: Path) -> None:
    osm = PLACES["nepal"].osm(tmp_path / "world.osm.opl")
    out = tmp_path / "d"
    manifest = tiny_world.run(
        BuildConfig(imagery="none", osm=str(osm), bbox=PLACES["nepal"].bbox, gsd=GSD_M, out=out, workers=1)
    )
    assert manifest["resampling"] is None
    assert verify(out).findings == ()


def test_the_sample_at_the_paper_s_resolution(embedded_cache: Path, tmp_path: Path, monkeypatch) -> None:
    """Real imagery of zoom 18 by averages, without an area: the sample's own."""
    monkeypatch.setenv("MAGC_CACHE_DIR", str(embedded_cache))
    manifest = tiny_world.run(
        BuildConfig(imagery="sample-banepa", osm="sample-banepa", gsd=GSD_M, out=tmp_path / "d", workers=1)
    )
    assert manifest["counts"]["kept"] == 17
    assert manifest["resampling"]["zooms"] == [18]
    assert verify(tmp_path / "d").findings == ()
    # Houses stand where they stand on the map: as well as in the sample's own zoom 17, which needs no new grid.
    tiny_world.run(BuildConfig(imagery="sample-banepa", osm="sample-banepa", out=tmp_path / "17", workers=1))
    ground, mercator = (np.mean(read_index(tmp_path / name)["alignment"].to_numpy()) for name in ("d", "17"))
    assert ground == pytest.approx(mercator, abs=0.03)


# --- the other commands ----------------------------------------------------------------------------------------------


def test_split_by_squares_of_ground_and_undo(copied: Path) -> None:
    before = tree_digests(copied)
    result = split(copied, SplitConfig(block_m=280, ratios="0.5,0.25,0.25", seed=_seed(copied)), quiet=True)
    assert result.certificate["smallest_distance_m"] == 0
    assert verify(copied).findings == ()
    assert undo(copied, quiet=True)
    assert tree_digests(copied) == before
    with pytest.raises(UsageError, match=r"a tile of 1\.07 m/px is 273\.9 m wide"):
        split(copied, SplitConfig(block_m=200), quiet=True)


def _seed(data: Path) -> int:
    """A seed with which a dataset of few tiles can be split at all."""
    for seed in range(500):
        try:
            split(data, SplitConfig(block_m=280, ratios="0.5,0.25,0.25", seed=seed), quiet=True)
        except UsageError:
            continue
        undo(data, quiet=True)
        return seed
    raise AssertionError("no seed splits the dataset")


def test_a_damaged_shard_is_healed_from_the_cache(copied: Path, nepal: tuple[WaveService, Path]) -> None:
    before = tree_digests(copied)
    shard = next((copied / "shards").iterdir())
    content = bytearray(shard.read_bytes())
    for place in range(600, len(content), 40_000):
        content[place] ^= 0xFF
    shard.write_bytes(content)
    assert verify(copied).findings
    healing = heal(HealConfig(data=copied))
    assert healing.not_healed == ()
    assert tree_digests(copied) == before


def test_a_recipe_makes_the_same_dataset(copied: Path, nepal: tuple[WaveService, Path], tmp_path: Path) -> None:
    service, folder = nepal
    export(copied, "recipe", tmp_path / "recipe", quiet=True)
    lock = tmp_path / "recipe" / "magc.lock"
    again = BuildConfig(
        lock=lock, imagery=service.url, osm=str(folder / "world.osm.opl"), out=tmp_path / "d", workers=1, rate=2000.0
    )
    result = rebuild(again, lock, lambda _: None, quiet=True)
    assert result.comparison.is_same
    assert read_manifest(tmp_path / "d")["gsd"] == GSD_M
    with pytest.raises(UsageError, match=r"tiles are of 1\.07 m/px: leave --gsd out"):
        rebuild(BuildConfig(**{**again.__dict__, "gsd": 2.0}), lock, lambda _: None, quiet=True)


def test_geotiffs_stand_where_the_samples_are(copied: Path, tmp_path: Path) -> None:
    export(copied, "geotiff", tmp_path / "g", holds_licence=True, quiet=True)
    rows = read_index(copied).to_pylist()
    for row in rows:
        with rasterio.open(tmp_path / "g" / "all" / "images" / f"{row['key']}.tif") as image:
            assert image.crs == "EPSG:4326"
            assert tuple(image.bounds) == pytest.approx(tuple(parse_key(row["key"]).bounds_lonlat), abs=1e-10)
            assert (np.moveaxis(image.read(), 0, -1) == read_image(copied, row)).all()
    (mosaic,) = (tmp_path / "g" / "mosaics" / "maps").glob("*.tif")
    with rasterio.open(mosaic) as maps:
        assert maps.crs == "EPSG:4326"
        bounds = np.array([parse_key(row["key"]).bounds_lonlat for row in rows])
        expected = (bounds[:, 0].min(), bounds[:, 1].min(), bounds[:, 2].max(), bounds[:, 3].max())
        assert tuple(maps.bounds) == pytest.approx(expected, abs=1e-10)
        # A mosaic is one pixel grid: across it too, pixels are of the size that was asked for.
        west, south, east, north = transform_bounds(maps.crs, "EPSG:4326", *maps.bounds)
        assert GEOD.inv(west, south, east, south)[2] / maps.width == pytest.approx(GSD_M, rel=0.005)
        assert GEOD.inv(west, south, west, north)[2] / maps.height == pytest.approx(GSD_M, rel=0.005)


@pytest.mark.parametrize("name", ["folders", "huggingface", "coco"])
def test_the_other_exports_hold_every_sample(copied: Path, tmp_path: Path, name: str) -> None:
    result = export(copied, name, tmp_path / "e", holds_licence=True, quiet=True)
    assert sum(result.samples.values()) == len(read_index(copied))
    if name == "coco":
        images = json.loads((tmp_path / "e" / "annotations" / "instances_all.json").read_bytes())["images"]
        assert images[0]["bounds_lonlat"] == list(parse_key(images[0]["key"]).bounds_lonlat)


def test_commands_that_look_work_or_say_why_not(copied: Path, tmp_path: Path, capsys) -> None:
    assert exit_code("info", str(copied)) == 0
    assert "1.07 m/px, 1.0699 to 1.0699 m/px on the ground" in capsys.readouterr().out
    assert contact_sheet(copied, tmp_path / "p.png") >= 4
    assert coverage_picture(copied, tmp_path / "c.png") == len(read_index(copied))
    assert "1.07 m/px" in dataset_card(copied, MagcDataset(copied).keys)
    assert coverage_png(read_table(copied)).startswith(b"\x89PNG")
    make_view(copied, "fraction_building > 0", tmp_path / "view")
    assert 0 < len(MagcDataset(tmp_path / "view")) <= len(MagcDataset(copied))
    records = {each["name"]: each for each in json.loads((copied / "croissant.json").read_bytes())["recordSet"]}
    regex = records["images"]["field"][0]["source"]["transform"]["regex"]
    key = MagcDataset(copied).keys[0]
    assert re.match(regex, f"{key}.image.png")[1] == key
    for name in ("croissant.json", "collection.json", "DATASHEET.md"):
        text = (copied / name).read_text()
        assert "EPSG:4326" in text
        assert "EPSG:3857" not in text


def test_datasets_of_different_resolution_are_not_compared(
    copied: Path, nepal: tuple[WaveService, Path], tmp_path: Path
) -> None:
    service, folder = nepal
    assert difference(copied, folder / "data").common == len(read_index(copied))
    tiny_world.run(config(PLACES["nepal"], service, folder, tmp_path / "z", gsd=None, zoom=17))
    with pytest.raises(UsageError, match=r"is of 1\.07 m/px and .* of zoom 17"):
        difference(copied, tmp_path / "z")


def test_the_plan_counts_the_tiles_to_fetch(nepal: tuple[WaveService, Path], tmp_path: Path) -> None:
    service, folder = nepal
    wanted = config(PLACES["nepal"], service, folder, tmp_path / "d")
    figures = plan(wanted)
    samples = len(read_index(folder / "data"))
    assert (figures.tiles, figures.zoom, figures.gsd_m_min) == (samples, None, GSD_M)
    assert figures.tiles_to_fetch == len(set(service.asked) & {each for each in service.asked if each[0] == 18})


def test_a_dataset_that_mixes_resolutions_is_found(copied: Path) -> None:
    manifest = json.loads((copied / "dataset.json").read_bytes())
    (copied / "dataset.json").write_text(json.dumps(manifest | {"gsd": 1.08}))
    assert any("has the key g1070_" in finding for finding in verify(copied).findings)


def test_a_sample_is_where_its_grid_says(nepal: tuple[WaveService, Path]) -> None:
    """The paper's recipe for every latitude: a sample's sides on the ellipsoid, both ways, at its edges."""
    grid = GroundGrid.of(GSD_M)
    for key in MagcDataset(nepal[1] / "data").keys:
        west, south, east, north = parse_key(key).bounds_lonlat
        for side_m in (
            GEOD.inv(west, north, east, north)[2], GEOD.inv(west, south, east, south)[2],
            GEOD.inv(west, north, west, south)[2], GEOD.inv(east, north, east, south)[2],
        ):  # fmt: skip
            assert side_m / grid.tile_m == pytest.approx(1, abs=0.005)
