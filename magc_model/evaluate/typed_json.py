"""NamedTuples as JSON and back: what is read is checked against the annotations, field by field."""

import math
import types
import typing
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from magc_model.errors import EvaluationError


def as_document(value: Any) -> Any:
    """Nested dicts and lists of a value; numbers that JSON has not are an error, as they have no place in it."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: as_document(each) for name, each in value._asdict().items()}
    if isinstance(value, list | tuple):
        return [as_document(each) for each in value]
    if isinstance(value, Mapping):
        return {str(name): as_document(each) for name, each in value.items()}
    if isinstance(value, StrEnum):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise EvaluationError(f"{value} cannot be written as JSON: expected a finite number or none")
    return value


def rounded(value: Any, digits: int = 9) -> Any:
    """The same with its floats to so many digits: sums in another order differ in the last ones."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return type(value)(*(rounded(each, digits) for each in value))
    if isinstance(value, tuple):
        return tuple(rounded(each, digits) for each in value)
    if isinstance(value, dict):
        return {name: rounded(each, digits) for name, each in value.items()}
    return value


def from_document(annotation: Any, document: Any, place: str = "") -> Any:
    """A value of the annotated type.

    Raises:
        EvaluationError: the document has another shape; the sentence names the place.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        return None if document is None else from_document(_other_than_none(arguments), document, place)
    if origin is tuple:
        items = _expect(document, list, "a list", place)
        return tuple(from_document(arguments[0], each, f"{place}[{number}]") for number, each in enumerate(items))
    if origin is dict:
        items = _expect(document, dict, "an object", place)
        return {name: from_document(arguments[1], each, f"{place}.{name}") for name, each in items.items()}
    if hasattr(annotation, "_fields"):
        return _named_tuple(annotation, _expect(document, dict, "an object", place), place)
    if issubclass(annotation, StrEnum):
        text = _expect(document, str, "text", place)
        if text not in list(annotation):
            raise _wrong(place, repr(text), "one of " + ", ".join(annotation))
        return annotation(text)
    if annotation is float:
        number = _expect(document, (int, float), "a number", place)
        if isinstance(number, bool) or not math.isfinite(number):
            raise _wrong(place, repr(number), "a finite number")
        return float(number)
    names = {int: "a whole number", str: "text", bool: "true or false"}
    if annotation is int and isinstance(document, bool):
        raise _wrong(place, repr(document), names[int])
    return _expect(document, annotation, names[annotation], place)


def _named_tuple(annotation: Any, document: dict[str, Any], place: str) -> Any:
    hints = typing.get_type_hints(annotation)
    if strange := sorted(document.keys() ^ hints.keys()):
        found = "an unknown field" if strange[0] in document else "no field"
        raise _wrong(place, f"{found} '{strange[0]}'", "the fields " + ", ".join(hints))
    return annotation(**{name: from_document(hint, document[name], f"{place}.{name}") for name, hint in hints.items()})


def _other_than_none(arguments: tuple[Any, ...]) -> Any:
    return next(each for each in arguments if each is not type(None))


def _expect(document: Any, kinds: Any, words: str, place: str) -> Any:
    if not isinstance(document, kinds):
        raise _wrong(place, f"{str(document)[:60]!r}" if document is not None else "nothing", words)
    return document


def _wrong(place: str, found: str, expected: str) -> EvaluationError:
    return EvaluationError(f"{place.lstrip('.') or 'the document'} has {found}: expected {expected}")
