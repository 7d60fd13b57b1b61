"""Pictures of every screen and state of the app: `python -m experiments.screens FOLDER [--fake] [--only NAME,...]`.

The README's is made by `python -m experiments.screens docs --only app`.

Starts the app on a free port, drives a headless Chromium through it and saves PNGs by name, e.g. done-dark.png. With
--fake a service without a model answers (tests/fakes.py), which also shows states that the real model may not reach.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import numpy as np
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from guda_core.cli.terminal import listed
from guda_core.local import load_service
from guda_core.service import Service
from guda_core.ui import several as several_pictures
from guda_core.ui import words
from tests.chromium import ARGS, NAMES, chromium_path
from tests.fakes import FakeService, serving

WAIT = 600_000  # milliseconds
DESKTOP, SMALL, PHONE, TALL = (
    {"width": w, "height": h} for w, h in ((1440, 900), (1366, 768), (390, 844), (1280, 1120))
)


def done(page: Page) -> None:
    expect(page.get_by_text(words.DONE).first).to_be_visible(timeout=WAIT)
    page.wait_for_timeout(800)


def example(page: Page) -> None:
    page.get_by_role("button", name="Rocket").click()
    done(page)
    expect(page.get_by_role("button", name="Rocket")).to_be_enabled(timeout=WAIT)


def upload(page: Page, path: Path, *, captions: bool = False) -> None:
    page.get_by_role("tab", name="Upload").click()
    page.locator("input[type=file]").first.set_input_files(path)
    expect(page.get_by_label("Remove image").or_(page.get_by_label("Clear"))).to_be_visible(timeout=WAIT)
    if captions:
        page.get_by_role("textbox", name="Caption").fill("coloured grains")
        page.get_by_role("button", name="Advanced").click()
        page.get_by_label(words.TRY_CAPTIONS).check()
    page.get_by_role("button", name="Attribute", exact=True).click()


def tab(name: str) -> Callable[[Page], None]:
    def opened(page: Page) -> None:
        example(page)
        opened_tab(page, name)
        page.wait_for_timeout(1500)

    return opened


def working(page: Page) -> None:
    page.get_by_role("radio", name="Full").check()
    page.get_by_role("button", name="Generate and attribute").click()
    expect(page.locator(".guda-bar").first).to_be_visible(timeout=WAIT)


def cancelled(page: Page) -> None:
    working(page)
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".guda-says").first).to_contain_text("Cancelled", timeout=WAIT)
    expect(page.get_by_role("button", name="Generate and attribute")).to_be_enabled(timeout=WAIT)


def refused(page: Page) -> None:
    path = Path(tempfile.mkdtemp()) / "not-a-picture.png"
    path.write_bytes(b"no picture")
    page.get_by_role("tab", name="Upload").click()
    page.locator("input[type=file]").first.set_input_files(path)
    page.wait_for_timeout(2500)
    page.get_by_role("button", name="Attribute", exact=True).click()
    expect(page.locator(".guda-says").first).to_contain_text("Not done", timeout=WAIT)


def uploaded(page: Page) -> None:
    path = Path(tempfile.mkdtemp()) / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)).save(path)
    upload(page, path, captions=True)
    done(page)


def opened_tab(page: Page, name: str) -> None:
    found = page.get_by_role("tab", name=name)
    if not found.is_visible():
        page.locator(".overflow-menu > button").first.click()
        found = page.locator(".overflow-dropdown").get_by_text(name)
    found.click()


def attribute_all(page: Page, folder: Path, last: str) -> None:
    """Ask for the pictures of a folder once the one that is listed last is there."""
    opened_tab(page, "Several pictures")
    page.locator("input[type=file]:not([webkitdirectory])").last.set_input_files(sorted(folder.iterdir()))
    expect(page.get_by_role("cell", name=last, exact=True)).to_be_visible(timeout=WAIT)
    page.get_by_role("button", name="Attribute all").click()


def several(page: Page) -> None:
    """Four pictures, one of which is none."""
    folder = Path(tempfile.mkdtemp())
    for name, colour in (("tea cup.png", "teal"), ("hat.png", "orange"), ("a very long name of a picture.png", "navy")):
        Image.new("RGB", (64, 64), colour).save(folder / name)
    (folder / "letter.png").write_bytes(b"no picture")
    attribute_all(page, folder, "letter.png")
    expect(page.locator(".guda-several tbody tr")).to_have_count(4, timeout=WAIT)
    page.wait_for_timeout(1500)


def another(page: Page) -> None:
    """Another picture than that of the example, which filled the form."""
    page.get_by_role("textbox", name="Prompt").fill("a tea cup")
    page.get_by_role("button", name="Generate and attribute").click()
    expect(page.get_by_text("Scored with the caption: a tea cup")).to_be_visible(timeout=WAIT)
    done(page)


def history(page: Page) -> None:
    """Two answers of one visit, in their list."""
    example(page)
    another(page)
    expect(page.get_by_text("This visit: 2 answers")).to_be_visible(timeout=WAIT)
    page.get_by_text("This visit: 2 answers").click()
    page.wait_for_timeout(800)


def group_map(page: Page) -> None:
    """An answer with the map of a group that was chosen."""
    example(page)
    page.get_by_role("combobox", name=words.MAP_OF).click()
    page.get_by_role("option").nth(5).click()
    expect(page.locator(".guda-more-maps .guda-note")).to_be_visible(timeout=WAIT)
    expect(page.get_by_role("button", name="Rocket")).to_be_enabled(timeout=WAIT)
    page.wait_for_timeout(800)


def too_many(page: Page) -> None:
    """More pictures than may be scored at once."""
    folder = Path(tempfile.mkdtemp())
    for i in range(several_pictures.most() + 1):
        Image.new("RGB", (32, 32), "teal").save(folder / f"{i:02d}.png")
    attribute_all(page, folder, "00.png")
    expect(page.get_by_text("Not started.")).to_be_visible(timeout=WAIT)


def opened_row(page: Page) -> None:
    """The whole answer of a row."""
    several(page)
    page.locator(".guda-several .guda-open").first.click()
    expect(page.get_by_text(words.BROUGHT_BACK)).to_be_visible(timeout=WAIT)
    page.wait_for_timeout(800)


def two_reports(page: Page) -> None:
    """The report of an example beside that of the form's own picture."""
    paths = []
    for act in (example, another):
        opened_tab(page, "Attribute")
        act(page)
        opened_tab(page, "Evidence")
        with page.expect_download(timeout=WAIT) as download:
            page.get_by_role("button", name="Download report").click()
        paths.append(Path(tempfile.mkdtemp()) / "report.zip")
        download.value.save_as(paths[-1])
    inputs = page.locator(".tabitem:visible input[type=file]")
    inputs.last.set_input_files(paths[1])
    page.wait_for_timeout(1500)
    inputs.first.set_input_files(paths[0])
    expect(page.get_by_text("The two reports compared")).to_be_visible(timeout=WAIT)
    page.wait_for_timeout(800)


README = "app"  # the picture of the README: what a tall window shows, not the whole page
SCREENS: dict[str, Callable[[Page], None]] = {
    "first-visit": lambda page: page.wait_for_timeout(500),
    "working": working,
    "cancelled": cancelled,
    "done": example,
    README: example,
    "refused": refused,
    "uploaded": uploaded,
    "several": several,
    "several-too-many": too_many,
    "several-opened": opened_row,
    "group-map": group_map,
    "history": history,
    "two-reports": two_reports,
    "compare": tab("Compare"),
    "evidence": tab("Evidence"),
    "benchmarks": tab("Benchmarks"),
    "style-groups": tab("Style groups"),
    "limits": tab("Limits"),
}
STATES = {"tied": "not separable", "nothing": "no group stands out"}  # of the fake service, on the first screen
LOOKS = {  # a picture is of the whole page, but for "-fold": what is seen without scrolling
    "": (DESKTOP, "light"),
    "-dark": (DESKTOP, "dark"),
    "-fold": (SMALL, "light"),
    "-phone": (PHONE, "light"),
    "-phone-dark": (PHONE, "dark"),
}


def shoot(page: Page, url: str, theme: str, act: Callable[[Page], None], path: Path) -> None:
    """One picture of the whole page after an act."""
    page.set_default_timeout(WAIT)
    page.goto(f"{url}?__theme={theme}")
    expect(page.get_by_text("Quick, about")).to_be_visible(timeout=WAIT)
    act(page)
    page.screenshot(path=path, full_page=path.stem != README and not path.stem.endswith("-fold"))
    print(path)
    page.close()


def services(fake: bool) -> dict[str, Service]:
    """The service of each state: "" is the ordinary one."""
    if not fake:
        return {"": load_service(fall_back=False)}
    usual = FakeService(delay=0.05, passes=40)
    usual.oracle, usual.offset = "agrees", True
    out: dict[str, Service] = {"": usual}
    for outcome in STATES:
        out[outcome] = FakeService(outcome=outcome)
    differs = FakeService()
    differs.oracle, differs.offset = "differs", True
    out["differs"] = differs
    strange = FakeService(banner="The bundled model answers in place of 'sd15'. The hub could not be reached.")
    strange.scoped, strange.missing, strange.by_caption = "out of scope", ("noto",), True
    return {**out, "out-of-scope": strange}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fake", action="store_true")
    parser.add_argument("--only", help="Comma-separated names of pictures, e.g. done-dark,limits.")
    options = parser.parse_args()
    chromium = chromium_path()
    if chromium is None:
        raise SystemExit(f"No Chromium here: none of {', '.join(NAMES)} is on the PATH.")
    options.folder.mkdir(parents=True, exist_ok=True)
    only = set(listed("--only", options.only))
    os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp()
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=list(ARGS))
        for state, service in services(options.fake).items():
            screens = {state: uploaded if state == "out-of-scope" else example} if state else SCREENS
            wanted = [
                (name + look, view, act)
                for name, act in screens.items()
                for look, view in LOOKS.items()
                if not only or name + look in only
            ]
            # An example that was answered in one state must not be shown in another; and the README's picture, which is
            # committed, shows no training pictures, which belong to others: an empty cache holds none.
            if options.fake or only == {README}:
                os.environ["GUDA_CACHE"] = tempfile.mkdtemp()
            if wanted:
                with serving(service) as url:
                    for name, (size, theme), act in wanted:
                        page = browser.new_page(viewport=TALL if name == README else size)  # type: ignore[arg-type]
                        shoot(page, url, theme, act, options.folder / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
