"""Fidelity and structure of decoded cuts, against other implementations and what must hold of any."""

import io

import numpy as np
import piq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from magc_model.evaluate.metrics.colour import lab_of
from magc_model.evaluate.metrics.full_reference import FULL_REFERENCE_NAMES, full_reference
from magc_model.evaluate.metrics.table import FULL_REFERENCE, Better


def pictures(count: int = 2, height: int = 176, width: int = 192, seed: int = 0) -> np.ndarray:
    """Smooth fields with edges, and some grain."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (count, 12, 12, 3), dtype=np.uint8)
    planes = np.stack(
        [np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC)) for one in coarse]
    )
    planes = planes.astype(float)
    planes[:, height // 4 : height // 2, width // 3 : width // 2] *= 0.4
    return np.clip(planes + random.normal(0, 6, planes.shape), 0, 255).astype(np.uint8)


def as_jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def degraded(originals: np.ndarray) -> np.ndarray:
    return np.stack([as_jpeg(originals[0], 10), *np.roll(originals[1:], 3, axis=1)])


def planes(cuts: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(cuts)).permute(0, 3, 1, 2).double() / 255


def luma(cuts: np.ndarray) -> torch.Tensor:
    """Full-range BT.601, rounded to 8 bit."""
    y = cuts[..., 0] * 0.299 + cuts[..., 1] * 0.587 + cuts[..., 2] * 0.114
    return torch.from_numpy(np.rint(y) / 255)[:, None]


ORIGINALS = pictures()
DECODED = degraded(ORIGINALS)


@pytest.fixture(scope="module")
def values() -> dict[str, np.ndarray]:
    return full_reference(ORIGINALS, DECODED, FULL_REFERENCE_NAMES)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("psnr-rgb", lambda: piq.psnr(planes(DECODED), planes(ORIGINALS), reduction="none")),
        ("psnr-y", lambda: piq.psnr(planes(DECODED), planes(ORIGINALS), reduction="none", convert_to_greyscale=True)),
        ("ssim-rgb", lambda: piq.ssim(planes(DECODED), planes(ORIGINALS), reduction="none")),
        ("ms-ssim-rgb", lambda: piq.multi_scale_ssim(planes(DECODED), planes(ORIGINALS), reduction="none")),
        ("gmsd", lambda: piq.gmsd(planes(DECODED), planes(ORIGINALS), reduction="none")),
        ("haarpsi", lambda: piq.haarpsi(planes(DECODED), planes(ORIGINALS), reduction="none")),
        ("vif", lambda: piq.vif_p(planes(DECODED), planes(ORIGINALS), reduction="none")),
    ],
)
def test_figures_are_those_of_piq(name, reference, values):
    assert values[name] == pytest.approx(reference().numpy(), rel=1e-7)


def plain_ssim(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """SSIM and mean contrast term of two planes, window by window, cut off at 0 in each: straight from the formula."""
    place = np.arange(11) - 5
    line = np.exp(-(place**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    views_a, views_b = (np.lib.stride_tricks.sliding_window_view(x, (11, 11)) for x in (a, b))
    mean_a, mean_b = ((view * window).sum((2, 3)) for view in (views_a, views_b))
    away_a, away_b = views_a - mean_a[..., None, None], views_b - mean_b[..., None, None]
    both = (window * away_a * away_b).sum((2, 3))
    spread = (window * (away_a**2 + away_b**2)).sum((2, 3))
    contrast = np.maximum((2 * both + 58.5225) / (spread + 58.5225), 0)
    luminance = (2 * mean_a * mean_b + 6.5025) / (mean_a**2 + mean_b**2 + 6.5025)
    return float((luminance * contrast).mean()), float(contrast.mean())


def test_similarity_of_luma_is_the_formula_on_8_bit_luma_with_contrast_cut_off_in_windows(values):
    for number in range(2):
        a, b = (luma(cuts)[number, 0].numpy() * 255 for cuts in (ORIGINALS, DECODED))
        assert values["ssim-y"][number] == pytest.approx(plain_ssim(a, b)[0], rel=1e-9)
        product = 1.0
        for weight in (0.0448, 0.2856, 0.3001, 0.2363):
            product *= plain_ssim(a, b)[1] ** weight
            a, b = (x.reshape(len(x) // 2, 2, -1, 2).mean((1, 3)) for x in (a, b))
        assert values["ms-ssim-y"][number] == pytest.approx(product * plain_ssim(a, b)[0] ** 0.1333, rel=1e-9)


def test_luma_figures_are_those_of_pyiqa_the_papers_program(values):
    pytest.importorskip("pyiqa")
    from pyiqa.archs.psnr_arch import PSNR
    from pyiqa.archs.ssim_arch import MS_SSIM, SSIM

    for name, network in (("psnr-y", PSNR(test_y_channel=True)), ("ssim-y", SSIM()), ("ms-ssim-y", MS_SSIM())):
        # Its window has been rounded to float32, and some luma of just a half to the other side.
        assert values[name] == pytest.approx(network(planes(DECODED), planes(ORIGINALS)).flatten().numpy(), rel=1e-4)


def test_odd_sides_are_halved_as_pytorch_msssim_does():
    msssim = pytest.importorskip("pytorch_msssim")
    originals = pictures(height=171, width=190)
    decoded = degraded(originals)
    as_bytes = [planes(cuts) * 255 for cuts in (decoded, originals)]
    ours = full_reference(originals, decoded, ["ms-ssim-rgb"])["ms-ssim-rgb"]
    assert ours == pytest.approx(msssim.ms_ssim(*as_bytes, data_range=255, size_average=False).numpy(), rel=1e-5)


@pytest.mark.parametrize(("height", "width"), [(95, 96), (101, 77)])
def test_odd_sides_are_those_of_piq_in_gradients_and_haar_coefficients(height, width):
    originals = pictures(height=height, width=width)
    decoded = degraded(originals)
    ours = full_reference(originals, decoded, ["gmsd", "haarpsi", "vif"])
    for name, reference in (("gmsd", piq.gmsd), ("haarpsi", piq.haarpsi), ("vif", piq.vif_p)):
        assert ours[name] == pytest.approx(
            reference(planes(decoded), planes(originals), reduction="none").numpy(), rel=1e-7
        )


def test_equal_pictures_have_the_best_figures():
    best = full_reference(ORIGINALS, ORIGINALS, FULL_REFERENCE_NAMES)
    ideal = dict.fromkeys(FULL_REFERENCE_NAMES, 1.0) | {"psnr-y": 80, "psnr-rgb": 80, "gmsd": 0, "colour-error": 0}
    for name, wanted in ideal.items():
        assert best[name] == pytest.approx([wanted] * 2, abs=1e-8), name


def test_every_metric_says_which_way_is_better_and_is_right():
    spoiled = np.stack([np.asarray(Image.fromarray(one).filter(ImageFilter.GaussianBlur(2))) for one in ORIGINALS])
    spoiled = spoiled * np.array([0.8, 1, 0.7])
    mild, strong = ((ORIGINALS + share * (spoiled - ORIGINALS)).astype(np.uint8) for share in (0.2, 0.8))
    good, bad = (full_reference(ORIGINALS, cuts, FULL_REFERENCE_NAMES) for cuts in (mild, strong))
    for metric in FULL_REFERENCE:
        before, after = good[metric.name], bad[metric.name]
        if metric.better is Better.NEAREST_TO_ONE:
            before, after = abs(before - 1), abs(after - 1)
        assert np.all(before < after if metric.better is not Better.HIGHER else before > after), metric.name


def test_gradient_ratio_is_below_one_for_blur_and_above_for_noise():
    blurred = np.stack([np.asarray(Image.fromarray(one).filter(ImageFilter.GaussianBlur(2))) for one in ORIGINALS])
    noise = np.random.default_rng(3).normal(0, 12, ORIGINALS.shape)
    noisy = np.clip(ORIGINALS + noise, 0, 255).astype(np.uint8)
    assert np.all(full_reference(ORIGINALS, blurred, ["gradient-ratio"])["gradient-ratio"] < 0.6)
    assert np.all(full_reference(ORIGINALS, noisy, ["gradient-ratio"])["gradient-ratio"] > 2)


def test_gradient_ratio_of_a_ramp_is_the_square_of_its_steepness():
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, None, :, None], (1, 64, 64, 3))
    assert full_reference(ramp, 3 * ramp, ["gradient-ratio"])["gradient-ratio"] == pytest.approx([9.0])
    flat = np.full((1, 64, 64, 3), 7, np.uint8)
    assert np.isnan(full_reference(flat, ramp, ["gradient-ratio"])["gradient-ratio"]).all()


@pytest.mark.parametrize(
    ("colour", "wanted"),
    [
        ((255, 255, 255), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
    ],
)
def test_lab_is_that_of_the_books(colour, wanted):
    assert lab_of(np.array([colour], dtype=float))[0] == pytest.approx(wanted, abs=0.05)


def test_colour_error_is_the_difference_of_colours_and_none_of_texture():
    grey, red = (np.full((1, 64, 64, 3), colour, np.uint8) for colour in ((100, 100, 100), (120, 100, 100)))
    apart = np.linalg.norm(lab_of(np.array([120.0, 100, 100])) - lab_of(np.array([100.0, 100, 100])))
    assert full_reference(grey, red, ["colour-error"])["colour-error"] == pytest.approx([apart])
    chess = grey.copy()
    chess[:, ::2, ::2] = chess[:, 1::2, 1::2] = 140
    chess[:, 1::2, ::2] = chess[:, ::2, 1::2] = 60
    assert full_reference(grey, chess, ["colour-error"])["colour-error"] == pytest.approx([0], abs=1e-9)


def test_a_cut_that_is_too_small_for_a_metric_has_no_figure_and_keeps_the_others():
    small = full_reference(
        pictures(height=160, width=200), pictures(height=160, width=200, seed=1), FULL_REFERENCE_NAMES
    )
    assert {name for name, value in small.items() if np.isnan(value).any()} == {"ms-ssim-y", "ms-ssim-rgb"}
    just = full_reference(
        pictures(height=161, width=161), pictures(height=161, width=161, seed=1), FULL_REFERENCE_NAMES
    )
    assert np.isfinite(list(just.values())).all()
    tiny = full_reference(pictures(height=5, width=5), pictures(height=5, width=5, seed=1), FULL_REFERENCE_NAMES)
    assert {name for name, value in tiny.items() if np.isfinite(value).all()} == {
        "psnr-y",
        "psnr-rgb",
        "gmsd",
        "gradient-ratio",
    }


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_any_pictures_have_figures_within_their_ranges(height, width, seed):
    random = np.random.default_rng(seed)
    one, other = random.integers(0, 256, (2, 1, height, width, 3), dtype=np.uint8)
    found = full_reference(one, other, FULL_REFERENCE_NAMES)
    ranges = {
        "ssim-y": (0, 1),
        "ssim-rgb": (-1, 1),
        "gmsd": (0, 1),
        "haarpsi": (0, 1),
        "vif": (0, 10),
        "colour-error": (0, 300),
    }
    for name, (lowest, highest) in ranges.items():
        assert np.isnan(found[name]).all() or lowest <= found[name][0] <= highest, name


def test_flat_pictures_are_no_error():
    black, white = np.zeros((1, 256, 256, 3), np.uint8), np.full((1, 256, 256, 3), 255, np.uint8)
    found = full_reference(black, white, FULL_REFERENCE_NAMES)
    assert np.isfinite([value for name, value in found.items() if name != "gradient-ratio"]).all()
    assert found["psnr-rgb"] == pytest.approx([0], abs=1e-6)
