"""How codecs are asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magc_model.errors import EvaluationError, UsageError
from magc_model.evaluate.codecs.protocol import ImageCodec
from magc_model.evaluate.codecs.registry import CODECS, STANDARD, checked_spec, listed, open_codec
from magc_model.evaluate.codecs.spec import CodecSpec, RateScale, number_option, parse_spec, rates_of

QUALITY = RateScale("quality", (1, 5, 10), 1, 95)
QP = RateScale("QP", (51, 40), 0, 51, falls=True)

words = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=8)
values = st.text("abc019./\\:+- ", min_size=1, max_size=12)


@given(words, st.none() | values, st.dictionaries(words, values, max_size=4))
def test_what_is_written_is_read(name: str, argument: str | None, options: dict[str, str]) -> None:
    head = name if argument is None else f"{name}:{argument}"
    spec = parse_spec(",".join([head, *(f"{key}={value}" for key, value in options.items())]))
    assert (spec.name, spec.argument, dict(spec.options)) == (name, argument, options)


@pytest.mark.parametrize(("text", "argument", "options"), [
    (r"magc:C:\models\a, b,steps=20", r"C:\models\a, b", {"steps": "20"}),
    ("vtm:/opt/vtm=new/bin", "/opt/vtm=new/bin", {}),
    ("magc:runs/a,b/model", "runs/a,b/model", {}),
])  # fmt: skip
def test_odd_paths_are_arguments(text: str, argument: str, options: dict[str, str]) -> None:
    spec = parse_spec(text)
    assert (spec.argument, dict(spec.options)) == (argument, options)


def test_the_rates_are_no_part_of_the_name() -> None:
    """So that a run with more rates goes on from one with fewer."""
    assert parse_spec("avif,rates=1/2,speed=6").text == parse_spec("avif,speed=6").text == "avif,speed=6"


@pytest.mark.parametrize(("text", "sentence"), [
    ("", "names no codec"),
    (":x", "names no codec"),
    ("magc:", "nothing after 'magc:'"),
    ("jpeg,5", "options are written OPTION=VALUE"),
    ("jpeg,rates=1,rates=2", "rates twice"),
    ("jpeg,rates=", "rates no value"),
    ("jpg", "did you mean jpeg"),
    ("hevc,presett=slow", "no option 'presett': did you mean preset"),
    ("webp,zzzz=1", "no option 'zzzz': expected one of rates"),
    ("jpeg:file", "takes no argument"),
    ("jpeg,rates=0/5", "quality 0: expected a whole number from 1 to 95"),
    ("jpeg,rates=1.5", "quality 1.5"),
    ("jpeg,rates=1/x", "rates is given as 'x'"),
    ("jpeg2000,rates=nan", "rates is given as 'nan'"),
    ("avif,tune=abc", "expected one of ssim, psnr, iq"),
    ("vvc,chroma=444", "expected one of 420"),
    ("jxl,effort=10", "effort 10"),
])  # fmt: skip
def test_a_wrong_text_is_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        open_codec(text)
    assert "\n" not in str(caught.value)


def test_rates_go_from_small_files_to_large_ones_each_once() -> None:
    def rates(text: str, scale: RateScale) -> tuple[float, ...]:
        return rates_of(CodecSpec("x", None, {"rates": text} if text else {}, "x"), scale)

    assert rates("7/3/7/5", QUALITY) == (3, 5, 7)
    assert rates("30/40/20", QP) == (40, 30, 20)
    assert rates("", QP) == (51, 40)
    assert all(isinstance(each, float) for each in rates("", QP))


def test_a_number_out_of_range_is_refused() -> None:
    spec = parse_spec("x,speed=11")
    with pytest.raises(UsageError, match="speed 11: expected a whole number from 0 to 10"):
        number_option(spec, "speed", 4.0, 0.0, 10.0)


def test_the_list_has_every_codec_and_option() -> None:
    text = listed()
    for name, entry in CODECS.items():
        assert name in text
        assert all(option in text for option in entry.options)
    assert set(STANDARD) <= set(CODECS)


def test_the_standard_ones_open_and_keep_the_contract() -> None:
    for name in STANDARD:
        codec = open_codec(name)
        assert isinstance(codec, ImageCodec)
        assert codec.name == name
        assert codec.label
        assert codec.version
        assert len(set(codec.rates)) == len(codec.rates) > 2
        assert all(isinstance(each, float) for each in codec.rates)
        assert not codec.uses_map


def test_a_part_that_this_installation_has_not_is_a_sentence() -> None:
    from magc_model.evaluate.codecs.registry import _from

    with pytest.raises(EvaluationError, match="has no codec 'baseline'"):
        _from("no_such_module", "open")(checked_spec("baseline:run"))
