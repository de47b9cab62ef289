"""`magc compress` and `decompress` with georeferenced scenes, folders and datasets."""

import csv
import hashlib
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import pytest
import rasterio
import rasterio.warp
import tiny_world
from tiny_models import tiny_model

from magc_data.dataset import MagcDataset
from magc_data.schema.classes import load_scheme
from magc_model import compress_job
from magc_model.cli import main
from magc_model.codec import MagcCodec
from magc_model.config import PAPER_LAMBDAS, MapClass, RateConfig, RateMode
from magc_model.scene.georeference import Affine, Georeference, pack_georeference
from magc_model.scene.stream import chunk_check, crc_of, pack_header, unpack_header

GAINED = RateConfig(mode=RateMode.GAINED, lambdas=PAPER_LAMBDAS)
DEFAULT_CLASSES = tuple(MapClass(each.id, each.name, tuple(each.color)) for each in load_scheme("default").classes)


class Run(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Run]


@pytest.fixture
def magc(capfd: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: object) -> Run:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(each) for each in arguments])
        return Run(ended.value.code, *capfd.readouterr())

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic GeoTIFF over the made-up world of the other tests, its OSM file, and models."""
    folder = tmp_path_factory.mktemp("scene")
    west, north = tiny_world.BBOX[0] + 0.001, tiny_world.BBOX[3] - 0.0005
    (x,), (y,) = rasterio.warp.transform("EPSG:4326", "EPSG:3857", [west], [north])
    random = np.random.default_rng(0)
    blocks = np.kron(random.integers(0, 200, (45, 60)), np.ones((10, 10)))[..., None]
    image = (blocks + random.integers(0, 50, (450, 600, 3))).astype(np.uint8)
    with rasterio.open(
        folder / "scene.tif", "w", driver="GTiff", dtype="uint8", count=3, width=600, height=450, crs="EPSG:3857",
        transform=rasterio.Affine(0.9, 0, x, 0, -0.9, y),
    ) as dataset:  # fmt: skip
        dataset.write(image.transpose(2, 0, 1))
    tiny_world.write_osm(folder / "world.osm.opl")
    PIL.Image.fromarray(image).save(folder / "plain.png")
    tiny_model(classes=DEFAULT_CLASSES).save_pretrained(folder / "model")
    tiny_model(classes=DEFAULT_CLASSES, rate=GAINED).save_pretrained(folder / "gained")
    for number, weight in enumerate((0.5, 4.0)):
        model = tiny_model(classes=DEFAULT_CLASSES, rate=RateConfig(lambdas=(PAPER_LAMBDAS[number],)))
        for parameter in model.latent_compression.analysis.tail.parameters():
            parameter.data *= weight  # finer symbols, more bytes
        model.save_pretrained(folder / f"fixed{number}")
    return folder


def scene(magc: Command, folder: Path, out: Path, *more: object) -> Path:
    run = magc(
        "compress",
        folder / "scene.tif",
        "--model",
        folder / "model",
        "-o",
        out,
        "--osm",
        folder / "world.osm.opl",
        *more,
    )
    assert run.code == 0, run.err
    return out


@pytest.mark.slow
def test_a_geotiff_with_an_osm_file_comes_back_in_its_place_from_a_fresh_process(
    magc: Command, folder: Path, tmp_path: Path
) -> None:
    stream = scene(magc, folder, tmp_path / "scene.magc")
    out = tmp_path / "out.tif"
    done = subprocess.run(
        [
            sys.executable, "-c", "from magc_model.cli import main; main()", "decompress", stream, "--model",
            folder / "model", "--osm", folder / "world.osm.opl", "-o", out, "--steps", "2", "--sampler", "ddim", "--strict",
        ],
        env={**os.environ, "OMP_NUM_THREADS": "2"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr  # its map is the sender's to the last byte
    with rasterio.open(folder / "scene.tif") as before, rasterio.open(out) as after:
        assert after.crs == before.crs
        assert after.bounds == before.bounds
        assert after.shape == before.shape
        tags = after.tags()
    assert tags["MAGC_STEPS"] == "2"
    assert tags["MAGC_SEED"] == "0"
    assert tags["MAGC_MODEL"] == MagcCodec.from_pretrained(str(folder / "model")).model.fingerprint()
    assert "diffusion" in tags["MAGC_SYNTHESISED"]
    here = tmp_path / "here.tif"
    run = magc(
        "decompress", stream, "--model", folder / "model", "--osm", folder / "world.osm.opl", "-o", here, "--steps", 2,
        "--sampler", "ddim", "--window", 200, 100, 150, 120,
    )  # fmt: skip
    assert run.code == 0, run.err
    with rasterio.open(out) as whole, rasterio.open(here) as part:
        cut = whole.read(window=rasterio.windows.Window(200, 100, 150, 120)).astype(int)
        assert np.abs(part.read() - cut).max() <= 1
        assert part.transform == whole.window_transform(rasterio.windows.Window(200, 100, 150, 120))


def test_real_imagery_and_a_real_extract(magc: Command, folder: Path, tmp_path: Path, shared_data: Path) -> None:
    """Zurich's pixels, moved to Liechtenstein, for which there is an extract: picture and map have nothing in common."""
    original = shared_data / "imagery" / "martibosch_detectree__1091-322_00.tif"
    pbf = shared_data / "osm" / "valhalla_liechtenstein-latest.osm.pbf"
    (x,), (y,) = rasterio.warp.transform("EPSG:4326", "EPSG:2056", [9.5215], [47.1400])  # Vaduz
    moved = tmp_path / "moved.tif"
    with rasterio.open(original) as dataset:
        profile = dataset.profile | {"transform": rasterio.Affine(0.5, 0, round(x), 0, -0.5, round(y))}
        with rasterio.open(moved, "w", **profile) as copy:
            copy.write(dataset.read())
            copy.colorinterp = dataset.colorinterp
    stream, out = tmp_path / "vaduz.magc", tmp_path / "vaduz.tif"
    run = magc("compress", moved, "--model", folder / "model", "--osm", pbf, "-o", stream, "--json")
    assert run.code == 0, run.err
    figures = json.loads(run.out)
    assert figures["bytes"] == stream.stat().st_size
    assert figures["ideal_bytes"] < figures["bytes"] < figures["ideal_bytes"] * 1.1 + 100
    run = magc("decompress", stream, "--model", folder / "model", "--osm", pbf, "-o", out, "--steps", 0, "--strict")
    assert run.code == 0, run.err
    with rasterio.open(moved) as before, rasterio.open(out) as after:
        assert (after.crs, after.transform, after.shape) == (before.crs, before.transform, before.shape)
    older = shared_data / "osm" / "osm2pgsql_liechtenstein-2013-08-03.osm.pbf"
    run = magc(
        "decompress", stream, "--model", folder / "model", "--osm", older, "-o", tmp_path / "x.tif", "--steps", 0
    )
    assert "the map's digest is" in run.err
    run = magc("decompress", stream, "--model", folder / "model", "--osm", older, "-o", tmp_path / "y.tif", "--strict")
    assert run.code == 1
    assert not (tmp_path / "y.tif").exists()


def test_info_says_where_a_scene_lies(magc: Command, folder: Path, tmp_path: Path) -> None:
    stream = scene(magc, folder, tmp_path / "scene.magc", "--embed-map")
    run = magc("info", stream, "--json")
    document = json.loads(run.out)
    assert document["kind"] == "scene"
    assert document["crs"] == "EPSG:3857"
    assert document["map"] == "embedded"
    assert (document["width_px"], document["height_px"], document["chunks"]) == (600, 450, 1)
    assert document["damaged_chunks"] == []


@pytest.mark.slow
def test_a_scene_as_a_plain_picture_and_through_pipes(magc: Command, folder: Path, tmp_path: Path) -> None:
    stream = scene(magc, folder, tmp_path / "scene.magc", "--embed-map")
    out = tmp_path / "out.png"
    run = magc("decompress", stream, "--model", folder / "model", "-o", out, "--steps", 0)
    assert run.code == 0, run.err
    program = [sys.executable, "-c", "from magc_model.cli import main; main()"]
    piped = subprocess.run(
        [*program, "decompress", "-", "--model", folder / "model", "-o", "-", "--steps", "0", "--quiet"],
        input=stream.read_bytes(), capture_output=True, check=True,
    ).stdout  # fmt: skip
    (tmp_path / "piped.png").write_bytes(piped)
    one, other = (np.asarray(PIL.Image.open(each)).astype(int) for each in (out, tmp_path / "piped.png"))
    assert np.abs(one - other).max() <= 1


def test_uncertainty_is_a_fourth_band(magc: Command, folder: Path, tmp_path: Path) -> None:
    stream = scene(magc, folder, tmp_path / "scene.magc", "--embed-map")
    out = tmp_path / "out.tif"
    run = magc(
        "decompress", stream, "--model", folder / "model", "-o", out, "--steps", 2, "--sampler", "ddim",
        "--uncertainty", 3, "--window", 0, 0, 100, 90,
    )  # fmt: skip
    assert run.code == 0, run.err
    with rasterio.open(out) as dataset:
        assert dataset.count == 4
        assert dataset.descriptions[3] == "standard deviation of 3 draws, grey levels"
        assert dataset.read(4).max() > 0
        assert dataset.tags()["MAGC_DRAWS"] == "3"


def test_a_damaged_scene_is_written_and_says_so(magc: Command, folder: Path, tmp_path: Path) -> None:
    stream = scene(magc, folder, tmp_path / "scene.magc", "--embed-map")
    data = bytearray(stream.read_bytes())
    data[unpack_header(bytes(data)).offsets[0] + 30] ^= 4
    stream.write_bytes(data)
    out = tmp_path / "out.tif"
    run = magc("decompress", stream, "--model", folder / "model", "-o", out, "--steps", 0)
    assert run.code == 3
    assert "are lost: chunk 0 is damaged" in run.err
    assert "1 damaged chunks missing" in run.out
    with rasterio.open(out) as dataset:
        assert not dataset.dataset_mask().any()
    run = magc("decompress", stream, "--model", folder / "model", "-o", tmp_path / "strict.tif", "--strict")
    assert run.code == 1
    assert not (tmp_path / "strict.tif").exists()


def test_a_large_picture_becomes_a_scene(
    magc: Command, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compress_job, "MAX_PIXELS", 600 * 450 - 1)
    out = tmp_path / "plain.magc"
    run = magc("compress", folder / "plain.png", "--model", folder / "model", "--no-map", "-o", out)
    assert run.code == 0, run.err
    document = json.loads(magc("info", out, "--json").out)
    assert (document["kind"], document["crs"], document["transform"]) == ("scene", None, None)


def test_a_scene_in_a_number_of_bytes(magc: Command, folder: Path, tmp_path: Path) -> None:
    for number, budget in enumerate((2100, 2400)):
        out = tmp_path / f"{number}.magc"
        run = magc(
            "compress", folder / "scene.tif", "--model", folder / "gained", "--osm", folder / "world.osm.opl", "-o", out,
            "--bytes", budget,
        )  # fmt: skip
        assert run.code == 0, run.err
        assert 0.95 * budget <= out.stat().st_size <= budget


def test_of_several_models_that_is_taken_which_comes_nearest(magc: Command, folder: Path, tmp_path: Path) -> None:
    sizes = []
    for number in (0, 1):
        out = tmp_path / f"{number}.magc"
        assert (
            magc("compress", folder / "plain.png", "--model", folder / f"fixed{number}", "--no-map", "-o", out).code
            == 0
        )
        sizes.append(out.stat().st_size)
    assert sizes[0] < sizes[1]
    both = ("--model", folder / "fixed0", "--model", folder / "fixed1", "--no-map", "-o", tmp_path / "out.magc")
    for budget, expected in ((sizes[1] - 1, sizes[0]), (sizes[1] + 50, sizes[1])):
        run = magc("compress", folder / "plain.png", *both, "--bytes", budget)
        assert run.code == 0, run.err
        assert (tmp_path / "out.magc").stat().st_size == expected
        assert "the model's only rate, lambda" in run.out
    run = magc("compress", folder / "plain.png", *both, "--bytes", sizes[0] - 1)
    assert run.code == 2
    assert f"the smallest stream has {sizes[0]} bytes" in run.err


def test_a_folder_of_pictures(magc: Command, folder: Path, tmp_path: Path) -> None:
    pictures, maps = tmp_path / "pictures", tmp_path / "maps"
    pictures.mkdir()
    maps.mkdir()
    random = np.random.default_rng(1)
    for name in ("one", "two", "three"):
        PIL.Image.fromarray(random.integers(0, 256, (64, 70, 3), dtype=np.uint8)).save(pictures / f"{name}.png")
        if name != "three":
            PIL.Image.fromarray(random.integers(0, 4, (64, 70), dtype=np.uint8)).save(maps / f"{name}.png")
    (pictures / "broken.jpg").write_bytes(b"no picture")
    out = tmp_path / "streams"
    run = magc("compress", pictures, "--model", folder / "model", "--map", maps, "-o", out, "--json")
    assert run.code == 1
    document = json.loads(run.out)
    assert document["pictures"] == 2
    assert {each["name"] for each in document["failed"]} == {"broken.jpg", "three.png"}
    assert sorted(each.name for each in out.iterdir()) == ["one.magc", "report.csv", "two.magc"]
    rows = list(csv.DictReader((out / "report.csv").open()))
    assert [(row["key"], bool(row["error"])) for row in rows] == [
        ("one", False), ("two", False), ("broken.jpg", True), ("three.png", True),
    ]  # fmt: skip
    assert int(rows[0]["bytes"]) == (out / "one.magc").stat().st_size
    back = magc(
        "decompress",
        out / "one.magc",
        "--model",
        folder / "model",
        "--map",
        maps / "one.png",
        "--steps",
        0,
        "-o",
        tmp_path / "one.png",
    )
    assert back.code == 0, back.err


def test_a_dataset(magc: Command, folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    tiny_world.run(tiny_world.World(tmp_path / "world", tiny_world.FOUR_TILES).config(data))
    out = tmp_path / "streams"
    run = magc("compress", data, "--model", folder / "model", "-o", out)
    assert run.code == 0, run.err
    dataset = MagcDataset(data)
    assert sorted(each.stem for each in out.glob("*.magc")) == sorted(dataset.keys)
    codec = MagcCodec.from_pretrained(str(folder / "model"))
    sample = dataset[1]
    stream = (out / f"{sample.key}.magc").read_bytes()
    assert stream == codec.compress(sample.image, sample.semantic_map)
    assert "4 streams, 0 failed" in run.out
    run = magc("compress", data, "--model", folder / "model", "--map", tmp_path, "-o", out)
    assert "a dataset brings its own maps" in run.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compress", "{scene}", "--model", "{model}", "-o", "{out}"), "--osm FILE, or --no-map"),
        (("compress", "{plain}", "--model", "{model}", "--osm", "{osm}", "-o", "{out}"), "has no place on Earth"),
        (("compress", "{scene}", "--model", "{model}", "--osm", "{nowhere}", "-o", "{out}"), "neither a file nor vectors"),
        (("compress", "{scene}", "--model", "{model}", "--osm", "{osm}", "--scheme", "basic", "-o", "{out}"), "has other classes than the model"),
        (("compress", "{scene}", "--model", "{model}", "--map", "{plain}", "-o", "{out}"), "is a PNG of kind RGB"),
        (("compress", "{scene}", "--model", "{model}", "--model", "{gained}", "--no-map", "-o", "{out}"), "expected --bytes or --bpp"),
        (("decompress", "{stream}", "--model", "{model}", "-o", "{out}", "--window", "500", "0", "200", "10"), "does not lie inside"),
        (("decompress", "{stream}", "--model", "{model}", "-o", "{out}", "--uncertainty", "2", "--steps", "0"), "steps that draw"),
        (("decompress", "{stream}", "--model", "{model}", "-o", "{out}", "--max-pixels", "1000"), "more than the 1000"),
        (("decompress", "{stream}", "--model", "{gained}", "-o", "{out}"), "rate does not fit the model"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(
    magc: Command, folder: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    stream = tmp_path / "scene.magc"
    if arguments[0] == "decompress":
        scene(magc, folder, stream, "--embed-map")
    out = tmp_path / "out.tif"
    out.write_bytes(b"what was here before")
    digest = hashlib.sha256(out.read_bytes()).digest()
    places = {
        "scene": folder / "scene.tif", "plain": folder / "plain.png", "osm": folder / "world.osm.opl", "out": out,
        "model": folder / "model", "gained": folder / "gained", "nowhere": folder / "nowhere.osm", "stream": stream,
    }  # fmt: skip
    run = magc(*(each.format(**places) for each in arguments))
    assert run.code in (1, 2)
    assert message in run.err, run.err
    assert run.err.strip().count("\n") == 0
    assert hashlib.sha256(out.read_bytes()).digest() == digest
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


def altered(stream: Path, **fields: object) -> Path:
    """A scene of one chunk with other fields in its header, every check right."""
    data = stream.read_bytes()
    index = unpack_header(data)
    count = index.header._replace(**fields).chunk_rows * index.header._replace(**fields).chunk_columns
    body = data[index.offsets[0] : -3]
    packed = pack_header(index.header._replace(**fields), [len(body) + 3] + [0] * (count - 1))
    stream.write_bytes(packed + body + chunk_check(body, 0, crc_of(packed)))
    return stream


NOTES_BOMB = b"\x40" + zlib.compress(b" " * (1 << 24), 9)[2:-4]
NO_NUMBER = b"\x04" + struct.pack(">3d", float("nan"), 0.0, 0.0)


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({"georeference": pack_georeference(Georeference(epsg=2**64 - 1))}, 1, "EPSG:18446744073709551615 is unknown"),
        ({"georeference": pack_georeference(Georeference(wkt="GEOGCS["))}, 1, "coordinate system that it was given is unknown"),
        ({"georeference": pack_georeference(Georeference(transform=Affine(1e308, 0, 1e308, 0, -1e308, 0)))}, 1, "geotransform"),
        ({"georeference": NO_NUMBER}, 1, "its transform is no number"),
        ({"georeference": NOTES_BOMB}, 1, "cut short or too long"),
        ({"georeference": b"\xff\xff"}, 1, "its georeference begins with 255"),
        ({"width_px": 1 << 20, "height_px": 1 << 20}, 2, "1048576x1048576 pixels, more than the 1073741824"),
        ({"entropy_model": b"abcd"}, 1, "for the entropy model 61626364"),
    ],
)  # fmt: skip
def test_a_strangers_header_is_one_sentence_and_leaves_an_old_file_alone(
    magc: Command, folder: Path, tmp_path: Path, fields: dict[str, object], code: int, message: str
) -> None:
    stream = altered(scene(magc, folder, tmp_path / "scene.magc", "--embed-map"), **fields)
    out = tmp_path / "out.tif"
    out.write_bytes(b"precious")
    size = ("--window", 9, 9, 40, 40) if message == "geotransform" else ()
    run = magc("decompress", stream, "--model", folder / "model", "-o", out, "--steps", 0, "--quiet", *size)
    assert run.code == code, run.err
    assert message in run.err
    assert run.err.startswith("magc: ")
    assert run.err.count("\n") == 1
    assert out.read_bytes() == b"precious"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out.tif", "scene.magc"]


def test_too_large_a_scene_is_refused_before_its_map_is_fetched(magc: Command, folder: Path, tmp_path: Path) -> None:
    stream = scene(magc, folder, tmp_path / "scene.magc")
    run = magc(
        "decompress", altered(stream, width_px=1 << 17, height_px=1 << 17), "--model", folder / "model", "--osm",
        "overpass", "-o", tmp_path / "out.tif",
    )  # fmt: skip
    assert run.code == 2
    assert "131072x131072 pixels, more than" in run.err


def test_what_was_decompressed_can_be_compressed_again(magc: Command, folder: Path, tmp_path: Path) -> None:
    model = ("--model", folder / "model")
    once, twice = tmp_path / "once.tif", tmp_path / "twice.tif"
    scene(magc, folder, tmp_path / "once.magc", "--embed-map")
    for stream, out in ((tmp_path / "once.magc", once), (tmp_path / "twice.magc", twice)):
        if out == twice:
            assert magc("compress", once, *model, "--no-map", "-o", stream).code == 0
        run = magc("decompress", stream, *model, "-o", out, "--steps", 0, "--window", 0, 0, 80, 80)
        assert run.code == 0, run.err
    with rasterio.open(twice) as dataset:
        assert dataset.tags()["MAGC_COMPRESSED_BYTES"] == str((tmp_path / "twice.magc").stat().st_size)
