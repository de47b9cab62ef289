"""How quick the page of `magc-data explore` is with many tiles: writing it, opening it, and each thing that one does.

    python benchmarks/explore_page.py [--tiles 50000]

Times are from the event to the second frame after it, in headless Chromium, which draws without a GPU.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from big_dataset import write_big_dataset
from playwright.sync_api import Page, sync_playwright

from magc_data.explore.document import write_page
from magc_data.explore.pictures import plan_pictures
from magc_data.explore.table import read_table

ACTIONS = {
    "filter by a class": "slide('building', 'least', 10 + n)",
    "filter by quality": "slide('alignment', 'least', 40 + n)",
    "order by quality": "choose('order-by', n % 2 ? 'alignment' : 'blur')",
    "colour by a class": "choose('color-by', n % 2 ? 'forest' : 'building')",
    "zoom the map": "document.getElementById(n % 2 ? 'zoom-in' : 'zoom-out').click()",
    "scroll thumbnails": "document.getElementById('grid').scrollTop += 4000",
    "next tile": "document.getElementById('next').click()",
    "flip images and maps": "document.getElementById(n % 2 ? 'flip-map' : 'flip-image').click()",
}
TIMED = """async ([action, n]) => {
  const slide = (column, end, value) => {
    const input = document.querySelector(`input[data-column="${column}"][data-end="${end}"]`);
    input.value = value;
    input.dispatchEvent(new Event("input"));
  };
  const choose = (id, label) => {
    const select = document.getElementById(id);
    select.value = [...select.options].find((each) => each.text === label).value;
    select.dispatchEvent(new Event("change"));
  };
  const start = performance.now();
  eval(action);
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return performance.now() - start;
}"""


def median_ms(page: Page, action: str, runs: int = 15) -> float:
    return statistics.median(page.evaluate(TIMED, [action, n]) for n in range(runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiles", type=int, default=50_000)
    tiles = parser.parse_args().tiles
    browser_path = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
    if browser_path is None:
        sys.exit("needs Chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        table = read_table(write_big_dataset(Path(folder) / "dataset", tiles))
        path = Path(folder) / "explore.html"
        start = time.perf_counter()
        plan = plan_pictures(table, 64_000_000)
        with path.open("wb") as stream:
            write_page(stream, table, plan)
        seconds = time.perf_counter() - start
        held = f"{len(plan.rows)} pictures of {plan.size_px} px, {path.stat().st_size / 1e6:.1f} MB"
        print(f"{tiles} tiles, {held}: {seconds:.0f} s to write")
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        start = time.perf_counter()
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]", timeout=120_000)
        print(f"{'open':<22} {(time.perf_counter() - start) * 1000:6.0f} ms")
        print(f"{'nothing (two frames)':<22} {median_ms(page, ''):6.0f} ms")
        for name, action in ACTIONS.items():
            print(f"{name:<22} {median_ms(page, action):6.0f} ms")
        browser.close()


if __name__ == "__main__":
    main()
