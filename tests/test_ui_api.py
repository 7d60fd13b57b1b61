"""The app as programs see it: its endpoints, what it refuses, and that two visitors never mix."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from typer.testing import CliRunner

from guda_core.cli import app
from guda_core.data.images import MAX_BYTES
from guda_core.errors import ScoreError
from guda_core.ui import MOST_SENT, QUEUE, build_ui, launch_options, words
from tests.fakes import REASON, WAIT, FakeService, serving
from tests.stage import Stage

pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")  # gradio's use of pandas 3

ROOT = Path(__file__).resolve().parent.parent
DRAW = {"prompt": "a red apple", "seed": 1, "steps": 5, "guidance": 3.0}
OPTIONS = {"methods": ["guda", "clip"], "effort": "quick"}


SERVICE = FakeService


@pytest.fixture
def visitor(stage: Stage) -> Visitor:
    return Visitor(stage.url)


def picture(folder: Path, colour: str = "red") -> Path:
    path = folder / f"{colour}.png"
    Image.new("RGB", (80, 64), colour).save(path)
    return path


def text(markup: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", markup)).split())


class Visitor:
    """A client of the app, with the outputs by name."""

    def __init__(self, url: str) -> None:
        self.client = Client(url, verbose=False, download_files=tempfile.mkdtemp())

    def call(self, name: str, *inputs: Any) -> dict[str, Any]:
        out = self.client.predict(*inputs, api_name=name)
        keys = ("says", "status", "scope", "picture", "notes", "captions", "guda", "clip", "shown")
        return dict(zip(keys, out, strict=True))

    def generate(self, **more: Any) -> dict[str, Any]:
        return self.call("/page_generate", *{**DRAW, **OPTIONS, **more}.values())

    def attribute(self, upload: Any, caption: str = "", more_captions: bool = False, **more: Any) -> dict[str, Any]:
        return self.call("/page_attribute", upload, caption, more_captions, *{**OPTIONS, **more}.values())


def raw(url: str, upload: Any) -> str:
    """What the server answers when a program sends it this, unchecked by any client."""
    data = [upload, "", False, *OPTIONS.values()]
    call = f"{url}gradio_api/call/page_attribute"
    event = httpx.post(call, json={"data": data}, timeout=WAIT).json()["event_id"]
    return httpx.get(f"{call}/{event}", timeout=WAIT).text


def test_generate_answers_with_the_sentence_the_bars_and_the_same_figures_as_a_table(stage, visitor):
    service, out = stage.service, visitor.generate()
    first = re.search('class="guda-name">([^<]+)<', out["guda"])[1]
    assert text(out["says"]).startswith(f"Most needed: {first} clear of the second By GUDA (unlearning), the model")
    assert f"{first}: 41 nats (95% interval 35 to 47). Next: " in text(out["says"])
    assert "No retrained models (the oracle) checked this answer" in text(out["says"])
    assert f"1 {first} 41 35 to 47 2 " in text(out["guda"])
    assert f"1 {first} 0.720 0.710 to 0.730 2 " in text(out["clip"])
    assert "nats" not in out["clip"] and "cosine" not in out["guda"]
    for part in ("guda", "clip"):
        assert f'role="img" aria-label="Scores by {service.methods()[part].name}' in out[part]
        assert not re.search(r"<td[^>]*>ok</td>", out[part])
    assert "<details" not in out["guda"].split("<figure")[0] and out["clip"].startswith("<details")
    assert "a red apple" in text(out["notes"])
    assert text(out["status"]) == words.DONE
    shown = re.search(r'src="data:image/png;base64,([^"]+)" alt="[^"]*a red apple"', out["picture"])
    assert shown is not None
    with Image.open(io.BytesIO(base64.b64decode(shown[1]))) as im:
        assert im.size == (64, 64)


def test_one_method_alone_says_nothing_of_the_other(visitor):
    out = visitor.generate(methods=["clip"])
    assert text(out["says"]).startswith("Looks most like") and "likeness" in text(out["says"])
    assert not isinstance(out["guda"], str) and not out["clip"].startswith("<details")  # no update; open


def test_an_upload_is_prepared_from_the_cache_and_scored(stage, visitor, tmp_path):
    out = visitor.attribute(handle_file(picture(tmp_path)), "an apple")
    assert stage.service.prepared == [picture(tmp_path).read_bytes()]
    assert "resized from 80 x 64" in text(out["notes"]) and "an apple" in text(out["notes"])
    assert text(out["status"]) == words.DONE


def test_the_last_picture_can_be_scored_again_and_a_visitor_without_one_is_told(stage, visitor):
    first, other = visitor.generate(methods=["clip"]), Visitor(stage.url)
    assert text(visitor.call("/page_again", ["guda", "clip"], "full")["says"]).startswith("Most needed")
    with pytest.raises(AppError, match="no longer stored"):
        other.call("/page_again", ["guda"], "quick")
    assert first["clip"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("x.png", b"hello, not a picture", "Only PNG, JPEG, WebP, AVIF, TIFF and HEIC"),
        ("x.png", b"", "This file is empty"),
        (
            "x.svg",
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            "Only PNG, JPEG, WebP, AVIF, TIFF and HEIC",
        ),
        ("x.png", b"\x89PNG\r\n\x1a\n" + b"x" * 99, "damaged or cut off"),
    ],
)
def test_a_refused_upload_says_why(name, content, sentence, visitor, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AppError, match=sentence):
        visitor.attribute(handle_file(tmp_path / name))


def test_no_picture_and_wrong_options_are_refused_with_a_sentence(visitor):
    with pytest.raises(AppError, match="There is no picture yet"):
        visitor.attribute(None)
    with pytest.raises(AppError, match="seed must be a whole number"):
        visitor.generate(seed=-1)
    with pytest.raises(AppError, match="got none"):
        visitor.generate(methods=[])
    with pytest.raises(AppError, match="control character"):
        visitor.generate(prompt="a\0b")


def file_data(path: str | None, url: str | None = None) -> dict[str, Any]:
    return {"path": path, "url": url, "meta": {"_type": "gradio.FileData"}}


PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGP4z8DwHwAFAAH/"


def test_addresses_data_and_server_paths_are_refused_and_never_fetched(stage, tmp_path):
    service, url = stage.service, stage.url
    for sent in (
        file_data(f"{url}theme.css"),
        file_data("https://example.com/a.png", "https://example.com/a.png"),
        file_data("ftp://example.com/a.png"),
        file_data(None, PIXEL),
        file_data(PIXEL),
        file_data("/etc/passwd"),
        file_data(str(picture(tmp_path))),
        file_data(str(ROOT / "README.md")),
    ):
        answer = raw(url, sent)
        assert "event: error" in answer and "event: complete" not in answer, (sent, answer)
    assert words.NOT_UPLOADED in raw(url, file_data("https://example.com/a.png"))
    assert words.NOT_UPLOADED in raw(url, file_data(None, PIXEL))
    assert service.prepared == []


def test_texts_from_outside_are_escaped():
    service = FakeService(banner="<script>alert(1)</script>")
    service.unavailable = ("noto",)
    with serving(service) as url:
        out = Visitor(url).generate(prompt="<img src=x onerror=alert(1)>")
        assert "<img" not in out["notes"] and REASON not in out["guda"]
        assert REASON in text(out["guda"])
        assert "Not scored: Noto Emoji." in text(out["says"])
        service.fault = ScoreError("bad <b>value</b>")
        with pytest.raises(AppError, match="bad &lt;b&gt;value"):
            Visitor(url).generate()
        assert "<script>alert" not in json.dumps(Visitor(url).client.config)


def test_an_unforeseen_fault_is_logged_and_keeps_its_details_to_itself(stage, visitor, caplog):
    stage.service.fault = RuntimeError("secret path /root")
    with pytest.raises(AppError, match="Something went wrong on the server"):
        visitor.generate()
    assert "secret path" in caplog.text


def test_two_visitors_at_once_get_the_same_as_one_after_the_other(stage):
    service, url = stage.service, stage.url
    service.delay = 0.02
    visitors = [Visitor(url) for _ in range(3)]
    alone = [v.generate(seed=i)["guda"] for i, v in enumerate(visitors)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda iv: iv[1].generate(seed=iv[0])["guda"], enumerate(visitors)))
    assert together == alone and len(set(alone)) > 1
    assert service.most_at_work == 1


def test_cancelling_stops_the_work_at_the_next_yield(stage):
    service, url = stage.service, stage.url
    service.delay = 0.05
    service.passes = 4000
    job = Visitor(url).client.submit(*{**DRAW, **OPTIONS}.values(), api_name="/page_generate")
    _wait(lambda: service.at_work == 1)
    job.cancel()
    _wait(lambda: service.at_work == 0)
    assert service.closed == 1


def _wait(true, seconds: float = WAIT) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def test_the_queue_is_bounded_everything_computes_in_turn_and_uploads_are_limited():
    demo = build_ui(FakeService())
    fns = {f.api_name: f for f in demo.fns.values() if f.api_visibility != "private"}
    public = {name for name, f in fns.items() if f.api_visibility == "public"}
    assert public == {"groups", "generate", "attribute", "generate_and_attribute", "report", "replay", "compare"}
    compute = [f for name, f in fns.items() if name not in ("groups", "compare")]
    assert {(f.concurrency_id, f.concurrency_limit) for f in compute} == {("compute", 1)}
    assert demo._queue.max_size == QUEUE == 32 and demo.api_open is False
    assert demo.delete_cache is not None
    options = launch_options()
    assert (
        options["max_file_size"] == MOST_SENT >= MAX_BYTES and options["show_error"] and "allowed_paths" not in options
    )


def test_an_upload_over_the_limit_is_refused(stage):
    large = b"0" * (launch_options()["max_file_size"] + 1)
    before = {p for p in stage.uploads.rglob("*") if p.is_file()}
    sent = httpx.post(f"{stage.url}gradio_api/upload", files={"files": ("a.png", large)}, timeout=WAIT)
    assert sent.status_code == 413
    assert {p for p in stage.uploads.rglob("*") if p.is_file()} == before


def test_app_is_imported_without_gradio_or_torch():
    code = "import sys, app; sys.exit(bool({'gradio', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_two_reports_are_compared_as_on_the_command_line(stage, tmp_path):
    service, url = stage.service, stage.url
    client = Client(url, verbose=False, download_files=tempfile.mkdtemp())
    asked = (handle_file(picture(tmp_path)), "", ["guda", "clip"])
    made = [client.predict(*asked, effort, api_name="/report") for effort in ("quick", "full")]
    service.outcome = "tied"
    made.append(client.predict(*asked, "quick", api_name="/report"))
    for first, second in ((made[0], made[1]), (made[0], made[2])):
        out = tmp_path / "c.json"
        assert CliRunner().invoke(app, ["compare", first, second, "--json", str(out)]).exit_code == 0
        answer = client.predict(handle_file(first), handle_file(second), api_name="/compare")
        assert answer == json.loads(out.read_text()) and answer["said"]
    (tmp_path / "x.zip").write_bytes(b"no report")
    with pytest.raises(AppError, match="is no report: it is damaged, cut off or another file"):
        client.predict(handle_file(made[0]), handle_file(tmp_path / "x.zip"), api_name="/compare")
    with pytest.raises(AppError, match="There is no report yet"):
        client.predict(handle_file(made[0]), None, api_name="/compare")


def test_on_a_space_the_page_asks_no_other_host(monkeypatch):
    monkeypatch.setenv("SYSTEM", "spaces")
    monkeypatch.setenv("SPACE_ID", "someone/guda")
    with gr.Blocks() as other:
        pass
    assert other.space_id == "someone/guda"  # for which gradio's page loads fonts and a header from elsewhere
    assert build_ui(FakeService()).get_config_file()["space_id"] is None
