"""Example pictures of a report: the same place as the original, the map, and every codec at every rate have it.

They are in the page without further loss, as lossless WebP: what is compared is the codecs.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from magc_model.errors import EvaluationError
from magc_model.evaluate.codecs.protocol import Picture
from magc_model.evaluate.measurement import On
from magc_model.evaluate.results import CodecInfo

LIMIT_BYTES = 32_000_000
"""Of all pictures in a page, as they stand in it."""

_EFFORT = 2  # the slower ones save a few per cent in several times the time


class Decoded(NamedTuple):
    """What a codec made of a place."""

    codec: str
    rate: float
    picture: Picture
    file_bytes: int | None
    """Of the whole tile or scene; none where it is not known."""
    file_px: int
    """Pixels of the whole tile or scene."""


class Example(NamedTuple):
    """A place to look at: a tile, or a cut of a scene."""

    key: str
    on: On
    about: str
    """Where it is, for people: "the most buildings", "row 2, column 3 of the scene"."""
    original: Picture
    colored_map: Picture | None
    decoded: tuple[Decoded, ...]


class Embedded(NamedTuple):
    """What of the examples is in a page."""

    examples: tuple[dict[str, Any], ...]
    """As the page's script has them."""
    left_out: int
    """Examples that did not fit."""


def embed(examples: Iterable[Example], codecs: Sequence[CodecInfo], limit_bytes: int = LIMIT_BYTES) -> Embedded:
    """Examples as the page has them, one after the other until the limit.

    Raises:
        EvaluationError: an example is of another size than its original, or of a codec that there is not.
    """
    numbers = {each.name: place for place, each in enumerate(codecs)}
    held: list[dict[str, Any]] = []
    left_out = total = 0
    for example in examples:
        if left_out:
            left_out += 1
            continue
        document = _document(example, numbers)
        size = sum(len(each["uri"]) for each in document["decoded"]) + len(document["original"])
        if held and total + size > limit_bytes:
            left_out += 1
            continue
        total += size
        held.append(document)
    return Embedded(tuple(held), left_out)


def _document(example: Example, numbers: dict[str, int]) -> dict[str, Any]:
    decoded = []
    for each in example.decoded:
        if each.codec not in numbers or each.picture.shape != example.original.shape:
            found, expected = (f"{one.shape[1]} x {one.shape[0]} px" for one in (each.picture, example.original))
            raise EvaluationError(
                f"the picture of {example.key} by {each.codec} is {found}: expected {expected} as the original, by one "
                "of the codecs described"
            )
        decoded.append(
            {
                "codec": numbers[each.codec],
                "rate": each.rate,
                "bytes": each.file_bytes,
                "bpp": None if each.file_bytes is None else round(8 * each.file_bytes / each.file_px, 6),
                "psnr_db": psnr_db(example.original, each.picture),
                "uri": data_uri(each.picture),
            }
        )
    decoded.sort(key=lambda each: (each["codec"], each["bpp"] or 0.0))
    height, width = example.original.shape[:2]
    return {
        "key": example.key,
        "on": str(example.on),
        "about": example.about,
        "width": width,
        "height": height,
        "original": data_uri(example.original),
        "map": None if example.colored_map is None else data_uri(example.colored_map),
        "decoded": decoded,
    }


def psnr_db(original: Picture, decoded: Picture) -> float | None:
    """Of all three channels; None where the two are equal."""
    error = float(np.square(original.astype(np.float64) - decoded).mean())
    return None if error == 0 else round(float(10 * np.log10(255**2 / error)), 2)


def data_uri(picture: Picture) -> str:
    """A picture inside a page."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "WEBP", lossless=True, method=_EFFORT, quality=50)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()
