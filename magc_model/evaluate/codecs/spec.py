r"""How a codec is asked for: a text, its parts, and the checks that every codec makes of them. Pure.

    NAME[:ARGUMENT][,OPTION=VALUE...]

An option begins where a comma is followed by a name and `=`; every other comma, and every colon but the first, belongs
to the argument, so that `magc:C:\models\a, b,steps=20` means what it looks like. `rates=1/3/5` is everyone's.
"""

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from magc_model.errors import UsageError

Options = Mapping[str, str]

RATES = "rates"
"""The option that says which settings to measure. It is no part of a codec's name: more rates are more of the same."""

_OPTION = re.compile(r",(?=[A-Za-z][A-Za-z_-]*=)")


class CodecSpec(NamedTuple):
    """What a text asks for."""

    name: str
    argument: str | None
    """What comes after the colon: a model, a program."""
    options: Options
    text: str
    """As it was written but for `rates`: the codec's name in the results."""


class RateScale(NamedTuple):
    """What a codec's rates are."""

    what: str
    """Their name, in messages: quality, QP."""
    usual: tuple[float, ...]
    """To be measured unless asked otherwise, from the smallest files to the largest."""
    low: float
    high: float
    falls: bool = False
    """Larger numbers are smaller files."""
    whole: bool = True
    """Whole numbers only."""

    def checked(self, rate: float, codec: str) -> float:
        """The rate itself.

        Raises:
            UsageError: it is not on this scale.
        """
        kind = "a whole number" if self.whole else "a number"
        if not self.low <= rate <= self.high or (self.whole and rate != int(rate)):
            raise UsageError(
                f"{codec} was asked for {self.what} {rate:g}: expected {kind} from {self.low:g} to {self.high:g}"
            )
        return rate


def parse_spec(text: str) -> CodecSpec:
    """A text in its parts.

    Raises:
        UsageError: it names nothing, or an option twice.
    """
    head, *rest = _OPTION.split(text)
    name, colon, argument = head.partition(":")
    if not name or (colon and not argument):
        what = "no codec" if not name else f"nothing after '{name}:'"
        raise UsageError(f"'{text}' names {what}: expected NAME[:ARGUMENT][,OPTION=VALUE...]")
    if "," in name:
        raise UsageError(f"'{head}' is no codec: options are written OPTION=VALUE, as in jpeg2000,rates=0.02/0.05")
    options: dict[str, str] = {}
    for each in rest:
        option, _, value = each.partition("=")
        if option in options:
            raise UsageError(f"'{text}' gives {option} twice: expected it once")
        if not value:
            raise UsageError(f"'{text}' gives {option} no value: expected {option}=VALUE")
        options[option] = value
    kept = [head, *(f"{option}={value}" for option, value in options.items() if option != RATES)]
    return CodecSpec(name, argument or None, options, ",".join(kept))


def rates_of(spec: CodecSpec, scale: RateScale) -> tuple[float, ...]:
    """The rates that a text asks for, else the usual ones; from the smallest files to the largest, each once.

    Raises:
        UsageError: one is no number, or not on the scale.
    """
    if RATES not in spec.options:
        return tuple(map(float, scale.usual))
    rates = {scale.checked(number(RATES, each), spec.name) for each in spec.options[RATES].split("/")}
    return tuple(sorted(rates, reverse=scale.falls))


def number(option: str, text: str) -> float:
    """A finite number.

    Raises:
        UsageError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{option} is given as '{text}': expected a number")
    return value


def number_option(spec: CodecSpec, option: str, usual: float, low: float, high: float, *, whole: bool = True) -> float:
    """An option that is a number.

    Raises:
        UsageError: it is none, or out of range.
    """
    if option not in spec.options:
        return usual
    return RateScale(option, (), low, high, whole=whole).checked(number(option, spec.options[option]), spec.name)


def choice_option(spec: CodecSpec, option: str, choices: Iterable[str], usual: str) -> str:
    """An option that is one of some words.

    Raises:
        UsageError: it is none of them.
    """
    value = spec.options.get(option, usual)
    if value not in (allowed := tuple(choices)):
        raise UsageError(f"{spec.name} was asked for {option}={value}: expected one of {', '.join(allowed)}")
    return value


def no_argument(spec: CodecSpec) -> None:
    """Refuse an argument.

    Raises:
        UsageError: there is one.
    """
    if spec.argument is not None:
        raise UsageError(f"{spec.name} takes no argument and was given '{spec.argument}': write {spec.name} alone")


def required_argument(spec: CodecSpec, what: str) -> str:
    """The argument, which there must be.

    Raises:
        UsageError: there is none.
    """
    if spec.argument is None:
        raise UsageError(f"{spec.name} needs {what}: write {spec.name}:{what.split()[0].upper()}")
    return spec.argument


def closest(word: str, known: Iterable[str]) -> str:
    """An end for the sentence that refuses a word: the nearest ones that there are, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"expected one of {', '.join(known)}"
