"""A small language for choosing rows of the index: `alignment > 0.2 and (building > 0.01 or not water > 0.5)`.

Comparisons (also chained, `0.1 < building < 0.5`), `in (...)`, `is None`, `and`, `or`, `not` and parentheses over
column names, numbers and strings in quotes; a class name stands for its column `fraction_CLASS`. It has the syntax of
Python and is read by Python's own parser, but nothing of it is ever run: a table of allowed nodes becomes an Arrow
expression.
"""

from __future__ import annotations

import ast
import difflib
import functools
import operator
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from magc_data.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

FRACTION_PREFIX = "fraction_"
"""Columns of class shares begin with it; an expression may leave it out."""

MAX_CHARACTERS = 2000
"""Enough for a sentence of conditions; more is no condition that a person wrote."""

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], pc.Expression]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_SIGNS: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
_EXAMPLE = "expected something like 'alignment > 0.2 and building > 0.01'"


class WhereError(UsageError):
    """An expression is no condition, or names a column that is not there."""


class _Column(NamedTuple):
    name: str
    type: pa.DataType

    @property
    def kind(self) -> str:
        return "text" if pa.types.is_string(self.type) else "a number"


def compile_where(text: str, schema: pa.Schema) -> pc.Expression:
    """An expression over an index as an Arrow expression, to filter tables with.

    A comparison with a value that is missing is neither true nor false: the row is left out, under `not` too.

    Args:
        text: the expression.
        schema: of the index.

    Raises:
        WhereError: it is not well formed, compares text with numbers, or names an unknown column.
    """
    if len(text) > MAX_CHARACTERS:
        raise WhereError(f"the expression has {len(text)} characters: expected at most {MAX_CHARACTERS}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in strings, which say nothing to whoever typed a filter
            tree = ast.parse(text.strip(), mode="eval")
        return _Reader(text, schema).condition(tree.body)
    except SyntaxError as error:
        raise WhereError(f"'{text}' cannot be read ({error.msg}): {_EXAMPLE}") from None
    except (ValueError, MemoryError, RecursionError):
        raise WhereError(f"'{text}' cannot be read (a zero byte, or nested too deep): {_EXAMPLE}") from None


class _Reader:
    """Reads the parts of one expression."""

    def __init__(self, text: str, schema: pa.Schema) -> None:
        self._text, self._schema = text, schema

    def condition(self, node: ast.expr) -> pc.Expression:
        match node:
            case ast.BoolOp(op, values):
                join = operator.and_ if isinstance(op, ast.And) else operator.or_
                return functools.reduce(join, map(self.condition, values))
            case ast.UnaryOp(ast.Not(), operand):
                return ~self.condition(operand)
            case ast.Compare(left, ops, comparators):
                pairs = zip([left, *comparators[:-1]], ops, comparators, strict=True)
                return functools.reduce(operator.and_, (self._comparison(*pair) for pair in pairs))
        raise self._refused(node, "a condition, as in 'building > 0.01'")

    def _comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> pc.Expression:
        match op, right:
            case ((ast.Is() | ast.IsNot()), ast.Constant(None)):
                missing = pc.field(self._column(left).name).is_null()
                return missing if isinstance(op, ast.Is) else ~missing
            case ((ast.In() | ast.NotIn()), (ast.Tuple(elts) | ast.List(elts))) if elts:
                column = self._column(left)
                return self._membership(column, [self._literal(each, column) for each in elts], op)
        compare = _COMPARISONS.get(type(op))
        if compare is None:
            raise self._refused(right, "a comparison by <, <=, >, >=, ==, !=, 'in (...)' or 'is None'")
        columns = [self._column(each) if isinstance(each, ast.Name) else None for each in (left, right)]
        match columns:
            case [_Column() as column, None]:
                return compare(*_same_type(column, self._literal(right, column)))
            case [None, _Column() as column]:
                field, value = _same_type(column, self._literal(left, column))
                return compare(value, field)
            case [_Column() as one, _Column() as other] if one.kind == other.kind:
                # 32-bit and 64-bit numbers meet as the wider, which holds both exactly.
                wide = pa.string() if one.kind == "text" else pa.float64()
                return compare(pc.field(one.name).cast(wide), pc.field(other.name).cast(wide))
            case [_Column() as one, _Column() as other]:
                raise WhereError(
                    f"'{one.name}' is {one.kind} and '{other.name}' is {other.kind}: compare like with like"
                )
        raise self._refused(left, "a column on one side of the comparison")

    def _membership(self, column: _Column, values: list[str | float], op: ast.cmpop) -> pc.Expression:
        any_of = functools.reduce(operator.or_, (operator.eq(*_same_type(column, value)) for value in values))
        return any_of if isinstance(op, ast.In) else ~any_of

    def _column(self, node: ast.expr) -> _Column:
        if not isinstance(node, ast.Name):
            raise self._refused(node, "the name of a column")
        names = self._schema.names
        name = next((each for each in (node.id, FRACTION_PREFIX + node.id) if each in names), None)
        if name is None:
            classes = [each.removeprefix(FRACTION_PREFIX) for each in names if each.startswith(FRACTION_PREFIX)]
            known = [*names, *classes]
            near = difflib.get_close_matches(node.id, known, n=3)
            way_out = f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(known)}"
            raise WhereError(f"the index has no column '{node.id}': {way_out}")
        return _Column(name, self._schema.field(name).type)

    def _literal(self, node: ast.expr, column: _Column) -> str | float:
        value = self._number_or_text(node)
        if (column.kind == "text") != isinstance(value, str):
            wanted = "text in quotes" if column.kind == "text" else "a number"
            raise WhereError(f"'{column.name}' is {column.kind}, it is compared with {value!r}: expected {wanted}")
        return value

    def _number_or_text(self, node: ast.expr) -> str | float:
        match node:
            case ast.UnaryOp((ast.USub() | ast.UAdd()) as op, ast.Constant(int() | float() as value)):
                signed: float = _SIGNS[type(op)](self._number_or_text(ast.Constant(value)))
                return signed
            case ast.Constant(str() as text):
                return text
            case ast.Constant(int() | float() as value) if not isinstance(value, bool) and abs(value) < 2**63:
                return value
        raise self._refused(node, "a number or text in quotes")

    def _refused(self, node: ast.expr, wanted: str) -> WhereError:
        part = ast.get_source_segment(self._text.strip(), node) if hasattr(node, "lineno") else None
        return WhereError(f"'{part or self._text}' in '{self._text}' cannot be used here: expected {wanted}")


def _same_type(column: _Column, value: str | float) -> tuple[pc.Expression, pc.Expression]:
    """The column and the value so that equal means equal: in 32 bits, 0.7 is the number nearest to it."""
    field = pc.field(column.name)
    if pa.types.is_floating(column.type):
        return field, pc.scalar(pa.scalar(float(value), column.type))
    if isinstance(value, float):
        return field.cast(pa.float64()), pc.scalar(pa.scalar(value, pa.float64()))
    if isinstance(value, int):
        return field.cast(pa.int64()), pc.scalar(pa.scalar(value, pa.int64()))
    return field, pc.scalar(value)
