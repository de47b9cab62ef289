"""What a model makes of samples, to look at: original, map and reconstruction side by side, with bytes and PSNR."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from magc_data.atomic import atomic_file
from magc_data.dataset import MagcDataset, TileSample
from magc_model.config import MapClass, RateMode
from magc_model.diffusion.noise import NoiseWindow
from magc_model.errors import DataError
from magc_model.reconstruct import Reconstructor, Sampling

Picture = UInt8[np.ndarray[Any, Any], "height width 3"]

MARGIN_PX, CAPTION_PX = 8, 20


class Figures(NamedTuple):
    """What a sample cost, and how near it came."""

    key: str
    bytes: int
    """Of the entropy-coded payload."""
    bpp: float
    psnr_db: float


class Row(NamedTuple):
    """A sample and what became of it."""

    sample: TileSample
    reconstruction: Picture
    figures: Figures


def chosen_samples(data: Path, split: str | None, count: int) -> list[TileSample]:
    """At most `count` samples, evenly from all over a dataset.

    Raises:
        DatasetError: no dataset, or no such split.
        DataError: there are no samples.
    """
    dataset = MagcDataset(data, split)
    if not len(dataset):
        raise DataError(f"{data} holds no samples: build a dataset that keeps some tiles")
    places = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)
    return [dataset[int(place)] for place in places]


def measure(
    reconstructor: Reconstructor,
    samples: Sequence[TileSample],
    sampling: Sampling,
    windows: Sequence[NoiseWindow],
    rate: float | None,
) -> list[Row]:
    """Compress samples of one size, decode the payloads again and compare.

    A gained model without `rate` is asked for the middle of its rates.
    """
    config = reconstructor.model.config
    if rate is None and config.rate.mode is RateMode.GAINED:
        rate = (len(config.rate.lambdas) - 1) / 2
    pictures = torch.from_numpy(np.stack([each.image for each in samples]))
    class_ids = torch.from_numpy(np.stack([each.semantic_map for each in samples]))
    height, width = pictures.shape[1:3]
    payloads = [each.payload for each in reconstructor.compress(pictures, class_ids, rate)]
    guides = reconstructor.guides(payloads, (height, width), class_ids, rate)
    reconstructions = reconstructor.reconstruct(guides, class_ids, sampling, windows)
    rows = []
    for sample, payload, reconstruction in zip(samples, payloads, reconstructions.numpy(), strict=True):
        error = float(np.square(sample.image.astype(np.float64) - reconstruction).mean())
        psnr_db = float("inf") if error == 0 else 10 * np.log10(255**2 / error)
        figures = Figures(sample.key, len(payload), 8 * len(payload) / (height * width), float(psnr_db))
        rows.append(Row(sample, reconstruction, figures))
    return rows


def draw(path: Path, rows: Sequence[Row], classes: Sequence[MapClass]) -> None:
    """Write the sheet as PNG."""
    palette = np.zeros((256, 3), np.uint8)
    for each in classes:
        palette[each.id] = each.color
    height, width = rows[0].reconstruction.shape[:2]
    step = height + CAPTION_PX + MARGIN_PX
    sheet = Image.new("RGB", (3 * (width + MARGIN_PX) + MARGIN_PX, len(rows) * step + MARGIN_PX), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (sample, reconstruction, figures) in enumerate(rows):
        top = MARGIN_PX + number * step
        captions = (
            sample.key,
            "map",
            f"{figures.bytes} bytes, {figures.bpp:.4f} bpp, {figures.psnr_db:.1f} dB",
        )
        cells = (sample.image, palette[sample.semantic_map], reconstruction)
        for column, (cell, caption) in enumerate(zip(cells, captions, strict=True)):
            left = MARGIN_PX + column * (width + MARGIN_PX)
            sheet.paste(Image.fromarray(cell), (left, top))
            pen.text((left, top + height + 2), caption, fill="black", font=font)
    with atomic_file(path) as stream:
        sheet.save(stream, format="PNG")
