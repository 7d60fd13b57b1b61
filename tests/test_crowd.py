"""What many presses at once cost: an example is read once, and what reads a file waits in a queue."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest

from guda_core.data.prompts import MAX_PROMPT
from guda_core.records import Query
from guda_core.ui import build_ui, launch_options, words
from guda_core.ui.connect import _Known, not_read, offer
from guda_core.ui.serve import launch
from tests.fakes import WAIT, FakeService
from tests.test_start import free_port
from tests.test_ui_api import Visitor, text

pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")  # gradio's use of pandas 3


class Slow(FakeService):
    """Counts what a kept example costs; a search waits until it is let go."""

    def __init__(self) -> None:
        super().__init__(passes=1)
        self.searched, self.go, self.begun = 0, threading.Event(), threading.Event()

    def nearest(self, query: Query) -> Any:
        self.searched += 1
        self.begun.set()
        assert self.go.wait(WAIT)
        return super().nearest(query)


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setenv("GUDA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def page() -> Iterator[tuple[Slow, gr.Blocks, str]]:
    service = Slow()
    demo, url = launch(build_ui(service), "127.0.0.1", free_port(), **launch_options())
    try:
        yield service, demo, url
    finally:
        service.go.set()
        demo.close()


def press(demo: gr.Blocks, url: str, kind: Any) -> dict[str, Any]:
    """What the server answers when the page's first function of this kind is asked for past the queue."""
    number = next(i for i, f in demo.fns.items() if f.fn is kind or type(f.fn) is kind)
    data = [None] * len(demo.fns[number].inputs)
    asked = {"fn_index": number, "data": data, "session_hash": "x"}
    sent = httpx.post(f"{url}gradio_api/run/x", json=asked, timeout=WAIT)
    return {"code": sent.status_code, **sent.json()}


def test_presses_of_a_kept_example_cost_one_reading(page):
    service, demo, url = page
    service.go.set()
    assert text(Visitor(url).call("/page_example_1")["status"]) == words.DONE
    service.go.clear()
    service.begun.clear()
    computed = service.searched
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(press, demo, url, _Known)
        assert service.begun.wait(WAIT)
        others = [press(demo, url, _Known) for _ in range(3)]  # they do not wait for a thread's end
        assert all(words.STORED not in str(o) and o["code"] == 200 for o in others)
        assert all(any(len(str(v)) == 16 for v in o["data"]) for o in others)  # asked for a place in the queue
        service.go.set()
        assert words.STORED in str(first.result(WAIT))
    later = [press(demo, url, _Known) for _ in range(3)]
    # but for the list, which holds the time, and the turn
    shown = [[v for v in o["data"] if "guda-past" not in str(v) and len(str(v)) != 8] for o in later]
    assert all(words.STORED in str(o) for o in later) and shown[0] == shown[2] and len(shown[0]) > 5
    assert service.searched == computed + 1
    assert text(Visitor(url).call("/page_example_1")["status"]) == words.STORED
    assert service.searched == computed + 1


def test_an_example_that_was_written_anew_is_read_anew(page, tmp_path):
    service, demo, url = page
    service.go.set()
    Visitor(url).call("/page_example_1")
    press(demo, url, _Known)
    computed, (file,) = service.searched, (tmp_path / "cache" / "examples").glob("*.zip")
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    assert words.STORED not in str(press(demo, url, _Known))
    file.write_bytes(data)
    assert words.STORED in str(press(demo, url, _Known)) and service.searched == computed + 1


def test_a_caption_that_no_file_can_have_given_is_not_read():
    service = FakeService()
    assert "read as plain text" in not_read(service, "a (teal:1.2) square")
    service.unread = lambda prompt: pytest.fail("a long text took the only place that computes")  # type: ignore[assignment]
    assert not_read(service, "a" * (MAX_PROMPT + 1)) == not_read(service, "") == not_read(service, None) == ""  # type: ignore[arg-type]


def test_a_file_is_read_in_a_queue(page):
    _, demo, url = page
    assert press(demo, url, offer)["code"] == 404
    (f,) = (f for f in demo.fns.values() if f.fn is offer)
    assert f.queue and f.concurrency_limit == 2
