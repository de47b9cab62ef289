"""Made-up measurements of seven codecs, shaped like real ones: what the statistics and the report are developed against.

Nothing here was measured. Cuts have difficulties that all codecs feel, so that figures of different codecs belong
together cut by cut as real ones do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from magc_model.evaluate.measurement import ORIGINAL, Cost, Measurement, On
from magc_model.evaluate.results import (
    Better,
    ClassInfo,
    CodecFootprint,
    CodecInfo,
    Fact,
    MetricInfo,
    MissingMetric,
)
from magc_model.evaluate.samples import Distance, DistanceKind
from magc_model.evaluate.summarise import Description

if TYPE_CHECKING:
    from collections.abc import Iterator

FRECHET, CONSISTENCY = "patch-frechet-rand", "map-consistency"
DIMENSIONS, PATCHES = 12, 5
CLASSES = (
    ClassInfo("unmapped", "#e8e6df"),
    ClassInfo("building", "#c2553f"),
    ClassInfo("road", "#5b5f66"),
    ClassInfo("water", "#3d7fc1"),
    ClassInfo("vegetation", "#5f9e4c"),
)


class MadeUp(NamedTuple):
    """A codec that there is not."""

    info: CodecInfo
    bpp: tuple[float, ...]
    sharp: float
    """What it adds to looks: takes from LPIPS and its like."""
    exact: float
    """What it adds to fidelity, in decibels."""
    decode_s: float
    stream_share: float | None
    floor_bytes: int
    """What its file format takes at least: felt by tiles."""


def _made_up(
    name: str, label: str, low: float, high: float, sharp: float, exact: float, decode_s: float, **more: object
) -> MadeUp:
    info = CodecInfo(name, label, "synthetic 1.0", uses_map=name.startswith("magc"))
    bpp = tuple(float(each) for each in np.geomspace(low, high, 5))
    return MadeUp(info, bpp, sharp, exact, decode_s, more.get("stream_share"), int(more.get("floor_bytes", 0)))


CODECS = (
    _made_up("magc:tiny", "MAGC", 0.012, 0.095, 0.33, -2.5, 0.4, stream_share=0.93, floor_bytes=6),
    _made_up("jpeg", "JPEG", 0.21, 0.9, 0.02, -3.0, 0.001, floor_bytes=600),
    _made_up("jpeg2000", "JPEG 2000", 0.05, 0.5, 0.03, -1.0, 0.004, stream_share=0.8, floor_bytes=90),
    _made_up("webp", "WebP", 0.08, 0.5, 0.04, -1.2, 0.002, floor_bytes=40),
    _made_up("avif", "AVIF", 0.03, 0.4, 0.06, 0.1, 0.006, stream_share=0.7, floor_bytes=290),
    _made_up("hevc", "HEVC intra (x265)", 0.025, 0.3, 0.0, -0.3, 0.02, stream_share=1.0, floor_bytes=30),
    _made_up("vvc", "VVC intra (vvenc)", 0.02, 0.25, 0.0, 0.0, 0.03, stream_share=1.0, floor_bytes=20),
)

METRICS = (
    MetricInfo("psnr-y", "PSNR (Y)", "dB", Better.HIGHER, "fidelity", "of full-range BT.601 luma", 2),
    MetricInfo("psnr-rgb", "PSNR (RGB)", "dB", Better.HIGHER, "fidelity", "of the three channels", 2),
    MetricInfo("colour-error", "Colour error", "ΔE", Better.LOWER, "fidelity", "CIE76 of 8x8 blocks' means", 2),
    MetricInfo("ms-ssim-y", "MS-SSIM (Y)", "", Better.HIGHER, "structure", "of luma in five scales"),
    MetricInfo("gmsd", "GMSD", "", Better.LOWER, "structure", "deviation of the gradient similarity"),
    MetricInfo("lpips", "LPIPS", "", Better.LOWER, "perception", "v0.1 on AlexNet"),
    MetricInfo("dists", "DISTS", "", Better.LOWER, "perception", "structure and texture on VGG-16"),
    MetricInfo("musiq", "MUSIQ", "of 100", Better.HIGHER, "realism", "looks at the decoded picture alone", 1),
    MetricInfo(
        "gradient-ratio", "Gradient energy", "of the original's", Better.ONE, "realism", "decoded / original", 2
    ),
    MetricInfo(FRECHET, "Patch Fréchet (random)", "", Better.LOWER, "realism", "of random features; not FID", 2),
    MetricInfo(CONSISTENCY, "Map consistency", "mIoU", Better.HIGHER, "meaning", "seen in it against its map"),
)
MISSING = (
    MissingMetric(
        "fid", "FID", "the weights of Inception-v3 (weights-inception-2015-12-05.pth) are not in ~/.cache/magc/weights",
        "put the file there, or name its folder with --weights-dir",
    ),
    MissingMetric("kid", "KID", "as FID", "as FID"),
)  # fmt: skip


def frechet_distance(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """By SciPy's matrix root: another way than the one under test."""
    from scipy.linalg import sqrtm

    means = [each.astype(np.float64).mean(axis=0) for each in (features_a, features_b)]
    covariances = [np.cov(each.astype(np.float64), rowvar=False) for each in (features_a, features_b)]
    root = sqrtm(covariances[0] @ covariances[1]).real
    return float(np.square(means[0] - means[1]).sum() + np.trace(covariances[0] + covariances[1] - 2 * root))


DISTANCES = {FRECHET: Distance(FRECHET, DistanceKind.FRECHET, frechet_distance)}


class Item(NamedTuple):
    """A tile or scene that there is not."""

    on: On
    key: str
    side_px: int
    difficulty: np.ndarray
    """Of its cuts; rates and losses rise with it."""
    features: np.ndarray
    confusions: np.ndarray
    """Of its cuts: diagonal, as the map and what is there agree in this world but for a tenth."""


def items(tiles: int = 36, scenes: int = 2, seed: int = 0) -> list[Item]:
    """Tiles of one cut and scenes of 36."""
    generator = np.random.default_rng(seed)
    shapes = [(On.TILES, f"18_193{each:03d}_110{each // 6:03d}", 256) for each in range(tiles)]
    shapes += [(On.SCENES, f"scene-{each}", 1536) for each in range(scenes)]
    made = []
    for on, key, side_px in shapes:
        cuts = (side_px // 256) ** 2
        shares = generator.dirichlet(np.array([6.0, 2.0, 1.0, 0.4, 3.0]), size=cuts)
        pixels = np.round(shares * 65536).astype(np.int64)
        made.append(
            Item(
                on,
                key,
                side_px,
                generator.normal(0, 0.35, cuts) + (generator.normal(0, 0.25) if on is On.SCENES else 0),
                generator.normal(size=(cuts * PATCHES, DIMENSIONS)).astype(np.float32),
                np.apply_along_axis(np.diag, 1, pixels),
            )
        )
    return made


def measurements(
    world: list[Item] | None = None, codecs: tuple[MadeUp, ...] = CODECS, seed: int = 0
) -> Iterator[Measurement]:
    """All of them, in the order that `summarise` wants."""
    world = items() if world is None else world
    for on in On:
        chosen = [each for each in world if each.on is on]
        yield from (_original(each) for each in chosen)
        for codec in codecs:
            for number, bpp in enumerate(codec.bpp):
                for place, item in enumerate(chosen):
                    generator = np.random.default_rng([seed, number, place, *codec.info.name.encode()])
                    yield _measured(item, codec, number, bpp, generator)


def _original(item: Item) -> Measurement:
    cuts = len(item.difficulty)
    confusions = _confused(item.confusions, 0.1)
    values = {"musiq": 62 + 6 * item.difficulty}
    assert len(confusions) == cuts
    cost = Cost(3 * item.side_px**2, None, 0.0, 0.0)
    return Measurement(
        ORIGINAL, 0.0, item.on, item.key, item.side_px, item.side_px, cost, values, {FRECHET: item.features},
        {CONSISTENCY: confusions},
    )  # fmt: skip


def _measured(item: Item, codec: MadeUp, number: int, bpp: float, generator: np.random.Generator) -> Measurement:
    cuts, pixels = len(item.difficulty), item.side_px**2
    harder = item.difficulty + generator.normal(0, 0.25, cuts)
    size = int(bpp * np.exp(0.8 * item.difficulty.mean()) * pixels / 8) + codec.floor_bytes
    decades = np.log10(bpp / 0.05)
    psnr = 23.5 + 4.2 * decades + codec.exact - 2.2 * harder
    lpips = np.clip(0.64 - 0.34 * decades - codec.sharp * (1 - 0.25 * decades) + 0.05 * harder, 0.02, 1.2)
    blur = np.clip(0.45 + 0.3 * decades + 1.2 * codec.sharp, 0.05, 1.4)
    values = {
        "psnr-y": psnr,
        "psnr-rgb": psnr - 0.9,
        "colour-error": np.exp(1.4 - 0.5 * decades + 0.2 * harder),
        "ms-ssim-y": 1 - np.exp(-(psnr - 14) / 6.5),
        "gmsd": 0.05 + 0.25 * lpips,
        "lpips": lpips,
        "dists": 0.06 + 0.42 * lpips,
        "musiq": 58 - 45 * lpips + 3 * harder,
        "gradient-ratio": blur + 0.05 * harder,
    }
    strength = np.float32(np.sqrt(np.clip(blur, 0, 1)))
    confusions = _confused(item.confusions, float(np.clip(0.1 + 0.5 * lpips.mean(), 0, 0.8)))
    stream = None if codec.stream_share is None else int(size * codec.stream_share)
    cost = Cost(size, stream, codec.decode_s * 3 * pixels / 65536, codec.decode_s * pixels / 65536)
    noise = generator.normal(size=item.features.shape).astype(np.float32)
    features = {FRECHET: item.features * strength + np.float32(0.15) * noise}
    return Measurement(
        codec.info.name, float(10 * number), item.on, item.key, item.side_px, item.side_px, cost, values, features,
        {CONSISTENCY: confusions},
    )  # fmt: skip


def _confused(diagonal: np.ndarray, share: float) -> np.ndarray:
    """A share of every class's pixels is seen as the others, most of it as unmapped."""
    classes = diagonal.shape[1]
    kept = (diagonal * (1 - share)).astype(np.int64)
    lost = diagonal.sum(axis=2) - kept.sum(axis=2)
    kept[:, :, 0] += lost // 2
    kept[:, np.arange(classes), (np.arange(classes) + 1) % classes] += lost - lost // 2
    return kept


def description(codecs: tuple[MadeUp, ...] = CODECS, anchor: str | None = "vvc") -> Description:
    """What these measurements do not say of themselves."""
    return Description(
        title="Synthetic measurements, to develop the report against",
        data=(
            Fact("Dataset", "made up, 36 tiles and 2 scenes"),
            Fact("Split", "test"),
            Fact("Digest", "sha256:" + "5f" * 32),
            Fact("Ground", "0.516 m a pixel (made up)"),
        ),
        settings=(
            Fact("Command", "magc evaluate DATASET --codecs magc:tiny jpeg ... --report report"),
            Fact("Seed", "0"),
            Fact("Decoding", "4 denoising steps, DDIM"),
        ),
        metrics=METRICS,
        missing=MISSING,
        codecs=tuple(each.info for each in codecs),
        classes={CONSISTENCY: CLASSES},
        anchor=anchor,
        run=(
            Fact("Date", "2026-01-31"),
            Fact("Hardware", "2 cores of a made-up processor, 24 GiB of memory, no GPU"),
            Fact("Versions", "magc 0.6, Python 3.11.9, PyTorch 2.14.1"),
        ),
        footprints=tuple(
            CodecFootprint(each.info.name, on, side, side, 3 * seconds, seconds, 180.0 + 900 * each.info.uses_map)
            for each in codecs
            for on, side in ((On.TILES, 256), (On.SCENES, 1536))
            for seconds in [each.decode_s * side**2 / 65536]
        ),
    )
