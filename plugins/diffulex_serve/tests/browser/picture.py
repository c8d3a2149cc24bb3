"""Takes the picture of the page for the docs, a real answer half filled in: `picture.py docs/serving.png`."""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import expect

sys.path.insert(0, str(Path(__file__).parent))

from site_of_tests import chromium, site
from stage import Q, generate, part, unfold

SIZE = {"width": 1200, "height": 720}


def take(target: Path) -> None:
    """Ask, look again at the forward where about half of the answer is known, and take the picture."""
    with site("tiny/llada") as served, chromium() as browser:
        page = browser.new_page(viewport=SIZE, device_scale_factor=1.25)  # type: ignore[arg-type]
        page.goto(served.url)
        expect(part(page, "status")).to_have_text("Ready.", timeout=60_000)
        unfold(page, "Denoising")
        page.get_by_label("Accept above").fill("0.9999")
        generate(page, Q)
        expect(part(page, "status")).to_contain_text("Done: ", timeout=60_000)
        scrub = page.get_by_role("slider", name="Forward")
        scrub.focus()
        for _ in range(int(scrub.get_attribute("max") or 0) // 2):
            page.keyboard.press("ArrowLeft")
        page.get_by_label("Prompt", exact=True).focus()
        page.screenshot(path=target, full_page=True)


if __name__ == "__main__":
    take(Path(sys.argv[1]))
