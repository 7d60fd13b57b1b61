"""The app starts whatever the visitor's machine is like, or says in one sentence why not. Real processes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn
from gradio import http_server
from gradio.exceptions import ServerFailedToStartError
from gradio_client import Client, handle_file
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from guda_core.cli import start
from guda_core.errors import OptionError
from guda_core.proxies import NAMES
from guda_core.ui.serve import launch
from tests.fakes import WAIT, FakeService, serving
from tests.test_imaging import encoded, halves

pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")  # gradio's use of pandas 3
ROOT = Path(__file__).resolve().parent.parent
DEAD = "http://127.0.0.1:9"  # nobody answers there
HOSTILE = {
    "http_proxy": DEAD, "HTTP_PROXY": DEAD, "https_proxy": "what://ever", "ALL_PROXY": "socks5://127.0.0.1:9",
    "HOME": "/dev/null/nowhere", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "GRADIO_SERVER_PORT": "abc",
    "GRADIO_NUM_PORTS": "many", "GUDA_MCP": "1",
}  # fmt: skip
FAKED = """
import signal

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` turns it off
from guda_core.cli import app, start

def fake():
    with start.without_proxies():
        from tests.fakes import FakeService
    return FakeService()

start._service = lambda *chosen: fake()
app(["app"])
"""


@contextmanager
def busy_port() -> Iterator[int]:
    with closing(socket.create_server(("127.0.0.1", 0))) as s:
        yield s.getsockname()[1]


def free_port() -> int:
    with busy_port() as port:
        return port


def told(**environ: str) -> tuple[int, str, str]:
    """Exit code, output and errors of `python app.py`, which must end by itself."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("GUDA_", "GRADIO_"))}
    done = subprocess.run(
        [sys.executable, "app.py"], cwd=ROOT, env={**clean, **environ}, capture_output=True, text=True, timeout=WAIT
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"GUDA_PORT": "abc"}, "The port (--port, or GUDA_PORT) must be a whole number from 1 to 65535; got 'abc'."),
        ({"GRADIO_SERVER_PORT": "99999"}, "GRADIO_SERVER_PORT must be a whole number from 1 to 65535; got '99999'."),
        ({"GUDA_HOST": "8.8.8.8", "GUDA_PORT": "PORT"}, "'8.8.8.8' is no address of this machine."),
        ({"GRADIO_ROOT_PATH": "guda", "GUDA_PORT": "PORT"}, "GRADIO_ROOT_PATH must begin with '/'"),
        ({"GRADIO_TEMP_DIR": "/dev/null/x", "GUDA_PORT": "PORT"}, "Uploads cannot be kept in '/dev/null/x'"),
    ],
)
def test_a_start_that_cannot_be_is_one_sentence(environ, sentence):
    code, out, err = told(**{k: str(free_port()) if v == "PORT" else v for k, v in environ.items()})
    assert (code, out) == (2, "") and err.startswith(f"Error: {sentence}") and err.count("\n") == 1


def test_a_port_in_use_is_one_sentence():
    with busy_port() as port:
        code, out, err = told(GUDA_PORT=str(port))
    assert (code, out) == (2, "")
    assert err == (
        f"Error: Port {port} is in use by another program. Take another one, for example with "
        f"--port {port + 1} or GUDA_PORT={port + 1}.\n"
    )


@pytest.mark.parametrize("text", ["0", "-1", "65536", "7860.0", "1_000", "٧٨٦٠", "1e3", "0x50", "port"])
def test_a_port_is_a_whole_number(text):
    with pytest.raises(OptionError, match="from 1 to 65535"):
        start.read_address({"GUDA_PORT": text})


@pytest.mark.parametrize(
    ("environ", "address"),
    [
        ({}, ("127.0.0.1", 7860)),
        ({"GUDA_HOST": " 0.0.0.0 ", "GUDA_PORT": " 80 "}, ("0.0.0.0", 80)),
        ({"GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SERVER_PORT": "7861"}, ("0.0.0.0", 7861)),
        ({"GUDA_HOST": "", "GUDA_PORT": ""}, ("127.0.0.1", 7860)),
        ({"GUDA_HOST": "[::1]"}, ("::1", 7860)),
    ],
)
def test_an_address_is_read(environ, address):
    assert start.read_address(environ) == address


def test_host_and_port_of_the_command_line_win(monkeypatch):
    monkeypatch.setenv("GUDA_PORT", "1111")
    monkeypatch.setenv("GUDA_HOST", "0.0.0.0")
    asked = []
    monkeypatch.setattr(start, "run", lambda make: asked.append(start.read_address()))
    start.start(port=2222)
    start.start(host="localhost", port=2222)
    assert asked == [("0.0.0.0", 2222), ("localhost", 2222)]
    with pytest.raises(OptionError, match=r"GUDA_PORT\) must be a whole number from 1 to 65535; got '70000'"):
        start.start(port=70000)


def test_a_port_that_needs_more_rights_is_said(monkeypatch):
    class Refusing(socket.socket):
        def bind(self, where: Any) -> None:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "socket", Refusing)
    with pytest.raises(OptionError, match="Port 80 may not be used without administrator rights"):
        start.check_address("127.0.0.1", 80)


def test_uploads_go_where_they_can_be_written_and_are_gone_afterwards(tmp_path, monkeypatch):
    monkeypatch.delenv(start.UPLOADS, raising=False)
    closed = tmp_path / "closed"
    closed.write_text("a file where the temp folder should be")
    monkeypatch.setattr(tempfile, "tempdir", str(closed))
    monkeypatch.setenv("GUDA_CACHE", str(tmp_path / "cache"))
    with start.upload_folder() as folder:
        assert folder.is_relative_to(tmp_path / "cache") and folder.stat().st_mode & 0o077 == 0
        assert os.environ[start.UPLOADS] == str(folder)
        (folder / "upload.png").write_bytes(b"x")
    assert not folder.exists() and start.UPLOADS not in os.environ
    monkeypatch.setenv("GUDA_CACHE", str(closed / "cache"))
    with pytest.raises(OptionError, match=r"No folder for uploads can be written to .*Set GRADIO_TEMP_DIR"):
        start.upload_folder().__enter__()


def test_a_folder_that_is_given_for_uploads_is_never_served_itself(tmp_path, monkeypatch):
    """Who starts the app may have other files there, such as a token."""
    own = tmp_path / "own"
    own.mkdir()
    (own / ".token").write_text("secret")
    monkeypatch.setenv(start.UPLOADS, str(own))
    with start.upload_folder() as folder:
        assert folder.parent == own and folder.stat().st_mode & 0o077 == 0
        with serving(FakeService()) as url:
            (folder / "upload.png").write_bytes(b"x")
            assert httpx.get(f"{url}gradio_api/file={folder / 'upload.png'}", timeout=WAIT).content == b"x"
            assert httpx.get(f"{url}gradio_api/file={own / '.token'}", timeout=WAIT).status_code == 403
    assert os.environ[start.UPLOADS] == str(own) and [p.name for p in own.iterdir()] == [".token"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The project under a path with a space, brackets and an accent."""
    folder = tmp_path / "my [b] cöpy"
    for name in ("guda_core", "style_groups", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "experiments").symlink_to(ROOT / "experiments")
    return folder


@contextmanager
def started(
    folder: Path, port: int, errors: Path, program: str = FAKED, **environ: str
) -> Iterator[tuple[subprocess.Popen, str]]:
    """The app of a copy in a process without a terminal, until it answers."""
    clean = {k: v for k, v in os.environ.items() if k != start.UPLOADS}
    with errors.open("wb") as log:
        app = subprocess.Popen(
            [sys.executable, "-c", program], cwd=folder, env={**clean, **environ, "GUDA_PORT": str(port)},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    url, end = f"http://127.0.0.1:{port}/", time.monotonic() + WAIT
    try:
        while True:
            assert app.poll() is None and time.monotonic() < end, errors.read_text(errors="replace")
            try:
                httpx.get(url, timeout=WAIT, trust_env=False, verify=False)  # else each call reads all authorities
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield app, url
    finally:
        app.kill()
        app.wait()


def ask(url: str, folder: Path) -> dict[str, Any]:
    """The record of a picture that was uploaded there."""
    (folder / "halves.png").write_bytes(encoded(halves()))
    client = Client(url, verbose=False, download_files=str(folder / "down"))
    return client.predict(handle_file(folder / "halves.png"), "", ["clip"], "quick", api_name="/attribute")


def test_it_starts_and_answers_in_a_hostile_environment_and_leaves_nothing(copy, tmp_path):
    """Proxies of every kind, no home, a foreign temp folder, ASCII output, no terminal, an odd path."""
    temporary, log = tmp_path / "tmp", tmp_path / "app.log"
    temporary.mkdir()
    (temporary / "gradio").write_text("another user's")
    environ = {**HOSTILE, "TMPDIR": str(temporary), "PYTHONPATH": str(copy)}
    with serving(FakeService()), started(copy, free_port(), log, **environ) as (app, url):
        assert ask(url, tmp_path)["methods"]["clip"]["groups"]["noto"]["status"] == "ok"
        (folder,) = [p for p in temporary.iterdir() if p.name.startswith("guda-uploads-")]
        assert any(folder.rglob("halves.png"))
        app.send_signal(signal.SIGHUP)  # as when a terminal is closed
        assert app.wait(WAIT) == 0, log.read_text(errors="replace")
        assert [p.name for p in temporary.iterdir()] == ["gradio"]
    text = log.read_text(encoding="ascii")
    assert f"The app answers at {url}" in text and "Traceback" not in text


@pytest.mark.parametrize("numbers", [(signal.SIGTERM,), (signal.SIGINT,) * 3], ids=["term", "ctrl-c"])
def test_it_ends_in_peace_while_it_computes(tmp_path, numbers):
    """Threads inside torch came back while Python went down: "terminate called without an active exception", -6. Who
    sees nothing happen presses Ctrl+C again."""
    temporary, log, go = tmp_path / "tmp", tmp_path / "app.log", tmp_path / "go"
    temporary.mkdir()
    computing = f"""
import os, signal, threading, time, torch
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` turns it off
x = torch.ones(64, 64)
def compute():
    while not os.path.exists({str(go)!r}): time.sleep(0.05)  # else the start takes long
    while True: x @ x
for _ in range(3): threading.Thread(target=compute, daemon=True).start()
"""
    with started(ROOT, free_port(), log, computing + FAKED, TMPDIR=str(temporary)) as (app, _):
        go.touch()
        time.sleep(0.3)
        for number in numbers:  # also while the page has begun to answer, and the program does not know it yet
            app.send_signal(number)
            time.sleep(0.05)
        assert app.wait(WAIT) == 0, log.read_text(errors="replace")
    said = log.read_text(errors="replace")
    assert not list(temporary.iterdir()) and "terminate called" not in said and "Stopped." in said


def test_a_server_that_needs_longer_than_gradio_waits_is_waited_for(monkeypatch):
    def impatient(self: Any) -> None:
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        raise ServerFailedToStartError("Server failed to start.")

    monkeypatch.setattr(http_server.Server, "run_in_thread", impatient)
    with serving(FakeService()) as url:
        assert httpx.get(url, timeout=WAIT).status_code == 200


def test_a_port_that_was_taken_while_the_model_was_loaded_is_said():
    def no_port(**_: Any) -> None:
        raise OSError("Cannot find empty port in range: 7860-7860.")

    page = SimpleNamespace(launch=no_port)
    with pytest.raises(OptionError, match=r"127\.0\.0\.1:7860: it is in use"):
        launch(page, "127.0.0.1", 7860)  # type: ignore[arg-type]


def test_launching_leaves_the_proxies_as_they_were(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", DEAD)
    monkeypatch.setenv("no_proxy", "example.com")
    monkeypatch.delenv("NO_PROXY", raising=False)
    theirs = http_server.Server
    with serving(FakeService()) as url:
        assert httpx.get(url, timeout=WAIT, trust_env=False).status_code == 200
        assert [os.environ.get(k) for k in NAMES] == ["example.com", None] and http_server.Server is theirs


@contextmanager
def behind(url: str, path: str) -> Iterator[str]:
    """A proxy that shows what is at `url` under a path of its own, as a web server in front of the app does."""

    async def passed_on(request: Request) -> Response:
        if not request.url.path.startswith(f"{path}/"):
            return Response("nothing here", 404)
        inside = httpx.URL(url).join(request.url.path.removeprefix(f"{path}/"))
        asked = inside.copy_with(query=request.url.query.encode())
        kept = {k: v for k, v in request.headers.items() if k not in ("host", "content-length")}
        more = {"x-forwarded-host": request.headers["host"], "x-forwarded-proto": "http"}
        client = request.app.state.client
        sent = client.build_request(request.method, asked, headers={**kept, **more}, content=await request.body())
        got = await client.send(sent, stream=True)
        end = BackgroundTask(got.aclose)
        return StreamingResponse(got.aiter_raw(), got.status_code, dict(got.headers), background=end)

    @asynccontextmanager
    async def with_client(app: Starlette) -> AsyncIterator[None]:
        async with httpx.AsyncClient(trust_env=False, timeout=WAIT) as app.state.client:
            yield

    proxy = Starlette(lifespan=with_client)
    proxy.add_route("/{rest:path}", passed_on, methods=["GET", "POST", "HEAD"])
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(proxy, port=port, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}{path}/"
    finally:
        server.should_exit = True
        thread.join(WAIT)


def test_it_answers_behind_a_path_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_ROOT_PATH", "/tools/guda")
    monkeypatch.setenv(start.UPLOADS, str(tmp_path / "uploads"))
    with serving(FakeService()) as url, behind(url, "/tools/guda") as outside:
        page = httpx.get(outside, timeout=WAIT, trust_env=False)
        assert page.status_code == 200 and httpx.URL(outside).path.rstrip("/") in page.text
        assert httpx.get(f"{outside}config", trust_env=False).json()["root"] == outside.rstrip("/")
        assert ask(outside, tmp_path)["methods"]["clip"]["groups"]
