"""A real Chromium for the screen tests: one for all of them, and a page that remembers what went wrong."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
# Of two switches of features the last one counts, so the first names are Playwright's. The others are the suggestions
# of the address bar: nobody sees them here, and they are a page of their own beside each page, half of what ours costs.
WITHOUT = (
    "AvoidCorsURLLoaderRestartOnRedirect", "AvoidUnnecessaryBeforeUnloadCheckSync", "DestroyProfileOnBrowserClose",
    "HttpsUpgrades", "HttpsFirstBalancedModeAutoEnable", "LensOverlay", "MediaRouter", "PaintHolding",
    "ThirdPartyStoragePartitioning", "OptimizationHints", "NetworkTimeServiceQuerying", "AimEnabled",
    "PreconnectToSearch", "WebUIOmniboxPopup", "WebUIOmniboxFullPopup", "WebUIOmniboxAimPopup",
)  # fmt: skip
ARGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
    f"--disable-features={','.join(WITHOUT)}",
)  # fmt: skip
LOOK = "GUDA_TEST_LOOK"  # a folder for pictures of the pages as the tests leave them; without it none are made
SLOW = int(
    os.environ.get("GUDA_TEST_SLOW_MS", "180000")
)  # milliseconds; a machine that does four other things needs some of them


def chromium_path() -> str | None:
    """Where a Chromium is on this machine."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def until(page: Page, true: Callable[[], bool]) -> None:
    """Wait until something on the server's side is true, while the page goes on living."""
    end = time.monotonic() + SLOW / 1000
    while not true():
        assert time.monotonic() < end, "it never came"
        page.wait_for_timeout(50)


# What says or shows something, ends beyond the window's right edge without "...", and cannot be scrolled to. gradio
# keeps the tabs that are in its menu there, unseen, to know how wide they would be.
CUT_OFF = """() => [...document.querySelectorAll('.gradio-container *')].filter(e => {
  const box = e.getBoundingClientRect(), texts = [...e.childNodes].filter(n => n.nodeType === Node.TEXT_NODE);
  const says = texts.some(n => n.textContent.trim()), out = box.right > innerWidth + 1;
  const ends = texts.map(n => { const r = new Range(); r.selectNode(n); return r.getBoundingClientRect().right; });
  if (!box.width || !box.height || e.closest('.tab-wrapper')) return false;
  if (!out && !ends.some(right => right > innerWidth + 1)) return false;
  if (!says && !['IMG', 'SVG', 'INPUT', 'TEXTAREA', 'BUTTON'].includes(e.tagName.toUpperCase())) return false;
  if (!e.checkVisibility({opacityProperty: true, visibilityProperty: true})) return false;
  for (let a = e; a; a = a.parentElement) {
    const style = getComputedStyle(a), scrolls = ['auto', 'scroll'].includes(style.overflowX);
    if (style.textOverflow === 'ellipsis') return false;
    if ((a !== e || !out) && scrolls && a.scrollWidth > a.clientWidth) return false;
  }
  return true;
}).map(e => `${e.tagName}: ${e.textContent.trim().slice(0, 60)}`)"""
_WARM: dict[Browser, BrowserContext] = {}


def new_page(browser: Browser, width: int, height: int, apart: bool) -> Page:
    """A page that finds the app's scripts in the cache of the pages before it. Where one of those is still open, or
    `apart` asks for it, it has a cache and connections of its own: of the latter a browser opens six to a server."""
    if browser not in _WARM:
        _WARM[browser] = browser.new_context()
    if apart or _WARM[browser].pages:
        return browser.new_page(viewport={"width": width, "height": height})
    page = _WARM[browser].new_page()
    page.set_viewport_size({"width": width, "height": height})
    return page


def go(page: Page, tab: str) -> None:
    """Open a tab, also one that a narrow screen keeps in its menu. Which of the two it is may change meanwhile: after
    another width, gradio lays the tabs out again."""
    from playwright.sync_api import TimeoutError as TookTooLong

    bar = page.get_by_role("tab", name=tab, exact=True)
    for _ in range(30):
        try:
            if bar.is_visible():
                bar.click(timeout=2000)
            else:
                page.locator(".overflow-menu > button").first.click(timeout=2000)
                page.locator(".overflow-dropdown").get_by_text(tab, exact=True).click(timeout=2000)
        except TookTooLong:
            continue
        return
    raise AssertionError(f"The tab '{tab}' could not be opened.")


class Watched:
    """A page that remembers where it asked and what it complained of. apart: shares nothing with other pages."""

    def __init__(
        self, browser: Browser, width: int = 1280, dark: bool = False, height: int = 900, apart: bool = False
    ) -> None:
        self.page: Page = new_page(browser, width, height, apart)
        self.page.set_default_timeout(SLOW)
        self.theme = "dark" if dark else "light"
        self.hosts: set[str] = set()
        self.faults: list[str] = []
        self.page.on("request", lambda r: self.hosts.add(urlparse(r.url).hostname or "local data"))
        self.page.on("pageerror", lambda e: self.faults.append(str(e)))
        self.page.on("console", lambda m: self.faults.append(m.text) if "NaN" in m.text else None)

    def open(self, url: str) -> Page:
        from playwright.sync_api import expect

        self.page.goto(f"{url}?__theme={self.theme}")
        expect(self.page.get_by_text("Quick, about")).to_be_visible(timeout=SLOW)
        return self.page

    def go(self, tab: str) -> None:
        """Open a tab."""
        go(self.page, tab)

    def fits(self) -> None:
        """Nothing sticks out sideways, nor is cut off there."""
        wide = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0
        cut = self.page.evaluate(CUT_OFF)
        assert cut == [], cut

    def height(self) -> int:
        """Of the whole page, in pixels."""
        return self.page.evaluate("document.documentElement.scrollHeight")

    def check(self, name: str) -> None:
        """Nothing was asked of another host, nothing failed, nothing sticks out sideways; the page is closed. name: of
        its picture, for who wants to look at it."""
        if LOOK in os.environ:
            self.page.screenshot(path=Path(os.environ[LOOK]) / f"{name}.png", full_page=True)
        assert self.hosts <= {"127.0.0.1", "localhost", "local data"}
        assert self.faults == []
        self.fits()
        self.page.close()
