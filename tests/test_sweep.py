"""What visitors leave is deleted: on a served app, with files that are made old."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import httpx
import pytest
from gradio import processing_utils, route_utils
from gradio.state_holder import StateHolder
from gradio_client.exceptions import AppError

from guda_core.cli import start
from guda_core.ui import build_ui, launch_options, sweep, words
from guda_core.ui.serve import launch
from tests.fakes import WAIT, FakeService
from tests.test_gate import wait
from tests.test_imaging import encoded, halves
from tests.test_start import free_port
from tests.test_ui_api import Visitor, file_data, raw

pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")  # gradio's use of pandas 3
LONG_AGO = sweep.OLD + 60  # seconds


def aged(path: Path, seconds: float = LONG_AGO) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


@contextmanager
def served(folder: Path, patch: pytest.MonkeyPatch, every: float = 0.05) -> Iterator[tuple[gr.Blocks, str, Path]]:
    """The page as `guda app` serves it, swept often: (page, address, the private folder)."""
    patch.setenv(start.UPLOADS, str(folder))
    patch.setattr(sweep, "EVERY", every)
    with start.upload_folder() as private:
        demo, url = launch(build_ui(FakeService()), "127.0.0.1", free_port(), **launch_options())
        try:
            yield demo, url, private
        finally:
            demo.close()


def upload(url: str, data: bytes | None = None) -> Path:
    files = {"files": ("a.png", data or encoded(halves()))}
    return Path(httpx.post(f"{url}gradio_api/upload", files=files, timeout=WAIT).json()[0])


def test_together_they_keep_the_promise():
    assert "within two hours" in words.PRIVACY and sweep.EVERY + sweep.OLD < 2 * 3600


def test_old_uploads_go_wherever_they_came_from_and_new_ones_stay(tmp_path, monkeypatch):
    killed, others, theirs = (tmp_path / n for n in ("guda-uploads-killed", "other", "guda-uploads-link"))
    for folder in (killed, others):
        folder.mkdir()
        (folder / "a.png").write_bytes(b"x")
        aged(folder / "a.png")
    theirs.symlink_to(others)
    with served(tmp_path, monkeypatch) as (_, url, private):
        new, old, part = upload(url), upload(url, b"old"), private / "tmp123"
        part.write_bytes(b"interrupted")  # of it no list of gradio's knows
        for path in (old, part):
            aged(path)
        wait(lambda: not old.exists() and not part.exists() and not (killed / "a.png").exists())
        assert old.parent.exists()  # as one that gets its file in a moment
        aged(old.parent)
        wait(lambda: not old.parent.exists())
        got = httpx.get(f"{url}gradio_api/file={new}", timeout=WAIT)
        assert got.status_code == 200 and (others / "a.png").exists()
        assert httpx.get(f"{url}gradio_api/file={old}", timeout=WAIT).status_code == 403


def test_another_app_beside_it_keeps_what_its_page_is_made_of(tmp_path):
    """Each app makes its own page's files young, so that the other's sweeper leaves them."""
    own, upload = tmp_path / "own.png", tmp_path / "upload.png"
    for path in (own, upload):
        path.write_bytes(b"a")
        aged(path)
    sweep.sweep(tmp_path, {own.resolve()})
    sweep.sweep(tmp_path)
    assert own.is_file() and not upload.exists()


def test_another_folder_is_never_swept(tmp_path, monkeypatch):
    assert [*sweep.folders(tmp_path)] == []
    monkeypatch.setattr(sweep, "EVERY", 0.05)
    monkeypatch.setenv(start.UPLOADS, str(tmp_path))  # as when another program launches the page
    (tmp_path / "a.png").write_bytes(b"x")
    aged(tmp_path / "a.png")
    seen: list[Any] = []
    monkeypatch.setattr(sweep, "sweep", lambda *a: seen.append(a))
    demo, _ = launch(build_ui(FakeService()), "127.0.0.1", free_port(), **launch_options())
    time.sleep(0.3)
    demo.close()
    assert seen == [] and (tmp_path / "a.png").exists()


def test_a_round_that_fails_is_not_the_last(tmp_path, monkeypatch, caplog):
    real, failed = sweep.folders, []

    def folders(folder: Path) -> Iterator[Path]:
        if not failed:
            failed.append(1)
            raise RuntimeError("Set changed size during iteration")
        return real(folder)

    monkeypatch.setattr(sweep, "folders", folders)
    with served(tmp_path, monkeypatch) as (_, url, _private):
        wait(lambda: failed)
        old = upload(url)
        aged(old)
        wait(lambda: not old.exists())
    assert "tried again" in caplog.text


def test_a_folder_that_is_sent_as_a_file_is_refused_and_does_not_end_gradios_sweeper(tmp_path, monkeypatch):
    with served(tmp_path, monkeypatch) as (demo, url, private):
        sent = upload(url)
        for path in (sent.parent, private):
            assert words.NOT_UPLOADED in raw(url, file_data(str(path)))
        route_utils.delete_files_created_by_app(demo, age=None)
        assert not sent.exists()


def test_a_part_that_takes_no_file_fetches_none(tmp_path, monkeypatch):
    asked: list[str] = []

    async def fetch(url: str, cache_dir: str) -> str:
        asked.append(url)
        raise ValueError("nobody answers")

    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", fetch)
    with served(tmp_path, monkeypatch) as (_, url, _private):
        for file in (file_data("http://example.com/a.png"), file_data(str(upload(url).parent))):
            for given in (file, [file], {"a": [file]}):
                call = f"{url}gradio_api/call/page_generate"
                data = [given, 1, 5, 3.0, ["clip"], "quick"]
                event = httpx.post(call, json={"data": data}, timeout=WAIT).json()["event_id"]
                assert words.NOT_UPLOADED in httpx.get(f"{call}/{event}", timeout=WAIT).text
    assert asked == []


def test_what_the_page_is_made_of_stays(tmp_path, monkeypatch):
    monkeypatch.setenv(start.UPLOADS, str(tmp_path / "guda-uploads-1"))
    (tmp_path / "icon.png").write_bytes(encoded(halves()))
    with gr.Blocks() as page:
        button = gr.Button("x", icon=str(tmp_path / "icon.png"))
    icon = Path(button.icon["path"])
    assert icon.is_relative_to(tmp_path / "guda-uploads-1")
    aged(icon)
    sweep.own_files_stay(page)
    app: Any = SimpleNamespace(get_blocks=lambda: page, uploaded_file_dir=str(tmp_path / "guda-uploads-1"))
    sweep._sweep_all(app)
    route_utils.delete_files_created_by_app(page, age=None)
    assert icon.is_file()
    button.keep_in_cache.clear()
    aged(icon)
    sweep._sweep_all(app)
    assert not icon.exists()


def test_a_visit_that_nobody_comes_back_to_is_forgotten(tmp_path, monkeypatch):
    held: list[StateHolder] = []
    real = sweep.forget
    monkeypatch.setattr(sweep, "forget", lambda holder: (held.append(holder), real(holder)))
    with served(tmp_path, monkeypatch) as (_demo, url, _private):
        old, new = Visitor(url), Visitor(url)
        for visitor in (old, new):
            visitor.generate(prompt="a cup of nobody else", methods=["clip"])
        known = held[0]
        sessions = {v.client.session_hash for v in (old, new)}
        assert sessions <= set(known.session_data) and known.capacity == sweep.SESSIONS == 200
        known.session_data[old.client.session_hash].is_closed = True
        visit = known.session_data[new.client.session_hash]

        def words_of() -> str:
            return f"{dict(visit.config_values)} {dict(visit.state_data)}"  # copies: the server's thread changes them

        assert "data:image/png" in words_of() and "of nobody else" in words_of()
        assert new.call("/page_again", ["clip"], "quick")["clip"]
        known.time_last_used[old.client.session_hash] -= timedelta(minutes=31)
        known.time_last_used[new.client.session_hash] -= timedelta(hours=23)  # its page may be open
        wait(lambda: old.client.session_hash not in known.session_data)
        assert old.client.session_hash not in known.time_last_used
        wait(lambda: not re.search("data:image/png|of nobody else", words_of()))
        assert known.session_data[new.client.session_hash] is visit
        with pytest.raises(AppError, match=re.escape(words.PICTURE_GONE)):
            new.call("/page_again", ["clip"], "quick")
        assert new.generate(methods=["clip"])["clip"]  # the page goes on


def test_nobody_sees_who_visits(tmp_path, monkeypatch):
    with served(tmp_path, monkeypatch) as (_, url, _private):
        for path in ("monitoring", "monitoring/summary"):
            assert httpx.get(f"{url}{path}", timeout=WAIT).status_code == 403
