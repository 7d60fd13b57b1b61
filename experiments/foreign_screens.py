"""Screenshots and printed pages by a real Chromium, for `experiments.foreign`: web pages that packages carry."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from urllib.parse import unquote, urlparse

from PIL import Image
from playwright.sync_api import Page, Route, sync_playwright

from guda_core.errors import OptionError

SIZES = ((1440, 900), (390, 844), (1024, 768), (820, 1180), (1920, 700), (600, 1600))
PAPER = ((794, 1123), (1123, 794), (600, 400), (794, 1123))
FONTS = ("serif", "sans-serif", "monospace", "DejaVu Serif", "Liberation Sans")


SITE = "http://pages.invalid"


def _shots(visits: Sequence[tuple[Path | None, str, tuple[int, int]]]) -> Iterator[Image.Image]:
    """What (a file of a site, or HTML where there is none) shows in a window of a size. Nothing is fetched."""
    at: list[Path] = []  # the folder of the site that is shown

    def answer(route: Route) -> None:
        asked = at[-1] / unquote(urlparse(route.request.url).path).lstrip("/") if at else None
        if asked is not None and route.request.url.startswith(SITE) and asked.is_file():
            route.fulfill(path=asked)
        else:
            route.abort()

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise OptionError("No Chromium was found. Install one; screenshots are made with it.")
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page: Page = browser.new_page()
        page.route("**", answer)
        for file, html, (width, height) in visits:
            page.set_viewport_size({"width": width, "height": height})
            if file is not None:
                at.append(next(p for p in file.parents if p.name in ("dist", "package")))
                page.goto(f"{SITE}/{file.relative_to(at[-1]).as_posix()}", wait_until="domcontentloaded")
                page.wait_for_timeout(300)
            else:
                page.set_content(html)
            with Image.open(io.BytesIO(page.screenshot())) as im:
                yield im.convert("RGB")
        browser.close()


def screenshots(files: Sequence[Path], n: int) -> Iterator[Image.Image]:
    """At most n of the pages, in windows of different shapes."""
    step = max(1, len(files) // n)
    chosen = files[::step][:n] if len(files) >= n else list(files) * 6
    yield from _shots([(f, "", SIZES[i % len(SIZES)]) for i, f in enumerate(chosen[:n])])


def pages(texts: Sequence[Path], n: int) -> Iterator[Image.Image]:
    """n pages of dark text on paper: parts of the texts in several fonts and sizes."""
    lines = [
        line for t in texts for line in t.read_text(encoding="utf-8", errors="ignore").splitlines() if line.strip()
    ]
    visits = []
    for i in range(n):
        part = "".join(f"<p>{escape(line)}</p>" for line in lines[(37 * i) % max(1, len(lines) - 60) :][:60])
        style = (
            f"font: {10 + 3 * (i % 6)}px {FONTS[i % len(FONTS)]}; margin: {20 + 25 * (i % 3)}px; columns: {1 + i % 2}"
        )
        visits.append((None, f"<body style='{style}'><h2>Chapter {i + 1}</h2>{part}", PAPER[i % len(PAPER)]))
    yield from _shots(visits)
