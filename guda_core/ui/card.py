"""What other programs show of a link to this page: its title, what it is about, and a small picture of its own making.

gradio writes marks of its own into the page, with its name, picture and address. They are replaced here on the way out,
by ones whose addresses begin as the visitor's own did. Everything else passes as it is.
"""

from __future__ import annotations

import io
import re
from functools import cache
from html import escape

from gradio.route_utils import get_root_url
from PIL import Image, ImageDraw, ImageFont
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from guda_core.answers.look import COLOURS
from guda_core.ui.words import PURPOSE, TITLE

PICTURE = "/guda-card.png"
SIZE = (1200, 630)  # pixels, as those programs like it
MARK = re.compile(r'<meta\s+(?:property|name)="(?:og|twitter):(\w+)"\s+content="([^"]*)"\s*/>\s*')
BARS = (0.92, 0.44, 0.36, 0.22, 0.15)  # lengths of the drawing's bars: a drawing, no answer


@cache
def picture() -> bytes:
    """The picture as PNG: the title above some bars, the first of which is ahead."""
    image = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(image)
    colours = {name: pair[0] for name, pair in COLOURS.items()}
    draw.text((80, 64), "GUDA", fill=colours["measured"], font=ImageFont.load_default(44))
    draw.multiline_text((80, 128), TITLE.replace(" made ", "\nmade ", 1), fill="#111827", spacing=14,
                        font=ImageFont.load_default(64))  # fmt: skip
    for i, length in enumerate(BARS):
        top, right = 320 + 50 * i, 80 + int(length * 1000)
        draw.rectangle((80, top, 80 + int(0.1 * 1000), top + 32), fill=colours["added"])
        draw.rectangle((184, top, right, top + 32), fill=colours["measured"] if i == 0 else "#93b4f5")
    draw.line((80, 306, 80, 566), fill="#4b5563", width=3)
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True)
    return out.getvalue()


def filled(html: str, root: str) -> str:
    """The page with marks of its own in place of gradio's. root: the page's own address, without a slash at its end."""
    titles = [content for name, content in MARK.findall(html) if name == "title"]  # as HTML; the last is the page's own
    about = escape(PURPOSE)
    marks = {"og:type": "website", "og:title": titles[-1] if titles else escape(TITLE), "og:description": about,
             "og:url": escape(f"{root}/"), "og:image": escape(f"{root}{PICTURE}"),
             "og:image:width": SIZE[0], "og:image:height": SIZE[1]}  # fmt: skip
    own = "".join(f'<meta property="{name}" content="{content}">' for name, content in marks.items())
    own += f'<meta name="description" content="{about}"><meta name="twitter:card" content="summary_large_image">'
    return MARK.sub("", html).replace("<head>", f"<head>{own}", 1)


class Card:
    """Middleware (ASGI) that serves the picture and writes the marks of the page itself."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", "")) or "/"
        if scope["type"] != "http" or scope["method"] != "GET" or path not in ("/", PICTURE):
            await self.app(scope, receive, send)
        elif path == PICTURE:
            await Response(picture(), media_type="image/png")(scope, receive, send)
        else:
            root = get_root_url(Request(scope), route_path="/", root_path=scope.get("root_path") or None)
            await self.app(scope, receive, _Filling(send, root))


class _Filling:
    """Holds the page back until it is whole, and sends it with its own marks."""

    def __init__(self, send: Send, root: str) -> None:
        self.send, self.root, self.body = send, root, b""
        self.start: Message | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.start = message
            return
        self.body += message.get("body", b"")
        if message.get("more_body") or self.start is None:
            return
        headers = [(k, v) for k, v in self.start["headers"] if k.lower() != b"content-length"]
        if any(k.lower() == b"content-type" and v.startswith(b"text/html") for k, v in headers):
            self.body = filled(self.body.decode(), self.root.rstrip("/")).encode()
        headers.append((b"content-length", str(len(self.body)).encode()))
        await self.send({**self.start, "headers": headers})
        await self.send({"type": "http.response.body", "body": self.body})
