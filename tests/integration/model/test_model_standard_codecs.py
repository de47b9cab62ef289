"""JPEG to VVC: what all of them keep to, on a real tile."""

from __future__ import annotations

import io
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from real_tiles import held_out_tiles, psnr

from magc_model.errors import EvaluationError, UsageError
from magc_model.evaluate.codecs import ffmpeg_codecs, pillow_codecs
from magc_model.evaluate.codecs.ffmpeg_codecs import filled_to, nal_units
from magc_model.evaluate.codecs.program import run_program
from magc_model.evaluate.codecs.registry import open_codec

QUICK = {
    "jpeg": "jpeg", "jpeg2000": "jpeg2000", "webp": "webp", "avif": "avif,speed=9", "hevc": "hevc,preset=medium",
    "vvc": "vvc,preset=faster", "jxl": "jxl,effort=3",
}  # fmt: skip
FINE = {"jpeg": 90, "jpeg2000": 8, "webp": 90, "avif": 90, "hevc": 20, "vvc": 20, "jxl": 1}
SIZES = [(1, 1), (3, 1), (1, 18), (17, 33), (64, 9), (300, 200), (256, 256)]


@pytest.fixture(scope="module")
def picture(embedded_cache: Path) -> np.ndarray:
    return held_out_tiles(embedded_cache)[0].image


@pytest.fixture(scope="module", params=QUICK.values(), ids=QUICK)
def text(request: pytest.FixtureRequest) -> str:
    return request.param


def test_more_bytes_are_a_better_picture(text: str, picture: np.ndarray) -> None:
    codec = open_codec(text)
    rates = codec.rates[-3:] if text == "jpeg2000" else codec.rates  # its first ones are one file on a tile
    sizes, found = [], []
    for rate in rates:
        encoded = codec.encode(picture, None, rate)
        assert encoded.stream_bytes is not None
        assert 0.4 * len(encoded.data) < encoded.stream_bytes <= len(encoded.data)
        sizes.append(len(encoded.data))
        found.append(psnr(codec.decode(encoded.data, None), picture))
    assert sizes == sorted(set(sizes))
    assert found == sorted(set(found))
    assert found[-1] > psnr(np.broadcast_to(picture.mean((0, 1)), picture.shape), picture) + 3


def test_any_size_comes_back(text: str, picture: np.ndarray) -> None:
    codec = open_codec(text)
    for width, height in SIZES:
        cut = np.ascontiguousarray(np.tile(picture, (2, 2, 1))[:height, :width])
        decoded = codec.decode(codec.encode(cut, None, float(FINE[text.split(",")[0]])).data, None)
        assert decoded.shape == cut.shape
        assert decoded.dtype == np.uint8
        assert np.abs(decoded.mean((0, 1)) - cut.mean((0, 1))).max() < 6, "the right colours"


def test_the_same_picture_is_the_same_file_and_a_file_is_all_it_takes(text: str, picture: np.ndarray) -> None:
    sender, other = open_codec(text), open_codec(text)
    cut = np.ascontiguousarray(picture[:90, :110])
    data = sender.encode(cut, None, sender.rates[-1]).data
    assert data == other.encode(cut, None, other.rates[-1]).data
    sender.encode(np.ascontiguousarray(picture[100:170, :50]), None, sender.rates[0])
    assert np.array_equal(sender.decode(data, None), other.decode(data, None))
    assert sender.version == other.version


def test_a_damaged_file_is_a_sentence(text: str, picture: np.ndarray) -> None:
    codec = open_codec(text)
    with pytest.raises(EvaluationError) as caught:
        codec.decode(b"\x00this is no picture at all", None)
    assert "\n" not in str(caught.value)


def test_a_rate_off_the_scale_is_refused(text: str, picture: np.ndarray) -> None:
    with pytest.raises(UsageError, match="expected"):
        open_codec(text).encode(picture, None, 1000.0)


def test_ffmpegs_first_byte_counts_what_is_cut_away() -> None:
    filled, cut = filled_to(np.zeros((1, 18, 3), np.uint8), 8, 16)
    assert filled.shape == (16, 24, 3)
    assert cut == bytes([0xF6])
    assert filled_to(np.zeros((16, 32, 3), np.uint8), 8, 16)[1] == b"\x00"


def test_standard_software_opens_the_files(picture: np.ndarray, tmp_path: Path) -> None:
    """What is counted is a file, not something of ours: Pillow knows it, or ffmpeg after our first byte."""
    for name in pillow_codecs.FORMATS:
        codec = open_codec(QUICK[name])
        with Image.open(io.BytesIO(codec.encode(picture, None, codec.rates[-1]).data)) as image:
            assert image.format == pillow_codecs.FORMATS[name].kind
            assert image.size == (256, 256)
            assert not image.info.keys() & {"exif", "xmp", "icc_profile", "comment"} or not any(
                image.info.get(each) for each in ("exif", "xmp", "icc_profile", "comment")
            )
    ffmpeg = ffmpeg_codecs.ffmpeg_program()
    for name in ("hevc", "vvc"):
        path = tmp_path / f"stream.{name}"
        codec = open_codec(QUICK[name])
        path.write_bytes(codec.encode(picture, None, codec.rates[0]).data[1:])
        said = run_program([ffmpeg, "-hide_banner", "-i", str(path), "-f", "null", "-"]).said
        assert "256x256" in said


def test_streams_are_files_without_what_is_around_them(picture: np.ndarray) -> None:
    """Each by another way than the codec's own."""

    def of(name: str) -> tuple[bytes, int | None]:
        codec = open_codec(QUICK[name])
        return codec.encode(picture, None, codec.rates[-1])

    data, stream = of("webp")
    assert data[:4] == b"RIFF"
    assert stream == struct.unpack("<I", data[16:20])[0] == len(data) - 20
    data, stream = of("avif")
    assert stream == len(data) - data.index(b"mdat") - 4, "mdat is the last box"
    data, stream = of("jpeg")
    assert data[2:4] == b"\xff\xe0"
    assert stream == len(data) - 2 - struct.unpack(">H", data[4:6])[0], "all but the JFIF segment"
    data, stream = of("jpeg2000")
    assert data[:2] == b"\xff\x4f"
    assert b"OpenJPEG" not in data
    assert stream == len(data)
    data, stream = of("vvc")
    units = nal_units(data[1:])
    kinds = [unit[1] >> 3 for unit in units]
    assert kinds in ([15, 16, 7], [15, 16, 8], [15, 16, 17, 7], [15, 16, 17, 8]), "SPS, PPS, [filters], intra picture"
    assert stream == sum(map(len, units[2:]))
    data, stream = of("hevc")
    units = nal_units(data[1:])
    assert [unit[0] >> 1 & 63 for unit in units] == [32, 33, 34, 20], "VPS, SPS, PPS, one intra picture"
    assert stream == len(units[-1])


def test_a_picture_too_large_for_the_format_is_a_sentence() -> None:
    with pytest.raises(EvaluationError, match="the picture has 16384x1 pixels, WebP takes sides of 1 to 16383"):
        open_codec("webp").encode(np.zeros((1, 16384, 3), np.uint8), None, 0.0)


def test_an_ffmpeg_without_the_encoder_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "ffmpeg"
    program.write_text(f"#!{sys.executable}\nprint('Encoders: none')\n")
    program.chmod(0o755)
    monkeypatch.setattr(ffmpeg_codecs, "ffmpeg_program", lambda: str(program))
    ffmpeg_codecs.encoder_program.cache_clear()
    with pytest.raises(EvaluationError, match="has no libvvenc, which VVC intra"):
        open_codec("vvc")
    ffmpeg_codecs.encoder_program.cache_clear()


def test_an_encoder_that_takes_too_long_is_ended(picture: np.ndarray) -> None:
    with pytest.raises(EvaluationError, match=r"was not done after 0.05 s and was ended: allow it more with timeout="):
        open_codec("vvc,preset=slower,timeout=0.05").encode(picture, None, 45.0)
