"""The blocks, the map planes and the SPADE blocks."""

import pytest
import torch
from torch.nn import functional

from magc_model.config import MapClass, MapConfig, MapInput, NormKind
from magc_model.errors import DataError
from magc_model.nets.blocks import ChannelNorm, ResBlock, Upsample
from magc_model.nets.map_planes import class_shares, map_planes
from magc_model.nets.spade import SpadeBlock, SpadeResBlock

CLASSES = (MapClass(0, "background", (10, 20, 30)), MapClass(1, "road", (0, 0, 0)), MapClass(3, "house", (255, 0, 51)))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(1)


def test_channel_norm_is_layer_norm_over_channels() -> None:
    norm = ChannelNorm(6)
    torch.nn.init.normal_(norm.gain)
    torch.nn.init.normal_(norm.bias)
    features = torch.randn(2, 6, 3, 5) * 4 + 1
    expected = functional.layer_norm(features.movedim(1, -1), (6,), norm.gain.flatten(), norm.bias.flatten(), 1e-5)
    torch.testing.assert_close(norm(features), expected.movedim(-1, 1))
    assert not list(ChannelNorm(6, affine=False).parameters())


def test_a_res_block_is_the_identity_where_its_branch_is_silent() -> None:
    block = ResBlock(4, 4)
    for parameter in (block.second[1].gain, block.second[1].bias):
        torch.nn.init.zeros_(parameter)
    features = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(block(features), features)
    assert ResBlock(4, 7)(features).shape == (1, 7, 5, 5)


def test_upsample_doubles_the_sides() -> None:
    assert Upsample(5)(torch.randn(1, 5, 3, 4)).shape == (1, 5, 6, 8)


def test_planes_are_one_hot() -> None:
    config = MapConfig(classes=CLASSES)
    ids = torch.tensor([[[0, 1], [3, 3]]], dtype=torch.uint8)
    planes = map_planes(ids, config)
    assert planes.shape == (1, 4, 2, 2)
    assert torch.equal(planes.argmax(1), ids.long())
    assert torch.equal(planes.sum(1), torch.ones(1, 2, 2))
    assert planes[:, 2].sum() == 0


def test_colours_are_the_class_tables() -> None:
    planes = map_planes(torch.tensor([[[0, 3]]], dtype=torch.uint8), MapConfig(classes=CLASSES, input=MapInput.RGB))
    torch.testing.assert_close(planes[0, :, 0, 1], torch.tensor([1.0, 0.0, 0.2]))
    torch.testing.assert_close(planes[0, :, 0, 0], torch.tensor([10.0, 20.0, 30.0]) / 255)


@pytest.mark.parametrize("foreign", [2, 4, 255])
def test_a_class_outside_the_table_is_named(foreign: int) -> None:
    with pytest.raises(
        DataError, match=f"class {foreign}, which the model does not know: expected one of 0 background"
    ):
        map_planes(torch.tensor([[[0, foreign]]], dtype=torch.uint8), MapConfig(classes=CLASSES))


def test_class_shares_are_exact() -> None:
    ids = torch.zeros(1, 64, 64, dtype=torch.uint8)
    ids[0, :32, 32] = 1
    ids[0, 63, 63] = 3
    shares = class_shares(map_planes(ids, MapConfig(classes=CLASSES)))
    assert shares.shape == (1, 4, 2, 2)
    assert shares[0, 1, 0, 1] * 1024 == 32
    assert shares[0, 3, 1, 1] * 1024 == 1
    assert torch.equal(shares.double() * 1024, (shares.double() * 1024).round())


@pytest.mark.parametrize("norm", NormKind)
def test_spade_follows_its_equation(norm: NormKind) -> None:
    block = SpadeBlock(4, 3, norm).eval()
    features, maps = torch.randn(2, 4, 6, 6), torch.randn(2, 3, 6, 6)
    normalised = block.norm(features)
    shared = block.shared(torch.cat((maps, normalised), 1))
    expected = normalised * (1 + block.gamma(shared)) + block.beta(shared)
    torch.testing.assert_close(block(features, maps), expected)


def test_every_weight_of_a_spade_res_block_is_alive_unless_published() -> None:
    for published in (False, True):
        block = SpadeResBlock(4, 3, NormKind.CHANNEL, second_reads_input=published)
        block(torch.randn(2, 4, 6, 6), torch.randn(2, 3, 6, 6)).square().sum().backward()
        dead = {name for name, weight in block.named_parameters() if weight.grad is None}
        first_half = {name for name, _ in block.named_parameters() if name.startswith(("first_spade.", "first."))}
        assert dead == (first_half if published else set())
