"""Draw docs/figures/report.png, a picture of a report: needs chromium.

Run: OMP_NUM_THREADS=1 python benchmarks/picture.py runs/numbers/report.html
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

OUT = Path(__file__).parent.parent / "docs" / "figures" / "report.png"


def main(page_file: Path) -> None:
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1160, "height": 1240})
        page.goto(page_file.resolve().as_uri())
        page.wait_for_selector("body[data-drawn=yes]")
        page.screenshot(path=OUT)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
