"""Scene streams as bytes: everything comes back, and nothing damaged, cut or moved is taken for a chunk."""

import contextlib
import itertools
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magc_model.bitstream import MapKind
from magc_model.errors import BitstreamError
from magc_model.scene.georeference import (
    MAX_TEXT_BYTES,
    Affine,
    Georeference,
    Missing,
    fits,
    pack_georeference,
    unpack_georeference,
)
from magc_model.scene.stream import (
    MAX_CHUNKS,
    Chunk,
    SceneHeader,
    SceneIndex,
    chunk_check,
    crc_of,
    pack_chunk,
    pack_header,
    unpack_chunk,
    unpack_header,
)
from magc_model.wire import Reader, varint


def stream_of(bodies: list[bytes], header: SceneHeader) -> bytes:
    packed = pack_header(header, [len(body) + 3 if body else 0 for body in bodies])
    crc = crc_of(packed)
    return packed + b"".join(body + chunk_check(body, n, crc) for n, body in enumerate(bodies) if body)


HEADER = SceneHeader(b"abcd", True, 130, 180, 64, 77, MapKind.DIGEST, b"\x40place")  # 3 rows of 3 chunks


def bodies(count: int = 9) -> list[bytes]:
    return [pack_chunk(Chunk(n, bytes([n] * 3), b"", bytes(range(n))), MapKind.DIGEST) for n in range(count)]


def at(data: bytes, index: SceneIndex, number: int) -> bytes:
    return data[index.offsets[number] : index.offsets[number + 1]]


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.sampled_from([512, 1024]),
    st.integers(0, 2**64 - 1),
    st.sampled_from(MapKind),
    st.booleans(),
    st.binary(max_size=40),
    st.data(),
)
def test_headers_and_chunks_come_back(width, height, chunk_px, seed, kind, has_rates, place, data) -> None:
    header = SceneHeader(b"mdl0", has_rates, width, height, chunk_px, seed, kind, place)
    count = header.chunk_rows * header.chunk_columns
    has_mask = data.draw(st.booleans())
    map_data = {
        MapKind.NONE: st.just(b""),
        MapKind.DIGEST: st.binary(min_size=3, max_size=3),
        MapKind.EMBEDDED: st.binary(max_size=200),
    }[kind]
    one = st.builds(
        Chunk,
        rate=st.integers(0, 255) if has_rates else st.none(),
        map_data=map_data,
        mask=st.binary(max_size=200) if has_mask else st.none(),
        payload=st.binary(max_size=300),
    )
    chunks = data.draw(st.lists(st.one_of(st.none(), one), min_size=count, max_size=count))
    packed = [b"" if each is None else pack_chunk(each, kind) for each in chunks]
    stream = stream_of(packed, header)
    index = unpack_header(stream)
    assert index.header == header
    assert index.offsets[-1] == len(stream)
    for number, (each, body) in enumerate(zip(chunks, packed, strict=True)):
        if body:
            assert unpack_chunk(at(stream, index, number), number, index, has_mask=has_mask) == each
        else:
            assert index.offsets[number] == index.offsets[number + 1]


def test_every_flipped_bit_is_noticed_where_it_is() -> None:
    stream = stream_of(bodies(), HEADER)
    index = unpack_header(stream)
    for place, bit in itertools.product(range(len(stream)), range(8)):
        damaged = bytearray(stream)
        damaged[place] ^= 1 << bit
        if place < index.offsets[0]:
            with pytest.raises(BitstreamError):
                unpack_header(bytes(damaged))
            continue
        again = unpack_header(bytes(damaged))
        bad = [n for n in range(9) if _fails(bytes(damaged), again, n)]
        assert bad == [n for n in range(9) if index.offsets[n] <= place < index.offsets[n + 1]]


def _fails(data: bytes, index: SceneIndex, number: int) -> bool:
    try:
        unpack_chunk(at(data, index, number), number, index, has_mask=True)
    except BitstreamError:
        return True
    return False


def test_a_scene_cut_short_keeps_its_first_chunks() -> None:
    stream = stream_of(bodies(), HEADER)
    index = unpack_header(stream)
    for length in range(index.offsets[0]):
        with pytest.raises(BitstreamError):
            unpack_header(stream[:length])
    cut = stream[: index.offsets[4] + 2]
    assert [n for n in range(9) if _fails(cut, unpack_header(cut), n)] == [4, 5, 6, 7, 8]


def test_chunks_of_other_places_and_scenes_are_no_chunks() -> None:
    twin = pack_chunk(Chunk(1, b"map", b"", b"payload"), MapKind.DIGEST)
    stream, other = stream_of([twin] * 9, HEADER), stream_of([twin] * 9, HEADER._replace(seed=78))
    index = unpack_header(stream)
    assert unpack_chunk(at(stream, index, 2), 2, index, has_mask=True).payload == b"payload"
    assert _fails(stream[: index.offsets[2]] + at(stream, index, 3) + stream[index.offsets[3] :], index, 2)
    assert _fails(
        stream[: index.offsets[2]] + at(other, unpack_header(other), 2) + stream[index.offsets[3] :], index, 2
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "it is empty"),
        (b"II*\0", "begins with 49 49 2a 00"),
        (b"\x8fS", "cut short"),
        (b"\x8fS\xe0", "of version 7"),
        (b"\x8fS\x20abcd\xff\xff\xff\x7f\xff\xff\xff\x7f\x10", "its size is"),
        (b"\x8fS\x20abcd\x80\x80\x40\x80\x80\x40\x01", "268435456 chunks"),  # 2^20 x 2^20 by 64
        (b"\x8fS\x20abcd\x80\x80\x40\x80\x80\x40\x10", "its header is longer"),  # by 1024: 2^20 lengths
        (b"\x8fS\x20abcd\x01\x01\x00", "in chunks of 0"),
        (b"\x8fS\x22abcd\x01\x01\x01\xff\xff\xff\x7f", "its georeference has"),
        (b"\x8fS\x38abcd\x01\x01\x01", "its map is of kind 3"),
    ],
)
def test_what_is_no_scene_is_named(data: bytes, said: str) -> None:
    with pytest.raises(BitstreamError, match=said):
        unpack_header(data)


# --- georeference -----------------------------------------------------------------------------------------------------

NUMBER = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
PLACES = st.builds(
    lambda crs, transform, missing, nodata, descriptions, tags: Georeference(
        crs if isinstance(crs, int) else None,
        crs if isinstance(crs, str) else None,
        transform,
        missing,
        nodata if missing is Missing.NODATA else None,
        tuple(descriptions),
        tuple(sorted(tags.items())),
    ),
    st.one_of(st.none(), st.integers(0, 40000), TEXT),
    st.one_of(
        st.none(),
        st.builds(Affine, *[NUMBER] * 6),
        st.builds(lambda a, c, f: Affine(a, 0.0, c, 0.0, -a, f), NUMBER, NUMBER, NUMBER),
    ),
    st.sampled_from(Missing),
    st.integers(0, 255),
    st.lists(st.one_of(st.none(), TEXT), max_size=3),
    st.dictionaries(TEXT, TEXT, max_size=3),
)


@given(PLACES)
def test_a_georeference_comes_back(place: Georeference) -> None:
    assert unpack_georeference(pack_georeference(place)) == place


@given(st.binary(max_size=60))
def test_any_bytes_are_a_georeference_or_an_error(data: bytes) -> None:
    with contextlib.suppress(BitstreamError):
        assert isinstance(unpack_georeference(data), Georeference)


def test_a_place_on_the_web_mercator_grid_costs_27_bytes_and_none_costs_nothing() -> None:
    assert len(pack_georeference(Georeference(3857, None, Affine(0.5, 0, 9518703.1, 0, -0.5, 3203475.8)))) == 27
    assert pack_georeference(Georeference()) == b""


def test_a_text_that_would_fill_memory_is_refused() -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = packer.compress(b" " * (1 << 28)) + packer.flush()
    length = bytes([len(bomb) & 0x7F | 0x80, len(bomb) >> 7 & 0x7F | 0x80, len(bomb) >> 14])
    with pytest.raises(BitstreamError, match="too long"):
        unpack_georeference(b"\x02" + length + bomb)


@pytest.mark.parametrize(
    "notes", ['{"tags":{"a":"\\ud800"}}', '{"descriptions":["\\udfff"]}', '{"tags":{"\\ud801":""}}']
)
def test_half_a_surrogate_pair_is_no_text(notes: str) -> None:
    """JSON can name it, and nothing can write it."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    with pytest.raises(BitstreamError, match="its notes cannot be read"):
        unpack_georeference(b"\x40" + packer.compress(notes.encode()) + packer.flush())


@pytest.mark.parametrize("length", [MAX_TEXT_BYTES - 1, MAX_TEXT_BYTES])
def test_the_longest_text_comes_back(length: int) -> None:
    place = Georeference(wkt="x" * length)
    assert fits(place)
    assert unpack_georeference(pack_georeference(place)) == place


@pytest.mark.parametrize(
    "place",
    [
        Georeference(wkt="x" * (MAX_TEXT_BYTES + 1)),
        Georeference(tags=(("a", "x" * MAX_TEXT_BYTES),)),
        Georeference(tags=tuple((str(number), "") for number in range(501))),
        Georeference(descriptions=("\ud800",)),
    ],
)
def test_what_could_not_be_read_is_not_packed(place: Georeference) -> None:
    assert not fits(place)
    with pytest.raises(ValueError, match="text is out of range"):
        pack_georeference(place)


# --- varints ----------------------------------------------------------------------------------------------------------


@given(
    st.one_of(st.binary(max_size=60), st.lists(st.integers(0, 2**65)).map(lambda n: b"".join(map(varint, n)))),
    st.integers(0, 9),
)
def test_numbers_at_once_are_those_one_by_one(data: bytes, count: int) -> None:
    one_by_one, at_once = Reader(data), Reader(data)
    try:
        expected = [one_by_one.varint() for _ in range(count)]
    except BitstreamError:
        with pytest.raises(BitstreamError):
            at_once.varints(count)
        return
    assert at_once.varints(count) == expected
    assert at_once.place == one_by_one.place


@pytest.mark.slow
def test_an_index_of_a_million_chunks_is_read_quickly() -> None:
    side = 1024 * 1024
    header = SceneHeader(b"abcd", False, side, side, 1024, 0, MapKind.NONE, b"")
    packed = pack_header(header, [200] * MAX_CHUNKS)
    began = time.process_time()
    index = unpack_header(packed)
    assert time.process_time() - began < 1
    assert index.offsets[-1] == len(packed) + 200 * MAX_CHUNKS
