"""`MagcCodec`: pictures of any size to streams and back."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import CLASSES, tiny_model

from magc_model.bitstream import MapKind, pack_tile, unpack_tile
from magc_model.codec import MagcCodec, MapMismatchWarning, Rate, map_digest
from magc_model.config import PAPER_LAMBDAS, RateConfig, RateMode
from magc_model.embedded_map import encode_map
from magc_model.errors import BitstreamError, DataError, ModelError, UsageError
from magc_model.reconstruct import Sampling

GUIDE = Sampling(steps=0)
GAINED = RateConfig(mode=RateMode.GAINED, lambdas=PAPER_LAMBDAS)


@pytest.fixture(scope="module")
def codec() -> MagcCodec:
    return MagcCodec(tiny_model(), device="cpu", batch_size=2)


@pytest.fixture(scope="module")
def gained() -> MagcCodec:
    return MagcCodec(tiny_model(rate=GAINED), device="cpu", batch_size=2)


def scene(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A synthetic picture of blocks in noise, and the map of the blocks."""
    random = np.random.default_rng(seed)
    class_ids = np.kron(random.integers(0, len(CLASSES), (height // 16 + 1, width // 16 + 1)), np.ones((16, 16)))
    class_ids = class_ids[:height, :width].astype(np.uint8)
    noise = random.integers(0, 60, (height, width, 3))
    return (class_ids[..., None] * 60 + noise).astype(np.uint8), class_ids


@pytest.mark.parametrize(("height", "width"), [(64, 128), (1, 1), (65, 63), (200, 130)])
def test_a_picture_of_any_size_comes_back_at_its_size(codec: MagcCodec, height: int, width: int) -> None:
    image, class_ids = scene(height, width)
    stream = codec.compress(image, class_ids)
    decoded = codec.decompress(stream, class_ids, sampling=GUIDE)
    assert decoded.shape == image.shape
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, codec.decompress(stream, class_ids, sampling=GUIDE))


def test_a_tile_costs_its_ideal_and_sixteen_bytes_at_most(codec: MagcCodec, gained: MagcCodec) -> None:
    for each in (codec, gained):
        images, maps = zip(*(scene(256, 256, seed) for seed in range(6)), strict=True)
        for result in each.compress_batch(images, maps):
            assert result.cost.total == len(result.stream)
            assert result.cost.ideal > 20
            assert result.cost.ideal <= len(result.stream) <= result.cost.ideal + 16


def test_a_mixed_batch_equals_its_pictures_alone(gained: MagcCodec) -> None:
    scenes = [scene(64, 64, 1), scene(100, 70, 2), scene(64, 64, 3), scene(128, 128, 4), scene(60, 60, 5)]
    images, maps = [image for image, _ in scenes], [each for _, each in scenes]
    maps[2] = None
    together = gained.compress_batch(images, maps, rate=Rate(quality=2.5))
    alone = [gained.compress(image, each, rate=Rate(quality=2.5)) for image, each in zip(images, maps, strict=True)]
    assert [unpack_tile(each.stream)[:8] for each in together] == [unpack_tile(each)[:8] for each in alone]
    # One stream of another rate among them.
    streams = [*alone[:-1], gained.compress(images[-1], maps[-1], rate=Rate(quality=6.0))]
    decoded = gained.decompress_batch(streams, maps, sampling=GUIDE)
    for stream, each, picture in zip(streams, maps, decoded, strict=True):
        other = gained.decompress(stream, each, sampling=GUIDE).astype(int)
        assert picture.shape == other.shape
        assert np.abs(picture - other).max() <= 1


@pytest.mark.slow
def test_another_process_with_other_threads_reads_the_same_symbols(codec: MagcCodec, tmp_path: Path) -> None:
    image, class_ids = scene(192, 128)
    codec.model.save_pretrained(tmp_path / "model")
    (tmp_path / "stream").write_bytes(codec.compress(image, class_ids, embed_map=True))
    script = """
import sys, numpy as np, torch
torch.set_num_threads(int(sys.argv[2]))
from magc_model import MagcCodec
from magc_model.reconstruct import Sampling
codec = MagcCodec.from_pretrained(sys.argv[1] + "/model", device="cpu")
np.save(sys.argv[1] + "/decoded.npy", codec.decompress(open(sys.argv[1] + "/stream", "rb").read(), sampling=Sampling(steps=3)))
"""
    subprocess.run([sys.executable, "-c", script, tmp_path, "2"], check=True, timeout=200)
    here = codec.decompress((tmp_path / "stream").read_bytes(), sampling=Sampling(steps=3)).astype(int)
    assert np.abs(np.load(tmp_path / "decoded.npy") - here).max() <= 1


# --- rates -----------------------------------------------------------------------------------------------------------


def test_each_way_to_give_a_rate_is_the_same_place(gained: MagcCodec) -> None:
    for number, weight in enumerate(PAPER_LAMBDAS):
        steps = {
            gained.rate_step(Rate(quality=number + 1.0)),
            gained.rate_step(Rate(lambda_=weight)),
            gained.rate_step(Rate(position=float(number))),
        }
        assert steps == {51 * number}
    assert gained.rate_step(None) == gained.rate_step(Rate(quality=3.5)) == 128
    halfway = (PAPER_LAMBDAS[0] * PAPER_LAMBDAS[1]) ** 0.5
    assert gained.rate_step(Rate(lambda_=halfway)) in (25, 26)


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (Rate(quality=0.5), "the quality is 0.5: this model has 1 to 6"),
        (Rate(quality=7.0), "the quality is 7: this model has 1 to 6"),
        (Rate(lambda_=2.0), "the lambda is 2: this model has 0.1 to 1.25"),
        (Rate(position=float("nan")), "the position is nan"),
        (Rate(quality=1.0, position=1.0), "as quality and as position: expected one"),
    ],
)
def test_rates_that_the_model_does_not_have(gained: MagcCodec, rate: Rate, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        gained.rate_step(rate)


def test_a_model_of_one_rate_takes_none(codec: MagcCodec, gained: MagcCodec) -> None:
    assert codec.rate_step(None) is None
    assert codec.rate_step(Rate()) is None
    with pytest.raises(UsageError, match="one rate .lambda 0.39.*--rate gained"):
        codec.rate_step(Rate(quality=3.0))
    image, class_ids = scene(64, 64)
    fields = unpack_tile(codec.compress(image, class_ids))
    with pytest.raises(BitstreamError, match="rate does not fit"):
        codec.read(pack_tile(fields._replace(rate=3)))


def test_a_size_is_met_from_below(gained: MagcCodec) -> None:
    image, class_ids = scene(256, 256)
    sizes = [len(gained.compress(image, class_ids, rate=Rate(position=each))) for each in (0.0, 5.0)]
    assert sizes[1] > 1.3 * sizes[0]
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        wanted = round(sizes[0] + share * (sizes[1] - sizes[0]))
        result = gained.compress_to_size(image, class_ids, max_bytes=wanted)
        assert 0.95 * wanted <= len(result.stream) <= wanted
        assert result.cost.total == len(result.stream)
    with pytest.raises(UsageError, match=f"has {sizes[0]} bytes, {sizes[0] - 1} were asked for"):
        gained.compress_to_size(image, class_ids, max_bytes=sizes[0] - 1)


def test_one_rate_cannot_aim_at_a_size(codec: MagcCodec) -> None:
    with pytest.raises(UsageError, match="one rate .lambda 0.39. and cannot aim at a size"):
        codec.compress_to_size(*scene(64, 64), max_bytes=100)


# --- maps ------------------------------------------------------------------------------------------------------------


def test_an_embedded_map_is_all_that_the_receiver_needs(codec: MagcCodec) -> None:
    image, class_ids = scene(100, 90)
    [embedded] = codec.compress_batch([image], [class_ids], embed_map=True)
    assert embedded.cost.embedded_map == len(encode_map(class_ids)) > 0
    assert embedded.cost.total <= embedded.cost.ideal + embedded.cost.embedded_map + 18
    expected = codec.decompress(codec.compress(image, class_ids), class_ids, sampling=GUIDE)
    assert np.array_equal(codec.decompress(embedded.stream, sampling=GUIDE), expected)


def test_a_stream_without_a_map_is_decoded_without_one(codec: MagcCodec) -> None:
    image, class_ids = scene(64, 64)
    stream = codec.compress(image)
    assert unpack_tile(stream).map_kind is MapKind.NONE
    expected = codec.decompress(stream, sampling=GUIDE)
    with pytest.warns(MapMismatchWarning, match="compressed without a map"):
        assert np.array_equal(codec.decompress(stream, class_ids, sampling=GUIDE), expected)
    with pytest.raises(BitstreamError, match="compressed without a map"):
        codec.decompress(stream, class_ids, strict=True)


def test_another_map_is_told_with_both_digests() -> None:
    codec = MagcCodec(tiny_model(in_entropy=False), device="cpu")  # whose symbols need no map
    image, class_ids = scene(64, 64)
    stream, other = codec.compress(image, class_ids), scene(64, 64, 7)[1]
    digests = f"{map_digest(other).hex()}, the sender's was {map_digest(class_ids).hex()}"
    with pytest.warns(MapMismatchWarning, match=digests):
        codec.decompress(stream, other, sampling=GUIDE)
    with pytest.raises(BitstreamError, match=digests):
        codec.decompress(stream, other, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codec.decompress(stream, class_ids, sampling=GUIDE, strict=True)


def test_another_map_never_crashes_an_entropy_decoder_that_reads_it(codec: MagcCodec) -> None:
    image, class_ids = scene(128, 128)
    stream = codec.compress(image, class_ids)
    for seed in range(8):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MapMismatchWarning)
            try:
                decoded = codec.decompress(stream, scene(128, 128, seed + 1)[1], sampling=GUIDE)
            except BitstreamError:
                continue
        assert decoded.shape == image.shape


def test_missing_and_misfit_maps(codec: MagcCodec) -> None:
    image, class_ids = scene(64, 64)
    stream = codec.compress(image, class_ids)
    with pytest.raises(UsageError, match=f"needs the map of digest {map_digest(class_ids).hex()}"):
        codec.decompress(stream)
    with pytest.raises(DataError, match="the map has 64x32 pixels, the picture 64x64"):
        codec.compress(image, class_ids[:32])
    with pytest.raises(DataError, match="class"):
        codec.compress(image, np.full((64, 64), 99, np.uint8))
    with pytest.raises(UsageError, match="no map to embed"):
        codec.compress(image, embed_map=True)
    blind = MagcCodec(
        tiny_model(in_transform=False, in_diffusion=False, in_decoder=False, in_entropy=False), device="cpu"
    )
    with pytest.raises(UsageError, match="reads no map"):
        blind.compress(image, class_ids, embed_map=True)
    assert unpack_tile(blind.compress(image, class_ids)).map_kind is MapKind.NONE


# --- what is refused -------------------------------------------------------------------------------------------------


def test_streams_of_other_models_and_of_giants_are_refused(codec: MagcCodec) -> None:
    image, class_ids = scene(64, 64)
    fields = unpack_tile(codec.compress(image, class_ids))
    other = MagcCodec(tiny_model(in_entropy=False), device="cpu")
    with pytest.raises(BitstreamError, match=f"entropy model {fields.entropy_model.hex()}, this model's is"):
        other.decompress(pack_tile(fields), class_ids)
    with pytest.raises(UsageError, match="1000000x1000 pixels, more than the 4194304.*max_pixels"):
        codec.decompress(pack_tile(fields._replace(width_px=1_000_000, height_px=1000)), class_ids)
    small = MagcCodec(codec.model, device="cpu", max_pixels=4095)
    with pytest.raises(UsageError, match="64x64 pixels, more than the 4095"):
        small.decompress(pack_tile(fields), class_ids)


def test_a_picture_of_one_row_is_as_large_as_the_networks_see_it(codec: MagcCodec) -> None:
    """1 x 2^20 pixels pass for small, and are filled up to 64 x 2^20."""
    image, class_ids = scene(64, 64)
    fields = unpack_tile(codec.compress(image, class_ids))._replace(height_px=1, width_px=1 << 20)
    with pytest.raises(UsageError, match=r"1048576x1 pixels, more than the 4194304.*\(67108864, filled up"):
        codec.read(pack_tile(fields))


def test_an_embedded_map_of_unknown_classes_is_damage(codec: MagcCodec) -> None:
    image, class_ids = scene(64, 64)
    fields = unpack_tile(codec.compress(image, class_ids, embed_map=True))
    foreign = fields._replace(map_data=encode_map(np.full((64, 64), 200, np.uint8)))
    with pytest.raises(BitstreamError, match="holds class 200, which the model does not know"):
        codec.decompress(pack_tile(foreign))


def test_payloads_of_rubbish_are_pictures_or_refused(codec: MagcCodec) -> None:
    image, class_ids = scene(64, 64)
    fields = unpack_tile(codec.compress(image, class_ids))
    random = np.random.default_rng(0)
    outcomes = set()
    for length in (0, 1, 5, 50, 500):
        stream = pack_tile(fields._replace(payload=random.bytes(length)))
        try:
            outcomes.add(codec.decompress(stream, class_ids, sampling=GUIDE).shape)
        except BitstreamError:
            outcomes.add("refused")
    assert outcomes == {(64, 64, 3), "refused"}


def test_wrong_calls(codec: MagcCodec) -> None:
    image, class_ids = scene(64, 64)
    with pytest.raises(UsageError, match="1 maps for 2 pictures"):
        codec.compress_batch([image, image], [class_ids])
    with pytest.raises(UsageError, match="2 maps for 1 streams"):
        codec.decompress_batch([b""], [None, None])
    with pytest.raises(UsageError, match="the seed is -1"):
        codec.compress(image, class_ids, seed=-1)
    with pytest.raises(DataError, match="0x0 pixels"):
        codec.compress(np.zeros((0, 0, 3), np.uint8))


def test_seeds_and_steps_are_dials(codec: MagcCodec) -> None:
    image, class_ids = scene(64, 64)
    few = Sampling(steps=2)
    stream = codec.compress(image, class_ids, seed=5)
    assert unpack_tile(stream).seed == 5
    own = codec.decompress(stream, class_ids, sampling=few)
    assert np.array_equal(own, codec.decompress(stream, class_ids, sampling=few, seed=5))
    assert not np.array_equal(own, codec.decompress(stream, class_ids, sampling=few, seed=6))


def test_fidelity_goes_from_the_denoiser_to_the_guide(codec: MagcCodec) -> None:
    image, class_ids = scene(64, 64)
    stream = codec.compress(image, class_ids)

    def decoded(**sampling: object) -> np.ndarray:
        return codec.decompress(stream, class_ids, sampling=Sampling(**sampling)).astype(int)

    drawn, guide = decoded(steps=2), decoded(steps=0)
    assert np.array_equal(decoded(steps=2, fidelity=0.0), drawn)
    assert np.array_equal(decoded(steps=2, fidelity=1.0), guide)
    distances = [np.abs(decoded(steps=2, fidelity=each) - guide).mean() for each in (0.0, 0.3, 0.6, 0.9)]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 2 * distances[-1] > 0
    with pytest.raises(UsageError, match="fidelity of 1.5"):
        Sampling(fidelity=1.5)


def test_a_model_without_a_denoiser_decodes_the_guide() -> None:
    model = tiny_model()
    model.denoiser = None
    codec = MagcCodec(model, device="cpu")
    image, class_ids = scene(64, 64)
    stream = codec.compress(image, class_ids)
    assert np.array_equal(codec.decompress(stream, class_ids), codec.decompress(stream, class_ids, sampling=GUIDE))
    with pytest.raises(ModelError, match="no denoiser"):
        codec.decompress(stream, class_ids, sampling=Sampling(steps=1))


def test_the_codec_leaves_the_callers_arrays_alone(codec: MagcCodec) -> None:
    image, class_ids = scene(70, 70)
    image.flags.writeable = class_ids.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stream = codec.compress(image, class_ids)
        decoded = codec.decompress(stream, class_ids, sampling=GUIDE)
    assert decoded.flags.writeable
    assert torch.from_numpy(decoded).shape == (70, 70, 3)
