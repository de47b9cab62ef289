"""BPG and VTM by the programs of the user, where there are some: what the paper compares with.

`bpg:FOLDER` runs `bpgenc` and `bpgdec` (libbpg 0.9); its files count as they are.

`vtm:FOLDER` runs `EncoderApp` and `DecoderApp` (or those with `Static` behind) of VTM, 10 bits, all intra, with
`cfg/encoder_intra_vtm.cfg` of the folder or of the one above, or with `cfg=FILE`. The decoder writes planes without a
size, so that four bytes or less before the stream say it (two varints); they are counted.

magc's tests run these adapters with programs that stand in; the paper's VTM 23.3 has not been run with them.
"""

import re
import tempfile
from pathlib import Path

import numpy as np

from magc_model.errors import EvaluationError
from magc_model.evaluate.codecs.command import hash_of, picture_of, png_of, written
from magc_model.evaluate.codecs.ffmpeg_codecs import MATRIX, is_vvc_picture, nal_units
from magc_model.evaluate.codecs.program import TIMEOUT_S, run_program
from magc_model.evaluate.codecs.protocol import ClassMap, Encoded, Picture
from magc_model.evaluate.codecs.spec import (
    CodecSpec,
    RateScale,
    choice_option,
    number_option,
    rates_of,
    required_argument,
)
from magc_model.evaluate.codecs.yuv import DEPTH_BITS, Chroma, pack_planes, rgb_of, unpack_planes, yuv_of
from magc_model.wire import Reader, varint

_VTM_STEP_PX = 8
_VTM_CFG = "encoder_intra_vtm.cfg"
_SAYS_VERSION = re.compile(r"[Vv]ersion \[?v?(\d[\w.]*)")


class BpgCodec:
    """BPG by bpgenc and bpgdec."""

    uses_map = False
    label = "BPG"

    _SCALE = RateScale("QP", (51, 49, 47, 45, 43, 40), 0, 51, falls=True)
    _ENCODERS = ("x265", "jctvc")

    def __init__(self, spec: CodecSpec) -> None:
        folder = _folder_of(spec)
        self._encoder, self._decoder = program_in(folder, "bpgenc"), program_in(folder, "bpgdec")
        self._chroma = choice_option(spec, "chroma", [str(each) for each in Chroma], Chroma.HALF)
        given = choice_option(spec, "encoder", self._ENCODERS, self._ENCODERS[0]) if "encoder" in spec.options else None
        self._choice = [] if given is None else ["-e", given]
        self._timeout_s = number_option(spec, "timeout", TIMEOUT_S, 0.01, 1e6, whole=False)
        self.name, self.rates = spec.text, rates_of(spec, self._SCALE)
        self.version = f"bpgenc {hash_of(self._encoder)}, bpgdec {hash_of(self._decoder)}"

    def encode(self, picture: Picture, semantic_map: ClassMap | None, rate: float) -> Encoded:  # noqa: ARG002
        """A BPG file."""
        self._SCALE.checked(rate, self.name)
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "input.png", Path(folder) / "output.bpg"
            source.write_bytes(png_of(picture))
            options = ["-q", f"{rate:g}", "-f", self._chroma, *self._choice]
            command = [str(self._encoder), *options, "-o", str(target), str(source)]
            run_program(command, timeout_s=self._timeout_s, folder=Path(folder))
            return Encoded(written(target, command[0]))

    def decode(self, data: bytes, semantic_map: ClassMap | None) -> Picture:  # noqa: ARG002
        """Its pixels."""
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "input.bpg", Path(folder) / "output.png"
            source.write_bytes(data)
            command = [str(self._decoder), "-o", str(target), str(source)]
            run_program(command, timeout_s=self._timeout_s, folder=Path(folder))
            return picture_of(written(target, command[0]), command[0])


class VtmCodec:
    """VVC intra by its reference software."""

    uses_map = False
    label = "VTM"

    _SCALE = RateScale("QP", (63, 60, 57, 54, 51, 48, 45), 0, 63, falls=True)

    def __init__(self, spec: CodecSpec) -> None:
        folder = _folder_of(spec)
        self._encoder = program_in(folder, "EncoderApp", "EncoderAppStatic")
        self._decoder = program_in(folder, "DecoderApp", "DecoderAppStatic")
        self._cfg = _cfg_of(spec, folder)
        self._chroma = Chroma(choice_option(spec, "chroma", [str(each) for each in Chroma], Chroma.HALF))
        self._timeout_s = number_option(spec, "timeout", TIMEOUT_S, 0.01, 1e6, whole=False)
        self.name, self.rates = spec.text, rates_of(spec, self._SCALE)
        hashes = f"{hash_of(self._encoder)}, decoder {hash_of(self._decoder)}, {self._cfg.name} {hash_of(self._cfg)}"
        self.version = f"VTM {_said_version(self._encoder, self._timeout_s)}encoder {hashes}"

    def encode(self, picture: Picture, semantic_map: ClassMap | None, rate: float) -> Encoded:  # noqa: ARG002
        """The size, and the encoder's stream."""
        self._SCALE.checked(rate, self.name)
        height, width = picture.shape[:2]
        rest = [(0, -side % _VTM_STEP_PX) for side in (height, width)]
        filled = np.pad(picture, [*rest, (0, 0)], mode="edge")
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "input.yuv", Path(folder) / "output.vvc"
            source.write_bytes(pack_planes(yuv_of(filled, self._chroma, MATRIX)))
            command = [
                *[str(self._encoder), "-c", str(self._cfg), "-i", str(source), "-b", str(target), "-o", ""],
                *["-wdt", str(filled.shape[1]), "-hgt", str(filled.shape[0]), "-fr", "1", "-f", "1", "-q", f"{rate:g}"],
                *[f"--InputBitDepth={DEPTH_BITS}", f"--OutputBitDepth={DEPTH_BITS}"],
                *[f"--InternalBitDepth={DEPTH_BITS}", f"--InputChromaFormat={self._chroma}"],
                *[f"--ChromaFormatIDC={self._chroma}", "--SEIDecodedPictureHash=0"],
            ]
            run_program(command, timeout_s=self._timeout_s, folder=Path(folder))
            stream = written(target, command[0])
        pictures = [each for each in nal_units(stream) if is_vvc_picture(each)]
        return Encoded(varint(width) + varint(height) + stream, sum(map(len, pictures)))

    def decode(self, data: bytes, semantic_map: ClassMap | None) -> Picture:  # noqa: ARG002
        """What the decoder makes of it."""
        reader = Reader(data)
        width, height = reader.varint(), reader.varint()
        filled = [-(-side // _VTM_STEP_PX) * _VTM_STEP_PX for side in (width, height)]
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "input.vvc", Path(folder) / "output.yuv"
            source.write_bytes(reader.rest())
            command = [str(self._decoder), "-b", str(source), "-o", str(target), "-d", str(DEPTH_BITS)]
            run_program(command, timeout_s=self._timeout_s, folder=Path(folder))
            planes = unpack_planes(written(target, command[0]), filled[0], filled[1], self._chroma)
        return np.ascontiguousarray(rgb_of(planes, MATRIX)[:height, :width])


def open_bpg(spec: CodecSpec) -> BpgCodec:
    """BPG; errors as for `program_in`."""
    return BpgCodec(spec)


def open_vtm(spec: CodecSpec) -> VtmCodec:
    """VTM; errors as for `program_in`."""
    return VtmCodec(spec)


def program_in(folder: Path, *names: str) -> Path:
    """A program in a folder, by one of its names, with `.exe` or without.

    Raises:
        EvaluationError: there is none.
    """
    for name in names:
        for path in (folder / name, folder / f"{name}.exe"):
            if path.is_file():
                return path
    raise EvaluationError(f"{folder} has no {' or '.join(names)}: give the folder where the programs are")


def _folder_of(spec: CodecSpec) -> Path:
    """The folder that was given, or that of the program that was given."""
    path = Path(required_argument(spec, "FOLDER")).expanduser().absolute()
    return path.parent if path.is_file() else path


def _cfg_of(spec: CodecSpec, folder: Path) -> Path:
    if "cfg" in spec.options:
        tried = [Path(spec.options["cfg"]).expanduser().absolute()]
    else:
        tried = [folder / _VTM_CFG, folder / "cfg" / _VTM_CFG, folder.parent / "cfg" / _VTM_CFG]
    for path in tried:
        if path.is_file():
            return path
    raise EvaluationError(f"VTM needs {tried[-1]}, which is no file: give VTM's configuration with cfg=FILE")


def _said_version(program: Path, timeout_s: float) -> str:
    """The version that VTM's encoder begins its help with, where it does."""
    try:
        ran = run_program([str(program), "--help"], timeout_s=min(timeout_s, 60.0))
    except EvaluationError:
        return ""  # not all versions take it as a success; the hash tells them apart
    found = _SAYS_VERSION.search(ran.output.decode(errors="replace"))
    return f"{found[1]}, " if found else ""
