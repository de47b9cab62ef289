"""All codecs by name: `jpeg2000`, `magc:tiny`, `magc:runs/stage2/model,steps=20`, `vtm:/opt/vtm/bin`.

    NAME[:ARGUMENT][,OPTION=VALUE...]        grammar: spec.py

What a codec needs is imported when it is opened.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

from magc_model.errors import EvaluationError, UsageError
from magc_model.evaluate.codecs.protocol import ImageCodec
from magc_model.evaluate.codecs.spec import RATES, closest, parse_spec
from magc_model.evaluate.codecs.spec import CodecSpec as CodecSpec  # what opens a codec takes one
from magc_model.evaluate.codecs.spec import Options as Options


class CodecEntry(NamedTuple):
    """One kind of codec."""

    open: Callable[[CodecSpec], ImageCodec]
    """Raises UsageError where argument or options do not fit, EvaluationError where what it needs is absent."""
    options: tuple[str, ...]
    """Names of the options that it takes; `rates=1/2/3` is everyone's."""
    help: str
    """One line for `magc codecs`."""


def _from(module: str, function: str) -> Callable[[CodecSpec], ImageCodec]:
    """What opens a codec, imported at its first use."""

    def open_it(spec: CodecSpec) -> ImageCodec:
        path = f"{__package__}.{module}"
        try:
            opened: ImageCodec = getattr(importlib.import_module(path), function)(spec)
        except ModuleNotFoundError as error:
            if error.name != path:
                raise  # a package, which the command line names
            raise EvaluationError(f"this magc has no codec '{spec.name}': leave it away, or install another") from None
        return opened

    return open_it


_PILLOW, _FFMPEG = _from("pillow_codecs", "open_pillow"), _from("ffmpeg_codecs", "open_ffmpeg")
_COMMAND = _from("command", "open_command")
_SCRIPT = "(magc has not been run with it): PROGRAM encode RATE IN.png OUT, PROGRAM decode IN OUT.png; needs rates="

CODECS: Mapping[str, CodecEntry] = {
    "jpeg": CodecEntry(_PILLOW, ("chroma",), "JPEG by Pillow; rates are qualities"),
    "jpeg2000": CodecEntry(_PILLOW, (), "JPEG 2000 (9/7, bare codestream) by Pillow; rates are bits a pixel"),
    "webp": CodecEntry(_PILLOW, (), "WebP, lossy, by Pillow; rates are qualities"),
    "avif": CodecEntry(_PILLOW, ("chroma", "speed", "tune"), "AVIF (libaom) by Pillow; rates are qualities"),
    "hevc": CodecEntry(
        _FFMPEG, ("chroma", "preset", "timeout"), "HEVC intra (x265) by imageio-ffmpeg, for BPG; rates are QPs"
    ),
    "vvc": CodecEntry(
        _FFMPEG, ("chroma", "preset", "timeout"), "VVC intra (vvenc) by imageio-ffmpeg, for VTM; rates are QPs"
    ),
    "jxl": CodecEntry(_FFMPEG, ("effort", "timeout"), "JPEG XL by imageio-ffmpeg; rates are Butteraugli distances"),
    "magc": CodecEntry(
        _from("magc", "open_magc"),
        ("map", "only", "steps", "sampler", "start_t", "fidelity", "seed", "chunk"),
        "magc[:MODEL[+MODEL...]]: MAGC with the model in the box or another; rates are qualities, 1 to 6",
    ),
    "baseline": CodecEntry(
        _from("learned", "open"), (), "baseline:RUN[+RUN...]: learned codecs trained by `magc-train baseline`"
    ),
    "bpg": CodecEntry(
        _from("external", "open_bpg"),
        ("chroma", "encoder", "timeout"),
        "bpg:FOLDER: bpgenc and bpgdec of that folder; rates are QPs",
    ),
    "vtm": CodecEntry(
        _from("external", "open_vtm"),
        ("cfg", "chroma", "timeout"),
        "vtm:FOLDER: VTM's EncoderApp and DecoderApp of that folder, with its cfg; rates are QPs",
    ),
    "command": CodecEntry(
        _COMMAND, ("timeout",), "command:FILE.toml: any program or checkpoint, by the command lines in a file"
    ),
    "stf": CodecEntry(_COMMAND, ("timeout",), f"stf:PROGRAM: STF {_SCRIPT}"),
    "hl-rscompnet": CodecEntry(_COMMAND, ("timeout",), f"hl-rscompnet:PROGRAM: HL-RSCompNet {_SCRIPT}"),
}

STANDARD = ("jpeg", "jpeg2000", "webp", "avif", "hevc", "vvc")
"""What MAGC is compared with unless told otherwise: all that comes with pip."""


def open_codec(text: str) -> ImageCodec:
    """The codec that a text asks for.

    Raises:
        UsageError: no such codec, argument or option.
        EvaluationError: what it needs is absent here.
        ModuleNotFoundError: a package is.
    """
    spec = checked_spec(text)
    return CODECS[spec.name].open(spec)


def checked_spec(text: str, codecs: Mapping[str, CodecEntry] = CODECS) -> CodecSpec:
    """The parts of a text, with a name and options that there are; nothing is opened.

    Raises:
        UsageError: there are none such.
    """
    spec = parse_spec(text)
    if spec.name not in codecs:
        raise UsageError(f"there is no codec '{spec.name}': {closest(spec.name, codecs)}")
    allowed = (*codecs[spec.name].options, RATES)
    for option in spec.options:
        if option not in allowed:
            raise UsageError(f"{spec.name} has no option '{option}': {closest(option, allowed)}")
    return spec


def listed(codecs: Mapping[str, CodecEntry] = CODECS) -> str:
    """All of them with their options, for `magc codecs`."""
    lines = []
    for name, entry in codecs.items():
        lines += [f"{name:14}{entry.help}", f"{'':14}options: {', '.join((*entry.options, RATES))}"]
    return "\n".join(lines)
