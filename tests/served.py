"""The app served for tests of bad input and faults, with every folder that could keep something below one folder."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import handle_file

from guda_core.local import LocalService
from tests.fakes import WAIT, FakeService, serving
from tests.test_imaging import encoded, halves
from tests.test_ui_api import Visitor

JSON = {"Content-Type": "application/json"}


class App:
    """A served app with one visitor; it knows every folder that could keep something."""

    def __init__(self, service: FakeService | LocalService, url: str, folder: Path) -> None:
        self.service, self.url, self.visitor = service, url, Visitor(url)
        self.uploads, self.temporary, self.sent = folder / "uploads", folder / "tmp", folder / "sent"
        self.sent.mkdir()

    def file(self, data: bytes, name: str = "picture.png") -> Any:
        (self.sent / name).write_bytes(data)
        return handle_file(self.sent / name)

    def attribute(self, data: bytes, name: str = "picture.png", **more: Any) -> dict[str, Any]:
        return self.visitor.attribute(self.file(data, name), **{"methods": ["clip"], **more})

    def record(self, data: bytes, methods: tuple[str, ...] = ("guda",)) -> dict[str, Any]:
        """What the named endpoint answers at the end."""
        asked = (self.file(data), "", list(methods), "quick")
        return self.visitor.client.predict(*asked, api_name="/attribute")

    def report(self) -> str:
        return self.visitor.client.predict(self.file(encoded(halves())), "", ["clip"], "quick", api_name="/report")

    def send(self, name: str, *data: Any) -> str:
        """The server's events for a call whose numbers no client checked; NaN included."""
        call = f"{self.url}gradio_api/call/{name}"
        posted = httpx.post(call, content=json.dumps({"data": data}), headers=JSON, timeout=WAIT)
        return httpx.get(f"{call}/{posted.json()['event_id']}", timeout=WAIT).text

    def kept(self) -> set[Path]:
        return {p for folder in (self.uploads, self.temporary) for p in folder.rglob("*") if p.is_file()}


def opened(folder: Path, service: FakeService | LocalService) -> Iterator[App]:
    """The app, with all folders it could write to below `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        (folder / "tmp").mkdir()
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "uploads"))
        patch.setattr(tempfile, "tempdir", str(folder / "tmp"))
        with serving(service) as url:
            yield App(service, url, folder)
