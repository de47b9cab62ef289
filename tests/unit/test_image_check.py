"""Which bytes may become a sample's image, and by which name the others are refused."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from magc_data import image_check
from magc_data.image_check import check_tile_bytes
from magc_data.schema.sample import ImageFormat, Reason, Rejection, TileImage


def picture(mode: str = "RGB", size: int = 256, seed: int = 1) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, codec: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=codec, **options)
    return stream.getvalue()


def rejected(data: bytes, *, transient: bool = True) -> Rejection:
    verdict = check_tile_bytes(data, transient=transient)
    assert isinstance(verdict, Rejection), "accepted"
    return verdict


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_by_hand(width: int, height: int, bits: int, colour_type: int, rows: bytes, *extra: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
    body = b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(picture(), "JPEG"), ImageFormat.JPEG),
        (encoded(picture(), "JPEG", progressive=True), ImageFormat.JPEG),
        (encoded(picture("L"), "JPEG"), ImageFormat.JPEG),
        (encoded(picture(), "JPEG") + b"\0\0\n", ImageFormat.JPEG),
        (encoded(picture(), "PNG"), ImageFormat.PNG),
        (encoded(picture("L"), "PNG"), ImageFormat.PNG),
        (encoded(picture("P"), "PNG"), ImageFormat.PNG),
        (encoded(picture("LA"), "PNG"), ImageFormat.PNG),
        (encoded(picture("RGBA"), "PNG"), ImageFormat.PNG),
    ],
    ids=["jpeg", "progressive", "grey jpeg", "padded jpeg", "png", "grey", "palette", "grey+alpha", "opaque alpha"],
)
def test_good_jpeg_and_png_pass_untouched(data: bytes, expected: ImageFormat) -> None:
    assert check_tile_bytes(data, transient=True) == TileImage(data, expected)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("lossless", [True, False])
def test_webp_becomes_png_without_loss(mode: str, lossless: bool) -> None:
    data = encoded(picture(mode), "WEBP", lossless=lossless)
    image = check_tile_bytes(data, transient=True)
    assert isinstance(image, TileImage)
    assert image.format is ImageFormat.PNG
    assert image.data.startswith(b"\x89PNG")
    there = np.asarray(Image.open(io.BytesIO(image.data)))
    np.testing.assert_array_equal(there, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("codec", ["JPEG", "PNG", "WEBP"])
def test_every_truncation_is_undecodable(codec: str) -> None:
    data = encoded(picture(), codec)
    # every length near both ends, and a sample of those between
    lengths = {*range(1, 700), *range(700, len(data), 61), *range(len(data) - 40, len(data))}
    for length in sorted(lengths):
        verdict = rejected(data[:length])
        assert (verdict.reason, verdict.transient) == (Reason.UNDECODABLE, True), f"{length} of {len(data)} bytes"


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["JPEG", "PNG", "WEBP"]),
    st.integers(min_value=0, max_value=2**20),
    st.binary(min_size=1, max_size=20),
)
def test_damage_is_a_verdict_never_a_crash(codec: str, position: int, junk: bytes) -> None:
    data = encoded(picture(), codec)
    position %= len(data)
    verdict = check_tile_bytes(data[:position] + junk + data[position + len(junk) :], transient=True)
    assert isinstance(verdict, (TileImage, Rejection))


@settings(max_examples=60, deadline=None)
@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_every_changed_byte_of_a_png_is_noticed(position: int, change: int) -> None:
    data = bytearray(encoded(picture(), "PNG"))
    data[position % len(data)] ^= change
    assert rejected(bytes(data)).reason is Reason.UNDECODABLE


@pytest.mark.parametrize(("width", "height"), [(255, 256), (256, 257), (512, 512), (1, 1)])
@pytest.mark.parametrize("codec", ["JPEG", "PNG", "WEBP"])
def test_wrong_size_is_named(codec: str, width: int, height: int) -> None:
    verdict = rejected(encoded(picture().resize((width, height)), codec))
    assert verdict.reason is Reason.WRONG_SIZE
    assert f"{width} x {height}" in verdict.detail
    assert not verdict.transient


@pytest.mark.parametrize("lossless", [True, False])
def test_webp_sizes_are_read_from_each_kind_of_header(lossless: bool) -> None:
    for mode in ("RGB", "RGBA"):  # VP8, VP8L and VP8X containers
        image = picture(mode, 300)
        if mode == "RGBA":
            image.putalpha(200)
        assert "300 x 300" in rejected(encoded(image, "WEBP", lossless=lossless)).detail


def test_bombs_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_check, "_decode", lambda *_: pytest.fail("decoded"))
    bomb = png_by_hand(60000, 60000, 8, 2, b"")
    assert rejected(bomb).reason is Reason.WRONG_SIZE
    jpeg = bytearray(encoded(picture(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    assert "65000 x 65000" in rejected(bytes(jpeg)).detail
    webp = b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\x3f\0\xff\x3f\0"
    assert "16384 x 16384" in rejected(webp).detail


@pytest.mark.parametrize("codec", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (201, 200, 190)])
def test_a_single_colour_is_blank(codec: str, colour: tuple[int, int, int]) -> None:
    verdict = rejected(encoded(Image.new("RGB", (256, 256), colour), codec))
    assert (verdict.reason, verdict.transient) == (Reason.BLANK, False)


def test_nearly_a_single_colour_is_judged_by_each_channels_range() -> None:
    pixels = np.full((256, 256, 3), 100, np.uint8)
    pixels[3, 4, 1] = 102
    assert rejected(encoded(Image.fromarray(pixels), "PNG")).reason is Reason.BLANK
    pixels[3, 4, 1] = 103
    assert isinstance(check_tile_bytes(encoded(Image.fromarray(pixels), "PNG"), transient=True), TileImage)


def test_transparency_is_missing_pixels() -> None:
    one = picture("RGBA")
    one.putpixel((17, 200), (1, 2, 3, 254))
    for data in (encoded(one, "PNG"), encoded(one, "WEBP", lossless=True, exact=True)):
        verdict = rejected(data)
        assert (verdict.reason, verdict.detail) == (Reason.MISSING_PIXELS, "1 of 65536 pixels transparent")
    everywhere = Image.new("RGBA", (256, 256), (0, 0, 0, 0))
    assert rejected(encoded(everywhere, "PNG")).reason is Reason.MISSING_PIXELS


def test_transparency_without_an_alpha_channel_is_found() -> None:
    palette = picture("P")
    assert rejected(encoded(palette, "PNG", transparency=palette.getpixel((5, 5)))).reason is Reason.MISSING_PIXELS
    grey = picture("L")
    assert rejected(encoded(grey, "PNG", transparency=grey.getpixel((5, 5)))).reason is Reason.MISSING_PIXELS
    colour = picture("RGB")
    assert rejected(encoded(colour, "PNG", transparency=colour.getpixel((5, 5)))).reason is Reason.MISSING_PIXELS


def test_sixteen_bits_are_refused_by_name() -> None:
    rng = np.random.default_rng(0)
    grey = encoded(Image.fromarray(rng.integers(0, 65536, (256, 256), dtype=np.uint16)), "PNG")
    # Pillow would read the RGB one as 8 bits without a word.
    rows = b"".join(b"\0" + rng.bytes(256 * 6) for _ in range(256))
    for data in (grey, png_by_hand(256, 256, 16, 2, rows)):
        verdict = rejected(data)
        assert (verdict.reason, verdict.transient) == (Reason.UNDECODABLE, False)
        assert "16 bits" in verdict.detail


def test_cmyk_is_refused_by_name() -> None:
    verdict = rejected(encoded(picture("CMYK"), "JPEG"))
    assert "CMYK" in verdict.detail
    assert not verdict.transient


def test_animations_are_refused() -> None:
    frames = [picture(seed=seed) for seed in (1, 2)]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    assert "animation" in rejected(data).detail


def test_the_known_placeholder() -> None:
    assert list(image_check.PLACEHOLDERS) == [(2521, "f27d9de7f80c13501f470595e327aa6d")]


def test_a_placeholder_is_known_by_its_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture(), "JPEG")
    known = frozenset({(len(data), hashlib.md5(data).hexdigest())})
    monkeypatch.setattr(image_check, "PLACEHOLDERS", known)
    verdict = rejected(data)
    assert (verdict.reason, verdict.transient) == (Reason.PLACEHOLDER, False)
    assert verdict.image_sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><head><title>Sign\n in</title></head></html>", "an HTML page saying 'Sign in'"),
        (b"\xef\xbb\xbf  <HTML><body>x", "an HTML page"),
        (b'{"error":{"code":498,"message":"Invalid token"}}', "JSON saying 'Invalid token'"),
        (b'{"error":', "JSON"),
        (b'[{"a":1}]', "JSON"),
        (
            b'<?xml version="1.0"?><ows:ExceptionReport><ows:ExceptionText>no layer</ows:ExceptionText>',
            "XML saying 'no layer'",
        ),
        (b"Too many requests\n", "text saying 'Too many requests'"),
        (b"GIF89a......", "GIF"),
        (b"RIFF\x04\0\0\0WAVE" + b"\0" * 30, "52494646"),
        (b"\0\x01\x02\x03", "00010203"),
    ],
)
def test_what_came_instead_of_an_image_is_named(body: bytes, words: str) -> None:
    for transient in (True, False):
        verdict = rejected(body, transient=transient)
        assert (verdict.reason, verdict.transient) == (Reason.UNDECODABLE, transient)
        assert words in verdict.detail
        assert len(verdict.detail) < 160
