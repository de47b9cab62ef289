import pytest
import torch

from magc_model.config import DenoiserConfig, PublishedQuirks
from magc_model.nets.semantic_adapter import SemanticAdapter

SMALL = DenoiserConfig(channels=(8, 16, 24, 24), map_channels=(4, 6, 8), adapter_blocks=2)
PUBLISHED = PublishedQuirks(adapter_overlaps_scales=True, adapter_scale=0.18215)


def run(adapter: SemanticAdapter, planes: torch.Tensor, noisy: torch.Tensor) -> list[torch.Tensor]:
    return adapter(adapter.encode_map(planes), noisy)


@pytest.fixture
def planes() -> torch.Tensor:
    return torch.rand(2, 3, 128, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def noisy() -> torch.Tensor:
    return torch.randn(2, 4, 16, 8, generator=torch.Generator().manual_seed(2))


def test_paper_adapter_has_the_papers_weights() -> None:
    with torch.device("meta"):
        adapter = SemanticAdapter(DenoiserConfig(), 3, PublishedQuirks())
    weights = {name: parameter.numel() for name, parameter in adapter.named_parameters()}
    encoder = sum(count for name, count in weights.items() if name.startswith("encoder."))
    exits = sum(count for name, count in weights.items() if name.startswith("exits."))
    assert encoder == 300_096
    assert sum(weights.values()) - encoder - exits == 158_264_640
    assert exits == 320 * 321 + 640 * 641 + 2 * 1280 * 1281


def test_published_adapter_has_no_other_weights_than_the_papers() -> None:
    with torch.device("meta"):
        adapter = SemanticAdapter(DenoiserConfig(), 3, PUBLISHED)
    assert sum(parameter.numel() for parameter in adapter.parameters()) == 158_264_640 + 300_096


@pytest.mark.parametrize("channels", [(8, 16), (8, 16, 24), (8, 16, 24, 24)])
def test_a_feature_tensor_a_level_each_half_as_wide(channels: tuple[int, ...]) -> None:
    adapter = SemanticAdapter(DenoiserConfig(channels=channels, map_channels=(4, 6, 8)), 5, PublishedQuirks())
    features = run(adapter, torch.rand(2, 5, 128, 64), torch.randn(2, 4, 16, 8))
    assert [each.shape for each in features] == [(2, width, 16 >> n, 8 >> n) for n, width in enumerate(channels)]


def test_starts_at_zero_and_learns(planes: torch.Tensor, noisy: torch.Tensor) -> None:
    adapter = SemanticAdapter(SMALL, 3, PublishedQuirks())
    optimizer = torch.optim.SGD(adapter.parameters(), 0.1)
    features = run(adapter, planes, noisy)
    assert all(not each.any() for each in features)
    for _ in range(2):  # the first step moves the zero convolutions, the second everything behind them
        optimizer.zero_grad()
        sum((each - 1).square().mean() for each in run(adapter, planes, noisy)).backward()
        optimizer.step()
    assert all(each.any() for each in run(adapter, planes, noisy))
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in adapter.parameters())


def test_features_see_map_and_noisy_latent(planes: torch.Tensor, noisy: torch.Tensor) -> None:
    adapter = SemanticAdapter(SMALL, 3, PUBLISHED)
    plain, other_map, other_latent = (
        run(adapter, planes, noisy),
        run(adapter, 1 - planes, noisy),
        run(adapter, planes, -noisy),
    )
    for one, two, three in zip(plain, other_map, other_latent, strict=True):
        assert not torch.allclose(one, two)
        assert not torch.allclose(one, three)


def test_published_scales_run_each_others_modules(planes: torch.Tensor, noisy: torch.Tensor) -> None:
    adapter = SemanticAdapter(SMALL, 3, PUBLISHED)
    flat = [module for scale in adapter.scales for module in scale]
    assert len(flat) == 9
    expected = [adapter.first(torch.cat([adapter.encode_map(planes), noisy], dim=1))]
    for modules in ((0, 1, 2), (2, 3, 4), (4, 5, 6)):
        features = expected[-1]
        for index in modules:
            features = flat[index](features)
        expected.append(features)
    found = run(adapter, planes, noisy)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other * 0.18215)
    sum(each.sum() for each in found).backward()
    unused = {name for name, parameter in adapter.named_parameters() if parameter.grad is None}
    assert {name.rsplit(".", 3)[0].split(".first")[0].split(".second")[0] for name in unused} == {
        "scales.2.1",
        "scales.2.2",
    }


def test_every_call_returns_a_new_list(planes: torch.Tensor, noisy: torch.Tensor) -> None:
    adapter = SemanticAdapter(SMALL, 3, PublishedQuirks())
    encoded = adapter.encode_map(planes)
    adapter(encoded, noisy).clear()
    assert len(adapter(encoded, noisy)) == 4
