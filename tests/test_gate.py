"""What no request may do: real requests to a served app, and to the gate alone where they would be large."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from gradio import routes
from starlette.responses import PlainTextResponse

from guda_core.ui import MOST_SENT, gate, launch_options
from guda_core.ui.gate import MOST_ASKED, Gate
from tests.fakes import WAIT, FakeService
from tests.served import App, opened
from tests.test_imaging import encoded, halves

pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")  # gradio's use of pandas 3
BOUND = "b0undary"
MULTIPART = {"content-type": f"multipart/form-data; boundary={BOUND}"}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    yield from opened(tmp_path_factory.mktemp("gate"), FakeService())


def in_parts(data: bytes, size: int = 2**16) -> Iterator[bytes]:
    """So that it is sent in chunks, and no header says how long it is."""
    for i in range(0, len(data), size):
        yield data[i : i + size]


def field(disposition: str, content: bytes = b"x") -> bytes:
    head = f"--{BOUND}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode()
    return head + content + f"\r\n--{BOUND}--\r\n".encode()


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("path", ["call/groups", "queue/join", "run/groups", "component_server", "cancel"])
def test_a_call_that_is_too_large_is_refused(app, path, chunked):
    """As is, gradio reads all of it, and answers or refuses for another reason."""
    data = json.dumps({"data": ["x" * MOST_ASKED]}).encode()
    headers = {"content-type": "application/json"}
    sent = httpx.post(
        f"{app.url}gradio_api/{path}", content=in_parts(data) if chunked else data, headers=headers, timeout=WAIT
    )
    assert sent.status_code == 413 and sent.text == gate.TOO_MUCH[1]


def test_a_call_below_the_limit_is_answered(app):
    data = {"data": [], "more": "x" * (MOST_ASKED - 100)}
    sent = httpx.post(f"{app.url}gradio_api/call/groups", json=data, timeout=WAIT)
    assert sent.status_code == 200 and "event_id" in sent.json()


@pytest.mark.parametrize(
    "disposition", ['name="more"', 'name="files"', 'name="more"; filename="a.png"', 'name=more; filename="files"']
)
def test_an_upload_holds_files_alone(app, disposition):
    before = app.kept()
    sent = httpx.post(f"{app.url}gradio_api/upload", content=field(disposition), headers=MULTIPART, timeout=WAIT)
    assert sent.status_code == 400 and sent.text == gate.ONLY_FILES[1]
    good = field('name="files"; filename="a.png"')[: -len(f"--{BOUND}--\r\n")]  # kept by gradio until it is refused
    sent = httpx.post(
        f"{app.url}gradio_api/upload", content=in_parts(good + field(disposition), 7), headers=MULTIPART, timeout=WAIT
    )
    assert sent.status_code == 400 and app.kept() == before


def test_files_are_uploaded_also_in_small_pieces(app):
    first = field('name="files"; filename="a.png"', b"one")[: -len(f"--{BOUND}--\r\n")]
    data = in_parts(first + field('name="files"; filename="b.png"', b"two"), 3)
    sent = httpx.post(f"{app.url}gradio_api/upload", content=data, headers=MULTIPART, timeout=WAIT)
    assert [Path(p).read_bytes() for p in sent.json()] == [b"one", b"two"]


def test_an_upload_is_counted(tmp_path, monkeypatch):
    """The limit of all files together, made small here."""
    most = launch_options()["app_kwargs"]["middleware"][0].kwargs["most"]
    assert 50 * MOST_SENT < most < 51 * MOST_SENT
    monkeypatch.setattr("guda_core.ui.MOST_SENT", 2**20)
    monkeypatch.setenv("GUDA_MOST_PICTURES", "2")
    for app in opened(tmp_path, FakeService()):
        one = field('name="files"; filename="a.png"', b"0" * 1_000_000)[: -len(f"--{BOUND}--\r\n")]
        for count, code in ((4, 413), (2, 200)):
            body = one * count + field('name="files"; filename="a.png"')
            for content in (body, in_parts(body)):
                sent = httpx.post(f"{app.url}gradio_api/upload", content=content, headers=MULTIPART, timeout=WAIT)
                assert sent.status_code == code and (code == 200 or not app.kept())


def test_no_upload_fills_the_disk(app, monkeypatch):
    """More than 512 MiB stay free, whoever uploads how often."""
    used = shutil.disk_usage(app.sent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: used._replace(free=gate.LEFT_FREE + 2**20))
    before, small, large = app.kept(), b"0" * 2**19, b"0" * (2**20 + 1)
    for data, code in ((small, 200), (large, 507), (small[1:], 200)):
        sent = httpx.post(f"{app.url}gradio_api/upload", files={"files": ("a.png", data)}, timeout=WAIT)
        assert sent.status_code == code and (code == 200 or sent.text == gate.FULL[1])
    assert len(app.kept()) == len(before) + 2


def test_the_disk_is_asked_again_while_an_upload_comes(app, monkeypatch):
    """Many that begin together each find room at first."""
    used, step = shutil.disk_usage(app.sent), gate.STEP
    free = [gate.LEFT_FREE + 3 * step, gate.LEFT_FREE + step, gate.LEFT_FREE - 1]  # others fill it meanwhile
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: used._replace(free=free[0] if len(free) == 1 else free.pop(0))
    )
    before = app.kept()
    sent = httpx.post(f"{app.url}gradio_api/upload", files={"files": ("a.png", b"0" * (2 * step + 9))}, timeout=WAIT)
    assert sent.status_code == 507 and sent.text == gate.FULL[1] and app.kept() == before
    free[:] = [gate.LEFT_FREE + 3 * step]
    sent = httpx.post(f"{app.url}gradio_api/upload", files={"files": ("a.png", b"0" * (2 * step + 9))}, timeout=WAIT)
    assert sent.status_code == 200 and len(app.kept()) == len(before) + 1


DISKS = [(0, 0, 9, True), (2**40, 2**29, 9, False), (2**40, 2**29 + 10, 9, True), (1000, 200, 99, True),
         (1000, 200, 100, False)]  # fmt: skip


@pytest.mark.parametrize(("total", "free", "more", "fits"), DISKS)
def test_room_is_left_on_small_disks_too_and_those_that_tell_nothing_are_used(monkeypatch, total, free, more, fits):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=total, free=free))
    assert gate.has_room(more) == fits


def test_an_interrupted_upload_leaves_no_file(app):
    before, head = app.kept(), field('name="files"; filename="a.png"', b"0" * 200_000)[:-50]
    where = httpx.URL(app.url)
    lines = "POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\nContent-Type: "
    with socket.create_connection((where.host, where.port)) as s:
        s.sendall(f"{lines}{MULTIPART['content-type']}\r\n\r\n".encode() + head)
        wait(lambda: app.kept() != before)
    wait(lambda: app.kept() == before)  # fails where a state never comes
    assert app.kept() == before  # and stays so


def wait(true: Any) -> None:
    end = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that gradio would have fetched."""
    found: list[str] = []

    async def stream(url: str, *_: object) -> PlainTextResponse:
        found.append(url)
        return PlainTextResponse("theirs")

    monkeypatch.setattr(routes, "secure_url_stream_response", stream)
    return found


STRANGE = "http://example.com/a.png"


@pytest.mark.parametrize(
    "path",
    [
        f"gradio_api/file={STRANGE}", f"gradio_api/file/{STRANGE}", "gradio_api/file=https%3A%2F%2Fexample.com/a.png",
        "gradio_api/fil%65=https://example.com/a.png", f"gradio_api/proxy={STRANGE}", f"proxy={STRANGE}",
        "gradio_api/file=%0Ahttp://example.com/a.png",
    ],
)  # fmt: skip
def test_no_other_host_is_asked(app, path, asked):
    for method in ("GET", "HEAD"):
        assert httpx.request(method, f"{app.url}{path}", timeout=WAIT).status_code == 403
    assert asked == []


def test_no_other_host_is_asked_below_a_path_of_its_own(tmp_path, monkeypatch, asked):
    monkeypatch.setenv("GRADIO_ROOT_PATH", "/tools/guda")
    for app in opened(tmp_path, FakeService()):
        for inside in ("", "tools/guda/"):
            url = f"{app.url}{inside}gradio_api"
            assert httpx.get(f"{url}/file={STRANGE}", timeout=WAIT).status_code == 403
            assert httpx.get(f"{url}/deep_link?session_hash=a", timeout=WAIT).status_code == 404
            sent = httpx.post(f"{url}/upload", files={"files": ("a.png", b"0" * MOST_ASKED)}, timeout=WAIT)
            assert sent.status_code == 200
            sent = httpx.post(f"{url}/call/groups", content=b"0" * (MOST_ASKED + 1), timeout=WAIT)
            assert sent.status_code == 413
    assert asked == []


def test_an_uploaded_file_is_served_whatever_it_is_called(app):
    data = encoded(halves())
    sent = httpx.post(f"{app.url}gradio_api/upload", files={"files": ("proxy=http:a.png", data)}, timeout=WAIT)
    got = httpx.get(f"{app.url}gradio_api/file={sent.json()[0]}", timeout=WAIT)
    assert got.status_code == 200 and got.content == data


def test_nothing_is_written_that_nobody_sweeps(app):
    """A link to a visit writes all of it to the disk; a recording lies in the system's folder."""
    app.visitor.generate(methods=["clip"])
    before = app.kept()
    session = app.visitor.client.session_hash
    for path in ("deep_link", "deep_lin%6B", "deep_link/"):
        got = httpx.get(f"{app.url}gradio_api/{path}", params={"session_hash": session}, timeout=WAIT)
        assert got.status_code == 404
    sent = httpx.post(f"{app.url}gradio_api/process_recording", files={"more": ("a.mp4", b"x")}, timeout=WAIT)
    assert sent.status_code == 404 and app.kept() == before


def test_an_answer_that_has_begun_is_not_followed_by_another():
    """The gate alone, around an app that answers before it has read."""
    sent: list[dict[str, Any]] = []
    parts = [{"type": "http.request", "body": b"0" * 600_000, "more_body": True}] * 3

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("early")(scope, receive, send)
        while True:
            await receive()

    async def receive() -> Any:
        return parts.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/x", "headers": []}
    with ThreadPoolExecutor(1) as pool:  # a browser's test before it leaves a loop in this thread
        pool.submit(asyncio.run, Gate(app, 10)(scope, receive, send)).result(timeout=WAIT)
    assert [m["type"] for m in sent] == ["http.response.start", "http.response.body"] and sent[1]["body"] == b"early"
    assert len(parts) == 1
