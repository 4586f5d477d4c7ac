"""Takes the README's picture of a report: python benchmarks/screenshot.py [reports/tiny/report.html] [docs/report.png]."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
]


def main(page: str = "reports/tiny/report.html", picture: str = "docs/report.png") -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        tab = browser.new_page(viewport={"width": 1280, "height": 1180}, color_scheme="light")
        tab.goto(Path(page).resolve().as_uri())
        tab.wait_for_selector("html[data-figures-done]", state="attached")
        tab.screenshot(path=picture)
        browser.close()
    print(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
