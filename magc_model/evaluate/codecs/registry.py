"""All codecs by name: `jpeg2000`, `magc:tiny`, `magc:runs/stage2/model,steps=20`, `vtm:/opt/vtm/bin`.

NAME[:ARGUMENT][,OPTION=VALUE...]
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from magc_model.evaluate.codecs.protocol import ImageCodec

Options = Mapping[str, str]


class CodecSpec(NamedTuple):
    """What a text asks for."""

    name: str
    argument: str | None
    """What comes after the colon: a model, a program."""
    options: Options
    text: str
    """As it was written: the codec's name in the results."""


class CodecEntry(NamedTuple):
    """One kind of codec."""

    open: Callable[[CodecSpec], ImageCodec]
    """Raises UsageError where argument or options do not fit, EvaluationError where what it needs is absent."""
    options: tuple[str, ...]
    """Names of the options that it takes; `rates=1/2/3` is everyone's."""
    help: str
    """One line for `magc evaluate --list-codecs`."""
