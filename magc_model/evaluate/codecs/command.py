"""Codecs that are somebody's program or checkpoint: two command lines, run in an empty folder, PNG in and PNG out.

`command:FILE.toml` reads them from a file:

    label = "HL-RSCompNet"
    version = "checkpoints of 2024-05"
    rates = [1, 2, 3]                       # from the smallest files to the largest
    encode = ["python", "{here}/run.py", "encode", "--rate", "{rate}", "{input}", "{output}"]
    decode = ["python", "{here}/run.py", "decode", "{input}", "{output}"]

`{here}` is the file's own folder. Where a command line has `{map}`, there is a PNG of class ids, and the codec counts
as one that uses the map. What `encode` writes to `{output}` is the file whose bytes are counted.

`stf:PROGRAM` and `hl-rscompnet:PROGRAM` are the same for a program of the user's own around the published checkpoints
of STF (Zou et al., 2022) and HL-RSCompNet (Xiang and Liang, 2024), whose repositories have no command that writes a
file. It is run as

    PROGRAM encode RATE INPUT.png OUTPUT        PROGRAM decode INPUT OUTPUT.png

with RATE out of `rates=`, which is to be given. magc's tests run these adapters with a program that stands in; neither
checkpoint has been run with them. RVSA is no codec but a segmentation model: it is measured with as a TorchScript file.
"""

import hashlib
import io
import re
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from magc_model.errors import EvaluationError, UsageError
from magc_model.evaluate.codecs.program import TIMEOUT_S, run_program
from magc_model.evaluate.codecs.protocol import ClassMap, Encoded, Picture
from magc_model.evaluate.codecs.spec import (
    RATES,
    CodecSpec,
    RateScale,
    number_option,
    rates_of,
    required_argument,
)

_LABELS = {"stf": "STF", "hl-rscompnet": "HL-RSCompNet"}
_PLACES = {"encode": ("{input}", "{output}", "{rate}"), "decode": ("{input}", "{output}")}
"""What each command line must have."""
_FIELDS = frozenset({"label", "version", RATES, *_PLACES})
_HASH_DIGITS = 12


class Commands(NamedTuple):
    """What a program is run with."""

    label: str
    version: str
    rates: tuple[float, ...]
    encode: tuple[str, ...]
    decode: tuple[str, ...]
    here: Path


class CommandCodec:
    """A codec by two command lines."""

    def __init__(self, spec: CodecSpec, commands: Commands) -> None:
        self.name, self.label, self.version = spec.text, commands.label, commands.version
        self.rates = commands.rates
        self.uses_map = any("{map}" in each for each in (*commands.encode, *commands.decode))
        self._commands = commands
        self._timeout_s = number_option(spec, "timeout", TIMEOUT_S, 0.01, 1e6, whole=False)

    def encode(self, picture: Picture, semantic_map: ClassMap | None, rate: float) -> Encoded:
        """What the program writes."""
        if rate not in self.rates:
            raise UsageError(f"{self.name} was asked for rate {rate:g}: expected one of {_joined(self.rates)}")
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "input.png", Path(folder) / "output.bin"
            source.write_bytes(png_of(picture))
            self._run(self._commands.encode, source, target, semantic_map, f"{rate:g}")
            data = written(target, self._commands.encode[0])
        return Encoded(data)

    def decode(self, data: bytes, semantic_map: ClassMap | None) -> Picture:
        """What the program makes of the file."""
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "input.bin", Path(folder) / "output.png"
            source.write_bytes(data)
            self._run(self._commands.decode, source, target, semantic_map, "")
            return picture_of(written(target, self._commands.decode[0]), self._commands.decode[0])

    def _run(
        self, command: Sequence[str], source: Path, target: Path, semantic_map: ClassMap | None, rate: str
    ) -> None:
        places = {"{input}": str(source), "{output}": str(target), "{rate}": rate, "{here}": str(self._commands.here)}
        if any("{map}" in each for each in command):
            if semantic_map is None:
                raise EvaluationError(f"{self.name} reads a map, and this picture has none: use a dataset with maps")
            (source.parent / "map.png").write_bytes(png_of(semantic_map))
            places["{map}"] = str(source.parent / "map.png")
        filled = [_filled(each, places) for each in command]
        run_program(filled, timeout_s=self._timeout_s, folder=source.parent)


def open_command(spec: CodecSpec) -> CommandCodec:
    """A codec by a file of command lines, or by a program that takes those of `stf` and `hl-rscompnet`.

    Raises:
        UsageError: the file is not as expected, or there are no rates.
        EvaluationError: there is no such file.
    """
    path = Path(required_argument(spec, "FILE.toml" if spec.name == "command" else "PROGRAM")).expanduser().absolute()
    if not path.is_file():
        raise EvaluationError(f"{spec.name} needs {path}, which is no file: give the path of one")
    return CommandCodec(spec, _read(path, spec) if spec.name == "command" else _of_program(path, spec))


def png_of(pixels: Picture | ClassMap) -> bytes:
    """A PNG of RGB or of class ids."""
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def picture_of(data: bytes, program: str) -> Picture:
    """The pixels of a PNG that a program wrote.

    Raises:
        EvaluationError: it is none.
    """
    try:
        with PIL.Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        reason = " ".join(str(error).split())
        raise EvaluationError(f"what {Path(program).name} decoded is no PNG ({reason}): expected one") from None


def written(path: Path, program: str) -> bytes:
    """What a program has left in a file.

    Raises:
        EvaluationError: nothing.
    """
    data = path.read_bytes() if path.is_file() else b""
    if not data:
        state = "empty" if path.is_file() else "absent"
        raise EvaluationError(
            f"{Path(program).name} ended without an error, but the file that it was to write is {state}: expected "
            f"{path.name}"
        )
    return data


def hash_of(path: Path) -> str:
    """The first digits of a file's SHA-256: what a program is told apart by."""
    with path.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()[:_HASH_DIGITS]}"


def _of_program(path: Path, spec: CodecSpec) -> Commands:
    if RATES not in spec.options:
        raise UsageError(f"{spec.name} does not know the program's rates: add rates=1/2/3, from small files to large")
    rates = rates_of(spec, RateScale("rate", (), -1e9, 1e9, whole=False))
    program = str(path)
    return Commands(
        _LABELS[spec.name],
        f"{path.name} {hash_of(path)}",
        rates,
        (program, "encode", "{rate}", "{input}", "{output}"),
        (program, "decode", "{input}", "{output}"),
        path.parent,
    )


def _read(path: Path, spec: CodecSpec) -> Commands:
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no TOML file ({error}): expected label, version, rates, encode, decode") from None
    if unknown := sorted(found.keys() ^ _FIELDS):
        state = "has" if unknown[0] in found else "lacks"
        raise UsageError(f"{path} {state} '{unknown[0]}': expected {', '.join(sorted(_FIELDS))}")
    if not all(isinstance(found[each], str) and found[each] for each in ("label", "version")):
        raise UsageError(f"{path} has a label or version that is no text: expected two texts")
    rates = found[RATES]
    is_list = isinstance(rates, list) and rates
    if not is_list or not all(isinstance(each, int | float) and not isinstance(each, bool) for each in rates):
        raise UsageError(f"{path} has the rates {rates!r}: expected a list of numbers, from small files to large")
    for name, places in _PLACES.items():
        _check_command(path, name, found[name], places)
    known = tuple(float(each) for each in rates)
    return Commands(
        found["label"],
        f"{found['version']} ({path.name} {hash_of(path)})",
        _chosen(spec, known),
        tuple(found["encode"]),
        tuple(found["decode"]),
        path.parent,
    )


def _check_command(path: Path, name: str, command: Any, places: Sequence[str]) -> None:
    if not isinstance(command, list) or not command or not all(isinstance(each, str) for each in command):
        raise UsageError(f"{path} has no list of texts as {name}: expected a program and its arguments")
    for place in places:
        if not any(place in each for each in command):
            raise UsageError(f"{path} has no {place} in {name}: expected {', '.join(places)}")


def _chosen(spec: CodecSpec, known: tuple[float, ...]) -> tuple[float, ...]:
    """Those that were asked for, in the file's order."""
    if RATES not in spec.options:
        return known
    wanted = rates_of(spec, RateScale("rate", (), -1e9, 1e9, whole=False))
    if foreign := [each for each in wanted if each not in known]:
        raise UsageError(f"{spec.name} was asked for rate {foreign[0]:g}: its file has {_joined(known)}")
    return tuple(each for each in known if each in wanted)


def _filled(text: str, places: dict[str, str]) -> str:
    """A word of a command line with its places filled; every other brace stays."""
    return re.sub("|".join(map(re.escape, places)), lambda found: places[found[0]], text)


def _joined(rates: Sequence[float]) -> str:
    return ", ".join(f"{each:g}" for each in rates)
