"""Class schemes: the ones that ship are sound, and a bad file is named."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from magc_data.errors import SchemeError
from magc_data.schema.classes import (
    BUILT_IN_SCHEMES,
    load_scheme,
    parse_scheme,
    scheme_of_classes,
    scheme_sha256,
    scheme_text,
)

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """
name: mine
classes:
  - {id: 0, name: nothing, color: [0, 0, 0]}
  - {id: 7, name: house, color: [255, 0, 0]}
rules:
  - {class: house, areas: {building: yes}, draw_order: 1}
"""


@pytest.mark.parametrize("name", BUILT_IN_SCHEMES)
def test_built_in_schemes_are_sound(name: str) -> None:
    scheme = load_scheme(name)
    assert scheme.name == name
    assert {rule.class_id for rule in scheme.rules} == {each.id for each in scheme.classes} - {0}
    colors = [each.color for each in scheme.classes]
    assert len(set(colors)) == len(colors)
    # No tag value paints two classes at one draw order: what lies on top would be an accident.
    seen: dict[tuple[str, str, bool], int] = {}
    for rule in scheme.rules:
        for key, value in itertools.chain.from_iterable(
            ((key, value) for value in values) for key, values in rule.tags.items()
        ):
            if not rule.where:
                assert seen.setdefault((key, value, rule.is_area), rule.class_id) == rule.class_id, (key, value)


def test_the_basic_scheme_has_five_classes_and_sgdm_the_papers_colors() -> None:
    assert len(load_scheme("basic").classes) == 5
    colors = {each.color for each in load_scheme("sgdm").classes}
    papers = {
        (226, 224, 210),
        (254, 254, 254),
        (255, 204, 133),
        (217, 233, 198),
        (228, 236, 213),
        (208, 230, 190),
        (133, 203, 249),
    }
    assert papers < colors


def test_a_file_replaces_the_table(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    scheme = load_scheme(str(path))
    assert [each.id for each in scheme.classes] == [0, 7]
    # YAML reads a bare `yes` as a boolean; OSM's most frequent value must still match.
    assert scheme.rules[0].tags == {"building": frozenset({"yes"})}
    assert scheme.palette[7] == (255, 0, 0)
    assert len(scheme.palette) == 8


def test_the_digest_sees_every_change_and_nothing_else() -> None:
    assert scheme_sha256(parse_scheme(GOOD, "a")) == scheme_sha256(parse_scheme(GOOD + "\n# a comment\n", "b"))
    assert scheme_sha256(parse_scheme(GOOD, "a")) != scheme_sha256(
        parse_scheme(GOOD.replace("draw_order: 1", "draw_order: 2"), "a")
    )
    text = scheme_text("default")
    assert scheme_sha256(parse_scheme(text, "x")) == scheme_sha256(load_scheme("default"))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("name: mine", "nome: mine", "unknown field 'nome'"),
        ("name: mine", "name: 3", "'name' is 3"),
        ("id: 7", "id: 300", "class id 300"),
        ("id: 7", "id: 0", "stands twice"),
        ("name: house", "name: a house", "class name 'a house'"),
        ("[255, 0, 0]", "[256, 0, 0]", "has color"),
        ("class: house", "class: hut", "class 'hut' is not in the table"),
        ("areas: {building: yes}", "areas: [building]", "expected a mapping"),
        ("areas: {building: yes}", "lines: {highway: '*'}", "without a width"),
        ("areas: {building: yes}", "lines: {highway: '*'}, width_m: -2", "metres above 0"),
        ("areas: {building: yes}", "lines: {highway: '*'}, width_m: 0", "metres above 0"),
        ("areas: {building: yes}", "lines: {highway: '*'}, lane_width_m: 3, lanes_per_direction: -2", "expected 1 to"),
        ("draw_order: 1", "draw_order: 1000", "expected 0 to 999"),
        ("draw_order: 1", "draw_order: 99999999999999999999", "expected 0 to 999"),
        ("class: house", "class: [1]", "is not in the table"),
        ("id: 7", "id: true", "class id True"),
        ("draw_order: 1", "draw_order: top", "'draw_order' is 'top'"),
        ("draw_order: 1", "draw_ordr: 1", "unknown field"),
        (", draw_order: 1", "", "lacks the field 'draw_order'"),
        ("classes:", "classes: [", "not valid YAML"),
        ("name: mine", "name: 2020-13-45", "not valid YAML"),
        ("id: 0", "id: 1", "expected 0"),
    ],
)
def test_a_bad_scheme_is_named(old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(SchemeError, match=said):
        parse_scheme(GOOD.replace(old, new), "mine.yaml")


def test_an_absent_scheme_is_named() -> None:
    with pytest.raises(SchemeError, match="default, basic, sgdm"):
        load_scheme("nothing-of-the-kind")


@pytest.mark.parametrize("name", BUILT_IN_SCHEMES)
def test_a_models_classes_name_their_scheme(name: str) -> None:
    scheme = load_scheme(name)
    classes = [(each.id, each.name) for each in scheme.classes]
    assert scheme_of_classes(reversed(classes)) == scheme


def test_other_classes_are_of_no_scheme_and_the_first_difference_is_named() -> None:
    classes = [(each.id, each.name) for each in load_scheme("basic").classes]
    last_id, last_name = classes[-1]
    for changed, message in (
        (
            [*classes[:-1], (last_id, "river")],
            f"nearest is basic, where class {last_id} is {last_name}; the model's is river",
        ),
        (classes[:-1], f"where class {last_id} is {last_name}; the model's is absent"),
        ([*classes, (200, "river")], "where class 200 is absent; the model's is river"),
        ([], "the model's 0 classes"),
    ):
        with pytest.raises(SchemeError, match=message) as raised:
            scheme_of_classes(changed)
        assert "--scheme NAME|FILE" in str(raised.value)
