"""Zarr arrays whose chunks are `.magc` streams."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tiny_models import tiny_model

from magc_model.bitstream import unpack_tile
from magc_model.codec import MagcCodec, Rate
from magc_model.config import PAPER_LAMBDAS, RateConfig, RateMode
from magc_model.errors import BitstreamError, ModelError, UsageError
from magc_model.reconstruct import Sampling

zarr = pytest.importorskip("zarr", reason="needs Zarr: pip install 'magc[zarr]'")
numcodecs = pytest.importorskip("numcodecs", reason="needs numcodecs: pip install 'magc[zarr]'")

from magc_model import zarr_codec  # noqa: E402  (after what it needs)
from magc_model.zarr_codec import MagcNumcodec  # noqa: E402
from magc_model.zarr_v3_codec import MagcZarrCodec  # noqa: E402

GAINED = RateConfig(mode=RateMode.GAINED, lambdas=PAPER_LAMBDAS)


@pytest.fixture(scope="module")
def codec() -> MagcCodec:
    return MagcCodec(tiny_model(rate=GAINED), device="cpu")


@pytest.fixture(scope="module")
def model(codec: MagcCodec, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("zarr") / "model"
    codec.model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(1).integers(1, 256, (3, 128, 192, 3), np.uint8)


# --- chunks ----------------------------------------------------------------------------------------------------------


def test_a_chunk_of_one_picture_is_its_stream(codec: MagcCodec, model: str, pictures: np.ndarray) -> None:
    chunks = MagcNumcodec(model, quality=2.0, steps=2, seed=9)
    stream = codec.compress(pictures[0], rate=Rate(quality=2.0), seed=9)
    assert chunks.encode(pictures[0]) == chunks.encode(pictures[:1]) == stream
    decoded = chunks.decode(stream)
    assert np.array_equal(decoded, codec.decompress(stream, sampling=Sampling(steps=2)))
    # The config says how a chunk is drawn, not the stream.
    other = MagcNumcodec(model, steps=0, seed=1).decode(stream)
    assert np.array_equal(other, codec.decompress(stream, sampling=Sampling(steps=0)))
    another = MagcNumcodec(model, steps=2, seed=1).decode(stream)
    assert np.array_equal(another, codec.decompress(stream, sampling=Sampling(steps=2), seed=1))
    assert not np.array_equal(another, decoded)


def test_a_chunk_of_several_pictures(codec: MagcCodec, model: str, pictures: np.ndarray) -> None:
    chunks = MagcNumcodec(model)
    data = chunks.encode(pictures)
    streams = [each.stream for each in codec.compress_batch(list(pictures))]
    assert len(data) == sum(map(len, streams)) + 4 + sum(2 if len(each) > 127 else 1 for each in streams)
    assert data.endswith(b"".join(streams))
    expected = np.stack(codec.decompress_batch(streams, sampling=Sampling(steps=0)))
    assert np.array_equal(chunks.decode(data), expected)
    for buffer in (bytearray(data), memoryview(data), np.frombuffer(data, np.uint8)):
        out = np.zeros(pictures.shape, np.uint8)
        assert chunks.decode(buffer, out) is out
        assert np.array_equal(out, expected)
    with pytest.raises(UsageError, match="of shape 3 x 128 x 192 x 3, and there are 3 bytes for it"):
        chunks.decode(data, np.zeros(3, np.uint8))


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (np.zeros((64, 64, 3), np.float32), "of float32 and of shape 64 x 64 x 3: expected uint8"),
        (np.zeros((64, 64), np.uint8), "of uint8 and of shape 64 x 64: expected uint8 and height x width x 3"),
        (np.zeros((3, 64, 64), np.uint8), "of uint8 and of shape 3 x 64 x 64"),
        (np.zeros((1, 1, 64, 64, 3), np.uint8), "of shape 1 x 1 x 64 x 64 x 3"),
        (np.zeros((0, 64, 64, 3), np.uint8), "of shape 0 x 64 x 64 x 3"),
        (np.zeros((64, 64, 3), np.uint8, order="F"), 'not C-contiguous: expected an array of order "C"'),
        (np.zeros((2048, 2049, 3), np.uint8), "2049x2048 pixels, more than the 4194304 that are decoded unasked"),
    ],
)
def test_what_is_no_chunk_of_pictures(model: str, chunk: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MagcNumcodec(model).encode(chunk)


def test_damage_is_named(codec: MagcCodec, model: str, pictures: np.ndarray) -> None:
    chunks = MagcNumcodec(model)
    data = chunks.encode(pictures[:2])
    with pytest.raises(BitstreamError, match="damaged or cut short"):
        chunks.decode(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BitstreamError, match="header is longer"):
        chunks.decode(data[:-1])
    mixed = zarr_codec.pack_chunk([chunks.encode(pictures[0]), chunks.encode(pictures[0, :64].copy())])
    with pytest.raises(BitstreamError, match="of several sizes"):
        chunks.decode(mixed)


# --- configs and models ----------------------------------------------------------------------------------------------


def test_a_config_is_json_and_comes_back(codec: MagcCodec, tmp_path: Path) -> None:
    chunks = MagcNumcodec(tmp_path, codec.entropy_fingerprint, np.float64(2.5), 3, 4)
    config = json.loads(json.dumps(chunks.get_config()))
    assert config == {
        "id": "magc",
        "model": str(tmp_path),
        "fingerprint": codec.entropy_fingerprint,
        "quality": 2.5,
        "steps": 3,
        "seed": 4,
    }
    assert numcodecs.get_codec(config) == chunks == pickle.loads(pickle.dumps(chunks))
    assert MagcNumcodec.from_config({"model": "OWNER/NAME"}).get_config() == {
        "id": "magc", "model": "OWNER/NAME", "fingerprint": None, "quality": None, "steps": 0, "seed": 0,
    }  # fmt: skip
    v3 = MagcZarrCodec(str(tmp_path), codec.entropy_fingerprint, np.float64(2.5), 3, 4)
    document = json.loads(json.dumps(v3.to_dict()))
    assert document == {"name": "magc", "configuration": {key: config[key] for key in config if key != "id"}}
    assert MagcZarrCodec.from_dict(document) == v3 == pickle.loads(pickle.dumps(v3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fingerprint": "abc"}, "the fingerprint is 'abc': expected the 64 hexadecimal digits"),
        ({"steps": -1}, "-1 steps"),
        ({"seed": -1}, "the seed is -1"),
    ],
)
@pytest.mark.parametrize("kind", [MagcNumcodec, MagcZarrCodec])
def test_a_config_that_cannot_be(kind: type, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        kind("somewhere", **options)


def test_a_model_is_loaded_once_by_the_first_chunk(model: str, pictures: np.ndarray, monkeypatch) -> None:
    zarr_codec._load.cache_clear()
    loads = []
    load = MagcCodec.from_pretrained
    monkeypatch.setattr(
        MagcCodec, "from_pretrained", lambda name, **options: loads.append(name) or load(name, **options)
    )
    chunks = [MagcNumcodec(model, seed=seed % 2) for seed in range(4)]
    assert not loads
    with ThreadPoolExecutor(4) as pool:
        streams = list(pool.map(lambda each: each.encode(pictures[0]), chunks))
    assert loads == [model]
    assert [unpack_tile(each).seed for each in streams] == [0, 1, 0, 1]


def test_another_model_than_the_arrays_is_refused(codec: MagcCodec, model: str, pictures: np.ndarray) -> None:
    chunks = MagcNumcodec(model, codec.entropy_fingerprint)
    stream = chunks.encode(pictures[0])
    other = MagcNumcodec(model, "0" * 64)
    for use in (lambda: other.encode(pictures[0]), lambda: other.decode(stream)):
        with pytest.raises(ModelError, match=f"fingerprint {codec.entropy_fingerprint[:16]}..., the array is for 0000"):
            use()
    with pytest.raises(ModelError, match="nowhere"):
        MagcNumcodec(f"{model}/nowhere").encode(pictures[0])


def test_a_model_that_cannot_do_it_is_refused(tmp_path: Path, pictures: np.ndarray) -> None:
    needy, unfinished = tiny_model(dropout=0.0), tiny_model()
    unfinished.denoiser = None
    for name, each in (("needy", needy), ("unfinished", unfinished)):
        each.save_pretrained(tmp_path / name)
    with pytest.raises(UsageError, match="never seen a picture without its map, and the chunks of an array have none"):
        MagcNumcodec(tmp_path / "needy").encode(pictures[0])
    with pytest.raises(ModelError, match="has no denoiser, and 5 steps of one were asked for: use 0 steps"):
        MagcNumcodec(tmp_path / "unfinished", steps=5).encode(pictures[0])
    with pytest.raises(UsageError, match="this model has one rate"):
        MagcNumcodec(tmp_path / "unfinished", quality=2.0).encode(pictures[0])
    assert MagcNumcodec(tmp_path / "unfinished").encode(pictures[0])


# --- arrays ----------------------------------------------------------------------------------------------------------


def written(store: Path, pictures: np.ndarray, chunks: tuple[int, ...], **options: object) -> None:
    array = zarr.create_array(store, shape=pictures.shape, chunks=chunks, dtype="uint8", **options)
    array[:] = pictures


def read_elsewhere(store: Path) -> np.ndarray:
    """By a process that knows nothing of magc but what is installed."""
    script = "import sys, numpy, zarr; numpy.save(sys.argv[2], zarr.open_array(sys.argv[1], mode='r')[:])"
    out = store.with_suffix(".npy")
    subprocess.run([sys.executable, "-c", script, store, out], check=True, timeout=200)
    return np.load(out)


def test_format_2(codec: MagcCodec, model: str, pictures: np.ndarray, tmp_path: Path) -> None:
    store, seen = tmp_path / "array.zarr", MagcNumcodec(model, codec.entropy_fingerprint, quality=5.0)
    written(store, pictures, (1, 64, 64, 3), zarr_format=2, compressors=seen)
    found = read_elsewhere(store)
    for count, top, left in ((0, 0, 0), (2, 64, 128)):
        tile = np.ascontiguousarray(pictures[count, top : top + 64, left : left + 64])
        stream = codec.compress(tile, rate=Rate(quality=5.0))
        assert (store / f"{count}.{top // 64}.{left // 64}.0").read_bytes() == stream
        expected = codec.decompress(stream, sampling=Sampling(steps=0))
        assert np.array_equal(found[count, top : top + 64, left : left + 64], expected)
    several = tmp_path / "several.zarr"
    written(several, pictures, (2, 128, 192, 3), zarr_format=2, compressors=seen)
    expected = [
        codec.decompress(codec.compress(each, rate=Rate(quality=5.0)), sampling=Sampling(steps=0)) for each in pictures
    ]
    assert np.abs(zarr.open_array(several)[:].astype(int) - np.stack(expected)).max() <= 1  # other batches
    assert zarr.open_array(several).compressors == (seen,)


def test_format_2_knows_only_order_c(model: str, pictures: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not C-contiguous"):
        written(tmp_path / "f", pictures, (1, 64, 64, 3), zarr_format=2, compressors=MagcNumcodec(model), order="F")


@pytest.mark.slow
def test_format_3(codec: MagcCodec, model: str, pictures: np.ndarray, tmp_path: Path) -> None:
    store, chunks = tmp_path / "array.zarr", MagcZarrCodec(model, codec.entropy_fingerprint, steps=1)
    written(store, pictures[0], (64, 64, 3), serializer=chunks, compressors=None)
    tile = np.ascontiguousarray(pictures[0, 64:, 128:])
    assert (store / "c" / "1" / "2" / "0").read_bytes() == codec.compress(tile)
    found = read_elsewhere(store)
    assert np.array_equal(found[64:, 128:], codec.decompress(codec.compress(tile), sampling=Sampling(steps=1)))
    assert zarr.open_array(store).serializer == chunks


def test_format_3_in_shards_and_with_channels_first(model: str, pictures: np.ndarray, tmp_path: Path) -> None:
    chunks = MagcZarrCodec(model)
    plain, sharded, turned, several = (tmp_path / name for name in ("plain", "sharded", "turned", "several"))
    written(plain, pictures, (1, 64, 64, 3), serializer=chunks, compressors=None)
    written(sharded, pictures, (1, 64, 64, 3), shards=(2, 128, 192, 3), serializer=chunks, compressors=None)
    channels_first = zarr.codecs.TransposeCodec(order=(0, 2, 3, 1))
    written(
        turned, pictures.transpose(0, 3, 1, 2), (1, 3, 64, 64),
        filters=[channels_first], serializer=chunks, compressors=None,
    )  # fmt: skip
    written(several, pictures, (3, 64, 64, 3), serializer=chunks, compressors=None)
    expected = zarr.open_array(plain)[:]
    assert np.array_equal(zarr.open_array(sharded)[:], expected)
    assert np.array_equal(zarr.open_array(turned)[:].transpose(0, 2, 3, 1), expected)
    assert np.abs(zarr.open_array(several)[:].astype(int) - expected).max() <= 1  # other batches
    (plain / "c" / "0" / "0" / "0" / "0").write_bytes((several / "c" / "0" / "0" / "0" / "0").read_bytes())
    with pytest.raises(BitstreamError, match="of shape 3 x 64 x 64 x 3, the array's are 1 x 64 x 64 x 3"):
        zarr.open_array(plain)[0]
