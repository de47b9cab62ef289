"""JPEG, JPEG 2000, WebP and AVIF by Pillow, each at the best that its encoder does in bearable time.

What counts as the file is the smallest that common software opens: without metadata, and JPEG 2000 as a bare codestream
(`.j2k`), which has no boxes around it, and whose comment is left out. What counts as the stream:

    JPEG       the file without application segments and comments (APPn, COM)
    JPEG 2000  the codestream: all of the file
    WebP       what the VP8 chunk holds
    AVIF       what the `mdat` box holds: the coded frame, as its `iloc` box points at it

AVIF is made with libaom's tuning for SSIM and limited range: at equal bytes its PSNR is that of the tunings for PSNR
and `iq` (libavif's own choice) within 0.1 dB on the held-out Banepa mosaic, and its smallest file is 0.04 bpp there
instead of 0.09.
"""

import importlib
import io
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import PIL
import PIL.features
import PIL.Image

from magc_model.errors import EvaluationError, UsageError
from magc_model.evaluate.codecs.protocol import ClassMap, Encoded, Picture
from magc_model.evaluate.codecs.spec import CodecSpec, RateScale, choice_option, no_argument, number_option, rates_of

_CHROMA = {"420": "4:2:0", "444": "4:4:4"}
_AVIF_SPEED = 4.0
"""Where 1536x1536 pixels take 5 to 20 s; 3 to 0 take two to eight times as long for 0.02 to 0.09 dB at equal bytes."""
_AVIF_TUNES = ("ssim", "psnr", "iq")
_WEBP_EFFORT = 6
_BITS_A_PIXEL = 24

_START_OF_SCAN, _RESTARTS = 0xDA, range(0xD0, 0xD8)
_ALONE = frozenset({0x01, 0xD8, 0xD9, *_RESTARTS})
"""JPEG's markers without a segment."""
_NEEDLESS = frozenset({*range(0xE0, 0xF0), 0xFE})
"""APPn and COM."""
_J2K_COMMENT, _J2K_TILE = 0x64, 0x90


class Segment(NamedTuple):
    """A part of a JPEG or JPEG 2000 file."""

    marker: int
    data: bytes
    """With its marker; for the start of a scan with all that follows."""


class PillowFormat(NamedTuple):
    """One file format."""

    kind: str
    """Pillow's name of it."""
    label: str
    feature: str
    """What Pillow calls the ability."""
    libraries: Callable[[], str]
    """What does the work, with versions."""
    scale: RateScale
    sides_px: tuple[int, int]
    """Smallest and largest side."""
    variants: Callable[[float, CodecSpec], list[dict[str, Any]]]
    """Ways to save at a rate; the smallest file of them is taken."""
    trimmed: Callable[[bytes], bytes]
    """The file without what no decoder needs."""
    stream_bytes: Callable[[bytes], int]


class PillowCodec:
    """A file format, through Pillow."""

    uses_map = False

    def __init__(self, spec: CodecSpec, format_: PillowFormat) -> None:
        no_argument(spec)
        if not PIL.features.check(format_.feature):
            raise EvaluationError(
                f"this Pillow ({PIL.__version__}) was built without {format_.label}: "
                "install one from PyPI, or leave the codec away"
            )
        self.name, self.label = spec.text, format_.label
        self.version = f"Pillow {PIL.__version__}, {format_.libraries()}"
        self.rates = rates_of(spec, format_.scale)
        self._spec, self._format = spec, format_
        format_.variants(self.rates[0], spec)  # options are refused now, not in the midst of a run

    def encode(self, picture: Picture, semantic_map: ClassMap | None, rate: float) -> Encoded:  # noqa: ARG002
        """A file; errors are EvaluationError where the format has no such size."""
        codec = self._format
        codec.scale.checked(rate, self.name)
        check_sides(picture, codec.label, *codec.sides_px)
        files = [_saved(picture, codec, each) for each in codec.variants(rate, self._spec)]
        data = codec.trimmed(min(files, key=len))
        return Encoded(data, codec.stream_bytes(data))

    def decode(self, data: bytes, semantic_map: ClassMap | None) -> Picture:  # noqa: ARG002
        """Its pixels."""
        try:
            with PIL.Image.open(io.BytesIO(data), formats=[self._format.kind]) as image:
                return np.array(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
            raise EvaluationError(
                f"{self.label} cannot read its own file ({' '.join(str(error).split())}): it is damaged"
            ) from None


def check_sides(picture: Picture, label: str, smallest_px: int, largest_px: int) -> None:
    """Refuse a picture that a format cannot hold.

    Raises:
        EvaluationError: a side is too short or too long.
    """
    height, width = picture.shape[:2]
    if not smallest_px <= min(height, width) <= max(height, width) <= largest_px:
        raise EvaluationError(
            f"the picture has {width}x{height} pixels, {label} takes sides of {smallest_px} to {largest_px}: "
            "leave it away, or use other pictures"
        )


def _saved(picture: Picture, codec: PillowFormat, options: Mapping[str, Any]) -> bytes:
    stream = io.BytesIO()
    try:
        PIL.Image.fromarray(picture).save(stream, codec.kind, **options)
    except (OSError, ValueError) as error:
        size = f"{picture.shape[1]}x{picture.shape[0]}"
        raise EvaluationError(f"{codec.label} cannot encode {size} pixels: {' '.join(str(error).split())}") from None
    return stream.getvalue()


def _jpeg_variants(rate: float, spec: CodecSpec) -> list[dict[str, Any]]:
    chroma = _CHROMA[choice_option(spec, "chroma", _CHROMA, "420")]
    usual = {"quality": int(rate), "subsampling": chroma, "optimize": True}
    return [{**usual, "progressive": progressive} for progressive in (True, False)]


def _jpeg2000_variants(rate: float, spec: CodecSpec) -> list[dict[str, Any]]:  # noqa: ARG001
    return [{"no_jp2": True, "irreversible": True, "mct": 1, "quality_mode": "rates",
             "quality_layers": [_BITS_A_PIXEL / rate]}]  # fmt: skip


def _webp_variants(rate: float, spec: CodecSpec) -> list[dict[str, Any]]:  # noqa: ARG001
    return [{"quality": int(rate), "method": _WEBP_EFFORT}]


def _avif_variants(rate: float, spec: CodecSpec) -> list[dict[str, Any]]:
    return [{
        "quality": int(rate), "speed": int(number_option(spec, "speed", _AVIF_SPEED, 0.0, 10.0)),
        "max_threads": 1, "range": "limited",
        "subsampling": _CHROMA[choice_option(spec, "chroma", _CHROMA, "420")],
        "advanced": {"tune": choice_option(spec, "tune", _AVIF_TUNES, _AVIF_TUNES[0])},
    }]  # fmt: skip


def jpeg_segments(data: bytes) -> Iterator[Segment]:
    """A JPEG file's parts; everything from the first scan on is one."""
    place = 0
    while place + 2 <= len(data):
        marker = data[place + 1]
        if marker == _START_OF_SCAN:
            yield Segment(marker, data[place:])
            return
        length = 2 if marker in _ALONE else 2 + struct.unpack_from(">H", data, place + 2)[0]
        yield Segment(marker, data[place : place + length])
        place += length


def _jpeg_stream(data: bytes) -> int:
    return sum(len(each.data) for each in jpeg_segments(data) if each.marker not in _NEEDLESS)


def without_comments(codestream: bytes) -> bytes:
    """A JPEG 2000 codestream without the comments of its main header: who made it, in 37 bytes."""
    parts, place = [codestream[:2]], 2
    while codestream[place + 1] != _J2K_TILE:
        length = 2 + struct.unpack_from(">H", codestream, place + 2)[0]
        if codestream[place + 1] != _J2K_COMMENT:
            parts.append(codestream[place : place + length])
        place += length
    return b"".join([*parts, codestream[place:]])


def _webp_stream(data: bytes) -> int:
    """Chunks after the RIFF header; their contents are filled up to an even length, which is not counted."""
    place, total = 12, 0
    while place + 8 <= len(data):
        [length] = struct.unpack_from("<I", data, place + 4)
        total += length if data[place : place + 3] == b"VP8" and data[place : place + 4] != b"VP8X" else 0
        place += 8 + length + length % 2
    return total


def _avif_stream(data: bytes) -> int:
    place, total = 0, 0
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        head = 8
        if length == 1:  # the length is the next eight bytes
            [length], head = struct.unpack_from(">Q", data, place + 8), 16
        length = length or len(data) - place
        total += length - head if kind == b"mdat" else 0
        place += length
    return total


def _versions(*libraries: str) -> Callable[[], str]:
    """Names of libraries as they are known, each with what Pillow says of its version."""

    def described() -> str:
        return ", ".join(f"{each} {PIL.features.version(_FEATURES[each])}" for each in libraries)

    return described


def _avif_versions() -> str:
    # Pillow says of which version libavif is; what codes and decodes for it, only its own module knows.
    coders = importlib.import_module("PIL._avif").codec_versions()
    return f"{_versions('libavif')()}, {coders}"


_FEATURES = {"libjpeg-turbo": "libjpeg_turbo", "OpenJPEG": "jpg_2000", "libwebp": "webp", "libavif": "avif"}


def _as_it_is(data: bytes) -> bytes:
    return data


_QUALITY = "quality"
FORMATS = {
    "jpeg": PillowFormat(
        "JPEG", "JPEG", "jpg", _versions("libjpeg-turbo"), RateScale(_QUALITY, (1, 3, 4, 5, 6, 8), 1, 95), (1, 65535),
        _jpeg_variants, _as_it_is, _jpeg_stream,
    ),
    "jpeg2000": PillowFormat(
        "JPEG2000", "JPEG 2000", "jpg_2000", _versions("OpenJPEG"),
        RateScale("bits a pixel", (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3), 0.001, 24, whole=False), (1, 65535),
        _jpeg2000_variants, without_comments, len,
    ),
    "webp": PillowFormat(
        "WEBP", "WebP", "webp", _versions("libwebp"), RateScale(_QUALITY, (0, 1, 2, 5), 0, 100), (1, 16383),
        _webp_variants, _as_it_is, _webp_stream,
    ),
    "avif": PillowFormat(
        "AVIF", "AVIF", "avif", _avif_versions, RateScale(_QUALITY, (0, 2, 5, 10, 15), 0, 100), (1, 65535),
        _avif_variants, _as_it_is, _avif_stream,
    ),
}  # fmt: skip
"""By the codec's name."""


def open_pillow(spec: CodecSpec) -> PillowCodec:
    """One of `FORMATS`.

    Raises:
        UsageError: an argument or option does not fit.
        EvaluationError: Pillow has no such format here.
    """
    if spec.name not in FORMATS:
        raise UsageError(f"{spec.name} is none of Pillow's formats: expected one of {', '.join(FORMATS)}")
    return PillowCodec(spec, FORMATS[spec.name])
