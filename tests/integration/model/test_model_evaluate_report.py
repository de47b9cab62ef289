"""The report: its files agree with the results, its page works in headless Chromium, on a phone and on paper."""

from __future__ import annotations

import io
import json
import re
import shutil
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from synthetic_measurements import CODECS, DISTANCES, description, items, measurements
from synthetic_pictures import drawn_examples, jpeg

from magc_model.errors import EvaluationError
from magc_model.evaluate.measurement import ORIGINAL, Cost, Measurement, On
from magc_model.evaluate.paper import paper_results
from magc_model.evaluate.report.curves import metric_plots
from magc_model.evaluate.report.document import page_html
from magc_model.evaluate.report.paper_rows import TABLE_1, TABLE_3, codec_of_row
from magc_model.evaluate.report.paper_tables import paper_tables
from magc_model.evaluate.report.pictures import embed
from magc_model.evaluate.report.sections import sections
from magc_model.evaluate.report.table import Table
from magc_model.evaluate.report.write import write_report
from magc_model.evaluate.results import CodecInfo, Results, Statistics, read_results
from magc_model.evaluate.summarise import summarise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FEW = Statistics(draws=100, distance_draws=20, seed=0)
FIVE = tuple(each for each in CODECS if each.info.name in ("magc:tiny", "jpeg", "webp", "avif", "vvc"))


@pytest.fixture(scope="module")
def results() -> Results:
    return summarise(measurements(items(tiles=6, scenes=1), FIVE), description(FIVE), DISTANCES, FEW)


@pytest.fixture(scope="module")
def folder(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(folder, results, drawn_examples(results, On.TILES))
    return folder


def table_of(results: Results, name: str) -> Table:
    return next(each for each in paper_tables(results) if each.name == name)


def test_all_files_are_there_and_say_the_same(folder: Path, results: Results) -> None:
    assert read_results(folder / "results.json") == results
    text, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    point = results.curve("vvc", On.SCENES)[1].metrics["lpips"]
    stated = f"{point.value:.3f} ({point.low:.3f} to {point.high:.3f})"
    assert stated in text
    assert f"{point.value:.3f}<small>{point.low:.3f} to {point.high:.3f}</small>" in page
    for each in results.missing:
        assert each.reason in text
        assert each.way_out in text
    for heading in ("Table 1 of the paper", "Table 2 of the paper", "Table 3 of the paper", "Time and memory"):
        assert heading in text
        assert heading in page
    for facts in (results.data, results.settings, results.run.facts):
        assert all(each.value in text for each in facts)
    linked = re.findall(r"\]\((plots/[^)]+)\)", text)
    assert len(linked) == len(set(linked)) == 2 * (11 + 5)
    for each in linked:
        assert ET.parse(folder / each).getroot().tag.endswith("svg")
    assert "nan" not in re.sub(r"[a-z]nan|nan[a-z]", "", text.lower())
    assert not re.search(r"(?<![\w-])None\b", text)


def test_the_same_results_give_the_same_files(folder: Path, results: Results, tmp_path: Path) -> None:
    write_report(tmp_path, results, drawn_examples(results, On.TILES))
    for each in ("results.json", "report.html", "report.md", "plots/lpips-tiles.svg"):
        assert (tmp_path / each).read_bytes() == (folder / each).read_bytes()


def test_every_table_has_a_cell_a_column(results: Results) -> None:
    tables = [getattr(part, "table", part) for section in sections(results) for part in section.parts]
    tables = [each for each in tables if isinstance(each, Table)]
    assert len(tables) > 20
    for table in tables:
        assert all(len(row.cells) == len(table.columns) for row in table.rows), table.name
        assert not table.groups or sum(span for _, span in table.groups) == len(table.columns), table.name
        assert table.rows, table.name


def test_table_1_is_the_papers_with_ours_beside(results: Results) -> None:
    table = table_of(results, "table-1-tiles")
    rows = {row.cells[0].text: row.cells for row in table.rows}
    assert list(rows)[:8] == list(paper_results().table1.rows)
    assert [cell.text for cell in rows["MAGC"][1:6]] == ["−0.3521", "−0.1464", "−166.06", "−2.9213", "−0.1165"]
    assert [cell.text for cell in rows["BPG"][1:6]] == ["0.0172", "−0.0013", "−11.965", "−0.2351", "−0.0101"]
    strong = {name: [cell.strong for cell in cells[1:6]] for name, cells in rows.items()}
    assert strong["MAGC"] == [True, True, True, False, False]
    assert strong["HL-RSCompNet"] == [False, False, False, True, True]
    column = [each.text for each in table.columns].index("BD-LPIPS ↓", 2)
    ours = next(each for each in results.bjontegaard if (each.codec, each.metric) == ("magc:tiny", "lpips"))
    assert rows["MAGC"][column].text == f"{ours.metric_deltas[0].delta.value:+.4f}".replace("-", "−")
    assert rows["MAGC"][column].under
    assert rows["VTM-23.3"][6].text == "VVC intra (vvenc)"
    assert rows["ELIC"][6].text == "not measured"
    assert "WebP" in rows  # measured here alone
    assert any("VVC intra (vvenc) stands in" in note for note in table.notes)
    assert any("ELIC by a baseline" in note for note in table.notes)


def named(name: str, label: str = "") -> CodecInfo:
    return CodecInfo(name, label or name, "1", uses_map=False)


@pytest.mark.parametrize(
    ("row", "codecs", "found"),
    [
        ("VTM-23.3", [named("vvc"), named("vtm:/opt/vtm")], "vtm:/opt/vtm"),
        ("VTM-23.3", [named("hevc"), named("vvc")], "vvc"),
        ("MAGC", [named("magc:a,map=off", "MAGC, no map"), named("magc:a", "MAGC")], "magc:a"),
        ("MAGC", [named("magc:a,steps=9", "MAGC (magc:a,steps=9)")], "magc:a,steps=9"),
        ("MAGC w/o map", [named("magc:a", "MAGC"), named("magc:b", "MAGC, no map, faithful")], "magc:b"),
        ("MAGC w/o SPADE block", [named("magc:c", "MAGC, no SPADE"), named("magc:a", "MAGC")], "magc:c"),
        ("ELIC", [named("baseline:a", "ELIC + map"), named("baseline:b", "ELIC")], "baseline:b"),
        ("ELIC + map", [named("baseline:a", "ELIC + map"), named("baseline:b", "ELIC")], "baseline:a"),
        ("HiFiC + map", [named("baseline:runs/hific-map", "HiFiC")], None),
        ("MS-ILLM", [named("jpeg")], None),
    ],
)
def test_a_row_of_the_paper_finds_its_codec(row: str, codecs: list[CodecInfo], found: str | None) -> None:
    rows = {each.name: each for each in (*TABLE_1, *TABLE_3)}
    codec = codec_of_row(rows[row], codecs)
    assert (codec.name if codec else None) == found


def test_what_results_say_is_not_run(results: Results) -> None:
    evil = '</script><script>document.title="taken"</script>{{data}}'
    spoilt = results._replace(title=evil, codecs=(results.codecs[0]._replace(label=evil), *results.codecs[1:]))
    page = page_html(spoilt, sections(spoilt), embed(drawn_examples(spoilt, On.TILES, 1), spoilt.codecs)).decode()
    assert page.count("<script") == 2
    assert '<script>document.title="taken"' not in page


def test_pictures_end_where_the_page_is_full_and_odd_ones_are_refused(results: Results) -> None:
    examples = drawn_examples(results, On.TILES, 3)
    size = len(json.dumps(embed(examples[:1], results.codecs).examples))
    held = embed(iter(examples), results.codecs, limit_bytes=int(size * 1.5))
    assert (len(held.examples), held.left_out) == (1, 2)
    page = page_html(results, sections(results), held).decode()
    assert "2 more did not fit into the page" in page
    odd = examples[0].decoded[0]
    for spoilt in (odd._replace(picture=odd.picture[:64]), odd._replace(codec="who")):
        with pytest.raises(EvaluationError, match="as the original, by one of the codecs described"):
            embed([examples[0]._replace(decoded=(spoilt,))], results.codecs)


def test_a_report_without_pictures_scenes_anchor_or_map_is_a_report(tmp_path: Path) -> None:
    few = tuple(each for each in CODECS if not each.info.uses_map)[:1]
    bare = description(few, anchor=None)._replace(missing=(), footprints=(), run=(), data=(), settings=())
    found = summarise(
        (each._replace(confusions={}) for each in measurements(items(tiles=3, scenes=0), few)),
        bare._replace(metrics=bare.metrics[:-1], classes={}),
        DISTANCES,
        FEW,
    )
    left_over = tmp_path / "plots" / "of-a-metric-that-is-gone.svg"
    left_over.parent.mkdir()
    left_over.write_text("<svg/>")
    write_report(tmp_path, found)
    assert not left_over.exists()
    text = (tmp_path / "report.md").read_text()
    assert all(each.name in text for each in left_over.parent.iterdir())
    assert "JPEG was measured at 5 settings in all on 3 tiles" in text
    assert "No anchor was chosen" in text
    assert 'id="pictures"' not in (tmp_path / "report.html").read_text()


def test_real_files_of_real_pictures_come_out_as_they_are(tmp_path: Path) -> None:
    """JPEG and WebP of drawn pictures, with PSNR measured here: more bytes, more decibels, the two told apart."""
    from synthetic_pictures import drawn_picture

    def webp(picture: np.ndarray, quality: int) -> tuple[np.ndarray, int]:
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "WEBP", quality=quality)
        return np.asarray(Image.open(io.BytesIO(stream.getvalue())).convert("RGB")), len(stream.getvalue())

    def measured() -> Iterator[Measurement]:
        for name, codec in (("jpeg", jpeg), ("webp", webp)):
            for quality in (5, 20, 50, 80, 95):
                for number in range(5):
                    original = drawn_picture(number, 256)
                    decoded, size = codec(original, quality)
                    psnr = 10 * np.log10(255**2 / np.square(original.astype(float) - decoded).mean())
                    values = {"psnr-rgb": np.array([psnr])}
                    cost = Cost(size, None, 0.01, 0.01)
                    yield Measurement(name, float(quality), On.TILES, f"{number}", 256, 256, cost, values, {}, {})

    whole = description()
    codecs = tuple(each for each in whole.codecs if each.name in ("jpeg", "webp"))
    metrics = tuple(each for each in whole.metrics if each.name == "psnr-rgb")
    found = summarise(measured(), whole._replace(codecs=codecs, metrics=metrics, classes={}, anchor="jpeg"))
    for name in ("jpeg", "webp"):
        curve = found.curve(name, On.TILES)
        assert [each.rate for each in curve] == [5, 20, 50, 80, 95]
        assert (np.diff([each.metrics["psnr-rgb"].value for each in curve]) > 0).all()
    delta = found.bjontegaard[0]
    assert (delta.codec, delta.metric) == ("webp", "psnr-rgb")
    assert all(fit.refused is None for fit in delta.metric_deltas)
    assert all(fit.delta.low <= fit.delta.value <= fit.delta.high for fit in delta.metric_deltas)
    write_report(tmp_path, found)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, which is in magc[dev]")
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"needs a browser, none of {', '.join(BROWSERS)} is installed here")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, folder: Path) -> Iterator[Callable[..., Page]]:
    """Opens the report; at the end no page may have complained, nor asked anyone for anything."""
    said: list[str] = []
    requested: list[str] = []
    contexts = []

    def opener(size: dict[str, int] = WIDE, path: Path | None = None) -> Page:
        contexts.append(browser.new_context(viewport=size))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: requested.append(request.url))
        page.goto((path or folder / "report.html").as_uri())
        page.wait_for_selector("html[data-ready]", timeout=60_000)
        return page

    yield opener
    for each in contexts:
        each.close()
    assert not said
    assert {url.split(":")[0] for url in requested} <= {"file", "data"}


def shown(page: Page) -> np.ndarray:
    picture = Image.open(io.BytesIO(page.locator("#stage").screenshot()))
    return np.asarray(picture.convert("RGB").resize((128, 128), Image.Resampling.BOX), np.int64)


def test_the_page_holds_everything_and_asks_nothing_of_anyone(open_page: Callable[..., Page], results: Results) -> None:
    page = open_page()
    assert page.inner_text("h1") == results.title
    assert page.locator("section").count() == 9
    assert page.locator("nav a").count() == 9
    assert page.locator(".plot svg").count() == 2 * (11 + 5)
    assert page.locator("#lpips-tiles .paper path").count() == 7


def test_the_browser_would_not_let_it_ask(browser: Browser, folder: Path) -> None:
    page = browser.new_page()
    page.goto((folder / "report.html").as_uri())
    assert page.evaluate("fetch('https://example.org').then(() => 'sent', () => 'refused')") == "refused"
    page.close()


def test_swiping_uncovers_the_other_picture(open_page: Callable[..., Page], results: Results) -> None:
    page = open_page()
    example = drawn_examples(results, On.TILES, 1)[0]
    page.select_option("#left-codec", label="Original")
    page.select_option("#right-codec", label="JPEG")
    page.select_option("#right-rate", index=0)
    decoded = next(each for each in example.decoded if each.codec == "jpeg")
    page.locator("#stage").scroll_into_view_if_needed()
    box = page.locator("#stage").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 210, steps=4)
    page.mouse.up()
    assert page.input_value("#slider") == "75"
    picture = shown(page)
    left, right = np.s_[20:120, 4:92], np.s_[20:120, 100:124]  # away from divider and names
    assert np.abs(picture[left] - example.original[left]).mean() < 2
    assert np.abs(picture[right] - decoded.picture[right]).mean() < 2
    assert np.abs(picture[right] - example.original[right]).mean() > 5
    caption = page.inner_text("#right-caption")
    assert f"{decoded.file_bytes:,} bytes" in caption
    error = np.square(example.original.astype(float) - decoded.picture).mean()
    assert f"PSNR {10 * np.log10(255**2 / error):.1f} dB" in caption


def test_the_swipe_is_used_by_keyboard(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.focus("#slider")
    before = shown(page)
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    assert page.input_value("#slider") == "45"
    page.keyboard.press("Home")
    assert page.input_value("#slider") == "0"
    assert np.abs(shown(page) - before).max() > 10
    # Every control of the viewer is reached by Tab and has a name.
    page.focus("#example")
    names = []
    for _ in range(8):
        names.append(
            page.evaluate("""() => { const e = document.activeElement;
            return e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent; }""").strip()
        )
        page.keyboard.press("Tab")
    assert names[0].startswith("Place")
    # Left shows the original, so there is no rate of it to choose.
    assert names[1:5] == [
        "Left: codec", "Right: codec", "Right: rate", "Divider between left and right",
    ]  # fmt: skip
    page.locator("#strip button", has_text="AVIF").focus()
    page.keyboard.press("Enter")
    assert page.locator("#right-codec option:checked").inner_text() == "AVIF"
    assert page.get_attribute("#strip [aria-pressed=true]", "title") == "Show on the right"


def test_another_place_keeps_the_codecs_that_were_chosen(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.select_option("#right-codec", label="WebP")
    page.select_option("#right-rate", index=3)
    rate = page.locator("#right-rate option:checked").inner_text()
    source = page.get_attribute("#right img", "src")
    page.select_option("#example", index=1)
    assert page.locator("#right-codec option:checked").inner_text() == "WebP"
    assert page.locator("#right-rate option:checked").inner_text() == rate
    assert page.get_attribute("#right img", "src") != source
    page.select_option("#left-codec", label="Map")
    assert page.inner_text("#left-caption") == "Map"


def test_curves_are_hidden_and_shown(open_page: Callable[..., Page]) -> None:
    page = open_page()
    curve = page.locator("#lpips-tiles path.s1").first
    assert curve.is_visible()
    page.click('[data-toggle="1"] >> nth=0')
    assert not curve.is_visible()
    assert page.get_attribute('[data-toggle="1"] >> nth=1', "aria-pressed") == "false"
    page.click('[data-toggle="paper"]')
    assert not page.locator("#lpips-tiles .paper").first.is_visible()
    page.click('[data-toggle="paper"]')
    assert page.locator("#lpips-tiles .paper").first.is_visible()


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_nothing_is_wider_than_the_window(open_page: Callable[..., Page], size: dict[str, int]) -> None:
    page = open_page(size)
    assert page.evaluate("document.documentElement.scrollWidth") == size["width"]
    for each in page.locator("details").all():
        each.evaluate("(details) => { details.open = true; }")
    assert page.evaluate("document.documentElement.scrollWidth") == size["width"]
    small = page.evaluate(
        "[...document.querySelectorAll('main p, main td, main th')].filter((e) => parseFloat(getComputedStyle(e).fontSize) < 11).length"
    )
    assert small == 0


def test_it_prints_on_sensible_pages(open_page: Callable[..., Page]) -> None:
    page = open_page()
    pdf = page.pdf(prefer_css_page_size=True)
    sizes = {tuple(map(round, map(float, each))) for each in re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", pdf)}
    assert sizes == {(842, 595)}
    assert 10 <= len(re.findall(rb"/Type /Page\b", pdf)) <= 35
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    left, right = (page.locator(f"#{side}").bounding_box() for side in ("left", "right"))
    assert left["x"] + left["width"] <= right["x"]
    assert left["y"] == right["y"]
    assert page.locator("details[open]").count() == page.locator("details").count()
    assert not page.locator("#slider").is_visible()
    # No table is cut off at the paper's edge: 273 mm at 96 dots an inch.
    page.set_viewport_size({"width": 1031, "height": 700})
    widths = page.evaluate(
        "[...document.querySelectorAll('table')].map((e) => [e.closest('figure').id, e.scrollWidth])"
    )
    assert {name: width for name, width in widths if width > 1031} == {}


def test_dark_windows_are_dark_and_paper_never_is(open_page: Callable[..., Page]) -> None:
    page = open_page()
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.keyboard.press("t")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.querySelector('.plot text')).fill") == "rgb(27, 36, 34)"


def test_plots_leave_the_originals_out_where_they_are_compared_with_themselves(results: Results) -> None:
    plots = {each.metric: each.plot for on in On for each in metric_plots(results, on)}
    ours = next(each for each in results.metrics if each.name.startswith("psnr"))
    assert plots[ours.name].ceiling is None
    assert plots["map-consistency"].ceiling is not None


def test_originals_are_measured_in_no_codecs_place(results: Results) -> None:
    assert ORIGINAL not in {each.codec for each in results.points}
    assert {each.on for each in results.originals} == set(On)
