"""The explore page in headless Chromium: opens, swipes, filters, is used by keyboard, and stays quick with 50,000 tiles."""

from __future__ import annotations

import io
import json
import shutil
import threading
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from big_dataset import write_big_dataset
from PIL import Image
from tiny_world import Opl
from wave_service import mercator_px, running_waves

from magc_data.build import build
from magc_data.config import BuildConfig
from magc_data.explore.document import write_page
from magc_data.explore.pictures import PicturePlan, plan_pictures
from magc_data.explore.server import ExploreServer
from magc_data.explore.table import read_table, split_color
from magc_data.ground_grid import GroundGrid, parse_key
from magc_data.shards.reader import decode_image, read_members

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, which is in magc[dev]")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

TILES = 400
WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
NEXT_FRAMES = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"needs a browser, none of {', '.join(BROWSERS)} is installed here")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_big_dataset(tmp_path_factory.mktemp("explore") / "dataset", TILES)


def write(data: Path, out: Path, pictures: int | None = None) -> Path:
    table = read_table(data)
    plan = plan_pictures(table, 64_000_000) if pictures is None else PicturePlan(64, list(range(pictures)))
    with out.open("wb") as stream:
        write_page(stream, table, plan)
    return out


@pytest.fixture(scope="module")
def file(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(data, tmp_path_factory.mktemp("page") / "explore.html")


class Opened:
    """A page in a window of its own, and everything that it said or asked for."""

    def __init__(self, browser: Browser, url: str, size: dict[str, int] = WIDE) -> None:
        self.context = browser.new_context(viewport=size)
        self.page: Page = self.context.new_page()
        self.said: list[str] = []
        self.requested: list[str] = []
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.page.goto(url)
        self.page.wait_for_selector("html[data-ready]", timeout=60_000)


@pytest.fixture
def open_page(browser: Browser, file: Path) -> Iterator[Callable[..., Page]]:
    """Opens pages; at the end none of them may have complained."""
    opened: list[Opened] = []

    def opener(url: str | None = None, size: dict[str, int] = WIDE) -> Page:
        opened.append(Opened(browser, url or file.as_uri(), size))
        return opened[-1].page

    yield opener
    said = [text for each in opened for text in each.said]
    for each in opened:
        each.context.close()
    assert not said


def until(page: Page, condition: str) -> None:
    """Wait for something; not by playwright's own way, which the page's policy forbids (it evaluates strings there)."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"not within ten seconds: {condition}")


def key(page: Page) -> str:
    return page.inner_text("#tile-key")


def shown(page: Page) -> int:
    page.evaluate(NEXT_FRAMES)
    return int(page.inner_text("#shown").split()[0].replace(",", ""))


def slide(page: Page, column: str, end: str, step: int) -> None:
    page.eval_on_selector(
        f'input[data-column="{column}"][data-end="{end}"]',
        "(input, step) => { input.value = step; input.dispatchEvent(new Event('input')); }",
        step,
    )


def test_it_opens_from_a_file_and_asks_nothing_of_anyone(browser: Browser, file: Path, data: Path) -> None:
    opened = Opened(browser, file.as_uri())
    page = opened.page
    assert page.inner_text("#title") == data.name
    assert page.inner_text("#summary").startswith("400 tiles · ")
    assert shown(page) == TILES
    until(page, "[...document.querySelectorAll('.cell img')].every((each) => each.naturalWidth === 256)")
    assert "made-up" in page.text_content("#source-details")
    assert "Nobody (CC0-1.0)" in page.inner_text("#sources")
    assert not opened.said
    assert {url.split(":")[0] for url in opened.requested} <= {"file", "data"}
    # The browser would not let it: the page's own policy.
    assert page.evaluate("fetch('https://example.org').then(() => 'sent', () => 'refused')") == "refused"
    opened.context.close()


def test_swiping_uncovers_the_map(open_page: Callable[..., Page], data: Path) -> None:
    page = open_page()
    page.click(".cell >> nth=3")
    until(page, "document.getElementById('stage-map').complete")
    stage = page.locator("#stage")
    box = stage.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 90, steps=4)
    page.mouse.up()
    assert page.input_value("#slider") == "75"
    picture = np.asarray(Image.open(io.BytesIO(stage.screenshot())).convert("RGB").resize((256, 256)), np.int64)
    table = read_table(data)
    row = table.rows["key"].to_pylist().index(key(page))
    members = read_members(data, table.row(row))
    image = decode_image(members.image).astype(np.int64)
    colored = np.asarray(Image.open(io.BytesIO(members.semantic_map)).convert("RGB"), np.int64)
    left, right = np.s_[70:200, 20:110], np.s_[60:120, 210:235]  # away from the divider and the words
    assert np.abs(picture[left] - image[left]).mean() < 10 < np.abs(picture[left] - colored[left]).mean()
    assert np.abs(picture[right] - colored[right]).mean() < 3 < np.abs(picture[right] - image[right]).mean()
    page.click("#modes [data-mode=map]")
    picture = np.asarray(Image.open(io.BytesIO(stage.screenshot())).convert("RGB").resize((256, 256)), np.int64)
    assert np.abs(picture[left] - colored[left]).mean() < 3


def test_everything_can_be_done_by_keyboard(open_page: Callable[..., Page]) -> None:
    page = open_page()
    keys = page.evaluate("JSON.parse(document.getElementById('data').textContent).keys")
    start = keys.index(key(page))
    page.keyboard.press("ArrowRight")
    assert key(page) == keys[start + 1]
    page.keyboard.press("ArrowLeft")
    assert key(page) == keys[start]
    page.keyboard.press("m")
    assert page.get_attribute("#flip-map", "aria-pressed") == "true"
    assert page.locator(".cell img.map").count() == page.locator(".cell img").count() > 10
    assert page.get_attribute("#stage", "data-mode") == "map"
    page.keyboard.press("]")
    assert (page.get_attribute("#stage", "data-mode"), page.input_value("#slider")) == ("swipe", "55")
    page.keyboard.press("/")
    page.keyboard.type(keys[200])
    page.keyboard.press("Enter")
    until(page, "document.getElementById('shown').textContent.startsWith('1 of')")
    page.keyboard.press("Enter")
    assert key(page) == keys[200]
    page.keyboard.press("Escape")
    assert shown(page) == TILES
    page.keyboard.press("?")
    assert page.is_visible("#about")
    page.keyboard.press("Escape")
    assert not page.is_visible("#about")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.keyboard.press("t")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    # The grid is one stop of Tab; inside it arrows move by rows.
    page.focus("#grid")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    per_row = page.evaluate("Math.round(document.getElementById('sheet').clientWidth / 128)")
    assert key(page) == keys[per_row]
    active = page.get_attribute("#grid", "aria-activedescendant")
    assert page.get_attribute(f"#{active}", "aria-selected") == "true"
    page.keyboard.press("End")
    assert key(page) == keys[-1]
    # Every control is reached by Tab and has a name.
    page.focus("#query")
    names = []
    for _ in range(80):
        names.append(
            page.evaluate("""() => { const e = document.activeElement;
            return e === document.body ? null : e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent; }""")
        )
        if names[-1] is None:
            break
        page.keyboard.press("Tab")
    assert all(name.strip() for name in names[:-1]), names
    assert {"Search by key", "building, least", "alignment, most", "Divider between image and map", "Zoom in"} <= set(
        names[:-1]
    )


def test_filters_agree_with_the_index(open_page: Callable[..., Page], data: Path) -> None:
    page = open_page()
    rows = pq.read_table(data / "index.parquet").to_pandas()
    page.click(".chip:has-text('train')")
    kept = rows[rows["split"] != "train"]
    assert 0 < len(kept) < TILES
    assert shown(page) == len(kept)
    building = rows["fraction_building"]
    slide(page, "building", "least", 40)
    least = np.float32(building.max() * np.float64(40) / 200)
    kept = kept[kept["fraction_building"] >= least]
    assert len(kept) > 0
    assert shown(page) == len(kept)
    alignment = rows["alignment"]
    slide(page, "alignment", "most", 120)
    low, high = float(alignment.min()), float(alignment.max())
    kept = kept[kept["alignment"] <= np.float32(low + (high - low) * 120 / 200)]  # not measured: does not pass
    assert len(kept) > 0
    assert shown(page) == len(kept)
    page.select_option("#order-by", label="alignment")
    labels = [page.get_attribute(f"#cell-{position}", "aria-label") for position in range(min(5, len(kept)))]
    assert [label.split(",")[0] for label in labels] == kept.sort_values("alignment")["key"].tolist()[:5]
    page.fill("#query", "no such key")
    assert shown(page) == 0
    assert page.is_visible("#nothing")
    page.click("#reset-here")
    assert shown(page) == TILES
    assert page.is_disabled("#reset")


def test_the_map_shows_tiles_in_their_places_and_opens_them(open_page: Callable[..., Page], data: Path) -> None:
    page = open_page()
    table = read_table(data)
    x, y = table.rows["x"].to_numpy(), table.rows["y"].to_numpy()
    box = page.locator("#map").bounding_box()
    width, height = x.max() + 1 - x.min(), y.max() + 1 - y.min()
    px = min((box["width"] - 56) / width, (box["height"] - 88) / height)
    middle_x, middle_y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    shot = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    number = TILES // 2 + 7
    at_x = middle_x + (x[number] + 0.5 - (x.min() + x.max() + 1) / 2) * px
    at_y = middle_y + (y[number] + 0.5 - (y.min() + y.max() + 1) / 2) * px
    assert tuple(shot[int(at_y), int(at_x)]) == split_color(table.row(number)["split"])
    page.mouse.move(at_x, at_y)
    page.wait_for_selector("#tip:not([hidden])")
    assert page.inner_text("#tip b") == table.row(number)["key"]
    page.mouse.click(at_x, at_y)
    assert key(page) == table.row(number)["key"]
    lat, lon = table.row(number)["lat"], table.row(number)["lon"]
    assert page.get_attribute("#osm", "href") == f"https://www.openstreetmap.org/#map=17/{lat:.6f}/{lon:.6f}"
    scale = page.inner_text("#scale-bar")
    page.mouse.wheel(0, -1200)
    until(page, f"document.getElementById('scale-bar').innerText !== {json.dumps(scale)}")
    page.mouse.click(at_x, at_y)  # the wheel zooms about the pointer: the same tile is still under it
    assert key(page) == table.row(number)["key"]
    assert page.url.endswith("#" + key(page))
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert key(page) == table.row(number)["key"]


@pytest.mark.slow
def test_tiles_of_constant_ground_resolution_lie_where_they_are(
    open_page: Callable[..., Page], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On both sides of a band's edge, where columns do not lie under one another; each opens under its own middle."""
    monkeypatch.setenv("MAGC_CACHE_DIR", str(tmp_path / "cache"))
    grid = GroundGrid.of(1.07)
    south = grid.band(grid.row_of(60.0)).south
    shape = shapely.box(24.99, south - 0.004, 25.005, south + 0.004)
    opl = Opl()
    opl.way(list(shape.exterior.coords), "building=yes")
    osm = opl.write(tmp_path / "world.osm.opl")
    with running_waves(shape) as service:
        asked = BuildConfig(
            bbox=shape.bounds, gsd=1.07, imagery=service.url, osm=str(osm), rate=2000.0, workers=1, out=tmp_path / "d"
        )
        build(asked, lambda _: None, quiet=True)
    table = read_table(tmp_path / "d")
    keys = table.rows["key"].to_pylist()
    assert len({parse_key(each).band for each in keys}) == 2
    page = open_page(write(tmp_path / "d", tmp_path / "ground.html").as_uri())
    assert "zoom" not in page.inner_text("#summary")
    assert shown(page) == len(keys)
    west, south, east, north = np.array([parse_key(each).bounds_lonlat for each in keys]).T
    x0, y0 = mercator_px(west, north, 17)
    x1, y1 = mercator_px(east, south, 17)
    box = page.locator("#map").bounding_box()
    width, height = x1.max() - x0.min(), y1.max() - y0.min()
    px = min((box["width"] - 56) / width, (box["height"] - 88) / height)
    for number in range(0, len(keys), max(1, len(keys) // 12)):
        # Every square by its middle, and by a place near to its corner: nothing is rounded to whole tiles.
        for part in (0.5, 0.08, 0.92):
            x, y = (start[number] + part * (end[number] - start[number]) for start, end in ((x0, x1), (y0, y1)))
            at_x = box["x"] + box["width"] / 2 + (x - (x0.min() + x1.max()) / 2) * px
            at_y = box["y"] + box["height"] / 2 + (y - (y0.min() + y1.max()) / 2) * px
            page.mouse.click(at_x, at_y)
            assert key(page) == keys[number]
    lon, lat = (table.row(number)[name] for name in ("lon", "lat"))
    place = page.get_attribute("#osm", "href").rpartition("#map=")[2].split("/")[1:]
    assert [float(each) for each in place] == pytest.approx([lat, lon], abs=2e-5)


def test_a_datasets_words_are_never_run(open_page: Callable[..., Page], data: Path, tmp_path: Path) -> None:
    attack = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
    copy = shutil.copytree(data, tmp_path / "<img src=x onerror=alert(1)>")
    manifest = json.loads((copy / "dataset.json").read_bytes())
    manifest["classes"][9]["name"] = attack
    manifest["sources"]["imagery"]["attribution"] = attack
    (copy / "dataset.json").write_text(json.dumps(manifest))
    index = pq.read_table(copy / "index.parquet")
    index = index.rename_columns(
        [f"fraction_{attack}" if name == "fraction_building" else name for name in index.column_names]
    )
    index = index.set_column(index.column_names.index("capture_date"), "capture_date", [[attack] * TILES])
    index = index.append_column(f"quality {attack}", [np.arange(TILES, dtype=np.float32)])
    pq.write_table(index, copy / "index.parquet")
    page = open_page(write(copy, tmp_path / "page.html").as_uri())
    page.keyboard.press("?")
    for place in ("#title", "#class-facets", "#measured-facets", "#sources", "#source-details", "#facts"):
        text = page.text_content(place)
        assert "onerror" in text, place
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src=x]").count() == 0
    page.keyboard.press("Escape")


def test_no_script_but_its_own_may_run(browser: Browser, file: Path) -> None:
    opened = Opened(browser, file.as_uri())
    opened.page.evaluate(
        """document.body.append(Object.assign(document.createElement('script'), { textContent: 'window.hacked = 1' }))"""
    )
    assert opened.page.evaluate("window.hacked") is None
    assert "Content Security Policy" in "".join(opened.said)
    opened.context.close()


def test_it_is_usable_on_a_phone(open_page: Callable[..., Page]) -> None:
    page = open_page(size=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert not page.is_visible("#filters")
    page.click("#show-filters")
    page.wait_for_selector("#filters", state="visible")
    page.click(".chip >> nth=0")
    page.click("#filters .close")
    page.wait_for_selector("#filters", state="hidden")
    assert page.inner_text("#active-filters") == "1"
    page.click(".cell >> nth=1")
    page.wait_for_selector("#tile", state="visible")
    assert page.locator("#stage").bounding_box()["width"] > 300
    page.click("#tile .close")
    page.wait_for_selector("#tile", state="hidden")
    for button in page.locator("#bar button:visible").all():
        box = button.bounding_box()
        assert box["x"] + box["width"] <= PHONE["width"]


def test_it_prints(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.emulate_media(media="print")
    assert not page.is_visible("#filters")
    assert page.is_visible("#map")
    assert page.is_visible("#sources")
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_tiles_without_a_picture_are_told_apart(open_page: Callable[..., Page], data: Path, tmp_path: Path) -> None:
    page = open_page(write(data, tmp_path / "few.html", pictures=2).as_uri())
    assert "pictures of 2 of its 400 tiles" in page.inner_text("#notice")
    assert page.locator(".cell img:visible").count() == 0 or page.locator(".cell img:visible").count() <= 2
    page.focus("#grid")
    page.keyboard.press("End")
    assert "explore --serve" in page.inner_text("#stage-empty")
    assert "gradient" in page.evaluate("document.querySelector('.cell.selected').style.background")
    page.keyboard.press("Home")
    assert "64 pixels" in page.inner_text("#thumbnail-note")


def test_the_served_page_fetches_pictures_as_they_are_looked_at(browser: Browser, data: Path) -> None:
    with ExploreServer(read_table(data), 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            opened = Opened(browser, server.url)
            page = opened.page
            until(page, "[...document.querySelectorAll('.cell img')].every((each) => each.naturalWidth === 128)")
            until(page, "document.getElementById('stage-image').naturalWidth === 256")
            asked = {url for url in opened.requested if "/thumbnail/" in url}
            assert 10 < len(asked) < 120
            page.eval_on_selector("#grid", "(grid) => { grid.scrollTop = grid.scrollHeight; }")
            page.wait_for_selector(f"#cell-{TILES - 1}")
            until(page, "[...document.querySelectorAll('.cell img')].every((each) => each.naturalWidth === 128)")
            assert all(url.startswith(server.url) for url in opened.requested)
            assert not opened.said
            opened.context.close()
        finally:
            server.shutdown()
            thread.join()


def test_with_50_000_tiles_it_stays_quick(open_page: Callable[..., Page], tmp_path: Path) -> None:
    """Limits are some five times what two cores with a software renderer need; figures: benchmarks/explore_page.py."""
    big = write_big_dataset(tmp_path / "big", 50_000)
    page = open_page(write(big, tmp_path / "big.html", pictures=500).as_uri())
    timed = (
        "async (act) => { const start = performance.now(); new Function(act)();"
        f" await {NEXT_FRAMES}; return performance.now() - start; }}"
    )
    slider = "document.querySelector('input[data-column=building][data-end=least]')"
    filtering = page.evaluate(timed, f"const s = {slider}; s.value = 20; s.dispatchEvent(new Event('input'));")
    assert 0 < shown(page) < 50_000
    zooming = page.evaluate(timed, "document.getElementById('zoom-in').click()")
    scrolling = max(
        page.evaluate(timed, f"document.getElementById('grid').scrollTop = {place}")
        for place in range(0, 900_000, 60_000)
    )
    assert filtering < 1000
    assert zooming < 500
    assert scrolling < 500
    assert page.locator(".cell").count() < 100  # only those in sight exist
