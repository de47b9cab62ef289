import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from magc_model.diffusion.noise import NoiseWindow, Words, _box_muller, noise_batch, noise_field, philox
from magc_model.errors import UsageError


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_its_authors_known_answers(counter: str, key: str, words: str) -> None:
    """Random123's kat_vectors, philox4x32 of 10 rounds."""

    def tensors(text: str) -> list[torch.Tensor]:
        return [torch.tensor([int(word, 16)]) for word in text.split()]

    found = philox(Words(*tensors(counter)), tuple(tensors(key)))
    assert " ".join(f"{int(word):08x}" for word in found) == words


seeds = st.integers(0, 2**64 - 1)
origins = st.integers(0, 10_000)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, draw=st.integers(0, 1000), row=origins, column=origins, data=st.data())
def test_a_window_is_a_cut_of_the_whole(seed: int, draw: int, row: int, column: int, data: st.DataObject) -> None:
    whole = noise_field(seed, draw, range(row, row + 12), range(column, column + 9))
    top, left = data.draw(st.integers(0, 11)), data.draw(st.integers(0, 8))
    bottom, right = data.draw(st.integers(top + 1, 12)), data.draw(st.integers(left + 1, 9))
    window = noise_field(seed, draw, range(row + top, row + bottom), range(column + left, column + right))
    assert torch.equal(window, whole[:, top:bottom, left:right])


@settings(max_examples=20, deadline=None)
@given(
    windows=st.lists(st.builds(NoiseWindow, seeds, origins, origins), min_size=1, max_size=4), draw=st.integers(0, 50)
)
def test_a_batch_is_its_singles(windows: list[NoiseWindow], draw: int) -> None:
    batch = noise_batch(windows, draw, 5, 7)
    assert batch.shape == (len(windows), 4, 5, 7)
    assert batch.dtype == torch.float32
    for found, window in zip(batch, windows, strict=True):
        rows, columns = range(window.row, window.row + 5), range(window.column, window.column + 7)
        assert torch.equal(found, noise_field(window.seed, draw, rows, columns))


def test_the_noise_of_a_seed_never_changes() -> None:
    """These numbers are part of what a seed means: changed, every stored seed gives another picture."""
    found = noise_field(2024, 3, range(17, 18), range(5, 7))
    expected = [
        [-1.8612182, -1.2727133],
        [-0.7116096, -1.8906925],
        [-0.0086329, 0.5717337],
        [0.3680757, 1.0486447],
    ]
    torch.testing.assert_close(found[:, 0], torch.tensor(expected), rtol=1e-6, atol=1e-6)


def test_numbers_against_the_definition() -> None:
    """Words straight from the generator, Box-Muller in numpy."""
    seed, draw, row, column = 0x0123456789ABCDEF, 4, 70_000, 65_537
    counter = Words(*(torch.tensor([word]) for word in (column, row, 0, draw)))
    words = philox(counter, (torch.tensor([0x89ABCDEF]), torch.tensor([0x01234567])))
    first, second, third, fourth = (int(word) for word in words)
    expected = []
    for one, other in ((first, second), (third, fourth)):
        radius = np.sqrt(-2 * np.log((one + 0.5) / 2**32))
        expected += [radius * np.cos(2 * np.pi * other / 2**32), radius * np.sin(2 * np.pi * other / 2**32)]
    found = noise_field(seed, draw, range(row, row + 1), range(column, column + 1)).flatten()
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_moments_and_tails_are_normal() -> None:
    values = noise_field(7, 0, range(256), range(256)).double()
    count = values.numel()
    assert abs(values.mean()) < 4 / count**0.5
    assert abs(values.var() - 1) < 4 * (2 / count) ** 0.5
    assert abs((values**3).mean()) < 4 * (15 / count) ** 0.5
    assert abs((values**4).mean() - 3) < 4 * (96 / count) ** 0.5
    for limit, share in ((1, 0.317311), (2, 0.0455003), (3, 0.0026998)):
        assert abs((values.abs() > limit).double().mean() - share) < 4 * (share / count) ** 0.5
    assert values.isfinite().all()


def test_draws_seeds_channels_and_neighbours_are_independent() -> None:
    def field(seed: int, draw: int) -> torch.Tensor:
        return noise_field(seed, draw, range(128), range(128), channels=6)

    whole = field(1, 0)
    pairs = [(whole, field(1, 1)), (whole, field(2, 0)), (whole, field(1 + 2**32, 0)), (field(0, 1), field(1, 0))]
    pairs += [(whole[one], whole[other]) for one in range(6) for other in range(one)]
    pairs += [(whole[:, 1:], whole[:, :-1]), (whole[..., 1:], whole[..., :-1]), (whole, whole.mT)]
    for one, other in pairs:
        different = one != other
        one, other = one[different], other[different]
        correlation = float((one * other).mean())
        assert abs(correlation) < 4.5 / one.numel() ** 0.5


def test_the_rarest_words_are_finite_numbers() -> None:
    """Word 0 comes once in 2^32: its logarithm must not be that of 0."""
    words = torch.tensor([0, 2**32 - 1])
    for first in words:
        for number in _box_muller(first.expand(2), words):
            assert number.isfinite().all()
            assert number.abs().max() < 7


def test_more_channels_keep_the_first_ones() -> None:
    six = noise_field(3, 1, range(8), range(8), channels=6)
    assert torch.equal(six[:4], noise_field(3, 1, range(8), range(8)))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_of_more_than_64_bits_is_refused(seed: int) -> None:
    with pytest.raises(UsageError, match=f"seed {seed} is out of range: use one from 0 to 18446744073709551615"):
        noise_field(seed, 0, range(1), range(1))
