"""What can be measured, in one table: what reports call it, its unit, and which way is better."""

from enum import StrEnum
from typing import NamedTuple

from magc_model.evaluate.metrics.patches import PATCH_PX


class Better(StrEnum):
    """Which of two figures is the better one."""

    HIGHER = "higher"
    LOWER = "lower"
    NEAREST_TO_ONE = "nearest to 1"


class Group(StrEnum):
    """What a metric asks; none of them can be trusted alone."""

    FIDELITY = "fidelity"
    """Is every pixel what it was?"""
    STRUCTURE = "structure"
    """Are edges and textures where they were?"""
    PERCEPTION = "perception"
    """Does it look the same to a network trained for vision?"""
    REALISM = "realism"
    """Does it look like a photograph, whichever?"""
    MEANING = "meaning"
    """Is the same thing seen in the same place?"""


class Made(StrEnum):
    """How the one figure of a set of pictures comes about."""

    MEAN = "mean"
    """Of `Scores.values[name]` over cuts, those left out that are not finite."""
    FRECHET = "frechet"
    """Frechet distance of `Scores.features[features]` to those of the originals."""
    KERNEL = "kernel"
    """Kernel distance of `Scores.features[features]` to those of the originals."""
    MEAN_IOU = "mean iou"
    """Of the sum of `Scores.confusions[name]` over cuts."""


class Metric(NamedTuple):
    """One metric."""

    name: str
    """What it is asked for by, and its key in Scores; names are append-only, as results hold them."""
    label: str
    """What tables and plots call it."""
    unit: str
    """None: the empty text."""
    better: Better
    group: Group
    made: Made
    about: str
    """One line: the convention."""
    features: str = ""
    """Where it is a distance: whose key in Scores.features."""
    classes: tuple[str, ...] = ()
    """Where it is a confusion matrix: of what."""


class Missing(NamedTuple):
    """A metric that was asked for, or could be, and is not there."""

    name: str
    label: str
    reason: str
    way_out: str


def _value(name: str, label: str, unit: str, better: Better, group: Group, about: str) -> Metric:
    return Metric(name, label, unit, better, group, Made.MEAN, about)


_HIGHER, _LOWER, _ONE = Better.HIGHER, Better.LOWER, Better.NEAREST_TO_ONE
_WINDOW = "Gaussian window of 11 px"

FULL_REFERENCE = (
    _value("psnr-y", "PSNR (Y)", "dB", _HIGHER, Group.FIDELITY,
           "of full-range BT.601 luma, as the paper's; 1.32 dB less than of limited-range luma; 80 dB where equal"),
    _value("psnr-rgb", "PSNR (RGB)", "dB", _HIGHER, Group.FIDELITY, "of the three channels; 80 dB where equal"),
    _value("ssim-y", "SSIM (Y)", "", _HIGHER, Group.STRUCTURE, f"of 8-bit luma, {_WINDOW}, negative contrast as 0"),
    _value("ssim-rgb", "SSIM (RGB)", "", _HIGHER, Group.STRUCTURE, f"mean of the three channels', {_WINDOW}"),
    _value("ms-ssim-y", "MS-SSIM (Y)", "", _HIGHER, Group.STRUCTURE,
           "of 8-bit luma in five scales, negative contrast as 0, as the paper's"),
    _value("ms-ssim-rgb", "MS-SSIM (RGB)", "", _HIGHER, Group.STRUCTURE,
           "mean of the three channels' in five scales, as CompressAI reports it"),
    _value("gmsd", "GMSD", "", _LOWER, Group.STRUCTURE, "deviation of the gradient similarity of halved luma"),
    _value("haarpsi", "HaarPSI", "", _HIGHER, Group.STRUCTURE, "similarity of Haar coefficients, with colour"),
    _value("vif", "VIF", "", _HIGHER, Group.STRUCTURE, "visual information fidelity of luma in the pixel domain"),
    _value("gradient-ratio", "Gradient energy", "of the original's", _ONE, Group.REALISM,
           "mean squared luma difference of neighbours, decoded / original: below 1 blurred, above 1 noisy"),
    _value("colour-error", "Colour error", "ΔE", _LOWER, Group.FIDELITY,
           "CIE76 difference of the mean colours of 8x8 blocks: wrong colours, not lost texture"),
)  # fmt: skip

PERCEPTUAL = (
    _value("lpips", "LPIPS", "", _LOWER, Group.PERCEPTION, "v0.1 on AlexNet"),
    _value("dists", "DISTS", "", _LOWER, Group.PERCEPTION, "structure and texture on VGG-16"),
    _value("musiq", "MUSIQ", "of 100", _HIGHER, Group.REALISM, "KonIQ-10k; looks at the decoded picture alone"),
    _value("clip-iqa", "CLIP-IQA", "", _HIGHER, Group.REALISM, "RN50; looks at the decoded picture alone"),
)  # fmt: skip

NO_REFERENCE = ("musiq", "clip-iqa")
"""Those of the picture alone: the only ones in which an original has a figure worth showing."""

RANDOM_FEATURES = "patch-frechet-rand"
"""Key in Scores.features, and the metric's name: features of a fixed random network, which needs no weights."""
INCEPTION_FEATURES = "inception-v3"
"""Key in Scores.features, of FID and KID."""

RANDOM_DISTANCE = Metric(
    RANDOM_FEATURES, "Patch Fréchet (random)", "", _LOWER, Group.REALISM, Made.FRECHET,
    f"Frechet distance of random-convolution features of {PATCH_PX}-px patches; needs no weights and is not FID",
    features=RANDOM_FEATURES,
)  # fmt: skip
INCEPTION_DISTANCES = (
    Metric("fid", "FID", "", _LOWER, Group.REALISM, Made.FRECHET,
           f"Inception-v3, {PATCH_PX}-px patches, grid and grid shifted by half; compare at equal numbers of patches",
           features=INCEPTION_FEATURES),
    Metric("kid", "KID", "", _LOWER, Group.REALISM, Made.KERNEL,
           f"Inception-v3, {PATCH_PX}-px patches, grid and grid shifted by half", features=INCEPTION_FEATURES),
)  # fmt: skip

MAP_CONSISTENCY = "map-consistency"
"""Name and key of the confusions between the map and what is seen in the decoded picture."""


def map_consistency(classes: tuple[str, ...]) -> Metric:
    """The metric of a segmenter that was trained on maps."""
    return Metric(
        MAP_CONSISTENCY, "Map consistency", "mIoU", _HIGHER, Group.MEANING, Made.MEAN_IOU,
        "classes seen in the decoded picture against its map; the original's own figure stands beside",
        classes=classes,
    )  # fmt: skip


def segmentation_agreement(name: str, classes: tuple[str, ...]) -> Metric:
    """The metric of a segmenter that the user gave."""
    return Metric(
        f"miou:{name}", f"mIoU ({name})", "mIoU", _HIGHER, Group.MEANING, Made.MEAN_IOU,
        "classes seen in the decoded picture against those seen in the original", classes=classes,
    )  # fmt: skip
