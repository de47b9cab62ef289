"""Pictures for reports in tests: drawn here, compressed for real."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from magc_model.evaluate.report.pictures import Decoded, Example

if TYPE_CHECKING:
    from magc_model.evaluate.measurement import On
    from magc_model.evaluate.results import Results


def drawn_picture(seed: int, side_px: int = 128) -> np.ndarray:
    """Roofs on a soft ground."""
    generator = np.random.default_rng(seed)
    ground = generator.normal(120, 18, (side_px // 16, side_px // 16, 3))
    picture = np.asarray(
        Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8)).resize((side_px, side_px), Image.Resampling.BICUBIC)
    ).copy()
    for _ in range(14):
        x, y = generator.integers(0, side_px - 24, 2)
        width, height = generator.integers(8, 24, 2)
        picture[y : y + height, x : x + width] = generator.integers(60, 240, 3)
    return picture


def jpeg(picture: np.ndarray, quality: int) -> tuple[np.ndarray, int]:
    """What is left of a picture, and the bytes it took."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(io.BytesIO(stream.getvalue())).convert("RGB")), len(stream.getvalue())


def drawn_examples(results: Results, on: On, count: int = 2) -> list[Example]:
    """Every codec at every rate, all of them JPEG in truth."""
    examples = []
    for number in range(count):
        original = drawn_picture(number)
        decoded = []
        for codec in results.codecs:
            for step, point in enumerate(results.curve(codec.name, on)):
                left, _ = jpeg(original, 3 + 12 * step)
                decoded.append(Decoded(codec.name, point.rate, left, round((point.bpp.value or 0) * 8192), 65536))
        colored = np.full_like(original, 200)
        colored[32:64, 32:64] = (194, 85, 63)
        examples.append(Example(f"18_{number}_0", on, f"place {number}", original, colored, tuple(decoded)))
    return examples
