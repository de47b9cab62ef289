"""The class table: what a scheme is, and how it is read from YAML. The tables themselves are data, in `schemes/`.

A scheme has classes (id, name, colour) and rules. An area rule paints polygons, a line rule paints lines as wide as
they are on the ground. A feature is painted once by every rule that it matches; `draw_order` settles what lies on
top, so the order in which rules stand in the file means nothing.
"""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from magc_data.errors import SchemeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ANY = "*"
"""Matches every value of a key except `no`."""

BUILT_IN_SCHEMES = ("default", "basic", "sgdm")

MAX_LINE_WIDTH_M = 60.0
"""Roads are never painted wider than this unless their rule says so: a larger `width` tag is a typing error."""

MAX_DRAW_ORDER = 999
"""Bridges are drawn from 1000 on (features.BRIDGE_DRAW_ORDER)."""

MAX_LANES = 12

TagMatch = dict[str, frozenset[str]]
"""Key -> accepted values; `{"*"}` accepts every value except `no`. Keys are alternatives (or)."""


class SemanticClass(NamedTuple):
    """One class of the map: its id is the pixel value on disk."""

    id: int
    name: str
    color: tuple[int, int, int]


class LineWidth(NamedTuple):
    """How wide a line is when its own tags do not say: `lanes x lane_width_m + shoulder_m`, or `default_m`."""

    default_m: float | None
    lane_width_m: float | None
    lanes_per_direction: int
    oneway_lanes: int
    shoulder_m: float
    implied_oneway: bool
    max_m: float


class Rule(NamedTuple):
    """Paints a class where a feature's tags match."""

    class_id: int
    is_area: bool
    tags: TagMatch
    draw_order: int
    where: TagMatch
    """Each of these keys must match as well (and)."""
    unless: TagMatch
    """None of these may match."""
    hide_negative_layer: bool
    width: LineWidth | None
    """None for areas."""


class Scheme(NamedTuple):
    """A class table with its rules."""

    name: str
    version: int
    classes: tuple[SemanticClass, ...]
    rules: tuple[Rule, ...]
    hidden: TagMatch
    """What cannot be seen from above: a feature with any of these tags is not painted."""

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """RGB by class id, shape [largest id + 1]; ids between the classes are black."""
        by_id = {each.id: each.color for each in self.classes}
        return tuple(by_id.get(class_id, (0, 0, 0)) for class_id in range(max(by_id) + 1))

    @property
    def feature_keys(self) -> frozenset[str]:
        """Keys that make a feature worth asking a server for."""
        return frozenset(key for rule in self.rules for key in rule.tags)

    @property
    def tag_keys(self) -> frozenset[str]:
        """Every key that any rule looks at."""
        conditions = frozenset(key for rule in self.rules for match in (rule.where, rule.unless) for key in match)
        return self.feature_keys | conditions | frozenset(self.hidden)

    @property
    def margin_m(self) -> float:
        """How far outside a tile a feature can lie and still paint into it: half of the widest line."""
        return max((rule.width.max_m / 2 for rule in self.rules if rule.width is not None), default=0.0)


def matching_keys(match: TagMatch, tags: Mapping[str, str]) -> list[str]:
    """The keys of `match` that the tags fulfil."""
    return [
        key
        for key, accepted in match.items()
        if (value := tags.get(key)) is not None and (value in accepted or (ANY in accepted and value != "no"))
    ]


def load_scheme(name_or_path: str) -> Scheme:
    """Read a built-in scheme by name, or a YAML file.

    Raises:
        SchemeError: there is no such scheme or file, or it breaks a rule of docs/schemes.md.
    """
    if name_or_path in BUILT_IN_SCHEMES:
        text = resources.files("magc_data.schema").joinpath("schemes", f"{name_or_path}.yaml").read_text("utf-8")
        return parse_scheme(text, name_or_path)
    path = Path(name_or_path)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        built_in = ", ".join(BUILT_IN_SCHEMES)
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SchemeError(
            f"scheme '{name_or_path}' cannot be read ({reason}): give one of {built_in} or a YAML file"
        ) from None
    return parse_scheme(text, name_or_path)


def scheme_of_classes(classes: Iterable[tuple[int, str]]) -> Scheme:
    """The built-in scheme whose class table is this one (id and name of each class): the one a model was trained with.

    Raises:
        SchemeError: no built-in scheme has these classes.
    """
    wanted = dict(classes)
    schemes = [load_scheme(name) for name in BUILT_IN_SCHEMES]
    tables = [{each.id: each.name for each in scheme.classes} for scheme in schemes]
    if wanted in tables:
        return schemes[tables.index(wanted)]
    nearest = max(range(len(tables)), key=lambda number: len(tables[number].items() & wanted.items()))
    name, table = schemes[nearest].name, tables[nearest]
    class_id = min(each for each in table.keys() | wanted.keys() if table.get(each) != wanted.get(each))
    raise SchemeError(
        f"the model's {len(wanted)} classes are those of no built-in scheme (the nearest is {name}, where class "
        f"{class_id} is {table.get(class_id, 'absent')}; the model's is {wanted.get(class_id, 'absent')}): give the "
        "scheme that it was trained with (--scheme NAME|FILE)"
    )


def scheme_sha256(scheme: Scheme) -> str:
    """Digest of everything in a scheme: two schemes with the same paint the same maps."""

    def plain(value: Any) -> Any:
        if isinstance(value, frozenset):
            return sorted(value)
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        return [plain(each) for each in value] if isinstance(value, tuple) else value

    return hashlib.sha256(json.dumps(plain(scheme), sort_keys=True).encode()).hexdigest()


def parse_scheme(text: str, origin: str) -> Scheme:
    """Check and build a scheme from YAML text; `origin` names it in errors."""
    try:
        # The C loader parses the default scheme ten times as fast; PyYAML is sometimes built without it.
        document = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe loaders
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: 2020-13-45 looks like a date
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark else ""
        raise SchemeError(f"scheme {origin} is not valid YAML{place}: start from a copy of a built-in scheme") from None
    fields = _fields(
        document, origin, "the scheme", required={"name", "classes", "rules"}, optional={"version", "hidden"}
    )
    classes = _classes(fields["classes"], origin)
    ids = {each.name: each.id for each in classes}
    if not isinstance(fields["rules"], list):
        raise SchemeError(f"scheme {origin}: 'rules' is {fields['rules']!r}, expected a list")
    return Scheme(
        name=_typed(fields["name"], str, origin, "name"),
        version=_typed(fields.get("version", 1), int, origin, "version"),
        classes=classes,
        rules=tuple(_rule(entry, ids, f"{origin}, rule {number}") for number, entry in enumerate(fields["rules"], 1)),
        hidden=_tag_match(fields.get("hidden", {}), f"{origin}, hidden"),
    )


def scheme_text(name: str) -> str:
    """YAML of a built-in scheme, to start one's own from."""
    return resources.files("magc_data.schema").joinpath("schemes", f"{name}.yaml").read_text("utf-8")


_AREA_KEYS = {"where", "unless", "hide_negative_layer"}
_LINE_KEYS = _AREA_KEYS | {
    "width_m",
    "lane_width_m",
    "lanes_per_direction",
    "oneway_lanes",
    "shoulder_m",
    "implied_oneway",
    "max_width_m",
}


def _fields(value: Any, origin: str, what: str, required: set[str], optional: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SchemeError(
            f"scheme {origin}: {what} is {value!r}, expected a mapping with {', '.join(sorted(required))}"
        )
    if unknown := sorted(str(key) for key in value.keys() - required - optional):
        known = ", ".join(sorted(required | optional))
        raise SchemeError(f"scheme {origin}: {what} has the unknown field '{unknown[0]}', expected only {known}")
    if missing := sorted(required - value.keys()):
        raise SchemeError(f"scheme {origin}: {what} lacks the field '{missing[0]}'")
    return value


def _typed(value: Any, kind: type, origin: str, what: str) -> Any:
    # bool is an int to Python, but `width_m: yes` is a mistake.
    numbers = (int, float) if kind is float else (kind,)
    if not isinstance(value, numbers) or (isinstance(value, bool) and kind is not bool):
        raise SchemeError(f"scheme {origin}: '{what}' is {value!r}, expected {kind.__name__}")
    return kind(value)


def _count(value: Any, lowest: int, highest: int, origin: str, what: str) -> int:
    count: int = _typed(value, int, origin, what)
    if not lowest <= count <= highest:
        raise SchemeError(f"scheme {origin}: '{what}' is {count}, expected {lowest} to {highest}")
    return count


def _classes(entries: Any, origin: str) -> tuple[SemanticClass, ...]:
    if not isinstance(entries, list) or not entries:
        raise SchemeError(f"scheme {origin}: 'classes' is {entries!r}, expected a list of id, name, color")
    classes = []
    for entry in entries:
        fields = _fields(entry, origin, "a class", required={"id", "name", "color"}, optional=set())
        class_id, name, color = fields["id"], fields["name"], fields["color"]
        if not isinstance(class_id, int) or isinstance(class_id, bool) or not 0 <= class_id <= 255:
            raise SchemeError(f"scheme {origin}: class id {class_id!r}, expected a whole number from 0 to 255")
        if not isinstance(name, str) or not name.isidentifier():
            raise SchemeError(f"scheme {origin}: class name {name!r}, expected letters, digits and underscores")
        valid = isinstance(color, list) and len(color) == 3
        if not valid or not all(isinstance(part, int) and 0 <= part <= 255 for part in color):
            raise SchemeError(
                f"scheme {origin}: class '{name}' has color {color!r}, expected [red, green, blue] of 0 to 255"
            )
        classes.append(SemanticClass(class_id, name, (color[0], color[1], color[2])))
    for what in ("id", "name"):
        values = [getattr(each, what) for each in classes]
        if twice := sorted({value for value in values if values.count(value) > 1}):
            raise SchemeError(f"scheme {origin}: class {what} {twice[0]!r} stands twice, expected each once")
    if classes[0].id != 0:
        raise SchemeError(
            f"scheme {origin}: the first class has id {classes[0].id}, expected 0 (where nothing is painted)"
        )
    if [each.id for each in classes] != sorted(each.id for each in classes):
        raise SchemeError(f"scheme {origin}: class ids are out of order, expected them to rise")
    return tuple(classes)


def _tag_match(value: Any, origin: str) -> TagMatch:
    if not isinstance(value, dict):
        raise SchemeError(f"scheme {origin}: tags are {value!r}, expected a mapping such as {{building: '*'}}")
    match: TagMatch = {}
    for key, accepted in value.items():
        values = accepted if isinstance(accepted, list) else [accepted]
        # YAML reads a bare yes/no as a boolean: OSM's most common values would silently never match.
        words = [{True: "yes", False: "no"}[each] if isinstance(each, bool) else each for each in values]
        if not isinstance(key, str) or not words or not all(isinstance(each, (str, int)) for each in words):
            raise SchemeError(f"scheme {origin}: tag {key!r}: {accepted!r}, expected a value, a list of values or '*'")
        match[key] = frozenset(str(each) for each in words)
    return match


def _rule(entry: Any, class_ids: dict[str, int], origin: str) -> Rule:
    is_area = isinstance(entry, dict) and "areas" in entry
    kind = "areas" if is_area else "lines"
    fields = _fields(
        entry, origin, "a rule", required={"class", kind, "draw_order"}, optional=_AREA_KEYS if is_area else _LINE_KEYS
    )
    if not isinstance(fields["class"], str) or fields["class"] not in class_ids:
        raise SchemeError(f"scheme {origin}: class '{fields['class']}' is not in the table ({', '.join(class_ids)})")
    width = None if is_area else _line_width(fields, origin)
    return Rule(
        class_id=class_ids[fields["class"]],
        is_area=is_area,
        tags=_tag_match(fields[kind], origin),
        draw_order=_count(fields["draw_order"], 0, MAX_DRAW_ORDER, origin, "draw_order"),
        where=_tag_match(fields.get("where", {}), origin),
        unless=_tag_match(fields.get("unless", {}), origin),
        hide_negative_layer=_typed(fields.get("hide_negative_layer", not is_area), bool, origin, "hide_negative_layer"),
        width=width,
    )


def _line_width(fields: dict[str, Any], origin: str) -> LineWidth:
    def metres(name: str) -> float | None:
        if name not in fields:
            return None
        value: float = _typed(fields[name], float, origin, name)
        if not 0 <= value <= 1000 or (value == 0 and name != "shoulder_m"):
            raise SchemeError(f"scheme {origin}: '{name}' is {value}, expected metres above 0 and up to 1000")
        return value

    default_m, lane_width_m = metres("width_m"), metres("lane_width_m")
    lanes_per_direction = _count(fields.get("lanes_per_direction", 1), 1, MAX_LANES, origin, "lanes_per_direction")
    if not default_m and not lane_width_m:
        raise SchemeError(
            f"scheme {origin}: a line rule without a width, expected 'width_m' or 'lane_width_m' in metres"
        )
    return LineWidth(
        default_m=default_m,
        lane_width_m=lane_width_m,
        lanes_per_direction=lanes_per_direction,
        oneway_lanes=_count(fields.get("oneway_lanes", lanes_per_direction), 1, MAX_LANES, origin, "oneway_lanes"),
        shoulder_m=metres("shoulder_m") or 0.0,
        implied_oneway=_typed(fields.get("implied_oneway", False), bool, origin, "implied_oneway"),
        max_m=metres("max_width_m") or MAX_LINE_WIDTH_M,
    )
