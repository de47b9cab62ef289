"""Image to latent and back: the library's own computation, without their sampling and byte rounding."""

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from hypothesis import given, settings
from hypothesis import strategies as st
from library_autoencoder import library_autoencoder
from torch.nn import functional

from magc_model.config import AutoencoderConfig, AutoencoderKind, preset
from magc_model.errors import BaseModelError, UsageError
from magc_model.nets.autoencoder import ImageAutoencoder
from magc_model.nets.tiny_autoencoder import ImageConvolution, TinyAutoencoder, UpConvolution

TINY = AutoencoderConfig(kind=AutoencoderKind.TINY, channels=(8, 8, 8, 8), blocks_per_level=1, scaling_factor=0.7)
STABLE_DIFFUSION = AutoencoderConfig(channels=(32, 32, 64, 64), blocks_per_level=1)
BOTH = pytest.mark.parametrize("config", [TINY, STABLE_DIFFUSION], ids=["tiny", "stable-diffusion"])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def _image(height: int, width: int) -> torch.Tensor:
    return 2 * torch.rand(2, 3, height, width) - 1


@BOTH
def test_decode_is_the_librarys_own(config: AutoencoderConfig) -> None:
    autoencoder = ImageAutoencoder(config, None).eval()
    latent = 5 * torch.randn(2, 4, 3, 5)
    with torch.no_grad():
        expected = library_autoencoder(autoencoder).decode(latent / config.scaling_factor).sample
        # The tiny one up-samples and convolves in one: other sums of the same numbers.
        atol = 2e-6 if config.kind is AutoencoderKind.TINY else 0.0
        assert torch.allclose(autoencoder.decode(latent), expected, rtol=0, atol=atol)
    assert expected.shape == (2, 3, 24, 40)


@given(sides=st.tuples(st.integers(1, 9), st.integers(1, 9)), channels=st.integers(1, 5), seed=st.integers(0, 2**20))
@settings(max_examples=30, deadline=None)
def test_up_sampling_and_convolution_in_one_are_the_two(sides: tuple[int, int], channels: int, seed: int) -> None:
    """With their gradients; in double precision, so that nothing but rounding may differ."""
    torch.manual_seed(seed)
    layer = UpConvolution(channels).double()
    features = torch.randn(2, channels, *sides, dtype=torch.float64)
    found = layer(features)
    expected = functional.conv2d(functional.interpolate(features, scale_factor=2), layer.weight, padding=1)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    towards = torch.randn_like(found)
    gradients = [torch.autograd.grad((each * towards).sum(), layer.weight)[0] for each in (found, expected)]
    assert torch.allclose(*gradients, rtol=0, atol=1e-10)


@BOTH
def test_the_scaling_factor_may_change_later(config: AutoencoderConfig) -> None:
    autoencoder = ImageAutoencoder(config, None).eval()
    image = _image(16, 24)
    with torch.no_grad():
        before = autoencoder.encode(image)
        decoded = autoencoder.decode(before)
        autoencoder.scaling_factor = 3 * config.scaling_factor
        assert torch.allclose(autoencoder.encode(image), 3 * before)
        assert torch.allclose(autoencoder.decode(3 * before), decoded, atol=1e-5)


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), channels=st.integers(1, 5), seed=st.integers(0, 2**20))
@settings(max_examples=30, deadline=None)
def test_four_pixels_at_a_time_are_the_convolutions(rows: int, columns: int, channels: int, seed: int) -> None:
    torch.manual_seed(seed)
    layer = ImageConvolution(channels).double()
    features = torch.randn(2, channels, 2 * rows, 2 * columns, dtype=torch.float64)
    expected = functional.conv2d(features, layer.weight, layer.bias, padding=1)
    assert torch.allclose(layer(features), expected, rtol=0, atol=1e-12)


def test_encode_is_the_mode_of_the_posterior() -> None:
    autoencoder = ImageAutoencoder(STABLE_DIFFUSION, None).eval()
    image = _image(16, 24)
    with torch.no_grad():
        posterior = autoencoder.network.encode(image).latent_dist
        latent = autoencoder.encode(image)
        assert torch.equal(latent, posterior.mean * 0.18215)
        assert torch.equal(latent, autoencoder.encode(image))
        assert not torch.allclose(latent, posterior.sample() * 0.18215)


def test_the_tiny_encoder_is_the_librarys_own() -> None:
    autoencoder = ImageAutoencoder(TINY, None).eval()
    image = _image(16, 24)
    with torch.no_grad():
        assert torch.equal(autoencoder.encode(image), library_autoencoder(autoencoder).encode(image).latents * 0.7)


def test_the_tiny_networks_weights_have_the_librarys_names_order_and_first_values() -> None:
    """So that models made with either are the same, and a seed gives the same network."""
    blocks = (1, 2, 2, 2)
    torch.manual_seed(1)
    library = AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks[::-1],
    ).state_dict()
    torch.manual_seed(1)
    own = TinyAutoencoder(8, 4, blocks).state_dict()
    assert list(own) == list(library)
    assert all(torch.equal(own[name], each) for name, each in library.items())


def test_the_tiny_one_learns_the_whole_range_of_images() -> None:
    """Images are in [-1, 1] on both ends: a few steps reach black and white alike."""
    autoencoder = ImageAutoencoder(TINY, None)
    image = torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 3, 16, 16)
    optimiser = torch.optim.Adam(autoencoder.parameters(), lr=5e-3)
    for _ in range(50):
        optimiser.zero_grad()
        loss = (autoencoder.decode(autoencoder.encode(image)) - image).square().mean()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.1


def test_the_presets_have_their_published_sizes() -> None:
    with torch.device("meta"):
        paper = ImageAutoencoder(preset("paper").model.autoencoder, None)
        tiny = ImageAutoencoder(preset("tiny").model.autoencoder, None)
    assert sum(each.numel() for each in paper.parameters()) == 83_653_863
    assert sum(each.numel() for each in tiny.parameters()) == 447_815


@pytest.mark.parametrize(("height", "width"), [(60, 64), (64, 65)])
def test_an_image_that_is_no_multiple_of_8_is_refused(height: int, width: int) -> None:
    with pytest.raises(UsageError, match=f"{width}x{height} pixels.*multiples of 8"):
        ImageAutoencoder(TINY, None).encode(torch.zeros(1, 3, height, width))


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (AutoencoderConfig(channels=(32, 32, 64)), "4 levels, found channels for 3"),
        (AutoencoderConfig(channels=(32, 48, 64, 64)), "multiples of 32, found 32, 48, 64, 64"),
        (AutoencoderConfig(kind=AutoencoderKind.TINY, channels=(8, 8, 16, 16)), "equally many.*found 8, 8, 16, 16"),
    ],
)
def test_an_impossible_autoencoder_is_refused(config: AutoencoderConfig, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        ImageAutoencoder(config, None)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A Stable Diffusion folder's `vae`, small."""
    torch.manual_seed(1)
    ImageAutoencoder(STABLE_DIFFUSION, None).network.save_pretrained(tmp_path / "vae")
    return tmp_path


def test_the_base_models_weights_are_taken(base: Path) -> None:
    torch.manual_seed(2)
    autoencoder = ImageAutoencoder(STABLE_DIFFUSION, 5).eval()
    image = _image(16, 16)
    library = AutoencoderKL.from_pretrained(base / "vae").eval()
    with torch.no_grad():
        assert not torch.allclose(autoencoder.encode(image), library.encode(image).latent_dist.mode() * 0.18215)
        autoencoder.load_base(base)
        assert torch.equal(autoencoder.encode(image), library.encode(image).latent_dist.mode() * 0.18215)


def _drop_a_weight(base: Path) -> None:
    path = base / "vae/diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    del tensors["decoder.conv_out.weight"]
    safetensors.torch.save_file(tensors, path)


def _to_pickle(base: Path) -> None:
    path = base / "vae/diffusion_pytorch_model.safetensors"
    torch.save(safetensors.torch.load_file(path), path.with_suffix(".bin"))
    path.unlink()


def _cut(base: Path) -> None:
    path = base / "vae/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def _other_factor(base: Path) -> None:
    path = base / "vae/config.json"
    path.write_text(path.read_text().replace("0.18215", "0.13025"))


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (_drop_a_weight, "lacks weights .*decoder.conv_out.weight"),
        (_to_pickle, "vae cannot be read.*expected config.json and diffusion_pytorch_model.safetensors"),
        (_cut, "vae cannot be read"),
        (lambda base: (base / "vae/config.json").unlink(), "vae cannot be read"),
        (_other_factor, "another one.*scaling_factor=0.13025.*expected.*scaling_factor=0.18215"),
    ],
    ids=["weight missing", "pickle", "cut", "no config", "other factor"],
)
def test_a_bad_base_model_is_refused(base: Path, damage: Callable[[Path], object], complaint: str) -> None:
    damage(base)
    with pytest.raises(BaseModelError, match=complaint) as caught:
        ImageAutoencoder(STABLE_DIFFUSION, None).load_base(base)
    assert "\n" not in str(caught.value)


def test_a_base_model_of_another_shape_is_refused(base: Path) -> None:
    with pytest.raises(BaseModelError, match=r"found .*\(32, 32, 64, 64\).*expected .*\(32, 64, 64, 64\)"):
        ImageAutoencoder(AutoencoderConfig(channels=(32, 64, 64, 64), blocks_per_level=1), None).load_base(base)
    with pytest.raises(UsageError, match="a tiny autoencoder takes no weights from a base model"):
        ImageAutoencoder(TINY, None).load_base(base)
