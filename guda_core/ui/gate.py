"""What no request may do, whatever gradio would allow: bring too much, make this server ask others, or write what
nobody sweeps.

gradio reads a call's whole body into memory, keeps an upload's fields that are no files there too, fetches web
addresses for whoever asks, and writes links and recordings to the disk for good. The page needs none of this.
"""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

from gradio.route_utils import MultipartParseError, MultipartParser, parse_options_header
from gradio.utils import get_upload_folder
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)
UPLOAD = "/gradio_api/upload"
MOST_ASKED = 2**20  # bytes of any request that is no upload
LEFT_FREE = 2**29  # bytes of the disk that uploads leave, or a tenth of a small one
STEP = 2**23  # bytes of an upload, after which the disk is asked again
FIELD = b"files"  # the one field of an upload that gradio keeps as files and sweeps
ELSEWHERE = re.compile(
    r"/gradio_api/file.*://|/gradio_api/proxy=|^/proxy=", re.DOTALL
)  # a file at, or a page of, another host
NOT_HERE = re.compile(r"/gradio_api/(deep_link|process_recording)/*$")
TOO_MUCH = (413, "This is larger than the page takes.")
FULL = (507, "There is no room for more files here now. Those of others go within two hours: try again later.")
ONLY_FILES = (400, "An upload holds files alone, in the field 'files'.")
NOT_ASKED = (403, "This page asks nothing of other hosts.")
MISSING = (404, "There is nothing here.")


def has_room(more: int) -> bool:
    """Whether the disk of the uploads can take so many bytes more. One that does not tell can."""
    folder = Path(get_upload_folder())
    try:
        disk = shutil.disk_usage(folder if folder.is_dir() else folder.parent)
    except OSError:
        return True
    return not disk.total or disk.free - more > min(LEFT_FREE, disk.total // 10)


class Gate:
    """Middleware (ASGI) that refuses such requests. most: bytes of one upload, with everything around its files."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, headers = scope["path"], Headers(scope=scope)  # percent-decoded, as gradio reads it
        upload = path.removeprefix(scope.get("root_path", "").rstrip("/")) == UPLOAD
        most, length = self.most if upload else MOST_ASKED, headers.get("content-length", "")
        expected = int(length[:20]) if length.isdecimal() else most
        refusal = None
        if ELSEWHERE.search(path):
            refusal = NOT_ASKED
        elif NOT_HERE.search(path):
            refusal = MISSING
        elif expected > most:
            refusal = TOO_MUCH
        elif upload and not has_room(expected):
            refusal = FULL
        body = _Body(receive, send, most=most, kind=headers.get("content-type") if upload else None)
        if refusal is None:
            refusal = await body.passed_to(self.app, scope)
        if refusal == FULL:
            log.warning("An upload was refused: its disk is nearly full.")
        if refusal is not None:
            code, text = refusal
            await PlainTextResponse(text, code, {"connection": "close"})(scope, receive, send)


class _Body:
    """One request's body on its way in, counted, and its answer on the way out. kind: an upload's content type."""

    def __init__(self, receive: Receive, send: Send, *, most: int, kind: str | None) -> None:
        self._receive, self._send, self.most, self.upload = receive, send, most, kind is not None
        self.count, self.whole, self.answered = 0, False, False
        self.refusal: tuple[int, str] | None = None
        self.fields = _Fields.of(kind or "")

    async def passed_to(self, app: ASGIApp, scope: Scope) -> tuple[int, str] | None:
        """Let the app answer; why it must not, if nothing of an answer was sent."""
        try:
            await app(scope, self.receive, self.send)
        except Exception:  # the app's way of saying that the body ended early
            if self.refusal is None:
                raise
        return None if self.answered else self.refusal

    async def receive(self) -> Message:
        """The next part of the body. Raises MultiPartException, upon which gradio removes an upload's files."""
        message = await self._receive()
        if self.whole:
            return message
        if message["type"] == "http.disconnect" and self.upload:
            raise MultiPartException("The upload was interrupted.")
        part = message.get("body", b"")
        steps = self.count // STEP
        self.whole, self.count = not message.get("more_body", False), self.count + len(part)
        if self.count > self.most:
            self.refusal = TOO_MUCH
        elif self.upload and self.count // STEP > steps and not has_room(0):
            self.refusal = FULL  # others came in beside it
        elif self.fields is not None and part and not self.fields.are_files(part):
            self.refusal = ONLY_FILES
        if self.refusal is not None:
            raise MultiPartException(self.refusal[1])
        return message

    async def send(self, message: Message) -> None:
        if self.refusal is None or self.answered:
            self.answered = True
            await self._send(message)


class _Fields:
    """The heads of an upload's fields, read as gradio reads them; their contents are left alone."""

    def __init__(self, boundary: bytes) -> None:
        self.name, self.value, self.told, self.sound = b"", b"", b"", True
        calls = {"on_part_begin": self._begin, "on_header_field": self._name, "on_header_value": self._value,
                 "on_header_end": self._header, "on_headers_finished": self._heads}  # fmt: skip
        self.parser = MultipartParser(boundary, calls)  # pyright: ignore[reportArgumentType]

    @classmethod
    def of(cls, kind: str) -> _Fields | None:
        """For a content type; None where gradio refuses it before it reads."""
        form, options = parse_options_header(kind)
        boundary = options.get(b"boundary")
        return cls(boundary) if form == b"multipart/form-data" and boundary else None

    def are_files(self, part: bytes) -> bool:
        """Whether every field that has begun by now is a file in the right field."""
        try:
            self.parser.write(part)
        except MultipartParseError:
            return False
        return self.sound

    def _begin(self) -> None:
        self.told = b""

    def _name(self, data: bytes, start: int, end: int) -> None:
        self.name += data[start:end]

    def _value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]

    def _header(self) -> None:
        if self.name.lower() == b"content-disposition":
            self.told = self.value
        self.name = self.value = b""

    def _heads(self) -> None:
        _, options = parse_options_header(self.told)
        self.sound = self.sound and options.get(b"name") == FIELD and b"filename" in options
