"""The map in the image decoder: nothing at first, every pixel later, cheap at full resolution."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from library_autoencoder import library_autoencoder
from torch import Tensor

from magc_model.config import AutoencoderConfig, AutoencoderKind, preset
from magc_model.errors import UsageError
from magc_model.nets.autoencoder import ImageAutoencoder
from magc_model.nets.map_decoder import DecoderLevel, Modulation

TINY = AutoencoderConfig(
    kind=AutoencoderKind.TINY, channels=(8, 8, 8, 8), blocks_per_level=1, map_decoder_channels=(12, 8, 6, 4)
)
STABLE_DIFFUSION = AutoencoderConfig(channels=(32, 32, 64, 64), blocks_per_level=1, map_decoder_channels=(12, 8, 6, 4))
BOTH = pytest.mark.parametrize("config", [TINY, STABLE_DIFFUSION], ids=["tiny", "stable-diffusion"])
PLANES = 5


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def _random_planes(batch: int, height: int, width: int) -> Tensor:
    ids = torch.randint(PLANES, (batch, height, width))
    return torch.nn.functional.one_hot(ids, PLANES).permute(0, 3, 1, 2).float()


def _trained_a_little(config: AutoencoderConfig) -> ImageAutoencoder:
    """With adapters that have left zero."""
    autoencoder = ImageAutoencoder(config, PLANES).eval()
    assert autoencoder.map_decoder is not None
    for modulation in autoencoder.map_decoder.modulations:
        torch.nn.init.normal_(modulation.gain_and_shift.weight, std=0.3)
    return autoencoder


@BOTH
@settings(max_examples=5, deadline=None)
@given(batch=st.integers(1, 2), rows=st.integers(2, 5), columns=st.integers(2, 5), empty=st.booleans())
def test_a_fresh_map_decoder_changes_no_bit(
    config: AutoencoderConfig, batch: int, rows: int, columns: int, empty: bool
) -> None:
    # In the order of memory that codecs decode in: in another one, convolutions add in another order.
    autoencoder = ImageAutoencoder(config, PLANES).eval().to(memory_format=torch.channels_last)
    latent = torch.randn(batch, 4, rows, columns).contiguous(memory_format=torch.channels_last)
    planes = _random_planes(batch, 8 * rows, 8 * columns) * (0 if empty else 1)
    with torch.no_grad():
        assert torch.equal(autoencoder.decode(latent, planes), autoencoder.decode(latent))


@BOTH
def test_gradients_reach_every_weight_and_one_step_makes_the_map_count(config: AutoencoderConfig) -> None:
    autoencoder = ImageAutoencoder(config, PLANES)
    map_decoder = autoencoder.map_decoder
    assert map_decoder is not None
    latent, planes, image = torch.randn(2, 4, 4, 4), _random_planes(2, 32, 32), torch.rand(2, 3, 32, 32)
    optimiser = torch.optim.SGD(map_decoder.parameters(), lr=0.1)

    def gradients() -> dict[str, bool]:
        optimiser.zero_grad()
        (autoencoder.decode(latent, planes) - image).square().mean().backward()
        return {
            name: each.grad is not None and bool(each.grad.abs().max() > 0)
            for name, each in map_decoder.named_parameters()
        }

    first = gradients()
    assert {name for name, reached in first.items() if reached} == {name for name in first if "gain_and_shift" in name}
    optimiser.step()
    assert all(gradients().values())
    with torch.no_grad():
        assert not torch.equal(autoencoder.decode(latent, planes), autoencoder.decode(latent))


@BOTH
def test_without_planes_trained_adapters_are_not_used(config: AutoencoderConfig) -> None:
    autoencoder = _trained_a_little(config)
    latent = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        expected = library_autoencoder(autoencoder).decode(latent / autoencoder.scaling_factor).sample
        assert torch.allclose(autoencoder.decode(latent), expected, rtol=0, atol=2e-6)


def test_one_map_pixel_moves_the_pixels_around_it_most() -> None:
    autoencoder = _trained_a_little(TINY)
    planes = torch.zeros(1, PLANES, 64, 64)
    planes[:, 1] = 1
    changed = planes.clone()
    changed[0, :, 21, 42] = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0])
    with torch.no_grad():
        difference = (
            (autoencoder.decode(torch.zeros(1, 4, 8, 8), planes) - autoencoder.decode(torch.zeros(1, 4, 8, 8), changed))
            .abs()
            .amax(dim=1)[0]
        )
    row, column = divmod(int(difference.argmax()), 64)
    assert abs(row - 21) <= 6
    assert abs(column - 42) <= 6
    # What the pixel does reaches its neighbour rows in different ways: the map is seen at full resolution, not at 1/8.
    around = difference[19:24, 40:45]
    assert len(torch.unique(around)) == around.numel()


@pytest.mark.parametrize("level", range(4))
def test_each_level_alone_brings_the_map_in(level: int) -> None:
    autoencoder = ImageAutoencoder(TINY, PLANES).eval()
    assert autoencoder.map_decoder is not None
    torch.nn.init.normal_(autoencoder.map_decoder.modulations[level].gain_and_shift.weight)
    latent = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        one, other = (autoencoder.decode(latent, _random_planes(1, 32, 32)) for _ in range(2))
    assert not torch.equal(one, other)


def test_the_pyramid_runs_from_an_eighth_to_full_resolution() -> None:
    map_decoder = ImageAutoencoder(TINY, PLANES).map_decoder
    assert map_decoder is not None
    assert [tuple(each.shape[1:]) for each in map_decoder.encode_map(_random_planes(1, 64, 32))] == [
        (12, 8, 4),
        (8, 16, 8),
        (6, 32, 16),
        (4, 64, 32),
    ]


def test_modulation_is_gain_and_shift() -> None:
    modulation = Modulation(DecoderLevel(map_channels=1, decoder_channels=2))
    with torch.no_grad():
        torch.as_tensor(modulation.gain_and_shift.bias).copy_(torch.tensor([0.5, -1.0, 3.0, 0.0]))
    features = torch.full((1, 2, 1, 1), 2.0)
    assert modulation(features, torch.zeros(1, 1, 1, 1)).flatten().tolist() == [2 * 1.5 + 3, 0.0]


def test_it_runs_in_half_precision() -> None:
    autoencoder = ImageAutoencoder(TINY, PLANES).eval()
    latent, planes = torch.randn(1, 4, 4, 4), _random_planes(1, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(autoencoder.decode(latent, planes), autoencoder.decode(latent))


def test_the_presets_full_resolution_layers_are_a_small_share() -> None:
    config = preset("tiny").model.autoencoder
    with torch.device("meta"):
        autoencoder = ImageAutoencoder(config, 17)
    assert autoencoder.map_decoder is not None
    multiplications = {False: 0, True: 0}

    def count(in_map_decoder: bool):
        def add(layer: torch.nn.Conv2d, _: object, output: Tensor) -> None:
            multiplications[in_map_decoder] += layer.weight.numel() * output.shape[-1] * output.shape[-2]

        return add

    for module, in_map_decoder in ((autoencoder.network.decoder, False), (autoencoder.map_decoder, True)):
        for layer in module.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.register_forward_hook(count(in_map_decoder))
    autoencoder.decode(torch.zeros(1, 4, 32, 32, device="meta"), torch.zeros(1, 17, 256, 256, device="meta"))
    assert 0 < multiplications[True] < 0.1 * multiplications[False]


def test_a_map_of_another_size_is_refused() -> None:
    autoencoder = ImageAutoencoder(TINY, PLANES)
    with pytest.raises(UsageError, match=r"the map has 32x64 pixels, the image to decode 64x64"):
        autoencoder.decode(torch.zeros(1, 4, 8, 8), torch.zeros(1, PLANES, 64, 32))


def test_a_map_for_a_decoder_without_one_is_refused() -> None:
    with pytest.raises(UsageError, match="reads none"):
        ImageAutoencoder(TINY, None).decode(torch.zeros(1, 4, 8, 8), torch.zeros(1, PLANES, 64, 64))


def test_another_number_of_levels_is_refused() -> None:
    config = AutoencoderConfig(kind=AutoencoderKind.TINY, channels=(8,) * 4, map_decoder_channels=(8, 8, 8))
    with pytest.raises(UsageError, match="4 levels, found channels for 3"):
        ImageAutoencoder(config, PLANES)
    assert ImageAutoencoder(config, None).map_decoder is None
