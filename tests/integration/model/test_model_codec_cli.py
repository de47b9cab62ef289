"""`magc compress`, `decompress` and `info`: files in, files out, and one sentence for every mistake."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import pytest
from tiny_models import CLASSES, tiny_model

from magc_model.cli import main
from magc_model.codec import MagcCodec
from magc_model.config import PAPER_LAMBDAS, RateConfig, RateMode
from magc_model.reconstruct import Sampling


class Run(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Run]


@pytest.fixture
def magc(capfd: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: str | Path) -> Run:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(each) for each in arguments])
        return Run(ended.value.code, *capfd.readouterr())

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture, its map, and models of one rate, of all, and without a map."""
    folder = tmp_path_factory.mktemp("codec")
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (96, 80, 3), dtype=np.uint8)
    class_ids = random.integers(0, len(CLASSES), (96, 80), dtype=np.uint8)
    PIL.Image.fromarray(image).save(folder / "tile.png")
    PIL.Image.fromarray(image).save(folder / "tile.jpg")
    palette = PIL.Image.fromarray(class_ids, "P")
    palette.putpalette([byte for each in CLASSES for byte in each.color])
    palette.save(folder / "map.png", bits=8)
    PIL.Image.fromarray((class_ids + 1) % 4).save(folder / "other.png")
    PIL.Image.fromarray(class_ids[:64]).save(folder / "short.png")
    gained = RateConfig(mode=RateMode.GAINED, lambdas=PAPER_LAMBDAS)
    tiny_model().save_pretrained(folder / "model")
    tiny_model(rate=gained).save_pretrained(folder / "gained")
    off = dict.fromkeys(("in_transform", "in_diffusion", "in_decoder", "in_entropy"), False)
    tiny_model(**off).save_pretrained(folder / "blind")
    return folder


def compressed(magc: Command, folder: Path, out: Path, *more: str | Path) -> Path:
    model = () if "--model" in more else ("--model", folder / "model")
    the_map = () if "--no-map" in more else ("--map", folder / "map.png")
    run = magc("compress", folder / "tile.png", *model, *the_map, "-o", out, *more)
    assert run.code == 0, run.err
    return out


def test_a_tile_there_and_back(magc: Command, folder: Path, tmp_path: Path) -> None:
    stream = compressed(magc, folder, tmp_path / "tile.magc", "--seed", "9")
    out = tmp_path / "new" / "back.png"
    run = magc(
        "decompress", stream, "--model", folder / "model", "--map", folder / "map.png", "-o", out,
        "--steps", "3", "--sampler", "ddim", "--json",
    )  # fmt: skip
    assert (run.code, run.err) == (0, "")
    answer = json.loads(run.out)
    codec = MagcCodec.from_pretrained(str(folder / "model"), device="cpu")
    class_ids = np.asarray(PIL.Image.open(folder / "map.png"))
    expected = codec.decompress(stream.read_bytes(), class_ids, sampling=Sampling(sampler="ddim", steps=3), seed=9)
    with PIL.Image.open(out) as picture:
        assert np.array_equal(np.asarray(picture), expected)
        origin = json.loads(picture.text["magc"])
    assert origin["model"] == codec.model.fingerprint()
    assert (origin["steps"], origin["sampler"], origin["seed"]) == (3, "ddim", 9)
    assert "not observed" in origin["synthesised"]
    assert answer == {"out": str(out), "width_px": 80, "height_px": 96, **origin}


def test_the_answer_counts_every_byte(magc: Command, folder: Path, tmp_path: Path) -> None:
    arguments = ("compress", folder / "tile.png", "--model", folder / "model", "--map", folder / "map.png")
    plain = json.loads(magc(*arguments, "-o", tmp_path / "a.magc", "--json").out)
    embedded = json.loads(magc(*arguments, "-o", tmp_path / "b.magc", "--json", "--embed-map").out)
    for name, answer in (("a", plain), ("b", embedded)):
        assert answer["bytes"] == (tmp_path / f"{name}.magc").stat().st_size
        assert answer["bpp"] == pytest.approx(8 * answer["bytes"] / (80 * 96), abs=1e-5)
    assert plain["embedded_map_bytes"] == 0
    assert embedded["bytes"] - plain["bytes"] == pytest.approx(embedded["embedded_map_bytes"], abs=4)


@pytest.mark.slow
def test_streams_through_pipes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Standard input to standard output: from a program of its own into this one."""
    model = ["--model", str(folder / "model")]
    program = [sys.executable, "-c", "from magc_model.cli import main; main()"]
    sent = subprocess.run(
        [*program, "compress", "-", *model, "--map", folder / "map.png", "-o", "-", "--embed-map"],
        input=(folder / "tile.jpg").read_bytes(),
        capture_output=True,
        timeout=200,
        check=True,
    )
    assert b"bytes" in sent.stderr
    (tmp_path / "stream").write_bytes(sent.stdout)
    with (tmp_path / "stream").open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        with pytest.raises(SystemExit) as ended:
            main(["decompress", "-", *model, "-o", "-", "--steps", "0"])
    got = capfdbinary.readouterr()
    assert ended.value.code == 0, got.err
    assert b"pixels from" in got.err
    with PIL.Image.open(io.BytesIO(got.out)) as picture:
        assert (picture.format, picture.size) == ("PNG", (80, 96))


@pytest.mark.parametrize(("suffix", "kind"), [("jpg", "JPEG"), ("webp", "WEBP")])
def test_other_formats_say_their_origin_too(
    magc: Command, folder: Path, tmp_path: Path, suffix: str, kind: str
) -> None:
    stream = compressed(magc, folder, tmp_path / "tile.magc", "--no-map")
    out = tmp_path / f"back.{suffix}"
    run = magc("decompress", stream, "--model", folder / "model", "-o", out, "--steps", "0")
    assert run.code == 0, run.err
    with PIL.Image.open(out) as picture:
        assert picture.format == kind
        assert json.loads(picture.getexif()[0x010E])["steps"] == 0


@pytest.mark.slow
def test_rates_of_a_gained_model(magc: Command, folder: Path, tmp_path: Path) -> None:
    rates = []
    for option, value in (("--quality", "1"), ("--quality", "6"), ("--lambda", "1.25")):
        out = tmp_path / f"{option}{value}.magc"
        compressed(magc, folder, out, "--model", folder / "gained", option, value)
        rates.append(json.loads(magc("info", out, "--json").out)["rate"])
    assert rates == [0, 1, 1]


@pytest.mark.slow
def test_a_size_or_bits_a_pixel(magc: Command, folder: Path, tmp_path: Path) -> None:
    largest = compressed(magc, folder, tmp_path / "a.magc", "--model", folder / "gained", "--quality", "6")
    wanted = largest.stat().st_size - 8
    for options in (("--bytes", str(wanted)), ("--bpp", str(8 * wanted / (80 * 96) + 1e-9))):
        out = compressed(magc, folder, tmp_path / "b.magc", "--model", folder / "gained", *options)
        assert 0.95 * wanted <= out.stat().st_size <= wanted


def test_info_needs_no_model(magc: Command, folder: Path, tmp_path: Path) -> None:
    stream = compressed(magc, folder, tmp_path / "tile.magc")
    answer = json.loads(magc("info", stream, "--json").out)
    assert (answer["width_px"], answer["height_px"], answer["bytes"]) == (80, 96, stream.stat().st_size)
    assert answer["map"].startswith("digest ")
    assert answer["rate"] is None
    run = magc("info", stream)
    assert [line.split()[0] for line in run.out.splitlines()] == list(answer)


def test_another_map_is_a_warning_or_an_error(magc: Command, folder: Path, tmp_path: Path) -> None:
    model = folder / "other-map"
    tiny_model(in_entropy=False).save_pretrained(model)
    stream = compressed(magc, folder, tmp_path / "tile.magc", "--model", model)
    out = tmp_path / "back.png"
    arguments = ("decompress", stream, "--model", model, "--map", folder / "other.png", "-o", out, "--steps", "0")
    run = magc(*arguments, "--strict")
    assert run.code == 1
    assert "digest" in run.err
    assert not out.exists()
    run = magc(*arguments)
    assert run.code == 0
    assert run.err.startswith("magc: warning: the map's digest is")
    assert out.exists()


MISTAKES = [
    (
        ("compress", "{tile}", "--model", "{model}", "-o", "{out}"),
        2,
        "reads a map: give --map FILE, --osm FILE, or --no-map",
    ),
    (
        ("compress", "{tile}", "--model", "{model}", "--map", "{map}", "--no-map", "-o", "{out}"),
        2,
        "were given: expected one of them",
    ),
    (("compress", "{tile}", "--model", "{model}", "--map", "{short}", "-o", "{out}"), 1, "80x64 pixels, the picture"),
    (("compress", "{tile}", "--model", "{model}", "--map", "{tile}", "-o", "{out}"), 1, "whose pixels are class ids"),
    (("compress", "{map}", "--model", "{nowhere}", "--no-map", "-o", "{out}"), 1, "nowhere"),
    (("compress", "{stream}", "--model", "{model}", "--no-map", "-o", "{out}"), 1, "no picture that can be read"),
    (("compress", "{nowhere}", "--model", "{model}", "--no-map", "-o", "{out}"), 2, "is no file: expected a picture"),
    (("compress", "{tile}", "--model", "{model}", "--no-map", "--quality", "3", "-o", "{out}"), 2, "one rate"),
    (("compress", "{tile}", "--model", "{gained}", "--no-map", "--quality", "7", "-o", "{out}"), 2, "1 to 6"),
    (
        ("compress", "{tile}", "--model", "{model}", "--no-map", "--bytes", "99", "-o", "{out}"),
        2,
        "cannot aim at a size",
    ),
    (("compress", "{tile}", "--model", "{gained}", "--no-map", "--bytes", "9", "-o", "{out}"), 2, "9 were asked for"),
    (("compress", "{tile}", "--model", "{gained}", "--no-map", "--bpp", "0", "-o", "{out}"), 2, "more than 0"),
    (
        ("compress", "{tile}", "--model", "{gained}", "--bpp", "1", "--bytes", "9", "-o", "{out}"),
        2,
        "expected one of --q",
    ),
    (("decompress", "{stream}", "--model", "{model}", "--fidelity", "2", "-o", "{out}.png"), 2, "fidelity of 2"),
    (("compress", "{tile}", "--model", "{blind}", "--map", "{map}", "--embed-map", "-o", "{out}"), 2, "reads no map"),
    (("decompress", "{stream}", "--model", "{model}", "-o", "{out}.png"), 2, "needs the map of digest"),
    (("decompress", "{stream}", "--model", "{model}", "-o", "{out}.bmp"), 2, "expected one of .png"),
    (("decompress", "{tile}", "--model", "{model}", "-o", "{out}.png"), 1, "no .magc tile stream"),
    (("decompress", "{stream}", "--model", "{blind}", "-o", "{out}.png"), 1, "for the entropy model"),
    (("decompress", "{stream}", "--model", "{model}", "--max-pixels", "7", "-o", "{out}.png"), 2, "more than the 7"),
    (
        ("decompress", "{stream}", "--model", "{model}", "--sampler", "euler", "-o", "{out}.png"),
        2,
        "'euler' is unknown",
    ),
    (("info", "{map}"), 1, "no .magc tile stream"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), MISTAKES)
def test_a_mistake_is_one_sentence(
    magc: Command, folder: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    stream = compressed(magc, folder, tmp_path / "tile.magc")
    places = {
        "tile": folder / "tile.png",
        "map": folder / "map.png",
        "short": folder / "short.png",
        "nowhere": folder / "nowhere",
        "stream": stream,
        "out": tmp_path / "out",
        **{name: folder / name for name in ("model", "gained", "blind")},
    }
    run = magc(*(each.format(**places) for each in arguments))
    assert run.code == code, run.err
    assert message in run.err
    assert run.err.startswith("magc: ")
    assert run.err.count("\n") == 1
    assert run.out == ""
    assert [each.name for each in tmp_path.iterdir()] == ["tile.magc"]


def test_damage_leaves_an_old_picture_alone(magc: Command, folder: Path, tmp_path: Path) -> None:
    stream = compressed(magc, folder, tmp_path / "tile.magc")
    stream.write_bytes(stream.read_bytes()[:-5])
    out = tmp_path / "back.png"
    out.write_bytes(b"precious")
    run = magc("decompress", stream, "--model", folder / "model", "--map", folder / "map.png", "-o", out)
    assert run.code == 1
    assert "damaged or cut short" in run.err
    assert out.read_bytes() == b"precious"
