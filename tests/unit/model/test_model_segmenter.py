"""The segmenter's network, what it learns from and by, and the directory that it is stored in."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from magc_model.config import MapClass, SegmenterConfig
from magc_model.errors import MagcModelError, ModelError, UsageError
from magc_model.segmenter_model import SegmenterModel, build_segmenter
from magc_model.train import segmenter_pictures
from magc_model.train.segmenter_pictures import as_seen_in_use, blurred, quantised, recoloured
from magc_model.train.segmenter_stage import class_weights, confusion, dice_loss, weighted_cross_entropy

if TYPE_CHECKING:
    from collections.abc import Callable

CLASSES = (MapClass(0, "background", (0, 0, 0)), MapClass(9, "building", (255, 0, 0)), MapClass(11, "road", (9, 9, 9)))
CONFIG = SegmenterConfig(channels=(8, 16), classes=CLASSES)


@pytest.fixture
def segmenter() -> SegmenterModel:
    torch.manual_seed(3)
    return SegmenterModel(CONFIG, build_segmenter(CONFIG))


def pictures(count: int, height_px: int, width_px: int) -> np.ndarray:
    return np.random.default_rng(height_px).integers(0, 256, (count, height_px, width_px, 3), dtype=np.uint8)


# --- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(256, 256), (64, 40), (1, 1), (7, 130)])
def test_a_picture_of_any_size_gets_an_answer_of_its_size(segmenter: SegmenterModel, size: tuple[int, int]) -> None:
    answer = segmenter.predict(pictures(2, *size))
    assert (answer.shape, answer.dtype) == ((2, *size), np.uint8)
    assert set(np.unique(answer)) <= {0, 9, 11}


def test_the_ids_are_those_of_the_class_table(segmenter: SegmenterModel) -> None:
    assert (segmenter.classes, segmenter.class_ids) == (("background", "building", "road"), (0, 9, 11))
    with torch.no_grad():
        segmenter.network.head[0].weight.zero_()
        segmenter.network.head[0].bias.view(3, 4)[:] = torch.tensor([0.0, 1.0, 2.0])[:, None]
    assert np.all(segmenter.predict(pictures(1, 32, 32)) == 11)


def test_an_answer_does_not_depend_on_the_pictures_beside_it(segmenter: SegmenterModel) -> None:
    several = pictures(5, 96, 80)
    together = segmenter.predict(several)
    for picture, answer in zip(several, together, strict=True):
        assert np.array_equal(segmenter.predict(picture[None])[0], answer)
    assert segmenter.predict(several[:0]).shape == (0, 96, 80)


def test_a_pixel_is_decided_by_what_is_near() -> None:
    torch.manual_seed(0)
    network = build_segmenter(SegmenterConfig(classes=CLASSES)).eval()
    assert sum(each.numel() for each in network.parameters()) < 2_000_000
    images = torch.randn(1, 3, 512, 512, requires_grad=True)
    network(images)[0, :, 256, 256].sum().backward()
    down, across = images.grad.abs().sum((0, 1)).nonzero().T
    reach = max(int((each - 256).abs().max()) for each in (down, across))
    assert 80 < reach <= 104


def test_two_classes_are_the_least() -> None:
    with pytest.raises(UsageError, match="a segmenter of 1 classes has nothing to tell apart"):
        build_segmenter(replace(CONFIG, classes=CLASSES[:1]))


# --- pictures --------------------------------------------------------------------------------------------------------


def images(count: int, side_px: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, side_px, side_px, generator=torch.Generator().manual_seed(1)) * 2 - 1


def of_each(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


def test_a_blur_is_gaussian_and_each_pictures_own() -> None:
    from scipy.ndimage import gaussian_filter

    before = images(3)
    after = blurred(before, of_each(0.0, 1.0, 2.0))
    assert torch.equal(after[0], before[0])
    for number, deviation in ((1, 1.0), (2, 2.0)):
        expected = gaussian_filter(before[number, 0].numpy(), deviation, mode="mirror", radius=6)
        np.testing.assert_allclose(after[number, 0].numpy(), expected, atol=1e-5)


def test_fine_steps_change_nothing_and_coarse_ones_leave_flat_blocks() -> None:
    before = images(3)
    after = quantised(before, of_each(0.0, 0.01, 2000.0))
    assert torch.equal(after[0], before[0])
    torch.testing.assert_close(after[1], before[1], atol=2e-3, rtol=0)
    blocks = after[2].unfold(1, 8, 8).unfold(2, 8, 8)
    assert float(blocks.std(dim=(-1, -2)).max()) < 1e-5
    assert torch.equal(quantised(before[1:2], of_each(30.0)), quantised(before, of_each(30.0, 30.0, 30.0))[1:2])


def test_the_steps_are_those_of_jpeg() -> None:
    """A flat block is off by half a step of its constant component at most, which is 8 times its value."""
    before = images(64, 8).mean(dim=(2, 3), keepdim=True).mean(dim=1, keepdim=True).expand(64, 3, 8, 8).contiguous()
    error = (quantised(before, torch.full((64, 1, 1, 1), 64.0)) - before).abs().amax() * 255 / 2
    assert 2 < float(error) <= 64 / 8 / 2 + 1e-3


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_pictures_stay_pictures_and_the_seed_says_which(seed: int) -> None:
    before = images(4)
    torch.manual_seed(seed)
    after = as_seen_in_use(before)
    torch.manual_seed(seed)
    assert torch.equal(as_seen_in_use(before), after)
    assert float(after.abs().max()) <= 1
    assert bool(torch.isfinite(after).all())


def test_some_pictures_keep_their_quality(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmenter_pictures, "recoloured", lambda images: images)
    torch.manual_seed(0)
    before = images(1).expand(400, 3, 64, 64).contiguous()
    same = (as_seen_in_use(before) == before).flatten(1).all(dim=1).float().mean()
    assert float(same) == pytest.approx((1 - segmenter_pictures.SHARE) ** 3, abs=0.06)
    assert not torch.equal(recoloured(before[:1]), before[:1])


# --- losses ----------------------------------------------------------------------------------------------------------


def test_rare_classes_weigh_more_with_a_mean_of_one() -> None:
    shares = (0.81, 0.16, 0.03)
    weights = class_weights(shares)
    assert sum(share * weight for share, weight in zip(shares, weights, strict=True)) == pytest.approx(1)
    assert weights[1] / weights[0] == pytest.approx(math.sqrt(0.81 / 0.16))


def test_losses_are_none_where_the_map_is_met_and_ignore_other_classes() -> None:
    wanted = torch.tensor([[[0, 1], [2, -100]]])
    right = functional.one_hot(wanted.clamp(min=0), 3).movedim(-1, 1).float() * 50
    right[..., 1, 1] = torch.tensor([0.0, 70.0, -3.0])
    assert float(dice_loss(right, wanted)) == pytest.approx(0, abs=1e-4)
    weights = torch.tensor([0.5, 1.0, 2.0])
    assert float(weighted_cross_entropy(right, wanted, weights)) == pytest.approx(0, abs=1e-4)
    flat = torch.zeros(1, 3, 2, 2)
    assert float(weighted_cross_entropy(flat, wanted, weights)) == pytest.approx(math.log(3) * 3.5 / 3, rel=1e-5)
    assert float(dice_loss(flat, wanted)) == pytest.approx(1 - 2 * (1 / 3) / (1 + 1), rel=1e-5)


def test_dice_asks_nothing_of_classes_that_are_not_there() -> None:
    wanted = torch.zeros(1, 2, 2, dtype=torch.long)
    logits = torch.zeros(1, 3, 2, 2)
    logits[:, 0] = 50
    assert float(dice_loss(logits, wanted)) == pytest.approx(0, abs=1e-5)
    assert float(dice_loss(logits, torch.full((1, 2, 2), -100))) == 1


def test_confusion_counts_by_class_and_leaves_others_out() -> None:
    truth = np.array([[0, 0, 9, 3]], np.uint8)
    seen = np.array([[0, 9, 9, 9]], np.uint8)
    assert confusion(truth, seen, (0, 9)).tolist() == [[1, 1], [0, 1]]


# --- its directory ---------------------------------------------------------------------------------------------------


def test_a_stored_segmenter_answers_as_before(segmenter: SegmenterModel, tmp_path: Path) -> None:
    assert segmenter.save_pretrained(tmp_path / "model") == segmenter.fingerprint
    files = {"config.json", "README.md", "segmenter.safetensors"}
    assert {each.name for each in (tmp_path / "model").iterdir()} == files
    read = SegmenterModel.from_pretrained(tmp_path / "model")
    assert (read.config, read.fingerprint, read.name) == (CONFIG, segmenter.fingerprint, segmenter.name)
    assert np.array_equal(read.predict(pictures(2, 64, 64)), segmenter.predict(pictures(2, 64, 64)))
    assert segmenter.name in (tmp_path / "model" / "README.md").read_text()
    read.save_pretrained(tmp_path / "model")  # in place of itself
    assert {each.name for each in (tmp_path / "model").iterdir()} == files


def test_other_weights_or_classes_have_another_name(segmenter: SegmenterModel) -> None:
    torch.manual_seed(4)
    other = SegmenterModel(CONFIG, build_segmenter(CONFIG))
    renamed = replace(CONFIG, classes=(*CLASSES[:2], MapClass(12, "road", (9, 9, 9))))
    same_weights = SegmenterModel(renamed, segmenter.network)
    assert len({each.name for each in (segmenter, other, same_weights)}) == 3


def _edit(folder: Path, change: Callable[[dict], object]) -> None:
    document = json.loads((folder / "config.json").read_text())
    change(document)
    (folder / "config.json").write_text(json.dumps(document))


def _other_weights(folder: Path) -> None:
    torch.manual_seed(5)
    SegmenterModel(CONFIG, build_segmenter(CONFIG)).save_pretrained(folder.parent / "other")
    (folder / "segmenter.safetensors").write_bytes((folder.parent / "other" / "segmenter.safetensors").read_bytes())


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def _class(document: dict, number: int, **changes: object) -> None:
    document["segmenter"]["classes"][number].update(changes)


DAMAGES = {
    "no config": (lambda at: (at / "config.json").unlink(), r"is no segmenter: it has no config\.json"),
    "no json": (lambda at: (at / "config.json").write_text("{"), r"config\.json cannot be read"),
    "another kind": (lambda at: _edit(at, lambda d: d.pop("segmenter")), r"is not of a segmenter"),
    "later format": (lambda at: _edit(at, lambda d: d.update(format_version=9)), "is of format 9, this magc reads for"),
    "unknown field": (lambda at: _edit(at, lambda d: d["segmenter"].update(more=1)), "does not know more"),
    "huge": (lambda at: _edit(at, lambda d: d["segmenter"].update(channels=[9999])), "expected 1 to 8192"),
    "no level": (lambda at: _edit(at, lambda d: d["segmenter"].update(channels=[])), "has no level"),
    "twice": (lambda at: _edit(at, lambda d: _class(d, 1, id=0)), "an id more than once"),
    "one class": (lambda at: _edit(at, lambda d: d["segmenter"].update(classes=[])), "cannot be built"),
    "renamed": (lambda at: _edit(at, lambda d: _class(d, 1, name="tree")), "its fingerprint differs"),
    "wider": (lambda at: _edit(at, lambda d: d["segmenter"].update(channels=[8, 24])), r"expected float32 \["),
    "deeper": (lambda at: _edit(at, lambda d: d["segmenter"].update(channels=[8, 16, 32])), r"lacks 'down\.1"),
    "no weights": (lambda at: (at / "segmenter.safetensors").unlink(), r"segmenter\.safetensors is missing"),
    "cut off": (lambda at: _truncate(at / "segmenter.safetensors"), r"segmenter\.safetensors is damaged"),
    "other weights": (_other_weights, "its fingerprint differs"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_not_as_it_was_written_is_refused(segmenter: SegmenterModel, tmp_path: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    segmenter.save_pretrained(tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(ModelError, match=message) as refused:
        SegmenterModel.from_pretrained(tmp_path / "model")
    assert "\n" not in str(refused.value)


def test_nothing_else_is_overwritten(segmenter: SegmenterModel, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ModelError, match=r"holds notes\.txt, which is no segmenter's"):
        segmenter.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is a file"):
        segmenter.save_pretrained(tmp_path / "notes.txt")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="is not of a segmenter"):
        segmenter.save_pretrained(tmp_path / "other")
    with pytest.raises(MagcModelError, match="there is no segmenter"):
        SegmenterModel.from_pretrained(tmp_path / "nowhere")
