"""Confusion matrices, what follows of them, and segmenters of the user's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from magc_model.errors import EvaluationError, UsageError
from magc_model.evaluate.metrics.segmenters import TorchscriptSegmenter, TorchvisionSegmenter, TransformersSegmenter
from magc_model.evaluate.metrics.semantic import (
    Segmenter,
    confusions,
    open_segmenters,
    seen_in,
    segmentation_scores,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:FutureWarning")

CLASSES = ("ground", "house", "water")
RANDOM = np.random.default_rng(0)
CUTS = RANDOM.integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)


class Brightness:
    """Three classes by the red channel."""

    name, classes = "brightness", CLASSES

    def predict(self, pictures: np.ndarray) -> np.ndarray:
        return pictures[..., 0] // 86


class Colours(torch.nn.Module):
    """Logits that are the colours themselves, at half the size."""

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        return planes[:, :, ::2, ::2]


def strongest_colour(cuts: np.ndarray) -> np.ndarray:
    half = torch.from_numpy(cuts[:, ::2, ::2]).permute(0, 3, 1, 2).float()
    return torch.nn.functional.interpolate(half, scale_factor=2, mode="bilinear").argmax(1).numpy()


def test_confusions_count_each_pixel_in_the_row_of_its_reference():
    reference = np.array([[[0, 0, 1], [1, 2, 2]]], np.uint8)
    seen = np.array([[[0, 1, 1], [1, 1, 2]]])
    assert confusions(reference, seen, 3).tolist() == [[[1, 1, 0], [0, 2, 0], [0, 1, 1]]]


def test_reference_outside_of_the_classes_is_not_counted():
    reference = np.array([[[0, 3, 255]]], np.uint8)
    assert confusions(reference, np.zeros((1, 1, 3), np.int64), 3).sum() == 1


def test_scores_are_those_by_hand_and_absent_classes_are_left_out():
    scores = segmentation_scores(np.array([[3, 1, 0], [2, 4, 0], [0, 0, 0]]), CLASSES)
    assert scores.iou[:2] == pytest.approx([3 / 6, 4 / 7])
    assert np.isnan(scores.iou[2])
    assert scores.mean_iou == pytest.approx((3 / 6 + 4 / 7) / 2)
    assert scores.accuracy == pytest.approx(7 / 10)
    assert scores.left_out == ("water",)


def test_a_class_that_is_only_seen_counts_as_missed():
    scores = segmentation_scores(np.array([[3, 0, 1], [0, 0, 0], [0, 0, 0]]), CLASSES)
    assert scores.iou[2] == 0
    assert scores.mean_iou == pytest.approx(3 / 8)
    assert scores.left_out == ("house",)


def test_nothing_counted_has_no_scores():
    scores = segmentation_scores(np.zeros((3, 3), np.int64), CLASSES)
    assert np.isnan([scores.mean_iou, scores.accuracy]).all()
    assert scores.left_out == CLASSES


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_every_counted_pixel_is_once_in_the_matrix_and_equal_maps_have_no_errors(seed, class_count):
    random = np.random.default_rng(seed)
    reference, seen = random.integers(0, class_count, (2, 3, 8, 8))
    matrices = confusions(reference, seen, class_count)
    assert matrices.sum(axis=(1, 2)).tolist() == [64] * 3
    assert np.array_equal(matrices.sum(axis=2), [np.bincount(cut.ravel(), minlength=class_count) for cut in reference])
    equal = segmentation_scores(confusions(reference, reference, class_count).sum(0), tuple("abcde"[:class_count]))
    assert equal.mean_iou == equal.accuracy == 1


def test_what_is_seen_does_not_depend_on_the_batch_and_is_checked():
    assert isinstance(Brightness(), Segmenter)
    assert np.array_equal(seen_in(Brightness(), CUTS)[1:], seen_in(Brightness(), CUTS[1:]))
    assert seen_in(Brightness(), CUTS[:0]).shape == (0, 64, 96)

    class TooMany(Brightness):
        classes = CLASSES[:2]

    class TooSmall(Brightness):
        def predict(self, pictures: np.ndarray) -> np.ndarray:
            return super().predict(pictures)[:, ::2]

    with pytest.raises(EvaluationError, match=r"sees classes 0 to 2 and names 2: name all of its classes$"):
        seen_in(TooMany(), CUTS)
    with pytest.raises(EvaluationError, match="expected one a pixel$"):
        seen_in(TooSmall(), CUTS)


def test_a_torchscript_file_is_a_segmenter_with_the_classes_in_it(tmp_path):
    path = tmp_path / "landcover.pt"
    torch.jit.save(
        torch.jit.trace(Colours(), torch.zeros(1, 3, 64, 64)), path, _extra_files={"classes.txt": "red\ngreen\nblue\n"}
    )
    (segmenter,) = open_segmenters([f"torchscript:{path}"])
    assert isinstance(segmenter, Segmenter)
    assert (segmenter.name, segmenter.classes) == ("landcover", ("red", "green", "blue"))
    assert np.array_equal(segmenter.predict(CUTS), strongest_colour(CUTS))


def test_a_torchscript_file_without_names_has_numbered_classes_and_one_with_too_few_is_told(tmp_path):
    traced = torch.jit.trace(Colours(), torch.zeros(1, 3, 64, 64))
    torch.jit.save(traced, tmp_path / "plain.pt")
    assert TorchscriptSegmenter(str(tmp_path / "plain.pt")).classes == ("class 0", "class 1", "class 2")
    torch.jit.save(traced, tmp_path / "few.pt", _extra_files={"classes.txt": "red\n"})
    with pytest.raises(EvaluationError, match=r"few\.pt names 1 classes and has 3: name each of them$"):
        TorchscriptSegmenter(str(tmp_path / "few.pt"))


def test_a_torchscript_file_that_answers_with_something_else_is_told(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.Flatten(), torch.zeros(1, 3, 8, 8)), tmp_path / "flat.pt")
    with pytest.raises(EvaluationError, match="does not answer with logits"):
        TorchscriptSegmenter(str(tmp_path / "flat.pt"))


def test_torchvision_weights_name_their_number_of_classes(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    network = torchvision.models.get_model(
        "lraspp_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=4
    ).eval()
    path = tmp_path / "mine.pth"
    torch.save(network.state_dict(), path)
    (segmenter,) = open_segmenters([f"torchvision:lraspp_mobilenet_v3_large={path}"])
    assert segmenter.name == "lraspp_mobilenet_v3_large-mine"
    assert segmenter.classes == ("class 0", "class 1", "class 2", "class 3")
    normalised = (CUTS / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.no_grad():
        logits = network(torch.from_numpy(normalised).permute(0, 3, 1, 2).float())["out"]
    assert (segmenter.predict(CUTS) == logits.argmax(1).numpy()).mean() > 0.999
    other = tmp_path / "other.pth"
    torch.save({"classifier.weight": torch.zeros(3, 1)}, other)
    with pytest.raises(
        EvaluationError, match=r"other\.pth has the right name and holds the weights of another network"
    ):
        TorchvisionSegmenter(f"lraspp_mobilenet_v3_large={other}")


def test_a_transformers_folder_is_a_segmenter_with_its_own_preparation(tmp_path):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    config = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[7, 3], strides=[4, 2],
        num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=8, id2label=dict(enumerate(CLASSES)),
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path / "segformer"
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    (segmenter,) = open_segmenters([f"transformers:{folder}"])
    assert (segmenter.name, segmenter.classes) == ("segformer", CLASSES)
    seen = segmenter.predict(CUTS)
    assert seen.shape == (2, 64, 96)
    assert len(np.unique(seen)) > 1
    SegformerForSemanticSegmentation(config).segformer.save_pretrained(folder)
    with pytest.raises(EvaluationError, match=r"segformer lacks \d+ of its model's weights, .* among them"):
        TransformersSegmenter(str(folder))
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(EvaluationError, match="is no semantic segmentation model that transformers can load"):
        TransformersSegmenter(str(folder))


@pytest.mark.parametrize(
    ("text", "error", "sentence"),
    [
        ("deeplab", UsageError, "segmenter 'deeplab' is unknown: expected torchvision:NAME=weights.pth"),
        ("torchscript:", UsageError, "segmenter 'torchscript:' is unknown"),
        ("torchvision:resnet18=w.pth", UsageError, "NAME one of deeplabv3_mobilenet_v3_large"),
        ("torchvision:fcn_resnet50=gone.pth", EvaluationError, "gone.pth is not there"),
        ("torchscript:gone.pt", EvaluationError, "gone.pt is not there"),
        ("transformers:gone", EvaluationError, "gone has no config.json"),
    ],
)
def test_a_segmenter_that_is_not_there_is_a_sentence(text, error, sentence):
    with pytest.raises(error, match=sentence):
        open_segmenters([text])


def test_damaged_files_are_sentences(tmp_path):
    path = tmp_path / "damaged.pt"
    path.write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(EvaluationError, match=r"damaged\.pt cannot be read .* expected a TorchScript archive"):
        TorchscriptSegmenter(str(path))
    with pytest.raises(EvaluationError, match=r"damaged\.pt cannot be read .* expected PyTorch weights"):
        TorchvisionSegmenter(f"fcn_resnet50={path}")


def test_two_segmenters_of_one_name_are_told_apart_or_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        torch.jit.save(torch.jit.trace(Colours(), torch.zeros(1, 3, 64, 64)), tmp_path / folder / "net.pt")
    with pytest.raises(UsageError, match="two segmenters are called net: rename one of the files"):
        open_segmenters([f"torchscript:{tmp_path / folder / 'net.pt'}" for folder in ("a", "b")])
