"""Makes the picture for docs/exploring.md: the explore page of the Banepa sample in headless Chromium.

    python docs/screenshots.py [--out docs/explore.webp]

The picture shows OpenAerialMap imagery (CC-BY-4.0) and OpenStreetMap data (ODbL), so it is made and not kept here.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from magc_data.build import build
from magc_data.config import BuildConfig
from magc_data.explore.commands import write_dataset_page

MAX_BYTES = 300_000


def main() -> None:
    """Build the sample, write its page, open it, take the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "explore.webp")
    out = parser.parse_args().out
    browser_path = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
    if browser_path is None:
        sys.exit("needs Chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        data, html = Path(folder) / "banepa", Path(folder) / "explore.html"
        config = BuildConfig(imagery="sample-banepa", osm="sample-banepa", zoom=18, out=data)
        build(config, lambda _: None, quiet=True)
        write_dataset_page(data, html, None, lambda _: None, lambda _: None, quiet=True, unused={})
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(html.as_uri())
        page.wait_for_selector("html[data-ready]")
        page.wait_for_timeout(1000)  # pictures are decoded in the background
        picture = Image.open(io.BytesIO(page.screenshot()))
        browser.close()
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=80, method=6)
    if stream.tell() > MAX_BYTES:
        sys.exit(f"the picture is {stream.tell()} bytes, expected up to {MAX_BYTES}: lower its quality")
    out.write_bytes(stream.getvalue())
    sys.stdout.write(f"{out}: {stream.tell()} bytes\n")


if __name__ == "__main__":
    main()
