"""The palette PNG encoder, read back by Pillow and zlib, and its bytes pinned."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib

import numpy as np
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from magc_data.png import PngError, encode_palette_png
from magc_data.rasterize import burn


def palette_of(count):
    return np.random.default_rng(count).integers(0, 256, (count, 3), dtype=np.uint8)


def assert_reads_back(classes, palette):
    encoded = encode_palette_png(classes, palette)
    image = Image.open(io.BytesIO(encoded))
    image.load()
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), classes)
    assert image.getpalette()[: palette.size] == palette.reshape(-1).tolist()
    # Pillow forgives: every chunk's checksum, the stream's own checksum and its end are looked at here.
    position = 8
    while position < len(encoded):
        length, name = struct.unpack_from(">I4s", encoded, position)
        body = encoded[position + 8 : position + 8 + length]
        assert zlib.crc32(name + body) == int.from_bytes(encoded[position + 8 + length :][:4], "big")
        position += 12 + length
        if name == b"IDAT":
            inflater = zlib.decompressobj()
            scanlines = inflater.decompress(body)
            assert inflater.eof
            assert inflater.unused_data == b""
            assert len(scanlines) == classes.shape[0] * (classes.shape[1] + 1)
    assert name == b"IEND"
    return encoded


@st.composite
def class_maps(draw):
    """From noise over blocks and lines to a single colour, of any shape."""
    height, width = draw(st.integers(1, 300)), draw(st.integers(1, 300))
    count = draw(st.integers(1, 256))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    block = draw(st.sampled_from([1, 2, 7, 40, 300]))
    coarse = generator.integers(0, count, (-(-height // block), -(-width // block)), dtype=np.uint8)
    classes = np.repeat(np.repeat(coarse, block, axis=0), block, axis=1)[:height, :width]
    lean = draw(st.sampled_from([-1, 0, 1]))
    rows, columns = np.indices(classes.shape)
    classes = classes[rows, (columns + lean * rows) % width]
    return classes, count


@settings(max_examples=80, deadline=None)
@given(class_maps())
@example((np.zeros((1, 1), dtype=np.uint8), 1))
@example((np.zeros((256, 256), dtype=np.uint8), 1))
@example((np.arange(256, dtype=np.uint8).reshape(1, 256), 256))
@example((np.arange(256, dtype=np.uint8).reshape(256, 1), 256))
def test_pillow_reads_back_the_map_and_the_palette(drawn):
    classes, count = drawn
    assert_reads_back(classes, palette_of(count))


@pytest.mark.parametrize("width", [32766, 32767, 32768, 40000])
def test_rows_longer_than_deflate_can_look_back(width):
    """The farthest match is one row and one pixel back: noise that leans by a pixel a row has no other."""
    row = np.random.default_rng(width).integers(0, 7, width, dtype=np.uint8)
    assert_reads_back(np.stack([np.roll(row, lean) for lean in range(3)]), palette_of(7))


def test_codes_too_deep_for_deflate_are_flattened():
    """Class counts that grow like Fibonacci's numbers make a Huffman tree deeper than 15."""
    counts = [1, 1]
    while sum(counts) < 60000:
        counts.append(counts[-1] + counts[-2])
    pixels = np.repeat(np.arange(len(counts), dtype=np.uint8), counts)
    # One row, too long to look back, in which no pixel equals its neighbour: nothing but literals.
    half = len(pixels) // 2
    row = np.column_stack([pixels[:half], pixels[half : 2 * half]]).reshape(1, -1)
    assert_reads_back(row, palette_of(len(counts)))


def test_views_are_taken_as_they_look():
    strip = np.random.default_rng(0).integers(0, 5, (50, 200), dtype=np.uint8)
    view = strip[::2, 40:90]
    assert encode_palette_png(view, palette_of(5)) == encode_palette_png(view.copy(), palette_of(5))


def test_class_maps_take_less_room_than_with_pillow():
    generator = np.random.default_rng(3)
    ends = generator.uniform(-50, 300, (60, 2, 2))
    shapes = [*shapely.buffer(shapely.points(ends[:15, 0]), 40), *shapely.buffer(shapely.linestrings(ends[15:]), 3)]
    classes = burn(shapes, generator.integers(1, 6, 60), 256, 256)
    by_pillow = io.BytesIO()
    image = Image.fromarray(classes)
    image.putpalette(palette_of(6).tobytes())
    image.save(by_pillow, "PNG")
    assert len(encode_palette_png(classes, palette_of(6))) < len(by_pillow.getvalue())


def test_bytes_never_change():
    """Datasets are identified by their digests: a change here is a new format version."""
    rows, columns = np.mgrid[:256, :256]
    classes = ((rows * 3 + columns * 5) // 64 % 7 + (rows * columns) % 11 // 10).astype(np.uint8)
    noise = (rows * 7919 + columns * 104729 + rows * columns * 31) % 251 // 3
    palette = np.arange(270, dtype=np.int64).astype(np.uint8).reshape(90, 3)
    digests = [
        hashlib.sha256(encode_palette_png(array, palette)).hexdigest()
        for array in (classes, noise.astype(np.uint8), np.zeros((3, 5), dtype=np.uint8))
    ]
    assert digests == [
        "eb97b237271f82efb88bd2adb5c46530915b317a23502e6f6a6c4c301c7cd33b",
        "91b162b6a3e42bea63a40ffde14348eb87558087e3a897a15323ab0ca33a085a",
        "d115a2035a1300181c29814bb18303dd651883ef0da4462409c9b0e6e199f7dd",
    ]


@pytest.mark.parametrize(
    ("classes", "palette", "said"),
    [
        (np.zeros((4, 4), dtype=np.int64), palette_of(2), "a map of int64"),
        (np.zeros((4, 4, 3), dtype=np.uint8), palette_of(2), r"a map of uint8 \[4, 4, 3\]"),
        (np.zeros((0, 4), dtype=np.uint8), palette_of(2), r"a map of uint8 \[0, 4\]"),
        (np.full((4, 4), 2, dtype=np.uint8), palette_of(2), "the map has class 2, but the palette has 2 colours"),
        (np.zeros((4, 4), dtype=np.uint8), np.zeros((0, 3), dtype=np.uint8), r"a palette of uint8 \[0, 3\]"),
        (np.zeros((4, 4), dtype=np.uint8), np.zeros((257, 3), dtype=np.uint8), r"a palette of uint8 \[257, 3\]"),
        (np.zeros((4, 4), dtype=np.uint8), np.zeros((2, 4), dtype=np.uint8), r"a palette of uint8 \[2, 4\]"),
    ],
)
def test_what_cannot_be_a_palette_png_is_named(classes, palette, said):
    with pytest.raises(PngError, match=said):
        encode_palette_png(classes, palette)
