"""RGB to luma and chroma planes and back, and the Y4M files that video coders read and write. Pure.

Both directions are here, in plain arithmetic, so that no program's idea of matrices, ranges and chroma places comes
between a picture and its codec: 10 bits, chroma samples (4:2:0) in the middle of their four pixels.
"""

from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, UInt16

from magc_model.errors import EvaluationError
from magc_model.evaluate.codecs.protocol import Picture

DEPTH_BITS = 10

Plane = UInt16[np.ndarray[Any, Any], "_height _width"]
_Values = Float64[np.ndarray[Any, Any], "_height _width"]


class Chroma(StrEnum):
    """How many chroma samples there are: one for four pixels, or one for each."""

    HALF = "420"
    FULL = "444"


class Matrix(StrEnum):
    """Which weights make luma (Recommendations ITU-R BT.601 and BT.709)."""

    BT601 = "bt601"
    BT709 = "bt709"


_WEIGHTS = {Matrix.BT601: (0.299, 0.114), Matrix.BT709: (0.2126, 0.0722)}
"""Of red and blue in luma."""
_UNIT = 1 << DEPTH_BITS - 8
_LUMA_BLACK, _LUMA_SPAN = 16.0 * _UNIT, 219.0 * _UNIT
_CHROMA_GREY, _CHROMA_SPAN = 128.0 * _UNIT, 224.0 * _UNIT
_LARGEST = (1 << DEPTH_BITS) - 1


class YuvPicture(NamedTuple):
    """Luma and chroma in limited range, 10 bits."""

    luma: Plane
    blue: Plane
    """Cb, of half the luma's sides in 4:2:0."""
    red: Plane
    """Cr, likewise."""

    @property
    def chroma(self) -> Chroma:
        """By the planes' sizes."""
        return Chroma.FULL if self.luma.shape == self.blue.shape else Chroma.HALF


def yuv_of(picture: Picture, chroma: Chroma, matrix: Matrix) -> YuvPicture:
    """A picture's planes; its sides must be even for 4:2:0."""
    red_weight, blue_weight = _WEIGHTS[matrix]
    red, green, blue = (picture[..., band].astype(np.float64) / 255 for band in range(3))
    luma = red_weight * red + (1 - red_weight - blue_weight) * green + blue_weight * blue
    differences = ((blue - luma) / (2 * (1 - blue_weight)), (red - luma) / (2 * (1 - red_weight)))
    planes = [_halved(each) if chroma is Chroma.HALF else each for each in differences]
    return YuvPicture(
        _quantised(_LUMA_BLACK + _LUMA_SPAN * luma),
        *(_quantised(_CHROMA_GREY + _CHROMA_SPAN * each) for each in planes),
    )


def rgb_of(planes: YuvPicture, matrix: Matrix) -> Picture:
    """The picture of planes."""
    red_weight, blue_weight = _WEIGHTS[matrix]
    luma = (planes.luma.astype(np.float64) - _LUMA_BLACK) / _LUMA_SPAN
    blue, red = ((each.astype(np.float64) - _CHROMA_GREY) / _CHROMA_SPAN for each in (planes.blue, planes.red))
    if planes.chroma is Chroma.HALF:
        blue, red = _doubled(blue), _doubled(red)
    red = luma + 2 * (1 - red_weight) * red
    blue = luma + 2 * (1 - blue_weight) * blue
    green = (luma - red_weight * red - blue_weight * blue) / (1 - red_weight - blue_weight)
    return np.rint(np.clip(np.stack([red, green, blue], axis=-1), 0, 1) * 255).astype(np.uint8)


def pack_planes(planes: YuvPicture) -> bytes:
    """One plane after the other, two bytes a sample, the lower one first: what a raw `.yuv` file holds."""
    return b"".join(each.astype("<u2").tobytes() for each in planes)


def unpack_planes(data: bytes, width_px: int, height_px: int, chroma: Chroma) -> YuvPicture:
    """The planes of a raw file of one picture.

    Raises:
        EvaluationError: it has another size.
    """
    divisor = 2 if chroma is Chroma.HALF else 1
    shapes = [(height_px, width_px), *[(height_px // divisor, width_px // divisor)] * 2]
    counts = [height * width for height, width in shapes]
    if len(data) != 2 * sum(counts):
        raise EvaluationError(
            f"the decoder gave {len(data)} bytes of planes where a picture of {width_px}x{height_px} has "
            f"{2 * sum(counts)}: it is not of the format that was asked for"
        )
    parts = np.split(np.frombuffer(data, "<u2").astype(np.uint16), np.cumsum(counts)[:-1])
    return YuvPicture(*(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)))


def pack_y4m(planes: YuvPicture) -> bytes:
    """A Y4M file of one frame."""
    height, width = planes.luma.shape
    head = f"YUV4MPEG2 W{width} H{height} F1:1 Ip A1:1 C{planes.chroma}p10 XYSCSS={planes.chroma}P10\nFRAME\n"
    return head.encode() + pack_planes(planes)


def unpack_y4m(data: bytes) -> YuvPicture:
    """The planes of a Y4M file of one frame.

    Raises:
        EvaluationError: it is none, or not of 10 bits.
    """
    head, _, rest = data.partition(b"\n")
    marker, _, samples = rest.partition(b"\n")
    fields = {each[:1]: each[1:] for each in head.decode("latin-1").split(" ")[1:]}
    kinds = {f"{each}p10": each for each in Chroma}
    if not head.startswith(b"YUV4MPEG2 ") or not marker.startswith(b"FRAME") or fields.get("C") not in kinds:
        raise EvaluationError(f"the decoder gave no 10-bit Y4M picture but '{head[:60]!r}': use another build of it")
    return unpack_planes(samples, int(fields["W"]), int(fields["H"]), kinds[fields["C"]])


def _quantised(values: _Values) -> Plane:
    return np.asarray(np.rint(np.clip(values, 0, _LARGEST)), np.uint16)


def _halved(values: _Values) -> _Values:
    height, width = values.shape
    return np.asarray(values.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3)))


def _doubled(values: _Values) -> _Values:
    """Twice the size, linearly between the centres of samples."""
    for axis in (0, 1):
        moved = np.moveaxis(values, axis, 0)
        before = np.concatenate([moved[:1], moved[:-1]])
        after = np.concatenate([moved[1:], moved[-1:]])
        pairs = np.stack([0.75 * moved + 0.25 * before, 0.75 * moved + 0.25 * after], axis=1)
        values = np.moveaxis(pairs.reshape(2 * len(moved), *moved.shape[1:]), 0, axis)
    return values
