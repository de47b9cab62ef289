"""HEVC, VVC and JPEG XL by the ffmpeg that the package imageio-ffmpeg brings.

    picture ─► sides to a multiple of 8 ─► YUV 4:2:0 ─► Y4M ─► ffmpeg ─► stream ─► one byte before it ─► file

HEVC intra by x265 stands for BPG, which is just that in a smaller box; VVC intra by vvenc stands for VTM. Their files
are the raw stream (Annex B) as their encoders write it, after one byte that says how many columns and rows to cut away.
`stream_bytes` counts the units with coded picture data (slices; of VVC also the filters that they use) alone, without
parameter sets and start codes.
JPEG XL files are bare codestreams, and count as they are. Their size is not monotone in the distance
everywhere: on the whole mosaic 12 takes 2 % more bytes than 9, which is why it is left out of the usual rates.

Settings were measured on 768x768 pixels of the held-out Banepa mosaic, at equal bytes below 0.5 bpp: BT.601 against
BT.709 +0.01 to +0.03 dB; 4:2:0 against 4:4:4 (HEVC) +0.01 to +0.07 dB; vvenc's `slow` against `medium` -0.01 to
+0.03 dB in up to three times the time; x265's chroma offset of 6 -0.1 dB. Everything perceptual is off, as in the
reference software.
"""

import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from magc_model.errors import EvaluationError
from magc_model.evaluate.codecs.pillow_codecs import check_sides
from magc_model.evaluate.codecs.program import TIMEOUT_S, run_program
from magc_model.evaluate.codecs.protocol import ClassMap, Encoded, Picture
from magc_model.evaluate.codecs.spec import CodecSpec, RateScale, choice_option, no_argument, number_option, rates_of
from magc_model.evaluate.codecs.yuv import Chroma, Matrix, pack_y4m, rgb_of, unpack_y4m, yuv_of

MATRIX = Matrix.BT601

_QUIET = ("-hide_banner", "-nostdin", "-loglevel", "error")
_STEP_PX = 8
"""Sides are multiples of it: the smallest blocks of both."""
_X265 = (
    "info=0:log-level=error:pools=none:frame-threads=1:wpp=0:keyint=1:aq-mode=0:psy-rd=0:psy-rdoq=0:"
    "annexb=1:hash=0:aud=0:hrd=0"
)
_VVENC = "accessunitdelimiter=0:decodedpicturehash=0:vuiparameterspresent=0"
_SAID_VERSION = re.compile(r"(?:libvvenc|HEVC encoder) version:? (\S+)")
_START_CODE = re.compile(rb"\x00*\x00\x00\x01")
_VVC_FIRST_SHARED = 12
_VVC_OF_PICTURE = frozenset({17, 18, 19})
"""Adaptation parameter sets and the picture header (table 5 of H.266)."""
_JXL_LARGEST_DISTANCE = 15


class VideoFormat(NamedTuple):
    """A video coder that is given one picture."""

    label: str
    muxer: str
    """ffmpeg's name of the raw stream."""
    chroma: tuple[Chroma, ...]
    """What it can do; the first is usual."""
    presets: tuple[str, ...]
    usual_preset: str
    scale: RateScale
    smallest_px: int
    arguments: Callable[[int, str], list[str]]
    """Of ffmpeg, by QP and preset."""
    is_picture: Callable[[bytes], bool]
    """Whether a unit (NAL unit, from its header on) is coded picture data."""
    encoder: str
    """What ffmpeg calls it."""


def _x265_arguments(qp: int, preset: str) -> list[str]:
    return ["-c:v", "libx265", "-preset", preset, "-qp", str(qp), "-x265-params", _X265]


def _vvenc_arguments(qp: int, preset: str) -> list[str]:
    return ["-c:v", "libvvenc", "-preset", preset, "-qp", str(qp), "-qpa", "0", "-vvenc-params", _VVENC]


def is_vvc_picture(unit: bytes) -> bool:
    """Whether a unit of VVC is a slice, a picture's header or its adaptive filters: not what many pictures share."""
    kind = unit[1] >> 3
    return kind < _VVC_FIRST_SHARED or kind in _VVC_OF_PICTURE


FORMATS = {
    "hevc": VideoFormat(
        "HEVC intra (x265)", "hevc", (Chroma.HALF, Chroma.FULL), ("medium", "slow", "veryslow", "placebo"), "veryslow",
        RateScale("QP", (51, 50, 49, 47, 45, 42), 0, 51, falls=True), 16,
        _x265_arguments, lambda unit: unit[0] >> 1 & 63 < 32, "libx265",
    ),
    "vvc": VideoFormat(
        "VVC intra (vvenc)", "vvc", (Chroma.HALF,), ("faster", "fast", "medium", "slow", "slower"), "medium",
        RateScale("QP", (63, 60, 57, 54, 51, 48, 45), 0, 63, falls=True), 16,
        _vvenc_arguments, is_vvc_picture, "libvvenc",
    ),
}  # fmt: skip
"""By the codec's name."""


@functools.cache
def ffmpeg_program() -> str:
    """Where the binary is.

    Raises:
        ModuleNotFoundError: imageio-ffmpeg is not installed.
        EvaluationError: it brings no ffmpeg for this machine.
    """
    import imageio_ffmpeg

    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise EvaluationError(
            f"imageio-ffmpeg has no ffmpeg here ({error}): name one in the environment variable IMAGEIO_FFMPEG_EXE"
        ) from None


class VideoCodec:
    """A video coder, for single pictures."""

    uses_map = False

    def __init__(self, spec: CodecSpec, format_: VideoFormat) -> None:
        no_argument(spec)
        self._preset = choice_option(spec, "preset", format_.presets, format_.usual_preset)
        self._chroma = Chroma(choice_option(spec, "chroma", [str(each) for each in format_.chroma], format_.chroma[0]))
        self._timeout_s = timeout_of(spec)
        self.name, self.label = spec.text, format_.label
        self.rates = rates_of(spec, format_.scale)
        self._format = format_
        self._program = encoder_program(format_.encoder, format_.label)
        self.version = f"{library_version(self._program, format_.encoder)}, {ffmpeg_version(self._program)}"

    def encode(self, picture: Picture, semantic_map: ClassMap | None, rate: float) -> Encoded:  # noqa: ARG002
        """A byte for what is too much, and the stream."""
        codec = self._format
        codec.scale.checked(rate, self.name)
        check_sides(picture, codec.label, 1, 8192)
        filled, cut = filled_to(picture, _STEP_PX, codec.smallest_px)
        stream = self._run(
            ["-f", "yuv4mpegpipe", "-i", "pipe:0", *codec.arguments(int(rate), self._preset), "-f", codec.muxer],
            pack_y4m(yuv_of(filled, self._chroma, MATRIX)),
        )
        return Encoded(cut + stream, sum(len(each) for each in nal_units(stream) if codec.is_picture(each)))

    def decode(self, data: bytes, semantic_map: ClassMap | None) -> Picture:  # noqa: ARG002
        """What ffmpeg decodes the stream to, without what is too much."""
        planes = self._run(
            ["-f", self._format.muxer, "-i", "pipe:0", "-frames:v", "1", "-strict", "-1", "-f", "yuv4mpegpipe"],
            data[1:],
        )
        return cut_back(rgb_of(unpack_y4m(planes), MATRIX), data)

    def _run(self, arguments: list[str], data: bytes) -> bytes:
        return run_ffmpeg(self._program, arguments, data, self._timeout_s)


class JpegXlCodec:
    """JPEG XL, lossy, by libjxl."""

    uses_map = False
    label = "JPEG XL"

    _SCALE = RateScale("distance", (15, 9, 7, 5), 0.1, _JXL_LARGEST_DISTANCE, falls=True, whole=False)
    _EFFORT = 9.0

    def __init__(self, spec: CodecSpec) -> None:
        no_argument(spec)
        self._effort = int(number_option(spec, "effort", self._EFFORT, 1.0, 9.0))
        self._timeout_s = timeout_of(spec)
        self.name = spec.text
        self.rates = rates_of(spec, self._SCALE)
        self._program = encoder_program("libjxl", self.label)
        self.version = f"libjxl of {ffmpeg_version(self._program)}"

    def encode(self, picture: Picture, semantic_map: ClassMap | None, rate: float) -> Encoded:  # noqa: ARG002
        """A codestream."""
        self._SCALE.checked(rate, self.name)
        check_sides(picture, self.label, 1, 65535)
        arguments = ["-f", "image2pipe", "-c:v", "ppm", "-i", "pipe:0", "-c:v", "libjxl"]
        quality = ["-distance", f"{rate:g}", "-effort", str(self._effort), "-f", "image2pipe"]
        data = run_ffmpeg(self._program, [*arguments, *quality], pack_ppm(picture), self._timeout_s)
        return Encoded(data, len(data))

    def decode(self, data: bytes, semantic_map: ClassMap | None) -> Picture:  # noqa: ARG002
        """Its pixels."""
        arguments = ["-f", "jpegxl_pipe", "-i", "pipe:0", "-pix_fmt", "rgb24", "-c:v", "ppm", "-f", "image2pipe"]
        return unpack_ppm(run_ffmpeg(self._program, arguments, data, self._timeout_s))


def open_ffmpeg(spec: CodecSpec) -> VideoCodec | JpegXlCodec:
    """HEVC, VVC or JPEG XL.

    Raises:
        UsageError: an argument or option does not fit.
        EvaluationError: there is no ffmpeg, or it cannot do that.
    """
    return JpegXlCodec(spec) if spec.name == "jxl" else VideoCodec(spec, FORMATS[spec.name])


def timeout_of(spec: CodecSpec) -> float:
    """How long a program may take for one picture, in seconds."""
    return number_option(spec, "timeout", TIMEOUT_S, 0.01, 1e6, whole=False)


def run_ffmpeg(program: str, arguments: list[str], data: bytes, timeout_s: float) -> bytes:
    """Bytes through ffmpeg, in one thread.

    Raises:
        EvaluationError: it fails, gives nothing, or takes too long.
    """
    one_thread = ["-threads", "1", "-filter_threads", "1"]
    output = run_program(
        [program, *_QUIET, *one_thread, *arguments, *one_thread[:2], "pipe:1"], data=data, timeout_s=timeout_s
    ).output
    if not output:
        raise EvaluationError("ffmpeg gave nothing and said nothing: the file that it was given is damaged")
    return output


@functools.cache
def encoder_program(encoder: str, label: str) -> str:
    """The ffmpeg that has an encoder.

    Raises:
        EvaluationError: it has not.
    """
    program = ffmpeg_program()
    listed = run_program([program, "-hide_banner", "-encoders"], timeout_s=60.0).output.decode()
    if encoder not in listed.split():
        raise EvaluationError(
            f"{program} has no {encoder}, which {label} needs: install imageio-ffmpeg from PyPI, or name another "
            "ffmpeg in the environment variable IMAGEIO_FFMPEG_EXE"
        )
    return program


@functools.cache
def ffmpeg_version(program: str) -> str:
    """Its own name for itself."""
    first = run_program([program, "-version"], timeout_s=60.0).output.decode(errors="replace").partition("\n")[0]
    return " ".join(first.split()[:3]).replace(" version", "")


@functools.cache
def library_version(program: str, encoder: str) -> str:
    """An encoder inside of ffmpeg, by the version that it says when it is used; alone its name where it says none."""
    source = ["-f", "lavfi", "-i", "color=size=64x64", "-frames:v", "1", "-pix_fmt", "yuv420p10le"]
    said = run_program(
        [program, "-hide_banner", "-nostdin", *source, "-c:v", encoder, "-f", "null", "-"], timeout_s=60.0
    ).said
    found = _SAID_VERSION.search(said)
    return f"{encoder} {found[1]}" if found else encoder


def nal_units(stream: bytes) -> list[bytes]:
    """The units of a raw HEVC or VVC stream, without their start codes."""
    return [each for each in _START_CODE.split(stream) if each]


def filled_to(picture: Picture, step_px: int, smallest_px: int) -> tuple[Picture, bytes]:
    """A picture with its last column and row repeated to multiples of a step, and the byte that says how often.

    The byte's lower half counts columns, its upper half rows.
    """
    missing = [max(smallest_px - side, -side % step_px) for side in picture.shape[:2]]
    filled = np.pad(picture, [(0, missing[0]), (0, missing[1]), (0, 0)], mode="edge")
    return filled, bytes([missing[0] << 4 | missing[1]])


def cut_back(picture: Picture, data: bytes) -> Picture:
    """A picture without the columns and rows that a file's first byte counts."""
    rows, columns = data[0] >> 4, data[0] & 15
    return np.ascontiguousarray(picture[: picture.shape[0] - rows, : picture.shape[1] - columns])


def pack_ppm(picture: Picture) -> bytes:
    """A PPM file."""
    return f"P6 {picture.shape[1]} {picture.shape[0]} 255\n".encode() + picture.tobytes()


def unpack_ppm(data: bytes) -> Picture:
    """The pixels of a PPM file.

    Raises:
        EvaluationError: it is none of 8 bits.
    """
    found = re.match(rb"P6\s+(\d+)\s+(\d+)\s+255\s", data)
    if not found:
        raise EvaluationError(f"the decoder gave no 8-bit PPM picture but {data[:20]!r}: use another build of it")
    width, height = int(found[1]), int(found[2])
    return np.frombuffer(data[found.end() :], np.uint8).reshape(height, width, 3).copy()
