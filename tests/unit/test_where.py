"""Expressions mean what Python would say of each row, and nothing but an expression gets through."""

from __future__ import annotations

import contextlib

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magc_data.where import MAX_CHARACTERS, WhereError, compile_where

ROWS = [
    {"key": key, "x": x, "gsd_m": gsd_m, "alignment": alignment, "fraction_building": building}
    for key, x, gsd_m, alignment, building in [
        ("a", -1, 0.5, 0.25, 0.0),
        ("b", 0, 0.7, 0.7, 0.1),
        ("c", 3, 1.0, 0.0, 0.5),
        ("d", 2**31 - 1, 1.5, -0.5, 1.0),
    ]
]
TABLE = pa.Table.from_pylist(
    ROWS,
    pa.schema(
        [
            ("key", pa.string()),
            ("x", pa.int32()),
            ("gsd_m", pa.float64()),
            ("alignment", pa.float32()),
            ("fraction_building", pa.float32()),
        ]
    ),
)


def chosen(text: str, table: pa.Table = TABLE) -> str:
    return "".join(table.filter(compile_where(text, table.schema))["key"].to_pylist())


numbers = st.sampled_from(["-1", "0", "0.1", "0.5", "0.7", "1", "1.5", "3", "-0.5", "+2", "2147483647", "1e3"])
columns = st.sampled_from(["x", "gsd_m", "alignment", "building"])
signs = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
comparisons = st.one_of(
    st.builds("{} {} {}".format, columns, signs, numbers),
    st.builds("{}{}{}".format, numbers, signs, columns),
    st.builds("{} {} {} {} {}".format, numbers, signs, columns, signs, numbers),
    st.builds("{} in ({}, {})".format, columns, numbers, numbers),
    st.builds("{} not in [{}]".format, columns, numbers),
    st.builds("key {} '{}'".format, signs, st.sampled_from("abcd")),
    st.builds("x {} gsd_m".format, signs),
)
conditions = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.builds("({}) and {}".format, inner, inner),
        st.builds("{} or {}".format, inner, inner),
        st.builds("not {}".format, inner),
    ),
    max_leaves=6,
)


@given(conditions)
def test_every_expression_means_what_python_says(text: str) -> None:
    expected = [row["key"] for row in ROWS if eval(text, {}, {**row, "building": row["fraction_building"]})]
    assert chosen(text) == "".join(expected)


def test_a_missing_value_is_neither_this_nor_that() -> None:
    table = pa.table({"key": ["a", "b", "c"], "alignment": pa.array([0.5, None, 0.1], pa.float32())})
    assert chosen("alignment > 0.2", table) == "a"
    assert chosen("not alignment > 0.2", table) == "c"
    assert chosen("alignment is None or alignment > 0.2", table) == "ab"
    assert chosen("alignment is not None", table) == "ac"


def test_a_column_goes_before_a_class_of_its_name() -> None:
    table = pa.table({"key": ["a", "b"], "cloud": [1.0, 0.0], "fraction_cloud": [0.0, 1.0]})
    assert chosen("cloud > 0.5", table) == "a"
    assert chosen("fraction_cloud > 0.5", table) == "b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("building >", "cannot be read"),
        ("building > 0.1\0", "cannot be read"),
        ("building > 0.1; x > 1", "cannot be read"),
        ("(" * 900 + "x > 1" + ")" * 900, "cannot be read"),
        ("not " * 490 + "x > 1", None),
        ("x > 1 or " * 400 + "x > 1", "at most 2000"),
        ("building", "expected a condition"),
        ("True", "expected a condition"),
        ("1 > 0", "expected a column"),
        ("x > True", "number or text"),
        ("x > 99999999999999999999999", "number or text"),
        ("x > b'1'", "number or text"),
        ("x > (1).real", "number or text"),
        ("x > 1 + 1", "number or text"),
        ("key.upper() == 'A'", "expected a column"),
        ("__import__('os').system('true') == 0", "expected a column"),
        ("(lambda: 1)() < x", "number or text"),
        ("[x for x in (1,)] == x", "number or text"),
        ("x in ()", "expected a comparison"),
        ("x in key", "expected a comparison"),
        ("x is 1", "expected a comparison"),
        ("x := 1", "cannot be read"),
        ("(x := 1) > 0", "expected a column"),
        ("f'{x}' == key", "number or text"),
        ("key > 1", "'key' is text, it is compared with 1: expected text in quotes"),
        ("x == 'a'", "'x' is a number, it is compared with 'a': expected a number"),
        ("key == x", "compare like with like"),
        ("buildng > 1", "no column 'buildng': did you mean building"),
        ("algnment > 1", "did you mean alignment"),
        ("zzzzzz > 1", "expected one of key, x, gsd_m, alignment, fraction_building, building"),
    ],
)  # fmt: skip
def test_what_is_no_condition_is_refused_in_a_sentence(text: str, message: str | None) -> None:
    assert MAX_CHARACTERS == 2000
    if message is None:  # Deep, but not too deep.
        assert chosen(text) in {"cd", "ab"}
        return
    with pytest.raises(WhereError, match=message.replace("(", r"\(")):
        compile_where(text, TABLE.schema)


@given(st.text(max_size=60))
def test_any_text_is_an_expression_or_a_sentence(text: str) -> None:
    with contextlib.suppress(WhereError):
        chosen(text)
